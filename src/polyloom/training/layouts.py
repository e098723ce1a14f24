"""Layouts: how a Llama-form model lies on the processes (pipeline x data x tensor), by torch.distributed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from polyloom.core.errors import UserError
from polyloom.training.config import TrainConfig
from polyloom.training.documents import inside_documents
from polyloom.training.memory import checkpoint_layers, save_mlp_memory

Values = Callable[[str, torch.Size], Tensor]
PipelineSchedule = Literal["1f1b", "gpipe", "interleaved-1f1b"]


@dataclass(frozen=True)
class Layout:
    """A layout: `pp` pipeline stages x `dp` shards of parameters and data x `tp` parts of each matrix.

    `num_micro_batches` is what a pipeline cuts a process's rows into; `sequence_parallel` keeps norms and residuals
    split over the sequence between the matrices.
    """

    pp: int = 1
    dp: int = 1
    tp: int = 1
    sequence_parallel: bool = False
    schedule: PipelineSchedule = "1f1b"
    num_micro_batches: int = 2

    @property
    def num_processes(self) -> int:
        """pp x dp x tp."""
        return self.pp * self.dp * self.tp

    @property
    def stages_per_process(self) -> int:
        """Stages that a process of the pipeline holds: 2 where they interleave."""
        return 2 if self.schedule == "interleaved-1f1b" and self.pp > 1 else 1

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return self.pp * self.stages_per_process

    @property
    def bubble(self) -> float:
        """The share of a step in which a pipeline's process waits: (p-1)/(v k + p-1)."""
        work = self.num_micro_batches * self.stages_per_process
        return (self.pp - 1) / (work + self.pp - 1)


def check_layout(layout: Layout, config: Any, window_tokens: int, batch_size: int) -> None:
    """Refuse a layout that does not divide the model or the batch.

    Args:
        layout: the layout.
        config: the model's Llama configuration.
        window_tokens: T.
        batch_size: rows of a step, over all processes.

    Raises:
        UserError: what does not divide what, and the nearest sizes that do.
    """
    layers = config.num_hidden_layers
    sizes = (
        ("tp", layout.tp, "heads", config.num_attention_heads),
        ("tp", layout.tp, "inner width", config.intermediate_size),
        ("tp", layout.tp, "vocabulary", config.vocab_size),
        ("tp", layout.tp if layout.sequence_parallel else 1, "tokens of a window", window_tokens),
        ("dp", layout.dp, "rows of a batch", batch_size),
    )
    for key, parts, what, size in sizes:
        if size % parts:
            good = [str(n) for n in range(1, parts + 1) if size % n == 0]
            raise UserError(f"{parts} does not divide the {size} {what}.", where=key, hint=f"Choose {', '.join(good)}.")
    if layout.num_stages > layers:
        raise UserError(f"{layout.num_stages} stages are more than the {layers} layers.", where="pp")
    if layout.pp > 1 and batch_size // layout.dp % layout.num_micro_batches:
        what = (
            f"{layout.num_micro_batches} micro-batches do not divide the {batch_size // layout.dp} rows of a process."
        )
        raise UserError(what, where="num_micro_batches", hint="Change the batch size or the micro-batches.")


