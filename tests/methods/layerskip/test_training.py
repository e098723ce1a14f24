"""Layer dropout and early-exit loss inside real models; exits against the library's hidden states; LoRA."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from polyloom.core.errors import MissingExtra
from polyloom.methods.layerskip.data import Tokens, example_batches
from polyloom.methods.layerskip.training import (
    PRESETS,
    LayerSkipLoss,
    Skip,
    add_lora,
    build_llama,
    hidden_states,
    score_exits,
)
from polyloom.models.exits import exit_parts
from polyloom.models.load import load_model, save_model
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from tests import families

OFF = Skip(0.0, 0.0, "none", 1, "constant")


def examples(num: int = 16) -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    return [
        Tokens(torch.randint(3, 30, (3 + i % 4,), generator=generator).tolist(), [5 + i % 3, 7, 2]) for i in range(num)
    ]


def model(num_layers: int = 4) -> Any:
    return build_llama(num_layers, 32, 64, 40, 0)


def plain_loss(m: Any, batch: Any) -> torch.Tensor:
    logits = m(input_ids=batch["inputs"], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def test_without_dropout_and_early_exits_loss_and_gradients_are_the_plain_ones() -> None:
    m, batch = model(), example_batches(examples(), 8, 0)(0)
    m.train()
    loss = LayerSkipLoss(exit_parts(m), OFF, 10, 0)
    with loss.installed():
        own, num_targets = loss(m, batch)
        own.backward()
    gradients = {name: p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad()
    plain = plain_loss(m, batch)
    plain.backward()
    assert num_targets == 24
    assert own.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, parameter in m.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_dropout_keeps_rows_at_its_rate_and_stops_in_evaluation() -> None:
    m, batches = model(), example_batches(examples(), 8, 0)
    skip = Skip(0.5, 1.0, "rotational", 4, "constant")
    loss = LayerSkipLoss(exit_parts(m), skip, 200, 0)
    with loss.installed(), torch.no_grad():
        m.train()
        for step in range(200):
            loss(m, batches(step))
        # Kept rows: 8 x 200 trials a layer at rates 0, 0.13, 0.29, 0.5.
        expected = 1600 * (4 - sum(2 ** (i / 3) - 1 for i in range(4)) * 0.5)
        assert loss.num_layer_rows == pytest.approx(expected, abs=4 * (3 * 1600 * 0.25) ** 0.5)
        m.eval()
        loss.num_layer_rows = 0
        value = loss(m, batches(0))[0]
        assert loss.num_layer_rows == 4 * 8
        assert float(value) == float(loss(m, batches(0))[0])


def test_all_labels_masked_is_counted_and_gives_no_gradient() -> None:
    m = model()
    batch = dict(example_batches(examples(), 4, 0)(0))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = LayerSkipLoss(exit_parts(m), Skip(), 10, 0)
    with loss.installed():
        value, num_targets = loss(m, batch)
    assert (num_targets, loss.num_skipped_batches, value.item()) == (0, 1, 0.0)


def gpt2() -> Any:
    torch.manual_seed(0)
    return families.gpt2(vocab_size=40, n_layer=3, bos_token_id=1, eos_token_id=2).eval()


@pytest.mark.parametrize("make", [model, gpt2])
def test_exits_equal_the_librarys_hidden_states_and_a_shortened_model(make: Any) -> None:
    m = make()
    parts, tokens = exit_parts(m), torch.randint(3, 40, (2, 7))
    library = m(input_ids=tokens, output_hidden_states=True, use_cache=False)
    with torch.inference_mode():
        states = hidden_states(parts, tokens)
        assert torch.allclose(parts.project(states[-1]), library.logits, atol=1e-5)
        for exit_layer in range(1, parts.num_layers):
            expected = parts.head(parts.norm(library.hidden_states[exit_layer]))
            assert torch.allclose(parts.project(states[exit_layer - 1]), expected, atol=1e-5)
    scores, num_tokens = score_exits(m, examples(5))
    assert num_tokens == 15
    assert scores[-1].agreement == 1.0
    nats = 0.0
    for one in examples(5):
        text = torch.tensor([one.prompt + one.response])
        log_p = m(input_ids=text).logits[0, len(one.prompt) - 1 : -1].log_softmax(-1)
        nats -= log_p.gather(-1, torch.tensor(one.response)[:, None]).sum().item()
    assert scores[-1].nats == pytest.approx(nats / 15, rel=1e-5)


def test_training_makes_early_exits_better_and_the_checkpoint_is_an_ordinary_one(tmp_path: Path) -> None:
    curves = {}
    for mode in ("both", "baseline"):
        m = model()
        config = TrainConfig(steps=40, batch_size=8, lr=5e-3, warmup_steps=5)
        loss = LayerSkipLoss(exit_parts(m), PRESETS["embedded"].ablated(mode), 40, 0)  # type: ignore[arg-type]
        with loss.installed():
            train(m, example_batches(examples(), 8, 0), config, loss=loss)
        curves[mode] = score_exits(m, examples())[0]
        save_model(m, tmp_path / mode)
        again = load_model(tmp_path / mode)
        tokens = torch.arange(3, 9)[None]
        assert torch.equal(again(tokens).logits, m(tokens).logits)
    assert curves["both"][1].nats < 0.95 * curves["baseline"][1].nats
    assert "forward" not in vars(m.model.layers[0])


def test_gpt2_trains_with_dropout_of_rows() -> None:
    m = gpt2()
    loss = LayerSkipLoss(exit_parts(m), Skip(0.5, 1.0, "none", 1, "constant"), 15, 0)
    config = TrainConfig(steps=15, batch_size=8, lr=5e-3, warmup_steps=2)
    before = score_exits(m, examples())[0][0].nats
    with loss.installed():
        train(m, example_batches(examples(), 8, 0), config, loss=loss)
    assert score_exits(m, examples())[0][0].nats < before


def test_presets_are_the_papers_and_ablations_take_parts_away() -> None:
    assert PRESETS["continual-llama2-7b"] == Skip(0.1, 0.2, "rotational", 8, "constant")
    assert PRESETS["task-topv2-1.5b"].curriculum == "gradual"
    skip = Skip()
    assert skip.ablated("ld") == replace(skip, e_scale=0.0)
    assert skip.ablated("ee") == replace(skip, p_max=0.0)
    assert skip.ablated("baseline") == replace(skip, p_max=0.0, e_scale=0.0)


def test_lora_trains_early_layers_alone_and_merges_into_an_ordinary_model() -> None:
    pytest.importorskip("peft")
    m = model()
    late = m.model.layers[3].mlp.down_proj.weight.clone()
    names = set(m.state_dict())
    merge = add_lora(m, 4, 2)
    trainable = [name for name, p in m.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora" in name and ("layers.0." in name or "layers.1." in name) for name in trainable)
    loss = LayerSkipLoss(exit_parts(m), Skip(), 8, 0)
    with loss.installed():
        train(m, example_batches(examples(), 8, 0), TrainConfig(steps=8, batch_size=8, lr=1e-2), loss=loss)
    merged = merge()
    assert set(merged.state_dict()) == names
    assert torch.equal(merged.model.layers[3].mlp.down_proj.weight, late)  # type: ignore[union-attr,operator]


def test_lora_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"polyloom\[lora\]"):
        add_lora(model(), 4, 2)
