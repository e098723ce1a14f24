import inspect

import pytest

from polyloom.core.config import Config
from polyloom.core.errors import UserError
from polyloom.core.registry import card, load, rooms
from polyloom.core.result import Result

COMMON = {"config", "runs", "run", "as_json", "json", "debug"}


@pytest.mark.parametrize("name", [*rooms(), "tour"])
def test_every_lazy_name_of_a_card_exists_and_fits(name):
    room = card(name)
    assert room.question.endswith("?") or name == "tour"
    assert len({verb.name for verb in room.verbs}) == len(room.verbs)
    for verb in room.verbs:
        model = verb.load_config()
        assert issubclass(model, Config)
        assert not COMMON & set(model.model_fields), "an option every verb has"
        assert all(field.description for field in model.model_fields.values()), f"{model}: a field without help"
        signature = inspect.signature(load(verb.run))
        assert list(signature.parameters) == ["config", "run"]
        assert load(verb.run).__annotations__["return"] in ("Result", Result)
    for equation in room.equations:
        assert callable(load(equation.function))


@pytest.mark.parametrize("name", rooms())
def test_every_room_has_a_study_that_the_tour_can_take(name):
    room = card(name)
    assert "profile" in room.verb("study").load_config().model_fields
    if room.tour:
        fields = room.verb(room.tour.verb).load_config().model_fields
        assert set(room.tour.inputs) <= set(fields)


def test_unknown_names_are_refused_with_the_near_one():
    with pytest.raises(UserError, match="Did you mean 'silu'"):
        card("silo")
    with pytest.raises(UserError, match="Did you mean 'facts'"):
        card("silu").verb("fact")
