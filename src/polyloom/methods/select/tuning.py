"""Instruction tuning at an equal budget: every arm sees the same number of examples, and is judged on the same test."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed, python_random
from polyloom.data.duplicates import U64, band_hashes, jaccard, minhash, permutations, shingles
from polyloom.generation.decode import Decoding, decode, max_positions
from polyloom.generation.scoring import score_continuations
from polyloom.methods.select.data import Pair, Pool, PoolTask
from polyloom.metrics.rouge import rouge_l, word_tokens
from polyloom.models.padding import pad_rows
from polyloom.models.tiny import BOS_ID, EOS_ID, PAD_ID
from polyloom.models.tokenizers import encode_all, train_tokenizer
from polyloom.training.config import TrainConfig
from polyloom.training.engine import ParameterGroup
from polyloom.training.loop import TrainState, train
from polyloom.training.packing import Batch, BatchAt

WIDTH, NUM_LAYERS = 96, 2
MUON_LR = 0.05
VOCABULARY = 1000
NUM_OPTIONS = 10
IGNORED = -100
MAX_ANSWER_TOKENS = 64
LEAK_BANDS, LEAK_ROWS, LEAK_CHARACTERS, LEAK_JACCARD = 24, 4, 5, 0.8


@dataclass(frozen=True)
class TestItem:
    """One test example: prompt, right answers, options to choose from (none for free answers), and its bare input."""

    __test__ = False

    prompt: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    given: str = ""


def plain_prompt(instruction: str, given: str) -> str:
    """Return the prompt of models that are trained from scratch."""
    return f"{instruction}\n{given}\n"


def definition_prompt(instruction: str, given: str) -> str:
    """Return the prompt of Natural Instructions without examples; sentences without an end get a full stop.

    Source: spec 2.4.
    """

    def ended(text: str) -> str:
        text = text.strip()
        return text if not text or text[-1] in string.punctuation else text + "."

    return f"Definition: {ended(instruction)}\n\nNow complete the following example -\nInput: {ended(given)}\nOutput: "


Prompt = Callable[[str, str], str]


def small_model(vocab_size: int, seed: int) -> PreTrainedModel:
    """Build the untrained decoder of the embedded experiment: Llama form, 2 layers of width 96, tied embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "select", "weights"))
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=WIDTH // 32,
            intermediate_size=256,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
        )
        return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call, no-any-return]


def pool_tokenizer(tasks: Sequence[PoolTask], vocab_size: int = VOCABULARY) -> PreTrainedTokenizerBase:
    """Train a tokenizer on a pool's instructions and some examples; digits are single tokens."""
    texts = []
    for task in tasks:
        texts.append("\n".join(task.instructions[:4]))
        texts += [f"{given}\n{answer}" for given, answer in task.examples[:20]]
    return train_tokenizer(texts, vocab_size, split_digits=True)


def draw_rows(
    pool: Pool, chosen: Sequence[int], seed: int, arm: str
) -> Callable[[int, int], list[tuple[str, str, str]]]:
    """Return a function from step and batch size to rows (instruction, input, output), tasks in equal shares.

    Raises:
        UserError: no chosen task has examples.
    """
    usable = [pool.tasks[i] for i in chosen if pool.tasks[i].examples]
    if not usable:
        hint = "Give a pool whose tasks have input and output: JSON lines, or Natural Instructions task files."
        raise UserError("the chosen tasks have no examples to train on.", where=pool.where, hint=hint)

    def rows(step: int, batch_size: int) -> list[tuple[str, str, str]]:
        rng = python_random(seed, "rows", arm, step)
        drawn = []
        for _ in range(batch_size):
            task = rng.choice(usable)
            drawn.append((rng.choice(task.instructions), *rng.choice(task.examples)))
        return drawn

    return rows


