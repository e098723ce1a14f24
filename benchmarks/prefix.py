"""Cost of a forced prior against plain decoding, and the memory of a decision report of 200 texts x 20 x 32,000."""

from __future__ import annotations

import argparse
import resource
import time
from statistics import median

import torch

from polyloom.core.seeding import python_random
from polyloom.generation.decode import Decoding, decode
from polyloom.methods.prefix.experiment import build_llama
from polyloom.methods.prefix.method import decision_space
from polyloom.models.device import pin_threads


def prefill_ratios(num_prompts: int, num_new: int, k: int, rounds: int) -> list[float]:
    """Return CPU time of k forced and num_new - k free tokens over that of num_new free ones, one a round."""
    model = build_llama(1000, 128, 2, 4, 0)
    rng = python_random(0, "prefill")
    prompts = [[1, *(rng.randrange(3, 1000) for _ in range(30))] for _ in range(num_prompts)]
    own = [one.tokens for one in decode(model, prompts, Decoding(num_new), eos_tokens=())]
    forced = [[*prompt, *tokens[:k]] for prompt, tokens in zip(prompts, own, strict=True)]

    def seconds(rows: list[list[int]], new: int) -> float:
        started = time.process_time()
        decode(model, rows, Decoding(new), eos_tokens=())
        return time.process_time() - started

    ratios = []
    for turn in range(rounds + 1):
        if turn % 2:
            a, b = seconds(forced, num_new - k), seconds(prompts, num_new)
        else:
            b, a = seconds(prompts, num_new), seconds(forced, num_new - k)
        ratios.append(a / b)
    return ratios[1:]


def report_memory(num_texts: int, num_positions: int, vocabulary: int) -> tuple[float, float]:
    """Return the peak memory in MB before and after a decision report of random models."""
    base, tuned = (build_llama(vocabulary, 64, 1, 2, seed) for seed in (0, 1))
    rng = python_random(0, "memory")
    prompts = [[1, *(rng.randrange(3, vocabulary) for _ in range(40))] for _ in range(num_texts)]
    answers = [[rng.randrange(3, vocabulary) for _ in range(num_positions)] for _ in range(num_texts)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    decision_space(base, tuned, prompts, answers, num_positions)
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    pin_threads()
    print(f"torch {torch.__version__}, one thread")
    for num_prompts in (1, 16):
        ratios = sorted(prefill_ratios(num_prompts, 32, 2, rounds))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(f"{num_prompts} prompts: forced over plain {median(ratios):.3f} ({low:.3f} to {high:.3f})")
    before, after = report_memory(200, 20, 32_000)
    print(f"decision report 200 x 20 x 32,000: peak {after:.0f} MB, {after - before:.0f} MB above before")


if __name__ == "__main__":
    main()
