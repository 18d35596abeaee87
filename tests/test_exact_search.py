"""Exact search against slow loops: ties, exclusion, chunks, files, threads, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib.errors import InputError
from asymlib.exact_search import top_k
from asymlib.losses import SIMILARITIES


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


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("n", "k"), [(300, 10), (300, 299), (40, 100), (1, 3)])
def test_top_k_equals_the_definition_with_heavy_ties_at_the_last_place(similarity, n, k):
    rng = np.random.default_rng(n + k)
    q, d = signs(rng, 9), signs(rng, n)
    tie_rank, exclude = rng.permutation(n), rng.integers(-1, n, 9)
    expected = slow_search(q, d, k, similarity, tie_rank, exclude)
    for chunks in ({}, {"doc_chunk": 7, "query_chunk": 2}, {"doc_chunk": 64, "query_chunk": 9}, {"doc_chunk": 299}):
        scores, rows = top_k(q, d, k, similarity, tie_rank, exclude, **chunks)
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(scores, expected[0])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_top_k_on_ordinary_vectors_equals_the_definition(similarity):
    rng = np.random.default_rng(5)
    q, d = rng.normal(size=(6, 24)), rng.normal(size=(500, 24)) * rng.lognormal(size=(500, 1))
    expected = slow_search(q, d, 20, similarity, np.arange(500), np.full(6, -1))
    scores, rows = top_k(q, d, 20, similarity, doc_chunk=50)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-6)
    assert scores.dtype == np.float32 and rows.dtype == np.int64


def test_the_threshold_of_many_chunks_loses_nothing():
    rng = np.random.default_rng(6)
    d = (
        signs(rng, 20_000, 16) * np.linspace(0.5, 2, 20_000).round(1).astype(np.float32)[:, None]
    )  # better ones come late
    q = signs(rng, 30, 16)
    whole = top_k(q, d, 50, "dot", doc_chunk=20_000)
    np.testing.assert_array_equal(top_k(q, d, 50, "dot", doc_chunk=333)[1], whole[1])
    order = np.lexsort((np.arange(20_000), -(q[0] @ d.T)))  # 50 of thousands of equal scores, in row order
    np.testing.assert_array_equal(whole[1][0], order[:50])


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_neither_the_result_nor_torch(threads):
    rng = np.random.default_rng(7)
    q, d = signs(rng, 20, 16), signs(rng, 5000, 16)
    expected, before = top_k(q, d, 50, "dot", doc_chunk=5000), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            for found, wanted in zip(top_k(q, d, 50, "dot", doc_chunk=64, query_chunk=7), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
            assert torch.get_num_threads() == threads
        with pytest.raises(InputError, match="documents row 130: a vector of length nan"):  # the first of several
            top_k(q, with_row(with_row(d, 4000, np.nan), 130, np.nan), 5, "dot", doc_chunk=64)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_all_documents_equal_gives_them_in_tie_order():
    d, tie_rank = np.ones((1000, 3)), np.random.default_rng(0).permutation(1000)
    scores, rows = top_k(np.ones((2, 3)), d, 5, "dot", tie_rank, doc_chunk=64)
    np.testing.assert_array_equal(tie_rank[rows], [[999, 998, 997, 996, 995]] * 2)
    np.testing.assert_array_equal(scores, np.full((2, 5), 3.0))


def test_zero_of_either_sign_is_one_score():
    scores, rows = top_k(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]]), 3, "dot")
    np.testing.assert_array_equal(rows, [[0, 1, 2]])
    np.testing.assert_array_equal(scores, [[0, 0, 0]])


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_scaling_queries_changes_dot_scores_and_never_the_cosine_ranking(scale, seed):
    rng = np.random.default_rng(seed)
    q, d = signs(rng, 3) * rng.uniform(0.5, 2, (3, 1)), signs(rng, 50) * rng.uniform(0.5, 2, (50, 1))
    dot, scaled_dot = top_k(q, d, 10, "dot"), top_k(q * scale, d, 10, "dot")
    np.testing.assert_allclose(scaled_dot[0], dot[0] * scale, rtol=1e-4, atol=1e-4 * scale)
    if abs(scale - 1) > 1e-3:
        assert not np.allclose(scaled_dot[0], dot[0], rtol=1e-4)
    for similarity in ("cosine", "qnorm"):
        before, after = top_k(q, d, 10, similarity)[0], top_k(q * scale, d, 10, similarity)[0]
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    distinct = rng.normal(size=(50, 4))  # no ties that rounding could turn
    np.testing.assert_array_equal(top_k(q, distinct, 10, "cosine")[1], top_k(q * scale, distinct, 10, "cosine")[1])


def test_one_sided_norms_rank_as_their_two_sided_siblings():
    rng = np.random.default_rng(8)
    q, d = rng.normal(size=(5, 8)), rng.normal(size=(100, 8)) * rng.lognormal(size=(100, 1))
    rows = {similarity: top_k(q, d, 20, similarity)[1] for similarity in SIMILARITIES}
    np.testing.assert_array_equal(rows["qnorm"], rows["dot"])  # |q| is the same for all documents of a query
    np.testing.assert_array_equal(rows["dnorm"], rows["cosine"])
    assert (rows["dot"] != rows["cosine"]).any() and (rows["euclidean"] != rows["dot"]).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_file_and_a_memmap_give_what_the_array_gives(tmp_path, dtype):
    rng = np.random.default_rng(9)
    q, d = signs(rng, 4, 16), signs(rng, 1000, 16).astype(dtype)
    np.save(tmp_path / "docs.npy", d)
    expected = top_k(q, d.astype(np.float32), 20, "cosine")
    memmap = np.load(tmp_path / "docs.npy", mmap_mode="r")
    for docs in (tmp_path / "docs.npy", str(tmp_path / "docs.npy"), memmap):
        for found, wanted in zip(top_k(q, docs, 20, "cosine", doc_chunk=128), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.load(tmp_path / "docs.npy"), d)


STREAM = """
import sys
import numpy as np
import torch
from asymlib.exact_search import top_k

