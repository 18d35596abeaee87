"""Search against slow loops, metrics against arithmetic by hand and pytrec_eval, and what evaluate refuses."""

import subprocess
import sys
from math import log2

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib.datasets import Collection
from asymlib.errors import InputError
from asymlib.evaluate import (
    SIMILARITIES,
    Judge,
    evaluate,
    hubness,
    hubness_over_seeds,
    mrr,
    ndcg,
    parse_metric,
    recall,
    search,
)


def signs(rng, rows, dimensions=4):
    """Vectors of +1 and -1 in 4 (or 16) dimensions: all of length 2 (or 4), so that every similarity is exact and ties abound."""
    return rng.choice([-1.0, 1.0], (rows, dimensions)).astype(np.float32)


def slow_search(q, d, k, similarity, tie_rank, exclude):
    """The definition, one pair at a time, in Python's doubles."""
    scores, rows = np.full((len(q), k), -np.inf), np.full((len(q), k), -1)
    for i, x in enumerate(q.astype(float)):
        found = []
        for j, y in enumerate(d.astype(float)):
            score = {
                "dot": x @ y,
                "cosine": x @ y / np.sqrt(x @ x) / np.sqrt(y @ y),
                "qnorm": x @ y / np.sqrt(x @ x),
                "dnorm": x @ y / np.sqrt(y @ y),
                "euclidean": -((x - y) @ (x - y)),
            }[similarity]
            if j != exclude[i]:
                found.append((score, tie_rank[j], j))
        for place, (score, _, j) in enumerate(sorted(found, reverse=True)[:k]):
            scores[i, place], rows[i, place] = score, j
    return scores, rows


# ---------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("n", "k"), [(300, 10), (300, 299), (40, 100), (1, 3)])
def test_search_equals_the_definition_with_heavy_ties_at_the_last_place(similarity, n, k):
    rng = np.random.default_rng(n + k)
    q, d = signs(rng, 9), signs(rng, n)
    tie_rank, exclude = rng.permutation(n), rng.integers(-1, n, 9)
    expected = slow_search(q, d, k, similarity, tie_rank, exclude)
    for chunks in ({}, {"doc_chunk": 7, "query_chunk": 2}, {"doc_chunk": 64, "query_chunk": 9}, {"doc_chunk": 299}):
        scores, rows = search(q, d, k, similarity, tie_rank, exclude, **chunks)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(scores, expected[0])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_search_on_ordinary_vectors_equals_the_definition(similarity):
    rng = np.random.default_rng(5)
    q, d = rng.normal(size=(6, 24)), rng.normal(size=(500, 24)) * rng.lognormal(size=(500, 1))
    expected = slow_search(q, d, 20, similarity, np.arange(500), np.full(6, -1))
    scores, rows = search(q, d, 20, similarity, doc_chunk=50)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-6)
    assert scores.dtype == np.float32 and rows.dtype == np.int64


def test_the_threshold_of_many_chunks_loses_nothing():
    rng = np.random.default_rng(6)
    d = (
        signs(rng, 20_000, 16) * np.linspace(0.5, 2, 20_000).round(1).astype(np.float32)[:, None]
    )  # better ones come late
    q = signs(rng, 30, 16)
    whole = search(q, d, 50, "dot", doc_chunk=20_000)
    np.testing.assert_array_equal(search(q, d, 50, "dot", doc_chunk=333)[1], whole[1])
    order = np.lexsort((np.arange(20_000), -(q[0] @ d.T)))  # 50 of thousands of equal scores, in row order
    np.testing.assert_array_equal(whole[1][0], order[:50])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_neither_the_result_nor_torch(threads):
    rng = np.random.default_rng(7)
    q, d = signs(rng, 20, 16), signs(rng, 5000, 16)
    expected, before = search(q, d, 50, "dot", doc_chunk=5000), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            for found, wanted in zip(search(q, d, 50, "dot", doc_chunk=64, query_chunk=7), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
            assert torch.get_num_threads() == threads
        with pytest.raises(InputError, match="docs row 130: holds NaN"):  # the first of several
            search(q, with_row(with_row(d, 4000, np.nan), 130, np.nan), 5, "dot", doc_chunk=64)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_all_documents_equal_gives_them_in_tie_order():
    d, tie_rank = np.ones((1000, 3)), np.random.default_rng(0).permutation(1000)
    scores, rows = search(np.ones((2, 3)), d, 5, "dot", tie_rank, doc_chunk=64)
    np.testing.assert_array_equal(tie_rank[rows], [[999, 998, 997, 996, 995]] * 2)
    np.testing.assert_array_equal(scores, np.full((2, 5), 3.0))


def test_zero_of_either_sign_is_one_score():
    scores, rows = search(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]]), 3, "dot")
    np.testing.assert_array_equal(rows, [[0, 1, 2]])
    np.testing.assert_array_equal(scores, [[0, 0, 0]])


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_scaling_queries_changes_dot_scores_and_never_the_cosine_ranking(scale, seed):
    rng = np.random.default_rng(seed)
    q, d = signs(rng, 3) * rng.uniform(0.5, 2, (3, 1)), signs(rng, 50) * rng.uniform(0.5, 2, (50, 1))
    dot, scaled_dot = search(q, d, 10, "dot"), search(q * scale, d, 10, "dot")
    np.testing.assert_allclose(scaled_dot[0], dot[0] * scale, rtol=1e-4, atol=1e-4 * scale)
    if abs(scale - 1) > 1e-3:
        assert not np.allclose(scaled_dot[0], dot[0], rtol=1e-4)
    for similarity in ("cosine", "qnorm"):
        before, after = search(q, d, 10, similarity)[0], search(q * scale, d, 10, similarity)[0]
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    distinct = rng.normal(size=(50, 4))  # no ties that rounding could turn
    np.testing.assert_array_equal(search(q, distinct, 10, "cosine")[1], search(q * scale, distinct, 10, "cosine")[1])


