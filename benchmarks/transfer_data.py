"""Switching, induction and treebank reading beside straightforward peers: a plain loop, nltk's IBM model 1, conllu."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import conllu
from nltk.translate import AlignedSent, IBMModel1

from polyloom.data.dictionaries import Dictionary, read_dictionary
from polyloom.data.labelled import read_labelled
from polyloom.data.records import Example
from polyloom.data.treebanks import read_conllu
from polyloom.methods.transfer.induction import Pair, ibm1, lower, read_parallel, words_to_align
from polyloom.methods.transfer.switching import SwitchPlan, switch_all

ITERATIONS = 4


Tables = dict[str, dict[str, list[str]]]


def tables_of(lexicons: dict[str, Dictionary]) -> Tables:
    return {
        code: {head.lower(): [one.text for one in own] for head, own in dictionary.entries.items()}
        for code, dictionary in lexicons.items()
    }


def plain_loop(examples: Sequence[Example], tables: Tables, rate: float) -> list[list[str]]:
    """Switch as CoSDA-ML describes it, from one random stream: no log, no place, no second run alike in parallel."""
    rng = random.Random(0)
    codes = list(tables)
    switched = []
    for example in examples:
        words = []
        for word in example.sentences[0].words:
            if rng.random() < rate:
                found = tables[rng.choice(codes)].get(word.lower())
                words.append(rng.choice(found) if found else word)
            else:
                words.append(word)
        switched.append(words)
    return switched


def nltk_both_ways(pairs: Sequence[Pair]) -> None:
    IBMModel1([AlignedSent(list(b), list(a)) for a, b in pairs], ITERATIONS)
    IBMModel1([AlignedSent(list(a), list(b)) for a, b in pairs], ITERATIONS)


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def compare(
    name: str, ours: Callable[[], object], peer: Callable[[], object], rounds: int, unit: str, size: int
) -> None:
    pairs = []
    for turn in range(rounds + 1):
        first, second = (ours, peer) if turn % 2 else (peer, ours)
        a, b = seconds(first), seconds(second)
        pairs.append((a, b) if turn % 2 else (b, a))
    times = pairs[1:]
    ratios = sorted(b / a for a, b in times)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    own, other = median(a for a, _ in times), median(b for _, b in times)
    print(f"{name}: ours {own:.2f} s ({size / own:,.0f} {unit} a second), peer {other:.2f} s;", end=" ")
    print(f"peer over ours {median(ratios):.2f} ({low:.2f} to {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    folder, rounds = arguments.data, arguments.rounds

    examples = read_labelled(folder / "xtds/en/test-en.conllu").examples
    lexicons = {
        code: read_dictionary(folder / f"wiktionary/en-{name}-enwiktionary.txt.gz")
        for code, name in (("es", "es"), ("zh", "cmn"))
    }
    num_words = sum(len(example.sentences[0].words) for example in examples)
    tables = tables_of(lexicons)
    plan = SwitchPlan(0.9, "cosda", choose="uniform")
    compare(
        "switching 8,621 utterances into two languages",
        lambda: switch_all(examples, plan, lexicons, seed=0),
        lambda: plain_loop(examples, tables, 0.9),
        rounds,
        "words",
        num_words,
    )

    texts = read_parallel(folder / "stsb/stsb-en-train.csv", folder / "stsb/stsb-de-train.csv", columns=(0, 1))
    pairs = lower((words_to_align(a), words_to_align(b)) for a, b in texts)[:5000]
    compare(
        "IBM model 1 both ways, 4 iterations, 5,000 pairs",
        lambda: ibm1(pairs, ITERATIONS),
        lambda: nltk_both_ways(pairs),
        rounds,
        "pairs",
        len(pairs),
    )

    path = folder / "ud/de_pud-ud-test.conllu"
    text = path.read_text(encoding="utf-8")
    compare(
        "reading 1,000 trees of CoNLL-U",
        lambda: read_conllu(path),
        lambda: conllu.parse(text),
        rounds,
        "trees",
        1000,
    )


if __name__ == "__main__":
    main()
