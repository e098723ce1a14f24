"""The verb `talk`: what kind of acts a conversation holds, and whether what was agreed was done."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_text
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.generation.chat import ask
from polyloom.methods.commons.config import TalkConfig
from polyloom.methods.commons.logs import LoggedRun, Turn, read_logs
from polyloom.methods.commons.parsing import agreed_limit
from polyloom.methods.commons.runner import Cast
from polyloom.methods.commons.scoring import ETHICS, limitations
from polyloom.metrics.statistics import wilson_interval
from polyloom.runs.folder import Run

ACTS = {
    "information_sharing": "information",
    "problem_identification": "information",
    "solution_proposing": "information",
    "persuasion": "negotiation",
    "consensus_seeking": "negotiation",
    "expressing_disagreement": "negotiation",
    "excusing_behaviour": "relational",
    "punishment": "relational",
}
KINDS = ("information", "negotiation", "relational")
# Cues of every act; a longer text holds several, so the first act of this order whose cues outweigh the others wins ties.  # noqa: E501
CUES: dict[str, tuple[tuple[str, float], ...]] = {
    "punishment": ((r"\bfine\b|\bpenalt|\bpunish|\bsanction|\bexclude|strafe|amende|multa|罚|罰", 3.0),),
    "excusing_behaviour": (
        (
            r"\bsorry\b|\bapologi|\bmy mistake|i didn't mean|entschuldig|désolé|perdón|对不起|抱歉|すみません|申し訳",
            3.0,
        ),
    ),
    "expressing_disagreement": (
        (
            r"\bdisagree|i don't (?:think|agree)|not (?:fair|acceptable)|\btook more than|widerspreche|pas d'accord(?! :)",  # noqa: E501
            3.0,
        ),
        (r"mehr als \d+ \w+ genommen|a pris plus de|tomó más de|取了超过|より多く取った|反对|反対", 3.0),
    ),
    "consensus_seeking": (
        (
            r"\bi (?:completely |totally |fully )?agree\b|\bagree with|\bon the same page|\ball aligned|\bsecond \w+'s",
            2.0,
        ),
        (
            r"\bsounds? (?:good|like a (?:solid|fair|sensible|wise|great))|\b(?:solid|wise|great) (?:plan|decision|idea)",  # noqa: E501
            1.5,
        ),
        (
            r"works for me|\bcommit(?:ted|ment)?\b|stick to|\bour agreement|\bagreed limit|einverstanden|d'accord|de acuerdo|同意|賛成",  # noqa: E501
            1.0,
        ),
        (r"\bappreciate|thanks for the (?:positive )?", 0.5),
    ),
    "solution_proposing": (
        (r"\bi (?:propose|suggest)\b|\bperhaps we could|\bmaybe we (?:could|can|should)|\bwe could\b|how about", 2.0),
        (
            r"\bset a (?:limit|meeting|quota)|\bquota|\brotating schedule|\bsystem\b|\blet us each\b|lasst uns|prenons|tomemos|吧|にしよう|どうでしょう",  # noqa: E501
            1.0,
        ),
        (r"\blet's (?:aim|schedule|set)\b|at most \d+", 1.0),
    ),
    "persuasion": (
        (
            r"\bkeep up the|\blet's (?:continue|all|work together)|\bwe must\b|\bit's (?:crucial|important|essential)",
            1.0,
        ),
        (
            r"\bgreat job|\bwill (?:not only|help us)|live more sustainably|\bplease\b|bitte|merci de|por favor|请"
            r"|ほしい",
            0.8,
        ),
    ),
    "problem_identification": (
        (
            r"\btoo (?:much|heavy|many)\b|\bdeplet|\bconcern|\brisk|\bproblem|\bwon't recover|減り続け|zu viel|trop|demasiado|太多",  # noqa: E501
            1.2,
        ),
        (r"\bneed to keep an eye|what do you (?:guys )?think", 0.4),
    ),
    "information_sharing": (
        (
            r"\bi (?:noticed|caught|took)\b|\bit looks like|\binteresting (?:report|observation)|\bthanks for (?:sharing|the update)",  # noqa: E501
            1.0,
        ),
        (r"\b\d+ tons (?:was|for me)|\bthis month\b|report\b|\bdid anyone notice|合計\d+", 0.6),
    ),
}
_CUES = {act: [(regex.compile(pattern, regex.I), weight) for pattern, weight in cues] for act, cues in CUES.items()}
JUDGE = (
    "Which one of these acts describes the utterance best? {acts}.\nUtterance: {text}\n"
    "Write the name of the act and nothing else."
)


def label(text: str) -> str:
    """Return the act of an utterance by cue words: the act with the largest weight, the rarer one on ties."""
    weights = {act: sum(weight * len(cue.findall(text)) for cue, weight in cues) for act, cues in _CUES.items()}
    best = max(weights, key=lambda act: weights[act])
    return best if weights[best] > 0 else "information_sharing"


def run_talk(config: TalkConfig, run: Run) -> Result:
    """Label every utterance of logs, and follow proposals and promises.

    Raises:
        UserError: no log, or one without a word.
    """
    runs = read_logs(config.logs)
    turns = [(one, turn) for one in runs for turn in one.turns]
    if not turns:
        raise UserError("nobody says a word in these logs.", where=", ".join(config.logs), hint="Use an arm with talk.")
    texts = [turn.text for _, turn in turns]
    labels = [label(text) for text in texts] if config.judge is None else _judged(config, texts, run)
    unknown = sum(one not in ACTS for one in labels)
    scalars = {"num_utterances": Scalar(value=len(texts)), "num_unlabelled": Scalar(value=unknown)}
    counts = Counter(labels)
    for kind in KINDS:
        share = wilson_interval(sum(counts[act] for act, of in ACTS.items() if of == kind), len(texts))
        scalars[f"{kind}_share"] = Scalar(value=100 * share.value, low=100 * share.low, high=100 * share.high, unit="%")
    scalars |= _promises(runs)
    if config.labels is not None:
        agreed, known = _agreement(Path(config.labels), runs, dict(zip(map(_key, turns), labels, strict=True)))
        share = wilson_interval(agreed, known)
        scalars["label_accuracy"] = Scalar(
            value=100 * share.value, low=100 * share.low, high=100 * share.high, unit="%"
        )
        scalars["num_labels"] = Scalar(value=known)
    rows = [
        [one.agents[turn.agent], turn.month + 1, act, turn.text] for (one, turn), act in zip(turns, labels, strict=True)
    ]
    names = list(ACTS)
    return run.result(
        scalars=scalars,
        tables={
            "acts": Table(
                columns=["act", "kind", "utterances"], rows=[[a, ACTS[a], counts[a]] for a in names], title="Acts"
            ),
            "promises": _promise_table(runs),
            "utterances": Table(columns=["who", "month", "act", "text"], rows=rows[:300], title="Utterances"),
        },
        series={
            "acts": Series(
                x=list(range(len(names))),
                y=[float(counts[act]) for act in names],
                x_names=names,
                y_label="utterances",
                kind="bar",
                group="Acts",
            )
        },
        verdicts=_verdicts(scalars),
        limitations=[*_honesty(config), *limitations(runs), ETHICS],
    )


def _honesty(config: TalkConfig) -> list[str]:
    if config.judge is not None:
        return [f"Labelled by {config.judge}; measure its agreement with people by --labels."]
    return [
        "Labelled by cue words, mostly English ones. On 44 utterances of three published logs that one person labelled, "  # noqa: E501
        "and that the cues were written by, they agree in three of four: take shares as rough."
    ]


def _verdicts(scalars: dict[str, Scalar]) -> list[str]:
    largest = max(KINDS, key=lambda kind: float(scalars[f"{kind}_share"].value or 0))
    said = [f"Most of the talk is {largest} ({scalars[f'{largest}_share'].value:.0f}%)."]
    kept = scalars.get("promises_kept")
    if kept is not None and kept.value is not None:
        said.append(f"{kept.value:.0f}% of the asks keep the limit that was agreed the month before.")
    return said


def _key(pair: tuple[LoggedRun, Turn]) -> tuple[int, int]:
    return id(pair[0]), id(pair[1])


def _promises(runs: Sequence[LoggedRun]) -> dict[str, Scalar]:
    """Return how many asks kept the limit of the month before, and how many proposals became the limit."""
    kept, asked = 0, 0
    proposals, accepted = 0, 0
    for one in runs:
        for month, limit in enumerate(one.limits):
            if limit is not None and month + 1 < one.trajectory.num_months:
                asks = one.trajectory.asks[month + 1]
                kept, asked = kept + sum(ask <= limit for ask in asks), asked + len(asks)
        for turn in one.turns:
            proposed = _proposed(turn.text)
            if proposed is not None and turn.month < len(one.limits):
                proposals += 1
                accepted += one.limits[turn.month] == proposed
    scalars = {"num_proposals": Scalar(value=proposals), "num_proposals_accepted": Scalar(value=accepted)}
    if asked:
        share = wilson_interval(kept, asked)
        scalars["promises_kept"] = Scalar(value=100 * share.value, low=100 * share.low, high=100 * share.high, unit="%")
    return scalars


def _proposed(text: str) -> int | None:
    """Return the number of an utterance that proposes something."""
    return agreed_limit(text) if label(text) in ("solution_proposing", "consensus_seeking") else None


def _promise_table(runs: Sequence[LoggedRun]) -> Table:
    rows: list[list[Any]] = []
    for one in runs:
        for agent, name in enumerate(one.agents):
            said = [turn for turn in one.turns if turn.agent == agent]
            pairs = [
                (one.trajectory.asks[month + 1][agent], limit)
                for month, limit in enumerate(one.limits)
                if limit is not None
                and month + 1 < one.trajectory.num_months
                and agent < len(one.trajectory.asks[month + 1])
            ]
            excess = max((ask - limit for ask, limit in pairs), default=None)
            kept = sum(ask <= limit for ask, limit in pairs)
            rows.append(
                [
                    one.name,
                    name,
                    len(said),
                    sum(_proposed(turn.text) is not None for turn in said),
                    len(pairs),
                    kept,
                    excess,
                ]
            )
    columns = [
        "log",
        "who",
        "utterances",
        "with a number proposed",
        "months under a limit",
        "kept",
        "largest excess asked",
    ]
    return Table(columns=columns, rows=rows[:200], title="Said and done")


def _judged(config: TalkConfig, texts: Sequence[str], run: Run) -> list[str]:
    """Ask a model for the act of every utterance; an answer that names none is "unlabelled"."""
    judge = config.judge or ""
    acts = ", ".join(ACTS)
    requests = [
        ask(JUDGE.format(acts=acts, text=json.dumps(text, ensure_ascii=False)), max_tokens=config.max_tokens)
        for text in texts
    ]

    async def work() -> list[str]:
        with run.progress("utterances", len(requests)) as advance:
            async with Cast(config, run.path / "artifacts") as cast:
                await cast.open([judge])
                replies = await cast.models[judge].complete_many(requests, progress=advance)
        return [_named_act(reply.require().text) for reply in replies]

    return asyncio.run(work())


def _named_act(text: str) -> str:
    said = regex.sub(r"[\s_-]+", "_", text.strip().casefold())
    return next((act for act in ACTS if act in said), "unlabelled")


def _agreement(path: Path, runs: Sequence[LoggedRun], labels: dict[tuple[int, int], str]) -> tuple[int, int]:
    """Count the labels of a file that agree: JSON lines {log, turn, act}, `turn` counting a log's utterances from 0."""
    agreed = known = 0
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            log, turn, act = str(row["log"]), int(row["turn"]), str(row["act"])
        except (ValueError, KeyError, TypeError):
            raise UserError("is no label.", where=f"{path}:{number}", hint="Write {log, turn, act}.") from None
        if act not in ACTS:
            raise UserError(f"there is no act {act!r}.", where=f"{path}:{number}", hint=closest(act, ACTS))
        for one in runs:
            if log in one.name and turn < len(one.turns):
                known += 1
                agreed += labels[_key((one, one.turns[turn]))] == act
    if not known:
        raise UserError("holds no label of these logs.", where=str(path))
    return agreed, known
