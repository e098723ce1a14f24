"""The verb `train`: from documents to a checkpoint, in one process or on many, with the watch over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyloom.core.config import make_config
from polyloom.core.errors import PolyloomError, Stopped
from polyloom.core.files import read_json, write_json
from polyloom.core.result import Artifact, Cell, Result, Scalar, Table
from polyloom.methods.pretrain.architecture import build, by_class, parameter_groups
from polyloom.methods.pretrain.config import TrainVerbConfig
from polyloom.methods.pretrain.corpus.verb import run_corpus
from polyloom.methods.pretrain.data_config import CorpusConfig
from polyloom.methods.pretrain.forms import Multipliers, Source, write_form
from polyloom.methods.pretrain.launch import launch
from polyloom.methods.pretrain.method import count_parameters, training_flops_per_token
from polyloom.methods.pretrain.recipe import Recipe, make_recipe
from polyloom.methods.pretrain.report import training_curves
from polyloom.methods.pretrain.tracking import Track
from polyloom.methods.pretrain.training_data import (
    TrainingData,
    held_out_texts,
    prepare_data,
    reopen_data,
    tokenizer_digest,
)
from polyloom.metrics.language_model import bits_per_byte, score_documents
from polyloom.models.device import autocast, choose_device, pin_threads
from polyloom.models.load import load_model
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig
from polyloom.training.layouts import assemble, make_mesh
from polyloom.training.loop import next_token_loss, train
from polyloom.training.monitor import Monitor
from polyloom.training.packing import Batch
from polyloom.training.parallel import join_world
from polyloom.training.sharded import Sharded
from polyloom.training.sharded_checkpoints import read_whole
from polyloom.training.throughput import peak_flops

DIGEST_STEPS = 50
GROWN = "AdamW began with the moments that growth left beside the model, and the learning rate was warmed up again."


def run_train(config: TrainVerbConfig, run: Run) -> Result:
    """Train a model by the recipe and write it as a Granite folder, which opens without remote code.

    Args:
        config: data, tokenizer, model, muP, optimiser, layout.
        run: keeps tokenizer, token files, checkpoints and the model.

    Returns:
        Loss, held-out bits per byte, throughput, the data that was seen, and what the watch saw.

    Raises:
        UserError: input that cannot be used, or a layout that does not divide the model.
        PolyloomError: the loss or a gradient ceased to be finite, or a process failed.
        Stopped: the run was asked to stop, or prepared for a torchrun of the user's.
    """
    pin_threads()
    config = _cleaned(config, run)
    data = prepare_data(config, run)
    recipe = make_recipe(config, len(data.tokenizer))
    if config.prediction:
        Track(config.prediction, count_parameters(recipe.shape))
    state = run.once("trained", lambda: _train(config, recipe, data, run))
    folder = config.out or run.artifact("model")
    if not (folder / "config.json").exists():
        _write_model(recipe, run, data, folder)
    scores = run.once("held out", lambda: _held_out(config, data, folder))
    return _as_result(config, recipe, data, run, state, scores)


def _cleaned(config: TrainVerbConfig, run: Run) -> TrainVerbConfig:
    """Clean the documents first where the recipe says how; return the configuration that reads what is left."""
    if not config.corpus:
        return config
    folder = run.artifact("corpus")
    values = {"seed": config.seed, "languages": config.languages, **config.corpus, "input": config.data, "out": folder}
    run_corpus(make_config(CorpusConfig, values, where="corpus"), run)
    return config.model_copy(update={"data": [str(folder)], "corpus": {}})


def _train(config: TrainVerbConfig, recipe: Recipe, data: TrainingData, run: Run) -> dict[str, Any]:
    if recipe.layout.num_processes == 1:
        return train_here(recipe, data, run)
    command = f"-m polyloom.methods.pretrain.worker {run.path}"
    if not config.launch:
        raise Stopped(
            f"the run is prepared for {recipe.layout.num_processes} processes.",
            where=run.id,
            hint=f"On each node: torchrun --nproc-per-node N ... {command}; then: polyloom runs resume {run.id}",
        )
    done = run.artifact("trained.json")
    if not done.exists():
        launch(recipe.layout.num_processes, recipe.training.steps, run)
    state: dict[str, Any] = read_json(done)
    return state


def train_here(recipe: Recipe, data: TrainingData, run: Run) -> dict[str, Any]:
    """Train in this process alone.

    Returns:
        The state at the end.
    """
    device = choose_device()
    model = build(recipe.shape, recipe.context, recipe.scaling, recipe.training.seed, recipe.config())
    if recipe.source is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(recipe.source.folded(name))
    nn.Module.to(model, device)
    return _loop(recipe, data, run, model, device)


def train_sharded(config: TrainVerbConfig, run: Run) -> None:
    """Train as one of a layout's processes, which torchrun started; the first one writes the state at the end.

    Args:
        config: the run's configuration.
        run: the run, which the parent prepared; its folder is shared by all processes.
    """
    pin_threads()
    device = choose_device()
    data = reopen_data(config, run)
    recipe = make_recipe(config, len(data.tokenizer))
    with join_world(device) as world:
        mesh = make_mesh(recipe.layout, device)
        stages = assemble(recipe.config(), recipe.layout, mesh, config.window_tokens, recipe.values, recipe.training)
        engine = Sharded(stages, recipe.layout, mesh, recipe.training)
        state = _loop(recipe, data, run, engine.model, device, engine)
        if world.is_main:
            write_json(run.artifact("trained.json"), state)


def _loop(
    recipe: Recipe, data: TrainingData, run: Run, model: nn.Module, device: torch.device, engine: Sharded | None = None
) -> dict[str, Any]:
    settings, config = recipe.training, run.config
    assert isinstance(config, TrainVerbConfig)
    if engine is not None:
        # The end is a checkpoint, from which the model is written.
        settings = _with_last_checkpoint(settings)
    flops = training_flops_per_token(recipe.shape, data.stream.window_tokens)
    peak = peak_flops(device, settings.precision)[0] * recipe.layout.num_processes
    last: list[Batch] = []
    track = Track(config.prediction, count_parameters(recipe.shape), run.metrics()) if config.prediction else None
    monitor = Monitor(by_class(model), data.stream.names) if settings.monitor else None
    if engine is not None and monitor is not None:
        engine.see = monitor.see

    def batch_at(step: int) -> Batch:
        last[:] = [data.stream(step)]
        return last[0]

    def log(**values: Any) -> None:
        if "tokens_per_second" in values:
            values["mfu"] = values["tokens_per_second"] * flops / peak
            if track and values["loss"] is not None:
                values = track.judge(values["step"], values["loss"]) | values
        run.log(**values)

    with run.progress("pretrain: train", settings.steps) as advance:
        try:
            state = train(
                model,
                batch_at,
                settings,
                groups=parameter_groups(model, recipe.shape, recipe.scaling),
                loss=partial(next_token_loss, see=monitor.see if monitor else None),
                engine=engine,
                monitor=monitor,
                checkpoints=run.checkpoints,
                moments=recipe.moments,
                on_log=log,
                on_step=advance if engine is None or engine.world.is_main else None,
                check_stop=run.check_stop,
            )
        except PolyloomError as error:
            if not isinstance(error, Stopped) and last:
                _keep_failure(run, last[0], error)
            raise
    if engine is None:
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
        save_file(tensors, run.artifact("trained.safetensors"))
    return asdict(state)


def _with_last_checkpoint(settings: TrainConfig) -> TrainConfig:
    """Return the settings with checkpoints at steps of which the last is one."""
    every = settings.checkpoint_every
    while every and settings.steps % every:
        every -= 1
    return settings.model_copy(update={"checkpoint_every": every or settings.steps})


def _keep_failure(run: Run, batch: Batch, error: PolyloomError) -> None:
    """Keep the batch at which the run failed, so that it can be repeated."""
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, run.artifact("failed-batch.safetensors"))
    write_json(run.artifact("failure.json"), {"error": str(error), "config": run.config.model_dump(mode="json")})


def _write_model(recipe: Recipe, run: Run, data: TrainingData, folder: Path) -> None:
    """Write what was trained in form G: the multipliers are taken out of the tensors again."""
    if recipe.layout.num_processes == 1:
        tensors = load_file(run.artifact("trained.safetensors"))
    else:
        tensors = read_whole(run.checkpoints)
    source = described(recipe)
    write_form("granite", folder, source, native_values(tensors, source), tokenizer=data.tokenizer)
    run.artifact("trained.safetensors").unlink(missing_ok=True)


def described(recipe: Recipe) -> Source:
    """Return the description of what a recipe trains: its multipliers are inside its tensors."""
    scaling, shape = recipe.scaling, recipe.shape
    multipliers = Multipliers(
        scaling.input_mult,
        scaling.output_mult / scaling.m(shape.width),
        scaling.r(shape.layers) ** -scaling.depth_power,
    )
    return Source(Path(), "folded", shape, recipe.context, recipe.theta, recipe.norm_eps, multipliers)


def native_values(tensors: dict[str, Tensor], source: Source) -> Callable[[str], Tensor]:
    """Return the function from a name to a folded tensor's values without its factor."""
    return lambda name: tensors[name].float() / source.multipliers.of(name)


