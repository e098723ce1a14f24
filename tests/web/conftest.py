"""Fixtures of the studio's tests: the real server in a process of its own, and pages of a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from polyloom.web import Settings, create_app

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_SECONDS = 60
BASE_URL = "http://127.0.0.1:8321"
# These machines are shared: what is seen late is seen.
PATIENCE_MILLISECONDS = 30_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)


@dataclass
class Studio:
    """A studio that is served by a process, over a runs folder."""

    runs: Path
    module: str = "polyloom"
    options: tuple[str, ...] = ()
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server printed."""
        return self.runs.with_name("server.log").read_text()

    def start(self) -> Studio:
        """Start the server and wait until it answers."""
        log = self.runs.with_name("server.log")
        words = ["serve", "--runs", str(self.runs), "--port", str(self.port), *self.options]
        with log.open("ab") as stream:
            begin = stream.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *words],
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **self.environment},
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            said = log.read_bytes()[begin:].decode()
            if "http://" in said and "\n" in said:
                self.port = int(said.split("http://")[1].split()[0].rpartition(":")[2])
                if self._answers():
                    return self
            time.sleep(0.05)
        raise RuntimeError(f"the studio did not start: {log.read_text()}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/static/icon.svg", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def end(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: in order, or with `SIGKILL` as a crash does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=30)

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server and start it again at the same address."""
        self.end(number)
        self.start()


@pytest.fixture
def start_studio(tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    """Return a function that starts a studio; it takes the fields of `Studio`."""
    started: list[Studio] = []

    def start(**given: object) -> Studio:
        studio = Studio(**{"runs": tmp_path / "runs", **given})  # type: ignore[arg-type]
        started.append(studio)
        return studio.start()

    yield start
    for studio in started:
        studio.end(signal.SIGKILL)


@pytest.fixture
def studio(start_studio: Callable[..., Studio]) -> Studio:
    """Return a started studio with the real rooms."""
    return start_studio()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium; skips where there is none.

    One a module: while it lives, playwright has this thread's event loop, and tests of other modules need their own.
    """
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the path; scripts/setup-system installs it")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def new_context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Return a function that opens a browser context, which is a visitor of its own; it takes playwright's options."""
    opened: list[BrowserContext] = []

    def open_context(**given: object) -> BrowserContext:
        context = browser.new_context(**{"locale": "en-GB", **given})  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        opened.append(context)
        return context

    yield open_context
    for context in opened:
        context.close()


@pytest.fixture
def browser_page(new_context: Callable[..., BrowserContext]) -> Iterator[Page]:
    """Return a page of the browser; the test fails when the page breaks its own policy or a script of it fails."""
    page = new_context().new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Content Security" in message.text else None)
    yield page
    assert not faults


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of the application in this process, over `tmp_path / "runs"`, with its queue at work."""
    app = create_app(Settings(runs=tmp_path / "runs"))
    with TestClient(app, base_url=BASE_URL, follow_redirects=False) as opened:
        yield opened


@pytest.fixture
def post(client: TestClient) -> Callable[..., object]:
    """Return a function that posts a form as a page of the studio does, with its session's token."""

    def send(path: str, **data: object) -> object:
        page = client.get("/").text
        csrf = page.split('X-CSRF-Token": "')[1].split('"')[0]
        return client.post(path, data={"csrf": csrf, **data})

    return send
