"""Robustness of one's own model: suffix search (GCG, DSN), judges and their ensemble, defences.

A tool for the owner of a model. The search works on local weights alone and on a user's model only with the name of
who allows
it; suffixes are replayed among the user's own models; a judge may be remote, and is asked to classify; reports are
redacted. No
behaviours, suffixes or role-play texts come with it: the default is a harmless secret of an invented world.

Public names (imported on first use, so that reading the card needs no torch):

- `Objective`, `Search`, `Settings`, `Slot`, `State`, `run_search`: the search over token ids.
- `decay_weights`, `target_losses`, `refusal_loss`, `unlikelihood`, `objective_loss`, `mellowmax`: the losses.
- `make_prompts`, `TokenRules`, `banned_tokens`: conversations around a suffix, and the round trip through text.
- `KeywordJudge`, `NliJudge`, `ChatJudge`, `YesNoJudge`, `ensemble`: judges.
- `PerplexityFilter`, `SmoothLLM`, `Retokenise`: defences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.redteam.defences import PerplexityFilter, Retokenise, SmoothLLM
    from polyloom.methods.redteam.judges import ChatJudge, KeywordJudge, NliJudge, YesNoJudge, ensemble
    from polyloom.methods.redteam.method import (
        Objective,
        decay_weights,
        mellowmax,
        objective_loss,
        refusal_loss,
        target_losses,
        unlikelihood,
    )
    from polyloom.methods.redteam.search import Search, Settings, Slot, State, run_search
    from polyloom.methods.redteam.tokens import TokenRules, banned_tokens, make_prompts

__all__ = [
    "CARD",
    "ChatJudge",
    "KeywordJudge",
    "NliJudge",
    "Objective",
    "PerplexityFilter",
    "Retokenise",
    "Search",
    "Settings",
    "Slot",
    "SmoothLLM",
    "State",
    "TokenRules",
    "YesNoJudge",
    "banned_tokens",
    "decay_weights",
    "ensemble",
    "make_prompts",
    "mellowmax",
    "objective_loss",
    "refusal_loss",
    "run_search",
    "target_losses",
    "unlikelihood",
]

_ROOM = "polyloom.methods.redteam"
_METHOD = f"{_ROOM}.method"
_AGREEMENT = "polyloom.metrics.agreement"
_HOME = {
    **dict.fromkeys(("Search", "Settings", "Slot", "State", "run_search"), f"{_ROOM}.search"),
    **dict.fromkeys(("TokenRules", "banned_tokens", "make_prompts"), f"{_ROOM}.tokens"),
    **dict.fromkeys(("ChatJudge", "KeywordJudge", "NliJudge", "YesNoJudge", "ensemble"), f"{_ROOM}.judges"),
    **dict.fromkeys(("PerplexityFilter", "Retokenise", "SmoothLLM"), f"{_ROOM}.defences"),
}

__getattr__ = lazy_names(__name__, {**dict.fromkeys(__all__, _METHOD), **_HOME})


def _verb(name: str, summary: str, config: str, module: str) -> Verb:
    return Verb(name, summary, f"{_ROOM}.config:{config}", f"{_ROOM}.{module}:run_{name}")


CARD = RoomCard(
    name="redteam",
    title="Is my own model's refusal robust?",
    question="How robust is my own model against refusal suppression, and do my defences and judges work?",
    papers=(
        Paper(
            "Don't Say No: Jailbreaking LLM by Suppressing Refusal",
            "2404.16369",
            2024,
            "Zhou, Huang, Lu, Huang, Yu, Tian, Zhang",
        ),
        Paper(
            "Universal and Transferable Adversarial Attacks on Aligned Language Models",
            "2307.15043",
            2023,
            "Zou et al.",
        ),
        Paper(
            "SmoothLLM: Defending Large Language Models Against Jailbreaking Attacks",
            "2310.03684",
            2023,
            "Robey et al.",
        ),
    ),
    verbs=(
        _verb(
            "attack",
            "Search for suffixes on your own model, beside a random control and benign prompts.",
            "AttackConfig",
            "attack",
        ),
        _verb(
            "judge",
            "Judge responses by keywords, NLI and chat models, and combine the judges.",
            "JudgeConfig",
            "opinions",
        ),
        _verb(
            "agree",
            "Compare judges with human labels, and correct success rates for their errors.",
            "AgreeConfig",
            "opinions",
        ),
        _verb("transfer", "Replay suffixes among your own models: found on, tried on.", "TransferConfig", "transfer"),
        _verb("defend", "Measure defences: attack success and benign answers side by side.", "DefendConfig", "guard"),
        _verb("gate", "Pass or fail a model in continuous integration by two bounds.", "GateConfig", "guard"),
        _verb(
            "study", "Attack, judge and defend a tiny model that keeps a harmless secret.", "RedteamStudyConfig", "lab"
        ),
    ),
    order=90,
    equations=(
        Equation("CE_i = -log p(y_i | x, y_<i)", "loss of a target token", f"{_METHOD}:target_losses"),
        Equation("w_i = 0.5 + 0.5 cos(a_i)", "cosine decay over the target, two forms", f"{_METHOD}:decay_weights"),
        Equation("L = (1/H) sum w_i CE_i + alpha L_ref", "GCG (alpha 0, w 1) and DSN", f"{_METHOD}:objective_loss"),
        Equation("U = min(10, -log(1 - min(p, 0.99)))", "unlikelihood of a refusal token", f"{_METHOD}:unlikelihood"),
        Equation("L_ref = mean over (keyword, window) of U", "refusal loss", f"{_METHOD}:refusal_loss"),
        Equation("dL/d onehot = E . dL/de", "exact token-position gradient", f"{_METHOD}:one_hot_gradient"),
        Equation("(logsumexp(w t) - log n) / w", "mellowmax", f"{_METHOD}:mellowmax"),
        Equation("floor(j S / B)", "positions that candidates change", f"{_METHOD}:even_positions"),
        Equation("max(1, min(B, (1 - a) B / R))", "candidates kept by probe sampling", f"{_METHOD}:probe_size"),
        Equation("sum w c + sum w d > t", "contradiction judge", f"{_ROOM}.judges:contradiction_score"),
        Equation("majority, approval, veto", "the ensemble of judges", f"{_AGREEMENT}:aggregate"),
        Equation(
            "(obs - FPR) / (TPR - FPR)", "success rate without the judge's errors", f"{_AGREEMENT}:corrected_rate"
        ),
        Equation("phi_j = sum w (v(C + j) - v(C))", "a judge's share of the agreement", f"{_AGREEMENT}:shapley_values"),
        Equation("floor(len q / 100) characters", "SmoothLLM's copies", f"{_ROOM}.defences:perturb"),
        Equation("max over windows of mean NLL", "windowed perplexity filter", f"{_ROOM}.defences:worst_window"),
    ),
    tour=TourStep(verb="study", cpu_seconds=50),
    report="polyloom.methods.redteam.report:figures",
)
