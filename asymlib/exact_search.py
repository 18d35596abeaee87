"""Exact search on arrays: the k best documents of each query, in an order that is always the same."""

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from asymlib.errors import InputError
from asymlib.losses import SIMILARITIES

BLOCK = 16  # rows whose maximum is compared with a query's k-th best score before any of them is looked at
LONGEST = 1e18  # longer vectors could overflow float32: |q - d|^2 <= (2e18)^2 = 4e36 < 3.4e38
LAST = -1e37  # the score of a document without a direction, below that of every other


def top_k(
    queries: np.ndarray, documents: np.ndarray | str | PathLike, k: int, similarity: str,
    tie_rank: np.ndarray | None = None, exclude: np.ndarray | None = None,
    doc_chunk: int | None = None, query_chunk: int = 1024, device: str | torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The k documents with the largest score for each query (losses.score_matrix): exact, ties at the k-th place included.

    A document whose vector is zero (an empty text) says nothing of its relevance: it scores LAST, whatever the similarity.
    queries: (Q, D). documents: (N, D), an array, a np.memmap or a .npy file, of which only a chunk is held in memory.
    tie_rank: (N,) integers, all different; among equal scores the larger one comes first. None: the earlier row first.
    exclude: (Q,) the row of one document that is no result for this query, -1 for none.
    doc_chunk, query_chunk: rows scored at a time (None: 8,192 on a CPU, 262,144 elsewhere). device: None is the CPU.
    Returns scores (Q, k) float32 and rows (Q, k) int64, best first; if there are fewer than k documents the rest is -inf, -1.
    InputError: another dimension, a NaN or infinite vector, naming side and row.
    """
    is_file, documents = isinstance(documents, str | PathLike), _checked(queries, documents, k, similarity)
    device = torch.device(device or "cpu")
    doc_chunk = doc_chunk or (8192 if device.type == "cpu" else 262_144)
    starts = range(0, len(documents), doc_chunk)
    row_of = np.arange(len(documents))[::-1].copy() if tie_rank is None else np.argsort(tie_rank, kind="stable")
    rank = np.argsort(row_of)  # 0 for the document that loses every tie
    q = _vectors(queries, "queries", 0, similarity, device)
    hidden = torch.from_numpy(np.full(len(q), -1) if exclude is None else exclude).to(device)
    parts = [_Best(q[i : i + query_chunk], hidden[i : i + query_chunk], k) for i in range(0, len(q), query_chunk)]
    buffers = threading.local()

    def score(start: int) -> None:
        if not hasattr(buffers, "scores"):
            buffers.scores = torch.empty((min(doc_chunk, len(documents)) + BLOCK) * len(parts[0].q), device=device)
        d = _vectors(documents[start : start + doc_chunk], "documents", start, similarity, device)
        zero, ranks = (~d.any(1)).nonzero()[:, 0], torch.from_numpy(rank[start : start + len(d)]).to(device)
        for best in parts:
            best.add(d, zero, start, ranks, similarity, buffers.scores)
        if is_file:
            documents._mmap.madvise(mmap.MADV_DONTNEED)  # read pages would stay in this process's memory

    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(starts)) == 1:
        list(map(score, starts))
    else:  # each thread takes whole chunks, rather than all of them a share of every small step
        try:
            with ThreadPoolExecutor(min(threads, len(starts), 16), None, torch.set_num_threads, (1,)) as pool:
                list(pool.map(score, starts))
        finally:
            torch.set_num_threads(threads)  # what threads of the future start with
    scores, places = (part.numpy() for part in _unpack(torch.cat([best.reduce() for best in parts]).cpu()))
    return scores, np.where(scores > -np.inf, row_of[places], -1)


def top_k_scores(
    scores: np.ndarray, k: int, tie_rank: np.ndarray, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """top_k of scores that were given, (Q, N), finite; the rest, and what is returned, as there."""
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise InputError(f"scores: {scores.shape}, expected (queries, documents), all of them finite")
    rows = np.arange(scores.shape[1])
    key = _pack(
        torch.from_numpy(np.require(scores, np.float32, ["C"])), torch.from_numpy(np.argsort(np.argsort(tie_rank)))
    )
    if exclude is not None:
        key[torch.from_numpy(exclude[:, None] == rows)] = _pack(torch.tensor(-torch.inf), 0)
    best, place = (part.numpy() for part in key.topk(min(k, len(rows)), dim=1))
    found = _unpack(torch.from_numpy(best))[0].numpy()
    return found, np.where(found > -np.inf, place, -1)


def _checked(queries: np.ndarray, documents: np.ndarray | str | PathLike, k: int, similarity: str) -> np.ndarray:
    """The documents, opened if they are a file."""
    if isinstance(documents, str | PathLike):
        try:  # mode "c": writable for torch without a copy, never written
            documents = np.load(documents, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{documents}: expected a .npy file of numbers ({error})") from error
    if similarity not in SIMILARITIES or k < 1:
        raise InputError(f"similarity {similarity!r}, k {k}: expected one of {', '.join(SIMILARITIES)} and at least 1")
    for side, array in (("queries", queries), ("documents", documents)):
        if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape or array.shape[1] != queries.shape[1]:
            raise InputError(f"{side}: {array.dtype} {array.shape}, expected rows of {queries.shape[-1]} floats")
    return documents


def _vectors(rows: np.ndarray, side: str, start: int, similarity: str, device: torch.device) -> Tensor:
    """Rows as the similarity wants them, after refusing those whose score would not be a number."""
    x = torch.from_numpy(np.require(rows, np.float32, ["C", "W"])).to(device)
    length = torch.linalg.vector_norm(x, dim=1)
    wrong = ~(length <= LONGEST)  # true for NaN as well
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InputError(f"{side} row {start + row}: a vector of length {length[row]:g}, expected at most {LONGEST:g}")
    if not SIMILARITIES[similarity][side == "documents"]:
        return x
    return x / torch.where(length > 0, length, torch.inf)[:, None]  # a zero vector stays zero


class _Best:
    """The best documents of each of these queries so far, as integers that sort by score, then tie rank."""

    def __init__(self, q: Tensor, hidden: Tensor, k: int):
        self.q, self.hidden, self.k, self.lock = q, hidden, k, threading.Lock()
        self.nothing = _pack(torch.tensor(-torch.inf, device=q.device), 0)  # the key of no document
        self.bound = self.nothing.expand(len(q))  # (B,) what a key must exceed to be among the best
        self.found: list[tuple[Tensor, Tensor]] = []  # (query, key) of candidates

    def add(self, d: Tensor, zero: Tensor, start: int, rank: Tensor, similarity: str, buffer: Tensor) -> None:
        """d: (n, D) a chunk that starts at row `start`; zero: its rows that are zero; rank: (n,) what its ties are decided by;
        buffer: scratch space."""
        n, b = len(d), len(self.q)
        scores = buffer[: -(-n // BLOCK) * BLOCK * b].view(-1, b)  # (blocks * BLOCK, B): maxima run along memory
        scores[n:] = -torch.inf
        torch.mm(d, self.q.T, out=scores[:n])
        if similarity == "euclidean":  # -|q - d|^2 = 2 q.d - |d|^2 - |q|^2
            scores[:n].mul_(2).sub_(torch.linalg.vecdot(d, d)[:, None]).sub_(torch.linalg.vecdot(self.q, self.q))
        scores[zero] = LAST
        bound = self.bound
        if not self.found and n > self.k:  # one more than k, as one may be hidden
            bound = self.bound = _pack(scores.topk(self.k + 1, dim=0).values[-1], 0) - 1
        floor = _unpack(bound)[0].clamp_min(torch.finfo(torch.float32).min)  # above -inf: no document
        blocked = scores.view(-1, BLOCK, b)
        block, query = (blocked.amax(1) >= floor).nonzero(as_tuple=True)  # (P,) pairs of a block and a query
        pair, inner = (blocked[block, :, query] >= floor[query, None]).nonzero(as_tuple=True)
        row, query = block[pair] * BLOCK + inner, query[pair]
        key = _pack(scores[row, query], rank[row])
        enters = (key > bound[query]) & (start + row != self.hidden[query])  # of equal scores, those that win the tie
        with self.lock:
            self.found.append((query[enters], key[enters]))
            if sum(len(keys) for _, keys in self.found) > 2 * b * self.k:
                self.reduce()

    def reduce(self) -> Tensor:
        """(B, k) each query's largest keys, best first: only they stay candidates, and the k-th is the new bound."""
        query, key = (torch.cat(column) for column in zip(*self.found, strict=True))
        order = key.argsort(descending=True)
        order = order[query[order].argsort(stable=True)]
        query, key = query[order], key[order]
        place = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query)
        kept = place < self.k
        self.found = [(query[kept], key[kept])]
        best = self.nothing.repeat(len(self.q), self.k)
        best[query[kept], place[kept]] = key[kept]
        self.bound = torch.maximum(self.bound, best[:, -1])
        return best


def _pack(score: Tensor, rank: Tensor | int) -> Tensor:
    """One int64 that orders as (score, rank): float32 bits, flipped below zero so that they order as integers, over the rank."""
    bits = (score + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: equal scores have equal bits
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) << 32) | rank


def _unpack(key: Tensor) -> tuple[Tensor, Tensor]:
    """Score and rank of _pack's integers."""
    bits = (key >> 32).to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32), key & 0xFFFFFFFF
