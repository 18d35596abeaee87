"""Length and angle: statistics by hand and by loop, growth that adds up, and the case's own log."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib import losses, magnitude, train
from asymlib.errors import InputError
from asymlib.pair_vectors import PairVectors
from asymlib.recipes import Recipe
from tests.test_alarm import long, row

SMALL = Recipe(name="small", similarity="dot", temperature=0.5, lr=1e-2, batch_size=16, epochs=2)
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair_vectors(n: int, seed: int) -> PairVectors:
    q = losses.normalize(draw(n, 16, seed=seed))
    return PairVectors(q, losses.normalize(q + 0.1 * draw(n, 16, seed=seed + 100)), torch.arange(n))


# ---------------------------------------------------------------- spectra


@pytest.mark.parametrize(
    ("variances", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], 1.0),  # isotropic
        ([5.0, 0.0, 0.0, 0.0], 0.0),  # rank one
        # k = 2 of n = 4: |v| = sqrt 2, v^ = (sqrt 2, sqrt 2, 0, 0), |v^ - 1|^2 = 2 (sqrt 2 - 1)^2 + 2 = 2.343146,
        # delta^2 = 2.343146/(2 (4 - 2)) = 0.585786, (4 - 2 delta^2)^2 = 2.828427^2 = 8, (8 - 4)/12 = 1/3 = (k - 1)/(n - 1)
        ([1.0, 1.0, 0.0, 0.0], 1 / 3),
        ([7.0] * 8 + [0.0] * 8, 7 / 15),
    ],
)
def test_iso_score_by_hand(variances, expected):
    assert float(magnitude.iso_score(torch.tensor(variances))) == pytest.approx(expected, abs=1e-6)
    assert float(magnitude.iso_score(1e4 * torch.tensor(variances))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("singular_values", "expected"),
    [
        ([3.0, 3.0, 3.0, 3.0, 3.0], 5.0),
        ([3.0, 0.0, 0.0], 1.0),
        ([2.0, 1.0, 1.0], 2 * math.sqrt(2)),  # shares 1/2, 1/4, 1/4: entropy ln 2/2 + ln 4/2 = 1.5 ln 2
    ],
)
def test_rank_me_by_hand(singular_values, expected):
    assert float(magnitude.rank_me(torch.tensor(singular_values))) == pytest.approx(expected, rel=1e-6)


def test_the_spectra_in_a_history_are_those_of_sklearn_and_numpy():
    from sklearn.decomposition import PCA

    z = draw(1, 1, 50, 6, seed=1) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.1]) + 1
    scores = losses.score_matrix(z, z, "dot")
    rows = magnitude.statistics(z, z, scores, torch.zeros_like(scores, dtype=torch.bool), torch.ones(1), spectrum=True)
    cloud = z[0, 0].double().numpy()
    variances = torch.from_numpy(PCA().fit(cloud).explained_variance_)
    assert float(rows["isoscore.query"]) == pytest.approx(float(magnitude.iso_score(variances)), rel=1e-6)
    singular = np.linalg.svd(cloud, compute_uv=False)
    share = singular / singular.sum()
    assert float(rows["rankme.document"]) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert 0 < float(rows["isoscore.query"]) < 0.9 and 1 < float(rows["rankme.query"]) < 6


# ---------------------------------------------------------------- statistics


def test_every_statistic_by_hand():
    # q1 = (3, 4), q2 = (0, 2); d1 = (3, 4), d2 = (1, 0); tau = 0.5; |q| = 5, 2; |d| = 5, 1
    q, d = torch.tensor([[[[3.0, 4.0], [0.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]]])
    scores = losses.score_matrix(q, d, "dot")  # [[25, 3], [8, 0]]
    same = torch.eye(2, dtype=torch.bool)[None, None]
    rows = {k: float(v) for k, v in magnitude.statistics(q, d, scores, same, torch.tensor([0.5])).items()}
    expected = {
        "similarity.positive.logit": (50 + 0) / 2,
        "similarity.positive.dot": (50 + 0) / 2,
        "similarity.negative.logit": (6 + 16) / 2,
        "similarity.positive.cosine": (1 + 0) / 2,
        "similarity.negative.cosine": (3 / 5 + 8 / 10) / 2,
        "accuracy": 0.5,  # 25 > 3, but 0 < 8
        "temperature.effective": (0.5 / 25 + 0.5 / 2) / 2,
        # std over texts, mean over dimensions: q dimension 1: (3, 0): sqrt(4.5); dimension 2: (4, 2): sqrt 2
        "std.query": (math.sqrt(4.5) + math.sqrt(2)) / 2,
        "std.document": (math.sqrt(2) + math.sqrt(8)) / 2,  # (3, 1): sqrt 2; (4, 0): sqrt 8
        "length.query.mean": 3.5,
        "length.query.p05": 2 + 0.05 * 3,  # linear between 2 and 5
        "length.query.p95": 2 + 0.95 * 3,
        "length.document.mean": 3.0,
        "length.document.p05": 1 + 0.05 * 4,
        "length.document.p95": 1 + 0.95 * 4,
    }
    assert rows == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("similarity", losses.SIMILARITIES)
def test_similarities_and_accuracy_equal_a_loop_that_skips_repeated_passages(similarity):
    q, d = draw(2, 3, 5, 4, seed=2), draw(2, 3, 5, 4, seed=3)
    passage = torch.randint(0, 3, (2, 3, 5), generator=torch.Generator().manual_seed(4))
    same, tau = passage[..., :, None] == passage[..., None, :], torch.tensor([0.1, 2.0])
    scores = losses.score_matrix(q, d, similarity)
    rows = magnitude.statistics(q, d, scores, same, tau, spectrum=True)
    for r in range(2):
        positive, negative, right = [], [], []
        for k in range(3):
            for i in range(5):
                others = [float(scores[r, k, i, j]) for j in range(5) if passage[r, k, i] != passage[r, k, j]]
                positive.append(float(scores[r, k, i, i]))
                negative += others
                right.append(positive[-1] > max(others, default=-math.inf))
        assert float(rows["similarity.positive.logit"][r]) == pytest.approx(np.mean(positive) / float(tau[r]), rel=1e-4)
        assert float(rows["similarity.negative.logit"][r]) == pytest.approx(np.mean(negative) / float(tau[r]), rel=1e-4)
        assert float(rows["accuracy"][r]) == pytest.approx(np.mean(right))
        unit = losses.normalize(q[r].reshape(-1, 4)), losses.normalize(d[r].reshape(-1, 4))
        assert float(rows["alignment"][r]) == pytest.approx(float(losses.alignment(*unit)), rel=1e-5)
        assert float(rows["uniformity.document"][r]) == pytest.approx(float(losses.uniformity(unit[1])), rel=1e-5)


def test_further_documents_are_negatives_of_every_query_and_nothing_else():
    q, d = draw(1, 2, 3, 4, seed=6), draw(1, 2, 7, 4, seed=7)
    same = torch.zeros(1, 2, 3, 7, dtype=torch.bool)
    same[0, 0, 1, 5] = True
    tau = torch.ones(1)
    rows = magnitude.statistics(q, d, losses.score_matrix(q, d, "dot"), same, tau)
    scores = (q[0] @ d[0].mT).tolist()
    negative, right = [], 0
    for k in range(2):
        for i in range(3):
            others = [scores[k][i][j] for j in range(7) if j != i and not same[0, k, i, j]]
            negative += others
            right += scores[k][i][i] > max(others)
    assert float(rows["similarity.negative.logit"]) == pytest.approx(np.mean(negative), rel=1e-5)
    assert float(rows["accuracy"]) == pytest.approx(right / 6)
    own = d[:, :, :3]
    alone = magnitude.statistics(q, own, losses.score_matrix(q, own, "dot"), same[..., :3], tau)
    for name in set(rows) - {"similarity.negative.logit", "similarity.negative.cosine", "accuracy"}:
        torch.testing.assert_close(rows[name], alone[name], rtol=0, atol=0)


@pytest.mark.parametrize("sides", ["both", "query"])
def test_the_frozen_accuracy_is_what_a_recorder_sees_of_an_identity_start(sides):
    validation = pair_vectors(70, 2)
    noisy = PairVectors(
        losses.normalize(validation.queries + 0.3 * draw(70, 16, seed=9)), validation.documents, torch.arange(70) // 2
    )
    recorder, recipe = magnitude.Recorder(), SMALL.with_changes(start="identity", sides=sides, similarity="cosine")
    train.train([(recipe, 0)], pair_vectors(64, 1), noisy, recorder, device="cpu", progress=False)
    start = magnitude.wide(recorder.frame(), "validation").query("step == 0")["accuracy"].item()
    assert magnitude.frozen_accuracy(noisy, batch_size=16) == start and 0 < start < 1
    # the last 6 of 70 make no block; by hand: a query is right if no document of another passage in its block is nearer
    cosine, right = noisy.queries @ noisy.documents.T, 0
    for i in range(64):
        others = [j for j in range(i // 16 * 16, i // 16 * 16 + 16) if j // 2 != i // 2]
        right += bool(cosine[i, i] > cosine[i, others].max())
    assert start == pytest.approx(right / 64)


def test_a_batch_of_one_passage_is_right_and_has_no_negatives():
    z = draw(1, 1, 4, 3)
    scores = losses.score_matrix(z, z, "dot")
    rows = magnitude.statistics(z, z, scores, torch.ones_like(scores, dtype=torch.bool), torch.ones(1))
    assert float(rows["accuracy"]) == 1 and float(rows["similarity.negative.logit"]) == 0


def test_a_tie_with_a_negative_is_not_a_hit():
    collapsed = torch.ones(1, 1, 4, 3)
    scores = losses.score_matrix(collapsed, collapsed, "dot")
    rows = magnitude.statistics(collapsed, collapsed, scores, torch.eye(4, dtype=torch.bool)[None, None], torch.ones(1))
    assert float(rows["accuracy"]) == 0  # a head that maps every text to one point has learned nothing


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), factor=st.floats(0.01, 100))
def test_longer_embeddings_raise_the_logit_and_lower_the_effective_temperature_but_leave_the_cosine(seed, factor):
    q, d = draw(1, 1, 6, 5, seed=seed).double(), draw(1, 1, 6, 5, seed=seed + 1).double()
    same, tau = torch.eye(6, dtype=torch.bool)[None, None], torch.tensor([0.05])
    one = magnitude.statistics(q, d, losses.score_matrix(q, d, "dot"), same, tau)
    two = magnitude.statistics(factor * q, d, losses.score_matrix(factor * q, d, "dot"), same, tau)
    for name, scale in (("similarity.positive.cosine", 1), ("similarity.positive.dot", factor), ("accuracy", 1),
                        ("temperature.effective", 1 / factor), ("length.query.p95", factor), ("std.query", factor),
                        ("std.document", 1)):  # fmt: skip
        assert float(two[name]) == pytest.approx(scale * float(one[name]), rel=1e-6, abs=1e-9), name


# ---------------------------------------------------------------- gradients along and across


def test_radial_share_by_hand():
    # z = (1, 0): g = (3, 4) has 9 of 25 along it; z = (0, 2): g = (0, 5) lies along it: (9 + 25)/(25 + 25)
    z, gradient = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    assert float(magnitude.radial_share(gradient, z)) == pytest.approx(34 / 50)
    assert math.isnan(float(magnitude.radial_share(torch.zeros(2, 2), z)))


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    recorder = magnitude.Recorder()
    cosine = SMALL.with_changes(name="cosine", similarity="cosine")
    stopping = SMALL.with_changes(name="stopping", lr=1e25)
    train.train([(SMALL, 0), (SMALL, 1), (cosine, 0), (stopping, 0)], pair_vectors(64, 1), pair_vectors(40, 2), recorder, 3,
                "cpu", False)  # fmt: skip
    return recorder.frame()


def test_radial_and_tangential_gradients_add_up_and_cosine_has_no_radial_part(history):
    rows = magnitude.wide(history, "train")
    for side in ("query", "document"):
        parts = rows[
            [f"gradient.{side}.{part}" for part in ("norm", "radial", "tangential", "radial_share")]
        ].to_numpy()
        norm, radial, tangential, share = parts.T
        np.testing.assert_allclose(radial**2 + tangential**2, norm**2, rtol=1e-5)
        np.testing.assert_allclose(share * norm**2, radial**2, rtol=1e-5, atol=1e-12)
        is_cosine = (rows["system"] == "cosine").to_numpy()
        assert (share[is_cosine] < 1e-10).all() and (share[~is_cosine] > 1e-4).all()


# ---------------------------------------------------------------- histories


def test_a_history_is_long_sorted_and_complete(history):
    assert tuple(history.columns) == magnitude.HISTORY_COLUMNS
    validation, training = magnitude.wide(history, "validation"), magnitude.wide(history, "train")
    kept = validation[validation["system"] != "stopping"]
    assert kept.groupby(["system", "seed"])["epoch"].apply(list).tolist() == [[0.0, 1.0, 2.0]] * 3
    assert training[training["system"] == "small"]["step"].tolist() == [0, 3, 6] * 2
    watched = {
        "loss.total", "loss.contrastive", "loss.isotropy", "similarity.positive.dot", "similarity.positive.logit",
        "similarity.negative.logit",
        "similarity.positive.cosine", "similarity.negative.cosine", "std.query", "std.document", "length.query.mean",
        "length.query.p05", "length.query.p95", "length.document.mean", "length.document.p05", "length.document.p95", "accuracy",
        "temperature.effective",
    }  # fmt: skip
    spectrum = {"isoscore.query", "isoscore.document", "rankme.query", "rankme.document", "alignment", "uniformity.query",
                "uniformity.document"}  # fmt: skip
    gradients = {f"gradient.{side}.{part}" for side in ("query", "document")
                 for part in ("norm", "radial", "tangential", "radial_share")} | {"gradient.parameters"}  # fmt: skip
    keys = {"system", "seed", "epoch", "step"}
    assert set(validation.columns) == watched | spectrum | keys
    assert set(training.columns) == watched | gradients | keys
    assert np.isfinite(history["value"]).all()


def test_a_stopped_runs_later_rows_are_left_out(history):
    assert set(history[history["system"] == "stopping"]["step"]) == {0}


def test_a_run_that_overflows_gets_nan_spectra_and_its_neighbours_keep_theirs():
    z = draw(2, 1, 8, 4, seed=5)
    z[0, 0, 0, 0] = math.inf
    scores = losses.score_matrix(z, z, "dot")
    rows = magnitude.statistics(z, z, scores, torch.zeros_like(scores, dtype=torch.bool), torch.ones(2), spectrum=True)
    alone = magnitude.statistics(
        z[1:], z[1:], scores[1:], torch.zeros_like(scores[1:], dtype=torch.bool), torch.ones(1), True
    )
    for name in ("isoscore.query", "rankme.document"):
        assert torch.isnan(rows[name][0])
        torch.testing.assert_close(rows[name][1:], alone[name])


def test_an_empty_recorder_and_a_missing_split():
    empty = magnitude.Recorder().frame()
    assert tuple(empty.columns) == magnitude.HISTORY_COLUMNS and empty.empty
    with pytest.raises(InputError, match="no rows with split 'test', found"):
        magnitude.wide(empty, "test")


# ---------------------------------------------------------------- attribution


def test_attribution_by_hand():
    # logit 2 -> 24, factor 12 = 2 (query) x 3 (document) x 2 (angle)
    found = magnitude.attribution(row(2, 1, 1), row(24, 2, 3))
    expected = {"query": math.log(2), "document": math.log(3), "angle": math.log(2), "total": math.log(12),
                "length_share": math.log(6) / math.log(12)}  # fmt: skip
    assert found == pytest.approx(expected)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1), q_factor=st.floats(0.1, 10), d_factor=st.floats(0.1, 10), tau=st.floats(0.01, 10)
)
def test_attribution_adds_up_and_its_angle_is_the_length_weighted_cosine(seed, q_factor, d_factor, tau):
    same, temperature = torch.eye(6, dtype=torch.bool)[None, None], torch.tensor([tau], dtype=torch.float64)

    def measured(q: torch.Tensor, d: torch.Tensor) -> tuple[pd.Series, float]:
        statistics = magnitude.statistics(q, d, losses.score_matrix(q, d, "dot"), same, temperature)
        weights = q.norm(dim=-1) * d.norm(dim=-1)
        cosine = torch.nn.functional.cosine_similarity(q, d, dim=-1)
        product = q.norm(dim=-1).mean() * d.norm(dim=-1).mean()
        return pd.Series({k: float(v) for k, v in statistics.items()}), float((weights * cosine).mean() / product)

    q = draw(1, 1, 6, 8, seed=seed).double()
    start, cosine0 = measured(q, q + draw(1, 1, 6, 8, seed=seed + 1))
    end, cosine1 = measured(q_factor * (q + 0.3 * draw(1, 1, 6, 8, seed=seed + 2)), d_factor * q)
    if cosine0 <= 0.01 or cosine1 <= 0.01:
        return
    found = magnitude.attribution(start, end)
    assert found["query"] + found["document"] + found["angle"] == pytest.approx(found["total"], abs=1e-12)
    assert found["angle"] == pytest.approx(math.log(cosine1 / cosine0), abs=1e-9)
    # a factor on all queries goes to 'query' alone
    longer = magnitude.attribution(
        start, measured(2 * q_factor * (q + 0.3 * draw(1, 1, 6, 8, seed=seed + 2)), d_factor * q)[0]
    )
    assert longer["query"] - found["query"] == pytest.approx(math.log(2), abs=1e-9)
    assert (longer["document"], longer["angle"]) == pytest.approx((found["document"], found["angle"]), abs=1e-9)


def test_attribution_refuses_logits_without_a_logarithm():
    for start, end in (
        (row(-1, 1, 1), row(2, 1, 1)),
        (row(1, 1, 1), row(0, 1, 1)),
        (row(1, 1, 1), row(math.nan, 1, 1)),
        (row(1, 1, 1), row(math.inf, 1, 1)),
        (row(1, 1, 0), row(1, 1, 1)),
        (row(1, 1, 1), row(1, math.nan, 1)),
        (row(1, 1, 1).drop("length.query.mean"), row(1, 1, 1)),
    ):
        with pytest.raises(InputError, match="its logarithm needs both above 0"):
            magnitude.attribution(start, end)


@pytest.mark.parametrize("end", [row(math.nan, math.nan, math.nan), row(math.inf, math.inf, 1), row(1, 0, 0)])
def test_a_run_that_exploded_is_an_empty_row_beside_the_others(end):
    exploded, healthy = long([row(1, 1, 1), row(2, 2, 1), end]), long([row(1, 1, 1), row(2, 2, 1), row(8, 4, 1)], "y")
    table = magnitude.attribute_history(pd.concat([exploded, healthy])).set_index("system")
    assert table.loc["x"].drop("seed").isna().all()
    assert table.loc["y", "total"] == pytest.approx(math.log(4))


def test_a_run_that_stopped_before_the_first_epoch_was_over_has_nothing_to_attribute():
    table = magnitude.attribute_history(pd.concat([long([row(1, 1, 1)]), long([row(1, 1, 1), row(2, 2, 1)], "y")]))
    assert table["total"].isna().tolist() == [True, False]


def test_attribution_without_any_growth_has_no_share():
    assert math.isnan(magnitude.attribution(row(2, 1, 1), row(2, 1, 1))["length_share"])


def test_a_history_is_attributed_from_the_epoch_asked_for():
    grown = long([row(0.1, 1, 1), row(2, 1, 1), row(4, 1, 2), row(8, 2, 2)])
    negative = long([row(-1, 1, 1), row(-2, 1, 1), row(5, 2, 2)], seed=1)
    since_one = magnitude.attribute_history(pd.concat([grown, negative])).set_index("seed")
    assert since_one.loc[0, "total"] == pytest.approx(math.log(4)) and since_one.loc[
        0, "length_share"
    ] == pytest.approx(1)
    assert since_one.loc[1].drop("system").isna().all()
    alone = magnitude.attribute_history(negative)  # nothing has a logarithm: rows of nan, still numbers
    assert alone.drop(columns="system").iloc[0, 1:].isna().all() and (alone.dtypes[2:] == "float64").all()
    since_start = magnitude.attribute_history(grown, since=0).iloc[0]
    assert since_start["total"] == pytest.approx(math.log(80))
    assert since_start["angle"] == pytest.approx(math.log(20))


# ---------------------------------------------------------------- the case's own log


def test_the_cases_log_gives_the_published_arithmetic():
    table = magnitude.case_arithmetic().set_index("epoch")
    # 32.25 x 0.05 / (768 x 0.067 x 0.059) = 1.6125/3.03590 = 0.531, and so on
    assert table["implied_cosine"].round(2).tolist() == [0.53, 0.55, 0.57]
    last = table.loc[3]
    # 163.60/32.25 = 5.07 = (0.146/0.067)(0.129/0.059) = 4.76 from lengths x 1.07 from angle
    assert math.exp(last["total"]) == pytest.approx(5.07, abs=0.005)
    assert math.exp(last["query"] + last["document"]) == pytest.approx(4.76, abs=0.01)
    assert math.exp(last["angle"]) == pytest.approx(1.065, abs=0.005)
    assert last["length_share"] == pytest.approx(0.96, abs=0.005)
    assert last["query_length"] == pytest.approx(0.146 * math.sqrt(768))
    assert table.loc[1, ["query", "document", "angle", "total"]].tolist() == [0, 0, 0, 0]


def test_our_statistics_in_the_cases_columns_by_hand():
    batches = {0.0: 10.0, 0.5: 20.0, 1.0: 40.0, 1.5: 60.0}  # epoch -> logit of a training batch before its update
    rows = [
        ("a", 0, 10 * epoch, epoch, "train", "similarity.positive.logit", value) for epoch, value in batches.items()
    ]
    rows += [
        ("a", 0, 10 * epoch, epoch, "validation", "similarity.positive.logit", 100 * epoch) for epoch in (0.0, 1.0, 4.0)
    ]
    for name in ("similarity.negative.logit", "std.query", "std.document"):
        rows += [(*row[:5], name, 0.1) for row in rows[:7]]
    table = magnitude.case_columns(pd.DataFrame(rows, columns=magnitude.HISTORY_COLUMNS))
    value, case, off = (table.set_index(["column", "epoch"])[name] for name in ("value", "case", "off"))
    assert value["positive.train"].dropna().tolist() == [15.0, 50.0]  # means of epoch 1, [0, 1), and of epoch 2
    assert value["positive.validation"].dropna().tolist() == [100.0, 400.0]  # after epochs 1 and 4; not the start
    assert value["std.query", 2] == pytest.approx(0.1) and case["std.query", 2] == 0.109
    assert off["positive.train", 2] == pytest.approx(50 / 88 - 1)
    assert off["negative.validation", 1] == pytest.approx((0.1 - 0.32) / 64.65)  # in positive logits
    assert math.isnan(case["positive.validation", 4])


# ---------------------------------------------------------------- lengths against relevance


def test_rates_by_length_by_hand():
    # lengths 4, 1, 3, 2: the short half is documents 1 and 3, the long half 2 and 0
    length = np.array([4.0, 1, 3, 2])
    found = np.array([[0, 2], [0, 1], [0, -1]])  # 5 results: document 0 three times, 1 and 2 once each
    relevant = np.array([1, 2, 0, 1])
    table = magnitude.rates_by_length(length, found, relevant, groups=2).set_index("length_decile")
    assert table["length"].tolist() == [1.5, 3.5]
    assert table["retrieved_rate"].tolist() == pytest.approx([1 / 5 * 2, 4 / 5 * 2])
    assert table["relevant_rate"].tolist() == pytest.approx([3 / 4 * 2, 1 / 4 * 2])
    # all documents of one length, each found equally often: every group is the average one
    even = magnitude.rates_by_length(np.ones(20), np.arange(20)[:, None], np.ones(20, int))
    assert even["retrieved_rate"].tolist() == pytest.approx([1.0] * 10)


def test_the_figure_of_growth_names_runs_that_diverged():
    from asymlib.report import training_figures

    rows = [("a", 0, 0.1, 0.2, 0.3, 0.6, False), ("a", 1, *[math.nan] * 4, True), ("b", 0, *[math.nan] * 4, True)]
    table = pd.DataFrame(rows, columns=["system", "seed", "query", "document", "angle", "total", "diverged"])
    figure, shown = training_figures.growth_split(table)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a (1 of 2 seeds) (1 diverged)", "b"] and shown["diverged"].tolist() == [1, 1]
    assert "diverged" in [text.get_text() for text in figure.axes[0].texts]