def batches(
    rows: Callable[[int, int], list[tuple[str, str, str]]],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    batch_size: int,
    max_tokens: int,
    encoder_decoder: bool = False,
) -> BatchAt:
    """Return the function from a step to its batch: `tokens` [B, T] padded behind, `labels` [B, T] of the answers.

    A row that is longer than `max_tokens` loses the beginning of its prompt. For an encoder-decoder model the prompts
    are the `tokens`, with their `mask`, and the answers alone the `labels`.
    """
    begin, end = special_ids(tokenizer)

    def batch_at(step: int) -> Batch:
        tokens, labels = [], []
        drawn = rows(step, batch_size)
        prompts = encode_all(tokenizer, [prompt(instruction, given) for instruction, given, _ in drawn])
        answers = encode_all(tokenizer, [answer for _, _, answer in drawn])
        for asked, answer in zip(prompts, answers, strict=True):
            target = [*answer, *end][: max_tokens // 2]
            if encoder_decoder:
                tokens.append([*begin, *asked][-(max_tokens - 1) :] + end)
                labels.append(target)
                continue
            before = [*begin, *asked][-(max_tokens - len(target)) :]
            tokens.append([*before, *target])
            labels.append([IGNORED] * len(before) + target)
        padded, mask = pad_rows(tokens, filler=PAD_ID)
        batch = {"tokens": padded, "labels": pad_rows(labels, filler=IGNORED)[0]}
        return batch | ({"mask": mask} if encoder_decoder else {})

    return batch_at


def shortest_first(batch: Batch) -> Batch:
    """Return the batch with its rows ordered by their length, so that micro-batches hold little padding."""
    order = (batch["tokens"] != PAD_ID).sum(1).argsort(stable=True)
    return {name: tensor[order] for name, tensor in batch.items()}


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that begin and end a text, none where the tokenizer has none."""
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    begin, end = ([one] if isinstance(one, int) else [] for one in ends)
    return begin, end


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits [n, V] at the answers' tokens of a batch as `batches` makes them, and those tokens [n].

    Args:
        model: a causal language model, or an encoder-decoder model.
        batch: `tokens` and `labels` [B, T]; padding stands behind, where a causal model cannot see it. With a `mask`
            the tokens are an encoder's.
    """
    if "mask" in batch:
        # The library shifts the labels behind the decoder's start token.
        found = model(input_ids=batch["tokens"], attention_mask=batch["mask"], labels=batch["labels"], use_cache=False)
        kept = batch["labels"] != IGNORED
        return found.logits[kept], batch["labels"][kept]
    # A micro-batch of short rows ends with its longest one's answer.
    answered = (batch["labels"] != IGNORED).any(0).nonzero()
    width = int(answered.max()) + 1 if len(answered) else batch["labels"].shape[1]
    tokens, labels = batch["tokens"][:, : width - 1], batch["labels"][:, 1:width]
    kept = labels != IGNORED
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type != "llama":
        return model(input_ids=tokens, use_cache=False).logits[kept], labels[kept]
    # The output matrix and the last layer's feed-forward block are applied to the answers alone, which nothing else
    # reads: half of a tiny model's work is saved.
    with _last_block_on(model, kept):
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state  # type: ignore[operator]
    return model.lm_head(hidden[kept]), labels[kept]  # type: ignore[operator]


def answer_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the summed cross entropy of the answers' tokens in nats, and their number. Arguments: `answer_logits`."""
    logits, targets = answer_logits(model, batch)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)


