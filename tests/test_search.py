"""The search: what the criterion measures, what a round keeps, and that a study's tests are never looked at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asymlib.checkpoints import save_runs
from asymlib.data.collections import Collection
from asymlib.data.pairs import Pairs
from asymlib.data.studies import Study
from asymlib.errors import InputError
from asymlib.recipes import IDENTITY, Recipe
from asymlib.selection import search
from asymlib.train import TrainedRun, average_runs, train

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 12


class Untouchable(dict):
    """The tests of a study: their names may be compared, whatever looks at one fails."""

    def __getitem__(self, name):
        raise AssertionError(f"the search looked at the test collection {name}")

    items = values = __getitem__


def axes(*rows: int, dim: int = 6) -> np.ndarray:
    return np.eye(dim, dtype=np.float32)[list(rows)]


def study_of(name: str, training: Pairs, validation: Pairs, tests: dict, encoder_key: str = "key") -> Study:
    return Study(name, "zero-shot", "folder", Path(name), training, validation, tests, "0" * 64, None, encoder_key)


def small_study(name: str = "small", tests: dict | None = None, encoder_key: str = "key") -> Study:
    """Validation queries a (twice) and b; the training pairs repeat query a and document Y."""
    validation = Pairs("validation", ["a", "a", "b"], ["X", "Y", "Z"], axes(0, 0, 2), axes(0, 1, 2))
    training = Pairs("train", ["a", "c", "d"], ["W", "Y", "V"], axes(0, 4, 5), axes(3, 1, 4))
    return study_of(name, training, validation, tests or Untouchable(forbidden=None), encoder_key)


def one_query(name: str, document: int) -> Collection:
    """Query on axis 0; the relevant document on axis `document`; its rival on axis 1. nDCG is 1 or 1/log2(3)."""
    vectors = {"query_vectors": axes(0, dim=3), "document_vectors": axes(document, 1, dim=3)}
    return Collection(name, ["a", "b"], ["a", "b"], ["q"], ["q"], {"q": {"a": 1}}, **vectors)


def test_the_own_set_pools_distinct_documents_and_calls_relevant_what_either_split_pairs():
    own = search.own_validation(small_study())
    np.testing.assert_array_equal(own.documents, axes(0, 1, 2, 3, 4))  # X Y Z W V
    np.testing.assert_array_equal(own.queries, axes(0, 2))  # a b
    # a: X, Y (validation) and W (training) are relevant. It finds X first; of the others, all of score 0, the larger number
    # comes first: V, W, Z, Y. b finds Z first.
    discount = 1 / np.log2(np.arange(2, 7))
    a = (discount[0] + discount[2] + discount[4]) / discount[:3].sum()
    assert own.score({}, "cosine") == pytest.approx((a + 1) / 2)


def test_the_tests_of_another_study_become_validation_unless_they_are_tests_of_this_one():
    (found,) = search.transfer_validation(small_study(), small_study("other", {"mine": one_query("mine", 0)}))
    assert (found.part, found.qrels.name, found.score({}, "cosine")) == ("transfer", "mine", 1.0)
    with pytest.raises(InputError, match="study 'other' holds forbidden, which study 'small' is tested on"):
        search.transfer_validation(small_study(), small_study("other", {"mine": None, "forbidden": None}))
    with pytest.raises(InputError, match="study 'other' was encoded in another way than study 'small'"):
        search.transfer_validation(small_study(), small_study("other", {"mine": None}, "other key"))


def swapped(first: int, second: int) -> TrainedRun:
    """A query head that exchanges two axes."""
    weight = torch.eye(3)[[{first: second, second: first}.get(i, i) for i in range(3)]]
    best = {"query.weight": weight, "query.bias": torch.zeros(3)}
    return TrainedRun(Recipe(name="x", sides="query", start="identity"), 0, best, best, 1, [1.0, 0.5])


def test_the_own_pool_counts_as_much_as_all_transfer_collections_together():
    def made(part: str, test: Collection) -> search.ValidationSet:
        return search.ValidationSet(part, test.judgements, test.query_vectors, test.document_vectors)

    low, own = 1 / np.log2(3), made("own", one_query("own", 0))
    transfer = [made("transfer", one_query("t1", 0)), made("transfer", one_query("t2", 2))]  # t2: a tie, which b wins
    criterion = search.Criterion([own, *transfer])
    assert criterion.weights.tolist() == [0.5, 0.25, 0.25]
    assert criterion.each_frozen == pytest.approx([1, 1, low])
    assert criterion.frozen == pytest.approx(0.75 + 0.25 * low)
    ndcg, percent = criterion.score_run(swapped(0, 2))  # now own and t1 are lost to the tie, t2 is won
    assert ndcg == pytest.approx(0.75 * low + 0.25)
    assert percent == pytest.approx(100 * (0.75 * (low - 1) + 0.25 * (1 / low - 1)))


def noisy_pairs(name: str, n: int, seed: int) -> Pairs:
    """Queries and documents agree in half of their dimensions; the other half is loud and says nothing."""
    generator = np.random.default_rng(seed)
    signal = generator.standard_normal((n, DIM // 2))
    sides = [np.hstack([signal, 2 * generator.standard_normal((n, DIM // 2))]) for _ in range(2)]
    vectors = [(z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in sides]
    return Pairs(name, [f"{name} q{i}" for i in range(n)], [f"{name} d{i}" for i in range(n)], *vectors)


@pytest.fixture(scope="module")
def case():
    study = study_of("s", noisy_pairs("t", 256, 0), noisy_pairs("v", 64, 1), Untouchable())
    criterion = search.Criterion([search.own_validation(study)])
    return criterion, study.train.tensors(), study.validation.tensors()


START = IDENTITY.with_changes(batch_size=32, lr=1e-6, epochs=4)


def run_search(case, rounds, start=START, **keywords):
    return search.search(start, rounds, *case, **keywords)


def test_every_round_keeps_what_the_criterion_likes_best_and_the_log_keeps_the_rest(case):
    rounds = [{"lr": [1e-6, 1e-5, 2e-2]}, {"temperature": [0.05, 100.0]}, {"hard_negatives": [1]}]
    choice, log = run_search(case, rounds)
    assert (choice.recipe.lr, choice.recipe.temperature) == (2e-2, 0.05)
    assert log.groupby("round").size().tolist() == [1, 3, 2, 2, 2]  # the start, two others and what was kept, ...
    assert log["changed"].str.partition(",")[0].tolist()[:4] == ["start", "nothing", "lr 1e-05", "lr 0.02"]
    assert log["fields"].str.partition("+")[0].tolist()[:6] == ["", "", "lr", "lr", "", "temperature"]
    assert log.groupby("round")["chosen"].sum().eq(1).all()
    ends = log.loc[log["chosen"]].set_index("round")["delta_percent"]
    assert ends.equals(log.groupby("round")["delta_percent"].max())
    assert ends.is_monotonic_increasing and ends.iloc[1] > ends.iloc[0] + 10
    assert log.loc[log["round"] == 2, "chosen"].tolist() == [True, False]  # nothing was better, so nothing changed
    final = log[log["final"]]
    assert len(final) == 1 and final["round"].iloc[0] == 4 and final["averaged"].iloc[0] == choice.averaged
    fields = {name: value for name, value in choice.recipe.to_dict().items() if name != "name"}
    assert {name: final[name].iloc[0] for name in fields} == fields


def test_a_row_of_the_log_is_the_mean_over_the_seeds_of_runs_trained_alone(case):
    criterion, training, validation = case
    _, log = run_search(case, [{"lr": [2e-2]}], seeds=[3, 4], averaged=1)
    row, recipe = log.iloc[2], START.with_changes(lr=2e-2)
    recipe = recipe.with_changes(epochs=int(row["epochs"]))
    alone = [train([(recipe, seed)], training, validation, progress=False)[0] for seed in (3, 4)]
    ndcg, percent = np.array([criterion.score(run.last, "cosine") for run in alone]).T
    assert row["validation"] == pytest.approx(ndcg.mean()) and row["delta_percent"] == pytest.approx(percent.mean())
    assert row["sd"] == pytest.approx(ndcg.std(ddof=1)) and row["seeds"] == 2


def test_a_candidate_is_trained_once_and_its_epochs_are_those_the_criterion_likes_best(case, monkeypatch):
    criterion, training, validation = case
    lrs, trained = [2e-2, 0.1], []
    monkeypatch.setattr(search, "train", lambda runs, *data, **how: trained.extend(runs) or train(runs, *data, **how))
    _, log = run_search(case, [{"lr": lrs}, {"lr": [*lrs, 1e-6]}], averaged=1, seeds=[0])
    distinct = [(recipe.with_changes(name="x"), seed) for recipe, seed in trained]
    assert len(distinct) == len(set(distinct)) == 3 and {recipe.epochs for recipe, _ in distinct} == {START.epochs}
    assert log.groupby("round").size().tolist() == [1, 3]  # the second round holds nothing new
    for row, lr in zip(log.iloc[2:].itertuples(), lrs, strict=True):
        until = [START.with_changes(name=f"{epochs}", lr=lr, epochs=epochs) for epochs in range(1, 5)]
        runs = train([(recipe, 0) for recipe in until], training, validation, progress=False)
        by_epoch = [criterion.score(run.last, "cosine")[1] for run in runs]
        assert row.epochs == 1 + int(np.argmax(by_epoch)) and row.delta_percent == pytest.approx(max(by_epoch))
    assert log["epochs"].nunique() > 1
    with pytest.raises(InputError, match="'epochs' are chosen within a run"):
        run_search(case, [{"lr": lrs, "epochs": [1, 5]}])


def test_two_spellings_of_no_isotropy_are_one_candidate_and_what_is_kept_is_not_tried_again(case):
    grid = {"isotropy": ["none", "covariance", "cosine"], "isotropy_weight": [0.0, 0.05]}
    _, log = run_search(case, [grid], averaged=1, seeds=[0])
    tried = log[log["round"] == 1][["isotropy", "isotropy_weight"]].apply(tuple, axis=1).tolist()
    assert tried == [("covariance", 0.05), ("none", 0.0), ("cosine", 0.05)]
    assert log["candidate"].tolist() == [0, 0, 1, 2]


def test_the_averaging_round_trains_disjoint_seeds_and_is_left_out_for_heads_with_random_weights(case):
    criterion, training, validation = case
    _, log = run_search(case, [{"lr": [2e-2]}], seeds=[0, 1])
    row = log[log["averaged"] == 3].iloc[-1]
    assert row["changed"].endswith("averaged 3") and row["fields"].endswith("averaged") and row["seeds"] == 2
    recipe = START.with_changes(lr=2e-2, epochs=int(row["epochs"]))
    runs = train([(recipe, s) for s in range(6)], training, validation, progress=False)
    means = [average_runs(runs[:3], 0), average_runs(runs[3:], 1)]
    assert row["delta_percent"] == pytest.approx(np.mean([criterion.score(run.last, "cosine")[1] for run in means]))
    for start in (START.with_changes(head="residual"), START.with_changes(start="random")):
        _, log = run_search(case, [], start=start)
        assert len(log) == 1 and log["final"].all()


def test_a_candidate_that_diverges_is_logged_and_never_chosen(case):
    broken = START.with_changes(similarity="dot")
    choice, log = run_search(case, [{"lr": [1e25, 2e-6]}], start=broken, averaged=1)
    assert log["delta_percent"].eq(search.DIVERGED).tolist() == [False, False, True, False]
    assert choice.recipe.lr == broken.lr and log["delta_percent"].iloc[2] == search.DIVERGED
    assert log.iloc[2][["validation", "sd"]].isna().all() and log["epochs"].iloc[2] == broken.epochs


def test_a_member_that_diverged_stands_for_its_average(monkeypatch):
    def run(seed, value, diverged_at=None):
        weight = {"query.weight": torch.full((2, 2), value)}
        return TrainedRun(IDENTITY, seed, weight, weight, 1, [1.0, 0.5], diverged_at)

    runs = [run(0, 1.0), run(1, 2.0), run(2, 6.0), run(3, 1.0), run(4, 99.0, 7), run(5, 3.0)]
    runs += [run(6, 4.0, 5), run(7, 5.0, 2), run(8, 6.0, 9)]
    monkeypatch.setattr(search, "train", lambda *asked: runs)
    whole, part, none = search.train_choice(search.Candidate(IDENTITY, averaged=3), [0, 1, 2], None, None)
    assert [one.seed for one in (whole, part, none)] == [0, 1, 2]
    assert [one.best["query.weight"][0, 0].item() for one in (whole, part, none)] == [3.0, 99.0, 4.0]
    assert [one.diverged_at for one in (whole, part, none)] == [None, 7, 5]


def test_a_choice_is_trained_under_its_name_read_back_without_its_weights_and_logged_in_one_row(case, tmp_path):
    criterion, training, validation = case
    choice = search.Candidate(START.with_changes(lr=2e-2, name="best-head"), 2)
    runs = search.train_choice(choice, [0, 4], training, validation, progress=False)
    assert [(run.recipe, run.seed) for run in runs] == [(choice.recipe, 0), (choice.recipe, 4)]
    parts = train([(choice.recipe, seed) for seed in (8, 9)], training, validation, progress=False)
    expected = (parts[0].last["query.weight"] + parts[1].last["query.weight"]) / 2
    torch.testing.assert_close(runs[1].best["query.weight"], expected)
    assert runs[1].best_epoch == START.epochs
    save_runs(tmp_path, runs, averaged=choice.averaged)
    assert search.load_choice(tmp_path) == choice
    save_runs(tmp_path, runs)
    with pytest.raises(InputError, match="expected the field 'averaged', which 03_select_head writes"):
        search.load_choice(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="no such file; run 03_select_head"):
        search.load_choice(tmp_path)
    _, log = run_search(case, [], averaged=1)
    taken = search.log_of_one(choice, runs, criterion)
    assert list(taken.columns) == list(log.columns) and taken["final"].all() and taken["changed"].item() == "taken over"
    assert taken["delta_percent"].item() == pytest.approx(np.mean([criterion.score_run(run)[1] for run in runs]))
    assert taken["epochs"].item() == choice.recipe.epochs
    broken = search.log_of_one(choice, [replace(runs[0], diverged_at=3), runs[1]], criterion)
    assert broken["delta_percent"].item() == search.DIVERGED


def test_updates_become_whole_epochs():
    cases = {(150, 10_000): 1, (750, 10_000): 5, (750, 500): 50, (100, 2_000): 3}
    assert {case: search.epochs_for(*case) for case in cases} == cases
