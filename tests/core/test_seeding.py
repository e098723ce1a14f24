import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.seeding import derive_seed, numpy_generator, python_random

NAMES = st.lists(st.one_of(st.text(max_size=8), st.integers()), max_size=3)


@given(st.integers(min_value=0), NAMES)
def test_seed_fits_a_signed_64_bit_integer_and_repeats(seed, names):
    value = derive_seed(seed, *names)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, *names)


def test_streams_with_other_names_differ():
    streams = {derive_seed(0), derive_seed(0, "a"), derive_seed(0, "b"), derive_seed(1, "a"), derive_seed(0, "a", 1)}
    assert len(streams) == 5
    # The parts of a name are kept apart.
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")


def test_generators_repeat():
    assert python_random(3, "x").random() == python_random(3, "x").random()
    assert numpy_generator(3, "x").random() == numpy_generator(3, "x").random()


def test_seed_does_not_depend_on_the_hash_seed():
    code = "from polyloom.core.seeding import derive_seed; print(derive_seed(7, 'x', 2))"
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": h}).stdout
        for h in ("0", "1")
    }
    assert outputs == {f"{derive_seed(7, 'x', 2)}\n"}
