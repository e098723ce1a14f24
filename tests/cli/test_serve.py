"""`polyloom serve`: what it refuses, in one line, and what it does not import."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from polyloom.core.files import lock
from polyloom.web.server import bind, needed_token
from polyloom.web.settings import Settings


def test_the_command_line_imports_no_web_library():
    code = "import sys; from polyloom.cli.app import build_app; build_app(['serve']); print('fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_extra_is_answered_with_its_command(cli, monkeypatch):
    for name in list(sys.modules):
        if name == "polyloom.web.server":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = cli("serve")
    assert done.exit_code == 2
    assert 'pip install "polyloom[web]"' in done.stderr


def test_a_taken_port_and_a_wrong_number_of_jobs_are_refused(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("serve", "--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "Choose another port" in done.stderr
    assert cli("serve", "--port", 99999).exit_code == 2
    assert cli("serve", "--host", "no.such.host.invalid").exit_code == 2
    assert cli("serve", "--jobs", 0).exit_code == 2


def test_two_studios_never_share_a_runs_folder(cli, tmp_path):
    with lock(tmp_path / "runs" / ".studio" / "lock"):
        done = cli("serve", "--port", 0)
    assert done.exit_code == 2
    assert "in use by process" in done.stderr


def test_a_token_is_made_once_for_addresses_that_others_reach(tmp_path):
    settings = Settings(runs=tmp_path, host="0.0.0.0")
    made = needed_token(settings)
    assert made
    assert len(made) >= 32
    assert needed_token(settings) == made
    assert (tmp_path / ".studio" / "token").stat().st_mode & 0o077 == 0
    assert needed_token(Settings(runs=tmp_path)) is None
    assert needed_token(Settings(runs=tmp_path, token="mine")) == "mine"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_free_port_is_found(host):
    with bind(host, 0) as listening:
        assert listening.getsockname()[1] > 0
