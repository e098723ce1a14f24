"""Our batched decoding beside `generate` of transformers: CPU seconds for the same tokens, and their ratio.

One thread, one process, the two interleaved; each round gives a ratio, of which the median and the quartiles are
printed. The tokens must be equal, or the benchmark fails.

    python benchmarks/decode.py [--rounds 9] [--model llama-4x128] [--new-tokens 128]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from polyloom.generation.decode import decode
from polyloom.generation.sampling import Decoding
from polyloom.models.device import pin_threads
from polyloom.models.tiny import TINY, build_tiny

VOCABULARY = 1024
PAD = 0


def make_prompts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def ours(model: PreTrainedModel, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
    settings = Decoding(num_new_tokens)
    return [list(one.tokens) for one in decode(model, prompts, settings, eos_tokens=(), batch_size=len(prompts))]


def theirs(model: PreTrainedModel, prompts: list[list[int]], num_new_tokens: int) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    with torch.inference_mode():
        out = generate(
            tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=num_new_tokens,
            pad_token_id=PAD,
            eos_token_id=None,
        )
    rows: list[list[int]] = out[:, width:].tolist()
    return rows


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(model: PreTrainedModel, lengths: Sequence[int], num_new_tokens: int, num_rounds: int) -> str:
    prompts = make_prompts(lengths)
    if ours(model, prompts, num_new_tokens) != theirs(model, prompts, num_new_tokens):
        raise SystemExit("the tokens differ")
    mine, peer = [], []
    for _ in range(num_rounds):
        mine.append(cpu_seconds(lambda: ours(model, prompts, num_new_tokens)))
        peer.append(cpu_seconds(lambda: theirs(model, prompts, num_new_tokens)))
    ratios = [b / a for a, b in zip(mine, peer, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    num_tokens = num_new_tokens * len(lengths)
    rates = f"{num_tokens / statistics.median(mine):.0f} | {num_tokens / statistics.median(peer):.0f}"
    return f"{rates} | {middle:.2f} ({low:.2f} to {high:.2f}) | yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", choices=sorted(name for name in TINY if "bert" not in name), default="llama-4x128")
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    pin_threads(1)
    model = build_tiny(options.model, VOCABULARY)
    model.train(False)
    print("| prompts | ours, tokens per CPU second | generate | ratio (quartiles) | same tokens |")
    print("| --- | --- | --- | --- | --- |")
    cases = {
        "1 of 32 tokens": [32],
        "8 of 32 tokens": [32] * 8,
        "8 of 4 to 60 tokens": [4, 12, 20, 28, 36, 44, 52, 60],
    }
    for name, lengths in cases.items():
        print(f"| {name} | {compare(model, lengths, options.new_tokens, options.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
