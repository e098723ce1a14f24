"""ATLOP's step and pair head beside a loop over mentions; decoding under the schema; the log-linear model's step.

Run as `python benchmarks/docre.py`: CPU seconds on one thread, in one process, interleaved.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from polyloom.methods.docre.bench import HEAD_CLASSES, HEAD_ENTITIES, HEAD_WIDTH
from polyloom.methods.docre.data import load_documents
from polyloom.methods.docre.loglinear import Training, candidates, fit, type_signatures
from polyloom.models.device import pin_threads
from polyloom.runs.execute import run_verb

ROUNDS = 3


def step_and_head() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = run_verb("docre.bench", {"rounds": 6}, runs=Path(folder)).scalars
    ratio = found["step_time_ratio"]
    print(f"training step: {ratio.value:.2f} of the loop's time ({ratio.low:.2f} to {ratio.high:.2f})")
    print(
        f"loss differs by {found['loss_difference'].value:.1e}, gradients by {found['gradient_difference'].value:.1e}"
    )
    ours, dense = found["head_peak_megabytes"].value, found["head_peak_megabytes_dense"].value
    where = f"{HEAD_ENTITIES} entities, D={HEAD_WIDTH}, {HEAD_CLASSES} classes"
    print(f"pair head at {where}: {ours:.0f} MB; all products at once {dense:.0f} MB")


def log_linear() -> None:
    documents = load_documents("world", num_documents=60)[0]
    types = {(head, tail) for head, _, tail in type_signatures(documents)}
    data = [candidates(document, types) for document in documents]
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        fit(data, type_signatures(documents), training=Training())
        seconds.append(time.process_time() - started)
    num_pairs = sum(len(one.pairs) for one in data) * Training().num_epochs
    print(f"log-linear: {num_pairs / median(seconds):,.0f} pairs a CPU-second, 60 documents in {median(seconds):.1f} s")


def main() -> None:
    pin_threads()
    step_and_head()
    log_linear()


if __name__ == "__main__":
    main()
