"""The verb `verify`: one process, eight processes, a killed and a resharded run beside each other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import sha256_file
from polyloom.core.result import Cell, Result, Scalar, Table
from polyloom.methods.pretrain.config import TrainVerbConfig, VerifyConfig
from polyloom.methods.pretrain.launch import last_logged_step, launch
from polyloom.methods.pretrain.training_data import prepare_data, reopen_data
from polyloom.models.device import pin_threads
from polyloom.runs.execute import find_verb
from polyloom.runs.folder import Run, create_run

LOSS_LIMIT, RESHARD_LIMIT = 1e-5, 5e-6
STEPS, SAVED_AT, COMPARED = 6, 3, 5
KILL_STEPS, KILL_AFTER = 24, 9
WORLD_SIZES = (1, 2, 4, 8)
DIGEST_STEPS = 60
LINE_SECONDS = 300


def run_verify(config: VerifyConfig, run: Run) -> Result:
    """Measure how far layouts, resharding, a kill and world sizes are from one process.

    Args:
        config: what to measure.
        run: keeps the small runs.

    Returns:
        Largest differences of losses over 5 steps, of the norm at step 1, after resharding; whether a killed run ends
        with the same weights, and whether the sample stream is the same at world sizes 1, 2, 4 and 8.

    Raises:
        UserError: a layout that is not three numbers, or does not divide the model.
        PolyloomError: a process failed.
    """
    pin_threads()
    chosen = [_parse(text) for text in config.layouts]
    base = _base_run(run, config.seed)
    digests = run.once("digests", lambda: _digests(base))
    scalars: dict[str, Scalar] = {"stream_is_the_same": Scalar(value=len(set(digests.values())) == 1)}
    rows: list[list[Cell]] = [["stream", name, None, digest[:16]] for name, digest in digests.items()]
    total = len(chosen) + 2 * config.reshard + 2 * config.kill + 1
    with run.progress("verify", total) as advance:
        reference = _losses(run, base, "one", {}) if chosen or config.reshard else []
        advance(1)
        for pp, dp, tp in chosen:
            name = f"pp{pp} x dp{dp} x tp{tp}"
            keys = {"pp": pp, "dp": dp, "tp": tp, "sequence_parallel": config.sequence_parallel and tp > 1}
            found = _losses(run, base, f"layout-{pp}{dp}{tp}", keys)
            loss, norm = _differences(reference, found)
            scalars[f"loss_difference_pp{pp}_dp{dp}_tp{tp}"] = Scalar(value=loss, unit="nats")
            scalars[f"norm_difference_pp{pp}_dp{dp}_tp{tp}"] = Scalar(value=norm, unit="relative")
            rows.append([name, "largest difference of 5 losses", loss, "ok" if loss <= LOSS_LIMIT else "too large"])
            advance(1)
        if config.reshard:
            loss = _reshard(run, base, reference)
            scalars["reshard_loss_difference"] = Scalar(value=loss, unit="nats")
            word = "ok" if loss <= RESHARD_LIMIT else "too large"
            rows.append(["saved with dp 2, resumed with tp 2", "largest difference of 3 losses", loss, word])
            advance(2)
        if config.kill:
            same = run.once("kill", lambda: _killed_equals_unbroken(run, base))
            scalars["killed_run_is_bitwise_equal"] = Scalar(value=same)
            rows.append(["SIGKILL, then resume", "weights", None, "equal" if same else "differ"])
            advance(2)
    table = Table(columns=["case", "what", "value", "outcome"], rows=rows, title="Beside one process")
    return run.result(scalars=scalars, tables={"verify": table}, verdicts=[_verdict(scalars)], limitations=LIMITATIONS)


LIMITATIONS = [
    "Processes of one machine over gloo on CPUs, in float32; NCCL and several machines take the same path, unmeasured."
]


def _verdict(scalars: dict[str, Scalar]) -> str:
    losses = [float(s.value or 0) for n, s in scalars.items() if n.startswith("loss_difference")]
    parts = [f"layouts differ from one process by at most {max(losses):.1e} nats"] if losses else []
    if "reshard_loss_difference" in scalars:
        parts.append(f"resharding by {float(scalars['reshard_loss_difference'].value or 0):.1e}")
    if "killed_run_is_bitwise_equal" in scalars:
        word = "equal bit for bit" if scalars["killed_run_is_bitwise_equal"].value else "NOT equal"
        parts.append(f"a killed and resumed run is {word}")
    parts.append(f"the sample stream is {'the same' if scalars['stream_is_the_same'].value else 'NOT the same'}")
    return f"{'; '.join(parts)} at world sizes 1, 2, 4 and 8.".capitalize()


def _parse(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise UserError(f"{text!r} is no layout.", where="--layouts", hint="Write pp x dp x tp, such as 2x2x2.")
    return int(match[1]), int(match[2]), int(match[3])


def _config(seed: int, **more: Any) -> TrainVerbConfig:
    return TrainVerbConfig.model_validate(
        {
            "seed": seed, "preset": "tiny-4x128", "width": 64, "languages": ["en", "de"], "vocab_size": 512,
            "window_tokens": 32, "batch_size": 8, "steps": STEPS, "warmup_steps": 2, "schedule": "constant", "lr": 5e-3,
            "precision": "float32", "log_every": 1, "checkpoint_every": SAVED_AT, **more,
        }
    )  # fmt: skip


def _base_run(run: Run, seed: int) -> Run:
    """Return the run whose tokenizer and token files the others copy."""
    base = _sub_run(run, "base", _config(seed))
    prepare_data(_config(seed), base)
    return base


def _sub_run(run: Run, name: str, config: TrainVerbConfig, base: Run | None = None) -> Run:
    root = run.artifact("runs")
    shutil.rmtree(root / name, ignore_errors=True)
    made = create_run(root, "pretrain", find_verb("pretrain.train")[1], config, name, parent=run.id)
    if base is not None:
        for part in ("tokens", "tokenizer"):
            shutil.copytree(base.artifact(part), made.artifact(part))
    return made


def _digests(base: Run) -> dict[str, str]:
    """Return the digest of the stream by number of processes, and of two stretches with a resume between."""
    assert isinstance(base.config, TrainVerbConfig)
    stream = reopen_data(base.config, base).stream
    steps = range(DIGEST_STEPS)
    found = {f"{size} processes": stream.digest([steps], size) for size in WORLD_SIZES}
    again = reopen_data(base.config, base).stream
    return found | {"resumed": again.digest([range(DIGEST_STEPS // 3), range(DIGEST_STEPS // 3, DIGEST_STEPS)], 4)}


def _losses(run: Run, base: Run, name: str, keys: dict[str, Any]) -> list[list[float]]:
    """Return loss and gradient norm of each step of a small run."""
    found: list[list[float]] = run.once(
        name, lambda: _trained(_sub_run(run, name, _config(run.config.seed, **keys), base))
    )
    return found


def _trained(sub: Run) -> list[list[float]]:
    from polyloom.methods.pretrain.recipe import make_recipe
    from polyloom.methods.pretrain.training import train_here

    assert isinstance(sub.config, TrainVerbConfig)
    data = reopen_data(sub.config, sub)
    recipe = make_recipe(sub.config, len(data.tokenizer))
    if recipe.layout.num_processes == 1:
        train_here(recipe, data, sub)
    else:
        launch(recipe.layout.num_processes, STEPS, sub)
    return [[line["loss"], line["gradient_norm"]] for line in sub.metrics() if line.get("loss") is not None]


def _differences(one: list[list[float]], two: list[list[float]]) -> tuple[float, float]:
    losses = max(abs(a[0] - b[0]) for a, b in zip(one[:COMPARED], two[:COMPARED], strict=True))
    return losses, abs(one[0][1] - two[0][1]) / one[0][1]


def _reshard(run: Run, base: Run, reference: list[list[float]]) -> float:
    """Save with dp 2 at step 3, go on with tp 2; return the largest difference of the losses after it."""
    _losses(run, base, "saved-dp2", {"dp": 2})
    saved = run.artifact("runs") / "saved-dp2" / "checkpoints" / f"step-{SAVED_AT:08d}"

    def resumed() -> list[list[float]]:
        sub = _sub_run(run, "resumed-tp2", _config(run.config.seed, tp=2), base)
        shutil.copytree(saved, sub.checkpoints / saved.name)
        return _trained(sub)

    found: list[list[float]] = run.once("resumed-tp2", resumed)
    if len(found) != STEPS - SAVED_AT:
        raise PolyloomError(f"the resumed run did {len(found)} steps instead of {STEPS - SAVED_AT}.")
    return max(abs(a[0] - b[0]) for a, b in zip(reference[SAVED_AT:], found, strict=True))


def _killed_equals_unbroken(run: Run, base: Run) -> bool:
    """Train twice in processes of their own, one of which is killed in the middle and resumed."""
    keys = {"steps": KILL_STEPS, "checkpoint_every": 4}
    unbroken = _sub_run(run, "unbroken", _config(run.config.seed, **keys), base)
    killed = _sub_run(run, "killed", _config(run.config.seed, **keys), base)
    _finish(_start(unbroken))
    process = _start(killed)
    _wait_for_step(killed, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (killed.artifact("model") / "config.json").exists():
        raise PolyloomError("the run ended before it was killed.", hint="Try again.")
    _finish(_start(killed))
    first, second = (sha256_file(sub.artifact("model") / "model.safetensors") for sub in (unbroken, killed))
    return first == second


def _start(sub: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "polyloom", "runs", "resume", sub.id, "--runs", str(sub.path.parent), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        raise PolyloomError(f"a run in a process of its own failed: {last}")


def _wait_for_step(sub: Run, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LINE_SECONDS
    while last_logged_step(sub.path) < KILL_AFTER:
        if process.poll() is not None or time.monotonic() > deadline:
            raise PolyloomError("the run that was to be killed ended by itself.")
        time.sleep(0.05)
