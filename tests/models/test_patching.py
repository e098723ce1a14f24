"""The patch on Hugging Face models: bits of logits, loss and gradients, reversibility, and every refusal."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from polyloom.core.errors import UserError
from polyloom.models.activations import saved_bytes
from polyloom.models.patching import gated_blocks, is_silu, patch_mlp, unpatch_mlp
from polyloom.models.swiglu import SwiGLU

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"mlp_bias": True}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"residual_multiplier": 0.22}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {}),
}
TOKENS = torch.randint(61, (2, 19), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(family: str, **changes: Any) -> PreTrainedModel:
    model, config, extra = FAMILIES[family]
    built: PreTrainedModel = model(config(**{**SHAPE, **extra, **changes}))
    return built


def step(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(input_ids=TOKENS, labels=TOKENS, use_cache=False)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"logits": output.logits.detach(), "loss": output.loss.detach(), **gradients}


@pytest.mark.parametrize("mode", ["A", "B"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patched_model_has_the_bits_of_plain(family: str, mode: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    keys, classes = list(model.state_dict()), [type(block) for block in gated_blocks(model).values()]
    plain = step(model)
    kept = saved_bytes(lambda: model(input_ids=TOKENS, use_cache=False).logits, model.parameters())
    assert patch_mlp(model, mode) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    patched = step(model)
    kept_patched = saved_bytes(lambda: model(input_ids=TOKENS, use_cache=False).logits, model.parameters())
    assert list(patched) == list(plain)
    for name, value in plain.items():
        assert torch.equal(patched[name], value), name
    unit = TOKENS.numel() * 72 * (2 if dtype == torch.bfloat16 else 4)
    assert kept - kept_patched == 2 * unit * (1 if mode == "A" else 2)
    assert list(model.state_dict()) == keys
    assert len(unpatch_mlp(model)) == 2
    assert [type(block) for block in gated_blocks(model).values()] == classes
    assert unpatch_mlp(model) == []


def test_mode_can_be_changed_and_unpatching_restores_the_class() -> None:
    model = build("llama")
    original = type(model.model.layers[0].mlp)
    patch_mlp(model, "A")
    patch_mlp(model, "B")
    assert type(model.model.layers[0].mlp).__name__ == "LlamaMLPFormB"
    assert isinstance(model.model.layers[0].mlp, original)
    unpatch_mlp(model)
    assert type(model.model.layers[0].mlp) is original


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_and_frozen_parameters() -> None:
    model = build("llama")
    model.model.layers[0].mlp.up_proj.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.requires_grad_(False)
    model.gradient_checkpointing_enable()
    model.train()

    def grads() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = grads()
    patch_mlp(model, "B")
    assert all(map(torch.equal, grads(), plain))


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu", "relu"])
def test_another_activation_is_refused_by_name_of_the_model(activation: str) -> None:
    model = build("llama", hidden_act=activation)
    with pytest.raises(UserError, match=f"this model uses {activation}: not patched"):
        patch_mlp(model, "A")
    assert unpatch_mlp(model) == []


def test_gemma_is_refused() -> None:
    model = GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8))
    with pytest.raises(UserError, match="not patched"):
        patch_mlp(model)


class ClampedSiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x.clamp(max=7.0))


def test_clamped_silu_is_found_by_value_in_any_layer() -> None:
    model = build("llama")
    model.model.layers[1].mlp.act_fn = ClampedSiLU()
    with pytest.raises(UserError, match=r"layers\.1\.mlp: this model uses silu \(its values differ from SiLU's\)"):
        patch_mlp(model, "A")
    assert unpatch_mlp(model) == []  # all or none


class ClampedGate(SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))
        return y


class ScaledGate(SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        return 1.01 * super().forward(x)


class DroppedOut(SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


@pytest.mark.parametrize("kind", [ClampedGate, ScaledGate, DroppedOut])
@pytest.mark.parametrize("mode", ["A", "B"])
def test_forward_that_is_not_the_plain_block_is_refused(kind: type[SwiGLU], mode: str) -> None:
    block = kind(16, 40)
    with pytest.raises(UserError, match="differs on a probe"):
        patch_mlp(nn.Sequential(block), mode)
    assert type(block) is kind


def test_replaced_forward_meta_weights_and_unknown_mode_are_refused() -> None:
    block = SwiGLU(8, 24)
    with pytest.raises(UserError, match="there is no form 'C'"):
        patch_mlp(block, "C")
    block.forward = block.forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match="replaced on the instance"):
        patch_mlp(block)
    with pytest.raises(UserError, match="not loaded"):
        patch_mlp(SwiGLU(8, 24, device="meta"))


def test_form_b_needs_a_plain_down_projection() -> None:
    class Wrapped(nn.Linear):
        pass

    block = SwiGLU(8, 24)
    block.down_proj = Wrapped(24, 8, bias=False)
    assert patch_mlp(block, "A") == [""]
    with pytest.raises(UserError, match=r"is a Wrapped or has hooks.*Use form A"):
        patch_mlp(block, "B")
    hooked = SwiGLU(8, 24)
    hooked.down_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="has hooks of its own"):
        patch_mlp(hooked, "B")


def test_model_without_gated_blocks_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11))
    with pytest.raises(UserError, match="GPT2LMHeadModel has no gated block"):
        patch_mlp(model)


def test_is_silu_by_value() -> None:
    assert is_silu(F.silu)
    assert is_silu(nn.SiLU())
    assert not is_silu(ClampedSiLU())
    assert not is_silu(lambda x: x * torch.sigmoid(1.0001 * x))
    assert not is_silu(lambda x: torch.zeros(3, 3) @ x)
