"""A meta-dataset of instruction tasks in the form of Super-NaturalInstructions, with the true relatedness of every
two tasks.

A task is an operation on a kind of meaning in one or two languages. Two tasks are related by what they share of the
three, so that a method that selects tasks can be scored exactly. The definitions are in English, in 24 wordings each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polyloom.data.world.frames import Frame, python_date, shifted
from polyloom.data.world.matching import different
from polyloom.data.world.monolingual import any_frame
from polyloom.data.world.render import template
from polyloom.data.world.templates import LANGUAGES
from polyloom.data.world.wordings import CALLED, ENDINGS, KINDS, OPENINGS, OPERATIONS
from polyloom.data.world.world import Draw

Pair = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One task: an operation on a kind, from one language into one (the same twice where only one is involved)."""

    operation: str
    kind: str
    source: str
    target: str

    @property
    def name(self) -> str:
        """The task's name, unique in the set."""
        languages = [self.source] if self.source == self.target else [self.source, self.target]
        return "_".join([self.operation, self.kind, *languages])


def wordings(task: Instruction) -> list[str]:
    """Return 24 wordings of a task's definition, all different, in a fixed order."""
    result = []
    for imperative in OPERATIONS[task.operation][1]:
        said = imperative.format(k=CALLED[task.kind], a=LANGUAGES[task.source], b=LANGUAGES[task.target])
        said = re.sub(r"\ba (?=[AEIOaeio])", "an ", said)
        for opening in OPENINGS:
            result += [opening.format(s=said, S=said[0].upper() + said[1:]) + ending for ending in ENDINGS]
    return result


def instruction_tasks(languages: Sequence[str]) -> list[Instruction]:
    """Return all tasks over the given languages; with four languages about 240.

    Args:
        languages: template languages; more than six are cut to the first six.
    """
    used = list(languages)[:6]
    found = []
    for operation, (kinds, _) in OPERATIONS.items():
        for kind in kinds:
            if operation == "translate":
                found += [
                    Instruction(operation, kind, a, b) for a, b in zip(used, used[1:] + used[:1], strict=True) if a != b
                ]
            elif operation == "identify_language":
                found.append(Instruction(operation, kind, used[0], used[0]))
            else:
                found += [Instruction(operation, kind, a, a) for a in used]
    return found


def relatedness(tasks: Sequence[Instruction]) -> list[list[float]]:
    """Return the true relatedness of every two tasks: the mean of shared operation, shared kind and shared languages.

    Args:
        tasks: n tasks.

    Returns:
        An n by n symmetric matrix with 1 on the diagonal; languages count as the overlap of the two sets.
    """

    def languages(task: Instruction) -> set[str]:
        return {task.source, task.target}

    def related(a: Instruction, b: Instruction) -> float:
        overlap = len(languages(a) & languages(b)) / len(languages(a) | languages(b))
        return ((a.operation == b.operation) + (a.kind == b.kind) + overlap) / 3

    return [[related(a, b) for b in tasks] for a in tasks]


# ---- instances: each returns (input, output, why)


def _say(draw: Draw, language: str, frame: Frame, **options: Any) -> str:
    return draw.world.text(frame, language, **options).text


def _kind_frame(draw: Draw, task: Instruction) -> Frame:
    return any_frame(draw, task.kind)


