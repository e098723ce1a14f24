"""A trained matcher's folder: weights as safetensors, shape, classes and vocabulary as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, replace_atomically, sha256_file, write_json
from polyloom.methods.match.models import Matcher, Shape
from polyloom.methods.match.tokens import load_vocabulary
from polyloom.methods.match.training import Trained

FORMAT_VERSION = 1


def save(trained: Trained, folder: Path) -> None:
    """Write a matcher: weights as safetensors, shape and vocabulary as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    with replace_atomically(folder / "matcher.safetensors") as temporary:
        save_file(state, str(temporary))
    write_json(folder / "vocabulary.json", trained.vocabulary.to_json())
    write_json(
        folder / "matcher.json",
        {
            "format": FORMAT_VERSION,
            "shape": trained.model.shape.to_json(),
            "task": trained.task,
            "classes": trained.classes,
            "scale": list(trained.scale),
            "loss": trained.loss,
            "temperature": trained.temperature,
            "threshold": trained.threshold,
        },
    )


def load(folder: Path) -> Trained:
    """Read a matcher back.

    Raises:
        UserError: no matcher there, one of a newer format, or weights that do not fit its shape.
    """
    if not (folder / "matcher.json").is_file():
        hint = "Train one with: polyloom match train --output DIR"
        raise UserError("holds no matcher (matcher.json).", where=str(folder), hint=hint)
    value: dict[str, Any] = read_json(folder / "matcher.json")
    if value.get("format") != FORMAT_VERSION:
        what = f"has format {value.get('format')}; this Polyloom reads {FORMAT_VERSION}."
        raise UserError(what, where=str(folder / "matcher.json"))
    model = Matcher(Shape(**value["shape"]))
    try:
        model.load_state_dict(load_file(str(folder / "matcher.safetensors")))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"its weights do not fit: {reason}", where=str(folder)) from error
    return Trained(
        model.eval(),
        load_vocabulary(read_json(folder / "vocabulary.json")),
        value["task"],
        value["classes"],
        (float(value["scale"][0]), float(value["scale"][1])),
        value["loss"],
        value.get("temperature", 1.0),
        value.get("threshold"),
    )


def fingerprint(folder: Path) -> str:
    """Return what tells one trained matcher from another."""
    return sha256_file(folder / "matcher.safetensors")
