"""From outcomes to a result: scores by language, what each part added, and the words that follow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyloom.core.result import Scalar, Series, Table
from polyloom.methods.transfer.arms import ARMS
from polyloom.methods.transfer.protocol import Outcome
from polyloom.metrics.statistics import Comparison, Interval, compare_paired, correct_family, t_interval
from polyloom.metrics.tagging import bootstrap_difference

# Which differences say what a part adds, the whole first; a pair is reported where both of its arms were run.
PAIRS = (
    ("lexsyn", "base"),
    ("lex", "base"),
    ("syn", "base"),
    ("lexsyn", "lex"),
    ("lexsyn", "syn"),
    ("lex", "lex-static"),
    ("lex", "lex-all"),
    ("lex", "lex-mix"),
    ("lex-static", "base"),
    ("lex-all", "base"),
    ("lex-mix", "base"),
    ("syn", "syn-random"),
    ("syn", "syn-chain"),
    ("syn", "syn-upos"),
    ("syn", "syn-tree"),
    ("syn-upos", "base"),
    ("syn-tree", "base"),
    ("syn-random", "base"),
    ("syn-chain", "base"),
    ("lexsyn", "lexsyn-random"),
    ("translate", "base"),
    ("xmixup", "translate"),
)
FEW_SEEDS = 6
LIMITATIONS = [
    "Intervals over sentences say what other sentences of these files would give, intervals over seeds what other "
    "seeds would give; neither speaks of other languages or tasks.",
    "With fewer than 6 seeds no permutation test can reach 5 %: the word about the seeds is then 'undecided' unless "
    "they show no difference.",
    "Selecting checkpoints on source dev is known to say little about the targets (Keung et al., 2020); where target "
    "dev is given, the best epoch on it is printed beside the choice.",
]


class Compared(NamedTuple):
    """One difference of two arms on the target languages: over sentences, and over seeds where there are two."""

    first: str
    second: str
    sentences: Interval
    seeds: Comparison | None


def slug(name: str) -> str:
    """Return a name as a part of a scalar's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def by_arm(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by arm, seeds in order."""
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(one.arm, []).append(one)
    return groups


def interval(values: Sequence[float]) -> Interval:
    """Return the mean with its t interval; of one value, the value alone."""
    if len(values) < 2:
        return Interval(values[0], float("nan"), float("nan"))
    return t_interval(values)


def as_scalar(found: Interval, unit: str = "%") -> Scalar:
    """Return an interval as a scalar."""
    return Scalar.of(found, unit)


def target_means(outcomes: Sequence[Outcome], targets: Sequence[str], metric: str) -> list[float]:
    """Return each seed's mean score over the target languages, in percent."""
    return [float(np.mean([one.value(code, metric) for code in targets])) for one in outcomes]


def gain_over_sentences(
    first: Sequence[Outcome], second: Sequence[Outcome], targets: Sequence[str], metric: str, seed: int
) -> Interval:
    """Return the points of one arm over another on the mean of languages, with the interval over sentences."""
    counts = [
        ([one.counts[code][metric] for one in first], [one.counts[code][metric] for one in second]) for code in targets
    ]
    gain = bootstrap_difference(counts, seed=seed)
    return Interval(100 * gain.value, 100 * gain.low, 100 * gain.high)


def compare_arms(
    groups: Mapping[str, Sequence[Outcome]], targets: Sequence[str], metric: str, margin: float, seed: int
) -> list[Compared]:
    """Compare the pairs of arms that were run, on the mean of the target languages; p values are corrected together.

    Args:
        groups: outcomes by arm.
        targets: target languages.
        metric: the score.
        margin: in points.
        seed: of resampling.
    """
    pairs = [(a, b) for a, b in PAIRS if a in groups and b in groups]
    seeds: list[Comparison | None] = [None] * len(pairs)
    if len(next(iter(groups.values()))) > 1:
        found = [
            compare_paired(
                target_means(groups[a], targets, metric),
                target_means(groups[b], targets, metric),
                margin=margin,
                seed=seed,
            )
            for a, b in pairs
        ]
        seeds = list(correct_family(found)) if found else []
    return [
        Compared(a, b, gain_over_sentences(groups[a], groups[b], targets, metric, seed), over_seeds)
        for (a, b), over_seeds in zip(pairs, seeds, strict=True)
    ]


