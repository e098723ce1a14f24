"""`polyloom doctor`: what this machine offers, each line OK or with its fix."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from polyloom.cli.app import JsonOption, RunsOption
from polyloom.runs.execute import default_root

EXTRAS = {"api": ("openai", "aiohttp"), "lab": ("sklearn",), "plots": ("matplotlib",), "web": ("fastapi", "uvicorn")}
FREE_BYTES_WANTED = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One line of the doctor: what was looked at, what was found, and the fix where something is wanting."""

    name: str
    found: str
    fix: str = ""


def doctor(*, runs: RunsOption = None, as_json: JsonOption = False) -> int:
    """Check Python, torch, device, threads, disk, caches and extras; exit 1 when something must be fixed."""
    checks = list(run_checks(runs or default_root()))
    if as_json:
        import json

        sys.stdout.write(json.dumps([vars(check) for check in checks], indent=1) + "\n")
    else:
        console = Console()
        for check in checks:
            mark = "[yellow]FIX[/]" if check.fix else "[green]OK[/]"
            console.print(f"{mark:<4} {check.name}: {check.found}. {check.fix}".rstrip(), highlight=False)
    return int(any(check.fix and check.name not in EXTRAS for check in checks))


def run_checks(root: Path) -> Iterator[Check]:
    """Yield the checks of this machine.

    Args:
        root: the runs folder, whose disk is looked at.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", version, "" if sys.version_info >= (3, 11) else "Install Python 3.11 or newer.")
    yield from _torch_checks()
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    fix = "" if free >= FREE_BYTES_WANTED else "Free some space, or choose another folder with --runs."
    yield Check("disk", f"{free / 2**30:.1f} GiB free for runs", fix)
    writable = os.access(existing, os.W_OK)
    fix = "" if writable else "Choose a folder you may write to with --runs."
    yield Check("runs folder", f"{root} ({'writable' if writable else 'not writable'})", fix)
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    yield Check("model cache", str(cache) if cache.exists() else f"{cache} (made when a hub id is first used)")
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        fix = f'Optional: pip install "polyloom[{extra}]"' if absent else ""
        yield Check(extra, f"{', '.join(absent)} not installed" if absent else "installed", fix)


def _torch_checks() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("torch", str(error), "Install it with: pip install torch")
        return
    from polyloom.models.device import choose_device, has_fast_bfloat16

    device = choose_device("auto")
    yield Check("torch", torch.__version__)
    yield Check("device", str(device))
    yield Check("bf16", "in hardware" if has_fast_bfloat16(device) else "not in hardware: fp32 is used")
    yield Check("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores; tiny models use one")
