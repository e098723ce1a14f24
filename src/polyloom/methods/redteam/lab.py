"""The verb `study`: is the embedded model's refusal robust, do judges agree with the truth, and which defence helps?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.redteam.attack import LIMITATIONS, Attacked, attack, bars, key_of
from polyloom.methods.redteam.checks import votes_out_of_order
from polyloom.methods.redteam.config import AttackConfig, DefendConfig, RedteamStudyConfig
from polyloom.methods.redteam.defences import undefended
from polyloom.methods.redteam.evaluation import Judged, attack_prompts, rate
from polyloom.methods.redteam.guard import TRAINING, Defended, make_defences, measure_defence
from polyloom.methods.redteam.tokens import decode_suffix
from polyloom.methods.redteam.workbench import (
    Target,
    embedded_target,
    harden,
    measure_baseline,
    refusal_test,
)
from polyloom.metrics import agreement
from polyloom.metrics.statistics import Interval, paired_bootstrap, spearman, t_interval, wilson_interval
from polyloom.runs.folder import Run

NUM_CURVE = 4
CURVE_BEHAVIOURS = 16
FULL_SEEDS = 5
KEY_FIGURES = (
    "opened_light_dsn_10",
    "gain_over_random_dsn_10",
    "true_light_dsn_10",
    "hardening_dsn_10",
    "benign_answer_rate",
    "benign_answer_rate_hardened",
)
SEARCHED = ("gcg", "decay", "dsn(1)", "dsn(10)")


@dataclass(frozen=True)
class Budget:
    """What one victim's part of the study may cost."""

    train_steps: int
    harden_steps: int
    search_steps: int
    smooth_copies: int


BUDGETS = {"quick": Budget(350, 250, 20, 5), "full": Budget(350, 300, 20, 10)}
Measured = dict[str, Any]


def run_study(config: RedteamStudyConfig, run: Run) -> Result:
    """Train victims that keep a harmless secret, attack them, judge the answers, and measure defences.

    Args:
        config: profile and number of seeds.
        run: where every seed's measurements are stored.
    """
    num_seeds = config.num_seeds or (1 if config.profile == "quick" else FULL_SEEDS)
    seeds = [config.seed + k for k in range(num_seeds)]
    measured = [
        run.once(f"seed {seed} {config.profile}", partial(measure_seed, seed, config.profile, run)) for seed in seeds
    ]
    return run.result(
        scalars=_scalars(measured),
        tables={
            "attack": _attack_table(measured),
            "judges": _judge_table(measured),
            "defences": _defence_table(measured),
            **({"seeds": _seed_table(measured, seeds)} if num_seeds > 1 else {}),
        },
        series=_series(measured),
        verdicts=_verdicts(measured),
        limitations=[
            "The secret is harmless and learned by heart: unseen behaviours are other places, not other kinds.",
            "The judge nli stands on rules of the embedded world in place of a trained NLI model.",
            "Defences other than refusal training are tested with a suffix that was found without them (non-adaptive).",
            *(["One victim cannot rank objectives: run --profile full (five victims)."] if num_seeds == 1 else []),
            *LIMITATIONS[:2],
        ],
    )


def measure_seed(seed: int, profile: str, run: Run) -> Measured:
    """Measure one victim: baseline, objectives, judges, defences, and the same objectives after refusal training."""
    budget = BUDGETS[profile]
    config = AttackConfig(seed=seed, steps=budget.search_steps)
    target = embedded_target(seed, run, budget.train_steps)
    baseline = measure_baseline(target)
    light = attack(target, config, run)
    suffix = next(one for one in light if one.found.objective == "dsn(10)").found.suffixes[0]
    options = DefendConfig(seed=seed, smooth_copies=budget.smooth_copies, steps=budget.search_steps)
    rows = [measure_defence(target, "none", undefended, suffix, adaptive=True)]
    rows += [measure_defence(target, name, d, suffix) for name, d in make_defences(target, options).items()]
    hardened, fresh = _harden(target, light, config, budget, run)
    rows.append(measure_defence(hardened, f"{TRAINING}, old suffix", undefended, suffix))
    best = next(one for one in fresh if one.found.objective == "dsn(10)").found.suffixes[0]
    rows.append(measure_defence(hardened, f"{TRAINING}, fresh suffix", undefended, best, adaptive=True))
    return {
        "answered": baseline.answered,
        "correct": baseline.benign.successes("truth"),
        "sealed": baseline.sealed.successes("keywords"),
        "light": [_attacked_values(one) for one in light],
        "hardened": [_attacked_values(one) for one in fresh],
        "curve": _curve(target, light),
        "judges": _judge_values([one.judged for one in light]),
        "defences": [_defended_values(one) for one in rows],
    }


