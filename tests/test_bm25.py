"""BM25 against a slow loop, the hybrid by hand, and rankings from given scores against those of vectors."""

from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib.errors import InputError
from asymlib.evaluate import Qrels, rank, rank_scores
from asymlib.words.block import tokenize
from asymlib.words.bm25 import BM25, hybrid_scores
from tests.small_encoders import some_texts
from tests.test_evaluate import few_scores, random_judgements

DOCUMENTS = [*some_texts(40, seed=1), "", "the of", "w5 w5 w5 unique"]


def slow_bm25(documents, queries, k1, b):
    """The definition, a word at a time."""
    read = lambda texts: [[words[i] for i in row] for ids, words in [tokenize(texts)] for row in ids]  # noqa: E731
    documents, mean = read(documents), np.mean([len(d) for d in read(documents)])
    scores = np.zeros((len(queries), len(documents)))
    for i, query in enumerate(read(queries)):
        for j, document in enumerate(documents):
            for word in query:
                df, tf = sum(word in d for d in documents), document.count(word)
                idf = log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                scores[i, j] += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75)])
def test_scores_equal_the_definition(k1, b):
    queries = [*some_texts(6, seed=2, longest=6), "w5 w5 w6", "never seen", ""]
    found = BM25(DOCUMENTS, k1, b).scores(queries)
    assert (found.shape, found.dtype) == ((9, 43), np.float32)
    np.testing.assert_allclose(found, slow_bm25(DOCUMENTS, queries, k1, b), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[-2:], 0)


def test_a_corpus_without_words_is_refused():
    with pytest.raises(InputError, match="none of them has a word"):
        BM25(["the", ""])


def test_hybrid_by_hand():
    # (1, 2, 3) has mean 2 and std sqrt(2/3): z = (-1.2247, 0, 1.2247); (0, 0, 3): mean 1, std sqrt(2), z = (-.7071, -.7071, 1.4142)
    dense, bm25 = np.array([[1.0, 2, 3], [1, 2, 3]]), np.array([[0.0, 0, 3], [5, 5, 5]])
    z = np.array([-1.2247449, 0, 1.2247449])
    expected = [0.8 * z + 0.2 * np.array([-0.7071068, -0.7071068, 1.4142136]), 0.8 * z]
    found = hybrid_scores(dense, bm25)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(hybrid_scores(7 * dense - 3, 2 * bm25), found, rtol=1e-6)  # no unit matters
    for wrong in ((dense, bm25[:1], 0.2), (dense, bm25, 1.5)):
        with pytest.raises(InputError, match="expected equal shapes"):
            hybrid_scores(*wrong)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.sampled_from([10, 60, 100]), st.integers(1, 16))
def test_given_scores_rank_as_vectors_do_with_ties_and_self_matches(seed, drop_self, k, chunk):
    rng = np.random.default_rng(seed)
    qrels, (q, d) = Qrels("random", *random_judgements(rng), drop_self), few_scores(rng)
    expected = rank(qrels, q, d, "dot", None, k=k)
    found = rank_scores(qrels, lambda part: q[part] @ d.T, k, query_chunk=chunk)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    pd.testing.assert_frame_equal(found.per_query(["ndcg@10"]), expected.per_query(["ndcg@10"]))


def test_wrong_scores_are_refused():
    qrels = Qrels("small", ["a", "b"], ["q"], {"q": {"a": 1}})
    with pytest.raises(InputError, match=r"small: scores of shape \(1, 3\), expected \(1, 2\)"):
        rank_scores(qrels, lambda part: np.zeros((1, 3)))
    with pytest.raises(InputError, match="all of them finite"):
        rank_scores(qrels, lambda part: np.array([[np.nan, 1]]))
