"""Sizes of a model's gated blocks from its configuration alone, and what the forms save on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

from polyloom.core.errors import UserError
from polyloom.models.patching import gated_blocks, require_silu
from polyloom.models.tiny import build_tiny

MEASURED_WEIGHTS = 2**18
MEASURED_TOKENS = 512
EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Blocks:
    """A model's gated blocks: width, inner width of each, and bytes of an activation's element."""

    hidden_size: int
    intermediate_sizes: tuple[int, ...]
    element_bytes: int

    @property
    def num_blocks(self) -> int:
        """How many there are."""
        return len(self.intermediate_sizes)


@dataclass(frozen=True)
class Advice:
    """Bytes of one [tokens, ffn] tensor of the widest block, of one in every block, and the size to time.

    `measured_size` is (hidden, ffn, tokens): the widest block's proportions, scaled to what is timed in seconds.
    """

    unit_bytes: int
    all_units_bytes: int
    measured_size: tuple[int, int, int]


def read_blocks(source: str) -> Blocks:
    """Read the sizes of a model's gated SiLU blocks; no weight is loaded.

    Args:
        source: a Hugging Face folder or hub id, or "tiny".

    Returns:
        The sizes, from the model built without memory on the meta device.

    Raises:
        UserError: no configuration, no gated block, another activation than SiLU, or a mixture of experts.
    """
    model = build_tiny("llama-4x128", 512) if source == "tiny" else _meta_model(source)
    blocks = gated_blocks(model)
    if not blocks:
        raise UserError("has no gated block.", where=source, hint="Forms A and B serve gated SiLU blocks only.")
    for name, block in blocks.items():
        require_silu(name, block)
    _refuse_experts(source, model)
    sizes = [_sizes(block) for block in blocks.values()]
    declared = model.config.dtype
    dtype = declared if isinstance(declared, torch.dtype) else torch.float32
    return Blocks(sizes[0][0], tuple(ffn for _, ffn in sizes), dtype.itemsize)


def _meta_model(source: str) -> transformers.PreTrainedModel:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError("is no model folder (no config.json).", where=source, hint="Name a Hugging Face folder.")
    try:
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=folder.is_dir())
        with torch.device("meta"):
            model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"is no causal model: {reason}.", where=source, hint="Check the path or the name.") from error
    return model


def _refuse_experts(source: str, model: transformers.PreTrainedModel) -> None:
    values = model.config.to_dict()
    if any(values.get(key) for key in EXPERT_KEYS):
        raise UserError(
            "is a mixture of experts: how many tokens each block sees depends on the router.",
            where=source,
            hint="Measure it with patch_mlp and saved_bytes on a batch of yours.",
        )


def _sizes(block: nn.Module) -> tuple[int, int]:
    hidden, ffn = block.get_submodule("down_proj").get_parameter("weight").shape
    return hidden, ffn


def advise_sizes(blocks: Blocks, num_tokens: int) -> Advice:
    """Work out the bytes that one unit takes, and the scaled block to time.

    Args:
        blocks: the model's blocks.
        num_tokens: batch size times sequence length.
    """
    widest = max(blocks.intermediate_sizes)
    shrink = max(1.0, (blocks.hidden_size * widest / MEASURED_WEIGHTS) ** 0.5)
    hidden, ffn = (max(8, round(size / shrink / 8) * 8) for size in (blocks.hidden_size, widest))
    per_width = num_tokens * blocks.element_bytes
    return Advice(
        unit_bytes=per_width * widest,
        all_units_bytes=per_width * sum(blocks.intermediate_sizes),
        measured_size=(hidden, ffn, min(num_tokens, MEASURED_TOKENS)),
    )
