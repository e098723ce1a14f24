"""Speed on one thread: encoders with and without a block, interleaved, as CPU time and as ratios of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator, python_random
from polyloom.methods.match.config import BenchConfig
from polyloom.methods.match.data import Pair
from polyloom.methods.match.export import export_numpy, latency_milliseconds, numpy_error
from polyloom.methods.match.index import exact_search
from polyloom.methods.match.models import Matcher, Shape
from polyloom.methods.match.scorer import Scorer, words
from polyloom.methods.match.tokens import NUM_BUCKETS, NUM_SPECIALS, Vocabulary
from polyloom.methods.match.training import Trained
from polyloom.methods.match.vectors import static_baseline
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

VOCABULARY = 5000
BATCH = 256
SHORT_SECONDS = 0.05
NUM_ALONE = 64
ENCODERS = [(base, block) for base in ("bag", "cnn", "gru") for block in ("none", "fa", "sfa")]
READERS = [(base, block) for base in ("esim", "re2") for block in ("none", "fa", "sfa")]


def _matcher(base: str, block: str, width: int) -> Matcher:
    shape = Shape(base, block, VOCABULARY, width, 48, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Matcher(shape).eval()


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int, seed: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each job in each round; the order is drawn anew each time, a first round warms up.

    A short job is done several times in a round and its least time kept: the first pass finds the caches full of what
    ran before.
    """
    order, names = python_random(seed, "bench"), list(jobs)
    passes = {name: 1 + int(SHORT_SECONDS / max(_seconds(jobs[name]), 1e-6)) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            seconds[name].append(min(_seconds(jobs[name]) for _ in range(passes[name])))
    return seconds


def _seconds(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started


def _jobs(config: BenchConfig, texts: list[str]) -> dict[str, Callable[[], object]]:
    ids = torch.from_numpy(
        numpy_generator(config.seed, "ids").integers(1, VOCABULARY, (config.num_texts, config.words))
    )
    parts = torch.split(ids, BATCH)

    def each(call: Callable[[Tensor], object], batches: Sequence[Tensor] = parts) -> Callable[[], object]:
        def job() -> None:
            with torch.inference_mode():
                for batch in batches:
                    call(batch)

        return job

    jobs = {f"{base}_{block}": each(_matcher(base, block, config.width).vectors) for base, block in ENCODERS}
    jobs |= {f"{base}_{block}": each(_matcher(base, block, config.width)) for base, block in READERS}
    bag = _matcher("bag", "fa", config.width)
    with torch.inference_mode():
        kept = bag.vectors(ids[: BATCH // 2])

    def second_alone(batch: Tensor) -> Tensor:
        seconds = batch[len(batch) // 2 :]
        return bag.head(bag.compared(kept[: len(seconds)], bag.vectors(seconds)))  # type: ignore[no-any-return]

    jobs |= {
        "bag_fa_one_by_one": each(bag.vectors, torch.split(ids[:NUM_ALONE], 1)),
        "bag_fa_pairs": each(bag),
        "bag_fa_pairs_first_kept": each(second_alone),
    }
    rows = numpy_generator(config.seed, "rows").standard_normal((VOCABULARY, config.width)).astype(np.float32)
    lists = ids.tolist()
    jobs |= {f"bag_{block}_from_text": _text_job(block, config, texts) for block in ("none", "fa")}
    jobs["static_cosine"] = lambda: static_baseline(rows, lists)
    if config.encoder:
        jobs["hugging_face"] = _encoder_job(config.encoder, texts)
    return jobs


def _text_job(block: str, config: BenchConfig, texts: list[str]) -> Callable[[], object]:
    """Return the job from written texts to vectors; what was cut into words before is forgotten."""
    trained = Trained(_matcher("bag", block, config.width), Vocabulary(_words()), "classes", ["a", "b", "c"])

    def job() -> None:
        words.cache_clear()
        trained.vectors(texts)

    return job


def _words() -> list[str]:
    """Return the known words whose numbers, with those of the buckets, fill the vocabulary."""
    return [f"w{i}" for i in range(VOCABULARY - NUM_SPECIALS - NUM_BUCKETS)]


def _encoder_job(folder: str, texts: list[str]) -> Callable[[], object]:
    """Return the job that encodes by sentence-transformers where it is installed, else by transformers, mean-pooled."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        from polyloom.models.load import load_model, load_tokenizer

        model, tokenizer = load_model(folder, "encoder"), load_tokenizer(folder)

        def job() -> None:
            with torch.inference_mode():
                for start in range(0, len(texts), BATCH):
                    batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
                    model(**batch).last_hidden_state.mean(1)

        return job
    if not Path(folder).is_dir():
        raise UserError("there is no such folder.", where=folder, hint="Check the path of --encoder.")
    encoder = SentenceTransformer(folder, device="cpu", local_files_only=True)
    return lambda: encoder.encode(texts, batch_size=BATCH, show_progress_bar=False)


def run_bench(config: BenchConfig, run: Run) -> Result:
    """Measure speed on one thread.

    Args:
        config: sizes, rounds, and an encoder to time beside.
        run: the run.

    Returns:
        Sentences a CPU-second, ratios of FA's and SFA's time to none's, latency of one text in numpy.
    """
    pin_threads()
    known, rng = _words(), numpy_generator(config.seed, "texts")
    texts = [" ".join(known[i] for i in rng.integers(0, len(known), config.words)) for _ in range(config.num_texts)]
    with run.progress("bench", 3) as advance:
        jobs = _jobs(config, texts)
        seconds = run.once("seconds", lambda: interleaved(jobs, config.rounds, config.seed))
        advance(1)
        latency = run.once("latency", lambda: _latency(config, known, texts))
        advance(1)
        exact = run.once("index", lambda: _index_is_brute_force(config.seed))
        advance(1)
    scalars = _speeds(seconds, config) | _ratios(seconds)
    scalars |= {
        "numpy_encode_milliseconds": Scalar(value=latency["encode"], unit="CPU ms"),
        "numpy_score_milliseconds": Scalar(value=latency["score"], unit="CPU ms"),
        "numpy_error": Scalar(value=latency["error"]),
        "index_equals_brute_force": Scalar(value=exact),
    }
    rows: list[list[Cell]] = [
        [
            name,
            float(scalars[f"{name}_per_second"].value or 0),
            *(1e6 * take(values) / _count(name, config) for take in (min, median)),
        ]
        for name, values in seconds.items()
    ]
    bag = [name for name in seconds if not _judges(name)]
    cost, whole = scalars["bag_fa_time_ratio"], scalars["bag_fa_from_text_time_ratio"]
    return run.result(
        scalars=scalars,
        tables={
            "speed": Table(
                columns=["encoder", "per CPU-second", "CPU microseconds of one: least", "median"],
                rows=rows,
                title=f"Texts (esim, re2, pairs: pairs) of {config.words} words on one thread, batches of {BATCH}",
            )
        },
        series={
            "speed": Series(
                x=list(range(len(bag))),
                y=[float(scalars[f"{name}_per_second"].value or 0) for name in bag],
                x_names=bag,
                y_label="sentences a CPU-second",
                group="speed",
                kind="bar",
            )
        },
        verdicts=[
            f"bag with FA encodes {scalars['bag_fa_per_second'].value:,.0f} sentences a CPU-second on one thread; FA "
            f"takes {cost.value:.2f} [{cost.low:.2f}, {cost.high:.2f}] times a plain bag's time, and {whole.value:.2f} "
            f"[{whole.low:.2f}, {whole.high:.2f}] times from written text on."
        ],
        limitations=[
            "CPU seconds of word numbers to vectors, `from_text` of written texts to vectors. Times are the least of "
            f"{config.rounds} interleaved rounds: other work on the machine only adds to them.",
        ],
    )


def _thirds(values: list[float]) -> list[float]:
    """Return the least of each third of the rounds: how far the least of all is settled."""
    return [min(values[i::3]) for i in range(3)]


def _judges(name: str) -> bool:
    return "pairs" in name or name.startswith(("esim", "re2"))


def _count(name: str, config: BenchConfig) -> float:
    """Return how many texts or pairs a pass of a job does."""
    if name == "bag_fa_one_by_one":
        return min(NUM_ALONE, config.num_texts)
    return config.num_texts / (2 if _judges(name) else 1)


def _speeds(seconds: dict[str, list[float]], config: BenchConfig) -> dict[str, Scalar]:
    """Return texts or pairs a CPU-second of the least disturbed round, between those of its thirds."""
    scalars = {}
    for name, values in seconds.items():
        speeds = [_count(name, config) / max(value, 1e-9) for value in _thirds(values)]
        scalars[f"{name}_per_second"] = Scalar(value=max(speeds), low=min(speeds), high=max(speeds), unit="per CPU s")
    return scalars


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Scalar]:
    """Return ratios of least times: each block to none on its base, and FA's to the static cosine.

    What else runs on the machine can only add to a job's time, so that the least of many interleaved rounds is what the
    job itself takes. The interval spans the ratios of the rounds' thirds.
    """
    rivals = [(f"{base}_{block}", f"{base}_none") for base, block in (*ENCODERS, *READERS) if block != "none"]
    scalars = {}
    texts = ("bag_fa_from_text", "bag_none_from_text")
    for name, other in [*rivals, texts, ("bag_fa", "static_cosine")]:
        parts = [a / max(b, 1e-9) for a, b in zip(_thirds(seconds[name]), _thirds(seconds[other]), strict=True)]
        value = min(seconds[name]) / max(min(seconds[other]), 1e-9)
        key = f"{name}_time_ratio" if other != "static_cosine" else "bag_fa_to_static_time_ratio"
        scalars[key] = Scalar(value=value, low=min(*parts, value), high=max(*parts, value), unit="x")
    return scalars


def _latency(config: BenchConfig, known: list[str], texts: list[str]) -> dict[str, float]:
    model = _matcher("bag", "fa", config.width)
    trained = Trained(model, Vocabulary(known), "classes", ["a", "b", "c"])
    trained.model.shape = replace(model.shape, vocab_size=len(trained.vocabulary))
    with TemporaryDirectory() as folder:
        exported = Scorer(str(export_numpy(trained, Path(folder))))
    pairs = [Pair(a, b, "a") for a, b in zip(texts[::2], texts[1::2], strict=False)][:32]
    return {**latency_milliseconds(exported, texts[:200]), "error": numpy_error(trained, exported, pairs)}


def _index_is_brute_force(seed: int) -> bool:
    """Compare exact search with sorting all inner products, on vectors with ties."""
    rng = numpy_generator(seed, "index")
    vectors = rng.integers(-2, 3, (3000, 8)).astype(np.float32)
    queries = rng.integers(-2, 3, (50, 8)).astype(np.float32)
    rows, _ = exact_search(vectors, queries, 10)
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    return bool((rows == best).all())
