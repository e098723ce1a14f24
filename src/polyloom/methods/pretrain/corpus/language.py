"""Which language a document is in."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from polyloom.core.errors import MissingExtra
from polyloom.data.scripts import count_letters
from polyloom.data.text import UNKNOWN

Identifier = Literal["py3langid", "lingua", "none"]
SHORTEST_LETTERS = 20
_CHARACTERS = 1000


@cache
def _py3langid() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingExtra("py3langid", extra="corpus") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def _lingua() -> Any:
    try:
        from lingua import LanguageDetectorBuilder
    except ImportError:
        raise MissingExtra("lingua-language-detector", extra="lingua") from None
    return LanguageDetectorBuilder.from_all_languages().build()


def identify(text: str, identifier: Identifier = "py3langid") -> tuple[str, float]:
    """Return a text's language (ISO 639-1) and the probability; `und` and 0 for less than 20 letters.

    Args:
        text: the first 1,000 characters are looked at.
        identifier: `py3langid` (its model is in the package), `lingua` (slower, better on short text) or `none`.

    Raises:
        MissingExtra: the library is not installed.
    """
    head = text[:_CHARACTERS]
    if identifier == "none" or count_letters(head) < SHORTEST_LETTERS:
        return UNKNOWN, 0.0
    if identifier == "lingua":
        best = _lingua().compute_language_confidence_values(head)[0]
        return best.language.iso_code_639_1.name.lower(), float(best.value)
    code, probability = _py3langid().classify(head)
    return str(code), float(probability)


def primary(code: str | None) -> str:
    """Return the primary subtag of a BCP 47 code in lower case; `und` for none."""
    return (code or UNKNOWN).replace("_", "-").split("-")[0].lower() or UNKNOWN
