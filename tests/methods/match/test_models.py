"""Bases, training, scores, vectors, index: parity, invariances, learning, saving."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional

from polyloom.core.errors import UserError
from polyloom.methods.match.data import Pair, Pairs, world_pairs
from polyloom.methods.match.folder import load, save
from polyloom.methods.match.index import add, exact_search, groups, load_index, make_index, near_duplicates, save_index
from polyloom.methods.match.models import (
    BASES,
    MANY_TEXTS,
    SIAMESE,
    Matcher,
    Pooling,
    Shape,
    align,
    in_both,
    num_parameters,
)
from polyloom.methods.match.proofs import parameter_counts
from polyloom.methods.match.scorer import _pattern, words
from polyloom.methods.match.scores import (
    compare_correlations,
    compare_runs,
    confusion,
    f1_scores,
    planted_null,
    threshold_for,
)
from polyloom.methods.match.tokens import Vocabulary, build_vocabulary
from polyloom.methods.match.training import (
    COSENT_SCALE,
    Recipe,
    Trained,
    build,
    contrastive,
    cosent,
    fit,
    main_score,
    stack,
)
from polyloom.methods.match.vectors import from_file, from_texts, sif_weights

SMALL = Recipe(width=16, hidden=8, floor=8, max_length=24, epochs=2)
TRAINED_BASES = [base for base in BASES if base != "encoder"]


def tiny(base: str, block: str = "none") -> Trained:
    return build(world_pairs(64, "train"), replace(SMALL, base=base, block=block), 0)


def test_parameter_counts_at_the_authors_sizes() -> None:
    assert parameter_counts() == {"esim": 4_331_103, "fa": 73_860, "sfa": 282_460}


def test_esim_is_its_formulas_on_unpadded_texts() -> None:
    """One pair of equal lengths, written out with torch's own bidirectional LSTM."""
    torch.manual_seed(0)
    model = Matcher(Shape("esim", "none", 20, 6, 5, 3)).eval()
    encoder = model.encoder

    def lstm(ours: nn.Module, width: int) -> nn.LSTM:
        theirs = nn.LSTM(width, 5, batch_first=True, bidirectional=True)
        state = dict(ours.ahead.named_parameters())  # type: ignore[union-attr, operator]
        state |= {f"{name}_reverse": value for name, value in ours.back.named_parameters()}  # type: ignore[union-attr, operator]
        theirs.load_state_dict(state)
        return theirs

    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    first, second = lstm(encoder.encode, 6), lstm(encoder.compose, 5)  # type: ignore[arg-type]
    with torch.no_grad():
        x, y = (first(model.embedding(row[None]))[0] for row in ids)
        S = x @ y.transpose(1, 2)
        pooled = []
        for own, other in ((x, S.softmax(2) @ y), (y, S.transpose(1, 2).softmax(2) @ x)):
            m = torch.cat([own, other, own - other, own * other], 2)
            t = second(functional.relu(encoder.compare(m)))[0]  # type: ignore[operator]
            pooled += [t.mean(1), t.amax(1)]
        expected = model.head[4](torch.tanh(model.head[1](torch.cat(pooled, 1))))
        torch.testing.assert_close(model(ids), expected, atol=1e-6, rtol=0)


def test_esim_starts_with_open_forget_gates_and_orthogonal_recurrences() -> None:
    model = Matcher(Shape("esim", "none", 20, 6, 5, 3))
    lstm = model.encoder.encode.ahead  # type: ignore[union-attr]
    assert isinstance(lstm, nn.LSTM)
    assert lstm.bias_hh_l0.tolist() == [0] * 5 + [1] * 5 + [0] * 10
    part = lstm.weight_hh_l0[:5].detach()
    torch.testing.assert_close(part @ part.T, torch.eye(5), atol=1e-5, rtol=0)


def test_alignment_ignores_padding() -> None:
    x, y = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(align(x, y, mask), align(x, y[:, :3], mask[:, :3]))


def test_a_word_is_in_both_texts_whatever_its_place() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0], [7, 5, 0, 0], [3, 8, 8, 2]])
    assert in_both(ids).int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]


@pytest.mark.parametrize("base", ["esim", "re2"])
def test_words_in_both_texts_are_marked_before_alignment(base: str) -> None:
    torch.manual_seed(0)
    model = Matcher(Shape(base, "none", 20, 6, 5, 3, overlap=True)).eval()
    plain = Matcher(replace(model.shape, overlap=False)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "overlap.weight"})
    apart, shared = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[3, 4], [4, 6]])
    with torch.no_grad():
        torch.testing.assert_close(model(apart), plain(apart))
        assert not torch.allclose(model(shared), plain(shared), atol=1e-3)