@contextmanager
def _last_block_on(model: nn.Module, kept: Tensor) -> Iterator[None]:
    """Let the last layer's feed-forward block see the kept positions [B, T] alone; at the others it adds nothing."""
    block: nn.Module = model.model.layers[-1].mlp  # type: ignore[union-attr, index]

    def scattered(module: nn.Module, given: Any, found: Tensor) -> Tensor:
        return found.new_zeros(*kept.shape, found.shape[-1]).index_put((kept,), found)

    before = block.register_forward_pre_hook(lambda module, given: (given[0][kept],))
    after = block.register_forward_hook(scattered)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def tune_arm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    chosen: Sequence[int],
    config: TrainConfig,
    arm: str,
    *,
    prompt: Prompt = plain_prompt,
    checkpoints: Path | None = None,
    check_stop: Callable[[], None] | None = None,
) -> TrainState:
    """Tune a model in place on the chosen tasks.

    Args:
        model: a causal or encoder-decoder language model.
        tokenizer: of it.
        pool: tasks with examples.
        chosen: numbers of the tasks.
        config: steps, batch size and rates: the budget.
        arm: name of the random stream that draws the rows.
        prompt: how instruction and input are laid out.
        checkpoints: folder to resume from.
        check_stop: as in `train`.
    """
    longest = min(max_positions(model) or 1024, 1024)
    rows = draw_rows(pool, chosen, config.seed, arm)
    batch_at = batches(rows, tokenizer, prompt, config.batch_size, longest, bool(model.config.is_encoder_decoder))
    groups = muon_groups(model, config) if config.optimizer == "muon" else None
    return train(
        model,
        lambda step: shortest_first(batch_at(step)),
        config,
        loss=answer_loss,
        groups=groups,
        checkpoints=checkpoints,
        check_stop=check_stop,
    )


def muon_groups(model: PreTrainedModel, config: TrainConfig) -> list[ParameterGroup]:
    """Return the groups of the small model: Muon steps the layers' matrices, AdamW embeddings and gains.

    A step of Muon costs a sixth more than AdamW's and teaches several times as much of an instruction.
    """
    named = list(model.named_parameters())
    matrices = [one for name, one in named if one.dim() > 1 and "embed" not in name]
    others = [one for name, one in named if one.dim() <= 1 or "embed" in name]
    return [
        {"params": matrices, "lr": MUON_LR, "weight_decay": config.weight_decay, "muon": True},
        {"params": others, "lr": config.lr, "weight_decay": 0.0},
    ]


def make_test(
    pairs: Sequence[Pair], others: Sequence[str], instructions: Sequence[str], prompt: Prompt, seed: int = 0
) -> list[TestItem]:
    """Make test items that a model answers by choosing among options.

    Args:
        pairs: input and answer.
        others: answers to other inputs of the task: where they are at most 10 different ones these are the options of
            every item; else each item gets its own answer and 9 of them.
        instructions: wordings, taken in turn.
        prompt: layout.
        seed: of the options.
    """
    labels = [name for name, _ in Counter([*others, *(answer for _, answer in pairs)]).most_common()]
    items = []
    for number, (given, answer) in enumerate(pairs):
        rng = python_random(seed, "options", number)
        wrong = sorted(set(labels) - {answer})
        options = [answer, *(wrong if len(labels) <= NUM_OPTIONS else rng.sample(wrong, NUM_OPTIONS - 1))]
        rng.shuffle(options)
        text = prompt(instructions[number % len(instructions)], given)
        items.append(TestItem(text, (answer,), tuple(options), given))
    return items


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[TestItem], *, generate: bool = True
) -> dict[str, list[float]]:
    """Judge a model on test items.

    Rank accuracy: the option with the largest sum of log-probabilities, its end token included, without length
    normalisation, is right. Exact match: of the greedy answer, lower-cased, without punctuation, blanks squeezed.
    ROUGE-L: of the same answer over words of any script.

    Args:
        model: a causal or encoder-decoder language model.
        tokenizer: of it.
        items: the test.
        generate: also decode answers; without, only rank accuracy is returned.

    Returns:
        Per-item values by measure.

    Source: spec 2.5.
    """
    begin, end = special_ids(tokenizer)
    # An encoder is given its texts with their end, a decoder goes on from there.
    behind = end if model.config.is_encoder_decoder else []
    prompts = [[*begin, *ids, *behind] for ids in encode_all(tokenizer, [item.prompt for item in items])]
    found: dict[str, list[float]] = {}
    if all(item.options for item in items):
        spans: list[int] = []
        contexts: list[list[int]] = []
        continuations: list[list[int]] = []
        for item, prompt in zip(items, prompts, strict=True):
            spans.append(len(contexts))
            contexts += [prompt] * len(item.options)
            continuations += [[*ids, *end] for ids in encode_all(tokenizer, item.options)]
        totals = [sum(values) for values in score_continuations(model, contexts, continuations)]
        found["rank_accuracy"] = []
        for item, start in zip(items, spans, strict=True):
            scores = totals[start : start + len(item.options)]
            found["rank_accuracy"].append(float(item.options[scores.index(max(scores))] in item.answers))
    if generate:
        answers = [answer for item in items for answer in item.answers]
        longest = max(map(len, encode_all(tokenizer, answers)))
        budget = Decoding(max_new_tokens=min(MAX_ANSWER_TOKENS, longest + 2))
        texts = [one.text for one in decode(model, prompts, budget, tokenizer=tokenizer, eos_tokens=end)]
        found["exact_match"] = [
            float(any(normal(text) == normal(answer) for answer in item.answers))
            for text, item in zip(texts, items, strict=True)
        ]
        found["rouge_l"] = [rouge_l(text, item.answers, word_tokens) for text, item in zip(texts, items, strict=True)]
    return found


