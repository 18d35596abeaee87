"""The oracle: it reads the judgements that it says it reads, and cross-fitting never scores a query that it was fitted on."""

import numpy as np
import pandas as pd
import pytest

from asymlib import evaluate, heads
from asymlib.data.collections import Collection
from asymlib.errors import InputError
from asymlib.pair_vectors import mine
from asymlib.recipes import Recipe
from asymlib.selection import oracle
from asymlib.significance import bootstrap_interval
from asymlib.train import train
from tests.test_search import noisy_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def noisy(n: int = 120, learnable: bool = True) -> Collection:
    """n queries with one relevant document each, which half of the dimensions tell; or which nothing tells."""
    pairs = noisy_pairs("", n, 0)
    documents = pairs.document_vectors if learnable else np.roll(pairs.document_vectors, 1, axis=0)
    qrels = {query: {document: 1} for query, document in zip(pairs.queries, pairs.documents, strict=True)}
    texts = (pairs.documents, pairs.documents, pairs.queries, pairs.queries)
    return Collection("noisy", *texts, qrels, query_vectors=pairs.query_vectors, document_vectors=documents)


def after_heads(test: Collection, parameters: heads.Parameters) -> np.ndarray:
    """nDCG@10 of all queries."""
    sides = zip(("query", "document"), (test.query_vectors, test.document_vectors), strict=True)
    projected = [heads.project(parameters, side, vectors) for side, vectors in sides]
    return evaluate.rank(test.judgements, *projected, "cosine", None).metrics()["ndcg@10"]


def test_pairs_come_from_the_queries_in_use_alone_and_other_positives_are_known():
    qrels = {"b": {"x": 2, "y": 0, "gone": 1}, "a": {"w": 1, "x": 1, "y": 1, "z": 1}, "c": {"z": 1}}
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal((n, 12)).astype(np.float32) for n in (3, 5)]
    vectors = {"query_vectors": vectors[0], "document_vectors": vectors[1]}
    test = Collection("t", list("wxyzb"), list("wxyzb"), list("bac"), list("bac"), qrels, True, **vectors)
    pairs = oracle.judged_pairs(test, np.array([True, True, False]), most=2)
    assert pairs.query.tolist() == [
        0,
        1,
        1,
    ]  # b's one relevant document in the corpus, two of a's four; c is not in use
    assert pairs.passage[0] == 1 and len(set(pairs.passage[1:3].tolist())) == 2
    np.testing.assert_array_equal(pairs.queries.numpy(), test.query_vectors[[0, 1, 1]])
    corpus = test.document_vectors
    np.testing.assert_array_equal(pairs.documents.numpy(), np.concatenate([corpus[pairs.passage[:3]], corpus]))
    negatives = [{int(pairs.passage[row]) for row in rows if row >= 0} for rows in mine(pairs, 5, margin=np.inf)]
    assert negatives[0] == {0, 2, 3}  # neither x, its positive, nor document 4, which is b itself
    assert negatives[1] == {4}  # beyond `most` a positive stays one; c's judgement is unread
    with pytest.raises(InputError, match="0 judged pairs in 0 queries, expected at least 2"):
        oracle.judged_pairs(test, np.zeros(3, dtype=bool))
    corpus[[1, 2]] = 0  # x and y are empty texts now
    assert set(oracle.judged_pairs(test, np.ones(3, dtype=bool)).passage[:3].tolist()) == {0, 3}


def test_every_query_is_scored_once_and_when_cross_fitting_by_a_head_fitted_on_the_other_folds():
    test = noisy(90)
    table = oracle.fit(test, [1e-2], [5], folds=3, seed=7)
    assert len(table) == 4 * 90 and table["kind"].nunique() == 2 and (table["epochs"] == 5).all()
    assert table.groupby(["head", "kind"])["query_id"].nunique().eq(90).all()
    table = table[table["head"] == "linear, query side"]
    part = np.random.default_rng(7).permutation(90) % 3
    everyone = np.ones(90, dtype=bool)
    for use, scored in ((everyone, everyone), *((part != fold, part == fold) for fold in range(3))):
        rows = table[table["held_out"] == (scored is not everyone)]
        pairs = oracle.judged_pairs(test, use, seed=7)
        batch = min(64, int(use.sum()))
        recipe = Recipe(name="o", start="identity", sides="query", isotropy="none", lr=1e-2, batch_size=batch, epochs=5)
        (run,) = train([(recipe, 7)], pairs, pairs.first(batch), progress=False)
        found = rows.set_index("query_id")["value"].loc[np.array(test.query_ids)[scored]]
        np.testing.assert_allclose(found, after_heads(test, run.last)[scored])


@pytest.mark.parametrize("learnable", [True, False])
def test_what_can_be_learnt_carries_over_to_other_queries_and_what_can_only_be_memorised_does_not(learnable):
    test = noisy(learnable=learnable)
    frozen = after_heads(test, {}).mean()
    table = oracle.fit(test, [5e-2], [60], folds=3, hard_negatives=0 if learnable else 1)
    same, held = table[table["head"] == "linear, both sides"].groupby("held_out")["value"].mean()
    assert same > frozen + 0.2 and (held > frozen + 0.2 if learnable else held < frozen + 0.05)


def fitted(values: dict[tuple[float, int], list[float]]) -> pd.DataFrame:
    about = {"head": "h", "kind": oracle.FITTED, "held_out": False}
    rows = [
        {**about, "lr": lr, "steps": steps, "epochs": steps // 10, "query_id": f"q{i}", "value": value}
        for (lr, steps), part in values.items()
        for i, value in enumerate(part)
    ]
    return pd.DataFrame(rows)


def test_the_table_takes_the_best_of_each_collections_grid_and_weighs_collections_the_same():
    ids = [f"q{i}" for i in range(4)]
    frozen = {"a": pd.Series([0.5, 0.1], ids[:2]), "b": pd.Series([0.2, 0.2, 0.5, 0.5], ids)}
    tables = {
        "a": fitted({(1e-3, 100): [0.9, 0.1], (1e-2, 100): [0.4, 0.5]}),
        "b": fitted({(1e-3, 100): [0.0, 0.0, 0.0, 0.4], (1e-2, 300): [0.2, 0.4, 0.6, 0.4]}),
    }
    table = oracle.best_of_grid(tables, frozen).set_index("dataset")
    expected = [1e-3, 10, pytest.approx(0.5), pytest.approx(0.3)]
    assert table.loc["a", ["lr", "epochs", "mean", "baseline"]].tolist() == expected
    assert table.loc["b", ["lr", "epochs", "mean"]].tolist() == [1e-2, 30, pytest.approx(0.4)]
    assert table.loc["average", "mean"] == pytest.approx((0.5 + 0.4) / 2)
    assert table.loc["average", "baseline"] == pytest.approx((0.3 + 0.35) / 2)
    assert table.loc["average", "delta_percent"] == pytest.approx(100 * (0.45 / 0.325 - 1))
    assert table.loc["average", ["lr", "epochs"]].isna().all() and not table["held_out"].any()
    low, high = bootstrap_interval(np.array([[0.9, 0.1]]))
    assert (table.loc["a", "ci_low"], table.loc["a", "ci_high"]) == (low, high)
