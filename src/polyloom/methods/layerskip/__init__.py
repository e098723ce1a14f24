"""LayerSkip: layer dropout, early-exit loss, and self-speculative decoding with identical output.

Public names (imported on first use, so that reading the card needs no torch):

- `Plan`, `Fixed`, `generate`, `generate_batch`, `open_range`: decode any causal model self-speculatively.
- `Adaptive`: a controller that chooses exit and draft length while decoding.
- `record`, `predict`, `best_plan`, `measure_costs`: the one-pass calibration.
- `LayerSkipLoss`, `Skip`, `PRESETS`, `score_exits`: training, and what every exit is worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.generation.layer_range import open_range
    from polyloom.generation.ragged import generate_batch
    from polyloom.generation.speculative import Fixed, Plan, generate
    from polyloom.methods.layerskip.adaptive import Adaptive
    from polyloom.methods.layerskip.calibration import best_plan, measure_costs, predict, record
    from polyloom.methods.layerskip.training import PRESETS, LayerSkipLoss, Skip, score_exits

__all__ = [
    "CARD",
    "PRESETS",
    "Adaptive",
    "Fixed",
    "LayerSkipLoss",
    "Plan",
    "Skip",
    "best_plan",
    "generate",
    "generate_batch",
    "measure_costs",
    "open_range",
    "predict",
    "record",
    "score_exits",
]

_ROOM = "polyloom.methods.layerskip"
_METHOD = f"{_ROOM}.method"
_HOME = {
    "open_range": "polyloom.generation.layer_range",
    "generate_batch": "polyloom.generation.ragged",
    **dict.fromkeys(("Fixed", "Plan", "generate"), "polyloom.generation.speculative"),
    "Adaptive": f"{_ROOM}.adaptive",
    **dict.fromkeys(("best_plan", "measure_costs", "predict", "record"), f"{_ROOM}.calibration"),
    **dict.fromkeys(("PRESETS", "LayerSkipLoss", "Skip", "score_exits"), f"{_ROOM}.training"),
}

__getattr__ = lazy_names(__name__, _HOME)


CARD = RoomCard(
    name="layerskip",
    title="LayerSkip: early exit and self-speculative decoding",
    question="How do I make my model decode faster with identical output?",
    papers=(
        Paper(
            "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
            "2404.16710",
            2024,
            "Elhoushi, Shrivastava, Liskovich and others",
        ),
        Paper(
            "Fast Inference from Transformers via Speculative Decoding",
            "2211.17192",
            2023,
            "Leviathan, Kalman, Matias",
        ),
    ),
    verbs=(
        Verb(
            "train",
            "Train a model whose early layers are good: layer dropout and early-exit loss.",
            f"{_ROOM}.config:TrainVerbConfig",
            f"{_ROOM}.study:run_train",
        ),
        Verb(
            "exits",
            "Report perplexity, agreement and exact answers of every exit, by language.",
            f"{_ROOM}.config:ExitsConfig",
            f"{_ROOM}.study:run_exits",
        ),
        Verb(
            "generate",
            "Continue a prompt: self-speculative, adaptive, early exit or plain, streamed.",
            f"{_ROOM}.config:GenerateConfig",
            f"{_ROOM}.study:run_generate",
        ),
        Verb(
            "calibrate",
            "Find the fastest exit and draft length from one plain decoding.",
            f"{_ROOM}.config:CalibrateConfig",
            f"{_ROOM}.sweep:run_calibrate",
        ),
        Verb(
            "bench",
            "Time our loops beside transformers' greedy, early-exit and prompt-lookup decoding.",
            f"{_ROOM}.config:BenchConfig",
            f"{_ROOM}.bench_study:run_bench",
        ),
        Verb(
            "verify",
            "Audit that every exit and draft length gives plain decoding's text; show near-ties.",
            f"{_ROOM}.config:VerifyConfig",
            f"{_ROOM}.bench_study:run_verify",
        ),
        Verb(
            "study",
            "Train with and without LayerSkip at equal steps, then decode faster with the same text.",
            f"{_ROOM}.config:LayerSkipStudyConfig",
            f"{_ROOM}.lab:run_study",
        ),
        Verb(
            "serve",
            "Serve OpenAI-compatible completions with streaming, on loopback.",
            f"{_ROOM}.config:ServeConfig",
            f"{_ROOM}.serve:run_serve",
        ),
    ),
    order=30,
    equations=(
        Equation("x_{l+1} = x_l + M(p_{l,t}) f_l(x_l)", "layer dropout, by rows (1)", f"{_METHOD}:drop_rows"),
        Equation("p_{l,t} = S(t) D(l) p_max", "dropout rate of a layer (1)", f"{_METHOD}:dropout_rates"),
        Equation("D(l) = 2^{l/(L-1)} - 1", "by depth (2)", f"{_METHOD}:layer_curve"),
        Equation("S(t) = 2^{t/(T-1)} - 1, or 1", "by time (3, 4)", f"{_METHOD}:time_curve"),
        Equation("J = sum e~(t,l) CE(g(x_{l+1}), Y)", "early-exit loss (5)", f"{_METHOD}:early_exit_loss"),
        Equation("e(l) = e_scale l (l+1) / 2, last: more", "weight of an exit (6)", f"{_METHOD}:exit_scale"),
        Equation("e~ = C e / sum C e", "weights under a curriculum (6)", f"{_METHOD}:exit_weights"),
        Equation("C(t, l)", "rotational and gradual curricula", f"{_METHOD}:active_exits"),
        Equation("min(1, p/q), max(p - q, 0)", "lossless sampling", "polyloom.generation.judge:Judge"),
        Equation("sum min(p, q) = 1 - TV", "chance of acceptance", f"{_METHOD}:acceptance"),
        Equation("tau = (1 - b^{g+1}) / (1 - b)", "tokens per round", f"{_METHOD}:tokens_per_round"),
        Equation("(g+1) E c_1 + g n_1 + (L-E) c_{g+1} + n_{g+1}", "cost of a round", f"{_METHOD}:round_cost"),
        Equation("tau (L c_1 + n_1) / cost", "speed over plain decoding", f"{_METHOD}:speed_up"),
        Equation("bits -> rounds", "exact replay of self-speculation", f"{_METHOD}:replay_rounds"),
    ),
    tour=TourStep(verb="study", inputs={"languages": "languages"}, cpu_seconds=45),
    report=f"{_ROOM}.report:figures",
)
