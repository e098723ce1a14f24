"""PRETTY: one or two prior tokens in place of fine-tuning for cross-lingual generation.

Public names (imported on first use, so that reading the card needs no torch):

- `generate_with_priors`, `Generation`, `PriorProcessor`: prior-token decoding by appending, and by constraint.
- `Prior`, `text_prior`, `answer_tokens`, `model_priors`, `refined_priors`, `pseudo_priors`, `gate_priors`: sources.
- `decision_space`, `compare_decisions`, `agreement`, `rank_of`, `relative_performance`: the decision-space measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.prefix.method import (
        Generation,
        PriorProcessor,
        agreement,
        compare_decisions,
        decision_space,
        generate_with_priors,
        rank_of,
        relative_performance,
    )
    from polyloom.methods.prefix.priors import (
        Prior,
        answer_tokens,
        gate_priors,
        model_priors,
        pseudo_priors,
        refined_priors,
        text_prior,
    )

__all__ = [
    "CARD",
    "Generation",
    "Prior",
    "PriorProcessor",
    "agreement",
    "answer_tokens",
    "compare_decisions",
    "decision_space",
    "gate_priors",
    "generate_with_priors",
    "model_priors",
    "pseudo_priors",
    "rank_of",
    "refined_priors",
    "relative_performance",
    "text_prior",
]

_METHOD = "polyloom.methods.prefix.method"
_PRIORS = "polyloom.methods.prefix.priors"
_TEXT = "polyloom.metrics.text"
_HOME = dict.fromkeys(
    ("Prior", "answer_tokens", "gate_priors", "model_priors", "pseudo_priors", "refined_priors", "text_prior"), _PRIORS
)

__getattr__ = lazy_names(__name__, {**dict.fromkeys(__all__, _METHOD), **_HOME})


def _verb(name: str, summary: str, config: str, module: str) -> Verb:
    home = "polyloom.methods.prefix"
    return Verb(name, summary, f"{home}.config:{config}", f"{home}.{module}:run_{name}")


CARD = RoomCard(
    name="prefix",
    title="Prefix text as a yarn: prior tokens in place of fine-tuning",
    question="Can one or two prefix tokens replace fine-tuning for cross-lingual generation?",
    papers=(
        Paper(
            "Prefix Text as a Yarn: Eliciting Non-English Alignment in Foundation Language Model",
            "2404.16766",
            2024,
        ),
        Paper("The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning", "2312.01552", 2023),
        Paper(
            "CrossSum: Beyond English-Centric Cross-Lingual Summarization for 1,500+ Language Pairs", "2112.08804", 2021
        ),
    ),
    verbs=(
        _verb("translate", "Translate with prior tokens from a source of your choice.", "TranslateConfig", "verbs"),
        _verb("generate", "Do any templated task with prior tokens.", "GenerateConfig", "verbs"),
        _verb("prior", "Build priors, or search the best source and k on a development set.", "PriorConfig", "search"),
        _verb("decide", "Compare a base model's decisions with its tuned form's.", "DecideConfig", "decide"),
        _verb("evaluate", "Score files of answers side by side.", "EvaluateConfig", "evaluate"),
        _verb("dictionary", "Read a bilingual dictionary and measure its hit rate.", "DictionaryConfig", "verbs"),
        _verb(
            "study", "Run the embedded experiment: base, fine-tuned, priors, controls.", "PrefixStudyConfig", "study"
        ),
    ),
    order=50,
    equations=(
        Equation("d_m(i | y_<i)", "the greedy decision, and its rank under the other model", f"{_METHOD}:rank_of"),
        Equation("agreement@K", "share of d_s(i) in the base model's top K", f"{_METHOD}:agreement"),
        Equation("KL, JS, CE", "divergences of P_s and P_b, one position at a time", f"{_METHOD}:compare_decisions"),
        Equation("y^s_<i", "both models along the tuned model's own answer", f"{_METHOD}:decision_space"),
        Equation("(I, X) ++ prior[1..k]", "prior-token decoding by appending", f"{_METHOD}:generate_with_priors"),
        Equation("P(v) = 0 unless v = prior[j]", "the same by constraint", f"{_METHOD}:PriorProcessor"),
        Equation("SFT prior", "first k tokens of the tuned model's answer", f"{_PRIORS}:model_priors"),
        Equation("refined prior", "first k base tokens of a small model's answer", f"{_PRIORS}:refined_priors"),
        Equation("pseudo prior", "the source's beginning, word by word", f"{_PRIORS}:pseudo_priors"),
        Equation("argmax over G", "the first token among a set of allowed ones", f"{_METHOD}:gated_choice"),
        Equation("Rel = 100 m / m_SFT", "performance relative to fine-tuning", f"{_METHOD}:relative_performance"),
        Equation("LaSE = ms lc lp", "cross-lingual summary score", f"{_TEXT}:lase"),
        Equation("lp = exp(min(0, 1 - n_pred / (n_ref + 6)))", "its length penalty", f"{_TEXT}:length_penalty"),
    ),
    tour=TourStep(verb="study", cpu_seconds=45),
    report="polyloom.methods.prefix.report:figures",
)
