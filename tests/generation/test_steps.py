from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from polyloom.generation import steps
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.steps import supports_steps

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
    "bos_token_id": None,
}
ROPE = {"rope_theta": 500.0}
VARIANTS = {
    "plain": (LlamaConfig, {}),
    "one key head": (LlamaConfig, {"num_key_value_heads": 1}),
    "all heads": (LlamaConfig, {"num_key_value_heads": 4}),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "wide heads": (LlamaConfig, {"head_dim": 16}),
    "gelu": (LlamaConfig, {"hidden_act": "gelu"}),
    "linear rope": (LlamaConfig, {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}),
    "granite": (
        GraniteConfig,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.4, "logits_scaling": 5.0},
    ),
}


def make(name):
    config_class, changes = VARIANTS[name]
    torch.manual_seed(sum(name.encode()))
    model = (GraniteForCausalLM if config_class is GraniteConfig else LlamaForCausalLM)(config_class(**SIZES | changes))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.3)
    return model.train(False)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_give_the_models_own_logits(name, monkeypatch):
    model = make(name)
    assert supports_steps(model)
    prompts = [[5, 9, 30], list(range(20)), [7]]
    settings = [Decoding(n, temperature=1.0, seed=n, logprobs=True) for n in (30, 12, 20)]
    ours = decode(model, prompts, settings)
    for prompt, one in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *one.tokens]])).logits[0].log_softmax(-1)
        expected = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(one.tokens)]
        assert one.logprobs == pytest.approx(expected, abs=2e-4)
    taken = []
    monkeypatch.setattr(steps.Steps, "__call__", lambda *_: taken.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(model, prompts, settings)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_equals_generate(name):
    model = make(name)
    for prompt in ([3, 4, 5], list(range(30))):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        assert list(decode(model, [prompt], Decoding(40))[0].tokens) == theirs[0, len(prompt) :].tolist()


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def patch_mlp(model):
    model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)


def patch_linear(model):
    model.model.layers[0].self_attn.o_proj = Doubled(model.model.layers[0].self_attn.o_proj)


def patch_method(model):
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: 2 * own(x)


def hook(model):
    model.model.layers[2].register_forward_hook(lambda module, inputs, output: 2 * output)


def parametrise(model):
    nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize("change", [patch_mlp, patch_linear, patch_method, hook, parametrise])
def test_a_changed_model_is_decoded_as_it_is(change):
    model = make("plain")
    change(model)
    assert not supports_steps(model)
    ids = torch.tensor([[1, 2, 3]])
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert list(decode(model, [[1, 2, 3]], Decoding(20))[0].tokens) == theirs[0, 3:].tolist()


def test_other_forms_are_left_to_the_model(family):
    assert not any(supports_steps(family(name)) for name in ("gpt2", "bloom", "mistral", "t5"))
    assert not supports_steps(make("plain").to(torch.bfloat16))
    eager = make("plain")
    eager.set_attn_implementation("eager")
    assert not supports_steps(eager)


def test_changed_weights_are_seen_at_once():
    model = make("plain")
    before = decode(model, [[1, 2, 3]], Decoding(20))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(-2)
    after = decode(model, [[1, 2, 3]], Decoding(20))
    model.set_attn_implementation("eager")
    assert before != after == decode(model, [[1, 2, 3]], Decoding(20))
