"""A dictionary from the user's own language model: words are asked for in lists, and what it says is asked back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import regex
from babel import Locale, UnknownLocaleError

from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.generation.chat import ChatModel, ask, complete_all
from polyloom.methods.transfer.induction import words_to_align

GROUP = 20
MAX_WORDS = 4
TOKENS_PER_WORD = 16
QUESTION = (
    "Translate each of these words from {source} into {target}. Answer with one line for each word: the word, then "
    "' = ', then its most usual translation in {target} alone.\n\n{words}"
)
_LINE = regex.compile(r"\s*(?:\d+[.)]\s+|[-*•]\s+)?(?P<word>.+?)\s*(?:=|->|→|:)\s*(?P<said>.+)")
_REMARK = regex.compile(r"\s*[(\[（【].*?[)\]）】]")
_SEVERAL = regex.compile(r"[,;/、，；]")
_QUOTES = " \"'`*.“”„«»‘’。"
Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Asked:
    """What a model said: its dictionary, and how many words were asked for, answered, and came back."""

    dictionary: Dictionary
    num_asked: int
    num_answered: int
    num_confirmed: int


def language_name(code: str) -> str:
    """Return a language's English name by CLDR, or the code itself where it has none."""
    try:
        return Locale.parse(code, sep="-" if "-" in code else "_").get_display_name("en") or code
    except (UnknownLocaleError, ValueError):
        return str(Locale("en").languages.get(code, code))


def frequent_words(text: str, number: int) -> list[str]:
    """Return the most frequent words of a text, without numbers and signs; equal ones in another case are one word."""
    counts: dict[str, Counter[str]] = {}
    for word in words_to_align(text):
        counts.setdefault(word.casefold(), Counter())[word] += 1
    ranked = sorted(counts.values(), key=lambda forms: -forms.total())
    return [forms.most_common(1)[0][0] for forms in ranked[:number]]


def read_answer(answer: str, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the lines `word = translation` of an answer.

    Numbers, bullets, quotes, remarks in brackets and other arrows are taken off; several translations may stand on a
    line. Left out are lines about no word that was asked for, and what follows from a part without a letter or of over
    four words on: it is an explanation.

    Args:
        answer: of the model.
        words: that were asked for.

    Returns:
        Translations by word, in the order of the line.
    """
    asked = {word.casefold(): word for word in words}
    found: dict[str, tuple[str, ...]] = {}
    for line in answer.splitlines():
        match = _LINE.fullmatch(line)
        word = asked.get(match["word"].strip(_QUOTES).casefold()) if match else None
        if match is None or word is None or word in found:
            continue
        said = [one.strip(_QUOTES) for one in _SEVERAL.split(_REMARK.sub("", match["said"]))]
        kept = list(takewhile(_is_translation, said))
        if kept:
            found[word] = tuple(dict.fromkeys(kept))
    return found


def _is_translation(text: str) -> bool:
    return bool(regex.search(r"\p{L}", text)) and len(text.split()) <= MAX_WORDS


def translate_words(
    model: ChatModel, words: Sequence[str], source: str, target: str, advance: Advance
) -> dict[str, tuple[str, ...]]:
    """Ask a model for the translations of words, in lists of 20.

    Args:
        model: not entered.
        words: to translate.
        source: code of their language.
        target: code of the language to translate into.
        advance: called with 1 as each list is answered.

    Raises:
        PolyloomError: no list at all was answered.
        UserError: the model refuses everything (wrong key, unknown model).
    """
    groups = [words[start : start + GROUP] for start in range(0, len(words), GROUP)]
    names = {"source": language_name(source), "target": language_name(target)}
    requests = [
        ask(QUESTION.format(words="\n".join(group), **names), temperature=0.0, max_tokens=TOKENS_PER_WORD * len(group))
        for group in groups
    ]
    replies = complete_all(model, requests, progress=advance)
    if replies and not any(reply.ok for reply in replies):
        replies[0].require()
    found: dict[str, tuple[str, ...]] = {}
    for reply, group in zip(replies, groups, strict=True):
        found |= read_answer(reply.text, group) if reply.ok else {}
    return found


def ask_dictionary(
    model: ChatModel, words: Sequence[str], source: str, target: str, mutual: bool, advance: Advance
) -> Asked:
    """Make a dictionary of words from what a model says.

    Args:
        model: not entered.
        words: headwords to ask for.
        source: code of their language.
        target: code of the translations' language.
        mutual: ask for every translation back, and keep those that the word itself is a translation of.
        advance: called with 1 as each list is answered.
    """
    said = translate_words(model, words, source, target, advance)
    kept: Mapping[str, tuple[str, ...]] = said
    if mutual and said:
        wanted = list(dict.fromkeys(one for translations in said.values() for one in translations))
        back = translate_words(model, wanted, target, source, advance)
        returned = {one: {word.casefold() for word in found} for one, found in back.items()}
        kept = {
            word: tuple(one for one in translations if word.casefold() in returned.get(one, ()))
            for word, translations in said.items()
        }
    entries = {word: tuple(map(Translation, translations)) for word, translations in kept.items() if translations}
    return Asked(Dictionary(entries, "asked", len(words)), len(words), len(said), len(entries))
