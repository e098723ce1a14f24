"""Token files: a corpus in token ids, one flat file a source, written once and memory-mapped by every process.

A folder holds `NAME.tokens` (little-endian uint16 or uint32), `NAME.documents` (int64 offsets of the documents'
beginnings) and `tokens.json`, written last, with sizes, checksums and the tokenizer's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, replace_atomically, sha256_file, write_bytes, write_json

INDEX = "tokens.json"
BATCH_TEXTS = 256


def write_tokens(
    folder: Path,
    sources: Mapping[str, Iterable[str]],
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    on_text: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Tokenise each source's documents into `<s> document </s> ...`; sources that were written before stay.

    Args:
        folder: where to.
        sources: name -> documents, read once and never all in memory.
        tokenizer: the tokenizer.
        fingerprint: of the text and the tokenizer; files of another one are written anew.
        on_text: called with the number of documents done.

    Returns:
        The index, as in `tokens.json`.

    Raises:
        UserError: the disk is full, or a name that no file can have.
    """
    index = _read_index(folder)
    if index is None or index["fingerprint"] != fingerprint:
        index = {"fingerprint": fingerprint, "vocab_size": len(tokenizer), "sources": {}}
    kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    for name, texts in sources.items():
        if name in index["sources"]:
            continue
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        taken = {entry["file"] for entry in index["sources"].values()}
        if f"{stem}.tokens" in taken:
            raise UserError(f"the sources {name!r} and another would share a file.", hint="Rename one of them.")
        index["sources"][name] = _write_source(folder, stem, texts, tokenizer, kind, on_text)
        write_json(folder / INDEX, index)
    return index


def _write_source(
    folder: Path,
    stem: str,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    kind: type[np.integer[Any]],
    on_text: Callable[[int], object] | None,
) -> dict[str, Any]:
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    path, offsets, num_bytes, num_tokens = folder / f"{stem}.tokens", [], 0, 0
    with replace_atomically(path) as temporary, temporary.open("wb") as stream:
        for batch in _batches(texts):
            encoded = tokenizer(batch, add_special_tokens=False, split_special_tokens=True, verbose=False)
            for text, ids in zip(batch, encoded["input_ids"], strict=True):
                offsets.append(num_tokens)
                num_bytes += len(text.encode())
                values = np.array([*begin, *ids, *end], dtype=kind)
                num_tokens += len(values)
                stream.write(values.tobytes())
            if on_text:
                on_text(len(batch))
    write_bytes(folder / f"{stem}.documents", np.array(offsets, dtype=np.int64).tobytes())
    return {
        "file": path.name,
        "dtype": np.dtype(kind).name,
        "num_documents": len(offsets),
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "sha256": sha256_file(path),
    }


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        yield batch


def read_tokens(folder: Path, *, check: bool = False) -> dict[str, NDArray[np.integer[Any]]]:
    """Memory-map the token files of a folder.

    Args:
        folder: with `tokens.json`.
        check: compare the checksums too, which reads every file whole.

    Returns:
        Token ids [tokens] by source.

    Raises:
        UserError: no token files, or one that is missing, torn or altered.
    """
    index = _read_index(folder)
    if index is None:
        raise UserError(f"holds no token files ({INDEX}).", where=str(folder), hint="Write them with pretrain train.")
    found = {}
    for name, entry in index["sources"].items():
        path = folder / entry["file"]
        kind = np.dtype(entry["dtype"])
        size = path.stat().st_size if path.is_file() else -1
        if size != entry["num_tokens"] * kind.itemsize or (check and sha256_file(path) != entry["sha256"]):
            raise UserError(
                "is missing, torn or altered.", where=str(path), hint="Delete the folder; it is written anew."
            )
        found[name] = np.memmap(path, dtype=kind, mode="r") if size else np.zeros(0, dtype=kind)
    return found


def read_index(folder: Path) -> dict[str, Any]:
    """Return `tokens.json`.

    Raises:
        UserError: there is none.
    """
    index = _read_index(folder)
    if index is None:
        raise UserError(f"holds no token files ({INDEX}).", where=str(folder))
    return index


def _read_index(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / INDEX) if (folder / INDEX).is_file() else None
