"""Loading and saving models and tokenizers: Hugging Face folders and hub ids, safetensors only, no remote code."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from polyloom.core.errors import UserError
from polyloom.core.files import read_json
from polyloom.models.device import DeviceName, choose_device

Kind = Literal["causal", "encoder", "seq2seq", "classifier"]
CLASSES = {
    "causal": "AutoModelForCausalLM",
    "encoder": "AutoModel",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "classifier": "AutoModelForSequenceClassification",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; one that is shared (tied) counts once."""

    total: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        """All but the input and output embeddings."""
        return self.total - self.embedding


def load_model(
    source: str | Path,
    kind: Kind = "causal",
    *,
    device: DeviceName = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a model in evaluation mode.

    Args:
        source: a Hugging Face folder, or a hub id. The network is used for a hub id alone.
        kind: `causal` decoder, `encoder` (no head), `seq2seq`, or `classifier` of texts and pairs.
        device: where to, as `choose_device` takes it.
        dtype: the parameters' type.
        trust_remote_code: run Python code that the checkpoint ships; off unless the user's flag turns it on.

    Raises:
        UserError: not a model, only pickled weights, weights that do not fit `kind`, code that is not trusted, or no
            such device.
    """
    chosen = choose_device(device)
    local = _local_folder(source)
    if local:
        _check_folder(local)
    auto = getattr(transformers, CLASSES[kind])
    try:
        # Weights that a checkpoint lacks (an encoder's pooler) are drawn by the library: they too must repeat.
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(0)
            model, info = auto.from_pretrained(
                str(local or source),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=local is not None,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        raise _load_error(source, error, f"is no {kind} model") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise UserError(
            f"its weights lack {missing[0]} ({len(missing)} missing); it is no {kind} model.",
            where=str(source),
            hint="Name a checkpoint that was saved in this form.",
        )
    result: PreTrainedModel = model.eval().to(chosen)
    return result


def model_kind(source: str | Path, *, trust_remote_code: bool = False) -> Literal["causal", "seq2seq"]:
    """Return whether a text model is a decoder or an encoder-decoder; one that cannot be read counts as a decoder."""
    try:
        config = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        # The loader says in one line what is wrong.
        return "causal"
    return "seq2seq" if getattr(config, "is_encoder_decoder", False) else "causal"


def load_tokenizer(
    source: str | Path, model: PreTrainedModel | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and check it against a model where one is given.

    Args:
        source: a Hugging Face folder, or a hub id. The network is used for a hub id alone.
        model: the model that it has to fit.
        trust_remote_code: as in `load_model`.

    Raises:
        UserError: no tokenizer there, or one that does not fit (both sizes are named).
    """
    local = _local_folder(source)
    if local and not any((local / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError("holds no tokenizer (tokenizer.json).", where=str(local), hint="Save one into the folder.")
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            str(local or source), local_files_only=local is not None, trust_remote_code=trust_remote_code
        )
    except LOAD_ERRORS as error:
        raise _load_error(source, error, "holds no tokenizer that can be read") from error
    if model is not None:
        check_fit(tokenizer, model, where=str(source))
    return tokenizer


def check_fit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, where: str = "tokenizer") -> None:
    """Refuse a tokenizer whose ids reach beyond the model's embeddings.

    Raises:
        UserError: with the vocabulary's and the embeddings' sizes.
    """
    num_rows = embedding_rows(model)
    num_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if num_tokens > num_rows:
        raise UserError(
            f"the tokenizer has {num_tokens} tokens, the model embeds {num_rows}.",
            where=where,
            hint="Use the tokenizer that the model was trained with.",
        )


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding."""
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight.shape[0]


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count a model's parameters, and those of its input and output embeddings."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    embedding = {id(p): p.numel() for end in ends if end is not None for p in end.parameters()}
    return ParameterCount(sum(p.numel() for p in model.parameters()), sum(embedding.values()))


def save_model(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Save a model (and its tokenizer) as a Hugging Face folder: whole, or not at all.

    Args:
        model: the model.
        folder: where to; a model that stands there is replaced.
        tokenizer: saved beside it; it has to fit.

    Raises:
        UserError: the tokenizer does not fit, the folder holds something else, or the disk is full.
    """
    if tokenizer is not None:
        check_fit(tokenizer, model)
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise UserError("holds files that are no model.", where=str(folder), hint="Choose an empty folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with _quiet():
                model.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror}).", where=str(folder)) from error


def replace_folder(new: Path, folder: Path) -> None:
    """Put the finished folder `new` in the place of `folder`, its files synced to the disk first."""
    for file in new.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    new.chmod(0o755)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and reports off the terminal: what matters of them is raised."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _local_folder(source: str | Path) -> Path | None:
    """Return the folder that `source` names, or None where it can only be a hub id."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError("is a file, not a model folder.", where=str(source), hint="Name the folder that holds it.")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError("there is no such folder.", where=str(source), hint="Check the path.")
    return None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError("is no model folder (no config.json).", where=str(folder), hint="Name a Hugging Face folder.")
    config: Any = read_json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError("names no model_type.", where=str(folder / "config.json"), hint="Name a Hugging Face folder.")
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            "holds pickled weights (pytorch_model.bin) alone, which can run code when opened.",
            where=str(folder),
            hint="Convert it once, where you trust it, with transformers: from_pretrained(...), save_pretrained(...).",
        )
    raise UserError("holds no weights (*.safetensors).", where=str(folder), hint="Copy the weights into the folder.")


def _load_error(source: str | Path, error: Exception, what: str) -> UserError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "trust_remote_code" in str(error):
        reason, hint = "it needs Python code that it ships", "Add --trust-remote-code if you trust its author."
    elif isinstance(source, str) and not Path(source).is_dir():
        hint = "It is neither a folder here nor a readable model on the hub; check the name."
    else:
        hint = "Check that the folder is complete."
    return UserError(f"{what}: {reason.rstrip('.')}.", where=str(source), hint=hint)
