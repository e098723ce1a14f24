from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.methods.transfer.vectors import WordVectors, context_vectors, vocabulary_frequency
from polyloom.models.load import save_model

PIECES = ["[PAD]", "[UNK]", "the", "dog", "##s", "cat", "run"]


def tiny() -> tuple[BertModel, PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    pieces = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.model_max_length = 32
    return model, tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, tokenizer = tiny()
    save_model(model, tmp_path / "tiny", tokenizer)
    return tmp_path / "tiny"


def test_a_word_is_the_mean_of_its_pieces() -> None:
    model, tokenizer = tiny()
    texts = [("the", "dogs"), ("cat",), ("run", "the", "cat")]
    found = list(context_vectors(model, tokenizer, texts))
    assert [one.shape for one in found] == [(2, 8), (1, 8), (3, 8)]
    with torch.inference_mode():
        states = model(torch.tensor([[2, 3, 4]])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found[0][0], states[0], atol=1e-5)
    np.testing.assert_allclose(found[0][1], states[1:].mean(0), atol=1e-5)
    # A text's vectors do not depend on the others of its batch.
    np.testing.assert_allclose(next(context_vectors(model, tokenizer, texts[1:2])), found[1], atol=1e-5)


def test_words_beyond_the_encoder_keep_the_last_vector() -> None:
    model, tokenizer = tiny()
    (found,) = context_vectors(model, tokenizer, [("the",) * 40])
    np.testing.assert_array_equal(found[39], found[31])


def test_a_layer_that_is_not_there_is_refused() -> None:
    model, tokenizer = tiny()
    with pytest.raises(UserError, match="the encoder has no layer 9"):
        next(context_vectors(model, tokenizer, [("the",)], layer=9))


def test_words_without_context() -> None:
    model, tokenizer = tiny()
    table = model.get_input_embeddings().weight.detach().numpy()
    embed = WordVectors(model, tokenizer)
    np.testing.assert_allclose(embed("dogs"), table[[3, 4]].mean(0))
    assert not embed("").any()


def test_earlier_pieces_are_more_frequent() -> None:
    _, tokenizer = tiny()
    found = vocabulary_frequency(tokenizer)
    assert found["the"] == 1 / 3
    assert found["the"] > found["dog"] > found["run"]
    assert "##s" not in found
