"""The oracle: it reads the judgements that it says it reads, and cross-fitting never scores a query that it was fitted on."""

import numpy as np
import pandas as pd
import pytest

from asymlib import evaluate, oracle, plots, train
from asymlib.datasets import Collection
from asymlib.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 12


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def noisy(n: int = 120, seed: int = 0, learnable: bool = True) -> tuple[Collection, np.ndarray, np.ndarray]:
    """n queries with one relevant document each. Learnable: half of the dimensions agree and the louder half is noise."""
    generator = np.random.default_rng(seed)
    signal = generator.standard_normal((n, DIM // 2))
    sides = [np.hstack([signal, 2 * generator.standard_normal((n, DIM // 2))]) for _ in range(2)]
    if not learnable:
        sides = [generator.standard_normal((n, DIM)) for _ in range(2)]
    ids = [f"d{i}" for i in range(n)]
    test = Collection("noisy", ids, ids, [f"q{i}" for i in range(n)], ids, {f"q{i}": {f"d{i}": 1} for i in range(n)})
    return test, unit(sides[0]), unit(sides[1])


def test_pairs_come_from_the_queries_in_use_alone_and_other_positives_are_known():
    qrels = {"b": {"x": 2, "y": 0, "gone": 1}, "a": {"w": 1, "x": 1, "y": 1, "z": 1}, "c": {"z": 1}}
    test = Collection(
        "t", ["w", "x", "y", "z", "b"], list("wxyzb"), ["b", "a", "c"], list("bac"), qrels, drop_self=True
    )
    generator = np.random.default_rng(0)
    queries, docs = unit(generator.standard_normal((3, DIM))), unit(generator.standard_normal((5, DIM)))
    pairs = oracle.judged_pairs(test, queries, docs, np.array([True, True, False]), most=2)
    assert pairs.query.tolist() == [
        0,
        1,
        1,
    ]  # b has one relevant document in the corpus, a two of its four, c is not in use
    assert pairs.passage[0] == 1 and len(set(pairs.passage[1:3].tolist())) == 2
    np.testing.assert_array_equal(pairs.queries.numpy(), queries[[0, 1, 1]])
    np.testing.assert_array_equal(pairs.documents.numpy(), np.concatenate([docs[pairs.passage[:3]], docs]))
    known = {(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in pairs.known}
    assert known == {
        (0, 1),
        (0, 4),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    }  # b's own document 4 is no negative; c's judgement unread
    mined = train.mine(pairs, 5, margin=np.inf)
    assert {int(pairs.passage[row]) for row in mined[0] if row >= 0} == {
        0,
        2,
        3,
    }  # neither x, its positive, nor b itself
    assert {int(pairs.passage[row]) for row in mined[1] if row >= 0} == {4}  # beyond `most`, a positive stays one
    with pytest.raises(InputError, match="none of the 0 queries has a relevant document"):
        oracle.judged_pairs(test, queries, docs, np.zeros(3, dtype=bool))


def test_cross_fitting_scores_every_query_once_by_a_head_that_has_not_seen_it(monkeypatch):
    test, queries, docs = noisy()
    seen, read = [], oracle.judged_pairs

    def spied_pairs(test, queries, docs, use, most, seed):
        seen.append([use, []])
        return read(test, queries, docs, use, most, seed)

    score = oracle._scores

    def spied_scores(judge, queries, docs, parameters, asked):
        seen[-1][1].append(asked)
        return score(judge, queries, docs, parameters, asked)

    monkeypatch.setattr(oracle, "judged_pairs", spied_pairs)
    monkeypatch.setattr(oracle, "_scores", spied_scores)
    table = oracle.fit(test, queries, docs, [1e-3], [2], folds=4, progress=False)
    (use, asked), *held = seen
    assert use.all() and all(part.all() for part in asked) and len(held) == 4
    for use, asked in held:
        assert all(np.array_equal(part, ~use) for part in asked) and use.sum() == 90
    assert table.groupby(["head", "kind"])["query_id"].nunique().eq(120).all() and len(table) == 4 * 120
    assert set(table["kind"]) == {oracle.FITTED, "fitted on 3/4 of the test queries, scored on the rest"}


@pytest.mark.parametrize("learnable", [True, False])
def test_what_can_be_learnt_carries_over_to_other_queries_and_what_can_only_be_memorised_does_not(
    learnable, monkeypatch
):
    monkeypatch.setattr(oracle, "HEADS", {"linear, both sides": "both"})
    test, queries, docs = noisy(learnable=learnable)
    frozen = evaluate.evaluate(test, queries, docs, "cosine", None, ["ndcg@10"])["value"].mean()
    table = oracle.fit(test, queries, docs, [5e-2], [60], folds=3, progress=False)
    mean = table.groupby("kind")["value"].mean()
    same, held = mean[oracle.FITTED], mean.drop(oracle.FITTED).iloc[0]
    assert same > frozen + 0.2
    assert (held > frozen + 0.2) if learnable else (held < frozen + 0.05)


def test_no_head_scores_like_the_frozen_encoder_also_where_a_document_is_the_query_itself():
    test, queries, _ = noisy(30)
    own = Collection("self", test.query_ids, test.docs, test.query_ids, test.queries,
                     {f"q{i}": {f"q{(i + 1) % 30}": 1} for i in range(30)}, drop_self=True)  # fmt: skip
    part = np.arange(30) % 3 == 0
    expected = evaluate.evaluate(own, queries, queries, "cosine", None, ["ndcg@10"])["value"].to_numpy()[part]
    found = oracle._scores(evaluate.Judge(own), queries, queries, {}, part)
    np.testing.assert_array_equal(found, expected)
    assert found.max() > 0


def fitted(values: dict[tuple[float, int], list[float]]) -> pd.DataFrame:
    rows = [
        {"head": "h", "kind": oracle.FITTED, "lr": lr, "steps": steps, "epochs": steps // 10, "query_id": f"q{i}", "value": value}
        for (lr, steps), part in values.items() for i, value in enumerate(part)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_table_takes_the_best_of_each_collections_grid_and_weighs_collections_the_same():
    frozen = {
        "a": pd.Series([0.5, 0.1], ["q0", "q1"]),
        "b": pd.Series([0.2, 0.2, 0.5, 0.5], [f"q{i}" for i in range(4)]),
    }
    tables = {
        "a": fitted({(1e-3, 100): [0.9, 0.1], (1e-2, 100): [0.4, 0.5]}),
        "b": fitted({(1e-3, 100): [0.0, 0.0, 0.0, 0.4], (1e-2, 300): [0.2, 0.4, 0.6, 0.4]}),
    }
    table = oracle.summarize(tables, frozen).set_index("dataset")
    assert table.loc["a", ["lr", "epochs", "mean", "baseline"]].tolist() == [
        1e-3,
        10,
        pytest.approx(0.5),
        pytest.approx(0.3),
    ]
    assert table.loc["b", ["lr", "epochs", "mean"]].tolist() == [1e-2, 30, pytest.approx(0.4)]
    assert table.loc["average", "mean"] == pytest.approx((0.5 + 0.4) / 2)
    assert table.loc["average", "baseline"] == pytest.approx((0.3 + 0.35) / 2)
    assert table.loc["average", "delta_percent"] == pytest.approx(100 * (0.45 / 0.325 - 1))
    assert pd.isna(table.loc["average", "lr"]) and pd.isna(table.loc["average", "epochs"])
    low, high = evaluate.bootstrap_interval(np.array([[0.9, 0.1]]))
    assert (table.loc["a", "ci_low"], table.loc["a", "ci_high"]) == (low, high)
    with pytest.raises(InputError, match="b: an oracle has not scored exactly the queries"):
        oracle.summarize(tables, frozen | {"b": frozen["b"].iloc[:3]})


def test_the_room_is_a_table_that_the_figure_takes():
    frozen = {"a": pd.Series([0.5, 0.1], ["q0", "q1"])}
    table = oracle.summarize({"a": fitted({(1e-3, 100): [0.9, 0.1]})}, frozen)
    figure, shown = plots.oracle_room(oracle.room(table))
    assert list(dict.fromkeys(shown["track"])) == ["a", "average"]
    assert shown.loc[shown["kind"] == "system", "mean"].tolist() == [0.3, 0.3]
    assert set(shown.loc[shown["kind"] == "oracle", "system"]) == {"h (same queries)"}
    assert figure.axes
