"""Dictionaries induced from parallel text: IBM model 1 both ways, or word alignments by an encoder's similarities.

Sources: Brown et al. (1993), IBM model 1; Dyer et al. (2013), the prior that prefers the diagonal; Jalili Sabet et al.
(2020), arXiv 2004.08728, alignments from similarities (argmax and itermax).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.records import split_words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Pair = tuple[tuple[str, ...], tuple[str, ...]]
Alignment = list[tuple[int, int]]
AlignMethod = Literal["argmax", "itermax"]
NUM_SHOWN = 3


class InductionOptions(NamedTuple):
    """How a dictionary is induced.

    The number of iterations and of sightings are those of the specification; tension, smoothing and threshold were
    chosen on English and Spanish, so that English and German stay a test.

    Attributes:
        iterations: of expectation maximisation, each way.
        tension: strength of the prior exp(-tension |i/m - j/n|) on a link of word i of m to word j of n; 0 is model 1.
        smoothing: links added to the total of each word, so that rare words do not get sure translations.
        threshold: least product of both directions' probabilities.
        min_count: least number of sightings of either word.
        mutual: keep a pair only if each word is the other's best.
    """

    iterations: int = 4
    tension: float = 4.0
    smoothing: float = 1.0
    threshold: float = 0.25
    min_count: int = 3
    mutual: bool = True


# ---- parallel text


def read_parallel(source: Path, target: Path | None = None, *, columns: Sequence[int] = (0,)) -> list[tuple[str, str]]:
    """Read parallel text; lines of which one side is empty are left out, equal pairs are kept once.

    Args:
        source: lines of the source language, or with `target` absent both languages a line: ` ||| ` or a TAB between.
        target: lines of the target language, as many.
        columns: of `.csv` files: the columns that hold text.

    Raises:
        UserError: different numbers of lines, or a line without a separator.
    """
    if target is None:
        pairs = [_split(line, f"{source}:{n}") for n, line in enumerate(_lines(source), 1) if line.strip()]
    else:
        first, second = (_texts(path, columns) for path in (source, target))
        if len(first) != len(second):
            what = f"has {len(second)} texts, the source has {len(first)}."
            raise UserError(what, where=str(target), hint="Both have to have the same lines in the same order.")
        pairs = list(zip(first, second, strict=True))
    kept = list(dict.fromkeys((a.strip(), b.strip()) for a, b in pairs if a.strip() and b.strip()))
    if not kept:
        raise UserError("holds no pair of texts.", where=str(source))
    return kept


def _lines(path: Path) -> list[str]:
    return read_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")


def _split(line: str, where: str) -> tuple[str, str]:
    parts = line.split(" ||| ") if " ||| " in line else line.split("\t")
    if len(parts) < 2:
        raise UserError("has no ' ||| ' and no TAB between two texts.", where=where, hint="Name --target-text as well.")
    return parts[0], parts[1]


def _texts(path: Path, columns: Sequence[int]) -> list[str]:
    if path.suffix != ".csv":
        return _lines(path)
    rows = list(csv.reader(io.StringIO(read_text(path))))
    short = next((n for n, row in enumerate(rows, 1) if row and len(row) <= max(columns)), None)
    if short:
        raise UserError(f"has no column {max(columns)}.", where=f"{path}:{short}", hint="Columns count from 0.")
    return [row[column] for row in rows if row for column in columns]


def words_to_align(text: str) -> tuple[str, ...]:
    """Return the words of a text that can be translated: no numbers and no signs."""
    return tuple(word for word in split_words(text) if word[0].isalpha())


# ---- IBM model 1


@dataclass(frozen=True)
class _Corpus:
    """All pairs of words that stand in one pair of texts; `link` numbers the distinct ones."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    source_counts: Ints
    target_counts: Ints
    link: Ints
    source_token: Ints
    target_token: Ints
    distance: Floats
    link_source: Ints
    link_target: Ints


