"""Pools of tasks: Natural Instructions, promptsource, BIG-Bench, BBH, JSON (lines), CSV, the hub, the world."""

from __future__ import annotations

import csv
import io
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from polyloom.core.errors import MissingExtra, UserError, closest
from polyloom.core.files import json_rows, read_json, read_text
from polyloom.methods.select.cleaning import Cleaning, clean_all

Pair = tuple[str, str]
MAX_EXAMPLES = 5000
OWN_ID = "Give every task its own id."
TASK_KEYS, INSTRUCTION_KEYS = ("task", "task_id", "id", "name"), ("instructions", "instruction", "definition")


@dataclass(frozen=True)
class PoolTask:
    """One training task: its name, raw instructions, and what else its file says."""

    id: str
    instructions: tuple[str, ...]
    category: str = ""
    languages: tuple[str, ...] = ()
    source: str = ""
    examples: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Tasks with cleaned instructions that can be compared, in the order of their ids.

    `notes` says what was left out or looks wrong, for the result's limitations.
    """

    tasks: tuple[PoolTask, ...]
    where: str
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = field(init=False, default=())
    owners: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Lay the instructions of all tasks in one row."""
        pairs = [(text, owner) for owner, task in enumerate(self.tasks) for text in task.instructions]
        object.__setattr__(self, "texts", tuple(text for text, _ in pairs))
        object.__setattr__(self, "owners", tuple(owner for _, owner in pairs))

    @property
    def ids(self) -> list[str]:
        """Names of the tasks."""
        return [task.id for task in self.tasks]

    def place(self, task: str) -> int:
        """Return the number of a task.

        Raises:
            UserError: there is none of this name; the nearest is named, or the names that were glued into one.
        """
        ids = self.ids
        if task in ids:
            return ids.index(task)
        glued = split_glued(task, ids)
        hint = f"It reads like glued names: {', '.join(glued)}." if glued else closest(task, ids[:5000])
        if len(ids) > 20 and hint.startswith("Choose one of"):
            hint = f"The pool has {len(ids)} tasks; `polyloom select lint` lists them."
        raise UserError(f"has no task {task!r}.", where=self.where, hint=hint)

    def without(self, left_out: Iterable[int], note: str = "") -> Pool:
        """Return the pool without some of its tasks."""
        gone = set(left_out)
        kept = tuple(task for number, task in enumerate(self.tasks) if number not in gone)
        return Pool(kept, self.where, (*self.notes, note) if note else self.notes)


def split_glued(name: str, known: Sequence[str]) -> list[str]:
    """Return the known names that `name` is made of when two or more were glued together, else nothing."""
    found = [one for one in known if len(one) > 3 and one in name and one != name]
    found = [one for one in found if not any(one in other and one != other for other in found)]
    rest = name
    for one in found:
        rest = rest.replace(one, "", 1)
    return sorted(found, key=name.index) if len(found) > 1 and not re.search(r"\w", rest.replace("_", "")) else []


def make_pool(tasks: Iterable[PoolTask], where: str, cleaning: Cleaning = "drop") -> Pool:
    """Clean the instructions of tasks and leave out what cannot be compared.

    Raises:
        UserError: two tasks of one id, or nothing remains.
    """
    given = sorted(tasks, key=lambda task: task.id)
    repeated = [a.id for a, b in itertools.pairwise(given) if a.id == b.id]
    if repeated:
        hint = f"{OWN_ID} Instructions of one task go into one list."
        raise UserError(f"the task {repeated[0]!r} stands in it twice ({len(repeated)} such).", where=where, hint=hint)
    cleaned = [replace(task, instructions=tuple(clean_all(task.instructions, cleaning))) for task in given]
    kept = [task for task in cleaned if task.instructions]
    if not kept:
        shown = f" ({len(given)} tasks, none with words in its instructions)" if given else ""
        raise UserError(f"holds no task to compare{shown}.", where=where, hint="Check the file, or --cleaning.")
    empty = [task.id for task in cleaned if not task.instructions]
    notes = []
    if empty:
        notes.append(
            f"{len(empty)} of {len(given)} tasks have no words left after cleaning and are out, first {empty[0]!r}."
        )
    raw, left = sum(len(task.instructions) for task in given), sum(len(task.instructions) for task in kept)
    if raw > left:
        notes.append(f"{raw - left} of {raw} instructions are empty, mere placeholders or repeated inside their task.")
    return Pool(tuple(kept), where, tuple(notes))


