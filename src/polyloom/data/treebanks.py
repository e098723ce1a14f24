"""CoNLL-U treebanks: reading, checking and repairing trees, writing, and attachment scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.data.records import UPOS, Range, Sentence

NUM_COLUMNS = 10
MISSING = -1
# Above this share of words whose tag is none of the 17 the column holds another tag set.
WRONG_TAG_SET_ABOVE = 0.5
_KNOWN = frozenset(UPOS)


@dataclass(frozen=True)
class Treebank:
    """Sentences of a CoNLL-U file, with what was repaired by kind; `places` names the first of them."""

    sentences: tuple[Sentence, ...]
    repairs: Counter[str] = field(default_factory=Counter)
    places: tuple[str, ...] = ()


MAX_PLACES = 20


def repair_heads(heads: Sequence[int]) -> tuple[tuple[int, ...], Counter[str]]:
    """Make a forest of any list of heads, and say what had to be done.

    A head that is missing or out of range, and the lowest word of each cycle, are hung on the root. Several roots stay
    (each hangs on the root of the sequence) and are counted.

    Args:
        heads: 1 to n, 0 for the root, `MISSING` for none; whatever the file says.

    Returns:
        Heads without a cycle, and the number of faults by kind: `missing heads`, `heads out of range`, `cycles`,
        `sentences without a root`, `extra roots`.
    """
    faults: Counter[str] = Counter()
    mended = list(heads)
    if heads and 0 not in heads:
        faults["sentences without a root"] += 1
    extra = max(0, sum(head == 0 for head in heads) - 1)
    if extra:
        faults["extra roots"] += extra
    for i, head in enumerate(heads):
        if head == MISSING:
            faults["missing heads"] += 1
        elif not 0 <= head <= len(heads):
            faults["heads out of range"] += 1
        if not 0 <= head <= len(heads):
            mended[i] = 0
    for word in _lowest_of_cycles(mended):
        mended[word - 1] = 0
        faults["cycles"] += 1
    return tuple(mended), faults


def _lowest_of_cycles(heads: Sequence[int]) -> list[int]:
    """Return the lowest word of each cycle; every word has one head, so a walk of 3 colours finds each once."""
    walk_of = [0] * (len(heads) + 1)
    lowest = []
    for start in range(1, len(heads) + 1):
        at = start
        while at and not walk_of[at]:
            walk_of[at] = start
            at = heads[at - 1]
        if at and walk_of[at] == start:
            members = [at]
            while heads[members[-1] - 1] != at:
                members.append(heads[members[-1] - 1])
            lowest.append(min(members))
    return lowest


def read_conllu(path: Path, *, strict: bool = False) -> Treebank:
    """Read a CoNLL-U file; multiword tokens become ranges, empty nodes are left out.

    Args:
        path: the file; a byte-order mark and CRLF are accepted.
        strict: refuse a faulty tree or tag in place of repairing and counting it.

    Raises:
        UserError: not CoNLL-U (file and line), no sentence, most tags of another tag set, or, under `strict`, the first
            fault with its file, line and sentence.
    """
    text = read_text(path).replace("\r\n", "\n")
    sentences: list[Sentence] = []
    repairs: Counter[str] = Counter()
    places: list[str] = []
    for block in _blocks(text):
        sentence, faults = _parse(block, path, len(sentences) + 1)
        if faults:
            what = ", ".join(f"{number} {kind}" for kind, number in faults.items())
            if strict:
                raise UserError(f"{what} in sentence {sentence.id}.", where=sentence.source, hint="Mend the tree.")
            places.append(f"{sentence.source} ({sentence.id}): {what}")
        repairs += faults
        sentences.append(sentence)
    if not sentences:
        raise UserError("holds no sentence.", where=str(path), hint="CoNLL-U has ten TAB-separated columns.")
    num_words = sum(len(sentence.words) for sentence in sentences)
    if repairs["unknown parts of speech"] > WRONG_TAG_SET_ABOVE * num_words:
        odd = next(tag for block in _blocks(text) for tag in _tags(block) if tag not in _KNOWN)
        hint = "Column 4 holds one of the 17 universal tags, such as NOUN."
        raise UserError(f"its parts of speech are another tag set ({odd!r}).", where=str(path), hint=hint)
    return Treebank(tuple(sentences), repairs, tuple(places[:MAX_PLACES]))


class _Line(NamedTuple):
    number: int
    text: str


def _blocks(text: str) -> Iterator[list[_Line]]:
    block: list[_Line] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            block.append(_Line(number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _tags(block: Iterable[_Line]) -> Iterator[str]:
    for line in block:
        cells = line.text.split("\t")
        if cells[0].isdecimal():
            yield cells[3]


def _parse(block: Sequence[_Line], path: Path, index: int) -> tuple[Sentence, Counter[str]]:
    comments: dict[str, str] = {}
    words: list[list[str]] = []
    ranges: list[Range] = []
    for line in block:
        if line.text.startswith("#"):
            key, _, value = line.text[1:].partition("=")
            comments.setdefault(key.strip(), value.strip())
            continue
        where = f"{path}:{line.number}"
        cells = line.text.split("\t")
        if len(cells) != NUM_COLUMNS:
            hint = "CoNLL-U has ten, separated by TAB."
            raise UserError(f"has {len(cells)} columns.", where=where, hint=hint)
        if cells[0].isdecimal():
            if int(cells[0]) != len(words) + 1:
                raise UserError(f"word {cells[0]} follows word {len(words)}.", where=where, hint="Count from 1.")
            words.append(cells)
        elif "-" in cells[0]:
            ranges.append(_range(cells, where))
        elif "." not in cells[0]:
            raise UserError(f"{cells[0]!r} is no number of a word.", where=where)
    name = comments.get("sent_id") or str(index)
    source = f"{path}:{block[0].number}"
    if not words:
        raise UserError(f"sentence {name} has no word.", where=source)
    for one in ranges:
        if one.end > len(words):
            raise UserError(f"sentence {name}: words {one.start}-{one.end} are not all there.", where=source)
    return _sentence(words, tuple(ranges), comments, name, source)


def _sentence(
    rows: Sequence[Sequence[str]], ranges: tuple[Range, ...], comments: dict[str, str], name: str, source: str
) -> tuple[Sentence, Counter[str]]:
    heads, faults = repair_heads([_head(row[6]) for row in rows])
    # A file of words and tags alone has no tree: that is no fault.
    if faults["missing heads"] == len(rows):
        heads, faults = (), Counter()
    odd = sum(row[3] not in _KNOWN for row in rows)
    no_tags = all(row[3] == "_" for row in rows)
    if odd and not no_tags:
        faults["unknown parts of speech"] += odd
    sentence = Sentence(
        words=tuple(row[1] for row in rows),
        upos=() if no_tags else tuple(row[3] if row[3] in _KNOWN else "_" for row in rows),
        heads=heads,
        deprels=tuple(row[7] for row in rows) if heads else (),
        id=name,
        text=comments.get("text", ""),
        ranges=ranges,
        source=source,
    )
    return sentence, faults


def _range(cells: Sequence[str], where: str) -> Range:
    start, _, end = cells[0].partition("-")
    if not (start.isdecimal() and end.isdecimal() and 0 < int(start) < int(end)):
        raise UserError(f"{cells[0]!r} is no range of words.", where=where)
    return Range(int(start), int(end), cells[1])


def _head(cell: str) -> int:
    if cell in ("_", ""):
        return MISSING
    # Any number outside the sentence is out of range; a word in place of a number is, too.
    return int(cell) if cell.isdecimal() else -2


def universal(deprel: str) -> str:
    """Return a relation without its subtype: `nmod:poss` is `nmod`."""
    return deprel.partition(":")[0]


def conllu(sentences: Iterable[Sentence]) -> str:
    """Write sentences as CoNLL-U; what is not known is `_`.

    Args:
        sentences: the sentences; `read_conllu` reads back equal words, tags, heads, relations, ids, texts and ranges.
    """
    lines: list[str] = []
    for sentence in sentences:
        if sentence.id:
            lines.append(f"# sent_id = {sentence.id}")
        if sentence.text:
            lines.append(f"# text = {sentence.text}")
        starts = {one.start: one for one in sentence.ranges}
        for i, word in enumerate(sentence.words, start=1):
            if i in starts:
                cells = [f"{i}-{starts[i].end}", starts[i].form, *["_"] * 8]
                lines.append("\t".join(cells))
            upos = sentence.upos[i - 1] if sentence.upos else "_"
            head = str(sentence.heads[i - 1]) if sentence.heads else "_"
            deprel = sentence.deprels[i - 1] if sentence.deprels else "_"
            lines.append("\t".join((str(i), word, "_", upos, "_", "_", head, deprel, "_", "_")))
        lines.append("")
    return "\n".join(lines) + "\n"


class Attachment(NamedTuple):
    """Shares of words, 0 to 1: right head (UAS), right head and universal relation (LAS), right part of speech."""

    uas: float
    las: float
    upos: float
    num_words: int


def attachment(gold: Sequence[Sentence], predicted: Sequence[Sentence]) -> Attachment:
    """Score trees against gold ones over the same words, punctuation included.

    Args:
        gold: sentences with heads, relations and parts of speech.
        predicted: the same sentences in the same order.

    Raises:
        UserError: the sentences are not the same words.
    """
    if len(gold) != len(predicted):
        raise UserError(f"{len(predicted)} trees were predicted for {len(gold)} sentences.")
    words = heads = labelled = tags = 0
    for one, other in zip(gold, predicted, strict=True):
        if one.words != other.words:
            raise UserError("the words of the predicted tree are others.", where=one.source or one.id)
        words += len(one.words)
        for i in range(len(one.words)):
            right = bool(other.heads) and one.heads[i] == other.heads[i]
            heads += right
            labelled += right and universal(one.deprels[i]) == universal(other.deprels[i])
            tags += bool(other.upos) and one.upos[i] == other.upos[i]
    if not words:
        raise UserError("there is no word to score.")
    return Attachment(heads / words, labelled / words, tags / words, words)


def join_trees(sentences: Sequence[Sentence], trees: Sequence[Sentence]) -> tuple[list[Sentence], int]:
    """Give labelled sentences the trees of a treebank, matched by their words: ids and order may differ.

    Args:
        sentences: sentences with labels.
        trees: the treebank; where words occur twice, the trees are used in turn.

    Returns:
        Sentences that have a tree, in their order, and the number of those without one.
    """
    by_words: dict[tuple[str, ...], list[Sentence]] = {}
    for tree in trees:
        by_words.setdefault(tree.words, []).append(tree)
    used: Counter[tuple[str, ...]] = Counter()
    joined = []
    for sentence in sentences:
        found = by_words.get(sentence.words)
        if found:
            tree = found[used[sentence.words] % len(found)]
            used[sentence.words] += 1
            joined.append(replace(sentence, upos=tree.upos, heads=tree.heads, deprels=tree.deprels, ranges=tree.ranges))
    return joined, len(sentences) - len(joined)
