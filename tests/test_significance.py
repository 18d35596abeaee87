"""Tests and intervals against scipy, closed forms and arithmetic by hand, and the table of systems that they fill."""

import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from asymlib.errors import InputError
from asymlib.significance import (
    against_baseline,
    bootstrap_interval,
    contrast,
    equivalent,
    holm,
    paired_randomization_test,
    variance_split,
)


def mean_difference(x, y, axis=-1):
    return np.mean(x, axis=axis) - np.mean(y, axis=axis)


# ------------------------------------------------------------------------------------------------- randomisation test


def test_exact_p_values_by_hand():
    # Differences 1, 2, 3: T = 6/3 and only +++ and --- reach it: 2/8.
    assert paired_randomization_test([1, 2, 3], [0, 0, 0]) == 2 / 8
    # Differences 1, 2, -3: T = 0, every flip reaches it.
    assert paired_randomization_test([1, 2, 0], [0, 0, 3]) == 1
    # Differences 3, 2, -1: |T| = 4/3; sums of +-3 +-2 +-1 are 6, 4, 2, 0, 0, -2, -4, -6: four of them reach 4.
    assert paired_randomization_test([3, 2, 0], [0, 0, 1]) == 4 / 8
    # All 16 in the same direction: 2 / 2^16, the smallest that can be reached.
    assert paired_randomization_test(np.ones(16), np.zeros(16)) == 2 / 2**16
    assert paired_randomization_test(np.ones(4), np.ones(4)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_exact_p_value_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(11), rng.random(11) - 0.1
    theirs = scipy.stats.permutation_test((a, b), mean_difference, permutation_type="samples", n_resamples=np.inf)
    assert paired_randomization_test(a, b) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sampled_p_value_equals_scipy_and_the_exact_one_within_its_error():
    rng = np.random.default_rng(3)
    a, b = rng.random(14), rng.random(14) + 0.1
    exact = paired_randomization_test(a, b)
    sampled = paired_randomization_test(a, b, n=10_000)  # 2^14 > 10,000
    assert sampled != exact and abs(sampled - exact) < 5 * np.sqrt(exact * (1 - exact) / 10_000)
    a, b = rng.random(200), rng.random(200) + 0.03
    theirs = scipy.stats.permutation_test(
        (a, b),
        mean_difference,
        permutation_type="samples",
        n_resamples=10_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    ours = paired_randomization_test(a, b)
    assert abs(ours - theirs) < 5 * np.sqrt(theirs * (1 - theirs) / 10_000)
    # and the normal limit: T / sqrt(sum x^2) ~ N(0, 1)
    z = np.sum(a - b) / np.sqrt(np.sum((a - b) ** 2))
    assert ours == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), rel=0.05)


def test_the_smallest_sampled_p_value_is_one_over_n_plus_one():
    assert paired_randomization_test(np.ones(500), np.zeros(500), n=9_999) == 1e-4


def test_strata_weigh_the_same_each():
    # Data set x has one query, y has two; T = (x1 + (y1 + y2)/2)/2. With x1 = 3, y = 2, -3: |T| = |3 + 1 - 1.5|/2 = 2.5/2;
    # the sums of +-3 +-1 +-1.5 are 5.5, 2.5, 3.5, 0.5 and their negatives: 6 of 8 reach 2.5.
    strata = np.array(["y", "x", "y"])
    assert paired_randomization_test([2, 3, -3], [0, 0, 0], strata=strata) == 6 / 8
    # Without strata |3 + 2 - 3| = 2, and +-3 +-2 +-3 are 8, 2, 4, 2 and their negatives: all reach it.
    assert paired_randomization_test([2, 3, -3], [0, 0, 0]) == 1


