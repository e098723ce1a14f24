"""The senses of a dictionary's line: `[dated] Wort {n}, other: Wort /reading/`, split, with their labels."""

from __future__ import annotations

from collections.abc import Iterator

import regex

_BRACKETS = regex.compile(r"\[([^\]]*)\](?!\w)")
_MARK = regex.compile(r"\0(\d+)\0")
_CUT, _PART = regex.compile(r"[,;、]"), regex.compile(r"[,;]")
_NOTES = regex.compile(r"/[^/]*/|\{[^}]*\}|<[^>]*>|\[[^\]]*\](?!\w)|\((?:[^()]|\([^()]*\))*\)")


def split_senses(text: str) -> list[str]:
    """Split `a {n} /reading/, b` into its translations, without notes, genders and readings."""
    plain = _NOTES.sub(" ", text)
    return [word for part in _CUT.split(plain) if (word := " ".join(part.split()).strip(" .:"))]


def labelled_senses(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Split a line into its translations, each with its labels: `[dated] Wort`, `Wort [Austria, rare]`, `dated: Wort`.

    A piece with a hyphen at its edge is an affix: it is left out.
    """
    brackets: list[str] = []

    def keep(match: regex.Match[str]) -> str:
        brackets.append(match[1])
        return f" \0{len(brackets) - 1}\0 "

    for piece in split_senses(_BRACKETS.sub(keep, text) if "[" in text else text):
        found = [brackets[int(number)] for number in _MARK.findall(piece)] if brackets else []
        before, _, word = (_MARK.sub(" ", piece) if found else piece).rpartition(":")
        plain = " ".join(word.split())
        if plain and not (plain.startswith("-") or plain.endswith("-")):
            yield plain, labels_of(",".join([*found, before])) if found or before else ()


def labels_of(note: str) -> tuple[str, ...]:
    """Return the labels of a note such as `Austria, rare`, without numbers of senses and signs."""
    return tuple(one for part in _PART.split(note) if any(map(str.isalpha, one := part.strip())))
