from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from polyloom.methods.pretrain import benching
from polyloom.methods.pretrain.method import Shape
from polyloom.training.throughput import peak_flops


def test_bench_times_both_loops_on_the_same_batches(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = benching.Size(Shape(layers=2, heads=2, width=64, ffn=128, vocab=256), window_tokens=32, batch_size=2)
    monkeypatch.setitem(benching.SIZES, "cpu", small)
    seen: list[tuple[int, ...]] = []
    forward = benching.LlamaForCausalLM.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(benching.LlamaForCausalLM, "forward", watched)
    done = cli("pretrain", "bench", "--precision", "float32", "--steps", "2", "--rounds", "3", "--json")
    assert done.exit_code == 0, done.stderr
    scalars = {name: one["value"] for name, one in json.loads(done.stdout)["scalars"].items()}
    # Ours goes through the model's body, or through its forward: in either case the plain loop's rows are T long.
    assert set(seen) == {(2, 32)}
    ratio = scalars["tokens_per_cpu_second"] / scalars["tokens_per_cpu_second_hf_llama"]
    assert ratio == pytest.approx(scalars["speed_over_hf_llama"], rel=0.5)
    assert 0 < scalars["mfu"] < 1.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_has_a_peak() -> None:
    assert peak_flops(torch.device("cuda"), "bfloat16")[0] > 1e12


def test_a_device_that_is_not_there_is_refused(cli: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = cli("pretrain", "bench", "--device", "cuda")
    assert done.exit_code == 2
    assert "sees no cuda device" in done.stderr
