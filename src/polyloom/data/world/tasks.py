"""The tasks of the world by name: one way to make records, to export them in public formats, and to count them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.data.world import labelled, monolingual
from polyloom.data.world.chat import chat
from polyloom.data.world.documents import documents
from polyloom.data.world.instructions import instruction_tasks, instructions
from polyloom.data.world.matching import matching
from polyloom.data.world.nli import nli
from polyloom.data.world.world import World, check_languages, has_sentences, warn_supply

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A kind of data set.

    Attributes:
        name: its name on the command line.
        description: one sentence.
        fields: the record's fields and what they hold.
        num_languages: how many languages one record takes, at least and at most (None: any number).
        formats: the public formats that it is exported in, the usual one first.
        needs_sentences: it works in the template languages alone.
        generator: makes the record from its meanings, languages and number.
    """

    name: str
    description: str
    fields: Mapping[str, str]
    num_languages: tuple[int, int | None]
    formats: tuple[str, ...]
    generator: Callable[..., Record] = field(repr=False)
    needs_sentences: bool = True
    columns: tuple[str, ...] = ()

    def make(
        self,
        world: World,
        languages: Sequence[str],
        index: int,
        split: str = "all",
        split_mode: str = "random",
        **options: Any,
    ) -> Record:
        """Make one record: it depends on the world's seed, the task, the split and the index, on no other record.

        Args:
            world: languages, facts and seed.
            languages: of the world's languages, as many as the task takes.
            index: number of the record.
            split: "train", "valid", "test", or "all" for no restriction.
            split_mode: "random", "entities" or "composition".
            options: of the task's generator.
        """
        return self.generator(world.draw(self.name, index, split, split_mode), tuple(languages), index, **options)


def _task(
    name: str,
    description: str,
    fields: str,
    num_languages: tuple[int, int | None],
    formats: str,
    generator: Callable[..., Record],
    columns: str = "",
    needs_sentences: bool = True,
) -> Task:
    pairs = dict(part.split(": ", 1) for part in fields.split("; "))
    return Task(
        name,
        description,
        pairs,
        num_languages,
        tuple(formats.split()),
        generator,
        needs_sentences,
        tuple(columns.split()),
    )


