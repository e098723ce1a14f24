"""Public names of packages: each is there, and a name that is not there is no silent None."""

from __future__ import annotations

from importlib import import_module

import pytest

from polyloom.core.registry import rooms

PACKAGES = [
    "polyloom.generation",
    "polyloom.reports",
    "polyloom.web",
    *(f"polyloom.methods.{room}" for room in rooms()),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_found_on_first_use(package: str) -> None:
    module = import_module(package)
    names = getattr(module, "__all__", None) or module._MODULES
    assert all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = module.absent
