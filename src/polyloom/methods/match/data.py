"""Pairs of texts: the embedded world's, or the user's files in the formats of the field, recognised by themselves."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from polyloom.core.errors import UserError, closest
from polyloom.core.files import json_rows, read_text
from polyloom.core.seeding import python_random
from polyloom.data.duplicates import connected_components
from polyloom.data.world import World, find_task

Task = Literal["classes", "scores"]
FIRST = ("sentence1", "sentence_a", "question1", "premise", "#1 string", "text1", "text_a", "s1", "query", "first")
SECOND = ("sentence2", "sentence_b", "question2", "hypothesis", "#2 string", "text2", "text_b", "s2", "second")
CLASSES = ("gold_label", "entailment_label", "entailment_judgment", "is_duplicate", "quality", "label")
SCORES = ("relatedness_score", "score", "similarity", "similarity_score")
CATEGORY, SPLIT = ("category", "genre"), ("data", "split", "semeval_set")
SPLIT_NAMES = {"train": "train", "trial": "valid", "dev": "valid", "valid": "valid", "validation": "valid"}
UNLABELLED = "-"


@dataclass(frozen=True)
class Pair:
    """Two texts with a class or a score; `where` is file and line."""

    first: str
    second: str
    label: str
    where: str = ""
    category: str = ""
    split: str = ""


@dataclass(frozen=True)
class Pairs:
    """Pairs of one task, and how they were read.

    Attributes:
        items: the pairs.
        task: `classes` or `scores`.
        scale: least and largest score.
        notes: what a user should know of the reading (rows left out, texts cut).
        layout: what was recognised, in words.
    """

    items: list[Pair]
    task: Task
    scale: tuple[float, float] = (0.0, 1.0)
    notes: list[str] = field(default_factory=list)
    layout: str = ""

    def classes(self) -> list[str]:
        """Return the classes by name."""
        return sorted({pair.label for pair in self.items})

    def texts(self) -> list[str]:
        """Return all texts, first and second in turn."""
        return [text for pair in self.items for text in (pair.first, pair.second)]


@dataclass(frozen=True)
class Reading:
    """How to read files: None leaves a choice to detection."""

    first: str | None = None
    second: str | None = None
    label: str | None = None
    side: str = "en"
    task: Task | None = None
    scale: tuple[float, float] | None = None
    skip_bad: bool = False


def world_pairs(
    num_pairs: int, split: str, *, languages: Sequence[str] = ("en",), seed: int = 0, hardness: int | None = None
) -> Pairs:
    """Make pairs of the embedded world that mean the same or differ, each label in turn.

    Args:
        num_pairs: how many.
        split: `train`, `valid` or `test`: no meaning is in two of them.
        languages: each pair is in one of them, in turn; "de-en" sets one text in each.
        seed: of the world.
        hardness: 0 to 3; None: all in turn.
    """
    sides = [code.split("-") if code.count("-") == 1 and len(code) == 5 else [code] for code in languages]
    world, task = World(tuple(dict.fromkeys(code for side in sides for code in side)), seed), find_task("matching")
    items = []
    for index in range(num_pairs):
        # Labels and hardness take turns of 8, languages after them.
        side = sides[index // 8 % len(sides)]
        record = task.make(world, side, index, split, hardness=hardness)
        label = "same" if record["label"] else "different"
        items.append(Pair(record["sentence1"], record["sentence2"], label, category=f"hardness {record['hardness']}"))
    return Pairs(items, "classes", layout=f"embedded world, {'/'.join(languages)}, {split}")


def _rows_of_json(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    return [
        (number, {k.lower(): "" if v is None else str(v) for k, v in row.items()})
        for number, row in json_rows(text, path)
    ]


def _rows_of_table(path: Path, text: str) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """Cut a delimited file into named cells: the header's names, or those that the first row's shape gives."""
    tabs = "\t" in text.split("\n", 1)[0]
    if tabs:
        cut = [(i, line.rstrip("\r").split("\t")) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    else:
        reader = csv.reader(io.StringIO(text), strict=False)
        cut = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    if not cut:
        return [], ""
    names = [cell.strip().lower() for cell in cut[0][1]]
    has_header = any(name.startswith(SECOND) for name in names) or "label" in names
    if has_header:
        cut = cut[1:]
    else:
        names = _names_by_shape(path, [cells for _, cells in cut])
    layout = f"{'tabs, quoting off' if tabs else 'commas'}, {'header' if has_header else 'no header'}"
    rows = [(number, dict(zip(names, cells, strict=False))) for number, cells in cut]
    return rows, layout


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _names_by_shape(path: Path, cut: list[list[str]]) -> list[str]:
    """Name the columns of a file without a header: label, id, id, text, text (MSRP); text, text, label."""
    width = Counter(len(cells) for cells in cut).most_common(1)[0][0]
    sample = [cells for cells in cut[:50] if len(cells) == width]
    if width == 5 and all(_is_number(cell) for cells in sample for cell in cells[:3]):
        return ["label", "id1", "id2", "sentence1", "sentence2"]
    if width == 3:
        return ["sentence1", "sentence2", "label"]
    if width == 4 and all(_is_number(cells[0]) for cells in sample):
        return ["id", "sentence1", "sentence2", "label"]
    if width == 2:
        return ["sentence1", "sentence2"]
    raise UserError(
        f"has {width} columns and no header that names the texts.",
        where=str(path),
        hint="Name the columns in a first line: sentence1, sentence2, label.",
    )


def _find_column(names: Iterable[str], wanted: Sequence[str], side: str) -> str | None:
    """Return the column by the first known name; `_en` and the like behind it choose the side's."""
    present = list(names)
    for name in wanted:
        for candidate in (name, f"{name}_{side.lower()}"):
            if candidate in present:
                return candidate
    return None


