"""Self-speculative decoding: the first E layers draft, the others verify, on one cache; and plain and early-exit loops.

A round drafts up to gamma tokens with layers 0 .. E-1, runs layers E .. L-1 once over the states that the draft left at
the exit, accepts what the whole model agrees with and adds one token of its own. Greedy text equals plain decoding up
to floating-point ties; sampled text has the same law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import PolyloomError, UserError
from polyloom.generation.judge import Judge, Processor
from polyloom.generation.layer_range import LayerRange
from polyloom.generation.sampling import Decoding
from polyloom.generation.text import TextStream, decode_tokens


@dataclass(frozen=True)
class Plan:
    """How a round drafts.

    Attributes:
        exit_layer: E; 0 drafts nothing by layers.
        draft_tokens: gamma, the most tokens drafted; 0 is a plain step.
        confidence: stop before a token whose probability at the exit is below this; 0 never does.
        lookup: draft from the text itself where its last `lookup` tokens stood before; 0 never does.
        lookup_tokens: tokens taken from there.
    """

    exit_layer: int = 0
    draft_tokens: int = 0
    confidence: float = 0.0
    lookup: int = 0
    lookup_tokens: int = 8

    def __post_init__(self) -> None:
        if self.draft_tokens < 0 or self.exit_layer < 0:
            raise UserError(f"a draft of {self.draft_tokens} tokens at exit {self.exit_layer} is none.")
        if self.draft_tokens and not self.exit_layer:
            raise UserError("a draft needs an exit.", where="--exit-layer")
        if not 0 <= self.confidence < 1:
            raise UserError(f"the confidence must be in [0, 1), not {self.confidence}.", where="--confidence")


PLAIN = Plan()


@dataclass
class Counts:
    """What decoding did: rounds, drafted and accepted tokens, and tokens given behind the first."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0

    @property
    def tokens_per_round(self) -> float:
        """tau; 1 where nothing was decoded."""
        return self.emitted / self.rounds if self.rounds else 1.0

    @property
    def acceptance(self) -> float:
        """Accepted over drafted tokens; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def add(self, other: Counts) -> None:
        """Add another text's."""
        self.rounds += other.rounds
        self.drafted += other.drafted
        self.accepted += other.accepted
        self.emitted += other.emitted


@dataclass
class Generated:
    """A continuation: its tokens with the ending one, its text, why it ended, and what decoding did."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True)
class Round:
    """What one round did.

    Attributes:
        plan: what it was told.
        emitted: its new tokens.
        num_drafted: tokens drafted.
        num_accepted: of these, accepted.
        looked_up: they came from the text itself.
        states: x_1 .. x_L at the positions that gave `emitted`, [L, emitted, dim], if wanted.
    """

    plan: Plan
    emitted: list[int]
    num_drafted: int
    num_accepted: int
    looked_up: bool
    states: Tensor | None


@runtime_checkable
class Controller(Protocol):
    """Chooses each round's plan and is shown what became of it."""

    def plan(self) -> Plan:
        """Return the next round's plan."""

    @property
    def wants_states(self) -> bool:
        """Whether the next round should keep the states of every exit."""

    def observe(self, done: Round) -> None:
        """Take what a round did."""


@dataclass(frozen=True)
class Fixed:
    """A controller that always has the same plan."""

    fixed: Plan

    def plan(self) -> Plan:
        """Return it."""
        return self.fixed

    @property
    def wants_states(self) -> bool:
        """Never."""
        return False

    def observe(self, done: Round) -> None:
        """Do nothing."""


