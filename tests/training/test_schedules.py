from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.training.config import TrainConfig
from polyloom.training.schedules import lr_factor


def factors(**values: object) -> list[float]:
    config = TrainConfig(**{"steps": 11, "warmup_steps": 0, "min_lr_ratio": 0.0, **values})  # type: ignore[arg-type]
    return [lr_factor(step, config) for step in range(config.steps)]


def test_linear_by_hand() -> None:
    assert factors(schedule="linear") == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0])
    assert factors(schedule="linear", min_lr_ratio=0.5)[5] == pytest.approx(0.75)


def test_cosine_by_hand() -> None:
    values = factors(schedule="cosine", min_lr_ratio=0.1)
    assert (values[0], values[5], values[10]) == pytest.approx((1.0, 0.55, 0.1))
    assert values[2] == pytest.approx(0.1 + 0.9 * (1 + math.cos(0.2 * math.pi)) / 2)


def test_cosine_of_the_papers_run() -> None:
    # Peak 1.5e-4, minimum 1.5e-5, 2T of 2.5T tokens at 5,505,024 a step: 2.79e-5 (warm-up left out).
    config = TrainConfig(steps=454_131, warmup_steps=0, min_lr_ratio=0.1)
    assert 1.5e-4 * lr_factor(363_305, config) == pytest.approx(2.79e-5, abs=0.005e-5)


def test_warmup_and_wsd_by_hand() -> None:
    values = factors(schedule="wsd", steps=10, warmup_steps=4, decay_fraction=0.3, min_lr_ratio=0.2)
    assert values == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.6, 0.2])
    assert factors(schedule="constant", warmup_steps=2) == [0.5, 1.0] + [1.0] * 9


@given(
    st.sampled_from(["cosine", "wsd", "linear", "constant"]), st.integers(1, 60), st.integers(0, 30), st.floats(0, 1),
    st.floats(0.01, 1),
)  # fmt: skip
def test_every_schedule_rises_then_falls_within_its_bounds(
    schedule: str, steps: int, warmup: int, floor: float, decay: float
) -> None:
    values = factors(schedule=schedule, steps=steps, warmup_steps=warmup, min_lr_ratio=floor, decay_fraction=decay)
    after = values[warmup:]
    assert values[:warmup] == sorted(values[:warmup])
    assert after == sorted(after, reverse=True)
    assert all(floor - 1e-12 <= value <= 1 for value in after)
    if len(after) > 1 and schedule != "constant" and not (schedule == "wsd" and decay * steps <= 1):
        assert after[-1] == pytest.approx(floor)
