"""Training the lab's seeds together, beside a loop over seeds in plain PyTorch, by the number of seeds.

Run `python benchmarks/silu_lab.py [--output benchmarks/silu_lab.md]`. Batched and single runs take turns in one process
on one thread; times are CPU seconds, and the parameters of the models that were trained both ways are compared.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from polyloom.methods.silu.lab import QUICK_PLANS
from polyloom.methods.silu.lab_cost import batched_speedup
from polyloom.methods.silu.lab_models import resolve_form
from polyloom.methods.silu.lab_tasks import digits_task
from polyloom.methods.silu.lab_training import Plan

COLUMNS = (
    "models",
    "batch",
    "activation",
    "loop: ms per model",
    "batched: ms per model",
    "speed-up",
    "largest difference",
)


def rows(rounds: int) -> list[list[str]]:
    task, base = digits_task(0), QUICK_PLANS["digits"]
    found = []
    for num_models, batch_size, name in ((20, 32, "silu"), (100, 32, "silu"), (100, 32, "relu"), (100, 64, "silu")):
        plan = Plan(100, batch_size, 0, base.learning_rates, 0, num_models, ("he",), (name,), False)
        measured = batched_speedup(task, resolve_form(name), plan, num_models=num_models, num_alone=5, rounds=rounds)
        times = [f"{measured['alone_ms']:.1f}", f"{measured['batched_ms']:.2f}"]
        outcome = [f"{measured['speedup']:.1f}", f"{measured['max_difference']:.1e}"]
        found.append([str(num_models), str(batch_size), name, *times, *outcome])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(options.rounds)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = (
        "# Batched seeds\n\nMultilayer perceptron 64-32-32-10 on the digits, 100 AdamW steps; the loop is "
        f"`nn.Sequential` with `torch.optim.AdamW`. Medians of {options.rounds} interleaved rounds, CPU time of one "
        f"thread.\n\n{table}\n\n"
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}.\n"
    )
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
