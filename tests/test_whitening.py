"""Whitening whose exponent validation chooses: against a hand-worked choice, alone and after heads of any kind."""

import numpy as np
import pytest
import torch

from asymlib import heads
from asymlib.evaluate import Qrels
from asymlib.selection.search import OWN, ValidationSet
from asymlib.selection.whitening import choose, project

RNG = np.random.default_rng(0)
# Documents vary by 10 along the first axis, by 1 along the others; that axis says nothing about which document answers.
DOCUMENTS = RNG.normal(size=(60, 6)).astype(np.float32) * np.array([10, 1, 1, 1, 1, 1], dtype=np.float32)


def validation(noise=1.0):
    """A query near each of 30 documents, but with a first axis of its own."""
    queries = DOCUMENTS[:30] + noise * RNG.normal(size=(30, 6)) * [10, 0.1, 0.1, 0.1, 0.1, 0.1]
    names = [f"d{i}" for i in range(60)]
    qrels = Qrels("validation", names, names[:30], {name: {name: 1} for name in names[:30]})
    return ValidationSet(OWN, qrels, queries.astype(np.float32), DOCUMENTS)


def test_the_exponent_that_ranks_validation_best_is_chosen_and_every_score_is_in_the_log():
    one = validation()
    chains, log = choose([{}], "cosine", DOCUMENTS, [0.0, 0.2, 1.0], one)
    expected = [
        one.score(heads.soft_whitening(DOCUMENTS, a), "cosine") if a else one.score({}, "cosine") for a in (0, 0.2, 1)
    ]
    np.testing.assert_array_equal(log["validation"], expected)
    assert expected == sorted(expected) and expected[0] < expected[-1]  # the loud axis is turned down
    assert log["exponent"].tolist() == [0.0, 0.2, 1.0] and log["chosen"].tolist() == [False, False, True]
    (chain,) = chains
    again = heads.project(heads.soft_whitening(DOCUMENTS, 1.0), "query", one.queries)
    np.testing.assert_array_equal(project(chain, "query", one.queries), again)


def test_of_equal_exponents_the_first_is_chosen_and_zero_leaves_a_head_as_it_is():
    one = validation(noise=0.0)  # each query is its document: all exponents find it
    head = heads.start_heads("linear", "random", "both", 6, seed=0)
    chains, log = choose([{}, head], "dot", DOCUMENTS, [0.0, 0.0], one)
    assert log["chosen"].tolist() == [True, False] and chains == [({},), (head,)]


@pytest.mark.parametrize("kind", ["linear", "residual", "deep"])
def test_whitening_is_fitted_on_what_each_head_makes_of_the_documents(kind):
    runs = [heads.start_heads(kind, "random", "both", 6, seed=seed) for seed in (0, 1)]
    chains, log = choose(runs, "cosine", DOCUMENTS, [0.5], validation())
    assert log["chosen"].tolist() == [True]
    for run, (first, after) in zip(runs, chains, strict=True):
        moved = heads.project(run, "document", DOCUMENTS)
        assert first is run
        torch.testing.assert_close(after["shared.weight"], heads.soft_whitening(moved, 0.5)["shared.weight"])
        if kind == "linear":  # the same as one head
            both = heads.project(heads.compose(run, after), "document", DOCUMENTS)
            np.testing.assert_allclose(project((first, after), "document", DOCUMENTS), both, rtol=1e-4, atol=1e-4)


def test_a_query_side_head_leaves_documents_alone_and_the_score_is_the_mean_over_the_runs():
    one, runs = validation(), [heads.start_heads("linear", "random", "query", 6, seed=seed) for seed in (0, 1)]
    after = heads.soft_whitening(DOCUMENTS, 0.5)
    _, log = choose(runs, "cosine", DOCUMENTS, [0.5], one)
    each = [one.score(heads.compose(run, after), "cosine") for run in runs]
    assert log["validation"].tolist() == pytest.approx([np.mean(each)], abs=1e-6)
