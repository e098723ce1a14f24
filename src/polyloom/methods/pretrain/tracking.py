"""Is a run on the track that was predicted for it? Judged at each logged step, live."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.files import read_json

NUM_LOSSES = 8
LEAST_LOSSES = 3
SIZE_TOLERANCE = 0.01
FILE = "prediction.json"
log = logging.getLogger(__name__)


class Track:
    """The losses that were predicted, and the last ones that were logged.

    The mean distance of the last 8 logged losses from the curve, widened by two standard errors, is held against the
    band at their steps: above it the run is off track, below it ahead (which counts as on track).
    """

    def __init__(self, path: Path, num_parameters: int, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        """Read a prediction.

        Args:
            path: `prediction.json` of `pretrain predict --target-steps`, or the run's folder.
            num_parameters: of the model that is trained.
            lines: logged before, of a run that is resumed.

        Raises:
            UserError: no such prediction, one of another size, or one that is not resolved.
        """
        path = path / "artifacts" / FILE if path.is_dir() else path
        values = read_json(path)
        keys = ("parameters", "steps", "loss", "low", "high", "resolved")
        if not isinstance(values, dict) or any(key not in values for key in keys):
            hint = "Write one with: polyloom pretrain predict --target-steps N."
            raise UserError("is no prediction over steps.", where=str(path), hint=hint)
        if abs(values["parameters"] / num_parameters - 1) > SIZE_TOLERANCE:
            what = f"predicts {values['parameters']:.4g} parameters, the model has {num_parameters:.4g}."
            raise UserError(what, where=str(path), hint=f"Predict with --target {num_parameters}.")
        if not values["resolved"]:
            raise UserError("says itself that it is not resolved.", where=str(path), hint="Train more sizes first.")
        self.steps, self.loss, self.low, self.high = (np.array(values[key], dtype=float) for key in keys[1:5])
        self.points: list[tuple[int, float]] = []
        self.on_track: bool | None = None
        for line in lines:
            if line.get("loss") is not None and "step" in line:
                self._take(line["step"], line["loss"])

    def _take(self, step: int, loss: float) -> None:
        if self.steps[0] <= step <= self.steps[-1] and math.isfinite(loss):
            earlier = [point for point in self.points if point[0] < step]
            self.points = [*earlier[1 - NUM_LOSSES :], (step, loss)]

    def judge(self, step: int, loss: float) -> dict[str, float | bool]:
        """Take a logged loss; return `expected_loss`, and `on_track` once there are enough of them.

        Args:
            step: optimiser steps.
            loss: of the step, in nats a token.
        """
        if not self.steps[0] <= step <= self.steps[-1]:
            return {}
        self._take(step, loss)
        expected, low, high = (self._at(values) for values in (self.loss, self.low, self.high))
        found: dict[str, float | bool] = {"expected_loss": expected[-1]}
        if len(self.points) < LEAST_LOSSES:
            return found
        distances = [value - at for (_, value), at in zip(self.points, expected, strict=True)]
        error = 2 * stdev(distances) / math.sqrt(len(distances))
        room = fmean(above - at for above, at in zip(high, expected, strict=True))
        on_track = fmean(distances) <= room + error
        if on_track != self.on_track and (self.on_track is not None or not on_track):
            word = "on track again" if on_track else "off track"
            log.warning(
                "step %d: %s: the loss is %.3f over what was predicted (%.3f, band %.3f to %.3f).",
                *(step, word, fmean(distances), expected[-1], low[-1], high[-1]),
            )
        self.on_track = on_track
        return found | {"on_track": on_track}

    def _at(self, values: np.ndarray[Any, Any]) -> list[float]:
        """Return a curve at the steps of the last losses, straight between its points in log steps."""
        steps = np.log([step for step, _ in self.points])
        return [float(value) for value in np.interp(steps, np.log(self.steps), values)]
