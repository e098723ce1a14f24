"""The verb project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text, write_json
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.methods.docre.aligner import load_aligner
from polyloom.methods.docre.config import ProjectConfig
from polyloom.methods.docre.data import document_json
from polyloom.methods.docre.projection import FOUND_AGAIN, MAX_MISSING, Identifier, exact_mentions, project
from polyloom.methods.docre.study import documents_of, limits
from polyloom.methods.docre.translators import noisy, translator
from polyloom.metrics.alignment import alignment_error_rate, read_links
from polyloom.metrics.text import identify
from polyloom.runs.folder import Run

SHOWN = ("ok", "repaired", *FOUND_AGAIN, "missing")
ORDER = ("ok", "repaired", "duplicated", *FOUND_AGAIN, "empty", "missing")
REASONS = ("too few entities", "odd length", "another language")


def run_project(config: ProjectConfig, run: Run) -> Result:
    """Translate documents with marked mentions and write the projected ones, or score word alignments.

    Raises:
        UserError: an unknown translator, or one that loses too many marks.
    """
    if config.alignments:
        return _score_alignments(config, run)
    documents = documents_of(config)
    translate = translator(config, documents)
    if config.drop_rate or config.swallow_rate:
        translate = noisy(
            translate,
            drop_rate=config.drop_rate,
            swallow_rate=config.swallow_rate,
            seed=config.seed,
            language=config.target,
        )
    language = config.language if config.translator == "identity" and not config.swallow_rate else config.target
    is_target, note = identifier(config)
    found = project(
        documents,
        translate,
        language,
        min_entities=config.min_entities,
        max_missing=1.0 if config.drop_rate else MAX_MISSING,
        align=load_aligner(config.aligner) if config.aligner else None,
        ask_again=True,
        is_target=is_target,
    )
    path = run.artifact("projected.json")
    write_json(path, [document_json(document) for document in found.documents])
    total, exact = sum(found.statuses.values()), exact_mentions(documents, found.documents)
    kept = sum(len(document.triples or ()) for document in found.documents)
    values: dict[str, float] = {
        "num_documents": len(found.documents),
        "num_dropped_documents": sum(found.dropped.values()),
        "num_mentions": total,
        "num_exact_mentions": exact,
        "exact_share": exact / max(1, total),
        "num_triples": kept,
        "num_dropped_triples": found.num_dropped_triples,
        "num_dropped_entities": found.num_dropped_entities,
    }
    values |= {f"share_{s.replace(' ', '_')}": found.statuses[s] / max(1, total) for s in SHOWN}
    values["share_lost_marks"] = found.lost_share
    values |= {f"num_dropped_{reason.replace(' ', '_')}": found.dropped[reason] for reason in REASONS}
    lost: list[list[Any]] = [list(row) for row in found.missing[:40]]
    return run.result(
        scalars={name: Scalar(value=value) for name, value in values.items()},
        tables={
            "statuses": fate_table("status", [(status, status) for _, _, status in found.fates]),
            "by_type": fate_table("type", [(kind, status) for _, kind, status in found.fates]),
            "by_document": fate_table("document", [(title, status) for title, _, status in found.fates]),
            "missing": Table(columns=["document", "mention", "translation"], rows=lost, title="Missing mentions"),
        },
        artifacts={
            "projected": Artifact(
                path="artifacts/projected.json", media_type="application/json", description="projected documents"
            )
        },
        verdicts=[
            f"{found.statuses['missing']} of {total} mentions were lost; {len(found.documents)} of {len(documents)} "
            f"documents and {kept} triples were kept."
        ],
        limitations=[
            *limits(config.data),
            "Particles are stripped by a list; no morphological analyser is used.",
            *([] if config.aligner else ["No aligner was named: lost marks are looked for by names alone."]),
            *([note] if note else []),
        ],
    )


def fate_table(what: str, rows: Sequence[tuple[str, str]], limit: int = 40) -> Table:
    """Count mentions by type, document or status itself, and by what became of them."""
    counts: dict[str, Counter[str]] = {}
    for name, status in rows:
        counts.setdefault(name, Counter())[status] += 1
    statuses = sorted({status for _, status in rows}, key=ORDER.index)
    most = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))[:limit]
    lines: list[list[Any]] = [[name, count.total(), *(count[s] for s in statuses)] for name, count in most]
    return Table(columns=[what, "mentions", *statuses], rows=lines, title=f"What became of the marks, by {what}")


def identifier(config: ProjectConfig) -> tuple[Identifier | None, str]:
    """Return what says whether a translation is in its language, where something was really translated; or why not."""
    if config.translator in ("identity", "dictionary"):
        return None, ""
    target = config.target.split("-")[0]

    def is_target(texts: Sequence[str]) -> list[bool]:
        found = identify(texts, {config.language, target})
        return [not one or max(one, key=lambda code: one[code]) == target for one in found]

    try:
        identify([], {config.language, target})
    except UserError as error:
        return None, f"The language of translations was not checked: {error}"
    return is_target, ""


def _score_alignments(config: ProjectConfig, run: Run) -> Result:
    assert config.alignments is not None
    if config.gold_alignments is None:
        raise UserError("there is nothing to score against.", where="--gold-alignments", hint="Name the gold file.")
    pairs = [read_text(Path(p)).splitlines() for p in (config.alignments, config.gold_alignments)]
    if len(pairs[0]) != len(pairs[1]):
        raise UserError(f"has {len(pairs[0])} lines, the gold {len(pairs[1])}.", where=config.alignments)
    rows = []
    for number, (line, gold) in enumerate(zip(*pairs, strict=True), 1):
        try:
            rows.append((read_links(line)[1], *read_links(gold, first=1)))
        except ValueError as error:
            raise UserError("holds a piece that is no link.", where=f"{config.alignments}:{number}") from error
    rate = alignment_error_rate(rows)
    return run.result(
        scalars={"alignment_error_rate": Scalar(value=rate), "num_sentences": Scalar(value=len(rows))},
        verdicts=[f"Alignment error rate {rate:.4f} over {len(rows)} sentences."],
    )
