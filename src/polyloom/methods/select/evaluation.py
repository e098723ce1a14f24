"""The verb `evaluate`: category precision, agreement with reference selections, and measured transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.files import read_json
from polyloom.core.result import Result, Scalar, Series, Table
from polyloom.methods.select.baselines import choose_random
from polyloom.methods.select.config import EvaluateConfig
from polyloom.methods.select.crossing import judge_parallel
from polyloom.methods.select.data import Pool, source_of
from polyloom.methods.select.method import (
    aggregate,
    fuse,
    mix_prior,
    ndcg,
    order_by,
    overlap,
    popularity,
    rank_biased_overlap,
    regret,
)
from polyloom.methods.select.scoring import TOKEN_WISE, cache_folder, nearness_of, rank_ids, score_pool
from polyloom.methods.select.study import read_transfers
from polyloom.methods.select.target import load_pool
from polyloom.metrics.statistics import bootstrap_interval, spearman
from polyloom.runs.folder import Run

RANDOM_DRAWS = 1000
FUSION = "fusion"
MISCELLANEOUS = frozenset({"Misc.", "misc", "other", ""})
PRECISION_AT = (1, 5, 10)

# The 35 training data sets of the paper's P3 pool by their promptsource folder, and three of its published selections
# (arXiv 2404.16418: result lists of the authors' repository, selector aligned on P3).
P3_POOL = {
    "quoref": "quoref", "ropes": "ropes", "duorc": "duorc/ParaphraseRC",
    "adversarial_qa": "adversarial_qa/adversarialQA",
    "qqp": "glue/qqp", "mrpc": "glue/mrpc", "paws": "paws/labeled_final", "ag_news": "ag_news", "trec": "trec",
    "dbpedia": "dbpedia_14", "imdb": "imdb", "yelp": "yelp_review_full", "amazon": "amazon_polarity",
    "app_reviews": "app_reviews", "rotten_tomatoes": "rotten_tomatoes", "wiki_qa": "wiki_qa",
    "hotpot_qa": "kilt_tasks/hotpotqa", "multi_news": "multi_news", "gigaword": "gigaword", "samsum": "samsum",
    "xsum": "xsum", "cnn_daily_mail": "cnn_dailymail/3.0.0", "cos_e": "cos_e/v1.11", "dream": "dream", "quail": "quail",
    "social_iqa": "social_i_qa", "quartz": "quartz", "wiqa": "wiqa", "cosmos_qa": "cosmos_qa", "qasc": "qasc",
    "quarel": "quarel", "sciq": "sciq", "wiki_hop": "wiki_hop/original", "common_gen": "common_gen",
    "wiki_bio": "wiki_bio",
}  # fmt: skip
P3_SELECTIONS = {
    "super_glue/rte": "paws wiki_qa qqp wiqa quartz",
    "super_glue/copa": "qasc cosmos_qa quail quarel social_iqa",
    "super_glue/wic": "qqp mrpc paws qasc wiki_qa",
}


def run_evaluate(config: EvaluateConfig, run: Run) -> Result:
    """Judge selections: by category neighbours, against reference selections, against measured transfers.

    Args:
        config: pool, scorers, and what to judge by; categories are used where the pool has them.
        run: the run.

    Raises:
        UserError: there is nothing to judge by.
    """
    if config.dictionary and not config.parallel:
        raise UserError("there is nothing to map.", where="--dictionary", hint="Give --parallel as well.")
    pool = load_pool(config)
    scalars: dict[str, Scalar] = {"num_tasks": Scalar(value=len(pool.tasks))}
    tables: dict[str, Table] = {}
    series: dict[str, Series] = {}
    verdicts: list[str] = []
    notes = list(pool.notes)
    if config.reference:
        _judge_reference(config, pool, scalars, tables, series, verdicts)
    if config.transfers:
        _judge_transfers(config, pool, scalars, tables, verdicts)
    if config.parallel:
        more, tables["parallel"], verdict = judge_parallel(config, pool)
        scalars |= more
        verdicts.append(verdict)
    queries = _queries(pool, config.smallest_category)
    if queries and not (config.reference or config.transfers or config.parallel):
        with run.progress("queries", len(queries)) as advance:
            _judge_categories(config, pool, queries, scalars, tables, series, verdicts, advance)
        notes.append("A category is a coarse judge: two tasks of one category need not help each other.")
    if not verdicts:
        hint = "Give --reference, --transfers or --parallel, or a pool whose tasks have categories."
        raise UserError("there is nothing to judge by.", where=config.pool, hint=hint)
    return run.result(scalars=scalars, tables=tables, series=series, verdicts=verdicts, limitations=notes)


def _queries(pool: Pool, smallest: int) -> list[int]:
    """Return the tasks whose category has enough members and a meaning."""
    counts: dict[str, int] = {}
    for task in pool.tasks:
        counts[task.category] = counts.get(task.category, 0) + 1
    return [
        number
        for number, task in enumerate(pool.tasks)
        if task.category not in MISCELLANEOUS and counts[task.category] >= smallest
    ]


def _judge_categories(
    config: EvaluateConfig,
    pool: Pool,
    queries: Sequence[int],
    scalars: dict[str, Scalar],
    tables: dict[str, Table],
    series: dict[str, Series],
    verdicts: list[str],
    advance: Any,
) -> None:
    """Let every task of a category ask for its neighbours, and count those of its category."""
    categories = [task.category for task in pool.tasks]
    sources = [task.source or source_of(task.id) for task in pool.tasks]
    names = [*dict.fromkeys(config.scorers), *([FUSION] if len(set(config.scorers)) > 1 else [])]
    hits: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    owners = np.array(pool.owners)
    blocks = _pair_blocks(config, pool, queries)
    for query, scored in blocks:
        each = [aggregate(pairs, owners, len(pool.tasks), config.aggregation) for pairs in scored]
        for one in each:
            one[query] = -np.inf
        for name, scores in zip(names, [*each, *([fuse(each)] if len(each) > 1 else [])], strict=True):
            order = [int(i) for i in order_by(np.where(np.isfinite(scores), scores, -1e9)) if i != query]
            foreign = [i for i in order if not sources[query] or sources[i] != sources[query]]
            for k in PRECISION_AT:
                value = sum(categories[i] == categories[query] for i in order[:k]) / k
                hits[name].setdefault(f"p_at_{k}", []).append(value)
            value = sum(categories[i] == categories[query] for i in foreign[:5]) / 5
            hits[name].setdefault("p_at_5_other_sources", []).append(value)
        advance(1)
    chance = float(np.mean([(categories.count(categories[i]) - 1) / (len(categories) - 1) for i in queries]))
    scalars["num_queries"] = Scalar(value=len(queries))
    scalars["num_categories"] = Scalar(value=len({categories[i] for i in queries}))
    scalars["random_p_at_1"] = Scalar(value=chance)
    rows: list[list[Any]] = []
    for name in names:
        macro = _macro(hits[name]["p_at_1"], [categories[i] for i in queries])
        rows.append([name, *(float(np.mean(values)) for values in hits[name].values()), macro])
        for measure, values in hits[name].items():
            interval = bootstrap_interval(values, method="percentile", num_resamples=1000, seed=config.seed)
            key = f"{key_of(name)}_{measure}"
            scalars[key] = Scalar(value=float(np.mean(values)), low=interval.low, high=interval.high)
    columns = ["scorer", *(f"P@{k}" for k in PRECISION_AT), "P@5, other sources", "P@1 by category"]
    rows.append(["random", chance, chance, chance, None, None])
    tables["categories"] = Table(columns=columns, rows=rows, title=f"{len(queries)} queries")
    series["P@1"] = Series(
        x=[float(i) for i in range(len(names))],
        y=[float(np.mean(hits[name]["p_at_1"])) for name in names],
        low=[scalars[f"{key_of(name)}_p_at_1"].low for name in names],
        high=[scalars[f"{key_of(name)}_p_at_1"].high for name in names],
        x_names=[key_of(name) for name in names],
        kind="bar",
        x_label="scorer",
        y_label="share of nearest tasks with the query's category",
    )
    best = max(names, key=lambda name: float(np.mean(hits[name]["p_at_1"])))
    value = float(np.mean(hits[best]["p_at_1"]))
    verdicts.append(
        f"The nearest task has the query's category for {value:.1%} of {len(queries)} tasks with {key_of(best)} "
        f"(random {chance:.1%})."
    )
    if FUSION in names:
        parts = max(float(np.mean(hits[name]["p_at_1"])) for name in names if name != FUSION)
        gain = float(np.mean(hits[FUSION]["p_at_1"])) - parts
        verdicts.append(
            f"Fusion is {abs(gain):.3f} {'above' if gain > 0 else 'not above'} the best of its parts at P@1."
        )


def key_of(name: str) -> str:
    """Return a scorer's name as a key of scalars: a path's last part, behind how its tokens are compared."""
    kind, _, source = name.rpartition(":") if name.startswith(TOKEN_WISE) else ("", "", name)
    return "_".join(filter(None, (kind, Path(source).name.replace("-", "_").replace(".", "_"))))


def _macro(values: Sequence[float], categories: Sequence[str]) -> float:
    by: dict[str, list[float]] = {}
    for value, category in zip(values, categories, strict=True):
        by.setdefault(category, []).append(value)
    return float(np.mean([np.mean(each) for each in by.values()]))


def _pair_blocks(config: EvaluateConfig, pool: Pool, queries: Sequence[int]) -> Any:
    """Yield every query with s_ij of its instructions under every scorer; many queries are scored at once."""
    for start in range(0, len(queries), 64):
        block = queries[start : start + 64]
        texts = [text for number in block for text in pool.tasks[number].instructions]
        scored = score_pool(texts, pool, config.scorers, config.aggregation, cache=cache_folder(config.cache)).pairs
        place = 0
        for number in block:
            size = len(pool.tasks[number].instructions)
            yield number, [pairs[place : place + size] for pairs in scored]
            place += size


# ---- reference selections


def read_reference(source: str, pool: Pool) -> tuple[dict[str, list[str]], Pool]:
    """Return target -> chosen tasks, and the pool to choose from.

    `insta-p3` takes the paper's 35 data sets of a promptsource folder. A file is JSON {target: [tasks]}.

    Raises:
        UserError: unknown names, each with the nearest known one; glued names are taken apart in the message.
    """
    if source == "insta-p3":
        reference = {target: [P3_POOL[name] for name in said.split()] for target, said in P3_SELECTIONS.items()}
        lacking = [name for name in [*P3_POOL.values(), *P3_SELECTIONS] if name not in pool.ids]
        if lacking:
            hint = "Give the folder of promptsource's templates."
            raise UserError(
                f"lacks {lacking[0]!r} of the paper's pool ({len(lacking)} in all).", where=pool.where, hint=hint
            )
        kept = {*P3_POOL.values(), *P3_SELECTIONS}
        return reference, pool.without([i for i, name in enumerate(pool.ids) if name not in kept])
    value = read_json(Path(source))
    good = isinstance(value, dict) and all(
        isinstance(names, list) and names and all(isinstance(name, str) for name in names) for names in value.values()
    )
    if not good or not value:
        raise UserError("is no object of target -> list of tasks.", where=source)
    for target, names in value.items():
        for name in (target, *names):
            pool.place(name)
    return value, pool


def _judge_reference(
    config: EvaluateConfig,
    pool: Pool,
    scalars: dict[str, Scalar],
    tables: dict[str, Table],
    series: dict[str, Series],
    verdicts: list[str],
) -> None:
    """Compare the first k of every scorer with a reference selection, beside random selections."""
    reference, pool = read_reference(str(config.reference), pool)
    targets = {pool.place(name) for name in reference}
    names = [*dict.fromkeys(config.scorers), *([FUSION] if len(set(config.scorers)) > 1 else [])]
    values: dict[str, list[float]] = {name: [] for name in names}
    rows: list[list[Any]] = []
    random_values = []
    for target, gold in reference.items():
        task = pool.tasks[pool.place(target)]
        # A target is never a training task of another target, as in the paper's pool.
        rest = pool.without(targets)
        found = score_pool(
            task.instructions, rest, config.scorers, config.aggregation, cache=cache_folder(config.cache)
        )
        for name, scores in zip(names, [*found.scores, *([found.fused] if FUSION in names else [])], strict=True):
            chosen = rank_ids(scores, rest.ids)[: len(gold)]
            values[name].append(overlap(chosen, gold))
            biased = rank_biased_overlap(chosen, gold)
            rows.append([target, key_of(name), values[name][-1], biased, ", ".join(chosen), ", ".join(gold)])
        draws = [choose_random(rest, len(gold), config.seed + draw) for draw in range(RANDOM_DRAWS)]
        random_values.append(float(np.mean([overlap([rest.ids[i] for i in draw], gold) for draw in draws])))
    for name in names:
        scalars[f"{key_of(name)}_overlap"] = Scalar(value=float(np.mean(values[name])))
    scalars["random_overlap"] = Scalar(value=float(np.mean(random_values)))
    scalars["num_references"] = Scalar(value=len(reference))
    columns = ["target", "scorer", "overlap", "rank-biased overlap", "chosen", "reference"]
    tables["references"] = Table(columns=columns, rows=rows, title="Selections beside the reference")
    every = [*names, "random"]
    series["overlap"] = Series(
        x=[float(i) for i in range(len(every))],
        y=[float(np.mean(values[name])) if name in values else float(np.mean(random_values)) for name in every],
        x_names=[key_of(name) for name in every],
        kind="bar",
        x_label="scorer",
        y_label="overlap with the reference",
    )
    best = max(names, key=lambda name: float(np.mean(values[name])))
    verdicts.append(
        f"{key_of(best)} shares {np.mean(values[best]):.0%} of {len(reference)} reference selections; random ones "
        f"{np.mean(random_values):.0%}."
    )


# ---- measured transfers


def _judge_transfers(
    config: EvaluateConfig, pool: Pool, scalars: dict[str, Scalar], tables: dict[str, Table], verdicts: list[str]
) -> None:
    """Compare rankings with measured gains: NDCG, Spearman and regret, for similarity, prior, both mixed, and random.

    `pivots` mixes similarity with gains weighted by how near their targets are.
    """
    gains = read_transfers(str(config.transfers))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("similarity", "prior", "pivots", "mix", "random")}
    judged = 0
    for target, row in gains.items():
        names = [name for name in row if name != target]
        for name in (target, *names):
            pool.place(name)
        if len(names) < 3:
            continue
        judged += 1
        rest = pool.without([i for i, name in enumerate(pool.ids) if name not in names])
        said = pool.tasks[pool.place(target)].instructions
        scores = score_pool(said, rest, config.scorers, config.aggregation, cache=cache_folder(config.cache)).fused
        prior = popularity(gains, target, rest.ids)
        near = nearness_of(said, pool, list(gains), config.scorers[0], cache_folder(config.cache))
        pivots = popularity(gains, target, rest.ids, near)
        noise = np.random.default_rng(config.seed + judged).random(len(rest.tasks))
        rankings = {"similarity": scores, "prior": np.nan_to_num(prior, nan=-1e9), "random": noise}
        rankings["pivots"] = mix_prior(scores, pivots) if np.isfinite(pivots).any() else scores
        rankings["mix"] = mix_prior(scores, prior) if np.isfinite(prior).any() else scores
        for name, values in rankings.items():
            found[name].append(_transfer_measures(values, rest.ids, row, config.k))
    if not judged:
        raise UserError("no target has three measured sources or more.", where=str(config.transfers))
    rows: list[list[Any]] = []
    for name, each in found.items():
        mean = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        rows.append([name, *mean.values()])
        scalars |= {f"{name}_{key}": Scalar(value=value) for key, value in mean.items()}
    columns = ["ranking", "NDCG", "Spearman", f"regret@{config.k}"]
    tables["transfers"] = Table(columns=columns, rows=rows, title=f"{judged} targets with measured gains")
    best = max(rows, key=lambda row: float(row[1]))
    verdicts.append(f"Against measured gains of {judged} targets, {best[0]} has the best NDCG ({best[1]:.3f}).")


def _transfer_measures(scores: np.ndarray, ids: Sequence[str], gains: Mapping[str, float], k: int) -> dict[str, float]:
    predicted = rank_ids(scores, ids)
    gold = sorted(ids, key=lambda name: (-gains[name], name))
    rho = spearman(scores, np.array([gains[name] for name in ids]))[0] if np.ptp(scores) > 0 else 0.0
    mine = {name: gains[name] for name in ids}
    return {"ndcg": ndcg(predicted, gold), "spearman": float(rho), "regret": regret(mine, predicted[:k])}
