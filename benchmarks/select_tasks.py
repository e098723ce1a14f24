"""The selection room's targets by a rule, second stages, encoder beside sentence-transformers, a large pool.

Run `python benchmarks/select_tasks.py targets|second|encode|scale`. `encode` needs sentence-transformers. Times are CPU
seconds on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from polyloom.core.seeding import python_random
from polyloom.data.world import instruction_tasks
from polyloom.methods.select.config import RankConfig, SelectStudyConfig
from polyloom.methods.select.data import Pool, read_pool
from polyloom.methods.select.gradients import fisher_diagonal, gradient_similarity, influences
from polyloom.methods.select.lab import STUDY_K, true_relatedness
from polyloom.methods.select.learner import TINY_LR, make_learner, train_config, with_examples
from polyloom.methods.select.method import fisher_similarity, fuse, order_by
from polyloom.methods.select.reranking import DEPTH, WARM_UP_STEPS, warmed
from polyloom.methods.select.scoring import score_pool
from polyloom.methods.select.target import aim_of, resolve, with_some_examples
from polyloom.methods.select.tuning import (
    evaluate,
    make_test,
    means,
    plain_prompt,
    pool_tokenizer,
    small_model,
    tune_arm,
)
from polyloom.methods.select.world_pool import world_examples, world_target
from polyloom.models.device import pin_threads

DEV_SEED, DEV_STEPS, DEV_ITEMS = 7000, 120, 48


def candidates(languages: list[str]) -> list[str]:
    """Return one task for each operation of the world: its first kind, in the last language alone."""
    found: dict[str, str] = {}
    for task in instruction_tasks(languages):
        if {task.source, task.target} == {languages[-1]}:
            found.setdefault(task.operation, task.name)
    return list(found.values())


def targets(optimizer: Literal["adamw", "muon"]) -> None:
    """Print what a tiny model learns of each candidate from the five tasks that are truly nearest to it.

    The rule, fixed before the first run: of one candidate an operation, take the two that stand farthest above choosing
    an option at random, on validation items and a seed that the study does not use. Neither the selector nor any rival
    arm is looked at. It was fixed with AdamW, before the study's small model learned by Muon.

    Args:
        optimizer: of the tiny model.
    """
    languages = list(SelectStudyConfig().languages)
    names = candidates(languages)
    whole = read_pool("world", languages=languages)
    pool = whole.without([i for i, task in enumerate(whole.tasks) if task.id in names])
    tokenizer = pool_tokenizer(with_examples(pool, range(len(pool.tasks)), languages, 0).tasks)
    print("| candidate | accuracy | chance | above |\n| --- | --- | --- | --- |")
    for name in names:
        accuracy, chance = _learned(name, pool, languages, tokenizer, optimizer)
        print(f"| `{name}` | {accuracy:.2f} | {chance:.2f} | {accuracy - chance:+.2f} |", flush=True)


def _learned(
    name: str, pool: Pool, languages: list[str], tokenizer: Any, optimizer: Literal["adamw", "muon"]
) -> tuple[float, float]:
    pairs = world_examples(name, languages, "valid", DEV_ITEMS, DEV_SEED)
    others = [answer for _, answer in world_examples(name, languages, "train", 200, DEV_SEED)]
    items = make_test(pairs, others, world_target(name, languages), plain_prompt, DEV_SEED)
    nearest = sorted(int(i) for i in order_by(true_relatedness(name, pool, languages))[:STUDY_K])
    full = with_examples(pool, nearest, languages, DEV_SEED)
    model = small_model(len(tokenizer), DEV_SEED)
    config = train_config(DEV_STEPS, 16, TINY_LR, optimizer).model_copy(update={"seed": DEV_SEED})
    tune_arm(model, tokenizer, full, nearest, config, "dev", prompt=plain_prompt)
    found = means(evaluate(model, tokenizer, items, generate=False))["rank_accuracy"]
    return found, float(np.mean([1 / len(item.options) for item in items]))


def second(seed: int) -> None:
    """Print how related to the target the first five tasks are by each second stage, over one target an operation.

    Each stage orders the first 20 tasks by instructions anew, with the same tiny model. `chance` is their mean.
    """
    languages = list(SelectStudyConfig().languages)
    stages: dict[str, list[tuple[float, float]]] = {}
    for name in candidates(languages):
        config = RankConfig(target_task=name, languages=languages, seed=seed)
        target, pool = resolve(config)
        truth = true_relatedness(name, pool, languages)
        operation = next(task.operation for task in instruction_tasks(languages) if task.name == name)
        places = order_by(score_pool(target.instructions, pool).fused)[: DEPTH * STUDY_K]
        aim = aim_of(config, target, "")
        full = with_some_examples(config, pool, [int(i) for i in places], 20)
        tasks = [full.tasks[i] for i in places]
        learner = make_learner("tiny", tasks, WARM_UP_STEPS)
        model = warmed(learner, tasks, seed)
        few = Pool(tuple(tasks), name)
        plain = gradient_similarity(model, learner.tokenizer, few, aim.examples, aim.instructions, learner.prompt)
        adam = np.array(
            [np.mean(one) for one in influences(model, learner.tokenizer, tasks, aim, learner.prompt)], dtype=np.float64
        )
        own, *others = (fisher_diagonal(model, learner.tokenizer, one, learner.prompt) for one in (aim, *tasks))
        first = -np.arange(len(places), dtype=np.float64)
        fisher = np.array([fisher_similarity(own, one) for one in others])
        values = {"instructions": first, "gradients": adam, "plain gradients": plain, "Fisher": fisher}
        values |= {"instructions + gradients": fuse([first, adam]), "best possible": truth[places]}
        for stage, value in values.items():
            top = places[order_by(value)[:STUDY_K]]
            same = float(np.mean([pool.tasks[i].category == operation for i in top]))
            stages.setdefault(stage, []).append((same, float(truth[top].mean())))
        same = float(np.mean([task.category == operation for task in tasks]))
        stages.setdefault("chance", []).append((same, float(truth[places].mean())))
        print(name, {stage: each[-1] for stage, each in stages.items()}, file=sys.stderr, flush=True)
    print("| ordered by | of the target's operation | true relatedness |\n| --- | --- | --- |")
    for stage, each in stages.items():
        print(f"| {stage} | {np.mean([a for a, _ in each]):.2f} | {np.mean([b for _, b in each]):.3f} |")


def encode(rounds: int) -> None:
    """Print the largest difference to sentence-transformers' vectors, and both times on the same texts."""
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel

    from polyloom.methods.match.bench import interleaved
    from polyloom.methods.select.encoder import open_encoder
    from polyloom.models.load import save_model
    from polyloom.models.tokenizers import train_tokenizer

    texts = [text for task in read_pool("world", languages=["en"]).tasks for text in task.instructions][:256]
    with TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, 1000)
        shape = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        )
        save_model(BertModel(shape).eval(), Path(folder), tokenizer)  # type: ignore[no-untyped-call]
        theirs = SentenceTransformer(folder, device="cpu")
        ours = open_encoder(folder)
        ours.load()
        jobs: dict[str, Callable[[], Any]] = {
            "polyloom": lambda: ours.encode(texts),
            "sentence-transformers": lambda: theirs.encode(texts, show_progress_bar=False),
        }
        error = float(np.abs(jobs["polyloom"]() - jobs["sentence-transformers"]()).max())
        seconds = interleaved(jobs, rounds, 0)
    print(f"largest difference {error:.1e}")
    for name, values in seconds.items():
        print(f"{name}: {len(texts) / min(values):,.0f} texts a CPU-second")
    print(f"ratio of least times {min(seconds['polyloom']) / min(seconds['sentence-transformers']):.2f}")