def _harden(
    target: Target, light: Sequence[Attacked], config: AttackConfig, budget: Budget, run: Run
) -> tuple[Target, list[Attacked]]:
    """Train refusals on the logged suffixes, and search afresh on the new weights."""
    hardened = target.with_victim(harden(target, run, _logged(target, light), budget.harden_steps))
    names: list[Any] = ["random", "gcg", "dsn"]
    return hardened, attack(hardened, config.model_copy(update={"objectives": names, "alphas": [10.0]}), run)


def _logged(target: Target, attacked: Sequence[Attacked]) -> list[str]:
    """Return every accepted suffix as text."""
    return [decode_suffix(target.victim.tokenizer, step.suffix) for one in attacked for step in one.found.state.steps]


def _attacked_values(one: Attacked) -> Measured:
    steps = one.found.state.steps
    return {
        "objective": one.found.objective,
        "hits": {judge: one.judged.successes(judge) for judge in one.judged.opinions},
        "opened": one.by_behaviour("keywords"),
        "loss": [step.target_loss for step in steps],
        "best": one.found.state.best.loss,
        "refusal": one.found.refusal_loss,
        "kept": one.found.kept_share,
        "survival": [one.found.survival.num_suffixes, one.found.survival.num_reencoded, one.found.survival.num_banned],
        "gradient_error": one.found.gradient_error,
    }


def _defended_values(one: Defended) -> Measured:
    scored = one.filter_scores
    return {
        "name": one.name,
        "adaptive": one.adaptive,
        "attack": {judge: one.attack.successes(judge) for judge in one.attack.opinions},
        "benign": one.benign.successes("keywords"),
        "correct": one.benign.successes("truth"),
        "blocked": one.attack_outcome.blocked,
        "calls": one.calls,
        "auroc": agreement.auroc(*scored) if scored else None,
    }


def _judge_values(judged: Sequence[Judged]) -> Measured:
    names = [name for name in judged[0].opinions if name != "truth"]
    truth = [hit for one in judged for hit in one.successes("truth")]
    return {"truth": truth, "verdicts": {name: [v for one in judged for v in one.verdicts(name)] for name in names}}


def _curve(target: Target, light: Sequence[Attacked]) -> list[Measured]:
    """Return loss and opened share at a few steps of each search."""
    behaviours, refused = target.test[:CURVE_BEHAVIOURS], refusal_test(target)
    points = []
    for one in light:
        if one.found.objective not in SEARCHED:
            continue
        steps = one.found.state.steps
        for index in np.linspace(0, len(steps) - 1, NUM_CURVE).round().astype(int).tolist():
            text = decode_suffix(target.victim.tokenizer, steps[index].suffix)
            hits = [not refused(answer) for answer in target.victim.answer(attack_prompts(behaviours, text))]
            points.append(
                {
                    "objective": one.found.objective,
                    "step": index,
                    "loss": steps[index].target_loss,
                    "opened": sum(hits) / len(hits),
                }
            )
    return points


# What the seeds say together


def _find(measured: Measured, part: str, objective: str) -> Measured:
    found: Measured = next(one for one in measured[part] if one["objective"] == objective)
    return found


