"""`polyloom prefix decide`: how deep an alignment is, position by position, and how many prior tokens it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.generation.decode import Decoding, decode
from polyloom.methods.prefix.config import DecideConfig
from polyloom.methods.prefix.inputs import Loaded, first_difference, render_prompts
from polyloom.methods.prefix.method import (
    AGREEMENT_KS,
    agreement,
    decision_space,
    edit_distance,
    first_divergence,
    generate_with_priors,
)
from polyloom.methods.prefix.positions import position_means
from polyloom.methods.prefix.sources import Session, open_session
from polyloom.metrics.statistics import Interval, bootstrap_interval
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

MEASURES = ("kl", "kl_reverse", "js", "cross_entropy", "logit_distance", "logit_angle")
MAX_K = 5


def run_decide(config: DecideConfig, run: Run) -> Result:
    """Compare a base model's decisions with its tuned form's along the tuned model's own answers.

    Args:
        config: both models, texts, positions.
        run: the run.

    Returns:
        Agreement, ranks and divergences by position with bootstrap intervals over texts; where free-running answers
        part, without a prior and behind 1 to 5 tokens; the smallest k behind which the models agree.

    Raises:
        UserError: tokenizers that differ (the first id is named), models of different families, bad inputs.
    """
    pin_threads()
    session = open_session(config, config.task)
    tuned = session.other("sft")
    check_pair(session.base, tuned)
    tuned_prompts = session.prompts
    if config.sft_template:
        texts = render_prompts(config.sft_template, session.items, config.source_language, config.target_language)
        tuned_prompts = [tuned.encode_prompt(text) for text in texts]
    answers: list[list[int]] = run.once(
        "tuned answers",
        lambda: [list(one.tokens) for one in decode(tuned.model, tuned_prompts, Decoding(config.positions))],
    )
    if not any(answers):
        raise UserError("the tuned model answers nothing.", where="--sft", hint="Check its template.")

    def compare() -> list[list[dict[str, float]]]:
        with run.progress("prefix: decisions", len(answers)) as advance:
            return decision_space(
                session.base.model,
                tuned.model,
                session.prompts,
                answers,
                config.positions,
                tuned_prompts=tuned_prompts,
                advance=advance,
            )

    rows = run.once("decisions", compare)
    free = run.once("free running", lambda: _free_running(session, answers, config))
    return _result(config, run, rows, free, session.notes)


def check_pair(base: Loaded, tuned: Loaded) -> None:
    """Refuse two models whose decisions cannot be compared.

    Raises:
        UserError: other families, or tokenizers that differ.
    """
    families = [str(one.model.config.model_type) for one in (base, tuned)]
    if families[0] != families[1]:
        raise UserError(
            f"the SFT model is of the family {families[1]}, the base model of {families[0]}.",
            where="--sft",
            hint="Decisions are compared between a model and its own fine-tuned form.",
        )
    difference = first_difference(base.tokenizer, tuned.tokenizer)
    if difference:
        hint = "Decisions need one vocabulary; priors of this model can be used as text (--prior sft)."
        raise UserError(f"the tokenizers differ: {difference}.", where="--sft", hint=hint)


def _free_running(
    session: Session, answers: Sequence[Sequence[int]], config: DecideConfig
) -> dict[str, list[dict[str, float]]]:
    """Compare whole answers without teacher forcing, behind k tokens of the tuned model's answer."""
    found = {}
    for k in range(min(MAX_K, config.positions) + 1):
        priors = [answer[:k] for answer in answers]
        own = generate_with_priors(
            session.base.model,
            session.base.tokenizer,
            session.prompts,
            priors,
            Decoding(max(1, config.positions - k)),
            batch_size=config.batch_size,
        )
        pairs = [(one.all_tokens[: config.positions], answer) for one, answer in zip(own, answers, strict=True)]
        found[str(k)] = [
            {
                "divergence": float(first_divergence(a, b)),
                "distance": edit_distance(a, b) / max(1, len(b)),
                "equal": float(list(a) == list(b)),
            }
            for a, b in pairs
        ]
    return found


def _interval(values: Sequence[float]) -> Interval:
    if len(values) < 2:
        return Interval(values[0], values[0], values[0])
    return bootstrap_interval(values, method="percentile", num_resamples=1000)


