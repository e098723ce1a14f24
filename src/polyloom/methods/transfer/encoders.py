"""The encoder that every arm of a seed starts from: the user's, a small BERT made on the spot, or words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.adapters import Adapters
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.data import Data, read_texts, split_specs
from polyloom.methods.transfer.models import Batch, WordEncoder
from polyloom.methods.transfer.sequences import Pieces, Sequencer, Targets, TokenizerPieces, WordPieces
from polyloom.methods.transfer.training import batch_rows
from polyloom.models.device import choose_device
from polyloom.models.load import load_model, load_tokenizer
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer
from polyloom.training.config import TrainConfig
from polyloom.training.loop import train
from polyloom.training.masked import MaskedModel, mask_tokens, masked_loss

TINY_MODEL = "bert-2x64"
MASK = "<mask>"
PRETRAIN_BATCH = 32
PRETRAIN_RATE = 1e-3


@dataclass
class Start:
    """An encoder before the task, its pieces, and its tokenizer where it has one."""

    encoder: PreTrainedModel | WordEncoder
    pieces: Pieces
    tokenizer: PreTrainedTokenizerBase | None = None
    languages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Weights of the adapters of each language that has text of its own."""


def make_start(config: TransferTrainConfig, data: Data, seed: int, folder: Path, **hooks: Any) -> Start:
    """Make or load the encoder of a seed, and let it read the unlabelled text.

    Args:
        config: which encoder.
        data: training words, dictionaries and texts.
        seed: of fresh weights and of masks.
        folder: for checkpoints of the masked language modelling.
        hooks: `on_step`, `on_log` and `check_stop` of the training loop.

    Raises:
        UserError: the encoder cannot be loaded, or has nothing to read.
    """
    if config.encoder == "words":
        pieces = WordPieces(known_words(data))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "word encoder"))
            return Start(WordEncoder(len(pieces), config.width, config.dropout), pieces)
    if config.encoder == "tiny":
        if not data.texts:
            hint = "Name text with --pretrain, or trees with --trees."
            raise UserError("the tiny encoder has no text to learn from.", where="--encoder", hint=hint)
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(
            (" ".join(words) for words in data.texts), config.vocabulary
        )
        tokenizer.add_special_tokens({"mask_token": MASK})
        model = build_tiny(TINY_MODEL, len(tokenizer), seed)
        reads = config.pretrain_epochs > 0
    else:
        model = load_model(config.encoder, "encoder", trust_remote_code=config.trust_remote_code)
        tokenizer = load_tokenizer(config.encoder, model, trust_remote_code=config.trust_remote_code)
        # A model that has seen its languages reads on only where the user names a text.
        reads = bool(config.pretrain) and config.pretrain_epochs > 0
    start = Start(model, TokenizerPieces(tokenizer, model), tokenizer)
    if reads:
        learn_masked(start, data.texts, config, seed, folder, **hooks)
    start.languages = {
        code: learn_language(start, code, read_texts([str(path) for path in paths]), config, seed, folder)
        for code, paths in split_specs(config.language_texts, "--language-texts").items()
    }
    if config.encoder == "tiny":
        set_dropout(model, config.dropout)
    return start


def set_dropout(model: PreTrainedModel, share: float) -> None:
    """Set the dropout of a BERT's states, in place; its graph takes the same. Attention weights keep theirs.

    The tiny encoder is built without: one pass over unlabelled text needs none, many passes over few labels do.
    """
    config: Any = model.config
    config.hidden_dropout_prob = share
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("attention.self.dropout"):
            module.p = share


