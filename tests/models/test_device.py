from __future__ import annotations

import time

import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed
from polyloom.models.device import (
    autocast,
    choose_device,
    clock,
    clock_unit,
    has_fast_bfloat16,
    pin_threads,
    seed_generators,
    torch_generator,
)


def test_seeding_the_cpu_is_torchs_own_seeding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**63 - 1)
        wanted = torch.rand(3)
        seed_generators(2**63 - 1, torch.device("cpu"))
        assert torch.equal(torch.rand(3), wanted)


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_device_is_refused() -> None:
    with pytest.raises(UserError, match="--device: this torch build sees no cuda device"):
        choose_device("cuda")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 2 of this machine has no GPU of its own: it has 2"):
        choose_device()


def test_work_on_the_cpu_is_timed_by_the_seconds_of_the_process() -> None:
    now = clock(torch.device("cpu"))
    start = now()
    time.sleep(0.05)
    assert now() - start < 0.05
    assert clock_unit(torch.device("cpu")) == "CPU second"


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32),
    ],
)
def test_precision_of_matrix_products(precision: str, expected: torch.dtype) -> None:
    matrix = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):  # type: ignore[arg-type]
        assert (matrix @ matrix).dtype == expected
    assert (matrix @ matrix).dtype == torch.float32


def test_generators_are_named_streams() -> None:
    draws = [torch.rand(4, generator=torch_generator(*names)) for names in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
    assert torch_generator(0, "a").initial_seed() == derive_seed(0, "a")


def test_threads_are_pinned() -> None:
    before = torch.get_num_threads()
    try:
        pin_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
