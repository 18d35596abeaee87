"""The search for the best head, on validation alone: which recipe ranks unseen validation queries best.

The criterion is the relative change of nDCG@10 against the frozen encoder. A study's own validation queries are searched in
the pool of its distinct validation and training documents; test collections of *another* study may be added as validation
by transfer, and count together as much as the own pool. The study's own test collections are never looked at. Choices are
made one coordinate at a time: every round trains all of its candidates as one stack, and the best one is kept if it beats
what was kept before.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from asymlib import evaluate, heads
from asymlib.data.studies import Study
from asymlib.errors import InputError
from asymlib.files import read_json
from asymlib.pair_vectors import PairVectors, mine
from asymlib.recipes import Recipe
from asymlib.train import TrainedRun, average_runs, train

OWN, TRANSFER = "own", "transfer"
DIVERGED = -100.0  # the change in percent that the log gives to a candidate that diverged with any seed


@dataclass(frozen=True)
class ValidationSet:
    """A collection that recipes are chosen on: never a test collection of the study that they are chosen for.

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
        k = evaluate.parse_metric(evaluate.METRIC)[1]
        return evaluate.rank(self.qrels, queries, documents, similarity, similarity, k).mean()


def own_validation(study: Study) -> ValidationSet:
    """The study's distinct validation queries against all of its distinct validation and training documents.

    Relevant (grade 1) is every document that a pair, of either split, joins to the same query text.
    """
    splits = (study.validation, study.train)
    documents = pd.Series([*study.validation.documents, *study.train.documents], dtype=object).drop_duplicates()
    queries = pd.Series(study.validation.queries, dtype=object).drop_duplicates()
    doc_id, query_id = ({text: str(i) for i, text in enumerate(texts)} for texts in (documents, queries))
    grades: dict[str, dict[str, int]] = {number: {} for number in query_id.values()}
    for split in splits:
        for query, document in zip(split.queries, split.documents, strict=True):
            if query in query_id:
                grades[query_id[query]][doc_id[document]] = 1
    qrels = evaluate.Qrels("validation", list(doc_id.values()), list(query_id.values()), grades)
    stored = np.concatenate([split.document_vectors for split in splits])
    asked = study.validation.query_vectors[queries.index]
    return ValidationSet(OWN, qrels, asked, stored[documents.index])


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

    def score(self, run: TrainedRun) -> tuple[float, float]:
        """(nDCG@10, change to the frozen encoder in percent) of one run's best epoch, weighted over the sets."""
        each = np.array([one.score(run.best, run.recipe.similarity) for one in self.sets])
        return float(self.weights @ each), float(100 * self.weights @ (each / self.each_frozen - 1))


@dataclass(frozen=True)
class Candidate:
    """A recipe, and how many seeds' weights are averaged into one head (1: none)."""

    recipe: Recipe
    averaged: int = 1

    def runs(self, seeds: Sequence[int]) -> list[tuple[Recipe, int]]:
        """What has to be trained for these seeds: seed s of an average of n takes the seeds n s ... n s + n - 1."""
        return [(self.recipe, self.averaged * seed + i) for seed in seeds for i in range(self.averaged)]

    def join(self, runs: Sequence[TrainedRun], seeds: Sequence[int]) -> list[TrainedRun]:
        """One run a seed from what `runs` asked for, in its order.

        A member that diverged is left out of its average, which carries the member's diverged_at all the same, so a search
        never chooses it; where all of them diverged, the first stands for the average.
        """
        n = self.averaged
        if n == 1:
            return list(runs)
        joined = []
        for i, seed in enumerate(seeds):
            members = runs[n * i : n * (i + 1)]
            whole = [run for run in members if run.diverged_at is None]
            one = average_runs(whole, seed) if whole else replace(members[0], seed=seed)
            broken = [run.diverged_at for run in members if run.diverged_at is not None]
            joined.append(replace(one, diverged_at=min(broken, default=None)))
        return joined


def train_candidates(
    candidates: Sequence[Candidate], seeds: Sequence[int], training: PairVectors, validation: PairVectors, **how: Any
) -> list[list[TrainedRun]]:
    """Each candidate's runs, one a seed, all trained in one call of train; how: more arguments of train."""
    numbered = [replace(one, recipe=one.recipe.with_changes(name=f"{i}")) for i, one in enumerate(candidates)]
    wanted = [one.runs(seeds) for one in numbered]
    done = iter(train(list(itertools.chain(*wanted)), training, validation, **how))
    found = []
    for one, runs in zip(candidates, wanted, strict=True):
        joined = one.join(list(itertools.islice(done, len(runs))), seeds)
        found.append([replace(run, recipe=one.recipe) for run in joined])
    return found


