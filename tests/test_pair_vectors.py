"""Pairs as tensors: what is refused, which documents are no negatives, and mining against its slow definition."""

import math

import numpy as np
import pytest
import torch

from asymlib.errors import InputError
from asymlib.pair_vectors import PairVectors, mine

DIM = 16


def with_queries(queries: list[int], passages: list[int], seed: int = 0) -> PairVectors:
    """A pair for each entry; equal numbers have equal unit vectors, a passage lies near the first query that has it."""
    generator = np.random.default_rng(seed)
    q, d = (generator.standard_normal((max(part) + 1, DIM))[part] for part in (queries, passages))
    d = d + q[[passages.index(passage) for passage in passages]]
    unit = [(z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (q, d)]
    return PairVectors.of(*unit, np.array(passages), np.array(queries))


def test_a_document_of_the_same_query_or_known_from_a_pair_outside_the_batch_is_no_negative():
    #        pair:  0  1  2  3  4
    pairs = with_queries([0, 0, 1, 2, 2], [0, 1, 2, 2, 0])
    mask = pairs.positive(torch.arange(4), torch.arange(4)).int().tolist()
    assert mask == [
        [1, 1, 0, 0],  # query 0 asks for passages 0 and 1
        [1, 1, 0, 0],
        [0, 0, 1, 1],  # query 1 asks for passage 2 alone; pair 3 has the same passage
        [1, 0, 1, 1],  # query 2 asks for passage 2, and in pair 4, outside these four, for passage 0
    ]
    assert torch.equal(pairs.first(4).positive(torch.arange(4), torch.arange(4)).int(), torch.tensor(mask))
    alone = PairVectors.of(pairs.queries.numpy(), pairs.documents.numpy(), pairs.passage.numpy())
    assert alone.positive(torch.arange(4), torch.arange(4)).int().tolist() == [
        [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]  # fmt: skip


@pytest.mark.parametrize("margin", [math.inf, 1.0, 0.95, 0.5])
def test_mining_is_the_slow_definition(margin):
    generator = np.random.default_rng(3)
    pairs = with_queries(generator.integers(0, 30, 60).tolist(), generator.integers(0, 25, 60).tolist())
    found = mine(pairs, 6, margin, chunk=7)
    relevant = set(zip(pairs.query.tolist(), pairs.passage.tolist(), strict=True))
    cosine = pairs.queries.double() @ pairs.documents.double().T
    shorter = 0
    for i in range(60):
        bound, allowed = cosine[i, i] + (margin - 1) * abs(cosine[i, i]), {}
        for j in range(60):
            passage = int(pairs.passage[j])
            if (int(pairs.query[i]), passage) not in relevant and cosine[i, j] <= bound:
                allowed[passage] = float(cosine[i, j])
        expected = sorted(allowed, key=allowed.get, reverse=True)[:6]
        shorter += len(expected) < 6
        got = [int(pairs.passage[j]) for j in found[i] if j >= 0]
        assert got == expected and (found[i, len(expected) :] == -1).all()
    assert shorter == 0 if margin == math.inf else 0 < shorter < 60  # some queries have fewer than were asked for


def test_mining_in_a_corpus_takes_documents_of_no_pair_and_leaves_out_what_is_known_to_be_positive():
    pairs = with_queries([0, 1, 2], [0, 1, 2])
    near = pairs.queries.numpy() + 0.01  # passages 3, 4, 5: each next to one query
    corpus = pairs.with_corpus(near, np.array([3, 4, 5]), np.array([[1, 4]]))
    found = mine(corpus, 1, math.inf)[:, 0].tolist()
    assert (found[0], found[2]) == (3, 5) and found[1] != 4  # rows 3, 4, 5 of the documents; (1, 4) is known
    trusted = mine(corpus, 1)[:, 0].tolist()
    assert trusted[0] != 3 and trusted[2] != 5  # above the positive: too near to be a negative for certain
    assert corpus.positive(torch.arange(3), torch.tensor([3, 4, 5])).nonzero().tolist() == [[1, 1]]
    unnumbered = PairVectors.of(pairs.queries.numpy(), pairs.documents.numpy(), pairs.passage.numpy())
    with pytest.raises(InputError, match="expected query numbers and 3 documents"):
        unnumbered.with_corpus(near, np.array([3, 4, 5]), np.empty((0, 2)))


def test_mining_refuses_counts_and_margins_that_mean_nothing():
    for count, margin in ((0, 0.95), (1, 0.0), (1, math.nan)):
        with pytest.raises(InputError, match="expected at least 1 and a share above 0"):
            mine(with_queries([0, 1], [0, 1]), count, margin)


GOOD, SHAPES = np.ones((4, 3)), r"expected two equal \(N, D\) shapes"
BROKEN = GOOD * [[1], [1], [np.nan], [1]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((BROKEN, GOOD, np.arange(4)), r"pairs: queries row 2 is NaN, infinite or zero \(1 such rows\)"),
        ((GOOD, BROKEN * np.inf, np.arange(4)), r"pairs: documents row 0 is NaN, infinite or zero \(4 such rows\)"),
        (
            (GOOD, GOOD * [[1], [0], [1], [0]], np.arange(4)),
            r"documents row 1 is NaN, infinite or zero \(2 such rows\)",
        ),
        ((GOOD, np.ones((4, 2)), np.arange(4)), SHAPES),
        ((GOOD, np.ones((5, 3)), np.arange(4)), SHAPES),
        ((GOOD, GOOD, np.arange(3)), SHAPES),
        ((np.ones(4), np.ones(4), np.arange(4)), SHAPES),
        ((GOOD, GOOD, np.arange(4), np.arange(3)), "expected 4 query numbers from 0 to 2147483647"),
        ((GOOD, GOOD, np.arange(4), np.array([0, 1, 2, -1])), "expected 4 query numbers from 0 to 2147483647"),
        ((GOOD, GOOD, np.array([0, 1, 2, 2**31]), np.arange(4)), "expected 4 passage numbers from 0 to 2147483647"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused_naming_side_and_row(given, message):
    with pytest.raises(InputError, match=message):
        PairVectors.of(*given)
