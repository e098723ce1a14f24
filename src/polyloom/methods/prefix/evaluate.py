"""`polyloom prefix evaluate`: several systems' answers side by side, with the rates that explain a score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean

import torch

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.data.dictionaries import language_name
from polyloom.methods.prefix.config import EvaluateConfig
from polyloom.methods.prefix.inputs import read_items, read_json_lines
from polyloom.methods.prefix.method import relative_performance
from polyloom.metrics import text as metrics
from polyloom.metrics.rouge import rouge_l, word_tokens
from polyloom.metrics.statistics import bootstrap_interval
from polyloom.models.device import pin_threads
from polyloom.models.load import load_model, load_tokenizer
from polyloom.runs.folder import Run

ENCODED_TOKENS = 256


@dataclass(frozen=True)
class System:
    """One file of answers, with references and sources."""

    name: str
    outputs: list[str]
    references: list[str]
    sources: list[str]


@dataclass(frozen=True)
class TagScore:
    """Word tags against gold: precision, recall and F1 in micro average, and accuracy over all gold words."""

    precision: float
    recall: float
    f1: float
    accuracy: float


def run_evaluate(config: EvaluateConfig, run: Run) -> Result:
    """Score files of answers: BLEU, chrF, chrF++, spBLEU, ROUGE-L, LaSE, tags, and language, copy and empty rates.

    Args:
        config: answer files, references, language; the first system's figures are also scalars.
        run: the run.

    Returns:
        One row for each system.

    Raises:
        UserError: files that do not fit each other, or an unknown language code.
    """
    language_name(config.target_language)
    if config.baseline >= len(config.outputs):
        raise UserError(f"there is no system {config.baseline}.", where="--baseline", hint="Count from 0.")
    systems = [_read(config, index) for index in range(len(config.outputs))]
    notes: list[str] = []
    scores = {one.name: _score(one, config, notes) for one in systems}
    names = list(next(iter(scores.values())))
    main = "chrf" if config.task != "tag" else "tag_f1"
    base = scores[systems[config.baseline].name]
    rows: list[list[str | float | int | bool | None]] = []
    for name, own in scores.items():
        value, reference = own[main], base[main]
        rel = relative_performance(value or 0.0, reference or 0.0)
        rows.append([name, *(own[key] for key in names), rel])
    scalars: dict[str, Scalar] = {}
    for index, one in enumerate(systems):
        prefix = "" if len(systems) == 1 else f"{index}_"
        scalars |= {f"{prefix}{key}": Scalar(value=value) for key, value in scores[one.name].items()}
        if main == "chrf" and len(one.outputs) > 1:
            scalars[f"{prefix}chrf"] = _with_interval(one, scores[one.name]["chrf"] or 0.0)
    best = max(scores, key=lambda name: scores[name][main] or 0.0)
    return run.result(
        scalars=scalars | {"num_texts": Scalar(value=len(systems[0].outputs))},
        tables={
            "systems": Table(
                columns=["system", *names, f"% of system {config.baseline}"], rows=rows, title="Systems side by side"
            )
        },
        series={
            main: Series(
                x=[float(i) for i in range(len(scores))],
                y=[own[main] for own in scores.values()],
                x_names=list(scores),
                y_label=main,
                group="systems",
                kind="bar",
            )
        },
        verdicts=[
            f"{best} has the highest {main}: {scores[best][main]:.2f} over {len(systems[0].outputs)} texts.",
            *notes,
        ],
        limitations=[
            "Answers are cut at nothing here: what was generated is scored.",
            "Relative performance has no value where the reference system scores 0, and may pass 100.",
        ],
    )


def _with_interval(system: System, value: float) -> Scalar:
    """Give corpus chrF the bootstrap interval of its sentences' mean, shifted to it."""
    single = [metrics.chrf([a], [b]) for a, b in zip(system.outputs, system.references, strict=True)]
    found = bootstrap_interval(single, method="percentile", num_resamples=1000)
    return Scalar(value=value, low=value + found.low - found.value, high=value + found.high - found.value)


def _read(config: EvaluateConfig, index: int) -> System:
    path = config.outputs[index]
    rows = read_json_lines(path, config.encoding)
    lacking = next(
        (n for n, row in enumerate(rows, start=1) if not isinstance(row.get(config.output_field), str)), None
    )
    if lacking is not None:
        raise UserError(f"has no answer under {config.output_field!r}.", where=f"{path}:{lacking}")
    outputs = [row[config.output_field] for row in rows]
    if config.references is not None:
        items = read_items(config.references, config.reference_field, "", config.encoding)
        by_id = {item.id: item.source for item in items}
        if all(str(row.get("id")) in by_id for row in rows):
            references = [by_id[str(row["id"])] for row in rows]
        elif len(items) == len(rows):
            references = [item.source for item in items]
        else:
            what = f"{len(items)} references do not fit {len(rows)} answers."
            raise UserError(what, where=str(config.references), hint="Give one for each, or ids on both sides.")
    else:
        references = [row.get(config.reference_field) or "" for row in rows]
        if not all(references):
            raise UserError(
                f"has lines without {config.reference_field!r}.", where=str(path), hint="Give --references."
            )
    sources = [str(row.get(config.source_field) or "") for row in rows]
    return System(f"{index}: {path.stem}", outputs, references, sources)


