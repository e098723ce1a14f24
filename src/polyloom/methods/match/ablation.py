"""The room's study: every block against none on every base, over paired seeds, with the controls beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from polyloom.core.result import Cell, Result, Scalar, Series, Table
from polyloom.methods.match.config import MatchStudyConfig
from polyloom.methods.match.data import Pairs, leaks
from polyloom.methods.match.explain import block_weights
from polyloom.methods.match.index import exact_search
from polyloom.methods.match.loading import load_splits
from polyloom.methods.match.method import FeatureAttention, SelectiveFeatureAttention
from polyloom.methods.match.models import SIAMESE, Matcher, num_parameters
from polyloom.methods.match.proofs import as_scalars, proof_scalars
from polyloom.methods.match.scores import Difference, compare_correlations, compare_runs, planted_null
from polyloom.methods.match.training import Recipe, Trained, fit, is_positive, main_score, targets
from polyloom.metrics.agreement import mcnemar_p
from polyloom.metrics.statistics import holm, t_interval
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

NAMES = {
    "none": "no block",
    "fa": "FA",
    "sfa": "SFA",
    "mlp": "MLP of FA's size",
    "shuffled": "FA, gate shuffled",
    "equal": "SFA, no selection",
    "reference": "SFA, released arithmetic",
    "senet": "SENet",
    "sknet": "SKNet",
}
FLOWS = ("sfa", "equal", "reference")
NUM_SEARCH = 3
NUM_EPOCHS = 8
NUM_NULL = 500  # 100 trials are too few to tell 92 from 97


@dataclass(frozen=True)
class Plan:
    """What a profile trains: bases with their blocks and number of seeds."""

    bases: dict[str, tuple[tuple[str, ...], int]]
    epochs: dict[str, int]
    num_test: int


PLANS = {
    "quick": Plan(
        {"bag": (("none", "fa", "mlp", "shuffled"), 5), "gru": (("none", "fa", "sfa"), 3)}, {"bag": 6, "gru": 2}, 800
    ),
    "full": Plan(
        dict.fromkeys(("bag", "cnn", "gru", "esim", "re2"), (("none", "fa", "sfa", "mlp", "shuffled", "equal"), 5)),
        {},
        2000,
    ),
}


def plan_of(config: MatchStudyConfig) -> Plan:
    """Return what to train: the profile's plan with the user's choices in it."""
    plan = PLANS[config.profile]
    full = PLANS["full"].bases
    chosen: list[str] = [*config.bases] if config.bases else list(plan.bases)
    bases: dict[str, tuple[tuple[str, ...], int]] = {}
    for base in chosen:
        blocks, seeds = plan.bases.get(base) or full.get(base) or full["bag"]
        if config.blocks:
            blocks = ("none", *(block for block in dict.fromkeys(config.blocks) if block != "none"))
        bases[base] = (blocks, config.num_seeds or seeds)
    epochs = {base: config.epochs or plan.epochs.get(base, NUM_EPOCHS) for base in bases}
    return Plan(bases, epochs, plan.num_test)


def _recipe(base: str, block: str, plan: Plan, is_world: bool) -> Recipe:
    size = {"width": 64, "hidden": 32, "floor": 32} if is_world else {}
    return Recipe(base=base, block=block, epochs=plan.epochs.get(base, NUM_EPOCHS), **size)  # type: ignore[arg-type]


class BranchGradients:
    """Norms of the gradients of SFA's branches by epoch: does selection steady them, as the paper says?"""

    def __init__(self) -> None:
        self.norms: dict[int, list[list[float]]] = {}

    def __call__(self, epoch: int, model: Matcher) -> None:
        """Take a step's gradients in."""
        block = model.the_block
        assert isinstance(block, SelectiveFeatureAttention)
        grads = [[p.grad for p in branch.parameters() if p.grad is not None] for branch in block.branches]
        self.norms.setdefault(epoch, []).append([float(torch.nn.utils.get_total_norm(one)) for one in grads])

    def means(self) -> list[list[float]]:
        """Return the mean norm of each branch in each epoch, and behind them the norms' spread within the epoch."""
        found = []
        for rows in self.norms.values():
            norms = np.asarray(rows)
            spread = norms.std(0) / np.maximum(norms.mean(0), 1e-12)
            found.append([*map(float, norms.mean(0)), float(spread.mean())])
        return found


