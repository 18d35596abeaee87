"""The search for the best head, on validation alone: which recipe ranks unseen validation queries best.

The study's own test collections are never looked at. Choices are made one coordinate at a time: every round trains all of its
candidates as one stack, and the best one is kept if it beats what was kept before. A candidate is trained once, for the
longest time that is allowed, and judged after every epoch: its number of epochs is the one that the criterion likes best.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from asymlib import evaluate, heads
from asymlib.data.studies import Study
from asymlib.errors import InputError
from asymlib.files import read_record
from asymlib.pair_vectors import PairVectors, mine
from asymlib.recipes import Recipe
from asymlib.train import Runs, TrainedRun, average, average_runs, train

OWN, TRANSFER = "own", "transfer"
DIVERGED = -100.0  # the change in percent that the log gives to a candidate that diverged with any seed


@dataclass(frozen=True)
class ValidationSet:
    """A collection that recipes are chosen on.

    part: OWN or TRANSFER. queries: (Q, D), documents: (C, D) frozen embeddings in the order of the ids of qrels.
    """

    part: str
    qrels: evaluate.Qrels
    queries: np.ndarray
    documents: np.ndarray

    def score(self, parameters: heads.Parameters, similarity: str) -> float:
        """Mean nDCG@10 after one run's heads; {} is the frozen encoder."""
        queries = heads.project(parameters, "query", self.queries)
        documents = heads.project(parameters, "document", self.documents)
        return evaluate.rank(self.qrels, queries, documents, similarity, similarity, evaluate.DEPTH).mean()


def own_validation(study: Study) -> ValidationSet:
    """The study's distinct validation queries against all of its distinct validation and training documents.

    Relevant (grade 1) is every document that a pair, of either split, or a further judgement joins to the same query text.
    """
    first, second = study.validation, study.train
    known_queries, known_documents = zip(*first.known, strict=True) if first.known else ((), ())
    texts = {"query": [*first.queries, *second.queries, *known_queries],
             "document": [*first.documents, *second.documents, *known_documents]}  # fmt: skip
    pairs = pd.DataFrame(texts, dtype=object)
    documents, queries = pairs["document"].drop_duplicates(), pairs["query"][: len(first)].drop_duplicates()
    doc_id, query_id = ({text: str(i) for i, text in enumerate(distinct)} for distinct in (documents, queries))
    joined = pairs[pairs["query"].isin(queries)].groupby("query")["document"]
    grades = {query_id[query]: dict.fromkeys(found.map(doc_id), 1) for query, found in joined}
    qrels = evaluate.Qrels("validation", list(doc_id.values()), list(query_id.values()), grades)
    stored = np.concatenate([first.document_vectors, second.document_vectors])
    return ValidationSet(OWN, qrels, first.query_vectors[queries.index], stored[documents.index])


def transfer_validation(study: Study, other: Study) -> list[ValidationSet]:
    """The test collections of another study as validation by transfer.

    InputError if one of them is a test collection of `study` too, as choosing on it would be choosing on the test, or if
    the other study was encoded in another way.
    """
    if shared := sorted(set(study.tests) & set(other.tests)):
        raise InputError(
            f"transfer: study {other.name!r} holds {', '.join(shared)}, which study {study.name!r} is tested on;"
            " expected a study without any of its test collections"
        )
    if other.encoder_key != study.encoder_key:
        raise InputError(
            f"transfer: study {other.name!r} was encoded in another way than study {study.name!r};"
            " give 01_data_prep the same encoder and max_length for both"
        )
    tests = other.tests.values()
    return [ValidationSet(TRANSFER, test.judgements, test.query_vectors, test.document_vectors) for test in tests]


class Criterion:
    """What a recipe is chosen by: the mean over validation sets of the relative change to the frozen encoder.

    The own pool counts as much as all sets of part TRANSFER together. frozen: the encoder's own nDCG@10, weighted alike.
    """

    def __init__(self, sets: Sequence[ValidationSet]):
        parts = [one.part for one in sets]
        self.sets = list(sets)
        self.weights = np.array([1 / len(set(parts)) / parts.count(part) for part in parts])
        self.each_frozen = np.array([one.score({}, "cosine") for one in sets])
        if not (self.each_frozen > 0).all():
            raise InputError("criterion: the frozen encoder finds nothing in a validation collection")
        self.frozen = float(self.weights @ self.each_frozen)

    def score(self, parameters: heads.Parameters, similarity: str) -> tuple[float, float]:
        """(nDCG@10, change to the frozen encoder in percent) after one run's heads, weighted over the sets."""
        each = np.array([one.score(parameters, similarity) for one in self.sets])
        return float(self.weights @ each), float(100 * self.weights @ (each / self.each_frozen - 1))

    def score_run(self, run: TrainedRun) -> tuple[float, float]:
        """score of a run's best epoch; NaN for one that diverged."""
        return (math.nan, math.nan) if run.diverged else self.score(run.best, run.recipe.similarity)


