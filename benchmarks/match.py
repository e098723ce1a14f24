"""The matching room beside its peers: settings on validation pairs, real similarity data, speed against two encoders.

Run `python benchmarks/match.py settings|aligned|similarity|speed --data DIR`, DIR holding jsick/, stsb/ and jsts/.
`speed` needs sentence-transformers and no data. Times are CPU seconds on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np

from polyloom.core.seeding import numpy_generator
from polyloom.methods.match import models
from polyloom.methods.match.baselines import tfidf_cosine
from polyloom.methods.match.bench import interleaved
from polyloom.methods.match.data import Pairs, Reading, read_pairs, split_pairs
from polyloom.methods.match.tokens import Vocabulary
from polyloom.methods.match.training import Recipe, Trained, build, fit, main_score
from polyloom.metrics.statistics import spearman
from polyloom.models.device import pin_threads

TUNING_SEEDS = (7000, 7001)
GRID = [(1.0, 3e-3, 128), (1.0, 1.5e-3, 128), (0.3, 3e-3, 128), (0.3, 1.5e-3, 128), (0.1, 3e-3, 128), (0.3, 3e-3, 64)]
GRID += [(0.3, 6e-3, 128)]

FOLDS = (0,)
ALIGNED_GRID = [("esim", False, 1.0, 3e-3, 0.3), ("esim", True, 1.0, 3e-3, 0.3), ("re2", True, 1.0, 1e-3, 0.3)]
ALIGNED_GRID += [("re2", True, 0.3, 1e-3, 0.3), ("re2", True, 0.3, 1e-3, 0.1), ("re2", False, 0.3, 1e-3, 0.1)]


def settings(data: Path) -> None:
    """Print the validation accuracy of bag and bag with FA at each setting; test pairs are not looked at."""
    splits = split_pairs(read_pairs(data / "jsick" / "jsick.tsv"))
    print(
        "| spread of first vectors | learning rate | width | none | FA | mean |\n| --- | --- | --- | --- | --- | --- |"
    )
    for spread, rate, width in GRID:
        models.OTHER_SPREAD = spread
        found = []
        for block in ("none", "fa"):
            recipe = Recipe(block=block, learning_rate=rate, width=width)
            runs = [fit(splits["train"], splits["valid"], recipe, seed).curve for seed in TUNING_SEEDS]
            found.append(100 * mean(max(epoch["valid"] for epoch in curve) for curve in runs))
        print(f"| {spread} | {rate} | {width} | {found[0]:.1f} | {found[1]:.1f} | {mean(found):.2f} |", flush=True)


def aligned(data: Path) -> None:
    """Print the accuracy of ESIM-lite and RE2 on held-out quarters of the training pairs, not on test pairs."""
    splits = split_pairs(read_pairs(data / "jsick" / "jsick.tsv"))
    items = splits["train"].items
    part = np.random.default_rng(5).permutation(len(items)) % 4
    print("| base | words in both marked | spread | rate | dropout | accuracy | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for base, overlap, spread, rate, dropout in ALIGNED_GRID:
        models.SPREADS[base] = spread
        recipe = Recipe(base=base, overlap=overlap, learning_rate=rate, dropout=dropout, epochs=9, max_length=48)
        found, seconds = [], []
        for fold in FOLDS:
            kept, held = (
                [pair for pair, f in zip(items, part, strict=True) if (f == fold) == out] for out in (False, True)
            )
            trained = fit(replace(splits["train"], items=kept), splits["valid"], recipe, 100 + fold)
            found.append(100 * main_score(trained, replace(splits["train"], items=held)))
            seconds.append(trained.seconds)
        cells = [base, "yes" if overlap else "no", spread, rate, dropout, f"{mean(found):.1f}", f"{mean(seconds):.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def similarity_data(data: Path) -> dict[str, tuple[Pairs, Pairs, Pairs]]:
    """Return training, validation and test pairs of STSb in five languages and of JSTS (its validation file tests)."""
    scores = Reading(task="scores", scale=(0.0, 5.0))
    found = {}
    for code in ("de", "en", "es", "ja", "zh"):
        parts = [read_pairs(data / "stsb" / f"stsb-{code}-{part}.csv", scores) for part in ("train", "dev", "test")]
        found[f"STSb {code}"] = (parts[0], parts[1], parts[2])
    train = read_pairs(data / "jsts" / "train-v1.3.json", scores)
    parts = [replace(train, items=train.items[start::10]) for start in range(10)]
    kept = replace(train, items=[pair for part in parts[1:] for pair in part.items])
    found["JSTS"] = (kept, parts[0], read_pairs(data / "jsts" / "valid-v1.3.json", scores))
    return found


def similarity(data: Path) -> None:
    """Print Spearman's correlation on the test pairs: weighted word counts, bag, bag with FA (one seed)."""
    print("| data | TF-IDF | bag | bag with FA | CPU s a training |\n| --- | --- | --- | --- | --- |")
    for name, (train, valid, test) in similarity_data(data).items():
        wanted = [float(pair.label) for pair in test.items]
        cells = [100 * spearman(tfidf_cosine(test.items), wanted)[0]]
        seconds = []
        for block in ("none", "fa"):
            trained = fit(train, valid, Recipe(block=block, epochs=5), 0)
            cells.append(100 * main_score(trained, test))
            seconds.append(trained.seconds)
        print(f"| {name} | {cells[0]:.1f} | {cells[1]:.1f} | {cells[2]:.1f} | {mean(seconds):.0f} |", flush=True)


