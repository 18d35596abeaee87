"""Metrics against arithmetic by hand and pytrec_eval, what one ranking answers, and what rank refuses."""

from math import log2

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import scipy.stats

from asymlib.errors import InputError
from asymlib.evaluate import Qrels, Ranking, hubness, mrr, ndcg, parse_metric, rank, recall
from asymlib.exact_search import top_k
from asymlib.losses import SIMILARITIES


def test_ndcg_by_hand():
    # Results with grades 2, 0, 3, 1; judged are 3, 2, 2, 1 (one of grade 2 was not found).
    # DCG@3 = 2/log2(2) + 0/log2(3) + 3/log2(4) = 2 + 0 + 1.5 = 3.5
    # ideal = 3/log2(2) + 2/log2(3) + 2/log2(4) = 3 + 1.2618595 + 1 = 5.2618595;  3.5 / 5.2618595 = 0.6651641
    # A negative grade gains nothing: -1, 1 of judged 1, -1: DCG@3 = 1/log2(3) = 0.6309298, ideal = 1
    grades = np.array([[2, 0, 3, 1], [-1, 1, 0, 0], [0, 0, 0, 0]])
    ideal = np.array([[3, 2, 2, 1], [1, -1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(ndcg(grades, ideal, 3), [0.6651641, 0.6309298, 0], atol=1e-7)
    # @4 adds 1/log2(5) to both: (3.5 + 0.4306766) / (5.2618595 + 0.4306766) = 0.6904967
    np.testing.assert_allclose(ndcg(grades, ideal, 4)[0], (3.5 + 1 / log2(5)) / (4 + 2 / log2(3) + 1 / log2(5)))
    np.testing.assert_allclose(ndcg(grades, ideal, 4)[0], 0.6904967, atol=1e-7)


def test_mrr_and_recall_by_hand():
    relevant = np.array([[False, False, True, True], [True, False, False, False], [False, False, False, True]])
    np.testing.assert_array_equal(mrr(relevant, 3), [1 / 3, 1, 0])  # the third query's first hit is at 4
    np.testing.assert_array_equal(mrr(relevant, 10), [1 / 3, 1, 1 / 4])
    # found among the first 3: 1, 1, 0 of 4, 1, 2 relevant documents; the divisor is not cut at k
    np.testing.assert_array_equal(recall(relevant, np.array([4, 1, 2]), 3), [0.25, 1, 0])
    np.testing.assert_array_equal(recall(relevant, np.array([0, 1, 2]), 4), [0, 1, 0.5])


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@", "ndcg@0", "ndcg@05", "NDCG@10", "map@10", "ndcg@10 ", "recall@-1"])
def test_metric_names_are_strict(metric):
    assert parse_metric("recall@100") == ("recall", 100)
    with pytest.raises(InputError, match="expected ndcg@k, mrr@k or recall@k"):
        parse_metric(metric)


def random_judgements(rng):
    """60 documents, 15 queries that have documents' ids, grades -1 to 3, some judged documents outside the corpus."""
    doc_ids = [f"{i * 37 % 101}é"[: 2 + i % 3] + f"-{i}" for i in range(60)]
    query_ids = [doc_ids[i] for i in rng.permutation(60)[:15]]
    pool = [*doc_ids, "gone-1", "gone-2"]
    qrels = {
        query: {pool[j]: int(rng.integers(-1, 4)) for j in rng.permutation(62)[: rng.integers(1, 30)]}
        for query in query_ids
    }
    return doc_ids, query_ids, qrels


def few_scores(rng):
    """Vectors with 4 different dot products at most, so that ties abound; no document is zero."""
    q, d = rng.integers(0, 2, (15, 3)), rng.integers(0, 2, (60, 3))
    return np.hstack([q, np.zeros((15, 1))]), np.hstack([d, np.ones((60, 1))])


@pytest.mark.parametrize("drop_self", [False, True])
@pytest.mark.parametrize("relevant_from", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_pytrec_eval_with_ties_and_self_matches(drop_self, relevant_from, seed):
    rng = np.random.default_rng(seed)
    doc_ids, query_ids, qrels = random_judgements(rng)
    q, d = few_scores(rng)
    metrics = ("ndcg@10", "ndcg@100", "mrr@10", "recall@10", "recall@100")
    table = rank(Qrels("random", doc_ids, query_ids, qrels, drop_self, relevant_from), q, d, "dot", None).per_query(
        metrics
    )
    ours = table.pivot(index="query_id", columns="metric", values="value")

    run = {
        query: dict(zip(doc_ids, row, strict=True)) for query, row in zip(query_ids, (q @ d.T).tolist(), strict=True)
    }
    if drop_self:
        run = {query: {doc: score for doc, score in row.items() if doc != query} for query, row in run.items()}
    first = {
        query: dict(sorted(row.items(), key=lambda x: (x[1], x[0]), reverse=True)[:10]) for query, row in run.items()
    }
    names = {"ndcg_cut.10,100", "recall.10,100", "recip_rank"}
    oracle = pytrec_eval.RelevanceEvaluator(qrels, names, relevance_level=relevant_from)
    whole, cut = oracle.evaluate(run), oracle.evaluate(first)
    for query in query_ids:
        theirs = [whole[query]["ndcg_cut_10"], whole[query]["ndcg_cut_100"], cut[query]["recip_rank"]]
        theirs += [whole[query]["recall_10"], whole[query]["recall_100"]]
        np.testing.assert_allclose(ours.loc[query, list(metrics)], theirs, atol=1e-6, err_msg=query)


DOC_IDS, QUERY_IDS, JUDGED = ["a", "b", "c"], ["b", "x"], {"b": {"a": 1, "b": 2}, "x": {"c": 1}}
SMALL = Qrels("small", DOC_IDS, QUERY_IDS, JUDGED)


def test_a_ranking_gives_a_row_for_each_query_and_metric():
    # b scores c 2, then a and b 1: of equals the later id comes first, so c, b, a. x scores c 0, a and b -1: c first.
    q, d = np.array([[1.0, 1.0], [0.0, -1.0]]), np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    table = rank(SMALL, q, d, "dot", "dot").per_query(("mrr@3", "recall@2"))
    assert table.values.tolist() == [
        ["small", "b", "mrr@3", 0.5],
        ["small", "x", "mrr@3", 1.0],
        ["small", "b", "recall@2", 0.5],
        ["small", "x", "recall@2", 1.0],
    ]
    assert list(table.columns) == ["dataset", "query_id", "metric", "value"]
    dropped = Qrels("small", DOC_IDS, QUERY_IDS, JUDGED, drop_self=True)  # c, a for b: its own document is gone
    found = rank(dropped, q, d, "dot", "dot")
    assert found.rows.tolist() == [[2, 0, -1], [2, 1, 0]]
    assert found.per_query(("mrr@1", "mrr@3", "recall@100"))["value"].tolist() == [0, 1, 0.5, 1, 0.5, 1]
    assert found.mean("mrr@3") == 0.75
    assert found.document_length.tolist() == [1, 1, 2] and found.document_length.dtype == np.float64


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_an_empty_document_ranks_last_whatever_the_similarity_and_an_empty_query_finds_ties(similarity):
    d = np.array([[0, 0], [-1, 0], [0, -1], [0, 0], [-1, -1]], dtype=np.float32)
    qrels = Qrels("own", list("adbec"), ["q", "empty"], {"q": {"b": 1, "a": 1}, "empty": {"c": 1}})
    found = rank(qrels, np.array([[1, 0], [0, 0]], dtype=np.float32), d, similarity, None)
    # q: b scores 0 under all but euclidean (-2), above d and c; e and a are empty, of which e sorts later
    first = {0: found.rows[0].tolist(), 1: found.rows[1].tolist()}
    assert first[0][0] == 2 and first[0][3:] == [3, 0]
    if similarity != "euclidean":
        assert first[1] == [1, 4, 2, 3, 0]  # ids d, c, b; then e, a
    assert found.ties()["tied_queries"] == 2 and np.isfinite(found.ties()["mean_reversed"])


def test_relevant_counts_are_the_queries_that_a_document_answers():
    judged = {"b": {"a": 1, "b": 2, "gone": 1}, "x": {"a": 3, "c": 0}}
    assert Qrels("small", DOC_IDS, QUERY_IDS, judged).relevant_counts.tolist() == [2, 1, 0]


@pytest.mark.parametrize("trained_with", SIMILARITIES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_another_similarity_than_in_training_is_refused_unless_asked_for(similarity, trained_with):
    q, d = np.ones((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
    asked = rank(SMALL, q, d, similarity, trained_with, allow_other_similarity=True)
    np.testing.assert_array_equal(asked.rows, rank(SMALL, q, d, similarity, None).rows)
    if similarity == trained_with:
        np.testing.assert_array_equal(asked.rows, rank(SMALL, q, d, similarity, trained_with).rows)
    else:
        with pytest.raises(
            InputError, match=f"trained with {trained_with}, evaluated with {similarity}.*same similarity"
        ):
            rank(SMALL, q, d, similarity, trained_with)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones((3, 2))}, "small: 3 queries given, expected 2"),
        ({"documents": np.ones((2, 2))}, "small: 2 documents given, expected 3"),
        ({"trained_with": "cos"}, "trained_with 'cos': expected None or one of"),
    ],
)
def test_rank_refuses(change, message):
    given = {"queries": np.ones((2, 2)), "documents": np.ones((3, 2)), "similarity": "dot", "trained_with": None}
    with pytest.raises(InputError, match=message):
        rank(SMALL, **given | change)


def test_a_list_too_short_for_a_metric_and_a_grade_that_is_none_are_refused():
    short = rank(SMALL, np.ones((2, 2)), np.ones((3, 2)), "dot", None, k=2)
    assert short.rows.shape == (2, 2)
    with pytest.raises(InputError, match="'ndcg@10': the ranking holds 2 documents, expected at least 10"):
        short.mean()
    with pytest.raises(InputError, match="relevant_from 0"):
        Qrels("small", DOC_IDS, QUERY_IDS, JUDGED, relevant_from=0)


# ------------------------------------------------------------------------------------------- what one ranking answers


def test_ties_by_hand():
    # Both queries score a, b, c alike, so their order is c, b, a, and a, b, c reversed. Relevant: a for the first query
    # (1/log2(4) = 0.5, reversed 1), c for the second (1, reversed 0.5). The third prefers b, and a and c are tied behind it.
    qrels = Qrels("tied", DOC_IDS, ["q1", "q2", "q3"], {"q1": {"a": 1}, "q2": {"c": 1}, "q3": {"b": 1}})
    q, d = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([[1.0, 0], [1, 1], [1, 0]])
    found = rank(qrels, q, d, "dot", None)
    assert found.ties() == {"tied_queries": 3, "queries": 3, "mean": 2.5 / 3, "mean_reversed": 2.5 / 3}
    qrels = Qrels("tied", DOC_IDS, ["q1", "q3"], {"q1": {"a": 1}, "q3": {"b": 1}})
    assert rank(qrels, q[[0, 2]], d, "dot", None).ties(k=2) == {
        "tied_queries": 1, "queries": 2, "mean": 0.75, "mean_reversed": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("drop_self", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ties_reversed_equal_a_second_search_with_the_order_reversed(drop_self, seed):
    rng = np.random.default_rng(seed)
    qrels, (q, d) = Qrels("random", *random_judgements(rng), drop_self), few_scores(rng)
    found = rank(qrels, q, d, "dot", None)
    other = top_k(q, d, 11, "dot", -qrels.tie_rank, qrels.exclude)[1]
    expected = qrels.scores(other, ["ndcg@10"])["ndcg@10"].mean()
    ties = found.ties()
    assert ties["mean_reversed"] == expected != ties["mean"] == found.mean()
    assert ties["tied_queries"] == sum(len(set(row[:11])) < 11 for row in found.scores.tolist())


def test_a_tie_past_the_end_of_the_list_cannot_be_reversed():
    doc_ids = [f"{i:02}" for i in range(30)]
    qrels = Qrels("flat", doc_ids, ["q"], {"q": {"00": 1}})
    one, all_equal = np.ones((1, 2)), np.ones((30, 2))
    assert np.isnan(rank(qrels, one, all_equal, "dot", None, k=20).ties()["mean_reversed"])
    assert rank(qrels, one, all_equal, "dot", None).ties()["mean_reversed"] == 1


def test_a_longer_list_begins_with_the_shorter_one():
    rng = np.random.default_rng(3)
    qrels, (q, d) = Qrels("random", *random_judgements(rng), True), few_scores(rng)
    long, short = rank(qrels, q, d, "dot", None), rank(qrels, q, d, "dot", None, k=10)
    np.testing.assert_array_equal(long.rows[:, :10], short.rows)
    assert long.hubness() == hubness(short.rows, 60) != long.hubness(k=5)
    pd.testing.assert_frame_equal(long.by_length(), short.by_length())


def test_lengths_against_relevance_by_hand():
    # lengths 4, 1, 3, 2: the short half is documents b and d, the long half c and a; every query finds the longest first
    judged = {"q1": {"a": 1, "b": 2, "c": 0}, "q2": {"b": 1, "d": 1}}
    qrels = Qrels("halves", ["a", "b", "c", "d"], ["q1", "q2"], judged)
    rows = np.array([[0, 2], [0, 3]])
    found = Ranking(qrels, rows, np.ones((2, 2)), np.array([4.0, 1, 3, 2])).by_length(groups=2)
    assert found["length"].tolist() == [1.5, 3.5]
    assert found["retrieved_rate"].tolist() == [1 / 4 * 2, 3 / 4 * 2]
    assert found["relevant_rate"].tolist() == [3 / 4 * 2, 1 / 4 * 2]


def test_hubness_by_hand():
    # N = 3, 2, 1, 0, 0, 0 in 6 documents, mean 1: skewness = mean(8 + 1 + 0 - 1 - 1 - 1) / (mean(4 + 1 + 0 + 1 + 1 + 1))^1.5
    # = 1 / (8/6)^1.5 = 0.6495191; anti-hubs 3/6; Robin Hood 0.5 (2 + 1 + 0 + 1 + 1 + 1) / 6 = 0.5
    found = hubness(np.array([[0, 1], [0, 1], [0, 2], [-1, -1]]), 6)
    assert found == pytest.approx({"k_skewness": 0.6495191, "anti_hubs": 0.5, "robin_hood": 0.5}, abs=1e-7)
    rows = np.random.default_rng(0).zipf(1.5, (200, 10)) % 100
    skewness = scipy.stats.skew(np.bincount(rows.ravel(), minlength=100))
    assert hubness(rows, 100)["k_skewness"] == pytest.approx(skewness, abs=1e-12)
    assert hubness(np.arange(10).reshape(5, 2), 10) == {"k_skewness": 0, "anti_hubs": 0, "robin_hood": 0}
