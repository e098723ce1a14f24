"""ATLOP and DREEAM on any Hugging Face encoder: forward pass, prediction, pseudo-documents, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.methods.docre.data import Document
from polyloom.methods.docre.inputs import Inputs, make_inputs, restrict, windows
from polyloom.methods.docre.method import (
    PairHead,
    fuse,
    pair_attention,
    pool_attention,
    pool_mentions,
    predict_classes,
    sentence_attention,
)
from polyloom.metrics.relations import Prediction
from polyloom.models.device import DeviceName, torch_generator
from polyloom.models.load import load_model, load_tokenizer, save_model

EVIDENCE_THRESHOLD = 0.2
NUM_KEPT = 4
EVIDENCE_LAYERS = 3


@dataclass
class DocumentModel:
    """An encoder with a pair head.

    Attributes:
        encoder: any that gives attention maps.
        tokenizer: a fast one.
        head: the classifier of pairs.
        relations: names of classes 1, 2, ...
        num_layers: last layers of which hidden states and attention are averaged: 1 in ATLOP, 3 in DREEAM.
        schema_version: how often relations were added, plus 1.
    """

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: PairHead
    relations: list[str]
    num_layers: int = 1
    schema_version: int = 1

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters, the encoder's first."""
        return [*self.encoder.parameters(), *self.head.parameters()]


@dataclass
class Encoded:
    """What the encoder says of one document: hidden [L, d] and attention rows of the mentions [H, M, L]."""

    hidden: Tensor
    rows: Tensor


@dataclass
class Output:
    """Logits [P, R], pair attention [P / 2, L] and sentence attention [P, S] of one document."""

    logits: Tensor
    attention: Tensor
    sentences: Tensor


def eager(encoder: PreTrainedModel) -> PreTrainedModel:
    """Return the encoder set to give attention maps.

    Raises:
        UserError: it has none (a state-space model, say).
    """
    try:
        encoder.set_attn_implementation("eager")
        tokens = torch.zeros(1, 2, dtype=torch.long, device=encoder.device)
        with torch.no_grad():
            maps = encoder(input_ids=tokens, output_attentions=True).attentions
    except (ValueError, TypeError, AttributeError) as error:
        maps = None
        reason: Exception | None = error
    else:
        reason = None
    if not maps or maps[-1] is None:
        raise UserError(
            "gives no attention maps, which the model pools context with.",
            where=str(encoder.config.model_type),
            hint="Use an encoder with eager attention, such as BERT or XLM-RoBERTa.",
        ) from reason
    return encoder


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the tokens to begin and to end a window with.

    Raises:
        UserError: the tokenizer has neither [CLS] and [SEP] nor a begin and an end token.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise UserError("has no [CLS] and [SEP].", where="tokenizer", hint="Use the tokenizer of an encoder.")
    return int(first), int(last)