@pytest.mark.parametrize(("base", "rate", "dropped"), [("bag", 6e-3, 0.3), ("esim", 3e-3, 0.3), ("re2", 1e-3, 0.1)])
def test_a_base_has_its_own_recipe(base: str, rate: float, dropped: float) -> None:
    pairs = world_pairs(32, "train")
    model = build(pairs, replace(SMALL, base=base), 0).model
    assert (Recipe(base=base).rate, model.shape.dropout) == (rate, dropped)
    assert model.shape.overlap == (base != "bag")
    assert not build(pairs, replace(SMALL, base=base, overlap=False), 0).model.shape.overlap
    assert build(pairs, replace(SMALL, base=base, dropout=0.0), 0).model.shape.dropout == 0


def test_first_vectors_have_the_spread_of_their_base() -> None:
    pairs = world_pairs(64, "train")
    initial = from_texts(pairs.texts(), 8)
    for base, spread in (("bag", 0.3), ("esim", 1.0), ("re2", 0.3)):
        rows = build(pairs, replace(SMALL, base=base), 0, initial).model.embedding.weight
        assert isinstance(rows, torch.Tensor)
        assert float(rows[1:].detach().std()) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("pooling", ["both", "mean"])
@pytest.mark.parametrize("block", ["none", "fa", "mlp"])
def test_a_bag_of_rows_is_the_bag_that_was_trained(block: str, pooling: Pooling) -> None:
    torch.manual_seed(0)
    model = Matcher(Shape("bag", block, 30, 6, 5, 3, pooling=pooling)).eval()
    ids = torch.tensor([[3, 4, 29], [7, 0, 0], [1, 1, 0]]).repeat(MANY_TEXTS, 1)
    with torch.inference_mode():
        quick, single = model.vectors(ids), model.vectors(ids[1:2])
    torch.testing.assert_close(quick[1:2], single, atol=1e-6, rtol=0)
    torch.testing.assert_close(quick, model.vectors(ids).detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("base", TRAINED_BASES)
@pytest.mark.parametrize("block", ["none", "fa", "sfa"])
def test_a_judgement_depends_on_its_pair_alone(base: str, block: str) -> None:
    trained = tiny(base, block)
    pairs = world_pairs(12, "test").items
    together = trained.outputs(pairs)
    alone = np.concatenate([trained.outputs([pair]) for pair in pairs])
    assert np.abs(together - alone).max() < 1e-5
    ids = stack(trained.number([pairs[0].first, pairs[0].second]))
    padded = functional.pad(ids, (0, 6))
    with torch.inference_mode():
        assert float((trained.model(ids) - trained.model(padded)).abs().max()) < 1e-5


@pytest.mark.parametrize("base", [base for base in SIAMESE if base != "encoder"])
def test_a_symmetric_matcher_cannot_see_the_order(base: str) -> None:
    trained = build(world_pairs(64, "train"), replace(SMALL, base=base, block="fa", symmetric=True), 0)
    pairs = world_pairs(8, "test").items
    swapped = [Pair(pair.second, pair.first, pair.label) for pair in pairs]
    assert np.abs(trained.outputs(pairs) - trained.outputs(swapped)).max() < 1e-6


@pytest.mark.parametrize("block", ["none", "fa", "sfa"])
@pytest.mark.parametrize("base", TRAINED_BASES)
def test_every_base_and_block_learns_32_pairs(base: str, block: str) -> None:
    pairs = world_pairs(32, "train", hardness=0)
    recipe = Recipe(base=base, block=block, width=24, hidden=16, floor=16, epochs=40, batch_size=8, dropout=0.0)
    trained = fit(pairs, pairs, replace(recipe, learning_rate=5e-3, patience=40, max_length=16), 0)
    assert main_score(trained, pairs) == 1.0


def test_shuffled_labels_teach_nothing() -> None:
    rng = np.random.default_rng(0)
    pairs = world_pairs(600, "train")
    items = [replace(pair, label=str(label)) for pair, label in zip(pairs.items, rng.permutation([0, 1] * 300))]  # noqa: B905
    trained = fit(replace(pairs, items=items[:400]), replace(pairs, items=items[400:]), replace(SMALL, block="fa"), 0)
    assert abs(main_score(trained, replace(pairs, items=items[400:])) - 0.5) < 0.12


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    train, valid = world_pairs(96, "train"), world_pairs(32, "valid")
    recipe = replace(SMALL, block="sfa", base="gru", epochs=1)
    first, again, other = (fit(train, valid, recipe, seed) for seed in (1, 1, 2))
    weights = [next(iter(t.model.head.parameters())) for t in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("base", "loss"), [("bag", "softmax"), ("gru", "cosent"), ("esim", "softmax")])
def test_a_saved_matcher_says_the_same(base: str, loss: str, tmp_path: Path) -> None:
    trained = build(world_pairs(64, "train"), replace(SMALL, base=base, block="fa", loss=loss), 0)  # type: ignore[arg-type]
    save(trained, tmp_path / "m")
    again = load(tmp_path / "m")
    pairs = world_pairs(8, "test").items
    assert np.array_equal(trained.predict(pairs), again.predict(pairs))
    assert again.classes == ["different", "same"]


def test_matchers_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no matcher"):
        load(tmp_path)
    save(tiny("bag"), tmp_path / "a")
    save(tiny("gru"), tmp_path / "b")
    (tmp_path / "a" / "matcher.safetensors").write_bytes((tmp_path / "b" / "matcher.safetensors").read_bytes())
    with pytest.raises(UserError, match="do not fit"):
        load(tmp_path / "a")


def test_losses_by_hand() -> None:
    cosine, target = torch.tensor([0.9, 0.1]), torch.tensor([0.0, 1.0])
    expected = math.log(1 + math.exp(COSENT_SCALE * (0.9 - 0.1)))
    assert float(cosent(cosine, target)) == pytest.approx(expected, rel=1e-5)
    assert float(cosent(cosine, target.flip(0))) == pytest.approx(0, abs=1e-4)


def test_the_contrastive_loss_takes_other_pairs_as_negatives_and_spares_equal_texts() -> None:
    trained = build(world_pairs(64, "train"), replace(SMALL, loss="contrastive", dropout=0.0), 0)
    model = trained.model.eval()
    ids = torch.tensor([[1, 2], [3, 4], [1, 2], [3, 4]])
    assert float(contrastive(model, ids, torch.ones(2)).detach()) < math.log(2)
    same = torch.tensor([[1, 2], [3, 4], [5, 6], [5, 6]])
    assert float(contrastive(model, same, torch.ones(2)).detach()) == pytest.approx(0, abs=1e-6)
    assert float(contrastive(model, ids, torch.zeros(2)).detach()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "regression"}, "does not fit labels that are classes"),
        ({"loss": "cosent", "base": "esim"}, "needs a vector of each text"),
        ({"base": "bagg"}, "no base 'bagg'.*'bag'"),
        ({"block": "fan"}, "no block 'fan'.*'fa'"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(world_pairs(16, "train"), replace(SMALL, **change), 0)  # type: ignore[arg-type]


def test_unknown_labels_are_refused_with_their_place() -> None:
    train = world_pairs(32, "train")
    valid = replace(train, items=[Pair("a", "b", "sam", "file:3")])
    with pytest.raises(UserError, match=r"file:3: the label 'sam'.*'same'"):
        fit(train, valid, SMALL, 0)


def test_words_of_many_scripts() -> None:
    assert words("Don't stop, Zoë!") == ("don", "'", "t", "stop", ",", "zoë", "!")
    assert words("猫が好き") == ("猫", "が", "好", "き")
    assert words("नमस्ते दुनिया") == ("नमस्ते", "दुनिया")
    assert words("ΓΆΤΑ straße") == ("γάτα", "strasse")
    assert words("") == ()


@given(st.text(max_size=60))
def test_words_lose_nothing_but_blanks(text: str) -> None:
    assert "".join(words(text, False)) == "".join(character for character in text if not character.isspace())


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=60))
def test_the_plain_rule_cuts_what_the_general_one_cuts(text: str) -> None:
    assert words(text, False) == tuple(_pattern().findall(text))


