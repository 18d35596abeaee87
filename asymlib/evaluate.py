"""Exact search, retrieval metrics per query, and the statistics that turn per-query scores into a result.

Arrays in, per-query numbers out; no model and no text. Conventions that move numbers:

- Search is exact. Equal scores are ordered as trec_eval orders them: the document id that sorts later comes first.
- nDCG has linear gain, as in trec_eval and pytrec_eval. Binary metrics call a grade >= `relevant_from` relevant (1 as in BEIR;
  TREC DL's own convention for its binary measures is 2).
- In a collection with `drop_self` (ArguAna) the document whose id equals the query's id is no result, for every metric.
- Vectors are scored with the similarity that they were trained with, unless another one is asked for by name.
"""

import itertools
import math
import mmap
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from asymlib.errors import InputError

if TYPE_CHECKING:
    from asymlib.datasets import Collection

SIMILARITIES = ("dot", "cosine", "qnorm", "dnorm", "euclidean")
METRICS = ("ndcg@10", "mrr@10", "recall@100")

BLOCK = 16  # rows whose maximum is compared with a query's k-th best score before any of them is looked at
LONGEST = 1e18  # longer vectors could overflow float32: |q - d|^2 <= (2e18)^2 = 4e36 < 3.4e38


# ---------------------------------------------------------------------------------------------------------- search


def search(
    queries: np.ndarray,
    docs: np.ndarray | str | PathLike,
    k: int,
    similarity: str = "cosine",
    tie_rank: np.ndarray | None = None,
    exclude: np.ndarray | None = None,
    doc_chunk: int | None = None,
    query_chunk: int = 1024,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k documents with the largest score for each query: exact, ties at the k-th place included.

        dot q.d | cosine q.d / |q||d| | qnorm q.d / |q| | dnorm q.d / |d| | euclidean -|q - d|^2

    queries: (Q, D). docs: (N, D), an array, a np.memmap or the path of a .npy file; the last two are read in chunks whose
    pages are given back, so memory does not grow with N.
    tie_rank: (N,) integers, all different; among equal scores the larger one comes first. None: the earlier row first.
    exclude: (Q,) the row of one document that is no result for this query, -1 for none.
    doc_chunk, query_chunk: rows scored at a time (None: 8,192 on a CPU, 262,144 elsewhere). device: None is the CPU.
    Returns scores (Q, k) float32 and rows (Q, k) int64, best first; if there are fewer than k documents the rest is -inf, -1.
    InputError: another dimension, a NaN, infinite or zero vector where a length is divided by, naming side and row.

    Each chunk is one matrix product; a block of 16 rows is looked at only where its maximum reaches the k-th best score so
    far. What does reach it becomes one integer, the score's bits above the tie rank's, so that sorting integers sorts both.
    On a CPU each of torch's threads takes whole chunks, rather than all of them a share of every small step.
    """
    device = torch.device(device or "cpu")
    opened = isinstance(docs, str | PathLike)
    if opened:
        docs = _open(docs)
    q_np, docs = np.asarray(queries), docs if isinstance(docs, np.memmap) else np.asarray(docs)
    doc_chunk = (8192 if device.type == "cpu" else 262_144) if doc_chunk is None else doc_chunk
    _check_search(q_np, docs, k, similarity, doc_chunk, query_chunk)
    n_docs, rank, row_of = len(docs), *_ranks(tie_rank, len(docs))
    out_of = _excluded(exclude, len(q_np), n_docs)

    q = torch.from_numpy(np.require(q_np, np.float32, ["C", "W"])).to(device)
    q_length = _lengths(q, "queries", 0, similarity in ("cosine", "qnorm"), similarity)
    if similarity in ("cosine", "qnorm"):
        q = q / q_length[:, None]
    parts = [_Best(q[i : i + query_chunk], k) for i in range(0, len(q), query_chunk)]
    starts = range(0, n_docs, doc_chunk)
    buffers = threading.local()
    mapped = (
        getattr(docs, "_mmap", None) if opened or getattr(docs, "mode", None) != "c" else None
    )  # "c": may hold changes

    def score(start: int) -> None:
        if not hasattr(buffers, "flat"):
            rows = -(-min(doc_chunk, n_docs) // BLOCK) * BLOCK
            buffers.flat = torch.empty(rows * min(query_chunk, len(q)), device=device)
        d = torch.from_numpy(np.require(docs[start : start + doc_chunk], np.float32, ["C", "W"])).to(device)
        length = _lengths(d, "docs", start, similarity in ("cosine", "dnorm"), similarity)
        if similarity in ("cosine", "dnorm"):
            d = d / length[:, None]
        chunk_rank = torch.from_numpy(rank[start : start + doc_chunk]).to(device)
        for i, best in enumerate(parts):
            n, b = len(d), len(best.q)
            blocks = -(-n // BLOCK)
            scores = buffers.flat[: blocks * BLOCK * b].view(
                blocks * BLOCK, b
            )  # (rows, queries): maxima run along memory
            scores[n:] = -torch.inf
            torch.mm(d, best.q.T, out=scores[:n])
            if similarity == "euclidean":  # -|q - d|^2 = 2 q.d - |d|^2 - |q|^2
                scores[:n].mul_(2).sub_(torch.linalg.vecdot(d, d)[:, None]).sub_(torch.linalg.vecdot(best.q, best.q))
            hide = out_of[i * query_chunk : i * query_chunk + b] - start
            inside = np.flatnonzero((hide >= 0) & (hide < n))
            scores[torch.from_numpy(hide[inside]).to(device), torch.from_numpy(inside).to(device)] = -torch.inf
            best.add(scores, chunk_rank)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)  # read pages would stay in this process's memory

    _in_threads(score, starts, min(torch.get_num_threads(), len(starts), 16) if device.type == "cpu" else 1)
    keys = torch.cat([best.keys() for best in parts]).cpu()  # (Q, k), best first
    scores, rows = _unpack(keys)
    scores, rows = scores.numpy(), row_of[rows.numpy()]
    missing = (keys == _NOTHING).numpy()
    scores[missing], rows[missing] = -np.inf, -1
    return scores, rows


def _in_threads(work: Callable[[int], None], items: Sequence[int], count: int) -> None:
    """work(item) for each item on count threads, in each of which torch has one thread; the first item's error is raised."""
    if count < 2:
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        count, initializer=torch.set_num_threads, initargs=(1,)
    )  # sets the calling thread's number
    try:
        for _ in pool.map(work, items):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what threads of the future start with


