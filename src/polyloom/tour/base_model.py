"""The tour's material: text, and a small multilingual SwiGLU model trained on it on the spot (or the user's own)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.data.text import by_language, first_texts, read_documents, split_documents
from polyloom.metrics.language_model import DocumentScore, byte_frequency_scores, gzip_scores, score_documents
from polyloom.metrics.statistics import Interval, bootstrap_interval
from polyloom.models.device import autocast, pin_threads
from polyloom.models.load import count_parameters, load_model, load_tokenizer, save_model
from polyloom.models.tokenizers import compression
from polyloom.runs.folder import Run
from polyloom.tour.config import TourConfig
from polyloom.training.small import WINDOW_TOKENS, Budget, train_small

Texts = dict[str, list[str]]
Floats = NDArray[np.float64]


BUDGETS = {"quick": Budget(60_000, 2048, 260, 6_000), "full": Budget(400_000, 4096, 2_500, 20_000)}


@dataclass(frozen=True)
class Material:
    """Text by language, to train on and to test on, and what the report has to say of it."""

    train: Texts
    test: Texts
    limitations: list[str]


def gather_text(config: TourConfig) -> Material:
    """Read the user's files, or make the world's text.

    Raises:
        UserError: files that cannot be read, or too little text to hold some back for the test.
    """
    budget = BUDGETS[config.profile]
    if not config.text:
        from polyloom.data import world

        train_texts = world.text_corpus(config.languages, budget.num_characters, config.seed, "train")
        test_texts = world.text_corpus(config.languages, budget.test_characters, config.seed, "test")
        notice = f"{world.NOTICE}: figures show mechanisms, not quality on real text."
        return Material(train_texts, test_texts, [notice])
    documents = split_documents(read_documents(config.text, encoding=config.encoding))
    train_texts, test_texts = by_language(documents["train"]), by_language(documents["test"])
    if not test_texts:
        raise UserError("too little text to hold some back for a test.", where="--text", hint="Give more text.")
    return Material(train_texts, {k: first_texts(v, budget.test_characters) for k, v in test_texts.items()}, [])


def check_model(config: TourConfig) -> None:
    """Refuse a model of the user's that cannot be loaded.

    Raises:
        UserError: the folder is no model, or its tokenizer does not fit.
    """
    if config.model:
        load_tokenizer(config.model, load_model(config.model))


def prepare_model(config: TourConfig, run: Run, material: Material) -> str:
    """Train the tour's model, resuming from its newest checkpoint, unless the user brought one.

    Returns:
        The model's folder or hub id.
    """
    if config.model:
        return config.model
    folder = run.artifact("model")
    if not folder.exists():
        _train_model(config, run, material, folder)
    return str(folder)


def _train_model(config: TourConfig, run: Run, material: Material, folder: Path) -> None:
    budget = BUDGETS[config.profile]
    with run.progress("tour: train the model", budget.steps) as advance:
        model, tokenizer = train_small(
            material.train,
            budget,
            config.seed,
            checkpoints=run.checkpoints,
            on_log=run.log,
            on_step=advance,
            check_stop=run.check_stop,
        )
    save_model(model, folder, tokenizer)


def measure_model(config: TourConfig, run: Run, material: Material, source: str) -> Result:
    """Measure bits per byte of each language beside byte frequencies and gzip, on held-out text.

    Both baselines learn from the same training text of the language: gzip's window is filled with its last 32 KiB.

    Args:
        config: the tour's configuration.
        run: the tour's run.
        material: the text.
        source: the model's folder or hub id.
    """
    pin_threads()
    model = load_model(source, device="auto")
    tokenizer = load_tokenizer(source, model)
    rates = compression(tokenizer, material.test)
    rows: list[list[str | int | float | bool | None]] = []
    scores: dict[str, list[list[DocumentScore]]] = {}
    with run.progress("tour: bits per byte", len(material.test)) as advance:
        for language, texts in material.test.items():
            with autocast(model.device):
                own = score_documents(model, tokenizer, texts, window_tokens=WINDOW_TOKENS)
            seen = material.train.get(language, [])
            others = [byte_frequency_scores(seen, texts), gzip_scores(seen, texts)]
            scores[language] = [own, *others]
            value, *baselines = (rate(kind) for kind in scores[language])
            low, high = (value.low, value.high) if len(texts) > 1 else (None, None)
            row = [language, value.value, low, high, *(baseline.value for baseline in baselines)]
            rows.append([*row, rates[language].bytes_per_token, sum(s.num_bytes for s in own)])
            advance(1)
    pooled = [[score for kinds in scores.values() for score in kinds[kind]] for kind in range(3)]
    return _as_result(run, material, rows, pooled, count_parameters(model).total)


def _as_result(
    run: Run,
    material: Material,
    rows: list[list[str | int | float | bool | None]],
    pooled: list[list[DocumentScore]],
    num_parameters: int,
) -> Result:
    own, frequency, gzip = (rate(scores) for scores in pooled)
    gain = rate(pooled[2], minus=pooled[0])
    word = "fewer" if gain.low > 0 else "more" if gain.high < 0 else ""
    comparison = f"{abs(gain.value):.2f} {word} than" if word else "not distinguishable from those of"
    verdict = f"The model spends {own.value:.2f} bits per byte, {comparison} gzip primed with the same text."
    columns = [
        "language",
        "bits per byte",
        "low",
        "high",
        "byte frequencies",
        "gzip",
        "bytes per token",
        "bytes tested",
    ]
    names = [str(row[0]) for row in rows]
    curves = {
        label: Series(
            x=[float(i) for i in range(len(rows))],
            y=[_number(row[column]) for row in rows],
            low=[_number(row[2]) for row in rows] if column == 1 else None,
            high=[_number(row[3]) for row in rows] if column == 1 else None,
            x_names=names,
            x_label="language",
            y_label="bits per byte",
            group="bits per byte",
            kind="bar",
        )
        for label, column in (("model", 1), ("gzip (primed)", 5), ("byte frequencies", 4))
    }
    return run.result(
        scalars={
            "bits_per_byte": Scalar.of(own, "bits/byte"),
            "bits_per_byte_gzip": Scalar.of(gzip, "bits/byte"),
            "bits_per_byte_byte_frequencies": Scalar.of(frequency, "bits/byte"),
            "gain_over_gzip": Scalar.of(gain, "bits/byte"),
            "num_parameters": Scalar(value=num_parameters),
        },
        tables={"bits_per_byte": Table(columns=columns, rows=rows, title="Bits per byte on held-out text")},
        series=curves,
        verdicts=[verdict],
        limitations=material.limitations,
    )


def _number(cell: object) -> float | None:
    return float(cell) if isinstance(cell, int | float) else None


def rate(scores: list[DocumentScore], minus: list[DocumentScore] | None = None) -> Interval:
    """Return bits per byte over documents with a bootstrap interval over documents.

    Args:
        scores: one a document.
        minus: scores of the same documents by another model, whose bits are taken off: a paired difference.
    """
    nats = np.array([score.nats for score in scores]) - (np.array([score.nats for score in minus]) if minus else 0.0)
    sizes = np.array([score.num_bytes for score in scores])

    def statistic(chosen: Floats) -> Floats:
        index = chosen.astype(int)
        return np.asarray(nats[index].sum(axis=-1) / (math.log(2) * sizes[index].sum(axis=-1)))

    documents = np.arange(len(scores), dtype=float)
    if len(scores) < 2:
        value = float(statistic(documents))
        return Interval(value, value, value)
    return bootstrap_interval(documents, statistic, method="percentile", num_resamples=2_000)
