"""The verb `grow`: a larger model with the same function, to be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Cell, Result, Scalar, Table
from polyloom.methods.pretrain.architecture import NORM_EPS, build, llama_config, parameter_groups
from polyloom.methods.pretrain.config import GrowConfig
from polyloom.methods.pretrain.forms import Multipliers, Source, open_source, tensor_names, write_form
from polyloom.methods.pretrain.growth import Growth, grow_moment, grow_tensor, grown_steps, random_std, target_shape
from polyloom.methods.pretrain.method import Scaling, count_parameters
from polyloom.methods.pretrain.proxies import BASE_WIDTH, Family, held_out_loss, settings, train_member, world_family
from polyloom.models.device import pin_threads, torch_generator
from polyloom.models.load import load_model, load_tokenizer
from polyloom.runs.folder import Run
from polyloom.training.loop import train
from polyloom.training.moments import read_moments, write_moments

NUM_TOKENS = 64
TINY_STEPS, MORE_STEPS = 100, 50
TINY_LR, MORE_LR = 1e-2, 2e-3


def run_grow(config: GrowConfig, run: Run) -> Result:
    """Grow a checkpoint in width, inner width and depth; its logits stay.

    Args:
        config: the checkpoint and the sizes wanted.
        run: keeps the grown model where no folder is named.

    Returns:
        The largest difference of logits, sizes; for the tiny model the loss before, and after 50 more steps.

    Raises:
        UserError: a target that is smaller, a width that the head size does not divide, another architecture.
    """
    pin_threads()
    family = world_family(("en", "de"), config.seed, 60_000) if config.model == "tiny" else None
    if family is not None:
        source = _trained_tiny(family, run, config.seed)
    elif Path(config.model).is_dir():
        source = open_source(Path(config.model))
    else:
        raise UserError("there is no such folder.", where="--model", hint="Name a checkpoint's folder.")
    width = config.width or (2 * source.shape.width if family else None)
    layers = config.layers or (source.shape.layers + 1 if family else None)
    new = target_shape(source.shape, width=width, ffn=config.ffn, layers=layers)
    if new == source.shape:
        raise UserError("no size grows.", where="--width", hint="Name a larger width, ffn or number of layers.")
    growth = Growth(source.shape, new, random_std(source.native), config.seed)
    folder = config.out or run.artifact("model")
    grown = replace(source, shape=new, norm_eps=source.norm_eps * growth.norm_eps_factor)
    tokenizer = load_tokenizer(str(source.folder)) if (source.folder / "tokenizer.json").is_file() else None
    form = "llama" if source.form == "llama" else "granite"
    write_form(form, folder, grown, lambda name: grow_tensor(name, source.native, growth), tokenizer=tokenizer)  # type: ignore[arg-type]
    moments = run.checkpoints if family else config.moments
    steps = _carry_moments(moments, folder, growth) if moments else 0
    difference = _logits_difference(source.folder, folder, config.seed, source.shape.vocab)
    losses = run.once("losses", lambda: _train_on(family, source.folder, folder, config.seed)) if family else {}
    return _as_result(config, run, source, grown, difference, steps, losses)


def _trained_tiny(family: Family, run: Run, seed: int) -> Source:
    folder = run.artifact("tiny")
    if not (folder / "config.json").exists():
        scaling = Scaling(lr=TINY_LR, matrix_lr=TINY_LR, base_width=BASE_WIDTH)
        model, _ = train_member(family, BASE_WIDTH, scaling, TINY_STEPS, seed, checkpoints=run.checkpoints)
        tensors = dict(model.named_parameters())
        shape = family.shape(BASE_WIDTH)
        source = Source(Path(), "folded", shape, family.window_tokens, 10000.0, NORM_EPS, Multipliers())
        write_form("llama", folder, source, lambda name: tensors[name].detach())
    return open_source(folder)


def _logits_difference(old: Path, new: Path, seed: int, vocab: int) -> float:
    if read_kind(old) == "TeleFLM":
        raise UserError("form T cannot be run here.", where=str(old), hint="Export it as Granite first, then grow it.")
    tokens = torch.randint(0, vocab, (2, NUM_TOKENS), generator=torch_generator(seed, "tokens"))
    with torch.inference_mode():
        before, after = (load_model(folder)(input_ids=tokens).logits for folder in (old, new))
    return float((before - after).abs().max())


def read_kind(folder: Path) -> str:
    """Return the form of a checkpoint."""
    return open_source(folder).form


def _carry_moments(runs: Path, folder: Path, growth: Growth) -> int:
    """Grow the moments of a run's newest checkpoint and leave them beside the grown model; return its steps."""
    values, steps = read_moments(runs)
    new_steps = grown_steps(tensor_names(growth.new), steps, growth)
    write_moments(folder / "moments", new_steps, lambda key: grow_moment(key, values, growth))
    return max(steps.values())