class _Best:
    """The best k documents of each of these queries among the chunks seen so far, as sortable integers."""

    def __init__(self, q: torch.Tensor, k: int):
        self.q, self.k = q, k
        self.threshold: torch.Tensor | None = None  # (B,) a lower bound of the k-th best score
        self.best = torch.full((len(q), k), _NOTHING, device=q.device)  # (B, k) as of the last reduction
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []  # (query, key) of candidates
        self.waiting, self.lock = 0, threading.Lock()

    def add(self, scores: torch.Tensor, rank: torch.Tensor) -> None:
        """scores: (blocks * BLOCK, B), -inf where there is no document; rank: (n,) tie rank of the rows."""
        b = scores.shape[1]
        threshold = self.threshold
        if threshold is None:
            threshold = torch.full((b,), -torch.inf, device=scores.device)
            if len(scores) >= self.k:
                threshold = scores.topk(self.k, dim=0).values[-1]
        blocked = scores.view(-1, BLOCK, b)
        block, query = (blocked.amax(1) >= threshold).nonzero(as_tuple=True)  # (P,)
        values = blocked[block, :, query]  # (P, BLOCK)
        pair, inner = ((values >= threshold[query, None]) & (values > -torch.inf)).nonzero(as_tuple=True)
        key = _pack(values[pair, inner], rank[block[pair] * BLOCK + inner])
        query = query[pair]
        enters = key > self.best[query, -1]  # of equal scores, only those that win the tie
        with self.lock:
            self.threshold = threshold if self.threshold is None else self.threshold
            if enters.any():
                self.found.append((query[enters], key[enters]))
                self.waiting += len(self.found[-1][0])
            if self.waiting > b * self.k:
                self._reduce()

    def _reduce(self) -> None:
        """Keep each query's k largest keys, sorted; its threshold becomes the k-th score."""
        query, key = (torch.cat(column) for column in zip(*self.found, strict=True))
        order = key.argsort(descending=True)
        order = order[query[order].argsort(stable=True)]
        query, key = query[order], key[order]
        count = torch.bincount(query, minlength=len(self.q))
        place = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
        kept = place < self.k
        query, key, place = query[kept], key[kept], place[kept]
        self.best = torch.full((len(self.q), self.k), _NOTHING, device=query.device)
        self.best[query, place] = key
        full = self.best[:, -1] != _NOTHING
        self.threshold = torch.where(full, _unpack(self.best[:, -1])[0], self.threshold)
        self.found, self.waiting = [(query, key)], 0

    def keys(self) -> torch.Tensor:
        """(B, k) int64, largest first, _NOTHING where there are fewer than k documents."""
        if self.waiting:
            self._reduce()
        return self.best