def run_one(recipe: Recipe, splits: dict[str, Pairs], seed: int) -> dict[str, Any]:
    """Train once and return what the analysis needs of the test pairs: right or wrong, or the predictions."""
    flow = BranchGradients()
    trained = fit(
        splits["train"], splits["valid"], recipe, seed, after_backward=flow if recipe.block in FLOWS else None
    )
    test = splits["test"]
    predicted = trained.predict(test.items)
    value: dict[str, Any] = {"score": main_score(trained, test, predicted), "seconds": trained.seconds}
    value["valid"] = max(epoch["valid"] for epoch in trained.curve)
    value["parameters"] = num_parameters(trained.model)
    if trained.loss == "softmax":
        given = predicted.argmax(1)
        wanted = [trained.classes.index(pair.label) for pair in test.items]
        value["right"] = "".join(str(int(a == b)) for a, b in zip(given, wanted, strict=True))
    else:
        value["predicted"] = [round(float(x), 6) for x in predicted]
    if recipe.block in FLOWS:
        value["gradients"] = flow.means()
    if recipe.block == "fa" and recipe.base in SIAMESE:
        value["gate"] = _gate_report(trained, test)
    return value


@torch.inference_mode()
def _gate_report(trained: Trained, test: Pairs) -> list[float]:
    """Return the mean, the spread over features and the spread over texts of FA's gate on some test texts."""
    block = trained.model.block
    assert isinstance(block, FeatureAttention)
    gate = block_weights(trained, block, trained.number(test.texts()[:400]))
    return [float(gate.mean()), float(gate.mean(0).std()), float(gate.std(0).mean())]


Runs = dict[str, dict[str, list[dict[str, Any]]]]


def run_study(config: MatchStudyConfig, run: Run) -> Result:
    """Compare the blocks on each base.

    Args:
        config: the data, bases, blocks and seeds; the embedded world by default.
        run: stores each training as a step.

    Returns:
        Score of each base and block, differences to no block with intervals over seeds and test items, the blocks'
        proofs, the planted null.

    Raises:
        UserError: the data cannot be read, or hold one class alone.
    """
    pin_threads()
    plan = plan_of(config)
    splits = load_splits(config, plan.num_test, valid=config.valid, test=config.test)
    jobs = [
        (base, block, seed) for base, (blocks, seeds) in plan.bases.items() for seed in range(seeds) for block in blocks
    ]
    runs: Runs = {base: {block: [] for block in blocks} for base, (blocks, _) in plan.bases.items()}
    with run.progress("match", len(jobs) + 2) as advance:
        proofs = run.once("proofs", lambda: proof_scalars(config.seed))
        advance(1)
        for base, block, seed in jobs:
            recipe = _recipe(base, block, plan, config.data == "world")
            step = f"{base} {block} seed {seed} of {config.seed}"
            value = run.once(step, partial(run_one, recipe, splits, config.seed * 1000 + seed))
            runs[base][block].append(value)
            run.log(step=step, score=value["score"], seconds=value["seconds"])
            advance(1)
        live = run.once("search", lambda: _live_search(plan, config, splits))
        advance(1)
    return _result(config, run, plan, splits, runs, proofs, live)


