"""The pages: each module here has a `router`, and where it stands in the navigation.

`NAV` of a module is a tuple of `Nav`; its text is the catalogue's `nav.<name>`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Nav:
    """One entry of the navigation: its name, where it leads, and its place (small is first)."""

    name: str
    path: str
    order: int


def page_modules() -> list[ModuleType]:
    """Import and return all modules of pages."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