def test_one_sided_norms_rank_as_their_two_sided_siblings():
    rng = np.random.default_rng(8)
    q, d = rng.normal(size=(5, 8)), rng.normal(size=(100, 8)) * rng.lognormal(size=(100, 1))
    rows = {similarity: search(q, d, 20, similarity)[1] for similarity in SIMILARITIES}
    np.testing.assert_array_equal(rows["qnorm"], rows["dot"])  # |q| is the same for all documents of a query
    np.testing.assert_array_equal(rows["dnorm"], rows["cosine"])
    assert (rows["dot"] != rows["cosine"]).any() and (rows["euclidean"] != rows["dot"]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_file_and_a_memmap_give_what_the_array_gives(tmp_path, dtype):
    rng = np.random.default_rng(9)
    q, d = signs(rng, 4, 16), signs(rng, 1000, 16).astype(dtype)
    np.save(tmp_path / "docs.npy", d)
    expected = search(q, d.astype(np.float32), 20, "cosine")
    memmap = np.load(tmp_path / "docs.npy", mmap_mode="r")
    for docs in (tmp_path / "docs.npy", str(tmp_path / "docs.npy"), memmap, memmap[:, :]):
        for found, wanted in zip(search(q, docs, 20, "cosine", doc_chunk=128), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    half = search(q, memmap[500:], 20, "cosine", doc_chunk=128)
    np.testing.assert_array_equal(half[1], search(q, d[500:].astype(np.float32), 20, "cosine")[1])
    np.testing.assert_array_equal(np.load(tmp_path / "docs.npy"), d)


def test_a_private_memmap_keeps_its_changes(tmp_path):
    np.save(tmp_path / "docs.npy", np.ones((2000, 4), dtype=np.float32))
    docs = np.load(tmp_path / "docs.npy", mmap_mode="c")
    docs[1500] = 7
    assert search(np.ones((1, 4)), docs, 1, "dot", doc_chunk=100)[1] == [[1500]]
    assert (docs[1500] == 7).all()


STREAM = """
import sys
import numpy as np
import pandas as pd
import torch
from asymlib.evaluate import search

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024

torch.set_num_threads(1)
queries = np.random.default_rng(0).normal(size=(8, 64))
search(queries, np.ones((512, 64), dtype=np.float32), 10)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
for docs in (sys.argv[1], np.load(sys.argv[1], mmap_mode="r")):
    search(queries, docs, 10, doc_chunk=4096)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_keeps_memory_far_below_the_file(tmp_path):
    docs = np.lib.format.open_memmap(tmp_path / "docs.npy", mode="w+", dtype=np.float32, shape=(800_000, 64))
    docs[:] = np.random.default_rng(1).normal(size=(100, 64)).repeat(8000, 0)  # 195 MiB, many equal
    docs.flush()
    run = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / "docs.npy"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 65, f"peak memory grew by {run.stdout} MiB while 195 MiB were read twice"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_cuda_equals_cpu(similarity):
    rng = np.random.default_rng(10)
    q, d = signs(rng, 20), signs(rng, 3000)
    exclude = rng.integers(-1, 3000, 20)
    for found, wanted in zip(
        search(q, d, 50, similarity, exclude=exclude, doc_chunk=500, device="cuda"),
        search(q, d, 50, similarity, exclude=exclude),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def with_row(array, row, value):
    array = array.copy()
    array[row] = value
    return array


ONES = np.ones((5, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": with_row(ONES, 3, np.nan)}, "queries row 3: holds NaN"),
        ({"docs": with_row(ONES, 4, -np.inf)}, "docs row 4: holds NaN or infinity"),
        ({"docs": with_row(ONES, 4, np.inf), "similarity": "dot"}, "docs row 4: holds NaN or infinity"),
        ({"docs": with_row(ONES, 2, 1e18), "similarity": "dot"}, "docs row 2: .* longer than"),
        ({"docs": with_row(ONES, 1, 0)}, "docs row 1: a zero vector has no direction, which cosine needs"),
        ({"docs": with_row(ONES, 1, 0), "similarity": "dnorm"}, "docs row 1: a zero vector"),
        ({"queries": with_row(ONES, 0, 0), "similarity": "qnorm"}, "queries row 0: a zero vector"),
        ({"queries": np.ones((5, 3))}, "queries have 3 dimensions and docs 4"),
        ({"queries": np.ones(4)}, r"queries: expected a non-empty matrix of floats.* \(4,\)"),
        ({"docs": np.ones((5, 4), dtype=int)}, "docs: expected a non-empty matrix of floats"),
        ({"docs": np.ones((0, 4))}, "docs: expected a non-empty matrix"),
        ({"docs": "missing.npy"}, "missing.npy: no such file"),
        ({"docs": __file__}, "not a .npy file of numbers"),
        ({"similarity": "manhattan"}, "similarity 'manhattan': expected one of dot, cosine"),
        ({"k": 0}, "k 0.*at least 1"),
        ({"tie_rank": np.arange(4)}, "tie_rank: expected 5 integers"),
        ({"tie_rank": np.zeros(5, dtype=int)}, "tie_rank: two documents have the same rank"),
        ({"exclude": np.array([5, 0, 0, 0, 0])}, "exclude: expected a row below 5"),
    ],
)
def test_search_refuses(change, message):
    with pytest.raises(InputError, match=message):
        search(**{"queries": ONES, "docs": ONES, "k": 2, "similarity": "cosine", "doc_chunk": 2} | change)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_a_zero_vector_is_fine_where_no_length_is_divided_by(similarity):
    assert search(ONES, with_row(ONES, 1, 0), 5, similarity)[1][0, -1] == 1
    assert search(with_row(ONES, 1, 0), ONES, 1, "dnorm")[0][1] == 0


# --------------------------------------------------------------------------------------------------------- metrics


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


def random_collection(rng, drop_self):
    """60 documents, 15 queries that have documents' ids, grades -1 to 3, some judged documents outside the corpus."""
    doc_ids = [f"{i * 37 % 101}é"[: 2 + i % 3] + f"-{i}" for i in range(60)]
    query_ids = [doc_ids[i] for i in rng.permutation(60)[:15]]
    pool = [*doc_ids, "gone-1", "gone-2"]
    qrels = {
        query: {pool[j]: int(rng.integers(-1, 4)) for j in rng.permutation(62)[: rng.integers(1, 30)]}
        for query in query_ids
    }
    return Collection("random", doc_ids, [""] * 60, query_ids, [""] * 15, qrels, drop_self)


@pytest.mark.parametrize("drop_self", [False, True])
@pytest.mark.parametrize("relevant_from", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_pytrec_eval_with_ties_and_self_matches(drop_self, relevant_from, seed):
    rng = np.random.default_rng(seed)
    collection = random_collection(rng, drop_self)
    q, d = (
        rng.integers(0, 2, (15, 3)).astype(float),
        rng.integers(0, 2, (60, 3)).astype(float),
    )  # 4 different scores at most
    metrics = ("ndcg@10", "ndcg@100", "mrr@10", "recall@10", "recall@100")
    table = evaluate(Judge(collection, relevant_from), q, d, "dot", None, metrics)
    ours = table.pivot(index="query_id", columns="metric", values="value")

    run = {
        query: dict(zip(collection.doc_ids, row, strict=True))
        for query, row in zip(collection.query_ids, (q @ d.T).tolist(), strict=True)
    }
    if drop_self:
        run = {query: {doc: score for doc, score in row.items() if doc != query} for query, row in run.items()}
    first = {
        query: dict(sorted(row.items(), key=lambda x: (x[1], x[0]), reverse=True)[:10]) for query, row in run.items()
    }
    names = {"ndcg_cut.10,100", "recall.10,100", "recip_rank"}
    oracle = pytrec_eval.RelevanceEvaluator(collection.qrels, names, relevance_level=relevant_from)
    whole, cut = oracle.evaluate(run), oracle.evaluate(first)
    for query in collection.query_ids:
        theirs = [whole[query]["ndcg_cut_10"], whole[query]["ndcg_cut_100"], cut[query]["recip_rank"]]
        theirs += [whole[query]["recall_10"], whole[query]["recall_100"]]
        np.testing.assert_allclose(ours.loc[query, list(metrics)], theirs, atol=1e-6, err_msg=query)


SMALL = Collection("small", ["a", "b", "c"], ["", "", ""], ["b", "x"], ["", ""], {"b": {"a": 1, "b": 2}, "x": {"c": 1}})


def test_evaluate_gives_a_row_for_each_query_and_metric():
    # b scores c 2, then a and b 1: of equals the later id comes first, so c, b, a. x scores c 0, a and b -1: c first.
    q, d = np.array([[1.0, 1.0], [0.0, -1.0]]), np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]])
    table = evaluate(SMALL, q, d, "dot", "dot", ("mrr@3", "recall@2"))
    assert table.values.tolist() == [
        ["small", "b", "mrr@3", 0.5],
        ["small", "x", "mrr@3", 1.0],
        ["small", "b", "recall@2", 0.5],
        ["small", "x", "recall@2", 1.0],
    ]
    assert list(table.columns) == ["dataset", "query_id", "metric", "value"]
    dropped = Collection(**vars(SMALL) | {"drop_self": True})
    table = evaluate(
        dropped, q, d, "dot", "dot", ("mrr@1", "mrr@3", "recall@100")
    )  # c, a for b: its own document is gone
    assert table["value"].tolist() == [0, 1, 0.5, 1, 0.5, 1]


