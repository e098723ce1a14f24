"""The data card: what every stage kept and dropped, by domain and language, and which rules were in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyloom.core.files import write_json
from polyloom.core.result import Cell, Scalar, Table
from polyloom.methods.pretrain.corpus.finishing import normalised_shares
from polyloom.methods.pretrain.corpus.rules import STOP_WORDS, rules_for
from polyloom.methods.pretrain.corpus.stages import Outcome
from polyloom.methods.pretrain.corpus.tally import STAGES, merge
from polyloom.methods.pretrain.corpus.tasks import Summary

CARD_VERSION = 1
SMALL_LANGUAGE_BYTES = 1_000_000


def make_card(outcome: Outcome) -> dict[str, Any]:
    """Gather the card of a finished corpus.

    Args:
        outcome: what the stages said.

    Returns:
        A JSON value; nothing in it depends on the number of workers.
    """
    config = outcome.plan.config
    tally = merge(outcome.tallies())
    written = _written(outcome.summaries["write"])
    shares = outcome.summaries["shares"][0]
    cells = sorted(shares["sizes"])
    languages = sorted({cell.rpartition("/")[2] for cell in cells})
    return {
        "card_version": CARD_VERSION,
        "input": [part.name for part in outcome.plan.parts],
        "settings": config.model_dump(
            mode="json", exclude={"out", "num_workers", "rank", "num_ranks", "rank_timeout_seconds", "executor"}
        ),
        "rules": {language: rules_for(language, config.rules).model_dump(mode="json") for language in languages},
        "without_stop_words": [language for language in languages if language not in STOP_WORDS],
        "stages": {name: tally.kept[name] for name in STAGES if name in tally.kept},
        "dropped": dict(sorted(tally.dropped.items())),
        "samples": tally.samples,
        "problems": {"counts": tally.counts.get("problems", {}), "listed": sorted(tally.listed)},
        "licenses": dict(sorted(tally.counts.get("licenses", {}).items())),
        "placeholders": tally.counts.get("placeholders", {}),
        "contamination": dict(sorted(tally.counts.get("contamination", {}).items())),
        "protected": outcome.summaries["protect"][0] if config.protect else {},
        "quality": outcome.summaries["quality"][0] if config.quality_good else {},
        "near_duplicates": outcome.summaries["join"][0] if config.near_duplicates else {},
        "shares": {"wanted": shares["shares"], "fractions": shares["fractions"]},
        "written": written,
        "shards": {name: shard for s in outcome.summaries["write"] for name, shard in sorted(s["written"].items())},
    }


def _written(summaries: Sequence[Summary]) -> dict[str, dict[str, int]]:
    """Return documents, bytes and tokens of each cell, as written."""
    cells: dict[str, dict[str, int]] = {}
    for shard in (shard for summary in summaries for shard in summary["written"].values()):
        total = cells.setdefault(shard["cell"], {"documents": 0, "bytes": 0, "tokens": 0})
        for name in total:
            total[name] += shard[name]
    return dict(sorted(cells.items()))


def mixture(card: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return what a loader needs: the sampling weight, documents and bytes of each cell."""
    sizes = {cell: written["bytes"] for cell, written in card["written"].items()}
    weights = normalised_shares(card["settings"]["shares"], sizes)
    return {cell: {"weight": weights[cell], **card["written"][cell]} for cell in sizes}


def save_card(card: Mapping[str, Any], folder: Path) -> None:
    """Write card.json and mixture.json into the corpus folder."""
    write_json(folder / "card.json", card)
    write_json(folder / "mixture.json", mixture(card))


def stage_table(card: Mapping[str, Any]) -> Table:
    """Return documents and megabytes kept after each stage, by cell."""
    names = list(card["stages"])
    cells = sorted({cell for kept in card["stages"].values() for cell in kept})
    rows: list[list[Cell]] = []
    for cell in cells:
        counts = [int(card["stages"][name].get(cell, [0, 0, 0])[0]) for name in names]
        sizes = [round(card["stages"][name].get(cell, [0, 0, 0])[1] / 1e6, 3) for name in (names[0], names[-1])]
        written = card["written"].get(cell, {"documents": 0, "bytes": 0})
        rows.append([cell, *counts, written["documents"], *sizes, round(written["bytes"] / 1e6, 3)])
    columns = ["domain/language", *names, "written", "MB read", f"MB after {names[-1]}", "MB written"]
    return Table(columns=columns, rows=rows, title="Documents kept after each stage")


