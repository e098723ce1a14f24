from __future__ import annotations

import pytest

from polyloom.core.cluster import ray_map
from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed

ray = pytest.importorskip("ray")


@pytest.mark.filterwarnings("ignore")
def test_calls_come_back_in_order_from_a_cluster(ray_cluster):
    assert list(ray_map(derive_seed, [(n, "name") for n in range(20)])) == [derive_seed(n, "name") for n in range(20)]


@pytest.mark.filterwarnings("ignore")
def test_without_a_cluster_the_command_that_starts_one_is_named(monkeypatch):
    def nobody(**settings):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(UserError, match="ray start --head"):
        list(ray_map(derive_seed, [(1, "name")]))
