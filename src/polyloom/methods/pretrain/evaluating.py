"""`polyloom pretrain evaluate`: bits per byte of one or several models on the same documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator
from polyloom.generation.decode import max_positions
from polyloom.methods.pretrain.cloze import NUM_OPTIONS, answer, make_questions
from polyloom.methods.pretrain.data_config import WORLD_LANGUAGES, EvaluateConfig
from polyloom.methods.pretrain.harness import benchmark_table, check_benchmarks, run_benchmarks
from polyloom.methods.pretrain.samples import gather, read_cells, world_cells
from polyloom.metrics.language_model import gzip_scores, score_documents, token_nats
from polyloom.metrics.statistics import (
    Comparison,
    Interval,
    compare_paired,
    correct_family,
    ratio_interval,
    wilson_interval,
)
from polyloom.models.device import autocast, pin_threads
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.runs.folder import Run
from polyloom.training.small import Budget, train_small

TINY = "tiny"
UNIFORM = "uniform bytes"
GZIP = "gzip"
_LONGEST_WINDOW = 1024
_WORLD_CHARACTERS = 30_000
# A paired test needs no more units than this; more documents are joined into so many groups.
_MAX_UNITS = 2000
_NUM_RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Documents:
    """Texts to score with the cell (domain, language) of each, and their UTF-8 bytes."""

    texts: list[str]
    cells: list[tuple[str, str]]

    @property
    def num_bytes(self) -> Floats:
        """[documents] bytes of the original text."""
        return np.array([len(text.encode()) for text in self.texts], dtype=float)

    def of(self, cell: tuple[str, str]) -> NDArray[np.int64]:
        """Return the documents of a cell."""
        return np.flatnonzero([one == cell for one in self.cells])


class UniformBytes(nn.Module):
    """The model that knows nothing: 256 bytes, all equally probable. It has to cost exactly 8 bits a byte."""

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Return logits [batch tokens 256], all 0."""
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 256, dtype=torch.float64))


def run_evaluate(config: EvaluateConfig, run: Run) -> Result:
    """Score the same documents with every model, and run benchmarks and the cloze on each.

    Raises:
        UserError: a model or text that cannot be read, a weight that fits nothing, an unknown task.
    """
    check_benchmarks(config)
    pin_threads()
    documents = gather_documents(config)
    weights = cell_weights(config.weights, sorted(set(documents.cells)))
    bits: dict[str, Floats] = {}
    cloze: dict[str, dict[str, list[bool]]] = {}
    benchmarks: dict[str, list[dict[str, Any]]] = {}
    with run.progress("evaluate", len(config.models)) as advance:
        for name, source in _sources(config, run).items():
            found = run.once(f"model {source}", partial(_judge, config, documents, source))
            bits[name] = np.array(found["bits"])
            cloze[name], benchmarks[name] = found["cloze"], found["benchmarks"]
            advance(1)
    bits[UNIFORM] = _bits(_uniform_nats(documents.texts))
    bits[GZIP] = _bits([score.nats for score in gzip_scores([], documents.texts)])
    return _as_result(config, run, documents, weights, bits, cloze, benchmarks)


def _bits(nats: Sequence[float]) -> Floats:
    return np.array(nats) / math.log(2)


def _uniform_nats(texts: Sequence[str]) -> list[float]:
    return token_nats(UniformBytes(), [list(text.encode()) for text in texts], 0, window_tokens=1024, batch_size=8)