def _pooled(measured: Sequence[Measured], part: str, objective: str, judge: str) -> Interval:
    """Return a success rate over all seeds: Wilson's interval for one, Student's over seeds for several."""
    each = [_find(one, part, objective)["hits"][judge] for one in measured]
    return over_seeds(each)


def over_seeds(each: Sequence[Sequence[bool]]) -> Interval:
    """Return the mean share of several seeds with its interval, clipped to [0, 1]."""
    shares = [sum(hits) / len(hits) for hits in each]
    if len(shares) == 1:
        return wilson_interval(sum(each[0]), len(each[0]))
    found = t_interval(shares)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def gain(measured: Sequence[Measured], objective: str) -> Interval:
    """Return opened(objective) - opened(random): over behaviours for one seed, over seeds for several."""
    pairs = [(_find(one, "light", objective)["opened"], _find(one, "light", "random")["opened"]) for one in measured]
    if len(pairs) == 1:
        return paired_bootstrap(*pairs[0])
    found = t_interval([float(np.mean(a)) - float(np.mean(b)) for a, b in pairs])
    return Interval(found.value, max(-1.0, found.low), min(1.0, found.high))


def hardening(measured: Sequence[Measured], objective: str) -> Interval:
    """Return opened(hardened, fresh suffix) - opened(light) of an objective."""
    pairs = [
        (_find(one, "hardened", objective)["opened"], _find(one, "light", objective)["opened"]) for one in measured
    ]
    if len(pairs) == 1:
        return paired_bootstrap(*pairs[0])
    found = t_interval([float(np.mean(a)) - float(np.mean(b)) for a, b in pairs])
    return Interval(found.value, max(-1.0, found.low), min(1.0, found.high))


def _mismatch(measured: Sequence[Measured]) -> float | None:
    points = [point for one in measured for point in one["curve"]]
    rho = spearman([p["loss"] for p in points], [p["opened"] for p in points])[0]
    return None if np.isnan(rho) else rho


def _objectives(measured: Sequence[Measured], part: str) -> list[str]:
    return [one["objective"] for one in measured[0][part]]


def _scalars(measured: Sequence[Measured]) -> dict[str, Scalar]:
    scalars = {
        "benign_answer_rate": Scalar.of(over_seeds([one["answered"] for one in measured])),
        "benign_true_rate": Scalar.of(over_seeds([one["correct"] for one in measured])),
        "refusal_rate": Scalar.of(over_seeds([[not hit for hit in one["sealed"]] for one in measured])),
    }
    for part in ("light", "hardened"):
        for name in _objectives(measured, part):
            for judge, short in (("keywords", "opened"), ("truth", "true"), ("ensemble:majority", "majority")):
                scalars[f"{short}_{part}_{key_of(name)}"] = Scalar.of(_pooled(measured, part, name, judge))
    for name in SEARCHED:
        scalars[f"gain_over_random_{key_of(name)}"] = Scalar.of(gain(measured, name))
    for name in ("gcg", "dsn(10)"):
        scalars[f"hardening_{key_of(name)}"] = Scalar.of(hardening(measured, name))
    lower = [_find(one, "light", "dsn(10)")["refusal"] < _find(one, "light", "gcg")["refusal"] for one in measured]
    scalars["seeds_refusal_lower_dsn_10"] = Scalar(value=sum(lower), unit=f"of {len(lower)} seeds")
    trained = [one["defences"][-1] for one in measured]
    scalars["benign_answer_rate_hardened"] = Scalar.of(over_seeds([one["benign"] for one in trained]))
    scalars |= _proofs(measured)
    scalars["loss_success_spearman"] = Scalar(value=_mismatch(measured))
    for judge in measured[0]["judges"]["verdicts"]:
        labels, verdicts = _decided(measured, judge)
        scalars[f"judge_accuracy_{key_of(judge)}"] = Scalar(value=agreement.accuracy(labels, verdicts))
    return {name: scalars[name] for name in KEY_FIGURES} | scalars


