"""Choosing instruction-tuning tasks from their instructions alone (INSTA).

Public names (imported on first use, so that reading the card needs no torch):

- `read_pool`, `Pool`, `PoolTask`: pools of tasks in the public formats.
- `clean_instruction`: what of an instruction is compared.
- `score_pool`: scores of a pool for a target, by lexical scorers, encoders, or several fused.
- `aggregate`, `fuse`, `ndcg`, `overlap`: the mathematics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.select.cleaning import clean_instruction
    from polyloom.methods.select.data import Pool, PoolTask, read_pool
    from polyloom.methods.select.method import aggregate, fuse, ndcg, overlap
    from polyloom.methods.select.scoring import score_pool

__all__ = [
    "CARD",
    "Pool",
    "PoolTask",
    "aggregate",
    "clean_instruction",
    "fuse",
    "ndcg",
    "overlap",
    "read_pool",
    "score_pool",
]

_ROOM = "polyloom.methods.select"
_HOME = {
    **dict.fromkeys(("Pool", "PoolTask", "read_pool"), ".data"),
    **dict.fromkeys(("aggregate", "fuse", "ndcg", "overlap"), ".method"),
    "clean_instruction": ".cleaning",
    "score_pool": ".scoring",
}

__getattr__ = lazy_names(__name__, _HOME)


def _verb(name: str, summary: str, config: str, module: str = "study") -> Verb:
    return Verb(name, summary, f"{_ROOM}.config:{config}", f"{_ROOM}.{module}:run_{name}")


CARD = RoomCard(
    name="select",
    title="Choosing instruction-tuning tasks by their instructions",
    question="Which instruction-tuning tasks help my target task, judged by instructions alone?",
    papers=(
        Paper(
            "Instruction Matters: A Simple yet Effective Task Selection for Optimized Instruction Tuning of "
            "Specific Tasks",
            "2404.16418",
            2024,
            "Lee, Han, Ye, Choi, Lee, Bae",
        ),
    ),
    verbs=(
        _verb("rank", "Rank the tasks of a pool for a target by instructions alone; write the mixture.", "RankConfig"),
        _verb(
            "explain",
            "Say which pairs of wordings decide, and what changes without each.",
            "ExplainConfig",
            "explaining",
        ),
        _verb(
            "stability",
            "Measure how much of the selection stays when wordings are dropped.",
            "StabilityConfig",
            "explaining",
        ),
        _verb(
            "lint",
            "Find placeholders, leaked examples, canaries and duplicates in instructions.",
            "LintConfig",
            "checking",
        ),
        _verb(
            "evaluate",
            "Judge selections by categories, a reference or measured transfers.",
            "EvaluateConfig",
            "evaluation",
        ),
        _verb("align", "Adapt an encoder to a meta-dataset's instructions, guarded.", "AlignConfig", "aligning"),
        _verb("tune", "Tune a model on the selection and its rivals at one budget.", "TuneConfig", "tune"),
        _verb("study", "Rank the world's tasks, tune on what was and was not chosen.", "SelectStudyConfig", "lab"),
    ),
    order=40,
    equations=(
        Equation("s_ij = cos(E(a_i), E(b_j))", "similarity of two instructions", f"{_ROOM}.method:cosine_pairs"),
        Equation("S(T) = mean, max, soft, vote", "score of a task over its pairs", f"{_ROOM}.method:aggregate"),
        Equation("sum 1 / (60 + rank)", "fusion of several scorers", f"{_ROOM}.method:fuse"),
        Equation("(1 - w) z(S) + w z(prior)", "measured popularity mixed in", f"{_ROOM}.method:mix_prior"),
        Equation("E(x): mean over non-padding tokens", "sentence vector", f"{_ROOM}.encoder:pool_states"),
        Equation("1 + ln tf, ln((1 + N) / (1 + df)) + 1", "TF-IDF; BM25 beside it", f"{_ROOM}.lexical:build_index"),
        Equation("X^T X = V L V^T", "latent vectors, the embedded encoder", f"{_ROOM}.lexical:latent_vectors"),
        Equation("positives 40 %, negatives cos < 0.3", "pairs to align on", f"{_ROOM}.alignment:build_pairs"),
        Equation("L = mean (cos(E(x), E(y)) - label)^2", "alignment loss", f"{_ROOM}.alignment:cosine_loss"),
        Equation("E(x) W, W = I at the start", "aligned head", f"{_ROOM}.alignment:head_loss"),
        Equation("sum_t log p(o_t | o_<t, x)", "rank classification", f"{_ROOM}.tuning:evaluate"),
        Equation("NDCG, gain 2^rel - 1", "agreement with measured transfer", f"{_ROOM}.method:ndcg"),
        Equation("regret@k", "loss of gain by the choice", f"{_ROOM}.method:regret"),
        Equation("votes of nearest instances", "baseline: instance retrieval", f"{_ROOM}.baselines:instance_votes"),
        Equation("mean_t max_u cos(t, u), both ways", "late interaction", f"{_ROOM}.method:max_sim"),
        Equation(
            "cos(g_i / (sqrt(v) + mean sqrt(v)), g_target)", "second stage: influence", f"{_ROOM}.gradients:influences"
        ),
        Equation(
            "F = E_x E_{y ~ p} (d log p(y | x) / dw)^2", "Fisher information", f"{_ROOM}.gradients:fisher_diagonal"
        ),
        Equation("cos(a / (a + b), b / (a + b))", "second stage: Task2Vec", f"{_ROOM}.method:fisher_similarity"),
        Equation("log p_target(z) - log p_raw(z)", "importance of an instance", f"{_ROOM}.instances:log_importance"),
        Equation("quantiles of random halves", "interval of a score", f"{_ROOM}.explaining:noise_bands"),
        Equation("cos(grad L_T, grad L_target)", "baseline: gradients", f"{_ROOM}.gradients:gradient_similarity"),
    ),
    tour=TourStep(verb="study", cpu_seconds=40),
)
