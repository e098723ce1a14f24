"""TF-IDF and BM25 over instructions on numpy alone: postings by term, so that a query reads only its own terms."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError

Lexical = Literal["tfidf", "char", "bm25"]
LEXICAL: tuple[Lexical, ...] = ("tfidf", "char", "bm25")
K1, B = 1.5, 0.75
_WORD = re.compile(r"\w\w+")
_ALONE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+")
Floats = NDArray[np.float32]


def words(text: str) -> list[str]:
    """Return lower-cased words of two characters or more; of scripts without blanks, pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if _ALONE.search(word):
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            found.append(word)
    return found


def terms(text: str, kind: Lexical) -> Counter[str]:
    """Count a text's terms.

    Args:
        text: the text.
        kind: `tfidf` words and pairs of neighbours; `char` pieces of 3 to 5 characters inside words, each with a blank
            at both ends; `bm25` words.
    """
    if kind == "char":
        return Counter(piece for word in text.lower().split() for piece in _pieces(f" {word} "))
    tokens = words(text)
    if kind == "tfidf":
        tokens = tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    return Counter(tokens)


def _pieces(word: str) -> list[str]:
    pieces: list[str] = []
    for n in (3, 4, 5):
        pieces += [word[i : i + n] for i in range(max(1, len(word) - n + 1))]
        if len(word) <= n:
            # A word that is no longer than the piece is one piece, counted once.
            break
    return pieces


