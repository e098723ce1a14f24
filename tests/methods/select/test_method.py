"""The mathematics against hand values, invariants and public libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.select import method
from polyloom.methods.select.alignment import (
    build_pairs,
    cosine_loss,
    head_loss,
    neighbour_precision,
    split_categories,
    train_head,
)
from polyloom.methods.select.cleaning import clean_all, clean_instruction
from polyloom.methods.select.explaining import noise_bands
from polyloom.methods.select.lexical import build_index, latent_project, latent_vectors, terms
from polyloom.methods.select.method import (
    AGGREGATIONS,
    aggregate,
    category_precision,
    cosine_pairs,
    diversify,
    fisher_similarity,
    fuse,
    jaccard,
    kendall_tau,
    max_sim,
    mix_prior,
    ndcg,
    order_by,
    overlap,
    popularity,
    principal_plane,
    rank_biased_overlap,
    ranks_of,
    regret,
)

TEMPLATE = 'Given {{premise}} Should we assume "{{hypothesis}}"? ||| {{answer_choices[label]}}'
TEXTS = [
    "Classify the sentiment of the review as positive or negative",
    "Write a question about the passage",
    "Answer the question using the passage; answer briefly",
    "Translate the sentence into German",
    "Translate the question into French, the question only",
    "Is the review positive?",
    "die das der und",
]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("drop", 'Given Should we assume " "?'),
        ("replace", 'Given {{text}} Should we assume "{{text}}"?'),
        ("keep", 'Given {{premise}} Should we assume "{{hypothesis}}"?'),
        ("names", 'Given premise Should we assume "hypothesis"?'),
    ],
)
def test_cleaning_modes(mode: str, expected: str) -> None:
    assert clean_instruction(TEMPLATE, mode) == expected  # type: ignore[arg-type]


def test_cleaning_reads_jinja_and_not_its_look() -> None:
    source = '{% if a %}Say {{ a | join(", ") }} or {{ "x ||| y" }} {{answer_choices|join("|||")}} end{% endif %}|||no'
    assert clean_instruction(source, "replace") == "Say {{text}} or x ||| y {{candidate}} end"
    assert clean_instruction("the set {{a} of {{ 1", "drop") == "the set {{a} of {{ 1"
    assert clean_instruction("plain ||| output") == "plain"
    assert clean_instruction("cafe\u0301  au\nlait") == "café au lait"


def test_cleaning_drops_what_states_nothing() -> None:
    assert clean_all(["{{text}}", "  ", "Sum up {{text}}", "Sum up", "..."]) == ["Sum up"]
    assert clean_all(["{{ article }}"], "keep") == []


def test_hand_example_of_the_aggregations() -> None:
    target, pool = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    pairs, owners = cosine_pairs(target, pool), np.array([0, 0, 1])
    assert aggregate(pairs, owners, 2, "mean") == pytest.approx([0.5, 0.8])
    assert aggregate(pairs, owners, 2, "max") == pytest.approx([1.0, 0.8])
    assert aggregate(pairs, owners, 2, "vote") == pytest.approx([1e30 + 1e24, 1e27])
    soft = aggregate(pairs, owners, 2, "soft")
    assert 0.5 < soft[0] < 1.0
    assert soft[1] == pytest.approx(0.8)


@given(st.integers(0, 10**6))
def test_mean_is_the_centroid_product_and_max_finds_the_task_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    owners = np.sort(np.concatenate([np.arange(5), rng.integers(0, 5, 7)]))
    a, b = rng.normal(size=(3, 6)), rng.normal(size=(12, 6))
    pairs = cosine_pairs(a, b)
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    centroids = np.stack([unit_b[owners == task].mean(axis=0) for task in range(5)])
    assert aggregate(pairs, owners, 5) == pytest.approx(centroids @ unit_a.mean(axis=0), abs=1e-9)
    own = cosine_pairs(b[owners == 2], b)
    best = aggregate(own, owners, 5, "max")
    assert best[2] == pytest.approx(1.0, abs=1e-5)
    assert int(order_by(best)[0]) == 2


@given(st.integers(0, 10**6), st.sampled_from([how for how in AGGREGATIONS if how != "vote"]))
def test_duplicated_wordings_change_nothing_and_order_does_not_matter(seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    pairs, owners = rng.uniform(-1, 1, (2, 6)), np.array([0, 0, 1, 1, 2, 2])
    once = aggregate(pairs, owners, 3, how)  # type: ignore[arg-type]
    twice = aggregate(np.hstack([pairs, pairs]), np.tile(owners, 2), 3, how)  # type: ignore[arg-type]
    shuffled = rng.permutation(6)
    assert twice == pytest.approx(once)
    assert aggregate(pairs[:, shuffled], owners[shuffled], 3, how) == pytest.approx(once)  # type: ignore[arg-type]


def test_a_weaker_wording_lowers_mean_and_never_max() -> None:
    pairs, more = np.array([[0.9, 0.2]]), np.array([[0.9, 0.2, 0.1]])
    one, two = np.array([0, 1]), np.array([0, 1, 0])
    assert aggregate(more, two, 2)[0] < aggregate(pairs, one, 2)[0]
    assert aggregate(more, two, 2, "max")[0] == aggregate(pairs, one, 2, "max")[0]


def test_ties_are_broken_by_the_order_of_ids_and_fusion_rewards_agreement() -> None:
    assert order_by(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]
    assert ranks_of(np.array([0.5, 0.9])).tolist() == [2.0, 1.0]
    fused = fuse([np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0])])
    assert fused == pytest.approx([2 / 61, 1 / 62 + 1 / 63, 1 / 63 + 1 / 62])


def test_prior_mixes_z_scores_and_never_sees_its_own_target() -> None:
    gains = {"t": {"a": 9.0, "b": 0.0}, "u": {"a": 1.0, "b": 3.0}, "v": {"a": 3.0}}
    prior = popularity(gains, "t", ["a", "b", "c"])
    assert prior[:2].tolist() == [2.0, 3.0]
    assert math.isnan(prior[2])
    mixed = mix_prior(np.array([1.0, 1.0, 1.0]), prior, 0.5)
    assert mixed == pytest.approx([-0.5, 0.5, 0.0])
    assert mix_prior(np.array([1.0, 2.0, 3.0]), prior, 0.0)[2] == pytest.approx(math.sqrt(1.5))


def test_pivots_count_by_how_near_they_are() -> None:
    gains = {"t": {"a": 9.0}, "u": {"a": 1.0, "b": 3.0}, "v": {"a": 4.0}, "w": {"b": 5.0}}
    prior = popularity(gains, "t", ["a", "b", "c"], {"u": 1.0, "v": 0.5, "w": -0.2})
    assert prior[:2].tolist() == pytest.approx([2.0, 3.0])
    assert math.isnan(prior[2])
    assert popularity(gains, "t", ["a"], {"u": 2.0, "v": 2.0}) == popularity(gains, "t", ["a"])


def test_diversity_passes_over_copies() -> None:
    scores = np.array([1.0, 0.99, 0.9, 0.0])
    similarity = np.eye(4)
    similarity[0, 1] = similarity[1, 0] = 1.0
    assert diversify(scores, similarity, 2, balance=0.7) == [0, 2]
    assert diversify(scores, similarity, 2, balance=1.0) == [0, 1]
    assert sorted(diversify(scores, similarity, 9)) == [0, 1, 2, 3]


def token_states(rng: np.random.Generator, lengths: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    states = rng.normal(size=(sum(lengths), 5)).astype(np.float32)
    starts = np.cumsum([0, *lengths[:-1]])
    return states, starts, rng.uniform(0.5, 2, size=len(states)).astype(np.float32)


def test_late_interaction_by_hand() -> None:
    # Target tokens along e1 and e2; one pool instruction e1, another (.6, .8) and e2. From the target: (1 + 0) / 2 and
    # (.6 + 1) / 2; from the pool: 1 and (.8 + 1) / 2.
    target = np.array([[1, 0], [0, 2]], dtype=np.float32)
    pool = np.array([[3, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    even = np.ones(2, dtype=np.float32), np.ones(3, dtype=np.float32)
    found = max_sim(target, np.array([0]), pool, np.array([0, 1]), *even)
    assert found[0].tolist() == pytest.approx([(0.5 + 1) / 2, (0.8 + 0.9) / 2])
    heavy = np.array([3, 1], dtype=np.float32), np.ones(3, dtype=np.float32)
    found = max_sim(target, np.array([0]), pool, np.array([0, 1]), *heavy)
    assert found[0].tolist() == pytest.approx([(0.75 + 1) / 2, ((3 * 0.6 + 1) / 4 + 0.9) / 2])


@pytest.mark.parametrize("most", [1, 60, 10**6])
def test_late_interaction_equals_the_loop_and_is_one_for_itself(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(method, "MAX_COSINES", most)
    rng = np.random.default_rng(0)
    a, a_starts, a_weights = token_states(rng, [3, 1, 4])
    b, b_starts, b_weights = token_states(rng, [2, 5, 1, 3])
    found = max_sim(a, a_starts, b, b_starts, a_weights, b_weights)
    cosines = cosine_pairs(a, b)
    for i, rows in enumerate(np.split(np.arange(8), a_starts[1:])):
        for j, columns in enumerate(np.split(np.arange(11), b_starts[1:])):
            block = cosines[np.ix_(rows, columns)]
            forth = np.average(block.max(1), weights=a_weights[rows])
            back = np.average(block.max(0), weights=b_weights[columns])
            assert found[i, j] == pytest.approx((forth + back) / 2, abs=1e-6)
    own = max_sim(a, a_starts, a, a_starts, a_weights, a_weights)
    assert own.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_fisher_similarity_by_hand() -> None:
    a, b = np.array([1.0, 3.0, 0.0]), np.array([3.0, 1.0, 0.0])
    # The quotients are (1/4, 3/4) and (3/4, 1/4): cosine 6/16 / (10/16).
    assert fisher_similarity(a, b) == pytest.approx(0.6)
    assert fisher_similarity(a, b) == fisher_similarity(b, a)
    assert fisher_similarity(a, a) == pytest.approx(1.0)
    assert fisher_similarity(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0.0
    assert fisher_similarity(np.zeros(2), np.zeros(2)) == 0.0


def test_the_plane_of_a_map_keeps_a_plane_and_equals_the_public_library() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 6)) + 3
    points, share = principal_plane(flat)
    assert share == pytest.approx(1.0)
    gaps = [np.linalg.norm(one[:, None] - one[None], axis=-1) for one in (flat, points)]
    assert gaps[0] == pytest.approx(gaps[1])
    library = pytest.importorskip("sklearn.decomposition").PCA(2)
    full = rng.normal(size=(30, 5))
    points, share = principal_plane(full)
    assert np.abs(points) == pytest.approx(np.abs(library.fit_transform(full)))
    assert share == pytest.approx(library.explained_variance_ratio_.sum())
    assert principal_plane(np.ones((3, 1))) == (pytest.approx(np.zeros((3, 2))), 1.0)


def test_noise_bands_by_hand() -> None:
    scores = np.array([0.9, 0.6, 0.5, 0.1])
    halves = np.array([[0.9, 0.5, 0.4, 0.1], [0.9, 0.7, 0.6, 0.1]])
    bands, noisy = noise_bands(scores, halves, 2)
    # The cut is .55: the second and third task have halves on both of its sides.
    assert noisy.tolist() == [False, True, True, False]
    assert bands[:, 0].tolist() == [0.9, 0.9]
    assert bands[:, 1].tolist() == pytest.approx([0.505, 0.695])
    assert not noise_bands(scores, halves, 4)[1].any()


def test_hand_values_of_the_measures() -> None:
    assert ndcg("abc", "abc") == pytest.approx(1.0)
    assert ndcg("bac", "abc") == pytest.approx(0.8428, abs=1e-4)
    assert 0 < ndcg([str(i) for i in range(1500)][::-1], [str(i) for i in range(1500)]) < 1
    assert overlap(["a", "b"], ["b", "c"]) == 0.5
    assert jaccard(["a", "b"], ["b", "c"]) == pytest.approx(1 / 3)
    assert rank_biased_overlap("abc", "abc") == pytest.approx(1.0)
    assert rank_biased_overlap("abc", "xyz") == 0.0
    assert rank_biased_overlap("ab", "ax", 0.5) == pytest.approx(0.5 * 0.25 + (1 * 0.5 + 0.5 * 0.25))
    assert regret({"a": 4.0, "b": 2.0, "c": 1.0}, ["b"]) == 0.5
    assert category_precision([3, 1, 2], ["", "x", "y", "x"], "x", 2) == 1.0
    assert category_precision([3, 1, 2], ["", "x", "y", "x"], "x", 2, frozenset({3})) == 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_kendall_counts_pairs(values: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*values, strict=True))
    pairs = list(itertools.combinations(values, 2))
    expected = sum(np.sign(x[0] - y[0]) * np.sign(x[1] - y[1]) for x, y in pairs) / len(pairs)
    assert kendall_tau(a, b) == pytest.approx(expected)


# ---- lexical scorers against public libraries


@pytest.mark.parametrize("kind", ["tfidf", "char"])
def test_tfidf_equals_scikit_learn(kind: str) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    if kind == "char":
        vectorizer = text.TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 5))
    else:
        vectorizer = text.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    expected = vectorizer.fit_transform(TEXTS)
    index = build_index(TEXTS, kind)  # type: ignore[arg-type]
    queries = ["Translate the unseen words of the review", "ist das positive", "zzz"]
    found = index.score_all([*TEXTS, *queries])
    wanted = (vectorizer.transform([*TEXTS, *queries]) @ expected.T).toarray()
    assert found == pytest.approx(wanted, abs=2e-6)
    assert index.num_rows == len(TEXTS)
    assert len(index.hashes) == len(vectorizer.vocabulary_)


def test_bm25_equals_the_public_library() -> None:
    bm25s = pytest.importorskip("bm25s")
    tokens = [list(terms(text, "bm25").elements()) for text in TEXTS]
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    retriever.index(tokens, show_progress=False)
    query = "translate the question about the passage into German"
    expected = retriever.get_scores(list(terms(query, "bm25").elements()))
    assert build_index(TEXTS, "bm25").score(query) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["tfidf", "char"])
def test_shared_terms_add_up_to_the_score(kind: str) -> None:
    index = build_index(TEXTS, kind)  # type: ignore[arg-type]
    shares = index.shared_terms(TEXTS[3], TEXTS[4], limit=1000)
    assert sum(share for _, share in shares) == pytest.approx(float(index.score(TEXTS[3])[4]), abs=1e-5)
    assert shares[0][1] >= shares[-1][1] > 0


def test_scripts_without_blanks_are_cut_into_pairs() -> None:
    assert list(terms("東京都の", "bm25")) == ["東京", "京都", "都の"]
    with pytest.raises(UserError, match="no instruction holds a word"):
        build_index(["?", "!"], "tfidf")


def test_latent_vectors_keep_cosines_at_full_rank_and_unknown_words_are_zero() -> None:
    texts = [*TEXTS, *TEXTS]
    projection, idf, chosen = latent_vectors(texts, dim=500)
    full = latent_project(texts, projection, idf, chosen)
    counts = cosine_pairs(full, full)
    assert counts[0, len(TEXTS)] == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(full, axis=1) == pytest.approx(1.0, abs=1e-4)
    assert not latent_project(["qqq"], projection, idf, chosen).any()


# ---- alignment


def vectors_of(num_groups: int, each: int, dim: int = 24, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:num_groups]
    rows = [centre + 0.5 * rng.normal(size=dim) for centre in centres for _ in range(each)]
    return [f"g{i}" for i in range(num_groups) for _ in range(each)], np.array(rows, dtype=np.float32)


def test_pair_builder_keeps_its_rules() -> None:
    groups, vectors = vectors_of(4, 10)
    found = build_pairs(groups, vectors, seed=1)
    positives = [(a, b) for a, b, label in found.pairs if label == 1.0]
    negatives = [(a, b) for a, b, label in found.pairs if label == 0.0]
    assert found.num_positive == len(positives) == 4 * 18
    assert all(groups[a] == groups[b] and a != b for a, b in positives)
    cosines = cosine_pairs(vectors, vectors)
    assert negatives
    assert all(groups[a] != groups[b] and cosines[a, b] < 0.3 for a, b in negatives)
    assert max(np.bincount([b for _, b in negatives])) <= 4
    assert build_pairs(groups, vectors, seed=1) == found
    assert build_pairs(groups, vectors, seed=2) != found


def test_pair_builder_ends_where_no_negative_exists() -> None:
    found = build_pairs(["a", "b"], np.ones((2, 3), dtype=np.float32))
    assert (found.num_negative, found.num_without_negative) == (0, 2)


def test_head_starts_as_identity_learns_and_its_gradient_is_right() -> None:
    groups, vectors = vectors_of(4, 8)
    pairs = build_pairs(groups, vectors).pairs
    run = train_head(vectors, pairs, lr=3e-3, num_epochs=4)
    assert (run.weights[0] == np.eye(24)).all()
    assert run.losses[-1] < run.losses[0]
    still = train_head(vectors, pairs, lr=0.0, num_epochs=2)
    assert (still.weights[-1] == np.eye(24)).all()
    a, b = (torch.randn(5, 4, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    weight = (torch.eye(4, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: head_loss(w, a, b, labels), weight, atol=1e-4)
    assert float(cosine_loss(a, a, torch.ones(5, dtype=torch.float64))) == pytest.approx(0.0, abs=1e-12)


def test_neighbour_precision_and_category_split() -> None:
    groups, vectors = vectors_of(3, 6)
    assert neighbour_precision(vectors * 0 + np.eye(24, dtype=np.float32)[:1], groups, range(18), [0], 5) <= 1.0
    clean = np.repeat(np.eye(3, 24, dtype=np.float32), 6, axis=0)
    assert neighbour_precision(clean, groups, range(18), range(18), 5) == 1.0
    # Two wordings of one task are near by themselves: only those of other tasks are neighbours.
    pairs = np.repeat(np.eye(2, 4, dtype=np.float32), 2, axis=0)
    assert neighbour_precision(pairs, ["a", "a", "b", "b"], [0, 0, 1, 1], range(4), 1) == 0.0
    split = split_categories([f"c{i // 6}" for i in range(60)] + ["rare"], seed=3)
    parts = [*split.seen, *split.dev, *split.unseen]
    assert len(parts) == len(set(parts)) == 10
    assert "rare" not in parts