def stage_layers(num_layers: int, num_stages: int) -> list[range]:
    """Cut the layers into stages as even as they go; the first ones take what is over."""
    edges = [-(-num_layers * stage // num_stages) for stage in range(num_stages + 1)]
    return [range(begin, end) for begin, end in pairwise(edges)]


class Stage(nn.Module):
    """A stretch of a Llama's layers, with the embedding before the first and norm and head behind the last.

    Its parameters keep the whole model's names, so that checkpoints of any layout hold the same keys.
    """

    def __init__(self, model: LlamaForCausalLM, layers: range, window_tokens: int) -> None:
        """Take the layers out of `model`; positions are computed anew, so that it may be on the meta device."""
        super().__init__()
        self.first, self.last = layers.start == 0, layers.stop == model.config.num_hidden_layers
        self.window_tokens = window_tokens
        inner = nn.Module()
        if self.first:
            inner.embed_tokens = model.model.embed_tokens
        inner.layers = nn.ModuleDict({str(index): model.model.layers[index] for index in layers})
        if self.last:
            inner.norm = model.model.norm
            self.lm_head = model.lm_head
        self.model = inner
        self.rotary = LlamaRotaryEmbedding(model.config)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """Run tokens [rows, T] or hidden states [rows, T, d] (T / tp where the sequence is split) through.

        Args:
            x: what comes in.
            documents: the number of each token's document [rows, T], inside which attention and positions stay.

        Returns:
            Hidden states, or logits [rows, T, vocabulary / tp] of the last stage.
        """
        if self.first:
            x = self.model.get_submodule("embed_tokens")(x)
        positions, mask = torch.arange(self.window_tokens, device=x.device)[None], None
        if documents is not None:
            positions, mask = inside_documents(documents)
        rotary = self.rotary(x, position_ids=positions)
        for layer in self.layers():
            x = layer(x, attention_mask=mask, position_embeddings=rotary, use_cache=False)
        if self.last:
            x = self.lm_head(self.model.get_submodule("norm")(x))
        return x

    def layers(self) -> list[nn.Module]:
        """Return the stage's decoder layers."""
        return list(self.model.get_submodule("layers").children())


def make_mesh(layout: Layout, device: torch.device) -> DeviceMesh:
    """Return the mesh (pp, dp, tp) over the processes that torchrun started.

    Raises:
        UserError: their number is not the layout's.
    """
    started = torch.distributed.get_world_size()
    if started != layout.num_processes:
        raise UserError(
            f"pp {layout.pp} x dp {layout.dp} x tp {layout.tp} needs {layout.num_processes} processes, {started} run.",
            hint=f"Start torchrun with --nproc-per-node and --nnodes for {layout.num_processes} in all.",
        )
    return init_device_mesh(device.type, (layout.pp, layout.dp, layout.tp), mesh_dim_names=("pp", "dp", "tp"))


def assemble(
    config: Any,
    layout: Layout,
    mesh: DeviceMesh,
    window_tokens: int,
    values: Values,
    training: TrainConfig,
) -> list[Stage]:
    """Build this process's stages: split, filled and sharded a layer at a time, so that no process holds the model.

    Args:
        config: the Llama configuration.
        layout: the layout.
        mesh: its processes.
        window_tokens: T.
        values: from a tensor's name and shape to its initial values; called with the same names for any layout.
        training: memory_saving_swiglu and activation_checkpointing.

    Raises:
        UserError: form B with split matrices.
    """
    if layout.tp > 1 and training.memory_saving_swiglu == "B":
        what = "form B reads the whole down projection, which tp splits."
        raise UserError(what, where="memory_saving_swiglu", hint="Use form A.")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if training.activation_checkpointing:
        checkpoint_layers(model)
    ranges = stage_layers(config.num_hidden_layers, layout.num_stages)
    own = [mesh.get_local_rank("pp") + layout.pp * turn for turn in range(layout.stages_per_process)]
    stages = [Stage(model, ranges[index], window_tokens) for index in own]
    for stage in stages:
        if training.memory_saving_swiglu != "off":
            save_mlp_memory(stage, config, training.memory_saving_swiglu)
        if layout.tp > 1:
            split_tensors(stage, mesh["tp"], layout.sequence_parallel)
        _fill_and_shard(stage, mesh, values)
    return stages


def split_tensors(stage: Stage, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Split every matrix of a stage over the mesh `tp`, and norms over the sequence where that is asked for."""
    between: Any = Shard(1) if sequence_parallel else Replicate()
    whole: Any = Replicate()
    plan: dict[str, ParallelStyle] = {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": between}, desired_input_kwarg_layouts={"hidden_states": whole}
        ),
        "mlp": PrepareModuleInput(input_layouts=between, desired_input_layouts=whole),
    }
    plan |= {name: RowwiseParallel(output_layouts=between) for name in ("self_attn.o_proj", "mlp.down_proj")}
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    plan |= {name: ColwiseParallel() for name in columns}
    if sequence_parallel:
        norms = ("input_layernorm", "post_attention_layernorm")
        plan |= {name: SequenceParallel(use_local_output=True) for name in norms}
    for layer in stage.layers():
        parallelize_module(layer, mesh, plan)
    ends: dict[str, ParallelStyle] = {}
    if stage.first:
        ends["model.embed_tokens"] = RowwiseParallel(input_layouts=whole, output_layouts=between)
    if stage.last:
        ends["lm_head"] = ColwiseParallel(input_layouts=between)
        if sequence_parallel:
            ends["model.norm"] = SequenceParallel(use_local_output=True)
    if ends:
        parallelize_module(stage, mesh, ends)


def _fill_and_shard(stage: Stage, mesh: DeviceMesh, values: Values) -> None:
    """Give each layer, then the ends, their values, and shard them over `dp` before the next is filled (FSDP2)."""
    # The mapping keeps the empty parameters alive, so that no new one can have the identity of an old one.
    empty = {parameter: name for name, parameter in stage.named_parameters()}
    in_layers = {module for layer in stage.layers() for module in layer.modules()}
    ends = [module for module in stage.modules() if module not in in_layers and list(module.parameters(recurse=False))]
    for layer in stage.layers():
        _fill(layer, empty, values, mesh.device_type)
        fully_shard(layer, mesh=mesh["dp"], reshard_after_forward=False)
    for module in ends:
        _fill(module, empty, values, mesh.device_type)
    fully_shard(stage, mesh=mesh["dp"], reshard_after_forward=False)


def _fill(module: nn.Module, names: Mapping[nn.Parameter, str], values: Values, device: str) -> None:
    """Materialise a module's parameters and give each process its part of the values."""
    for owner in list(module.modules()):
        for key, parameter in list(owner.named_parameters(recurse=False)):
            full = values(names[parameter], parameter.shape).to(device)
            if isinstance(parameter, DTensor):
                local: Tensor = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
            else:
                local = full
            setattr(owner, key, nn.Parameter(local))
