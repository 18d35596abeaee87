"""BM25 of whole corpora, and its hybrid with the scores of vectors."""

from collections.abc import Sequence

import numpy as np

from asymlib.errors import InputError
from asymlib.words.block import STOP_WORDS, tokenize


class BM25:
    """BM25 (Robertson & Zaragoza 2009) as bm25s computes it (Lù 2024, arXiv:2407.03618): Lucene's variant, without k1 + 1.

        sum over the query's words, as often as they come, of idf tf / (tf + k1 (1 - b + b words / mean words)), idf as in block

    documents: N texts. stop_words, stemmer: as of block.tokenize.
    """

    def __init__(
        self, documents: Sequence[str], k1: float = 0.9, b: float = 0.4, stop_words: str = STOP_WORDS,
        stemmer: str | None = None,
    ):  # fmt: skip
        import bm25s

        self.how, self.index = (stop_words, stemmer), bm25s.BM25(k1=k1, b=b)
        ids, words = tokenize(documents, *self.how)
        if not words:
            raise InputError("documents: none of them has a word; expected a corpus")
        self.number = {word: i for i, word in enumerate(words)}
        self.index.index(([row.tolist() for row in ids], self.number), show_progress=False)

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(Q, N) float32; 0 for a document without any word of the query."""
        ids, words = tokenize(queries, *self.how)
        number = np.array([self.number.get(word, -1) for word in words], dtype=np.int64)
        known = ([n for n in number[row] if n >= 0] for row in ids)
        found = [self.index.get_scores_from_ids(row) for row in known]
        return np.array(found, dtype=np.float32).reshape(len(found), self.index.scores["num_docs"])


def hybrid_scores(dense: np.ndarray, bm25: np.ndarray, weight: float = 0.2) -> np.ndarray:
    """(1 - weight) z(dense) + weight z(bm25), z = (s - mean) / std over the documents of each query; 0 where all are equal.

    dense, bm25: (Q, N) scores of all documents, a query's own text too where it is one. Returns (Q, N) float32.
    """
    if dense.shape != bm25.shape or not 0 <= weight <= 1:
        raise InputError(f"scores {dense.shape} and {bm25.shape}, weight {weight}: expected equal shapes, 0 to 1")

    def z(scores: np.ndarray) -> np.ndarray:
        away = scores.astype(np.float64) - scores.mean(axis=1, keepdims=True, dtype=np.float64)
        spread = away.std(axis=1, keepdims=True)
        return away / np.where(spread > 0, spread, 1)

    return ((1 - weight) * z(dense) + weight * z(bm25)).astype(np.float32)
