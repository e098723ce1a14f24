"""A small JSON file beside a checkpoint: how it was trained, what its exits are worth, and its calibrated pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import read_json, write_json
from polyloom.generation.speculative import Plan

NAME = "polyloom_layerskip.json"


def write_notes(model: Path, **parts: Any) -> None:
    """Add parts to a model's notes: `recipe`, `exits`, `plan`; those of the same name are replaced.

    Args:
        model: the checkpoint's folder.
        parts: what JSON can hold.
    """
    path = model / NAME
    write_json(path, (read_json(path) if path.is_file() else {}) | parts)


def read_plan(model: str, num_layers: int) -> Plan | None:
    """Return the pair that a calibration left beside a model; None where there is none.

    Args:
        model: the folder, or a hub id (which has none).
        num_layers: L.

    Raises:
        UserError: a pair that the model cannot have.
    """
    path = Path(model) / NAME
    if not path.is_file():
        return None
    notes = read_json(path)
    plan = notes.get("plan") if isinstance(notes, dict) else None
    if plan is None:
        return None
    try:
        exit_layer, draft_tokens = int(plan["exit_layer"]), int(plan["draft_tokens"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"holds no plan that can be read ({plan!r}).", where=str(path), hint="Delete it.") from error
    if not 0 <= exit_layer < num_layers or draft_tokens < 0:
        hint = "Calibrate again with --save, or delete the file."
        what = f"names exit {exit_layer} of a model with {num_layers} layers."
        raise UserError(what, where=str(path), hint=hint)
    return Plan(exit_layer if draft_tokens else 0, draft_tokens if exit_layer else 0)
