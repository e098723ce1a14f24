"""The verb `subskills`: what a mind has to be able to do to sustain a commons, asked in generated questions."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.core.seeding import python_random
from polyloom.generation.chat import ask
from polyloom.methods.commons.config import SubskillsConfig
from polyloom.methods.commons.parsing import READABLE, quantity
from polyloom.methods.commons.runner import Cast
from polyloom.methods.commons.scenario import Scenario, load_scenario
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

Skill = Literal["dynamics", "sustainable_action", "threshold", "belief"]
SKILLS: tuple[Skill, ...] = ("dynamics", "sustainable_action", "threshold", "belief")
TEMPLATES: dict[Skill, str] = {
    "dynamics": "dynamics",
    "sustainable_action": "sustainable_item",
    "threshold": "threshold_item",
    "belief": "belief_item",
}
NUM_PEOPLE = 5
LARGEST_ANSWER = 10_000


@dataclass(frozen=True)
class Item:
    """A question: `stock` units, and `amount` taken by each (for the dynamics)."""

    skill: Skill
    stock: int
    amount: int
    prompt: str


def make_items(scenario: Scenario, skill: Skill, num_items: int, form: str, seed: int) -> list[Item]:
    """Generate questions: stock uniform in 10..K, amount uniform in 0..stock/5, five people.

    Args:
        scenario: its numbers and words.
        skill: what is asked.
        num_items: how many.
        form: `sim` puts the role's text before the question, `math` asks it bare.
        seed: of the questions; every skill has its own stream.
    """
    random = python_random(seed, "subskills", skill)
    names = scenario.words.names(NUM_PEOPLE)
    items = []
    for number in range(num_items):
        stock = random.randint(10, scenario.resource.capacity)
        amount = random.randint(0, stock // NUM_PEOPLE)
        asked = scenario.words.say(TEMPLATES[skill], stock=stock, amount=amount, num=NUM_PEOPLE, regrow=scenario.regrow)
        if form == "sim":
            name = names[number % NUM_PEOPLE]
            others = [other for other in names if other != name]
            asked = f"{scenario.role(name, others, talks=True)}\n\n{asked}"
        items.append(Item(skill, stock, amount, asked))
    return items


def correct_answer(item: Item, scenario: Scenario) -> int:
    """Return the exact answer (for the sustainable action: the largest that passes)."""
    if item.skill == "dynamics":
        return scenario.resource.grow(max(0, item.stock - NUM_PEOPLE * item.amount))
    return scenario.resource.per_agent(item.stock, NUM_PEOPLE)


def grade(item: Item, answer: int | None, scenario: Scenario) -> bool:
    """Say whether an answer is right; a sustainable action is any amount from 1 to the threshold's share."""
    if answer is None:
        return False
    correct = correct_answer(item, scenario)
    return 0 < answer <= correct if item.skill == "sustainable_action" else answer == correct


def run_subskills(config: SubskillsConfig, run: Run) -> Result:
    """Ask 150 questions of each of the four skills and grade the answers.

    Raises:
        UserError: unknown scenario or language, or a game of removing.
    """
    scenario = load_scenario(config.scenario, config.language)
    if scenario.resource.sense == "remove":
        raise UserError("the questions are about taking.", where=f"--scenario {config.scenario}")
    if scenario.resource.growth_high is not None:
        raise UserError("has random growth, so that its questions have no exact answer.", where=config.scenario)
    items = [
        item for skill in SKILLS for item in make_items(scenario, skill, config.num_items, config.form, config.seed)
    ]
    replies = _ask(config, items, scenario, run)
    found = [quantity(reply, 0, LARGEST_ANSWER) for reply in replies]
    scalars: dict[str, Scalar] = {}
    rows, shares = [], []
    for skill in SKILLS:
        graded = [(i, a) for i, a in zip(items, found, strict=True) if i.skill == skill]
        share = wilson_interval(sum(grade(item, answer.value, scenario) for item, answer in graded), len(graded))
        shares.append(share)
        unread = sum(answer.status not in READABLE for _, answer in graded)
        scalars[skill] = Scalar(value=100 * share.value, low=100 * share.low, high=100 * share.high, unit="%")
        rows.append([skill, len(graded), 100 * share.value, 100 * share.low, 100 * share.high, unread])
    scalars["num_unread"] = Scalar(value=sum(answer.status not in READABLE for answer in found))
    if scenario.name == "pollution":
        scalars |= _two_keys(items, [answer.value for answer in found], scenario)
    details = [
        [item.skill, item.stock, item.amount, correct_answer(item, scenario), answer.value, answer.status, reply[-200:]]
        for item, answer, reply in zip(items, found, replies, strict=True)
    ]
    run.artifact("prompts.txt").write_text("\n\n-----\n\n".join(item.prompt for item in items), encoding="utf-8")
    return run.result(
        scalars=scalars,
        tables={
            "skills": Table(
                columns=["skill", "questions", "right %", "low", "high", "unread"], rows=rows, title="Skills"
            ),
            "answers": Table(
                columns=["skill", "stock", "amount", "correct", "answer", "read as", "reply"],
                rows=details[:200],
                title="Answers (the first 200)",
            ),
        },
        series={
            "right": Series(
                x=list(range(len(SKILLS))),
                y=[100 * one.value for one in shares],
                x_names=list(SKILLS),
                low=[100 * one.low for one in shares],
                high=[100 * one.high for one in shares],
                kind="bar",
                y_label="right answers, %",
                group="Skills",
            )
        },
        artifacts={
            "prompts": Artifact(path="artifacts/prompts.txt", media_type="text/plain", description="Every prompt")
        },
        verdicts=[
            f"{skill}: {100 * one.value:.0f}% right [{100 * one.low:.0f}, {100 * one.high:.0f}]."
            for skill, one in zip(SKILLS, shares, strict=True)
        ],
        limitations=["An answer in which no number can be read counts as wrong, and is counted."]
        + (
            ["The solver knows the answers: this checks questions, parser and grading."]
            if config.mind == "solver"
            else []
        ),
    )


def _two_keys(items: list[Item], answers: list[int | None], scenario: Scenario) -> dict[str, Scalar]:
    """Grade the dynamics by both keys of the pollution game.

    The published question asks how polluted the river will be and its key is the clean share; ours asks for what is
    clean. `reference_key` is the clean share, `corrected_key` what a reader of the published question would answer.
    """
    pairs = [(item, answer) for item, answer in zip(items, answers, strict=True) if item.skill == "dynamics"]
    clean = sum(answer == correct_answer(item, scenario) for item, answer in pairs)
    polluted = sum(answer == scenario.resource.capacity - correct_answer(item, scenario) for item, answer in pairs)
    return {
        "dynamics_reference_key": Scalar(value=100 * clean / len(pairs), unit="%"),
        "dynamics_corrected_key": Scalar(value=100 * polluted / len(pairs), unit="%"),
    }


def _ask(config: SubskillsConfig, items: list[Item], scenario: Scenario, run: Run) -> list[str]:
    if config.mind == "solver":
        return [scenario.words.say("answer_number", amount=correct_answer(item, scenario)) for item in items]
    settings: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "seed": config.seed,
    }

    async def work() -> list[str]:
        with run.progress("questions", len(items)) as advance:
            async with Cast(config, run.path / "artifacts") as cast:
                await cast.open([config.mind])
                requests = [ask(item.prompt, **settings) for item in items]
                replies = await cast.models[config.mind].complete_many(requests, progress=advance)
        return [reply.text if reply.outcome in ("empty", "filtered") else reply.require().text for reply in replies]

    return asyncio.run(work())
