"""The embedded world as a pool: its tasks, the wordings kept back for targets, and examples by split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from polyloom.core.errors import UserError, closest
from polyloom.methods.select.data import Pair, PoolTask

if TYPE_CHECKING:
    from polyloom.data.world import World

NUM_TRAIN_WORDINGS = 16


def world_tasks(languages: Sequence[str]) -> list[PoolTask]:
    """Return the world's instruction tasks with the wordings of their first two verbs; the third verb is kept back.

    Args:
        languages: template languages, up to six.
    """
    from polyloom.data.world import instruction_tasks, wordings
    from polyloom.data.world.world import check_languages

    found = []
    for task in instruction_tasks(check_languages(languages)):
        codes = tuple(dict.fromkeys((task.source, task.target)))
        said = tuple(wordings(task)[:NUM_TRAIN_WORDINGS])
        found.append(PoolTask(task.name, said, task.operation, codes, task.kind))
    return found


def world_target(name: str, languages: Sequence[str]) -> list[str]:
    """Return the wordings of a world task that no pool task has: those of its third verb.

    Raises:
        UserError: the world has no such task.
    """
    from polyloom.data.world import instruction_tasks, wordings

    tasks = {task.name: task for task in instruction_tasks(languages)}
    if name not in tasks:
        raise UserError(f"the world has no task {name!r} in {', '.join(languages)}.", hint=closest(name, tasks))
    return wordings(tasks[name])[NUM_TRAIN_WORDINGS:]


def world_examples(name: str, languages: Sequence[str], split: str, num: int, seed: int = 0) -> tuple[Pair, ...]:
    """Make examples of a world task.

    Args:
        name: of the task.
        languages: of the world that it belongs to.
        split: `train` or `test`: their meanings are disjoint.
        num: how many.
        seed: of the world.
    """
    return _world_examples(name, tuple(languages), split, num, seed)


@lru_cache(maxsize=4096)
def _world_examples(name: str, languages: tuple[str, ...], split: str, num: int, seed: int) -> tuple[Pair, ...]:
    from polyloom.data.world import find_task

    index = _world_names(languages).index(name)
    made = find_task("instructions").make(_world(languages, seed), languages, index, split, num_instances=num)
    return tuple((one["input"], one["output"][0]) for one in made["Instances"])


@lru_cache(maxsize=4)
def _world(languages: tuple[str, ...], seed: int) -> World:
    from polyloom.data.world import World

    return World(languages, seed)


@lru_cache(maxsize=4)
def _world_names(languages: tuple[str, ...]) -> list[str]:
    from polyloom.data.world import instruction_tasks

    return [task.name for task in instruction_tasks(languages)]
