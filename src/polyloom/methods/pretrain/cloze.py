"""The synthetic cloze: which of four sentences is true of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from polyloom.core.seeding import python_random
from polyloom.data.world import Fact, Frame, World
from polyloom.metrics.language_model import score_documents

NUM_OPTIONS = 4
# Currency, country of a city, continent: each has one right answer.
RELATIONS = ("P38", "P17", "P30")


@dataclass(frozen=True)
class Question:
    """Sentences that differ in one name; the first is true."""

    relation: str
    options: tuple[str, ...]


def make_questions(languages: Sequence[str], number: int, seed: int) -> dict[str, list[Question]]:
    """Make the same questions in each language: a fact, and three others that put the same kind of name in its place.

    Args:
        languages: template languages.
        number: questions a language.
        seed: of the world and of the choice.
    """
    world = World(languages, seed)
    facts = [fact for fact in world.facts.all() if fact.relation in RELATIONS]
    objects = {relation: sorted({f.object for f in facts if f.relation == relation}) for relation in RELATIONS}
    rng = python_random(seed, "cloze")
    chosen = []
    for _ in range(number):
        fact = rng.choice(facts)
        others = [code for code in objects[fact.relation] if code != fact.object]
        chosen.append((fact, [fact.object, *rng.sample(others, NUM_OPTIONS - 1)]))
    return {
        language: [
            Question(fact.relation, tuple(_say(world, language, fact, code) for code in codes))
            for fact, codes in chosen
        ]
        for language in world.languages
    }


def _say(world: World, language: str, fact: Fact, code: str) -> str:
    return world.text(Frame("fact", (fact.relation, fact.subject, code)), language).text


def answer(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *, window_tokens: int
) -> list[bool]:
    """Say of each question whether the true sentence costs the model the fewest bits (a tie is wrong)."""
    texts = [option for question in questions for option in question.options]
    nats = [score.nats for score in score_documents(model, tokenizer, texts, window_tokens=window_tokens)]
    rows = [nats[i : i + NUM_OPTIONS] for i in range(0, len(nats), NUM_OPTIONS)]
    return [row[0] < min(row[1:]) for row in rows]