def learn_language(
    start: Start,
    code: str,
    texts: Sequence[tuple[str, ...]],
    config: TransferTrainConfig,
    seed: int,
    folder: Path,
) -> Mapping[str, Tensor]:
    """Train the adapters of a language on raw text, behind the frozen encoder.

    Args:
        start: the encoder; unchanged afterwards.
        code: of the language.
        texts: its sentences.
        config: adapters' width and passes.
        seed: of fresh weights and masks.
        folder: for checkpoints.

    Returns:
        The adapters' weights by name.

    Raises:
        UserError: there are no adapters to train, or the encoder is `words`.
    """
    if not config.adapter_width or not isinstance(start.encoder, PreTrainedModel):
        hint = "Give --adapter-width, and an --encoder other than words."
        raise UserError("a language's text needs adapters.", where="--language-texts", hint=hint)
    adapters = Adapters(start.encoder, config.adapter_width, [code], seed)
    adapters.task.requires_grad_(False)
    adapters.languages.requires_grad_(True)
    adapters.use(code)
    learn_masked(start, texts, config, seed, folder / code, adapters=adapters)
    adapters.remove()
    start.encoder.requires_grad_(True)
    return {name: value.detach().cpu() for name, value in adapters.languages[code].state_dict().items()}


def known_words(data: Data) -> Iterable[str]:
    """Return the words of the training data, then their translations by every dictionary."""
    words = dict.fromkeys(word for example in data.train for one in example.sentences for word in one.words)
    for examples in data.translations.values():
        words |= dict.fromkeys(word for example in examples for one in example.sentences for word in one.words)
    found = dict(words)
    for dictionary in data.lexicons.values():
        for word in words:
            found |= dict.fromkeys(one.text for one in dictionary.lookup(word))
    return found


def learn_masked(
    start: Start,
    texts: Sequence[tuple[str, ...]],
    config: TransferTrainConfig,
    seed: int,
    folder: Path,
    adapters: Adapters | None = None,
    on_step: Callable[[int], Any] | None = None,
    on_log: Callable[..., None] | None = None,
    check_stop: Callable[[], None] | None = None,
) -> None:
    """Train the encoder, in place, to fill masked pieces of the texts (BERT's rule: 80 % mask, 10 % random, 10 % same).

    Raises:
        UserError: the tokenizer has no mask token.
    """
    assert start.tokenizer is not None
    assert isinstance(start.encoder, PreTrainedModel)
    mask = start.tokenizer.mask_token_id
    if mask is None:
        raise UserError("the tokenizer has no mask token.", where="--pretrain", hint="Leave --pretrain out.")
    examples = [Example(str(i), (Sentence(words),)) for i, words in enumerate(texts)]
    sequencer = Sequencer(start.pieces, config.max_length, Targets())
    rows_at = batch_rows([len(words) for words in texts], PRETRAIN_BATCH, seed)
    steps = -(-len(texts) // PRETRAIN_BATCH) * config.pretrain_epochs

    def batch_at(step: int) -> Batch:
        batch = sequencer.batch([examples[i] for i in rows_at(step)])
        ids, layout = batch["input_ids"], start.pieces.layout
        free = (ids != layout.pad) & (ids != layout.cls) & (ids != layout.sep)
        hidden, masked = mask_tokens(ids, free, mask, len(start.tokenizer or ()), seed, step)
        return {**batch, "input_ids": hidden, "masked": masked}

    model = MaskedModel(start.encoder, seed, adapters).to(choose_device(config.device))
    is_tiny = config.encoder == "tiny"
    settings = TrainConfig(
        seed=seed,
        steps=steps,
        batch_size=PRETRAIN_BATCH,
        lr=PRETRAIN_RATE if is_tiny else config.learning_rate,
        min_lr_ratio=0.0,
        schedule="linear",
        warmup_steps=steps // 10,
        beta2=0.999,
        weight_decay=0.01,
        precision="float32" if model.bias.device.type == "cpu" else config.precision,
        log_every=max(1, steps // 4),
    )
    train(
        model,
        batch_at,
        settings,
        loss=masked_loss,
        checkpoints=folder / "masked",
        on_step=on_step,
        on_log=on_log,
        check_stop=check_stop,
    )
    start.encoder.to("cpu")  # type: ignore[arg-type]
