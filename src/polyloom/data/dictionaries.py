"""Readers of bilingual dictionaries: MUSE, FreeDict (dictd and TEI), Wiktextract, Wiktionary text, CSV and PanLex.

All are parsed here, from the user's own files, without a network. A line that cannot be read is counted and named, and
the rest is loaded.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import regex

from polyloom.core.errors import UserError, closest
from polyloom.core.files import decode, read_bytes, unzipped
from polyloom.data.senses import labelled_senses, labels_of, split_senses
from polyloom.data.world.locale_data import section

Format = Literal["auto", "muse", "dictd", "tei", "wiktextract", "csv", "tsv", "wiktionary"]
FORMATS: tuple[Format, ...] = ("auto", "muse", "dictd", "tei", "wiktextract", "csv", "tsv", "wiktionary")
MAX_HEADWORD_WORDS = 6
MAX_NAMED_LINES = 20
# Below this share of found words a dictionary that finds more the other way round is taken for reversed.
REVERSED_BELOW = 0.05
BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
# What Wiktionary writes in place of a translation where a language has no such word.
_NO_WORD = regex.compile(r"(?i:not used in) \p{Lu}")
XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’\-][\p{L}\p{M}]+)*|\p{N}+(?:[.,:]\p{N}+)*")
# Scripts that write no blanks between words: there a dictionary's longest headword decides where a word ends.
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


@dataclass(frozen=True)
class Translation:
    """One translation of a headword, with the file's own part of speech, score (higher is better) and place.

    `labels` are what the file says of its register and region, such as `dated` or `Austria`.
    """

    text: str
    pos: str = ""
    score: float | None = None
    place: str = field(default="", compare=False)
    labels: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Dictionary:
    """Headwords and their translations, in the file's order (by score where it has scores).

    Attributes:
        entries: headword as written -> translations, none twice.
        format: what it was read as.
        num_lines: lines or entries looked at.
        malformed: places that could not be read (the first of them are named).
        num_malformed: how many there were.
    """

    entries: Mapping[str, tuple[Translation, ...]]
    format: str = ""
    num_lines: int = 0
    malformed: tuple[str, ...] = ()
    num_malformed: int = 0
    _folded: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def lookup(self, word: str, pos: str = "") -> tuple[Translation, ...]:
        """Return the translations of a word as it is written, else of its lower-cased form; empty where there is none.

        Args:
            word: one word or several.
            pos: keep the translations of this part of speech, where there are some.
        """
        found = self.entries.get(word) or self.entries.get(self._fold().get(word.casefold(), ""), ())
        return tuple(one for one in found if one.pos == pos) or found if pos else found

    def _fold(self) -> dict[str, str]:
        if not self._folded:
            for head in self.entries:
                self._folded.setdefault(head.casefold(), head)
        return self._folded

    def inverted(self) -> Dictionary:
        """Turn the dictionary round; a translation's score is the number of headwords that share it."""
        counts: dict[str, dict[str, int]] = {}
        for head, translations in self.entries.items():
            for one in translations:
                counts.setdefault(one.text, {})[head] = counts.get(one.text, {}).get(head, 0) + 1
        entries = {
            word: tuple(Translation(head, score=float(number)) for head, number in sorted(heads.items(), key=_by_count))
            for word, heads in counts.items()
        }
        return Dictionary(entries, f"{self.format}, inverted", self.num_lines)


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


@dataclass(frozen=True)
class Coverage:
    """How many words of a text a dictionary has: as headwords, and as translations (the other direction)."""

    num_words: int
    num_found: int
    num_found_reversed: int

    @property
    def hit_rate(self) -> float:
        """Share of words that are headwords."""
        return self.num_found / max(1, self.num_words)

    @property
    def reversed_hit_rate(self) -> float:
        """Share of words that are translations."""
        return self.num_found_reversed / max(1, self.num_words)

    @property
    def is_reversed(self) -> bool:
        """Whether the dictionary runs the other way: next to no headword fits, and the translations do."""
        return self.hit_rate < REVERSED_BELOW and self.reversed_hit_rate > 2 * self.hit_rate


def language_name(code: str, where: str = "--target-language") -> str:
    """Return the English name of a language code (CLDR), such as `de`, `pt-BR` or `zh`.

    Raises:
        UserError: there is no such code; the nearest is suggested.
    """
    names: dict[str, str] = section("en", "languages")
    found = names.get(code.replace("-", "_")) or names.get(code.replace("_", "-").split("-")[0].lower())
    if not found:
        by_name = {name.casefold(): key for key, name in names.items()}
        near = by_name.get(code.casefold())
        hint = f"Did you mean {near!r}?" if near else closest(code, (key for key in names if len(key) == 2))
        raise UserError(f"there is no language {code!r}.", where=where, hint=hint)
    return found


