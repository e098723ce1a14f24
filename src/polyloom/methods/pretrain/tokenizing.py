"""`polyloom pretrain tokenizer`: train a byte-level BPE tokenizer and put it beside others, language by language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Cell, Result, Scalar, Series, Table
from polyloom.core.seeding import python_random
from polyloom.methods.pretrain.data_config import WORLD_LANGUAGES, TokenizerConfig
from polyloom.methods.pretrain.samples import Samples, fill_shares, gather, read_cells, world_cells
from polyloom.metrics.statistics import ratio_interval
from polyloom.models.load import load_tokenizer
from polyloom.models.tokenizers import encode, train_tokenizer
from polyloom.runs.folder import Run

OURS = "ours"
BYTES = "bytes"
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_WORLD_CHARACTERS = 60_000
_MOST_BYTES = 20_000_000
# Each plane of Unicode is tried with so many code points.
_PLANE_POINTS = 500
_HARD_TEXTS = (
    "",
    "\0",
    "a\0b",
    "\u0301",
    "e\u0301\u0302\u0327",
    "\u093f\u094d",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\u200d\u200c\u202e\ufeff",
    " \t\r\n\u3000\u00a0",
    "</s><pad><s>",
    "٣٤٥ ௧௨௩ Ⅷ ½",
)


@dataclass(frozen=True)
class Measured:
    """What a tokenizer does to some texts: one entry a text."""

    num_bytes: list[int]
    num_characters: list[int]
    num_tokens: list[int]
    num_single_bytes: int
    round_trip: bool

    @property
    def tokens_per_byte(self) -> float:
        """The paper's compression ratio: lower is better."""
        return sum(self.num_tokens) / sum(self.num_bytes)


def run_tokenizer(config: TokenizerConfig, run: Run) -> Result:
    """Train on a balanced sample, save, and measure on held-out text beside controls and other tokenizers.

    Raises:
        UserError: no text, nothing held out, or a folder that holds no tokenizer.
    """
    others = {_label(source): load_tokenizer(source) for source in config.compare}
    samples = _samples(config)
    if not samples.held_out:
        raise UserError("too little text to hold some back.", where="--data", hint="Give at least a dozen documents.")
    budget = _budget(config, samples)
    with run.progress("tokenizer: train", 3 if config.baselines else 1) as advance:
        tokenizer = _train(config, samples, config.alpha, budget)
        advance(1)
        tokenizers: dict[str, PreTrainedTokenizerBase] = {OURS: tokenizer}
        if config.baselines:
            tokenizers["as mixed (alpha 1)"] = _train(config, samples, 1.0, budget)
            advance(1)
            largest = max(samples.sizes, key=lambda cell: samples.sizes[cell])
            only = {cell: texts for cell, texts in samples.train.items() if cell[1] == largest[1]}
            sizes = {cell: samples.sizes[cell] for cell in only}
            tokenizers[f"{largest[1]} only"] = _train(config, Samples(only, {}, sizes), 1.0, budget)
            advance(1)
    tokenizers |= others
    out = config.out or run.artifact("tokenizer")
    tokenizer.save_pretrained(out)
    held_out = _by_language(samples.held_out)
    measured = {
        name: {language: measure(one, texts) for language, texts in held_out.items()}
        for name, one in tokenizers.items()
    }
    failures = [text for text in unicode_texts(config.seed) if tokenizer.decode(encode(tokenizer, text)) != text]
    return _as_result(config, run, samples, measured, len(tokenizer), len(failures), out)


def _label(source: str) -> str:
    return Path(source).name if Path(source).is_dir() else source


def _samples(config: TokenizerConfig) -> Samples:
    if config.data:
        cells: Iterable[tuple[str, str, str]] = read_cells(config.data, config.languages)
    else:
        cells = world_cells(config.languages or WORLD_LANGUAGES, _WORLD_CHARACTERS, config.seed, "train")
    return gather(cells, config.sample_bytes or _MOST_BYTES, config.test_bytes)


