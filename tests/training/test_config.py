from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from polyloom.training.config import TrainConfig


def test_the_defaults_are_a_run() -> None:
    config = TrainConfig()
    assert (config.schedule, config.precision, config.checkpoint_every) == ("cosine", "auto", 0)
    assert all(field.description for field in TrainConfig.model_fields.values())


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"lr": 0}, {"beta1": 1}, {"schedule": "step"}, {"patience": 2}, {"learning_rate": 1}]
)
def test_what_cannot_be_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(values)


def test_it_needs_no_torch() -> None:
    code = "import sys, polyloom.training.config, polyloom.data.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