@dataclass(frozen=True)
class Candidate:
    """A recipe, and how many seeds' weights are averaged into one head (1: none)."""

    recipe: Recipe
    averaged: int = 1

    def runs(self, seeds: Sequence[int], name: str) -> list[tuple[Recipe, int]]:
        """What has to be trained for these seeds, as `name`: seed s of an average of n takes the seeds n s ... n s + n - 1."""
        recipe = self.recipe.with_changes(name=name)
        return [(recipe, self.averaged * seed + i) for seed in seeds for i in range(self.averaged)]


def train_choice(
    choice: Candidate, seeds: Sequence[int], training: PairVectors, validation: PairVectors, **how: Any
) -> list[TrainedRun]:
    """The runs of what a search chose, one a seed; how: more arguments of train.

    The search chose the number of epochs, so the last epoch of a run is its best. Of an average's members, one that diverged
    stands for it.
    """
    done, n, runs = train(choice.runs(seeds, choice.recipe.name), training, validation, **how), choice.averaged, []
    for i, seed in enumerate(seeds):
        members = done[n * i : n * (i + 1)]
        if broken := [run for run in members if run.diverged]:
            runs.append(replace(broken[0], seed=seed))
        else:
            run = average_runs(members, seed) if n > 1 else members[0]
            last = {name: value.clone() for name, value in run.last.items()}
            runs.append(replace(run, best=last, best_epoch=len(run.validation_loss) - 1))
    return runs


def at_best_epoch(
    candidates: Sequence[Candidate], seeds: Sequence[int], criterion: Criterion, training: PairVectors,
    validation: PairVectors, negatives: Tensor | None = None,
) -> list[tuple[Candidate, np.ndarray]]:  # fmt: skip
    """Each candidate with as many epochs as the criterion likes best, and its scores after them, all trained in one call.

    Scores: (S, 2), the criterion's of one head a seed, NaN if any run diverged. negatives: as for train.
    """
    wanted = [run for i, one in enumerate(candidates) for run in one.runs(seeds, f"{i}")]
    found: list[list] = [[] for _ in candidates]  # (E, S, 2) each

    def score(runs: Runs, parameters: heads.Parameters, active: Tensor) -> None:
        for i, (one, scores) in enumerate(zip(candidates, found, strict=True)):
            rows = [row for row, (recipe, _) in enumerate(runs) if recipe.name == f"{i}"]
            if rows and bool(active[rows].all()):
                members, n = [heads.unstack(parameters, row) for row in rows], one.averaged
                of_seed = [average(members[start : start + n]) for start in range(0, len(members), n)]
                scores.append([criterion.score(each, one.recipe.similarity) for each in of_seed])

    done = train(wanted, training, validation, negatives=negatives, progress=False, after_epoch=score)
    broken = {int(run.recipe.name) for run in done if run.diverged}
    result = []
    for i, (one, scores) in enumerate(zip(candidates, found, strict=True)):
        best, of_seed = one.recipe.epochs - 1, np.full((len(seeds), 2), math.nan)
        if i not in broken:
            best = int(np.array(scores)[:, :, 1].mean(1).argmax())
            of_seed = np.array(scores[best])
        result.append((replace(one, recipe=one.recipe.with_changes(epochs=best + 1)), of_seed))
    return result


def load_choice(folder: str | Path) -> Candidate:
    """The recipe that a search left in a heads folder, without its weights; a config.json that no search wrote is refused."""
    path = Path(folder) / "config.json"
    config = read_record(path, "run 03_select_head for that study")
    if "averaged" not in config:
        raise InputError(f"{path}: expected the field 'averaged', which 03_select_head writes; run it for that study")
    return Candidate(Recipe(**config["recipe"]), config["averaged"])


