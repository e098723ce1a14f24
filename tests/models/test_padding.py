from hypothesis import given
from hypothesis import strategies as st

from polyloom.models.padding import pad_rows

ROWS = st.lists(st.lists(st.integers(0, 2**40), max_size=5), min_size=1, max_size=4)


def test_rows_are_padded_on_either_side_by_hand() -> None:
    tokens, mask = pad_rows([[5, 6], [7]], filler=9)
    assert (tokens.tolist(), mask.tolist()) == ([[5, 6], [7, 9]], [[1, 1], [1, 0]])
    tokens, mask = pad_rows([[5, 6], [7]], left=True)
    assert (tokens.tolist(), mask.tolist()) == ([[5, 6], [0, 7]], [[1, 1], [0, 1]])


@given(rows=ROWS, left=st.booleans())
def test_what_is_masked_in_is_the_rows(rows: list[list[int]], left: bool) -> None:
    tokens, mask = pad_rows(rows, left=left)
    assert tokens.dtype == mask.dtype
    assert tokens.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[kept.bool()].tolist() for row, kept in zip(tokens, mask, strict=True)] == rows
