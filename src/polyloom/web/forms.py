"""Forms from the configuration of a verb: one control a field, and what was entered back into a configuration."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from polyloom.core.config import Config
from polyloom.reports.text import human, sentence

MAX_CHARACTERS = 20_000
# So many fields are shown at least, and a form of so few is shown whole.
MIN_SHOWN, MAX_SHOWN = 6, 9
# What people set first; the other fields stand behind "more options".
FIRST = ("profile", "model", "data", "text", "languages", "task", "seed", "rooms", "encoding")


@dataclass(frozen=True)
class Control:
    """One field of a form.

    Attributes:
        name: the configuration's field.
        kind: `choice`, `choices`, `switch`, `number`, `line`, `prose` (a text of many lines) or `lines` (an item each).
        label: its name in words.
        help: what it means.
        value: what the control shows: a text, or the texts that are chosen.
        options: the texts to choose from.
        required: whether it must be given.
        first: whether it is shown without opening "more options".
        bounds: what values fit, in words.
        error: why what was entered does not fit.
    """

    name: str
    kind: str
    label: str
    help: str
    value: str | tuple[str, ...]
    options: tuple[str, ...] = ()
    required: bool = False
    first: bool = False
    bounds: str = ""
    error: str = ""


@dataclass(frozen=True)
class Form:
    """A form with what was entered, and what is wrong with it as a whole."""

    controls: tuple[Control, ...]
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether anything was refused."""
        return bool(self.error) or any(control.error for control in self.controls)


def make_form(
    model: type[Config], values: Mapping[str, Any] | None = None, errors: Mapping[str, str] | None = None
) -> Form:
    """Make the form of a configuration.

    Args:
        model: the verb's configuration model.
        values: values by field; the model's defaults stand for the others.
        errors: what is wrong by field; the empty name is the form as a whole.
    """
    given, wrong = values or {}, errors or {}
    controls = [_control(name, field, given, wrong.get(name, "")) for name, field in model.model_fields.items()]
    # The order of `FIRST` for what people set first, then the model's own fields, then those that it inherits.
    own = set(model.__annotations__)
    controls.sort(key=lambda control: (_place(control.name), control.name not in own))
    room = MIN_SHOWN - sum(control.first for control in controls)
    if len(controls) <= MAX_SHOWN:
        room = len(controls)
    shown = {control.name for control in [control for control in controls if not control.first][: max(0, room)]}
    controls = [dataclasses.replace(c, first=c.first or c.name in shown) for c in controls]
    return Form(tuple(controls), wrong.get("", ""))


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def read_form(model: type[Config], entered: Mapping[str, Sequence[str]]) -> tuple[Config | None, Form]:
    """Turn what was entered into a configuration.

    Args:
        model: the verb's configuration model.
        entered: the texts of each field; other names are ignored.

    Returns:
        The configuration, or None where something does not fit; and the form with what was entered and its errors.
    """
    values, errors = {}, {}
    for name, field in model.model_fields.items():
        texts = [text[:MAX_CHARACTERS] for text in entered.get(name, ())]
        try:
            kept, value = _read(field, texts)
        except ValueError as error:
            kept, value = True, "\n".join(texts)
            errors[name] = str(error)
        if kept:
            values[name] = value
    config = None
    try:
        config = model(**values)
    except ValidationError as error:
        for part in error.errors(include_url=False):
            name = str(part["loc"][0]) if part["loc"] else ""
            message = part["msg"].removeprefix("Value error, ")
            errors.setdefault(name if name in model.model_fields else "", sentence(message))
    form = make_form(model, values, errors)
    return (None if errors else config), form


def _shape(field: FieldInfo) -> tuple[Any, bool, bool]:
    """Return the type of a field's items, whether it is a list, and whether it may be left out."""
    annotation: Any = field.annotation
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        annotation = inner[0] if len(inner) == 1 else str
    if get_origin(annotation) in (list, tuple, set, frozenset):
        return get_args(annotation)[0], True, optional
    return annotation, False, optional


def _control(name: str, field: FieldInfo, given: Mapping[str, Any], error: str) -> Control:
    item, many, optional = _shape(field)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    value = given.get(name, default)
    options: tuple[str, ...] = ()
    if item is bool and optional:
        kind, options = "choice", ("", "true", "false")
    elif get_origin(item) is Literal:
        options = tuple(str(option) for option in get_args(item))
        kind = "choices" if many else "choice"
        options = ("", *options) if optional and not many else options
    else:
        kind = "lines" if many else "switch" if item is bool else "number" if item in (int, float) else "line"
    shown: str | tuple[str, ...] = _text(value)
    if isinstance(value, list | tuple):
        shown = tuple(map(_text, value)) if kind == "choices" else "\n".join(map(_line, value))
    elif kind == "line" and "\n" in shown:
        kind = "prose"
    needs_items = many and not optional and not default and any(isinstance(part, MinLen) for part in field.metadata)
    required = field.is_required() or needs_items
    return Control(
        name=name,
        kind=kind,
        label=sentence(human(name)),
        help=field.description or "",
        value=shown,
        options=options,
        required=required,
        first=required or name in FIRST,
        bounds=_bounds(field),
        error=error,
    )


def _bounds(field: FieldInfo) -> str:
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    words = []
    for part in field.metadata:
        if type(part) in signs:
            sign, name = signs[type(part)]
            limit = getattr(part, name)
            words += [] if isinstance(limit, int) and abs(limit) >= 2**62 else [f"{sign} {limit}"]
        elif isinstance(part, MinLen) and part.min_length > 1:
            words.append(f"≥ {part.min_length}")
    return ", ".join(words)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path | int | float):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _line(value: Any) -> str:
    """Return an item as one line of its own; as JSON where its text would not come back from a line."""
    text = _text(value)
    plain = text and text == text.strip() and text.isprintable() and text[0] != '"'
    return text if plain else json.dumps(text)


def _item(item: Any, line: str) -> Any:
    if item is str and line.startswith('"'):
        try:
            line = str(json.loads(line))
        except ValueError:
            return line
    return _number(item, line)


def _read(field: FieldInfo, texts: Sequence[str]) -> tuple[bool, Any]:
    """Return whether a field was given, and its value as the configuration's model takes it.

    Raises:
        ValueError: it is no number.
    """
    item, many, optional = _shape(field)
    if many:
        lines = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
        if not lines and optional:
            return True, None
        return True, [_item(item, line) for line in lines]
    text = texts[-1].replace("\r\n", "\n") if texts else ""
    text = text if "\n" in text else text.strip()
    if item is bool and not optional:
        return True, text == "true"
    if text:
        return True, text == "true" if item is bool else _number(item, text)
    if optional:
        return True, None
    # An empty field of words means no words; an empty number means its default.
    return (bool(texts) and item is str and not field.is_required()), ""


def _number(item: Any, text: str) -> Any:
    if item is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError("Input should be a whole number") from None
    if item is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("Input should be a number") from None
    if get_origin(item) in (dict, Mapping):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError('Input should be names and values as JSON, such as {"en": 2}') from None
    return text
