"""The paper's mathematics: decisions under a prefix, how far two models are apart at each, and prior-token decoding.

The notation is the paper's: instruction and source (I, X), target y_1..y_L, base model P_b, tuned model P_s, and the
greedy decision d_m(i | y_<i) = argmax_v P_m(v | I, X, y_<i).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.generation.decode import Decoding, decode, max_positions, model_eos_tokens
from polyloom.generation.text import decode_tokens
from polyloom.models.padding import pad_rows

AGREEMENT_KS = (1, 5, 10, 20)
LOGIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Decisions:
    """What two models decide under the same prefixes; every tensor is [rows], float64.

    `rank` is the place of the tuned model's choice in the base model's order (0 = top), `kl` KL(P_s || P_b),
    `kl_reverse` KL(P_b || P_s), `js` Jensen-Shannon, `entropy` H(P_s), `cross_entropy` H(P_s) + KL(P_s || P_b), all in
    nats; `logit_distance` and `logit_angle` (1 - cosine) compare logits centred over the vocabulary.
    """

    rank: Tensor
    kl: Tensor
    kl_reverse: Tensor
    js: Tensor
    entropy: Tensor
    cross_entropy: Tensor
    logit_distance: Tensor
    logit_angle: Tensor


def compare_decisions(
    tuned_logits: Float[Tensor, "rows vocabulary"], base_logits: Float[Tensor, "rows vocabulary"]
) -> Decisions:
    """Compare the next-token distributions of a tuned and a base model under the same prefixes.

    Args:
        tuned_logits: of P_s.
        base_logits: of P_b.

    Returns:
        Ranks and divergences of each row.

    Source: PRETTY (arXiv 2404.16766), decision-space analysis; logits are centred because a constant changes nothing.
    """
    # Half precision would make divergences negative.
    s, b = tuned_logits.double(), base_logits.double()
    log_s, log_b = s.log_softmax(dim=-1), b.log_softmax(dim=-1)
    p_s, p_b = log_s.exp(), log_b.exp()
    log_m = torch.logaddexp(log_s, log_b) - math.log(2)
    # A probability that has underflown to 0 adds nothing, whatever its logarithm.
    kl = _expected(p_s, log_s - log_b)
    entropy = _expected(p_s, -log_s)
    centred_s, centred_b = s - s.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    return Decisions(
        rank=rank_of(base_logits, tuned_logits.argmax(dim=-1)).double(),
        kl=kl,
        kl_reverse=_expected(p_b, log_b - log_s),
        js=(_expected(p_s, log_s - log_m) + _expected(p_b, log_b - log_m)) / 2,
        entropy=entropy,
        cross_entropy=entropy + kl,
        logit_distance=(centred_s - centred_b).norm(dim=-1),
        logit_angle=1 - torch.nn.functional.cosine_similarity(centred_s, centred_b, dim=-1),
    )


def _expected(probability: Tensor, value: Tensor) -> Tensor:
    return torch.where(probability > 0, probability * value, 0.0).sum(dim=-1).clamp(min=0)


def rank_of(logits: Float[Tensor, "rows vocabulary"], tokens: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the place of each token in its row's order, 0 for the most probable; of equals the lower id comes first.

    Args:
        logits: of the model that ranks.
        tokens: whose place is asked.
    """
    own = logits.gather(-1, tokens[:, None])
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return ((logits > own) | ((logits == own) & (ids < tokens[:, None]))).sum(dim=-1)


def agreement(ranks: Sequence[float] | Tensor, k: int) -> float:
    """Return agreement@K: the share of decisions of the tuned model that are among the base model's K best."""
    values = torch.as_tensor(ranks, dtype=torch.float64)
    return float((values < k).double().mean())


def relative_performance(value: float, sft_value: float) -> float | None:
    """Return Rel = 100 * metric(method) / metric(SFT); None where the SFT model scores 0."""
    return 100 * value / sft_value if sft_value else None


# ---- decisions of two models along the tuned model's own answers