def test_many_comparisons_share_flips_and_equal_each_alone():
    rng = np.random.default_rng(4)
    a, b, strata = rng.random((3, 90)) + [[0], [0.05], [0.1]], rng.random(90), np.repeat(["p", "q", "r"], [20, 30, 40])
    together = paired_randomization_test(a, b, n=5_000, strata=strata)
    alone = [paired_randomization_test(row, b, n=5_000, strata=strata) for row in a]
    np.testing.assert_array_equal(together, alone)
    shuffled = rng.permutation(90)
    other_order = paired_randomization_test(a[:, shuffled], b[shuffled], n=5_000, strata=strata[shuffled])
    np.testing.assert_allclose(other_order, together, atol=0.03)
    assert together.shape == (3,) and paired_randomization_test(a[0], b).shape == ()


def test_the_test_holds_its_level_when_nothing_differs():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2000, 40)) * rng.lognormal(size=40)
    p = paired_randomization_test(x, np.zeros(40), n=2_000)
    assert abs((p < 0.05).mean() - 0.05) < 5 * np.sqrt(0.05 * 0.95 / 2000)


def test_five_thousand_queries_and_ten_thousand_flips_are_quick():
    rng = np.random.default_rng(6)
    a, b, strata = rng.random(5000), rng.random(5000), np.repeat(np.arange(5), 1000)
    start = time.process_time()
    paired_randomization_test(a, b, n=10_000, strata=strata)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1, 2], [1, 2, 3]), r"expected scores of the same queries, not \(2,\) against \(3,\)"),
        (([], []), "expected scores of the same queries"),
        (([1, np.nan], [1, 2]), "NaN or infinite"),
        (([1, 2], [1, 2], 10, 0, ["x"]), "strata: expected 2 labels"),
    ],
)
def test_paired_test_refuses(given, message):
    with pytest.raises(InputError, match=message):
        paired_randomization_test(*given)


# -------------------------------------------------------------------------------------------------------------- holm


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, running maximum .04 .06 .06 .06
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    # NaN does not count: 2 tests, .3 x 2 = .6, .5 x 1 -> .6; at most 1
    np.testing.assert_allclose(holm([0.5, np.nan, 0.3]), [0.6, np.nan, 0.6])
    np.testing.assert_array_equal(holm([0.6, 0.9]), [1, 1])
    assert holm([]).shape == (0,)
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([1.2])


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(7)
    for _ in range(50):
        p, level = rng.random(8) ** 4, 0.05
        rejected = np.zeros(8, dtype=bool)
        for step, i in enumerate(np.argsort(p)):  # stop at the first p above level / (m - step)
            if p[i] > level / (8 - step):
                break
            rejected[i] = True
        np.testing.assert_array_equal(holm(p) <= level, rejected)


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_interval_of_one_seed_equals_scipy_and_the_normal_one():
    rng = np.random.default_rng(8)
    x = rng.random(400)
    low, high = bootstrap_interval(x[None], n=20_000)
    theirs = scipy.stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    error = x.std() / 20
    assert abs(low - theirs.low) < 0.06 * error and abs(high - theirs.high) < 0.06 * error
    normal = scipy.stats.norm.interval(0.95, x.mean(), error)
    np.testing.assert_allclose([low, high], normal, atol=0.08 * error)


def test_interval_over_seeds_and_queries_has_the_variance_of_both():
    # value = seed effect + query effect: Var T* = var(seed effects)/S + var(query effects)/Q, both divided by n
    rng = np.random.default_rng(9)
    seeds, queries = rng.normal(size=60), rng.normal(size=500)
    values = seeds[:, None] + queries
    low, high = bootstrap_interval(values, n=20_000, level=0.9)
    error = np.sqrt(seeds.var() / 60 + queries.var() / 500)
    np.testing.assert_allclose([low, high], scipy.stats.norm.interval(0.9, values.mean(), error), atol=0.06 * error)
    only_seeds = bootstrap_interval(values - queries, n=20_000, level=0.9)  # queries cancel in the pairs
    error = seeds.std() / np.sqrt(60)
    np.testing.assert_allclose(only_seeds, scipy.stats.norm.interval(0.9, seeds.mean(), error), atol=0.08 * error)


