"""The stages in their order, and the engine that takes a plan through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.data.crawl import COMPRESSED, Part, Reading, list_parts, read_part
from polyloom.data.crawl import RawDocument as _Raw
from polyloom.data.scripts import normalise
from polyloom.methods.pretrain.corpus.cleaning import NUM_PARTITIONS, clean_part
from polyloom.methods.pretrain.corpus.finishing import decide_shares, finish_part, write_bucket
from polyloom.methods.pretrain.corpus.merging import compare_band, join_duplicates, merge_hashes, sign_part
from polyloom.methods.pretrain.corpus.protecting import collect_protected
from polyloom.methods.pretrain.corpus.quality import fit_quality
from polyloom.methods.pretrain.corpus.tasks import Plan, Stage, Summary, identity, input_identity, run_stage
from polyloom.methods.pretrain.data_config import CorpusConfig
from polyloom.runs.folder import Run

SHARD_BYTES = 256 << 20
# What compressed text is taken to unfold to.
_UNFOLDS = 4


def train_quality(plan: Plan, task: int, folder: Path) -> Summary:
    """Train the quality model from the user's two kinds of text."""
    kinds = [_texts(paths) for paths in (plan.config.quality_good, plan.config.quality_random)]
    fitted = fit_quality(kinds[0], kinds[1], plan.config.seed)
    fitted.model.save(folder / "model.npz")
    return {"auc": fitted.auc, "num_train": fitted.num_train, "num_held_out": fitted.num_held_out}


def _texts(paths: list[str]) -> list[str]:
    found = (document for part in list_parts(paths) for document in read_part(part, Reading()))
    texts = (normalise(document.text) for document in found if isinstance(document, _Raw))
    return [text for text in texts if text]


QUALITY = Stage("quality", train_quality, ("quality_good", "quality_random", "seed"))
CLEAN = Stage(
    "clean",
    clean_part,
    (
        "text_key",
        "encodings",
        "extractor",
        "max_document_bytes",
        "languages",
        "language_id",
        "min_language_probability",
        "heuristics",
        "rules",
        "min_quality",
        "paragraphs",
    ),
)
MERGE = Stage("merge", merge_hashes)
SIGN = Stage("sign", sign_part, ("near_duplicates", "shingle_words", "num_bands", "num_rows", "min_jaccard"))
BANDS = Stage("bands", compare_band)
JOIN = Stage("join", join_duplicates)
PROTECT = Stage("protect", collect_protected, ("protect",))
FINISH = Stage("finish", finish_part, ("contaminated", "private", "num_shards"))
SHARES = Stage("shares", decide_shares, ("shares",))
WRITE = Stage("write", write_bucket, ("format", "tokenizer"))


@dataclass(frozen=True)
class Outcome:
    """The plan that was carried out and what each stage's tasks said."""

    plan: Plan
    summaries: Mapping[str, list[Summary]]

    def tallies(self) -> list[dict[str, Any]]:
        """Return the tallies of all tasks, in the order of stages and tasks."""
        return [s["tally"] for name in ("clean", "sign", "finish") for s in self.summaries[name]]


def make_plan(config: CorpusConfig, folder: Path) -> Plan:
    """List the input and decide how many shards there will be.

    Raises:
        UserError: a path that is absent, or no file that can be read.
    """
    parts = tuple(list_parts(config.input, split_bytes=config.split_bytes))
    total = sum(_size(part) for part in parts)
    return Plan(config, parts, str(folder), config.num_shards or max(1, -(-total // SHARD_BYTES)))


def _size(part: Part) -> int:
    end = part.end if part.end is not None else Path(part.path).stat().st_size
    size = end - part.begin
    return size * _UNFOLDS if part.path.endswith((*COMPRESSED, ".parquet")) else size


def chain(plan: Plan) -> list[tuple[Stage, int, str]]:
    """Return the stages that a plan takes, each with its number of tasks and its identity."""
    config, num_parts = plan.config, len(plan.parts)
    stages = [(QUALITY, 1)] if config.quality_good else []
    stages += [(CLEAN, num_parts), (MERGE, NUM_PARTITIONS), (SIGN, num_parts)]
    stages += [(BANDS, config.num_bands), (JOIN, 1)] if config.near_duplicates else []
    stages += [(PROTECT, 1)] if config.protect else []
    stages += [(FINISH, num_parts), (SHARES, 1), (WRITE, plan.num_buckets)]
    found, before = [], input_identity(plan.parts)
    for stage, num_tasks in stages:
        before = identity(stage, config, before)
        found.append((stage, num_tasks, before))
    return found


def carry_out(plan: Plan, run: Run) -> Outcome:
    """Take a plan through all stages; those that are done are not done again.

    Raises:
        PolyloomError: a worker or another rank failed, or the disk is full.
        UserError: no document is left, with the stage and the reason that took most.
    """
    summaries: dict[str, list[Summary]] = {}
    for stage, num_tasks, stage_identity in chain(plan):
        with run.progress(f"corpus: {stage.name}", num_tasks) as advance:
            summaries[stage.name] = run_stage(
                plan, stage, num_tasks, stage_identity, advance, run.check_stop, last=stage is WRITE
            )
        if stage in (CLEAN, SIGN):
            _refuse_nothing(stage, summaries[stage.name])
        if stage is SHARES and not summaries["shares"][0]["sizes"]:
            raise UserError("no document is left.", where="stage finish", hint="Look at --protect.")
    return Outcome(plan, summaries)


def _refuse_nothing(stage: Stage, summaries: list[Summary]) -> None:
    if any(summary["num_documents"] for summary in summaries):
        return
    from polyloom.methods.pretrain.corpus.tally import merge

    tally = merge(summary["tally"] for summary in summaries)
    counts = {reason: sum(sizes[0] for sizes in cells.values()) for reason, cells in tally.dropped.items()}
    counts |= {what: float(number) for what, number in tally.counts.get("problems", {}).items()}
    if not counts:
        raise UserError("the input holds no document.", where="--input", hint="Check the files and --text-key.")
    reason = max(counts, key=lambda name: counts[name])
    raise UserError(
        f"the stage emptied the corpus: {counts[reason]:.0f} by {reason!r}, more than by anything else.",
        where=f"stage {stage.name}",
        hint="Relax that rule (--rules, --no-heuristics) or mend the input.",
    )
