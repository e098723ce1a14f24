"""What the project says of itself is true: the commands run, both languages agree, links resolve, versions match."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import polyloom
from polyloom.core.config import dump_config, load_config, read_yaml
from polyloom.core.errors import UserError
from polyloom.core.registry import card, load, rooms
from polyloom.data.world.templates import LANGUAGES
from tests.conftest import CliResult

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMITTED_PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "recipes/*.md", "src/polyloom/methods/*/README.md")
    for path in ROOT.glob(pattern)
)
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"), key=lambda path: path.name)


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a file of the repository."""
    return [body for found, body in FENCE.findall((ROOT / name).read_text(encoding="utf-8")) if found == language]


def commands(block: str) -> list[str]:
    """Return the commands of a block, without comments."""
    return [line for raw in block.splitlines() if (line := raw.partition("#")[0].strip())]


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user's shell with its runs in `folder`; what is imported is this checkout."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "POLYLOOM_RUNS": str(folder / "runs"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def arguments(line: str) -> list[str]:
    """Return the words after `polyloom`."""
    program, *words = shlex.split(line)
    assert program == "polyloom", line
    return words


def test_both_readmes_name_the_same_commands_and_code() -> None:
    english, chinese = (
        [(language, commands(body)) for language, body in FENCE.findall((ROOT / name).read_text(encoding="utf-8"))]
        for name in READMES
    )
    assert english == chinese
    assert [language for language, _ in english] == ["sh", "sh", "bash", "bash", "text", "python", "text"]


def test_the_first_screen_holds_picture_and_two_commands() -> None:
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.index("docs/images/tour.png") < text.index("make tour") < text.index("make test")
        assert commands(blocks(name, "sh")[0]) == ["make tour", "make test"]
        assert text[: text.index("make test")].count("\n") < 25


def test_quick_commands_of_the_readme_run(
    cli: Callable[..., CliResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = [cli(*arguments(line)) for line in commands(blocks("README.md", "bash")[0])]
    assert [(result.exit_code, result.stderr) for result in results if result.exit_code] == []
    assert json.loads(results[2].stdout)["schema_version"] == 1
    runs = sorted(path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    assert len(runs) == 3
    assert all((run / "report.html").exists() for run in runs)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("line", commands(blocks("README.md", "bash")[1]))
def test_slow_command_of_the_readme_runs(line: str, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "polyloom", *arguments(line)]
    done = subprocess.run(
        call, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert list((tmp_path / "runs").glob("*/report.html"))


def test_python_example_prints_the_minimum_and_the_lipschitz_constant(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # -W(1/e), and the maximum of f' at the zero of f''.
    assert [float(line) for line in done.stdout.split()] == pytest.approx(
        [-0.2784645427610738, 1.0998393201288669], abs=1e-12
    )


@pytest.mark.parametrize("name", READMES)
def test_rooms_table_claims_what_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\(src/polyloom/methods/(\w+)/README.md\) \|", text, flags=re.MULTILINE))
    assert rows == {room: room for room in rooms()}


@pytest.mark.parametrize("name", sorted(rooms()))
def test_card_names_papers_functions_and_verbs_that_exist(name: str) -> None:
    room = card(name)
    assert "study" in {verb.name for verb in room.verbs}
    assert all(callable(load(verb.run)) for verb in room.verbs)
    assert all(callable(load(equation.function)) for equation in room.equations)
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv) for paper in room.papers)
    assert room.papers


@pytest.mark.parametrize("name", COMMITTED_PAGES)
def test_links_between_files_resolve(name: str) -> None:
    page = ROOT / name
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = {target.partition("#")[0] for target in LINK.findall(text) if "://" not in target}
    # docs/generated is made from the code by `make docs`, whose strict build checks those links.
    broken = [t for t in targets if t and "generated/" not in t and not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("tour", ["scripts/setup all", "polyloom tour"]),
        ("test", ["scripts/setup all,dev,docs", "scripts/check", "scripts/setup-system", "python -m pytest -n 2"]),
        (
            "test-fast",
            ["scripts/setup all,dev,docs", "scripts/check", "scripts/setup-system", 'pytest -n 2 -m "not slow"'],
        ),
        ("docs", ["scripts/setup all,dev,docs", "scripts/generate_docs.py", "zensical build --clean --strict"]),
    ],
)
def test_make_does_the_steps_in_order(target: str, steps: list[str]) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert len(lines) == len(steps), done.stdout
    for line, step in zip(lines, steps, strict=True):
        assert line.endswith(step), f"{step!r} in {line!r}"


def test_continuous_integration_runs_make_test() -> None:
    assert "exec make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for script in (".ci/run", "scripts/check", "scripts/setup"):
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize(
    ("lacks", "line"),
    [
        ("version_info", "is 3.9.1; Polyloom needs 3.11 or newer"),
        (
            "ensurepip",
            "cannot make virtual environments (venv or ensurepip is missing). On Debian and Ubuntu: apt install",
        ),
        ("-m venv", "-m venv failed"),
    ],
)
def test_setup_refuses_an_unfit_python_in_one_line(lacks: str, line: str, tmp_path: Path) -> None:
    setup = tmp_path / "scripts" / "setup"
    setup.parent.mkdir()
    setup.write_text((ROOT / "scripts" / "setup").read_text(encoding="utf-8"), encoding="utf-8")
    python = tmp_path / "some-python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"{lacks}"*) exit 1;; *) echo 3.9.1;; esac\n')
    python.chmod(0o755)
    environ = os.environ | {"PYTHON": str(python)}
    done = subprocess.run(["bash", str(setup)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert line in done.stderr.splitlines()[-1]
    assert len([text for text in done.stderr.splitlines() if "making" not in text]) == 1
    assert not (tmp_path / ".venv").exists()


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == polyloom.__version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f"## {polyloom.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) == 1581


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_the_verb_that_it_names(recipe: Path, tmp_path: Path) -> None:
    words = shlex.split(recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
    assert words[0] == "polyloom"
    assert words[-2:] == ["--config", f"recipes/{recipe.name}"]
    room, verb = (*words[1:-2], "run")[:2]
    model = card(room).verb(verb).load_config()
    config = load_config(model, recipe, {})
    changed = {name for name in model.model_fields if getattr(config, name) != getattr(model(), name)}
    stated = set(read_yaml(recipe))
    assert changed
    assert changed <= stated
    assert set(getattr(config, "languages", ())) <= set(LANGUAGES)
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(model, again, {}) == config
    with pytest.raises(UserError, match="unknown key"):
        load_config(model, recipe, {"no_such_key": 1})


def test_recipes_are_all_in_their_table() -> None:
    rows = re.findall(
        r"^\| `([\w-]+\.yaml)`", (ROOT / "recipes" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [recipe.name for recipe in RECIPES]
