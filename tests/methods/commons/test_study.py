"""The study's parts, small."""

import pytest

from polyloom.methods.commons.config import CommonsStudyConfig
from polyloom.methods.commons.study import run_study
from polyloom.methods.commons.tiny import batching, train_tiny


def test_quick_parts_are_exact_and_identical(run):
    config = CommonsStudyConfig(parts=["policies", "allocation", "languages"])
    scalars = run_study(config, run).scalars
    assert scalars["policy_cases_exact"].value == scalars["num_policy_cases"].value
    assert scalars["allocation_total_variation_engine"].value < 0.01
    assert scalars["allocation_total_variation_batch"].value < 0.01
    assert scalars["languages_identical"].value is True
    assert scalars["language_parse_failures"].value == 0
    assert run_study(config, run).scalars == scalars


@pytest.mark.slow
def test_a_tiny_local_model_is_batched_without_a_changed_reply(tmp_path):
    train_tiny(tmp_path / "model", steps=40, seed=0)
    _, identical, _ = batching(tmp_path / "model", 12, 12, 0)
    assert identical
