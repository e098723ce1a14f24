"""The search beside nanogcg: equal losses in its own rule, and CPU seconds a step on one thread, interleaved.

Run as `python benchmarks/redteam.py [--device cuda]`. nanogcg runs without its prefix cache, which transformers 5
does not support.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from polyloom.methods.redteam.method import Objective
from polyloom.methods.redteam.sandbox import build_sandbox
from polyloom.methods.redteam.search import Search, Settings, Slot, State, run_search
from polyloom.models.device import choose_device, clock

STEPS = 20
TOPK = 48
ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """A model's shape and a search width."""

    hidden: int
    layers: int
    feed_forward: int
    width: int


CASES = {
    "cpu": (Case(96, 3, 320, 64), Case(256, 6, 768, 128)),
    "cuda": (Case(256, 6, 768, 128), Case(1024, 12, 2816, 256)),
}


def build(case: Case, vocabulary: int, device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=4,
        intermediate_size=case.feed_forward,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )
    model: PreTrainedModel = LlamaForCausalLM(config)
    model.train(False)
    model.to(device)  # type: ignore[arg-type]
    return model


def theirs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, goal: str, target: str, case: Case
) -> tuple[list[float], float]:
    nanogcg: Any = importlib.import_module("nanogcg")
    config = nanogcg.GCGConfig(
        num_steps=STEPS,
        search_width=case.width,
        topk=TOPK,
        optim_str_init="!" * 10,
        use_prefix_cache=False,
        seed=0,
        verbosity="ERROR",
    )
    now = clock(model.device)
    start = now()
    losses: list[float] = nanogcg.run(model, tokenizer, goal, target, config).losses
    seconds = now() - start
    torch.use_deterministic_algorithms(False)
    return losses, seconds / STEPS


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, goal: str, target: str, case: Case
) -> tuple[list[float], float]:
    utils: Any = importlib.import_module("nanogcg.utils")

    def ids(text: str) -> tuple[int, ...]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(found)

    def keep(candidates: torch.Tensor) -> torch.Tensor:
        rows = candidates.tolist()
        again: Any = tokenizer(tokenizer.batch_decode(rows), add_special_tokens=False)["input_ids"]
        return torch.tensor([a == b for a, b in zip(rows, again, strict=True)])

    now = clock(model.device)
    start = now()
    banned = torch.zeros(len(tokenizer), dtype=torch.bool)
    banned[utils.get_nonascii_toks(tokenizer)] = True
    slot = Slot(ids(f"<user>{goal}"), ids("<assistant>"), ids(target))
    settings = Settings(num_steps=STEPS, width=case.width, topk=TOPK, rule="random")
    generator = torch.Generator().manual_seed(0)
    search = Search(model, [slot], Objective("gcg"), settings, banned, keep, generator=generator)
    state = run_search(search, State(list(ids("!" * 10))))
    return [step.loss for step in state.steps], (now() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=list(CASES))
    device = choose_device(parser.parse_args().device)
    torch.set_num_threads(1)
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    sandbox = build_sandbox(0)
    tokenizer, behaviour = sandbox.tokenizer, sandbox.sealed[0]
    for case in CASES[device.type]:
        model = build(case, len(tokenizer), device)
        ratios, differences = [], []
        for _ in range(ROUNDS):
            their_losses, their_seconds = theirs(model, tokenizer, behaviour.goal, behaviour.target, case)
            our_losses, our_seconds = ours(model, tokenizer, behaviour.goal, behaviour.target, case)
            ratios.append(their_seconds / our_seconds)
            differences.append(max(abs(a - b) for a, b in zip(our_losses, their_losses, strict=True)))
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"{parameters / 1e6:.2f}M parameters, width {case.width}: {statistics.median(ratios):.1f}x "
            f"({min(ratios):.1f} to {max(ratios):.1f}), largest difference of losses {max(differences):.1e}"
        )


if __name__ == "__main__":
    main()
