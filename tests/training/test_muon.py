from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Muon

from polyloom.core.errors import Stopped, UserError
from polyloom.models.tiny import build_tiny
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.muon import MuonWithAdamW, orthogonalised
from polyloom.training.packing import window_batches

STREAM = torch.randint(0, 50, (900,), generator=torch.Generator().manual_seed(0))
BATCH_AT = window_batches(STREAM, window_tokens=12, batch_size=6, seed=0)


def config(**values: Any) -> TrainConfig:
    return TrainConfig(
        **{"steps": 6, "batch_size": 6, "warmup_steps": 2, "precision": "float32", "optimizer": "muon", **values}
    )


def groups(model: Any, decay: float = 0.1) -> list[dict[str, Any]]:
    matrices = [p for n, p in model.named_parameters() if "proj" in n]
    others = [p for n, p in model.named_parameters() if "proj" not in n]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": decay, "muon": True},
        {"params": others, "lr": 1e-3, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("size", [(48, 48), (96, 40), (40, 96)])
def test_orthogonalisation_against_a_singular_value_decomposition(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    # In the singular basis it is diagonal: U and V stay, the values come near 1.
    inside = u.T @ orthogonalised(matrix[None])[0] @ vh.T
    values = inside.diagonal()
    assert (inside - torch.diag(values)).abs().max() < 2e-2
    assert values.min() > 0.5
    assert values.max() < 1.3
    both = torch.stack([1e3 * matrix, matrix])
    # Where bfloat16 is fast it orthogonalises in that.
    torch.testing.assert_close(*orthogonalised(both), atol=2e-2, rtol=0)


def test_it_is_torch_s_muon_beside_torch_s_adamw() -> None:
    ours, theirs = (build_tiny("llama-2x64", 50) for _ in range(2))
    both = MuonWithAdamW(groups(ours), config(), fused=True)
    matrices, others = groups(theirs)
    muon = Muon(matrices["params"], lr=0.02, weight_decay=0.1, momentum=0.95)
    adamw = AdamW(others["params"], lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    start = [p.detach().clone() for p in ours.parameters()]
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=draw)
            b.grad = a.grad.clone()
        both.step()
        muon.step()
        adamw.step()
    for (name, a), b, old in zip(ours.named_parameters(), theirs.parameters(), start, strict=True):
        # Theirs orthogonalises in bfloat16.
        assert (a - b).detach().norm() < 0.05 * (b - old).detach().norm(), name


def test_matrices_are_stepped_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    together, single = (build_tiny("llama-2x64", 50) for _ in range(2))
    train(together, BATCH_AT, config(steps=2), groups=groups(together))
    monkeypatch.setattr("polyloom.training.muon.TOGETHER", 1)
    train(single, BATCH_AT, config(steps=2), groups=groups(single))
    for a, b in zip(together.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_it_learns_and_its_groups_follow_the_schedule() -> None:
    model = build_tiny("llama-2x64", 50)
    pattern = window_batches(torch.arange(50).repeat(20), window_tokens=16, batch_size=8)
    parts = groups(model)
    parts[1]["lr"] = 5e-3
    state = train(model, pattern, config(steps=60, batch_size=8), groups=parts)
    assert state.loss is not None
    assert state.loss < 0.5
    optimizer = MuonWithAdamW(groups(model), config(), fused=True)
    optimizer.param_groups[1]["lr"] = 0.5
    assert optimizer.adamw is not None
    assert optimizer.adamw.param_groups[0]["lr"] == 0.5


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    unbroken, stopped, resumed = (build_tiny("llama-2x64", 50, seed=seed) for seed in (0, 0, 9))
    train(unbroken, BATCH_AT, config(), groups=groups(unbroken))
    calls = [0]

    def check_stop() -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise Stopped("asked to stop.")

    with pytest.raises(Stopped):
        train(stopped, BATCH_AT, config(), groups=groups(stopped), checkpoints=tmp_path, check_stop=check_stop)
    train(resumed, BATCH_AT, config(), groups=groups(resumed), checkpoints=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_groups_without_muon_are_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer: no group of parameters is Muon's"):
        train(build_tiny("llama-2x64", 50), BATCH_AT, config())
