"""The training step and the pair head measured against a loop over mentions and whole outer products."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel

from polyloom.core.result import Result, Scalar, Table
from polyloom.methods.docre.config import BenchConfig
from polyloom.methods.docre.data import WORLD, load_documents
from polyloom.methods.docre.inputs import Inputs, label_matrix, make_inputs
from polyloom.methods.docre.method import PairHead, adaptive_threshold_loss
from polyloom.methods.docre.schema import relations_of
from polyloom.methods.docre.training import loss_of
from polyloom.methods.docre.transformer import DocumentModel, eager, encode, new_head, special_tokens
from polyloom.models.device import pin_threads
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run

WIDTH, NUM_LAYERS, VOCABULARY = 256, 4, 2000
HEAD_WIDTH, HEAD_ENTITIES, HEAD_CLASSES = 768, 42, 97


def run_bench(config: BenchConfig, run: Run) -> Result:
    """Measure the training step's CPU time as a ratio, the equality of losses and gradients, and the head's memory."""
    pin_threads()
    model, batch = step_material(config)
    step = run.once("step", lambda: measure_step(model, batch, config.rounds, run))
    memory = run.once("memory", lambda: {"ours": head_peak(False) / 1e6, "dense": head_peak(True) / 1e6})
    ratio = step["ratio"]
    return run.result(
        scalars={
            "step_time_ratio": Scalar(value=ratio, low=step["low"], high=step["high"], unit="x loop"),
            "step_cpu_seconds": Scalar(value=step["seconds"], unit="s"),
            "encoder_share": Scalar(value=step["encoder_share"]),
            "loss_difference": Scalar(value=step["loss_difference"]),
            "gradient_difference": Scalar(value=step["gradient_difference"]),
            "head_peak_megabytes": Scalar(value=memory["ours"], unit="MB"),
            "head_peak_megabytes_dense": Scalar(value=memory["dense"], unit="MB"),
            "num_pairs": Scalar(value=sum(len(one.pairs) for one in batch)),
        },
        tables={
            "head": Table(
                columns=["pair head", "peak MB in forward and backward"],
                rows=[["one group at a time", memory["ours"]], ["all outer products", memory["dense"]]],
                title=f"{HEAD_ENTITIES} entities, D={HEAD_WIDTH}, {HEAD_CLASSES} classes",
            )
        },
        verdicts=[
            f"A training step takes {ratio:.2f} [{step['low']:.2f}, {step['high']:.2f}] of the straightforward loop's "
            f"CPU time at a loss that differs by {step['loss_difference']:.1e}; the pair head peaks at "
            f"{memory['ours']:.0f} MB in place of {memory['dense']:.0f}."
        ],
        limitations=[f"Random weights, {NUM_LAYERS} layers of width {WIDTH}, one CPU thread, the world's documents."],
    )


def step_material(config: BenchConfig) -> tuple[DocumentModel, list[Inputs]]:
    """Make a random model and a batch of the world's documents."""
    documents = load_documents(WORLD, language="ja", num_documents=config.num_documents, seed=config.seed)[0]
    tokenizer = train_tokenizer((d.text()[0] for d in documents), VOCABULARY)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=NUM_LAYERS, num_attention_heads=4,
        intermediate_size=4 * WIDTH, max_position_embeddings=1024,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = BertModel(shape)
    relations = relations_of(documents)
    head = new_head(WIDTH, len(relations) + 1, HEAD_WIDTH, config.seed)
    model = DocumentModel(eager(encoder), tokenizer, head, relations)
    return model, [make_inputs(document, tokenizer) for document in documents]


def loop_loss(model: DocumentModel, batch: list[Inputs]) -> Tensor:
    """Return the same loss by a loop over documents, entities and mentions, with whole attention maps."""
    first, last = special_tokens(model.tokenizer)
    width = max(len(one.tokens) for one in batch) + 2
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, one in enumerate(batch):
        tokens[row, : len(one.tokens) + 2] = torch.tensor([first, *one.tokens, last])
        mask[row, : len(one.tokens) + 2] = 1
    output = model.encoder(input_ids=tokens, attention_mask=mask, output_attentions=True)
    hidden, maps = output.last_hidden_state, output.attentions[-1]
    columns = {relation: 1 + i for i, relation in enumerate(model.relations)}
    logits, labels = [], []
    for row, one in enumerate(batch):
        logits.append(_loop_logits(model.head, one, hidden[row], maps[row]))
        labels.append(label_matrix(one, columns, len(columns) + 1))
    return adaptive_threshold_loss(torch.cat(logits), torch.cat(labels))


