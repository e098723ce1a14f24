"""Take pictures with a headless browser: of a report, or of the studio over a runs folder.

`python scripts/screenshots.py RUN/report.html --name tour` writes `docs/images/NAME.png` (light), `NAME-dark.png` and
`NAME-phone.png`. `python scripts/screenshots.py RUNS --studio` serves the studio over that folder and writes
`docs/images/studio*.png`; the folder needs two done studies of one room.
Chromium or Chrome is found on the path.
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
STUDIO_HEIGHT = 900
# A room whose study logs curves.
LIVE_ROOM = "match"
ENOUGH_POINTS = "parseInt(document.querySelector('.curves .range')?.textContent ?? '0') >= 8"
# The pictures of the studio: name, page, whether it is dark; `{study}` and `{other}` are studies of one `{room}`.
STUDIO = (
    ("studio", "/", False),
    ("studio-run", "/runs/{study}", False),
    ("studio-room", "/rooms/{room}", False),
    ("studio-compare", "/compare?run={study}&run={other}", True),
)


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


def take_studio(browser: str, runs: Path, out: Path, width: int, height: int) -> list[Path]:
    """Serve the studio over a runs folder and take its pictures, the last one of a run at work."""
    from playwright.sync_api import sync_playwright

    names = newest_studies(runs)
    command = [sys.executable, "-m", "polyloom", "serve", "--port", "0", "--runs", str(runs)]
    taken = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stderr is not None
        address = server.stderr.readline().split("at ")[1].split()[0]
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS[1:]))

        def picture(name: str, path: str, dark: bool, wide: int = width, start: bool = False) -> None:
            scheme = "dark" if dark else "light"
            look = {"width": wide, "height": height}
            context = chromium.new_context(viewport=look, color_scheme=scheme, locale="en-GB", bypass_csp=True)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{address}{path.format(**names)}")
            if start:
                page.get_by_role("button", name="Quick run").first.click()
                page.wait_for_function(ENOUGH_POINTS, timeout=300_000)
            page.wait_for_function("!document.querySelector('.hero .glance:not(:has(svg))')", timeout=60_000)
            taken.append(out / f"{name}.png")
            page.screenshot(path=taken[-1])
            if start:
                page.get_by_role("button", name="Stop").click()
                page.get_by_role("button", name="Resume").wait_for(timeout=120_000)
            context.close()

        try:
            for name, path, dark in STUDIO:
                picture(name, path, dark)
            picture("studio-phone", "/runs", False, PHONE_WIDTH)
            picture("studio-live", f"/rooms/{LIVE_ROOM}", False, start=True)
        finally:
            chromium.close()
            server.terminate()
    return taken


def newest_studies(runs: Path) -> dict[str, str]:
    """Return the names that the pages of `STUDIO` need: a room and its two newest studies that are done."""
    from polyloom.runs.index import list_runs

    found: dict[str, list[str]] = {}
    for row in list_runs(runs, status="done"):
        if row.verb == "study":
            found.setdefault(row.room, []).append(row.id)
    for room, names in found.items():
        if len(names) > 1:
            return {"room": room, "study": names[0], "other": names[1]}
    raise SystemExit(f"{runs}: needs two done studies of one room, for example: polyloom silu study --seed 1")


def main(words: list[str]) -> int:
    """Take the three pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the report")
    parser.add_argument("--name", default="report", help="what the pictures are called")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where they go")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1500)
    parser.add_argument("--studio", action="store_true", help="`page` is a runs folder: take the studio's pictures")
    given = parser.parse_args(words)
    if given.studio:
        given.out.mkdir(parents=True, exist_ok=True)
        taken = take_studio(find_browser(), given.page.resolve(), given.out.resolve(), given.width, STUDIO_HEIGHT)
        print(*taken, sep="\n")
        return 0
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