def scale(num_tasks: int, num_wordings: int) -> None:
    """Print time and memory of ranking a large pool, first without and then from the cache."""
    known = [f"word{i}" for i in range(5000)]
    rng = python_random(0, "pool")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pool.json"
        tasks = {
            f"task{i:05d}": {"instructions": [" ".join(rng.choices(known, k=20)) for _ in range(num_wordings)]}
            for i in range(num_tasks)
        }
        path.write_text(json.dumps(tasks), encoding="utf-8")
        words = [
            sys.executable,
            "-m",
            "polyloom",
            "select",
            "rank",
            "--pool",
            str(path),
            "--scorers",
            "tfidf",
            "--json",
        ]
        words += ["--target", "word1 word2 word3", "--cache", f"{folder}/cache", "--runs", f"{folder}/runs"]
        # Each in a process of its own: what the first held is not the memory of the next.
        for name in ("first", "cached", "cached"):
            found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["scalars"]
            print(f"{name}: {found['ranking_cpu_seconds']['value']} CPU-s, {found['peak_memory']['value']} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["targets", "second", "encode", "scale"])
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    pin_threads()
    if chosen.part == "targets":
        targets(chosen.optimizer)
    elif chosen.part == "second":
        second(chosen.seed)
    elif chosen.part == "encode":
        encode(chosen.rounds)
    else:
        scale(10_000, 5)


if __name__ == "__main__":
    main()
