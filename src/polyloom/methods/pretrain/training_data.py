"""From a recipe's text to its sample stream: tokenizer, token files, mixture; made once, then only read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_bytes
from polyloom.data.crawl import list_parts
from polyloom.methods.pretrain.config import TrainVerbConfig
from polyloom.methods.pretrain.samples import WORLD, gather, is_held_out, read_cells, world_cells
from polyloom.models.load import load_tokenizer
from polyloom.models.tokenizers import sample_texts, train_tokenizer
from polyloom.runs.folder import Run
from polyloom.training.stream import SampleStream
from polyloom.training.token_files import read_documents, read_index, read_tokens, write_tokens

WORLD_LANGUAGES = ("en", "de", "es", "ru", "zh", "ja")
WORLD_CHARACTERS = 60_000
HELD_OUT_BYTES = 20_000
TOKENIZER_BYTES = 20_000_000
FEW_DOCUMENTS = 10


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Attributes:
        tokenizer: the tokenizer.
        stream: from a step to its batch.
        sources: the index of the token files, by source.
        shares: of each source in the samples.
        notes: what the report has to say of the data.
    """

    tokenizer: PreTrainedTokenizerBase
    stream: SampleStream
    sources: dict[str, dict[str, Any]]
    shares: dict[str, float]
    notes: list[str]


def training_cells(config: TrainVerbConfig) -> Iterator[tuple[str, str]]:
    """Yield (source, text) of the documents to train on; one in ten is held out, by the hash of its text."""
    for domain, language, text in _cells(config):
        if not is_held_out(text):
            yield f"{domain}/{language}", text


