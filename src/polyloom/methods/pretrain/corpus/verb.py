"""`polyloom pretrain corpus`: build a corpus, or measure the engine on labelled or planted documents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, sha256_file
from polyloom.core.result import Artifact, Cell, Result, Scalar, Table
from polyloom.data.crawl import RawDocument, Reading, list_parts, read_part
from polyloom.data.scripts import count_letters, count_words, normalise
from polyloom.data.shards import read_corpus, shard_files
from polyloom.methods.pretrain.corpus import card as cards
from polyloom.methods.pretrain.corpus.cleaning import Cleaner, Dropped
from polyloom.methods.pretrain.corpus.language import identify, primary
from polyloom.methods.pretrain.corpus.planted import Planted, candidate_rate, plant, planted_id, write_planted
from polyloom.methods.pretrain.corpus.rules import check_rules
from polyloom.methods.pretrain.corpus.stages import Outcome, carry_out, chain, make_plan
from polyloom.methods.pretrain.corpus.tally import Tally
from polyloom.methods.pretrain.corpus.tasks import Plan
from polyloom.methods.pretrain.data_config import CorpusConfig
from polyloom.metrics.distributions import binomial_band
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

STAGES_FOLDER = ".stages"
LONG_PARAGRAPH_LETTERS = 60
PASSAGE_WORDS = 200
JACCARD_LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
# The same documents in one file, in four read backwards, in seven by two processes.
CUTS = ((1, False, 1), (4, True, 1), (7, False, 2))


def run_corpus(config: CorpusConfig, run: Run) -> Result:
    """Build a corpus from `config.input`, or measure the engine.

    Raises:
        UserError: input that is absent, rules that do not exist, shares that fit nothing, or a stage that left nothing.
    """
    check_rules(config.rules)
    if not config.input:
        return _measure_planted(config, run)
    if config.verify:
        return _measure_labelled(config, run)
    out = config.out or run.artifact("corpus")
    _check_folder(out)
    plan = make_plan(config, out / STAGES_FOLDER)
    done = chain(plan)[-1][2]
    card = _finished_card(out, done)
    if card is None:
        outcome = carry_out(plan, run)
        if config.rank:
            return run.result(verdicts=[f"Rank {config.rank} of {config.num_ranks} has done its tasks."])
        card = {**cards.make_card(outcome), "identity": done}
        _publish(outcome, card, out)
    return _as_result(run, card, out)


def _check_folder(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (STAGES_FOLDER, "card.json")):
        raise UserError("holds files that are no corpus.", where=str(out), hint="Choose an empty folder for --out.")


def _finished_card(out: Path, identity: str) -> dict[str, Any] | None:
    """Return the card of a corpus that was built before from the same input and settings."""
    path = out / "card.json"
    card = read_json(path) if path.is_file() else None
    return card if card and card.get("identity") == identity else None


def _publish(outcome: Outcome, card: dict[str, Any], out: Path) -> None:
    """Move the shards to their places, write the card last, and drop the stages' files."""
    plan = outcome.plan
    if (out / "card.json").exists():
        # The card goes last: while it stands, a build that was killed here takes the old shards away again.
        for name in read_json(out / "card.json")["shards"]:
            (out / name).unlink(missing_ok=True)
        (out / "card.json").unlink()
    for bucket, summary in enumerate(outcome.summaries["write"]):
        for name in summary["written"]:
            written = plan.output("write", bucket) / name
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            # A build that was killed while it moved them finds some in their places.
            if written.exists() or not (out / name).exists():
                written.replace(out / name)
    cards.save_card(card, out)
    if plan.config.keep_stages or plan.config.num_ranks > 1:
        # Other ranks may still look at the markers. The shards have left this stage; its markers must not claim them.
        shutil.rmtree(Path(plan.folder) / "write")
    else:
        shutil.rmtree(plan.folder)