def encode(model: DocumentModel, batch: Sequence[Inputs]) -> list[Encoded]:
    """Run the encoder over a batch of documents, in windows where they are long.

    Hidden states and attention are averages over the model's last layers; where windows overlap, hidden states are
    averaged, and attention maps are added and each row divided by its sum.
    """
    first, last = special_tokens(model.tokenizer)
    limit = int(getattr(model.encoder.config, "max_position_embeddings", 512))
    size = min(limit, 512) - 4 if model.encoder.config.model_type != "bert" else min(limit, 512) - 2
    spans = [(i, a, b) for i, one in enumerate(batch) for a, b in windows(len(one.tokens), size)]
    width = max(b - a for _, a, b in spans) + 2
    tokens = torch.full((len(spans), width), model.tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(tokens)
    for row, (i, a, b) in enumerate(spans):
        tokens[row, : b - a + 2] = torch.tensor([first, *batch[i].tokens[a:b], last])
        mask[row, : b - a + 2] = 1
    device = model.encoder.device
    output = model.encoder(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        output_attentions=True,
        output_hidden_states=model.num_layers > 1,
    )
    count = min(model.num_layers, len(output.attentions))
    hidden = output.last_hidden_state if count == 1 else torch.stack(output.hidden_states[-count:]).mean(0)
    return [_join(one, i, spans, hidden, output.attentions[-count:]) for i, one in enumerate(batch)]


def _join(
    one: Inputs, number: int, spans: Sequence[tuple[int, int, int]], hidden: Tensor, maps: Sequence[Tensor]
) -> Encoded:
    """Put a document's windows together, its first and last special token kept; only mentions' rows of attention."""
    length, heads = len(one.tokens) + 2, maps[0].shape[1]
    starts = one.starts.to(hidden.device) + 1
    own = [(row, a, b) for row, (i, a, b) in enumerate(spans) if i == number]
    if len(own) == 1:
        row = own[0][0]
        rows = sum(layer[row][:, starts, :length] for layer in maps) / len(maps)
        return Encoded(hidden[row, :length], torch.as_tensor(rows))
    total, count = hidden.new_zeros(length, hidden.shape[2]), hidden.new_zeros(length, 1)
    rows = hidden.new_zeros(heads, len(starts), length)
    for position, (row, a, b) in enumerate(own):
        # A window's special tokens stand for the document's only at its two ends.
        low, high = (0 if position == 0 else 1), (b - a + 2 if position == len(own) - 1 else b - a + 1)
        total[a + low : a + high] += hidden[row, low:high]
        count[a + low : a + high] += 1
        inside = (starts >= a + 1) & (starts < b + 1)
        part = torch.as_tensor(sum(layer[row][:, starts[inside] - a, low:high] for layer in maps) / len(maps))
        padded = nn.functional.pad(part, (a + low, length - (a + high)))
        rows = rows.index_add(1, inside.nonzero().squeeze(1), padded)
    return Encoded(total / count, rows / (rows.sum(2, keepdim=True) + 1e-10))


def forward(model: DocumentModel, batch: Sequence[Inputs]) -> list[Output]:
    """Return the outputs of a batch of documents; one without a pair has empty tensors."""
    return [classify(model, one, encoded) for one, encoded in zip(batch, encode(model, batch), strict=True)]


def classify(model: DocumentModel, one: Inputs, encoded: Encoded) -> Output:
    """Pool entities and contexts of one document and score its pairs."""
    hidden, device = encoded.hidden, encoded.hidden.device
    count, owners = len(one.document.entities), one.owners.to(device)
    entities = pool_mentions(hidden, one.starts.to(device) + 1, owners, count)
    attention = _owned(encoded.rows, owners, count)
    unordered, shared = one.unordered.to(device), one.shared.to(device)
    q = pair_attention(attention, unordered[0], unordered[1])
    logits = model.head(entities, q @ hidden, one.pairs.to(device), shared)
    outside = torch.full((1,), -1)
    sentence_of = torch.cat([outside, one.sentence_of, outside]).to(device)
    return Output(logits, q, sentence_attention(q, sentence_of, len(one.document.sentences))[shared])


def _owned(rows: Tensor, owners: Tensor, count: int) -> Tensor:
    """Average the mentions' attention rows [H, M, L] by entity: `pool_attention` on rows that are gathered already."""
    index = torch.arange(rows.shape[1], device=rows.device)
    return pool_attention(rows, index, owners, count)


def new_head(hidden_size: int, num_classes: int, width: int, seed: int) -> PairHead:
    """Return a pair head whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        head = PairHead(hidden_size, num_classes, width=width)
    generator = torch_generator(seed, "pair head")
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.dim() > 1:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
    return head


def save_transformer(model: DocumentModel, folder: Path) -> None:
    """Write the encoder as a Hugging Face folder, the head beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.encoder.eval()  # type: ignore[no-untyped-call]
    save_model(model.encoder, folder / "encoder", model.tokenizer)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}, folder / "head.safetensors"
    )
    value = {"kind": "docre-transformer", "version": 1, "relations": ["Na", *model.relations]}
    write_json(folder / "model.json", value | {"num_layers": model.num_layers, "schema_version": model.schema_version})


def load_transformer(folder: Path, device: DeviceName = "auto") -> DocumentModel:
    """Read a model that `save_transformer` wrote.

    Raises:
        UserError: no such model.
    """
    value = read_json(folder / "model.json")
    if value.get("kind") != "docre-transformer":
        raise UserError("is no ATLOP or DREEAM model.", where=str(folder), hint="Give a folder of `docre train`.")
    encoder = load_model(folder / "encoder", kind="encoder", device=device)
    weights = load_file(folder / "head.safetensors")
    head = PairHead(weights["head.weight"].shape[1] // 2, len(value["relations"]), width=len(weights["head.weight"]))
    head.load_state_dict(weights)
    tokenizer = load_tokenizer(folder / "encoder", encoder)
    return DocumentModel(
        eager(encoder),
        tokenizer,
        head.to(encoder.device),
        value["relations"][1:],
        value["num_layers"],
        value.get("schema_version", 1),
    )


@dataclass
class Scored:
    """One document's kept scores (logit minus threshold), predicted facts, and evidence of each pair."""

    scores: dict[tuple[int, str, int], float] = field(default_factory=dict)
    predicted: set[tuple[int, str, int]] = field(default_factory=set)
    evidence: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)


def batches(documents: Iterable[Document], size: int = 8) -> Iterator[list[Document]]:
    """Yield documents in batches; an endless stream is read as it comes."""
    stream = iter(documents)
    while batch := list(islice(stream, size)):
        yield batch


@torch.inference_mode()
def score_documents(model: DocumentModel, documents: Sequence[Document], margin: float = 0.0) -> list[Scored]:
    """Score documents, labelled or not; those with fewer than two entities have nothing."""
    return [_scored(model, *found, margin) if found else Scored() for found in _outputs(model, documents)]