def term_hashes(names: Sequence[str]) -> NDArray[np.uint64]:
    """Return 64-bit hashes of terms, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=np.uint64)


@dataclass(frozen=True)
class LexicalIndex:
    """Postings of N texts over V terms.

    Attributes:
        kind: which scorer.
        hashes: [V] 64-bit hashes of the terms, rising.
        idf: [V] weights of the terms in a query.
        starts: [V + 1] where each term's postings begin.
        rows: texts that hold the term.
        weights: the term's weight in each of them.
        num_rows: N.
    """

    kind: Lexical
    hashes: NDArray[np.uint64]
    idf: Floats
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    weights: Floats
    num_rows: int

    def _find(self, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        wanted = term_hashes(names)
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return places, self.hashes[places] == wanted

    def query(self, text: str) -> dict[str, tuple[int, float]]:
        """Return the known terms of a query: their place and weight (unit length for TF-IDF, counts for BM25)."""
        counts = terms(text, self.kind)
        if not counts or not len(self.hashes):
            return {}
        places, known = self._find(list(counts))
        tf = np.fromiter(counts.values(), dtype=np.float64)
        weights = tf if self.kind == "bm25" else (1 + np.log(tf)) * self.idf[places]
        weights = weights * known
        length = float(np.sqrt((weights**2).sum())) if self.kind != "bm25" else 1.0
        scale = 1 / length if length else 0.0
        return {
            name: (int(place), float(weight) * scale)
            for name, place, weight, here in zip(counts, places, weights, known, strict=True)
            if here
        }

    def score(self, text: str) -> Floats:
        """Return [N] scores of all texts for one query: cosines for TF-IDF, BM25 sums."""
        query = self.query(text)
        scores = np.zeros(self.num_rows, dtype=np.float64)
        for place, weight in query.values():
            span = slice(int(self.starts[place]), int(self.starts[place + 1]))
            scores[self.rows[span]] += weight * self.weights[span]
        return scores.astype(np.float32)

    def score_all(self, texts: Sequence[str]) -> Floats:
        """Return [M, N] scores of M queries."""
        return np.stack([self.score(text) for text in texts])

    def shared_terms(self, query: str, text: str, limit: int = 8) -> list[tuple[str, float]]:
        """Return the terms that make up the score of `text` for `query`, with their shares in it, largest first."""
        asked, counts = self.query(query), terms(text, self.kind)
        other = self.query(text) if self.kind != "bm25" else dict.fromkeys(counts, (0, 1.0))
        shares = []
        for name, (place, weight) in asked.items():
            if name in counts and name in other:
                value = self.idf[place] * weight if self.kind == "bm25" else weight * other[name][1]
                shares.append((name, float(value)))
        return sorted(shares, key=lambda pair: (-pair[1], pair[0]))[:limit]


def build_index(texts: Sequence[str], kind: Lexical) -> LexicalIndex:
    """Index texts.

    TF-IDF: tf' = 1 + ln tf, idf = ln((1 + N) / (1 + df)) + 1, rows of unit length (smoothed, sublinear).
    BM25: idf = ln(1 + (N - df + 0.5) / (df + 0.5)), weight = idf tf / (tf + k1 (1 - b + b |d| / mean |d|)).

    Args:
        texts: N texts.
        kind: which terms and weights.

    Raises:
        UserError: no text has a term.
    """
    counts = [terms(text, kind) for text in texts]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(name for count in counts for name in count))}
    if not vocabulary:
        raise UserError("no instruction holds a word.", hint="Check the instructions, or choose --cleaning names.")
    columns = np.fromiter((vocabulary[name] for count in counts for name in count), dtype=np.int64)
    tf = np.fromiter((value for count in counts for value in count.values()), dtype=np.float64)
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), [len(count) for count in counts])
    hashes = term_hashes(list(vocabulary))
    order = np.argsort(hashes)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    columns = rank[columns]
    df = np.bincount(columns, minlength=len(hashes)).astype(np.float64)
    n = len(texts)
    if kind == "bm25":
        idf = np.log1p((n - df + 0.5) / (df + 0.5))
        lengths = np.bincount(rows, weights=tf, minlength=n)
        weights = idf[columns] * tf / (tf + K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-12))[rows])
    else:
        idf = np.log((1 + n) / (1 + df)) + 1
        weights = (1 + np.log(tf)) * idf[columns]
        norms = np.sqrt(np.bincount(rows, weights=weights**2, minlength=n))
        weights = weights / norms[rows]
    by_term = np.argsort(columns, kind="stable")
    starts = np.concatenate([[0], np.cumsum(df)]).astype(np.int64)
    return LexicalIndex(
        kind, hashes[order], idf.astype(np.float32), starts, rows[by_term], weights[by_term].astype(np.float32), n
    )


def latent_vectors(texts: Sequence[str], dim: int = 256, max_terms: int = 2048) -> tuple[Floats, Floats, list[str]]:
    """Fit latent semantic analysis on texts: the embedded dense encoder, which needs no download.

    The TF-IDF matrix X of the `max_terms` most frequent words is projected on the leading eigenvectors of X^T X.

    Args:
        texts: N texts.
        dim: dimensions, at most.
        max_terms: vocabulary, at most.

    Returns:
        The projection [terms, dim], the idf [terms] and the terms. `latent_project` maps texts with them.

    Source: Deerwester et al. (1990).
    """
    counts = [Counter(words(text)) for text in texts]
    df = Counter(name for count in counts for name in count)
    chosen = sorted((name for name in df if df[name] > 1), key=lambda name: (-df[name], name))[:max_terms]
    chosen = chosen or sorted(df)[:max_terms]
    idf = (np.log((1 + len(texts)) / (1 + np.array([df[name] for name in chosen]))) + 1).astype(np.float32)
    gram = np.zeros((len(chosen), len(chosen)), dtype=np.float32)
    for start in range(0, len(texts), 4096):
        block = _dense(texts[start : start + 4096], chosen, idf)
        gram += block.T @ block
    values, vectors = np.linalg.eigh(gram)
    kept = np.argsort(-values)[: min(dim, int((values > 1e-6).sum()) or 1)]
    return np.ascontiguousarray(vectors[:, kept], dtype=np.float32), idf, chosen


def _dense(texts: Sequence[str], chosen: Sequence[str], idf: Floats) -> Floats:
    place = {name: number for number, name in enumerate(chosen)}
    matrix = np.zeros((len(texts), len(chosen)), dtype=np.float32)
    for row, text in enumerate(texts):
        for name, count in Counter(words(text)).items():
            if name in place:
                matrix[row, place[name]] = 1 + np.log(count)
    matrix *= idf
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, 1e-12), dtype=np.float32)


def latent_project(texts: Sequence[str], projection: Floats, idf: Floats, chosen: Sequence[str]) -> Floats:
    """Return [N, dim] latent vectors; a text of unknown words alone gives zeros."""
    blocks = [_dense(texts[i : i + 4096], chosen, idf) @ projection for i in range(0, len(texts), 4096)]
    return np.concatenate(blocks)
