"""Personal data to placeholders: e-mail addresses, IPv4 addresses, payment cards, national identity numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

PLACEHOLDERS = {"email": "<EMAIL>", "ip": "<IP>", "card": "<CARD>", "id": "<ID>"}
# Bounded parts: an open-ended local part would make a long run of letters cost its square.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IPV4 = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)")
_CARD = re.compile(r"(?<![\d-])(?:\d{4}[ -]){3}\d{4}(?![\d-])|(?<![\d.])\d{15,16}(?![\d.]*\d)")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_CHINA = re.compile(
    r"(?<![\dA-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_SPAIN = re.compile(r"(?<![\dA-Za-z])[XYZ\d]\d{7}-?[A-HJ-NP-TV-Z](?![\dA-Za-z])")
_ITALY = re.compile(r"(?<![\dA-Za-z])[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?![\dA-Za-z])")
_POLAND = re.compile(r"(?<![\d.])\d{11}(?![\d.]*\d)")


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if c.isdigit()]


def _luhn(text: str) -> bool:
    digits = _digits(text)[::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _china(text: str) -> bool:
    """Check the last character of a resident identity number (GB 11643, ISO 7064 MOD 11-2)."""
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def _spain(text: str) -> bool:
    """Check the letter of a DNI or NIE: the number modulo 23."""
    number = text[:8].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


def _poland(text: str) -> bool:
    """Check the last digit of a PESEL and its month."""
    digits = _digits(text)
    weighted = sum(d * w for d, w in zip(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3), strict=False))
    return (10 - weighted % 10) % 10 == digits[10] and 1 <= (digits[2] * 10 + digits[3]) % 20 <= 12


def _always(text: str) -> bool:
    return True


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _always),
    ("id", _CHINA, _china),
    ("card", _CARD, _luhn),
    ("id", _SSN, _always),
    ("id", _SPAIN, _spain),
    ("id", _ITALY, _always),
    ("id", _POLAND, _poland),
    ("ip", _IPV4, _always),
)


def replace_private(text: str) -> tuple[str, Counter[str]]:
    """Put placeholders in the place of personal data.

    Numbers with a check digit (cards, identity numbers of China, Poland and Spain) are replaced where it fits; US
    social security numbers and Italian codes go by their form.

    Returns:
        The text, and how many of each kind were replaced.
    """
    found = Counter[str]()
    for kind, pattern, check in _KINDS:

        def replace(match: re.Match[str], kind: str = kind, check: Callable[[str], bool] = check) -> str:
            if not check(match.group()):
                return match.group()
            found[kind] += 1
            return PLACEHOLDERS[kind]

        if kind != "email" or "@" in text:
            text = pattern.sub(replace, text)
    return text, found
