"""The statistics that turn per-query scores into a result: paired tests, intervals, and the tables made of them."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from asymlib.errors import InputError
from asymlib.evaluate import METRIC

FLIPS = 100_000  # random sign flips of a paired test


def paired_randomization_test(
    a: np.ndarray, b: np.ndarray, n: int = FLIPS, seed: int = 0, strata: np.ndarray | None = None
) -> np.ndarray:
    """Two-sided p-value of the mean difference between paired per-query scores, by random sign flips.

        T = mean_s mean_{q in s} (a_q - b_q);  p = (1 + #{|T*| >= |T|}) / (n + 1),  T* with each a_q - b_q negated or not

    a: (Q,) or (M, Q) for M comparisons, which share the flips (Holm's correction allows that). b: (Q,) or (M, Q).
    strata: (Q,) labels, for example data sets, which then weigh the same each; None: one stratum. Returns () or (M,) in (0, 1].
    If there are at most n ways to flip (Q <= 16 for the default), all are counted instead: p = #{|T*| >= |T|} / 2^Q.
    Several seeds of a system: average each query over the seeds first; the test then speaks of these seeds and other queries.
    Fisher 1935; Smucker, Allan & Carterette 2007 (CIKM) for retrieval. scipy.stats.permutation_test, "samples", agrees.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim not in (1, 2) or a.size == 0 or b.shape not in (a.shape, a.shape[-1:]):
        raise InputError(f"paired test: expected scores of the same queries, not {a.shape} against {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("paired test: a score is NaN or infinite")
    return _flip_tests(np.atleast_2d(a - b), _labels(strata, a.shape[-1]), n, seed)[-1].reshape(a.shape[:-1])


@threadpool_limits.wrap(limits=1, user_api="blas")  # the same sums on any number of cores
def _flip_tests(x: np.ndarray, label: np.ndarray, n: int, seed: int) -> np.ndarray:
    """x: (M, Q) differences; label: (Q,) strata 0..K-1. Returns (K + 1, M) p-values: of each stratum's mean, then of their mean."""
    n_queries, size = x.shape[1], np.bincount(label)
    ends = np.cumsum(size)
    x = x[:, np.argsort(label, kind="stable")] / np.repeat(size, size)  # strata side by side; each sums to its mean
    parts = [slice(start, end) for start, end in zip(ends - size, ends, strict=True)]

    def statistics(sums: list[np.ndarray]) -> np.ndarray:
        return np.stack([*sums, sum(sums) / len(sums)])  # (K + 1, M, ...)

    observed = statistics([x[:, part].sum(1) for part in parts])
    size_of_terms = statistics([np.abs(x[:, part]).sum(1) for part in parts])
    least = (np.abs(observed) - 1e-12 * size_of_terms)[..., None]  # a tie up to rounding counts as reached
    exact = n_queries < 63 and 2**n_queries <= n
    draws, step = 2**n_queries if exact else n, max(1, 2**22 // n_queries)
    rng = np.random.default_rng(seed)
    reached = np.zeros(observed.shape, dtype=np.int64)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        if exact:
            flip = np.arange(start, start + rows)[:, None] >> np.arange(n_queries) & 1  # (rows, Q) of 0 and 1
        else:
            packed = rng.integers(0, 256, (rows, -(-n_queries // 8)), dtype=np.uint8)
            flip = np.unpackbits(packed, axis=1, count=n_queries)
        flip = flip.astype(np.float64)
        moved = [x[:, part] @ flip[:, part].T for part in parts]  # (M, rows)
        reached += (np.abs(observed[..., None] - 2 * statistics(moved)) >= least).sum(-1)
    return reached / draws if exact else (1 + reached) / (draws + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment: the chance of even one false claim in the family stays below any chosen level.

        sorted p_(1) <= ... <= p_(m):  adjusted p_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))

    p_values: (m,) in [0, 1] or NaN (not tested: stays NaN and does not count). Returns (m,). Holm 1979.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or (p_values < 0).any() or (p_values > 1).any():
        raise InputError("holm: expected a list of p-values between 0 and 1")
    adjusted = np.full_like(p_values, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factor = np.arange(len(order), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factor * p_values[order]))
    return adjusted


@threadpool_limits.wrap(limits=1, user_api="blas")
def bootstrap_interval(
    values: np.ndarray, strata: np.ndarray | None = None, n: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a mean score over both its seeds and its queries, by two-level resampling.

    Each of n times S seeds are drawn with replacement, and, independently, as many queries of each stratum as it has; the
    statistic is the mean over strata of the mean over the drawn seeds and queries.

    values: (S, Q), or (M, S, Q) for M systems that share the draws; scores, or their differences from another system's, paired
    by query. strata: (Q,) labels, None: one stratum. level: in (0, 1). Returns (low, high), each () or (M,). With one seed only
    queries vary. With few seeds it is too narrow by about sqrt((S - 1) / S) in the seeds' share, as any bootstrap is.
    Efron 1979; for clusters Davison & Hinkley 1997, section 3.8.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (2, 3) or 0 in values.shape or not np.isfinite(values).all():
        raise InputError(f"bootstrap: expected finite scores (seeds, queries), not {values.shape}")
    n_seeds, n_queries = values.shape[-2:]
    label = _labels(strata, n_queries)
    rng = np.random.default_rng(seed)
    seed_share = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n) / n_seeds  # (n, S)
    of_seed = np.zeros((*values.shape[:-1], n))  # (..., S, n) each seed's statistic on each draw of queries
    for stratum in range(label.max() + 1):
        inside = np.flatnonzero(label == stratum)
        drawn = rng.integers(0, len(inside), (n, len(inside))) + len(inside) * np.arange(n)[:, None]
        times = np.bincount(drawn.ravel(), minlength=n * len(inside)).reshape(n, len(inside))  # (n, queries of stratum)
        of_seed += values[..., inside] @ times.T / (len(inside) * (label.max() + 1))
    statistic = np.einsum("ns,...sn->...n", seed_share, of_seed)
    low, high = np.quantile(statistic, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    return low, high


def _labels(strata: np.ndarray | None, n_queries: int) -> np.ndarray:
    """(Q,) strata as 0..K-1, in sorted order of their labels."""
    if strata is None:
        return np.zeros(n_queries, dtype=np.int64)
    strata = np.asarray(strata)
    if strata.shape != (n_queries,):
        raise InputError(f"strata: expected {n_queries} labels, one for each query, not {strata.shape}")
    return np.unique(strata, return_inverse=True)[1]


LINE = ["track", "system", "dataset", "metric"]


def against_baseline(
    per_query: pd.DataFrame, baseline: str = "baseline", n_flips: int = FLIPS, n_draws: int = 2_000, seed: int = 0
) -> pd.DataFrame:
    """The table of systems: a row for each (track, system, dataset, metric) and for the dataset `average`.

    per_query: columns track, system, seed, dataset, query_id, metric, value; a system without training has one seed.
    Returns columns track, system, dataset, metric, and:
        mean: over seeds and queries; of `average`, over data sets, which weigh the same each
        sd: of the seeds' means (divided by n - 1), NaN for one seed
        ci_low, ci_high: bootstrap_interval over seeds and queries
        baseline, delta_percent: the baseline's mean on the same queries; 100 (mean / baseline - 1)
        p_value: paired_randomization_test of the seeds' average per query against the baseline, Holm-corrected within its
            family: all rows of one track and metric, data sets and their average alike; NaN for the baseline itself
        seeds, p_raw: how many there are; the p-value before Holm's correction
        difference_low, difference_high: bootstrap_interval of mean - baseline, paired by query, in the metric's units
    A baseline that is not among a track's systems is taken from another track: it is the same frozen encoder everywhere.
    InputError if the systems of a track do not have exactly the same queries, or a score is double or not finite.
    """
    if not np.isfinite(per_query["value"]).all():
        raise InputError("per-query scores: a value is missing or infinite")
    if (per_query["dataset"] == "average").any():
        raise InputError("per-query scores: no data set may be called 'average', the name of the mean over data sets")
    rows = []
    for track in per_query["track"].unique():
        rows += _of_track(_aligned(per_query, track, baseline), track, baseline, n_flips, (n_draws, seed))
    result = pd.DataFrame(rows).merge(per_query[["track", "system"]].drop_duplicates())  # without a borrowed baseline
    result["p_value"] = result.groupby(["track", "metric"])["p_raw"].transform(lambda p: holm(p.to_numpy()))
    place = {c: {value: i for i, value in enumerate(per_query[c].unique())} for c in LINE}
    place["dataset"]["average"] = len(per_query)
    return result.sort_values(LINE, key=lambda column: column.map(place[column.name]), ignore_index=True)


def _of_track(table: pd.DataFrame, track: str, baseline: str, n_flips: int, draws: tuple) -> list[dict]:
    """The rows of one track, before Holm's correction. table: of _aligned; draws: n and seed of the bootstrap."""
    strata = table.columns.get_level_values("dataset").to_numpy()
    label, names = _labels(strata, len(strata)), [*np.unique(strata), "average"]
    values = {line: part.to_numpy() for line, part in table.groupby(level=["system", "metric"], sort=False)}  # (S, Q)
    compared = {metric: part.mean(0) for (system, metric), part in values.items() if system == baseline}  # (Q,)
    difference = {(*line, "difference"): part - compared[line[1]] for line, part in values.items()}
    means = {line: _means(part, label) for line, part in values.items()}
    reference = {metric: _means(scores[None], label)[:, 0] for metric, scores in compared.items()}
    p_values = {line: np.full(len(names), np.nan) for line in values}
    if rivals := [line for line in values if line[0] != baseline]:
        x = np.stack([values[line].mean(0) - compared[line[1]] for line in rivals])
        p_values.update(zip(rivals, _flip_tests(x, label, n_flips, draws[1]).T, strict=True))
    rows = []
    for i, name in enumerate(names):
        inside = np.full(len(strata), True) if name == "average" else strata == name
        both = {line: part[:, inside] for line, part in (values | difference).items()}
        intervals = _intervals(both, strata[inside], *draws)
        for system, metric in values:
            of_seed, baseline_mean = means[system, metric][i], reference[metric][i]
            row = {"track": track, "system": system, "dataset": name, "metric": metric, "mean": of_seed.mean()}
            row["sd"] = of_seed.std(ddof=1) if len(of_seed) > 1 else np.nan
            row["ci_low"], row["ci_high"] = intervals[system, metric]
            row["baseline"] = baseline_mean
            row["delta_percent"] = 100 * (row["mean"] / baseline_mean - 1) if baseline_mean else np.nan
            row["p_value"], row["seeds"], row["p_raw"] = np.nan, len(of_seed), p_values[system, metric][i]
            row["difference_low"], row["difference_high"] = intervals[system, metric, "difference"]
            rows.append(row)
    return rows


def _means(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """values: (S, Q); label: (Q,) strata 0..K-1. Returns (K + 1, S): each stratum's means over its queries, then their mean."""
    means = [values[:, label == stratum].mean(1) for stratum in range(label.max() + 1)]
    return np.stack([*means, np.mean(means, axis=0)])


def _intervals(values: dict, strata: np.ndarray, n: int, seed: int) -> dict:
    """bootstrap_interval of every line of values, (S, Q) each; lines with the same number of seeds share the draws."""
    found = {}
    for n_seeds in {len(v) for v in values.values()}:
        lines = [line for line, v in values.items() if len(v) == n_seeds]
        low, high = bootstrap_interval(np.stack([values[line] for line in lines]), strata, n, seed)
        found.update(zip(lines, zip(low, high, strict=True), strict=True))
    return found


def _aligned(per_query: pd.DataFrame, track: str, baseline: str) -> pd.DataFrame:
    """A track and the baseline as a table without gaps: (system, metric, seed) x (dataset, query_id)."""
    part = per_query[per_query["track"] == track]
    if not (part["system"] == baseline).any():
        other = per_query[(per_query["system"] == baseline) & per_query["metric"].isin(part["metric"])]
        other = other[other["dataset"].isin(part["dataset"])]
        if other.empty:
            raise InputError(f"{track}: no scores of the baseline {baseline!r} on its data sets to compare with")
        part = pd.concat([part, other[other["track"] == other["track"].iloc[0]]])
    table = part.pivot(index=["system", "metric", "seed"], columns=["dataset", "query_id"], values="value")
    runs = table.index.droplevel("metric").unique()
    table = table.reindex([(system, metric, seed) for system, seed in runs for metric in part["metric"].unique()])
    if len(gaps := np.argwhere(table.isna().to_numpy())):
        (system, metric, seed), (dataset, query) = table.index[gaps[0][0]], table.columns[gaps[0][1]]
        what = f"{track}: {system} seed {seed} has no {metric} for query {query} of {dataset}, which another system or seed has"
        raise InputError(f"{what}: they were not judged on the same queries")
    return table


def contrast(per_query: pd.DataFrame, a: str, b: str, track: str = "zero-shot", metric: str = METRIC) -> dict:
    """Two systems of one track against each other, on the same queries.

    per_query: as for against_baseline. Scores are averaged over seeds; the means and the test give every collection the same
    weight. Returns mean_a, mean_b, difference (a - b), p_value (paired_randomization_test, not corrected for other
    contrasts), difference_low, difference_high (bootstrap_interval over seeds and queries; seeds are paired too where both
    have the same number, or one of them has one, else those of b are averaged).
    """
    runs, differences, strata = _two_systems(per_query, a, b, track, metric)
    scores = runs.groupby(level="system").mean().T  # (Q, 2)
    p_value = paired_randomization_test(scores[a].to_numpy(), scores[b].to_numpy(), strata=strata)
    means = scores.groupby(level="dataset").mean().mean()
    low, high = bootstrap_interval(differences, strata)
    return {"mean_a": means[a], "mean_b": means[b], "difference": means[a] - means[b], "p_value": p_value,
            "difference_low": float(low), "difference_high": float(high)}  # fmt: skip


def equivalent(
    per_query: pd.DataFrame, a: str, b: str, bound: float, track: str = "zero-shot", metric: str = METRIC
) -> dict:
    """Whether two systems of one track differ by less than a bound: two one-sided tests at level 0.05.

    Both tests reject, so that a - b is neither -bound or less nor bound or more, just when its 90 % bootstrap_interval over
    seeds and queries, paired as in contrast, lies inside (-bound, bound). A difference that is merely not significant is not
    shown to be small.

    per_query: as for against_baseline. bound: above 0, in the metric's units, fixed before the scores are seen. Returns bound,
    low90, high90, equivalent. Schuirmann 1987; Lakens 2017 (doi:10.1177/1948550617697177).
    """
    if not 0 < bound < math.inf:
        raise InputError(f"equivalent: bound = {bound}, expected a number above 0 in units of {metric}")
    _, differences, strata = _two_systems(per_query, a, b, track, metric)
    low, high = (float(end) for end in bootstrap_interval(differences, strata, level=0.9))
    return {"bound": bound, "low90": low, "high90": high, "equivalent": -bound < low and high < bound}


def _two_systems(
    per_query: pd.DataFrame, a: str, b: str, track: str, metric: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """(system, seed) x (dataset, query_id); a - b, (S, Q), of paired seeds where both have as many, or one has one; strata."""
    part = per_query[per_query["system"].isin([a, b]) & (per_query["metric"] == metric) & (per_query["track"] == track)]
    if missing := {a, b} - set(part["system"]):
        raise InputError(f"{track}: no rows of {', '.join(sorted(missing))} with metric {metric} to compare")
    runs = _aligned(part, track, b).droplevel("metric").sort_index(axis=1)
    runs_a, runs_b = (runs.loc[system].to_numpy() for system in (a, b))  # (S, Q)
    paired = 1 in (len(runs_a), len(runs_b)) or len(runs_a) == len(runs_b)
    differences = runs_a - (runs_b if paired else runs_b.mean(0))
    return runs, differences, runs.columns.get_level_values("dataset").to_numpy()


def variance_split(table: pd.DataFrame, factors: Sequence[str], value: str) -> pd.DataFrame:
    """Split the variance of a balanced grid into each factor's own effect, effects of several at once, and the seeds.

    table: one row a run, the same number of runs in every cell of the grid. The effect of a set of factors is its cell
    mean less every effect of its subsets; in a balanced grid these are orthogonal, so the shares add up to 1.
    Where a value is missing, nothing adds up: all shares and ranges are NaN.
    Returns rows term ('a', 'a x b', ..., 'seeds'), share of the total sum of squares, and range: the largest
    difference between the levels' means for a single factor, between the cells' effects otherwise (nan for seeds).
    """
    sizes = table.groupby(list(factors)).size()
    if len(sizes) != math.prod(table[factor].nunique() for factor in factors) or sizes.nunique() != 1:
        raise InputError(f"variance_split: expected the same number of runs in every cell of {' x '.join(factors)}")
    y = table[value].astype(float) * (1 if table[value].notna().all() else math.nan)
    effects: dict[tuple[str, ...], pd.Series] = {(): pd.Series(y.mean(), index=table.index)}
    total = float(((y - y.mean()) ** 2).sum()) or math.nan
    rows = []
    for count in range(1, len(factors) + 1):
        for chosen in itertools.combinations(factors, count):
            below = sum(effect for terms, effect in effects.items() if set(terms) < set(chosen))
            effect = effects[chosen] = y.groupby([table[factor] for factor in chosen]).transform("mean") - below
            term, share = " x ".join(chosen), float((effect**2).sum()) / total
            rows.append({"term": term, "share": share, "range": effect.max() - effect.min()})
    rest = y - sum(effects.values())
    rows.append({"term": "seeds", "share": float((rest**2).sum()) / total, "range": math.nan})
    return pd.DataFrame(rows)