def _index(pairs: Sequence[Pair]) -> _Corpus:
    if not pairs:
        raise UserError("there is no pair of texts with a word on both sides.")
    source_ids: dict[str, int] = {}
    target_ids: dict[str, int] = {}
    rows: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []
    num_sources = num_targets = 0
    for source, target in pairs:
        i = np.array([source_ids.setdefault(word, len(source_ids)) for word in source])
        j = np.array([target_ids.setdefault(word, len(target_ids)) for word in target])
        m, n = len(i), len(j)
        gap = np.abs(np.repeat(np.arange(m) / m, n) - np.tile(np.arange(n) / n, m))
        at_source, at_target = np.arange(num_sources, num_sources + m), np.arange(num_targets, num_targets + n)
        rows.append((np.repeat(i, n), np.tile(j, m), np.repeat(at_source, n), np.tile(at_target, m), gap))
        num_sources, num_targets = num_sources + m, num_targets + n
    source_of, target_of, source_token, target_token = (np.concatenate([r[k] for r in rows]) for k in range(4))
    keys, link = np.unique(source_of * len(target_ids) + target_of, return_inverse=True)
    return _Corpus(
        tuple(source_ids),
        tuple(target_ids),
        _counts(pairs, 0, source_ids),
        _counts(pairs, 1, target_ids),
        link,
        source_token,
        target_token,
        np.concatenate([row[4] for row in rows]),
        keys // len(target_ids),
        keys % len(target_ids),
    )


def _counts(pairs: Sequence[Pair], side: int, ids: dict[str, int]) -> Ints:
    found = Counter(word for pair in pairs for word in pair[side])
    return np.array([found[word] for word in ids])


class Tables(NamedTuple):
    """Translation probabilities of the word pairs that occur: p(target | source), p(source | target)."""

    pairs: list[tuple[str, str]]
    forward: Floats
    backward: Floats


def ibm1(pairs: Sequence[Pair], iterations: int = 4, *, tension: float = 0.0, smoothing: float = 0.0) -> Tables:
    """Estimate IBM model 1 in both directions by expectation maximisation, vectorised over all word pairs.

    Args:
        pairs: words of the source and of the target, neither empty.
        iterations: of expectation maximisation, from uniform probabilities.
        tension: of the prior on the diagonal; 0 is model 1.
        smoothing: links added to each word's total.

    Returns:
        Both tables; each direction has an empty word (NULL) on the side that it is conditioned on.

    Source:
        Brown et al. (1993), equations of model 1; Dyer et al. (2013), the prior.
    """
    corpus = _index(pairs)
    forward, backward = _both_ways(corpus, iterations, tension, smoothing)
    names = zip(corpus.link_source.tolist(), corpus.link_target.tolist(), strict=True)
    return Tables([(corpus.sources[s], corpus.targets[t]) for s, t in names], forward, backward)


def _both_ways(corpus: _Corpus, iterations: int, tension: float, smoothing: float) -> tuple[Floats, Floats]:
    prior = np.exp(-tension * corpus.distance)
    forward = _maximise(
        corpus.link, corpus.link_source, corpus.link_target, corpus.target_token, prior, iterations, smoothing
    )
    backward = _maximise(
        corpus.link, corpus.link_target, corpus.link_source, corpus.source_token, prior, iterations, smoothing
    )
    return forward, backward


def _maximise(
    link: Ints, given: Ints, made: Ints, token: Ints, prior: Floats, iterations: int, smoothing: float
) -> Floats:
    """Estimate p(made | given): each token shares one link among the words of the other side and NULL."""
    num_tokens, num_given, num_made = int(token.max()) + 1, int(given.max()) + 1, int(made.max()) + 1
    word_of_token = np.empty(num_tokens, dtype=np.int64)
    word_of_token[token] = made[link]
    probability = np.full(len(given), 1.0 / num_made)
    null = np.full(num_made, 1.0 / num_made)
    for _ in range(iterations):
        weight = probability[link] * prior
        total = np.bincount(token, weight, num_tokens) + null[word_of_token]
        links = np.bincount(link, weight / total[token], len(given))
        null_links = np.bincount(word_of_token, null[word_of_token] / total, num_made)
        sums = np.bincount(given, links, num_given) + smoothing
        probability, null = links / sums[given], null_links / null_links.sum()
    return probability


# ---- alignments by similarity


def argmax_links(similarity: Floats) -> Alignment:
    """Return the links that are best for both words.

    Args:
        similarity: m x n, of the words of two texts.

    Source:
        arXiv 2004.08728, section 2.2 (argmax).
    """
    return [(int(i), int(j)) for i, j in np.argwhere(_mutual(similarity))]


