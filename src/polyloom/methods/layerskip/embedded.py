"""What a verb works on: the user's model and prompts, or a small model trained on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.generation.decode import max_positions, model_eos_tokens
from polyloom.generation.layer_range import LayerRange, open_range
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import check_request
from polyloom.methods.layerskip.config import DataConfig
from polyloom.methods.layerskip.data import (
    Example,
    Tokens,
    by_group,
    example_batches,
    read_examples,
    split_examples,
    tokenize,
    without_leaks,
    world_examples,
)
from polyloom.methods.layerskip.training import PRESETS, LayerSkipLoss, Skip, build_llama
from polyloom.models.device import choose_device, pin_threads, torch_generator
from polyloom.models.exits import exit_parts
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.models.tokenizers import train_tokenizer
from polyloom.runs.folder import Run
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train

NUM_LAYERS, WIDTH, FEED_FORWARD, VOCABULARY = 12, 64, 128, 1024
# The paper's weights grow with the square of depth: in so few steps a deep model's first exits would hardly be trained.
TINY_SKIP = replace(PRESETS["embedded"], loss_scale="uniform", floor=True)
NUM_TRAIN, NUM_TEST = 6000, 300
TOKENIZER_TEXTS = 1500
MAX_TOKENS = 192
SHRUNK_LAYERS, SHRUNK_EXIT = 12, 3


@dataclass(frozen=True)
class Prepared:
    """A model with its tokenizer, examples to train on and held-out ones, and what the report has to say of them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: list[Tokens]
    test: list[Tokens]
    limitations: list[str]

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        return frozenset(model_eos_tokens(self.model))


def load_examples(config: DataConfig) -> tuple[list[Example], list[Example], list[str]]:
    """Return training examples, test examples that repeat none of them, and remarks."""
    if config.data is None:
        from polyloom.data import world

        train_set = world_examples(config.languages, NUM_TRAIN, config.seed, "train")
        test = world_examples(config.languages, NUM_TEST, config.seed, "test")
        notice = f"{world.NOTICE}: figures show mechanisms, not quality on real text."
        return train_set, without_leaks(test, train_set), [notice]
    if not config.data.is_file():
        raise UserError("there is no such file.", where=f"--data {config.data}", hint="Check the path.")
    examples = read_examples(config.data)
    if config.train_data is not None:
        seen = read_examples(config.train_data)
        kept = without_leaks(examples, seen)
        if not kept:
            raise UserError("every prompt is in the training data.", where=f"--data {config.data}")
        return seen, kept, [f"{len(examples) - len(kept)} test prompts were dropped: repeated, or in --train-data."]
    if len(examples) == 1:
        return examples, examples, []
    train_set, test = split_examples(examples, config.seed)
    return train_set, test, []


def prepare(config: DataConfig, run: Run, *, loaded: bool = True) -> Prepared:
    """Load the user's model, or train the tiny one, and read the prompts.

    Args:
        config: model, data and training budget.
        run: keeps the tiny model and its checkpoints.
        loaded: train the tiny model first; otherwise it is returned untrained.

    Raises:
        UserError: no such model, a tokenizer that does not fit, or unreadable prompts.
    """
    pin_threads()
    train_examples, test_examples, limitations = load_examples(config)
    if config.model != "tiny":
        model = load_model(config.model, device=config.device, dtype=getattr(torch, config.dtype))
        tokenizer = load_tokenizer(config.model, model)
    else:
        model, tokenizer = tiny_model(config, run, train_examples, loaded)
    limit = max_positions(model)
    longest = None if limit is None else limit - (0 if loaded else 1)
    train_set = tokenize(tokenizer, train_examples, min(longest or MAX_TOKENS, MAX_TOKENS))
    test = tokenize(tokenizer, test_examples)
    return Prepared(model, tokenizer, train_set, test, limitations)


def placed(model: PreTrainedModel, config: DataConfig) -> PreTrainedModel:
    """Move a model to the device that was asked for."""
    model.to(choose_device(config.device))  # type: ignore[arg-type]
    return model


