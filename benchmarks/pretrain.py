"""Training beside a plain loop over Hugging Face's Llama, and muP's groups beside the mup package.

Run `python benchmarks/pretrain.py [--steps 3] [--rounds 5] [--precision bfloat16 float32] [--device cuda]
[--output FILE.md]`. The speed is that of `polyloom pretrain bench`: 8 layers x 256, vocabulary 8192, T 256, one thread,
CPU seconds, the same batches for both; on a GPU 16 layers x 1024, vocabulary 32,768, T 1024.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from mup import MuAdamW, MuReadout, set_base_shapes
from transformers import LlamaForCausalLM

from polyloom.methods.pretrain.architecture import build, llama_config, parameter_groups
from polyloom.methods.pretrain.method import Scaling, Shape
from polyloom.runs.execute import run_verb

SECONDS = {"cpu": "cpu_second", "cuda": "second"}


def speed_row(steps: int, rounds: int, precision: str, device: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        values = {"steps": steps, "rounds": rounds, "precision": precision, "device": device}
        scalars = run_verb("pretrain.bench", values, runs=Path(folder)).scalars
    plain, own = (scalars[f"tokens_per_{SECONDS[device]}{name}"].value for name in ("_hf_llama", ""))
    ratio = scalars["speed_over_hf_llama"]
    share = scalars["mfu"]
    return (
        f"| {precision} | {plain:.0f} | {own:.0f} | {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] "
        f"| {share.value:.2f} {share.unit} |"
    )


def machine(device: str) -> str:
    return f"{torch.cuda.get_device_name()}, wall seconds" if device == "cuda" else "CPU seconds, one thread"


def llama(width: int) -> LlamaForCausalLM:
    model = LlamaForCausalLM(llama_config(Shape(2, width // 16, width, 4 * width, 64), 16))
    model.lm_head = MuReadout(width, 64, bias=False)
    return model


def group_rows() -> list[str]:
    """Learning rate and decay of each tensor beside the mup package's, at width 128 over base 32."""
    target = llama(128)
    set_base_shapes(target, llama(32), delta=llama(64), rescale_params=False)
    theirs = MuAdamW(target.parameters(), lr=0.01, weight_decay=0.1)
    names = {id(p): name for name, p in target.named_parameters()}
    expected = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in theirs.param_groups for p in g["params"]}
    shape, scaling = Shape(2, 8, 128, 512, 64), Scaling(lr=0.01, matrix_lr=0.01, base_width=32, weight_decay=0.1)
    model = build(shape, 16, scaling)
    groups = {id(p): group for group in parameter_groups(model, shape, scaling) for p in group["params"]}
    counts: dict[tuple[str, str], int] = {}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        # A folded tensor's rates carry its factor; without it they are those of the form with multipliers.
        own = (group["lr"] / group["gradient_scale"], group["weight_decay"] * group["gradient_scale"])
        texts = [f"lr {lr:.4f}, decay {decay:.2f}" for lr, decay in (own, expected[name])]
        counts[texts[0], texts[1]] = counts.get((texts[0], texts[1]), 0) + 1
    return [f"| {count} | {own} | {other} |" for (own, other), count in sorted(counts.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["bfloat16"], choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu", choices=list(SECONDS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Pretraining: speed and groups",
        "",
        f"Written by `python benchmarks/pretrain.py`: torch {torch.__version__}, {machine(arguments.device)}, "
        f"{arguments.rounds} interleaved rounds of {arguments.steps} steps; paired ratios, 95 % intervals.",
        "",
        "| precision | HF Llama loop, tokens a second | ours | ours over theirs | ours, share of the peak |",
        "| --- | --- | --- | --- | --- |",
        *(
            speed_row(arguments.steps, arguments.rounds, precision, arguments.device)
            for precision in arguments.precision
        ),
        "",
        "Groups beside the mup package, width 128 over base 32, lr 0.01, decay 0.1:",
        "",
        "| tensors | ours | mup.MuAdamW |",
        "| --- | --- | --- |",
        *group_rows(),
        "",
        "The package decays the gains of norms, which the recipe's table leaves out.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