def test_interval_over_strata_has_their_mean_and_variance():
    # T = (mean x + mean y)/2 of independent strata: Var = (var(x)/300 + var(y)/50)/4
    rng = np.random.default_rng(10)
    x, y = rng.random(300), 3 + 2 * rng.random(50)
    strata = np.array([*"x" * 300, *"y" * 50])
    low, high = bootstrap_interval(np.concatenate([x, y])[None], strata, n=20_000)
    error = np.sqrt((x.var() / 300 + y.var() / 50) / 4)
    normal = scipy.stats.norm.interval(0.95, (x.mean() + y.mean()) / 2, error)
    np.testing.assert_allclose([low, high], normal, atol=0.08 * error)


def test_interval_by_hand_and_of_many_systems():
    # 2 seeds, values 0 and 1 whatever the query: the draws give 0, 1/2, 1/2, 1 with chance 1/4 each: 50 % interval [0, 1] or inside
    values = np.array([[0.0] * 3, [1.0] * 3])
    assert bootstrap_interval(values, level=0.95) == (0, 1)
    assert bootstrap_interval(values, level=0.4) == (0.5, 0.5)
    rng = np.random.default_rng(11)
    many, strata = rng.random((4, 3, 30)), np.repeat([0, 1], 15)
    low, high = bootstrap_interval(many, strata)
    assert low.shape == high.shape == (4,)
    for i, one in enumerate(many):
        np.testing.assert_allclose(bootstrap_interval(one, strata), (low[i], high[i]))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(12)
    values = rng.normal(size=(400, 12, 1)) * 0.5 + rng.normal(size=(400, 1, 60)) + 0.3 * rng.normal(size=(400, 12, 60))
    low, high = bootstrap_interval(values, n=1_000, level=0.9)
    assert 0.85 < ((low < 0) & (high > 0)).mean() < 0.95


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": np.ones(3)}, r"expected finite scores \(seeds, queries\), not \(3,\)"),
        ({"values": np.array([[np.nan]])}, "finite"),
        ({"strata": ["x"]}, "strata: expected 3 labels"),
    ],
)
def test_bootstrap_refuses(given, message):
    with pytest.raises(InputError, match=message):
        bootstrap_interval(**{"values": np.ones((2, 3))} | given)


# ------------------------------------------------------------------------------------------------------------ tables


def scores(track, system, seed, dataset, values, metric="ndcg@10"):
    queries = [f"q{i}" for i in range(len(values))]
    fixed = {"track": track, "system": system, "seed": seed, "dataset": dataset, "metric": metric}
    return pd.DataFrame({**fixed, "query_id": queries, "value": np.asarray(values, dtype=float)})


def two_systems():
    return pd.concat(
        [
            scores("zero-shot", "baseline", 0, "A", [0.5, 0.5]),
            scores("zero-shot", "baseline", 0, "B", [0.2, 0.4, 0.6]),
            scores("zero-shot", "new", 0, "A", [0.5, 0.7]),
            scores("zero-shot", "new", 0, "B", [0.3, 0.4, 0.8]),
            scores("zero-shot", "new", 1, "A", [0.7, 0.7]),
            scores("zero-shot", "new", 1, "B", [0.3, 0.6, 0.8]),
        ]
    )


