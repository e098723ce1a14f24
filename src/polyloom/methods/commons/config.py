"""The configurations of the room's verbs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyloom.core.config import Config, StudyConfig

MINDS_HELP = (
    "One for all agents, or one for each: a policy (sustainable, greedy, constant:11, noisy:0.1:sustainable, ...), "
    "a Hugging Face folder or hub id, or http://host/v1#model."
)


class MindsConfig(Config):
    """What the verbs that play the game share: who answers, and how models are asked."""

    framework: str | None = Field(None, description="Model that sums up the talk. [default: the first model]")
    max_in_flight: int = Field(64, ge=1, description="Requests at the same time, over all runs.")
    max_tokens: int = Field(512, ge=1, description="Longest reply of a model, in tokens.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy; above, replies are drawn with the run's seed.")
    cache: str | None = Field(None, description="File of replies, shared by runs. [default: one in the run folder]")
    price_in: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    price_out: float = Field(0.0, ge=0, description="Price of a million reply tokens.")
    budget: float | None = Field(None, gt=0, description="Stop, resumably, when this much has been spent.")


class GameConfig(MindsConfig):
    """What is played."""

    scenario: str = Field("fishery", description="A scenario of the package, or your own YAML file.")
    language: str = Field("en", description="Language of all texts: de, en, es, fr, ja, zh.")
    num_seeds: int = Field(5, ge=1, description="Runs of each arm, with the seeds seed, seed + 1, ...")
    num_agents: int = Field(5, ge=1, description="Agents, whoever joins later among them.")
    num_months: int | None = Field(None, ge=1, description="Horizon. [default: the scenario's]")
    rules: Literal["paper", "reference"] = Field(
        "paper", description="paper: correct; reference: with the published code's quirks (see the README)."
    )
    calls: Literal["faithful", "lean"] = Field(
        "faithful", description="faithful: every question of the paper on its own; lean: thoughts in one reply."
    )
    on_unparsed: Literal["abstain", "threshold", "error"] = Field(
        "abstain", description="What counts where no number can be read after two more tries; it is always marked."
    )


class RunConfig(GameConfig):
    """`polyloom commons run`: play one arm."""

    arm: str = Field("baseline", description="What the community is told, and whether it talks; see the README.")
    minds: list[str] = Field(["sustainable"], min_length=1, description=MINDS_HELP)
    detail: Literal["full", "numbers"] = Field(
        "full", description="full: every phase and its words; numbers: policies alone, for thousands of runs."
    )
    report_by: Literal["moderator", "individual", "none"] = Field(
        "moderator", description="Who reports the catches before the talk."
    )
    order: Literal["fixed", "rotate", "random"] = Field("fixed", description="Who opens the talk.")
    max_turns: int = Field(10, ge=2, description="Entries of a talk at most, the moderator's among them.")
    num_insights: int = Field(1, ge=1, description="Insights of one reflection at most.")
    workers: int = Field(1, ge=1, description="Processes, with --detail numbers.")
    cluster: Literal["none", "ray"] = Field("none", description="Spread --detail numbers over a Ray cluster.")
    dry_run: bool = Field(False, description="Estimate requests and tokens, and ask nothing.")


class CompareConfig(GameConfig):
    """`polyloom commons compare`: arms and minds on the same seeds."""

    arms: list[str] = Field(["baseline"], min_length=1, description="Arms to compare.")
    minds: list[str] = Field(
        ["sustainable", "greedy"], min_length=1, description="Minds to compare, each for all agents of its community."
    )
    baseline: str | None = Field(None, description="What the others are compared with: ARM/MIND. [default: the first]")
    margin: float = Field(5.0, gt=0, description="Largest difference of efficiency, in points, that counts as none.")


class ScoreConfig(Config):
    """`polyloom commons score`: the metrics of logs."""

    logs: list[str] = Field(min_length=1, description="log_env.json, events.jsonl, or folders of them.")
    sense: Literal["auto", "take", "remove"] = Field(
        "auto", description="Whether amounts are taken or removed; auto reads the config.yaml beside a log_env.json."
    )


class TalkConfig(MindsConfig):
    """`polyloom commons talk`: what a conversation is made of, and whether promises are kept."""

    logs: list[str] = Field(min_length=1, description="log_env.json, events.jsonl, or folders of them.")
    judge: str | None = Field(None, description="Model that labels utterances. [default: rules]")
    labels: str | None = Field(None, description="JSON lines {log, turn, act} to measure agreement with.")


class SubskillsConfig(MindsConfig):
    """`polyloom commons subskills`: generated questions with exact answers."""

    mind: str = Field(
        "solver", description="solver (knows the answers), a Hugging Face folder or http://host/v1#model."
    )
    scenario: str = Field("fishery", description="A scenario of the package, or your own YAML file.")
    language: str = Field("en", description="Language of the questions.")
    num_items: int = Field(150, ge=1, description="Questions of each skill.")
    form: Literal["sim", "math"] = Field("sim", description="sim: within the role's text; math: the bare question.")


class ReplayConfig(Config):
    """`polyloom commons replay`: play a log again and show it."""

    log: str = Field(description="An events.jsonl, or the folder of a run.")
    run_number: int = Field(0, ge=0, description="Which run of the log.")
    month: int | None = Field(None, ge=1, description="Show this month's conversation alone.")


class BranchConfig(MindsConfig):
    """`polyloom commons branch`: what if, from some month on, a reply or a policy were another?"""

    log: str = Field(description="An events.jsonl, a log_env.json, or the folder of a run.")
    run_number: int = Field(0, ge=0, description="Which run of the log.")
    month: int = Field(ge=1, description="The month that is changed; before it the log is played again.")
    ask: list[str] = Field([], description="Changed asks of that month: NAME=AMOUNT.")
    minds: list[str] = Field([], description="Minds from that month on. [default: those of the log] " + MINDS_HELP)


class CommonsStudyConfig(StudyConfig):
    """`polyloom commons study`: policies, learners, languages and the machinery, on the embedded default."""

    parts: list[Literal["policies", "allocation", "learners", "languages", "speed", "server", "plumbing"]] = Field(
        # What learners do answers the room's question, so it comes first in the report.
        ["learners", "policies", "allocation", "languages", "speed", "server", "plumbing"],
        min_length=1,
        description="Parts of the study.",
    )
    language: str = Field("en", description="Language of the replayed conversation.")
    logs: str | None = Field(None, description="Folder of GovSim logs to score as well.")
