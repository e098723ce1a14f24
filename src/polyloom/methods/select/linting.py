"""What is wrong with an instruction: placeholders, leaked examples, canaries, duplicates, other languages, length."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from polyloom.methods.select.cleaning import clean_instruction, has_words
from polyloom.methods.select.data import PoolTask, split_glued

SHORT_WORDS, LONG_WORDS = 3, 300
PLACEHOLDER_SHARE = 0.5
MANY_TASKS = 2
LEAK_CHARACTERS = 12
_PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{\w+\}|<\w+>|\[\w+\]", re.DOTALL)
_EXAMPLE = re.compile(r"\b(?:for example|example\s*\d*\s*:|e\.g\.|input\s*:.{0,400}?output\s*:)", re.I | re.S)
_CANARY = re.compile(r"canary|benchmark data should never appear|^-{3,}$", re.I | re.M)
_ENGLISH = frozenset(
    [
        "the",
        "of",
        "is",
        "a",
        "an",
        "to",
        "in",
        "and",
        "for",
        "you",
        "your",
        "given",
        "whether",
        "if",
        "with",
        "from",
        "what",
        "that",
        "this",
        "are",
        "be",
        "it",
        "or",
        "on",
        "by",
        "as",
        "not",
        "which",
        "write",
        "say",
        "give",
        "name",
        "tell",
        "find",
        "do",
        "does",
        "answer",
    ]
)


@dataclass(frozen=True)
class Finding:
    """One defect of one instruction."""

    task: str
    instruction: str
    rule: str
    detail: str


RULES = {
    "empty": "nothing is left without its placeholders",
    "placeholders": "more than half of it is placeholders",
    "short": f"fewer than {SHORT_WORDS} words",
    "long": f"more than {LONG_WORDS} words",
    "example": "it holds an example",
    "leak": "it holds the input of one of the task's examples",
    "canary": "it holds a canary notice or a rule of dashes",
    "duplicate": "other tasks have the same instruction, so that it cannot tell them apart",
    "language": "it is not English",
    "glued": "the task's name is made of two names of the pool",
}


MOST_LOOKED_AT = 2000


def looks_english(text: str) -> bool:
    """Guess whether a text is English: Latin letters, and in five words or more one that English cannot do without."""
    if not text.isascii():
        letters = [character for character in text if character.isalpha()]
        latin = sum("LATIN" in unicodedata.name(character, "") for character in letters)
        if letters and latin < 0.8 * len(letters):
            return False
    words = re.findall(r"\w+", text.lower())
    return len(words) < 5 or any(word in _ENGLISH for word in words)


def foreign_share(texts: Sequence[str]) -> float:
    """Return the share of texts that are not English, by evenly spaced ones where there are many."""
    looked_at = texts[:: len(texts) // MOST_LOOKED_AT + 1]
    return sum(not looks_english(text) for text in looked_at) / max(1, len(looked_at))


def placeholder_share(text: str) -> float:
    """Return the share of a text's characters that stand in placeholders."""
    return sum(map(len, _PLACEHOLDER.findall(text))) / len(text) if text else 0.0


def lint_tasks(tasks: Sequence[PoolTask]) -> list[Finding]:
    """Check the raw instructions of tasks against `RULES`.

    Args:
        tasks: as their files have them, before cleaning.
    """
    cleaned = {text: clean_instruction(text) for task in tasks for text in task.instructions}
    holders: dict[str, set[str]] = {}
    for task in tasks:
        for text in task.instructions:
            holders.setdefault(cleaned[text].lower(), set()).add(task.id)
    ids = [task.id for task in tasks]
    findings = []
    for task in tasks:
        glued = split_glued(task.id, ids)
        if glued:
            findings.append(Finding(task.id, "", "glued", ", ".join(glued)))
        for text in task.instructions or ("",):
            others = holders.get(cleaned.get(text, ""), set()) | holders.get(cleaned.get(text, "").lower(), set())
            for rule, detail in _defects(task, text, cleaned.get(text, ""), others - {task.id}):
                findings.append(Finding(task.id, text, rule, detail))
    return findings


def _defects(task: PoolTask, text: str, cleaned: str, others: set[str]) -> list[tuple[str, str]]:
    found = []
    marks, share = _PLACEHOLDER.findall(text), placeholder_share(text)
    if not has_words(cleaned):
        return [("empty", "; ".join(marks) or "no words")]
    if share > PLACEHOLDER_SHARE:
        found.append(("placeholders", f"{share:.0%}: {', '.join(list(dict.fromkeys(marks))[:3])}"))
    num_words = len(cleaned.split())
    # A script without blanks has no countable words; its letters stand in for them.
    if num_words < SHORT_WORDS and len(cleaned) < 8 * SHORT_WORDS and cleaned.isascii():
        found.append(("short", f"{num_words} words"))
    if num_words > LONG_WORDS:
        found.append(("long", f"{num_words} words"))
    if (example := _EXAMPLE.search(text)) is not None:
        found.append(("example", example[0][:40].strip()))
    leaked = next((given for given, _ in task.examples if len(given) >= LEAK_CHARACTERS and given in text), None)
    if leaked:
        found.append(("leak", leaked[:60]))
    if _CANARY.search(text):
        found.append(("canary", "remove the notice before comparing"))
    if others:
        shown = sorted(others)
        found.append(("duplicate", ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")))
    if not looks_english(cleaned):
        found.append(("language", "an English encoder does not understand it"))
    return found


def count_rules(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how often each rule was broken, every rule named."""
    counts = Counter(finding.rule for finding in findings)
    return {rule: counts[rule] for rule in RULES}
