"""Documents as an encoder reads them: sub-tokens with a marker around each mention, in windows of any number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.methods.docre.data import Document

MARKER = "*"
OVERLAP_TOKENS = 128


@dataclass(frozen=True)
class Inputs:
    """One document for the encoder, without its first and last special token.

    Attributes:
        document: what it was made of.
        tokens: sub-tokens with markers.
        starts: place in `tokens` of each kept mention's start marker.
        owners: entity of each kept mention.
        sentence_of: sentence of each token.
        pairs: [P, 2] ordered pairs.
        unordered: [2, P / 2] pairs with the smaller entity first.
        shared: row of `unordered` of each ordered pair.
    """

    document: Document
    tokens: list[int]
    starts: Tensor
    owners: Tensor
    sentence_of: Tensor
    pairs: Tensor
    unordered: Tensor
    shared: Tensor


def make_inputs(document: Document, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Tokenise a document's text with offsets and put `*` before and after each mention.

    Args:
        document: any.
        tokenizer: a fast one.

    Raises:
        UserError: a tokenizer without offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("gives no character offsets.", where="tokenizer", hint="Use a fast tokenizer (tokenizer.json).")
    text, spans = document.text()
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    firsts, lasts = [a for a, _ in offsets], [b for _, b in offsets]
    marker = tokenizer(MARKER, add_special_tokens=False, verbose=False)["input_ids"][-1]
    opening: dict[int, list[int]] = {}
    closing: dict[int, int] = {}
    mentions = [(i, m) for i, entity in enumerate(document.entities) for m in entity if m.end > m.start]
    for number, (_, mention) in enumerate(mentions):
        row = spans[mention.sentence]
        begin, end = row[mention.start][0], row[mention.end - 1][1]
        first = min(max(0, bisect_right(firsts, begin) - 1), max(0, len(ids) - 1))
        last = max(first + 1, min(bisect_left(lasts, end) + 1, len(ids)))
        opening.setdefault(first, []).append(number)
        closing[last] = closing.get(last, 0) + 1
    ends = [row[-1][1] for row in spans if row]
    numbers = [i for i, row in enumerate(spans) if row]
    tokens, sentences, places = [], [], [0] * len(mentions)
    for position in range(len(ids) + 1):
        at = min(position, max(0, len(ids) - 1))
        sentence = numbers[min(bisect_right(ends, firsts[at]), len(numbers) - 1)] if ids else 0
        before = numbers[min(bisect_right(ends, firsts[max(0, at - 1)]), len(numbers) - 1)] if ids else 0
        for _ in range(closing.get(position, 0)):
            tokens.append(marker)
            sentences.append(sentence if position == len(ids) else before)
        for number in opening.get(position, ()) if position < len(ids) else ():
            places[number] = len(tokens)
            tokens.append(marker)
            sentences.append(sentence)
        if position < len(ids):
            tokens.append(ids[position])
            sentences.append(sentence)
    return _with_pairs(document, tokens, places if ids else [], [i for i, _ in mentions] if ids else [], sentences)


def _with_pairs(
    document: Document, tokens: list[int], places: list[int], owners: list[int], sentences: list[int]
) -> Inputs:
    count = len(document.entities)
    unordered = torch.triu_indices(count, count, 1)
    rows = torch.zeros(count, count, dtype=torch.long)
    rows[unordered[0], unordered[1]] = torch.arange(unordered.shape[1])
    rows = rows + rows.T
    pairs = torch.tensor(list(document.pairs()), dtype=torch.long).reshape(-1, 2)
    shared = rows[pairs[:, 0], pairs[:, 1]]
    return Inputs(
        document, tokens, torch.tensor(places, dtype=torch.long), torch.tensor(owners, dtype=torch.long),
        torch.tensor(sentences, dtype=torch.long), pairs, unordered, shared,
    )  # fmt: skip


def windows(num_tokens: int, size: int, overlap: int = OVERLAP_TOKENS) -> list[tuple[int, int]]:
    """Return windows [start, end) over tokens: one, or the first and last `size`, or as many as overlap enough.

    Args:
        num_tokens: of the document, without special tokens.
        size: tokens that fit into the encoder beside its special ones.
        overlap: least overlap of neighbours when more than two are needed.
    """
    if num_tokens <= size:
        return [(0, num_tokens)]
    if num_tokens <= 2 * size:
        return [(0, size), (num_tokens - size, num_tokens)]
    overlap = min(overlap, size // 2)
    starts = list(range(0, num_tokens - size, size - overlap))
    return [*((start, start + size) for start in starts), (num_tokens - size, num_tokens)]


def label_matrix(inputs: Inputs, columns: dict[str, int], num_classes: int) -> Tensor:
    """Return [P, R] gold classes; a pair without one has class 0."""
    labels = torch.zeros(len(inputs.pairs), num_classes)
    row = {(h, t): i for i, (h, t) in enumerate(inputs.pairs.tolist())}
    for triple in inputs.document.triples or ():
        if triple.relation in columns:
            labels[row[triple.head, triple.tail], columns[triple.relation]] = 1
    labels[labels.sum(1) == 0, 0] = 1
    return labels


def evidence_matrix(inputs: Inputs) -> Tensor:
    """Return [P, S]: how many of the pair's triples name each sentence as evidence."""
    evidence = torch.zeros(len(inputs.pairs), len(inputs.document.sentences))
    row = {(h, t): i for i, (h, t) in enumerate(inputs.pairs.tolist())}
    for triple in inputs.document.triples or ():
        for sentence in triple.evidence:
            evidence[row[triple.head, triple.tail], sentence] += 1
    return evidence


def restrict(document: Document, sentences: Sequence[int]) -> tuple[Document, list[int]]:
    """Return the document of the given sentences alone, and the original number of each entity that is left."""
    from dataclasses import replace

    place = {sentence: i for i, sentence in enumerate(sorted(sentences))}
    kept, numbers = [], []
    for number, entity in enumerate(document.entities):
        found = tuple(replace(m, sentence=place[m.sentence]) for m in entity if m.sentence in place)
        if found:
            kept.append(found)
            numbers.append(number)
    chosen = tuple(document.sentences[s] for s in sorted(sentences))
    return Document(document.title, chosen, tuple(kept), None), numbers