def decision_space(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    num_positions: int,
    *,
    tuned_prompts: Sequence[Sequence[int]] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[list[dict[str, float]]]:
    """Feed both models the tuned model's answers and compare their decisions at each position.

    Rows are taken so few at a time that the logits of one model stay under 64 MiB.

    Args:
        base: P_b.
        tuned: P_s; it shares the vocabulary.
        prompts: ids of (I, X).
        answers: the tuned model's greedy outputs y^s, end token included where there is one.
        num_positions: positions compared at most.
        tuned_prompts: where the tuned model was trained on another template: its own prompts.
        advance: called with the number of rows done.

    Returns:
        For each row and position i (0-based) the fields of `Decisions`; a row ends with its answer.

    Raises:
        UserError: the vocabularies differ in size.
    """
    _check_vocabularies(base, tuned)
    rows: list[list[dict[str, float]]] = [[] for _ in prompts]
    order = sorted((i for i in range(len(prompts)) if answers[i]), key=lambda i: len(prompts[i]) + len(answers[i]))
    for chunk in _chunks(order, prompts, answers, num_positions, vocabulary_size(tuned)):
        given = [list(answers[i])[:num_positions] for i in chunk]
        logits_b = answer_logits(base, [prompts[i] for i in chunk], given)
        logits_s = answer_logits(tuned, [(tuned_prompts or prompts)[i] for i in chunk], given)
        for i, own_b, own_s in zip(chunk, logits_b, logits_s, strict=True):
            width = min(own_b.shape[-1], own_s.shape[-1])
            found = compare_decisions(own_s[:, :width], own_b[:, :width])
            columns = {name: value.tolist() for name, value in vars(found).items()}
            rows[i] = [{name: column[t] for name, column in columns.items()} for t in range(len(own_b))]
        if advance:
            advance(len(chunk))
    return rows


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of tokens that the model scores."""
    return int(model.config.get_text_config(decoder=True).vocab_size)


def _check_vocabularies(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    if base.config.is_encoder_decoder != tuned.config.is_encoder_decoder:
        raise UserError(
            f"the SFT model is of another family ({tuned.config.model_type}, the base is {base.config.model_type}).",
            where="--sft",
            hint="Decisions can be compared between a model and its own fine-tuned form.",
        )


def _chunks(
    order: list[int],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    num_positions: int,
    vocabulary: int,
) -> Iterator[list[int]]:
    chunk: list[int] = []
    for i in order:
        width = len(prompts[i]) + min(len(answers[i]), num_positions)
        if chunk and (len(chunk) + 1) * width * vocabulary * 4 > LOGIT_BYTES:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


@torch.inference_mode()
def answer_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return the logits before each answer token, teacher-forced.

    Args:
        model: causal or encoder-decoder.
        prompts: token ids.
        answers: token ids, none empty.

    Returns:
        For each row [answer tokens, vocabulary], float32; row t scores answer token t.
    """
    if model.config.is_encoder_decoder:
        start = int(model.config.decoder_start_token_id)
        tokens, mask = pad_rows(prompts, model.device)
        inner, _ = pad_rows([[start, *answer[:-1]] for answer in answers], model.device)
        logits = model(input_ids=tokens, attention_mask=mask, decoder_input_ids=inner, use_cache=False).logits
        return [logits[row, : len(answer)].float() for row, answer in enumerate(answers)]
    whole = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    # Padding stands behind, where a causal model cannot see it.
    tokens, mask = pad_rows(whole, model.device)
    kept = max(len(answer) for answer in answers) + max(map(len, whole)) - min(map(len, whole))
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
    cut = tokens.shape[-1] - logits.shape[1]
    return [
        logits[row, len(prompt) - 1 - cut : len(prompt) - 1 - cut + len(answer)].float()
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


# ---- prior-token decoding


@dataclass(frozen=True)
class Generation:
    """An answer: the prior's ids and what the model went on with, and the text of both."""

    prior: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str

    @property
    def all_tokens(self) -> tuple[int, ...]:
        """Prior and continuation."""
        return self.prior + self.tokens


def generate_with_priors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    priors: Sequence[Sequence[int]],
    settings: Decoding | Sequence[Decoding],
    *,
    batch_size: int = 32,
    before_step: Callable[[], None] | None = None,
) -> list[Generation]:
    """Put prior tokens in front of each answer and let the model go on: prompt ++ prior -> prior ++ continuation.

    The prior counts as part of the answer and not towards `max_new_tokens`. One that ends with the end token is the
    whole answer already.

    Args:
        model: causal (the prior is appended to the prompt) or encoder-decoder (the decoder begins with it).
        tokenizer: its tokenizer.
        prompts: token ids.
        priors: token ids, possibly none; ids, because text that is cut and encoded again can become other tokens.
        settings: of the continuation.
        batch_size: rows decoded together.
        before_step: called before every step; what it raises ends the decoding.

    Returns:
        One answer for each prompt, in order.

    Raises:
        UserError: as `polyloom.generation.decode.decode`.

    Source: PRETTY (arXiv 2404.16766), prior-token decoding.
    """
    ends = frozenset(model_eos_tokens(model))
    each = [settings] * len(prompts) if isinstance(settings, Decoding) else list(settings)
    going = [i for i, prior in enumerate(priors) if not (prior and prior[-1] in ends)]
    encoder_decoder = bool(model.config.is_encoder_decoder)
    decoded = decode(
        model,
        [list(prompts[i]) if encoder_decoder else [*prompts[i], *priors[i]] for i in going],
        [each[i] for i in going],
        tokenizer=tokenizer,
        decoder_prefixes=[list(priors[i]) for i in going] if encoder_decoder else None,
        batch_size=batch_size,
        before_step=before_step,
    )
    answers: dict[int, Generation] = {}
    for i, one in zip(going, decoded, strict=True):
        answers[i] = Generation(tuple(priors[i]), one.tokens, "", one.finish_reason)
    result = []
    for i, prior in enumerate(priors):
        whole = answers.get(i, Generation(tuple(prior), (), "", "eos"))
        text = answer_text(tokenizer, prompts[i], whole.all_tokens, ends, encoder_decoder)
        for stop in each[i].stop:
            text = text.split(stop)[0]
        result.append(Generation(whole.prior, whole.tokens, text, whole.finish_reason))
    return result


def answer_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    answer: Sequence[int],
    ends: frozenset[int],
    encoder_decoder: bool = False,
) -> str:
    """Decode an answer as it stands behind its prompt: a prior's cut character is completed by what follows it.

    Args:
        tokenizer: the tokenizer.
        prompt: ids before the answer; they decide whether a SentencePiece token begins with a blank.
        answer: ids of prior and continuation; a last end token is left out.
        ends: end tokens.
        encoder_decoder: the answer stands alone.
    """
    kept = list(answer[:-1]) if answer and answer[-1] in ends else list(answer)
    if encoder_decoder:
        return decode_tokens(tokenizer, kept)
    # The last tokens of the prompt are context enough, and whole characters end there.
    context = list(prompt[-8:])
    before, whole = decode_tokens(tokenizer, context), decode_tokens(tokenizer, context + kept)
    return whole[len(before) :] if whole.startswith(before) else decode_tokens(tokenizer, kept)


