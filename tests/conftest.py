"""Fixtures shared by all tests: a run folder, the command line in process, and the real data where it is present."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from polyloom.cli import main
from polyloom.core.config import Config
from polyloom.core.registry import Verb
from polyloom.runs.folder import Run, create_run
from tests.postgres import cluster, fresh_database

ROOT = Path(__file__).parents[1]
# Shapes and types are checked at run time in the rooms' mathematics; simulations would be slow under it.
METHODS = [f"polyloom.methods.{path.parent.name}.method" for path in ROOT.glob("src/polyloom/methods/*/method.py")]
install_import_hook(METHODS, "beartype.beartype")
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# These machines are shared: a slow example is no failure.
settings.register_profile("polyloom", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("polyloom")


class CliResult(NamedTuple):
    """What a call of the command line gave."""

    exit_code: int
    stdout: str
    stderr: str


def empty_run(config: Config, run: Run) -> None:
    """Do nothing: the verb behind the `run` fixture."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a fresh run folder of a verb that does not exist."""
    verb = Verb("verb", "", "polyloom.core.config:Config", "tests.conftest:empty_run")
    return create_run(tmp_path / "runs", "room", verb, Config(), name="test-run")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., CliResult]:
    """Return a function that runs the command line in this process, with its runs under `tmp_path / "runs"`."""
    monkeypatch.setenv("POLYLOOM_RUNS", str(tmp_path / "runs"))

    def call(*words: object) -> CliResult:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return CliResult(int(caught.value.code or 0), out, err)

    return call


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return a function from a name to its path among the real public files; it skips where they are absent."""
    root = Path(os.environ.get("POLYLOOM_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"real data {name!r} is not present (set POLYLOOM_DATA)")
        return path

    return find


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a Ray cluster of this machine for a test; it skips where Ray is not installed."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[str]:
    """Start a PostgreSQL server for the tests' time; it skips where none is installed."""
    with cluster() as address:
        yield address


@pytest.fixture
def postgres_url(postgres_cluster: str) -> str:
    """Return the address of an empty PostgreSQL database."""
    return fresh_database(postgres_cluster)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return where a store can be made, in a file and in PostgreSQL."""
    if request.param == "sqlite":
        return str(tmp_path / "store.sqlite3")
    return str(request.getfixturevalue("postgres_url"))
