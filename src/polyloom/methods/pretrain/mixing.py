"""The verb `mixture`: how each loss falls with the shares, on proxies or in one's own runs, and what to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import write_text
from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.core.seeding import numpy_generator
from polyloom.methods.pretrain.config import MixtureConfig
from polyloom.methods.pretrain.method import Scaling
from polyloom.methods.pretrain.mixture_laws import Floats, Proposal, propose
from polyloom.methods.pretrain.proxies import BASE_WIDTH, Family, as_bytes, held_out_loss, make_member, settings
from polyloom.methods.pretrain.samples import gather, read_cells
from polyloom.methods.pretrain.tables import numbers, read_rows, wrong_columns
from polyloom.metrics.statistics import paired_t_interval
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run
from polyloom.training.loop import train
from polyloom.training.stream import SampleStream

LEAST_SHARE = 0.02
WORLD_CHARACTERS = 100_000


@dataclass(frozen=True)
class Runs:
    """Runs of one model under several mixtures; the first one is the reference.

    `names` of the shares, `domains` that the losses are of, `shares` [runs, shares], `losses` [runs, domains].
    """

    names: list[str]
    domains: list[str]
    shares: Floats
    losses: Floats


def run_mixture(config: MixtureConfig, run: Run) -> Result:
    """Fit losses against shares and propose shares.

    Args:
        config: a CSV of one's own runs, or text to train proxies on.
        run: keeps each proxy's losses.

    Returns:
        The shares proposed, the predicted fall of the loss with its band, and where proxies are trained the fall that
        was measured with new seeds; `resolved` says whether the proposal may be believed.

    Raises:
        UserError: too few mixtures, a table without the columns, text of one source alone.
    """
    pin_threads()
    families = {} if config.table else _families(config)
    runs = read_table(config.table) if config.table else _trained(config, run, families)
    unknown = sorted(config.importance.keys() - set(runs.domains))
    if unknown:
        hint = f"The losses are of {', '.join(runs.domains)}."
        raise UserError(f"it names {unknown[0]!r}, of which there is no loss.", where="importance", hint=hint)
    importance = [config.importance.get(name, 0.0 if config.importance else 1.0) for name in runs.domains]
    found = propose(runs.shares, runs.losses, runs.shares[0], importance, config.seed)
    measured = [] if config.table else _confirmed(config, run, families, runs, found, importance)
    return _as_result(run, runs, found, measured)


def read_table(path: Path) -> Runs:
    """Read runs from a CSV with columns `weight:NAME` and `loss:NAME`; weights of a row are divided by their sum.

    Raises:
        UserError: no such columns, or a value that is no number.
    """
    rows = read_rows(path)
    columns = list(rows[0]) if rows else []
    names = [column.removeprefix("weight:") for column in columns if column.startswith("weight:")]
    domains = [column.removeprefix("loss:") for column in columns if column.startswith("loss:")]
    if len(names) < 2 or not domains:
        raise wrong_columns(path, rows, "It needs two or more columns weight:NAME, and loss:NAME for each loss.")
    wanted = [f"weight:{name}" for name in names] + [f"loss:{name}" for name in domains]
    table = numbers(path, rows, wanted, "a weight or a loss")
    shares = table[:, : len(names)]
    for line, row in enumerate(shares, start=2):
        if row.min() < 0 or not row.sum() > 0:
            raise UserError("its weights are not above 0.", where=f"{path}:{line}")
    return Runs(names, domains, shares / shares.sum(axis=1, keepdims=True), table[:, len(names) :])


def _families(config: MixtureConfig) -> dict[str, Family]:
    """Return text to train on and to judge by of each source: a language of the world, or a domain in a language."""
    if config.data:
        samples = gather(read_cells(config.data), 4_000_000, 100_000)
        cells = sorted(samples.train.keys() & samples.held_out.keys())
        texts = {f"{d}/{lang}": (samples.train[d, lang], samples.held_out[d, lang]) for d, lang in cells}
    else:
        from polyloom.data import world

        train_texts = world.text_corpus(config.languages, WORLD_CHARACTERS, config.seed, "train")
        held_out = world.text_corpus(config.languages, WORLD_CHARACTERS // 10, config.seed, "valid")
        texts = {name: (train_texts[name], held_out[name]) for name in config.languages}
    found = {name: Family(as_bytes([one]), as_bytes([two])) for name, (one, two) in texts.items()}
    found = {n: f for n, f in found.items() if min(len(f.train), len(f.held_out)) > f.window_tokens}
    if len(found) < 2:
        raise UserError("a mixture needs two sources with text to hold back.", where="--data", hint="Give more text.")
    return found


def mixtures(natural: Floats, count: int, seed: int) -> Floats:
    """Return shares of runs [count, sources]: the natural ones, one that leans to each source, and random ones.

    Args:
        natural: shares by size.
        count: runs.
        seed: of the random ones.
    """
    size = len(natural)
    leaning = (1 + np.eye(size) * size) / (2 * size)
    others = numpy_generator(seed, "mixtures").dirichlet(np.ones(size), max(0, count - 1 - size))
    shares = np.concatenate([natural[None], leaning, others])[:count]
    shares = np.maximum(shares, LEAST_SHARE)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _trained(config: MixtureConfig, run: Run, families: dict[str, Family]) -> Runs:
    sizes = np.array([float(len(family.train)) for family in families.values()])
    least = len(families) + 2
    if config.num_mixtures < least:
        what = f"{config.num_mixtures} mixtures are too few for {len(families)} sources."
        raise UserError(what, where="--num-mixtures", hint=f"Give at least {least}.")
    shares = mixtures(sizes / sizes.sum(), config.num_mixtures, config.seed)
    with run.progress("mixture: runs", len(shares)) as advance:
        losses = []
        for row in shares:
            losses.append(_member(config, run, families, row, config.seed))
            advance(1)
    return Runs(list(families), list(families), shares, np.array(losses))


def _member(config: MixtureConfig, run: Run, families: dict[str, Family], shares: Floats, seed: int) -> list[float]:
    """Train a proxy under a mixture once; return its held-out loss by source."""
    key = f"mixture {[round(float(s), 9) for s in shares]} {config.width} {config.steps} {config.lr} {seed}"
    losses: list[float] = run.once(key, lambda: source_losses(config, families, shares, seed))
    return losses


def source_losses(config: MixtureConfig, families: dict[str, Family], shares: Floats, seed: int) -> list[float]:
    """Train a proxy under a mixture and return its held-out loss by source, in nats a byte.

    Raises:
        UserError: it diverged.
    """
    one = next(iter(families.values()))
    scaling = Scaling(lr=config.lr, matrix_lr=config.lr, base_width=BASE_WIDTH)
    model, groups = make_member(one, config.width, scaling, seed)
    stream = SampleStream(
        {name: family.train.numpy() for name, family in families.items()},
        dict(zip(families, shares.tolist(), strict=True)),
        window_tokens=one.window_tokens,
        batch_size=one.batch_size,
        seed=seed,
    )
    try:
        train(model, stream, settings(config.steps, seed, one.batch_size), groups=groups)
    except PolyloomError as error:
        raise UserError(f"a proxy diverged ({error}).", where="--lr", hint="Lower it.") from error
    return [held_out_loss(family, model) for family in families.values()]


def _confirmed(
    config: MixtureConfig,
    run: Run,
    families: dict[str, Family],
    runs: Runs,
    found: Proposal,
    importance: Sequence[float],
) -> list[tuple[float, float]]:
    """Train reference and proposal with new seeds; return the weighted loss of both by seed."""
    v = np.asarray(importance) / sum(importance)
    pairs = []
    seeds = range(config.seed + 1, config.seed + 1 + config.num_seeds)
    with run.progress("mixture: new seeds", len(seeds)) as advance:
        for seed in seeds:
            both = [_member(config, run, families, w, seed) for w in (runs.shares[0], found.shares)]
            advance(1)
            pairs.append((float(v @ np.array(both[0])), float(v @ np.array(both[1]))))
    return pairs


def _as_result(run: Run, runs: Runs, found: Proposal, measured: Sequence[tuple[float, float]]) -> Result:
    shares = dict(zip(runs.names, found.shares.tolist(), strict=True))
    doubts = list(found.doubts)
    scalars = {
        "predicted_gain": Scalar(value=found.gain, low=found.low, high=found.high, unit="nats"),
        "left_out_error": Scalar(value=found.left_out_error, unit="of the mean's"),
        "shuffled_p": Scalar(value=found.p),
        "num_mixtures": Scalar(value=len(runs.shares)),
    }
    if len(measured) > 1:
        interval = paired_t_interval(*np.array(measured).T)
        scalars["measured_gain"] = Scalar.of(interval, "nats")
        if interval.low <= 0:
            doubts.append(f"new seeds do not confirm it ({interval.low:.4f} to {interval.high:.4f})")
    scalars["resolved"] = Scalar(value=not doubts)
    words = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    verdict = (
        f"The mixture law is not resolved: {'; '.join(doubts)}. Keep the shares of the first run."
        if doubts
        else f"Use {words}: the loss falls by {found.gain:.4f} nats (5-95 %: {found.low:.4f} to {found.high:.4f})."
    )
    artifacts = {}
    if not doubts:
        text = yaml.safe_dump({"mixture": {name: round(share, 6) for name, share in shares.items()}}, sort_keys=False)
        write_text(run.artifact("mixture.yaml"), text)
        about = "the shares, for pretrain train --config"
        artifacts["mixture"] = Artifact(path="artifacts/mixture.yaml", media_type="text/yaml", description=about)
    return run.result(
        scalars=scalars,
        tables=_tables(runs, found),
        series=_points(runs, found),
        artifacts=artifacts,
        verdicts=[verdict],
        limitations=[
            "A law is of one model size, number of steps and set of sources; shares stay inside the runs' range.",
            "The band covers the scatter of the runs around the law, not what a larger model would prefer.",
        ],
    )


def _tables(runs: Runs, found: Proposal) -> dict[str, Table]:
    low, high = runs.shares.min(axis=0).tolist(), runs.shares.max(axis=0).tolist()
    reference, proposed = runs.shares[0].tolist(), found.shares.tolist()
    rows: list[list[Cell]] = [list(row) for row in zip(runs.names, reference, proposed, low, high, strict=True)]
    before, after = found.law.losses(runs.shares[0]), found.law.losses(found.shares)
    effects: list[list[Cell]] = [
        [name, float(before[i]), float(after[i]), float(found.law.c[i]), *found.law.t[i].tolist()]
        for i, name in enumerate(runs.domains)
    ]
    return {
        "shares": Table(columns=["source", "first run", "proposed", "least tried", "most tried"], rows=rows,
                        title="Shares"),
        "laws": Table(columns=["loss of", "at the first run's shares", "at the proposed", "c",
                               *(f"t {name}" for name in runs.names)], rows=effects, title="L = c + exp(t . w)"),
    }  # fmt: skip


def _points(runs: Runs, found: Proposal) -> dict[str, Series]:
    fitted = found.law.losses(runs.shares)
    return {
        f"loss of {name}": Series(
            x=fitted[:, i].tolist(), y=runs.losses[:, i].tolist(), kind="scatter", x_label="by the law, in nats",
            y_label="measured, in nats", group="Losses of the runs",
        )
        for i, name in enumerate(runs.domains)
    }  # fmt: skip
