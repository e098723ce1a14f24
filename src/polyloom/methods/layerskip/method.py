"""LayerSkip's mathematics (arXiv 2404.16710): dropout rates, exit weights, the loss, acceptance, replay, speed-up.

Layers are counted from 0; exit E (1 <= E <= L) means that layers 0 .. E-1 have run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from polyloom.core.errors import UserError

TimeCurve = Literal["constant", "exp"]
Curriculum = Literal["rotational", "gradual", "none"]
LossScale = Literal["paper", "sum", "linear", "uniform", "sqrt", "inv"]
IGNORED_LABEL = -100


def layer_curve(num_layers: int) -> list[float]:
    """Return D(l) = 2^(l / (L-1)) - 1 of every layer: 0 at the first, 1 at the last; 0 where L = 1 (paper, eq. 2).

    Args:
        num_layers: L.
    """
    if num_layers == 1:
        return [0.0]
    return [math.exp(layer * math.log(2) / (num_layers - 1)) - 1 for layer in range(num_layers)]


def time_curve(step: int, num_steps: int, kind: TimeCurve) -> float:
    """Return S(t): 1, or 2^(t / (T-1)) - 1 for pretraining from scratch (paper, eq. 3 and 4).

    Args:
        step: t, from 0.
        num_steps: T.
        kind: `constant` for continual pretraining and fine-tuning, `exp` from scratch.
    """
    if kind == "constant" or num_steps == 1:
        return 1.0
    return math.exp(step * math.log(2) / (num_steps - 1)) - 1


def dropout_rates(num_layers: int, p_max: float, step: int, num_steps: int, kind: TimeCurve) -> list[float]:
    """Return p(l, t) = S(t) D(l) p_max of every layer (paper, eq. 1).

    Raises:
        UserError: `p_max` outside [0, 1).
    """
    if not 0 <= p_max < 1:
        raise UserError(f"the dropout rate must be in [0, 1), not {p_max}.", where="--p-max", hint="The paper: 0.1.")
    scale = time_curve(step, num_steps, kind) * p_max
    return [scale * curve for curve in layer_curve(num_layers)]


def exit_scale(num_layers: int, e_scale: float, kind: LossScale = "paper", floor: bool = False) -> list[float]:
    """Return e(l) of every layer before normalisation (paper, eq. 6).

    Args:
        num_layers: L.
        e_scale: weight of the early exits, 0 to 1.
        kind: `paper`; otherwise l+1, 1, sqrt(l+1) or 1/(l+1), where `e_scale` multiplies all but the last layer
            (`sum`, torchtune's, depends on the layers that are on: see `exit_weights`).
        floor: give layer 0 the weight of layer 1; the paper leaves it at 0.

    Returns:
        e(l) [L].

    Raises:
        UserError: `e_scale` outside [0, 1].
    """
    if not 0 <= e_scale <= 1:
        raise UserError(f"the weight of early exits must be in [0, 1], not {e_scale}.", where="--e-scale")
    last = num_layers - 1
    if kind == "paper":
        e = [e_scale * layer * (layer + 1) / 2 for layer in range(last)]
        e.append(last + e_scale * (last - 1) * last / 2 if last else 1.0)
    else:
        forms: dict[str, Callable[[int], float]] = {
            "sum": lambda n: float(n),
            "linear": lambda n: float(n),
            "uniform": lambda n: 1.0,
            "sqrt": math.sqrt,
            "inv": lambda n: 1 / n,
        }
        e = [forms[kind](layer + 1) * (1.0 if layer == last else e_scale) for layer in range(num_layers)]
    if floor and num_layers > 2:
        e[0] = max(e[0], e[1])
    return e


def active_exits(
    step: int, num_layers: int, curriculum: Curriculum, period: int, num_steps: int, always_last: bool = True
) -> list[int]:
    """Return the layers whose exits are trained at a step: {l : C(t, l) = 1} (paper, section 4.1.2).

    Args:
        step: t.
        num_layers: L.
        curriculum: `rotational`: l = t modulo R; `gradual`: one more layer downwards every T / (2L) steps; `none`: all.
        period: R of the rotation, 1 to L.
        num_steps: T, for `gradual`.
        always_last: keep the last layer on; the paper does not say, its authors' code does.

    Raises:
        UserError: R outside 1 .. L, or a gradual curriculum of unknown length.
    """
    last = num_layers - 1
    if curriculum == "none":
        return list(range(num_layers))
    if curriculum == "gradual":
        if num_steps < 1:
            raise UserError("the gradual curriculum needs the number of steps.", where="--steps")
        return [layer for layer in range(num_layers) if step * 2 * num_layers >= (last - layer) * num_steps]
    if not 1 <= period <= num_layers:
        raise UserError(f"the rotation's period must be 1 to {num_layers}, not {period}.", where="--rotation")
    layers = list(range(step % period, num_layers, period))
    return layers if not always_last or last in layers else [*layers, last]


def exit_weights(
    active: Sequence[int], num_layers: int, e_scale: float, kind: LossScale = "paper", floor: bool = False
) -> dict[int, float]:
    """Return e~(t, l) = C e / sum C e of the layers that weigh more than nothing; the sum is 1 (paper, eq. 6).

    Where only layer 0 is on, whose weight is 0, the last layer takes all of it.
    """
    e = exit_scale(num_layers, e_scale, kind, floor)
    if kind == "sum":
        running = 0.0
        for layer in sorted(active):
            running += layer + 1
            e[layer] = running * (1.0 if layer == num_layers - 1 else e_scale)
    total = sum(e[layer] for layer in active)
    if total == 0:
        return {num_layers - 1: 1.0}
    return {layer: e[layer] / total for layer in active if e[layer] > 0}


def early_exit_loss(
    states: dict[int, Float[Tensor, "batch tokens dim"]],
    labels: Int[Tensor, "batch tokens"],
    weights: dict[int, float],
    project: Callable[[Tensor], Tensor],
    distill: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[int, float]]:
    """Return J = sum_l e~(l) CE(g(x_{l+1}), Y), summed over the label positions (paper, eq. 5).

    Logits are made at label positions only, one exit after the other.

    Args:
        states: x_{l+1} of every layer in `weights`, and of the last one where `distill` is on.
        labels: targets, -100 where there is none.
        weights: e~ of each layer.
        project: g, final norm and head.
        distill: weight of KL(p_L || p_E), the last layer's distribution held fixed, averaged over early exits by e~.

    Returns:
        The loss in nats, and each exit's summed cross entropy.
    """
    kept = labels != IGNORED_LABEL
    targets = labels[kept]
    last = max(states)
    teacher = project(states[last][kept]).detach().float().log_softmax(-1) if distill else None
    total = next(iter(states.values())).new_zeros((), dtype=torch.float32)
    parts = {}
    for layer, weight in weights.items():
        logits = project(states[layer][kept]).float()
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        parts[layer] = float(loss.detach())
        total = total + weight * loss
        if teacher is not None and layer != last:
            student = logits.log_softmax(-1)
            total = total + distill * weight * functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return total, parts


def drop_rows(
    keep: Tensor, x: Float[Tensor, "batch tokens dim"], run: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "batch tokens dim"]:
    """Run a layer on the kept rows alone and put the results back; x_{l+1} = x_l + M f(x_l), not rescaled (eq. 1).

    Args:
        keep: bool [batch], M.
        x: the layer's input.
        run: from the kept rows' input and their indices to the layer's output for them.
    """
    if bool(keep.all()):
        return run(x, torch.arange(len(keep), device=x.device))
    rows = keep.nonzero().squeeze(-1).to(x.device)
    return x.index_copy(0, rows, run(x[rows], rows)) if len(rows) else x


def acceptance(p: Float[Tensor, "*rows vocab"], q: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
    """Return the chance that a draft from q is accepted: sum_x min(p, q) = 1 - TV(p, q)."""
    return torch.minimum(p, q).sum(-1)


def tokens_per_round(agreement: float, draft_tokens: int) -> float:
    """Return tau = (1 - beta^(gamma+1)) / (1 - beta) for independent agreement beta."""
    if agreement == 1:
        return float(draft_tokens + 1)
    return float((1 - agreement ** (draft_tokens + 1)) / (1 - agreement))


def round_cost(
    exit_layer: int, draft_tokens: int, num_layers: int, layer: Sequence[float], head: Sequence[float]
) -> float:
    """Return a round's seconds: (gamma+1) E c_1 + gamma n_1 + (L-E) c_{gamma+1} + n_{gamma+1}.

    Args:
        exit_layer: E.
        draft_tokens: gamma; 0 is a plain step.
        num_layers: L.
        layer: c_T, seconds of one layer on T = 1, 2, ... new tokens.
        head: n_T, seconds of norm, head and choice on T positions.
    """
    early = (draft_tokens + 1) * exit_layer * layer[0] + draft_tokens * head[0]
    return early + (num_layers - exit_layer) * layer[draft_tokens] + head[draft_tokens]


def speed_up(
    tau: float, exit_layer: int, draft_tokens: int, num_layers: int, layer: Sequence[float], head: Sequence[float]
) -> float:
    """Return tau (L c_1 + n_1) / cost: tokens per second over those of plain decoding."""
    plain = num_layers * layer[0] + head[0]
    return tau * plain / round_cost(exit_layer, draft_tokens, num_layers, layer, head)


def run_lengths(bits: Sequence[bool]) -> list[int]:
    """Return for every position how many agreements follow one another from there on."""
    lengths, length = [0] * len(bits), 0
    for i in range(len(bits) - 1, -1, -1):
        length = length + 1 if bits[i] else 0
        lengths[i] = length
    return lengths


def replay_rounds(lengths: Sequence[int], draft_tokens: int) -> int:
    """Count the rounds that self-speculation takes over one text, exactly.

    After an accepted prefix the draft at exit E is what exit E would say there anyway, so the agreement bits of one
    plain decoding fix every round. The draft never reaches beyond the text: budget and end token clip it.

    Args:
        lengths: `run_lengths` of the exit's bits; bit i says that the exit, standing at token i, gives token i+1. A
            text of n tokens after its first one has n of them.
        draft_tokens: gamma.

    Returns:
        Rounds until the text's end.
    """
    at, rounds, end = 0, 0, len(lengths)
    while at < end:
        run = lengths[at]
        at += (run if run < draft_tokens else draft_tokens) + 1
        rounds += 1
    return rounds


def replay_drafts(lengths: Sequence[int], confident: Sequence[int], draft_tokens: int) -> list[int]:
    """Return how many tokens each round drafts where a draft ends before a token the exit is unsure of.

    Rounds and accepted tokens are exact. Behind a token that is wrong the exit's confidence is taken to be what it is
    on the right text, so that the drafted number is an estimate there.

    Args:
        lengths: as in `replay_rounds`.
        confident: `run_lengths` of whether the exit's most probable token reaches the threshold.
        draft_tokens: gamma.
    """
    at, end, drafted = 0, len(lengths), []
    while at < end:
        sure, run = confident[at], lengths[at]
        k = sure if sure < draft_tokens else draft_tokens
        at += (run if run < k else k) + 1
        drafted.append(k)
    return drafted