def held_out_texts(config: TrainVerbConfig, num_bytes: int = HELD_OUT_BYTES) -> dict[str, list[str]]:
    """Return held-out documents of each source, at most about so many bytes, the same for any order of reading."""
    if not config.data:
        cells = world_cells(_languages(config), num_bytes // 4, config.seed, "valid")
        texts: dict[str, list[str]] = {}
        for domain, language, text in cells:
            texts.setdefault(f"{domain}/{language}", []).append(text)
        return texts
    found = gather(_cells(config), 1, num_bytes).held_out
    return {f"{domain}/{language}": texts for (domain, language), texts in found.items()}


def _languages(config: TrainVerbConfig) -> tuple[str, ...]:
    return tuple(config.languages) or WORLD_LANGUAGES


def _cells(config: TrainVerbConfig) -> Iterable[tuple[str, str, str]]:
    if config.data:
        return read_cells(config.data, config.languages)
    return world_cells(_languages(config), WORLD_CHARACTERS, config.seed, "train")


def prepare_data(config: TrainVerbConfig, run: Run) -> TrainingData:
    """Make or read the tokenizer and the token files, and lay out the stream.

    Args:
        config: the recipe.
        run: keeps the files under its artifacts.

    Raises:
        UserError: no usable text, a tokenizer that cannot be read, a mixture of other sources than there are.
    """
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else _own_tokenizer(config, run)
    folder = run.artifact("tokens")
    fingerprint = _fingerprint(config, tokenizer)
    size = sum(path.stat().st_size for path in _paths(config)) or WORLD_CHARACTERS * len(_languages(config))
    with run.progress("pretrain: tokenise", size) as advance:
        index = write_tokens(folder, training_cells(config), tokenizer, fingerprint, advance)
    return open_data(config, run, tokenizer, index["sources"])


def open_data(
    config: TrainVerbConfig, run: Run, tokenizer: PreTrainedTokenizerBase, sources: dict[str, dict[str, Any]]
) -> TrainingData:
    """Lay out the stream over token files that are there."""
    tokens = read_tokens(run.artifact("tokens"))
    notes = [] if config.data else [_world_notice()]
    small = [name for name, entry in sources.items() if entry["num_documents"] <= FEW_DOCUMENTS]
    if small:
        notes.append(f"Ten documents or fewer: {', '.join(small)}; what is said of them is uncertain.")
    usable = {name: values for name, values in tokens.items() if len(values) > config.window_tokens}
    left_out = sorted(tokens.keys() - usable.keys())
    if left_out:
        notes.append(f"Left out, as they fill no window of {config.window_tokens} tokens: {', '.join(left_out)}.")
    weights = config.mixture or {name: float(len(values)) for name, values in usable.items()}
    unknown = sorted(weights.keys() - tokens.keys())
    if unknown:
        hint = f"The corpus has: {', '.join(tokens)}."
        raise UserError(f"the mixture names {unknown[0]!r}, which the corpus lacks.", where="mixture", hint=hint)
    weights = {name: weight for name, weight in weights.items() if name in usable}
    if not weights:
        raise UserError("no source fills a window.", where="--data", hint="Give more text or a shorter window.")
    total = sum(weights.values())
    if config.mixture and abs(sum(config.mixture.values()) - 1) > 1e-6:
        notes.append(f"The shares of the mixture add up to {sum(config.mixture.values()):g}; they were divided by it.")
    stream = SampleStream(
        {name: usable[name] for name in weights},
        weights,
        documents=read_documents(run.artifact("tokens")) if config.doc_mask else None,
        window_tokens=config.window_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        max_epochs=config.max_epochs or float("inf"),
        on_exhausted=config.on_exhausted,
    )
    if stream.end < config.steps * config.batch_size:
        stream.place(int(stream.end))
    if config.doc_mask:
        notes.append(_packed(stream))
    shares = {name: weight / total for name, weight in weights.items()}
    return TrainingData(tokenizer, stream, sources, shares, notes)


def _packed(stream: SampleStream) -> str:
    """Say how full the rows of whole documents are."""
    num_tokens = sum(int(packing.lengths.sum()) for packing in stream.packings)
    room = sum(packing.num_rows * packing.row_tokens for packing in stream.packings)
    num_cut = sum(packing.num_cut for packing in stream.packings)
    return f"Whole documents fill {num_tokens / room:.1%} of the rows; {num_cut} longer than a row were cut."


def reopen_data(config: TrainVerbConfig, run: Run) -> TrainingData:
    """Open the data that `prepare_data` made: what each process of a layout does."""
    tokenizer = load_tokenizer(config.tokenizer or str(run.artifact("tokenizer")))
    return open_data(config, run, tokenizer, read_index(run.artifact("tokens"))["sources"])


def _own_tokenizer(config: TrainVerbConfig, run: Run) -> PreTrainedTokenizerBase:
    folder = run.artifact("tokenizer")
    if not (folder / "tokenizer.json").exists():
        samples = gather(_cells(config), TOKENIZER_BYTES, 1).train
        texts = {f"{domain}/{language}": items for (domain, language), items in samples.items()}
        tokenizer = train_tokenizer(sample_texts(texts, TOKENIZER_BYTES, seed=config.seed), config.vocab_size)
        tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder))


def _fingerprint(config: TrainVerbConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of where the text comes from and of the tokenizer."""
    if config.data:
        parts = [str(part) for part in list_parts(config.data)]
        text = parts + [f"{path.stat().st_size} {path.stat().st_mtime_ns}" for path in _paths(config)]
    else:
        text = [WORLD, *_languages(config), str(WORLD_CHARACTERS), str(config.seed)]
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr((text, sorted(config.languages), vocabulary)).encode()).hexdigest()


def _paths(config: TrainVerbConfig) -> list[Path]:
    return sorted({Path(part.path) for part in list_parts(config.data)}) if config.data else []


def _world_notice() -> str:
    from polyloom.data import world

    return f"{world.NOTICE}: figures show mechanisms, not quality on real text."


def tokenizer_digest(folder: Path) -> str:
    """Return the sha256 of a folder's tokenizer.json."""
    return hashlib.sha256(read_bytes(folder / "tokenizer.json")).hexdigest()
