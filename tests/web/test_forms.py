"""Forms: every verb's defaults come back from its form, and what does not fit is said at its field."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from polyloom.core.config import StudyConfig
from polyloom.core.registry import card, rooms
from polyloom.web.forms import Form, make_form, read_form

VERBS = [(room, verb) for room in (card("tour"), *rooms().values()) for verb in room.verbs]


class Everything(StudyConfig):
    """A field of every kind."""

    text: str = Field("plain", description="Words.")
    prose: str = Field("two\nlines", description="Words on lines.")
    maybe: str | None = None
    path: Path | None = None
    count: int = Field(3, ge=1, le=9)
    share: float = Field(0.5, gt=0, lt=1)
    maybe_count: int | None = None
    switch: bool = False
    maybe_switch: bool | None = None
    choice: Literal["a", "b"] = "a"
    choices: list[Literal["x", "y"]] = Field(["x"], min_length=1)
    words: list[str] = Field(default_factory=list)
    numbers: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _whole(self) -> Everything:
        if self.count == 7 and self.switch:
            raise ValueError("seven is never switched")
        return self


def entries(form: Form) -> dict[str, list[str]]:
    """Return what a browser sends of a form as it is shown: line breaks as CR LF, switches only when on."""
    sent = {}
    for control in form.controls:
        texts = [control.value] if isinstance(control.value, str) else list(control.value)
        if control.kind == "switch":
            texts = [text for text in texts if text == "true"]
        sent[control.name] = [text.replace("\n", "\r\n") for text in texts]
    return sent


@pytest.mark.parametrize(("room", "verb"), VERBS, ids=lambda part: part.name)
def test_the_form_of_every_verb_gives_its_defaults_back(room, verb):
    model = verb.load_config()
    form = make_form(model)
    assert all(control.label and control.help for control in form.controls)
    assert sum(control.first for control in form.controls) >= min(6, len(form.controls))
    config, again = read_form(model, entries(form))
    required = {control.name for control in form.controls if control.required}
    if config is not None:
        assert config == model()
    else:
        assert required or again.error
        assert {control.name for control in again.controls if control.error} <= required


@given(
    text=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r"), max_size=30),
    words=st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\r"), min_size=1)),
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    count=st.integers(1, 9),
    share=st.floats(0.01, 0.99),
    maybe=st.none() | st.integers(),
    switch=st.booleans(),
    maybe_switch=st.none() | st.booleans(),
    choices=st.lists(st.sampled_from(["x", "y"]), min_size=1, unique=True).map(sorted),
)
def test_every_configuration_comes_back_from_its_form(
    text, words, numbers, count, share, maybe, switch, maybe_switch, choices
):
    stripped = text if "\n" in text else text.strip()
    config = Everything(
        text=stripped,
        words=words,
        numbers=numbers,
        count=count,
        share=share,
        maybe_count=maybe,
        switch=switch and count != 7,
        maybe_switch=maybe_switch,
        choices=choices,
    )
    again, form = read_form(Everything, entries(make_form(Everything, config.model_dump())))
    assert not form.failed
    assert again == config


def test_each_error_stands_at_its_field_and_what_was_entered_stays():
    entered = {
        **entries(make_form(Everything)),
        "count": ["12"],
        "share": ["much"],
        "choice": ["<script>"],
        "seed": ["-1"],
    }
    config, form = read_form(Everything, entered)
    assert config is None
    shown = {control.name: control for control in form.controls}
    assert {name for name, control in shown.items() if control.error} == {"count", "share", "choice", "seed"}
    assert shown["share"].value == "much"
    assert "less than or equal to 9" in shown["count"].error
    assert shown["share"].error == "Input should be a number"
    assert shown["count"].bounds == "≥ 1, ≤ 9"


def test_what_is_wrong_with_the_whole_is_said_above():
    entered = {**entries(make_form(Everything)), "count": ["7"], "switch": ["true"]}
    config, form = read_form(Everything, entered)
    assert config is None
    assert form.error == "Seven is never switched"


def test_unknown_fields_are_ignored_and_absent_ones_keep_their_default():
    config, _ = read_form(Everything, {"no_such": ["1"], "__class__": ["x"], "choices": ["y"]})
    assert config == Everything(choices=["y"])


def test_the_quick_profile_is_asked_first():
    assert make_form(Everything).controls[0].name == "profile"