def _chosen(asked: str | None, names: Sequence[str], wanted: Sequence[str], what: str, path: Path, side: str) -> str:
    if asked is not None:
        if asked.lower() not in names:
            raise UserError(f"has no column {asked!r}.", where=str(path), hint=closest(asked, names))
        return asked.lower()
    found = _find_column(names, wanted, side)
    if found is None:
        hint = f"Its columns are: {', '.join(names)}. Name it with --{what}."
        raise UserError(f"has no column that is known to hold the {what} text or label.", where=str(path), hint=hint)
    return found


def read_pairs(path: Path, reading: Reading | None = None) -> Pairs:
    """Read a file of labelled pairs.

    SNLI and MNLI (json lines or text), SICK, JSICK, STSb, KorSTS, JSTS, JNLI, OCNLI, KorNLI, MSRP (quotes kept), QQP,
    LCQMC, BQ, PAWS, SciTail and plain columns are recognised.

    Args:
        path: `.jsonl` or `.json` with one object a line; else a table cut at tabs or commas.
        reading: columns, side and scale where detection is not to choose.

    Raises:
        UserError: no such columns, rows with one text alone, scores that are no numbers or outside the scale (file,
            line and value are named), no rows.
    """
    reading = reading or Reading()
    text = read_text(path)
    if text.lstrip().startswith("{"):
        rows, layout = _rows_of_json(path, text), "JSON lines"
    else:
        rows, layout = _rows_of_table(path, text)
    if not rows:
        raise UserError("holds no pairs.", where=str(path))
    names = list(dict.fromkeys(name for _, row in rows[:50] for name in row))
    first = _chosen(reading.first, names, FIRST, "first", path, reading.side)
    second = _chosen(reading.second, names, SECOND, "second", path, reading.side)
    wanted = SCORES if reading.task == "scores" else (*CLASSES, *SCORES)
    label = _chosen(reading.label, names, (*wanted, "label"), "label", path, reading.side)
    category, split = _find_column(names, CATEGORY, ""), _find_column(names, SPLIT, "")
    items = [
        Pair(
            row.get(first, "").strip(),
            row.get(second, "").strip(),
            row.get(label, "").strip(),
            f"{path}:{number}",
            row.get(category, "") if category else "",
            SPLIT_NAMES.get(row.get(split, "").lower(), "test") if split else "",
        )
        for number, row in rows
    ]
    layout += f"; texts in {first!r} and {second!r}, label in {label!r}"
    return _checked(items, reading, label, layout)


def _checked(items: list[Pair], reading: Reading, label: str, layout: str) -> Pairs:
    notes: list[str] = []
    items = _without(
        items, reading, notes, lambda pair: not (pair.first and pair.second and pair.label), "lack a text or the label"
    )
    dropped = sum(pair.label == UNLABELLED for pair in items)
    items = [pair for pair in items if pair.label != UNLABELLED]
    if dropped:
        notes.append(f"{dropped} rows are labelled '-' (no agreement) and were left out.")
    task = reading.task or _guess_task(items, label)
    if task == "classes":
        return Pairs(items, task, notes=notes, layout=layout + ", classes")

    def unreadable(pair: Pair) -> bool:
        return not _is_number(pair.label) or not math.isfinite(float(pair.label))

    items = _without(items, reading, notes, unreadable, "have a score that is no number", show_label=True)
    values = [float(pair.label) for pair in items]
    low, high = reading.scale or (0.0, 1.0 if max(values, default=0) <= 1 else 5.0)
    items = _without(
        items,
        reading,
        notes,
        lambda pair: not low <= float(pair.label) <= high,
        f"have a score outside the scale {low:g} to {high:g}",
        show_label=True,
    )
    return Pairs(items, task, (low, high), notes, layout + f", scores {low:g} to {high:g}")


