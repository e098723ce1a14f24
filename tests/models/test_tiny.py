from __future__ import annotations

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.models.load import count_parameters
from polyloom.models.tiny import TINY, build_tiny

TOKENS = torch.arange(24).view(2, 12)


@pytest.mark.parametrize("name", TINY)
def test_a_model_has_the_size_of_its_name(name: str) -> None:
    model = build_tiny(name, vocab_size=300)
    form, _, size = name.partition("-")
    layers, width = map(int, size.split("x"))
    assert model.config.model_type == form
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (layers, width)
    assert not model.training
    with torch.no_grad():
        assert model(input_ids=TOKENS)[0].shape == (2, 12, width if form == "bert" else 300)


@pytest.mark.parametrize("name", ["llama-2x64", "granite-4x128"])
def test_parameters_by_hand(name: str) -> None:
    size = TINY[name]
    d, f = size.width, size.feed_forward
    count = count_parameters(build_tiny(name, vocab_size=300))
    assert count.embedding == 2 * 300 * d
    assert count.non_embedding == size.num_layers * (4 * d * d + 3 * d * f + 2 * d) + d


def test_feed_forward_widths_are_the_papers_rule() -> None:
    # 64 * floor((8d/3) / 64): Tele-FLM's 8192 -> 21824 and 512 -> 1344 come out of it.
    assert [TINY[f"llama-{size}"].feed_forward for size in ("2x64", "4x128", "8x256")] == [128, 320, 640]


def test_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_tiny("llama-2x64", 300, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build_tiny("llama-2x64", 300, seed=3), build_tiny("llama-2x64", 300, seed=4)
    pairs = list(zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for (_, a), b, _ in pairs)
    assert all(torch.equal(a, c) == ("norm" in name) for (name, a), _, c in pairs)


def test_a_layers_weights_do_not_depend_on_the_depth() -> None:
    shallow, deep = build_tiny("bert-2x64", 300), build_tiny("bert-2x64", 500)
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(shallow.get_parameter(name), deep.get_parameter(name))
    assert float(shallow.get_parameter(name).detach().std()) == pytest.approx(0.02, rel=0.05)
    embedding = shallow.get_parameter("embeddings.word_embeddings.weight").detach()
    assert float(embedding.std()) == pytest.approx(0.1, rel=0.05)


def test_granite_with_neutral_multipliers_is_llama() -> None:
    llama, granite = build_tiny("llama-2x64", 300), build_tiny("granite-2x64", 300)
    assert llama.state_dict().keys() == granite.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(llama(input_ids=TOKENS).logits, granite(input_ids=TOKENS).logits)


def test_an_unknown_name_suggests_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'llama-2x64'"):
        build_tiny("lama-2x64", 300)
