"""Take the pictures of the studio's workbench, `docs/images/studio-{annotate,annotate-ar,replay,judge}.png`.

`python scripts/workbench_screenshots.py` makes what they show in a folder of its own: an annotation project of the
embedded world in Japanese and one in Arabic, a community that talks, and an attack on the embedded model.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from screenshots import FLAGS, IMAGES, find_browser

from polyloom.runs.execute import run_verb
from polyloom.runs.store import EventStore
from polyloom.web.label_sets import make_set
from polyloom.web.projects import from_world
from polyloom.web.settings import Settings

SIZE = {"width": 1280, "height": 900}


def prepare(runs: Path) -> tuple[str, str, str]:
    """Make what the pictures show; return the names of two projects and of a set of responses."""
    run_verb("commons.run", {"minds": ["noisy:0.2:sustainable"], "num_seeds": 1, "seed": 4}, runs=runs, name="fishery")
    attack = {"keep_responses": True, "steps": 6, "num_test": 12}
    run_verb("redteam.attack", attack, runs=runs, name="attack")
    store = EventStore(Settings(runs=runs).database_url)
    projects = (from_world(store, language, 10, blind=True) for language in ("ja", "ar"))
    return (*projects, make_set(store, runs, "attack"))  # type: ignore[return-value]


def annotate(page: Page, address: str, picture: Path) -> None:
    """Take a document's picture after some steps."""
    page.goto(address)
    page.wait_for_selector(".candidate.current")
    for key in "aaxfa":
        before = page.get_attribute(".desk", "data-version")
        page.keyboard.press(key)
        page.wait_for_selector(f".desk:not([data-version='{before}'])")
    page.screenshot(path=picture)


def take(page: Page, address: str, names: tuple[str, str, str], out: Path) -> list[Path]:
    """Take all pictures; returns their paths."""
    japanese, arabic, responses = names
    pictures = [out / f"studio-{name}.png" for name in ("annotate", "annotate-ar", "replay", "judge")]
    page.goto(f"{address}/annotate")
    page.get_by_label("Your name").fill("Aya")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    annotate(page, f"{address}/annotate/{japanese}/1", pictures[0])
    annotate(page, f"{address}/annotate/{arabic}/1", pictures[1])
    page.goto(f"{address}/replay/fishery/0/3")
    page.screenshot(path=pictures[2])
    page.goto(f"{address}/judge/{responses}/1")
    page.keyboard.press("o")
    page.wait_for_selector("#response")
    page.screenshot(path=pictures[3])
    return pictures


def main() -> int:
    """Take the pictures and print their paths."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        names = prepare(runs)
        command = [sys.executable, "-m", "polyloom", "serve", "--port", "0", "--runs", str(runs)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
            assert server.stderr is not None
            address = server.stderr.readline().split("at ")[1].split()[0]
            chromium = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS[1:]))
            try:
                page = chromium.new_context(viewport=SIZE, locale="en-GB").new_page()  # type: ignore[arg-type]
                print(*take(page, address, names, IMAGES), sep="\n")
            finally:
                chromium.close()
                server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
