"""Readers of labelled text: IOB2 (UNER), PAN-X, Facebook's task-oriented data, MTOP, XNLI, PAWS-X and JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from polyloom.core.errors import UserError, closest
from polyloom.core.files import json_rows, read_text
from polyloom.data.records import OUTSIDE, Example, Examples, Sentence, split_words
from polyloom.data.treebanks import read_conllu, repair_heads

LabelledFormat = Literal[
    "auto", "iob2", "panx", "facebook", "mtop", "xnli", "xnli-mt", "paws-x", "pairs", "jsonl", "conllu"
]
NO_LABEL = "NoLabel"
NLI_LABELS = {"contradictory": "contradiction"}
UNDECIDED = "-"
NO_SENTENCE = "NS"
Rows = Iterator[Example | str]
"""Examples, and for each row that was dropped the reason."""


def read_labelled(
    path: Path, *, format: LabelledFormat = "auto", language: str = "und", strict: bool = False
) -> Examples:
    """Read a file of labelled examples.

    Args:
        path: the file, UTF-8; a byte-order mark and CRLF are accepted. Of a folder, each `.txt` file holds the texts
            of the class that it is named after, one a line.
        format: `iob2` (number, token, tag), `panx` (language:token, tag), `facebook` (task-oriented blocks), `mtop`,
            `xnli` (XNLI-1.0), `xnli-mt` (its translated training file), `paws-x`, `pairs` (two texts and a label),
            `jsonl`, `conllu` (trees without labels); `auto` looks at the file.
        language: of the examples, where the file does not say.
        strict: refuse a faulty tree or tag in place of repairing and counting it.

    Returns:
        The examples in order, with the reasons of those that were dropped or repaired.

    Raises:
        UserError: a line that does not fit (file and line), no example, an unknown format, or, under `strict`, a fault.
    """
    if path.is_dir():
        return _from_folder(path, language)
    if format == "conllu" or (format == "auto" and path.name.endswith(".conllu") and not _is_facebook(path)):
        return _from_treebank(path, language, strict)
    text = read_text(path).replace("\r\n", "\n")
    chosen = _detect(path, text) if format == "auto" else format
    if chosen not in _READERS:
        raise UserError(f"there is no format {chosen!r}.", where="--format", hint=closest(chosen, _READERS))
    notices: Counter[str] = Counter()
    examples: list[Example] = []
    for row in _READERS[chosen](text, path):
        if isinstance(row, str):
            notices[row] += 1
        else:
            examples.append(row if row.language != "und" else replace(row, language=language))
    if not examples:
        raise UserError("holds no example.", where=str(path), hint=f"It was read as {chosen}.")
    repaired = [_repaired(example, notices, strict) for example in examples]
    return Examples(tuple(repaired), chosen, notices)


def _from_treebank(path: Path, language: str, strict: bool) -> Examples:
    bank = read_conllu(path, strict=strict)
    examples = tuple(Example(one.id, (one,), language=language) for one in bank.sentences)
    return Examples(examples, "conllu", _repairs(bank.repairs))


def _repairs(faults: Counter[str]) -> Counter[str]:
    return Counter({f"{kind} in trees, repaired": number for kind, number in faults.items()})


def _from_folder(path: Path, language: str) -> Examples:
    files = sorted(path.glob("*.txt"))
    examples = [
        Example(f"{file.stem}-{number}", (_text_sentence(line.strip(), file.stem, where),), file.stem, language)
        for file in files
        for number, (where, line) in enumerate(_lines(read_text(file).replace("\r\n", "\n"), file), start=1)
        if line.strip()
    ]
    if not examples:
        raise UserError("holds no .txt file with texts.", where=str(path), hint="Name a file, or CLASS.txt files.")
    return Examples(tuple(examples), "folder")


def _is_facebook(path: Path) -> bool:
    return read_text(path)[:4000].lstrip().startswith("# text:")


def _detect(path: Path, text: str) -> str:
    first = next((line for line in text.split("\n") if line.strip()), "")
    rows = [line.split("\t") for line in text.split("\n")[:50] if line.strip() and not line.startswith("#")]
    header = {cell.strip().lower() for cell in rows[0]} if rows else set()
    if first.startswith("{"):
        return "jsonl"
    if first.startswith("# text:"):
        return "facebook"
    if {"gold_label", "sentence1"} <= header:
        return "xnli"
    if {"premise", "hypo"} <= header:
        return "xnli-mt"
    if {"sentence1", "sentence2", "label"} <= header:
        return "paws-x"
    if rows and len(rows[0]) == 8 and rows[0][1].startswith("IN:"):
        return "mtop"
    if rows and all(len(row) >= 3 and row[0].isdecimal() for row in rows):
        return "iob2"
    if rows and all(len(row) == 2 for row in rows):
        return "panx"
    if rows and all(len(row) == 3 for row in rows):
        return "pairs"
    hint = "Name its format with --format: iob2, panx, facebook, mtop, xnli, xnli-mt, paws-x, pairs or jsonl."
    raise UserError("its format is not known.", where=str(path), hint=hint)


def _lines(text: str, path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        yield f"{path}:{number}", line


# ---- trees and BIO tags


def _repaired(example: Example, notices: Counter[str], strict: bool) -> Example:
    """Make a forest of any heads, and let an `I-` that continues nothing begin its span, as the CoNLL rules read it.

    Raises:
        UserError: under `strict`, the first fault.
    """
    sentences = []
    for sentence in example.sentences:
        heads, repairs = repair_heads(sentence.heads)
        faults, tags = _repairs(repairs), list(sentence.labels)
        for i, tag in enumerate(tags):
            if tag[:2] == "I-" and (i == 0 or tags[i - 1][2:] != tag[2:] or tags[i - 1][:2] not in ("B-", "I-")):
                tags[i] = f"B-{tag[2:]}"
                faults["I- tags that continue no span, read as B-"] += 1
        if faults and strict:
            what = ", ".join(f"{number} {kind.partition(',')[0]}" for kind, number in faults.items())
            raise UserError(f"{what} in sentence {sentence.id}.", where=sentence.source, hint="Mend it.")
        notices.update(faults)
        sentences.append(replace(sentence, heads=heads, labels=tuple(tags)) if faults else sentence)
    return replace(example, sentences=tuple(sentences))


def _tag(cell: str, where: str) -> str:
    tag = cell.strip()
    if tag in (OUTSIDE, NO_LABEL, "_"):
        return OUTSIDE
    if tag[:2] not in ("B-", "I-") or len(tag) < 3:
        raise UserError(f"{cell!r} is no BIO tag.", where=where, hint="Write O, B-NAME or I-NAME.")
    return tag


# ---- word by word: IOB2, PAN-X, Facebook

Block = list[tuple[str, str]]


def _blocks(text: str, path: Path) -> Iterator[Block]:
    block: Block = []
    for where, line in _lines(text, path):
        if line.strip():
            block.append((where, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _comments(block: Block, separator: str) -> dict[str, str]:
    pairs = (line[1:].partition(separator) for _, line in block if line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_iob2(text: str, path: Path) -> Rows:
    for index, block in enumerate(_blocks(text, path), start=1):
        comments = _comments(block, "=")
        words, tags = [], []
        for where, line in block:
            if line.startswith("#") and "\t" not in line:
                continue
            cells = line.split("\t")
            if len(cells) < 3:
                raise UserError(f"has {len(cells)} columns.", where=where, hint="Write number, token and tag.")
            words.append(cells[1])
            tags.append(_tag(cells[2], where))
        if not words:
            yield "blocks without a word"
            continue
        name = comments.get("sent_id") or str(index)
        yield _tagged(name, words, tags, comments.get("text", ""), block[0][0])


def _tagged(name: str, words: Sequence[str], tags: Sequence[str], text: str, source: str, label: str = "") -> Example:
    sentence = Sentence(tuple(words), labels=tuple(tags), id=name, text=text, source=source)
    return Example(name, (sentence,), label)


def _read_panx(text: str, path: Path) -> Rows:
    for index, block in enumerate(_blocks(text, path), start=1):
        words, tags = [], []
        for where, line in block:
            cells = line.split("\t")
            if len(cells) != 2:
                raise UserError(f"has {len(cells)} columns.", where=where, hint="Write language:token and tag.")
            prefix, colon, word = cells[0].partition(":")
            has_prefix = bool(colon and word) and prefix.isascii() and prefix.replace("-", "").isalpha()
            words.append(word if has_prefix and len(prefix) <= 12 and prefix.islower() else cells[0])
            tags.append(_tag(cells[1], where))
        yield _tagged(str(index), words, tags, "", block[0][0])


def _read_facebook(text: str, path: Path) -> Rows:
    for index, block in enumerate(_blocks(text, path), start=1):
        comments = _comments(block, ":")
        words, tags = [], []
        for where, line in block:
            if line.startswith("#") and "\t" not in line:
                continue
            cells = line.split("\t")
            if len(cells) != 4:
                hint = "Write number, token, intent and tag."
                raise UserError(f"has {len(cells)} columns.", where=where, hint=hint)
            words.append(cells[1])
            tags.append(_tag(cells[3], where))
        if "intent" not in comments or not words:
            raise UserError("its utterance has no intent or no token.", where=block[0][0])
        yield _tagged(str(index), words, tags, comments.get("text", ""), block[0][0], comments["intent"])


# ---- MTOP


def _read_mtop(text: str, path: Path) -> Rows:
    for where, line in _lines(text, path):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 8:
            raise UserError(f"has {len(cells)} columns.", where=where, hint="MTOP has eight, separated by TAB.")
        name, intent, slots, utterance, _, locale, _, tokenised = cells
        try:
            parsed = json.loads(tokenised)
            words = [str(token) for token in parsed["tokens"]]
            spans = [(int(one["start"]), int(one["start"]) + int(one["length"])) for one in parsed["tokenSpans"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("its last column holds no tokens and tokenSpans.", where=where) from error
        if len(words) != len(spans) or not words:
            raise UserError(f"has {len(words)} tokens and {len(spans)} spans.", where=where)
        tags = mtop_tags(spans, _mtop_slots(slots, where))
        yield replace(_tagged(name, words, tags, utterance, where, intent), language=locale.split("_")[0] or "und")


def _mtop_slots(text: str, where: str) -> list[tuple[int, int, str]]:
    slots = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        cells = part.split(":")
        if len(cells) < 4 or not (cells[0].isdecimal() and cells[1].isdecimal()):
            raise UserError(f"{part!r} is no slot.", where=where, hint="Write start:end:SL:NAME.")
        slots.append((int(cells[0]), int(cells[1]), cells[3]))
    return slots


def mtop_tags(spans: Sequence[tuple[int, int]], slots: Sequence[tuple[int, int, str]]) -> list[str]:
    """Turn MTOP's character slots into BIO tags.

    Args:
        spans: first character and end of each token.
        slots: first character, end and name of each slot.

    Returns:
        `B-` where a token begins with its slot; `I-` inside it behind a token of the same slot; else `O`.
    """
    tags: list[str] = []
    for start, end in spans:
        tag = OUTSIDE
        for first, last, name in slots:
            if start == first:
                tag = f"B-{name}"
            elif first < start and end <= last and tags and tags[-1] in (f"B-{name}", f"I-{name}"):
                tag = f"I-{name}"
        tags.append(tag)
    return tags


# ---- pairs of texts


def _text_sentence(text: str, name: str, where: str) -> Sentence:
    return Sentence(split_words(text), id=name, text=text, source=where)


def _pair(name: str, first: str, second: str, label: str, where: str) -> Example:
    return Example(name, (_text_sentence(first, name, where), _text_sentence(second, name, where)), label)


def _table(text: str, path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    header: list[str] = []
    for where, line in _lines(text, path):
        if not line.strip():
            continue
        cells = line.split("\t")
        if not header:
            header = [cell.strip() for cell in cells]
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(f"has no column {missing[0]!r}.", where=where, hint="Its first line names the columns.")
        elif len(cells) != len(header):
            raise UserError(f"has {len(cells)} columns for {len(header)} names.", where=where)
        else:
            yield where, dict(zip(header, cells, strict=True))


def _read_xnli(text: str, path: Path) -> Rows:
    for index, (where, row) in enumerate(_table(text, path, ("gold_label", "sentence1", "sentence2")), start=1):
        if row["gold_label"] == UNDECIDED:
            yield "pairs without a gold label, dropped"
            continue
        name = f"{row.get('language', '')}-{row.get('pairID') or index}".lstrip("-")
        example = _pair(name, row["sentence1"], row["sentence2"], row["gold_label"], where)
        yield replace(example, language=row.get("language") or "und")


def _read_xnli_mt(text: str, path: Path) -> Rows:
    for index, (where, row) in enumerate(_table(text, path, ("premise", "hypo", "label")), start=1):
        yield _pair(str(index), row["premise"], row["hypo"], NLI_LABELS.get(row["label"], row["label"]), where)


def _read_paws_x(text: str, path: Path) -> Rows:
    for where, row in _table(text, path, ("id", "sentence1", "sentence2", "label")):
        if NO_SENTENCE in (row["sentence1"].strip(), row["sentence2"].strip()):
            yield "pairs with an untranslated sentence (NS), dropped"
        else:
            yield _pair(row["id"], row["sentence1"], row["sentence2"], row["label"], where)


def _read_pairs(text: str, path: Path) -> Rows:
    for index, (where, line) in enumerate(_lines(text, path), start=1):
        if line.strip():
            cells = line.split("\t")
            if len(cells) != 3:
                raise UserError(f"has {len(cells)} columns.", where=where, hint="Write two texts and a label.")
            yield _pair(str(index), cells[0], cells[1], NLI_LABELS.get(cells[2], cells[2]), where)


# ---- JSON lines

_KEYS = {
    "words": ("words", "tokens"),
    "upos": ("upos", "postag"),
    "heads": ("heads", "head"),
    "deprels": ("deprels", "deprel", "deptag"),
    "labels": ("labels", "ner_tags", "tags"),
    "label": ("label", "intent"),
}
_PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"), ("text_a", "text_b"))


def _read_jsonl(text: str, path: Path) -> Rows:
    for number, row in json_rows(text, path):
        yield _record(row, f"{path}:{number}", str(number))


def from_record(row: Mapping[str, Any], where: str, name: str = "") -> Example:
    """Make an example of a record of JSON lines, of a Hugging Face data set or of the embedded world.

    Args:
        row: words (`words`, `tokens`) or a text (`text`, or two: `premise`/`hypothesis`, `sentence1`/`sentence2`,
            `text`/`text_pair`; each a string or an object with `text` and `tokens`); optional `upos`, `heads`,
            `deprels`, `labels` (`ner_tags`, `tags`, or a list under `label`), `label` (`intent`), `id`, `language`.
        where: place for messages.
        name: the id where the record has none.

    Returns:
        The example; faulty heads and tags are repaired as `read_labelled` does.

    Raises:
        UserError: neither words nor text, or a column that does not fit its words.
    """
    return _repaired(_record(row, where, name), Counter(), strict=False)


def _record(row: Mapping[str, Any], where: str, name: str) -> Example:
    name = str(row.get("id", row.get("sent_id", name)))
    pair = next((keys for keys in _PAIRS if keys[1] in row), None)
    parts: Sequence[Any] = [row.get(key) for key in pair] if pair else [row]
    sentences = tuple(_sentence_of(part, name, where) for part in parts)
    value = _get(row, "label")
    label = "" if value is None or isinstance(value, list) else str(value)
    return Example(name, sentences, label, str(row.get("language", row.get("lang", "und"))))


def _get(row: Mapping[str, Any], key: str) -> Any:
    return next((row[name] for name in _KEYS[key] if row.get(name) is not None), None)


def _sentence_of(part: Any, name: str, where: str) -> Sentence:
    if isinstance(part, str):
        return _text_sentence(part, name, where)
    if not isinstance(part, Mapping):
        raise UserError("has no words and no text.", where=where, hint='Give "words", "text" or two texts.')
    words, text = _get(part, "words"), part.get("text")
    if words is None and isinstance(text, str):
        words = split_words(text)
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UserError("has no words and no text.", where=where, hint='Give "words", "text" or two texts.')
    labels = _get(part, "labels")
    if labels is None and isinstance(part.get("label"), list):
        labels = part["label"]
    heads = _column(_get(part, "heads"), "heads", where)
    if not all(isinstance(head, int) for head in heads):
        raise UserError("its heads are no numbers.", where=where)
    return Sentence(
        tuple(words),
        upos=tuple(map(str, _column(_get(part, "upos"), "upos", where))),
        heads=tuple(heads),
        deprels=tuple(map(str, _column(_get(part, "deprels"), "deprels", where))),
        labels=tuple(map(str, _column(labels, "labels", where))),
        id=name,
        text=text if isinstance(text, str) else "",
        source=where,
    )


def _column(value: Any, name: str, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise UserError(f"its {name} are no list.", where=where, hint="Give one for each word.")
    return value


_READERS: dict[str, Callable[[str, Path], Rows]] = {
    "iob2": _read_iob2,
    "panx": _read_panx,
    "facebook": _read_facebook,
    "mtop": _read_mtop,
    "xnli": _read_xnli,
    "xnli-mt": _read_xnli_mt,
    "paws-x": _read_paws_x,
    "pairs": _read_pairs,
    "jsonl": _read_jsonl,
}
