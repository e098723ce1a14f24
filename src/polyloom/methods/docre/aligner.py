"""Word alignment by an encoder's contextual embeddings: the fall-back for mentions whose marks a translator lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polyloom.core.errors import UserError
from polyloom.methods.docre.projection import Aligner
from polyloom.models.device import DeviceName
from polyloom.models.load import load_model, load_tokenizer

LAYER = 8
LEAST_PROBABILITY = 1e-3


def softmax_links(similarity: Float[Tensor, "source target"], least: float = LEAST_PROBABILITY) -> set[tuple[int, int]]:
    """Return the pairs whose probability is above a bound in both directions.

    Args:
        similarity: dot products of embeddings.
        least: bound on the softmax over the target's tokens, and on that over the source's.

    Source: Dou and Neubig (2021), "Word Alignment by Fine-tuning Embeddings on Parallel Corpora", section 2.1.
    """
    both = (similarity.softmax(dim=1) > least) & (similarity.softmax(dim=0) > least)
    return {(int(i), int(j)) for i, j in both.nonzero().tolist()}


def load_aligner(folder: str, device: DeviceName = "auto") -> Aligner:
    """Load an encoder as an aligner of two sentences' tokens: linked where any of their pieces are.

    Args:
        folder: of a multilingual encoder; its layer 8 is taken, or its last where it has fewer.
        device: where it runs.

    Raises:
        UserError: the folder's model is no encoder with a fast tokenizer.
    """
    model = load_model(folder, kind="encoder", device=device)
    tokenizer = load_tokenizer(folder, model)
    if not tokenizer.is_fast:
        raise UserError("gives no places of words.", where=folder, hint="Use a fast tokenizer (tokenizer.json).")
    layer = min(LAYER, int(model.config.get_text_config().num_hidden_layers))

    @torch.inference_mode()
    def embed(words: Sequence[str]) -> tuple[Tensor, list[int]]:
        given = tokenizer([list(words)], is_split_into_words=True, truncation=True, return_tensors="pt", verbose=False)
        owners = given.word_ids(0)
        inputs = {name: given[name].to(model.device) for name in ("input_ids", "attention_mask")}
        states = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        kept = [i for i, owner in enumerate(owners) if owner is not None]
        return states[kept].float().cpu(), [owners[i] for i in kept]

    def align(source: Sequence[str], target: Sequence[str]) -> set[tuple[int, int]]:
        if not source or not target:
            return set()
        (a, own_a), (b, own_b) = embed(source), embed(target)
        return {(own_a[i], own_b[j]) for i, j in softmax_links(a @ b.T)}

    return align
