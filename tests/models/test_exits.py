"""Parts of models that exits need, and forwards replaced and brought back."""

from typing import Any

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.models.exits import exit_parts, replaced_forwards
from polyloom.models.tiny import build_tiny


@pytest.mark.parametrize("name", ["llama-2x64", "granite-2x64"])
def test_parts_project_hidden_states_to_the_models_logits(name: str) -> None:
    model = build_tiny(name, 300)
    parts = exit_parts(model)
    tokens = torch.randint(0, 300, (1, 6))
    library = model(input_ids=tokens, output_hidden_states=True)
    # The library's last hidden state is normed already.
    assert torch.allclose(parts.logits(library.hidden_states[-1]), library.logits, atol=1e-5)
    assert parts.num_layers == 2


def test_replaced_forwards_come_back_and_are_not_replaced_twice() -> None:
    model = build_tiny("llama-2x64", 300)
    parts, tokens = exit_parts(model), torch.arange(5)[None]
    before = model(tokens).logits

    def skip(index: int, forward: Any) -> Any:
        return lambda hidden_states, *args, **kwargs: hidden_states

    with replaced_forwards(parts.layers, skip):
        assert not torch.allclose(model(tokens).logits, before)
        with pytest.raises(UserError, match="patched already"), replaced_forwards(parts.layers, skip):
            pass
    assert torch.equal(model(tokens).logits, before)


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UserError, match="no output head"):
        exit_parts(build_tiny("llama-2x64", 300).model)