def scalars_of(
    groups: Mapping[str, Sequence[Outcome]], source: str, languages: Sequence[str], metrics: Sequence[str], seed: int
) -> dict[str, Scalar]:
    """Return every arm's scores, gains, source losses, gaps, rates and CPU seconds as named scalars."""
    targets = [code for code in languages if code != source]
    found: dict[str, Scalar] = {}
    for arm, outcomes in groups.items():
        name = slug(arm)
        for metric in metrics:
            for code in languages:
                values = [one.value(code, metric) for one in outcomes]
                found[f"{name}_{slug(code)}_{slug(metric)}"] = as_scalar(interval(values))
            if targets:
                means = target_means(outcomes, targets, metric)
                found[f"{name}_target_{slug(metric)}"] = as_scalar(interval(means))
                if source in languages:
                    gaps = [one.value(source, metric) - mean for one, mean in zip(outcomes, means, strict=True)]
                    found[f"{name}_gap_{slug(metric)}"] = as_scalar(interval(gaps), "points")
            if arm != "base" and "base" in groups:
                found |= _against_base(name, outcomes, groups["base"], source, targets, languages, metric, seed)
        if any(one.realised_rate for one in outcomes):
            found[f"{name}_realised_rate"] = Scalar(value=float(np.mean([one.realised_rate for one in outcomes])))
        found[f"{name}_cpu_seconds"] = Scalar(value=float(np.mean([one.cpu_seconds for one in outcomes])), unit="s")
        found[f"{name}_num_parameters"] = Scalar(value=outcomes[0].num_parameters)
    num_seeds = len(next(iter(groups.values())))
    total = sum(one.cpu_seconds for outcomes in groups.values() for one in outcomes)
    found["cpu_seconds_per_seed"] = Scalar(value=total / num_seeds, unit="s")
    # Readers see the first few: what the arms add, then their means, then all else.
    order = {name: ("_gain_" not in name, "_target_" not in name) for name in found}
    return {name: found[name] for name in sorted(found, key=lambda name: order[name])}


def _against_base(
    name: str,
    outcomes: Sequence[Outcome],
    base: Sequence[Outcome],
    source: str,
    targets: Sequence[str],
    languages: Sequence[str],
    metric: str,
    seed: int,
) -> dict[str, Scalar]:
    found = {}
    if targets:
        gain = gain_over_sentences(outcomes, base, targets, metric, seed)
        found[f"{name}_gain_{slug(metric)}"] = as_scalar(gain, "points")
    if source in languages:
        losses = [b.value(source, metric) - a.value(source, metric) for a, b in zip(outcomes, base, strict=True)]
        found[f"{name}_source_loss_{slug(metric)}"] = as_scalar(interval(losses), "points")
    return found


def score_tables(
    groups: Mapping[str, Sequence[Outcome]], languages: Sequence[str], metrics: Sequence[str]
) -> dict[str, Table]:
    """Return a table for each metric: arms by languages, mean and half width of the t interval over seeds."""
    tables = {}
    for metric in metrics:
        rows: list[list[str | float | int | bool | None]] = []
        for arm, outcomes in groups.items():
            cells: list[str | float | int | bool | None] = [arm, ARMS[arm].says]
            for code in languages:
                found = interval([one.value(code, metric) for one in outcomes])
                cells += [found.value, found.high - found.value]
            rows.append(cells)
        columns = ["arm", "what it is", *(part for code in languages for part in (code, f"{code} ±"))]
        tables[f"scores_{slug(metric)}"] = Table(columns=columns, rows=rows, title=f"{metric}, in percent")
    return tables


