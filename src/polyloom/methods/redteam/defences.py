"""Defences: filters, smoothing, rewriting, system prompts and output checks, each with the calls that it costs."""

from __future__ import annotations

import math
import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random
from polyloom.generation.chat import ask, complete_all
from polyloom.generation.scoring import score_continuations
from polyloom.methods.redteam.data import Response
from polyloom.methods.redteam.evaluation import Outcome, Victim
from polyloom.methods.redteam.judges import Judge
from polyloom.methods.redteam.tokens import MARK, prompt_ids, render
from polyloom.models.tokenizers import encode

Defend = Callable[[Victim, Sequence[str]], Outcome]
Smoothing = Literal["swap", "insert", "patch"]
WINDOW_TOKENS = 10
REWRITE = "Say the following request in other words. Write the request alone.\n\n{text}"


@runtime_checkable
class TextScorer(Protocol):
    """Gives the negative log-likelihood, in nats, of each token of a text."""

    def __call__(self, text: str) -> list[float]:
        """Return one value a token."""


def undefended(victim: Victim, contents: Sequence[str]) -> Outcome:
    """Ask the victim as it is."""
    return Outcome(victim.answer(contents), [False] * len(contents), len(contents))


# Perplexity filters


@dataclass
class TrigramScorer:
    """A trigram model over the victim's tokens, fitted on the owner's clean prompts, interpolated and smoothed.

    The chat model itself is a bad scorer: its training never covered user turns.
    """

    tokenizer: PreTrainedTokenizerBase
    counts: Counter[tuple[int, ...]] = field(default_factory=Counter)
    weights: tuple[float, float, float] = (0.6, 0.3, 0.1)

    def fit(self, texts: Sequence[str]) -> TrigramScorer:
        """Count the n-grams of clean prompts."""
        for text in texts:
            ids = [-1, -1, *encode(self.tokenizer, text)]
            for i in range(2, len(ids)):
                for n in (1, 2, 3):
                    self.counts[tuple(ids[i - n + 1 : i + 1])] += 1
                    self.counts[(*ids[i - n + 1 : i], -2)] += 1
        return self

    def __call__(self, text: str) -> list[float]:
        """Return the loss of each token."""
        ids, size = [-1, -1, *encode(self.tokenizer, text)], len(self.tokenizer)
        losses = []
        for i in range(2, len(ids)):
            p = 0.0
            for n, weight in zip((3, 2, 1), self.weights, strict=True):
                seen = self.counts[(*ids[i - n + 1 : i], -2)]
                p += weight * (self.counts[tuple(ids[i - n + 1 : i + 1])] + 1 / size) / (seen + 1)
            losses.append(-math.log(p))
        return losses


