"""Choosing exit, draft length and confidence while decoding: sliding evidence, exact replay, plain as an arm."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from polyloom.generation.layer_range import LayerRange
from polyloom.generation.speculative import PLAIN, Plan, Round
from polyloom.methods.layerskip.calibration import Costs, Trace, agreements
from polyloom.methods.layerskip.method import replay_drafts, replay_rounds, round_cost, run_lengths

WINDOW_TOKENS = 256
FIRST_TOKENS = 16
BLOCK_TOKENS = 32
LONGEST_WAIT = 64
SEEDED_WAIT = 16
HYSTERESIS = 1.03
LOOKUP_LENGTH = 3
LOOKUP_TOKENS = 8
LOOKUP_HOPE = 1.05
DRAFT_LENGTHS = (1, 2, 3, 4, 6, 8)
CONFIDENCES = (0.3, 0.5, 0.7, 0.9)
NUM_REFINED = 3
DECAY = 0.9


class Adaptive:
    """A controller that keeps to the plan which would have been fastest on the last tokens.

    Full information: one round whose states are kept tells what every exit would have done, so that nothing has to be
    tried. Plain decoding is one of the arms; while a choice stands the probes become rarer, up to one in 64 rounds.
    A draft ends before a token that its exit is unsure of, where that pays: so each text, easy or hard, gets its own
    draft lengths. Drafts from the text itself are used while they give more tokens per second than the plan.
    """

    def __init__(
        self,
        runner: LayerRange,
        costs: Costs,
        start: Plan = PLAIN,
        *,
        traces: Sequence[Trace] = (),
        lookup: bool = True,
    ) -> None:
        """Begin.

        Args:
            runner: the model.
            costs: measured, up to `DRAFT_LENGTHS`' longest plus one.
            start: the plan to begin with, where there are no traces.
            traces: plain decodings to begin with as evidence.
            lookup: whether to draft from the text itself.
        """
        self.runner, self.costs = runner, costs
        self.best, self.rate = start, self._rate(start, 1.5 if start.draft_tokens else 1.0)
        exits = range(runner.num_layers - 1)
        self.bits: list[deque[bool]] = [deque(maxlen=WINDOW_TOKENS) for _ in exits]
        self.sure: list[deque[float]] = [deque(maxlen=WINDOW_TOKENS) for _ in exits]
        self.num_new, self.wait, self.waited = 0, 1, 0
        for trace in traces:
            self._take(trace.bits, trace.confidences)
        if self.num_new >= FIRST_TOKENS:
            self._choose()
            # A plain round tells of one token only, so that probes cost more than they tell where drafts do not pay.
            self.wait = SEEDED_WAIT if self.best.exit_layer else LONGEST_WAIT
        self.lookup, self.lookup_rest = lookup, 0
        # Lookup begins just above what the plan gives: one failure rests it, a success keeps it.
        self.lookup_cost = self._pass_cost(LOOKUP_TOKENS + 1)
        self.lookup_tokens = LOOKUP_HOPE * self.rate * self.lookup_cost

    def _pass_cost(self, width: int) -> float:
        width = min(width, len(self.costs.layer))
        return self.runner.num_layers * self.costs.layer[width - 1] + self.costs.head[width - 1]

    def _cost(self, exit_layer: int, draft_tokens: int) -> float:
        return round_cost(exit_layer, draft_tokens, self.runner.num_layers, self.costs.layer, self.costs.head)

    def _rate(self, plan: Plan, tau: float) -> float:
        return tau / self._cost(plan.exit_layer, plan.draft_tokens)

    @property
    def wants_states(self) -> bool:
        """Whether this round is a probe."""
        return self.waited >= self.wait

    def plan(self) -> Plan:
        """Return the best plan so far, with lookup where that pays."""
        self.waited += 1
        use = self.lookup and self.lookup_tokens > self.rate * self.lookup_cost
        if self.lookup and not use:
            # Now and then the estimate is forgiven, since texts change.
            self.lookup_rest += 1
            if self.lookup_rest >= LONGEST_WAIT:
                self.lookup_rest, use = 0, True
                self.lookup_tokens = LOOKUP_HOPE * self.rate * self.lookup_cost
        if not use:
            return self.best
        best = self.best
        return Plan(best.exit_layer, best.draft_tokens, best.confidence, LOOKUP_LENGTH, LOOKUP_TOKENS)

    def observe(self, done: Round) -> None:
        """Take a round: its bits if it was a probe, and how lookup did."""
        if done.looked_up:
            self.lookup_tokens = DECAY * self.lookup_tokens + (1 - DECAY) * len(done.emitted)
            self.lookup_cost = DECAY * self.lookup_cost + (1 - DECAY) * self._pass_cost(done.num_drafted + 1)
        if done.states is None:
            return
        self.waited = 0
        first = len(self.bits[0]) < 2 * FIRST_TOKENS
        self._take(*agreements(self.runner, done))
        if self.num_new >= (FIRST_TOKENS if first else BLOCK_TOKENS):
            before = self.best
            self._choose()
            # A choice that stood is probed more rarely.
            self.wait = min(LONGEST_WAIT, 2 * self.wait) if self.best == before else max(1, self.wait // 2)

    def _take(self, bits: Sequence[Sequence[bool]], sure: Sequence[Sequence[float]]) -> None:
        for own, new in zip(self.bits, bits, strict=True):
            own.extend(new)
        for kept, values in zip(self.sure, sure, strict=True):
            kept.extend(values)
        self.num_new += len(bits[0])

    def _choose(self) -> None:
        """Replay the window for every plan and take the fastest, unless it is hardly faster than the present one."""
        self.num_new = 0
        num_tokens = len(self.bits[0])
        lengths = [run_lengths(list(bits)) for bits in self.bits]
        rates = {PLAIN: self._rate(PLAIN, 1.0)}
        for exit_layer, own in enumerate(lengths, start=1):
            for gamma in DRAFT_LENGTHS:
                plan = Plan(exit_layer, gamma)
                rates[plan] = self._rate(plan, num_tokens / replay_rounds(own, gamma))
        # Thresholds are tried at the exits that are best without one, and at the present one.
        ranked = sorted((plan for plan in rates if plan.exit_layer), key=lambda plan: -rates[plan])
        exits = dict.fromkeys([self.best.exit_layer or ranked[0].exit_layer, *(plan.exit_layer for plan in ranked)])
        for exit_layer in list(exits)[:NUM_REFINED]:
            rates |= self._confident_rates(exit_layer, lengths[exit_layer - 1])
        best = max(rates, key=lambda plan: rates[plan])
        if rates[best] > HYSTERESIS * rates.get(self.best, 0.0):
            self.best = best
        self.rate = rates[self.best]

    def _confident_rates(self, exit_layer: int, lengths: list[int]) -> dict[Plan, float]:
        rates = {}
        for threshold in CONFIDENCES:
            confident = run_lengths([value >= threshold for value in self.sure[exit_layer - 1]])
            for gamma in DRAFT_LENGTHS[2:]:
                drafted = replay_drafts(lengths, confident, gamma)
                seconds = 0.0
                for k in set(drafted):
                    # The token that ended the draft was weighed too.
                    ended = self.costs.head[0] if k < gamma else 0.0
                    checks = self.costs.confidence * min(k + 1, gamma)
                    seconds += drafted.count(k) * (self._cost(exit_layer, k) + ended + checks)
                rates[Plan(exit_layer, gamma, threshold)] = len(lengths) / seconds
        return rates


def describe(plan: Plan) -> str:
    """Return a plan in words."""
    return f"exit {plan.exit_layer}, draft {plan.draft_tokens}" if plan.draft_tokens else "plain decoding"
