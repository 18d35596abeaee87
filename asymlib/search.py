"""The search for the best head, on validation alone: which recipe ranks unseen validation queries best.

Where it stands in the data flow: after evaluate. It trains candidates with train, scores them with evaluate, and hands the
chosen recipe back; the study's own test collections are never given to it.

The criterion is the relative change of nDCG@10 against the frozen encoder. A study's own validation queries are searched in
the pool of its distinct validation and training documents; test collections of *another* study may be added as validation
by transfer, and count together as much as the own pool. Choices are made one coordinate at a time: every round trains all of
its candidates as one stack, and the best one is kept if it beats what was kept before.
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

from asymlib import evaluate, heads, train
from asymlib.datasets import Collection, Study
from asymlib.encode import StudyVectors
from asymlib.errors import InputError
from asymlib.files import read_json
from asymlib.systems import System, system_from_dict

METRIC = "ndcg@10"
OWN, TRANSFER = "own", "transfer"


@dataclass(frozen=True)
class Exam:
    """A collection that recipes are chosen on: never a test collection of the study that they are chosen for.

    part: OWN or TRANSFER. queries: (Q, D), documents: (C, D) frozen embeddings in the judge's order.
    """

    part: str
    judge: evaluate.Judge
    queries: np.ndarray
    documents: np.ndarray

    def score(self, parameters: heads.Parameters, similarity: str) -> float:
        """Mean nDCG@10 after one run's heads; {} is the frozen encoder."""
        queries = heads.project(parameters, "query", self.queries)
        documents = heads.project(parameters, "document", self.documents)
        found = evaluate.evaluate(self.judge, queries, documents, similarity, similarity, [METRIC])
        return float(found["value"].mean())


def own_exam(study: Study, vectors: StudyVectors) -> Exam:
    """The study's distinct validation queries against all of its distinct validation and training documents.

    Relevant (grade 1) is every document that a pair, of either split, joins to the same query text.
    """
    splits = (study.validation, study.train)
    docs = list(dict.fromkeys(itertools.chain(*(split.docs for split in splits))))
    queries = list(dict.fromkeys(study.validation.queries))
    row = {text: i for i, text in enumerate(docs)}
    number = {text: i for i, text in enumerate(queries)}
    qrels: dict[str, dict[str, int]] = {str(i): {} for i in range(len(queries))}
    for split in splits:
        for query, doc in zip(split.queries, split.docs, strict=True):
            if query in number:
                qrels[str(number[query])][str(row[doc])] = 1
    pool = Collection("validation", list(map(str, range(len(docs)))), docs, list(qrels), queries, qrels)
    at = {text: i for i, text in reversed(list(enumerate([*study.validation.docs, *study.train.docs])))}
    asked = {text: i for i, text in reversed(list(enumerate(study.validation.queries)))}
    stored = np.concatenate([vectors.validation_docs, vectors.train_docs])
    return Exam(
        OWN,
        evaluate.Judge(pool),
        vectors.validation_queries[[asked[text] for text in queries]],
        stored[[at[text] for text in docs]],
    )


def transfer_exams(study: Study, other: Study, vectors: StudyVectors) -> list[Exam]:
    """The test collections of another study as validation by transfer; vectors: the other study's.

    InputError if one of them is a test collection of `study` too: choosing on it would be choosing on the test.
    """
    if shared := sorted(set(study.tests) & set(other.tests)):
        raise InputError(
            f"transfer: study {other.name!r} holds {', '.join(shared)}, which study {study.name!r} is tested on;"
            " expected a study without any of its test collections"
        )
    return [Exam(TRANSFER, evaluate.Judge(test), *vectors.tests[name]) for name, test in other.tests.items()]


