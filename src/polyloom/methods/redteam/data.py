"""The user's files: behaviours in the public forms, refusal keywords, responses, labels, and JailbreakBench
artefacts."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import json_rows, read_text

SUFFIX_MARK = "{suffix}"
TARGET_TEMPLATE = "Sure, here is {goal}"
CONTEXT_SEPARATOR = "\n\n---\n\n"
GOAL_COLUMNS = ("goal", "behavior")
COPYRIGHT = "copyright"


@dataclass(frozen=True)
class Behaviour:
    """What the owner's model should refuse, or should answer.

    Attributes:
        goal: the question or request.
        target: the opening of an answer that is aimed at.
        context: text that stands before the goal in the prompt.
        category: the file's own category.
        answer: the true answer where it is known; then success has an exact label.
        group: what the goal is about; behaviours of one group are not split between training and test.
        key: the file's own number.
    """

    goal: str
    target: str = ""
    context: str = ""
    category: str = ""
    answer: str = ""
    group: str = ""
    key: str = ""

    @property
    def prompt(self) -> str:
        """What the user says: the context, if any, and the goal."""
        return f"{self.context}{CONTEXT_SEPARATOR}{self.goal}" if self.context else self.goal


@dataclass(frozen=True)
class Behaviours:
    """The rows of a file and what was left out of it."""

    rows: tuple[Behaviour, ...]
    num_duplicates: int = 0
    num_empty: int = 0
    num_copyright: int = 0

    @property
    def notes(self) -> list[str]:
        """Say what was left out."""
        told = (
            (self.num_duplicates, "duplicate goals were dropped"),
            (self.num_empty, "rows without a goal were skipped"),
            (self.num_copyright, "copyright rows were skipped: they need another kind of judge"),
        )
        return [f"{count} {what}." for count, what in told if count]


def read_behaviours(file: str, targets: str = "", target_template: str = TARGET_TEMPLATE) -> Behaviours:
    """Read behaviours: CSV or JSONL in the headers of AdvBench, JailbreakBench or HarmBench, or plain text, one
    goal a line.

    Args:
        file: `.csv`, `.jsonl`, or text.
        targets: JSON file {BehaviorID: target} for HarmBench's form.
        target_template: the target of rows that bring none; `{goal}` stands for the goal.

    Raises:
        UserError: unreadable, without a goal column, or without a single usable row.
    """
    path = Path(file)
    text = read_text(path, encoding="utf-8-sig")
    if path.suffix == ".csv":
        records = _read_csv(text, file)
    elif path.suffix in (".jsonl", ".json"):
        records = [_lower(record) for _, record in json_rows(text, file)]
    else:
        records = [{"goal": line.strip()} for line in text.splitlines()]
    named = json.loads(read_text(Path(targets))) if targets else {}
    rows = [_behaviour(record, named, target_template) for record in records]
    usable = [row for row, record in zip(rows, records, strict=True) if row.goal and not _is_copyright(record)]
    unique = {row.prompt: row for row in reversed(usable)}
    kept = tuple(row for row in usable if unique.pop(row.prompt, None))
    if not kept:
        raise UserError(f"holds no usable goal in {len(records)} rows.", where=file, hint="Put one in each row.")
    num_copyright = sum(_is_copyright(record) for record in records)
    num_empty = sum(not row.goal for row in rows)
    return Behaviours(kept, len(usable) - len(kept), num_empty, num_copyright)


def _read_csv(text: str, file: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    records = [_lower(record) for record in reader]
    names = [str(name).lower().strip() for name in reader.fieldnames or ()]
    if not set(names) & set(GOAL_COLUMNS):
        raise UserError(
            f"has the columns {', '.join(names) or '(none)'} over {len(records)} rows; needed is goal or Behavior.",
            where=file,
            hint="Name the column with the requests `goal`.",
        )
    return records


def _lower(record: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key).lower().strip(): str(value or "").strip() for key, value in record.items() if key is not None}


def _is_copyright(record: Mapping[str, str]) -> bool:
    return record.get("functionalcategory", "").lower() == COPYRIGHT


def _behaviour(record: Mapping[str, str], targets: Mapping[str, str], template: str) -> Behaviour:
    # JailbreakBench's `Behavior` is a short title of the goal; HarmBench's is the goal.
    goal = record.get("goal") or record.get("behavior", "")
    key = record.get("behaviorid") or record.get("index") or record.get("id", "")
    target = record.get("target") or str(targets.get(key, "")) or template.format(goal=goal[:1].lower() + goal[1:])
    category = record.get("category") or record.get("semanticcategory", "")
    return Behaviour(goal, target, record.get("contextstring", ""), category, record.get("answer", ""), key=key)


def split_behaviours(
    rows: Sequence[Behaviour], num_train: int, num_test: int
) -> tuple[list[Behaviour], list[Behaviour]]:
    """Take the first `num_train` rows to optimise on and further ones, of other groups, to test on.

    Raises:
        UserError: too few rows for a test.
    """
    train = list(rows[:num_train])
    groups = {row.group for row in train if row.group}
    goals = {row.prompt for row in train}
    rest = [row for row in rows[num_train:] if row.group not in groups and row.prompt not in goals]
    if len(train) < num_train or not rest:
        raise UserError(
            f"there are {len(rows)} behaviours, too few for {num_train} to search on and others to test on.",
            where="--behaviours",
            hint="Give more, or lower --num-train.",
        )
    return train, rest[:num_test]


def text_hash(text: str) -> str:
    """Return the sha256 of a text: what reports show in its place."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Response:
    """What a model answered to a goal; `response` is empty text in a redacted file."""

    goal: str
    response: str
    label: int | None = None
    annotator: str = ""
    context: str = ""
    answer: str = ""
    suffix: str = ""


