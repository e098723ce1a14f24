"""One way to score a pool for a target: lexical scorers, encoders, several of them fused, and what the cache spares."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as save_tensors

from polyloom.core.errors import UserError
from polyloom.core.files import write_bytes
from polyloom.methods.select.data import Pool
from polyloom.methods.select.lexical import (
    LEXICAL,
    Lexical,
    LexicalIndex,
    build_index,
    latent_project,
    latent_vectors,
)
from polyloom.methods.select.method import Aggregation, aggregate, cosine_pairs, fuse, max_sim, order_by

if TYPE_CHECKING:
    from polyloom.methods.select.encoder import Encoder

LATENT = "latent"
LATE, IDF = "late:", "idf:"
TOKEN_WISE = (LATE, IDF)
DEFAULT_SCORERS = ("tfidf", "char", "bm25")
Floats = NDArray[np.float32]


def cache_folder(given: str | None) -> Path:
    """Return the folder of cached embeddings: the one given, or the user's cache folder."""
    if given:
        return Path(given)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "polyloom" / "select"


@dataclass
class Scored:
    """What a set of scorers says of a pool.

    Attributes:
        names: the scorers.
        pairs: for every scorer s_ij of [m, n] instruction pairs.
        scores: for every scorer one score a task.
        fused: the scores to rank by: of the one scorer, or the fusion of several.
        num_encoded: texts that the cache did not hold.
        notes: what a user should know.
    """

    names: list[str]
    pairs: list[Floats]
    scores: list[NDArray[np.float64]]
    fused: NDArray[np.float64]
    num_encoded: int = 0
    notes: list[str] = field(default_factory=list)


def score_pool(
    target: Sequence[str],
    pool: Pool,
    scorers: Sequence[str] = DEFAULT_SCORERS,
    how: Aggregation = "mean",
    *,
    cache: Path | None = None,
    head: Path | None = None,
) -> Scored:
    """Score every task of a pool for a target.

    Args:
        target: m cleaned instructions.
        pool: the tasks.
        scorers: `tfidf`, `char`, `bm25`, `latent`, `minilm`, or a model folder or hub id each; `late:` before one
            compares token states (MaxSim), `idf:` weights rare tokens more; several are fused by reciprocal ranks.
        how: the aggregation over instruction pairs.
        cache: folder of cached embeddings and indexes; None computes all.
        head: an aligned head (`polyloom select align`), put on the encoder that it was made for.
    """
    found = Scored(list(dict.fromkeys(scorers)), [], [], np.zeros(0))
    if not found.names:
        raise UserError("no scorer is given.", where="--scorers")
    if head is not None and not any(head_for(name, head) for name in found.names):
        raise UserError("no scorer takes this aligned head.", where=str(head), hint="Add the encoder it was made for.")
    owners = np.array(pool.owners)
    for name in found.names:
        pairs = pair_scores(name, target, pool.texts, found, cache, head)
        found.pairs.append(pairs)
        found.scores.append(aggregate(pairs, owners, len(pool.tasks), how))
    found.fused = found.scores[0] if len(found.scores) == 1 else fuse(found.scores)
    return found


def pair_scores(
    name: str, target: Sequence[str], texts: Sequence[str], found: Scored, cache: Path | None, head: Path | None = None
) -> Floats:
    """Return s_ij of one scorer; what the cache did not hold is counted in `found`."""
    if name in LEXICAL:
        kind: Lexical = name
        return lexical_index(texts, kind, cache).score_all(target)
    if name == LATENT:
        own = head_for(name, head)
        latent = read_latent(own) if own else latent_vectors(texts)
        return cosine_pairs(*(latent_project(part, *latent) for part in (target, texts)))
    if name.startswith(TOKEN_WISE):
        return token_scores(name, target, texts, found, cache)
    vectors = encode_texts(name, [*target, *texts], found, cache)
    if own := head_for(name, head):
        vectors = vectors @ read_head(own, vectors.shape[1])
    return cosine_pairs(vectors[: len(target)], vectors[len(target) :])


def token_scores(name: str, target: Sequence[str], texts: Sequence[str], found: Scored, cache: Path | None) -> Floats:
    """Return s_ij from the states of single tokens: by late interaction, or as cosines of IDF-weighted means.

    A token's weight is ln((1 + N) / (1 + df)) + 1 over the N instructions of the pool.
    """
    from polyloom.methods.select.encoder import cached_states, open_encoder

    encoder = open_encoder(name.partition(":")[2])
    every = [*target, *texts]
    states, num_encoded = cached_states(encoder.fingerprint, every, encoder.encode_tokens, cache)
    tokens = encoder.token_ids(every)
    df = Counter(token for row in tokens[len(target) :] for token in set(row))
    weights = [np.log((1 + len(texts)) / (1 + np.array([df[token] for token in row]))) + 1 for row in tokens]
    found.num_encoded += num_encoded
    found.notes += [*encoder.notes, *cut_note(encoder, every)]
    if name.startswith(IDF):
        means = np.stack([w.astype(np.float32) @ x / w.sum() for w, x in zip(weights, states, strict=True)])
        return cosine_pairs(means[: len(target)], means[len(target) :])
    sides = []
    for part in (slice(None, len(target)), slice(len(target), None)):
        starts = np.cumsum([0, *(len(one) for one in states[part])][:-1])
        sides.append((np.concatenate(states[part]), starts, np.concatenate(weights[part]).astype(np.float32)))
    (asked, asked_starts, asked_weights), (held, held_starts, held_weights) = sides
    return max_sim(asked, asked_starts, held, held_starts, asked_weights, held_weights)