def test_unknown_words_share_a_bucket_with_themselves() -> None:
    vocabulary = build_vocabulary(["a b a"])
    assert vocabulary.encode("a b", 9) == [1, 2]
    first, second = vocabulary.encode("zebra", 9), vocabulary.encode("Zebra", 9)
    assert first == second
    assert 3 <= first[0] < len(vocabulary)
    assert len(Vocabulary(["x"]).encode("", 9)) == 1


def test_first_vectors_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("2 3\na 1 2 3\nb 4 5 6\na 0 0 0\n")
    initial = from_file(path, ["a c"])
    assert initial.rows is not None
    assert (initial.width, int(np.abs(initial.rows).sum(1).astype(bool).sum())) == (3, 1)
    assert "1 of 2 training words" in initial.note
    assert "of its 3 rows 0 are of words with blanks and 1 of words that stand twice" in initial.note
    with pytest.raises(UserError, match="none of the training words"):
        from_file(path, ["z"])


def test_sif_weights_fall_with_frequency() -> None:
    assert sif_weights(np.asarray([0, 1, 9], dtype=np.float32)) == pytest.approx([1, 1e-4 / 0.1001, 1e-4 / 0.9001])


def test_exact_search_is_brute_force_with_ties() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 5, 40):
        vectors = rng.integers(-1, 2, (40, 3)).astype(np.float32)
        queries = rng.integers(-1, 2, (7, 3)).astype(np.float32)
        rows, scores = exact_search(vectors, queries, k)
        best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
        assert (rows == best).all()
        assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, best, 1))


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_an_index_is_saved_added_to_and_bound_to_its_matcher(kind: str, tmp_path: Path) -> None:
    if kind == "hnsw":
        pytest.importorskip("usearch")
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [str(i) for i in range(200)]
    index = make_index(names[:150], names[:150], vectors[:150], "mark", kind)  # type: ignore[arg-type]
    add(index, names[150:], names[150:], vectors[150:])
    save_index(index, tmp_path / "i")
    again = load_index(tmp_path / "i", "mark")
    rows, scores = again.search(vectors, 10)
    best, _ = exact_search(vectors, vectors, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), best.tolist(), strict=True)])
    assert recall == 1 if kind == "exact" else recall >= 0.95
    assert scores[:, 0] == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="another matcher"):
        load_index(tmp_path / "i", "other")
    with pytest.raises(UserError, match="'3' already"):
        add(again, ["3"], ["x"], vectors[:1])