def tiny_model(
    config: DataConfig, run: Run, examples: Sequence[Example], trained: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the tiny model and its tokenizer, trained with LayerSkip in this run."""
    folder = run.artifact("tiny-model")
    if trained and folder.exists():
        model = load_model(folder, device=config.device)
        return model, load_tokenizer(folder, model)
    tokenizer = train_tokenizer([one.prompt + one.response for one in examples[:TOKENIZER_TEXTS]], VOCABULARY)
    model = placed(build_llama(NUM_LAYERS, WIDTH, FEED_FORWARD, len(tokenizer), config.seed), config)
    if trained:
        tokens = tokenize(tokenizer, examples, MAX_TOKENS)
        settings = TrainConfig(
            seed=config.seed, steps=config.steps, batch_size=config.batch_size, checkpoint_every=100, keep_checkpoints=1
        )
        fit(run, model, tokens, TINY_SKIP, settings, "tiny-model")
        save_model(model, folder, tokenizer)
    return model, tokenizer


def fit(
    run: Run, model: PreTrainedModel, examples: Sequence[Tokens], skip: Skip, settings: TrainConfig, name: str
) -> LayerSkipLoss:
    """Train a model in place with the room's loss; a stopped run goes on from its checkpoint.

    Args:
        run: keeps checkpoints and log.
        model: the model.
        examples: with answers.
        skip: LayerSkip's settings.
        settings: the loop's.
        name: of the checkpoints' folder.

    Returns:
        The loss, with the exits' last values.
    """
    loss = LayerSkipLoss(exit_parts(model), skip, settings.steps, settings.seed)
    with loss.installed(), run.progress(f"train {name}", settings.steps) as advance:
        train(
            model,
            example_batches(examples, settings.batch_size, settings.seed),
            settings,
            loss=loss,
            checkpoints=run.checkpoints / name,
            on_log=run.log,
            on_step=advance,
            check_stop=run.check_stop,
        )
    return loss


def choose_prompts(config: DataConfig, prepared: Prepared, num: int | None = None) -> list[Tokens]:
    """Return held-out prompts, groups in turn, checked against the model's positions.

    Raises:
        UserError: a prompt that the model cannot continue.
    """
    groups = list(by_group(prepared.test).values())
    turns = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]
    chosen = turns[: num or config.num_prompts]
    limit = max_positions(prepared.model)
    fitting = [one for one in chosen if limit is None or len(one.prompt) + config.max_new_tokens - 1 <= limit]
    vocabulary = int(prepared.model.config.get_text_config(decoder=True).vocab_size)
    for one in fitting or chosen[:1]:
        check_request(one.prompt, Decoding(config.max_new_tokens), vocabulary, limit or 10**9)
    return fitting


def open_runner(config: DataConfig, prepared: Prepared, prompts: Sequence[Sequence[int]]) -> LayerRange:
    """Return a checked runner with room for the longest of the prompts and its continuation."""
    return open_range(prepared.model, max(map(len, prompts)) + config.max_new_tokens + 16)


def shrunk_model(seed: int, width: int = 384, feed_forward: int = 1024, vocab_size: int = 4096) -> PreTrainedModel:
    """Return random weights whose layers from E = L/4 on add little: the exit mostly agrees with the whole.

    Args:
        seed: of the weights.
        width: with the two sizes behind it 24M parameters.
        feed_forward: inner width.
        vocab_size: tokens.
    """
    model: Any = build_llama(SHRUNK_LAYERS, width, feed_forward, vocab_size, seed)
    with torch.no_grad():
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.normal_(std=0.08, generator=torch_generator(seed, "shrunk", len(matrix)))
        for layer in model.model.layers[SHRUNK_EXIT:]:
            layer.self_attn.o_proj.weight.mul_(0.02)
            layer.mlp.down_proj.weight.mul_(0.02)
    result: PreTrainedModel = model
    return result


def useless_model(seed: int) -> PreTrainedModel:
    """Return small random weights whose last layer says something else than all before it: no exit is of use."""
    model: Any = build_llama(NUM_LAYERS, WIDTH, FEED_FORWARD, VOCABULARY, seed)
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.mul_(20.0)
    result: PreTrainedModel = model
    return result


def random_prompts(vocab_size: int, num: int, length: int, seed: int) -> list[list[int]]:
    """Return prompts of random tokens."""
    generator = torch_generator(seed, "prompts")
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for _ in range(num)]


@contextmanager
def quiet_generate():  # type: ignore[no-untyped-def]
    """Keep transformers' remarks about generation settings off standard error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def model_folder(run: Run, out: Path | None) -> Path:
    """Return where a trained model is saved."""
    return out if out is not None else run.artifact("model")
