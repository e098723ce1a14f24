"""Speed and memory of the activations and of the SwiGLU forms, beside torch.compile and torch's checkpoint.

Run `python benchmarks/silu.py [--device cuda] [--output benchmarks/silu.md]`. Alternatives are interleaved in one
process on one thread; times are CPU seconds (CUDA: the device's events) and ratios are paired within a round.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from polyloom.methods.silu.memory import Form, block_forms, make_block, output_and_gradients
from polyloom.methods.silu.sheet import saved_tensors
from polyloom.methods.silu.timing import Ratio, interleaved_ratios
from polyloom.models.activations import ACTIVATIONS, Activation, saved_bytes

NUM_ELEMENTS = 2_800_000
NAMES = ("relu", "silu", "gelu", "gelu_tanh", "hard_swish", "elu", "softplus", "tanh", "mish", "relu2")


def written_out(x: Tensor) -> Tensor:
    """SiLU without the fused kernel, the peer that "SiLU is expensive" is about."""
    return x * torch.sigmoid(x)


def activation_rows(device: str, rounds: int) -> list[list[str]]:
    functions: dict[str, Activation] = {name: ACTIVATIONS[name] for name in NAMES} | {"x * sigmoid(x)": written_out}
    x = torch.randn(NUM_ELEMENTS, generator=torch.Generator().manual_seed(0)).to(device)
    forward = interleaved_ratios({name: _forward(f, x) for name, f in functions.items()}, "relu", rounds, device)
    backward = interleaved_ratios({name: _backward(f, x) for name, f in functions.items()}, "relu", rounds, device)
    return [
        [name, *_cells(forward[name]), *_cells(backward[name]), f"{saved_tensors(function):.0f}"]
        for name, function in functions.items()
    ]


def _forward(f: Activation, x: Tensor) -> Callable[[], object]:
    return lambda: f(x)


def _backward(f: Activation, x: Tensor) -> Callable[[], object]:
    leaf = x.clone().requires_grad_()
    y, ones = f(leaf), torch.ones_like(x)
    return lambda: torch.autograd.grad(y, leaf, ones, retain_graph=True)


def _cells(ratio: Ratio) -> list[str]:
    return [f"{ratio.seconds * 1000:.2f}", f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"]


def form_rows(device: str, rounds: int, dtype: torch.dtype, size: tuple[int, int, int]) -> tuple[list[list[str]], str]:
    hidden, ffn, tokens = size
    block, x = make_block(hidden, ffn, tokens, dtype, 0, device)
    forms = block_forms(block)
    compiled, reason = compiled_form(block, x)
    if compiled is not None:
        forms["torch.compile"] = compiled
    ratios = interleaved_ratios({name: _step(form, block, x) for name, form in forms.items()}, "plain", rounds, device)
    plain = output_and_gradients(forms["plain"], block, x)
    unit = tokens * ffn * x.element_size()
    rows = []
    for name, form in forms.items():
        kept = _kept(form, block, x) / unit
        error = _largest_error(plain, output_and_gradients(form, block, x))
        peak = f"{_peak_megabytes(form, block, x):.0f}" if device == "cuda" else "-"
        rows.append([name, f"{kept:.2f}", "equal" if error == 0 else f"{error:.1e}", *_cells(ratios[name]), peak])
    return rows, reason


def compiled_form(block: nn.Module, x: Tensor) -> tuple[Form | None, str]:
    """The plain block compiled, or the reason why it cannot be here."""
    try:
        compiled = torch.compile(block)
        compiled(x).sum().backward()
    except Exception as error:  # no C++ compiler, an unsupported Python, ...
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        block.zero_grad()
        x.grad = None
    return compiled, ""


def _step(form: Form, block: nn.Module, x: Tensor) -> Callable[[], object]:
    inputs, ones = [x, *block.parameters()], torch.ones_like(x)
    return lambda: torch.autograd.grad(form(x), inputs, ones)


def _kept(form: Form, block: nn.Module, x: Tensor) -> int:
    return saved_bytes(lambda: form(x), [*block.parameters(), x])


def _largest_error(plain: list[Tensor], ours: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(plain, ours, strict=True))


def _peak_megabytes(form: Form, block: nn.Module, x: Tensor) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _step(form, block, x)()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        names = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    return next((line.split(":")[1].strip() for line in names.splitlines() if "Model name" in line), "")


def report(device: str, rounds: int) -> str:
    cuda = device == "cuda"
    size, dtype = ((4096, 11008, 8192), torch.bfloat16) if cuda else ((256, 688, 1024), torch.float32)
    activations = activation_rows(device, rounds)
    forms, reason = form_rows(device, rounds, dtype, size)
    clock = "device time" if cuda else "CPU time, one thread"
    hidden, ffn, tokens = size
    parts = [
        "# SiLU: speed and memory",
        f"Written by `python benchmarks/silu.py --device {device}`: {processor(device)}, torch {torch.__version__}, "
        f"{clock}, {rounds} interleaved rounds; ratios are medians of paired ratios with their 95 % interval.",
        f"## Forms of one SwiGLU block ({tokens} tokens, {hidden} x {ffn}, {str(dtype).removeprefix('torch.')})",
        "`kept` is what autograd keeps for backward in [tokens, ffn] tensors; the error is of output and gradients, "
        "relative to their largest value.",
        markdown(["form", "kept", "against plain", "ms", "ratio to plain", "peak MB of the step"], forms),
        f"torch.compile is left out: {reason}" if reason else "",
        f"## Activations ({NUM_ELEMENTS / 1e6:.1f} M float32 elements)",
        markdown(
            ["activation", "forward ms", "ratio to ReLU", "backward ms", "ratio to ReLU", "tensors kept"],
            activations,
        ),
        conclusion(activations),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def conclusion(rows: list[list[str]]) -> str:
    """What the rows say of SiLU, fused and written out."""
    fused, written = (next(row for row in rows if row[0] == name) for name in ("silu", "x * sigmoid(x)"))
    return (
        f"Forward and backward, fused SiLU takes {fused[2].split()[0]} and {fused[4].split()[0]} of ReLU's time; "
        f"written out as a product it takes {written[2].split()[0]} and {written[4].split()[0]} and keeps {written[5]} "
        f"tensors instead of {fused[5]}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = report(arguments.device, arguments.rounds)
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
