"""What of an instruction is compared: the words that state the task, without the data's places and names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

import jinja2

Cleaning = Literal["drop", "keep", "replace", "names"]
CLEANINGS: tuple[Cleaning, ...] = ("drop", "keep", "replace", "names")
CHOICE_NAMES = frozenset({"answer_choices", "choices", "options", "candidates", "choice", "candidate"})
TEXT, CANDIDATE = "{{text}}", "{{candidate}}"
_JINJA = jinja2.Environment(autoescape=True)
_MARKUP = ("{{", "{%", "{#")
Part = tuple[Literal["text", "variable", "end"], str]
Token = tuple[str, str]


def clean_instruction(text: str, mode: Cleaning = "drop") -> str:
    """Return what is compared of an instruction or prompt template.

    Args:
        text: plain text, or a Jinja template as promptsource has them: its output side (from `|||` on), its control
            blocks and comments are left out; a string literal in it is text.
        mode: what becomes of variables: `drop` deletes them, `keep` leaves the source, `replace` puts one of two
            placeholders (a text, a candidate), `names` puts the variable's name as words.

    Returns:
        NFC text with single blanks; empty where nothing but variables was there.

    Source: spec 2.1 (the paper unifies variable names; dropping them agrees best with its published selections).
    """
    if "{" in text and any(mark in text for mark in _MARKUP):
        said = "".join(_say(kind, value, mode) for kind, value in _parts(text))
    else:
        said = text.partition("|||")[0]
    return " ".join((said if said.isascii() else unicodedata.normalize("NFC", said)).split())


def clean_all(texts: Iterable[str], mode: Cleaning = "drop") -> list[str]:
    """Clean instructions of one task: empty and repeated ones are left out, the order stays."""
    cleaned = (clean_instruction(text, mode) for text in texts)
    return list(dict.fromkeys(text for text in cleaned if has_words(text)))


def has_words(text: str) -> bool:
    """Say whether a text holds a letter or digit outside of placeholders."""
    if "{{" in text:
        text = re.sub(r"\{\{.*?\}\}", " ", text, flags=re.DOTALL)
    return re.search(r"\w", text) is not None


def _parts(source: str) -> Iterator[Part]:
    """Cut a template into text and variables, up to its first separator outside of expressions."""
    try:
        tokens = [(kind, value) for _, kind, value in _JINJA.lex(source)]
    except jinja2.TemplateSyntaxError:
        # Braces of another kind (code, sets): not a template, so all of it is text.
        yield "text", source.partition("|||")[0]
        return
    inside: list[Token] = []
    depth = ""
    for kind, value in tokens:
        if kind.endswith("_begin"):
            depth, inside = kind.removesuffix("_begin"), []
        elif kind.endswith("_end"):
            if depth == "variable":
                yield _expression(inside)
            depth = ""
        elif depth:
            inside.append((kind, value))
        elif kind == "data":
            before, separator, _ = value.partition("|||")
            yield "text", before
            if separator:
                return


def _expression(tokens: list[Token]) -> Part:
    meaningful = [(kind, value) for kind, value in tokens if kind != "whitespace"]
    if len(meaningful) == 1 and meaningful[0][0] == "string":
        return "text", meaningful[0][1][1:-1]
    return "variable", "".join(value for _, value in tokens).strip()


def _say(kind: str, value: str, mode: Cleaning) -> str:
    if kind == "text":
        return value
    if mode == "keep":
        return "{{" + value + "}}"
    names = variable_names(value)
    if mode == "replace":
        return CANDIDATE if CHOICE_NAMES & set(names) else TEXT
    return " ".join(names).replace("_", " ") if mode == "names" else " "


def variable_names(expression: str) -> list[str]:
    """Return the names that a Jinja expression reads, filters left out: `answers.text | choice` gives answers, text."""
    names: list[str] = []
    after_pipe = False
    for _, kind, value in _JINJA.lex("{{" + expression + "}}"):
        if kind == "name" and not after_pipe:
            names.append(value)
        if kind != "whitespace":
            after_pipe = kind == "operator" and value == "|"
    return names
