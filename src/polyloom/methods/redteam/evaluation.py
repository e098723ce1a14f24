"""What a victim answers, and the rates that follow, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.generation.decode import Decoding, decode
from polyloom.methods.redteam.data import Attempt, Behaviour, Response
from polyloom.methods.redteam.judges import Judge, Opinion, Verdict, ensemble, judge_all
from polyloom.methods.redteam.tokens import content_of, prompt_ids, render
from polyloom.metrics.statistics import Interval, wilson_interval


@dataclass(frozen=True)
class Victim:
    """The owner's model on its normal chat path: greedy, from text.

    Attributes:
        model: a local causal model.
        tokenizer: with a chat template.
        name: how tables call it.
        max_new_tokens: budget of an answer.
        system: text of the system turn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    max_new_tokens: int = 128
    system: str = ""

    def answer(self, contents: Sequence[str]) -> list[str]:
        """Answer user turns, each in a conversation of its own."""
        return self.answer_tokens(
            [prompt_ids(self.tokenizer, render(self.tokenizer, text, self.system)) for text in contents]
        )

    def answer_tokens(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Answer conversations given as token ids."""
        settings = Decoding(max_new_tokens=self.max_new_tokens)
        return [one.text for one in decode(self.model, prompts, settings, tokenizer=self.tokenizer)] if prompts else []


@dataclass(frozen=True)
class Outcome:
    """Answers to a set of prompts.

    Attributes:
        responses: one a prompt; empty where it was blocked.
        blocked: whether a defence let nothing through.
        num_calls: how often the victim was asked.
        scores: of a filter, one a prompt.
    """

    responses: list[str]
    blocked: list[bool]
    num_calls: int
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """Responses and what each judge says of them."""

    responses: list[Response]
    opinions: dict[str, list[Opinion]]

    def verdicts(self, judge: str) -> list[Verdict]:
        """Return a judge's verdicts."""
        return [opinion.verdict for opinion in self.opinions[judge]]

    def successes(self, judge: str) -> list[bool]:
        """Return which responses a judge calls true; undecided ones are no successes."""
        return [verdict is True for verdict in self.verdicts(judge)]


def as_responses(behaviours: Sequence[Behaviour], answers: Sequence[str], suffix: str = "") -> list[Response]:
    """Pair behaviours with answers."""
    return [
        Response(b.goal, answer, context=b.context, answer=b.answer, suffix=suffix)
        for b, answer in zip(behaviours, answers, strict=True)
    ]


def judge_responses(judges: Sequence[Judge], responses: list[Response], members: Sequence[str] = ()) -> Judged:
    """Ask every judge about every response, and combine the members' verdicts where there are several."""
    opinions = {judge.name: judge_all(judge, responses) for judge in judges}
    if len(members) > 1:
        joint = ensemble({name: [o.verdict for o in opinions[name]] for name in members})
        opinions |= {name: [Opinion(verdict) for verdict in verdicts] for name, verdicts in joint.items()}
    return Judged(responses, opinions)


def attack_prompts(behaviours: Sequence[Behaviour], suffix: str) -> list[str]:
    """Return the user turns with the suffix in them."""
    return [content_of(behaviour, suffix) for behaviour in behaviours]


def rate(hits: Sequence[bool]) -> Interval:
    """Return a share with its Wilson interval."""
    return wilson_interval(sum(hits), len(hits))


def rate_row(name: str, hits: Mapping[str, Sequence[bool]]) -> list[str | float | int | bool | None]:
    """Return a table's row: a name and rates."""
    return [name, *(rate(column).value for column in hits.values())]


def to_attempts(judged: Judged, suffix: str, victim: Victim) -> list[Attempt]:
    """Return what a run stores of judged responses."""
    tokenizer = victim.tokenizer
    attempts = []
    for i, one in enumerate(judged.responses):
        verdicts = {name: opinions[i].verdict for name, opinions in judged.opinions.items()}
        num_response = len(tokenizer(one.response, add_special_tokens=False, verbose=False)["input_ids"])
        attempts.append(
            Attempt(one.goal, suffix, one.response, verdicts, 1, 0, num_response, empty=not one.response.strip())
        )
    return attempts
