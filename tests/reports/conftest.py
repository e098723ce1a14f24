"""A result that has some of everything."""

from __future__ import annotations

import pytest

from polyloom.core.result import Artifact, Provenance, Result, Scalar, Series, Table

NAMES = ["English", "中文（简体）", "العربية", "हिन्दी"]


def provenance(**config: object) -> Provenance:
    return Provenance(
        config={"seed": 7, "profile": "quick", **config},
        seed=7,
        versions={"python": "3.11.9", "polyloom": "0.1.0"},
        git_revision="0123abc+",
        machine={"system": "Linux", "cores": "2"},
        started="2026-01-02T03:04:05+00:00",
        elapsed_seconds=231.4,
        cpu_seconds=402.8,
    )


def bars(heights: list[float], spread: float | None = None) -> Series:
    return Series(
        x=[float(i) for i in range(len(heights))],
        y=heights,
        low=[y - spread for y in heights] if spread else None,
        high=[y + spread for y in heights] if spread else None,
        x_names=NAMES[: len(heights)],
        x_label="language",
        y_label="bits per byte",
        group="Bits per byte",
        kind="bar",
    )


@pytest.fixture
def result() -> Result:
    return Result(
        room="unregistered",
        verb="study",
        run="unregistered-study-1",
        scalars={
            "bits_per_byte": Scalar(value=1.4732, low=1.4411, high=1.5093, unit="bits/byte"),
            "num_parameters": Scalar(value=1312384),
            "share": Scalar(value=12.5, unit="%"),
            "p_value": Scalar(value=3.2e-7),
            "significant": Scalar(value=False),
            "best": Scalar(value="silu"),
            "nothing": Scalar(value=None),
            "eighth": Scalar(value=0.125),
        },
        tables={
            "by_language": Table(
                columns=["language", "bits per byte", "low", "high", "bytes"],
                rows=[
                    ["English", 1.2, 1.15, 1.26, 6012],
                    ["中文", 1.43, None, None, 45678],
                    ["none", None, None, None, 0],
                ],
                title="Bits per byte on held-out text",
            ),
            "empty": Table(columns=["a", "b"], rows=[]),
        },
        series={
            "model": bars([1.2, 1.43, 1.5, 1.7], 0.05),
            "gzip": bars([2.1, 2.2, 2.3, 2.4]),
            "loss": Series(x=[0.0, 10.0, 20.0], y=[9.0, 4.5, None], x_label="step", y_label="loss", group="Training"),
            "points": Series(x=[0.1, 0.2], y=[0.3, 0.4], low=[0.2, 0.3], high=[0.5, 0.6], kind="scatter"),
        },
        artifacts={"weights": Artifact(path="artifacts/best model.bin", media_type="a/b", description="The weights.")},
        verdicts=["The model spends 1.47 bits per byte.", "The rest is undecided."],
        limitations=["The text is made from templates."],
        provenance=provenance(),
    )
