"""The target of a selection: from options to cleaned instructions, and a pool that does not hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.methods.select.cleaning import clean_all
from polyloom.methods.select.config import PoolConfig, TargetConfig
from polyloom.methods.select.data import Pair, Pool, PoolTask, read_pool
from polyloom.methods.select.lexical import LEXICAL
from polyloom.methods.select.linting import foreign_share
from polyloom.methods.select.scoring import LATENT
from polyloom.methods.select.world_pool import world_examples, world_target

FOREIGN_SHARE = 0.1
SHOWN = 60
FEW_EXAMPLES = 20


@dataclass(frozen=True)
class Target:
    """The target task: its name, cleaned instructions, category and data set where known, examples where read."""

    name: str
    instructions: tuple[str, ...]
    category: str = ""
    source: str = ""
    examples: tuple[Pair, ...] = ()
    mapped: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """What scorers compare: what a dictionary made of the instructions, or they themselves."""
        return self.mapped or self.instructions


def load_pool(config: PoolConfig, num_examples: int = 0) -> Pool:
    """Read the pool that a configuration names."""
    return read_pool(
        config.pool,
        cleaning=config.cleaning,
        languages=config.languages,
        split=config.split,
        num_examples=num_examples,
    )


def resolve(config: TargetConfig, num_examples: int = 0) -> tuple[Target, Pool]:
    """Read pool and target, and leave the target out of the pool.

    Raises:
        UserError: no target or several, one without words, an unknown task, or fewer than two tasks remain.
    """
    given = [name for name in ("target", "target_task", "target_file") if getattr(config, name)]
    if not given:
        hint = "Give --target TEXT, --target-task ID or --target-file PATH."
        raise UserError("no target is given.", where="--target", hint=hint)
    if "target" in given and len(given) > 1:
        raise UserError("a target text and a target task or file are given.", where="--target", hint="Give one.")
    pool = load_pool(config, num_examples)
    if config.target_file:
        target = _from_file(config, config.target_file, num_examples)
    elif config.target_task:
        task = pool.tasks[pool.place(config.target_task)]
        said = task.instructions
        if config.pool == "world":
            said = tuple(clean_all(world_target(task.id, config.languages), config.cleaning))
        target = Target(task.id, said, task.category, task.source, task.examples)
    else:
        target = Target(config.target[0][:SHOWN], tuple(clean_all(config.target, config.cleaning)))
    if not target.instructions:
        hint = "Say in words what the task is; placeholders alone state none."
        raise UserError("the target has no words left after cleaning.", where="--target", hint=hint)
    return _mapped(config, target, _leave_out(pool, target))


def _mapped(config: TargetConfig, target: Target, pool: Pool) -> tuple[Target, Pool]:
    """Return the target with its words in the pool's language as well, where a dictionary is given."""
    if not config.dictionary:
        return target, pool
    from polyloom.methods.select.crossing import read_mapping

    mapping = read_mapping(config.dictionary, target.instructions)
    share = mapping.share_known(target.instructions)
    note = f"The dictionary has {share:.0%} of the target's words; the others stay as they are."
    return replace(target, mapped=tuple(map(mapping, target.instructions))), pool.without([], note)


def _from_file(config: TargetConfig, path: str, num_examples: int) -> Target:
    if Path(path).suffix == ".txt":
        lines = clean_all(read_text(Path(path)).splitlines(), config.cleaning)
        return Target(Path(path).stem, tuple(lines))
    tasks = read_pool(path, cleaning=config.cleaning, num_examples=num_examples).tasks
    if config.target_task:
        tasks = tuple(task for task in tasks if task.id == config.target_task)
    if len(tasks) != 1:
        found = f"holds {len(tasks)} tasks" if not config.target_task else f"has no task {config.target_task!r}"
        raise UserError(f"{found}, where one target is needed.", where=path, hint="Name it with --target-task.")
    one = tasks[0]
    return Target(one.id, one.instructions, one.category, one.source, one.examples)


def _leave_out(pool: Pool, target: Target) -> Pool:
    said = {text.casefold() for text in target.instructions}
    same = [
        number
        for number, task in enumerate(pool.tasks)
        if task.id == target.name or {text.casefold() for text in task.instructions} <= said
    ]
    note = ""
    if same:
        names = ", ".join(pool.tasks[number].id for number in same[:3])
        note = f"The target is in the pool ({names}) and was left out of it."
    if len(pool.tasks) - len(same) < 2:
        left = len(pool.tasks) - len(same)
        raise UserError(
            f"holds {left} task{'' if left == 1 else 's'} beside the target: there is nothing to choose.",
            where=pool.where,
            hint="Give a pool of two tasks or more.",
        )
    return pool.without(same, note) if same else pool


def aim_of(config: TargetConfig, target: Target, option: str) -> PoolTask:
    """Return the target as a task with examples.

    Raises:
        UserError: it has none.
    """
    examples = target.examples
    if config.pool == "world" and config.target_task and not config.target_file:
        examples = world_examples(target.name, config.languages, "train", FEW_EXAMPLES, config.seed)
    if not examples:
        hint = "Name a task of the pool with --target-task, or give --target-file rows with input and output."
        raise UserError("the target has no examples.", where=option, hint=hint)
    return PoolTask(target.name, target.instructions, examples=examples)


def with_some_examples(config: TargetConfig, pool: Pool, wanted: Sequence[int], num: int) -> Pool:
    """Return the pool itself, or the world's with a few examples of the wanted tasks."""
    if config.pool != "world":
        return pool
    tasks = list(pool.tasks)
    for i in wanted:
        made = world_examples(tasks[i].id, config.languages, "train", num, config.seed)
        tasks[i] = replace(tasks[i], examples=made)
    return Pool(tuple(tasks), pool.where, pool.notes)


def without_source(pool: Pool, target: Target) -> Pool:
    """Return the pool without tasks that were made from the target's own data set."""
    if not target.source:
        raise UserError("the target's data set is not known.", where="--exclude-same-source", hint="Drop the option.")
    same = [number for number, task in enumerate(pool.tasks) if task.source == target.source]
    if len(pool.tasks) - len(same) < 2:
        raise UserError("nothing else is in the pool.", where="--exclude-same-source", hint="Drop the option.")
    return pool.without(same, f"{len(same)} tasks of the data set {target.source} were left out.") if same else pool


def language_notes(target: Target, pool: Pool, scorers: Sequence[str]) -> list[str]:
    """Say which share of the instructions is not English, and what that does to the scorers asked for."""
    notes = []
    theirs, own = foreign_share(pool.texts), foreign_share(target.compared)
    encoders = [name for name in scorers if name not in (*LEXICAL, LATENT)]
    if encoders and max(theirs, own) > FOREIGN_SHARE:
        notes.append(
            f"{theirs:.0%} of the pool's and {own:.0%} of the target's instructions are not English: use a "
            "multilingual encoder if this one is English, or the scorer char."
        )
    elif abs(theirs - own) > 0.5:
        notes.append(
            "Target and pool are in different languages: words in common are few, so a lexical ranking means little. "
            "Use a multilingual encoder, or write the target in the pool's language."
        )
    elif FOREIGN_SHARE < theirs < 1 - FOREIGN_SHARE:
        notes.append(f"The pool mixes languages ({theirs:.0%} not English): tasks in the target's language rank first.")
    return notes
