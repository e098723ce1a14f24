"""Text that is safe to put on a page, in a figure or in a terminal, whoever wrote it."""

from __future__ import annotations

import unicodedata

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """Replace what no page or terminal may carry: control characters, surrogates and noncharacters.

    Tabs and newlines stay, and so do the marks that bidirectional and joined scripts need.
    """
    return "".join(_REPLACEMENT if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    if char in "\t\n":
        return False
    if unicodedata.category(char) in ("Cc", "Cs"):
        return True
    return ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF


def one_line(text: str, limit: int | None = None) -> str:
    """Return the text on one line, cut with an ellipsis where it has more characters than `limit`."""
    joined = " ".join(clean(text).split())
    return joined if limit is None or len(joined) <= limit else joined[: limit - 1].rstrip() + "…"


def human(name: str) -> str:
    """Return a key as words: `bits_per_byte` becomes `bits per byte`, `num_steps` becomes `number of steps`."""
    words = one_line(name).replace("_", " ").strip()
    return f"number of {words[4:]}" if words.startswith("num ") else words


def sentence(text: str) -> str:
    """Return the text with a capital first letter, unless it starts with a symbol such as `f(x)` or `sigma_b`."""
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.isalpha() and len(first) > 1 else text