def _live_search(plan: Plan, config: MatchStudyConfig, splits: dict[str, Pairs]) -> list[list[Any]]:
    """Search texts of the test pairs with a bag and FA: each query with the texts that come out nearest."""
    if splits["train"].task != "classes":
        return []
    if not any(is_positive(name) for name in splits["train"].classes()):
        return []
    recipe = replace(_recipe("bag", "fa", plan, config.data == "world"), loss="contrastive", epochs=3)
    trained = fit(splits["train"], splits["valid"], recipe, config.seed)
    right = [pair for pair in splits["test"].items if is_positive(pair.label) and len(pair.first) > 25][:200]
    if not right:
        return []
    texts = list(dict.fromkeys(pair.second for pair in right))
    queries = right[:NUM_SEARCH]
    found, scores = exact_search(
        trained.vectors(texts), trained.vectors([pair.first for pair in queries]), min(3, len(texts))
    )
    return [
        [pair.first, rank + 1, texts[row], float(score), texts[row] == pair.second]
        for pair, rows, line in zip(queries, found, scores, strict=True)
        for rank, (row, score) in enumerate(zip(rows, line, strict=True))
    ]


def differences(runs: Runs, splits: dict[str, Pairs]) -> dict[tuple[str, str], Difference]:
    """Compare each block with none on its base, and FA and SFA with their controls."""
    test = splits["test"]
    found = {}
    for base, blocks in runs.items():
        rivals = [(block, "none") for block in blocks if block != "none"]
        rivals += [("fa", other) for other in ("mlp", "shuffled") if {"fa", other} <= blocks.keys()]
        rivals += [("sfa", "equal")] if {"sfa", "equal"} <= blocks.keys() else []
        for block, other in rivals:
            a, b = blocks[block], blocks[other]
            if "right" in a[0]:
                pair = ([[int(c) for c in item["right"]] for item in side] for side in (a, b))
                difference = compare_runs(*pair)
            else:
                wanted = targets(test, [], "cosent").numpy()
                difference = compare_correlations(
                    [item["predicted"] for item in a], [item["predicted"] for item in b], wanted
                )
            found[base, f"{block} - {other}"] = difference
    return found


def _result(
    config: MatchStudyConfig,
    run: Run,
    plan: Plan,
    splits: dict[str, Pairs],
    runs: Runs,
    proofs: dict[str, float],
    live: list[list[Any]],
) -> Result:
    found = differences(runs, splits)
    corrected = dict(zip(found, holm([difference.p for difference in found.values()]), strict=True))
    scalars = _score_scalars(runs) | _difference_scalars(found) | as_scalars(proofs)
    first = next(iter(runs.values()))
    if "right" in first["none"][0]:
        chance = np.mean([[int(c) for c in item["right"]] for item in first["none"]], 0) * 0.9 + 0.05
        num_seeds = max(2, len(first["none"]))
        count = partial(planted_null, chance, num_seeds, num_trials=NUM_NULL, seed=config.seed)
        null = run.once(f"null {num_seeds}", count)
        scalars["null_not_distinguishable"] = Scalar(value=100 * null / NUM_NULL, unit="of 100")
    seconds = sum(item["seconds"] for blocks in runs.values() for items in blocks.values() for item in items)
    scalars["training_cpu_seconds"] = Scalar(value=seconds, unit="CPU s")
    same, shared = leaks(splits["train"], splits["test"])
    verdicts = [_answer(found, config.profile), *_more(found, scalars)]
    limitations = [
        f"{len(splits['train'].items)} training, {len(splits['valid'].items)} validation and "
        f"{len(splits['test'].items)} test pairs ({splits['test'].layout}); {same} test pairs stand in training too, "
        f"{shared} share a text with it.",
        "A difference counts where the intervals over seeds and over test items both leave 0 out; the table's last "
        "column is the p-value over seeds after Holm's correction for all comparisons.",
        "The authors' tables were not at hand: these figures are of this machine and are compared with none of theirs.",
        *splits["test"].notes,
    ]
    if config.profile == "quick":
        limitations.append("quick: few seeds and small models; it can leave the question open. Use --profile full.")
    return run.result(
        scalars=scalars,
        tables=_tables(runs, found, corrected, live),
        series=_series(runs, found),
        verdicts=verdicts,
        limitations=limitations,
    )


