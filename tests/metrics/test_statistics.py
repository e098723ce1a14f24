"""The statistics against scipy, hand values and simulation (oracle Q12)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.seeding import numpy_generator
from polyloom.metrics import distributions as d
from polyloom.metrics import statistics as s
from polyloom.metrics.survival import kaplan_meier, log_rank, median_survival

RNG = np.random.default_rng(7)
SAMPLES = [RNG.normal(0.3, 1.0, 12), RNG.exponential(1.0, 25), np.array([0.1, 0.4]), RNG.normal(size=200)]
floats = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
samples = st.lists(floats, min_size=3, max_size=12)


@pytest.mark.parametrize("df", [1, 2, 3, 7.5, 19, 59, 500])
def test_student_t_equals_scipy(df: float) -> None:
    for t in (-40.0, -2.5, -0.1, 0.0, 0.3, 1.0, 2.0, 8.0, 200.0):
        assert d.t_survival(t, df) == pytest.approx(scipy.stats.t.sf(t, df), rel=1e-9, abs=1e-300)
    for p in (1e-6, 0.025, 0.3, 0.5, 0.8, 0.975, 0.9999):
        assert d.t_quantile(p, df) == pytest.approx(scipy.stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


def test_ends_of_the_distributions() -> None:
    assert d.normal_quantile(0.0) == d.t_quantile(0.0, 5) == -math.inf
    assert d.normal_quantile(1.0) == d.t_quantile(1.0, 5) == math.inf
    assert d.t_survival(math.inf, 3) == 0.0
    assert d.t_survival(-math.inf, 3) == 1.0


@given(st.floats(0, 1), st.floats(0.1, 60), st.floats(0.1, 60))
def test_incomplete_beta_equals_scipy(x: float, a: float, b: float) -> None:
    assert d.incomplete_beta(x, a, b) == pytest.approx(scipy.special.betainc(a, b, x), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("values", SAMPLES)
def test_t_interval_and_test_equal_scipy(values: np.ndarray) -> None:
    interval = s.t_interval(values, 0.9)
    test = scipy.stats.ttest_1samp(values, 0.2)
    expected = test.confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert s.t_test(values, 0.2) == pytest.approx(test.pvalue, rel=1e-9)
    assert s.mean_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_equals_scipy_on_the_same_draws(values: np.ndarray, method: str) -> None:
    ours = s.bootstrap_interval(values, method=method, num_resamples=2000, seed=3)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        method=method.upper() if method == "bca" else method,
        rng=numpy_generator(3, "bootstrap"),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_bootstrap_takes_another_statistic_and_a_constant_sample() -> None:
    interval = s.bootstrap_interval(SAMPLES[3], lambda x: np.median(x, axis=-1), num_resamples=500)
    assert interval.low < np.median(SAMPLES[3]) < interval.high
    assert s.bootstrap_interval([2.0, 2.0, 2.0]) == s.Interval(2.0, 2.0, 2.0)


def test_paired_forms_use_differences() -> None:
    a, b = SAMPLES[0], SAMPLES[1][:12]
    assert s.paired_t_interval(a, b) == s.t_interval(a - b)
    assert s.paired_bootstrap(a, b, seed=2) == s.bootstrap_interval(a - b, seed=2)
    with pytest.raises(ValueError, match="equal lengths"):
        s.paired_t_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        s.paired_t_interval([1.0, math.nan], [1.0, 2.0])


@given(st.lists(floats, min_size=1, max_size=9))
def test_exact_sign_flip_equals_brute_force(values: list[float]) -> None:
    observed = abs(math.fsum(values))
    extreme = [
        abs(math.fsum(sign * value for sign, value in zip(signs, values, strict=True))) >= observed - 1e-9
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert s.sign_flip_p(values) == pytest.approx(np.mean(extreme))


def test_sign_flip_hand_values_and_scipy() -> None:
    assert s.sign_flip_p([1, 2, 3, 4, 5]) == 2 / 32
    assert s.sign_flip_p([0.0] * 6) == 1.0
    assert s.sign_flip_p(np.ones(20)) == 2 / 2**20
    values = RNG.normal(0.4, 1, 10)
    theirs = scipy.stats.permutation_test(
        (values, np.zeros(10)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert s.sign_flip_p(values) == pytest.approx(theirs.pvalue)
    many = RNG.normal(0.25, 1, 60)
    assert s.sign_flip_p(many) == pytest.approx(s.t_test(many), abs=0.01)
    assert s.sign_flip_p(np.ones(30), num_draws=99) == 0.01


def test_holm_and_benjamini_hochberg() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert s.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert s.holm([]).size == 0
    many = RNG.uniform(size=30) ** 2
    assert s.benjamini_hochberg(many) == pytest.approx(scipy.stats.false_discovery_control(many), rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections_never_lower_a_p_and_keep_the_order(p: list[float]) -> None:
    for adjusted in (s.holm(p), s.benjamini_hochberg(p)):
        assert (adjusted >= np.array(p)).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("values", SAMPLES[:2])
def test_tost_equals_two_one_sided_scipy_tests(values: np.ndarray) -> None:
    lower = scipy.stats.ttest_1samp(values, -0.8, alternative="greater").pvalue
    upper = scipy.stats.ttest_1samp(values, 0.8, alternative="less").pvalue
    assert s.tost(values, 0.8) == pytest.approx(max(lower, upper), rel=1e-9)
    assert s.tost([0.0, 0.0, 0.0], 0.1) == 0.0
    assert s.tost([0.2, 0.2], 0.1) == 1.0


def test_wilson_equals_scipy() -> None:
    for k, n in ((0, 10), (3, 10), (10, 10), (499, 1000)):
        expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        ours = s.wilson_interval(k, n)
        assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    with pytest.raises(ValueError, match="trials"):
        s.wilson_interval(3, 0)


@pytest.mark.parametrize(("delta", "n"), [(0.0, 5), (1.0, 2), (0.66, 20), (0.3, 60), (2.0, 10), (0.2, 300)])
def test_power_equals_scipys_noncentral_t(delta: float, n: int) -> None:
    critical = scipy.stats.t.ppf(0.975, n - 1)
    shift = delta * math.sqrt(n)
    expected = 1 - scipy.stats.nct.cdf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift)
    assert s.power(delta, 1.0, n) == pytest.approx(expected, abs=1e-9)


def test_minimum_detectable_difference_of_the_pilot() -> None:
    assert s.minimum_detectable_difference(0.0063, 20) == pytest.approx(0.0042, abs=5e-5)
    assert s.minimum_detectable_difference(0.0063, 60) == pytest.approx(0.0023, abs=5e-5)
    assert s.minimum_detectable_difference(0.0, 5) == 0.0


@given(samples, st.data())
def test_correlations_equal_scipy(x: list[float], data: st.DataObject) -> None:
    y = data.draw(st.lists(floats, min_size=len(x), max_size=len(x)))
    if len(set(x)) < 3 or len(set(y)) < 3:
        assert not set(x) or len(x) >= 3
        return
    pearson, spearman = scipy.stats.pearsonr(x, y), scipy.stats.spearmanr(x, y)
    assert s.pearson(x, y) == pytest.approx((pearson.statistic, pearson.pvalue), abs=1e-7)
    assert s.spearman(x, y) == pytest.approx((spearman.statistic, spearman.pvalue), abs=1e-7)


def test_correlation_of_constants_and_lines() -> None:
    assert s.pearson([1, 2, 3], [2, 4, 6]) == (1.0, 0.0)
    assert math.isnan(s.pearson([1, 1, 1], [2, 4, 6])[0])
    assert s.spearman([1, 2, 3, 4], [1, 8, 27, 64])[0] == 1.0


def test_expected_calibration_error_by_hand() -> None:
    # Bins of width 1/2: the first holds .2 (wrong) and .4 (right), the second .9 (right) and .7 (wrong).
    assert s.expected_calibration_error([0.2, 0.4, 0.9, 0.7], [0, 1, 1, 0], 2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert s.expected_calibration_error([1.0, 1.0], [1, 1]) == 0.0
    assert s.expected_calibration_error([1.0, 1.0], [0, 0]) == 1.0


def test_survival_equals_scipy_and_hand_values() -> None:
    times, observed = np.array([6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9]), np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    data = scipy.stats.CensoredData(uncensored=times[observed == 1], right=times[observed == 0])
    curve = scipy.stats.ecdf(data).sf
    events, survival = kaplan_meier(times, observed)
    assert survival == pytest.approx(curve.evaluate(events), abs=1e-12)
    # S falls to 8/11 at 6, 6/7 of that at 7 and 4/5 of that at 10: .499.
    assert median_survival(times, observed) == 10.0
    assert median_survival([5, 5, 5], [1, 0, 0]) is None
    assert median_survival([1, 2, 3, 4], [1, 1, 1, 1]) == 2.0


@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=15),
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=15),
)
def test_log_rank_equals_scipy(a: list[tuple[int, bool]], b: list[tuple[int, bool]]) -> None:
    times_a, seen_a = np.array([x for x, _ in a]), np.array([o for _, o in a])
    times_b, seen_b = np.array([x for x, _ in b]), np.array([o for _, o in b])
    ours = log_rank(times_a, seen_a, times_b, seen_b)
    assert 0.0 <= ours <= 1.0
    if not seen_a.any() or not seen_b.any():
        return
    with np.errstate(all="ignore"):
        theirs = scipy.stats.logrank(
            scipy.stats.CensoredData(uncensored=times_a[seen_a], right=times_a[~seen_a]),
            scipy.stats.CensoredData(uncensored=times_b[seen_b], right=times_b[~seen_b]),
        ).pvalue
    if math.isfinite(theirs):
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_log_rank_without_events_is_no_evidence() -> None:
    assert log_rank([5, 5], [0, 0], [5, 5], [0, 0]) == 1.0
    with pytest.raises(ValueError, match="observed"):
        kaplan_meier([1.0], [1, 0])


@pytest.mark.parametrize(
    ("shift", "noise", "higher", "word"),
    [
        (0.02, 0.002, True, "better"),
        (0.02, 0.002, False, "worse"),
        (-0.02, 0.002, True, "worse"),
        (0.0, 0.001, True, "no difference larger than the margin"),
        (0.002, 0.0005, True, "no difference larger than the margin"),
        (0.0, 0.05, True, "undecided"),
    ],
)
def test_words_come_from_the_rules(shift: float, noise: float, higher: bool, word: str) -> None:
    b = np.linspace(0.9, 0.95, 12)
    wiggle = noise * np.array([1, -1, 0.5, -0.5, 0.2, -0.2, 0.9, -0.9, 0.4, -0.4, 0.1, -0.1])
    comparison = s.compare_paired(b + shift + wiggle, b, margin=0.005, higher_is_better=higher)
    assert comparison.word == word
    assert comparison.difference.value == pytest.approx(shift, abs=1e-12)


def test_identical_samples_show_no_difference() -> None:
    values = SAMPLES[0]
    comparison = s.compare_paired(values, values, margin=0.005)
    assert comparison.word == "no difference larger than the margin"
    assert comparison.difference == s.Interval(0.0, 0.0, 0.0)
    assert (comparison.p, comparison.effect_size, comparison.minimum_detectable) == (1.0, 0.0, 0.0)


def test_family_correction_turns_a_lone_finding_into_undecided() -> None:
    rng = np.random.default_rng(1)
    found = s.compare_paired(rng.normal(0.9, 1.0, 12), np.zeros(12), margin=1e-6)
    assert found.word == "better"
    corrected = s.correct_family([found], other_p=[0.5] * 40)
    assert corrected[0].word == "undecided"
    assert corrected[0].corrected_p == pytest.approx(41 * found.p)
    assert s.correct_family([found])[0] == found


def simulate(kind: str, num_simulations: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(2026)
    if kind == "normal":
        return rng.normal(size=(num_simulations, n))
    return rng.gamma(4.0, 1.0, (num_simulations, n)) - 4.0


@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("method", ["t", "bca"])
def test_intervals_cover_the_truth(kind: str, method: str) -> None:
    covered = 0
    for index, values in enumerate(simulate(kind, 2000, 40)):
        if method == "t":
            interval = s.t_interval(values)
        else:
            interval = s.bootstrap_interval(values, num_resamples=1000, seed=index)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_holm_holds_the_family_wise_error() -> None:
    families = np.random.default_rng(5).normal(size=(2000, 12, 12))
    errors = sum(bool((s.holm([s.sign_flip_p(row) for row in family]) <= 0.05).any()) for family in families)
    assert errors / 2000 <= 0.06


def test_tost_does_not_call_two_margins_equal() -> None:
    rng = np.random.default_rng(6)
    margin = 0.005
    wrong = sum(s.tost(rng.normal(2 * margin, 0.0063, 20), margin) <= 0.05 for _ in range(2000))
    assert wrong / 2000 < 0.01


def test_ratio_of_sums_by_hand() -> None:
    one = s.ratio_interval([1.0, 3.0], [2.0, 2.0])
    assert one.value == 1.0
    assert (one.low, one.high) == (0.5, 1.5)
    assert s.ratio_interval([3.0], [2.0]) == s.Interval(1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="equal lengths"):
        s.ratio_interval([1.0], [1.0, 2.0])


def test_ratio_interval_covers_the_true_ratio() -> None:
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(50, 500, 60).astype(float)
        found = s.ratio_interval(sizes * 2.0 + rng.normal(0, 30, 60), sizes, num_resamples=400, seed=seed)
        hits += found.low <= 2.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize(("trials", "probability"), [(10, 0.5), (300, 0.0009), (50, 0.95), (7, 0.0), (7, 1.0)])
def test_binomial_band_holds_what_it_says(trials: int, probability: float) -> None:
    low, high = d.binomial_band(trials, probability, 0.95)

    def tail(first: int, last: int) -> float:
        masses = [
            math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(first, last + 1)
        ]
        return sum(masses)

    assert tail(0, low - 1) <= 0.025
    assert tail(high + 1, trials) <= 0.025 + 1e-12
    # One count less on either side would hold too little.
    assert low == trials or tail(0, low) > 0.025 - 1e-12
    assert high == 0 or tail(high, trials) > 0.025 - 1e-12
