"""First vectors of words: text files (GloVe, word2vec, fastText), a local model's embedding matrix, or a static table
distilled from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.seeding import derive_seed
from polyloom.data.word_vectors import read_word_vectors
from polyloom.methods.match.models import Matcher, word_spread
from polyloom.methods.match.tokens import NUM_SPECIALS, AnyVocabulary, Subwords, build_vocabulary

Floats = NDArray[np.float32]
SIF = 1e-4
MOST_COUNTED = 5000


@dataclass(frozen=True)
class Initial:
    """First vectors: rows by word number (of spread 1), their vocabulary where it is not the training set's, a note."""

    width: int
    rows: Floats | None
    vocabulary: AnyVocabulary | None
    note: str = ""

    def put_into(self, model: Matcher, vocabulary: AnyVocabulary) -> None:
        """Write the rows into a matcher's embedding, with the spread of its base; rows of 0 keep their random ones."""
        assert self.rows is not None
        assert len(self.rows) == len(vocabulary)
        found = np.flatnonzero(np.abs(self.rows).sum(1))
        with torch.no_grad():
            rows: torch.Tensor = model.embedding.weight  # type: ignore[assignment]
            rows[torch.from_numpy(found)] = torch.from_numpy(self.rows[found]) * word_spread(model.shape.base)


def from_file(path: Path, texts: Sequence[str]) -> Initial:
    """Take the training words' vectors from a text file, scaled to a spread of 1.

    Raises:
        UserError: as `read_word_vectors`; none of the training words is in the file.
    """
    vocabulary = build_vocabulary(texts)
    found = read_word_vectors(path, wanted=set(vocabulary.known))
    if not found.words:
        raise UserError("holds none of the training words.", where=str(path), hint="Is it of the same language?")
    rows = np.zeros((len(vocabulary), found.width), dtype=np.float32)
    rows[[vocabulary.number(word) for word in found.words]] = found.matrix
    rows /= max(float(rows[np.abs(rows).sum(1) > 0].std()), 1e-12)
    note = (
        f"{len(found.words)} of {len(vocabulary.known)} training words have a vector in the file; of its "
        f"{found.num_lines} rows {found.num_blanks} are of words with blanks and {found.num_duplicates} of words that "
        "stand twice."
    )
    return Initial(found.width, rows, vocabulary, note)


def tokenizer_of(folder: Path) -> str:
    """Return the content of a folder's tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError("holds no tokenizer.json.", where=str(folder), hint="Save a fast tokenizer into the folder.")
    return read_text(folder / "tokenizer.json")


def from_model(folder: Path) -> Initial:
    """Take a local model's input embedding matrix and tokenizer."""
    from polyloom.models.load import load_model

    model = load_model(folder, "encoder")
    matrix: torch.Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return _of_table(matrix.float().numpy(), Subwords(tokenizer_of(folder)))


def _of_table(matrix: Floats, vocabulary: Subwords) -> Initial:
    rows = np.zeros((len(vocabulary), matrix.shape[1]), dtype=np.float32)
    count = min(len(matrix), len(rows) - NUM_SPECIALS)
    rows[NUM_SPECIALS : NUM_SPECIALS + count] = matrix[:count]
    rows /= max(float(rows.std()), 1e-12)
    return Initial(matrix.shape[1], rows, vocabulary, f"{count} token vectors of width {matrix.shape[1]} were taken.")


def sif_weights(counts: Floats, a: float = SIF) -> Floats:
    """Return a / (a + p) for tokens seen `counts` times, p their share of all."""
    p = counts / max(float(counts.sum()), 1.0)
    return np.asarray(a / (a + p), dtype=np.float32)


