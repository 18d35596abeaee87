"""Retrieval metrics of every query, from one ranking a run and collection. Conventions that move numbers:

- Equal scores are ordered as trec_eval orders them: the document id that sorts later comes first.
- A document whose vector is zero comes last. Under a zero query the others tie (but under euclidean).
- nDCG has linear gain, as in trec_eval and pytrec_eval. Binary metrics call a grade >= `relevant_from` relevant (1 as in BEIR;
  TREC DL's own convention for its binary measures is 2).
- In a collection with `drop_self` (ArguAna) the document whose id equals the query's id is no result, for every metric.
- Vectors are scored with the similarity that they were trained with, unless another one is asked for by name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from asymlib.errors import InputError
from asymlib.exact_search import top_k, top_k_scores
from asymlib.losses import SIMILARITIES
from asymlib.magnitude import rates_by_length

METRIC = "ndcg@10"  # what everything is decided by
METRICS = (METRIC, "mrr@10", "recall@100")


def parse_metric(metric: str) -> tuple[str, int]:
    """Name and k: ndcg@10 gives ("ndcg", 10)."""
    if not (match := re.fullmatch(r"(ndcg|mrr|recall)@([1-9][0-9]*)", metric)):
        raise InputError(f"metric {metric!r}: expected ndcg@k, mrr@k or recall@k, k a whole number from 1")
    return match[1], int(match[2])


DEPTH = parse_metric(METRIC)[1]


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


class Qrels:
    """A collection's relevance judgements as arrays: built once, then they score any number of runs.

    doc_ids: N names of the documents, query_ids: Q of the queries, in the order of their vectors. qrels: query id ->
    {document id: grade}. relevant_from: the lowest grade that mrr and recall call relevant.
    tie_rank: (N,) rank of each document's id in sorted order. exclude: (Q,) row of the query's own id if drop_self, else -1.
    ideal: (Q, J) all judged grades, descending. relevant_counts: (N,) how many queries each document answers (grade > 0).
    A judged document that the corpus lacks cannot be found but counts among the relevant ones, as in trec_eval.
    """

    def __init__(
        self, name: str, doc_ids: Sequence[str], query_ids: Sequence[str], qrels: dict[str, dict[str, int]],
        drop_self: bool = False, relevant_from: int = 1,
    ):  # fmt: skip
        if relevant_from < 1:
            raise InputError(f"relevant_from {relevant_from}: expected at least 1")
        self.name, self.query_ids, self.n_docs, self.relevant_from = name, list(query_ids), len(doc_ids), relevant_from
        row = {doc_id: i for i, doc_id in enumerate(doc_ids)}
        self.tie_rank = np.argsort(sorted(range(self.n_docs), key=doc_ids.__getitem__))
        self.exclude = np.array([row.get(q, -1) if drop_self else -1 for q in self.query_ids], dtype=np.int64)
        judged = [qrels[q] for q in self.query_ids]
        known = ((i * self.n_docs + row[d], g) for i, found in enumerate(judged) for d, g in found.items() if d in row)
        key_and_grade = np.array(sorted(known) or [(-1, 0)], dtype=np.int64)
        self._judged, self._grade = key_and_grade.T  # (J,) query * N + row, ascending; (J,) its grade
        self.ideal = np.zeros((len(judged), max(map(len, judged), default=0)), dtype=np.int64)
        for i, grades in enumerate(judged):
            self.ideal[i, : len(grades)] = sorted(grades.values(), reverse=True)
        self.n_relevant = (self.ideal >= relevant_from).sum(1)
        self.relevant_counts = np.bincount(self._judged[self._grade > 0] % self.n_docs, minlength=self.n_docs)

    def grades(self, rows: np.ndarray) -> np.ndarray:
        """rows: (Q, k) of top_k, -1 for none. Returns (Q, k) grades, 0 for a document that was not judged."""
        wanted = np.arange(len(rows))[:, None] * self.n_docs + rows
        place = np.minimum(np.searchsorted(self._judged, wanted), len(self._judged) - 1)
        return np.where((self._judged[place] == wanted) & (rows >= 0), self._grade[place], 0)

    def scores(self, rows: np.ndarray, metrics: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
        """rows: (Q, k) of top_k with k at least the largest of the metrics (or all documents). Returns metric -> (Q,)."""
        grades = self.grades(rows)
        relevant, depth, found = grades >= self.relevant_from, rows.shape[1], {}
        for metric in metrics:
            name, k = parse_metric(metric)
            if k > depth < self.n_docs:
                raise InputError(f"metric {metric!r}: the ranking holds {depth} documents, expected at least {k}")
            if name == "ndcg":
                found[metric] = ndcg(grades, self.ideal, k)
            elif name == "mrr":
                found[metric] = mrr(relevant, k)
            else:
                found[metric] = recall(relevant, self.n_relevant, k)
        return found


@dataclass
class Ranking:
    """The first documents of every query under one run: what every question about its results is asked of."""

    qrels: Qrels
    rows: np.ndarray  # (Q, k) of the documents, best first, -1 for none
    scores: np.ndarray  # (Q, k)
    document_length: np.ndarray  # (N,) Euclidean lengths of all documents, after the head

    def metrics(self, metrics: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
        """metric -> (Q,) scores of the queries."""
        return self.qrels.scores(self.rows, metrics)

    def per_query(self, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
        """The same as a table: columns dataset, query_id, metric, value."""
        wide = pd.DataFrame({"dataset": self.qrels.name, "query_id": self.qrels.query_ids, **self.metrics(metrics)})
        return wide.melt(["dataset", "query_id"], var_name="metric")

    def mean(self, metric: str = METRIC) -> float:
        """One metric, averaged over the queries."""
        return float(self.metrics([metric])[metric].mean())

    def hubness(self, k: int = 10) -> dict[str, float]:
        """hubness() of the first k results."""
        return hubness(self.rows[:, :k], self.qrels.n_docs)

    def ties(self, k: int = 11) -> dict[str, float]:
        """Whether another order of documents with equal scores would change the numbers.

        Returns tied_queries (with two equal scores among their first k), queries, and METRIC's mean, and mean_reversed with
        all ties the other way round; nan if a tie runs past the end of the list, which then does not hold all of it.
        """
        tied = int((np.diff(self.scores[:, :k]) == 0).any(axis=1).sum())
        order = np.lexsort((self.qrels.tie_rank[self.rows], -self.scores))
        other = replace(self, rows=np.take_along_axis(self.rows, order, axis=1)).mean()
        if self.rows.shape[1] < self.qrels.n_docs and (self.scores[:, DEPTH - 1] == self.scores[:, -1]).any():
            other = np.nan
        return {"tied_queries": tied, "queries": len(self.rows), "mean": self.mean(), "mean_reversed": other}

    def by_length(self, k: int = 10, groups: int = 10) -> pd.DataFrame:
        """How often documents of each length are among the first k results, and how often they are relevant."""
        return rates_by_length(self.document_length, self.rows[:, :k], self.qrels.relevant_counts, groups)


def rank(
    qrels: Qrels, queries: np.ndarray, documents: np.ndarray, similarity: str, trained_with: str | None,
    k: int = 100, allow_other_similarity: bool = False,
) -> Ranking:  # fmt: skip
    """The first k documents of every query, or all of them if there are fewer.

    queries: (Q, D), documents: (N, D), as the ids of qrels. trained_with: the similarity of their training, None for none.
    InputError if similarity is not trained_with, unless allow_other_similarity says that this is meant.
    """
    if trained_with is not None and trained_with not in SIMILARITIES:
        raise InputError(f"trained_with {trained_with!r}: expected None or one of {', '.join(SIMILARITIES)}")
    if trained_with not in (None, similarity) and not allow_other_similarity:
        raise InputError(
            f"trained with {trained_with}, evaluated with {similarity}: train and evaluate with the same similarity,"
            " or pass allow_other_similarity=True to mix them on purpose"
        )
    for side, vectors, expected in (("queries", queries, len(qrels.query_ids)), ("documents", documents, qrels.n_docs)):
        if len(vectors) != expected:
            raise InputError(f"{qrels.name}: {len(vectors)} {side} given, expected {expected}, one for each id")
    scores, rows = top_k(queries, documents, min(k, qrels.n_docs), similarity, qrels.tie_rank, qrels.exclude)
    return Ranking(qrels, rows, scores, np.linalg.norm(documents.astype(np.float64), axis=1))


def rank_scores(qrels: Qrels, scores: Callable[[slice], np.ndarray], k: int = 100, query_chunk: int = 64) -> Ranking:
    """The same from scores of any origin, such as BM25's: no document is last for its vector, and document_length is NaN.

    scores: gives the scores (b, N) of the queries in a slice, as the ids of qrels; query_chunk of them at a time.
    """
    found = []
    for start in range(0, len(qrels.query_ids), query_chunk):
        part = slice(start, min(start + query_chunk, len(qrels.query_ids)))
        given = scores(part)
        if given.shape != (expected := (part.stop - start, qrels.n_docs)):
            raise InputError(f"{qrels.name}: scores of shape {given.shape}, expected {expected}")
        found.append(top_k_scores(given, k, qrels.tie_rank, qrels.exclude[part]))
    best, rows = map(np.concatenate, zip(*found, strict=True))
    return Ranking(qrels, rows, best, np.full(qrels.n_docs, np.nan))


def hubness(rows: np.ndarray, n_docs: int) -> dict[str, float]:
    """How unevenly documents appear in result lists.

        N_i = number of lists that hold document i
        k_skewness = mean((N - mean N)^3) / std(N)^3, anti_hubs = share of N_i = 0, robin_hood = 0.5 sum |N - mean N| / sum N

    rows: (Q, k) of top_k, -1 for none. As in scikit-hubness (Feldbauer et al. 2020, JOSS); skewness is 0 if all N are equal.
    """
    occurrence = np.bincount(rows[rows >= 0], minlength=n_docs).astype(np.float64)
    away, spread = occurrence - occurrence.mean(), occurrence.std()
    return {
        "k_skewness": float((away**3).mean() / spread**3) if spread > 0 else 0.0,
        "anti_hubs": float((occurrence == 0).mean()),
        "robin_hood": float(0.5 * np.abs(away).sum() / occurrence.sum()),
    }
