"""From words and trees to batches: pieces of words, positions of first pieces, distances, and cut sequences."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError, closest
from polyloom.data.records import OUTSIDE, UPOS, Example, Sentence
from polyloom.data.treebanks import universal
from polyloom.methods.transfer.method import PAD_DISTANCE, sequence_heads, tree_distances

IGNORED = -100
ABSENT = -1
_SPECIAL = ("[CLS]", "[SEP]", "[UNK]")
UPOS_IDS = {name: number for number, name in enumerate((*UPOS, *_SPECIAL), start=1)}
RELATIONS = (
    "acl", "advcl", "advmod", "amod", "appos", "aux", "case", "cc", "ccomp", "clf", "compound", "conj", "cop", "csubj",
    "dep", "det", "discourse", "dislocated", "expl", "fixed", "flat", "goeswith", "iobj", "list", "mark", "nmod",
    "nsubj", "nummod", "obj", "obl", "orphan", "parataxis", "punct", "reparandum", "root", "vocative", "xcomp",
)  # fmt: skip
DEPREL_IDS = {name: number for number, name in enumerate((*RELATIONS, *_SPECIAL, "<self>"), start=1)}
NUM_UPOS = len(UPOS_IDS) + 1
NUM_DEPRELS = len(DEPREL_IDS) + 1
Int16s = NDArray[np.int16]


class Layout(NamedTuple):
    """Special tokens of a sequence: their ids, how many separate a pair, and whether segments are numbered."""

    cls: int
    sep: int
    pad: int
    unknown: int
    between: int = 1
    segments: bool = False


class Pieces(Protocol):
    """What turns a word into the ids of its pieces."""

    layout: Layout
    num_positions: int | None

    def __call__(self, word: str) -> tuple[int, ...]:
        """Return at least one id."""
        ...


class TokenizerPieces:
    """Pieces of a Hugging Face tokenizer, each word by itself, remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        """Find out how the tokenizer marks the beginning of a word and what it puts around texts."""
        self.tokenizer = tokenizer
        self.layout = _layout(tokenizer, model)
        self.num_positions = num_positions(model)
        alone, behind = self._encode("a"), self._encode(" a")
        self._prefix = " " if len(alone) == len(behind) and alone != behind else ""
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word's pieces."""
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = self._encode(self._prefix + word) or (self.layout.unknown,)
        return found

    def _encode(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return tuple(ids)


def num_positions(model: PreTrainedModel) -> int | None:
    """Return how many positions an encoder has; None where they are not bounded. RoBERTa's begin behind its pad."""
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    learned = next((part for part in tables if isinstance(part, nn.Embedding)), None)
    if learned is None:
        limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return limit
    return learned.num_embeddings - (0 if learned.padding_idx is None else learned.padding_idx + 1)


def _layout(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Layout:
    sep = _first(tokenizer.sep_token_id, tokenizer.eos_token_id)
    cls = _first(tokenizer.cls_token_id, tokenizer.bos_token_id, sep)
    if cls is None or sep is None:
        hint = "Its graph needs a token at the beginning and one at the end."
        raise UserError("the tokenizer has no [CLS] or <s>, and no [SEP] or </s>.", where="--encoder", hint=hint)
    pad = _first(tokenizer.pad_token_id, sep)
    pair = tokenizer("a", "a", add_special_tokens=True, verbose=False)["input_ids"]
    between = max(1, pair.count(sep) - 1) if tokenizer.sep_token_id is not None else 1
    segments = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1 and "token_type_ids" in _arguments(model)
    return Layout(cls, sep, int(pad or 0), int(_first(tokenizer.unk_token_id, sep) or 0), between, segments)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _arguments(model: PreTrainedModel) -> Sequence[str]:
    return tuple(inspect.signature(model.forward).parameters)


class WordPieces:
    """Whole words as pieces, lower-cased; a translation of several words has several."""

    layout = Layout(cls=1, sep=2, pad=0, unknown=3)
    num_positions: int | None = None

    def __init__(self, words: Iterable[str]) -> None:
        """Number the words in their order; 0 to 3 are the special tokens."""
        self.ids: dict[str, int] = {}
        for word in words:
            for part in word.lower().split():
                self.ids.setdefault(part, len(self.ids) + 4)

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.ids) + 4

    def __call__(self, word: str) -> tuple[int, ...]:
        """Return the ids of a word's parts."""
        parts = word.lower().split()
        return tuple(self.ids.get(part, self.layout.unknown) for part in parts) or (self.layout.unknown,)


@dataclass(frozen=True)
class Targets:
    """The names of classes and of word tags, in the order of the heads' outputs; empty where there is no such head."""

    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


Heads = Callable[[Sentence, str], Sequence[int]]
"""From a sentence and its example's id to the heads that the graph is given: gold ones, or a control's."""


def gold_heads(sentence: Sentence, name: str) -> Sequence[int]:
    """Return a sentence's own heads; a sentence without a tree hangs all of its words on [CLS]."""
    return sentence.heads or (0,) * len(sentence.words)


class Sequencer:
    """Turns examples into batches of one encoder."""

    def __init__(self, pieces: Pieces, max_length: int, targets: Targets, heads: Heads | None = None) -> None:
        """Set up.

        Args:
            pieces: of the encoder.
            max_length: positions of a sequence with its special tokens; an encoder may have fewer.
            targets: names of classes and tags.
            heads: where the graph's trees come from; None leaves the graph out.
        """
        self.pieces = pieces
        self.max_length = min(max_length, pieces.num_positions or max_length)
        self.targets = targets
        self.heads = heads
        self.cut: set[str] = set()
        self._label_ids = {name: number for number, name in enumerate(targets.labels)}
        self._tag_ids = {name: number for number, name in enumerate(targets.tags)}
        self._distances: dict[str, Int16s] = {}

    def batch(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Stack examples into padded tensors.

        Returns:
            `input_ids`, `attention_mask` and, where the encoder numbers them, `token_type_ids` [batch, n]; `words`
            [batch, words], the positions of first pieces of the first sentence (0 where there is none); `label`
            [batch] and `tags` [batch, words] with -100 for nothing; with a graph `distances` [batch, n, n], `depths`,
            `upos` and `deprel` [batch, n].

        Raises:
            UserError: a label that training did not have.
        """
        rows = [self._row(example) for example in examples]
        layout = self.pieces.layout
        ids = _stack([row.ids for row in rows], layout.pad)
        lengths = torch.tensor([len(row.ids) for row in rows])
        result = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        if layout.segments:
            result["token_type_ids"] = _stack([row.segments for row in rows], 0)
        if self.targets.tags:
            result["words"] = _stack([row.words for row in rows], 0)
            result["tags"] = _stack([row.tags for row in rows], IGNORED)
        if self.targets.labels:
            result["label"] = torch.tensor([self._label(example) for example in examples])
        if self.heads is not None:
            result["upos"] = _stack([row.upos for row in rows], 0)
            result["deprel"] = _stack([row.deprel for row in rows], 0)
            result["distances"] = _stack_squares([row.distances for row in rows])
            result["depths"] = result["distances"][:, 0].clone()
        return result

    def _label(self, example: Example) -> int:
        if example.label not in self._label_ids:
            what = f"the label {example.label!r} is none of the training data's."
            raise UserError(what, where=example.sentences[0].source, hint=closest(example.label, self._label_ids))
        return self._label_ids[example.label]

    def mixed(self, examples: Sequence[Example], switched: Sequence[Example]) -> Tensor:
        """Return for each position of a batch the pieces of its word's translation, [batch, n, k], -1 for none.

        Args:
            examples: as they are, and as `batch` lays them out.
            switched: the same with some words replaced.
        """
        rows: list[list[tuple[int, ...]]] = []
        for one, other in zip(examples, switched, strict=True):
            pieces, separators, _, kept = self._sizes(one)
            row: list[tuple[int, ...]] = [()]
            for number, (before, after) in enumerate(zip(one.sentences, other.sentences, strict=True)):
                words = zip(before.words, after.words, pieces[number], strict=False)
                own = [self.pieces(new) if new != old else () for old, new, parts in words for _ in parts]
                row += [*own[: kept[number]], *[()] * separators[number]]
            rows.append(row)
        return _stack_cubes(rows)

    def _sizes(self, example: Example) -> tuple[list[list[tuple[int, ...]]], list[int], list[int], list[int]]:
        """Return each sentence's pieces by word, the separators behind it, and how many pieces it has and keeps."""
        layout = self.pieces.layout
        pieces = [[self.pieces(word) for word in one.words] or [(layout.unknown,)] for one in example.sentences]
        separators = [layout.between, 1][-len(pieces) :]
        sizes = [sum(map(len, one)) for one in pieces]
        return pieces, separators, sizes, _cut(sizes, self.max_length - 1 - sum(separators))

    def _row(self, example: Example) -> _Row:
        """Lay one example out; what is beyond `max_length` is cut, longest sentence first, from its end."""
        layout = self.pieces.layout
        pieces, separators, sizes, kept = self._sizes(example)
        if kept != sizes:
            self.cut.add(example.id)
        ids, segments, base, is_separator = [layout.cls], [0], [0], [0]
        words: list[int] = []
        full = 1
        for number, sentence in enumerate(pieces):
            flat = [piece for word in sentence for piece in word][: kept[number]]
            if number == 0:
                words = _first_positions(sentence, kept[0])
            ids += [*flat, *[layout.sep] * separators[number]]
            segments += [number] * (len(flat) + separators[number])
            base += [*range(full, full + len(flat)), *[full + sizes[number] - 1] * separators[number]]
            is_separator += [*[0] * len(flat), *[1] * separators[number]]
            full += sizes[number]
        tags = self._tags(example.sentences[0], words) if self.targets.tags else []
        row = _Row(ids, segments, [max(0, place) for place in words], tags)
        if self.heads is not None:
            row = self._with_tree(row, example, pieces, np.asarray(base), np.asarray(is_separator, dtype=np.int16))
        return row

    def _tags(self, sentence: Sentence, words: Sequence[int]) -> list[int]:
        found = []
        for tag, place in zip(sentence.labels, words, strict=False):
            if tag not in self._tag_ids:
                what = f"the tag {tag!r} of sentence {sentence.id} is none of the training data's."
                raise UserError(what, where=sentence.source, hint=closest(tag, self._tag_ids))
            found.append(self._tag_ids[tag] if place >= 0 else IGNORED)
        return found + [IGNORED] * (len(words) - len(found))

    def _with_tree(
        self,
        row: _Row,
        example: Example,
        pieces: Sequence[Sequence[tuple[int, ...]]],
        base: NDArray[np.int64],
        is_separator: Int16s,
    ) -> _Row:
        """Spread the distances of the words over the pieces that are left.

        The path between two pieces is that of their words, and one step more for each that is no first piece; a
        separator lies one step beyond the last piece before it.
        """
        words = self._word_distances(example, [len(one) for one in pieces])
        counts = [len(word) for one in pieces for word in one]
        node = np.concatenate([[0], np.repeat(np.arange(1, len(counts) + 1), counts)])
        later = np.concatenate([[0], *(np.arange(count) > 0 for count in counts)]).astype(np.int16)
        at, step = node[base], later[base]
        distances = words[at[:, None], at] + step[:, None] + step
        distances[base[:, None] == base] = 0
        distances += is_separator[:, None] + is_separator
        np.fill_diagonal(distances, 0)
        names = [_names(one, len(words_)) for one, words_ in zip(example.sentences, pieces, strict=True)]
        upos = np.asarray(
            [UPOS_IDS["[CLS]"], *(UPOS_IDS.get(name, UPOS_IDS["[UNK]"]) for one in names for name in one[0])]
        )
        deprel = np.asarray(
            [DEPREL_IDS["[CLS]"], *(DEPREL_IDS.get(name, DEPREL_IDS["[UNK]"]) for one in names for name in one[1])]
        )
        separators = is_separator.astype(bool)
        return row._replace(
            distances=distances,
            upos=np.where(separators, UPOS_IDS["[SEP]"], upos[at]).tolist(),
            deprel=np.where(separators, DEPREL_IDS["[SEP]"], deprel[at]).tolist(),
        )

    def _word_distances(self, example: Example, sizes: Sequence[int]) -> Int16s:
        """Return the distances of [CLS] and all words; switching changes no tree, so they are remembered by id."""
        found = self._distances.get(example.id)
        if found is None or len(found) != 1 + sum(sizes):
            assert self.heads is not None
            trees = [self.heads(one, f"{example.id}/{number}") or (0,) for number, one in enumerate(example.sentences)]
            found = self._distances[example.id] = tree_distances(sequence_heads(trees, [0] * len(trees)))[0]
        return found


class _Row(NamedTuple):
    ids: list[int]
    segments: list[int]
    words: list[int]
    tags: list[int]
    distances: Any = None
    upos: Sequence[int] = ()
    deprel: Sequence[int] = ()


def _names(sentence: Sentence, size: int) -> tuple[Sequence[str], Sequence[str]]:
    nothing = ("_",) * size
    return sentence.upos or nothing, [universal(one) for one in sentence.deprels] or nothing


def _cut(sizes: Sequence[int], room: int) -> list[int]:
    kept = list(sizes)
    while sum(kept) > room:
        kept[0 if len(kept) == 1 or kept[0] > kept[1] else 1] -= 1
    return kept


def _first_positions(sentence: Sequence[tuple[int, ...]], kept: int) -> list[int]:
    """Return the position of each word's first piece, -1 for words that were cut off."""
    places, at = [], 0
    for word in sentence:
        places.append(at + 1 if at < kept else -1)
        at += len(word)
    return places


def _stack(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    result = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for number, row in enumerate(rows):
        result[number, : len(row)] = row
    return torch.from_numpy(result)


def _stack_squares(rows: Sequence[Int16s]) -> Tensor:
    size = max(map(len, rows))
    result = np.full((len(rows), size, size), PAD_DISTANCE, dtype=np.int32)
    for number, row in enumerate(rows):
        result[number, : len(row), : len(row)] = row
    return torch.from_numpy(result)


def _stack_cubes(rows: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
    deepest = max((len(found) for row in rows for found in row), default=0)
    result = np.full((len(rows), max(map(len, rows)), max(1, deepest)), ABSENT, dtype=np.int64)
    for number, row in enumerate(rows):
        for place, found in enumerate(row):
            result[number, place, : len(found)] = found
    return torch.from_numpy(result)


def find_targets(examples: Sequence[Example], task: str) -> Targets:
    """Return the classes and tags of training data.

    Args:
        examples: the training data.
        task: `sentence`, `tags`, `intent`, or `auto`.

    Raises:
        UserError: the data lack what the task needs, or have one class alone.
    """
    labels = sorted({example.label for example in examples if example.label})
    counts = Counter(tag for example in examples for tag in example.sentences[0].labels)
    tags = sorted(counts, key=lambda tag: (tag != OUTSIDE, tag))
    chosen = task if task != "auto" else "intent" if labels and tags else "tags" if tags else "sentence"
    if chosen in ("sentence", "intent") and len(labels) < 2:
        what = f"the training data have {len(labels)} classes; a task needs two."
        raise UserError(what, where="--data", hint="Give labelled data, or name another --task.")
    if chosen in ("tags", "intent") and len(tags) < 2:
        raise UserError(f"the training data have {len(tags)} word tags; a task needs two.", where="--data")
    return Targets(tuple(labels) if chosen != "tags" else (), tuple(tags) if chosen != "sentence" else ())