class Criterion:
    """What a recipe is chosen by: the mean over validation collections of the relative change to the frozen encoder.

    With transfer exams, the own pool counts as much as the mean of all of them. frozen: the encoder's own nDCG@10, weighted
    in the same way.
    """

    def __init__(self, exams: Sequence[Exam]):
        parts = [exam.part for exam in exams]
        if parts.count(OWN) != 1 or not set(parts) <= {OWN, TRANSFER}:
            raise InputError(f"criterion: expected one exam of part {OWN!r} and any of {TRANSFER!r}, found {parts}")
        self.exams = list(exams)
        self.weights = np.array([1 / len(set(parts)) / parts.count(part) for part in parts])
        self.each_frozen = np.array([exam.score({}, "cosine") for exam in exams])
        if not (self.each_frozen > 0).all():
            raise InputError("criterion: the frozen encoder finds nothing in a validation collection")
        self.frozen = float(self.weights @ self.each_frozen)

    def score(self, run: train.TrainedRun) -> tuple[float, float]:
        """(nDCG@10, change to the frozen encoder in percent) of one run's best epoch, weighted over the exams."""
        each = np.array([exam.score(run.best, run.system.similarity) for exam in self.exams])
        return float(self.weights @ each), float(100 * self.weights @ (each / self.each_frozen - 1))


@dataclass(frozen=True)
class Candidate:
    """A recipe, and how many seeds' weights are averaged into one head (1: none)."""

    system: System
    averaged: int = 1

    def runs(self, seeds: Sequence[int]) -> list[tuple[System, int]]:
        """What has to be trained for these seeds: seed s of an average of n takes the seeds n s ... n s + n - 1."""
        return [(self.system, self.averaged * seed + i) for seed in seeds for i in range(self.averaged)]

    def join(self, runs: Sequence[train.TrainedRun], seeds: Sequence[int]) -> list[train.TrainedRun]:
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
            one = train.average_runs(whole, seed) if whole else replace(members[0], seed=seed)
            broken = [run.diverged_at for run in members if run.diverged_at is not None]
            joined.append(replace(one, diverged_at=min(broken)) if broken else one)
        return joined


def train_candidates(
    candidates: Sequence[Candidate], seeds: Sequence[int], training: train.PairVectors, validation: train.PairVectors,
    progress: bool = True, **keywords: Any,
) -> list[list[train.TrainedRun]]:  # fmt: skip
    """Each candidate's runs, one a seed, all trained in one call of train.train (which gets keywords)."""
    named = [
        Candidate(candidate.system.with_changes(name=f"{i}"), candidate.averaged)
        for i, candidate in enumerate(candidates)
    ]
    wanted = [candidate.runs(seeds) for candidate in named]
    done = iter(train.train(list(itertools.chain(*wanted)), training, validation, progress=progress, **keywords))
    joined = [
        candidate.join(list(itertools.islice(done, len(runs))), seeds)
        for candidate, runs in zip(named, wanted, strict=True)
    ]
    for candidate, runs in zip(candidates, joined, strict=True):
        for run in runs:
            run.system = candidate.system
    return joined