def read_pool(
    source: str,
    *,
    cleaning: Cleaning = "drop",
    languages: Sequence[str] = ("en", "de", "es", "tr"),
    original_only: bool = True,
    split: str | None = None,
    num_examples: int = 0,
) -> Pool:
    """Read a pool of tasks and clean their instructions.

    Args:
        source: as for `read_tasks`.
        cleaning: of the instructions.
        languages: of the embedded world.
        original_only: of promptsource, take the templates that state the data set's own task.
        split: keep only the tasks of this split, where the file says it (train, test).
        num_examples: examples to read of each task.

    Raises:
        UserError: it cannot be read, or holds no task; file, task and line are named.
    """
    tasks = read_tasks(source, languages, Options(original_only, split, num_examples))
    return make_pool(tasks, source, cleaning)


@dataclass(frozen=True)
class Options:
    """What of a pool's files is read."""

    original_only: bool = True
    split: str | None = None
    num_examples: int = 0


def read_tasks(source: str, languages: Sequence[str], options: Options) -> list[PoolTask]:
    """Read the tasks of a pool as its files have them.

    Args:
        source: `world`; a folder of Natural Instructions task files, promptsource templates, BIG-Bench tasks or BBH; a
            `.json`, `.jsonl`, `.csv` or `.tsv` file; a saved Hugging Face data set, or `hf:NAME` of the hub.
        languages: of the embedded world.
        options: what of the files is read.

    Raises:
        UserError: it cannot be read; file, task and line are named.
    """
    if source == "world":
        from polyloom.methods.select.world_pool import world_tasks

        return world_tasks(languages)
    if source.startswith("hf:"):
        return list(_read_hub(source.removeprefix("hf:"), options.num_examples))
    path = Path(source)
    if not path.exists():
        raise UserError("there is no such pool.", where=source, hint="Name a file or folder, `world`, or `hf:NAME`.")
    read = _read_folder if path.is_dir() else _reader(path)
    return list(read(path, options))


def _reader(path: Path) -> Callable[[Path, Options], Iterator[PoolTask]]:
    readers: dict[str, Callable[[Path, Options], Iterator[PoolTask]]] = {
        ".json": _read_json,
        ".jsonl": _read_lines,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".yaml": _read_templates,
        ".yml": _read_templates,
    }
    if path.suffix.lower() not in readers:
        raise UserError(
            f"has the unknown ending {path.suffix!r}.", where=str(path), hint=f"Known: {', '.join(sorted(readers))}."
        )
    return readers[path.suffix.lower()]


def _read_folder(path: Path, options: Options) -> Iterator[PoolTask]:
    templates = sorted(path.rglob("templates.yaml"))
    if templates:
        for file in templates:
            yield from _read_templates(file, options)
    elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from _read_saved(path, options)
    elif (path / "cot-prompts").is_dir():
        yield from _read_bbh(path)
    else:
        nested = sorted(path.rglob("task.json"))
        wanted = _split_names(path, options.split)
        for file in nested or sorted(path.glob("*.json")):
            if wanted is None or file.stem in wanted:
                yield from _read_json(file, options)


def _split_names(path: Path, split: str | None) -> set[str] | None:
    """Return the names that a Natural Instructions checkout lists for a split; None where it lists none."""
    if split is None:
        return None
    for root in (path, path.parent):
        file = root / "splits" / "default" / f"{split}_tasks.txt"
        if file.is_file():
            return set(read_text(file).split())
    return None


def _strings(value: Any, where: str) -> tuple[str, ...]:
    """Return a string or list of strings as a tuple."""
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise UserError("is neither a text nor a list of texts.", where=where)
    return tuple(values)


def _first(value: Any) -> str:
    return (
        str(value[0]) if isinstance(value, list) and value else str(value or "") if not isinstance(value, list) else ""
    )


