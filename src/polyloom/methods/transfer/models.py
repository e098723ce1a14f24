"""Encoder, adaptor and heads in one model: forward pass, losses, predictions, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, replace_atomically, write_json
from polyloom.core.seeding import derive_seed
from polyloom.data.records import OUTSIDE, Example
from polyloom.methods.transfer.adapters import Adapters
from polyloom.methods.transfer.adaptor import SyntaxAdaptor, word_embeddings
from polyloom.methods.transfer.crf import LinearChain
from polyloom.methods.transfer.mixing import Mixer
from polyloom.methods.transfer.sequences import (
    IGNORED,
    NUM_DEPRELS,
    NUM_UPOS,
    Sequencer,
    Targets,
    TokenizerPieces,
    WordPieces,
    gold_heads,
)
from polyloom.models.load import load_model, load_tokenizer, save_model

Batch = Mapping[str, Tensor]


class WordEncoder(nn.Module):
    """A bidirectional GRU over words, trained from scratch."""

    def __init__(self, num_words: int, width: int, dropout: float) -> None:
        """Build it.

        Args:
            num_words: rows of the embedding, the special tokens among them.
            width: of embeddings and of each direction.
            dropout: of embeddings and of states.
        """
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.width = 2 * width

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the states [batch, n, 2 width] of both directions; pads are never read."""
        lengths = attention_mask.sum(1).cpu()
        embedded = self.dropout(self.embedding(input_ids))
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=input_ids.shape[1]
        )
        dropped: Tensor = self.dropout(states)
        return dropped


class SentenceHead(nn.Module):
    """dropout, Linear, tanh, dropout, Linear: from the state of a sequence to its classes."""

    def __init__(self, width: int, num_classes: int, dropout: float) -> None:
        """Build it for states of a width."""
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor) -> Tensor:
        """Return the logits [batch, classes]."""
        logits: Tensor = self.outer(self.dropout(torch.tanh(self.inner(self.dropout(state)))))
        return logits


class Outputs(NamedTuple):
    """Logits of classes [batch, classes] and of words' tags [batch, words, tags], structural loss, and states.

    `chain` is the mean loss of a word by the CRF, where there is one and the batch has tags.
    """

    label: Tensor | None
    tags: Tensor | None
    structure: Tensor | None
    states: Tensor
    chain: Tensor | None = None


@dataclass(frozen=True)
class Syntax:
    """Settings of the adaptor, by the paper's symbols: L, H, S, delta, and which embeddings the graph adds."""

    num_layers: int = 4
    num_heads: int = 4
    num_slices: int = 1
    radius: int = 1
    upos: bool = True
    deprel: bool = False
    fuse: str = "all"
    layers: tuple[int, ...] | None = None
    zero: bool = False