def _score(system: System, config: EvaluateConfig, notes: list[str]) -> dict[str, float | None]:
    given = (system.outputs, system.references)
    tokenizer = metrics.bleu_tokenizer(config.target_language)
    scores: dict[str, float | None] = {
        "bleu": metrics.bleu(*given, tokenizer),
        "chrf": metrics.chrf(*given),
        "chrf_plus_plus": metrics.chrf(*given, word_order=2),
    }
    if config.sentencepiece is not None:
        scores["spbleu"] = metrics.spbleu(*given, config.sentencepiece)
    else:
        _note(notes, "spBLEU needs its SentencePiece file (--sentencepiece); chrF++ stands in for it.")
    scores["off_target_rate"] = _off_target(system, config, notes)
    scores["copy_rate"] = metrics.copy_rate(system.outputs, system.sources) if any(system.sources) else None
    scores["empty_rate"] = metrics.empty_rate(system.outputs)
    if config.task == "tag":
        tags = [tag_score(a, b) for a, b in zip(*given, strict=True)]
        scores |= _pooled(given)
        scores["tag_accuracy"] = mean(one.accuracy for one in tags)
    else:
        scores["rouge_l"] = 100 * mean(rouge_l(a, b, word_tokens) for a, b in zip(*given, strict=True))
    if config.encoder:
        scores["lase"] = _lase(system, config)
    return scores


def _note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _off_target(system: System, config: EvaluateConfig, notes: list[str]) -> float | None:
    try:
        return metrics.off_target_rate(system.outputs, config.target_language, config.languages)
    except MissingExtra:
        raise
    except UserError as error:
        _note(notes, f"No off-target rate: {error}")
        return None


def _lase(system: System, config: EvaluateConfig) -> float:
    """Return mean LaSE; sentence vectors are the encoder's pooled outputs, normalised."""
    pin_threads()
    model = load_model(config.encoder, kind="encoder", device="auto")
    tokenizer = load_tokenizer(config.encoder, model)
    averaged = pools_by_mean(Path(config.encoder))

    @torch.inference_mode()
    def vector(text: str) -> torch.Tensor:
        inputs = tokenizer(text, truncation=True, max_length=ENCODED_TOKENS, return_tensors="pt", verbose=False)
        output = model(**inputs.to(model.device))
        pooled = output.get("pooler_output")
        chosen = output.last_hidden_state.mean(dim=1) if averaged or pooled is None else pooled
        return torch.nn.functional.normalize(chosen[0], dim=-1)

    guesses = metrics.identify(system.outputs, config.languages)
    values = []
    for output, reference, guess in zip(system.outputs, system.references, guesses, strict=True):
        meaning = float(vector(output) @ vector(reference)) if output.strip() else 0.0
        penalty = metrics.length_penalty(len(word_tokens(output)), len(word_tokens(reference)))
        values.append(metrics.lase(meaning, metrics.language_confidence(guess, config.target_language), penalty))
    return mean(values)


def pools_by_mean(encoder: Path) -> bool:
    """Say whether a sentence-transformers folder averages its tokens; LaBSE and plain encoders have a pooler."""
    path = encoder / "1_Pooling" / "config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"))


# ---- tags: `word_TAG word_TAG`


def read_tags(text: str) -> list[tuple[str, str]]:
    """Read `word_TAG word_TAG`; a piece without a tag gets an empty one, which is always wrong."""
    pairs = []
    for piece in text.split():
        word, separator, tag = piece.rpartition("_")
        pairs.append((word, tag.upper()) if separator and word else (piece, ""))
    return pairs


def tag_counts(output: str, reference: str) -> tuple[int, int, int]:
    """Return correct tags, words of the output and words of the reference; words are aligned in order."""
    own, gold = read_tags(output), read_tags(reference)
    matcher = SequenceMatcher(None, [word for word, _ in own], [word for word, _ in gold], autojunk=False)
    correct = sum(
        bool(own[block.a + i][1]) and own[block.a + i][1] == gold[block.b + i][1]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    )
    return correct, len(own), len(gold)


def tag_score(output: str, reference: str) -> TagScore:
    """Score one tagged sentence; what cannot be read counts as wrong.

    Args:
        output: `word_TAG` pieces, words aligned with the reference's in order.
        reference: gold pieces.
    """
    return _tag_score(*tag_counts(output, reference))


def _tag_score(correct: int, num_output: int, num_gold: int) -> TagScore:
    precision, recall = correct / max(1, num_output), correct / max(1, num_gold)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return TagScore(precision, recall, f1, recall)


def _pooled(given: tuple[Sequence[str], Sequence[str]]) -> dict[str, float | None]:
    counts = [tag_counts(a, b) for a, b in zip(*given, strict=True)]
    pooled = _tag_score(*(sum(column) for column in zip(*counts, strict=True)))
    return {"tag_precision": pooled.precision, "tag_recall": pooled.recall, "tag_f1": pooled.f1}
