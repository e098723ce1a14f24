"""Read CLDR data out of Babel without touching the copy that Babel shares between locales.

Babel resolves aliases lazily and writes the result back into data that several locales share, so that a name may
depend on which locale was asked first (in 2.18: Italian stand-alone "May" after Chinese). This module loads the same
files through a private instance of Babel's own loader and resolves every alias into fresh dictionaries.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import babel
import babel.localedata
from babel.core import get_global

from polyloom.core.errors import UserError

CHECKED_BABEL = "2.18.0"
CHECKED_CLDR = "47"
_SPACES = {0x00A0: " ", 0x202F: " ", 0x2009: " ", 0x200E: None, 0x200F: None, 0x061C: None, 0x00AD: None}

NATIVE_DIGITS = {
    "ar": "٠١٢٣٤٥٦٧٨٩",
    "fa": "۰۱۲۳۴۵۶۷۸۹",
    "ur": "۰۱۲۳۴۵۶۷۸۹",
    "hi": "०१२३४५६७८९",
    "mr": "०१२३४५६७८९",
    "ne": "०१२३४५६७८९",
    "bn": "০১২৩৪৫৬৭৮৯",
    "my": "၀၁၂၃၄၅၆၇၈၉",
}


def versions() -> dict[str, str]:
    """Return the versions of Babel and of the CLDR that it carries: both are part of every data set's identity."""
    return {"babel": babel.__version__, "cldr": str(get_global("cldr")["version"])}


def check_versions() -> None:
    """Warn when the installed Babel is not the one whose fingerprints are pinned.

    Raises:
        UserError: Babel is older than 2.17, whose data lack what the world reads.
    """
    major, minor = (int(part) for part in babel.__version__.split(".")[:2])
    if (major, minor) < (2, 17):
        raise UserError(f"Babel {babel.__version__} is too old for the world.", hint='Run: pip install "babel>=2.17"')
    found = versions()
    if found["cldr"] != CHECKED_CLDR:
        warnings.warn(
            f"The world was checked with CLDR {CHECKED_CLDR}, this is {found['cldr']}: the fingerprint differs.",
            stacklevel=3,
        )


def plain(text: str) -> str:
    """Turn no-break and narrow spaces into U+0020 and drop direction marks and soft hyphens."""
    return text.translate(_SPACES)


@functools.cache
def _loader() -> ModuleType:
    """Return a private instance of Babel's loader: its own cache, the same alias class."""
    spec = importlib.util.spec_from_file_location("polyloom_private_localedata", babel.localedata.__file__)
    if spec is None or spec.loader is None:
        raise UserError("Babel's locale data cannot be read.", hint="Reinstall it: pip install --force-reinstall babel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The stored files name babel.localedata.Alias, and the private merge function must recognise it.
    module.Alias = babel.localedata.Alias  # type: ignore[attr-defined]
    return module


def known_locale(language: str) -> bool:
    """Tell whether CLDR has data for this language code."""
    return bool(_loader().exists(language))


@functools.cache
def _raw(language: str) -> Mapping[Any, Any]:
    data: Mapping[Any, Any] = _loader().load(language)
    return data


def _merged(low: Mapping[Any, Any], high: Mapping[Any, Any]) -> dict[Any, Any]:
    result = dict(low)
    for key, value in high.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _resolved(value: Any, base: Mapping[Any, Any]) -> Any:
    """Return the value with every alias in it followed, as new dictionaries."""
    if isinstance(value, babel.localedata.Alias):
        return _resolved(_follow(value.keys, base), base)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], babel.localedata.Alias):
        return _merged(_resolved(value[0], base), _resolved(value[1], base))
    if isinstance(value, Mapping):
        return {key: _resolved(item, base) for key, item in value.items() if item is not None}
    return value


def _follow(keys: tuple[Any, ...], base: Mapping[Any, Any]) -> Any:
    data: Any = base
    for key in keys:
        if not isinstance(data, Mapping):
            data = _resolved(data, base)
        data = data[key]
    return data


@functools.cache
def section(language: str, name: str) -> dict[Any, Any]:
    """Return one section of a language's data with all aliases followed; the answer never depends on earlier calls.

    Args:
        language: a CLDR language code.
        name: a section such as "months", "territories" or "unit_patterns".

    Returns:
        Nested plain dictionaries; empty when CLDR has no such section.
    """
    base = _raw(language)
    value = _resolved(base[name], base) if name in base else {}
    return value if isinstance(value, dict) else {"": value}