class TransferModel(nn.Module):
    """An encoder with its heads, and the adaptor where the arm has one."""

    def __init__(
        self,
        encoder: PreTrainedModel | WordEncoder,
        targets: Targets,
        *,
        syntax: Syntax | None = None,
        adapter_width: int = 0,
        languages: Sequence[str] = (),
        crf: bool = False,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Draw heads and adaptor, each from its own stream, so that arms share what they have in common.

        Args:
            encoder: is changed in training.
            targets: names of classes and tags.
            syntax: the adaptor's settings; None for no adaptor.
            adapter_width: of bottleneck adapters, which freeze the encoder; 0 for none.
            languages: that have adapters of their own.
            crf: tags are decoded as a chain.
            dropout: of the heads.
            seed: of the new parameters.

        Raises:
            UserError: the encoder has no keys and values that the adaptor could change, or there are no tags to chain.
        """
        super().__init__()
        if crf and not targets.tags:
            raise UserError("a CRF needs word tags, and the task has none.", where="--crf")
        self.encoder = encoder
        self.targets = targets
        self.syntax = syntax
        is_words = isinstance(encoder, WordEncoder)
        width = encoder.width if isinstance(encoder, WordEncoder) else encoder.config.get_text_config().hidden_size
        # A decoder's first position sees nothing of the text: there the last one stands for it.
        self.pooling = "max" if is_words else "last" if _is_causal(encoder) else "first"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "heads"))
            self.sentence = SentenceHead(width, len(targets.labels), dropout) if targets.labels else None
            self.token = nn.Linear(width, len(targets.tags)) if targets.tags else None
            self.chain = LinearChain(len(targets.tags)) if crf else None
            torch.manual_seed(derive_seed(seed, "adaptor"))
            self.adaptor = _adaptor(encoder, syntax) if syntax else None
        self.mixer: Mixer | None = None
        self.adapters = _adapters(encoder, adapter_width, languages, seed) if adapter_width else None
        self.dropout = nn.Dropout(dropout)

    def mix(self, share: float) -> None:
        """Mix the vectors of words with those of the translations that a batch names in `mixed`."""
        encoder = self.encoder
        embeddings = encoder.embedding if isinstance(encoder, WordEncoder) else word_embeddings(encoder)
        self.mixer = Mixer(embeddings, share)

    def forward(self, batch: Batch) -> Outputs:
        """Run a batch of `Sequencer.batch`."""
        structure = None
        if self.mixer is not None:
            self.mixer.translations = batch.get("mixed")
        if self.adaptor is not None and isinstance(self.encoder, PreTrainedModel):
            embeddings = word_embeddings(self.encoder)(batch["input_ids"])
            g = self.adaptor.prepare(embeddings, batch)
            structure = self.adaptor.probes(g, batch["distances"], batch["depths"])
        states = self._encode(batch)
        if self.adaptor is not None and not torch.is_grad_enabled():
            self.adaptor.clear()
        return self.read(states, batch, structure)

    def read(self, states: Tensor, batch: Batch, structure: Tensor | None = None) -> Outputs:
        """Run the heads on states [batch, n, width] of a batch."""
        label = self.sentence(self._pool(states, batch["attention_mask"])) if self.sentence is not None else None
        tags = None
        if self.token is not None:
            places = batch["words"][:, :, None].expand(-1, -1, states.shape[-1])
            tags = self.token(self.dropout(states.gather(1, places)))
        return Outputs(label, tags, structure, states, self._chain_loss(tags, batch))

    def _chain_loss(self, tags: Tensor | None, batch: Batch) -> Tensor | None:
        if self.chain is None or tags is None:
            return None
        mask = batch["tags"] != IGNORED
        if not bool(mask.any()):
            return None
        return -self.chain.log_likelihood(tags.float(), batch["tags"], mask).sum() / mask.sum()

    def tag_numbers(self, tags: Tensor, batch: Batch) -> Tensor:
        """Return the tags that logits [batch, words, tags] stand for: the likeliest, one by one or as a chain."""
        return tags.argmax(-1) if self.chain is None else self.chain.decode(tags.float(), batch["words"] > 0)

    def _encode(self, batch: Batch) -> Tensor:
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        if isinstance(self.encoder, WordEncoder):
            return self.encoder(**given)  # type: ignore[no-any-return]
        return self.encoder(**given).last_hidden_state  # type: ignore[no-any-return]

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "first":
            return states[:, 0]
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return states.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)


def _is_causal(model: PreTrainedModel | WordEncoder) -> bool:
    return isinstance(model, PreTrainedModel) and any(
        getattr(module, "is_causal", False) is True for module in model.modules()
    )


def _adaptor(encoder: PreTrainedModel | WordEncoder, syntax: Syntax) -> SyntaxAdaptor:
    if isinstance(encoder, WordEncoder):
        names = ", ".join(name for name, _ in encoder.named_children())
        what = f"the encoder `words` has no keys and values for the graph to change (its modules: {names})."
        raise UserError(what, where="--encoder", hint="Take arms without syntax, or another --encoder.")
    return SyntaxAdaptor(
        encoder,
        num_layers=syntax.num_layers,
        num_heads=syntax.num_heads,
        num_slices=syntax.num_slices,
        radius=syntax.radius,
        num_upos=NUM_UPOS if syntax.upos else 0,
        num_deprels=NUM_DEPRELS if syntax.deprel else 0,
        fuse="first" if syntax.fuse == "first" else "all",
        layers=syntax.layers,
        zero=syntax.zero,
    )


def _adapters(encoder: PreTrainedModel | WordEncoder, width: int, languages: Sequence[str], seed: int) -> Adapters:
    if isinstance(encoder, WordEncoder):
        raise UserError("the encoder `words` has no layers to adapt.", where="--adapter-width")
    return Adapters(encoder, width, languages, seed)


def task_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Return L_intent + L_slot, each where the task has it: means over sequences and over words."""
    losses = []
    if outputs.label is not None:
        losses.append(functional.cross_entropy(outputs.label.float(), batch["label"]))
    if outputs.chain is not None:
        losses.append(outputs.chain)
    elif outputs.tags is not None and bool((batch["tags"] != IGNORED).any()):
        losses.append(
            functional.cross_entropy(outputs.tags.flatten(0, 1).float(), batch["tags"].flatten(), ignore_index=IGNORED)
        )
    return torch.stack(losses).sum() if losses else batch["input_ids"].new_zeros((), dtype=torch.float32)


@dataclass(frozen=True)
class Predictions:
    """What a model says of examples: a class each, a tag for each word of the first sentence."""

    labels: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]