def test_against_baseline_by_hand():
    table = against_baseline(two_systems())
    assert list(table.columns) == (
        "track system dataset metric mean sd ci_low ci_high baseline delta_percent p_value seeds"
        " p_raw difference_low difference_high".split()
    )
    assert table[["system", "dataset"]].values.tolist() == [
        [s, d] for s in ("baseline", "new") for d in ("A", "B", "average")
    ]
    # new on A: seeds .6 and .7, sd = .1/sqrt(2); on B: .5 and 1.7/3; average: .55 and .6333333, sd = .0833333/sqrt(2)
    np.testing.assert_allclose(table["mean"], [0.5, 0.4, 0.45, 0.65, 1.6 / 3, (0.65 + 1.6 / 3) / 2])
    np.testing.assert_allclose(table["sd"], [np.nan] * 3 + list(np.array([0.1, 0.2 / 3, 0.25 / 3]) / np.sqrt(2)))
    np.testing.assert_allclose(table["baseline"], [0.5, 0.4, 0.45] * 2)
    np.testing.assert_allclose(table["delta_percent"], [0, 0, 0, 30, 100 / 3, 100 * (0.59166667 / 0.45 - 1)], atol=1e-5)
    # A: averaged differences .1, .2: 2 of 4 flips. B: .1, .1, .2: 2/8. average: all five alike: 2/32. Holm over three:
    # sorted .0625 x 3 = .1875, .25 x 2 = .5, .5 x 1 -> .5
    np.testing.assert_allclose(table["p_value"], [np.nan] * 3 + [0.5, 0.5, 0.1875])
    np.testing.assert_allclose(table["p_raw"], [np.nan] * 3 + [0.5, 0.25, 0.0625])
    assert table["seeds"].tolist() == [1, 1, 1, 2, 2, 2]
    assert (table["ci_low"] <= table["mean"]).all() and (table["mean"] <= table["ci_high"]).all()
    assert table.loc[0, "ci_low"] == table.loc[0, "ci_high"] == 0.5  # two queries with the same score
    assert (table.loc[:2, ["difference_low", "difference_high"]] == 0).all(axis=None)  # the baseline against itself
    # new on A: differences 0, .2 of seed 0 and .2, .2 of seed 1: no draw leaves [0, .2], and the score interval is wider
    difference = table.loc[3:, "mean"] - table.loc[3:, "baseline"]
    assert table.loc[3, ["difference_low", "difference_high"]].tolist() == pytest.approx([0, 0.2])
    assert (table.loc[3:, "difference_low"] <= difference).all() and (
        difference <= table.loc[3:, "difference_high"]
    ).all()


def test_against_baseline_is_made_of_the_public_statistics():
    rng = np.random.default_rng(13)
    base = {"A": rng.random(40), "B": rng.random(60)}
    parts = [scores("t", "baseline", 0, d, x, m) for d, x in base.items() for m in ("ndcg@10", "mrr@10")]
    new = {(s, d): x + rng.normal(0.05, 0.2, len(x)) for s in range(3) for d, x in base.items()}
    parts += [scores("t", "new", s, d, x, m) for (s, d), x in new.items() for m in ("ndcg@10", "mrr@10")]
    table = against_baseline(pd.concat(parts), n_flips=3_000, n_draws=500, seed=4).set_index(
        ["system", "dataset", "metric"]
    )
    strata = np.repeat(["A", "B"], [40, 60])
    values = np.stack([np.concatenate([new[s, "A"], new[s, "B"]]) for s in range(3)])
    compared = np.concatenate([base["A"], base["B"]])
    row = table.loc[("new", "average", "mrr@10")]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        bootstrap_interval(values, strata, n=500, seed=4), abs=1e-12
    )
    paired = bootstrap_interval(values - compared, strata, n=500, seed=4)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(paired, abs=1e-12)
    row = table.loc[("new", "A", "ndcg@10")]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        bootstrap_interval(values[:, :40], n=500, seed=4), abs=1e-12
    )
    raw = [paired_randomization_test(values.mean(0), compared, 3_000, 4, strata)]
    raw += [paired_randomization_test(values.mean(0)[i], compared[i], 3_000, 4) for i in (slice(40), slice(40, 100))]
    ours = table.loc["new"].xs("ndcg@10", level="metric")["p_value"]
    np.testing.assert_allclose(ours[["average", "A", "B"]], holm(raw), atol=0.04)  # the data sets draw other flips