def read_dictionary(
    path: Path,
    *,
    format: Format = "auto",
    encoding: str = "utf-8",
    target_language: str = "",
) -> Dictionary:
    """Read a bilingual dictionary; gzip (also dictzip) is opened on the way.

    Args:
        path: the file; for dictd the `.index`, with the `.dict` or `.dict.dz` beside it.
        format: what it is written in; `auto` looks at the suffix and the first lines.
        encoding: of text formats.
        target_language: of Wiktextract's translations, which are in many languages.

    Raises:
        UserError: unreadable, another encoding (file and offset), a format that is not known, an empty dictionary, or
            one in which only one side holds words.
    """
    if format not in FORMATS:
        raise UserError(f"there is no dictionary format {format!r}.", where="--format", hint=closest(format, FORMATS))
    name = path.name.removesuffix(".gz")
    chosen: str = format if format != "auto" else "dictd" if name.endswith((".index", ".dict", ".dict.dz")) else ""
    if chosen == "dictd":
        return _collect(path, "dictd", _read_dictd(path, encoding))
    text = _text(path, encoding)
    chosen = chosen or _detect(name, text)
    if chosen == "wiktextract":
        return _collect(path, chosen, _read_wiktextract(text, target_language))
    readers: dict[str, Callable[[str], Iterator[Row]]] = {
        "muse": _read_muse,
        "tei": _read_tei,
        "csv": lambda given: _read_columns(given, ","),
        "tsv": lambda given: _read_columns(given, "\t"),
        "wiktionary": _read_wiktionary,
    }
    return _collect(path, chosen, readers[chosen](text))


Row = tuple[str, str, list[Translation] | None]
"""Place, headword, translations; None for a line that cannot be read, an empty list for one that has none."""


def _collect(path: Path, format: str, rows: Iterable[Row]) -> Dictionary:
    entries: dict[str, dict[str, Translation]] = {}
    malformed: list[str] = []
    num_rows = num_sources = num_targets = 0
    for place, head, translations in rows:
        num_rows += 1
        if translations is None:
            malformed.append(place)
            continue
        kept = [one for one in translations if one.text and not _NO_WORD.match(one.text)]
        num_sources += bool(head)
        num_targets += bool(kept)
        if head and kept:
            own = entries.setdefault(head, {})
            for one in kept:
                own.setdefault(one.text, replace(one, place=place))
    if not entries:
        one_sided = (num_sources or num_targets) and not (num_sources and num_targets)
        missing = "translation" if num_sources else "headword"
        what = f"has only one side: no {missing} in {num_rows} lines." if one_sided else "holds no dictionary entry."
        raise UserError(what, where=str(path), hint=f"It was read as {format}; name another with --format.")
    ranked = {head: tuple(sorted(own.values(), key=lambda one: -(one.score or 0.0))) for head, own in entries.items()}
    return Dictionary(ranked, format, num_rows, tuple(malformed[:MAX_NAMED_LINES]), len(malformed))


def _text(path: Path, encoding: str) -> str:
    return decode(unzipped(read_bytes(path), path), path, encoding).replace("\r\n", "\n")


def _detect(name: str, text: str) -> str:
    start = text[:4000].lstrip()
    lines = [line for line in start.split("\n")[:20] if line.strip() and not line.startswith("#")]
    if name.endswith((".tei", ".xml")) or start.startswith("<"):
        return "tei"
    if name.endswith(".jsonl") or start.startswith("{"):
        return "wiktextract"
    if any(" :: " in line or line.endswith(" ::") for line in lines) or (start.startswith("# ") and " :: " in start):
        return "wiktionary"
    if name.endswith(".csv"):
        return "csv"
    if name.endswith(".tsv"):
        return "tsv"
    return "muse"


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def _read_muse(text: str) -> Iterator[Row]:
    for place, line in _lines(text):
        parts = line.strip("\r\n").split("\t") if "\t" in line else line.split()
        if len(parts) == 2:
            # Published files carry commas of their tokenisation ("word,"); a sign by itself is an entry.
            source, target = (part.strip().rstrip(",;") or part.strip() for part in parts)
            yield place, source, [Translation(target)]
        else:
            # A lone word is a one-sided line; three words are no pair.
            yield place, parts[0].strip(), [] if len(parts) == 1 else None


