"""`polyloom world`: look at and export the embedded world's data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from polyloom.core.errors import UserError, closest
from polyloom.core.files import replace_atomically

app = App(
    name="world", sort_key=103, help="Sample, export and describe the embedded world: data made from Unicode CLDR."
)
TaskName = Annotated[str, Parameter(help="A task of the world; `polyloom world describe` lists them.")]
LanguageCodes = Annotated[
    tuple[str, ...], Parameter(help="Language codes.", consume_multiple=True, negative_iterable="")
]


def _records(task: str, languages: tuple[str, ...], seed: int, size: int, split: str) -> Iterable[dict[str, object]]:
    from polyloom.data import world

    if task not in world.TASKS:
        raise UserError(f"there is no task {task!r}.", hint=closest(task, world.TASKS))
    if size < 1:
        raise UserError("must be at least 1.", where="--size")
    return world.records(world.World(languages, seed=seed), task, languages, size, split=split)


@app.command
def sample(
    task: TaskName, /, *, languages: LanguageCodes = ("en", "de"), size: int = 5, seed: int = 0, split: str = "train"
) -> None:
    """Print a few records as JSON lines.

    Args:
        size: number of records.
        seed: the seed of the data.
        split: train, valid or test.
    """
    for record in _records(task, languages, seed, size, split):
        sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


@app.command
def export(
    task: TaskName,
    /,
    *,
    output: Path,
    languages: LanguageCodes = ("en", "de"),
    size: int = 1000,
    seed: int = 0,
    split: str = "train",
    format: str = "jsonl",
) -> None:
    """Write records to a file in one of the task's public formats.

    Args:
        output: the file to write.
        size: number of records.
        seed: the seed of the data.
        split: train, valid or test.
        format: jsonl, or a public format of the task (tsv, conllu, iob2, muse, ...).
    """
    from polyloom.data import world

    lines = world.export(_records(task, languages, seed, size, split), task, format)
    with replace_atomically(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    print(output)


@app.command
def describe(*, languages: LanguageCodes = ("en", "de", "ja"), seed: int = 0) -> None:
    """Print what the world holds: languages, tasks, distinct counts, facts and versions.

    Args:
        seed: the seed of the data.
    """
    from polyloom.data import world

    sys.stdout.write(json.dumps(world.describe(world.World(languages, seed=seed)), ensure_ascii=False, indent=1) + "\n")
