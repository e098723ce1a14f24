"""The adaptor: forward hooks that add the graph's dK and dV to the keys and values of any Hugging Face encoder.

The encoder's own code and weights are not touched. Without syntax in the forward pass no hook does anything, so that
the model's outputs are those of the plain model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.methods.transfer.method import Fuse, Fusion, StructuralProbes, SyntaxGraph

# Names of the projections of keys and values, by the family that uses them.
PAIRS = (
    ("key", "value"),  # BERT, RoBERTa, XLM-R, ELECTRA
    ("k_lin", "v_lin"),  # DistilBERT, XLM
    ("key_proj", "value_proj"),  # DeBERTa-v2
    ("k_proj", "v_proj"),  # decoders
    ("k", "v"),  # MPNet, T5
)
FUSED = ("Wqkv",)  # ModernBERT: queries, keys and values beside each other
MAX_NAMED = 12


@dataclass(frozen=True)
class Attention:
    """One attention layer: the module that holds its projections, their names, and the shape of its keys."""

    path: str
    parent: nn.Module
    key: nn.Module
    value: nn.Module
    is_fused: bool
    num_heads: int
    head_width: int


def find_attention(model: PreTrainedModel) -> list[Attention]:
    """Find the layers' projections of keys and values, in the order of the layers.

    Args:
        model: an encoder or decoder, also under LoRA.

    Raises:
        UserError: none are found (the names of linear modules are listed).
    """
    config = model.config.get_text_config()
    num_heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    found = []
    for path, parent in model.named_modules():
        children = dict(parent.named_children())
        for name in FUSED:
            if name in children:
                found.append(Attention(path, parent, children[name], children[name], True, num_heads, width))
        for key, value in PAIRS:
            if key in children and value in children and _out_features(children[key]):
                heads = _out_features(children[key]) // width
                found.append(Attention(path, parent, children[key], children[value], False, heads, width))
                break
    if not found:
        weights = (path for path, parameter in model.named_parameters() if parameter.dim() == 2)
        names = sorted({path.split(".")[-2] for path in weights})
        raise UserError(
            f"no projections of keys and values are known in a {type(model).__name__}.",
            where="--encoder",
            hint=f"Its matrices are in: {', '.join(names[:MAX_NAMED])}.",
        )
    return found


def _out_features(module: nn.Module) -> int:
    """Return a linear module's outputs; LoRA's wrapper keeps the name and hides the layer in itself."""
    inner = getattr(module, "base_layer", module)
    return inner.out_features if isinstance(inner, nn.Linear) else 0


def word_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return the embedding of word pieces, whose output the graph starts from."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise UserError(f"a {type(model).__name__} has no plain word embeddings.", where="--encoder")
    return embedding


class SyntaxAdaptor(nn.Module):
    """The graph encoder, one fusion for each fused layer, and the probes of the structural loss.

    The encoder is not a part of it: its parameters stay a small file of their own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        num_slices: int = 1,
        radius: int = 1,
        num_upos: int = 0,
        num_deprels: int = 0,
        fuse: Fuse = "all",
        layers: Sequence[int] | None = None,
        zero: bool = False,
    ) -> None:
        """Build the adaptor for a model and hook it in.

        Args:
            model: the encoder.
            num_layers: L of the graph.
            num_heads: H of the graph.
            num_slices: S, the syntactic heads.
            radius: delta.
            num_upos: rows of the part-of-speech embedding, 0 for none.
            num_deprels: rows of the relation embedding, 0 for none.
            fuse: LS-mBERT's `all` heads, or Syntax-mBERT's `first` S.
            layers: encoder layers to fuse, from 0; all by default.
            zero: begin with zero projections.

        Raises:
            UserError: an unknown architecture, a layer that it lacks, heads that S does not divide, or for `first`
                more slices than heads.
        """
        super().__init__()
        attention = find_attention(model)
        chosen = range(len(attention)) if layers is None else layers
        if any(not 0 <= layer < len(attention) for layer in chosen):
            raise UserError(f"the encoder has layers 0 to {len(attention) - 1}.", where="--syntactic-layers")
        first = attention[0]
        if num_slices > first.num_heads or (fuse == "all" and first.num_heads % num_slices):
            what = f"{num_slices} syntactic heads do not divide the encoder's {first.num_heads}."
            raise UserError(what, where="--syntactic-heads")
        config: Any = model.config.get_text_config()
        self.graph = SyntaxGraph(
            word_embeddings(model).embedding_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            head_width=first.head_width,
            radius=radius,
            num_upos=num_upos,
            num_deprels=num_deprels,
            dropout=_setting(config, ("hidden_dropout_prob", "dropout", "embedding_dropout"), 0.1),
            eps=_setting(config, ("layer_norm_eps", "norm_eps", "rms_norm_eps"), 1e-12),
        )
        width = num_heads * first.head_width
        self.fusions = nn.ModuleDict(
            {
                str(layer): Fusion(width, num_slices, attention[layer].num_heads, first.head_width, fuse, zero)
                for layer in chosen
            }
        )
        self.probes = StructuralProbes(width, first.head_width)
        self._current: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []
        for layer in chosen:
            self._hook(str(layer), attention[layer])

    def _hook(self, layer: str, attention: Attention) -> None:
        """Hook one layer. A projection that is called twice in a layer (DeBERTa's positions) is changed the first time.

        The count starts anew whenever the attention module itself is called, so that gradient checkpointing and shared
        layers work as well.
        """
        pending: set[str] = set()

        def begin(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            pending.update(("key", "value"))

        def adding(part: str, index: int) -> Callable[..., Tensor | None]:
            def add(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
                if layer not in self._current or part not in pending:
                    return None
                pending.discard(part)
                return output + self._current[layer][index].to(output.dtype)

            return add

        def add_fused(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if layer not in self._current or "key" not in pending:
                return None
            pending.discard("key")
            key, value = self._current[layer]
            return output + torch.cat([torch.zeros_like(key), key, value], -1).to(output.dtype)

        self._handles.append(attention.parent.register_forward_pre_hook(begin))
        if attention.is_fused:
            self._handles.append(attention.key.register_forward_hook(add_fused))
            return
        self._handles.append(attention.key.register_forward_hook(adding("key", 0)))
        self._handles.append(attention.value.register_forward_hook(adding("value", 1)))

    def prepare(self, embeddings: Tensor, syntax: Mapping[str, Tensor]) -> Tensor:
        """Compute g once, and what every fused layer adds in the forward pass that follows.

        Args:
            embeddings: word embeddings [batch, n, width].
            syntax: `distances` [batch, n, n], `upos` and `deprel` [batch, n].

        Returns:
            g [batch, n, H h].
        """
        g: Tensor = self.graph(embeddings, syntax["distances"], syntax["upos"], syntax["deprel"])
        self._current = {layer: fusion(g) for layer, fusion in self.fusions.items()}
        return g

    def clear(self) -> None:
        """Forget what the layers add: the model is the plain one again."""
        self._current = {}

    def remove(self) -> None:
        """Take all hooks out of the model."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _setting(config: Any, names: Sequence[str], otherwise: float) -> float:
    """Return the first of a model's settings that it has; families name the same thing differently."""
    return next((float(getattr(config, name)) for name in names if getattr(config, name, None) is not None), otherwise)
