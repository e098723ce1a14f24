"""Benchmarks of the lm-evaluation-harness through its Python API, on the checkpoint that is measured."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polyloom.core.errors import MissingExtra, UserError, closest
from polyloom.core.result import Cell, Table
from polyloom.methods.pretrain.data_config import EvaluateConfig
from polyloom.metrics.statistics import wilson_interval

_NUM_RESAMPLES = 1000


def check_benchmarks(config: EvaluateConfig) -> None:
    """Refuse tasks that do not exist, before any model is loaded.

    Raises:
        MissingExtra: lm-evaluation-harness is not installed.
        UserError: an unknown task, or a folder that is absent.
    """
    if config.benchmark_path and not config.benchmark_path.is_dir():
        raise UserError("there is no such folder.", where=f"--benchmark-path {config.benchmark_path}")
    if config.benchmarks:
        _task_manager(config)


def _task_manager(config: EvaluateConfig) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtra("lm-evaluation-harness", extra="bench") from None
    wanted = set(config.benchmarks)
    if config.benchmark_path:
        own = TaskManager(include_path=str(config.benchmark_path), include_defaults=False)
        if wanted <= set(own.all_tasks):
            return own
    both = TaskManager(include_path=str(config.benchmark_path) if config.benchmark_path else None)
    for name in sorted(wanted - set(both.all_tasks)):
        hint = closest(name, both.all_tasks) if len(name) > 2 else ""
        raise UserError(f"there is no task {name!r}.", where="--benchmarks", hint=hint[:200])
    return both


def run_benchmarks(model: Any, tokenizer: Any, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Run the tasks on a model.

    Args:
        model: a causal model of transformers, on its device.
        tokenizer: its tokenizer.
        config: tasks, folder of task files, few-shot examples, limit.

    Returns:
        For each task and metric: task, metric, value, standard error (None where there is none), questions.

    Raises:
        UserError: a task that runs written code without --allow-code, or whose data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _task_manager(config)
    if config.allow_code:
        # What the metric of HumanEval asks for besides the harness's own switch.
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    with _quiet():
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size, backend="causal")
        try:
            found = simple_evaluate(
                model=wrapped,
                tasks=list(config.benchmarks),
                num_fewshot=config.num_fewshot,
                limit=config.limit,
                task_manager=manager,
                bootstrap_iters=_NUM_RESAMPLES,
                log_samples=False,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
                confirm_run_unsafe_code=config.allow_code,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _task_error(error) from error
    counts = found["n-samples"]
    rows = []
    for task, metrics in sorted(found["results"].items()):
        for key, value in metrics.items():
            name, _, filter_name = key.partition(",")
            if not filter_name or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            spread = metrics.get(f"{name}_stderr,{filter_name}")
            metric = name if filter_name == "none" else f"{name} ({filter_name})"
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "value": float(value),
                    "error": float(spread) if isinstance(spread, int | float) else None,
                    "questions": counts.get(task, {}).get("effective"),
                }
            )
    return rows


def _task_error(error: Exception) -> UserError:
    text = " ".join(str(error).split())[:300]
    if "unsafe" in text.lower():
        return UserError("a task runs the code that the model writes.", where="--benchmarks", hint="Add --allow-code.")
    hint = "Tasks of the harness fetch their data from the hub: allow the network once, or name local task files."
    return UserError(f"a task cannot be run: {text}.", where="--benchmarks", hint=hint)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's messages below warnings off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def benchmark_table(rows: dict[str, list[dict[str, Any]]]) -> Table:
    """Return the benchmarks of all models with 95 % intervals: Wilson's for shares, else by the standard error."""
    cells: list[list[Cell]] = []
    for model, found in rows.items():
        for row in found:
            low, high = _interval(row["value"], row["error"], row["questions"])
            cells.append([row["task"], row["metric"], model, row["value"], low, high, row["questions"]])
    columns = ["task", "metric", "model", "value", "low", "high", "questions"]
    return Table(columns=columns, rows=cells, title="Benchmarks (lm-evaluation-harness)")


def _interval(value: float, error: float | None, num_questions: int | None) -> tuple[float | None, float | None]:
    """Return a 95 % interval; a share of right answers gets Wilson's, which is no point when all are wrong."""
    right = value * (num_questions or 0)
    if num_questions and 0 <= value <= 1 and abs(right - round(right)) < 1e-6:
        share = wilson_interval(round(right), num_questions)
        return share.low, share.high
    return (value - 1.96 * error, value + 1.96 * error) if error is not None else (None, None)