def _outputs(model: DocumentModel, documents: Sequence[Document]) -> Iterator[tuple[Inputs, Output] | None]:
    """Run the model over documents, a batch at a time; None for one without a pair or a word."""
    model.encoder.eval()  # type: ignore[no-untyped-call]
    for chunk in batches(documents):
        usable = [make_inputs(d, model.tokenizer) for d in chunk if len(d.entities) > 1 and any(d.sentences)]
        outputs = iter(zip(usable, forward(model, usable), strict=True) if usable else ())
        for document in chunk:
            yield next(outputs) if len(document.entities) > 1 and any(document.sentences) else None


def _scored(model: DocumentModel, one: Inputs, output: Output, margin: float) -> Scored:
    found = Scored()
    logits = output.logits.clone()
    logits[:, 0] += margin
    chosen = predict_classes(logits, NUM_KEPT)
    scores = logits - logits[:, :1]
    least = scores.topk(min(NUM_KEPT, scores.shape[1]), dim=1).values[:, -1:]
    kept = scores >= least
    kept[:, 0] = False
    pairs = one.pairs.tolist()
    for row, column in kept.nonzero().tolist():
        fact = (pairs[row][0], model.relations[column - 1], pairs[row][1])
        found.scores[fact] = scores[row, column].item()
        if chosen[row, column]:
            found.predicted.add(fact)
    found.evidence = _evidence(pairs, output)
    return found


def _evidence(pairs: Sequence[Sequence[int]], output: Output) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return the sentences that each pair attends to."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for row, sentence in (output.sentences > EVIDENCE_THRESHOLD).nonzero().tolist():
        pair = (pairs[row][0], pairs[row][1])
        found[pair] = (*found.get(pair, ()), sentence)
    return found


def predict_documents(
    model: DocumentModel,
    documents: Sequence[Document],
    *,
    margin: float = 0.0,
    fusion: bool = False,
    fusion_threshold: float = 0.0,
) -> list[Prediction]:
    """Predict triples with evidence.

    Args:
        model: trained.
        documents: labelled or not.
        margin: what a logit has to exceed the threshold's by.
        fusion: fuse with pseudo-documents of the predicted evidence.
        fusion_threshold: tau of `fuse`.
    """
    originals = score_documents(model, documents, margin)
    predictions = []
    for document, one in zip(documents, originals, strict=True):
        facts = one.predicted
        if fusion:
            facts = fuse(one.scores, pseudo_scores(model, document, one, margin), fusion_threshold)
        for head, relation, tail in sorted(facts):
            evidence = one.evidence.get((head, tail), ())
            score = one.scores.get((head, relation, tail), 0.0)
            predictions.append(Prediction(document.title, head, relation, tail, evidence, score))
    return predictions


def pseudo_scores(
    model: DocumentModel, document: Document, original: Scored, margin: float = 0.0
) -> dict[tuple[int, str, int], float]:
    """Score the pseudo-documents of each pair's predicted evidence; a fact has its best score.

    A pair's pseudo-document holds its evidence sentences, and the first mention's sentence of an entity that is absent
    from them.
    """
    wanted: dict[tuple[int, ...], set[tuple[int, int]]] = {}
    for (head, tail), evidence in original.evidence.items():
        sentences = set(evidence)
        for entity in (head, tail):
            if not any(mention.sentence in evidence for mention in document.entities[entity]):
                sentences.add(document.first_sentence(entity))
        wanted.setdefault(tuple(sorted(sentences)), set()).add((head, tail))
    parts = [restrict(document, sentences) for sentences in wanted]
    best: dict[tuple[int, str, int], float] = {}
    for (_, numbers), scored in zip(parts, score_documents(model, [d for d, _ in parts], margin), strict=True):
        for (head, relation, tail), score in scored.scores.items():
            fact = (numbers[head], relation, numbers[tail])
            best[fact] = max(best.get(fact, score), score)
    return best


@torch.inference_mode()
def score_all(model: DocumentModel, documents: Sequence[Document]) -> list[Scored]:
    """Return the score (logit minus threshold) of every possible fact of each document, and the evidence of its pairs.

    Nothing is marked as predicted.
    """
    return [_all_of(model, *found) if found else Scored() for found in _outputs(model, documents)]


def _all_of(model: DocumentModel, one: Inputs, output: Output) -> Scored:
    rows = (output.logits[:, 1:] - output.logits[:, :1]).tolist()
    pairs = one.pairs.tolist()
    scores = {
        (head, relation, tail): score
        for (head, tail), row in zip(pairs, rows, strict=True)
        for relation, score in zip(model.relations, row, strict=True)
    }
    return Scored(scores, evidence=_evidence(pairs, output))


@torch.inference_mode()
def token_attention(model: DocumentModel, document: Document, head: int, tail: int) -> tuple[list[str], list[float]]:
    """Return the document's pieces, and the attention q_st of a pair on each.

    Args:
        model: trained.
        document: any.
        head: an entity.
        tail: another.
    """
    model.encoder.eval()  # type: ignore[no-untyped-call]
    one = make_inputs(document, model.tokenizer)
    q = forward(model, [one])[0].attention
    row = one.shared[one.pairs.tolist().index([head, tail])]
    pieces = [str(model.tokenizer.decode([token])) for token in one.tokens]
    return pieces, q[row][1:-1].tolist()
