"""The verb `transfer`: suffixes found on each of the owner's models, replayed on all of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from polyloom.core.errors import UserError
from polyloom.core.result import Result, Scalar, Table
from polyloom.generation.chat import ask, complete_all
from polyloom.generation.endpoints import connect
from polyloom.methods.redteam.attack import LIMITATIONS, bars, key_of
from polyloom.methods.redteam.config import TransferConfig
from polyloom.methods.redteam.evaluation import Judged, as_responses, attack_prompts, judge_responses, rate
from polyloom.methods.redteam.sandbox import LIGHT, train_victim
from polyloom.methods.redteam.workbench import (
    Baseline,
    Target,
    ask_and_judge,
    check_scope,
    embedded_target,
    find_suffix,
    keyword_tokens,
    make_objective,
    measure_baseline,
    open_target,
    trained,
)
from polyloom.runs.folder import Run


def check_endpoint(endpoint: str, owned: Sequence[str]) -> None:
    """Allow replay on a declared loopback or private address alone.

    Raises:
        UserError: a public host, a name that is no address, or one that is not declared.
    """
    host = urlsplit(endpoint).hostname or ""
    try:
        private = host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        private = False
    if not private:
        raise UserError(
            "is no loopback or private address: suffixes are replayed on your own machines alone.",
            where=endpoint,
            hint="Name it by a private address, such as http://127.0.0.1:8000/v1#name.",
        )
    if not any(endpoint.startswith(one) for one in owned if one):
        raise UserError("is not declared as yours.", where=endpoint, hint="List it under --owned-endpoints.")


def run_transfer(config: TransferConfig, run: Run) -> Result:
    """Search on each of the owner's models and replay on all of them: rows found on, columns tried on.

    Raises:
        UserError: a scope rule, a public endpoint, or files that cannot be used.
    """
    for endpoint in config.endpoints:
        check_endpoint(endpoint, config.owned_endpoints)
    for model in config.models or [config.model]:
        check_scope(model, config.authorised_by)
    targets = _transfer_targets(config, run)
    objective = make_objective("dsn", config, keyword_tokens(targets[0]), config.alphas[0] if config.alphas else 1.0)
    found = {target.victim.name: find_suffix(target, objective, config, run) for target in targets}
    columns: dict[str, Callable[[str], Judged]] = {}
    for target in targets:
        columns[target.victim.name] = partial(_replay, target)
    for endpoint in config.endpoints:
        columns[endpoint] = partial(_replay_on, targets[0], endpoint)
    matrix = {row: {name: ask(one.suffixes[0]) for name, ask in columns.items()} for row, one in found.items()}
    clean = {target.victim.name: measure_baseline(target) for target in targets}
    judges = list(targets[0].judges)
    rows: list[list[str | int | float | bool | None]] = [
        [judge.name, row, *(rate(cell.successes(judge.name)).value for cell in cells.values())]
        for judge in judges
        for row, cells in matrix.items()
    ]
    rows.append(["keywords", "(no suffix)", *(_plain(clean, name) for name in columns)])
    rows.append(
        ["benign answered", "(no suffix)", *(rate(clean[n].answered).value if n in clean else None for n in columns)]
    )
    scalars = {
        f"asr_keywords_{key_of(row)}_on_{key_of(name)}": Scalar.of(rate(cell.successes("keywords")))
        for row, cells in matrix.items()
        for name, cell in cells.items()
        if name in found
    }
    off = [scalars[f"asr_keywords_{key_of(a)}_on_{key_of(b)}"].value for a in found for b in found if a != b]
    own = [scalars[f"asr_keywords_{key_of(a)}_on_{key_of(a)}"].value for a in found]
    return run.result(
        scalars=scalars | {"mean_own": Scalar(value=_mean(own)), "mean_transferred": Scalar(value=_mean(off))},
        tables={
            "transfer": Table(columns=["judge", "found on", *columns], rows=rows, title="Transfer among your models")
        },
        series={
            f"found on {row}": bars(
                list(cells), [rate(c.successes("keywords")) for c in cells.values()], "success rate", "transfer"
            )
            for row, cells in matrix.items()
        },
        verdicts=[
            f"Suffixes open {_mean(own):.0%} on the model they were found on and {_mean(off):.0%} on the others."
        ],
        limitations=[*targets[0].notes, "All models get the same text; the diagonal is white-box.", *LIMITATIONS[:2]],
    )


def _mean(values: Sequence[object]) -> float:
    numbers = [value for value in values if isinstance(value, float)]
    return sum(numbers) / len(numbers) if numbers else 0.0


def _plain(clean: dict[str, Baseline], name: str) -> float | None:
    return rate(clean[name].sealed.successes("keywords")).value if name in clean else None


def _transfer_targets(config: TransferConfig, run: Run) -> list[Target]:
    if not config.models:
        first = embedded_target(config.seed, run, config.train_steps, config.num_train, config.num_test)
        others = [_other_victim(first, run, config, k) for k in (1, 2)]
        return [first, *others]
    opened = [open_target(config.model_copy(update={"model": model}), run) for model in config.models]
    names = [target.victim.name for target in opened]
    if len(set(names)) < len(names):
        opened = [t.with_victim(replace(t.victim, name=f"{t.victim.name}-{i}")) for i, t in enumerate(opened)]
    return opened


def _other_victim(first: Target, run: Run, config: TransferConfig, number: int) -> Target:
    """Train another victim on the same questions: other weights, and for the second one more noise."""
    assert first.sandbox is not None
    sandbox, seed = first.sandbox, config.seed + number
    recipe = replace(LIGHT, steps=config.train_steps, noise=LIGHT.noise * number)
    name = f"light {number + 1}" if number == 1 else "more noise"

    def make() -> object:
        with run.progress(f"train {name}", recipe.steps) as advance:
            return train_victim(sandbox, recipe, seed, on_step=advance, check_stop=run.check_stop)

    model = trained(run, f"other-{number}-{config.seed}", make)
    return first.with_victim(replace(first.victim, model=model, name=name))


def _replay(target: Target, suffix: str) -> Judged:
    return ask_and_judge(target, target.test, [suffix])


def _replay_on(target: Target, endpoint: str, suffix: str) -> Judged:
    """Send the prompts to the owner's server; what it does not answer is empty."""
    requests = [ask(text, max_tokens=target.victim.max_new_tokens) for text in attack_prompts(target.test, suffix)]
    answers = [reply.text if reply.ok else "" for reply in complete_all(connect(endpoint), requests)]
    return judge_responses(target.judges, as_responses(target.test, answers), target.members)
