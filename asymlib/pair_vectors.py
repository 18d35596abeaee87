"""Pairs as tensors: frozen embeddings with what is known to be positive, and hard negatives mined from them."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from asymlib import losses
from asymlib.errors import InputError

MARGIN = 0.95  # NV-Retriever's share of the positive's score that a negative may reach


@dataclass(frozen=True)
class PairVectors:
    """Frozen embeddings of (query, document) pairs: row i of documents is the positive of row i of queries.

    queries, documents: (N, D) float32. passage: (N,) int64, equal where two rows have the same document text.
    query: (N,) int64, equal where two rows have the same query text; None: all texts differ.
    known: (P,) int64, the distinct (query, passage) pairs in order, each as one integer; None without `query`.
    documents and passage may be longer than queries: with_corpus adds what belongs to no pair and can only be mined.
    """

    queries: Tensor
    documents: Tensor
    passage: Tensor
    query: Tensor | None = None
    known: Tensor | None = None

    @classmethod
    def of(
        cls, queries: np.ndarray, documents: np.ndarray, passage: np.ndarray, query: np.ndarray | None = None
    ) -> Self:
        """Check and wrap arrays; NaN, zero rows and shapes that disagree are refused, naming the side and row."""
        for side, array in (("queries", queries), ("documents", documents)):
            if array.ndim != 2 or array.shape != queries.shape or len(array) != len(passage):
                expected = f"two equal (N, D) shapes and N = {len(passage)} passages"
                raise InputError(f"pairs: {side} has shape {array.shape}, expected {expected}")
            bad = np.flatnonzero(~np.isfinite(array).all(1) | ~array.any(1))
            if len(bad):
                raise InputError(f"pairs: {side} row {bad[0]} is NaN, infinite or zero ({len(bad)} such rows)")
        numbers = [torch.from_numpy(np.array(passage, dtype=np.int64))]
        if query is not None:
            numbers.append(torch.from_numpy(np.array(query, dtype=np.int64)))
            for name, value in zip(("passage", "query"), numbers, strict=True):
                if len(value) != len(queries) or bool((value < 0).any()) or bool((value >= 2**31).any()):
                    raise InputError(f"pairs: expected {len(queries)} {name} numbers from 0 to {2**31 - 1}")
            numbers.append(_joined(numbers[1], numbers[0]).unique())
        return cls(_float32(queries), _float32(documents), *numbers)

    def with_corpus(self, documents: np.ndarray, passage: np.ndarray, known: np.ndarray) -> "PairVectors":
        """The same pairs, with documents of no pair to mine from and further (query, passage) that are no negatives.

        documents: (C, D); passage: (C,), numbered as the pairs' are. known: (K, 2) int64. Only for pairs with `query`.
        """
        if self.query is None or documents.shape != (len(passage), self.queries.shape[1]):
            raise InputError(f"pairs: expected query numbers and {len(passage)} documents, found {documents.shape}")
        all_documents = torch.cat([self.documents, _float32(documents)])
        all_passages = torch.cat([self.passage, torch.from_numpy(np.array(passage, dtype=np.int64))])
        more = torch.from_numpy(np.array(known, dtype=np.int64)).reshape(-1, 2)
        all_known = torch.cat([self.known, _joined(more[:, 0], more[:, 1])]).unique()
        return replace(self, documents=all_documents, passage=all_passages, known=all_known)

    def first(self, count: int) -> "PairVectors":
        """The first `count` pairs; a document that a later pair calls positive stays known as such."""
        query = None if self.query is None else self.query[:count]
        return PairVectors(self.queries[:count], self.documents[:count], self.passage[:count], query, self.known)

    def to(self, device: torch.device) -> "PairVectors":
        return PairVectors(*(None if value is None else value.to(device) for value in vars(self).values()))

    def positive(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which documents are known positives, so no negatives: (..., B) and (..., M) pair numbers -> (..., B, M) bool.

        The document of pair j is a positive of the query of pair i if they have the same passage, or if any pair,
        in the batch or not, joins a query of the same text to it (so also if i and j have the same query text).
        """
        same = self.passage[rows].unsqueeze(-1) == self.passage[columns].unsqueeze(-2)
        if self.query is None:
            return same
        asked = _joined(self.query[rows].unsqueeze(-1), self.passage[columns].unsqueeze(-2))
        place = torch.searchsorted(self.known, asked).clamp_max(len(self.known) - 1)
        return same | (self.known[place] == asked)


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _joined(query: Tensor, passage: Tensor) -> Tensor:
    """One int64 for each (query, passage), both below 2^31."""
    return (query << 32) | passage


@torch.no_grad()
def mine(training: PairVectors, count: int, margin: float = MARGIN, chunk: int = 512) -> Tensor:
    """The hardest documents that are probably no positives: for each pair, `count` others by cosine with its query.

        keep d with cos(q_i, d) <= c_i + (margin - 1) |c_i|,  c_i = cos(q_i, d_i)

    Known positives of the query are left out (PairVectors.positive); above margin x the positive's own cosine lie
    probable positives that nobody has marked, and left out too, unless margin is inf. Every distinct passage is a
    candidate once. Exact, `chunk` queries at a time.
    Returns (N, count) int64 pair numbers whose documents are meant, hardest first, -1 where there are no more.
    Moreira et al. 2024, positive-aware mining with TopK-PercPos (arXiv:2407.15831).
    """
    if count < 1 or not margin > 0:
        raise InputError(f"mine: count {count} and margin {margin}, expected at least 1 and a share above 0")
    device, total, documents = training.passage.device, len(training.queries), len(training.passage)
    distinct, which = training.passage.unique(return_inverse=True)
    place = torch.full((len(distinct),), documents, device=device)
    place.scatter_reduce_(0, which, torch.arange(documents, device=device), "amin")  # the first row of each passage
    candidates = losses.normalize(training.documents[place])
    found = torch.full((total, count), -1, device=device)
    for start in range(0, total, chunk):
        rows = torch.arange(start, min(start + chunk, total), device=device)
        queries = losses.normalize(training.queries[rows])
        own = (queries * losses.normalize(training.documents[rows])).sum(-1, keepdim=True)
        cosine = queries @ candidates.T
        cosine.masked_fill_(cosine > own + (margin - 1) * own.abs().clamp_min(losses.TINY), -torch.inf)
        # Positives are looked up only where they would be taken: as many more as a query of this chunk has positives.
        most = 1 if training.query is None else int(torch.bincount(training.known >> 32)[training.query[rows]].max())
        best = cosine.topk(min(count + most, len(place)), dim=1)
        taken = place[best.indices]
        out = torch.isneginf(best.values)
        out |= training.positive(rows.unsqueeze(1), taken).squeeze(1)  # each query against its own candidates
        order = out.to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]
        found[rows, : order.shape[1]] = torch.where(out.gather(1, order), -1, taken.gather(1, order))
    return found
