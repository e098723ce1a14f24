import json
import shutil
from collections import namedtuple

from polyloom.cli import doctor


def test_every_line_is_ok_or_has_its_fix(cli, tmp_path):
    done = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"Python", "torch", "device", "bf16", "threads", "disk", "runs folder", "model cache"} <= set(checks)
    assert set(doctor.EXTRAS) <= set(checks)
    assert done.exit_code == int(any(check["fix"] for name, check in checks.items() if name not in doctor.EXTRAS))
    assert cli("doctor").stdout.count("OK ") >= 5


def test_a_full_disk_has_a_fix_and_exit_1(cli, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    done = cli("doctor")
    assert done.exit_code == 1
    assert "Free some space" in done.stdout


def test_an_absent_extra_names_its_install_command_and_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    checks = {check.name: check for check in doctor.run_checks(tmp_path)}
    assert checks["plots"].fix == 'Optional: pip install "polyloom[plots]"'
