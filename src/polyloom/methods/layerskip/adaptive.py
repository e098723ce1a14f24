"""Choosing exit and draft length while decoding: sliding agreement bits, exact replay, plain decoding as an arm."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from polyloom.generation.layer_range import LayerRange
from polyloom.generation.speculative import PLAIN, Plan, Round
from polyloom.methods.layerskip.calibration import Costs, agreements
from polyloom.methods.layerskip.method import replay_rounds, round_cost, run_lengths

WINDOW_TOKENS = 96
FIRST_TOKENS = 16
BLOCK_TOKENS = 32
LONGEST_WAIT = 64
HYSTERESIS = 1.03
LOOKUP_LENGTH = 3
LOOKUP_TOKENS = 8
DRAFT_LENGTHS = (1, 2, 3, 4, 6, 8)
DECAY = 0.9


class Adaptive:
    """A controller that keeps to the pair which would have been fastest on the last tokens.

    Full information: one round whose states are kept tells what every exit would have done, so that nothing has to be
    tried. Plain decoding is one of the arms; while it is chosen the probes become rarer, up to one in 64 rounds.
    Drafts from the text itself are used while they give more tokens per second than the pair.
    """

    def __init__(self, runner: LayerRange, costs: Costs, start: Plan = PLAIN, *, lookup: bool = True) -> None:
        """Take measured costs (up to `DRAFT_LENGTHS`' longest plus one) and the plan to begin with."""
        self.runner, self.costs = runner, costs
        self.best = start
        self.bits: list[deque[bool]] = [deque(maxlen=WINDOW_TOKENS) for _ in range(runner.num_layers - 1)]
        self.num_new = 0
        self.wait, self.waited = 1, 0
        self.rate = self._plan_rate(start, 1.5 if start.draft_tokens else 1.0)
        self.lookup = lookup
        # Optimistic at first, so that lookup is tried where the text repeats itself.
        self.lookup_tokens, self.lookup_cost = 3.0, self._pass_cost(LOOKUP_TOKENS + 1)
        self.lookup_rest = 0

    def _pass_cost(self, width: int) -> float:
        width = min(width, len(self.costs.layer))
        return self.runner.num_layers * self.costs.layer[width - 1] + self.costs.head[width - 1]

    def _plan_rate(self, plan: Plan, tau: float) -> float:
        cost = round_cost(plan.exit_layer, plan.draft_tokens, self.runner.num_layers, self.costs.layer, self.costs.head)
        return tau / cost

    @property
    def wants_states(self) -> bool:
        """Whether this round is a probe."""
        return self.waited >= self.wait

    def plan(self) -> Plan:
        """Return the best plan so far, with lookup where that pays."""
        self.waited += 1
        use = self.lookup and self.lookup_tokens / self.lookup_cost > self.rate
        if self.lookup and not use:
            # Now and then the estimate is forgiven, since texts change.
            self.lookup_rest += 1
            if self.lookup_rest >= LONGEST_WAIT:
                self.lookup_rest, self.lookup_tokens, use = 0, self.rate * self.lookup_cost * 1.01, True
        if not use:
            return self.best
        best = self.best
        return Plan(best.exit_layer, best.draft_tokens, 0.0, LOOKUP_LENGTH, LOOKUP_TOKENS)

    def observe(self, done: Round) -> None:
        """Take a round: its bits if it was a probe, and how lookup did."""
        if done.looked_up:
            self.lookup_tokens = DECAY * self.lookup_tokens + (1 - DECAY) * len(done.emitted)
            self.lookup_cost = DECAY * self.lookup_cost + (1 - DECAY) * self._pass_cost(done.num_drafted + 1)
        if done.states is None:
            return
        self.waited = 0
        for bits, agreed in zip(self.bits, agreements(self.runner, done), strict=True):
            bits.extend(agreed)
        self.num_new += len(done.emitted)
        if self.num_new >= (FIRST_TOKENS if len(self.bits[0]) <= FIRST_TOKENS + 8 else BLOCK_TOKENS):
            self.num_new = 0
            self._choose()

    def _choose(self) -> None:
        """Replay the window for every pair and take the fastest, unless it is hardly faster than the present one."""
        before = self.best
        num_tokens = len(self.bits[0])
        rates = {PLAIN: self._plan_rate(PLAIN, 1.0)}
        for exit_layer, bits in enumerate(self.bits, start=1):
            lengths = run_lengths(list(bits))
            for gamma in DRAFT_LENGTHS:
                plan = Plan(exit_layer, gamma)
                rates[plan] = self._plan_rate(plan, num_tokens / replay_rounds(lengths, gamma))
        best = max(rates, key=lambda plan: rates[plan])
        present = rates.get(self.best, 0.0)
        if rates[best] > HYSTERESIS * present:
            self.best = best
        self.rate = rates.get(self.best, rates[best])
        # A choice that stood is probed more rarely.
        self.wait = min(LONGEST_WAIT, 2 * self.wait) if self.best == before else max(1, self.wait // 2)


def describe(plan: Plan) -> str:
    """Return a plan in words."""
    return f"exit {plan.exit_layer}, draft {plan.draft_tokens}" if plan.draft_tokens else "plain decoding"


def mixed(streams: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """Return prompts of several streams in turn."""
    return [prompt for group in zip(*streams, strict=False) for prompt in group]