def _proofs(measured: Sequence[Measured]) -> dict[str, Scalar]:
    rows = [row for one in measured for part in ("light", "hardened") for row in one[part]]
    num, reencoded, banned = (sum(row["survival"][i] for row in rows) for i in range(3))
    judged = [one["judges"]["verdicts"] for one in measured]
    return {
        "num_accepted_suffixes": Scalar(value=num),
        "reencoded_share": Scalar(value=reencoded / max(1, num)),
        "num_banned_tokens": Scalar(value=banned),
        "gradient_error": Scalar(value=max(row["gradient_error"] or 0.0 for row in rows)),
        "votes_out_of_order": Scalar(value=sum(map(votes_out_of_order, judged))),
    }


def _decided(measured: Sequence[Measured], judge: str) -> tuple[list[bool], list[bool]]:
    pairs = [
        (bool(y), bool(v))
        for one in measured
        for y, v in zip(one["judges"]["truth"], one["judges"]["verdicts"][judge], strict=True)
        if v is not None
    ]
    return [y for y, _ in pairs], [v for _, v in pairs]


def _attack_table(measured: Sequence[Measured]) -> Table:
    rows: list[list[str | int | float | bool | None]] = []
    for part in ("light", "hardened"):
        for name in _objectives(measured, part):
            each = [_find(one, part, name) for one in measured]
            rows.append(
                [
                    part,
                    name,
                    float(np.mean([one["loss"][0] for one in each])),
                    float(np.mean([min(one["loss"]) for one in each])),
                    float(np.mean([one["refusal"] for one in each])),
                    *(
                        _pooled(measured, part, name, judge).value
                        for judge in ("keywords", "ensemble:majority", "truth")
                    ),
                ]
            )
    columns = ["victim", "objective", "first target loss", "lowest target loss", "refusal loss at the end"]
    columns += ["ASR[keywords]", "ASR[ensemble:majority]", "true answer"]
    return Table(columns=columns, rows=rows, title="Attacks on unseen behaviours, before and after refusal training")


def _judge_table(measured: Sequence[Measured]) -> Table:
    members = ("keywords", "nli", "form")
    verdicts = {name: [v for one in measured for v in one["judges"]["verdicts"][name]] for name in members}
    truth = [bool(y) for one in measured for y in one["judges"]["truth"]]
    shares = agreement.shapley_values(verdicts, truth)
    rows: list[list[str | int | float | bool | None]] = []
    for judge in measured[0]["judges"]["verdicts"]:
        labels, decided = _decided(measured, judge)
        undecided = len(truth) - len(labels)
        kappa = agreement.cohen_kappa(labels, decided)
        rows.append(
            [
                judge,
                agreement.accuracy(labels, decided),
                agreement.f1(labels, decided),
                agreement.auroc(labels, decided),
                None if np.isnan(kappa) else kappa,
                agreement.recall(labels, decided),
                agreement.false_positive_rate(labels, decided),
                undecided,
                shares.get(judge),
            ]
        )
    columns = ["judge", "accuracy", "F1", "AUROC", "kappa", "TPR", "FPR", "undecided", "Shapley share"]
    return Table(columns=columns, rows=rows, title="Judges against the truth: was the true answer given?")


def _defence_table(measured: Sequence[Measured]) -> Table:
    rows: list[list[str | int | float | bool | None]] = []
    for index, first in enumerate(measured[0]["defences"]):
        each = [one["defences"][index] for one in measured]
        rows.append(
            [
                first["name"],
                "adaptive" if first["adaptive"] else "non-adaptive",
                over_seeds([one["attack"]["keywords"] for one in each]).value,
                over_seeds([one["attack"]["truth"] for one in each]).value,
                over_seeds([one["benign"] for one in each]).value,
                over_seeds([one["correct"] for one in each]).value,
                over_seeds([one["blocked"] for one in each]).value,
                float(np.mean([one["calls"] for one in each])),
                float(np.mean([one["auroc"] for one in each])) if first["auroc"] is not None else None,
            ]
        )
    columns = [
        "defence",
        "suffix",
        "ASR[keywords]",
        "true answer",
        "benign answered",
        "benign correct",
        "attack blocked",
    ]
    title = "Defences against the suffix of dsn(10): both halves"
    return Table(columns=[*columns, "calls a prompt", "filter AUROC"], rows=rows, title=title)