@dataclass(frozen=True)
class ModelScorer:
    """A causal language model as scorer; the first token is conditioned on the start token, or left out without one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, text: str) -> list[float]:
        """Return the loss of each token."""
        ids = encode(self.tokenizer, text)
        bos = self.tokenizer.bos_token_id
        start = [bos] if bos is not None else ids[:1]
        rest = ids if bos is not None else ids[1:]
        return [-value for value in score_continuations(self.model, [start], [rest])[0]] if rest else []


def mean_loss(losses: Sequence[float]) -> float:
    """Return the mean negative log-likelihood; 0 for an empty text."""
    return sum(losses) / len(losses) if losses else 0.0


def worst_window(losses: Sequence[float], size: int = WINDOW_TOKENS, reverse: bool = False) -> float:
    """Return the highest mean over consecutive windows that do not overlap; `reverse` cuts them from the end."""
    values = list(losses)[::-1] if reverse else list(losses)
    return max((mean_loss(values[i : i + size]) for i in range(0, len(values), size)), default=0.0)


@dataclass(frozen=True)
class PerplexityFilter:
    """Blocks texts whose (windowed) mean loss exceeds the highest of the clean prompts, or a quantile of theirs."""

    scorer: TextScorer
    clean: tuple[str, ...]
    windowed: bool = False
    quantile: float = 1.0

    def score(self, text: str) -> float:
        """Return what is compared with the threshold."""
        losses = self.scorer(text)
        return worst_window(losses) if self.windowed else mean_loss(losses)

    @cached_property
    def threshold(self) -> float:
        """Return tau: the largest score of the clean prompts, or their quantile."""
        scores = sorted(self.score(text) for text in self.clean)
        return scores[min(len(scores) - 1, math.ceil(self.quantile * len(scores)) - 1)]

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        threshold = self.threshold
        scores = [self.score(text) for text in contents]
        blocked = [score > threshold for score in scores]
        let = victim.answer([text for text, stopped in zip(contents, blocked, strict=True) if not stopped])
        answers = iter(let)
        return Outcome(["" if stopped else next(answers) for stopped in blocked], blocked, len(let), scores)


# SmoothLLM


def perturb(text: str, kind: Smoothing, percent: float, rng: random.Random) -> str:
    """Change floor(len q / 100) characters of a text.

    Args:
        text: what the user wrote.
        kind: `swap` replaces sampled places, `insert` adds a character before sampled places, `patch` replaces one run.
        percent: q.
        rng: of the draws.

    Source: SmoothLLM (2310.03684). Insertions go from right to left, so that places do not drift.
    """
    letters = string.printable
    count = int(len(text) * percent / 100)
    characters = list(text)
    if kind == "patch":
        start = rng.randint(0, len(text) - count)
        characters[start : start + count] = rng.choices(letters, k=count)
        return "".join(characters)
    for place in sorted(rng.sample(range(len(text)), count), reverse=True):
        if kind == "swap":
            characters[place] = rng.choice(letters)
        else:
            characters.insert(place, rng.choice(letters))
    return "".join(characters)


@dataclass(frozen=True)
class SmoothLLM:
    """Asks copies with changed characters and answers as most of them do."""

    is_refused: Callable[[str], bool]
    kind: Smoothing = "swap"
    percent: float = 10.0
    num_copies: int = 10
    seed: int = 0

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        rngs = [python_random(self.seed, "smoothllm", text) for text in contents]
        copies = [
            [perturb(t, self.kind, self.percent, rng) for _ in range(self.num_copies)]
            for t, rng in zip(contents, rngs, strict=True)
        ]
        flat = victim.answer([copy for group in copies for copy in group])
        responses = []
        for i, rng in enumerate(rngs):
            answers = flat[i * self.num_copies : (i + 1) * self.num_copies]
            opened = [not self.is_refused(answer) for answer in answers]
            wanted = sum(opened) > self.num_copies / 2
            responses.append(rng.choice([a for a, is_open in zip(answers, opened, strict=True) if is_open == wanted]))
        return Outcome(responses, [False] * len(contents), len(flat))


# Rewriting of the prompt


def split_tokens(text: str, tokenizer: PreTrainedTokenizerBase, rate: float, seed: int) -> list[int]:
    """Encode a text in other pieces: tokens are cut in two with probability `rate`, where the text stays the same.

    This stands for BPE dropout, whose draws in the tokenizers library take no seed.
    """
    rng = python_random(seed, "retokenise", text)
    pieces: list[int] = []
    for token in encode(tokenizer, text):
        piece = str(tokenizer.decode([token]))
        if len(piece) < 2 or rng.random() >= rate:
            pieces.append(token)
            continue
        cut = rng.randint(1, len(piece) - 1)
        parts = [*encode(tokenizer, piece[:cut]), *encode(tokenizer, piece[cut:])]
        pieces += parts if tokenizer.decode(parts) == piece else [token]
    return pieces


@dataclass(frozen=True)
class Retokenise:
    """Feeds the user's text in other pieces than the search counted on."""

    rate: float = 0.4
    seed: int = 0

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        head, _, tail = render(victim.tokenizer, MARK, victim.system).partition(MARK)
        before, after = prompt_ids(victim.tokenizer, head), prompt_ids(victim.tokenizer, tail)
        prompts = [[*before, *split_tokens(text, victim.tokenizer, self.rate, self.seed), *after] for text in contents]
        return Outcome(victim.answer_tokens(prompts), [False] * len(contents), len(contents))


@dataclass(frozen=True)
class Paraphrase:
    """Lets another model say the user's text in other words; what it fails on is blocked."""

    connect: Callable[[], Any]

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        replies = complete_all(self.connect(), [ask(REWRITE.replace("{text}", text)) for text in contents])
        blocked = [not reply.ok for reply in replies]
        answers = iter(victim.answer([reply.text.strip() for reply in replies if reply.ok]))
        return Outcome(
            ["" if stopped else next(answers) for stopped in blocked], blocked, len(contents) + blocked.count(False)
        )


@dataclass(frozen=True)
class SystemPrompt:
    """Puts a text of the owner in front; a template without a system role gets it in the user's turn."""

    text: str

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        return undefended(replace(victim, system=f"{self.text}\n{victim.system}".strip()), contents)


@dataclass(frozen=True)
class OutputFilter:
    """Blocks responses that a judge calls true."""

    judge: Judge

    def __call__(self, victim: Victim, contents: Sequence[str]) -> Outcome:
        """Answer user turns behind the defence."""
        answers = victim.answer(contents)
        opinions = self.judge.judge([Response(text, answer) for text, answer in zip(contents, answers, strict=True)])
        blocked = [opinion.verdict is True for opinion in opinions]
        kept = ["" if stopped else answer for answer, stopped in zip(answers, blocked, strict=True)]
        return Outcome(kept, blocked, len(contents))


def scorer_warning(scorer: TextScorer, clean: Sequence[str], num_tokens: int) -> str:
    """Warn of a scorer that finds clean prompts nearly as improbable as random tokens; empty if it does not."""
    level = mean_loss([mean_loss(scorer(text)) for text in clean])
    if level <= 0.8 * math.log(num_tokens):
        return ""
    return (
        f"the perplexity scorer gives clean prompts {level:.2f} nats a token, close to chance: it knows no such text."
    )


def pareto(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Return the names of the points (name, success rate, benign rate) that none beats in both."""
    return [
        name
        for name, asr, benign in points
        if not any(a <= asr and b >= benign and (a < asr or b > benign) for _, a, b in points)
    ]


def check_smoothing(texts: Sequence[str], percent: float) -> None:
    """Refuse a share of characters that changes nothing in any text.

    Raises:
        UserError: floor(len q / 100) is 0 everywhere.
    """
    if percent and all(int(len(text) * percent / 100) == 0 for text in texts):
        raise UserError(
            f"SmoothLLM with {percent} % changes no character of these prompts.", hint="Raise --smooth-percent."
        )
