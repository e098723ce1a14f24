"""The verb `lint`: defects of a pool's instructions, and tasks that their words cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyloom.core.files import write_json
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.methods.select.clarity import PARTS, Suggestion, clarity, stated_parts, suggest
from polyloom.methods.select.config import LintConfig
from polyloom.methods.select.data import Options, Pool, make_pool, read_tasks
from polyloom.methods.select.lexical import build_index
from polyloom.methods.select.linting import RULES, Finding, count_rules, lint_tasks
from polyloom.methods.select.method import order_by
from polyloom.methods.select.study import SHOWN_ROWS, shorten
from polyloom.runs.folder import Run

ALIKE = 0.98
MOST_SUGGESTIONS = 200
BY_WORDS = (
    "English is recognised by its function words: a terse instruction may be missed.",
    "What an instruction states is read from English words: a part that is said in other words is not seen.",
)
NEIGHBOURS, MOST_TASKS = 10, 3000
Floats = NDArray[np.float32]


def run_lint(config: LintConfig, run: Run) -> Result:
    """Look for defects in a pool's instructions.

    Args:
        config: the pool.
        run: the run to write `findings.json` to.
    """
    tasks = read_tasks(config.pool, config.languages, Options(split=config.split, num_examples=config.num_examples))
    pool = make_pool(tasks, config.pool, "keep")
    findings = lint_tasks(tasks)
    num_instructions = sum(len(task.instructions) for task in tasks)
    counts = count_rules(findings)
    similarity = task_similarity(pool)
    alike = alike_groups(pool, similarity)
    unsure = ambiguity(similarity, [task.category for task in pool.tasks])
    suggested = suggest(pool, findings, MOST_SUGGESTIONS) if len(pool.tasks) <= MOST_TASKS else []
    write_json(run.artifact("findings.json"), [asdict(one) for one in findings])
    write_json(run.artifact("suggestions.json"), [asdict(one) for one in suggested])
    worst: dict[str, int] = {}
    for finding in findings:
        worst[finding.task] = worst.get(finding.task, 0) + 1
    clean = len(tasks) - len(worst)
    rows: list[list[Any]] = [
        [one.rule, one.task, shorten(one.instruction), shorten(one.detail)] for one in _sample(findings)
    ]
    return run.result(
        scalars={
            "num_tasks": Scalar(value=len(tasks)),
            "num_instructions": Scalar(value=num_instructions),
            "num_findings": Scalar(value=len(findings)),
            "share_clean_tasks": Scalar(value=clean / len(tasks), unit="share"),
            "num_alike_groups": Scalar(value=len(alike)),
            **({"mean_ambiguity": Scalar(value=float(unsure.mean()))} if len(unsure) else {}),
            **_clarity_scalars(pool.texts),
            "num_suggestions": Scalar(value=len(suggested)),
            **{f"num_{rule}": Scalar(value=count) for rule, count in counts.items()},
        },
        tables={
            "rules": Table(
                columns=["rule", "what it means", "instructions"],
                rows=[[rule, text, counts[rule]] for rule, text in RULES.items()],
            ),
            "findings": Table(columns=["rule", "task", "instruction", "detail"], rows=rows, title="Findings"),
            "alike": Table(
                columns=["tasks", "names"],
                rows=[[len(group), shorten(", ".join(group))] for group in alike[:SHOWN_ROWS]],
                title="Tasks that the words of their instructions cannot tell apart",
            ),
            **({"ambiguous": _unsure_table(pool, unsure)} if len(unsure) else {}),
            **({"suggestions": _suggestion_table(suggested)} if suggested else {}),
        },
        series={
            "findings": Series(
                x=[float(i) for i in range(len(counts))],
                y=[float(count) for count in counts.values()],
                x_names=list(counts),
                kind="bar",
                x_label="rule",
                y_label="instructions",
            )
        },
        artifacts={
            "findings": Artifact(
                path="artifacts/findings.json", media_type="application/json", description="Every finding."
            ),
            "suggestions": Artifact(
                path="artifacts/suggestions.json", media_type="application/json", description="Wordings to borrow."
            ),
        },
        verdicts=[
            f"{len(findings)} findings in {num_instructions} instructions; {clean} of {len(tasks)} tasks clean.",
            f"{len(alike)} groups of tasks cannot be told apart by words (TF-IDF cosine above {ALIKE}).",
            *_suggestion_verdict(suggested),
        ],
        limitations=[*pool.notes, *BY_WORDS],
    )


def _sample(findings: Sequence[Finding], each: int = 8) -> list[Finding]:
    """Return a few findings of every rule."""
    return [one for rule in RULES for one in [f for f in findings if f.rule == rule][:each]]


def task_similarity(pool: Pool) -> Floats:
    """Return TF-IDF cosines [T, T] of the tasks by all their instructions; empty for more than 3000 tasks."""
    if len(pool.tasks) > MOST_TASKS:
        return np.zeros((0, 0), dtype=np.float32)
    said = [" ".join(task.instructions) for task in pool.tasks]
    return build_index(said, "tfidf").score_all(said)


def alike_groups(pool: Pool, similarity: Floats) -> list[list[str]]:
    """Return groups of tasks whose instructions have a TF-IDF cosine above 0.98 to the group's first."""
    groups, seen = [], set()
    for number, row in enumerate(similarity):
        if number in seen:
            continue
        members = [int(i) for i in np.flatnonzero(row > ALIKE) if int(i) not in seen or int(i) == number]
        if len(members) > 1:
            seen.update(members)
            groups.append([pool.tasks[i].id for i in members])
    return sorted(groups, key=lambda group: -len(group))