def comparison_table(compared: Sequence[Compared], metric: str) -> Table:
    """Return what each part added, with both intervals and the word about the seeds."""
    rows: list[list[str | float | int | bool | None]] = []
    for one in compared:
        over = one.seeds
        rows.append(
            [
                f"{one.first} - {one.second}",
                one.sentences.value,
                one.sentences.low,
                one.sentences.high,
                over.difference.low if over else None,
                over.difference.high if over else None,
                over.word if over else None,
            ]
        )
    columns = ["difference", "points", "sentences low", "sentences high", "seeds low", "seeds high", "word"]
    return Table(columns=columns, rows=rows, title=f"{metric} on the target languages: what each part added")


def difference_series(compared: Sequence[Compared]) -> dict[str, Series]:
    """Return the differences as bars with their intervals over sentences."""
    if not compared:
        return {}
    return {
        "differences": Series(
            x=list(range(len(compared))),
            y=[one.sentences.value for one in compared],
            low=[one.sentences.low for one in compared],
            high=[one.sentences.high for one in compared],
            x_names=[f"{one.first} - {one.second}" for one in compared],
            y_label="points",
            group="what each part adds",
            kind="bar",
        )
    }


def language_series(
    groups: Mapping[str, Sequence[Outcome]], languages: Sequence[str], metric: str
) -> dict[str, Series]:
    """Return each arm's scores by language as bars with t intervals over seeds."""
    found = {}
    for arm, outcomes in groups.items():
        values = [interval([one.value(code, metric) for one in outcomes]) for code in languages]
        found[arm] = Series(
            x=list(range(len(languages))),
            y=[one.value for one in values],
            low=[one.low for one in values],
            high=[one.high for one in values],
            x_names=list(languages),
            y_label=f"{metric} (%)",
            group="scores by language",
            kind="bar",
        )
    return found


def verdicts_of(compared: Sequence[Compared], metric: str, num_seeds: int) -> list[str]:
    """Say in a sentence each what a part added: over sentences first, then over seeds."""
    lines = []
    for one in compared:
        s = one.sentences
        clear = "more" if s.low > 0 else "less" if s.high < 0 else "not clearly different"
        line = (
            f"{one.first} against {one.second}: {s.value:+.1f} points of {metric} on the target languages "
            f"[{s.low:+.1f}, {s.high:+.1f}] over sentences ({clear})"
        )
        if one.seeds is not None:
            d = one.seeds.difference
            line += f"; over {num_seeds} seeds [{d.low:+.1f}, {d.high:+.1f}]: {one.seeds.word}"
        lines.append(f"{line}.")
    return lines


def plain_verdicts(groups: Mapping[str, Sequence[Outcome]], targets: Sequence[str], metric: str) -> list[str]:
    """Say what there is to say where no two arms can be compared."""
    if not targets:
        return ["There is no target test file: models were trained."]
    return [
        f"{arm}: {np.mean(target_means(outcomes, targets, metric)):.1f} % {metric} on {', '.join(targets)}; "
        "no other arm was run that would say what it adds."
        for arm, outcomes in groups.items()
    ]


def oracle_table(groups: Mapping[str, Sequence[Outcome]]) -> Table | None:
    """Return, where target dev was given, the chosen epoch's score on it beside the best epoch's."""
    rows: list[list[str | float | int | bool | None]] = []
    for arm, outcomes in groups.items():
        for one in outcomes:
            for code, values in one.oracle.items():
                chosen = values[one.chosen - 1] if one.chosen else None
                rows.append(
                    [arm, one.seed, code, one.chosen or "average", chosen, int(np.argmax(values)) + 1, max(values)]
                )
    if not rows:
        return None
    columns = ["arm", "seed", "language", "epoch taken", "its score", "best epoch", "oracle"]
    return Table(columns=columns, rows=rows, title="Scores on target dev, which chose nothing (%)")
