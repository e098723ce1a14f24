"""The project's own scripts: the checks find what they are for, and pages of the site keep their links."""

from __future__ import annotations

import html
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from polyloom.core.registry import rooms

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """Import a file of `scripts/` by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sizes = script("check_sizes")
docs = script("generate_docs")


def function(name: str, lines: int) -> str:
    """Return the source of a function of so many lines."""
    return "\n".join([f"def {name}():", *["    x = 1"] * (lines - 1)]) + "\n"


@pytest.mark.parametrize(("lines", "fails"), [(40, None), (41, False), (80, False), (81, True)])
def test_functions_are_measured(lines: int, fails: bool | None) -> None:
    found = [(finding.place, finding.fails) for finding in sizes.check_source("a.py", function("f", lines), {})]
    assert found == ([] if fails is None else [("a.py:f", fails)])


@pytest.mark.parametrize(("lines", "fails"), [(400, None), (401, False), (500, False), (501, True)])
def test_modules_are_measured(lines: int, fails: bool | None) -> None:
    found = [(finding.place, finding.fails) for finding in sizes.check_source("a.py", "x = 1\n" * lines, {})]
    assert found == ([] if fails is None else [("a.py", fails)])


@pytest.mark.parametrize(("lines", "text"), [(600, None), (701, "over its exception"), (500, "need no exception")])
def test_an_exception_has_its_own_limit_and_goes_when_it_is_not_needed(lines: int, text: str | None) -> None:
    exceptions = sizes.read_exceptions("# a comment\n\na.py 700 tables\n")
    found = list(sizes.check_source("a.py", "x = 1\n" * lines, exceptions))
    assert len(found) == (text is not None)
    assert all(finding.fails and text in finding.text for finding in found)


def test_methods_and_nested_functions_have_dotted_names() -> None:
    source = "class A:\n    def f(self):\n        def g():\n            x = 1\n"
    assert [name for name, _ in sizes.functions(sizes.ast.parse(source))] == ["A.f", "A.f.g"]


def test_a_test_without_assertion_is_found() -> None:
    source = "def test_a():\n    f()\n\n\ndef test_b():\n    assert f()\n\n\ndef helper():\n    f()\n"
    assert [finding.place for finding in sizes.check_tests("t.py", source)] == ["t.py:test_a"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /home/someone/x", True),
        ("`/tmp/x.txt`", True),
        ("docs/home/page.md", False),
        ("https://example.org/home/x", False),
        ("path/to/work/x", False),
    ],
)
def test_machine_paths_are_found(line: str, found: bool) -> None:
    assert bool(sizes.MACHINE_PATH.search(line)) == found


def test_the_whole_check_reads_a_tree_and_fails_on_it(tmp_path: Path) -> None:
    files = {
        "scripts/size_exceptions.txt": "src/gone.py 900 it left\n",
        "src/p/a.py": "x = 1  # " + "TO" + "DO later\n",
        "tests/test_a.py": "def test_a():\n    pass\n",
        "README.md": "run /" + "home/me/x\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = {finding.place: finding.fails for finding in sizes.check(tmp_path)}
    assert found == {"src/p/a.py:1": True, "tests/test_a.py:test_a": True, "README.md:1": True, "src/gone.py": True}


def test_links_of_an_included_file_point_from_its_page() -> None:
    source = ROOT / "src" / "polyloom" / "methods" / "silu" / "README.md"
    page = ROOT / "docs" / "generated" / "rooms" / "silu.md"
    text = "[a](../../../../docs/statistics.md#four-words) [b](method.py) [c](https://example.org) [d](#here)"
    expected = "[a](../../statistics.md#four-words) b [c](https://example.org) [d](#here)"
    assert docs.relink(text, source, page) == expected


def test_headings_of_an_included_file_go_one_level_down() -> None:
    text = "# Title\n\n## Part\n\n```sh\n## a comment\n```\n\n### Detail\n"
    assert docs.demote(text) == "### Part\n\n```sh\n## a comment\n```\n\n#### Detail\n"


def test_options_are_described_in_words() -> None:
    from polyloom.tour.config import TourConfig

    table = docs.options_table(TourConfig)
    assert "| `profile` | `quick` or `full` | `quick` |" in table
    assert "| `model` | text | none |" in table
    assert "| `text` | path, repeated | none |" in table
    assert "| `seed` | integer, at least 0" in table


def test_bars_are_escaped_outside_code() -> None:
    assert docs.table(("a|b",), [("`|x|` or |y|",)]) == "| a\\|b |\n| --- |\n| `|x|` or \\|y\\| |\n"


def test_the_site_builds_strictly_and_holds_every_page(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason='zensical is not installed: pip install "polyloom[docs]"')
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("generated"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    num_pages = docs.write_pages(tmp_path / "docs" / "generated")
    call = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "docs").rglob("*.md"))
    assert num_pages == len(rooms()) + 6
    assert len(list((tmp_path / "site").rglob("index.html"))) == len(pages)
    for name, room in rooms().items():
        text = (tmp_path / "site" / "generated" / "rooms" / name / "index.html").read_text(encoding="utf-8")
        assert html.escape(room.question, quote=False) in text.replace("&rsquo;", "'")