@torch.inference_mode()
def predict(
    model: TransferModel, sequencer: Sequencer, examples: Sequence[Example], batch_size: int = 64
) -> Predictions:
    """Predict classes and tags.

    Args:
        model: in evaluation mode afterwards.
        sequencer: of the model's encoder.
        examples: of one language; labels are not read.
        batch_size: of a forward pass; the outputs do not depend on it.

    Returns:
        Predictions in the order of the examples; words that were cut off get `O`.
    """
    model.eval()
    if model.adapters is not None and examples:
        model.adapters.use(examples[0].language)
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: sum(len(one.words) for one in examples[i].sentences))
    labels, tags = [""] * len(examples), [()] * len(examples)  # type: tuple[list[str], list[tuple[str, ...]]]
    blank = [_without_labels(example, model.targets) for example in examples]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = {name: tensor.to(device) for name, tensor in sequencer.batch([blank[i] for i in rows]).items()}
        outputs = model(batch)
        if outputs.label is not None:
            for i, number in zip(rows, outputs.label.argmax(-1).tolist(), strict=True):
                labels[i] = model.targets.labels[number]
        if outputs.tags is not None:
            numbered = model.tag_numbers(outputs.tags, batch).tolist()
            for i, numbers, places in zip(rows, numbered, batch["words"].tolist(), strict=True):
                size = len(examples[i].sentences[0].words)
                pairs = list(zip(numbers, places, strict=True))[:size]
                said = (model.targets.tags[number] if place else OUTSIDE for number, place in pairs)
                tags[i] = tuple(said)
    return Predictions(tuple(labels), tuple(tags))


def _without_labels(example: Example, targets: Targets) -> Example:
    first, *rest = example.sentences
    bare = tuple(_bare(one) for one in (first, *rest))
    return Example(example.id, bare, targets.labels[0] if targets.labels else "", example.language)


def _bare(sentence: Any) -> Any:
    return type(sentence)(
        sentence.words, sentence.upos, sentence.heads, sentence.deprels, (), sentence.id, sentence.text, (), ""
    )


# ---- files


def save_transfer(
    model: TransferModel, sequencer: Sequencer, folder: Path, about: Mapping[str, Any], tokenizer: Any = None
) -> None:
    """Save a model: the encoder as a Hugging Face folder, all else beside it in a small file of its own.

    Args:
        model: the model.
        sequencer: its vocabulary and length.
        folder: where to.
        about: arm, task and language, for whoever opens it.
        tokenizer: of a Hugging Face encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    if isinstance(model.encoder, WordEncoder):
        tensors = dict(model.state_dict())
    else:
        save_model(model.encoder, folder / "encoder", tokenizer)
    with replace_atomically(folder / "transfer.safetensors") as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    vocabulary = list(sequencer.pieces.ids) if isinstance(sequencer.pieces, WordPieces) else None
    width = model.encoder.width // 2 if isinstance(model.encoder, WordEncoder) else None
    write_json(
        folder / "transfer.json",
        {
            **about,
            "labels": model.targets.labels,
            "tags": model.targets.tags,
            "syntax": asdict(model.syntax) if model.syntax else None,
            "adapter_width": model.adapters.bottleneck if model.adapters else 0,
            "languages": list(model.adapters.languages) if model.adapters else [],
            "crf": model.chain is not None,
            "max_length": sequencer.max_length,
            "words": vocabulary,
            "width": width,
        },
    )


@dataclass(frozen=True)
class Loaded:
    """A saved model, ready to predict, and what was written about it."""

    model: TransferModel
    sequencer: Sequencer
    about: Mapping[str, Any]


def load_transfer(folder: Path) -> Loaded:
    """Load what `save_transfer` wrote.

    Raises:
        UserError: the folder holds no such model.
    """
    if not (folder / "transfer.json").is_file():
        hint = "Name a folder artifacts/ARM-seedN of a run of `transfer train`."
        raise UserError("holds no transfer.json.", where=str(folder), hint=hint)
    about = read_json(folder / "transfer.json")
    targets = Targets(tuple(about["labels"]), tuple(about["tags"]))
    syntax = None
    if about["syntax"]:
        layers = about["syntax"]["layers"]
        syntax = Syntax(**{**about["syntax"], "layers": tuple(layers) if layers is not None else None})
    tensors = load_file(folder / "transfer.safetensors")
    encoder: PreTrainedModel | WordEncoder
    pieces: WordPieces | TokenizerPieces
    if about["words"] is not None:
        pieces = WordPieces(about["words"])
        encoder = WordEncoder(len(pieces), about["width"], 0.0)
    else:
        encoder = load_model(folder / "encoder", "encoder")
        pieces = TokenizerPieces(load_tokenizer(folder / "encoder", encoder), encoder)
    model = TransferModel(
        encoder,
        targets,
        syntax=syntax,
        adapter_width=about.get("adapter_width", 0),
        languages=about.get("languages", ()),
        crf=about.get("crf", False),
        dropout=0.0,
    )
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise UserError("its weights do not fit its description.", where=str(folder))
    model.eval()
    return Loaded(model, Sequencer(pieces, about["max_length"], targets, gold_heads if syntax else None), about)
