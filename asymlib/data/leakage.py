"""What two sets of text share: test text that occurs in training, answers met there, near-equal documents, equal questions."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from asymlib.data.collections import Collection, load_beir, words
from asymlib.exact_search import top_k

NEAR_DUPLICATE = 0.7  # Jaccard index of two documents' sets of three-word shingles, at and above which they are one
Rows = list[tuple[str, str]]  # (query, document)


def overlap_keys(text: str) -> set[str]:
    """The first and the last 120 letters and digits of the words: two texts that share a key are taken as the same.

    Both, because a copy of a passage may follow a title or be cut short. Of a text of symbols alone ("???") all counts.
    """
    plain = "".join(words(text)).replace("_", "") or "".join(text.split())
    return {f"first {plain[:120]}", f"last {plain[-120:]}"} if plain else set()


def keys_of(texts: Iterable[str]) -> set[str]:
    """The overlap keys of all texts together."""
    return set().union(*map(overlap_keys, texts))


def tested_keys(folders: Iterable[Path], strict: bool | None = None) -> set[str]:
    """The overlap keys of all queries and documents of BEIR folders with a test split. strict: as of load_beir."""
    tests = (load_beir(folder, strict=strict, drop_self=False) for folder in folders)
    return keys_of(text for test in tests for text in test.queries + test.documents)


def overlap(training: Iterable[str], collection: Collection) -> dict[str, int | float]:
    """How many queries and documents a test collection has, and how many, and which share, occur in training texts."""
    seen = keys_of(training)
    report: dict[str, int | float] = {}
    for kind, texts in (("queries", collection.queries), ("documents", collection.documents)):
        found = sum(not seen.isdisjoint(overlap_keys(text)) for text in texts)
        report |= {kind: len(texts), f"{kind}_in_training": found, f"{kind}_share": found / len(texts)}
    return report


def met_in_training(queries: np.ndarray, documents: Iterable[str], test: Collection) -> dict[str, np.ndarray]:
    """Groups of the test queries, bool (M,) each, by what of them was in the training pairs.

    'met in training': a relevant document has the text of a positive; 'not met': none has. 'near topic', 'far topic': the
    halves by the cosine to the nearest training query, an odd query in the far one. 'not met, far topic': both at once.
    queries: (P, D) vectors of the training queries. documents: the texts of the positives. test: with vectors.
    """
    positives, text = set(documents), dict(zip(test.doc_ids, test.documents, strict=True))
    relevant = ([text.get(doc) for doc, grade in test.qrels[query].items() if grade > 0] for query in test.query_ids)
    met = np.array([not positives.isdisjoint(texts) for texts in relevant])
    nearness = top_k(test.query_vectors, queries, 1, "cosine")[0][:, 0]
    near = np.zeros(len(met), dtype=bool)
    near[np.argsort(-nearness, kind="stable")[: len(met) // 2]] = True
    return {"met in training": met, "not met": ~met, "near topic": near, "far topic": ~near,
            "not met, far topic": ~met & ~near}  # fmt: skip


def without_overlap(seen: set[str], rows: Rows, keys: Callable[[str], set[str]] = overlap_keys) -> Rows:
    """The pairs neither text of which has a key in `seen`. keys: overlap_keys, or a cache of it."""
    return [(query, doc) for query, doc in rows if seen.isdisjoint(keys(query)) and seen.isdisjoint(keys(doc))]


def near_duplicates(documents: list[str]) -> np.ndarray:
    """bool (N,): True where an earlier document that is itself kept has a Jaccard index >= NEAR_DUPLICATE.

    |A and B| comes from a sparse product of the 0/1 matrix of hashed shingles with itself, |A or B| = |A| + |B| - that.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # seconds to import, and only this function needs it

    counted = {"binary": True, "norm": None, "alternate_sign": False, "dtype": np.float32}
    read = {"tokenizer": words, "token_pattern": None, "lowercase": False, "ngram_range": (3, 3)}
    vectorizer = HashingVectorizer(n_features=2**24, **read, **counted)
    shingles = vectorizer.transform(documents).tocsr()
    sizes = np.diff(shingles.indptr)
    dropped = np.zeros(len(documents), dtype=bool)
    columns = shingles.T.tocsr()
    for start in range(0, len(documents), 500):
        common = (shingles[start : start + 500] @ columns).tocoo()
        row, col, both = common.row + start, common.col, common.data
        near = (col < row) & (both >= NEAR_DUPLICATE * (sizes[row] + sizes[col] - both))
        for later, earlier in sorted(zip(row[near].tolist(), col[near].tolist(), strict=True)):
            dropped[later] |= not dropped[earlier]
    return dropped
