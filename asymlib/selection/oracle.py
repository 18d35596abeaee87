"""The oracle: linear heads fitted on the test judgements themselves, to see how much room a head has on a collection.

An oracle has seen the answers and is no system. One is fitted and scored on the same queries, and may have learnt the answers
by heart; the other is fitted on the judgements of some of the test queries and scored on the others. Both choose their
learning rate and number of epochs by the very test nDCG that they report, so both are still too good.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from asymlib import heads
from asymlib.data.collections import Collection
from asymlib.errors import InputError
from asymlib.evaluate import DEPTH, METRIC
from asymlib.exact_search import top_k
from asymlib.pair_vectors import PairVectors, mine
from asymlib.recipes import Recipe
from asymlib.selection.search import epochs_for
from asymlib.significance import bootstrap_interval
from asymlib.train import train

HEADS = {"linear, both sides": "both", "linear, query side": "query"}
FITTED = "fitted and scored on the same test queries"


def judged_pairs(test: Collection, use: np.ndarray, most: int = 20, seed: int = 0) -> PairVectors:
    """The (query, relevant document) pairs of some test queries, with the whole corpus to mine negatives from.

    use: (Q,) bool, the queries whose judgements are read. At most `most` documents a query, drawn with `seed`. Every judged
    positive of these queries, and in a collection with drop_self the document that has the query's own id, is known to be no
    negative. passage is a document's row. What has no direction (a zero vector, of an empty text) is in no pair.
    """
    row = {doc_id: i for i, doc_id in enumerate(test.doc_ids)}
    generator = np.random.default_rng(seed)
    pairs, known = [], []
    for i in np.flatnonzero(use & test.query_vectors.any(1)):
        query_id = test.query_ids[i]
        relevant = [row[doc_id] for doc_id, grade in test.qrels[query_id].items() if grade > 0 and doc_id in row]
        relevant = [j for j in relevant if test.document_vectors[j].any()]
        known += [(i, j) for j in relevant]
        if test.drop_self and query_id in row:
            known.append((i, row[query_id]))
        pairs += [(i, j) for j in generator.permutation(relevant)[:most]]
    if len(pairs) < 2:
        raise InputError(f"{test.name}: {len(pairs)} judged pairs in {int(use.sum())} queries, expected at least 2")
    rows, columns = np.array(pairs).T
    joined = PairVectors.of(test.query_vectors[rows], test.document_vectors[columns], columns, rows)
    return joined.with_corpus(test.document_vectors, np.arange(len(row)), np.array(known))


def fit(
    test: Collection, lrs: Sequence[float], steps: Sequence[int], hard_negatives: int = 0, folds: int = 5,
    most: int = 20, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """nDCG@10 of every query under every oracle of the grid: columns head, kind, held_out, lr, steps, epochs, query_id, value.

    lrs, steps: the grid; steps are updates, turned into whole epochs of the pairs that a head is fitted on; epochs is the
    number for all queries. Heads start at the identity, cosine, temperature 0.05, no isotropy term; the parameters after
    the last epoch are scored, 0 for a run that diverged. hard_negatives: of the corpus, for each pair of a batch, by frozen
    cosine, nothing skipped: here the judgements are known. folds: parts of the test queries, drawn with `seed`.
    """
    part = np.random.default_rng(seed).permutation(len(test.query_ids)) % folds
    everyone = np.ones(len(part), dtype=bool)
    held_out = f"fitted on {folds - 1}/{folds} of the test queries, scored on the rest"
    splits = [(FITTED, everyone, everyone)] + [(held_out, part != fold, part == fold) for fold in range(folds)]
    grid, rows = list(product(HEADS, lrs, steps)), []
    for kind, use, score in splits:
        pairs, asked = judged_pairs(test, use, most, seed), np.flatnonzero(score)
        recipes = [_recipe(*cell, len(pairs.queries), hard_negatives) for cell in grid]
        negatives = mine(pairs, hard_negatives, margin=np.inf) if hard_negatives else None
        seen = pairs.first(recipes[0].batch_size)  # the last epoch is scored, so no validation is needed
        runs = train([(recipe, seed) for recipe in recipes], pairs, seen, progress=False, negatives=negatives)
        for (head, lr, count), run in zip(grid, runs, strict=True):
            about = {"head": head, "lr": lr, "steps": count, "kind": kind, "held_out": kind != FITTED}
            about["epochs"] = run.recipe.epochs
            value = np.zeros(len(asked)) if run.diverged else _scores(test, run.last, asked)
            rows.append(pd.DataFrame({**about, "query_id": np.array(test.query_ids)[asked], "value": value}))
    found = pd.concat(rows, ignore_index=True)
    whole = found[~found["held_out"]].groupby("steps")["epochs"].first()
    return found.assign(epochs=found["steps"].map(whole))


def _recipe(head: str, lr: float, steps: int, pairs: int, hard_negatives: int) -> Recipe:
    """One oracle of the grid."""
    sides, batch = HEADS[head], min(64, pairs)
    return Recipe(
        name=f"{sides}_{lr:g}_{steps}", start="identity", sides=sides, isotropy="none", isotropy_weight=0.0, lr=lr,
        batch_size=batch, epochs=epochs_for(steps, pairs, batch, most=10**6), hard_negatives=hard_negatives,
    )  # fmt: skip


def _scores(test: Collection, parameters: heads.Parameters, asked: np.ndarray) -> np.ndarray:
    """nDCG@10 of the queries in these rows, after heads; no other query is searched for. Returns (len(asked),)."""
    qrels, k = test.judgements, min(DEPTH, len(test.doc_ids))
    queries = heads.project(parameters, "query", test.query_vectors[asked])
    documents = heads.project(parameters, "document", test.document_vectors)
    rows = np.full((len(test.query_ids), k), -1)
    rows[asked] = top_k(queries, documents, k, "cosine", qrels.tie_rank, qrels.exclude[asked])[1]
    return qrels.scores(rows, [METRIC])[METRIC][asked]


def best_of_grid(fitted: dict[str, pd.DataFrame], frozen: dict[str, pd.Series]) -> pd.DataFrame:
    """The oracle's table: for each collection, head and kind the best of the grid by the reported nDCG itself, and `average`.

    fitted: collection -> fit's rows. frozen: collection -> the frozen encoder's nDCG@10 by query id.
    Returns columns dataset, head, kind, lr, epochs, mean, ci_low, ci_high, baseline, delta_percent, held_out: interval of the
    mean over queries (bootstrap_interval, one seed); `average` weighs collections the same, each with its own best.
    """
    rows, kept = [], {}
    for dataset, table in fitted.items():
        for about, part in table.groupby(["head", "kind", "held_out"], sort=False):
            lr, steps = part.groupby(["lr", "steps"], sort=False)["value"].mean().idxmax()
            best = part[(part["lr"] == lr) & (part["steps"] == steps)].set_index("query_id")
            values = best["value"].loc[frozen[dataset].index].to_numpy()
            strata = np.full(len(values), dataset)
            kept.setdefault(about, []).append((values, frozen[dataset].to_numpy(), strata))
            rows.append(_row(dataset, about, lr, best["epochs"].iloc[0], *kept[about][-1]))
    for about, parts in kept.items():
        rows.append(_row("average", about, np.nan, np.nan, *map(np.concatenate, zip(*parts, strict=True))))
    table = pd.DataFrame(rows)
    return table.assign(epochs=table["epochs"].astype("Int64"))


def _row(
    dataset: str, about: tuple, lr: float, epochs: float, values: np.ndarray, frozen: np.ndarray, strata: np.ndarray
) -> dict[str, object]:
    """One line of the table, with its mean, interval and change; values, frozen, strata: (Q,)."""
    head, kind, held_out = about
    mean, baseline = (np.mean([z[strata == name].mean() for name in np.unique(strata)]) for z in (values, frozen))
    low, high = bootstrap_interval(values[None], strata)
    return {"dataset": dataset, "head": head, "kind": kind, "lr": lr, "epochs": epochs, "mean": mean, "ci_low": float(low),
            "ci_high": float(high), "baseline": baseline, "delta_percent": 100 * (mean / baseline - 1),
            "held_out": held_out}  # fmt: skip
