"""Self-speculative decoding of several prompts together: rows at positions of their own, on one cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.generation.fused_range import Place
from polyloom.generation.layer_range import LayerRange
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import Fixed, Generated, Plan, cut_at_end, generate


def generate_batch(
    runner: LayerRange,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    plan: Plan,
    *,
    ends: frozenset[int] = frozenset(),
) -> list[Generated]:
    """Continue prompts greedily together; rows stand at positions of their own and leave as they finish.

    Args:
        runner: the model. Where it takes one row at a time, prompts are decoded one after the other.
        prompts: token ids of each.
        settings: the budget of each; sampling is not for batches.
        plan: exit and draft length.
        ends: tokens that end a text.

    Raises:
        UserError: sampling.
    """
    if settings.temperature:
        raise UserError("batches are decoded greedily.", hint="Sample one prompt at a time.")
    if not runner.takes_rows:
        return [generate(runner, prompt, settings, Fixed(plan), ends=ends) for prompt in prompts]
    results = [Generated() for _ in prompts]
    if settings.max_new_tokens == 0 or not prompts:
        return results
    with torch.inference_mode():
        _decode_rows(runner, prompts, settings.max_new_tokens, plan, ends, results)
    return results


def _decode_rows(
    runner: LayerRange,
    prompts: Sequence[Sequence[int]],
    budget: int,
    plan: Plan,
    ends: frozenset[int],
    results: list[Generated],
) -> None:
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=runner.device)
    longest = int(lengths.max())
    runner.reserve(len(prompts), longest + budget)
    # Padding stands on the right: what it writes into the cache lies behind each row's text and is written over.
    rows_of_tokens = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    padded = torch.tensor(rows_of_tokens, device=runner.device)
    place = runner.place(padded, 0)
    x = runner.run(runner.embed(place), place, 0, runner.num_layers)
    newest = runner.logits(x[torch.arange(len(prompts), device=runner.device), lengths - 1]).argmax(-1)
    rows, at = list(range(len(prompts))), lengths
    for row, token in enumerate(newest.tolist()):
        results[row].tokens.append(token)
    while True:
        going = [i for i, row in enumerate(rows) if not _row_done(results[row], budget, ends)]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=runner.device)
            runner.keep_rows(kept)
            rows, at, newest = [rows[i] for i in going], at[kept], newest[kept]
        # The fullest row sets the draft length, so that no row writes beyond its own room.
        most = budget - max(len(results[row].tokens) for row in rows) - 1
        newest, num_new = _row_round(runner, newest, at, plan, most, ends, [results[row] for row in rows], budget)
        at = at + num_new


def _row_done(result: Generated, budget: int, ends: frozenset[int]) -> bool:
    if result.tokens[-1] in ends:
        result.finish_reason = "eos"
        return True
    return len(result.tokens) >= budget


def _row_round(
    runner: LayerRange,
    newest: Tensor,
    at: Tensor,
    plan: Plan,
    most: int,
    ends: frozenset[int],
    results: list[Generated],
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Do one round of all rows; return each row's newest token and how many it got."""
    gamma = min(plan.draft_tokens, most)
    tokens, states = [newest], []
    for index in range(gamma + 1 if gamma else 0):
        place: Place = runner.place(tokens[-1][:, None], at + index)
        states.append(runner.run(runner.embed(place), place, 0, plan.exit_layer))
        if index < gamma:
            tokens.append(runner.logits(states[-1])[:, 0].argmax(-1))
    drafts = torch.stack(tokens, dim=1)
    place = runner.place(drafts, at)
    first = plan.exit_layer if gamma else 0
    x = runner.run(torch.cat(states, dim=1) if gamma else runner.embed(place), place, first, runner.num_layers)
    best = runner.logits(x).argmax(-1)
    accepted = (drafts[:, 1:] == best[:, :-1]).long().cumprod(-1).sum(-1).tolist()
    new_tokens, new_counts = [], []
    for result, row, count in zip(results, best.tolist(), accepted, strict=True):
        emitted = cut_at_end(row[: count + 1][: budget - len(result.tokens)], ends)
        result.tokens += emitted
        counts = result.counts
        counts.rounds += 1
        counts.drafted += gamma
        counts.accepted += min(count, len(emitted))
        counts.emitted += len(emitted)
        new_tokens.append(emitted[-1])
        new_counts.append(len(emitted))
    return torch.tensor(new_tokens, device=runner.device), torch.tensor(new_counts, device=runner.device)
