from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.models.tokenizers import train_tokenizer
from polyloom.training.stream import BLOCK_SAMPLES, SampleStream, block_order, mixture_units, permuted
from polyloom.training.token_files import read_documents, read_index, read_tokens, write_tokens

TOKENS = {name: np.arange(size, dtype=np.uint16) for name, size in (("a", 4000), ("b", 900), ("c", 333))}
WEIGHTS = {"a": 0.75, "b": 0.2, "c": 0.05}


def stream(**values: object) -> SampleStream:
    return SampleStream(TOKENS, WEIGHTS, **{"window_tokens": 8, "batch_size": 12, "seed": 5, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 100, 65537])
def test_the_feistel_network_is_a_bijection(size: int) -> None:
    places = [permuted(position, size, key=7) for position in range(size)]
    assert sorted(places) == list(range(size))
    if size > 3:
        assert places != [permuted(position, size, key=8) for position in range(size)]


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0.1, 1e3), min_size=1, max_size=8))
def test_units_are_a_block_and_within_one_of_the_share(weights: dict[str, float]) -> None:
    units = mixture_units(weights)
    assert sum(units.values()) == BLOCK_SAMPLES
    total = sum(weights.values())
    assert all(abs(units[name] - weight / total * BLOCK_SAMPLES) < 1 for name, weight in weights.items())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6))
def test_every_prefix_is_within_one_and_a_half_of_its_share(units: list[int]) -> None:
    order = block_order(units)
    shares = np.array(units) / sum(units)
    counts = np.cumsum(order[:, None] == np.arange(len(units)), axis=0)
    assert np.array_equal(counts[-1] * sum(units), np.array(units) * len(order))
    assert np.abs(counts - shares * np.arange(1, len(order) + 1)[:, None]).max() < 1.5


def test_an_epoch_sees_every_window_once() -> None:
    ours = stream()
    seen = [place for place in (ours.place(i) for i in range(4000)) if place[0] == 1]
    n = int(ours.num_windows[1])
    first, second = [w for _, w in seen[:n]], [w for _, w in seen[n : 2 * n]]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second
    assert ours.epochs(4000)["b"] == pytest.approx(len(seen) / n)


def test_a_sample_is_a_window_of_its_source() -> None:
    ours = stream()
    batch = ours(3)
    assert batch["tokens"].shape == (12, 9)
    source, index = ours.place(3 * 12 + 4)
    assert int(batch["source"][4]) == source
    assert batch["tokens"][4].tolist() == list(range(index * 8, index * 8 + 9))


def test_the_stream_is_the_same_for_any_number_of_processes_and_any_interruption() -> None:
    ours, plain = stream(), hashlib.sha256()
    for sample in range(10_008):
        plain.update(ours.window(sample).tobytes())
    for num_processes, stop in ((1, 0), (2, 1), (4, 417), (8, 834)):
        assert stream().digest([range(stop), range(stop, 834)], num_processes) == plain.hexdigest()


def test_an_exhausted_source_is_an_error_at_its_sample() -> None:
    ours = stream(max_epochs={"c": 2.0})
    n = 2 * int(ours.num_windows[2])
    endless = stream()
    first = next(i for i in range(4000) if endless.counts(i + 1)[2] > n)
    ours.place(first - 1)
    with pytest.raises(UserError, match=f"source 'c' is exhausted at sample {first}"):
        ours.place(first)
    assert ours.counts(first)[2] == n


def test_a_renormalised_mixture_goes_on_with_the_others_in_proportion() -> None:
    ours = stream(max_epochs={"c": 1.0}, on_exhausted="renormalise")
    assert len(ours.segments) == 2
    change = ours.segments[1].start
    later = ours.counts(change + BLOCK_SAMPLES) - ours.counts(change)
    assert later[2] == 0
    assert later[0] / later[1] == pytest.approx(0.75 / 0.2, rel=1e-3)
    windows = [ours.place(i) for i in range(change)]
    c = [w for s, w in windows if s == 2]
    assert sorted(c) == list(range(int(ours.num_windows[2])))
    # The others go on where they were: no window of the running epoch comes again.
    a = [w for s, w in (ours.place(i) for i in range(change + 50)) if s == 0][: int(ours.num_windows[0])]
    assert len(set(a)) == len(a)


def test_counts_agree_with_the_places() -> None:
    ours = stream(max_epochs=1.0, on_exhausted="renormalise")
    sources = [ours.place(i)[0] for i in range(int(ours.end))]
    assert ours.counts(int(ours.end)).tolist() == np.bincount(sources, minlength=3).tolist()
    assert all(epochs <= 1.01 for epochs in ours.epochs(int(ours.end)).values())
    with pytest.raises(UserError, match="exhausted"):
        ours.place(int(ours.end))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": 0.0, "c": 1.0}, "the weight of 'b' is not above 0"),
        ({"a": 1.0, "b": 1.0}, "differ in 'c'"),
        ({"a": 1e6, "b": 1.0, "c": 1.0}, "share of 'b' is below 1/65536"),
    ],
)
def test_bad_mixtures_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampleStream(TOKENS, weights, window_tokens=8, batch_size=4)


def test_a_source_without_a_window_is_named() -> None:
    with pytest.raises(UserError, match="source 'c' has 333 tokens, one window needs 401"):
        stream(window_tokens=400)


def test_token_files_go_on_where_they_were_and_a_torn_one_is_found(tmp_path) -> None:
    texts = {"web/en": ["one two three", "four </s> five"] * 40, "web/de": ["eins zwei"] * 30}
    tokenizer = train_tokenizer((t for group in texts.values() for t in group), 280)
    done: list[int] = []
    pairs = [(name, text) for name, group in texts.items() for text in group]
    index = write_tokens(tmp_path, pairs, tokenizer, "f", done.append)
    assert sum(done) == sum(len(text) for _, text in pairs)
    assert write_tokens(tmp_path, pairs, tokenizer, "f", done.append) == index
    assert sum(done) == sum(len(text) for _, text in pairs)
    tokens = read_tokens(tmp_path, check=True)
    entry = read_index(tmp_path)["sources"]["web/en"]
    assert entry["num_bytes"] == sum(len(t) for t in texts["web/en"])
    starts = np.fromfile(tmp_path / "web-en.documents", dtype=np.int64)
    assert np.array_equal(read_documents(tmp_path)["web/en"], starts)
    assert (tokens["web/en"][starts] == tokenizer.bos_token_id).all()
    assert int((tokens["web/en"] == tokenizer.eos_token_id).sum()) == 80
    second = tokens["web/en"][starts[1] + 1 : starts[2] - 1]
    assert tokenizer.decode(second.tolist()) == "four </s> five"
    assert write_tokens(tmp_path, pairs, tokenizer, "g", done.append)["fingerprint"] == "g"
    assert sum(done) == 2 * sum(len(text) for _, text in pairs)
    (tmp_path / "web-en.documents").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"web-en\.documents: is missing or torn"):
        read_documents(tmp_path)
    with (tmp_path / "web-de.tokens").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(UserError, match=r"web-de\.tokens: is missing, torn or altered"):
        read_tokens(tmp_path)