def _seed_table(measured: Sequence[Measured], seeds: Sequence[int]) -> Table:
    names = _objectives(measured, "light")
    rows: list[list[str | int | float | bool | None]] = [
        [
            seed,
            *(rate(_find(one, "light", name)["hits"]["keywords"]).value for name in names),
            *(rate(_find(one, "hardened", name)["hits"]["keywords"]).value for name in ("random", "gcg", "dsn(10)")),
            _find(one, "light", "gcg")["refusal"],
            _find(one, "light", "dsn(10)")["refusal"],
        ]
        for seed, one in zip(seeds, measured, strict=True)
    ]
    columns = [
        "seed",
        *names,
        "hardened random",
        "hardened gcg",
        "hardened dsn(10)",
        "refusal loss gcg",
        "refusal loss dsn(10)",
    ]
    return Table(columns=columns, rows=rows, title="Opened share by seed")


def _series(measured: Sequence[Measured]) -> dict[str, Series]:
    series = {}
    for name in ("random_search", *SEARCHED):
        losses = np.array([_find(one, "light", name)["loss"] for one in measured])
        series[f"loss {name}"] = Series(
            x=[float(i) for i in range(losses.shape[1])],
            y=losses.mean(axis=0).tolist(),
            x_label="step",
            y_label="target loss (nats)",
            group="attack curve",
        )
    names = _objectives(measured, "light")
    for judge, label in (("keywords", "opened"), ("ensemble:majority", "majority of judges"), ("truth", "true answer")):
        rates = [_pooled(measured, "light", name, judge) for name in names]
        series[label] = bars(names, rates, "share of unseen behaviours", "success by objective and judge")
    rows = measured[0]["defences"]
    for label, key in (("attack opened", "attack"), ("benign answered", "benign")):
        each = [
            over_seeds(
                [
                    (one["defences"][i][key]["keywords"] if key == "attack" else one["defences"][i][key])
                    for one in measured
                ]
            )
            for i in range(len(rows))
        ]
        series[label] = bars([row["name"] for row in rows], each, "share", "defences: both halves")
    return series


def _verdicts(measured: Sequence[Measured]) -> list[str]:
    best = max(SEARCHED, key=lambda name: _pooled(measured, "light", name, "keywords").value)
    found, control = _pooled(measured, "light", best, "keywords"), _pooled(measured, "light", "random", "keywords")
    more = gain(measured, best)
    word = "opens" if more.low > 0 else "may not open more than chance:"
    true = _pooled(measured, "light", best, "truth")
    trained = hardening(measured, "dsn(10)")
    verb = "lowers" if trained.high < 0 else "does not surely lower"
    num = len(measured)
    lower = sum(_find(one, "light", "dsn(10)")["refusal"] < _find(one, "light", "gcg")["refusal"] for one in measured)
    keyword, majority = (agreement.accuracy(*_decided(measured, judge)) for judge in ("keywords", "ensemble:majority"))
    return [
        f"An optimised suffix ({best}) {word} {found.value:.0%} of the refusals of unseen questions, "
        f"random ones {control.value:.0%}: "
        f"difference {more.value:+.2f} [{more.low:+.2f}, {more.high:+.2f}]; "
        f"only {true.value:.0%} of the answers are true.",
        f"Refusal training {verb} what a fresh dsn(10) suffix opens: "
        f"{trained.value:+.2f} [{trained.low:+.2f}, {trained.high:+.2f}].",
        f"Judged by the truth, keywords are right on {keyword:.0%} of the responses, "
        f"the majority of three judges on {majority:.0%}.",
        f"dsn(10) ends with a lower refusal loss than gcg in {lower} of {num} victims"
        + ("." if num >= FULL_SEEDS else "; which objective is best is undecided with so few."),
    ]
