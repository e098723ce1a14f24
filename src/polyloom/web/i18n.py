"""The words of the pages in every language, from the one file `catalogue.yaml`."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from polyloom.core.registry import RoomCard, Verb

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
LANGUAGES = {"en": "English", "zh": "中文"}
DEFAULT = "en"


@cache
def catalogue() -> dict[str, dict[str, str]]:
    """Return the texts by key (`runs.title`) and language."""
    nested = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return dict(_flat("", nested))


def _flat(prefix: str, node: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        if value.keys() <= LANGUAGES.keys():
            found.append((key, {language: str(text) for language, text in value.items()}))
        else:
            found += _flat(f"{key}.", value)
    return found


def translate(language: str, key: str, **values: object) -> str:
    """Return the text of a key.

    Args:
        language: a code of `LANGUAGES`.
        key: the text's place in the catalogue, for example `runs.title`. With `n` among the values, `key.one` is
            taken for 1 where the catalogue has it.
        values: what the text's `{name}` stand for.

    Raises:
        KeyError: there is no such text.
    """
    texts = catalogue()
    if values.get("n") == 1 and f"{key}.one" in texts:
        key = f"{key}.one"
    elif key not in texts and f"{key}.other" in texts:
        key = f"{key}.other"
    text = texts[key]
    return text.get(language, text[DEFAULT]).format(**values)


def room_text(language: str, card: RoomCard, part: str) -> str:
    """Return a room's `title` or `question`: the card's own words, or the catalogue's where it translates them."""
    own: str = getattr(card, part)
    return catalogue().get(f"room.{card.name}.{part}", {}).get(language, own)


def verb_text(language: str, room: str, verb: Verb) -> str:
    """Return what a verb does: the card's own words, or the catalogue's where it translates them."""
    return catalogue().get(f"verb.{room}.{verb.name}", {}).get(language, verb.summary)


def choose_language(cookie: str | None, accepted: str) -> str:
    """Return the language of a page: the visitor's choice, else the first of the browser's languages that is known.

    Args:
        cookie: what the visitor chose before.
        accepted: the header `Accept-Language`.
    """
    if cookie in LANGUAGES:
        return cookie
    for part in accepted[:200].split(","):
        code = part.split(";")[0].strip().lower().split("-")[0]
        if code in LANGUAGES:
            return code
    return DEFAULT


def moment(language: str, text: str) -> str:
    """Return an ISO time as people write it, in the server's time zone; other text is returned as it is."""
    try:
        when = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        return text
    if language == "zh":
        return f"{when.year}年{when.month}月{when.day}日 {when:%H:%M}"
    return f"{when.day} {when:%b %Y, %H:%M}"