_NOTHING = torch.iinfo(torch.int64).min


def _pack(score: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """One int64 that orders as (score, rank): float32 bits, flipped below zero so that they order as integers, over the rank."""
    bits = (score + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: equal scores have equal bits
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(torch.int64) << 32) | rank


def _unpack(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and rank of `_pack`'s integers."""
    bits = (key >> 32).to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32), key & 0xFFFFFFFF


def _open(path: str | PathLike) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)  # writable for torch without a copy, never written
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a .npy file of numbers ({error})") from error


def _check_search(q: np.ndarray, d: np.ndarray, k: int, similarity: str, doc_chunk: int, query_chunk: int) -> None:
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity {similarity!r}: expected one of {', '.join(SIMILARITIES)}")
    for side, array in (("queries", q), ("docs", d)):
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
            shape = f"{array.dtype} {array.shape}"
            raise InputError(f"{side}: expected a non-empty matrix of floats, a row for each vector, not {shape}")
    if q.shape[1] != d.shape[1]:
        raise InputError(f"queries have {q.shape[1]} dimensions and docs {d.shape[1]}: expected the same")
    if k < 1 or doc_chunk < 1 or query_chunk < 1:
        raise InputError(f"k {k}, doc_chunk {doc_chunk}, query_chunk {query_chunk}: expected at least 1")


def _lengths(x: torch.Tensor, side: str, start: int, divided_by: bool, similarity: str) -> torch.Tensor:
    """(n,) Euclidean lengths, after refusing vectors whose score would not be a number."""
    length = torch.linalg.vector_norm(x, dim=1)
    wrong = ~(length <= LONGEST)  # true for NaN as well
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(f"{side} row {start + row}: holds NaN or infinity, or is longer than {LONGEST:g}")
    if divided_by and (length == 0).any():
        row = int((length == 0).nonzero()[0])
        raise InputError(f"{side} row {start + row}: a zero vector has no direction, which {similarity} needs")
    return length


def _ranks(tie_rank: np.ndarray | None, n_docs: int) -> tuple[np.ndarray, np.ndarray]:
    """rank (N,): 0 for the document that loses every tie; row_of (N,): its inverse."""
    if tie_rank is None:
        rank = np.arange(n_docs - 1, -1, -1, dtype=np.int64)
        return rank, rank
    tie_rank = np.asarray(tie_rank)
    if tie_rank.shape != (n_docs,) or tie_rank.dtype.kind not in "iu":
        raise InputError(f"tie_rank: expected {n_docs} integers, one for each document, not {tie_rank.shape}")
    row_of = np.argsort(tie_rank, kind="stable")
    if (np.diff(tie_rank[row_of]) == 0).any():
        raise InputError("tie_rank: two documents have the same rank; expected all different")
    rank = np.empty(n_docs, dtype=np.int64)
    rank[row_of] = np.arange(n_docs)
    return rank, row_of


