"""Configurations: one frozen model per verb; command line over YAML over defaults; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_text


class Config(BaseModel):
    """Base of every verb's configuration. Each field carries a description, which is its option's help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    seed: int = Field(0, ge=0, lt=2**63, description="The one seed of every random stream.")


class StudyConfig(Config):
    """Base of every room's `study`: the embedded experiment, which is also the room's step of the tour."""

    profile: Literal["quick", "full"] = Field("quick", description="quick: at most 60 CPU-seconds; full: all of it.")


ConfigT = TypeVar("ConfigT", bound=Config)


def make_config(model: type[ConfigT], values: Mapping[str, Any], where: str = "") -> ConfigT:
    """Validate `values` into a configuration.

    Args:
        model: the verb's configuration model.
        values: field names and values.
        where: what to name as the place of an error (a file); without it the option is named.

    Raises:
        UserError: an unknown field or a value that does not fit, in one line with the nearest valid name.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise _one_line(model, error, where) from None


def _one_line(model: type[Config], error: ValidationError, where: str) -> UserError:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UserError(f"unknown key {field!r}.", where=where, hint=closest(field, model.model_fields))
    option = f"--{field.replace('_', '-')}" if field and not where else field
    place = ": ".join(part for part in (where, option) if part)
    given = "" if isinstance(first["input"], Mapping) else f" (got {first['input']!r})"
    hint = "Run the command with --help to see its options." if not where else ""
    return UserError(f"{first['msg'].removeprefix('Value error, ').rstrip('.')}{given}.", where=place, hint=hint)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        UserError: unreadable, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError("is not YAML.", where=place) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError("holds no mapping of keys to values.", where=str(path), hint="Write one `key: value` a line.")
    return values


def load_config(model: type[ConfigT], file: Path | None, given: Mapping[str, Any]) -> ConfigT:
    """Resolve a configuration: `given` (command line) over `file` (YAML) over the model's defaults.

    Raises:
        UserError: as `read_yaml` and `make_config`.
    """
    from_file = read_yaml(file) if file else {}
    if file:
        make_config(model, from_file, where=str(file))
    return make_config(model, {**from_file, **given})


def dump_config(config: Config) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