@pytest.mark.parametrize("trained_with", SIMILARITIES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_another_similarity_than_in_training_is_refused_unless_asked_for(similarity, trained_with):
    q, d = np.ones((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
    asked = evaluate(SMALL, q, d, similarity, trained_with, allow_other_similarity=True)
    assert asked.equals(evaluate(SMALL, q, d, similarity, None))
    if similarity == trained_with:
        assert asked.equals(evaluate(SMALL, q, d, similarity, trained_with))
    else:
        with pytest.raises(
            InputError, match=f"trained with {trained_with}, evaluated with {similarity}.*same similarity"
        ):
            evaluate(SMALL, q, d, similarity, trained_with)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones((3, 2))}, "small: 3 queries given, expected 2"),
        ({"docs": np.ones((2, 2))}, "small: 2 docs given, expected 3"),
        ({"trained_with": "cos"}, "trained_with 'cos': expected None or one of"),
        ({"metrics": ()}, "metrics: expected at least one"),
        ({"metrics": ("map@3",)}, "metric 'map@3'"),
    ],
)
def test_evaluate_refuses(change, message):
    given_ = {
        "collection": SMALL,
        "queries": np.ones((2, 2)),
        "docs": np.ones((3, 2)),
        "similarity": "dot",
        "trained_with": None,
    }
    with pytest.raises(InputError, match=message):
        evaluate(**given_ | change)