def drop_table(card: Mapping[str, Any]) -> Table:
    """Return the reasons for dropping with documents, bytes and one example each."""
    rows: list[list[Cell]] = []
    for reason, cells in card["dropped"].items():
        sample = card["samples"][reason][0]
        documents, size = (sum(counts[i] for counts in cells.values()) for i in (0, 1))
        rows.append([reason, int(documents), round(size / 1e6, 4), sample[3], " ".join(sample[4].split())[:80]])
    columns = ["reason", "documents", "MB", "value of the example", "an example begins"]
    return Table(columns=columns, rows=sorted(rows, key=lambda row: -int(row[1] or 0)), title="Dropped documents")


def share_table(card: Mapping[str, Any]) -> Table:
    """Return the wanted and the written share of each cell, and the epochs that the mixture asks for."""
    table = mixture(card)
    total = sum(cell["bytes"] for cell in table.values())
    rows: list[list[Cell]] = []
    for name, cell in table.items():
        share = cell["bytes"] / total if total else 0.0
        epochs = cell["weight"] / share if share else None
        rows.append([name, cell["weight"], share, epochs, cell["documents"], cell["bytes"]])
    columns = ["domain/language", "weight", "written share", "epochs a pass", "documents", "bytes"]
    return Table(columns=columns, rows=rows, title="The mixture")


def problem_table(card: Mapping[str, Any]) -> Table:
    """Return the places of the input that were left out."""
    rows: list[list[Cell]] = [[where, what] for where, what in card["problems"]["listed"][:50]]
    return Table(columns=["where", "what"], rows=rows, title="Left out of the input")


def card_scalars(card: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the corpus's figures."""
    read = card["stages"].get("read", {}).values()
    written = card["written"].values()
    scalars = {
        "documents_read": Scalar(value=int(sum(sizes[0] for sizes in read))),
        "documents_written": Scalar(value=sum(cell["documents"] for cell in written)),
        "bytes_read": Scalar(value=int(sum(sizes[1] for sizes in read)), unit="bytes"),
        "bytes_written": Scalar(value=sum(cell["bytes"] for cell in written), unit="bytes"),
        "places_left_out": Scalar(value=sum(card["problems"]["counts"].values())),
        "languages": Scalar(value=len({cell.rpartition("/")[2] for cell in card["written"]})),
        "shards": Scalar(value=len(card["shards"])),
    }
    if card["settings"]["tokenizer"]:
        scalars["tokens_written"] = Scalar(value=sum(cell["tokens"] for cell in written), unit="tokens")
    if card["quality"]:
        scalars["quality_auc"] = Scalar(value=card["quality"]["auc"])
    if card["near_duplicates"]:
        scalars["near_duplicate_clusters"] = Scalar(value=card["near_duplicates"]["num_clusters"])
    return scalars


def warnings_of(card: Mapping[str, Any]) -> list[str]:
    """Say what the user should know of the corpus: small languages, encodings, shares, licences, what was skipped."""
    notes = []
    small: dict[str, int] = {}
    for cell, written in card["written"].items():
        language = cell.rpartition("/")[2]
        small[language] = small.get(language, 0) + written["bytes"]
    few = [f"{language} ({size} bytes)" for language, size in small.items() if size < SMALL_LANGUAGE_BYTES]
    if few:
        notes.append(f"Languages with less than 1 MB after cleaning: {', '.join(few)}. Gather more, or leave them out.")
    for reason, hint in (
        ("encoding", "name their encodings with --encodings, for example utf-8 gb18030 cp1252"),
        ("error", "the documents are listed in card.json; please report them"),
    ):
        number = int(sum(counts[0] for counts in card["dropped"].get(reason, {}).values()))
        if number:
            notes.append(f"{number} documents were dropped by {reason!r}: {hint}.")
    for what, number in sorted(card["problems"]["counts"].items()):
        notes.append(f"{number} places of the input were left out ({what}); they are listed in card.json.")
    shares = card["settings"]["shares"]
    if shares and abs(sum(shares.values()) - 1) > 1e-9:
        listed = ", ".join(f"{cell} {share:.4f}" for cell, share in card["shares"]["wanted"].items())
        notes.append(f"The shares add to {sum(shares.values()):.4g}, not 1; they were scaled to: {listed}.")
    if unknown := card["licenses"].get("unknown"):
        notes.append(f"{unknown} documents name no licence; the card records it as unknown.")
    if card["without_stop_words"]:
        notes.append(
            f"No stop words are known for {', '.join(card['without_stop_words'])}: that rule was skipped there."
        )
    if card["protected"].get("num_short"):
        notes.append(
            f"{card['protected']['num_short']} protected texts are shorter than 13 words and cannot be looked for."
        )
    notes.append(
        "In scripts without spaces 1.5 characters count as a word; the rules of word length and stop words are skipped."
    )
    return notes