def _texts(count: int, words: int) -> tuple[list[str], list[str]]:
    known = [f"w{i}" for i in range(4743)]
    rng = numpy_generator(0, "texts")
    return known, [" ".join(known[i] for i in rng.integers(0, len(known), words)) for _ in range(count)]


def _peers(folder: Path, known: list[str], texts: list[str]) -> dict[str, Callable[[], object]]:
    """Return jobs of sentence-transformers: a static embedding, and a BERT of MiniLM's size with random weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *known])}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    rows = numpy_generator(0, "rows").standard_normal((len(known) + 2, 128)).astype(np.float32)
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=rows)], device="cpu")
    shape = BertConfig(
        vocab_size=len(known) + 2,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    BertModel(shape).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)
    bert = SentenceTransformer(str(folder), device="cpu")
    return {
        "sentence-transformers, static": lambda: static.encode(texts, batch_size=256, show_progress_bar=False),
        "sentence-transformers, BERT 6 x 384": lambda: bert.encode(texts[:64], batch_size=64, show_progress_bar=False),
    }


def speed(rounds: int) -> None:
    """Print texts a CPU-second from strings to vectors, ours beside sentence-transformers."""
    known, texts = _texts(1024, 10)
    vocabulary = Vocabulary(known)
    jobs: dict[str, Callable[[], object]] = {}
    for block in ("none", "fa"):
        trained: Trained = build(_world(), Recipe(block=block), 0)
        trained.vocabulary = vocabulary
        trained.model = models.Matcher(replace(trained.model.shape, vocab_size=len(vocabulary))).eval()
        jobs[f"polyloom, bag {block}"] = partial(trained.vectors, texts)
    with TemporaryDirectory() as folder:
        jobs |= _peers(Path(folder), known, texts)
        seconds = interleaved(jobs, rounds, 0)
    ours = min(seconds["polyloom, bag fa"]) / len(texts)
    print("| encoder | texts a CPU-second | time of a text, bag with FA = 1 |\n| --- | --- | --- |")
    for name, values in seconds.items():
        each = min(values) / (64 if "BERT" in name else len(texts))
        print(f"| {name} | {1 / each:,.0f} | {each / ours:.2f} |")


def _world() -> Pairs:
    from polyloom.methods.match.data import world_pairs

    return world_pairs(32, "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["settings", "aligned", "similarity", "speed"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    chosen = parser.parse_args()
    pin_threads()
    if chosen.part == "speed":
        speed(chosen.rounds)
    elif chosen.data is None:
        parser.error("this part needs --data")
    else:
        {"settings": settings, "aligned": aligned, "similarity": similarity}[chosen.part](chosen.data)


if __name__ == "__main__":
    main()
