"""Simulated months a CPU second: with the event log, without, and in the numpy batch engine.

Run `python benchmarks/commons.py [--output benchmarks/commons.md]`. The three take turns in one process on one thread;
there is no public simulator of these games that runs without a language model to put beside them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from pathlib import Path

from polyloom.methods.commons.study import speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rounds = [speeds(0.5) for _ in range(options.rounds)]
    lines = ["| way | months a CPU second | times the logged engine |", "| --- | --- | --- |"]
    for name in rounds[0]:
        rate = statistics.median(found[name] for found in rounds)
        ratio = statistics.median(found[name] / found["months_per_second_with_events"] for found in rounds)
        lines.append(f"| `{name}` | {rate:,.0f} | {ratio:.1f} |")
    text = (
        "# The commons: simulated months\n\nFive scripted agents in the fishery; `_short` is a month with a "
        f"shortage to share out, `_noisy` draws for every agent. Medians of {options.rounds} rounds, CPU "
        "time of one thread.\n\n"
        + "\n".join(lines)
        + f"\n\n{platform.machine()}, Python {platform.python_version()}.\n"
    )
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
