"""The alarm against the truth: precision and recall of its rules on a grid of trainings, harmed or not.

    python benchmarks/alarm.py [--study reproduce] [--seeds 1]

Trains 168 settings of asym-dot on a study whose texts 01_data_prep encoded: similarity x start x learning rate x temperature.
A run is harmed if it diverged, or if nDCG@10 of its best epoch, over all test queries, is below the frozen encoder's with
p < .05 (paired randomisation). A rule speaks if a row of the run's history after its start raises it and the start did not.
Precision: harmed runs among those of which it speaks; recall: the share of harmed runs of which it speaks. Prints both for

    explosion        every rule but accuracy-below-frozen, with growth measured from the untrained start
    alarm            every rule, as check_history raises them in the notebooks
    each rule        of the alarm, by its name
"""

import argparse
from itertools import product

import numpy as np
import pandas as pd

from asymlib import alarm, magnitude, significance
from asymlib.data import studies
from asymlib.evaluate import METRIC
from asymlib.recipes import get_recipe
from asymlib.train import TrainedRun, train

SIMILARITIES = ("dot", "cosine", "qnorm", "euclidean")
STARTS = ("random", "identity")
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TEMPERATURES = (0.02, 0.05, 0.2)


def scores(study: studies.Study, parameters: dict, similarity: str, trained_with: str | None) -> pd.Series:
    """nDCG@10 of every test query, (collection, query) -> score."""
    tables = [rank.per_query([METRIC]) for _, rank in study.rank(parameters, similarity, trained_with, k=10)]
    return pd.concat(tables).set_index(["dataset", "query_id"])["value"]


def harmed(study: studies.Study, run: TrainedRun, frozen: pd.Series) -> bool:
    """Whether the run's best head ranks the test queries worse than the frozen encoder, beyond chance."""
    if run.diverged:
        return True
    own = scores(study, run.best, run.recipe.similarity, run.recipe.similarity)
    strata = own.index.get_level_values("dataset").to_numpy()
    p = significance.paired_randomization_test(own.to_numpy(), frozen.to_numpy(), n=10_000, strata=strata)
    return bool(p < 0.05) and (own - frozen).groupby("dataset").mean().mean() < 0


def explosion(history: pd.DataFrame) -> pd.DataFrame:
    """Warnings of all rules but accuracy-below-frozen, without a warm-up."""
    rows = []
    for (system, seed), run in magnitude.wide(history, "validation").groupby(["system", "seed"]):
        lowest = run["loss.contrastive"].cummin().shift(1)
        for i, low in enumerate(lowest):
            found = alarm.check(run.iloc[0], run.iloc[i], run.iloc[i // 2], low)
            rows += [{"system": system, "seed": seed, **vars(finding)} for finding in found]
    return pd.DataFrame(rows)


def spoken(warnings: pd.DataFrame) -> dict[tuple[str, int], set[str]]:
    """(system, seed) -> rules that its training raised and its start had not."""
    first = warnings.groupby(["system", "seed", "rule"])["epoch"].min()
    return first[first > 0].reset_index().groupby(["system", "seed"])["rule"].agg(set).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="reproduce")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()

    study = studies.load(arguments.study)
    pairs, validation = study.train.tensors(), study.validation.tensors()
    base, truth, before, after = get_recipe("asym-dot"), {}, {}, {}
    frozen = scores(study, {}, "cosine", None)
    accuracy = magnitude.frozen_accuracy(validation, base.batch_size)
    for similarity, start in product(SIMILARITIES, STARTS):
        grid = [
            base.with_changes(similarity=similarity, start=start, lr=lr, temperature=tau,
                              name=f"{similarity}_{start}_{lr:g}_{tau:g}")
            for lr, tau in product(RATES, TEMPERATURES)
        ]  # fmt: skip
        recorder = magnitude.Recorder()
        settings = [(recipe, seed) for recipe in grid for seed in range(arguments.seeds)]
        runs = train(settings, pairs, validation, observe=recorder, log_every=10**9, progress=False)
        truth |= {(run.recipe.name, run.seed): harmed(study, run, frozen) for run in runs}
        before |= spoken(explosion(recorder.frame()))
        after |= spoken(alarm.check_history(recorder.frame(), accuracy))
        print(f"{similarity}, {start} start: {len(runs)} runs", flush=True)

    bad = np.array(list(truth.values()))
    print(f"{len(bad)} runs, {bad.sum()} harmed; the frozen encoder's validation accuracy is {accuracy:.1%}")
    said = {"explosion": [run in before for run in truth], "alarm": [run in after for run in truth]}
    said |= {rule: [rule in after.get(run, ()) for run in truth] for rule in sorted(set().union(*after.values()))}
    for name, speaks in said.items():
        right = (bad & speaks).sum()
        print(
            f"{name:24} speaks of {sum(speaks):3}: precision {right / sum(speaks):.2f}, recall {right / bad.sum():.2f}"
        )


if __name__ == "__main__":
    main()
