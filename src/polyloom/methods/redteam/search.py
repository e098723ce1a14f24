"""The search: gradient, candidates, exact scoring on cached prefixes, buffer, early stop, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from polyloom.core.errors import PolyloomError, UserError
from polyloom.generation.cache import cache_keyword
from polyloom.methods.redteam.method import (
    Objective,
    Parts,
    best_choices,
    num_windows,
    objective_loss,
    one_hot_gradient,
    probe_size,
    sample_candidates,
)
from polyloom.models.device import torch_generator

KeyValues = list[tuple[Tensor, Tensor]]
Keep = Callable[[Tensor], Tensor]
TOKEN_BUDGET = 16_384
CACHE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Slot:
    """Token ids of a conversation around a suffix, and the wanted opening behind it."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """How the search goes.

    Attributes:
        num_steps: steps.
        width: candidates a step, B.
        topk: tokens to draw from at each position.
        rule: which positions candidates change, see `sample_candidates`.
        num_replaced: positions changed in each candidate.
        buffer_size: how many of the best suffixes are kept to go on from; 0 goes on from the step's best.
        early_stop: end when a candidate's most probable tokens are the whole target, for every behaviour.
        num_groups: candidates that change late positions share the keys and values of the unchanged ones, in so
            many groups.
        use_cache: compute the tokens before the suffix once.
        momentum: share of the last step's gradient that is added.
    """

    num_steps: int = 500
    width: int = 512
    topk: int = 256
    rule: Literal["even", "random"] = "even"
    num_replaced: int = 1
    buffer_size: int = 0
    early_stop: bool = False
    num_groups: int = 3
    use_cache: bool = True
    momentum: float = 0.0


@dataclass(frozen=True)
class Step:
    """One step of a search: the accepted suffix, its loss a behaviour, the parts, and how many candidates survived."""

    step: int
    loss: float
    target_loss: float
    refusal_loss: float
    num_candidates: int
    suffix: list[int]
    exact: bool = False


@dataclass
class State:
    """Where a search stands; JSON can hold it."""

    suffix: list[int]
    steps: list[Step] = field(default_factory=list)
    buffer: list[tuple[float, list[int]]] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> Step:
        """The step with the lowest loss."""
        return min(self.steps, key=lambda step: step.loss)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        """Rebuild from plain values."""
        buffer = [(float(loss), list(ids)) for loss, ids in value["buffer"]]
        return cls(value["suffix"], [Step(**step) for step in value["steps"]], buffer, value["stopped_early"])


class Scorer:
    """A victim and one conversation: losses of suffixes, and the gradient at one of them."""

    def __init__(self, model: PreTrainedModel, slot: Slot, settings: Settings) -> None:
        """Compute the keys and values of the tokens before the suffix, once.

        Raises:
            UserError: the conversation is longer than the model's positions allow.
        """
        self.model, self.slot, self.settings = model, slot, settings
        device = model.device
        self.before, self.after, self.target = (
            torch.tensor(ids, dtype=torch.int64, device=device) for ids in (slot.before, slot.after, slot.target)
        )
        self.embeddings = embedding_table(model)
        self.cache_keyword = str(cache_keyword(model))
        self.num_rows = len(slot.target) + 1
        self.max_rows = 0
        self.prefix: KeyValues = []
        if settings.use_cache and slot.before:
            with torch.inference_mode(False), torch.no_grad():
                self.prefix = self._prefix_states()

    def _prefix_states(self) -> KeyValues:
        cache = DynamicCache()
        self.model(input_ids=self.before[None], use_cache=True, logits_to_keep=1, **{self.cache_keyword: cache})
        states = _states(cache)
        return states if states and states[0][0].shape[-2] == len(self.before) else []

    def gradient(self, suffix: Tensor, objective: Objective) -> tuple[Tensor, KeyValues]:
        """Return dL/d onehot [S, V] at `suffix` [S], and the keys and values of all before and in it (empty without
        a cache)."""
        embeds = self.embeddings[suffix].clone().requires_grad_()
        rest = self.embeddings[torch.cat([self.after, self.target])]
        cache = DynamicCache([(k, v) for k, v in self.prefix]) if self.prefix else None
        parts = [embeds, rest] if self.prefix else [self.embeddings[self.before], embeds, rest]
        with torch.enable_grad(), _frozen(self.model):
            output = self.model(
                inputs_embeds=torch.cat(parts)[None],
                use_cache=cache is not None,
                logits_to_keep=self.num_rows,
                **{self.cache_keyword: cache},
            )
            logits = _wide(output.logits[:, -self.num_rows :])
            loss = objective_loss(logits, self.target, objective, objective.gradient_alpha).loss.sum()
            (gradient,) = torch.autograd.grad(loss, embeds)
        end = len(self.before) + len(suffix)
        shared = [(k[:, :, :end].detach(), v[:, :, :end].detach()) for k, v in _states(cache)] if cache else []
        return one_hot_gradient(gradient, self.embeddings), shared

    @torch.inference_mode()
    def logits(self, candidates: Tensor, shared: KeyValues, num_shared: int = 0) -> Tensor:
        """Return the rows [B, H + 1, V] that predict the target, and the one after it.

        Args:
            candidates: [B, S] suffixes whose first `num_shared` tokens are those of `shared`.
            shared: keys and values of the tokens before the suffix and those in it; empty computes all.
            num_shared: tokens of the suffix that are taken from `shared`.
        """
        num_rows = len(candidates)
        rest = torch.cat([self.after, self.target]).expand(num_rows, -1)
        if not shared:
            tokens = torch.cat([self.before.expand(num_rows, -1), candidates, rest], dim=1)
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=self.num_rows).logits
            return _wide(logits[:, -self.num_rows :])
        end = len(self.before) + num_shared
        expanded = [
            (k[:, :, :end].expand(num_rows, -1, -1, -1), v[:, :, :end].expand(num_rows, -1, -1, -1)) for k, v in shared
        ]
        tokens = torch.cat([candidates[:, num_shared:], rest], dim=1)
        cache = {self.cache_keyword: DynamicCache(expanded)}
        logits = self.model(input_ids=tokens, use_cache=True, logits_to_keep=self.num_rows, **cache).logits
        return _wide(logits[:, -self.num_rows :])

    def losses(
        self, candidates: Tensor, objective: Objective, suffix: Tensor, shared: KeyValues
    ) -> tuple[Parts, Tensor]:
        """Return the parts of each candidate's loss, and whether its most probable tokens are the target, [B] each."""
        first = (
            _first_changes(candidates, suffix)
            if shared is not self.prefix
            else torch.zeros(len(candidates), dtype=torch.int64)
        )
        order = first.argsort(stable=True)
        num_groups = self.settings.num_groups if len(shared) and shared is not self.prefix else 1
        found: list[tuple[Parts, Tensor]] = []
        for group in order.tensor_split(max(1, min(num_groups, len(order)))):
            start = int(first[group].min())
            found += self._group(candidates[group.to(candidates.device)], objective, shared, start)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        back = back.to(candidates.device)
        names = ("loss", "target", "refusal")
        joined = Parts(*(torch.cat([getattr(parts, name) for parts, _ in found])[back] for name in names))
        return joined, torch.cat([exact for _, exact in found])[back]

    def _group(
        self, candidates: Tensor, objective: Objective, shared: KeyValues, start: int
    ) -> list[tuple[Parts, Tensor]]:
        """Score candidates in micro-batches, half as large after each lack of memory."""
        length = candidates.shape[1] - start + len(self.after) + len(self.target) + (0 if shared else len(self.before))
        size = self.max_rows or max(1, TOKEN_BUDGET // length)
        while True:
            try:
                return [self._batch(part, objective, shared, start) for part in torch.split(candidates, size)]
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if size == 1 or not _is_memory(error):
                    raise
                size = self.max_rows = size // 2

    def _batch(self, candidates: Tensor, objective: Objective, shared: KeyValues, start: int) -> tuple[Parts, Tensor]:
        logits = self.logits(candidates, shared, start)
        with torch.inference_mode():
            parts = objective_loss(logits, self.target, objective, objective.alpha)
            return parts, (logits[:, :-1].argmax(dim=-1) == self.target).all(dim=-1)


class Search:
    """A search over one victim and one or more conversations, a step at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        slots: Sequence[Slot],
        objective: Objective,
        settings: Settings,
        banned: Tensor,
        keep: Keep | None,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        draft: PreTrainedModel | None = None,
    ) -> None:
        """Prepare a search.

        Args:
            model: the victim; its parameters are not changed.
            slots: conversations that share the suffix; candidates are ranked by the sum over them.
            objective: what is minimised.
            settings: how.
            banned: bool [vocabulary], ids that are not allowed.
            keep: from candidates [B, S] to bool [B], those that may be taken.
            seed: each step draws from its own stream of it.
            generator: one stream for all steps in place of those.
            draft: a smaller model with the same tokenizer that ranks candidates first (probe sampling).

        Raises:
            UserError: no refusal keyword fits into a target, or a model that cannot be searched.
        """
        _check(model, slots, objective)
        self.model, self.objective, self.keep, self.seed, self.generator = model, objective, keep, seed, generator
        self.scorers = [Scorer(model, slot, settings) for slot in slots]
        self.drafts = [Scorer(draft, slot, settings) for slot in slots] if draft is not None else []
        self.banned = banned.to(model.device)
        num_allowed = int((~banned).sum())
        self.settings = replace(settings, topk=min(settings.topk, num_allowed))
        self.topk_lowered = settings.topk > num_allowed
        self.allowed = (~self.banned).nonzero().flatten()
        self.velocity: Tensor | None = None

    def step(self, state: State) -> Step:
        """Do one step and enter it into `state`.

        Raises:
            PolyloomError: no candidate survives, or no loss is finite.
        """
        number = len(state.steps)
        suffix = torch.tensor(state.suffix, device=self.model.device)
        generator = self.generator or torch_generator(self.seed, "candidates", number)
        shared: list[KeyValues] = [scorer.prefix for scorer in self.scorers]
        if self.objective.uniform:
            choices = self.allowed.expand(len(suffix), -1)
        else:
            gradient, shared = self._gradient(suffix)
            choices = best_choices(gradient, self.banned, self.settings.topk)
        candidates = self._candidates(suffix, choices, generator)
        parts, exact = self._score(candidates, suffix, shared, generator)
        loss = torch.where(parts.loss.isfinite(), parts.loss, torch.inf)
        chosen = int(loss.argmin()) if self.objective.ranked else 0
        if not math.isfinite(float(loss[chosen])):
            raise PolyloomError(f"no candidate of step {number} has a finite loss.", hint="Check the model's weights.")
        num = len(self.scorers)
        done = Step(
            step=number,
            loss=float(parts.loss[chosen]) / num,
            target_loss=float(parts.target[chosen]) / num,
            refusal_loss=float(parts.refusal[chosen]) / num,
            num_candidates=len(candidates),
            suffix=candidates[chosen].tolist(),
            exact=bool(exact[chosen]),
        )
        state.steps.append(done)
        state.stopped_early = self.settings.early_stop and bool(exact.any())
        self._go_on(state, done)
        return done

    def _go_on(self, state: State, done: Step) -> None:
        """Choose where the next step starts: from the accepted suffix, or from the best of the buffer."""
        if not self.settings.buffer_size:
            state.suffix = done.suffix
            return
        state.buffer = sorted([*state.buffer, (done.loss, done.suffix)])[: self.settings.buffer_size]
        state.suffix = state.buffer[0][1]

    def _gradient(self, suffix: Tensor) -> tuple[Tensor, list[KeyValues]]:
        total: Tensor | None = None
        shared = []
        for scorer in self.scorers:
            gradient, states = scorer.gradient(suffix, self.objective)
            total = gradient if total is None else total + gradient
            shared.append(states)
        assert total is not None
        if self.settings.momentum and self.velocity is not None:
            total = total + self.settings.momentum * self.velocity
        self.velocity = total
        return total, shared

    def _candidates(self, suffix: Tensor, choices: Tensor, generator: torch.Generator) -> Tensor:
        settings = self.settings
        for attempt in range(2):
            if self.objective.uniform and not self.objective.ranked:
                drawn = torch.randint(0, choices.shape[1], (settings.width, len(suffix)), generator=generator)
                candidates = self.allowed[drawn.to(self.allowed.device)]
            else:
                candidates = sample_candidates(
                    suffix, choices, settings.width * (1 + attempt), generator, settings.rule, settings.num_replaced
                )
            if self.keep is None:
                return candidates
            changed = (candidates != suffix).any(dim=-1)
            kept = candidates[self.keep(candidates).to(candidates.device)]
            if len(kept) and bool(changed.any()):
                return kept
        raise PolyloomError(
            "no candidate comes back unchanged from text.",
            hint="Try another --init, --suffix-tokens or a larger --width.",
        )

    def _score(
        self, candidates: Tensor, suffix: Tensor, shared: list[KeyValues], generator: torch.Generator
    ) -> tuple[Parts, Tensor]:
        if not self.objective.ranked:
            candidates = candidates[:1]
        if self.drafts and len(candidates) > 48:
            candidates_kept = self._probe(candidates, suffix, shared, generator)
            parts, exact = self._sum(self.scorers, candidates[candidates_kept], suffix, shared)
            full = torch.full((len(candidates),), torch.inf, device=candidates.device, dtype=parts.loss.dtype)
            spread = [
                full.clone().index_copy_(0, candidates_kept, getattr(parts, n)) for n in ("loss", "target", "refusal")
            ]
            all_exact = torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
            return Parts(*spread), all_exact.index_copy_(0, candidates_kept, exact)
        return self._sum(self.scorers, candidates, suffix, shared)

    def _probe(self, candidates: Tensor, suffix: Tensor, shared: list[KeyValues], generator: torch.Generator) -> Tensor:
        """Return the numbers of the candidates that the victim scores: the probe set and the draft's best."""
        draft, _ = self._sum(self.drafts, candidates, suffix, [scorer.prefix for scorer in self.drafts])
        probe = torch.randperm(len(candidates), generator=generator)[: len(candidates) // 16].to(candidates.device)
        seen, _ = self._sum(self.scorers, candidates[probe], suffix, shared)
        num_kept = probe_size(draft.loss[probe], seen.loss, len(candidates))
        best = draft.loss.topk(num_kept, largest=False).indices
        return torch.unique(torch.cat([probe, best]))  # type: ignore[no-any-return]

    def _sum(
        self, scorers: Sequence[Scorer], candidates: Tensor, suffix: Tensor, shared: Sequence[KeyValues]
    ) -> tuple[Parts, Tensor]:
        found = [
            s.losses(candidates, self.objective, suffix, states) for s, states in zip(scorers, shared, strict=True)
        ]
        names = ("loss", "target", "refusal")
        summed = Parts(*(torch.stack([getattr(parts, name) for parts, _ in found]).sum(dim=0) for name in names))
        return summed, torch.stack([exact for _, exact in found]).all(dim=0)


def run_search(
    search: Search,
    state: State,
    *,
    on_step: Callable[[Step], None] | None = None,
    save: Callable[[State], None] | None = None,
) -> State:
    """Step until the budget is used up or the search stops early; `save` is called after every step."""
    while len(state.steps) < search.settings.num_steps and not state.stopped_early:
        done = search.step(state)
        if save:
            save(state)
        if on_step:
            on_step(done)
    return state


def _check(model: PreTrainedModel, slots: Sequence[Slot], objective: Objective) -> None:
    if model.config.is_encoder_decoder:
        raise UserError(
            "is an encoder-decoder model; the search needs a causal one.", where=str(model.config.model_type)
        )
    if not torch.is_floating_point(embedding_table(model)):
        raise UserError("its embeddings are quantised, so they have no gradient.", hint="Use --objectives random.")
    if not slots:
        raise UserError("there is no behaviour to search for.")
    if objective.alpha or objective.gradient_alpha:
        for slot in slots:
            if num_windows(len(slot.target) + 1, objective.keywords) == 0:
                what = "the target is too short for any refusal keyword."
                raise UserError(what, hint="Give a longer target or shorter keywords.")


def _first_changes(candidates: Tensor, suffix: Tensor) -> Tensor:
    """Return the first position at which each candidate differs, [B] on the CPU; the last one for an equal
    candidate."""
    changed = candidates != suffix
    first = torch.where(changed.any(dim=-1), changed.int().argmax(dim=-1), candidates.shape[1] - 1)
    return first.cpu()


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the rows of the input embedding, [vocabulary, dim]."""
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight.detach()


def _states(cache: DynamicCache) -> KeyValues:
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers if isinstance(getattr(layer, "keys", None), Tensor)]


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _is_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keep gradients off the weights: only the suffix's is asked for."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
