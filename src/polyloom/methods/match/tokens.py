"""Words of any language without outside tools, and the vocabulary that numbers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyloom.core.errors import UserError
from polyloom.methods.match.scorer import bucket, words

PAD, NUM_SPECIALS = 0, 1
NUM_BUCKETS = 256


class Vocabulary:
    """Words and their numbers: 0 pads, the known words follow, then the buckets that unknown words are hashed into.

    Two texts that share an unknown word thus still share a number.
    """

    kind = "words"

    def __init__(self, known: Sequence[str], lowercase: bool = True, num_buckets: int = NUM_BUCKETS) -> None:
        """Bind the known words, in the order of their numbers."""
        self.known, self.lowercase, self.num_buckets = list(known), lowercase, num_buckets
        self.ids = {word: NUM_SPECIALS + i for i, word in enumerate(self.known)}

    def __len__(self) -> int:
        return NUM_SPECIALS + len(self.known) + self.num_buckets

    def number(self, word: str) -> int:
        """Return a word's number."""
        known = self.ids.get(word)
        return NUM_SPECIALS + len(self.known) + bucket(word, self.num_buckets) if known is None else known

    def pieces(self, text: str) -> list[str]:
        """Return the text's words as they are numbered; a text without any has one empty word."""
        return list(words(text, self.lowercase)) or [""]

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return the numbers of at most `max_length` words."""
        pieces = self.pieces(text)[:max_length]
        # Nearly all words are known: one look-up each, without a call.
        ids = list(map(self.ids.get, pieces))
        return [self.number(word) for word in pieces] if None in ids else ids  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """Return what `load_vocabulary` reads."""
        return {"kind": self.kind, "known": self.known, "lowercase": self.lowercase, "num_buckets": self.num_buckets}


class Subwords:
    """A Hugging Face tokenizer as a vocabulary: number 0 pads, its own numbers follow, shifted by one."""

    kind = "subwords"

    def __init__(self, tokenizer_json: str, specials: bool = False) -> None:
        """Bind the content of a tokenizer.json; `specials` adds the marks that its model expects around a text."""
        from tokenizers import Tokenizer

        self.text, self.specials = tokenizer_json, specials
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def __len__(self) -> int:
        return NUM_SPECIALS + max(self.tokenizer.get_vocab().values()) + 1

    def pieces(self, text: str) -> list[str]:
        """Return the text's subwords."""
        return list(self.tokenizer.encode(text, add_special_tokens=self.specials).tokens) or [""]

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return the numbers of at most `max_length` subwords; an empty text has number 1."""
        ids = self.tokenizer.encode(text, add_special_tokens=self.specials).ids[:max_length]
        return [NUM_SPECIALS + i for i in ids] or [NUM_SPECIALS]

    def to_json(self) -> dict[str, Any]:
        """Return what `load_vocabulary` reads."""
        return {"kind": self.kind, "tokenizer": self.text, "specials": self.specials}


AnyVocabulary = Vocabulary | Subwords


def load_vocabulary(value: Mapping[str, Any]) -> AnyVocabulary:
    """Read a vocabulary back from its JSON value."""
    if value["kind"] == "subwords":
        return Subwords(value["tokenizer"], value["specials"])
    return Vocabulary(value["known"], value["lowercase"], value["num_buckets"])


def build_vocabulary(texts: Iterable[str], *, min_count: int = 1, max_words: int = 50_000) -> Vocabulary:
    """Number the words of the training texts, the frequent ones first.

    Args:
        texts: the training texts.
        min_count: rarer words are unknown.
        max_words: known words at most.

    Raises:
        UserError: no words.
    """
    counts = Counter(word for text in texts for word in words(text))
    if not counts:
        raise UserError("the training texts hold no words.")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Vocabulary([word for word, count in ranked[:max_words] if count >= min_count])
