"""Translators of marked sentences: none, a dictionary, a seq2seq or chat model; and a channel that loses marks."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.seeding import python_random
from polyloom.generation import ask, complete_all, connect
from polyloom.methods.docre.config import ProjectConfig
from polyloom.methods.docre.data import WORLD, Document, load_documents
from polyloom.methods.docre.marks import PARTICLES, TAG
from polyloom.methods.docre.projection import Translator

INSTRUCTION = (
    'Translate the sentence into {language}. Keep every tag <e id="..."> and </e> around the words that it marks. '
    "Answer with the translation alone.\n{text}"
)


def translator(config: ProjectConfig, documents: Sequence[Document]) -> Translator:
    """Return the translator that a configuration names.

    Raises:
        UserError: a dictionary that cannot be read or is not there.
    """
    name = config.translator
    if name == "identity":
        return identity
    if name == "dictionary":
        joiner = "" if config.target in ("ja", "zh", "th") else " "
        return glosser(_dictionary(config, documents), joiner)
    if name.startswith("seq2seq:"):
        from polyloom.generation.local import LocalChat
        from polyloom.models.load import load_model, load_tokenizer

        model = load_model(name.removeprefix("seq2seq:"), kind="seq2seq", device="auto")
        chat: Any = LocalChat(model, load_tokenizer(name.removeprefix("seq2seq:"), model), name=name)
        return lambda texts: [reply.text for reply in complete_all(chat, [ask(text) for text in texts])]
    wanted = connect(name, seed=config.seed)

    def translate(texts: Sequence[str]) -> list[str]:
        asked = [ask(INSTRUCTION.format(language=config.target, text=text)) for text in texts]
        return [reply.text.strip() for reply in complete_all(wanted, asked)]

    return translate


def _dictionary(config: ProjectConfig, documents: Sequence[Document]) -> dict[str, str]:
    if config.dictionary:
        rows = [line.split("\t") for line in read_text(Path(config.dictionary)).splitlines() if line]
        if bad := next((i for i, row in enumerate(rows, 1) if len(row) != 2), None):
            raise UserError("has not two fields (source, target).", where=f"{config.dictionary}:{bad}")
        return dict(rows)
    if config.data != WORLD:
        raise UserError("the dictionary translator needs words.", where="--dictionary", hint="Name a TAB file.")
    other = load_documents(
        WORLD, language=config.target, num_documents=config.num_documents, seed=config.seed, split="test"
    )[0]
    return {
        " ".join(a.sentences[m.sentence][m.start : m.end]): n.name
        for a, b in zip(documents, other, strict=True)
        if len(a.entities) == len(b.entities)
        for one, two in zip(a.entities, b.entities, strict=True)
        for m, n in zip(one, two, strict=False)
    }


def identity(sentences: Sequence[str]) -> list[str]:
    """Translate into the same language: the test that nothing is lost on the way."""
    return list(sentences)


def glosser(dictionary: dict[str, str], joiner: str = " ") -> Translator:
    """Return a translator that looks up the longest known phrase at each place and keeps tags and unknown words.

    Args:
        dictionary: source phrase to target phrase.
        joiner: what to put between target words: nothing for languages without spaces.
    """
    longest = max((len(phrase.split()) for phrase in dictionary), default=1)
    lowered = {phrase.lower(): target for phrase, target in dictionary.items()}

    def gloss(text: str) -> str:
        words, out, at = text.split(), [], 0
        while at < len(words):
            for size in range(min(longest, len(words) - at), 0, -1):
                phrase = " ".join(words[at : at + size]).lower()
                if phrase in lowered or size == 1:
                    out.append(lowered.get(phrase, words[at]))
                    at += size
                    break
        return joiner.join(out)

    def translate(sentences: Sequence[str]) -> list[str]:
        result = []
        for sentence in sentences:
            pieces, at = [], 0
            for tag in TAG.finditer(sentence):
                pieces += [html.escape(gloss(html.unescape(sentence[at : tag.start()])), quote=False), tag.group(0)]
                at = tag.end()
            pieces.append(html.escape(gloss(html.unescape(sentence[at:])), quote=False))
            result.append(joiner.join(piece for piece in pieces if piece))
        return result

    return translate


def noisy(translate: Translator, *, drop_rate: float, swallow_rate: float, seed: int, language: str) -> Translator:
    """Return a translator that loses marks and lets others swallow a particle, at known rates.

    Args:
        translate: the translator to disturb.
        drop_rate: share of marks that are lost.
        swallow_rate: share of marks that take in a particle after them.
        seed: of the noise.
        language: whose particles are swallowed.
    """
    random = python_random(seed, "translator noise")
    particle = PARTICLES.get(language, ("",))[-1]

    def disturbed(sentences: Sequence[str]) -> list[str]:
        return [
            _disturb(sentence, random.random, drop_rate, swallow_rate, particle) for sentence in translate(sentences)
        ]

    return disturbed


def _disturb(sentence: str, draw: Callable[[], float], drop_rate: float, swallow_rate: float, particle: str) -> str:
    pieces: list[str] = []
    stack: list[bool] = []
    at = 0
    for tag in TAG.finditer(sentence):
        pieces.append(sentence[at : tag.start()])
        at = tag.end()
        if not tag.group(1):
            stack.append(draw() < drop_rate)
            pieces.append("" if stack[-1] else tag.group(0))
        elif stack and not stack.pop():
            pieces.append((particle if draw() < swallow_rate else "") + tag.group(0))
    return "".join(pieces) + sentence[at:]