def _loop_logits(head: PairHead, one: Inputs, hidden: Tensor, attention: Tensor) -> Tensor:
    entities, rows = [], []
    for entity in range(len(one.document.entities)):
        states, maps = [], []
        for start, owner in zip(one.starts.tolist(), one.owners.tolist(), strict=True):
            if owner == entity:
                states.append(hidden[start + 1])
                maps.append(attention[:, start + 1])
        entities.append(torch.logsumexp(torch.stack(states), dim=0))
        rows.append(torch.stack(maps).mean(0))
    e, a = torch.stack(entities), torch.stack(rows)
    heads, tails = one.pairs[:, 0], one.pairs[:, 1]
    q = (a[heads] * a[tails]).mean(1)
    q = q / (q.sum(1, keepdim=True) + 1e-30)
    context = q @ hidden
    left = torch.tanh(head.head(torch.cat([e[heads], context], 1)))
    right = torch.tanh(head.tail(torch.cat([e[tails], context], 1)))
    return dense_bilinear(left, right, head)


def dense_bilinear(left: Tensor, right: Tensor, head: PairHead) -> Tensor:
    """Return the same logits from all outer products at once."""
    groups = left.shape[1] // head.block
    a, b = left.view(-1, groups, head.block), right.view(-1, groups, head.block)
    outer = (a[..., :, None] * b[..., None, :]).reshape(len(left), -1)
    return F.linear(outer, head.bilinear.weight, head.bilinear.bias)


def measure_step(model: DocumentModel, batch: list[Inputs], rounds: int, run: Run) -> dict[str, float]:
    """Time forward and backward of both ways in turn, and of the encoder alone."""

    def work(loss: Callable[[], Tensor]) -> tuple[float, float, list[Tensor]]:
        for parameter in model.parameters():
            parameter.grad = None
        started = time.process_time()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        taken = time.process_time() - started
        return taken, value.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def encoder_only() -> Tensor:
        return torch.stack([one.hidden.sum() + one.rows.sum() for one in encode(model, batch)]).sum()

    rows = []
    with run.progress("rounds", rounds + 1) as advance:
        for _ in range(rounds + 1):
            ours, loop, alone = work(lambda: loss_of(model, batch)), work(lambda: loop_loss(model, batch)), None
            alone = work(encoder_only)[0]
            rows.append((ours[0], loop[0], alone))
            advance(1)
    rows = rows[1:]  # the first warms up
    ratios = sorted(a / b for a, b, _ in rows)
    differences = [(x - y).abs().max().item() for x, y in zip(ours[2], loop[2], strict=True)]
    return {
        "ratio": median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "seconds": median(a for a, _, _ in rows),
        "encoder_share": median(c / a for a, _, c in rows),
        "loss_difference": abs(ours[1] - loop[1]),
        "gradient_difference": max(differences),
    }


def head_peak(dense: bool) -> float:
    """Return the peak of bytes that the pair head allocates in forward and backward, its weights' gradients included.

    Args:
        dense: with all outer products at once.
    """
    generator = torch.Generator().manual_seed(0)
    head = new_head(HEAD_WIDTH, HEAD_CLASSES, HEAD_WIDTH, 0)
    num_pairs = HEAD_ENTITIES * (HEAD_ENTITIES - 1)
    left, right = (torch.randn(num_pairs, HEAD_WIDTH, generator=generator, requires_grad=True) for _ in range(2))

    def work() -> None:
        if dense:
            logits = dense_bilinear(left, right, head)
        else:
            from polyloom.methods.docre.method import group_bilinear

            logits = group_bilinear(left, right, head.bilinear.weight, head.block) + head.bilinear.bias
        logits.square().mean().backward()  # type: ignore[no-untyped-call]

    return peak_bytes(work)


def peak_bytes(work: Callable[[], Any]) -> float:
    """Return the largest sum of bytes that torch held at once beyond those before `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results = profiler.profiler.kineto_results if profiler.profiler else None
    events = [] if results is None else results.events()
    moves = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, size in moves:
        held += size
        peak = max(peak, held)
    return float(peak)