def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024

torch.set_num_threads(1)
queries = np.random.default_rng(0).normal(size=(8, 64))
top_k(queries, np.ones((512, 64), dtype=np.float32), 10, "cosine")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
top_k(queries, sys.argv[1], 10, "cosine", doc_chunk=4096)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_keeps_memory_far_below_the_file(tmp_path):
    docs = np.lib.format.open_memmap(tmp_path / "docs.npy", mode="w+", dtype=np.float32, shape=(500_000, 64))
    docs[:] = np.random.default_rng(1).normal(size=(100, 64)).repeat(5000, 0)  # 122 MiB, many equal
    docs.flush()
    run = subprocess.run(
        [sys.executable, "-c", STREAM, tmp_path / "docs.npy"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 65, f"peak memory grew by {run.stdout} MiB while 122 MiB were read"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_cuda_equals_cpu(similarity):
    rng = np.random.default_rng(10)
    q, d = signs(rng, 20), signs(rng, 3000)
    exclude = rng.integers(-1, 3000, 20)
    for found, wanted in zip(
        top_k(q, d, 50, similarity, exclude=exclude, doc_chunk=500, device="cuda"),
        top_k(q, d, 50, similarity, exclude=exclude),
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
        ({"queries": with_row(ONES, 3, np.nan)}, "queries row 3: a vector of length nan"),
        (
            {"documents": with_row(ONES, 4, -np.inf)},
            r"documents row 4: a vector of length inf, expected at most 1e\+18",
        ),
        ({"documents": with_row(ONES, 2, 1e18), "similarity": "dot"}, "documents row 2: a vector of length 2e"),
        ({"queries": np.ones((5, 3))}, r"documents: float32 \(5, 4\), expected rows of 3 floats"),
        ({"queries": np.ones(4)}, r"queries: float64 \(4,\), expected rows of 4 floats"),
        ({"documents": np.ones((5, 4), dtype=int)}, "documents: int64"),
        ({"documents": np.ones((0, 4))}, r"documents: float64 \(0, 4\)"),
        ({"documents": "missing.npy"}, "missing.npy: expected a .npy file of numbers .*No such file"),
        ({"documents": __file__}, "expected a .npy file of numbers"),
        ({"similarity": "manhattan"}, "similarity 'manhattan', k 2: expected one of dot, cosine"),
        ({"k": 0}, "k 0: expected .* at least 1"),
    ],
)
def test_top_k_refuses(change, message):
    with pytest.raises(InputError, match=message):
        top_k(**{"queries": ONES, "documents": ONES, "k": 2, "similarity": "cosine", "doc_chunk": 2} | change)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_zero_document_comes_last_and_a_zero_query_ties_all_others(similarity):
    rng = np.random.default_rng(3)
    q, d, tie_rank = -np.abs(rng.normal(size=(3, 4))), np.abs(rng.normal(size=(40, 4))), rng.permutation(40)
    zero = [0, 7, 39]  # every other document has a score below 0, and most are farther from the query than zero is
    d[zero], q[1] = 0, 0
    for chunks in ({}, {"doc_chunk": 6, "query_chunk": 2}):
        scores, rows = top_k(q, d, 40, similarity, tie_rank, **chunks)
        assert rows[:, -3:].tolist() == [sorted(zero, key=lambda row: -tie_rank[row])] * 3
        assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
        if similarity != "euclidean":  # whose score of a zero query is -|d|^2
            assert rows[1, :-3].tolist() == sorted(set(range(40)) - set(zero), key=lambda row: -tie_rank[row])
        assert set(top_k(q, d, 37, similarity, tie_rank, **chunks)[1].ravel()).isdisjoint(zero)
