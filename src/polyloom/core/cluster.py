"""Work spread over a Ray cluster: one function, many calls, results in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from polyloom.core.errors import MissingExtra, UserError

T = TypeVar("T")


def join_ray() -> Any:
    """Return the module `ray`, connected to the cluster that `RAY_ADDRESS` names.

    Without an address the cluster of this machine is used (`ray start --head`); none is started here, since Ray's
    services listen on every interface. A cluster that is connected already is used as it is.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", extra="ray") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers ({str(error).splitlines()[0]}).",
                where=f"RAY_ADDRESS={address}",
                hint="Start one with: ray start --head",
            ) from error
    return ray


def ray_map(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """Yield `function(*call)` for each call, in order, computed on the cluster that `join_ray` finds.

    Args:
        function: importable on the workers.
        calls: the arguments of each call; they and the results are pickled by Ray between its own processes.

    Raises:
        UserError: as `join_ray`.
    """
    ray = join_ray()
    remote = ray.remote(function)
    futures = [remote.remote(*call) for call in calls]
    for future in futures:
        yield ray.get(future)