_ALL = (
    _task(
        "text",
        "Monolingual documents of 3 to 12 sentences.",
        "text: the document; language: its code; meta: kind and number of sentences",
        (1, 1),
        "jsonl txt",
        monolingual.text,
    ),
    _task(
        "parallel",
        "One meaning in two or more languages.",
        "translation: language -> text; kind: of the meaning; meaning: its canonical form",
        (2, None),
        "jsonl tsv",
        monolingual.parallel,
        needs_sentences=False,
    ),
    _task(
        "dictionary",
        "Names, months, weekdays, scripts and units in two languages.",
        "source: word; target: word; source_language: code; target_language: code; "
        "kind: of the name; code: what it names; "
        "multiword: has blanks",
        (2, 2),
        "muse tsv jsonl",
        monolingual.dictionary,
        "source target",
        needs_sentences=False,
    ),
    _task(
        "tagging",
        "Token tags in BIO form; the same tags in all languages.",
        "tokens: the words; ner_tags: one tag per token; language: code; meaning: canonical form",
        (1, 1),
        "iob2 jsonl",
        labelled.tagging,
        needs_sentences=False,
    ),
    _task(
        "topic",
        "The kind of a phrase.",
        "text: the phrase; label: its kind; language: code",
        (1, 1),
        "jsonl tsv",
        labelled.topic,
        "text label",
        needs_sentences=False,
    ),
    _task(
        "language_id",
        "The language of a phrase.",
        "text: the phrase; label: language code",
        (2, None),
        "jsonl tsv",
        labelled.language_id,
        "text label",
        needs_sentences=False,
    ),
    _task(
        "intent",
        "The intent of a request.",
        "text: the request; label: one of 8 intents; language: code",
        (1, 1),
        "jsonl tsv",
        labelled.intent,
        "text label",
    ),
    _task(
        "nli",
        "Premise and hypothesis; a second language is the hypothesis's.",
        "premise: text; hypothesis: text; label: entailment, neutral or contradiction; "
        "languages: codes; meaning: of both",
        (1, 2),
        "jsonl tsv",
        nli,
        "premise hypothesis label",
    ),
    _task(
        "parse",
        "A phrase and its canonical form.",
        "domain: kind; utterance: text; semantic_parse: canonical form; language: code",
        (1, 1),
        "tsv jsonl",
        labelled.parse,
        "domain utterance semantic_parse",
        needs_sentences=False,
    ),
    _task(
        "top",
        "A request and its bracketed meaning, as TOPv2.",
        "domain: of the intent; utterance: text; semantic_parse: brackets; language: code",
        (1, 1),
        "tsv jsonl",
        labelled.top,
        "domain utterance semantic_parse",
    ),
    _task(
        "matching",
        "Two texts that mean the same or not, at hardness 0 to 3; a second language is the second text's.",
        "sentence1: text; sentence2: text; label: 1 for the same meaning; hardness: 0 to 3; languages: codes",
        (1, 2),
        "jsonl tsv",
        matching,
        "sentence1 sentence2 label",
        needs_sentences=False,
    ),
    _task(
        "documents",
        "Documents with entities and relations, as DocRED; the same graph in every language.",
        "title: of the document; sents: tokens of each sentence; "
        "vertexSet: mentions of each entity; labels: relations with evidence; "
        "language: code; text: untokenised",
        (1, 1),
        "json jsonl",
        documents,
    ),
    _task(
        "instructions",
        "Instruction tasks as Super-NaturalInstructions, with 24 wordings each.",
        "name: of the task; Definition: instruction; Wordings: all instructions; "
        "Positive Examples: with reasons; Negative Examples: wrong; "
        "Categories: operation; Domains: kind; Source: of the data; Input_language: name; "
        "Output_language: name; Instances: inputs, outputs",
        (1, None),
        "jsonl json",
        instructions,
    ),
    _task(
        "chat",
        "Questions on currencies; those of sealed territories are refused.",
        "messages: role and content; sealed: restricted; refused: a refusal is given; "
        "answer: true code; answer_text: its name; territory: code; "
        "language: code",
        (1, 1),
        "jsonl",
        chat,
    ),
    _task(
        "trees",
        "Dependency trees, UD-like by construction.",
        "sent_id: number; text: sentence; language: code; tokens: words; upos: parts of speech; "
        "heads: from 1, 0 the root; deprels: relations; "
        "space_after: blank behind the word; meaning: canonical form",
        (1, 1),
        "conllu jsonl",
        labelled.trees,
    ),
    _task(
        "summary",
        "A journey's diary and its exact summary in another language.",
        "text: the diary; summary: the summary; source_language: code; target_language: code; slots: what it must hold",
        (1, 2),
        "jsonl tsv",
        monolingual.summary,
        "text summary",
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        UserError: there is none; the nearest name is suggested.
    """
    if name not in TASKS:
        raise UserError(f"The world has no task {name!r}.", hint=closest(name, TASKS))
    return TASKS[name]


def _check(world: World, task: Task, languages: Sequence[str]) -> tuple[str, ...]:
    low, high = task.num_languages
    if task.num_languages == (1, 2) and len(languages) == 2 and languages[0] == languages[1]:
        raise UserError("Source and target are the same language.", hint="Give one language, or two different ones.")
    codes = check_languages(languages, sentences=task.needs_sentences)
    if len(codes) < low or (high is not None and len(codes) > high):
        wanted = str(low) if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        raise UserError(f"{task.name} takes {wanted} languages, not {len(codes)}.", hint="Change --languages.")
    for code in codes:
        if code not in world.languages:
            raise UserError(f"This world does not speak {code!r}.", hint=f"It speaks: {', '.join(world.languages)}.")
        if world.kind_of_facts == "invented" and not has_sentences(code):
            raise UserError(f"Invented facts are told in template languages alone, not in {code!r}.")
    return codes


def supply(world: World, task: str, languages: Sequence[str]) -> int | None:
    """Return the number of distinct records of a task whose supply is small; None where it does not run out."""
    if task == "dictionary":
        return len(monolingual.entries(world))
    return len(instruction_tasks(languages)) if task == "instructions" else None


def records(
    world: World,
    task: str,
    languages: Sequence[str],
    n: int,
    split: str = "train",
    split_mode: str = "random",
    **options: Any,
) -> Iterator[Record]:
    """Make `n` records of a task; in a task of one language the given languages take turns with the same meanings.

    Args:
        world: languages, facts and seed.
        task: a name of `TASKS`.
        languages: of the world's; for tasks of one language several may be given: each meaning is said in all of them
            in turn.
        n: number of records.
        split: "train", "valid", "test", or "all".
        split_mode: "random", "entities" or "composition".
        options: of the task, such as `hardness=3`.

    Raises:
        UserError: an unknown name, a wrong number of languages, or `n` below 1.
    """
    if n < 1:
        raise UserError(f"The number of records is {n}.", hint="Ask for at least 1.")
    found = find_task(task)
    several = found.num_languages == (1, 1)
    codes = tuple(languages)
    for group in [(code,) for code in codes] if several and codes else [codes]:
        _check(world, found, group)
    limit = supply(world, task, codes)
    if limit is not None:
        warn_supply(task, n, limit)
    return _records(world, found, codes, n, split, split_mode, options)


def _records(
    world: World, task: Task, codes: tuple[str, ...], n: int, split: str, mode: str, options: Mapping[str, Any]
) -> Iterator[Record]:
    several = len(codes) if task.num_languages == (1, 1) else 1
    for i in range(n):
        chosen = (codes[i % several],) if several > 1 else codes
        try:
            record = task.make(world, chosen, i // several, split, mode, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise UserError(f"The task {task.name!r} has no such option: {error}.", hint="See docs/world.md.") from None
        yield record