def _read_columns(text: str, delimiter: str) -> Iterator[Row]:
    header: dict[str, int] = {}
    for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), start=1):
        place = f"line {number}"
        if not any(cell.strip() for cell in cells):
            continue
        if number == 1 and {cell.strip().casefold() for cell in cells} & {"source", "target"}:
            header = {cell.strip().casefold(): i for i, cell in enumerate(cells)}
            continue
        at = header or {"source": 0, "target": 1, "score": 2, "pos": 3}
        values = {key: cells[i].strip() if i < len(cells) else "" for key, i in at.items()}
        score = None
        if values.get("score"):
            try:
                score = float(values["score"])
            except ValueError:
                yield place, "", None
                continue
        target, labels = values.get("target", ""), labels_of(values.get("labels", ""))
        one = Translation(target, values.get("pos", ""), score, labels=labels)
        yield place, values.get("source", ""), [one] if target else []


# ---- Wiktionary text: `head {pos} /ipa/ (gloss) :: translation {gender} /reading/, translation`

_WIKTIONARY = regex.compile(r"^(?P<head>.*?)\s*(?:\{(?P<pos>[^}]*)\})?\s*(?:[/\[(].*)?$")


def _read_wiktionary(text: str) -> Iterator[Row]:
    for place, line in _lines(text):
        if line.startswith("#"):
            continue
        left, separator, right = line.partition("::")
        if not separator:
            yield place, "", None
            continue
        if " SEE: " in left:
            continue
        match = _WIKTIONARY.match(left.strip())
        head, pos = (match["head"].strip(), match["pos"] or "") if match else (left.strip(), "")
        yield place, head, [Translation(one, pos, labels=labels) for one, labels in labelled_senses(right)]


# ---- dictd (FreeDict)


def dictd_number(text: str) -> int:
    """Read a number of a dictd index: base 64 with the digits A-Z a-z 0-9 + /, most significant first.

    Raises:
        ValueError: another character.
    """
    value = 0
    for character in text:
        if character not in BASE64:
            raise ValueError(f"{character!r} is no digit of a dictd index")
        value = 64 * value + BASE64[character]
    return value


def _read_dictd(path: Path, encoding: str) -> Iterator[Row]:
    stem = path.name.removesuffix(".index").removesuffix(".dz").removesuffix(".dict")
    index = _text(path.with_name(f"{stem}.index"), encoding)
    bodies = [path.with_name(f"{stem}{suffix}") for suffix in (".dict.dz", ".dict")]
    body = next((file for file in bodies if file.exists()), None)
    if body is None:
        raise UserError(f"lies without {stem}.dict.dz or {stem}.dict beside it.", where=str(path))
    data = unzipped(read_bytes(body), body)
    for place, line in _lines(index):
        parts = line.split("\t")
        if parts[0].startswith("00database") or parts[0].startswith("00-database"):
            continue
        try:
            head, start, size = parts[0], dictd_number(parts[1]), dictd_number(parts[2].strip())
            entry = data[start : start + size].decode("utf-8")
        except (IndexError, ValueError):
            yield place, "", None
            continue
        # The index folds case; the entry's first line has the headword as it is written.
        first, _, rest = entry.partition("\n")
        written = regex.split(r"\s*[/<\[]", first)[0].strip()
        pos = regex.search(r"<([^>]*)>", first)
        senses = [one for sense in rest.split("\n") for one in _dictd_senses(sense)]
        kept = written if written.casefold() == head.casefold() else head
        yield place, kept, [Translation(one, pos[1] if pos else "") for one in senses]


def _dictd_senses(line: str) -> list[str]:
    line = regex.sub(r"^\s*\d+\.\s*", "", line).strip()
    if line.startswith(('"', "„", "“")) or regex.match(r"(?i)(synonyms?(\(s\))?|note|see|usage|antonyms?)\b.*:", line):
        return []
    return split_senses(line)


# ---- TEI (FreeDict)