def epochs_for(steps: int, pairs: int, batch_size: int = 64, most: int = 50) -> int:
    """The number of epochs, 1 to `most`, that comes closest to so many updates."""
    return min(most, max(1, round(steps / max(1, pairs // batch_size))))


def search(
    start: Recipe, rounds: Sequence[dict[str, list]], criterion: Criterion, training: PairVectors,
    validation: PairVectors, seeds: Sequence[int] = (0, 1), averaged: int = 3,
) -> tuple[Candidate, pd.DataFrame]:  # fmt: skip
    """Coordinate by coordinate: the recipe that the criterion likes best, and the log of everything that was tried.

    start: its epochs are how long every candidate is trained; `epochs` in the log is the best of them, the first of equals.
    rounds: one dictionary a round, field of Recipe -> values; its candidates are all new combinations on top of the recipe
        kept so far. averaged: a last round averages so many seeds' weights (1, or a recipe that average_runs refuses: none).
    Returns the choice and a log with a row for each candidate and for what was kept so far: round, candidate, changed (in
    words), the Recipe's fields without its name, averaged, seeds (their number), validation and frozen (nDCG@10), sd (of
    validation, over the seeds), delta_percent (the criterion; DIVERGED if a run diverged in any epoch), chosen (kept at the
    end of its round), final (the row that is the choice), fields (that changed, joined with +; empty where none did).
    """
    if any("epochs" in grid for grid in rounds):
        raise InputError("rounds: 'epochs' are chosen within a run, expected other fields of a recipe")
    most = max([start.hard_negatives, *(n for grid in rounds for n in grid.get("hard_negatives", []))])
    negatives = mine(training, most) if most else None
    kept, kept_row, rows, seen = Candidate(_plain(start)), {}, [], set()
    grids = [{}, *rounds, {"averaged": [averaged]}]
    for number, grid in enumerate(tqdm(grids, desc="search", unit="round")):
        tried = [one for one in _combinations(kept, grid, start.epochs) if one not in seen]
        if not tried:
            continue
        seen.update(tried)
        scored = at_best_epoch(tried, seeds, criterion, training, validation, negatives)
        found = [(one, _row(one, kept if number else one, scores, criterion)) for one, scores in scored]
        if number:
            found = [(kept, {**kept_row, "changed": "nothing", "fields": ""}), *found]
        kept, kept_row = max(found, key=lambda one: one[1]["delta_percent"])  # of equals the one kept so far
        for i, (_, row) in enumerate(found):
            rows.append({"round": number, "candidate": i, **row, "chosen": row is kept_row})
    return kept, _log(rows)


def log_of_one(candidate: Candidate, runs: Sequence[TrainedRun], criterion: Criterion) -> pd.DataFrame:
    """The log of a recipe that was taken over from elsewhere: one row, chosen and final, of these runs."""
    scores = np.array([criterion.score_run(run) for run in runs])
    row = {**_row(candidate, candidate, scores, criterion), "changed": "taken over"}
    return _log([{"round": 0, "candidate": 0, **row, "chosen": True}])


def _log(rows: list[dict[str, Any]]) -> pd.DataFrame:
    log = pd.DataFrame(rows)
    final = log["chosen"] & (log["round"] == log["round"].max())
    return log.assign(final=final, fields=log.pop("fields"))


def _plain(recipe: Recipe) -> Recipe:
    """The same recipe with one spelling: no isotropy term is kind 'none' at weight 0."""
    if recipe.isotropy == "none" or recipe.isotropy_weight == 0:
        return recipe.with_changes(isotropy="none", isotropy_weight=0.0)
    return recipe


def _combinations(kept: Candidate, grid: dict[str, list], epochs: int) -> list[Candidate]:
    """All combinations of the grid's values on top of `kept` that can be trained, for so many epochs, without repeats."""
    found = []
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True)) | {"epochs": epochs}
        averaged = changes.pop("averaged", kept.averaged)
        found.append(Candidate(_plain(kept.recipe.with_changes(**changes)), averaged))
    new = dict.fromkeys(found)
    return [one for one in new if one.averaged == 1 or (one.recipe.head, one.recipe.start) == ("linear", "identity")]


def _row(candidate: Candidate, kept: Candidate, scores: np.ndarray, criterion: Criterion) -> dict[str, Any]:
    """A candidate's line in the log, less its number and fate; scores: (S, 2), NaN for one that diverged with any seed."""
    values, before = ({**one.recipe.to_dict(), "averaged": one.averaged} for one in (candidate, kept))
    changed = {name: value for name, value in values.items() if value != before[name]}
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in changed.items()]
    return {
        "changed": ", ".join(words) or "start",
        **{name: value for name, value in values.items() if name != "name"},
        "seeds": len(scores),
        "validation": scores[:, 0].mean(),
        "sd": scores[:, 0].std(ddof=1) if len(scores) > 1 else math.nan,
        "frozen": criterion.frozen,
        "delta_percent": DIVERGED if np.isnan(scores).any() else scores[:, 1].mean(),
        "fields": "+".join(changed),
    }
