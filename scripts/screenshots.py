"""Take pictures of a report with a headless browser: `python scripts/screenshots.py RUN/report.html --name tour`.

Writes `docs/images/NAME.png` (light), `NAME-dark.png` and `NAME-phone.png`. Chromium or Chrome is found on the path.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
PHONE_WIDTH = 390


def find_browser() -> str:
    """Return the path of a browser; exits with what to install when there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise SystemExit("No Chromium or Chrome on the path. On Debian: apt-get install chromium fonts-noto-cjk")


def take(browser: str, page: Path, picture: Path, width: int, height: int, *extra: str) -> None:
    """Take one picture of a page, `width` by `height` pixels from its top."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, *extra, f"--user-data-dir={profile}", f"--screenshot={picture}"]
        command += [f"--window-size={width},{height}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def take_phone(browser: str, page: Path, picture: Path, height: int) -> None:
    """Take a picture at a phone's width, which is narrower than a window can be: the page stands in a frame."""
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        style = f"width:{PHONE_WIDTH}px;height:{height}px;border:0"
        source = page.resolve().as_uri()
        frame.write_text(f'<body style="margin:0"><iframe src="{source}" style="{style}"></iframe>', encoding="utf-8")
        take(browser, frame, picture, PHONE_WIDTH, height)


def main(words: list[str]) -> int:
    """Take the three pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the report")
    parser.add_argument("--name", default="report", help="what the pictures are called")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where they go")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500)
    given = parser.parse_args(words)
    if not given.page.is_file():
        raise SystemExit(f"{given.page}: there is no such report.")
    browser = find_browser()
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.resolve()
    light, dark, phone = (out / f"{given.name}{suffix}.png" for suffix in ("", "-dark", "-phone"))
    take(browser, given.page, light, given.width, given.height)
    take(browser, given.page, dark, given.width, given.height, DARK)
    take_phone(browser, given.page, phone, given.height)
    print(light, dark, phone, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