def read_responses(file: str) -> list[Response]:
    """Read responses or human labels: JSONL {goal, response, label?, annotator?}, or a JailbreakBench artefact.

    Raises:
        UserError: a row without goal and response (a redacted file), a label that is not 0 or 1, or no rows.
    """
    text = read_text(Path(file), encoding="utf-8-sig")
    if file.endswith(".json"):
        return read_artefact(text, file)
    found = []
    for number, row in json_rows(text, file):
        where = f"{file}:{number}"
        if not isinstance(row.get("goal"), str) or not isinstance(row.get("response"), str):
            hint = "Run the attack with --keep-responses to have the texts."
            raise UserError("has no goal and response text.", where=where, hint=hint)
        label = row.get("label")
        if label not in (None, 0, 1):
            raise UserError(f"has the label {label!r}; it is 0 or 1.", where=where)
        extra = {name: str(row.get(name) or "") for name in ("annotator", "context", "answer", "suffix")}
        found.append(Response(row["goal"], row["response"], None if label is None else int(label), **extra))
    if not found:
        raise UserError("holds no responses.", where=file)
    return found


def read_artefact(text: str, file: str) -> list[Response]:
    """Read the `jailbreaks` of a JailbreakBench artefact; `jailbroken` is taken as the label.

    Raises:
        UserError: not of that layout.
    """
    try:
        rows = json.loads(text)["jailbreaks"]
        return [
            Response(row["goal"], row["response"] or "", None if row["jailbroken"] is None else int(row["jailbroken"]))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError("is no JailbreakBench artefact (parameters, jailbreaks).", where=file) from None


@dataclass(frozen=True)
class Attempt:
    """One prompt sent to a model and what became of it."""

    goal: str
    suffix: str
    response: str
    verdicts: dict[str, bool | None] = field(default_factory=dict)
    num_queries: int = 1
    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    empty: bool = False

    def stored(self, keep_response: bool) -> dict[str, Any]:
        """Return what a run stores: the response's text only on the user's wish."""
        value = asdict(self)
        response = value.pop("response")
        kept = {"response": response} if keep_response else {}
        return value | {"response_sha256": text_hash(response), "response_characters": len(response)} | kept


def write_artefact(
    attempts: Sequence[Attempt],
    *,
    model: str,
    method: str,
    judge: str,
    keep_responses: bool,
    parameters: Mapping[str, Any],
) -> dict[str, Any]:
    """Return attempts in the layout of a JailbreakBench artefact; without `keep_responses` the texts are null.

    Args:
        attempts: in the order of the behaviours.
        model: the victim's name.
        method: the objective.
        judge: whose verdicts fill `jailbroken`.
        keep_responses: whether the responses' texts are written.
        parameters: further settings.
    """
    verdicts = [attempt.verdicts.get(judge) for attempt in attempts]
    rows = [
        {
            "index": index,
            "goal": attempt.goal,
            "behavior": "",
            "category": "",
            "prompt": f"{attempt.goal} {attempt.suffix}" if keep_responses else None,
            "response": attempt.response if keep_responses else None,
            "number_of_queries": attempt.num_queries,
            "queries_to_jailbreak": attempt.num_queries if verdict else None,
            "prompt_tokens": attempt.num_prompt_tokens,
            "response_tokens": attempt.num_response_tokens,
            "jailbroken": verdict,
        }
        for index, (attempt, verdict) in enumerate(zip(attempts, verdicts, strict=True))
    ]
    head = {
        "method": method,
        "model": model,
        "attack_type": "white_box",
        "defense": None,
        "attack_success_rate": sum(v is True for v in verdicts) / max(1, len(verdicts)),
        "total_number_of_jailbreaks": sum(v is True for v in verdicts),
        "number_of_queries": sum(attempt.num_queries for attempt in attempts),
        "judge": judge,
    }
    return {"parameters": head | dict(parameters), "jailbreaks": rows}
