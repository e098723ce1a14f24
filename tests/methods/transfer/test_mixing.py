"""Mixed word vectors by hand, laid out as the sequences are, and off without translations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from polyloom.data.records import Example
from polyloom.methods.transfer.mixing import Mixer, mix_vectors
from polyloom.methods.transfer.sequences import Sequencer, gold_heads
from tests.methods.transfer.test_models import FIRST, SECOND, TARGETS, Letters, whole


def test_vectors_are_mixed_with_the_mean_of_the_translation_by_hand() -> None:
    table = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    own = torch.tensor([[[8.0, 8.0], [1.0, 1.0]]])
    translations = torch.tensor([[[-1, -1], [1, 2]]])
    assert mix_vectors(own, translations, table, 0.5).tolist() == [[[8.0, 8.0], [1.0, 1.5]]]
    assert mix_vectors(own, translations, table, 1.0)[0, 1].tolist() == [1.0, 2.0]
    assert torch.equal(mix_vectors(own, translations, table, 0.0), own)


@pytest.mark.parametrize("max_length", [40, 12])
def test_each_piece_of_a_switched_word_names_the_pieces_of_its_translation(max_length: int) -> None:
    sequencer, example = Sequencer(Letters(2), max_length, TARGETS, gold_heads), Example("a", (FIRST, SECOND), "yes")
    new = (replace(FIRST, words=("my", "name", "is", "xy")), replace(SECOND, words=("q", "bc")))
    mixed = sequencer.mixed([example], [replace(example, sentences=new)])
    batch = sequencer.batch([example])
    assert mixed.shape[:2] == batch["input_ids"].shape
    named = {place: [one for one in found if one >= 0] for place, found in enumerate(mixed[0].tolist())}
    x, y, q = (sequencer.pieces(letter)[0] for letter in "xyq")
    start = batch["words"][0, 3].item() or 99
    # "wasi" has four pieces; "a" stands behind them and both separators, or behind what the cut has left.
    wanted = {**{place: [x, y] for place in range(start, start + 4)}, batch["input_ids"].shape[1] - 4: [q]}
    assert {place: found for place, found in named.items() if found} == {
        place: found for place, found in wanted.items() if place < len(named)
    }


def test_a_hook_without_translations_changes_no_bit() -> None:
    table = nn.Embedding(5, 3)
    ids = torch.tensor([[1, 2]])
    plain = table(ids)
    mixer = Mixer(table, 0.5)
    assert torch.equal(table(ids), plain)
    mixer.translations = torch.tensor([[[-1], [4]]])
    assert torch.equal(table(ids)[0, 0], plain[0, 0])
    assert torch.allclose(table(ids)[0, 1], (plain[0, 1] + table.weight[4]) / 2)


def test_a_whole_model_mixes_what_a_batch_names_and_nothing_after() -> None:
    model, sequencer = whole()
    example = Example("a", (FIRST,), "yes")
    batch = sequencer.batch([example])
    mixed = sequencer.mixed(
        [example], [replace(example, sentences=(replace(FIRST, words=("my", "name", "is", "bc")),))]
    )
    with torch.no_grad():
        plain = model(batch).states
        model.mix(0.5)
        assert torch.equal(model(batch).states, plain)
        assert not torch.allclose(model({**batch, "mixed": mixed}).states, plain, atol=1e-4)
        assert torch.equal(model(batch).states, plain)