def _score_scalars(runs: Runs) -> dict[str, Scalar]:
    """Return the test score of each base and block, and of the one that is best on the validation pairs."""
    scalars, valid = {}, {}
    for base, blocks in runs.items():
        for block, items in blocks.items():
            interval = t_interval([100 * item["score"] for item in items])
            scalars[f"{base}_{block}"] = Scalar.of(interval, "points")
            valid[f"{base}_{block}"] = float(np.mean([item["valid"] for item in items]))
    best = max(valid, key=lambda name: valid[name])
    return scalars | {"best_light_model": scalars[best], "best_light_model_name": Scalar(value=best)}


def _difference_scalars(found: dict[tuple[str, str], Difference]) -> dict[str, Scalar]:
    scalars = {}
    for (base, name), difference in found.items():
        block, _, other = name.partition(" - ")
        key = f"{base}_{block}_minus_{other}"
        d = difference
        scalars[key] = Scalar(value=100 * d.value, low=100 * d.items_low, high=100 * d.items_high, unit="points")
        scalars[f"{key}_over_seeds"] = Scalar(
            value=100 * d.value, low=100 * d.seeds_low, high=100 * d.seeds_high, unit="points"
        )
        scalars[f"{key}_word"] = Scalar(value=d.word)
    return scalars


def _told(difference: Difference) -> str:
    low = min(difference.items_low, difference.seeds_low)
    high = max(difference.items_high, difference.seeds_high)
    return f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _answer(found: dict[tuple[str, str], Difference], profile: str) -> str:
    """Return the room's answer in one sentence."""
    helped = {key: d for key, d in found.items() if key[1] in ("fa - none", "sfa - none")}
    better = [(base, name, d) for (base, name), d in helped.items() if d.word == "better"]
    if not better:
        told = "; ".join(
            f"{name.split()[0].upper()} on {base} {_told(d)}, {d.word}" for (base, name), d in helped.items()
        )
        more = " Run --profile full for more seeds." if profile == "quick" else ""
        return f"Attention over features did not help: {told}.{more}"
    base, name, d = max(better, key=lambda item: item[2].value)
    block = name.split()[0]
    control = found.get((base, f"{block} - {'mlp' if block == 'fa' else 'equal'}"))
    held = ""
    if control is not None:
        what = "an MLP of its size" if block == "fa" else "equal weights"
        held = f"; against {what} {_told(control)}, {control.word}"
    others = [f"{n.split()[0].upper()} on {b}" for (b, n), x in helped.items() if x.word != "better"]
    without = f" No help seen: {', '.join(others)}." if others else ""
    return f"{block.upper()} lifts {base} by {_told(d)}{held}.{without}"


def _more(found: dict[tuple[str, str], Difference], scalars: dict[str, Scalar]) -> list[str]:
    lines = []
    for (base, name), d in found.items():
        if name == "fa - shuffled":
            lines.append(f"On {base}, FA against its own gates shuffled over the features: {_told(d)}, {d.word}.")
    for (base, name), d in found.items():
        if name == "sfa - none":
            lines.append(f"SFA on {base}: {_told(d)}, {d.word}.")
    return lines[:5]


def _tables(
    runs: Runs,
    found: dict[tuple[str, str], Difference],
    corrected: dict[tuple[str, str], float],
    live: list[list[Any]],
) -> dict[str, Table]:
    tables = {"differences": _difference_table(runs, found, corrected), "scores": _score_table(runs)}
    if live:
        tables["search"] = Table(
            columns=["query", "rank", "found", "cosine", "its partner"], rows=live, title="A search among test texts"
        )
    gates: list[list[Cell]] = [
        [base, *(float(x) for x in np.mean([item["gate"] for item in blocks["fa"]], 0))]
        for base, blocks in runs.items()
        if "fa" in blocks and "gate" in blocks["fa"][0]
    ]
    if gates:
        tables["gates"] = Table(
            columns=["base", "mean gate", "spread over features", "spread over texts"], rows=gates, title="FA's gate e"
        )
    return tables | _gradient_table(runs)


