"""The forms of a checkpoint: L, plain Llama with the multipliers folded in; G, Granite with its own; T, TeleFLM's.

All three hold the same tensors under the same names. G is lossless and needs no remote code: Granite multiplies the
embedding, divides the logits, and multiplies each branch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GraniteConfig, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.methods.pretrain.architecture import llama_config
from polyloom.methods.pretrain.method import BRANCH_ENDS, Shape
from polyloom.models.load import replace_folder

Form = Literal["granite", "llama", "teleflm"]
INDEX = "model.safetensors.index.json"
FILE_BYTES = 4 << 30


@dataclass(frozen=True)
class Multipliers:
    """Forward factors: on the embedding, on the logits (output_mult / m), on each branch."""

    embedding: float = 1.0
    logits: float = 1.0
    branch: float = 1.0

    def of(self, name: str) -> float:
        """Return the factor that folding puts into a tensor."""
        module = name.split(".")[-2]
        if module == "embed_tokens":
            return self.embedding
        if module == "lm_head":
            return self.logits
        return self.branch if module in BRANCH_ENDS else 1.0

    @property
    def are_exact(self) -> bool:
        """Whether every factor is a power of two, by which scaling changes no significant bit."""
        return all(_is_power_of_two(value) for value in (self.embedding, self.logits, self.branch))


def _is_power_of_two(value: float) -> bool:
    mantissa, _ = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return float(mantissa) == 0.5


@dataclass(frozen=True)
class Source:
    """A checkpoint's folder, read a tensor at a time.

    Attributes:
        folder: where it lies.
        form: `llama`, `granite` or `TeleFLM`.
        shape: of the model.
        context: its positions.
        theta: base of the rotary positions.
        norm_eps: epsilon of the norms.
        multipliers: outside of its tensors; folding moves them in.
    """

    folder: Path
    form: str
    shape: Shape
    context: int
    theta: float
    norm_eps: float
    multipliers: Multipliers

    def native(self, name: str) -> Tensor:
        """Return a tensor as it is saved, in float32.

        Raises:
            UserError: it is not there.
        """
        return _read_tensor(self.folder, name).float()

    def folded(self, name: str) -> Tensor:
        """Return a tensor with its forward factor folded in, in float32."""
        return self.native(name) * self.multipliers.of(name)


def open_source(folder: Path) -> Source:
    """Read the configuration of a checkpoint in any of the three forms; no weight is read.

    Raises:
        UserError: no model, another architecture, tied embeddings, grouped keys, or biases.
    """
    if not (folder / "config.json").is_file():
        raise UserError("is no model folder (no config.json).", where=str(folder), hint="Name a Hugging Face folder.")
    values = read_json(folder / "config.json")
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in ("llama", "granite", "TeleFLM"):
        hint = "The recipe reads Llama, Granite and TeleFLM folders."
        raise UserError(f"is a model of type {kind!r}.", where=str(folder), hint=hint)
    where = str(folder / "config.json")
    try:
        return _source(folder, kind, values)
    except KeyError as error:
        raise UserError(f"lacks the key {error}.", where=where) from None


def _source(folder: Path, kind: str, values: dict[str, Any]) -> Source:
    where = str(folder / "config.json")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    if values.get("tie_word_embeddings"):
        hint = "The shared tensor would need two multipliers; untie them."
        raise UserError("its embeddings are tied, which form L cannot hold.", where=where, hint=hint)
    if (values.get("num_key_value_heads") or heads) != heads:
        raise UserError("its heads share keys (grouped-query attention); the family's do not.", where=where)
    if values.get("attention_bias") or values.get("mlp_bias"):
        raise UserError("it has biases, for which muP's table has no row.", where=where)
    shape = Shape(values["num_hidden_layers"], heads, width, values["intermediate_size"], values["vocab_size"])
    attention = values.get("attention_multiplier", shape.head_size**-0.5) if kind == "granite" else None
    if attention is not None and abs(attention * shape.head_size**0.5 - 1) > 1e-6:
        raise UserError(f"its attention multiplier {attention:g} is not 1/sqrt(head size).", where=where)
    theta = (values.get("rope_parameters") or {}).get("rope_theta", values.get("rope_theta", 10000.0))
    return Source(
        folder,
        kind,
        shape,
        values.get("max_position_embeddings", 2048),
        float(theta),
        float(values.get("rms_norm_eps", 1e-5)),
        _multipliers(kind, values),
    )


def _multipliers(kind: str, values: dict[str, Any]) -> Multipliers:
    if kind == "granite":
        return Multipliers(
            values.get("embedding_multiplier", 1.0),
            1 / values.get("logits_scaling", 1.0),
            values.get("residual_multiplier", 1.0),
        )
    if kind == "TeleFLM" and values.get("use_mup"):
        scale = values.get("output_mult", 1.0) / values.get("mup_scale_factor", 1.0)
        return Multipliers(values.get("input_mult", 1.0), scale)
    return Multipliers()


def _read_tensor(folder: Path, name: str) -> Tensor:
    file = "model.safetensors"
    if (folder / INDEX).is_file():
        file = json.loads((folder / INDEX).read_text())["weight_map"].get(name, "")
    try:
        with safe_open(folder / file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        hint = "Pickled weights are not read; convert them to safetensors first." if not file else ""
        raise UserError(f"cannot give {name} ({reason}).", where=str(folder), hint=hint) from error


def write_form(
    form: Form,
    folder: Path,
    source: Source,
    native: Callable[[str], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a checkpoint in a form, a few gigabytes at a time; the folder is whole or absent.

    Args:
        form: `granite` keeps the multipliers as such, `llama` folds them into the tensors, `teleflm` keeps those of
            embedding and logits and folds the branches'.
        folder: where to; a model that stands there is replaced.
        source: the model's shape and multipliers.
        native: from a tensor's name to its values without multipliers, in float32.
        dtype: of the tensors; folding is done in float32 before.
        tokenizer: saved beside it.

    Raises:
        UserError: the folder holds something else, or the disk is full.
    """
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise UserError("holds files that are no model.", where=str(folder), hint="Choose an empty folder.")
    config = form_config(form, source) | {"dtype": str(dtype).removeprefix("torch.")}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_json(temporary / "config.json", config)
            _write_tensors(temporary, form, source, native, dtype)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror}).", where=str(folder)) from error