def normal(text: str) -> str:
    """Lower-case, drop ASCII punctuation and squeeze blanks."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of every measure."""
    return {name: sum(each) / len(each) for name, each in values.items()}


def read_test(rows: Sequence[Mapping[str, Any]], instructions: Sequence[str], prompt: Prompt) -> list[TestItem]:
    """Make test items of a user's rows: `input`, `output` (a text or several) and, where wanted, `options`."""
    items = []
    for number, row in enumerate(rows):
        if "input" not in row or "output" not in row:
            raise UserError("has no input or no output.", where=f"--test-file: row {number + 1}")
        answers = [row["output"]] if isinstance(row["output"], str) else list(row["output"])
        given = str(row["input"])
        text = prompt(instructions[number % len(instructions)], given)
        items.append(TestItem(text, tuple(map(str, answers)), tuple(map(str, row.get("options") or ())), given))
    if not items:
        raise UserError("holds no test example.", where="--test-file")
    return items


def leaked_items(items: Sequence[TestItem], pool: Pool, chosen: Sequence[int]) -> dict[int, str]:
    """Return the test items whose input an example of a chosen task repeats or nearly repeats, each with that task.

    Inputs are near where the Jaccard index of their pieces of 5 characters, case and spacing aside, is 0.8 or more;
    MinHash bands find the candidates (missed with probability 3e-6 at 0.8).

    Args:
        items: the test.
        pool: tasks with examples.
        chosen: numbers of the tasks that are trained on.

    Source: Broder (1997); spec 7.
    """
    factors = permutations(LEAK_BANDS * LEAK_ROWS)

    def look(text: str) -> tuple[U64, U64]:
        pieces = shingles(text, LEAK_CHARACTERS, space_free=True)
        empty = not len(pieces)
        return pieces, pieces if empty else band_hashes(minhash(pieces, *factors), LEAK_BANDS)

    known: list[U64] = []
    places: dict[tuple[int, int], list[int]] = {}
    for number, item in enumerate(items):
        pieces, bands = look(item.given)
        known.append(pieces)
        for band in enumerate(bands.tolist()):
            places.setdefault(band, []).append(number)
    found: dict[int, str] = {}
    for task in (pool.tasks[i] for i in chosen):
        for given, _ in task.examples:
            pieces, bands = look(given)
            near = {number for band in enumerate(bands.tolist()) for number in places.get(band, ())}
            found |= {i: task.id for i in near - found.keys() if jaccard(pieces, known[i]) >= LEAK_JACCARD}
    return found
