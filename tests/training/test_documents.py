from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.documents import best_fit, inside_documents, pack_documents, targets_inside
from polyloom.training.loop import next_token_loss, train
from polyloom.training.stream import SampleStream

T = 16


@given(st.lists(st.integers(2, 17), max_size=60))
def test_best_fit_fills_rows_that_could_not_be_joined(lengths: list[int]) -> None:
    rows = best_fit(np.array(lengths, dtype=np.int64), 17)
    filled = np.bincount(rows, weights=lengths) if lengths else np.zeros(0)
    assert filled.max(initial=0) <= 17
    assert sorted(set(rows.tolist())) == list(range(len(filled)))
    # Of two rows the later one was opened by a piece for which the earlier one had no room.
    assert len(filled) < 2 or np.sort(filled)[:2].sum() > 17


def test_by_hand() -> None:
    # 10 opens a row; 7 fits it exactly; 9 opens another; 4 takes its room of 8, the least that is enough; so does 3.
    assert best_fit(np.array([4, 10, 3, 9, 7]), 17).tolist() == [1, 0, 1, 1, 0]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_every_token_but_a_document_s_first_is_a_target_once(sizes: list[int]) -> None:
    offsets = np.cumsum([0, *sizes[:-1]])
    tokens = np.arange(1000, 1000 + sum(sizes))
    packing = pack_documents(offsets, sum(sizes), T)
    targets: list[int] = []
    for row in range(packing.num_rows):
        found, documents = (torch.from_numpy(part)[None] for part in packing.read(tokens, row))
        inside = targets_inside(found, documents)
        targets += inside[inside >= 0].tolist()
        numbers = documents[0].tolist()
        assert numbers == sorted(n for n in numbers if n >= 0) + [-1] * numbers.count(-1)
    expected = [int(t) for o, n in zip(offsets, sizes, strict=True) for t in tokens[o + 1 : o + n]]
    assert sorted(targets) == expected
    assert packing.num_cut == sum(size > T + 1 for size in sizes)


def stream(seed: int = 0) -> tuple[SampleStream, dict[str, Any]]:
    draw = np.random.default_rng(0)
    sizes = {"a": draw.integers(2, 30, 200), "b": draw.integers(2, 12, 90)}
    tokens = {name: draw.integers(1, 50, int(n.sum())) for name, n in sizes.items()}
    documents = {name: np.cumsum([0, *n[:-1]]) for name, n in sizes.items()}
    made = SampleStream(tokens, {"a": 0.5, "b": 0.5}, documents=documents, window_tokens=T, batch_size=6, seed=seed)
    return made, {"tokens": tokens, "documents": documents}


def test_logits_of_a_packed_document_are_those_of_the_document_alone() -> None:
    model = build_tiny("llama-2x64", 50)
    batch = stream()[0](0)
    positions, mask = inside_documents(batch["document"][:, :-1])
    with torch.no_grad():
        packed = model(input_ids=batch["tokens"][:, :-1], position_ids=positions, attention_mask=mask).logits
    compared = 0
    for row, numbers in enumerate(batch["document"][:, :-1]):
        for number in numbers.unique().tolist():
            places = (numbers == number).nonzero().flatten()
            if number < 0:
                continue
            with torch.no_grad():
                alone = model(input_ids=batch["tokens"][row, places][None]).logits[0]
            torch.testing.assert_close(packed[row, places], alone, atol=1e-5, rtol=0)
            compared += 1
    assert compared > 8


def test_the_loss_is_the_mean_over_documents_alone() -> None:
    model = build_tiny("llama-2x64", 50)
    batch = stream()[0](1)
    with torch.no_grad():
        summed, count = next_token_loss(model, batch)
        total, number = 0.0, 0
        for tokens, documents in zip(batch["tokens"], batch["document"], strict=True):
            for piece in documents[documents >= 0].unique():
                one, n = next_token_loss(model, {"tokens": tokens[documents == piece][None]})
                total, number = total + float(one), number + n
    assert count == number < batch["tokens"][:, 1:].numel()
    assert float(summed) == pytest.approx(total, rel=1e-5)


def test_the_packed_stream_is_a_function_of_seed_and_sample() -> None:
    ours, other = stream(0)[0], stream(1)[0]
    digest = ours.digest([range(40)])
    assert stream(0)[0].digest([range(7), range(7, 40)], 3) == digest
    assert other.digest([range(40)]) != digest
    places = [ours.place(i) for i in range(2000)]
    first = [row for source, row in places if source == 1][: int(ours.num_windows[1])]
    assert sorted(first) == list(range(int(ours.num_windows[1])))


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_training_on_packed_rows_learns(micro_batch_size: int) -> None:
    model = build_tiny("llama-2x64", 50)
    config = TrainConfig(
        steps=12, batch_size=6, micro_batch_size=micro_batch_size, lr=5e-3, warmup_steps=0, precision="float32"
    )
    made = stream()[0]
    state = train(model, lambda step: made(step % 2), config)
    assert state.loss is not None
    assert state.loss < 3.0
    inside = [targets_inside(made(step % 2)["tokens"], made(step % 2)["document"]) for step in range(12)]
    assert state.num_tokens == sum(int((targets >= 0).sum()) for targets in inside)
