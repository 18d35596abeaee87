"""Exact search, retrieval metrics per query, and the statistics that turn per-query scores into a result.

Arrays in, per-query numbers out; no model and no text. Conventions that move numbers:

- Search is exact. Equal scores are ordered as trec_eval orders them: the document id that sorts later comes first.
- nDCG has linear gain, as in trec_eval and pytrec_eval. Binary metrics call a grade >= `relevant_from` relevant (1 as in BEIR;
  TREC DL's own convention for its binary measures is 2).
- In a collection with `drop_self` (ArguAna) the document whose id equals the query's id is no result, for every metric.
- A heads' score is the one they were trained with, unless another one is asked for by name.
"""

import mmap
import re
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from asymlib.errors import InputError

if TYPE_CHECKING:
    from asymlib.datasets import Collection

SIMILARITIES = ("dot", "cosine", "qnorm", "dnorm", "euclidean")
METRICS = ("ndcg@10", "mrr@10", "recall@100")

BLOCK = 64  # rows whose maximum is compared with a query's k-th best score before any of them is looked at
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
    doc_chunk, query_chunk: rows scored at a time (None: 8,192 on a CPU, 131,072 elsewhere). device: None is the CPU.
    Returns scores (Q, k) float32 and rows (Q, k) int64, best first; if there are fewer than k documents the rest is -inf, -1.
    InputError: another dimension, a NaN, infinite or zero vector where a length is divided by, naming side and row.

    Each chunk is one matrix product; a block of 64 rows is looked at only where its maximum reaches the k-th best score so
    far. What does reach it becomes one integer, the score's bits above the tie rank's, so that sorting integers sorts both.
    """
    device = torch.device(device or "cpu")
    doc_chunk = doc_chunk or (8192 if device.type == "cpu" else 131072)
    if isinstance(docs, str | PathLike):
        docs = _open(docs)
    q_np, docs = np.asarray(queries), docs if isinstance(docs, np.memmap) else np.asarray(docs)
    _check_search(q_np, docs, k, similarity, doc_chunk, query_chunk)
    n_docs, rank, row_of = len(docs), *_ranks(tie_rank, len(docs))
    out_of = _excluded(exclude, len(q_np), n_docs)

    q = torch.from_numpy(np.require(q_np, np.float32, ["C", "W"])).to(device)
    q_length = _lengths(q, "queries", 0, similarity in ("cosine", "qnorm"), similarity)
    if similarity in ("cosine", "qnorm"):
        q = q / q_length[:, None]
    parts = [_Best(q[i : i + query_chunk], k) for i in range(0, len(q), query_chunk)]
    flat = torch.empty(-(-min(doc_chunk, n_docs) // BLOCK) * BLOCK * min(query_chunk, len(q)), device=device)

    for start in range(0, n_docs, doc_chunk):
        d = torch.from_numpy(np.require(docs[start : start + doc_chunk], np.float32, ["C", "W"])).to(device)
        length = _lengths(d, "docs", start, similarity in ("cosine", "dnorm"), similarity)
        if similarity in ("cosine", "dnorm"):
            d = d / length[:, None]
        chunk_rank = torch.from_numpy(rank[start : start + doc_chunk]).to(device)
        for i, best in enumerate(parts):
            n, b = len(d), len(best.q)
            blocks = -(-n // BLOCK)
            scores = flat[: blocks * BLOCK * b].view(blocks * BLOCK, b)  # (rows, queries): maxima run along memory
            scores[n:] = -torch.inf
            torch.mm(d, best.q.T, out=scores[:n])
            if similarity == "euclidean":  # -|q - d|^2 = 2 q.d - |d|^2 - |q|^2
                scores[:n].mul_(2).sub_(torch.linalg.vecdot(d, d)[:, None]).sub_(torch.linalg.vecdot(best.q, best.q))
            hide = out_of[i * query_chunk : i * query_chunk + b] - start
            inside = np.flatnonzero((hide >= 0) & (hide < n))
            scores[torch.from_numpy(hide[inside]).to(device), torch.from_numpy(inside).to(device)] = -torch.inf
            best.add(scores, chunk_rank)
        if isinstance(docs, np.memmap) and docs._mmap is not None:
            docs._mmap.madvise(mmap.MADV_DONTNEED)  # read pages would stay in this process's memory

    keys = torch.cat([best.keys() for best in parts]).cpu()  # (Q, k), best first
    scores, rows = _unpack(keys)
    scores, rows = scores.numpy(), row_of[rows.numpy()]
    missing = (keys == _NOTHING).numpy()
    scores[missing], rows[missing] = -np.inf, -1
    return scores, rows


class _Best:
    """The best k documents of each of these queries among the chunks seen so far, as sortable integers."""

    def __init__(self, q: torch.Tensor, k: int):
        self.q, self.k = q, k
        self.threshold: torch.Tensor | None = None  # (B,) a lower bound of the k-th best score
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []  # (query, key) of candidates
        self.waiting = 0

    def add(self, scores: torch.Tensor, rank: torch.Tensor) -> None:
        """scores: (blocks * BLOCK, B), -inf where there is no document; rank: (n,) tie rank of the rows."""
        b = scores.shape[1]
        if self.threshold is None:
            self.threshold = torch.full((b,), -torch.inf, device=scores.device)
            if len(scores) >= self.k:
                self.threshold = scores.topk(self.k, dim=0).values[-1]
        blocked = scores.view(-1, BLOCK, b)
        block, query = (blocked.amax(1) >= self.threshold).nonzero(as_tuple=True)  # (P,)
        values = blocked[block, :, query]  # (P, BLOCK)
        pair, inner = ((values >= self.threshold[query, None]) & (values > -torch.inf)).nonzero(as_tuple=True)
        key = _pack(values[pair, inner], rank[block[pair] * BLOCK + inner])
        self.found.append((query[pair], key))
        self.waiting += len(key)
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
        return np.load(path, mmap_mode="r", allow_pickle=False)
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
    the query's own id if the collection has drop_self, else -1.
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
        flat = sorted(
            (i * self.n_docs + row[doc], grade) for i, qrel in enumerate(judged) for doc, grade in qrel.items()
        )
        self._judged, self._grade = (
            np.array(flat, dtype=np.int64).reshape(-1, 2).T
        )  # (J,) query * N + row; (J,) its grade
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