def ambiguity(similarity: Floats, categories: Sequence[str]) -> Floats:
    """Return for each task the entropy of its 10 nearest tasks' categories as a share of the most: 0 clear, 1 any.

    Args:
        similarity: cosines of the tasks.
        categories: of the tasks; with fewer than two there is no entropy, and an empty array is returned.

    Source: spec 7: the category posterior of an instruction's neighbours.
    """
    if len(set(categories)) < 2 or not len(similarity):
        return np.zeros(0, dtype=np.float32)
    places = {name: place for place, name in enumerate(sorted(set(categories)))}
    numbers = np.array([places[name] for name in categories])
    found = []
    for number, row in enumerate(similarity):
        order = [i for i in order_by(row) if i != number][:NEIGHBOURS]
        shares = np.bincount(numbers[order]) / len(order)
        shares = shares[shares > 0]
        found.append(-(shares * np.log(shares)).sum() / np.log(min(NEIGHBOURS, len(places))))
    return np.array(found, dtype=np.float32)


def _unsure_table(pool: Pool, unsure: Floats) -> Table:
    rows: list[list[Any]] = [
        [pool.tasks[i].id, float(unsure[i]), pool.tasks[i].category, shorten(pool.tasks[i].instructions[0])]
        for i in order_by(unsure)[:SHOWN_ROWS]
    ]
    title = "Tasks whose neighbours are of many categories: say more clearly what is wanted"
    return Table(columns=["task", "ambiguity", "category", "instruction"], rows=rows, title=title)


def _clarity_scalars(texts: Sequence[str]) -> dict[str, Scalar]:
    """Return the mean clarity of the instructions, and the share that states each part."""
    stated = [stated_parts(text) for text in texts]
    shares = {f"share_stating_{name}": float(np.mean([name in one for one in stated])) for name in PARTS}
    scalars = {"mean_clarity": Scalar(value=float(np.mean([clarity(text) for text in texts])))}
    return scalars | {name: Scalar(value=value, unit="share") for name, value in shares.items()}


def _suggestion_table(suggested: Sequence[Suggestion]) -> Table:
    rows: list[list[Any]] = [
        [
            one.task,
            shorten(one.instruction),
            ", ".join(one.rules),
            shorten(one.borrowed),
            one.lender if one.lender != one.task else "itself",
            one.clarity_before,
            one.clarity_after,
            one.kept,
            one.precision_before,
            one.precision_after,
        ]
        for one in suggested[:SHOWN_ROWS]
    ]
    columns = ["task", "instruction", "breaks", "clearer wording", "of task", "clarity", "clarity after"]
    columns += ["Jaccard of the 5 nearest", "own category in them", "and after"]
    return Table(columns=columns, rows=rows, title="Clearer wordings to borrow, and what they do to the ranking")


def _suggestion_verdict(suggested: Sequence[Suggestion]) -> list[str]:
    judged = [one for one in suggested if one.precision_before is not None and one.precision_after is not None]
    if not suggested:
        return []
    told = f"For {len(suggested)} poor wordings there is a clearer one to borrow"
    if not judged:
        return [f"{told}."]
    before = float(np.mean([one.precision_before or 0.0 for one in judged]))
    after = float(np.mean([one.precision_after or 0.0 for one in judged]))
    return [f"{told}; their own category's share of the 5 nearest tasks goes from {before:.2f} to {after:.2f}."]
