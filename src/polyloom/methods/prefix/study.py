"""`polyloom prefix study`: the embedded experiment over seeds, its tables, curves and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from polyloom.core.errors import UserError, closest
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator
from polyloom.data.world import LANGUAGES, NOTICE
from polyloom.methods.prefix.config import PrefixStudyConfig
from polyloom.methods.prefix.data import FEW_THINGS
from polyloom.methods.prefix.experiment_run import METHODS, NUM_POSITIONS, Plan, pinned, run_seed
from polyloom.methods.prefix.method import AGREEMENT_KS
from polyloom.metrics.statistics import Interval, t_interval
from polyloom.metrics.text import Floats, bleu_of
from polyloom.runs.folder import Run

QUICK = Plan(
    num_train=1500,
    num_test=30,
    base_steps=1450,
    sft_steps=150,
    sft_rounds=2,
    small_steps=200,
    things=FEW_THINGS,
)
PLANS = {
    "quick": (1, QUICK),
    "full": (3, Plan()),
}
NUM_RESAMPLES = 1000
# Below this the fine-tuned model itself translates too little to be a reference.
WEAK_BLEU = 40
PRIOR_METHODS = {0: "base, zero-shot", 1: "SFT prior, k=1", 2: "SFT prior, k=2", 3: "SFT prior, k=3"}
SCALARS = {
    "base_rel": "base, zero-shot",
    "few_shot_rel": "base, few-shot",
    "urial_rel": "base, URIAL-style",
    "sft_prior_k1_rel": "SFT prior, k=1",
    "sft_prior_k2_rel": "SFT prior, k=2",
    "sft_prior_k3_rel": "SFT prior, k=3",
    "gold_prior_rel": "gold prior, k=2",
    "small_model_rel": "small model alone",
    "refined_prior_rel": "refined prior, k=2",
    "dictionary_prior_k1_rel": "dictionary prior, k=1",
    "dictionary_prior_k2_rel": "dictionary prior, k=2",
    "dictionary_prior_informative_rel": "dictionary prior, informative",
    "dictionary_gate_rel": "dictionary gate",
    "language_gate_rel": "language gate",
    "control_language_rel": "control: other language, k=2",
    "control_content_rel": "control: other sentence, k=1",
}
LIMITATIONS = (
    f"{NOTICE}: lists of dates, countries, languages and quantities; the figures show a mechanism and its size under "
    "control, not a fact about large models.",
    "The ambiguity after the instruction is planted: 40 % of the base model's training documents hold the instruction, "
    "answered by an English copy (45 %), in the language asked for (25 %) or in any language (30 %).",
    "Fine-tuning goes on until, on development sentences, 95 % of its answers are in the language asked for, or for "
    "four rounds (the quick profile: two); nothing is chosen on test sentences.",
    "The gold prior is a ceiling that needs the reference; the two controls bound what a prior's language alone and a "
    "right-language opener of another sentence do.",
)

SeedResult = Mapping[str, Any]


def run_study(config: PrefixStudyConfig, run: Run) -> Result:
    """Train a base model that knows translation but takes the wrong first step, and give it prior tokens.

    Args:
        config: languages, seeds and profile.
        run: the run to store steps in; each seed is one, and its trainings go on from their checkpoints.

    Returns:
        BLEU of every method relative to the fine-tuned model, decisions by position, identities, costs.

    Raises:
        UserError: a language that the world cannot write.
    """
    for code in config.targets:
        if code not in LANGUAGES:
            raise UserError(f"the world has no language {code!r}.", where="--targets", hint=closest(code, LANGUAGES))
    pinned()
    num_seeds, plan = PLANS[config.profile]
    num_seeds = config.num_seeds or num_seeds
    steps = plan.base_steps + plan.sft_steps + plan.small_steps
    found: list[SeedResult] = []
    for index in range(num_seeds):
        with run.progress(f"prefix: seed {index + 1} of {num_seeds}", steps) as advance:
            found.append(
                run.once(
                    f"seed {index} of {config.seed}: {config.profile} {' '.join(config.targets)}",
                    partial(run_seed, config.seed + index, plan, config.targets, run, advance),
                )
            )
    return study_result(config, run, found)


def study_result(config: PrefixStudyConfig, run: Run, found: Sequence[SeedResult]) -> Result:
    """Turn the seeds' figures into the room's result."""
    rel = {name: relative(found, method) for name, method in SCALARS.items()}
    scalars = {name: Scalar.of(one, "% of SFT") for name, one in rel.items()}
    sft = [_mean_bleu(seed, "SFT") for seed in found]
    scalars["sft_bleu"] = Scalar(value=float(np.mean(sft)), unit="BLEU")
    scalars["sft_fidelity"] = Scalar(value=min(seed["fidelity"][-1] for seed in found), unit="share, worst seed")
    scalars["sft_rounds"] = Scalar(value=max(len(seed["fidelity"]) for seed in found), unit="rounds, most of a seed")
    scalars |= _decision_scalars(found) | _identity_scalars(found)
    scalars["num_seeds"] = Scalar(value=len(found))
    for name in ("base", "sft", "small"):
        value = float(np.mean([seed["seconds"][name] for seed in found]))
        scalars[f"train_{name}_seconds"] = Scalar(value=value, unit="CPU s")
    return run.result(
        scalars=scalars,
        tables=_tables(config, found),
        series=_series(found),
        verdicts=_verdicts(config, scalars, len(found)),
        limitations=LIMITATIONS,
    )


def _bleu(seed: SeedResult, language: str, method: str) -> float:
    return float(bleu_of(np.array(seed["methods"][language][method]["bleu"]).sum(axis=0)))


def _mean_bleu(seed: SeedResult, method: str) -> float:
    return float(np.mean([_bleu(seed, language, method) for language in seed["methods"]]))


def relative(found: Sequence[SeedResult], method: str) -> Interval:
    """Return a method's mean BLEU over languages in per cent of the SFT model's, with a 95 % interval.

    Three seeds and more: Student's t over seeds. Fewer: the first seed's sentences drawn again, both methods together.

    Args:
        found: one result of `run_seed` for each seed.
        method: one of `METHODS`.
    """
    values = [100 * _mean_bleu(seed, method) / max(1e-9, _mean_bleu(seed, "SFT")) for seed in found]
    if len(values) >= 3:
        return t_interval(values)
    value = float(np.mean(values))
    languages = found[0]["methods"].values()
    draws = [_resampled(one[method]["bleu"], one["SFT"]["bleu"], i) for i, one in enumerate(languages)]
    ratio = 100 * sum(own for own, _ in draws) / np.maximum(1e-9, sum(sft for _, sft in draws))
    return Interval(value, float(np.quantile(ratio, 0.025)), float(np.quantile(ratio, 0.975)))


def _resampled(own: list[list[int]], sft: list[list[int]], stream: int) -> tuple[Floats, Floats]:
    index = numpy_generator(0, "sentences", stream).integers(0, len(own), (NUM_RESAMPLES, len(own)))
    return bleu_of(np.array(own)[index].sum(axis=1)), bleu_of(np.array(sft)[index].sum(axis=1))


def _at(found: Sequence[SeedResult], position: int, name: str) -> list[float]:
    """Return a decision measure at a position (1-based): one value a seed, its mean over languages."""
    values = []
    for seed in found:
        here = [rows[position - 1][name] for rows in seed["decisions"].values() if len(rows) >= position]
        if here:
            values.append(float(np.mean(here)))
    return values


def _decision_scalars(found: Sequence[SeedResult]) -> dict[str, Scalar]:
    scalars = {}
    for position in (1, 2, 3):
        for k in AGREEMENT_KS[:2]:
            value = float(np.mean(_at(found, position, f"agreement_at_{k}")))
            scalars[f"agreement_at_{k}_position_{position}"] = Scalar(value=value)
        scalars[f"kl_position_{position}"] = Scalar(value=float(np.mean(_at(found, position, "kl"))), unit="nats")
        scalars[f"js_position_{position}"] = Scalar(value=float(np.mean(_at(found, position, "js"))), unit="nats")
    first, third = scalars["kl_position_1"].value, scalars["kl_position_3"].value
    scalars["kl_fall"] = Scalar(value=float(first or 0) / max(1e-9, float(third or 0)), unit="x")
    return scalars


def _identity_scalars(found: Sequence[SeedResult]) -> dict[str, Scalar]:
    own = [seed["identities"] for seed in found]
    scalars = {name: Scalar(value=all(one[name] for one in own)) for name, v in own[0].items() if isinstance(v, bool)}
    scalars["self_agreement"] = Scalar(value=min(one["self_agreement"] for one in own))
    scalars["self_kl"] = Scalar(value=max(one["self_kl"] for one in own), unit="nats")
    ratio = float(np.median([seed["prefill_cost_ratio"] for seed in found]))
    scalars["prefill_cost_ratio"] = Scalar(value=ratio, unit="x plain decoding")
    return scalars


def _tables(config: PrefixStudyConfig, found: Sequence[SeedResult]) -> dict[str, Table]:
    rows: list[list[str | float | int | bool | None]] = []
    for method in METHODS:
        by_language = [float(np.mean([_bleu(seed, code, method) for seed in found])) for code in config.targets]
        rates = [
            float(np.mean([seed["methods"][code][method][rate] for seed in found for code in config.targets]))
            for rate in ("exact", "copy", "off_target", "empty")
        ]
        whole = relative(found, method)
        rows.append([method, *by_language, whole.value, whole.low, whole.high, *rates])
    columns = ["method", *(f"BLEU {code}" for code in config.targets), "% of SFT", "low", "high"]
    columns += ["exact", "copies English", "off target", "empty"]
    names = ["agreement_at_1", "agreement_at_5", "agreement_at_20", "median_rank", "silent_majority", "kl", "js"]
    names += ["cross_entropy", "unshifted", "marginal", "shifted"]
    decisions: list[list[str | float | int | bool | None]] = [
        [position, *(float(np.mean(_at(found, position, name))) for name in names)]
        for position in range(1, NUM_POSITIONS + 1)
        if _at(found, position, "kl")
    ]
    heads = ["agreement@1", "agreement@5", "agreement@20", "median rank", "silent majority", "KL(SFT, base)", "JS"]
    heads += ["cross-entropy", "unshifted", "marginal", "shifted"]
    example = found[0]["example"]
    return {
        "methods": Table(columns=columns, rows=rows, title="Every method on unseen sentences, mean over seeds"),
        "decisions": Table(
            columns=["position", *heads], rows=decisions, title="Decisions along the fine-tuned model's answers"
        ),
        "example": Table(
            columns=["who", "text"],
            rows=[[name, example[name]] for name in ("source", "reference", *METHODS)],
            title="One test sentence by every method",
        ),
        "costs": _costs(found),
        "failures": Table(
            columns=["prior source", *config.targets],
            rows=[
                [name, *(sum(seed["failures"][code][name] for seed in found) for code in config.targets)]
                for name in found[0]["failures"][config.targets[0]]
            ],
            title="Sentences for which a prior source had nothing, so that the base model decoded plainly",
        ),
    }


def _costs(found: Sequence[SeedResult]) -> Table:
    """Set beside each way what it trains: "training-free" with its price."""

    def mean_of(key: str, name: str) -> float:
        return float(np.mean([seed[key][name] for seed in found])) if name else 0.0

    ways = (("SFT", "sft"), ("SFT prior, k=2", "sft"), ("small model alone", "small"), ("refined prior, k=2", "small"))
    free = ("dictionary prior, k=2", "dictionary gate", "language gate", "base, few-shot", "base, URIAL-style")
    return Table(
        columns=["method", "parameters trained", "training texts seen", "CPU seconds", "% of SFT"],
        rows=[
            [method, *(mean_of(key, name) for key in ("parameters", "texts", "seconds")), relative(found, method).value]
            for method, name in (*ways, *((one, "") for one in free))
        ],
        title="What each way trains on top of the base model",
    )


def _series(found: Sequence[SeedResult]) -> dict[str, Series]:
    shown = [name for name in METHODS if name != "SFT"]
    bars = [relative(found, name) for name in shown]
    series = {
        "methods": Series(
            x=[float(i) for i in range(len(shown))],
            y=[one.value for one in bars],
            low=[one.low for one in bars],
            high=[one.high for one in bars],
            x_names=shown,
            y_label="BLEU in % of the fine-tuned model's",
            group="methods",
            kind="bar",
        )
    }
    curve = [relative(found, name) for name in PRIOR_METHODS.values()]
    series["SFT prior"] = Series(
        x=[float(k) for k in PRIOR_METHODS],
        y=[one.value for one in curve],
        low=[one.low for one in curve],
        high=[one.high for one in curve],
        x_label="prior tokens k",
        y_label="BLEU in % of SFT",
        group="prior length",
    )
    positions = [p for p in range(1, NUM_POSITIONS + 1) if _at(found, p, "kl")]
    for label, name, group in (
        ("agreement@1", "agreement_at_1", "agreement"),
        ("agreement@5", "agreement_at_5", "agreement"),
        ("KL(SFT, base)", "kl", "divergence"),
        ("JS", "js", "divergence"),
    ):
        series[label] = Series(
            x=[float(p) for p in positions],
            y=[float(np.mean(_at(found, p, name))) for p in positions],
            x_label="position in the answer",
            y_label="share of decisions" if group == "agreement" else "nats",
            group=f"{group} by position",
        )
    return series


def _verdicts(config: PrefixStudyConfig, scalars: Mapping[str, Scalar], num_seeds: int) -> list[str]:
    def told(name: str) -> str:
        one = scalars[name]
        return f"{one.value:.0f} % [{one.low:.0f}, {one.high:.0f}]"

    low, high = scalars["sft_prior_k2_rel"].low or 0.0, scalars["sft_prior_k2_rel"].high or 0.0
    weak = float(scalars["sft_bleu"].value or 0) < WEAK_BLEU
    if weak or low < 85 <= high:
        answer = "Undecided" + (" (models this little trained)" if weak else "") + ": two prior tokens"
    else:
        answer = "Yes, here: two prior tokens" if low >= 85 else "Not fully, here: two prior tokens"
    base = told("base_rel")
    lines = [
        f"{answer} bring the base model to {told('sft_prior_k2_rel')} of its fine-tuned form's BLEU, from {base} "
        f"without; tokens of another language give {told('control_language_rel')}.",
        f"One token gives {told('sft_prior_k1_rel')}; a dictionary's first tokens, k = 2, "
        f"{told('dictionary_prior_k2_rel')}; the reference's own, the ceiling, {told('gold_prior_rel')}.",
        f"The base model agrees with the fine-tuned one on {scalars['agreement_at_1_position_1'].value:.0%} of first "
        f"tokens and on {scalars['agreement_at_1_position_3'].value:.0%} of third ones; KL falls "
        f"{scalars['kl_fall'].value:.0f}-fold between them.",
        f"In-context examples instead: {told('few_shot_rel')} (few-shot), {told('urial_rel')} (URIAL-style).",
    ]
    if num_seeds < 3:
        more = "polyloom prefix study --profile full"
        lines.append(f"{num_seeds} seed only: intervals are over sentences, so seeds are not decided on; run {more}.")
    return lines
