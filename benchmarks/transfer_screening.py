"""Which settings of the entity recipe matter, by a screening on English dev whose words are switched: no target label.

Every run draws the level of each factor at random, with a seed of its own; a least-squares fit gives main effects on
the span F1 of `lexsyn` on dev, switched in full. Half of the score is of the recipe's dictionaries, other translations
among them, and half of two languages whose dictionaries training never saw. `python benchmarks/transfer_screening.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from polyloom.data.records import Example
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.data import Data, read_data
from polyloom.methods.transfer.lexicon import open_lexicons
from polyloom.methods.transfer.protocol import FULL_SWITCH, run_protocol, switched_examples

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "transfer-ner-trees.yaml"
UNSEEN = {"es": "en-es-enwiktionary.txt.gz", "ja": "en-ja-enwiktionary.txt.gz"}
# The first level is that of the recipe before the screening.
FACTORS: dict[str, tuple[Any, Any]] = {
    "vocabulary": (2000, 1000),
    "learning_rate": (2e-3, 4e-3),
    "mix": (0.8, 1.0),
    "rate": (0.5, 0.8),
    "graph_heads": (2, 4),
    "syntactic_heads": (1, 2),
    "structural_weight": (0.5, 0.1),
    "dropout": (0.0, 0.1),
    "epochs": (4, 6),
    "pretrain_epochs": (1, 3),
    "crf": (False, True),
    "deprel": (False, True),
    "select": ("last", "average"),
    "batch_size": (32, 16),
    "choose": ("first", "uniform"),
}


class Unstored:
    """What the protocol asks of a run, nothing of it kept."""

    def __init__(self, path: Path) -> None:
        self.checkpoints = path

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        yield lambda number: None

    def once(self, name: str, compute: Any) -> Any:
        return json.loads(json.dumps(compute()))

    def log(self, **values: Any) -> None:
        pass

    def check_stop(self) -> None:
        pass


def switched_dev(data: Data, folder: Path) -> dict[str, list[Example]]:
    """Return every second dev sentence, switched in full into each language."""
    dev = data.dev[::2]
    plan = replace(FULL_SWITCH, choose="uniform")
    unseen = open_lexicons([f"{code}={folder / name}" for code, name in UNSEEN.items()])
    tests = {}
    for code, lexicon in {**data.lexicons, **unseen}.items():
        tests[code] = switched_examples(dev, plan, {code: lexicon}, seed=77)
    return tests


def screen(settings: Mapping[str, Any], seed: int) -> float:
    """Train `lexsyn` with settings and return its score on switched dev, in points of span F1."""
    recipe = yaml.safe_load(RECIPE.read_text()) | settings
    recipe |= {"arms": ["lexsyn"], "seed": seed, "num_seeds": 1, "device": "cpu"}
    config = TransferTrainConfig(**recipe)
    data = read_data(config, needs_trees=True)
    data.tests = switched_dev(data, Path(config.dictionaries[0].partition("=")[2]).parent)
    with tempfile.TemporaryDirectory() as folder:
        _, (outcome,) = run_protocol(config, data, Unstored(Path(folder)))  # type: ignore[arg-type]
    values = {code: outcome.value(code, "span F1") for code in data.tests}
    seen = np.mean([value for code, value in values.items() if code not in UNSEEN])
    return float((seen + np.mean([values[code] for code in UNSEEN])) / 2)


def main(number: int, workers: int) -> None:
    """Screen and print the table."""
    draw = random.Random(0)
    runs = [{name: levels[draw.random() < 0.5] for name, levels in FACTORS.items()} for _ in range(number)]
    done: list[tuple[dict[str, Any], float]] = []
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(screen, settings, 1000 + i): settings for i, settings in enumerate(runs)}
        for future in as_completed(futures):
            done.append((futures[future], future.result()))
            print(f"{len(done)} of {number}: {done[-1][1]:.1f}", flush=True)
    signs = [[1.0, *(1.0 if run[name] == levels[1] else -1.0 for name, levels in FACTORS.items())] for run, _ in done]
    design, scores = np.array(signs), np.array([score for _, score in done])
    effects = np.linalg.lstsq(design, scores)[0]
    spread = np.sqrt(((scores - design @ effects) ** 2).sum() / (len(scores) - design.shape[1]))
    errors = spread * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    print(f"\nmean {effects[0]:.1f}, spread of what is left {spread:.1f}\n")
    print("| factor | from | to | effect |\n| --- | --- | --- | --- |")
    for i, (name, (low, high)) in enumerate(FACTORS.items(), start=1):
        print(f"| `{name}` | {low} | {high} | {2 * effects[i]:+.1f} ± {2 * errors[i]:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    main(arguments.number, arguments.workers)
