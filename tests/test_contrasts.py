"""Contrasts of two systems, the split of a grid's variance, and rates by length, each against numbers worked by hand."""

import numpy as np
import pandas as pd
import pytest

from asymlib import evaluate, magnitude
from asymlib.errors import InputError


def per_query(scores):
    rows = [("zero-shot", system, seed, dataset, str(i), "ndcg@10", value)
            for (system, seed, dataset), values in scores.items() for i, value in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows, columns=["track", "system", "seed", "dataset", "query_id", "metric", "value"])


def test_contrast_gives_each_collection_the_same_weight():
    table = per_query({("a", 0, "x"): [1.0, 0.0], ("a", 1, "x"): [0.0, 0.0], ("b", 0, "x"): [0.5, 0.5],
                       ("a", 0, "y"): [1.0], ("a", 1, "y"): [1.0], ("b", 0, "y"): [0.0]})  # fmt: skip
    found = evaluate.contrast(table, "a", "b")
    # a: x (0.5 + 0)/2 = 0.25 after averaging seeds, y 1 -> 0.625; b: x 0.5, y 0 -> 0.25
    assert (found["mean_a"], found["mean_b"], found["difference"]) == pytest.approx((0.625, 0.25, 0.375))
    assert 0 < found["p_value"] <= 1


def test_contrast_refuses_an_unknown_system_and_other_queries():
    table = per_query({("a", 0, "x"): [1.0, 0.0], ("b", 0, "x"): [0.5]})
    with pytest.raises(InputError, match="no rows of c"):
        evaluate.contrast(table, "a", "c")
    with pytest.raises(InputError, match="same queries"):
        evaluate.contrast(table, "a", "b")


def test_variance_split_by_hand():
    # y = 2 if a + 1 if (a == b) +- 0.5 for the seed: mean 1.5; effects a +-1, b 0, a x b +-0.5, seeds +-0.5
    # sums of squares over 8 rows: a 8, a x b 2, seeds 2, total 12
    rows = [(a, b, s, 2 * a + (a == b) + (0.5 if s else -0.5)) for a in (0, 1) for b in (0, 1) for s in (0, 1)]
    split = evaluate.variance_split(pd.DataFrame(rows, columns=["a", "b", "seed", "y"]), ["a", "b"], "y").set_index(
        "term"
    )
    assert split["share"].to_dict() == pytest.approx({"a": 8 / 12, "b": 0, "a x b": 2 / 12, "seeds": 2 / 12})
    assert split.loc["a", "range"] == pytest.approx(2)


def test_variance_split_refuses_an_unbalanced_grid():
    table = pd.DataFrame({"a": [0, 0, 1], "b": [0, 1, 0], "y": [1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match="every cell of a x b"):
        evaluate.variance_split(table, ["a", "b"], "y")


def test_rates_by_length_by_hand():
    documents = np.array([[4.0, 0], [1, 0], [3, 0], [2, 0]])  # by length: rows 1, 3 | 2, 0
    found = np.array([[0, 2], [0, -1]])  # three results, all in the longer half
    rates = magnitude.rates_by_length(documents, found, relevant=np.array([1, 1, 0, 0]), groups=2)
    assert rates["length"].tolist() == [1.5, 3.5]
    assert rates["retrieved_rate"].tolist() == [0, 2]  # 3 of 3 results in a half of the documents
    assert rates["relevant_rate"].tolist() == [1, 1]