class PriorProcessor(LogitsProcessor):
    """The same by constraint, for `generate` of transformers: at its step j only prior[j] is left.

    It costs one forward pass for each prior token, where appending costs none; the tokens are equal.
    """

    def __init__(self, priors: Sequence[Sequence[int]], prompt_length: int) -> None:
        """Bind priors, one for each row of the batch, and the length of the (padded) prompt."""
        self.priors, self.prompt_length = [list(prior) for prior in priors], prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores [rows, vocabulary] of a step."""
        step = input_ids.shape[-1] - self.prompt_length
        masked = scores.clone()
        for row, prior in enumerate(self.priors):
            if step < len(prior):
                masked[row] = float("-inf")
                masked[row, prior[step]] = 0.0
        return masked


def gated_choice(
    logits: Float[Tensor, "rows vocabulary"], gates: Sequence[Sequence[int]]
) -> tuple[list[int], list[float]]:
    """Choose each row's first token among a set: argmax over its gate; over everything where the gate is empty.

    Args:
        logits: of the base model before the first answer token.
        gates: allowed token ids of each row.

    Returns:
        The tokens, and the probability that the base model gave to the whole gate.
    """
    tokens, masses = [], []
    probabilities = logits.float().softmax(dim=-1)
    for row, gate in enumerate(gates):
        if gate:
            ids = torch.tensor(sorted(set(gate)), device=logits.device)
            tokens.append(int(ids[logits[row, ids].argmax()]))
            masses.append(float(probabilities[row, ids].sum()))
        else:
            tokens.append(int(logits[row].argmax()))
            masses.append(1.0)
    return tokens, masses


def first_divergence(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the first position (0-based) where two sequences differ: the length of their common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """Return Levenshtein's distance of two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def check_room(model: PreTrainedModel, prompt_tokens: int, budget: int) -> bool:
    """Tell whether a prompt and a budget fit into the model's positions."""
    limit = max_positions(model)
    return limit is None or bool(model.config.is_encoder_decoder) or prompt_tokens + budget - 1 <= limit
