"""Room `commons`: do agents sustain what they share? (GovSim)

Public names, imported on first use:

- `Resource`, `Commons`, `Trajectory`, `play`: the game; `allocate`, `allocation_pmf`, `optimum`: its parts.
- `score`, `Score`, `efficiency`, `equality`, `over_usage`: the metrics.
- `quantity`, `agreed_limit`, `utterance`: replies, read strictly.
- `read_policy`, `play_batch`, `learn`: policies, thousands of runs at once, tabular learners.
- `Simulation`, `Setting`, `load_scenario`: a run with talk; `read_logs`: logs of GovSim and ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.commons.batch import play_batch
    from polyloom.methods.commons.engine import Commons, Resource, Trajectory, allocate, allocation_pmf, optimum, play
    from polyloom.methods.commons.learning import learn
    from polyloom.methods.commons.logs import read_logs
    from polyloom.methods.commons.metrics import Score, efficiency, equality, over_usage, score
    from polyloom.methods.commons.parsing import agreed_limit, quantity, utterance
    from polyloom.methods.commons.policies import read_policy
    from polyloom.methods.commons.scenario import load_scenario
    from polyloom.methods.commons.simulation import Setting, Simulation

__all__ = [
    "CARD",
    "Commons",
    "Resource",
    "Score",
    "Setting",
    "Simulation",
    "Trajectory",
    "agreed_limit",
    "allocate",
    "allocation_pmf",
    "efficiency",
    "equality",
    "learn",
    "load_scenario",
    "optimum",
    "over_usage",
    "play",
    "play_batch",
    "quantity",
    "read_logs",
    "read_policy",
    "score",
    "utterance",
]

_ROOM = "polyloom.methods.commons"
_HOME = {
    **dict.fromkeys(("Commons", "Resource", "Trajectory", "allocate", "allocation_pmf", "optimum", "play"), ".engine"),
    **dict.fromkeys(("Score", "score", "efficiency", "equality", "over_usage"), ".metrics"),
    **dict.fromkeys(("quantity", "agreed_limit", "utterance"), ".parsing"),
    **dict.fromkeys(("Setting", "Simulation"), ".simulation"),
    "learn": ".learning",
    "load_scenario": ".scenario",
    "play_batch": ".batch",
    "read_logs": ".logs",
    "read_policy": ".policies",
}

__getattr__ = lazy_names(__name__, _HOME)


def _verb(name: str, summary: str, config: str, module: str) -> Verb:
    return Verb(name, summary, f"{_ROOM}.config:{config}", f"{_ROOM}.{module}:run_{name}")


CARD = RoomCard(
    name="commons",
    title="GovSim: the governance of a commons",
    question="Do my agents sustain a shared resource, and why not?",
    papers=(
        Paper(
            "Cooperate or Collapse: Emergence of Sustainable Cooperation in a Society of LLM Agents",
            "2404.16698",
            2024,
            "Piatti, Jin, Kleiman-Weiner, Schölkopf, Sachan, Mihalcea",
        ),
    ),
    verbs=(
        _verb(
            "run",
            "Play one arm with scripted agents, a local model or a server, and keep every event.",
            "RunConfig",
            "play",
        ),
        _verb("score", "Score GovSim's logs or ours by the paper's formulas.", "ScoreConfig", "scoring"),
        _verb(
            "subskills", "Ask generated questions with exact answers, and grade them.", "SubskillsConfig", "subskills"
        ),
        _verb(
            "talk", "Label what a conversation is made of, and check which promises were kept.", "TalkConfig", "talk"
        ),
        _verb(
            "study",
            "Policies, learners, languages and the machinery, on the embedded default.",
            "CommonsStudyConfig",
            "study",
        ),
        _verb("replay", "Play a log again and show it.", "ReplayConfig", "play"),
        _verb("branch", "Go on differently from any month of a log.", "BranchConfig", "play"),
        _verb("compare", "Compare arms and minds on the same seeds.", "CompareConfig", "compare"),
    ),
    order=100,
    equations=(
        Equation("h(t+1) = min(K, g rest)", "growth of what is left", f"{_ROOM}.engine:Resource"),
        Equation("f(t) = max{x : min(K, g (h - x)) >= h}", "sustainability threshold", f"{_ROOM}.engine:Resource"),
        Equation("f_a = floor(f / N)", "its share for each agent", f"{_ROOM}.engine:Resource"),
        Equation("r | w, h", "units dealt one at a time", f"{_ROOM}.engine:allocate"),
        Equation("m", "survival time: months played", f"{_ROOM}.metrics:score"),
        Equation("R_i = sum_t r_i^t", "total of an agent", f"{_ROOM}.metrics:totals"),
        Equation("u = 1 - max(0, T f(0) - sum R) / (T f(0))", "efficiency", f"{_ROOM}.metrics:efficiency"),
        Equation("e = 1 - sum_ij |R_i - R_j| / (2 N sum R)", "equality, 1 - Gini", f"{_ROOM}.metrics:equality"),
        Equation("o = #{r > f_a} / sum_t N_t", "over-usage", f"{_ROOM}.metrics:over_usage"),
        Equation("o_diluted", "over-usage as the published tables hold it", f"{_ROOM}.metrics:over_usage_diluted"),
        Equation("max_w sum_t R_t", "optimum by dynamic programming", f"{_ROOM}.engine:optimum"),
        Equation("s = 0.5 recency + 3 importance + 2 relevance", "retrieval of memories", f"{_ROOM}.memory:Memory"),
        Equation("Q += a (r + g max Q' - Q)", "tabular learners", f"{_ROOM}.learning:learn"),
    ),
    tour=TourStep(verb="study", cpu_seconds=45),
    report="polyloom.methods.commons.report:figures",
)