def _score_table(runs: Runs) -> Table:
    columns = ["base", "block", "score", "low", "high", "seeds", "parameters beside embeddings", "CPU s a training"]
    rows: list[list[Cell]] = []
    for base, blocks in runs.items():
        for block, items in blocks.items():
            interval = t_interval([100 * item["score"] for item in items])
            sizes = [len(items), items[0]["parameters"], float(np.mean([item["seconds"] for item in items]))]
            rows.append([base, NAMES[block], interval.value, interval.low, interval.high, *sizes])
    return Table(columns=columns, rows=rows, title="Test score: accuracy, or Spearman's correlation x 100")


def _difference_table(
    runs: Runs, found: dict[tuple[str, str], Difference], corrected: dict[tuple[str, str], float]
) -> Table:
    columns = ["base", "blocks", "difference", "items low", "items high", "seeds low", "seeds high", "positive"]
    rows: list[list[Cell]] = [
        [
            base,
            name,
            *(100 * x for x in (d.value, d.items_low, d.items_high, d.seeds_low, d.seeds_high)),
            f"{d.num_positive} of {d.num_seeds}",
            float(corrected[base, name]),
            _mcnemar(runs[base], *name.split(" - ")),
            d.word,
        ]
        for (base, name), d in found.items()
    ]
    columns += ["p (Holm)", "p (McNemar, votes of the seeds)", "word"]
    return Table(columns=columns, rows=rows, title="Differences in points, paired by seed and item")


def _mcnemar(blocks: dict[str, list[dict[str, Any]]], block: str, other: str) -> float | None:
    """Return McNemar's exact p-value of two blocks, the seeds of each voting on every test pair; None for scores."""
    if "right" not in blocks[block][0]:
        return None
    votes = [np.mean([[int(c) for c in item["right"]] for item in blocks[name]], 0) > 0.5 for name in (block, other)]
    return mcnemar_p(*votes)


def _gradient_table(runs: Runs) -> dict[str, Table]:
    flows: list[list[Cell]] = []
    for base, blocks in runs.items():
        for block in blocks:
            if "gradients" in blocks[block][0]:
                # Trainings may stop early: epochs that all of them had.
                size = min(len(item["gradients"]) for item in blocks[block])
                mean = np.mean([item["gradients"][:size] for item in blocks[block]], 0)
                flows += [[base, NAMES[block], epoch + 1, *map(float, row)] for epoch, row in enumerate(mean)]
    if not flows:
        return {}
    names = [f"branch {n + 1}" for n in range(len(flows[0]) - 4)]
    columns = ["base", "block", "epoch", *names, "spread within the epoch"]
    title = "Gradient norms of SFA's branches, mean of an epoch's steps"
    return {"gradients": Table(columns=columns, rows=flows, title=title)}


def _series(runs: Runs, found: dict[tuple[str, str], Difference]) -> dict[str, Series]:
    series = {}
    wanted: Callable[[str], bool] = lambda name: name.endswith("- none")  # noqa: E731
    for base in runs:
        kept = [(name.split()[0], d) for (b, name), d in found.items() if b == base and wanted(name)]
        if kept:
            series[f"difference {base}"] = Series(
                x=list(range(len(kept))),
                y=[100 * d.value for _, d in kept],
                low=[100 * min(d.items_low, d.seeds_low) for _, d in kept],
                high=[100 * max(d.items_high, d.seeds_high) for _, d in kept],
                x_names=[NAMES[block] for block, _ in kept],
                y_label="points above no block",
                group=f"what a block adds to {base}",
                kind="bar",
            )
    return series