def load_choice(folder: str | Path) -> Candidate:
    """The recipe that a search left in a heads folder, without its weights; a config.json that no search wrote is refused."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or not {"recipe", "averaged"} <= set(config):
        raise InputError(f"{path}: expected the fields 'recipe' and 'averaged', which a search writes")
    return Candidate(Recipe.from_dict(config["recipe"]), config["averaged"])


def epochs_for(steps: int, pairs: int, batch_size: int = 64, most: int = 50) -> int:
    """The number of epochs, 1 to `most`, that comes closest to so many updates."""
    return min(most, max(1, round(steps / max(1, pairs // batch_size))))


def search(
    start: Recipe,
    rounds: Sequence[dict[str, list]],
    criterion: Criterion,
    training: PairVectors,
    validation: PairVectors,
    seeds: Sequence[int] = (0, 1),
    averaged: int = 3,
) -> tuple[Candidate, pd.DataFrame]:
    """Coordinate by coordinate: the recipe that the criterion likes best, and the log of everything that was tried.

    rounds: one dictionary a round, field of Recipe -> values; a round's candidates are all combinations of its values on top
        of the recipe kept so far, and that recipe itself. averaged: a last round averages so many seeds' weights (1: no such
        round); it is left out for recipes that average_runs refuses.
    Returns the choice and a log with a row for each candidate: round, candidate, changed (in words), the Recipe's fields
    without its name, averaged, seeds (their number), validation and frozen (nDCG@10), sd (of validation, over the seeds),
    delta_percent (the criterion; DIVERGED if a run diverged), chosen (kept at the end of its round), final (the row that is
    the choice), fields (the fields that changed, joined with +; empty for the start and for what was kept so far).
    """
    most = max([start.hard_negatives, *(n for grid in rounds for n in grid.get("hard_negatives", []))])
    negatives = mine(training, most) if most else None
    kept, kept_row, rows = Candidate(_plain(start)), None, []
    grids = [{}, *rounds, {"averaged": [averaged]}]
    for number, grid in enumerate(tqdm(grids, desc="search", unit="round")):
        tried = _combinations(kept, grid) if number else [kept]
        if not tried:
            continue
        trained = train_candidates(tried, seeds, training, validation, negatives=negatives, progress=False)
        found = [_row(one, kept, runs, criterion) for one, runs in zip(tried, trained, strict=True)]
        if kept_row is not None:
            tried, found = [kept, *tried], [{**kept_row, "changed": "nothing", "fields": ""}, *found]
        best = max(range(len(found)), key=lambda i: found[i]["delta_percent"])  # of equals the one kept so far
        rows += [{"round": number, "candidate": i, **row, "chosen": i == best} for i, row in enumerate(found)]
        kept, kept_row = tried[best], found[best]
    return kept, _log(rows)


def log_of_one(candidate: Candidate, runs: Sequence[TrainedRun], criterion: Criterion) -> pd.DataFrame:
    """The log of a recipe that was taken over from elsewhere: one row, chosen and final, of these runs."""
    row = {**_row(candidate, candidate, runs, criterion), "changed": "taken over"}
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


def _combinations(kept: Candidate, grid: dict[str, list]) -> list[Candidate]:
    """All combinations of the grid's values on top of `kept` that can be trained, without `kept` itself and repeats."""
    found = []
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        averaged = changes.pop("averaged", kept.averaged)
        found.append(Candidate(_plain(kept.recipe.with_changes(**changes)), averaged))
    new = [one for one in dict.fromkeys(found) if one != kept]
    return [one for one in new if one.averaged == 1 or (one.recipe.head, one.recipe.start) == ("linear", "identity")]


def _row(candidate: Candidate, kept: Candidate, runs: Sequence[TrainedRun], criterion: Criterion) -> dict[str, Any]:
    """A candidate's line in the log, less its number and fate; one that diverged with any seed can never be chosen."""
    values, before = ({**one.recipe.to_dict(), "averaged": one.averaged} for one in (candidate, kept))
    changed = {name: value for name, value in values.items() if value != before[name]}
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in changed.items()]
    scores = np.array([criterion.score(run) for run in runs])
    return {
        "changed": ", ".join(words) or "start",
        **{name: value for name, value in values.items() if name != "name"},
        "seeds": len(runs),
        "validation": scores[:, 0].mean(),
        "sd": scores[:, 0].std(ddof=1) if len(runs) > 1 else math.nan,
        "frozen": criterion.frozen,
        "delta_percent": scores[:, 1].mean() if all(run.diverged_at is None for run in runs) else DIVERGED,
        "fields": "+".join(changed),
    }