def _result(
    config: DecideConfig,
    run: Run,
    rows: list[list[dict[str, float]]],
    free: Mapping[str, list[dict[str, float]]],
    notes: Sequence[str],
) -> Result:
    means = position_means(rows, config.positions)
    at = [[row[i] for row in rows if len(row) > i] for i in range(len(means))]
    agree = [_interval([float(one["rank"] < 1) for one in here]) for here in at]
    kl = [_interval([one["kl"] for one in here]) for here in at]
    suggested = next((k for k, one in enumerate(agree) if one.value >= config.threshold), None)
    every = [one for row in rows for one in row]
    scalars = {f"agreement_at_{k}": Scalar(value=agreement([one["rank"] for one in every], k)) for k in AGREEMENT_KS}
    scalars |= {name: Scalar(value=mean(one[name] for one in every)) for name in MEASURES}
    for position, (one, divergence) in enumerate(zip(agree[:3], kl[:3], strict=True), start=1):
        scalars[f"agreement_at_1_position_{position}"] = Scalar.of(one)
        scalars[f"kl_position_{position}"] = Scalar.of(divergence, "nats")
    scalars["suggested_k"] = Scalar(value=suggested, unit="tokens")
    scalars["num_texts"] = Scalar(value=len(rows))
    for name in ("divergence", "distance", "equal"):
        scalars[f"free_{name}"] = Scalar(value=mean(one[name] for one in free["0"]))
    first = agree[0].value
    answer = (
        f"the models agree on {config.threshold:.0%} of decisions behind {suggested} prior tokens"
        if suggested is not None
        else f"no position up to {len(means)} reaches {config.threshold:.0%} agreement: a prior will not do"
    )
    return run.result(
        scalars=scalars,
        tables={"positions": _positions(means), "free": _free_table(free)},
        series=_curves(means, agree, kl) | _free_series(free),
        verdicts=[
            f"At the first token the models agree on {first:.0%} [{agree[0].low:.0%}, {agree[0].high:.0%}]; {answer}.",
            *notes,
        ],
        limitations=[
            "Both models are fed the tuned model's own answer; agreement along the base model's answers is another "
            "quantity.",
            *(["The two prompts differ, so the figures measure the template, too."] if config.sft_template else []),
        ],
    )


def _positions(means: Sequence[Mapping[str, float]]) -> Table:
    names = [f"agreement_at_{k}" for k in AGREEMENT_KS]
    names += ["median_rank", "rank", "silent_majority", "unshifted", "marginal", "shifted", *MEASURES, "num_samples"]
    heads = [*(f"agreement@{k}" for k in AGREEMENT_KS), "median rank", "mean rank", "silent majority", "unshifted"]
    heads += ["marginal", "shifted", "KL(SFT, base)", "KL(base, SFT)", "JS", "cross-entropy", "logit L2", "logit angle"]
    return Table(
        columns=["position", *heads, "texts"],
        rows=[[i, *(one[name] for name in names)] for i, one in enumerate(means, start=1)],
        title="Decisions along the tuned model's answers",
    )


def _free_table(free: Mapping[str, list[dict[str, float]]]) -> Table:
    return Table(
        columns=["prior tokens k", "first difference at", "edit distance per token", "equal answers"],
        rows=[
            [int(k), *(mean(one[name] for one in here) for name in ("divergence", "distance", "equal"))]
            for k, here in free.items()
        ],
        title="Free-running answers of the base model against the tuned model's",
    )


def _free_series(free: Mapping[str, list[dict[str, float]]]) -> dict[str, Series]:
    bars = {k: _interval([one["distance"] for one in here]) for k, here in free.items()}
    return {
        "edit distance": Series(
            x=[float(k) for k in bars],
            y=[one.value for one in bars.values()],
            low=[one.low for one in bars.values()],
            high=[one.high for one in bars.values()],
            x_label="prior tokens k",
            y_label="edit distance to the tuned answer, per token",
            group="free-running answers",
        )
    }


def _curves(
    means: Sequence[Mapping[str, float]], agree: Sequence[Interval], kl: Sequence[Interval]
) -> dict[str, Series]:
    x = [float(i) for i in range(1, len(means) + 1)]

    def curve(values: Sequence[Interval], label: str, group: str) -> Series:
        ends: dict[str, Any] = {"low": [v.low for v in values], "high": [v.high for v in values]}
        y = [v.value for v in values]
        return Series(x=x, y=y, x_label="position in the answer", y_label=label, group=group, **ends)

    plain = {"x_label": "position in the answer", "y_label": "share of decisions", "group": "agreement by position"}
    return {
        "agreement@1": curve(agree, "share of decisions", "agreement by position"),
        "agreement@5": Series(x=x, y=[one["agreement_at_5"] for one in means], **plain),
        "KL(SFT, base)": curve(kl, "nats", "divergence by position"),
        "JS": Series(
            x=x,
            y=[one["js"] for one in means],
            x_label="position in the answer",
            y_label="nats",
            group="divergence by position",
        ),
    }
