"""What `study` proves beside its figures: off is the plain model, the graph layer is torch-geometric's, the size."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from polyloom.core.result import Scalar
from polyloom.methods.transfer.adaptor import SyntaxAdaptor, word_embeddings
from polyloom.methods.transfer.method import GraphAttention, neighbours, tree_distances
from polyloom.methods.transfer.sequences import NUM_UPOS

SIZE = 12
CHAIN = tree_distances(list(range(SIZE)))[0].astype(np.int64)


def families() -> dict[str, PreTrainedModel]:
    """Return small random models of three architectures, in evaluation mode."""
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models: dict[str, PreTrainedModel] = {
            "bert": BertModel(BertConfig(vocab_size=100, **shape)),
            "xlm_roberta": XLMRobertaModel(XLMRobertaConfig(vocab_size=100, **shape)),
            "distilbert": DistilBertModel(
                DistilBertConfig(vocab_size=100, dim=48, n_layers=2, n_heads=4, hidden_dim=96)
            ),
        }
    return {name: model.eval() for name, model in models.items()}  # type: ignore[no-untyped-call]


def off_equals_base(model: PreTrainedModel) -> bool:
    """Hook the adaptor in; say whether the model gives the plain bits without syntax, and others with it."""
    ids = torch.arange(5, 5 + 2 * SIZE).view(2, SIZE)

    def states() -> Tensor:
        with torch.no_grad():
            found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return found

    plain = states()
    adaptor = SyntaxAdaptor(model, num_layers=2, num_upos=NUM_UPOS).eval()
    hooked = states()
    tags = torch.full_like(ids, 8)
    syntax = {"distances": torch.from_numpy(CHAIN).expand(2, -1, -1), "upos": tags, "deprel": tags}
    adaptor.prepare(word_embeddings(model)(ids), syntax)
    changed = not torch.equal(states(), plain)
    adaptor.clear()
    return changed and torch.equal(hooked, plain) and torch.equal(states(), plain)


def peer_difference() -> float | None:
    """Return the largest difference between our graph layer and torch-geometric's; None where it is not installed."""
    if find_spec("torch_geometric") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import GATConv
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ours = GraphAttention(32, 4, 16)
        peer: Any = GATConv(32, 16, heads=4, negative_slope=0.2, add_self_loops=False, bias=False)
        peer.lin.weight.copy_(ours.weight.transpose(1, 2).reshape(64, 32))
        peer.att_dst.copy_(ours.receiver[..., 0][None])
        peer.att_src.copy_(ours.sender[..., 0][None])
        nodes, adjacency = torch.randn(1, SIZE, 32), neighbours(torch.from_numpy(CHAIN)[None], 2)
        receiver, sender = adjacency[0].nonzero(as_tuple=True)
        difference = ours(nodes, adjacency)[0] - peer(nodes[0], torch.stack([sender, receiver]))
        return float(difference.abs().max())


def base_size_parameters() -> int:
    """Return what the adaptor adds to an encoder of BERT's base size with L = H = 4, S = 1, parts of speech, probes."""
    with torch.device("meta"):
        adaptor = SyntaxAdaptor(BertModel(BertConfig()), num_upos=NUM_UPOS)
    return sum(parameter.numel() for parameter in adaptor.parameters())


def proofs() -> dict[str, Scalar]:
    """Return the proofs as scalars."""
    found = {f"off_equals_base_{name}": Scalar(value=off_equals_base(model)) for name, model in families().items()}
    found["torch_geometric_max_difference"] = Scalar(value=peer_difference())
    found["base_size_num_parameters"] = Scalar(value=base_size_parameters())
    return found