def test_relevant_from_is_at_least_one():
    with pytest.raises(InputError, match="relevant_from 0"):
        Judge(SMALL, relevant_from=0)


def test_hubness_by_hand():
    # N = 3, 2, 1, 0, 0, 0 in 6 documents, mean 1: skewness = mean(8 + 1 + 0 - 1 - 1 - 1) / (mean(4 + 1 + 0 + 1 + 1 + 1))^1.5
    # = 1 / (8/6)^1.5 = 0.6495191; anti-hubs 3/6; Robin Hood 0.5 (2 + 1 + 0 + 1 + 1 + 1) / 6 = 0.5
    found = hubness(np.array([[0, 1], [0, 1], [0, 2], [-1, -1]]), 6)
    assert found == pytest.approx({"k_skewness": 0.6495191, "anti_hubs": 0.5, "robin_hood": 0.5}, abs=1e-7)
    rows = np.random.default_rng(0).zipf(1.5, (200, 10)) % 100
    skewness = scipy.stats.skew(np.bincount(rows.ravel(), minlength=100))
    assert hubness(rows, 100)["k_skewness"] == pytest.approx(skewness, abs=1e-12)
    assert hubness(np.arange(10).reshape(5, 2), 10) == {"k_skewness": 0, "anti_hubs": 0, "robin_hood": 0}
    with pytest.raises(InputError, match="each below 5"):
        hubness(np.array([[5]]), 5)


def test_hubness_is_averaged_over_collections_before_seeds():
    rows = [("a", 0, 1.0), ("a", 0, 3.0), ("a", 1, 4.0), ("a", 1, 6.0), ("b", 0, 7.0)]
    table = pd.DataFrame(rows, columns=["system", "seed", "k_skewness"]).assign(anti_hubs=0.5, robin_hood=0.25)
    found = hubness_over_seeds(table).set_index("system")
    assert found["k_skewness"].to_dict() == {"a": 3.5, "b": 7.0} and found.loc["a", "anti_hubs"] == 0.5
    assert found.loc["a", "k_skewness_sd"] == pytest.approx(4.5**0.5) and np.isnan(found.loc["b", "k_skewness_sd"])