def _train_on(family: Family, old: Path, new: Path, seed: int) -> dict[str, float]:
    """Train the grown model on by muP's rules of its new width, the rate warmed up again; return held-out losses.

    `after` begins with the moments that were carried over, `anew` without any, on the same data.
    """
    source = open_source(new)
    scaling = Scaling(lr=MORE_LR, matrix_lr=MORE_LR, base_width=BASE_WIDTH)
    config = settings(MORE_STEPS, seed + 1, family.batch_size)
    batch_at = family.batches(seed + 1)
    losses = {"before": held_out_loss(family, load_model(old))}  # type: ignore[arg-type]
    plain = llama_config(source.shape, source.context, norm_eps=source.norm_eps, theta=source.theta)
    for name, moments in (("after", new / "moments"), ("anew", None)):
        model = build(source.shape, source.context, scaling, seed, plain)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(source.folded(key))
        train(model, batch_at, config, groups=parameter_groups(model, source.shape, scaling), moments=moments)
        losses[name] = held_out_loss(family, model)
    return losses


def _as_result(
    config: GrowConfig,
    run: Run,
    source: Source,
    grown: Source,
    difference: float,
    steps: int,
    losses: dict[str, float],
) -> Result:
    old, new = source.shape, grown.shape
    rows: list[list[Cell]] = [
        [name, getattr(old, name), getattr(new, name)] for name in ("layers", "heads", "width", "ffn")
    ]
    rows.append(["parameters", count_parameters(old), count_parameters(new)])
    scalars = {
        "logits_difference": Scalar(value=difference),
        "parameters_before": Scalar(value=count_parameters(old)),
        "parameters_after": Scalar(value=count_parameters(new)),
        "moments_of_step": Scalar(value=steps or None),
    }
    verdict = (
        f"The model grew from {count_parameters(old):,} to {count_parameters(new):,} parameters; logits change by "
    )
    verdict += f"{difference:.2g}."
    if losses:
        scalars["loss_before"] = Scalar(value=losses["before"], unit="nats/byte")
        scalars["loss_after_50_steps"] = Scalar(value=losses["after"], unit="nats/byte")
        scalars["loss_after_50_steps_without_moments"] = Scalar(value=losses["anew"], unit="nats/byte")
        verdict += f" Held-out loss {losses['before']:.3f}, after {MORE_STEPS} more steps {losses['after']:.3f} "
        verdict += f"with the moments carried over and {losses['anew']:.3f} with an optimiser that starts anew."
    artifacts = {}
    if config.out is None:
        artifacts["model"] = Artifact(path="artifacts/model", media_type="inode/directory", description="the model")
    return run.result(
        scalars=scalars,
        tables={"sizes": Table(columns=["size", "before", "after"], rows=rows, title="Growth")},
        artifacts=artifacts,
        verdicts=[verdict],
        limitations=[
            "New entries are drawn at random where they meet zeros; training on wants a warm-up.",
            f"AdamW's moments were {f'carried over from step {steps}' if steps else 'not carried over (--moments)'}.",
            "The multipliers stay, which keeps the function; for training on, muP's m is that of the new width.",
        ],
    )