def test_a_track_without_the_baseline_borrows_it_on_its_own_data_sets():
    other = pd.concat([scores("in-domain", "tuned", s, "B", [0.4, 0.6, 0.8]) for s in range(2)])
    table = against_baseline(pd.concat([two_systems(), other]))
    tuned = table[table["track"] == "in-domain"]
    assert tuned[["system", "dataset"]].values.tolist() == [["tuned", "B"], ["tuned", "average"]]
    np.testing.assert_allclose(tuned["baseline"], 0.4)
    # a family a track: raw .5, .25, .0625 of `new` -> .0625 x 3, .25 x 2, .5; .25, .25 of `tuned` -> .25 x 2 both
    np.testing.assert_allclose(table[table["system"] == "new"]["p_value"], [0.5, 0.5, 0.1875])
    np.testing.assert_allclose(tuned["p_value"], [0.5, 0.5])
    assert table[table["track"] == "zero-shot"].equals(
        against_baseline(two_systems())
    )  # the other track changes nothing
    assert (table[table["track"] == "zero-shot"]["system"] == "tuned").sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:-1], "new seed 1 has no ndcg@10 for query q2 of B"),
        (lambda t: t[~((t["system"] == "new") & (t["dataset"] == "B"))], "new seed 0 has no ndcg@10 for query q0 of B"),
        (
            lambda t: pd.concat([t, t[t["system"] == "new"].assign(metric="mrr@10")]),
            "baseline seed 0 has no mrr@10 for query q0 of A",
        ),
        (lambda t: t[t["system"] != "baseline"], "zero-shot: no scores of the baseline 'baseline' on its data sets"),
        (lambda t: t.assign(value=np.nan), "a value is missing or infinite"),
        (lambda t: t.assign(value=np.inf), "a value is missing or infinite"),
        (lambda t: t.assign(dataset="average"), "no data set may be called 'average'"),
        (
            lambda t: pd.concat([t, scores("adapted", "x", 0, "B", [0.1, 0.2])]),
            "adapted: x seed 0 has no ndcg@10 for query q2 of B",
        ),
        (
            lambda t: pd.concat([t, scores("adapted", "x", 0, "C", [0.1, 0.2])]),
            "adapted: no scores of the baseline 'baseline' on its data sets",
        ),
    ],
)
def test_against_baseline_refuses(change, message):
    with pytest.raises(InputError, match=message):
        against_baseline(change(two_systems()))


def test_contrast_by_hand():
    found = contrast(two_systems(), "new", "baseline")
    # means of data sets .65 and 1.6/3 against .5 and .4; five differences alike: 2 of 32 flips
    expected = {"mean_a": 0.59166667, "mean_b": 0.45, "difference": 0.14166667, "p_value": 2 / 32}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    row = against_baseline(two_systems()).iloc[-1]
    assert (found["difference_low"], found["difference_high"]) == (row["difference_low"], row["difference_high"])
    back = contrast(two_systems(), "baseline", "new")
    assert (back["difference_low"], back["difference_high"]) == pytest.approx(
        (-row["difference_high"], -row["difference_low"])
    )
    with pytest.raises(InputError, match="no rows of old"):
        contrast(two_systems(), "new", "old")
    with pytest.raises(InputError, match="not judged on the same queries"):
        contrast(two_systems()[lambda t: ~((t["system"] == "new") & (t["query_id"] == "q2"))], "new", "baseline")


def test_contrast_pairs_seeds_where_both_have_as_many():
    # b is a less .1 with every seed, whose own scores differ by 1: paired, nothing varies
    rows = [scores("zero-shot", name, s, "A", [s - less] * 4) for name, less in (("a", 0), ("b", 0.1)) for s in (0, 1)]
    found = contrast(pd.concat(rows), "a", "b")
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((0.1, 0.1))
    # against three seeds of b, whose mean is .9 at every query: a less that, over draws of two seeds 0 and 1
    found = contrast(pd.concat([*rows, scores("zero-shot", "b", 2, "A", [1.9] * 4)]), "a", "b")
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((-0.9, 0.1))


