"""From tokens to text while they come: whole characters only, and stop texts found without decoding all again."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"


class TextStream:
    """The growing text of one row.

    A byte-level token may end inside a character, and a tokenizer may write a piece differently at the start of a
    text; so each new piece is the difference of two short decodings that begin a few tokens earlier.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.longest_stop = max((len(one) for one in self.stop), default=0)
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._context_start = 0
        self._read = 0
        self._given = 0

    def push(self, token: int) -> str:
        """Add a token; return the new text that can no longer become part of a stop text."""
        if self.stopped:
            return ""
        self.tokens.append(token)
        known = self._decode(self.tokens[self._context_start : self._read])
        both = self._decode(self.tokens[self._context_start :])
        if len(both) > len(known) and not both.endswith(REPLACEMENT):
            self._context_start, self._read = self._read, len(self.tokens)
            self._extend(both[len(known) :])
        return self._take(self._num_held())

    def finish(self) -> str:
        """Close the text; return what was held back."""
        if not self.stopped and self._read < len(self.tokens):
            known = self._decode(self.tokens[self._context_start : self._read])
            self._extend(self._decode(self.tokens[self._context_start :])[len(known) :])
            self._read = len(self.tokens)
        return self._take(0)

    def _decode(self, tokens: list[int]) -> str:
        return decode_tokens(self.tokenizer, tokens)

    def _extend(self, piece: str) -> None:
        search_from = max(0, len(self.text) - self.longest_stop + 1)
        self.text += piece
        found = [at for at in (self.text.find(one, search_from) for one in self.stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _num_held(self) -> int:
        """Count the characters at the end that may yet begin a stop text."""
        if self.stopped:
            return 0
        for length in range(min(self.longest_stop - 1, len(self.text)), 0, -1):
            if any(one.startswith(self.text[-length:]) for one in self.stop):
                return length
        return 0

    def _take(self, num_held: int) -> str:
        end = max(self._given, len(self.text) - num_held)
        piece, self._given = self.text[self._given : end], end
        return piece


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Turn tokens into text as they stand: no special tokens, no clean-up of spaces."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
