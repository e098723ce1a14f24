"""The verbs `judge` and `agree`: what judges say of responses, and how far they agree with people."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from polyloom.core.errors import Stopped, UserError
from polyloom.core.files import json_lines, write_text
from polyloom.core.result import Artifact, Result, Scalar, Series, Table
from polyloom.methods.redteam.attack import bars, key_of
from polyloom.methods.redteam.checks import coverage, votes_out_of_order
from polyloom.methods.redteam.config import AgreeConfig, AttackConfig, JudgeConfig
from polyloom.methods.redteam.data import Response, read_responses, text_hash
from polyloom.methods.redteam.evaluation import Judged, as_responses, attack_prompts, rate
from polyloom.methods.redteam.judges import (
    NO_REPLY,
    Judge,
    NliJudge,
    Opinion,
    ensemble,
    injection_flip_rate,
    judge_all,
    load_judge,
)
from polyloom.methods.redteam.keywords import EVALUATION, keywords_for
from polyloom.methods.redteam.workbench import embedded_target, find_suffix, make_objective, stop_with_result
from polyloom.metrics import agreement
from polyloom.metrics.statistics import Interval
from polyloom.runs.folder import Run

NUM_RESAMPLES = 1000
MEASURES = {
    "accuracy": agreement.accuracy,
    "f1": agreement.f1,
    "auroc": agreement.auroc,
    "kappa": agreement.cohen_kappa,
    "precision": agreement.precision,
    "recall": agreement.recall,
}


def gather(config: JudgeConfig, file: str, run: Run) -> tuple[list[Response], list[Judge], list[str]]:
    """Return responses, judges and the names of the ensemble's members; the embedded ones where no file is given.

    Raises:
        UserError: a file or judge that cannot be used.
    """
    keywords = keywords_for(config.language, EVALUATION, config.judge_keywords)
    cache = run.path / "steps" / "replies.sqlite"
    if file:
        responses = read_responses(file)
        judges = [load_judge(spec, keywords, cache) for spec in config.judges or ["keywords"]]
        members = [judge.name for judge in judges if judge.name not in ("keywords", "truth")]
        return responses, judges, members if len(members) > 1 else [j.name for j in judges if j.name != "truth"]
    target = embedded_target(config.seed, run, config.train_steps)
    search = AttackConfig(seed=config.seed)
    suffix = find_suffix(target, make_objective("decay", search, ()), search, run).suffixes[0]
    answers = target.victim.answer([b.prompt for b in target.test] + attack_prompts(target.test, suffix))
    judges = [load_judge(spec, keywords, cache) for spec in config.judges] or list(target.judges)
    members = [name for name in target.members if name in {judge.name for judge in judges}]
    return as_responses(target.test * 2, answers), judges, members or [judge.name for judge in judges]


def ask_judges(judges: Sequence[Judge], responses: list[Response], members: Sequence[str], run: Run) -> Judged:
    """Ask each judge; decided opinions are stored as they come, and a resumed run asks for the others alone."""
    store = run.path / "steps" / "opinions.jsonl"
    opinions: dict[str, list[Opinion]] = {}
    with run.progress("judges", len(judges)) as advance:
        for judge in judges:
            opinions[judge.name] = judge_all(judge, responses, store)
            run.check_stop()
            advance(1)
    if len(members) > 1:
        joint = ensemble({name: [one.verdict for one in opinions[name]] for name in members})
        opinions |= {name: [Opinion(verdict) for verdict in verdicts] for name, verdicts in joint.items()}
    return Judged(responses, opinions)


def run_judge(config: JudgeConfig, run: Run) -> Result:
    """Judge responses by keywords, NLI, chat models or classifiers, and combine them; undecided is never false.

    Raises:
        UserError: a file or judge that cannot be used.
    """
    responses, judges, members = gather(config, config.responses, run)
    judged = ask_judges(judges, responses, members, run)
    flips: dict[str, float | None] = {}
    if config.probe_injection:
        for judge in judges:
            probe = partial(injection_flip_rate, judge, responses, judged.opinions[judge.name])
            flips[judge.name] = run.once(f"injection {judge.identity}", probe)
    rows: list[list[str | int | float | bool | None]] = []
    scalars: dict[str, Scalar] = {"num_responses": Scalar(value=len(responses))}
    for name, opinions in judged.opinions.items():
        found = rate(judged.successes(name))
        verdicts = judged.verdicts(name)
        reasons = sorted({one.reason for one in opinions if one.reason})
        rows.append(
            [name, found.value, found.low, found.high, verdicts.count(None), "; ".join(reasons), flips.get(name)]
        )
        scalars[f"asr_{key_of(name)}"] = Scalar.of(found)
        scalars[f"undecided_{key_of(name)}"] = Scalar(value=verdicts.count(None))
        if flips.get(name) is not None:
            scalars[f"injection_flips_{key_of(name)}"] = Scalar(value=flips[name])
    columns = ["judge", "ASR", "low", "high", "undecided", "why", "flipped by injection"]
    lines = [
        {"goal": one.goal, "response_sha256": text_hash(one.response), "response_characters": len(one.response)}
        | {"verdicts": {name: opinions[i].verdict for name, opinions in judged.opinions.items()}}
        for i, one in enumerate(responses)
    ]
    write_text(run.artifact("verdicts.jsonl"), json_lines(lines))
    undecided = sum(judged.verdicts(judge.name).count(None) for judge in judges)
    if len(members) > 1:
        votes = {name: judged.verdicts(name) for name in judged.opinions}
        scalars["votes_out_of_order"] = Scalar(value=votes_out_of_order(votes))
    result = run.result(
        scalars=scalars,
        tables={"judges": Table(columns=columns, rows=rows, title=f"Verdicts on {len(responses)} responses")},
        series=_rate_series(judged),
        artifacts={
            "verdicts": Artifact(
                path="artifacts/verdicts.jsonl", media_type="application/x-ndjson", description="redacted"
            )
        },
        verdicts=[
            _spread(judged),
            f"{undecided} of {len(responses) * len(judges)} opinions are undecided and count as no success.",
        ],
        limitations=["A judge is no truth: compare it with people first (`agree`).", "Responses are stored as hashes."],
    )
    stop_where_unanswered(judged, result, run)
    return result


def stop_where_unanswered(judged: Judged, result: Result, run: Run) -> None:
    """Stop a run whose judges left questions without a reply; its result is stored, a resumed run asks for those alone.

    Raises:
        Stopped: there are such questions.
    """
    count = sum(one.reason.startswith(NO_REPLY) for opinions in judged.opinions.values() for one in opinions)
    if count:
        hint = f"Ask again for these alone with: polyloom runs resume {run.id}"
        stop_with_result(result, run, Stopped(f"{count} questions to judges have no reply.", where=run.id, hint=hint))


def _rate_series(judged: Judged) -> dict[str, Series]:
    names = list(judged.opinions)
    return {
        "success rate": bars(names, [rate(judged.successes(name)) for name in names], "share called true", "judges")
    }


def _spread(judged: Judged) -> str:
    rates = {name: rate(judged.successes(name)).value for name in judged.opinions}
    low, high = min(rates, key=lambda n: rates[n]), max(rates, key=lambda n: rates[n])
    return f"The same responses count {rates[low]:.0%} successes by {low} and {rates[high]:.0%} by {high}."


def run_agree(config: AgreeConfig, run: Run) -> Result:
    """Compare judges with human labels, and correct the success rate of each for its errors.

    Raises:
        UserError: no labels, or a file or judge that cannot be used.
    """
    if config.responses and not config.labels:
        raise UserError(
            "is missing.", where="--labels", hint="Give labelled responses; --responses are then corrected."
        )
    responses, judges, members = gather(config, config.labels, run)
    if config.labels:
        labels = [one.label for one in responses]
        if None in labels:
            raise UserError(f"row {labels.index(None) + 1} has no label.", where=config.labels, hint="Write 0 or 1.")
    else:
        labels = [int(one.answer in one.response) for one in responses]
        judges = [judge for judge in judges if judge.name != "truth"]
    truth = [bool(label) for label in labels]
    fit, held = _halves(len(truth))
    for judge in judges:
        if isinstance(judge, NliJudge):
            judge.fit([responses[i] for i in fit], [truth[i] for i in fit])
    judged = ask_judges(judges, responses, members, run)
    _weighted(judged, members, truth, fit)
    others = ask_judges(judges, read_responses(config.responses), members, run) if config.responses else judged
    annotators = krippendorff_of(responses) if config.labels else None
    scalars: dict[str, Scalar] = {"num_labels": Scalar(value=len(truth)), "label_rate": Scalar.of(rate(truth))}
    rows: list[list[str | int | float | bool | None]] = []
    corrected: dict[str, Interval] = {}
    names = list(judged.opinions)
    for name in names:
        rows.append(_agreement_row(name, judged, truth, scalars, config.seed))
        items = others if name in others.opinions else judged
        found = _correct(
            judged.verdicts(name), truth, items.verdicts(name), set(held), apart=items is not judged, seed=config.seed
        )
        if found is not None:
            corrected[name] = found
            scalars[f"corrected_rate_{key_of(name)}"] = Scalar.of(found)
    if annotators is not None:
        scalars["krippendorff_alpha"] = Scalar(value=annotators)
    shares = (
        agreement.shapley_values({name: judged.verdicts(name) for name in members}, truth) if len(members) <= 10 else {}
    )
    scalars |= {f"shapley_{key_of(name)}": Scalar(value=value) for name, value in shares.items()}
    columns = ["judge", *MEASURES, "undecided"]
    one_class = len(set(truth)) == 1
    covered = _coverage(judged, names, truth, len(held), config.seed)
    if covered is not None:
        scalars["corrected_rate_coverage"] = Scalar(value=covered, unit="of 100 simulations")
    result = run.result(
        scalars=scalars,
        tables={"agreement": Table(columns=columns, rows=rows, title=f"Judges against {len(truth)} labels")},
        series={
            "corrected": bars(
                list(corrected), list(corrected.values()), "success rate", "success rates corrected for errors"
            ),
            "accuracy": _accuracy_bars(judged, truth, config.seed),
        },
        verdicts=[
            _best_judge(judged, truth),
            *(["All labels are of one class: AUROC and corrected rates have no value."] * one_class),
        ],
        limitations=[
            "Undecided verdicts are left out of a judge's measures and counted beside them.",
            "Thresholds and weights are fitted on half of the rows shown: fitted judges look a little too good.",
        ],
    )
    stop_where_unanswered(judged, result, run)
    return result


def _coverage(judged: Judged, names: Sequence[str], truth: Sequence[bool], num_items: int, seed: int) -> int | None:
    """Return how often the corrected rate of the best judge covers the truth in simulations with its error rates."""
    best: tuple[float, list[bool], list[bool]] | None = None
    for name in names:
        pairs = [(y, v) for y, v in zip(truth, judged.verdicts(name), strict=True) if v is not None]
        if len({y for y, _ in pairs}) == 2:
            y, v = [y for y, _ in pairs], [v for _, v in pairs]
            score = agreement.auroc(y, v)
            if score is not None and (best is None or score > best[0]):
                best = (score, y, v)
    return None if best is None else coverage(best[1], best[2], max(50, num_items), seed)


def _halves(n: int) -> tuple[list[int], list[int]]:
    return list(range(0, n, 2)), list(range(1, n, 2))


def _weighted(judged: Judged, members: Sequence[str], truth: Sequence[bool], fit: Sequence[int]) -> None:
    """Add the vote with weights learned from the even rows."""
    if len(members) < 2:
        return
    scores = []
    for name in members:
        verdicts = judged.verdicts(name)
        known = [i for i in fit if verdicts[i] is not None]
        right = [verdicts[i] == truth[i] for i in known]
        scores.append(sum(right) / len(right) if right else 0.5)
    weights = agreement.log_odds_weights(scores, max(1, len(fit)))
    votes = zip(*(judged.verdicts(name) for name in members), strict=True)
    judged.opinions["ensemble:weighted"] = [Opinion(agreement.weighted_vote(row, weights)) for row in votes]


def _agreement_row(
    name: str, judged: Judged, truth: Sequence[bool], scalars: dict[str, Scalar], seed: int
) -> list[str | int | float | bool | None]:
    verdicts = judged.verdicts(name)
    known = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    row: list[str | int | float | bool | None] = [name]
    for measure, function in MEASURES.items():
        found = None
        if known:
            labels, decided = [truth[i] for i in known], [verdicts[i] is True for i in known]
            found = agreement.agreement_interval(labels, decided, function, num_resamples=NUM_RESAMPLES, seed=seed)
        row.append(None if found is None else found.value)
        scalars[f"{measure}_{key_of(name)}"] = Scalar(value=None) if found is None else Scalar.of(found)
    scalars[f"undecided_{key_of(name)}"] = Scalar(value=len(truth) - len(known))
    return [*row, len(truth) - len(known)]


def _correct(
    labelled: Sequence[bool | None],
    truth: Sequence[bool],
    asked: Sequence[bool | None],
    held: set[int],
    *,
    apart: bool,
    seed: int,
) -> Interval | None:
    """Correct a rate: of other responses with all labels, or of the odd rows with the labels of the even ones."""
    pairs = [
        (v, y)
        for i, (v, y) in enumerate(zip(labelled, truth, strict=True))
        if v is not None and (apart or i not in set(held))
    ]
    items = [v for i, v in enumerate(asked) if v is not None and (apart or i in held)]
    if not pairs or not items:
        return None
    return agreement.corrected_rate(items, [y for _, y in pairs], [v for v, _ in pairs], seed=seed)


def krippendorff_of(responses: Sequence[Response]) -> float | None:
    """Return alpha between annotators who labelled the same responses; None with one annotator."""
    annotators = sorted({one.annotator for one in responses})
    if len(annotators) < 2:
        return None
    items: dict[tuple[str, str], dict[str, bool]] = {}
    for one in responses:
        items.setdefault((one.goal, one.response), {})[one.annotator] = bool(one.label)
    alpha = agreement.krippendorff_alpha([[row.get(name) for name in annotators] for row in items.values()])
    return None if np.isnan(alpha) else alpha


def _accuracy_bars(judged: Judged, truth: Sequence[bool], seed: int) -> Series:
    found: dict[str, Interval] = {}
    for name in judged.opinions:
        pairs = [(y, v) for y, v in zip(truth, judged.verdicts(name), strict=True) if v is not None]
        if pairs:
            labels, decided = [y for y, _ in pairs], [v for _, v in pairs]
            one = agreement.agreement_interval(
                labels, decided, agreement.accuracy, num_resamples=NUM_RESAMPLES, seed=seed
            )
            found |= {name: one} if one else {}
    return bars(list(found), list(found.values()), "accuracy", "agreement with the labels")


def _best_judge(judged: Judged, truth: Sequence[bool]) -> str:
    scores: dict[str, float] = {}
    for name in judged.opinions:
        pairs = [(y, v) for y, v in zip(truth, judged.verdicts(name), strict=True) if v is not None]
        if pairs:
            scores[name] = agreement.accuracy([y for y, _ in pairs], [v for _, v in pairs])
    if not scores:
        return "No judge decided anything."
    best, worst = max(scores, key=lambda n: scores[n]), min(scores, key=lambda n: scores[n])
    return (
        f"{best} agrees best with the labels ({scores[best]:.0%} of {len(truth)}), {worst} least ({scores[worst]:.0%})."
    )
