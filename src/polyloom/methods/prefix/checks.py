"""What a user should hear before trusting priors: whether the base model knows the language, and how long it takes."""

from __future__ import annotations

import time

import torch

from polyloom.data.dictionaries import language_name
from polyloom.generation.scoring import score_continuations
from polyloom.methods.prefix.priors import answer_tokens
from polyloom.methods.prefix.sources import Session
from polyloom.models.tokenizers import encode

NUM_CHECKED = 16
# A reference behind its source costs a model that can translate fewer nats than the source costs by itself.
COSTLY_NATS, COSTLY_TOKENS = 1.5, 3.0
SLOW_PARAMETERS = 1_000_000_000


def language_remarks(session: Session) -> list[str]:
    """Compare what references cost the base model with what their sources cost; a remark where they cost far more.

    Sums over parallel texts need no unit of length, which scripts do not share.

    Args:
        session: a causal base model with inputs, some of which have references; otherwise nothing is said.
    """
    rows = [i for i, item in enumerate(session.items) if item.reference][:NUM_CHECKED]
    base = session.base
    if not rows or base.encoder_decoder or session.task == "tag":
        return []
    references = [answer_tokens(base.tokenizer, session.prompts[i], session.items[i].reference) for i in rows]
    sources = [encode(base.tokenizer, session.items[i].source) for i in rows]
    starts = [session.prompts[i][:1] for i in rows]
    batch = session.config.batch_size
    nats = [
        -sum(map(sum, score_continuations(base.model, prompts, texts, batch_size=batch)))
        for prompts, texts in (([session.prompts[i] for i in rows], references), (starts, sources))
    ]
    ratio, tokens = nats[0] / max(nats[1], 1e-9), sum(map(len, references)) / sum(map(len, sources))
    if ratio <= COSTLY_NATS and tokens <= COSTLY_TOKENS:
        return []
    name = language_name(session.config.target_language) if session.config.target_language else "the target language"
    return [
        f"The base model may not know {name}: references take {ratio:.1f} times the nats and {tokens:.1f} times the "
        "tokens of their sources. A prior elicits nothing that a model lacks; --prior gold shows the ceiling."
    ]


@torch.inference_mode()
def time_remarks(session: Session) -> list[str]:
    """Estimate the CPU time of all answers from one pass over the first prompt, where the model is large."""
    model, config = session.base.model, session.config
    if model.device.type != "cpu" or session.base.encoder_decoder or model.num_parameters() < SLOW_PARAMETERS:
        return []
    prompt = torch.tensor([session.prompts[0]])
    started = time.perf_counter()
    model(input_ids=prompt[:, -1:], use_cache=False)
    step = time.perf_counter() - started
    started = time.perf_counter()
    model(input_ids=prompt, use_cache=False, logits_to_keep=1)
    prefill = time.perf_counter() - started
    batches = -(-len(session.items) // config.batch_size)
    hours = (len(session.items) * prefill + batches * config.max_new_tokens * step) / 3600
    return [
        f"{model.num_parameters() / 1e9:.1f} billion parameters on the CPU: about {hours:.1f} hours for "
        f"{len(session.items)} texts of {config.max_new_tokens} new tokens."
    ]