def _held_out(config: TrainVerbConfig, data: TrainingData, folder: Path) -> list[list[Any]]:
    """Score held-out documents: rows of source, bits per byte, bytes, documents."""
    model = load_model(folder, device="auto")
    rows: list[list[Any]] = []
    for source, texts in held_out_texts(config).items():
        with autocast(model.device):
            scores = score_documents(model, data.tokenizer, texts, window_tokens=config.window_tokens)
        num_bytes = sum(score.num_bytes for score in scores)
        if num_bytes:
            rows.append([source, bits_per_byte(scores), num_bytes, len(texts)])
    return rows


def _as_result(
    config: TrainVerbConfig,
    recipe: Recipe,
    data: TrainingData,
    run: Run,
    state: dict[str, Any],
    scores: list[list[Any]],
) -> Result:
    lines = run.metrics()
    logs = [line for line in lines if line.get("tokens_per_second")]
    events = [line for line in lines if "spike" in line]
    total_bytes = sum(row[2] for row in scores)
    held_out = sum(row[1] * row[2] for row in scores) / total_bytes if total_bytes else math.nan
    num_samples = (state["step"] + state["num_passed"]) * config.batch_size
    epochs = data.stream.epochs(num_samples)
    digest = data.stream.digest([range(min(DIGEST_STEPS, config.steps))])
    peak, source = peak_flops(choose_device(), config.precision)
    speeds = sorted(line["tokens_per_second"] for line in logs)
    scalars = {
        "loss": Scalar(value=state["loss"], unit="nats/token"),
        "held_out_bits_per_byte": Scalar(value=held_out, unit="bits/byte"),
        "num_tokens": Scalar(value=state["num_tokens"]),
        "num_parameters": Scalar(value=count_parameters(recipe.shape)),
        "tokens_per_second": Scalar(value=speeds[len(speeds) // 2] if speeds else None),
        "mfu": Scalar(value=max((line["mfu"] for line in logs), default=None), unit=f"of {peak:.3g} FLOP/s ({source})"),
        "num_spikes": Scalar(value=state["num_spikes"]),
        "num_processes": Scalar(value=recipe.layout.num_processes),
        "stream_digest": Scalar(value=digest),
        "tokenizer_digest": Scalar(value=_tokenizer_digest(config, run)),
    }
    on_track = next((line["on_track"] for line in reversed(logs) if "on_track" in line), None)
    if on_track is not None:
        scalars["on_track"] = Scalar(value=on_track)
    rows: list[list[Cell]] = [
        [name, data.shares.get(name, 0.0), epochs.get(name, 0.0), entry["num_tokens"], entry["num_documents"]]
        for name, entry in data.sources.items()
    ]
    tables = {
        "sources": Table(
            columns=["source", "share of samples", "epochs seen", "tokens", "documents"], rows=rows, title="Data"
        ),
        "held_out": Table(
            columns=["source", "bits per byte", "bytes", "documents"], rows=scores, title="Held-out text"
        ),
        "settings": _settings(recipe),
    }
    if events:
        tables["events"] = Table(
            columns=["step", "what", "value", "limit", "action"],
            rows=[[e["step"], e["spike"], e["value"], e["limit"], e["action"]] for e in events],
            title="Spikes",
        )
    return run.result(
        scalars=scalars,
        tables=tables,
        series=training_curves(logs),
        artifacts={}
        if config.out
        else {"model": Artifact(path="artifacts/model", media_type="inode/directory", description="the model, form G")},
        verdicts=[_verdict(state, held_out, recipe), *_track_verdict(on_track, logs)],
        limitations=data.notes + ([GROWN] if recipe.moments else []),
    )


def _tokenizer_digest(config: TrainVerbConfig, run: Run) -> str | None:
    return None if config.tokenizer else tokenizer_digest(run.artifact("tokenizer"))


def _verdict(state: dict[str, Any], held_out: float, recipe: Recipe) -> str:
    spikes = state["num_spikes"]
    calm = "without a spike" if not spikes else f"with {spikes} spike{'s' if spikes > 1 else ''}"
    return (
        f"{count_parameters(recipe.shape) / 1e6:.2f} M parameters saw {state['num_tokens']} tokens {calm} and spend "
        f"{held_out:.3f} bits per byte on held-out text."
    )


def _track_verdict(on_track: bool | None, logs: list[dict[str, Any]]) -> list[str]:
    if on_track is None:
        return []
    last = next(line for line in reversed(logs) if "on_track" in line)
    word = "stayed on the predicted track" if on_track else "is off the predicted track"
    return [f"At step {last['step']} the run {word}: a loss of {last['expected_loss']:.3f} was expected."]


def _settings(recipe: Recipe) -> Table:
    shape, scaling = asdict(recipe.shape), asdict(recipe.scaling)
    scaling["m"] = recipe.scaling.m(recipe.shape.width)
    layout = {name: getattr(recipe.layout, name) for name in ("pp", "dp", "tp")}
    rows: list[list[Cell]] = [[name, value] for name, value in (shape | scaling | layout).items()]
    return Table(columns=["setting", "value"], rows=rows, title="Model and hyper-parameters")
