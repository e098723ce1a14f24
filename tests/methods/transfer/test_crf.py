"""The CRF against every sequence written out, in likelihood, gradient-free decoding and masks."""

from __future__ import annotations

import itertools

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.methods.transfer.crf import LinearChain
from polyloom.methods.transfer.models import TransferModel, WordEncoder
from polyloom.methods.transfer.sequences import Targets

TAGS = 3


def chain() -> LinearChain:
    torch.manual_seed(0)
    found = LinearChain(TAGS)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


def scores(found: LinearChain, emissions: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Write out the score of every sequence of one text."""
    result = {}
    for tags in itertools.product(range(TAGS), repeat=len(emissions)):
        value = found.start[tags[0]] + found.end[tags[-1]]
        value = value + sum(emissions[t, tag] for t, tag in enumerate(tags))
        value = value + sum(found.transitions[a, b] for a, b in itertools.pairwise(tags))
        result[tags] = float(value.detach())
    return result


def test_likelihood_and_decoding_are_those_of_all_sequences() -> None:
    found, sizes = chain(), [4, 1, 3]
    emissions = torch.randn(3, 4, TAGS)
    mask = torch.arange(4) < torch.tensor(sizes)[:, None]
    tags = torch.randint(0, TAGS, (3, 4)).masked_fill(~mask, -100)
    likelihood, decoded = found.log_likelihood(emissions, tags, mask), found.decode(emissions, mask)
    for row, size in enumerate(sizes):
        every = scores(found, emissions[row, :size])
        own = every[tuple(tags[row, :size].tolist())]
        total = torch.logsumexp(torch.tensor(list(every.values())), 0)
        assert float(likelihood[row].detach()) == pytest.approx(own - float(total), abs=1e-4)
        assert tuple(decoded[row, :size].tolist()) == max(every, key=lambda one: every[one])
        assert decoded[row, size:].tolist() == [0] * (4 - size)


def test_masked_positions_change_nothing_and_an_empty_row_gives_zero() -> None:
    found = chain()
    emissions, tags = torch.randn(2, 3, TAGS), torch.tensor([[0, 2, -100], [-100, -100, -100]])
    mask = tags != -100
    first = found.log_likelihood(emissions, tags, mask)
    longer = torch.cat([emissions, torch.full((2, 2, TAGS), 9.0)], 1)
    padded = found.log_likelihood(
        longer, torch.nn.functional.pad(tags, (0, 2), value=-100), torch.nn.functional.pad(mask, (0, 2))
    )
    assert torch.allclose(first, padded)
    assert float(first[1].detach()) == 0
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_transitions_that_never_occur_are_unlearned() -> None:
    # The words say nothing: only the order of the tags, 0 1 2, is there to be learned.
    torch.manual_seed(1)
    found, emissions = LinearChain(TAGS), torch.zeros(4, 3, TAGS)
    tags, mask = torch.tensor([[0, 1, 2]] * 4), torch.ones(4, 3, dtype=torch.bool)
    optimiser = torch.optim.SGD(found.parameters(), lr=1.0)
    for _ in range(40):
        optimiser.zero_grad()
        loss = -found.log_likelihood(emissions, tags, mask).mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1
    assert found.decode(emissions, mask).tolist() == tags.tolist()


def test_a_chain_needs_tags() -> None:
    with pytest.raises(UserError, match="needs word tags"):
        TransferModel(WordEncoder(10, 4, 0.0), Targets(("no", "yes")), crf=True)