def check_request(prompt: Sequence[int], settings: Decoding, vocab_size: int, num_positions: int) -> None:
    """Refuse what cannot be decoded, before any work.

    Raises:
        UserError: an empty prompt, a token outside the vocabulary, or a text beyond the positions (with the numbers).
    """
    if not prompt:
        raise UserError("the prompt is empty.", hint="Give text, or begin with the beginning-of-text token.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(f"the prompt holds a token outside 0..{vocab_size - 1}.", hint="Check the tokenizer.")
    if len(prompt) + settings.max_new_tokens - 1 > num_positions:
        raise UserError(
            f"{len(prompt)} tokens and {settings.max_new_tokens} new ones exceed the {num_positions} positions.",
            hint="Shorten the prompt or lower --max-new-tokens.",
        )


def speculate(
    runner: LayerRange,
    prompt: Sequence[int],
    settings: Decoding,
    controller: Controller,
    *,
    ends: frozenset[int] = frozenset(),
    judge: Judge | None = None,
    counts: Counts | None = None,
) -> Iterator[list[int]]:
    """Yield the new tokens round by round.

    Args:
        runner: the model.
        prompt: token ids, at least one.
        settings: budget and sampling.
        controller: gives each round's plan.
        ends: tokens that end the text; the one that does is yielded.
        judge: how tokens are chosen; by default as `settings` say.
        counts: filled while decoding.

    Raises:
        PolyloomError: the model gave NaN.
    """
    judge = judge or Judge(settings)
    counts = counts if counts is not None else Counts()
    budget = settings.max_new_tokens
    if budget == 0:
        return
    runner.reserve(1, len(prompt) + budget)
    with torch.inference_mode():
        place = runner.place(list(prompt), 0)
        x = runner.run(runner.embed(place), place, 0, runner.num_layers)
        logits = runner.logits(x[:, -1:])[0, 0]
        if not bool(torch.isfinite(logits.max())):
            raise PolyloomError("the model gave logits that are not finite.", hint="Check its weights and dtype.")
        text = [*prompt, judge.choose(logits, prompt)[0]]
    yield text[-1:]
    num_left = budget - 1
    lookup = Lookup(text)
    while num_left > 0 and text[-1] not in ends:
        plan = controller.plan()
        with torch.inference_mode():
            done = _round(runner, text, plan, num_left, ends, judge, lookup, controller.wants_states)
        counts.rounds += 1
        counts.drafted += done.num_drafted
        counts.accepted += done.num_accepted
        counts.emitted += len(done.emitted)
        num_left -= len(done.emitted)
        text += done.emitted
        controller.observe(done)
        yield done.emitted


def cut_at_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Return the tokens up to the earliest one that ends a text."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens


class Lookup:
    """Finds where the last n tokens of a text stood before."""

    def __init__(self, text: list[int]) -> None:
        """Watch a text that grows in place."""
        self.text = text
        self.places: dict[tuple[int, ...], int] = {}
        self.num_read = 0

    def find(self, length: int, num_tokens: int) -> list[int]:
        """Return the tokens that followed the latest earlier occurrence of the last `length`; may be none."""
        text = self.text
        # The occurrence at the very end is the suffix itself, so that it is entered only afterwards.
        for end in range(max(self.num_read, length), len(text)):
            self.places[tuple(text[end - length : end])] = end
        self.num_read = max(self.num_read, len(text))
        end = self.places.get(tuple(text[-length:]), 0)
        return text[end : end + num_tokens] if end else []


def _round(
    runner: LayerRange,
    text: list[int],
    plan: Plan,
    num_left: int,
    ends: frozenset[int],
    judge: Judge,
    lookup: Lookup,
    wants_states: bool,
) -> Round:
    """Do one round; the tokens are cut behind one that ends the text."""
    position, last = len(text) - 1, runner.num_layers
    drafts: list[int] = []
    qs: list[Tensor | None] = []
    taps: list[Tensor] | None = [] if wants_states else None
    found = lookup.find(plan.lookup, min(plan.lookup_tokens, num_left - 1)) if plan.lookup and num_left > 1 else []
    if found or not plan.draft_tokens or num_left == 1:
        drafts, qs = found, [None] * len(found)
        place = runner.place([text[-1], *drafts], position)
        x = runner.run(runner.embed(place), place, 0, last, taps)
    else:
        drafts, qs, early, early_taps = _draft(runner, text, plan, num_left - 1, ends, judge, wants_states)
        width = early.shape[1]
        place = runner.place([text[-1], *drafts][:width], position)
        if taps is not None:
            taps += early_taps
        x = runner.run(early, place, plan.exit_layer, last, taps)
    emitted, accepted = judge.verify(runner.logits(x)[0], drafts, qs, text)
    emitted = cut_at_end(emitted, ends)
    states = None if taps is None else torch.cat(taps)[:, : len(emitted)]
    return Round(plan, emitted, len(drafts), min(accepted, len(emitted)), bool(found), states)


def _draft(
    runner: LayerRange,
    text: list[int],
    plan: Plan,
    num_wanted: int,
    ends: frozenset[int],
    judge: Judge,
    wants_states: bool,
) -> tuple[list[int], list[Tensor | None], Tensor, list[Tensor]]:
    """Draft tokens at the exit; return them, their distributions, the exit's states and all earlier ones."""
    exit_layer, wanted = plan.exit_layer, min(plan.draft_tokens, num_wanted)
    position = len(text) - 1
    token = text[-1]
    drafts: list[int] = []
    qs: list[Tensor | None] = []
    states: list[Tensor] = []
    all_taps: list[list[Tensor]] = []
    while True:
        place = runner.place([token], position + len(drafts))
        taps: list[Tensor] | None = [] if wants_states else None
        x = runner.run(runner.embed(place), place, 0, exit_layer, taps)
        states.append(x)
        if taps is not None:
            all_taps.append(taps)
        if len(drafts) == wanted:
            break
        logits = runner.logits(x)[0, 0]
        if plan.confidence and probability(logits) < plan.confidence:
            break
        token, q = judge.choose(logits, text + drafts)
        drafts.append(token)
        qs.append(q)
        if token in ends:
            # Nothing follows an end token, so that its own state is not needed.
            break
    early_taps = [torch.cat(layer, dim=1) for layer in zip(*all_taps, strict=True)]
    return drafts, qs, torch.cat(states, dim=1), early_taps


def probability(logits: Tensor) -> float:
    """Return the probability of the most probable token, from logits [vocab]."""
    return float(logits.softmax(-1).max())


def plain_tokens(
    runner: LayerRange, prompt: Sequence[int], budget: int, ends: frozenset[int] = frozenset(), *, exit_layer: int = 0
) -> Iterator[int]:
    """Yield greedy tokens one by one: of the whole model, or of its first `exit_layer` layers alone (lossy)."""
    last = exit_layer or runner.num_layers
    if budget == 0:
        return
    runner.reserve(1, len(prompt) + budget)
    tokens, position = list(prompt), 0
    for _ in range(budget):
        with torch.inference_mode():
            place = runner.place(tokens, position)
            x = runner.run(runner.embed(place), place, 0, last)
            position += len(tokens)
            tokens = [int(runner.logits(x[:, -1]).argmax())]
        yield tokens[0]
        if tokens[0] in ends:
            return


def generate(
    runner: LayerRange,
    prompt: Sequence[int],
    settings: Decoding,
    controller: Controller,
    *,
    ends: frozenset[int] = frozenset(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    processors: Sequence[Processor] = (),
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """Continue one prompt self-speculatively.

    Args:
        runner: the model.
        prompt: token ids.
        settings: budget, sampling, stop texts.
        controller: gives each round's plan.
        ends: tokens that end the text.
        tokenizer: gives the text; needed for stop texts and `on_text`.
        processors: logits processors; each sees the whole text before its position.
        on_text: called with each new piece of text.

    Raises:
        UserError: stop texts or streaming without a tokenizer.
    """
    if tokenizer is None and (settings.stop or on_text):
        raise UserError("stop texts and streaming need a tokenizer.")
    result = Generated()
    rounds = speculate(
        runner,
        prompt,
        settings,
        controller,
        ends=ends,
        judge=Judge(settings, processors),
        counts=result.counts,
    )
    take(result, rounds, settings.stop, ends, tokenizer, on_text)
    return result


def take(
    result: Generated,
    rounds: Iterable[list[int]],
    stop: tuple[str, ...],
    ends: frozenset[int],
    tokenizer: PreTrainedTokenizerBase | None,
    on_text: Callable[[str], None] | None,
) -> None:
    """Take tokens into a continuation until an end token, a stop text or their end; make and stream its text."""
    stream = TextStream(tokenizer, stop) if tokenizer is not None and (stop or on_text) else None
    for token in (token for tokens in rounds for token in tokens):
        result.tokens.append(token)
        if token in ends:
            result.finish_reason = "eos"
            break
        if stream is not None and (piece := stream.push(token)) and on_text:
            on_text(piece)
        if stream is not None and stream.stopped:
            result.finish_reason = "stop"
            break
    if stream is not None:
        rest = stream.finish()
        if rest and on_text:
            on_text(rest)
        if stream.stopped:
            result.finish_reason = "stop"
        result.text = stream.text
    elif tokenizer is not None:
        tokens = result.tokens[:-1] if result.finish_reason == "eos" else result.tokens
        result.text = decode_tokens(tokenizer, tokens)
