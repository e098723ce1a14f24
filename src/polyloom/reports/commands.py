"""The commands that repeat a result."""

from __future__ import annotations

import json
import shlex
from typing import Any

from polyloom.core import registry
from polyloom.core.errors import UserError
from polyloom.core.registry import RoomCard
from polyloom.core.result import Result
from polyloom.reports.text import one_line


def find_card(room: str) -> RoomCard | None:
    """Return the card of a room, or None for a name that is not registered."""
    try:
        return registry.card(room)
    except UserError:
        return None


def command_line(result: Result) -> str:
    """Return the command that does the same again: the verb with every option that is not at its default."""
    card = find_card(result.room)
    defaults = _defaults(card, result.verb)
    words = ["polyloom", "tour"] if result.room == "tour" else ["polyloom", result.room, result.verb]
    for key, value in result.provenance.config.items():
        if key not in defaults or value != defaults[key]:
            words += _option(key, value)
    return " ".join(shlex.quote(one_line(word)) for word in words)


def repeat_commands(result: Result) -> list[tuple[str, str]]:
    """Return what each command does, and the command: the stored configuration again, and the verb with its options."""
    return [
        ("Repeat with the stored configuration", shlex.join(["polyloom", "rerun", one_line(result.run)])),
        ("Repeat anywhere", command_line(result)),
    ]


def _defaults(card: RoomCard | None, verb: str) -> dict[str, Any]:
    names = [known.name for known in card.verbs] if card else []
    if card is None or verb not in names:
        return {}
    fields = card.verb(verb).load_config().model_fields
    given = {
        name: field.get_default(call_default_factory=True) for name, field in fields.items() if not field.is_required()
    }
    # The configuration was stored as JSON: compare like with like.
    return {name: json.loads(json.dumps(value, default=str)) for name, value in given.items()}


def _option(key: str, value: Any) -> list[str]:
    flag = "--" + key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    if isinstance(value, list):
        return [word for item in value for word in (flag, _word(item))]
    return [flag, _word(value)]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