def encode_texts(name: str, texts: Sequence[str], found: Scored, cache: Path | None) -> Floats:
    """Return the vectors of an encoder, from the cache where it holds them."""
    from polyloom.methods.select.encoder import cached_vectors, open_encoder

    encoder = open_encoder(name)
    vectors, num_encoded = cached_vectors(encoder.fingerprint, texts, encoder.encode, cache)
    found.num_encoded += num_encoded
    found.notes += encoder.notes
    found.notes += cut_note(encoder, texts)
    return vectors


def cut_note(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """Say which share of the texts is longer than the encoder takes, where any is."""
    if not encoder.truncated:
        return []
    longest = max(encoder.truncated.values())
    share = len(encoder.truncated) / len(set(texts))
    return [
        f"{share:.1%} of the instructions are longer than the encoder's {encoder.max_tokens} tokens and are cut; "
        f"the longest has {longest}."
    ]


def head_for(name: str, head: Path | None) -> Path | None:
    """Return the head where it was made for this scorer: the latent encoder, or a sentence encoder; else None."""
    if head is None or name in LEXICAL or name.startswith(TOKEN_WISE):
        return None
    return head if ("projection" in _head_tensors(head)) == (name == LATENT) else None


def read_head(path: Path, dim: int) -> Floats:
    """Read the matrix of a sentence encoder's aligned head.

    Raises:
        UserError: no such file, or it was made for another encoder's dimension.
    """
    weight: Floats = _head_tensors(path)["weight"]
    if weight.shape != (dim, dim):
        raise UserError(f"is a head for {weight.shape[0]} dimensions; the encoder has {dim}.", where=str(path))
    return weight


def _head_tensors(path: Path) -> dict[str, NDArray[Any]]:
    file = path / "head.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError("holds no aligned head.", where=str(path), hint="Make one with: polyloom select align")
    with safe_open(str(file), framework="numpy") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no iterator)


def write_latent(path: Path, projection: Floats, idf: Floats, terms: Sequence[str]) -> None:
    """Write an aligned latent encoder whole: the space that another pool would be given is another one."""
    names = np.frombuffer("\n".join(terms).encode(), dtype=np.uint8)
    tensors: dict[str, NDArray[Any]] = {"projection": projection.copy(), "idf": idf, "terms": names}
    write_bytes(path, save_tensors(tensors))


def read_latent(path: Path) -> tuple[Floats, Floats, list[str]]:
    """Read what `write_latent` wrote: projection, idf and terms."""
    found = _head_tensors(path)
    return found["projection"], found["idf"], found["terms"].tobytes().decode().split("\n")


def lexical_index(texts: Sequence[str], kind: Lexical, cache: Path | None) -> LexicalIndex:
    """Return the index of texts, from the cache where their content has one."""
    if cache is None:
        return build_index(texts, kind)
    digest = hashlib.sha256(kind.encode())
    for text in texts:
        digest.update(b"\0" + text.encode())
    path = cache / f"{kind}-{digest.hexdigest()[:32]}.safetensors"
    names = [one.name for one in fields(LexicalIndex) if one.name not in ("kind", "num_rows")]
    if path.is_file():
        with safe_open(str(path), framework="numpy") as file:
            return LexicalIndex(kind, **{name: file.get_tensor(name) for name in names}, num_rows=len(texts))
    index = build_index(texts, kind)
    write_bytes(path, save_tensors({name: np.ascontiguousarray(getattr(index, name)) for name in names}))
    return index


def nearness_of(
    target: Sequence[str],
    pool: Pool,
    names: Sequence[str],
    scorer: str,
    cache: Path | None = None,
) -> dict[str, float]:
    """Return how near some tasks of a pool are to a target: the mean similarity of their instructions, by one scorer.

    Args:
        target: cleaned instructions.
        pool: holds the tasks; names that it does not know have no nearness.
        names: the tasks.
        scorer: its name.
        cache: folder of cached embeddings and indexes.
    """
    known = set(names) & set(pool.ids)
    if not known:
        return {}
    part = pool.without([i for i, name in enumerate(pool.ids) if name not in known])
    scores = score_pool(target, part, [scorer], cache=cache).scores[0]
    return dict(zip(part.ids, map(float, scores), strict=True))


def rank_ids(scores: NDArray[np.float64], ids: Sequence[str]) -> list[str]:
    """Return the ids from best to worst."""
    return [ids[i] for i in order_by(scores)]
