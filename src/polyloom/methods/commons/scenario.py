"""Scenarios and languages are data: numbers and templates in YAML files, the package's own or the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from polyloom.core.config import read_yaml
from polyloom.core.errors import UserError, closest
from polyloom.methods.commons.engine import Allocation, Growth, Resource, Sense, check_resource

FOLDER = Path(__file__).parent
OWN_KEYS = ("role", "regrow", "talks", "example", "unit", "resource", "places", "question", "stock", "caught", "report")


class _Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    capacity: int = 100
    initial: int | None = None
    growth: float | int = 2
    growth_high: float | int | None = None
    kind: Growth = "multiply"
    collapse: int = 5
    sense: Sense = "take"
    allocation: Allocation = "one_by_one"
    num_months: int = 12


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: str = ""
    like: str | None = None
    resource: _Numbers = _Numbers()
    text: dict[str, dict[str, str | list[str]]] = {}


@dataclass(frozen=True)
class Words:
    """All texts of one scenario in one language."""

    language: str
    templates: Mapping[str, Any]

    def say(self, key: str, /, **values: object) -> str:
        """Fill the template called `key`; the resource's noun and the unit are always at hand."""
        own = self.templates
        return str(own[key]).format(**{"unit": own["unit"], "resource": own["resource"], **values})

    def names(self, num_agents: int) -> list[str]:
        """Return that many different names; beyond the listed ones they are numbered."""
        listed: list[str] = self.templates["names"]
        return [
            listed[i % len(listed)] + (f" {i // len(listed) + 1}" if i >= len(listed) else "")
            for i in range(num_agents)
        ]

    @property
    def moderator(self) -> str:
        """Who opens the talk."""
        return str(self.templates["moderator"])

    def place(self, index: int) -> str:
        """Return the place of the harvest (0), the talk (1) or home (2)."""
        return str(self.templates["places"][index])

    def join(self, names: list[str]) -> str:
        """List names as the language does."""
        return str(self.templates["join"]).join(names)


@dataclass(frozen=True)
class Scenario:
    """A game: its numbers and its words."""

    name: str
    title: str
    resource: Resource
    words: Words

    def role(self, name: str, others: list[str], *, talks: bool) -> str:
        """Return the text that every prompt of an agent begins with; it does not change from month to month."""
        resource, words = self.resource, self.words
        start = resource.capacity * 9 // 10
        taken = resource.capacity * 3 // 10
        numbers = {"capacity": resource.capacity, "start": start, "taken": taken, "left": start - taken}
        example = words.say("example", **numbers, next=resource.grow(start - taken))
        return words.say(
            "role",
            **numbers,
            name=name,
            others=words.join(others),
            count_others=len(others),
            regrow=self.regrow,
            talk=words.say("talks") if talks else "",
            example=example if resource.growth_high is None else "",
        ).strip()

    @property
    def regrow(self) -> str:
        """The sentence about growth."""
        return self.words.say("regrow", capacity=self.resource.capacity)

    def numbers(self) -> dict[str, Any]:
        """Return the resource's numbers for a log."""
        return asdict(self.resource)


def scenario_names() -> list[str]:
    """Return the package's scenarios."""
    return sorted(path.stem for path in (FOLDER / "scenarios").glob("*.yaml"))


def language_codes() -> list[str]:
    """Return the languages that the texts exist in."""
    return sorted(path.stem for path in (FOLDER / "languages").glob("*.yaml"))


@cache
def language_texts(code: str) -> dict[str, Any]:
    """Return the general templates of a language.

    Raises:
        UserError: there are none.
    """
    if code not in language_codes():
        raise UserError(f"there is no language {code!r}.", where="--language", hint=closest(code, language_codes()))
    return read_yaml(FOLDER / "languages" / f"{code}.yaml")


def load_scenario(name: str, language: str = "en", *, num_agents: int = 5, num_months: int | None = None) -> Scenario:
    """Load a scenario in a language and check its numbers.

    Args:
        name: one of the package's, or the path of a YAML file.
        language: code of the texts.
        num_agents: agents who will play, for the check.
        num_months: horizon in place of the scenario's own.

    Raises:
        UserError: no such scenario or language, an unknown key, a missing text, or impossible numbers.
    """
    general = language_texts(language)
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / "scenarios" / f"{name}.yaml"
    if not path.exists():
        hint = closest(name, scenario_names()) + " Or give the path of a YAML file."
        raise UserError(f"there is no scenario {name!r}.", where="--scenario", hint=hint)
    file = _read(path)
    parent = _read(FOLDER / "scenarios" / f"{file.like}.yaml") if file.like in scenario_names() else None
    own: dict[str, Any] = {**(parent.text.get(language, {}) if parent else {}), **file.text.get(language, {})}
    missing = [key for key in OWN_KEYS if key not in own]
    if missing:
        raise UserError(f"has no text {missing[0]!r} in {language!r}.", where=str(path), hint=f"Add text.{language}.")
    numbers = file.resource.model_dump()
    numbers["initial"] = numbers["capacity"] if numbers["initial"] is None else numbers["initial"]
    resource = Resource(**numbers)
    if num_months is not None:
        resource = replace(resource, num_months=num_months)
    check_resource(resource, num_agents, where=name)
    return Scenario(path.stem, file.title or path.stem, resource, Words(language, {**general, **own}))


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{place}: {first['msg']} (got {first['input']!r}).", where=str(path)) from None