def test_equivalence_by_hand():
    # a is b less .1 at every query with every seed: the interval is that one point
    rows = [scores("zero-shot", name, s, "A", [s - less] * 4) for name, less in (("a", 0.1), ("b", 0)) for s in (0, 1)]
    table = pd.concat(rows)
    for bound, shown in ((0.11, True), (0.09, False)):
        found = equivalent(table, "a", "b", bound)
        assert found == pytest.approx({"bound": bound, "low90": -0.1, "high90": -0.1, "equivalent": shown})
    assert not equivalent(table, "b", "a", 0.09)["equivalent"]
    # one seed: differences .1 and -.1 in 20 queries of two data sets: no significant difference is not equivalence
    noisy = [scores("zero-shot", name, 0, d, [x] * 5 + [-x] * 5) for name, x in (("a", 0.1), ("b", 0)) for d in "AB"]
    assert contrast(pd.concat(noisy), "a", "b")["p_value"] == 1
    assert not equivalent(pd.concat(noisy), "a", "b", 0.02)["equivalent"]
    assert equivalent(pd.concat(noisy), "a", "b", 0.1)["equivalent"]


def test_equivalence_is_two_one_sided_tests():
    # 900 queries, one seed: the interval is the normal one, and both one-sided tests reject just outside it
    rng = np.random.default_rng(14)
    x = rng.normal(0.002, 0.3, 900)
    table = pd.concat([scores("zero-shot", "a", 0, "A", x), scores("zero-shot", "b", 0, "A", np.zeros(900))])
    found, error = equivalent(table, "a", "b", 0.02), x.std() / 30
    normal = scipy.stats.norm.interval(0.9, x.mean(), error)
    np.testing.assert_allclose([found["low90"], found["high90"]], normal, atol=0.1 * error)
    for bound in (0.8 * max(map(abs, normal)), 1.2 * max(map(abs, normal))):
        below, above = (
            scipy.stats.ttest_1samp(x, side * bound, alternative=way).pvalue
            for side, way in ((1, "less"), (-1, "greater"))
        )
        assert equivalent(table, "a", "b", bound)["equivalent"] == (max(below, above) < 0.05)
    for wrong in (0, -0.1, np.nan, np.inf):
        with pytest.raises(InputError, match=r"equivalent: bound = .*, expected a number above 0 in units of ndcg@10"):
            equivalent(table, "a", "b", wrong)
    with pytest.raises(InputError, match="zero-shot: no rows of old with metric ndcg@10"):
        equivalent(table, "a", "old", 0.1)


def test_variance_split_by_hand():
    # a: 0, 1; b: 0, 1; two seeds each at +-1 around 4a + 2b + 8ab. Cell means 0, 2, 4, 14, grand mean 5.
    # a: means 1 and 9: effects -+4, 8 x 16 = 128; b: 2 and 8: -+3, 8 x 9 = 72; a x b: 0-5+4+3 = 2: 8 x 4 = 32; seeds 8
    rows = [(a, b, 4 * a + 2 * b + 8 * a * b + e) for a in (0, 1) for b in (0, 1) for e in (-1, 1)]
    split = variance_split(pd.DataFrame(rows, columns=["a", "b", "y"]), ["a", "b"], "y").set_index("term")
    np.testing.assert_allclose(split.loc[["a", "b", "a x b", "seeds"], "share"], np.array([128, 72, 32, 8]) / 240)
    np.testing.assert_allclose(split.loc[["a", "b"], "range"], [8, 6])
    with pytest.raises(InputError, match="the same number of runs in every cell"):
        variance_split(pd.DataFrame(rows[1:], columns=["a", "b", "y"]), ["a", "b"], "y")
    missing = pd.DataFrame(rows, columns=["a", "b", "y"]).astype({"y": float})
    missing.loc[3, "y"] = np.nan  # a run that diverged: nothing adds up, so nothing is split
    assert variance_split(missing, ["a", "b"], "y")[["share", "range"]].isna().all(axis=None)
