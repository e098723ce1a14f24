"""Token files: a corpus in token ids, one flat file a source, written once and memory-mapped by every process.

A folder holds `NAME.tokens` (little-endian uint16 or uint32), `NAME.documents` (int64 offsets of the documents'
beginnings) and `tokens.json`, written last, with sizes, checksums and the tokenizer's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, replace_atomically, sha256_file, write_bytes, write_json

INDEX = "tokens.json"
BATCH_TEXTS = 256


def write_tokens(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    on_text: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Tokenise documents into `<s> document </s> ...` of each source, in one pass; what is there already stays.

    Args:
        folder: where to.
        documents: (source, text) in any order, read once and never all in memory.
        tokenizer: the tokenizer.
        fingerprint: of the text and the tokenizer; files of another one are written anew.
        on_text: called with bytes of text done.

    Returns:
        The index, as in `tokens.json`.

    Raises:
        UserError: the disk is full, or two sources would share a file.
    """
    index = _read_index(folder)
    if index is not None and index["fingerprint"] == fingerprint:
        return index
    (folder / INDEX).unlink(missing_ok=True)
    kind = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    files: dict[str, _Writer] = {}
    with ExitStack() as stack:
        for batch in _batches(documents):
            texts = [text for _, text in batch]
            encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
            for (source, text), ids in zip(batch, encoded["input_ids"], strict=True):
                if source not in files:
                    files[source] = _open_writer(folder, source, files, kind, stack)
                files[source].add(np.array([*begin, *ids, *end], dtype=kind), len(text.encode()))
            if on_text:
                on_text(sum(len(text.encode()) for text in texts))
    sources = {source: files[source].finish(folder) for source in sorted(files)}
    index = {"fingerprint": fingerprint, "vocab_size": len(tokenizer), "sources": sources}
    write_json(folder / INDEX, index)
    return index


@dataclass
class _Writer:
    """An open token file, and what is known of it so far."""

    name: str
    kind: np.dtype[Any]
    stream: IO[bytes]
    offsets: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_bytes: int = 0

    def add(self, values: NDArray[Any], num_bytes: int) -> None:
        self.offsets.append(self.num_tokens)
        self.num_tokens += len(values)
        self.num_bytes += num_bytes
        self.stream.write(values.tobytes())

    def finish(self, folder: Path) -> dict[str, Any]:
        write_bytes(folder / f"{self.name}.documents", np.array(self.offsets, dtype=np.int64).tobytes())
        return {
            "file": f"{self.name}.tokens",
            "dtype": self.kind.name,
            "num_documents": len(self.offsets),
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "sha256": sha256_file(folder / f"{self.name}.tokens"),
        }


def _open_writer(
    folder: Path, source: str, files: Mapping[str, _Writer], kind: np.dtype[Any], stack: ExitStack
) -> _Writer:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source)
    other = next((known for known, writer in files.items() if writer.name == name), None)
    if other is not None:
        raise UserError(f"the sources {source!r} and {other!r} would share a file.", hint="Rename one of them.")
    temporary = stack.enter_context(replace_atomically(folder / f"{name}.tokens"))
    return _Writer(name, kind, stack.enter_context(temporary.open("wb")))


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(documents)
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


def read_documents(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Return where the documents of each source begin.

    Raises:
        UserError: no token files, or offsets that are missing or torn.
    """
    found = {}
    for name, entry in read_index(folder)["sources"].items():
        path = (folder / entry["file"]).with_suffix(".documents")
        if not path.is_file() or path.stat().st_size != 8 * entry["num_documents"]:
            raise UserError("is missing or torn.", where=str(path), hint="Delete the folder; it is written anew.")
        found[name] = np.fromfile(path, dtype=np.int64)
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
