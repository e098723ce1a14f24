"""Work spread over a Ray cluster: one function, many calls, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from polyloom.core.errors import MissingExtra

T = TypeVar("T")


def ray_map(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """Yield `function(*call)` for each call, in order, computed on the cluster that `RAY_ADDRESS` names.

    Without an address a cluster of this machine is started; it listens on loopback alone. Ray's usage reports are
    off either way. A cluster that is connected already is used as it is.

    Args:
        function: importable on the workers.
        calls: the arguments of each call; they and the results are pickled by Ray between its own processes.

    Raises:
        MissingExtra: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", extra="ray") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(address=address, logging_level="error", log_to_driver=False, **local)
    remote = ray.remote(function)
    futures = [remote.remote(*call) for call in calls]
    for future in futures:
        yield ray.get(future)
