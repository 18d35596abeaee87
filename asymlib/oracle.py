"""The oracle: linear heads fitted on the test judgements themselves, to bound how much room a head has on a collection.

An oracle has seen the answers and is no system. Two bounds: fitted and scored on the same queries (a head that has learnt
the answers by heart counts too), and cross-fitted: fitted on the judgements of some of the test queries and scored on the
others, which asks what a head can know about a collection rather than about its queries. Both choose their learning rate
and number of epochs by the very test nDCG that they report, so both are still too good.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from asymlib import evaluate, heads, train
from asymlib.datasets import Collection
from asymlib.errors import InputError
from asymlib.search import METRIC, epochs_for
from asymlib.systems import System

HEADS = {"linear, both sides": "both", "linear, query side": "query"}
FITTED = "fitted and scored on the same test queries"


def _held_out(folds: int) -> str:
    return f"fitted on {folds - 1}/{folds} of the test queries, scored on the rest"


def judged_pairs(
    test: Collection, queries: np.ndarray, docs: np.ndarray, use: np.ndarray, most: int = 20, seed: int = 0
) -> train.PairVectors:
    """The (query, relevant document) pairs of some test queries, with the whole corpus to mine negatives from.

    queries: (Q, D), docs: (C, D), in the order of the collection's ids. use: (Q,) bool, the queries whose judgements are
    read. At most `most` documents a query, drawn with `seed`. Every judged positive of these queries, and in a collection
    with drop_self the document that has the query's own id, is known to be no negative. passage is a document's row.
    """
    row = {doc_id: i for i, doc_id in enumerate(test.doc_ids)}
    generator = np.random.default_rng(seed)
    pairs, known = [], []
    for i in np.flatnonzero(use):
        query_id = test.query_ids[i]
        relevant = [row[doc_id] for doc_id, grade in test.qrels[query_id].items() if grade > 0 and doc_id in row]
        known += [(i, j) for j in relevant]
        if test.drop_self and query_id in row:
            known.append((i, row[query_id]))
        pairs += [(i, j) for j in generator.permutation(relevant)[:most]]
    if not pairs:
        raise InputError(f"{test.name}: none of the {int(use.sum())} queries has a relevant document in the corpus")
    rows, columns = np.array(pairs).T
    joined = train.PairVectors.of(queries[rows], docs[columns], columns, rows)
    return joined.with_corpus(docs, np.arange(len(docs)), np.array(known))


def fit(
    test: Collection,
    queries: np.ndarray,
    docs: np.ndarray,
    lrs: Sequence[float],
    steps: Sequence[int],
    hard_negatives: int = 0,
    folds: int = 5,
    most: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """nDCG@10 of every query under every oracle of the grid: columns head, kind, lr, steps, epochs, query_id, value.

    lrs, steps: the grid; steps are updates, turned into whole epochs of the pairs that a head is fitted on; epochs is the
    number for all queries. Heads start at the identity, cosine, temperature 0.05, no isotropy term; the parameters after
    the last epoch are scored. hard_negatives: of the corpus, for each pair of a batch, by frozen cosine, nothing skipped:
    here the judgements are known. folds: parts of the test queries, drawn with `seed`.
    """
    judge = evaluate.Judge(test)
    part = np.random.default_rng(seed).permutation(len(queries)) % folds
    everyone = np.ones(len(queries), dtype=bool)
    rows = []
    for kind, splits in (
        (FITTED, [(everyone, everyone)]),
        (_held_out(folds), [(part != fold, part == fold) for fold in range(folds)]),
    ):
        for use, score in splits:
            pairs = judged_pairs(test, queries, docs, use, most, seed)
            systems = _grid(lrs, steps, len(pairs.queries), hard_negatives)
            negatives = train.mine(pairs, hard_negatives, margin=np.inf) if hard_negatives else None
            seen = pairs.first(systems[0][1].batch_size)  # the last epoch is scored, so no validation is needed
            runs = train.train(
                [(system, seed) for _, system in systems], pairs, seen, progress=progress, negatives=negatives
            )
            for (about, system), run in zip(systems, runs, strict=True):
                value = _scores(judge, queries, docs, run.last, score)
                rows.append(pd.DataFrame({**about, "kind": kind, "epochs": system.epochs, "value": value,
                                          "query_id": np.array(test.query_ids)[score]}))  # fmt: skip
    found = pd.concat(rows, ignore_index=True)
    whole = found[found["kind"] == FITTED].groupby("steps")["epochs"].first()
    return found.assign(epochs=found["steps"].map(whole))


def _grid(
    lrs: Sequence[float], steps: Sequence[int], pairs: int, hard_negatives: int
) -> list[tuple[dict[str, object], System]]:
    """The oracles of one fit, each with what the table says of it."""
    batch = min(64, pairs)
    return [
        (
            {"head": head, "lr": lr, "steps": count},
            System(
                f"{head}, {lr:g}, {count}", start="identity", sides=sides, isotropy="none", isotropy_weight=0.0, lr=lr,
                batch_size=batch, epochs=epochs_for(count, pairs, batch, most=10**6), hard_negatives=hard_negatives,
            ),
        )
        for head, sides in HEADS.items() for lr in lrs for count in steps
    ]  # fmt: skip


def _scores(
    judge: evaluate.Judge, queries: np.ndarray, docs: np.ndarray, parameters: heads.Parameters, score: np.ndarray
) -> np.ndarray:
    """nDCG@10 of the queries that are to be scored, after heads; {} is the frozen encoder."""
    asked = np.flatnonzero(score)
    projected = heads.project(parameters, "query", queries[asked]), heads.project(parameters, "document", docs)
    k = min(10, judge.n_docs)
    _, found = evaluate.search(*projected, k, "cosine", judge.tie_rank, judge.exclude[asked])
    everyone = np.full((len(queries), k), -1)
    everyone[asked] = found
    return judge.scores(everyone, [METRIC])[METRIC][asked]


def summarize(fitted: dict[str, pd.DataFrame], frozen: dict[str, pd.Series]) -> pd.DataFrame:
    """The oracle's table: for each collection, head and kind the best of the grid by the reported nDCG itself, and `average`.

    fitted: collection -> fit's rows. frozen: collection -> the frozen encoder's nDCG@10 by query id.
    Returns columns dataset, head, kind, lr, epochs, mean, ci_low, ci_high, baseline, delta_percent: interval of the mean over
    queries (bootstrap_interval, one seed); `average` weighs collections the same, each with its own best of the grid.
    """
    rows, kept = [], {}
    for dataset, table in fitted.items():
        for (head, kind), part in table.groupby(["head", "kind"], sort=False):
            means = part.groupby(["lr", "steps"], sort=False)["value"].mean()
            lr, steps = means.idxmax()
            best = part[(part["lr"] == lr) & (part["steps"] == steps)].set_index("query_id")
            values = best["value"].reindex(frozen[dataset].index)
            if values.isna().any() or len(best) != len(values):
                raise InputError(f"{dataset}: an oracle has not scored exactly the queries of the frozen encoder")
            kept.setdefault((head, kind), {})[dataset] = values.to_numpy()
            numbers = _numbers(values.to_numpy(), frozen[dataset].to_numpy(), None)
            rows.append(
                {"dataset": dataset, "head": head, "kind": kind, "lr": lr, "epochs": best["epochs"].iloc[0], **numbers}
            )
    for (head, kind), values in kept.items():
        strata = np.repeat(list(values), [len(part) for part in values.values()])
        compared = np.concatenate([frozen[dataset].to_numpy() for dataset in values])
        numbers = _numbers(np.concatenate(list(values.values())), compared, strata)
        rows.append({"dataset": "average", "head": head, "kind": kind, "lr": np.nan, "epochs": np.nan, **numbers})
    table = pd.DataFrame(rows)
    return table.assign(epochs=table["epochs"].astype("Int64"))


def _numbers(values: np.ndarray, frozen: np.ndarray, strata: np.ndarray | None) -> dict[str, float]:
    """Mean, interval and change of one line; values, frozen: (Q,)."""
    labels = np.zeros(len(values)) if strata is None else strata
    mean, baseline = (np.mean([z[labels == name].mean() for name in np.unique(labels)]) for z in (values, frozen))
    low, high = evaluate.bootstrap_interval(values[None], strata)
    return {"mean": mean, "ci_low": float(low), "ci_high": float(high), "baseline": baseline,
            "delta_percent": 100 * (mean / baseline - 1)}  # fmt: skip


def room(table: pd.DataFrame) -> pd.DataFrame:
    """summarize's table as plots.oracle_room wants it: a track for each collection, the frozen encoder its only system."""
    rows = []
    for dataset, part in table.groupby("dataset", sort=False):
        frozen = {"mean": part["baseline"].iloc[0], "ci_low": np.nan, "ci_high": np.nan}
        rows.append({"track": dataset, "system": "baseline", "kind": "system", **frozen})
        for line in part.to_dict("records"):
            name = f"{line['head']} ({'same queries' if line['kind'] == FITTED else 'held-out'})"
            numbers = {field: line[field] for field in ("mean", "ci_low", "ci_high")}
            rows.append({"track": dataset, "system": name, "kind": "oracle", **numbers})
    return pd.DataFrame(rows)