def epochs_for(steps: int, pairs: int, batch_size: int = 64, most: int = 50) -> int:
    """The number of epochs, 1 to `most`, that comes closest to so many updates."""
    return min(most, max(1, round(steps / max(1, pairs // batch_size))))


def search(
    start: System,
    rounds: Sequence[dict[str, list]],
    criterion: Criterion,
    training: train.PairVectors,
    validation: train.PairVectors,
    seeds: Sequence[int] = (0, 1),
    averaged: int = 3,
    progress: bool = True,
) -> tuple[Candidate, pd.DataFrame]:
    """Coordinate by coordinate: the recipe that the criterion likes best, and the log of everything that was tried.

    rounds: one dictionary a round, field of System -> values; a round's candidates are all combinations of its values on top
        of the recipe kept so far, and that recipe itself. averaged: a last round averages so many seeds' weights (1: no such
        round); it is left out for recipes that train.average_runs refuses.
    A candidate is kept if its mean criterion over the seeds is above that of the recipe kept so far.
    Returns the choice and a log with a row for each candidate: round, candidate, changed, the System's fields without its
    name, averaged, seeds (their number), validation and frozen (nDCG@10), sd (of validation, over the seeds), delta_percent
    (the criterion), chosen (kept at the end of its round), final (the row that is the choice).
    """
    most = max([start.hard_negatives, *(n for grid in rounds for n in grid.get("hard_negatives", []))])
    negatives = train.mine(training, most) if most else None
    kept, rows = Candidate(_plain(start)), []
    kept_row: dict[str, Any] | None = None
    for number in tqdm(range(len(rounds) + 2), desc="search", unit="round", disable=not progress):
        last = number == len(rounds) + 1
        if number == 0:
            tried = [kept]
        elif last:
            tried = [Candidate(kept.system, averaged)] if averaged > 1 and _averageable(kept.system) else []
        else:
            tried = _combinations(kept, rounds[number - 1])
        if not tried:
            continue
        found = [
            _row(candidate, kept, runs, criterion)
            for candidate, runs in zip(
                tried,
                train_candidates(tried, seeds, training, validation, False, negatives=negatives),
                strict=True,
            )
        ]
        if kept_row is not None:
            tried, found = [kept, *tried], [{**kept_row, "changed": "nothing"}, *found]
        best = max(
            range(len(found)), key=lambda i: found[i]["delta_percent"]
        )  # the first of equals: the one kept so far
        rows += [{"round": number, "candidate": i, **row, "chosen": i == best} for i, row in enumerate(found)]
        kept, kept_row = tried[best], found[best]
    log = pd.DataFrame(rows)
    log["final"] = log["chosen"] & (log["round"] == log["round"].max())
    return kept, log


def log_of_one(candidate: Candidate, runs: Sequence[train.TrainedRun], criterion: Criterion) -> pd.DataFrame:
    """The log of a recipe that was taken over from elsewhere: one row, chosen and final, of these runs."""
    row = {**_row(candidate, candidate, runs, criterion), "changed": "taken over"}
    return pd.DataFrame([{"round": 0, "candidate": 0, **row, "chosen": True, "final": True}])


def _plain(system: System) -> System:
    """The same recipe with one spelling: no isotropy term is kind 'none' at weight 0."""
    if system.isotropy == "none" or system.isotropy_weight == 0:
        return system.with_changes(isotropy="none", isotropy_weight=0.0)
    return system


def _combinations(kept: Candidate, grid: dict[str, list]) -> list[Candidate]:
    """All combinations of the grid's values on top of `kept`, without `kept` itself and without repeats."""
    systems = [
        _plain(kept.system.with_changes(**dict(zip(grid, values, strict=True))))
        for values in itertools.product(*grid.values())
    ]
    return [Candidate(system) for system in dict.fromkeys(systems) if system != kept.system]


def _averageable(system: System) -> bool:
    return system.head == "linear" and system.start == "identity"


def _row(
    candidate: Candidate, kept: Candidate, runs: Sequence[train.TrainedRun], criterion: Criterion
) -> dict[str, Any]:
    """A candidate's line in the log, less its number and fate; one that diverged with any seed can never be chosen."""
    fields, before = (one.system.to_dict() for one in (candidate, kept))
    changed = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
               for name, value in fields.items() if value != before[name]]  # fmt: skip
    if candidate.averaged != kept.averaged:
        changed.append(f"averaged {candidate.averaged}")
    scores = np.array([criterion.score(run) for run in runs])
    whole = all(run.diverged_at is None for run in runs)
    fields.pop("name")
    return {
        "changed": ", ".join(changed) or "start",
        **fields,
        "averaged": candidate.averaged,
        "seeds": len(runs),
        "validation": scores[:, 0].mean(),
        "sd": scores[:, 0].std(ddof=1) if len(runs) > 1 else math.nan,
        "frozen": criterion.frozen,
        "delta_percent": scores[:, 1].mean() if whole else -100.0,
    }


def load_choice(folder: str | Path) -> Candidate:
    """The recipe that a search left in a heads folder, without its weights; a config.json that no search wrote is refused."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or not {"system", "averaged"} <= set(config):
        raise InputError(f"{path}: expected the fields 'system' and 'averaged', which a search writes")
    return Candidate(system_from_dict(config["system"]), config["averaged"])


def train_choice(
    choice: Candidate,
    name: str,
    seeds: Sequence[int],
    training: train.PairVectors,
    validation: train.PairVectors,
    progress: bool = True,
) -> list[train.TrainedRun]:
    """The chosen recipe under its final name, one run a seed, each an average if averaging was chosen."""
    named = Candidate(choice.system.with_changes(name=name), choice.averaged)
    return train_candidates([named], seeds, training, validation, progress)[0]
