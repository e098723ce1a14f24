"""Training of ATLOP and DREEAM: losses, teachers, new relations, text of the domain, development data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, read_text, write_json
from polyloom.core.seeding import python_random
from polyloom.methods.docre.config import TrainConfig
from polyloom.methods.docre.data import Document, facts_of_names, gold_facts, name_facts
from polyloom.methods.docre.inputs import Inputs, evidence_matrix, label_matrix, make_inputs
from polyloom.methods.docre.method import (
    EvidenceMean,
    PairHead,
    adaptive_focal_loss,
    adaptive_threshold_loss,
    attention_distillation,
    evidence_loss,
)
from polyloom.methods.docre.schema import relations_of
from polyloom.methods.docre.transformer import (
    EVIDENCE_LAYERS,
    DocumentModel,
    Output,
    eager,
    forward,
    load_transformer,
    new_head,
    predict_documents,
    save_transformer,
)
from polyloom.metrics.relations import score_relations
from polyloom.models.device import choose_device
from polyloom.models.load import load_model, load_tokenizer
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig as LoopConfig
from polyloom.training.loop import train
from polyloom.training.masked import learn_masked
from polyloom.training.packing import Batch

HEAD_LEARNING_RATE = 1e-4
WARM_UP = 0.06
CHECKPOINT_STEPS = 100
TINY_VOCABULARY = 2000
TINY_WIDTH = 128
HEAD_WIDTH = 768
# How far below the threshold a new relation's logit starts.
NEW_RELATION_BELOW = 4.0


@dataclass(frozen=True)
class Teachers:
    """Models that a student is held to.

    Attributes:
        kept: where training goes on from it, the model as it was: its logits of the old relations are kept.
        kept_weight: of the squared difference of those logits.
        attention: DREEAM's teacher: its attention on tokens is followed.
        attention_weight: of that divergence.
    """

    kept: DocumentModel | None = None
    kept_weight: float = 0.0
    attention: DocumentModel | None = None
    attention_weight: float = 0.0


def loss_of(
    model: DocumentModel,
    batch: Sequence[Inputs],
    *,
    evidence_weight: float = 0.0,
    evidence_mean: EvidenceMean = "annotated",
    teachers: Teachers = Teachers(),
    kind: Literal["adaptive", "focal"] = "adaptive",
) -> Tensor:
    """Return the loss of a batch: adaptive threshold over all its pairs, plus guided evidence and teachers.

    Args:
        model: the model.
        batch: documents with gold triples.
        evidence_weight: lambda; 0 is ATLOP.
        evidence_mean: as in `evidence_loss`.
        teachers: whom the model is held to.
        kind: of the loss of relations.
    """
    outputs = forward(model, batch)
    columns = {relation: 1 + i for i, relation in enumerate(model.relations)}
    labels = [label_matrix(one, columns, len(columns) + 1).to(model.encoder.device) for one in batch]
    logits = torch.cat([one.logits for one in outputs])
    relation_loss = adaptive_focal_loss if kind == "focal" else adaptive_threshold_loss
    loss = relation_loss(logits, torch.cat(labels))
    if evidence_weight:
        loss = loss + evidence_weight * _evidence_of(outputs, batch, labels, evidence_mean)
    if teachers.kept is not None:
        with torch.no_grad():
            before = torch.cat([one.logits for one in forward(teachers.kept, batch)])
        old = [0, *(columns[relation] for relation in teachers.kept.relations)]
        loss = loss + teachers.kept_weight * nn.functional.mse_loss(logits[:, old], before)
    if teachers.attention is not None:
        with torch.no_grad():
            shown = forward(teachers.attention, batch)
        each = [attention_distillation(t.attention, s.attention) for t, s in zip(shown, outputs, strict=True)]
        sizes = [len(one.attention) for one in outputs]
        loss = loss + teachers.attention_weight * sum(a * n for a, n in zip(each, sizes, strict=True)) / sum(sizes)
    return loss


def _evidence_of(
    outputs: Sequence[Output], batch: Sequence[Inputs], labels: Sequence[Tensor], mean: EvidenceMean
) -> Tensor:
    width = max(one.sentences.shape[1] for one in outputs)
    s, v = [], []
    for one, inputs, gold in zip(outputs, batch, labels, strict=True):
        positive = gold[:, 0] == 0
        pad = (0, width - one.sentences.shape[1])
        s.append(nn.functional.pad(one.sentences[positive], pad))
        v.append(nn.functional.pad(evidence_matrix(inputs).to(gold.device)[positive], pad))
    return evidence_loss(torch.cat(s), torch.cat(v), mean)


def build_model(documents: Sequence[Document], config: TrainConfig) -> DocumentModel:
    """Make a model for the documents' relations on the configured encoder, or load the one to go on from.

    Raises:
        UserError: no labels, or an encoder that cannot serve.
    """
    relations = relations_of(documents)
    if not relations:
        raise UserError("the documents hold no gold triple to train on.", hint="Give labelled documents.")
    if config.start:
        return with_relations(load_transformer(Path(config.start), "cpu"), relations, config.seed)
    if config.encoder == "tiny":
        tokenizer: PreTrainedTokenizerBase = train_tokenizer((d.text()[0] for d in documents), TINY_VOCABULARY)
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        encoder, width = build_tiny("bert-2x64", len(tokenizer), config.seed), TINY_WIDTH
    else:
        encoder = load_model(config.encoder, kind="encoder")
        tokenizer, width = load_tokenizer(config.encoder, encoder), HEAD_WIDTH
    head = new_head(int(encoder.config.hidden_size), len(relations) + 1, width, config.seed)
    layers = EVIDENCE_LAYERS if config.kind == "dreeam" else 1
    return DocumentModel(eager(encoder), tokenizer, head, relations, layers)


def with_relations(model: DocumentModel, relations: Sequence[str], seed: int) -> DocumentModel:
    """Return the model with a row of its bilinear head for each relation that it lacks; the old rows stay.

    Args:
        model: trained.
        relations: of the new documents; those that it has already change nothing.
        seed: of the new rows.
    """
    new = [relation for relation in relations if relation not in model.relations]
    if not new:
        return model
    old, names = model.head, [*model.relations, *new]
    head = new_head(old.head.in_features // 2, len(names) + 1, old.head.out_features, seed)
    with torch.no_grad():
        head.head.load_state_dict(old.head.state_dict())
        head.tail.load_state_dict(old.tail.state_dict())
        num_old = len(old.bilinear.bias)
        head.bilinear.weight[:num_old] = old.bilinear.weight
        head.bilinear.bias[:num_old] = old.bilinear.bias
        # A fresh relation starts well below the threshold, so that old documents are read as before.
        head.bilinear.weight[num_old:] *= 0.1
        head.bilinear.bias[num_old:] = old.bilinear.bias[0] - NEW_RELATION_BELOW
    return DocumentModel(model.encoder, model.tokenizer, head, names, model.num_layers, model.schema_version + 1)


class Network(nn.Module):
    """Encoder and head as one module, which the training loop saves and restores."""

    def __init__(self, encoder: nn.Module, head: PairHead) -> None:
        """Take both."""
        super().__init__()
        self.encoder, self.head = encoder, head


def train_transformer(
    documents: Sequence[Document], held_out: Sequence[Document], config: TrainConfig, run: Run, folder: Path
) -> dict[str, float]:
    """Train ATLOP or DREEAM and write the model; a run that was killed goes on from its last checkpoint.

    Args:
        documents: with gold triples.
        held_out: documents on which the best epoch is chosen, by Ign F1; without, the last one is taken.
        config: encoder, losses and lengths.
        run: where checkpoints are kept.
        folder: where the model goes.

    Returns:
        First and last loss, and the best epoch's Ign F1 where it was chosen.

    Raises:
        UserError: as `build_model`.
    """
    model, teachers = build_model(documents, config), Teachers()
    device = choose_device(config.device)
    if config.start:
        teachers = Teachers(_frozen(load_transformer(Path(config.start), config.device)), config.keep_weight)
    if config.teacher:
        teacher = _frozen(load_transformer(Path(config.teacher), config.device))
        if teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            hint = "Train the student on the teacher's encoder: --encoder TEACHER/encoder."
            raise UserError("has another tokenizer than the student.", where=config.teacher, hint=hint)
        teachers = Teachers(
            teachers.kept, teachers.kept_weight, attention=teacher, attention_weight=config.attention_weight
        )
    if config.raw_text:
        _read_domain(model, config, run)
    _to(model, device)
    data = [make_inputs(d, model.tokenizer) for d in documents if d.triples is not None and len(d.entities) > 1]
    return _fit(model, data, held_out, config, run, folder, teachers, known=name_facts(documents))


def _to(model: DocumentModel, device: torch.device) -> DocumentModel:
    model.encoder.to(device)  # type: ignore[arg-type]
    model.head.to(device)
    return model


def _frozen(model: DocumentModel) -> DocumentModel:
    model.encoder.eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _read_domain(model: DocumentModel, config: TrainConfig, run: Run) -> None:
    """Let the encoder fill masks in raw text of the domain first."""
    text = "\n".join(read_text(Path(path)) for path in config.raw_text)
    learn_masked(
        model.encoder,
        model.tokenizer,
        [line for line in text.splitlines() if line.strip()],
        num_epochs=config.raw_epochs,
        learning_rate=config.learning_rate,
        seed=config.seed,
        device=config.device,
        checkpoints=run.checkpoints / "domain",
        progress=run.progress,
        check_stop=run.check_stop,
    )


def _fit(
    model: DocumentModel,
    data: Sequence[Inputs],
    held_out: Sequence[Document],
    config: TrainConfig,
    run: Run,
    folder: Path,
    teachers: Teachers,
    known: set[tuple[str, str, str]],
) -> dict[str, float]:
    steps_an_epoch = -(-len(data) // config.batch_size)
    num_steps = config.num_epochs * steps_an_epoch
    head_rate = max(HEAD_LEARNING_RATE, 2 * config.learning_rate)
    weight = config.evidence_weight if config.kind == "dreeam" else 0.0

    def batch_at(step: int) -> Batch:
        epoch, place = divmod(step, steps_an_epoch)
        order = list(range(len(data)))
        python_random(config.seed, "documents", epoch).shuffle(order)
        rows = order[place * config.batch_size : (place + 1) * config.batch_size]
        return {"documents": torch.tensor(rows + [-1] * (config.batch_size - len(rows)))}

    def loss(_: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        chosen = [data[i] for i in batch["documents"].tolist() if i >= 0]
        count = sum(len(one.pairs) for one in chosen)
        mean = loss_of(
            model,
            chosen,
            evidence_weight=weight,
            evidence_mean=config.evidence_mean,
            teachers=teachers,
            kind=config.loss,
        )
        return mean * count, count

    settings = LoopConfig(
        seed=config.seed, steps=num_steps, batch_size=config.batch_size, lr=config.learning_rate, min_lr_ratio=0.0,
        schedule="linear", warmup_steps=max(1, round(WARM_UP * num_steps)), beta2=0.999, eps=1e-6, weight_decay=0.01,
        clip_norm=1.0, precision="float32", log_every=1, eval_every=steps_an_epoch,
        checkpoint_every=min(steps_an_epoch, CHECKPOINT_STEPS), keep_checkpoints=1,
    )  # fmt: skip
    groups: list[dict[str, Any]] = [
        {"params": list(model.encoder.parameters()), "lr": config.learning_rate, "weight_decay": 0.01},
        {"params": list(model.head.parameters()), "lr": head_rate, "weight_decay": 0.01},
    ]
    best = run.checkpoints / "best.json"

    def judge() -> dict[str, float]:
        value = _ign_f1(model, held_out, known)
        if not best.exists() or value > read_json(best)["ign_f1"]:
            save_transformer(model, folder)
            write_json(best, {"ign_f1": value})
        return {"one_minus_ign_f1": 1 - value}

    with run.progress("train", num_steps) as advance:
        train(
            Network(model.encoder, model.head), batch_at, settings, loss=loss, groups=groups,
            checkpoints=run.checkpoints / "training", on_log=run.log, on_step=advance,
            evaluate=judge if held_out else None, check_stop=run.check_stop,
        )  # fmt: skip
    if not held_out:
        save_transformer(model, folder)
    losses = [float(line["loss"]) for line in run.metrics() if line.get("loss") is not None and "step" in line]
    chosen = {"best_dev_ign_f1": float(read_json(best)["ign_f1"])} if held_out else {}
    return {"first_loss": losses[0], "last_loss": losses[-1], **chosen}


def _ign_f1(model: DocumentModel, documents: Sequence[Document], known: set[tuple[str, str, str]]) -> float:
    seen = {fact for document in documents for fact in facts_of_names(document, known)}
    predictions = predict_documents(model, documents)
    titles = {document.title for document in documents}
    return score_relations(gold_facts(documents), predictions, titles=titles, in_train=seen).ignored.f1