def test_near_duplicates_form_groups() -> None:
    vectors = np.asarray([[1, 0], [0.8, 0.6], [0, 1], [1, 0]], dtype=np.float32)
    pairs = near_duplicates(vectors, 0.9)
    assert [(i, j) for i, j, _ in pairs] == [(0, 3)]
    assert groups(4, pairs) == [[0, 3]]
    assert groups(4, [(0, 1, 1.0), (1, 2, 1.0)]) == [[0, 1, 2]]


def test_classification_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    wanted, given_ = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    counts = confusion([str(x) for x in wanted], [str(x) for x in given_], ["0", "1", "2"])
    assert f1_scores(counts) == pytest.approx(f1_score(wanted, given_, average=None), abs=1e-12)


def test_the_threshold_is_the_least_that_keeps_the_precision() -> None:
    assert threshold_for([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0) == 0.8
    assert threshold_for([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.7) == 0.6
    assert threshold_for([0.9, 0.9], [0, 1], 0.8) is None


def test_a_difference_counts_only_over_seeds_and_items() -> None:
    rng = np.random.default_rng(0)
    b = rng.random((5, 2000)) < 0.7
    a = b | (rng.random((5, 2000)) < 0.15)
    assert compare_runs(a, b).word == "better"
    assert compare_runs(b, a).word == "worse"
    lucky = b.copy()
    lucky[0] = True
    assert compare_runs(lucky, b).word == "not distinguishable"
    wanted = np.arange(300.0)
    noisy = wanted[None] + rng.normal(0, 200, (4, 300))
    better = wanted[None] + rng.normal(0, 20, (4, 300))
    assert compare_correlations(better, noisy, wanted).word == "better"


def test_a_planted_zero_is_not_called_a_win() -> None:
    assert planted_null(np.random.default_rng(0).random(1000), 5) >= 94


def test_pairs_hold_their_classes_in_order() -> None:
    assert Pairs([Pair("a", "b", "z"), Pair("a", "b", "c")], "classes").classes() == ["c", "z"]
    assert num_parameters(nn.Linear(2, 3)) == 9


def test_vectors_from_texts_put_words_of_the_same_texts_together() -> None:
    texts = [f"{a} {b}" for pair in (("cat", "purrs"), ("dog", "barks")) for a, b in (pair, pair[::-1])] * 2
    texts += ["cat sleeps", "purrs sleeps", "dog runs", "barks runs"]
    initial = from_texts(texts, 4)
    assert initial.rows is not None
    assert initial.vocabulary is not None
    rows = {word: initial.rows[initial.vocabulary.encode(word, 1)[0]] for word in ("sleeps", "runs", "cat", "dog")}

    def cosine(a: str, b: str) -> float:
        return float(rows[a] @ rows[b] / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b]))

    assert cosine("sleeps", "cat") > cosine("sleeps", "dog")
    again = from_texts(texts, 4).rows
    assert again is not None
    assert np.array_equal(initial.rows, again)
