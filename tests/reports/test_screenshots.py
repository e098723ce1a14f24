"""The script that takes the pictures of the documentation."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from polyloom.core.result import Result
from polyloom.reports import render_html

SCRIPT = Path(__file__).parents[2] / "scripts" / "screenshots.py"


@pytest.fixture
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_it_takes_three_pictures(script: ModuleType, tmp_path: Path, result: Result) -> None:
    if not any(map(shutil.which, script.BROWSERS)):
        pytest.skip("no Chromium or Chrome on the path")
    page = tmp_path / "report.html"
    page.write_text(render_html(result), encoding="utf-8")
    assert script.main([str(page), "--out", str(tmp_path), "--name", "a", "--width", "800", "--height", "600"]) == 0
    pictures = [(tmp_path / name).read_bytes() for name in ("a.png", "a-dark.png", "a-phone.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_it_says_what_to_install(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("", encoding="utf-8")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="apt-get install chromium"):
        script.main([str(tmp_path / "report.html")])


def test_it_refuses_what_is_not_there(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such report"):
        script.main([str(tmp_path / "report.html")])