def _excluded(exclude: np.ndarray | None, n_queries: int, n_docs: int) -> np.ndarray:
    if exclude is None:
        return np.full(n_queries, -1, dtype=np.int64)
    exclude = np.asarray(exclude)
    if (
        exclude.shape != (n_queries,)
        or exclude.dtype.kind not in "iu"
        or (exclude < -1).any()
        or (exclude >= n_docs).any()
    ):
        raise InputError(f"exclude: expected a row below {n_docs} or -1 for each of the {n_queries} queries")
    return exclude.astype(np.int64)


# --------------------------------------------------------------------------------------------------------- metrics


def parse_metric(metric: str) -> tuple[str, int]:
    """ "ndcg@10" -> ("ndcg", 10); anything but ndcg, mrr or recall with a whole number from 1 is an InputError."""
    match = re.fullmatch(r"(ndcg|mrr|recall)@([1-9][0-9]*)", metric)
    if not match:
        raise InputError(
            f"metric {metric!r}: expected ndcg@k, mrr@k or recall@k with k a whole number from 1, e.g. ndcg@10"
        )
    return match[1], int(match[2])


def ndcg(grades: np.ndarray, ideal: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with linear gain, trec_eval's ndcg_cut.

        DCG@k = sum_{r=1..k} max(grade_r, 0) / log2(r + 1),  nDCG@k = DCG@k / DCG@k of the ideal order

    grades: (Q, K >= k) of the results, best first, 0 where not judged. ideal: (Q, J) all judged grades, descending, padded
    with 0. Returns (Q,) in [0, 1]; 0 without any positive grade. Järvelin & Kekäläinen 2002, with trec_eval's discount.
    """
    gain, best = (np.maximum(g[:, :k], 0).astype(np.float64) for g in (grades, ideal))
    discount = 1 / np.log2(np.arange(2, max(k, best.shape[1]) + 2))
    found, possible = gain @ discount[: gain.shape[1]], best @ discount[: best.shape[1]]
    return np.divide(found, possible, out=np.zeros_like(found), where=possible > 0)


def mrr(relevant: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank of the first relevant result among the first k, 0 if there is none.

    relevant: (Q, K >= k) bool, best first. Returns (Q,); their mean is MRR@k (trec_eval's recip_rank of a run cut at k).
    """
    relevant = relevant[:, :k]
    return np.where(relevant.any(1), 1.0 / (relevant.argmax(1) + 1), 0.0)


def recall(relevant: np.ndarray, n_relevant: np.ndarray, k: int) -> np.ndarray:
    """Share of a query's relevant documents that are among the first k results; 0 if it has none.

    relevant: (Q, K >= k) bool, best first. n_relevant: (Q,). Returns (Q,) in [0, 1]. trec_eval's recall_k: the divisor is
    the number of relevant documents, not min(k, that number).
    """
    found = relevant[:, :k].sum(1).astype(np.float64)
    return np.divide(found, n_relevant, out=np.zeros_like(found), where=n_relevant > 0)


class Judge:
    """A collection's relevance judgements as arrays: built once, then it scores any number of systems.

    tie_rank: (N,) rank of each document's id in sorted order, as search wants it. exclude: (Q,) the row of the document with
    the query's own id if the collection has drop_self, else -1. A judged document that the corpus lacks cannot be found but
    counts among the relevant ones, as in trec_eval.
    """

    def __init__(self, collection: "Collection", relevant_from: int = 1):
        """relevant_from: the lowest grade that mrr and recall call relevant."""
        if relevant_from < 1:
            raise InputError(f"relevant_from {relevant_from}: expected at least 1")
        self.name, self.query_ids, self.relevant_from = collection.name, list(collection.query_ids), relevant_from
        self.n_docs = len(collection.doc_ids)
        row = {doc_id: i for i, doc_id in enumerate(collection.doc_ids)}
        self.tie_rank = np.empty(self.n_docs, dtype=np.int64)
        self.tie_rank[sorted(range(self.n_docs), key=collection.doc_ids.__getitem__)] = np.arange(self.n_docs)
        own = [row.get(q, -1) if collection.drop_self else -1 for q in self.query_ids]
        self.exclude = np.array(own, dtype=np.int64)
        judged = [collection.qrels[q] for q in self.query_ids]
        known = ((i * self.n_docs + row[d], g) for i, qrel in enumerate(judged) for d, g in qrel.items() if d in row)
        key_and_grade = np.array(sorted(known) or [(-1, 0)], dtype=np.int64)
        self._judged, self._grade = key_and_grade.T  # (J,) query * N + row, ascending; (J,) its grade
        self.ideal = np.zeros((len(judged), max(map(len, judged), default=0)), dtype=np.int64)
        for i, qrel in enumerate(judged):
            self.ideal[i, : len(qrel)] = sorted(qrel.values(), reverse=True)
        self.n_relevant = np.array([sum(g >= relevant_from for g in qrel.values()) for qrel in judged])

    def grades(self, rows: np.ndarray) -> np.ndarray:
        """rows: (Q, k) of search, -1 for none. Returns (Q, k) grades, 0 for a document that was not judged."""
        wanted = np.arange(len(rows))[:, None] * self.n_docs + rows
        place = np.minimum(np.searchsorted(self._judged, wanted), len(self._judged) - 1)
        return np.where((self._judged[place] == wanted) & (rows >= 0), self._grade[place], 0)

    def scores(self, rows: np.ndarray, metrics: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
        """rows: (Q, k) of search with k at least the largest of the metrics (or all documents). Returns metric -> (Q,)."""
        grades = self.grades(rows)
        relevant = grades >= self.relevant_from
        found = {}
        for metric in metrics:
            name, k = parse_metric(metric)
            if name == "ndcg":
                found[metric] = ndcg(grades, self.ideal, k)
            elif name == "mrr":
                found[metric] = mrr(relevant, k)
            else:
                found[metric] = recall(relevant, self.n_relevant, k)
        return found


def evaluate(
    collection: "Collection | Judge",
    queries: np.ndarray,
    docs: np.ndarray | str | PathLike,
    similarity: str,
    trained_with: str | None,
    metrics: Sequence[str] = METRICS,
    allow_other_similarity: bool = False,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Search a collection and score every query: columns dataset, query_id, metric, value.

    collection: a Collection, or a Judge of it (built once, for many systems). queries: (Q, D) and docs: (N, D), in the order
    of its ids. trained_with: the similarity in the loss that trained these vectors, None if they were not trained.
    InputError if similarity is not trained_with, unless allow_other_similarity says that this is meant.
    """
    if trained_with is not None and trained_with not in SIMILARITIES:
        raise InputError(f"trained_with {trained_with!r}: expected None or one of {', '.join(SIMILARITIES)}")
    if trained_with not in (None, similarity) and not allow_other_similarity:
        raise InputError(
            f"trained with {trained_with}, evaluated with {similarity}: train and evaluate with the same similarity,"
            " or pass allow_other_similarity=True to mix them on purpose"
        )
    judge = collection if isinstance(collection, Judge) else Judge(collection)
    if len(metrics) == 0:
        raise InputError("metrics: expected at least one, e.g. ndcg@10")
    for side, vectors, expected in (("queries", queries, len(judge.query_ids)), ("docs", docs, judge.n_docs)):
        if not isinstance(vectors, str | PathLike) and len(vectors) != expected:
            raise InputError(f"{judge.name}: {len(vectors)} {side} given, expected {expected}, one for each id")
    k = max(parse_metric(metric)[1] for metric in metrics)
    _, rows = search(queries, docs, min(k, judge.n_docs), similarity, judge.tie_rank, judge.exclude, device=device)
    scores = judge.scores(rows, metrics)
    frames = [
        pd.DataFrame({"dataset": judge.name, "query_id": judge.query_ids, "metric": metric, "value": value})
        for metric, value in scores.items()
    ]
    return pd.concat(frames, ignore_index=True)


def hubness(rows: np.ndarray, n_docs: int) -> dict[str, float]:
    """How unevenly documents appear in result lists.

        N_i = number of lists that hold document i
        k_skewness = mean((N - mean N)^3) / std(N)^3, anti_hubs = share of N_i = 0, robin_hood = 0.5 sum |N - mean N| / sum N

    rows: (Q, k) of search, -1 for none. Returns the three, as scikit-hubness defines them (Feldbauer et al. 2020, JOSS);
    skewness is 0 if all N are equal.
    """
    rows = np.asarray(rows)
    rows = rows[rows >= 0]
    if rows.size == 0 or rows.max() >= n_docs:
        raise InputError(f"rows: expected at least one result, and each below {n_docs}")
    occurrence = np.bincount(rows, minlength=n_docs).astype(np.float64)
    away = occurrence - occurrence.mean()
    spread = occurrence.std()
    return {
        "k_skewness": float((away**3).mean() / spread**3) if spread > 0 else 0.0,
        "anti_hubs": float((occurrence == 0).mean()),
        "robin_hood": float(0.5 * np.abs(away).sum() / occurrence.sum()),
    }


def hubness_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A row a system: each of hubness's measures averaged over collections, then mean and, as <measure>_sd, sd over seeds.

    table: columns system, seed and those of hubness, one row a collection; of one track.
    """
    measures = ["k_skewness", "anti_hubs", "robin_hood"]
    by_seed = table.groupby(["system", "seed"], sort=False)[measures].mean()
    found = by_seed.groupby("system", sort=False).agg(["mean", "std"])
    found.columns = [name if part == "mean" else f"{name}_sd" for name, part in found.columns]
    return found.reset_index()


# ------------------------------------------------------------------------------------------------------ statistics


def paired_randomization_test(
    a: np.ndarray, b: np.ndarray, n: int = 100_000, seed: int = 0, strata: np.ndarray | None = None
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
    if n < 1:
        raise InputError(f"paired test: n {n}, expected at least 1")
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
    values: np.ndarray,
    strata: np.ndarray | None = None,
    baseline: np.ndarray | None = None,
    n: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a mean score over both its seeds and its queries, by two-level resampling.

    Each of n times S seeds are drawn with replacement, and, independently, as many queries of each stratum as it has; the
    statistic is the mean over strata of the mean over the drawn seeds and queries.

    values: (S, Q), or (M, S, Q) for M systems that share the draws. strata: (Q,) labels, None: one stratum. baseline: (Q,),
    then the interval is that of the difference values - baseline, paired by query. level: in (0, 1).
    Returns (low, high), each () or (M,). With one seed only queries vary. With few seeds it is too narrow by about
    sqrt((S - 1) / S) in the seeds' share, as any bootstrap is. Efron 1979; for clusters Davison & Hinkley 1997, section 3.8.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (2, 3) or 0 in values.shape or not np.isfinite(values).all():
        raise InputError(f"bootstrap: expected finite scores (seeds, queries), not {values.shape}")
    if not 0 < level < 1:
        raise InputError(f"level {level}: expected a number between 0 and 1, e.g. 0.95")
    if baseline is not None:
        baseline = np.asarray(baseline, dtype=np.float64)
        if baseline.shape != values.shape[-1:] or not np.isfinite(baseline).all():
            raise InputError(f"baseline: expected {values.shape[-1]} finite scores, one for each query")
        values = values - baseline
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


PER_QUERY = ["track", "system", "seed", "dataset", "query_id", "metric", "value"]


def summarize(
    per_query: pd.DataFrame,
    baseline: str = "baseline",
    n_flips: int = 100_000,
    n_draws: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """The table of systems: a row for each (track, system, dataset, metric) and for the dataset `average`.

    per_query: columns track, system, seed, dataset, query_id, metric, value; a system without training has one seed.
    Returns columns track, system, dataset, metric, mean, sd, ci_low, ci_high, baseline, delta_percent, p_value, seeds:
        mean: over seeds and queries; of `average`, over data sets, which weigh the same each
        sd: of the seeds' means (divided by n - 1), NaN for one seed
        ci_low, ci_high: bootstrap_interval over seeds and queries
        baseline, delta_percent: the baseline's mean on the same queries; 100 (mean / baseline - 1)
        p_value: paired_randomization_test of the seeds' average per query against the baseline, Holm-corrected over all
            rows of the table that have the same metric; NaN for the baseline itself
    A baseline that is not among a track's systems is taken from another track: it is the same frozen encoder everywhere.
    InputError if the systems of a track do not have exactly the same queries, or a score is missing, double or not finite.
    """
    if missing := [column for column in PER_QUERY if column not in per_query.columns]:
        raise InputError(f"per-query scores: no column {missing[0]!r}; expected {', '.join(PER_QUERY)}")
    per_query = per_query[PER_QUERY]
    if per_query.empty or per_query.isna().any(axis=None) or not np.isfinite(per_query["value"]).all():
        raise InputError("per-query scores: there are none, a field is missing, or a value is infinite")
    if (per_query["dataset"] == "average").any():
        raise InputError("per-query scores: no data set may be called 'average', the name of the mean over data sets")
    rows = []
    for track in per_query["track"].unique():
        table = _aligned(per_query, track, baseline)  # (system, metric, seed) x (dataset, query)
        strata = table.columns.get_level_values("dataset").to_numpy()
        label, names = _labels(strata, len(strata)), [*np.unique(strata), "average"]
        values = {
            line: part.to_numpy() for line, part in table.groupby(level=["system", "metric"], sort=False)
        }  # (S, Q)
        compared = {metric: part.mean(0) for (system, metric), part in values.items() if system == baseline}
        rivals = [line for line in values if line[0] != baseline]
        p_values = {line: np.full(len(names), np.nan) for line in values}
        if rivals:
            x = np.stack([values[line].mean(0) - compared[line[1]] for line in rivals])
            p_values.update(zip(rivals, _flip_tests(x, label, n_flips, seed).T, strict=True))
        shown = list(per_query.loc[per_query["track"] == track, "system"].unique())
        for i, name in enumerate(names):
            inside = np.full(len(strata), True) if name == "average" else strata == name
            intervals = _intervals(
                {line: v[:, inside] for line, v in values.items()}, strata[inside], n_draws, seed, level
            )
            for (system, metric), all_values in values.items():
                if system not in shown:
                    continue
                of_seed = _means(all_values[:, inside], label[inside])
                mean, reference = of_seed.mean(), _means(compared[metric][None, inside], label[inside])[0]
                row = {"track": track, "system": system, "dataset": name, "metric": metric, "mean": mean}
                row["sd"] = of_seed.std(ddof=1) if len(of_seed) > 1 else np.nan
                row["ci_low"], row["ci_high"] = intervals[system, metric]
                row["baseline"] = reference
                row["delta_percent"] = 100 * (mean / reference - 1) if reference else np.nan
                row["p_value"], row["seeds"] = p_values[system, metric][i], len(of_seed)
                rows.append(row)
    result = pd.DataFrame(rows)
    result["p_value"] = result.groupby("metric")["p_value"].transform(lambda p: holm(p.to_numpy()))
    place = {
        c: {value: i for i, value in enumerate(per_query[c].unique())} for c in ("track", "system", "dataset", "metric")
    }
    place["dataset"]["average"] = len(per_query)
    return result.sort_values(list(place), key=lambda column: column.map(place[column.name]), ignore_index=True)


def _means(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """values: (S, Q). Returns (S,) means over strata of the means over each stratum's queries."""
    return np.mean([values[:, label == stratum].mean(1) for stratum in np.unique(label)], axis=0)


def _intervals(values: dict, strata: np.ndarray, n: int, seed: int, level: float) -> dict:
    """bootstrap_interval of every line of values, (S, Q) each; lines with the same number of seeds share the draws."""
    found = {}
    for n_seeds in {len(v) for v in values.values()}:
        lines = [line for line, v in values.items() if len(v) == n_seeds]
        low, high = bootstrap_interval(np.stack([values[line] for line in lines]), strata, None, n, seed, level)
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
    rows, columns = ["system", "metric", "seed"], ["dataset", "query_id"]
    double = part[part.duplicated(rows + columns)]
    if len(double):
        system, metric, seed, dataset, query = double.iloc[0][rows + columns]
        raise InputError(
            f"{track}: {system} seed {seed} has two scores {metric} for query {query} of {dataset}; expected one"
        )
    table = part.pivot(index=rows, columns=columns, values="value")
    runs = table.index.droplevel("metric").unique()
    table = table.reindex([(system, metric, seed) for system, seed in runs for metric in part["metric"].unique()])
    gaps = np.argwhere(table.isna().to_numpy())
    if len(gaps):
        (system, metric, seed), (dataset, query) = table.index[gaps[0][0]], table.columns[gaps[0][1]]
        raise InputError(
            f"{track}: {system} seed {seed} has no {metric} for query {query} of {dataset}, which another system or seed has;"
            " only systems with the same queries can be compared"
        )
    return table


def contrast(
    per_query: pd.DataFrame, a: str, b: str, track: str = "zero-shot", metric: str = "ndcg@10"
) -> dict[str, float]:
    """Two systems of one track against each other, on the same queries.

    per_query: columns track, system, seed, dataset, query_id, metric, value. Scores are averaged over seeds; the means and the
    test give every collection the same weight. Returns mean_a, mean_b, difference (a - b), p_value (paired
    randomisation test, not corrected for other contrasts).
    """
    part = per_query[(per_query["track"] == track) & (per_query["metric"] == metric)]
    missing = {a, b} - set(part["system"])
    if missing:
        raise InputError(f"contrast: no rows of {', '.join(sorted(missing))} in track {track} with metric {metric}")
    part = part[part["system"].isin([a, b])]
    scores = part.groupby(["dataset", "query_id", "system"])["value"].mean().unstack()
    if scores.isna().any(axis=None):
        raise InputError(f"contrast: {a} and {b} were not judged on the same queries")
    strata = scores.index.get_level_values("dataset").to_numpy()
    p_value = paired_randomization_test(scores[a].to_numpy(), scores[b].to_numpy(), strata=strata)
    means = scores.groupby(level="dataset").mean().mean()
    return {"mean_a": means[a], "mean_b": means[b], "difference": means[a] - means[b], "p_value": p_value}


def variance_split(table: pd.DataFrame, factors: Sequence[str], value: str) -> pd.DataFrame:
    """Split the variance of a balanced grid into each factor's own effect, effects of several at once, and the seeds.

    table: one row a run, the same number of runs in every cell of the grid. The effect of a set of factors is its cell
    mean less every effect of its subsets; in a balanced grid these are orthogonal, so the shares add up to 1.
    Returns rows term ('a', 'a x b', ..., 'seeds'), share of the total sum of squares, and range: the largest
    difference between the levels' means for a single factor, between the cells' effects otherwise (nan for seeds).
    """
    sizes = table.groupby(list(factors)).size()
    if len(sizes) != math.prod(table[factor].nunique() for factor in factors) or sizes.nunique() != 1:
        raise InputError(f"variance_split: expected the same number of runs in every cell of {' x '.join(factors)}")
    y = table[value].astype(float)
    effects: dict[tuple[str, ...], pd.Series] = {(): pd.Series(y.mean(), index=table.index)}
    total = float(((y - y.mean()) ** 2).sum())
    rows = []
    for count in range(1, len(factors) + 1):
        for chosen in itertools.combinations(factors, count):
            below = sum(effect for terms, effect in effects.items() if set(terms) < set(chosen))
            effects[chosen] = table.groupby(list(chosen))[value].transform("mean") - below
        for chosen in itertools.combinations(factors, count):
            effect = effects[chosen]
            share = float((effect**2).sum()) / total if total else math.nan
            rows.append({"term": " x ".join(chosen), "share": share, "range": effect.max() - effect.min()})
    rest = y - sum(effects.values())
    rows.append({"term": "seeds", "share": float((rest**2).sum()) / total if total else math.nan, "range": math.nan})
    return pd.DataFrame(rows)