def _read_json(path: Path, options: Options) -> Iterator[PoolTask]:
    repeated: set[str] = set()

    def seen(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.update(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return found

    value = read_json(path, seen)
    if not isinstance(value, dict):
        raise UserError("holds no object.", where=str(path), hint="Write {task: {instructions: [...]}}, or JSON lines.")
    if "Definition" in value or "Instances" in value:
        yield _natural(value, path, options)
    elif "examples" in value and ("description" in value or "name" in value):
        yield _big_bench(value, path, options)
    else:
        for name, entry in value.items():
            if name in repeated:
                raise UserError(f"repeats the task {name!r}.", where=str(path), hint=OWN_ID)
            task = _entry(name, entry, f"{path}: {name}")
            if options.split is None or not isinstance(entry, dict) or entry.get("split") in (None, options.split):
                yield task


def _entry(name: str, entry: Any, where: str) -> PoolTask:
    """Read one task of a JSON object: its instructions alone, or an object with more."""
    if not isinstance(entry, dict):
        return PoolTask(name, _strings(entry, where))
    key = next((key for key in entry if key.lower() in INSTRUCTION_KEYS), None)
    if key is None:
        raise UserError("has no instructions.", where=where, hint=f"Name them {' or '.join(INSTRUCTION_KEYS)}.")
    source = str(entry.get("source_dataset") or entry.get("source") or source_of(name))
    languages = _strings(entry.get("languages"), where)
    return PoolTask(name, _strings(entry[key], f"{where}: {key}"), _first(entry.get("category")), languages, source)


def source_of(name: str) -> str:
    """Return the data set that a Natural Instructions name holds: task001_quoref_question_generation gives quoref."""
    match = re.match(r"task\d+_([a-zA-Z0-9.-]+)", name)
    return match[1] if match else ""


def _natural(value: Mapping[str, Any], path: Path, options: Options) -> PoolTask:
    if not value.get("Definition"):
        raise UserError("has no Definition.", where=str(path), hint="It should hold the task's instruction.")
    instances = value.get("Instances") or []
    pairs = [
        (str(one["input"]), _first(one["output"])) for one in instances[: options.num_examples] if one.get("output")
    ]
    languages = [_first(value.get("Input_language")), _first(value.get("Output_language"))]
    return PoolTask(
        path.stem,
        _strings(value["Definition"], f"{path}: Definition"),
        _first(value.get("Categories")).replace(" ", "_"),
        tuple(dict.fromkeys(language for language in languages if language)),
        _first(value.get("Source")) or source_of(path.stem),
        tuple(pairs),
    )


def _big_bench(value: Mapping[str, Any], path: Path, options: Options) -> PoolTask:
    name = path.parent.name if path.name == "task.json" else path.stem
    texts = _strings(value.get("description"), f"{path}: description") + _strings(value.get("task_prefix"), str(path))
    pairs = []
    for example in value["examples"][: options.num_examples]:
        scores = example.get("target_scores")
        answer = max(scores, key=lambda option: float(scores[option])) if scores else _first(example.get("target"))
        pairs.append((str(example.get("input", "")), answer))
    keywords = value.get("keywords") or [""]
    return PoolTask(name, texts, str(keywords[0]), source=name, examples=tuple(pairs))


def _read_bbh(path: Path) -> Iterator[PoolTask]:
    """Read BIG-Bench Hard: the instruction is the third line of a prompt file, behind a canary and dashes."""
    for file in sorted((path / "cot-prompts").glob("*.txt")):
        lines = read_text(file).splitlines()
        if len(lines) < 3:
            raise UserError("has no third line, where the instruction stands.", where=str(file))
        yield PoolTask(file.stem, (lines[2],), source=file.stem)


class _Templates(yaml.SafeLoader):
    """A safe loader that reads promptsource's two tags as plain mappings."""


def _mapping(loader: _Templates, node: yaml.Node) -> dict[Any, Any]:
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


_Templates.add_constructor("!Template", _mapping)
_Templates.add_constructor("!TemplateMetadata", _mapping)


def _read_templates(path: Path, options: Options) -> Iterator[PoolTask]:
    try:
        value = yaml.load(read_text(path), Loader=_Templates)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError("is not YAML.", where=f"{path}:{mark.line + 1}" if mark else str(path)) from error
    if not isinstance(value, dict) or not isinstance(value.get("templates"), dict):
        raise UserError("holds no templates.", where=str(path), hint="It should be promptsource's templates.yaml.")
    found = list(value["templates"].values())
    original = [one for one in found if (one.get("metadata") or {}).get("original_task", True)]
    # A data set without a template of its own task is told by the others rather than lost.
    chosen = [str(one["jinja"]) for one in (original if options.original_only and original else found)]
    languages = {code for one in found for code in (one.get("metadata") or {}).get("languages") or ()}
    name = "/".join(str(part) for part in (value.get("dataset"), value.get("subset")) if part)
    yield PoolTask(name or path.parent.name, tuple(chosen), "", tuple(sorted(languages)), str(value.get("dataset", "")))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON lines file.

    Raises:
        UserError: a line that is no JSON object; it is named.
    """
    return [row for _, row in json_rows(read_text(path), path)]


def _read_lines(path: Path, options: Options) -> Iterator[PoolTask]:
    return _gather([(f"{path}: row {number}", row) for number, row in enumerate(read_rows(path), 1)], options)


def _read_csv(path: Path, options: Options) -> Iterator[PoolTask]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    return _gather([(f"{path}:{number}", row) for number, row in enumerate(reader, 2)], options)


def _gather(rows: Iterable[tuple[str, Mapping[str, Any]]], options: Options) -> Iterator[PoolTask]:
    """Collect rows of one task: instructions are pooled, input and output become its examples.

    Rows that hold a list of instructions are whole tasks: their id may stand once.
    """
    tasks: dict[str, PoolTask] = {}
    for where, row in rows:
        if options.split is not None and row.get("split") not in (None, options.split):
            continue
        key = next((key for key in INSTRUCTION_KEYS if row.get(key) is not None), None)
        name = next((str(row[one]) for one in TASK_KEYS if row.get(one) not in (None, "")), "")
        if key is None or not name:
            lacks = "an instruction" if key is None else "a task"
            hint = f"Needed: {' or '.join(TASK_KEYS)}; {' or '.join(INSTRUCTION_KEYS)}."
            raise UserError(f"has no field for {lacks}.", where=where, hint=hint)
        whole = "input" not in row
        if name in tasks and whole:
            raise UserError(f"repeats the task {name!r}.", where=where, hint=OWN_ID)
        old = tasks.get(name, PoolTask(name, (), source=source_of(name)))
        said = tuple(dict.fromkeys(old.instructions + _strings(row[key], where)))
        pairs = old.examples
        if not whole and len(pairs) < options.num_examples:
            pairs = (*pairs, (str(row["input"]), _first(row.get("output"))))
        tasks[name] = replace(
            old,
            instructions=said,
            category=_first(row.get("category")) or old.category,
            source=str(row.get("source_dataset") or row.get("source") or old.source),
            examples=pairs,
        )
    return iter(tasks.values())


def _rows_of(name: str, table: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"{name}: row {number}", row) for number, row in enumerate(table)]


def _read_saved(path: Path, options: Options) -> Iterator[PoolTask]:
    datasets = _import_datasets()
    loaded = datasets.load_from_disk(str(path))
    tables = loaded.values() if isinstance(loaded, dict) else [loaded]
    return _gather([row for table in tables for row in _rows_of(str(path), table)], options)


def _read_hub(name: str, num_examples: int) -> Iterator[PoolTask]:
    datasets = _import_datasets()
    try:
        table = datasets.load_dataset(name, split="train")
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"cannot be loaded: {reason.rstrip('.')}.", where=f"hf:{name}", hint="Check name and network."
        ) from error
    return _gather(_rows_of(name, table), Options(num_examples=num_examples))


def _import_datasets() -> Any:
    try:
        import datasets  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtra("datasets", extra="datasets") from error
    return datasets


def sample_examples(pool: Pool, chosen: Sequence[int], num: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield `num` rows (task, instruction, input, output) from the chosen tasks in equal shares, with replacement."""
    rng = random.Random(seed)
    usable = [pool.tasks[i] for i in chosen if pool.tasks[i].examples]
    for _ in range(num):
        task = rng.choice(usable)
        given, answer = rng.choice(task.examples)
        yield task.id, rng.choice(task.instructions), given, answer
