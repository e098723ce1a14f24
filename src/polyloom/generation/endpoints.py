"""A chat model from one string, local or behind a server."""

from __future__ import annotations

from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.generation.chat import ChatModel
from polyloom.generation.server import API_KEY_VARIABLE, Prefill, ServerChat


def connect(
    spec: str,
    *,
    cache: Path | None = None,
    seed: int = 0,
    max_in_flight: int = 8,
    api_key_variable: str = API_KEY_VARIABLE,
    prefill: Prefill = "refused",
) -> ChatModel:
    """Make the chat model that a string names.

    Args:
        spec: a Hugging Face folder or hub id (`DIR`, `owner/name`), or a server's address with the model's name behind
            a `#` (`http://127.0.0.1:8000/v1#qwen`).
        cache: file of a server's replies.
        seed: of a local model's sampling where a request brings none.
        max_in_flight: requests sent to a server, or decoded by a local model, at the same time.
        api_key_variable: environment variable with the server's key.
        prefill: how the server takes a prefilled turn, see `ServerChat`.

    Returns:
        A `ServerChat` or a `LocalChat`, not entered.

    Raises:
        UserError: an address without a model's name, or a folder that is no model.
        MissingExtra: a server is named and the `api` extra is not installed (when it is entered).
    """
    if spec.startswith(("http://", "https://")):
        base_url, _, model = spec.partition("#")
        return ServerChat(
            base_url,
            model,
            cache=cache,
            api_key_variable=api_key_variable,
            prefill=prefill,
            max_in_flight=max_in_flight,
        )
    if "://" in spec or not spec:
        raise UserError(
            "names no model.", where=spec or "model", hint="Give a folder, a hub id or http://host/v1#name."
        )
    from polyloom.generation.local import LocalChat
    from polyloom.models.load import load_model, load_tokenizer

    local = load_model(spec, kind="causal", device="auto")
    tokenizer = load_tokenizer(spec, local)
    return LocalChat(local, tokenizer, name=spec, batch_size=max_in_flight, seed=seed)