def _mutual(similarity: Floats) -> NDArray[np.bool_]:
    best = np.zeros(similarity.shape, dtype=bool)
    if similarity.size:
        columns, rows = similarity.argmax(1), similarity.argmax(0)
        for i, j in enumerate(columns):
            best[i, j] = rows[j] == i and similarity[i, j] > 0
    return best


def itermax_links(similarity: Floats, *, alpha: float = 0.9, rounds: int = 2) -> Alignment:
    """Repeat argmax; links to a word that is linked already count `alpha`, between two that are linked nothing.

    Args:
        similarity: m x n, none negative.
        alpha: 0 to 1.
        rounds: how often.

    Source:
        arXiv 2004.08728, section 2.2 (itermax, alpha 0.9, two rounds).
    """
    links = _mutual(similarity)
    for _ in range(rounds - 1):
        row, column = links.any(axis=1, keepdims=True), links.any(axis=0, keepdims=True)
        mask = np.where(row & column, 0.0, np.where(row | column, alpha, 1.0))
        links |= _mutual(similarity * mask)
    return [(int(i), int(j)) for i, j in np.argwhere(links)]


def distort(similarity: Floats, kappa: float = 0.5) -> Floats:
    """Weaken links far from the diagonal by 1 - kappa (i/m - j/n)^2.

    Source:
        arXiv 2004.08728, section 2.3 (distortion correction).
    """
    m, n = similarity.shape
    gap = (np.arange(m) / m)[:, None] - (np.arange(n) / n)[None, :]
    weakened: Floats = similarity * (1 - kappa * gap**2)
    return weakened


Vectors = Callable[[Sequence[tuple[str, ...]]], Iterable["NDArray[np.float32]"]]
"""Words of texts -> for each text one vector a word (n x d)."""


def align(pairs: Sequence[Pair], vectors: Vectors, method: AlignMethod = "itermax") -> list[Alignment]:
    """Align the words of parallel texts by the cosine of their vectors.

    Args:
        pairs: words of the source and of the target.
        vectors: an encoder.
        method: `argmax` (fewer, surer links) or `itermax`.
    """
    links = []
    sides = zip(vectors([pair[0] for pair in pairs]), vectors([pair[1] for pair in pairs]), strict=True)
    for source, target in sides:
        unit = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-9) for one in (source, target)]
        similarity = distort((unit[0] @ unit[1].T).astype(np.float64) / 2 + 0.5)
        links.append(argmax_links(similarity) if method == "argmax" else itermax_links(similarity))
    return links


# ---- dictionaries


def lower(pairs: Iterable[Pair]) -> list[Pair]:
    """Fold the case of both sides; pairs of which one side has no word are left out."""
    folded = ((tuple(map(str.lower, a)), tuple(map(str.lower, b))) for a, b in pairs)
    return [(a, b) for a, b in folded if a and b]


def induce(pairs: Sequence[Pair], options: InductionOptions) -> Dictionary:
    """Induce a dictionary by IBM model 1.

    Args:
        pairs: words of the source and of the target, as written.
        options: see `InductionOptions`.

    Returns:
        Headwords with their translations, the best first; its score is the product of both probabilities. Case is
        folded, then each word is written as it mostly is.
    """
    corpus = _index(lower(pairs))
    forward, backward = _both_ways(corpus, options.iterations, options.tension, options.smoothing)
    return _select(corpus, forward * backward, _usual_case(pairs), options)


def induce_from_links(pairs: Sequence[Pair], links: Sequence[Alignment], options: InductionOptions) -> Dictionary:
    """Induce a dictionary by counting the links of word alignments; smoothing, counts and threshold as for model 1."""
    found = [
        ((source[i].lower(),), (target[j].lower(),))
        for (source, target), own in zip(pairs, links, strict=True)
        for i, j in own
    ]
    corpus = _index(found)
    counts = np.bincount(corpus.link, minlength=len(corpus.link_source)).astype(float)
    forward = counts / (corpus.source_counts[corpus.link_source] + options.smoothing)
    backward = counts / (corpus.target_counts[corpus.link_target] + options.smoothing)
    return _select(corpus, forward * backward, _usual_case(pairs), options)