def _write_tensors(
    folder: Path, form: Form, source: Source, native: Callable[[str], Tensor], dtype: torch.dtype
) -> None:
    files: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    names = tensor_names(source.shape)
    for name in names:
        pending[name] = (native(name) * _folded_factor(form, name, source)).to(dtype).contiguous()
        if sum(tensor.nbytes for tensor in pending.values()) >= FILE_BYTES or name == names[-1]:
            files.append(list(pending))
            save_file(pending, folder / f"part-{len(files)}", metadata={"format": "pt"})
            pending = {}
    total = len(files)
    places: dict[str, str] = {}
    for number, held in enumerate(files, start=1):
        file = "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        places |= dict.fromkeys(held, file)
    if total > 1:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": places})


def _folded_factor(form: Form, name: str, source: Source) -> float:
    """Return what a form folds into a tensor: all, the branches' factor (TeleFLM has none), or nothing."""
    if form == "llama":
        return source.multipliers.of(name)
    return source.multipliers.branch if form == "teleflm" and name.split(".")[-2] in BRANCH_ENDS else 1.0


def tensor_names(shape: Shape) -> list[str]:
    """Return the names of a model's tensors, in the order of its forward pass."""
    parts = (
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
        *("input_layernorm", "post_attention_layernorm"),
    )
    layers = [f"model.layers.{i}.{part}.weight" for i in range(shape.layers) for part in parts]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", "lm_head.weight"]


def form_config(form: Form, source: Source) -> dict[str, Any]:
    """Return the `config.json` of a form."""
    if form == "teleflm":
        return teleflm_config(source)
    plain = llama_config(source.shape, source.context, norm_eps=source.norm_eps, theta=source.theta)
    made = plain if form == "llama" else granite_config(source)
    name = "LlamaForCausalLM" if form == "llama" else "GraniteForCausalLM"
    values: dict[str, Any] = made.to_dict() | {"architectures": [name]}
    return values


def granite_config(source: Source) -> GraniteConfig:
    """Return the Granite configuration: its attention multiplier would be 1 by default, and it divides logits."""
    values = llama_config(source.shape, source.context).to_dict()
    names = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("intermediate_size", "max_position_embeddings", "tie_word_embeddings"),
        *("pad_token_id", "bos_token_id", "eos_token_id"),
    )
    return GraniteConfig(
        **{name: values[name] for name in names},
        rms_norm_eps=source.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": source.theta},
        embedding_multiplier=source.multipliers.embedding,
        logits_scaling=1 / source.multipliers.logits,
        residual_multiplier=source.multipliers.branch,
        attention_multiplier=source.shape.head_size**-0.5,
    )


def teleflm_config(source: Source) -> dict[str, Any]:
    """Return the configuration of form T for a model, as vLLM and SGLang read it.

    Args:
        source: the model. The factor on the logits is written as output_mult over mup_scale_factor 1: only their
            quotient matters.
    """
    shape = source.shape
    return {
        "model_type": "TeleFLM",
        "architectures": ["TeleFLMForCausalLM"],
        "use_mup": True,
        "input_mult": source.multipliers.embedding,
        "output_mult": source.multipliers.logits,
        "mup_scale_factor": 1.0,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": source.context,
        "rms_norm_eps": source.norm_eps,
        "rope_theta": source.theta,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
