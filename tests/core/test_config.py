import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from polyloom.core.config import Config, dump_config, load_config, make_config
from polyloom.core.errors import UserError


class Example(Config):
    """A verb's options."""

    learning_rate: float = Field(0.1, gt=0, description="Step size.")
    names: tuple[str, ...] = Field((), description="Names.")


def test_command_line_wins_over_yaml_over_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("learning_rate: 0.5\nseed: 3\n")
    config = load_config(Example, file, {"seed": 4})
    assert (config.learning_rate, config.seed, config.names) == (0.5, 4, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", r"a\.yaml: unknown key 'lerning_rate'. Did you mean 'learning_rate'\?"),
        ("learning_rate: -1", r"a\.yaml: learning_rate: Input should be greater than 0 \(got -1\)\."),
        ("learning_rate: [", r"a\.yaml:\d: is not YAML\."),
        ("- 1", r"a\.yaml: holds no mapping"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(Example, file, {})
    assert "\n" not in str(caught.value)


def test_a_wrong_option_is_named_as_the_option():
    with pytest.raises(UserError, match=r"--learning-rate: .*greater than 0 \(got 0\)"):
        make_config(Example, {"learning_rate": 0})


def test_an_empty_file_is_all_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("")
    assert load_config(Example, file, {}) == Example()


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.floats(min_value=1e-9, max_value=1e9), st.lists(TEXT), st.integers(0, 2**63 - 1))
def test_dump_and_load_are_inverse(tmp_path_factory, rate, names, seed):
    config = Example(learning_rate=rate, names=tuple(names), seed=seed)
    file = tmp_path_factory.mktemp("config") / "a.yaml"
    file.write_text(dump_config(config))
    assert load_config(Example, file, {}) == config