def _as_result(run: Run, card: dict[str, Any], out: Path) -> Result:
    scalars = cards.card_scalars(card)
    read, written = scalars["documents_read"].value, scalars["documents_written"].value
    inside = out.is_relative_to(run.path)
    artifacts = {
        name: Artifact(path=str((out / name).relative_to(run.path)), media_type="application/json", description=what)
        for name, what in (("card.json", "the data card"), ("mixture.json", "weights and sizes for the loader"))
        if inside
    }
    return run.result(
        scalars=scalars,
        tables={
            "stages": cards.stage_table(card),
            "dropped": cards.drop_table(card),
            "mixture": cards.share_table(card),
            "left_out": cards.problem_table(card),
        },
        artifacts=artifacts,
        verdicts=[f"{written} of {read} documents were written to {out}."],
        limitations=cards.warnings_of(card),
    )


# ---- planted duplicates


def _measure_planted(config: CorpusConfig, run: Run) -> Result:
    """Plant duplicates, run the engine over three cuts of the same documents, and count what it found."""
    planted = plant(config.num_planted, config.seed)
    survivors: list[set[str]] = []
    prints: list[list[tuple[str, str]]] = []
    for number, (num_files, backwards, num_workers) in enumerate(CUTS):
        folder = run.artifact(f"cut-{number}")
        shutil.rmtree(folder, ignore_errors=True)
        write_planted(planted, folder / "input", num_files, backwards=backwards)
        plan = _planted_plan(config, folder, num_workers)
        outcome = carry_out(plan, run)
        out = folder / "corpus"
        _publish(outcome, cards.make_card(outcome), out)
        survivors.append({row["id"] for row in read_corpus(out)})
        prints.append([(f.relative_to(out).as_posix(), sha256_file(f)) for f in shard_files(out)])
        shutil.rmtree(folder)
    figures = _planted_figures(planted, survivors[0])
    figures["outputs_identical"] = Scalar(value=all(p == prints[0] for p in prints))
    table, num_inside = _rate_table(config, run)
    figures["candidate_rates_inside_band"] = Scalar(value=num_inside)
    return run.result(
        scalars=figures,
        tables={"candidates": table},
        verdicts=[
            f"Of {len(planted.exact)} exact copies {figures['exact_removed'].value:.1%} were removed, of "
            f"{len(planted.near)} near ones {figures['near_recall'].value:.1%}; {figures['false_merges'].value} of "
            f"{len(planted.far)} distant ones were merged.",
            f"{len(CUTS)} cuts of the input gave {'equal' if figures['outputs_identical'].value else 'DIFFERENT'} "
            "shards, byte for byte.",
        ],
        limitations=["The planted documents are invented words; real near duplicates differ in other ways too."],
    )


def _planted_plan(config: CorpusConfig, folder: Path, num_workers: int) -> Plan:
    planted = config.model_copy(
        update={
            "input": [str(folder / "input")],
            "heuristics": False,
            "language_id": "none",
            "num_workers": num_workers,
            "num_shards": 3,
            "executor": "local",
        }
    )
    return make_plan(planted, folder / "corpus" / STAGES_FOLDER)


def _planted_figures(planted: Planted, survivors: set[str]) -> dict[str, Scalar]:
    def alone(first: int, second: int) -> bool:
        return len({planted_id(first), planted_id(second)} & survivors) == 1

    exact = wilson_interval(sum(alone(a, b) for a, b in planted.exact), len(planted.exact))
    near = wilson_interval(sum(alone(p.first, p.second) for p in planted.near), len(planted.near))
    merged = sum(not {planted_id(p.first), planted_id(p.second)} <= survivors for p in planted.far)
    both_gone = [p for p in planted.exact if not {planted_id(i) for i in p} & survivors]
    return {
        "exact_removed": Scalar.of(exact),
        "near_recall": Scalar.of(near),
        "false_merges": Scalar(value=merged + len(both_gone)),
        "near_pairs": Scalar(value=len(planted.near)),
        "far_pairs": Scalar(value=len(planted.far)),
    }


def _rate_table(config: CorpusConfig, run: Run) -> tuple[Table, int]:
    """Compare the bands' candidate rate with the formula at several Jaccard levels."""
    rows: list[list[Cell]] = []
    inside = 0
    with run.progress("corpus: candidate rates", len(JACCARD_LEVELS)) as advance:
        for level in JACCARD_LEVELS:
            found, expected = candidate_rate(level, config.num_planted, config.num_bands, config.num_rows, config.seed)
            low, high = binomial_band(config.num_planted, expected, 0.99)
            inside += low <= found <= high
            rows.append(
                [level, expected, found / config.num_planted, low / config.num_planted, high / config.num_planted]
            )
            advance(1)
    columns = ["Jaccard", "1 - (1 - s^r)^b", "measured", "99 % band, low", "high"]
    return Table(columns=columns, rows=rows, title=f"Candidates among {config.num_planted} pairs a level"), inside