def _without(
    items: list[Pair],
    reading: Reading,
    notes: list[str],
    is_bad: Callable[[Pair], bool],
    what: str,
    show_label: bool = False,
) -> list[Pair]:
    """Leave bad rows out, or refuse them; either way each of the first ones is named."""
    bad = [pair for pair in items if is_bad(pair)]
    if not bad:
        return items
    shown = ", ".join(pair.where.rpartition(":")[2] + (f" ({pair.label!r})" if show_label else "") for pair in bad[:10])
    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
    message = f"{len(bad)} rows {what}: lines {shown}{more}."
    if not reading.skip_bad:
        hint = "Mend them, or leave them out with --skip-bad."
        raise UserError(message, where=bad[0].where.rpartition(":")[0], hint=hint)
    notes.append(message + " They were left out.")
    return [pair for pair in items if not is_bad(pair)]


def _guess_task(items: Sequence[Pair], label: str) -> Task:
    """Call labels scores where they are not whole numbers, or are many."""
    if any(label.startswith(name) for name in SCORES):
        return "scores"
    values = {pair.label for pair in items}
    numeric = all(_is_number(value) for value in values)
    return "scores" if numeric and (len(values) > 10 or any(float(v) % 1 for v in values)) else "classes"


def check_classes(pairs: Pairs) -> None:
    """Refuse a training set that has one class alone.

    Raises:
        UserError: it does, or there are no pairs.
    """
    if not pairs.items:
        raise UserError("no labelled pairs are left to train on.")
    if len({pair.label for pair in pairs.items}) == 1:
        where = pairs.items[0].where.rpartition(":")[0]
        raise UserError(
            f"all rows are labelled {pairs.items[0].label!r}.", where=where, hint="Two are needed to learn."
        )


def split_pairs(pairs: Pairs, seed: int = 0) -> dict[str, Pairs]:
    """Split one file: by its own split column, or 80/10/10 by connected components, so that no text is in two splits.

    Args:
        pairs: all pairs.
        seed: of the order of the components.
    """
    if any(pair.split for pair in pairs.items):
        return {
            name: replace(pairs, items=[pair for pair in pairs.items if pair.split == name])
            for name in ("train", "valid", "test")
        }
    numbers: dict[str, int] = {}
    sides = [
        (numbers.setdefault(pair.first, len(numbers)), numbers.setdefault(pair.second, len(numbers)))
        for pair in pairs.items
    ]
    roots = connected_components(len(numbers), sides).tolist()
    components: dict[int, list[Pair]] = defaultdict(list)
    for pair, (first, _) in zip(pairs.items, sides, strict=True):
        components[roots[first]].append(pair)
    groups = sorted(components.values(), key=len, reverse=True)
    # The largest components stay in training: held out, one of them could take the whole share.
    head = sum(len(group) > 0.05 * len(pairs.items) for group in groups)
    tail = groups[head:]
    python_random(seed, "split").shuffle(tail)
    parts: dict[str, list[Pair]] = {
        "train": [pair for group in groups[:head] for pair in group],
        "valid": [],
        "test": [],
    }
    wanted = max(1, len(pairs.items) // 10)
    for group in tail:
        name = next((name for name in ("test", "valid") if len(parts[name]) < wanted), "train")
        parts[name] += group
    return {name: replace(pairs, items=items) for name, items in parts.items()}


def leaks(train: Pairs, test: Pairs) -> tuple[int, int]:
    """Count the test pairs that training holds as well (also swapped), and those that share a single text with it."""
    seen = {frozenset((pair.first, pair.second)) for pair in train.items}
    texts = set(train.texts())
    same = sum(frozenset((pair.first, pair.second)) in seen for pair in test.items)
    return same, sum(pair.first in texts or pair.second in texts for pair in test.items)


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Read a corpus: `id<tab>text` lines, json lines with `text`, or one text a line (numbered from 1).

    Returns:
        The ids and the texts.

    Raises:
        UserError: no texts, or an id twice.
    """
    ids, texts = [], []
    lines = [(i, line) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    for number, line in lines:
        if path.suffix in (".jsonl", ".json"):
            row: Mapping[str, Any] = dict(_rows_of_json(path, line)[0][1])
            if "text" not in row:
                raise UserError("has no key 'text'.", where=f"{path}:{number}")
            name, text = str(row.get("id", number)), str(row["text"])
        elif "\t" in line:
            name, text = line.split("\t", 1)
        else:
            name, text = str(number), line
        ids.append(name.strip())
        texts.append(text.strip())
    if not texts:
        raise UserError("holds no texts.", where=str(path))
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"has the id {twice[0]!r} twice ({len(twice)} such ids).", where=str(path))
    return ids, texts