def _read_tei(text: str) -> Iterator[Row]:
    if "<!ENTITY" in text:
        raise UserError("declares entities, which are not read.", where="TEI dictionary")
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise UserError(
            f"is not XML: {error}.", where="TEI dictionary", hint="Name its format with --format."
        ) from error
    for number, entry in enumerate((e for e in root.iter() if _tag(e) == "entry"), start=1):
        pos = " ".join(_words(entry, "pos"))
        quotes = [
            Translation(" ".join("".join(quote.itertext()).split()), pos)
            for cit in entry.iter()
            if _tag(cit) == "cit" and cit.get("type", "trans") in ("trans", "translation")
            for quote in cit
            if _tag(quote) == "quote"
        ]
        heads = [word for form in entry if _tag(form) == "form" for word in _words(form, "orth")]
        for head in heads or [""]:
            yield f"entry {number}", head, quotes


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _words(element: ElementTree.Element, tag: str) -> list[str]:
    return [" ".join("".join(e.itertext()).split()) for e in element.iter() if _tag(e) == tag]


# ---- Wiktextract


def _read_wiktextract(text: str, target_language: str) -> Iterator[Row]:
    for place, line in _lines(text):
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError:
            yield place, "", None
            continue
        if isinstance(row, dict) and row and all(isinstance(value, list) for value in row.values()):
            # {"word": ["translation", ...]}, the lines of code-switching code.
            for head, words in row.items():
                yield place, head, [Translation(word) for word in words if isinstance(word, str)]
            continue
        if not isinstance(row, dict) or not isinstance(row.get("word"), str):
            yield place, "", None
            continue
        pos = row["pos"] if isinstance(row.get("pos"), str) else ""
        yield place, row["word"], list(_wiktextract_translations(row, pos, target_language))


def _wiktextract_translations(row: dict[str, Any], pos: str, target_language: str) -> Iterator[Translation]:
    senses = _dicts(row.get("senses"))
    given = [*_dicts(row.get("translations")), *(t for sense in senses for t in _dicts(sense.get("translations")))]
    for one in given:
        code = one.get("code") or one.get("lang_code") or ""
        if isinstance(one.get("word"), str) and (not target_language or code == target_language):
            tags = one.get("tags") or ()
            yield Translation(one["word"].strip(), pos, labels=tuple(tag for tag in tags if isinstance(tag, str)))
    if not given and (not target_language or target_language == "en"):
        # An entry of a foreign word explains itself in glosses of the Wiktionary's own language.
        for sense in senses:
            for gloss in sense.get("glosses") or []:
                if isinstance(gloss, str):
                    yield from (Translation(word, pos) for word in split_senses(gloss))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


# ---- words of a text


def segment(text: str, dictionary: Dictionary) -> list[str]:
    """Split a text into words, the longest headwords of the dictionary first ("United States" is one).

    Args:
        text: the text; scripts without blanks are cut at the dictionary's longest headwords, else by character.
        dictionary: whose headwords are kept together.
    """
    return [text[start:end] for start, end in segment_spans(text, dictionary)]


def segment_spans(text: str, dictionary: Dictionary) -> list[tuple[int, int]]:
    """Return where the words of `segment` begin and end."""
    pieces: list[tuple[int, int]] = []
    for match in WORD.finditer(text):
        if UNSPACED.search(match.group()):
            pieces += _unspaced(text, match.start(), match.end(), dictionary)
        else:
            pieces.append(match.span())
    words, at = [], 0
    while at < len(pieces):
        for length in range(min(MAX_HEADWORD_WORDS, len(pieces) - at), 0, -1):
            start, end = pieces[at][0], pieces[at + length - 1][1]
            if length == 1 or dictionary.lookup(text[start:end]):
                words.append((start, end))
                at += length
                break
    return words


def _unspaced(text: str, start: int, end: int, dictionary: Dictionary) -> list[tuple[int, int]]:
    pieces = []
    while start < end:
        size = next((n for n in range(min(12, end - start), 1, -1) if dictionary.lookup(text[start : start + n])), 1)
        pieces.append((start, start + size))
        start += size
    return pieces


def coverage(dictionary: Dictionary, texts: Sequence[str]) -> Coverage:
    """Count the words of source texts that a dictionary has, in its own direction and in the other.

    Args:
        dictionary: the dictionary.
        texts: texts of the language to translate from. Numbers are not counted.
    """
    backwards = dictionary.inverted()
    found = {}
    for name, one in (("own", dictionary), ("other", backwards)):
        words = [word for text in texts for word in segment(text, one) if not word[0].isnumeric()]
        # Each direction joins its own headwords; the count of single words is what both are measured in.
        found[name] = sum(len(word.split()) for word in words if one.lookup(word))
    single = Dictionary({})
    total = sum(not word[0].isnumeric() for text in texts for word in segment(text, single))
    return Coverage(total, min(found["own"], total), min(found["other"], total))