def _select(
    corpus: _Corpus, score: Floats, case: tuple[dict[str, str], dict[str, str]], options: InductionOptions
) -> Dictionary:
    kept = score > options.threshold
    kept &= corpus.source_counts[corpus.link_source] >= options.min_count
    kept &= corpus.target_counts[corpus.link_target] >= options.min_count
    if options.mutual:
        for side in (corpus.link_source, corpus.link_target):
            best = np.zeros(int(side.max()) + 1)
            np.maximum.at(best, side, score)
            kept &= score == best[side]
    entries: dict[str, list[Translation]] = {}
    for at in np.flatnonzero(kept)[np.argsort(-score[kept], kind="stable")]:
        source, target = corpus.sources[corpus.link_source[at]], corpus.targets[corpus.link_target[at]]
        one = Translation(case[1][target], score=round(float(score[at]), 6))
        entries.setdefault(case[0][source], []).append(one)
    return Dictionary({head: tuple(own) for head, own in entries.items()}, "induced", len(score))


def _usual_case(pairs: Iterable[Pair]) -> tuple[dict[str, str], dict[str, str]]:
    """Return how each folded word is mostly written; the first word of a text does not count where others do."""
    sides = []
    for side in (0, 1):
        inside: dict[str, Counter[str]] = {}
        first: dict[str, str] = {}
        for pair in pairs:
            for i, word in enumerate(pair[side]):
                if i:
                    inside.setdefault(word.lower(), Counter())[word] += 1
                else:
                    first.setdefault(word.lower(), word.lower())
        sides.append(first | {folded: counts.most_common(1)[0][0] for folded, counts in inside.items()})
    return sides[0], sides[1]


def tsv(dictionary: Dictionary) -> str:
    """Write a dictionary as TSV with named columns, which `read_dictionary` reads back."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(("source", "target", "score", "pos", "labels"))
    for head, own in dictionary.entries.items():
        for one in own:
            writer.writerow((head, one.text, "" if one.score is None else one.score, one.pos, "; ".join(one.labels)))
    return buffer.getvalue()


class Precision(NamedTuple):
    """Headwords that the reference has, and how many of their best translations it has, too.

    `num_same_form` also counts a translation that shares at least 4 first letters, and 60 %, with one of the reference:
    reference dictionaries list base forms, text holds inflected ones.
    """

    num_entries: int
    num_known: int
    num_right: int
    num_same_form: int
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def precision(self) -> float:
        """P@1: share of known headwords whose best translation is in the reference, 0 to 1."""
        return self.num_right / max(1, self.num_known)


def precision_at_1(dictionary: Dictionary, reference: Dictionary) -> Precision:
    """Score the best translation of each headword against a reference dictionary; case is folded.

    Args:
        dictionary: the induced one.
        reference: a dictionary of the same direction that had no part in the induction.
    """
    known: dict[str, set[str]] = {}
    for head, own in reference.entries.items():
        known.setdefault(head.casefold(), set()).update(one.text.casefold() for one in own)
    found = [
        (head, own[0].text, known[head.casefold()])
        for head, own in dictionary.entries.items()
        if head.casefold() in known
    ]
    right = [best.casefold() in wanted for _, best, wanted in found]
    form = [
        yes or any(_same_form(best.casefold(), one) for one in wanted)
        for yes, (_, best, wanted) in zip(right, found, strict=True)
    ]
    wrong = tuple(
        (head, best, ", ".join(sorted(wanted)[:NUM_SHOWN]))
        for yes, (head, best, wanted) in zip(form, found, strict=True)
        if not yes
    )
    return Precision(len(dictionary.entries), len(found), sum(right), sum(form), wrong)


def _same_form(word: str, other: str) -> bool:
    shared = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    return shared >= 4 and shared >= 0.6 * max(len(word), len(other))


def held_out_hits(dictionary: Dictionary, pairs: Sequence[Pair]) -> tuple[int, int]:
    """Count, in texts that had no part in the induction, the headwords whose best translation stands on the other side.

    Args:
        dictionary: the induced one.
        pairs: held-out parallel texts.

    Returns:
        Hits, and the number of words that are headwords: an estimate of precision that needs no reference.
    """
    hits = total = 0
    for source, target in lower(pairs):
        others = set(target)
        for word in source:
            found = dictionary.lookup(word)
            if found:
                total += 1
                hits += found[0].text.lower() in others
    return hits, total