def _translate(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    frame = _kind_frame(draw, task)
    return _say(draw, task.source, frame), _say(draw, task.target, frame), f"Both say {frame.iso()}."


def _normalise(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    frame = _kind_frame(draw, task)
    return _say(draw, task.source, frame), frame.iso(), "The code is the canonical form."


def _verbalise(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    frame = _kind_frame(draw, task)
    return frame.iso(), _say(draw, task.source, frame), "The text says the code."


def _same_meaning(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    while True:
        frame, label = _kind_frame(draw, task), draw.rng.random() < 0.5
        other = frame if label else different(draw, frame, 2)
        if (other == frame) == label:
            break
    styles: dict[str, Any] = (
        {"variant": 1}
        if task.kind == "diary"
        else {"style": {"date": "long", "measure": "short", "money": "symbol"}[task.kind]}
    )
    given = f"{_say(draw, task.source, frame)} | {_say(draw, task.source, other, **styles)}"
    return given, "yes" if label else "no", f"They say {frame.iso()} and {other.iso()}."


def _identify(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    language = draw.rng.choice(list(languages))
    return _say(draw, language, _kind_frame(draw, task)), LANGUAGES[language], "The words are of this language."


_PLACE = {"date": 0, "city": 1, "measure": 2, "money": 3}


def _slot_text(draw: Draw, task: Instruction, diary: Frame) -> tuple[str, str, Frame]:
    part = diary.args[_PLACE[task.kind]]
    frame = part if isinstance(part, Frame) else Frame("name", ("city", part))
    return _say(draw, task.source, diary), _say(draw, task.source, frame), frame


def _extract(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    note, answer, _ = _slot_text(draw, task, draw.diary())
    return note, answer, f"The note holds this {CALLED[task.kind]}."


def _fill_gap(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    note, answer, frame = _slot_text(draw, task, draw.diary())
    code = answer if task.kind == "city" else frame.iso()
    if task.kind == "city":
        other = next((code for code in languages if code != task.source), task.source)
        code = _say(draw, other, frame)
    return f"{code} | {note.replace(answer, '___', 1)}", answer, "The gap takes what the code says."


def _comparable(draw: Draw, task: Instruction, length: int) -> list[Frame]:
    """Draw different meanings of one unit, so that they can be ordered."""
    frames: list[Frame] = []
    # A unit and a currency of which this split has amounts.
    unit, currency = draw.phrase("measure").args[1], draw.phrase("money").args[1]
    makers: dict[str, Callable[[], Frame]] = {
        "measure": lambda: draw.until(lambda: draw.measure(unit)),
        "money": lambda: draw.until(lambda: draw.money(currency)),
    }
    make = makers.get(task.kind, lambda: draw.phrase(task.kind))
    for _ in range(400):
        frame = make()
        if frame not in frames:
            frames.append(frame)
        if len(frames) == length:
            return frames
    return _comparable(draw, task, length)


def _compare(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    first, second = _comparable(draw, task, 2)
    greater = max((first, second), key=_order)
    return (
        f"{_say(draw, task.source, first)} | {_say(draw, task.source, second)}",
        _say(draw, task.source, greater),
        "It is the greater.",
    )


def _order(frame: Frame) -> Any:
    return frame.args if frame.kind == "date" else frame.args[0]


def _sort(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    frames = _comparable(draw, task, draw.rng.randint(3, 4))
    said = [_say(draw, task.source, frame) for frame in frames]
    rising = [_say(draw, task.source, frame) for frame in sorted(frames, key=_order)]
    return " | ".join(said), " | ".join(rising), "Each item is smaller than the next."


def _count(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    frame = draw.phrase("list")
    items: Any = frame.args[1]
    return (
        _say(draw, task.source, frame),
        str(len(items)),
        "The items are " + ", ".join(item.iso() for item in items) + ".",
    )


def _day(step: int) -> Callable[[Draw, Instruction, Sequence[str]], Pair]:
    def make(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
        date = draw.phrase("date")
        return (
            _say(draw, task.source, date, style="long"),
            _say(draw, task.source, shifted(date, step), style="long"),
            f"From {date.iso()}.",
        )

    return make


def _weekday(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    date = draw.phrase("date")
    day = python_date(date).isoweekday()
    return (
        _say(draw, task.source, date, style="long"),
        _say(draw, task.source, Frame("name", ("weekday", str(day)))),
        f"{date.iso()} is day {day} of its week.",
    )


def _continue(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    size = 7 if task.kind == "weekday" else 12
    start = draw.rng.randrange(size)
    step = draw.rng.choice((1, 2, 3))
    numbers = [(start + step * i) % size + 1 for i in range(draw.rng.choice((3, 4)))]
    codes = [str(n) if size == 7 else f"{n:02d}" for n in numbers]
    names = [_say(draw, task.source, Frame("name", (task.kind, code))) for code in codes]
    return " | ".join(names[:-1]), names[-1], f"The step is {step}."


_RELATION = {"currency": "P38", "language": "P37", "region": "P361", "country": "P17"}


def _answer(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    relation = _RELATION[task.kind]
    fact = draw.fact(relation)
    kind = "territory" if relation == "P17" else task.kind
    question = _say(draw, task.source, Frame("question", (relation, fact.args[1])))
    answer = _say(draw, task.source, Frame("name", (kind, fact.args[2])))
    return question, answer, _say(draw, task.source, fact)


def _classify(draw: Draw, task: Instruction, languages: Sequence[str]) -> Pair:
    kind = draw.rng.choice([kind for kind in KINDS if kind != "name"])
    return _say(draw, task.source, draw.phrase(kind)), kind, f"The phrase is a {CALLED[kind]}."


_MAKERS: dict[str, Callable[[Draw, Instruction, Sequence[str]], Pair]] = {
    "translate": _translate,
    "normalise": _normalise,
    "verbalise": _verbalise,
    "same_meaning": _same_meaning,
    "identify_language": _identify,
    "extract": _extract,
    "compare": _compare,
    "sort": _sort,
    "count": _count,
    "next_day": _day(1),
    "previous_day": _day(-1),
    "weekday": _weekday,
    "continue_list": _continue,
    "answer_fact": _answer,
    "fill_gap": _fill_gap,
    "classify_kind": _classify,
}


def make_instance(draw: Draw, task: Instruction, languages: Sequence[str]) -> dict[str, Any]:
    """Make one instance of a task: `input`, `output` (a list of one, as in the public set) and the reason."""
    given, answer, why = _MAKERS[task.operation](draw, task, languages)
    return {"input": given, "output": [answer], "explanation": why}


def instructions(draw: Draw, languages: Sequence[str], index: int, *, num_instances: int = 10) -> dict[str, Any]:
    """Make task `index` of the meta-dataset with its instances.

    Args:
        draw: names the split: the tasks are the same in all splits, their instances differ.
        languages: template languages.
        index: number of the task; it wraps round at the end.
        num_instances: instances beside the four examples.
    """
    tasks = draw.world.pool(("instructions", tuple(languages)), lambda: instruction_tasks(languages))
    task = tasks[index % len(tasks)]
    for code in languages:
        template(code, "P38")
    made = [
        make_instance(draw.world.draw(task.name, i, draw.split, draw.mode), task, languages)
        for i in range(num_instances + 4)
    ]
    shown = [{"input": one["input"], "output": one["output"][0], "explanation": one["explanation"]} for one in made[:3]]
    wrong = {
        "input": made[3]["input"],
        "output": _wrong(made, 3),
        "explanation": "This is the answer to another input.",
    }
    said = wordings(task)
    return {
        "name": task.name,
        "Definition": [said[0]],
        "Wordings": said,
        "Positive Examples": shown,
        "Negative Examples": [wrong],
        "Categories": [task.operation],
        "Domains": [task.kind],
        "Source": ["CLDR world"],
        "Input_language": [LANGUAGES[task.source]],
        "Output_language": [LANGUAGES[task.target]],
        "Instances": [
            {"id": f"{task.name}-{i}", "input": one["input"], "output": one["output"]} for i, one in enumerate(made[4:])
        ],
    }


def _wrong(made: Sequence[dict[str, Any]], index: int) -> str:
    right = made[index]["output"][0]
    return next((str(one["output"][0]) for one in made if one["output"][0] != right), "")
