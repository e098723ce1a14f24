from __future__ import annotations

import operator

import pytest

from polyloom.core.cluster import ray_map


@pytest.fixture
def local_ray():
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore")
def test_calls_come_back_in_order_from_a_cluster_on_loopback(local_ray, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert list(ray_map(operator.mul, [(n, n) for n in range(20)])) == [n * n for n in range(20)]
    assert {node["NodeManagerAddress"] for node in local_ray.nodes()} == {"127.0.0.1"}