def _budget(config: TokenizerConfig, samples: Samples) -> int:
    # Half: a sample that takes everything could not be balanced.
    return config.sample_bytes or min(_MOST_BYTES, max(1, sum(samples.sizes.values()) // 2))


def _train(config: TokenizerConfig, samples: Samples, alpha: float, budget: int) -> PreTrainedTokenizerFast:
    texts: list[str] = []
    for cell, left in fill_shares(samples.sizes, budget, alpha).items():
        for text in samples.train[cell]:
            if left <= 0:
                break
            texts.append(text)
            left -= len(text.encode())
    return train_tokenizer(texts, config.vocab_size, split_digits=config.split_digits)


def _by_language(cells: dict[tuple[str, str], list[str]]) -> dict[str, list[str]]:
    """Join the domains of each language; the domain stays in the name where a language has several."""
    languages = [language for _, language in cells]
    result: dict[str, list[str]] = {}
    for (domain, language), texts in cells.items():
        name = language if languages.count(language) == 1 else f"{domain}/{language}"
        result[name] = texts
    return dict(sorted(result.items()))


def measure(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Measured:
    """Encode texts and count bytes, characters, tokens and single-byte tokens; check that decoding gives them back.

    Args:
        tokenizer: any tokenizer.
        texts: of one language.
    """
    ids = [encode(tokenizer, text) for text in texts]
    single = {
        i: len(token) == 1 or _BYTE_FALLBACK.fullmatch(token) is not None
        for i, token in zip(
            sorted({i for row in ids for i in row}),
            tokenizer.convert_ids_to_tokens(sorted({i for row in ids for i in row})),
            strict=True,
        )
    }
    return Measured(
        [len(text.encode()) for text in texts],
        [len(text) for text in texts],
        [len(row) for row in ids],
        sum(single[i] for row in ids for i in row),
        all(tokenizer.decode(row) == text for row, text in zip(ids, texts, strict=True)),
    )


def unicode_texts(seed: int = 0) -> list[str]:
    """Return hard texts: code points of every plane of Unicode, stray marks, controls, joined emoji."""
    rng = python_random(seed, "unicode")
    texts = list(_HARD_TEXTS)
    for plane in range(17):
        points = [plane * 0x10000 + rng.randrange(0x10000) for _ in range(_PLANE_POINTS)]
        texts.append("".join(chr(point) for point in points if not 0xD800 <= point <= 0xDFFF))
    return texts


def _table(measured: dict[str, dict[str, Measured]]) -> Table:
    rows: list[list[Cell]] = []
    for name, languages in measured.items():
        best = min(one.tokens_per_byte for one in languages.values())
        for language, one in languages.items():
            tokens = sum(one.num_tokens)
            rows.append(
                [
                    language,
                    name,
                    one.tokens_per_byte,
                    tokens / sum(one.num_characters),
                    sum(one.num_bytes) / tokens,
                    one.num_single_bytes / tokens,
                    one.tokens_per_byte / best,
                    one.round_trip,
                ]
            )
    rows.sort(key=lambda row: (str(row[0]), list(measured).index(str(row[1]))))
    columns = [
        "language",
        "tokenizer",
        "tokens per byte",
        "tokens per character",
        "bytes per token",
        "single bytes",
        "parity",
        "round trip",
    ]
    return Table(
        columns=columns, rows=rows, title="Compression on held-out text (a byte tokenizer has 1 token per byte)"
    )


def _as_result(
    config: TokenizerConfig,
    run: Run,
    samples: Samples,
    measured: dict[str, dict[str, Measured]],
    num_tokens: int,
    num_failures: int,
    out: Path,
) -> Result:
    ours = measured[OURS].values()
    tokens = [n for one in ours for n in one.num_tokens]
    sizes = [n for one in ours for n in one.num_bytes]
    ratio = ratio_interval(tokens, sizes, seed=config.seed)
    scalars = {
        "tokens_per_byte": Scalar.of(ratio, "tokens/byte"),
        "vocabulary": Scalar(value=num_tokens, unit="tokens"),
        "round_trip_failures": Scalar(value=num_failures),
        "parity": Scalar(value=_parity(measured[OURS])),
    }
    worst = _parity(measured[OURS])
    verdicts = [
        f"One token holds {1 / ratio.value:.2f} bytes; the worst language takes {worst:.2f} times the tokens per byte "
        "of the best."
    ]
    for number, (name, other) in enumerate(list(measured.items())[1:], start=1):
        theirs = [n for one in other.values() for n in one.num_tokens]
        gain = ratio_interval([b - a for a, b in zip(tokens, theirs, strict=True)], sizes, seed=config.seed)
        word = "fewer" if gain.low > 0 else "more" if gain.high < 0 else "not clearly fewer or more"
        verdicts.append(
            f"Beside {name}: {word} tokens per byte ({gain.value:+.4f}, {gain.low:+.4f} to {gain.high:+.4f})."
        )
        scalars[f"saved_against_{number}"] = Scalar.of(gain, "tokens/byte")
        scalars[f"parity_{number}"] = Scalar(value=_parity(other))
    artifacts = {}
    if out.is_relative_to(run.path):
        where = str(out.relative_to(run.path) / "tokenizer.json")
        artifacts["tokenizer"] = Artifact(path=where, media_type="application/json", description="the tokenizer")
    return run.result(
        scalars=scalars,
        tables={"compression": _table(measured), "sample": _sample_table(config, samples)},
        series=_series(measured),
        artifacts=artifacts,
        verdicts=verdicts,
        limitations=_limitations(config, samples, num_tokens),
    )


def _parity(languages: dict[str, Measured]) -> float:
    rates = [one.tokens_per_byte for one in languages.values()]
    return max(rates) / min(rates)


def _sample_table(config: TokenizerConfig, samples: Samples) -> Table:
    taken = fill_shares(samples.sizes, _budget(config, samples), config.alpha)
    total, mixed = sum(taken.values()), sum(samples.sizes.values())
    rows: list[list[Cell]] = [
        [domain, language, size, size / mixed, taken[domain, language] / total]
        for (domain, language), size in samples.sizes.items()
    ]
    columns = ["domain", "language", "bytes", "share as mixed", f"share at alpha {config.alpha:g}"]
    return Table(columns=columns, rows=rows, title="What the tokenizer is trained on")


def _series(measured: dict[str, dict[str, Measured]]) -> dict[str, Series]:
    return {
        name: Series(
            x=[float(i) for i in range(len(languages))],
            y=[sum(one.num_bytes) / sum(one.num_tokens) for one in languages.values()],
            x_names=list(languages),
            x_label="language",
            y_label="bytes per token",
            group="bytes per token",
            kind="bar",
        )
        for name, languages in measured.items()
    }


def _limitations(config: TokenizerConfig, samples: Samples, num_tokens: int) -> list[str]:
    notes = ["Bytes per token are compared on the same text; they say nothing of a model's quality."]
    if num_tokens < config.vocab_size:
        notes.append(f"The text supports {num_tokens} of the {config.vocab_size} tokens asked for: give more text.")
    missing = [f"{d}/{language}" for d, language in samples.train if (d, language) not in samples.held_out]
    if missing:
        notes.append(f"Too little text to hold some back: {', '.join(missing)}.")
    if not config.data:
        from polyloom.data import world

        notes.append(f"{world.NOTICE}: figures show mechanisms, not quality on real text.")
    return notes
