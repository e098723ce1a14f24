"""The tour's options."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from polyloom.core.config import Config


class TourConfig(Config):
    """What the tour takes along, and how long it may be."""

    profile: Literal["quick", "full"] = Field("quick", description="quick: minutes; full: up to 40 minutes.")
    model: str | None = Field(None, description="A Hugging Face model folder or hub id. [default: trained on the spot]")
    text: tuple[Path, ...] = Field((), description="Text files or folders (plain, jsonl, UDHR). [default: the world]")
    encoding: str = Field("utf-8", description="The encoding of the text files.")
    languages: tuple[str, ...] = Field(
        ("en", "de", "es", "fr", "ru", "zh", "ja", "ar", "hi", "sw"), min_length=1, description="The world's languages."
    )
    rooms: tuple[str, ...] = Field((), description="Only these rooms. [default: every room that has a step]")
