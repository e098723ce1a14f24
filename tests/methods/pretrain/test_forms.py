from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GraniteForCausalLM, LlamaForCausalLM

from polyloom.core.errors import UserError
from polyloom.methods.pretrain import forms
from polyloom.methods.pretrain.architecture import build
from polyloom.methods.pretrain.exporting import WithMultipliers, measure_forms
from polyloom.methods.pretrain.forms import Multipliers, Source, open_source, tensor_names, write_form
from polyloom.methods.pretrain.growth import Growth, grow_tensor, new_layer_sources, target_shape
from polyloom.methods.pretrain.method import Scaling, Shape
from polyloom.models.load import load_model

SHAPE = Shape(layers=2, heads=2, width=64, ffn=128, vocab=96)
POWERS = Multipliers(4.0, 0.125, 0.5)
TOKENS = torch.arange(40).reshape(2, 20) % 96


def write(folder: Path, multipliers: Multipliers = POWERS, form: str = "granite") -> Source:
    tensors = dict(build(SHAPE, 64, Scaling(zero_start=False, std=0.2, matrix_std=0.2), 1).named_parameters())
    source = Source(Path(), "folded", SHAPE, 64, 10000.0, 1e-5, multipliers)
    write_form(form, folder, source, lambda name: tensors[name].detach())  # type: ignore[arg-type]
    return open_source(folder)


def test_granite_opens_without_remote_code_and_is_the_definition(tmp_path: Path) -> None:
    source = write(tmp_path / "g")
    assert (source.form, source.shape, source.multipliers) == ("granite", SHAPE, POWERS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "g")
    assert isinstance(model, GraniteForCausalLM)
    assert sorted(model.state_dict()) == sorted(tensor_names(SHAPE))
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, WithMultipliers(source)(TOKENS))


def test_all_forms_agree_and_folding_powers_of_two_is_bitwise(tmp_path: Path) -> None:
    found = measure_forms(write(tmp_path / "g"), tmp_path / "check", 0)
    assert found == {"granite": 0.0, "llama": 0.0, "teleflm": 0.0, "bfloat16": 0.0}
    odd = Multipliers(3.0, 0.1, 0.7)
    assert POWERS.are_exact
    assert not odd.are_exact
    rounded = measure_forms(write(tmp_path / "odd", odd), tmp_path / "check-odd", 0)
    assert 0 < rounded["llama"] < 1e-4
    assert rounded["granite"] < 1e-5


def test_a_released_teleflm_configuration_is_read(tmp_path: Path) -> None:
    source = write(tmp_path / "g", Multipliers(1.0, 0.5 / 16))
    (tmp_path / "t").mkdir()
    released = {
        "model_type": "TeleFLM", "architectures": ["FLM"], "use_mup": True, "input_mult": 1.0, "output_mult": 0.5,
        "mup_scale_factor": 16.0, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_teleflm.FLMForCausalLM"},
    }  # fmt: skip
    (tmp_path / "t" / "config.json").write_text(json.dumps(released))
    (tmp_path / "g" / "model.safetensors").rename(tmp_path / "t" / "model.safetensors")
    read = open_source(tmp_path / "t")
    assert read.multipliers == Multipliers(1.0, 1 / 32)
    assert read.shape == source.shape
    write_form("llama", tmp_path / "l", read, read.native)
    model = load_model(tmp_path / "l")
    assert isinstance(model, LlamaForCausalLM)
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, WithMultipliers(read)(TOKENS))


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "FILE_BYTES", 60_000)
    source = write(tmp_path / "g")
    assert len(list((tmp_path / "g").glob("model-*.safetensors"))) > 2
    assert load_model(tmp_path / "g").config.residual_multiplier == 0.5
    assert source.native("lm_head.weight").shape == (96, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "is a model of type 'gpt2'"),
        ({"tie_word_embeddings": True}, "embeddings are tied"),
        ({"num_key_value_heads": 1}, "grouped-query"),
        ({"attention_bias": True}, "has biases"),
        ({"attention_multiplier": 1.0}, "attention multiplier 1 is not 1/sqrt"),
    ],
)
def test_what_the_forms_cannot_hold_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path / "g")
    config = json.loads((tmp_path / "g" / "config.json").read_text())
    (tmp_path / "g" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError) as caught:
        open_source(tmp_path / "g")
    assert message in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "g")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"cannot give lm_head\.weight"):
        source.native("lm_head.weight")


@pytest.mark.parametrize("sizes", [{"width": 128}, {"ffn": 200}, {"layers": 5}, {"width": 96, "layers": 3, "ffn": 256}])
def test_growth_keeps_the_function(tmp_path: Path, sizes: dict[str, int]) -> None:
    source = write(tmp_path / "g")
    growth = Growth(SHAPE, target_shape(SHAPE, **sizes), 0.2, 0)
    grown = Source(Path(), "g", growth.new, 64, 10000.0, 1e-5 * growth.norm_eps_factor, POWERS)
    write_form("granite", tmp_path / "grown", grown, lambda name: grow_tensor(name, source.native, growth))
    with torch.no_grad():
        before, after = (load_model(tmp_path / name)(input_ids=TOKENS).logits for name in ("g", "grown"))
    assert float((before - after).abs().max()) <= 1e-5
    new = load_file(tmp_path / "grown" / "model.safetensors")
    if "width" in sizes:
        # What is new can learn: it is not zero everywhere.
        assert float(new["model.layers.0.mlp.gate_proj.weight"][:, 64:].abs().min()) > 0
        assert float(new["model.embed_tokens.weight"][:, 64:].abs().max()) == 0


def test_growth_refuses_what_is_no_growth() -> None:
    with pytest.raises(UserError, match="width 100 is not a multiple of the head size 32"):
        target_shape(SHAPE, width=100)
    with pytest.raises(UserError, match="the model has 2 layers, the target 1"):
        Growth(SHAPE, target_shape(SHAPE, layers=1), 0.1, 0)
    assert new_layer_sources(2, 4) == [0, None, 1, None]
    assert new_layer_sources(3, 4) == [0, 1, 2, None]
    assert new_layer_sources(3, 3) == [0, 1, 2]