def gather_documents(config: EvaluateConfig) -> Documents:
    """Read the user's documents, or make the world's held-out ones: at most `test_bytes` of each cell."""
    if config.data:
        cells = list(read_cells(config.data, config.languages))
    else:
        languages = config.languages or WORLD_LANGUAGES
        cells = world_cells(languages, max(1, config.test_bytes // 2), config.seed, "test")
    # Here nothing is trained: both parts of the split are the test's.
    split = gather(cells, config.test_bytes, config.test_bytes)
    found = Documents([], [])
    for cell in sorted({*split.train, *split.held_out}):
        size = 0
        for text in [*split.held_out.get(cell, []), *split.train.get(cell, [])]:
            if size >= config.test_bytes:
                break
            size += len(text.encode())
            found.texts.append(text)
            found.cells.append(cell)
    return found


def cell_weights(given: Mapping[str, float], cells: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return the weight of each cell, adding to 1: equal for all languages where none is given.

    A weight of a domain or a language is divided equally among its cells; one of domain/language stands for itself.

    Raises:
        UserError: a name that no document has.
    """
    if not given:
        languages = [language for _, language in cells]
        num = len(set(languages))
        return {cell: 1 / num / languages.count(cell[1]) for cell in cells}
    result = dict.fromkeys(cells, 0.0)
    for name, weight in given.items():
        fitting = [cell for cell in cells if name in ("/".join(cell), *cell)]
        if not fitting:
            known = ", ".join("/".join(cell) for cell in cells)
            raise UserError(f"no document is of {name!r}.", where="--weights", hint=f"There are: {known}.")
        for cell in fitting:
            result[cell] += weight / len(fitting)
    total = sum(result.values())
    if total <= 0:
        raise UserError("the weights add to 0.", where="--weights", hint="Give one of them a weight.")
    return {cell: weight / total for cell, weight in result.items()}


def _sources(config: EvaluateConfig, run: Run) -> dict[str, str]:
    """Return each model's short name and where it is; `tiny` is trained here."""
    sources: dict[str, str] = {}
    for given in config.models:
        name = Path(given).name if Path(given).is_dir() else given
        while name in sources:
            name += "'"
        sources[name] = given
        if given == TINY:
            sources[name] = str(run.artifact(TINY))
            if not Path(sources[name]).exists():
                train_tiny(config, run, Path(sources[name]))
    return sources


def train_tiny(config: EvaluateConfig, run: Run, folder: Path) -> None:
    """Train a small model on the world's text and save it with its tokenizer."""
    texts: dict[str, list[str]] = {}
    for _, language, text in world_cells(config.languages or WORLD_LANGUAGES, _WORLD_CHARACTERS, config.seed, "train"):
        texts.setdefault(language, []).append(text)
    budget = Budget(_WORLD_CHARACTERS, 1024, config.tiny_steps, config.test_bytes, "llama-2x64")
    with run.progress("evaluate: train tiny", config.tiny_steps) as advance:
        model, tokenizer = train_small(
            texts, budget, config.seed, on_log=run.log, on_step=advance, check_stop=run.check_stop
        )
    save_model(model, folder, tokenizer)


def _judge(config: EvaluateConfig, documents: Documents, source: str) -> dict[str, Any]:
    """Measure one model: the bits of each document, cloze answers by language, benchmarks."""
    model = load_model(source, device="auto")
    tokenizer = load_tokenizer(source, model)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        hint = "Set bos_token in tokenizer_config.json: a document's first token is conditioned on it."
        raise UserError("its tokenizer has neither <s> nor </s>.", where=source, hint=hint)
    limit = max_positions(model) or _LONGEST_WINDOW
    window = config.window_tokens or min(limit, _LONGEST_WINDOW)
    if window > limit:
        raise UserError(f"the model has {limit} positions.", where="--window-tokens", hint="Take no longer windows.")
    questions = {}
    if config.cloze and not config.data:
        questions = make_questions(config.languages or WORLD_LANGUAGES, config.cloze, config.seed)
    with autocast(model.device, config.precision):
        scores = score_documents(model, tokenizer, documents.texts, window_tokens=window, batch_size=config.batch_size)
        cloze = {
            language: answer(model, tokenizer, asked, window_tokens=window) for language, asked in questions.items()
        }
        benchmarks = run_benchmarks(model, tokenizer, config) if config.benchmarks else []
    return {"bits": _bits([score.nats for score in scores]).tolist(), "cloze": cloze, "benchmarks": benchmarks}


# ---- what follows from the scores


def weighted_interval(
    bits: Floats, documents: Documents, weights: Mapping[tuple[str, str], float], seed: int = 0
) -> Interval:
    """Return the weighted sum of the cells' bits per byte with a bootstrap interval, documents drawn inside each cell.

    Args:
        bits: [documents] bits, or differences of two models' bits.
        documents: the documents.
        weights: of each cell, adding to 1.
        seed: of the draws.
    """
    sizes = documents.num_bytes
    value = 0.0
    draws = np.zeros(_NUM_RESAMPLES)
    for number, (cell, weight) in enumerate(weights.items()):
        rows = documents.of(cell)
        value += weight * math.fsum(bits[rows]) / math.fsum(sizes[rows])
        picks = rows[numpy_generator(seed, "weighted", number).integers(0, len(rows), (_NUM_RESAMPLES, len(rows)))]
        draws += weight * bits[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def compare_bits(first: Floats, other: Floats, sizes: Floats, margin: float, seed: int = 0) -> Comparison | None:
    """Compare two models on the same documents; the mean of the paired values is the pooled bits per byte.

    Returns:
        None for less than two documents.
    """
    if len(sizes) < 2:
        return None
    group = np.arange(len(sizes)) % _MAX_UNITS
    num = int(group.max()) + 1
    sums = [np.bincount(group, weights=values, minlength=num) for values in (first, other)]
    scale = num / sizes.sum()
    return compare_paired(
        sums[0] * scale, sums[1] * scale, margin=margin, higher_is_better=False, num_resamples=_NUM_RESAMPLES, seed=seed
    )


def _by_cell(documents: Documents, bits: Mapping[str, Floats], seed: int) -> Table:
    sizes = documents.num_bytes
    rows: list[list[Cell]] = []
    for cell in sorted(set(documents.cells)):
        index = documents.of(cell)
        for name, values in bits.items():
            rate = ratio_interval(values[index], sizes[index], seed=seed)
            interval = [rate.low, rate.high] if len(index) > 1 else [None, None]
            rows.append([*cell, name, rate.value, *interval, len(index), int(sizes[index].sum())])
    columns = ["domain", "language", "model", "bits per byte", "low", "high", "documents", "bytes"]
    return Table(columns=columns, rows=rows, title="Bits per byte, with 95 % intervals over documents")


def _compare_all(
    config: EvaluateConfig, documents: Documents, bits: Mapping[str, Floats]
) -> list[tuple[str, str, Comparison]]:
    """Compare the first model with each other one, over all documents and by language, corrected together."""
    names = list(bits)
    sizes = documents.num_bytes
    groups: dict[str, NDArray[np.int64]] = {"all": np.arange(len(sizes))}
    for language in sorted({language for _, language in documents.cells}):
        groups[language] = np.flatnonzero([one == language for _, one in documents.cells])
    found = []
    for other in names[1:]:
        if other == UNIFORM:
            continue
        for group, index in groups.items():
            one = compare_bits(bits[names[0]][index], bits[other][index], sizes[index], config.margin, config.seed)
            if one is not None:
                found.append((other, group, one))
    corrected = correct_family([one for *_, one in found]) if found else []
    return [(other, group, one) for (other, group, _), one in zip(found, corrected, strict=True)]


def _comparison_table(first: str, found: Sequence[tuple[str, str, Comparison]]) -> Table:
    rows: list[list[Cell]] = [
        [
            other,
            group,
            one.mean_a,
            one.mean_b,
            one.difference.value,
            one.difference.low,
            one.difference.high,
            one.corrected_p,
            one.minimum_detectable,
            one.word,
        ]
        for other, group, one in found
    ]
    columns = ["beside", "language", first, "other", "difference", "low", "high", "p (Holm)", "detectable", "word"]
    return Table(columns=columns, rows=rows, title=f"{first} beside the others on the same documents")


def _cloze_table(cloze: Mapping[str, Mapping[str, Sequence[bool]]]) -> Table:
    rows: list[list[Cell]] = []
    for name, languages in cloze.items():
        for language, hits in languages.items():
            share = wilson_interval(sum(hits), len(hits))
            rows.append([language, name, share.value, share.low, share.high, len(hits), 1 / NUM_OPTIONS])
    columns = ["language", "model", "right", "low", "high", "questions", "by chance"]
    return Table(columns=columns, rows=rows, title="Cloze: the true sentence among four")


def _series(documents: Documents, bits: Mapping[str, Floats], seed: int) -> dict[str, Series]:
    cells = sorted(set(documents.cells))
    sizes = documents.num_bytes
    result = {}
    for name, values in bits.items():
        rates = [ratio_interval(values[documents.of(c)], sizes[documents.of(c)], seed=seed) for c in cells]
        several = len({domain for domain, _ in cells}) > 1
        result[name] = Series(
            x=[float(i) for i in range(len(cells))],
            y=[rate.value for rate in rates],
            low=[rate.low for rate in rates],
            high=[rate.high for rate in rates],
            x_names=["/".join(cell) if several else cell[1] for cell in cells],
            x_label="domain/language" if several else "language",
            y_label="bits per byte",
            group="bits per byte",
            kind="bar",
        )
    return result


def _as_result(
    config: EvaluateConfig,
    run: Run,
    documents: Documents,
    weights: Mapping[tuple[str, str], float],
    bits: Mapping[str, Floats],
    cloze: Mapping[str, Mapping[str, Sequence[bool]]],
    benchmarks: Mapping[str, list[dict[str, Any]]],
) -> Result:
    sizes = documents.num_bytes
    names = list(bits)
    first = names[0]
    pooled = {name: ratio_interval(values, sizes, seed=config.seed) for name, values in bits.items()}
    weighted = weighted_interval(bits[first], documents, weights, config.seed)
    scalars = {
        "bits_per_byte": _scalar(pooled[first]),
        "bits_per_byte_weighted": _scalar(weighted),
        "bits_per_byte_uniform_bytes": Scalar(value=pooled[UNIFORM].value, unit="bits/byte"),
        "bits_per_byte_gzip": _scalar(pooled[GZIP]),
        "num_documents": Scalar(value=len(sizes)),
        "num_bytes": Scalar(value=int(sizes.sum()), unit="bytes"),
    }
    for number, name in enumerate([name for name in names[1:] if name not in (UNIFORM, GZIP)], start=2):
        difference = weighted_interval(bits[first] - bits[name], documents, weights, config.seed)
        scalars[f"bits_per_byte_{number}"] = _scalar(pooled[name])
        scalars[f"difference_weighted_{number}"] = _scalar(difference)
    found = _compare_all(config, documents, bits)
    tables = {
        "bits_per_byte": _by_cell(documents, bits, config.seed),
        "comparisons": _comparison_table(first, found),
        "weights": Table(
            columns=["domain", "language", "weight"],
            rows=[[*cell, weight] for cell, weight in weights.items()],
            title="Weights of the weighted sum",
        ),
    }
    hits = [hit for language in cloze.get(first, {}).values() for hit in language]
    if hits:
        share = wilson_interval(sum(hits), len(hits))
        scalars["cloze_accuracy"] = Scalar.of(share)
        tables["cloze"] = _cloze_table(cloze)
    if config.benchmarks:
        tables["benchmarks"] = benchmark_table(dict(benchmarks))
        for row in benchmarks[first]:
            scalars[f"{row['task']}_{row['metric']}"] = Scalar(value=row["value"])
    return run.result(
        scalars=scalars,
        tables=tables,
        series=_series(documents, bits, config.seed),
        verdicts=_verdicts(first, pooled[first], found, hits),
        limitations=_limitations(config, documents),
    )


def _scalar(interval: Interval) -> Scalar:
    return Scalar.of(interval, "bits/byte")


def _verdicts(
    first: str, rate: Interval, found: Sequence[tuple[str, str, Comparison]], hits: Sequence[bool]
) -> list[str]:
    sentences = [f"{first} spends {rate.value:.3f} bits per byte ({rate.low:.3f} to {rate.high:.3f})."]
    for other, group, one in found:
        if group == "all":
            sentences.append(f"Beside {other}: {one.word} ({one.difference.value:+.3f} bits per byte).")
    if hits:
        share = wilson_interval(sum(hits), len(hits))
        word = "above" if share.low > 1 / NUM_OPTIONS else "not distinguishable from" if share.high > 0.25 else "below"
        sentences.append(f"It finds {share.value:.0%} of the true sentences among four, {word} chance.")
    return sentences


def _limitations(config: EvaluateConfig, documents: Documents) -> list[str]:
    notes = ["Intervals say what would happen with other documents of the same kind, nothing about other kinds."]
    few = sorted({"/".join(cell) for cell in documents.cells if documents.cells.count(cell) < 10})
    if few:
        notes.append(f"Fewer than ten documents in {', '.join(few)}: their intervals are rough.")
    if not config.data:
        from polyloom.data import world

        notes.append(f"{world.NOTICE}: figures show mechanisms, not quality on real text.")
    return notes
