"""The room's study, which is its step of the tour: tokenizer table, muP check, transfer, prediction, bits per byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.data.text import by_language, first_texts, read_documents, split_documents
from polyloom.methods.pretrain.config import CoordinateCheckConfig, PredictConfig, PretrainStudyConfig, SearchConfig
from polyloom.methods.pretrain.coordinates import run_coordinate_check
from polyloom.methods.pretrain.laws import TARGET_FACTOR
from polyloom.methods.pretrain.predicting import judge, trained_losses
from polyloom.methods.pretrain.proxies import world_family
from polyloom.methods.pretrain.searching import FORMS, shifts, transfer_losses
from polyloom.metrics.language_model import gzip_scores, score_documents
from polyloom.metrics.statistics import ratio_interval
from polyloom.models.device import autocast, pin_threads
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.models.tokenizers import compression
from polyloom.runs.folder import Run
from polyloom.training.small import WINDOW_TOKENS, Budget, train_small

Texts = dict[str, list[str]]


@dataclass(frozen=True)
class Size:
    """How large a profile is."""

    budget: Budget
    check: dict[str, Any]
    predict: dict[str, Any]
    search: dict[str, Any] | None


SIZES = {
    "quick": Size(
        Budget(20_000, 1024, 80, 3_000, "llama-2x64"),
        {"widths": [64, 128, 256], "num_seeds": 2},
        {"widths": [32, 64, 96, 128], "steps": 30, "num_seeds": 1},
        None,
    ),
    "full": Size(
        Budget(200_000, 2048, 800, 20_000, "llama-4x128"),
        {"widths": [64, 128, 256, 512], "num_seeds": 3},
        {"widths": [32, 64, 96, 128, 192], "steps": 250, "num_seeds": 3},
        {"num_seeds": 3, "steps": 60, "lowest_exponent": -9, "highest_exponent": -4},
    ),
}


def run_study(config: PretrainStudyConfig, run: Run) -> Result:
    """Measure a model's tokenizer and bits per byte, check muP, and predict the loss of a wider proxy.

    Args:
        config: profile, languages, and the model and text to measure where they are the user's (or the tour's).
        run: keeps each step.

    Returns:
        Tokenizer table, slopes of activations, the prediction or that it is not resolved, bits per byte by language.

    Raises:
        UserError: no text, or a model that cannot be read.
    """
    pin_threads()
    size = SIZES[config.profile]
    common = {"seed": config.seed}
    train_texts, test_texts = _texts(config, size.budget)
    source = _model(config, run, size.budget, train_texts)
    rows = run.once("bits per byte", lambda: _measure(source, train_texts, test_texts))
    check = run_coordinate_check(CoordinateCheckConfig(**size.check, **common), run)
    prediction = PredictConfig(**size.predict, **common)
    losses = trained_losses(prediction, run)
    target = TARGET_FACTOR * max(losses)
    law, found = judge(losses, target, config.seed)
    scalars = dict(check.scalars) | {
        "resolved": Scalar(value=not found.doubts),
        "predicted_loss": Scalar(value=found.loss, low=found.low, high=found.high, unit="nats/byte"),
        "exponent": Scalar(value=law.b),
        **_bits_scalars(rows),
    }
    verdicts = [_bits_verdict(rows), check.verdicts[0]]
    doubt = f"is not resolved: {'; '.join(found.doubts)}" if found.doubts else f"gives {found.loss:.3f} nats per byte"
    verdicts.append(f"The loss law of the proxies {doubt} at {target:.3g} parameters.")
    if size.search:
        verdicts.append(_transfer(SearchConfig(**size.search, **common), run, scalars))
    else:
        verdicts.append("The quick profile is too short to decide whether learning rates transfer: use --profile full.")
    tables = {"tokenizer": _tokenizer_table(rows), "bits_per_byte": _bits_table(rows), **check.tables}
    limitations = ["Proxies are two layers on bytes; the model is small: mechanisms, not quality."]
    if not config.text:
        from polyloom.data import world

        limitations.insert(0, f"{world.NOTICE}: figures show mechanisms, not quality on real text.")
    return run.result(
        scalars=scalars,
        tables=tables,
        series=_series(rows) | check.series,
        verdicts=verdicts,
        limitations=limitations,
    )


def _texts(config: PretrainStudyConfig, budget: Budget) -> tuple[Texts, Texts]:
    if not config.text:
        from polyloom.data import world

        train_texts = world.text_corpus(config.languages, budget.num_characters, config.seed, "train")
        return train_texts, world.text_corpus(config.languages, budget.test_characters, config.seed, "test")
    documents = split_documents(read_documents(config.text))
    test = {
        language: first_texts(texts, budget.test_characters)
        for language, texts in by_language(documents["test"]).items()
    }
    if not test:
        raise UserError("too little text to hold some back for a test.", where="--text", hint="Give more text.")
    return by_language(documents["train"]), test


def _model(config: PretrainStudyConfig, run: Run, budget: Budget, texts: Texts) -> str:
    if config.model:
        return config.model
    folder = run.artifact("model")
    if not (folder / "config.json").exists():
        with run.progress("study: train the model", budget.steps) as advance:
            made = train_small(texts, budget, config.seed, on_log=run.log, on_step=advance, check_stop=run.check_stop)
        save_model(made[0], folder, made[1])
    return str(folder)


def _measure(source: str, train_texts: Texts, test_texts: Texts) -> list[dict[str, Any]]:
    """Return, for each language, nats by document of the model and of gzip, sizes, and what the tokenizer does."""
    model = load_model(Path(source) if Path(source).is_dir() else source, device="auto")
    tokenizer = load_tokenizer(source, model)
    rates = compression(tokenizer, test_texts)
    rows = []
    for language, texts in test_texts.items():
        with autocast(model.device):
            own = score_documents(model, tokenizer, texts, window_tokens=WINDOW_TOKENS)
        gzip = gzip_scores(train_texts.get(language, []), texts)
        rate = rates[language]
        rows.append(
            {
                "language": language,
                "nats": [score.nats for score in own],
                "gzip": [score.nats for score in gzip],
                "bytes": [score.num_bytes for score in own],
                "tokens": rate.num_tokens,
                "bytes_per_token": rate.bytes_per_token,
                "parity": rate.parity,
                "round_trip": rate.round_trip,
            }
        )
    return rows


def _rate(rows: list[dict[str, Any]], key: str, minus: str | None = None) -> tuple[float, float, float]:
    """Return bits per byte with its interval over documents; with `minus`, of the paired difference."""
    nats = np.concatenate([np.array(row[key]) - (np.array(row[minus]) if minus else 0.0) for row in rows])
    sizes = np.concatenate([np.array(row["bytes"], dtype=float) for row in rows])
    if len(sizes) < 2:
        value = float(nats.sum() / np.log(2) / sizes.sum())
        return value, value, value
    interval = ratio_interval(nats / np.log(2), sizes)
    return interval.value, interval.low, interval.high


def _bits_scalars(rows: list[dict[str, Any]]) -> dict[str, Scalar]:
    value, low, high = _rate(rows, "nats")
    gain = _rate(rows, "gzip", "nats")
    return {
        "bits_per_byte": Scalar(value=value, low=low, high=high, unit="bits/byte"),
        "gain_over_gzip": Scalar(value=gain[0], low=gain[1], high=gain[2], unit="bits/byte"),
        "tokenizer_parity": Scalar(value=max(row["parity"] for row in rows), unit="worst over best language"),
        "round_trip": Scalar(value=all(row["round_trip"] for row in rows)),
    }


def _bits_verdict(rows: list[dict[str, Any]]) -> str:
    value, _, _ = _rate(rows, "nats")
    gain, low, high = _rate(rows, "gzip", "nats")
    word = f"{abs(gain):.2f} {'fewer' if gain > 0 else 'more'} than" if low > 0 or high < 0 else "undecided against"
    worst = max(rows, key=lambda row: float(row["parity"]))
    return (
        f"The model spends {value:.2f} bits per byte, {word} gzip primed with the same text; its tokenizer needs "
        f"{worst['parity']:.2f} times the best language's tokens for a byte of {worst['language']}."
    )


def _transfer(config: SearchConfig, run: Run, scalars: dict[str, Scalar]) -> str:
    losses = transfer_losses(config, run, world_family(config.languages, config.seed))
    parts = []
    for form in FORMS:
        shift, by_seed, edge = shifts(config, losses, form)
        scalars[f"{form.lower()}_shift_octaves"] = Scalar(
            value=shift, low=min(by_seed), high=max(by_seed), unit="octaves"
        )
        parts.append(f"{shift:+.1f} octaves under {form}{' (at the edge of the grid)' if edge else ''}")
    return f"From width {config.widths[0]} to {config.widths[-1]} the best learning rate moves {' and '.join(parts)}."


def _tokenizer_table(rows: list[dict[str, Any]]) -> Table:
    cells: list[list[Cell]] = [
        [row["language"], row["tokens"] / sum(row["bytes"]), row["bytes_per_token"], row["parity"], row["round_trip"]]
        for row in rows
    ]
    columns = ["language", "tokens per byte", "bytes per token", "tokens per byte over the best", "round trip"]
    return Table(columns=columns, rows=cells, title="What the tokenizer does to each language")


def _bits_table(rows: list[dict[str, Any]]) -> Table:
    cells: list[list[Cell]] = []
    for row in rows:
        value, low, high = _rate([row], "nats")
        cells.append([row["language"], value, low, high, _rate([row], "gzip")[0], sum(row["bytes"]), len(row["bytes"])])
    columns = ["language", "bits per byte", "low", "high", "gzip", "bytes", "documents"]
    return Table(columns=columns, rows=cells, title="Bits per byte on held-out text")


def _series(rows: list[dict[str, Any]]) -> dict[str, Series]:
    names = [str(row["language"]) for row in rows]
    made = {}
    for label, key in (("model", "nats"), ("gzip (primed)", "gzip")):
        rates = [_rate([row], key) for row in rows]
        made[label] = Series(
            x=[float(i) for i in range(len(rows))],
            y=[rate[0] for rate in rates],
            low=[rate[1] for rate in rates] if key == "nats" else None,
            high=[rate[2] for rate in rates] if key == "nats" else None,
            x_names=names,
            x_label="language",
            y_label="bits per byte",
            group="bits per byte",
            kind="bar",
        )
    return made
