"""Self-speculative decoding beside transformers: `layerskip bench` on three models, as one Markdown table.

Run as `python benchmarks/layerskip.py --out benchmarks/layerskip.md`, on a GPU with `--device cuda`. With `--model DIR`
a trained model is used in place of one that is trained first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import polyloom

RATIOS = (
    ("speed_over_plain", "our plain decoding"),
    ("speed_over_hf_greedy", "transformers, greedy"),
    ("speed_over_hf_early_exit", "transformers, early exit at its best exit"),
    ("speed_over_hf_prompt_lookup", "transformers, prompt lookup"),
    ("adaptive_over_plain", "adaptive mode over plain decoding, the same prompts"),
    ("mixed_adaptive_over_best_fixed", "adaptive mode over the best fixed pair, mixed stream"),
    ("mixed_adaptive_over_plain", "adaptive mode over plain decoding, mixed stream"),
)
CPU_CASES = ("semantic parses", "shrunk", "useless")
GPU_CASES = ("semantic parses", "shrunk", "shrunk-large")
CASES: dict[str, dict[str, Any]] = {
    "semantic parses": {"num_prompts": 12, "adaptive": True},
    "shrunk": {"num_prompts": 3, "max_new_tokens": 32, "rounds": 3},
    "shrunk-large": {"num_prompts": 3, "max_new_tokens": 64, "rounds": 3, "dtype": "bfloat16"},
    "useless": {"num_prompts": 3, "max_new_tokens": 32, "rounds": 5, "adaptive": True},
}


def measure(name: str, model: str, runs: Path, device: str) -> list[str]:
    """Return the table's lines for one model."""
    result = polyloom.run(
        "layerskip.bench", runs=runs, run_name=name.replace(" ", "-"), model=model, device=device, **CASES[name]
    )
    values = {key: scalar.value for key, scalar in result.scalars.items()}
    lines = [
        f"## {name}\n",
        f"{result.tables['speeds'].title}; exit {values['exit_layer']}, draft {values['draft_tokens']}, "
        f"{values['tokens_per_round']:.2f} tokens per round; "
        f"texts equal plain decoding's: {values['same_tokens']}, transformers': {values['same_tokens_as_hf']}.\n",
        "| self-speculative over | ratio of seconds | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for key, label in RATIOS:
        if key in result.scalars:
            one = result.scalars[key]
            span = "" if one.low is None else f"{one.low:.2f} to {one.high:.2f}"
            lines.append(f"| {label} | {one.value:.2f} | {span} |")
    return [*lines, ""]


def machine(device: str) -> str:
    return f"{torch.cuda.get_device_name()}, wall seconds" if device == "cuda" else "float32, one thread, CPU seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        "# Self-speculative decoding beside `generate`\n",
        f"Written by `python benchmarks/layerskip.py`: torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {machine(options.device)}; all methods decode the same "
        "prompt within moments, in an order drawn anew; a round gives a ratio, of which the median is printed. "
        "Calibrated on other prompts than those timed.\n",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in GPU_CASES if options.device == "cuda" else CPU_CASES:
            lines += measure(name, options.model if name == "semantic parses" else name, Path(folder), options.device)
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
