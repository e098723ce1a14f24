"""A PostgreSQL cluster of the tests' own, where the machine has the server's programs."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def cluster() -> Iterator[str]:
    """Yield the address of a running server without its database's name; it listens on a socket in a folder alone."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `team`)")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed (Debian: postgresql)")
    with tempfile.TemporaryDirectory(prefix="polyloom-postgres-") as name:
        user = []
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(name, "postgres", "postgres")
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = f"{name}/data"
        make = [*user, str(programs / "initdb"), "-D", data, "-U", "polyloom", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*make, "--locale=C"], check=True, capture_output=True, cwd="/")
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={name}", "-c", "fsync=off"]
        with (Path(name) / "log").open("wb") as log:
            server = subprocess.Popen([*user, str(programs / "postgres"), "-D", data, *settings], stderr=log, cwd="/")
        try:
            ready = [str(programs / "pg_isready"), "-h", name, "-U", "polyloom", "-t", "1"]
            for _ in range(60):
                if subprocess.run(ready, capture_output=True).returncode == 0:
                    break
                subprocess.run(["sleep", "0.2"], check=True)
            yield f"postgresql://polyloom@/{{}}?host={name}"
        finally:
            server.terminate()
            server.wait(30)


def fresh_database(address: str) -> str:
    """Return the address of a new, empty database of a cluster."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(address.format("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return address.format(name)