# ---- labelled documents


def _measure_labelled(config: CorpusConfig, run: Run) -> Result:
    """Measure language identification and the filters' losses on documents whose languages are known."""
    documents = _labelled(config)
    # The labels are taken away: the engine has to find the language by itself.
    cleaner = Cleaner(config)
    rows: list[list[Cell]] = []
    total_hits = total_paragraphs = 0
    for language, texts in documents.items():
        lines = [line for text in texts for line in text.split("\n") if count_letters(line) >= LONG_PARAGRAPH_LETTERS]
        hits = sum(identify(line, config.language_id)[0] == language for line in lines)
        whole = _loss(cleaner, texts)
        passages = [passage for text in texts for passage in _passages(text)]
        rows.append(
            [
                language,
                len(texts),
                len(lines),
                hits / max(1, len(lines)),
                whole,
                len(passages),
                _loss(cleaner, passages),
            ]
        )
        total_hits, total_paragraphs = total_hits + hits, total_paragraphs + len(lines)
    if not total_paragraphs:
        raise UserError(
            "no labelled paragraph has 60 letters.", where="--input", hint="Give longer labelled documents."
        )
    accuracy = wilson_interval(total_hits, total_paragraphs)
    worst = max(rows, key=lambda row: float(row[4] or 0))
    worst_passages = max(rows, key=lambda row: float(row[6] or 0))
    columns = [
        "language",
        "documents",
        "paragraphs",
        "language id right",
        "bytes lost",
        "passages",
        "bytes of passages lost",
    ]
    return run.result(
        scalars={
            "language_id_accuracy": Scalar.of(accuracy),
            "num_paragraphs": Scalar(value=total_paragraphs),
            "worst_language_loss": Scalar(value=worst[4]),
            "worst_language": Scalar(value=worst[0]),
            "worst_passage_loss": Scalar(value=worst_passages[6]),
        },
        tables={"languages": Table(columns=columns, rows=rows, title="Labelled documents through the filters")},
        verdicts=[
            f"Language id is right on {accuracy.value:.1%} of {total_paragraphs} paragraphs with 60 or more letters.",
            f"The filters take at most {worst[4]:.1%} of a language's bytes ({worst[0]}).",
        ],
        limitations=["Clean, formal text: losses on crawled pages are higher, and meant to be."],
    )


def _labelled(config: CorpusConfig) -> dict[str, list[str]]:
    reading = Reading(config.text_key, tuple(config.encodings), config.max_document_bytes, config.extractor)
    found: dict[str, list[str]] = {}
    for part in list_parts(config.input, split_bytes=config.split_bytes):
        for document in read_part(part, reading):
            if isinstance(document, RawDocument) and document.language:
                found.setdefault(primary(document.language), []).append(normalise(document.text))
    if not found:
        raise UserError("no document names its language.", where="--input", hint="Give labelled documents to --verify.")
    return dict(sorted(found.items()))


def _passages(text: str) -> list[str]:
    """Cut a text at blank lines into passages of at least 200 words; what is left over joins the last."""
    passages: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        if count_words("\n\n".join(passages[-1])) >= PASSAGE_WORDS:
            passages.append([])
        passages[-1].append(paragraph)
    if len(passages) > 1 and count_words("\n\n".join(passages[-1])) < PASSAGE_WORDS:
        passages[-2] += passages.pop()
    return ["\n\n".join(parts) for parts in passages]


def _loss(cleaner: Cleaner, texts: list[str]) -> float:
    """Return the share of bytes that the document filters take."""
    total = sum(len(text.encode()) for text in texts)
    kept = 0
    for text in texts:
        found = cleaner.clean(RawDocument(text, "", ""), Tally())
        kept += 0 if isinstance(found, Dropped) else len(found.text.encode())
    return 1.0 - kept / max(1, total)
