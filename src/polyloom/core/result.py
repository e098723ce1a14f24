"""The one result of every verb, and its file `result.json` (schema version 1)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from polyloom.core.errors import UserError
from polyloom.core.files import read_json

SCHEMA_VERSION = 1


def _finite(value: Any) -> Any:
    """Turn NaN and infinities into None: JSON has no words for them, and a reader must not meet bare tokens."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Cell = Annotated[bool | int | float | str | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Base of the result's parts: frozen, and nothing beyond the named fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Protocol):
    """A value with its interval, where there is one, such as the statistics give."""

    @property
    def value(self) -> float:
        """The value."""

    @property
    def low(self) -> float | None:
        """Where its interval begins."""

    @property
    def high(self) -> float | None:
        """Where its interval ends."""


class Scalar(Record):
    """One figure, with its interval where it was sampled and its unit where it has one."""

    value: Cell
    low: Number = None
    high: Number = None
    unit: str | None = None

    @classmethod
    def of(cls, found: Estimate, unit: str | None = None) -> Scalar:
        """Return a value with its interval as a figure."""
        return cls(value=found.value, low=found.low, high=found.high, unit=unit)


class Table(Record):
    """Rows under named columns."""

    columns: list[str]
    rows: list[list[Cell]]
    title: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Table:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {index} of table {self.title!r} has {len(row)} cells for {len(self.columns)} columns"
                )
        return self


class Series(Record):
    """A curve or a set of bars; series of one `group` are drawn in one figure."""

    x: list[Number]
    y: list[Number]
    low: list[Number] | None = None
    high: list[Number] | None = None
    x_label: str = ""
    y_label: str = ""
    group: str = ""
    kind: Literal["line", "bar", "scatter"] = "line"
    x_names: list[str] | None = None

    @model_validator(mode="after")
    def _equal_lengths(self) -> Series:
        for name in ("y", "low", "high", "x_names"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.x):
                raise ValueError(f"series has {len(self.x)} x and {len(values)} {name}")
        return self


class Artifact(Record):
    """A file of the run, by its path relative to the run's folder."""

    path: str
    media_type: str
    description: str


class Provenance(Record):
    """Where a result comes from: enough to run it again and to see why another machine differs."""

    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    git_revision: str | None
    machine: dict[str, str]
    started: str
    elapsed_seconds: float
    cpu_seconds: float


class Result(Record):
    """What every verb of every room returns, stores and prints with `--json`."""

    schema_version: Literal[1] = 1
    room: str
    verb: str
    run: str
    scalars: dict[str, Scalar] = Field(default_factory=dict)
    tables: dict[str, Table] = Field(default_factory=dict)
    series: dict[str, Series] = Field(default_factory=dict)
    artifacts: dict[str, Artifact] = Field(default_factory=dict)
    verdicts: list[str] = Field(default_factory=list)
    limitations: list[str] = Field(default_factory=list)
    provenance: Provenance


def read_result(path: Path) -> Result:
    """Read a `result.json`.

    Raises:
        UserError: unreadable, of a newer schema, or not a result.
    """
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"has schema version {version}; this Polyloom reads up to {SCHEMA_VERSION}.",
            where=str(path),
            hint="Upgrade Polyloom to read it.",
        )
    try:
        return Result.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"is not a result: {place}: {first['msg']}.", where=str(path)) from None