def distil(folder: Path, texts: Sequence[str], width: int = 256) -> Initial:
    """Make a static table from a local encoder: forward every token alone, PCA, weights by frequency.

    Args:
        folder: a Hugging Face encoder with a tokenizer.json.
        texts: where token frequencies are counted.
        width: of the table, at most the encoder's.

    Source: the recipe of model2vec; weights of Arora et al. (2017).
    """
    from polyloom.models.load import embedding_rows, load_model

    model = load_model(folder, "encoder", device="auto")
    vocabulary = Subwords(tokenizer_of(folder))
    num_tokens = min(len(vocabulary) - NUM_SPECIALS, embedding_rows(model))
    parts = []
    with torch.inference_mode():
        for start in range(0, num_tokens, 512):
            ids = torch.arange(start, min(start + 512, num_tokens), device=model.device)[:, None]
            parts.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0].cpu())
    table = torch.cat(parts).float().numpy()
    centred = table - table.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    reduced = centred @ axes[: min(width, axes.shape[0])].T
    counts = Counter(i for text in texts for i in vocabulary.encode(text, 512))
    seen = np.asarray([counts[NUM_SPECIALS + i] for i in range(num_tokens)], dtype=np.float32)
    return _of_table(np.asarray(reduced * sif_weights(seen)[:, None], dtype=np.float32), vocabulary)


def from_texts(texts: Sequence[str], width: int, seed: int = 0) -> Initial:
    """Make word vectors on the spot: positive pointwise mutual information of words that share a text, cut by SVD.

    Args:
        texts: the training texts (no label is looked at).
        width: of the vectors, at most the number of words.
        seed: of the randomised decomposition.

    Source: Levy and Goldberg (2014); the square root of the singular values weighs both sides alike.
    """
    vocabulary = build_vocabulary(texts)
    # Words are numbered by frequency; rarer ones say little of each other and keep random vectors.
    size = min(len(vocabulary.known), MOST_COUNTED)
    counts = np.zeros((size, size), dtype=np.float32)
    for text in dict.fromkeys(texts):
        numbers = {vocabulary.number(piece) - NUM_SPECIALS for piece in vocabulary.pieces(text)}
        present = sorted(number for number in numbers if number < size)
        counts[np.ix_(present, present)] += 1
    np.fill_diagonal(counts, 0)
    alone = counts.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * max(float(alone.sum()), 1.0) / np.outer(alone, alone))
    positive = torch.from_numpy(np.nan_to_num(np.maximum(information, 0), posinf=0.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "vectors"))
        u, s, _ = torch.svd_lowrank(positive, q=min(width, size))
    rows = np.zeros((len(vocabulary), u.shape[1]), dtype=np.float32)
    rows[NUM_SPECIALS : NUM_SPECIALS + size] = (u * s.sqrt()).numpy()
    rows /= max(float(rows[NUM_SPECIALS : NUM_SPECIALS + size].std()), 1e-12)
    note = f"{size} words have vectors of width {u.shape[1]} from the training texts' own co-occurrences."
    return Initial(u.shape[1], rows, vocabulary, note)


def make_initial(source: str, kind: str, texts: Sequence[str], width: int, seed: int = 0) -> Initial:
    """Read first vectors from a file or folder, or make them.

    Args:
        source: a text file of vectors, a Hugging Face folder, or `texts`: made of the training texts.
        kind: for a folder: `matrix` takes its embedding matrix, `static` distils a table.
        texts: the training texts.
        width: of vectors that are made.
        seed: of their decomposition.

    Raises:
        UserError: nothing there, or as the readers say.
    """
    if source == "texts":
        return from_texts(texts, width, seed)
    path = Path(source)
    if path.is_file():
        return from_file(path, texts)
    if not path.is_dir():
        raise UserError("there is no such file or folder.", where=source, hint="Check the path of --vectors.")
    return distil(path, texts) if kind == "static" else from_model(path)


def static_baseline(vectors: Floats, ids: Sequence[Sequence[int]]) -> Floats:
    """Return the plain static vectors: each text the mean of its tokens' rows, of length 1."""
    result = np.stack([vectors[list(row)].mean(0) for row in ids])
    return np.asarray(result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12), dtype=np.float32)
