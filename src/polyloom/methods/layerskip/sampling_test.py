"""The sampling rule against the exact law: pairs of tokens drawn self-speculatively from a model of eight tokens."""

from __future__ import annotations

from collections import Counter

import torch
from transformers import PreTrainedModel

from polyloom.generation.judge import Judge
from polyloom.generation.layer_range import LayerRange, open_range
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import Fixed, Plan, speculate
from polyloom.methods.layerskip.training import build_llama

VOCABULARY = 8
LAWS = {"temperature_1": Decoding(3, 1.0), "temperature_0_7_top_p_0_9": Decoding(3, 0.7, 0, 0.9)}


def sampling_p_values(num_draws: int, seed: int) -> dict[str, float]:
    """Return the chi-square p-value of drawn pairs against the exact joint law, at two settings.

    Args:
        num_draws: pairs at each setting.
        seed: of model and draws.
    """
    model = build_llama(3, 32, 64, VOCABULARY, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    runner = open_range(model, 16)
    return {name: _p_value(model, runner, settings, num_draws, seed) for name, settings in LAWS.items()}


def exact_law(model: PreTrainedModel, judge: Judge, prompt: list[int], num_tokens: int) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation of `num_tokens` tokens, from the whole model alone."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(num_tokens):
        grown = {}
        for text, mass in law.items():
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*prompt, *text]]), use_cache=False).logits[0, -1]
            for token, p in enumerate(judge.distribution(logits, [*prompt, *text]).tolist()):
                if p > 0:
                    grown[(*text, token)] = mass * p
        law = grown
    return law


def _p_value(model: PreTrainedModel, runner: LayerRange, settings: Decoding, num_draws: int, seed: int) -> float:
    prompt, judge = [1, 5], Judge(settings)
    judge.generator.manual_seed(seed)
    law = exact_law(model, judge, prompt, settings.max_new_tokens)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(num_draws):
        rounds = speculate(runner, prompt, settings, Fixed(Plan(1, 2)), judge=judge)
        counts[tuple(token for tokens in rounds for token in tokens)] += 1
    return chi_square_p(counts, law, num_draws)


def chi_square_p(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float], num_draws: int) -> float:
    """Return the p-value of Pearson's test; cells with fewer than 5 expected draws are pooled."""
    if any(text not in law for text in counts):
        return 0.0
    pooled, statistic, num_cells = [0.0, 0.0], 0.0, 0
    for text, mass in law.items():
        expected = mass * num_draws
        if expected < 5:
            pooled[0] += counts[text]
            pooled[1] += expected
        else:
            statistic += (counts[text] - expected) ** 2 / expected
            num_cells += 1
    if pooled[1] > 0:
        statistic += (pooled[0] - pooled[1]) ** 2 / pooled[1]
        num_cells += 1
    half = torch.tensor([(num_cells - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
