"""The search: what the criterion measures, what a round keeps, and that a study's tests are never looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asymlib import search, train
from asymlib.datasets import Collection, Pairs, Study
from asymlib.encode import StudyVectors
from asymlib.errors import InputError
from asymlib.evaluate import Judge
from asymlib.systems import IDENTITY, System

pytestmark = pytest.mark.usefixtures("one_thread")


class Untouchable(dict):
    """The tests of a study: their names may be compared, whatever looks at one fails."""

    def __getitem__(self, name):
        raise AssertionError(f"the search looked at the test collection {name}")

    items = values = __getitem__


def axes(*rows: int, dim: int = 6) -> np.ndarray:
    return np.eye(dim, dtype=np.float32)[list(rows)]


def small_study() -> tuple[Study, StudyVectors]:
    """Validation queries a (twice) and b; the training pairs repeat query a and document Y."""
    validation = Pairs("validation", ["a", "a", "b"], ["X", "Y", "Z"])
    training = Pairs("train", ["a", "c", "d"], ["W", "Y", "V"])
    study = Study("small", training, validation, Untouchable(forbidden=None), "0" * 64, Path("small"))
    #                                           a  c  d    W  Y  V    a  a  b    X  Y  Z
    vectors = StudyVectors(axes(0, 4, 5), axes(3, 1, 4), axes(0, 0, 2), axes(0, 1, 2), Untouchable(), 6, "", "", None)
    return study, vectors


def test_the_own_exam_pools_distinct_documents_and_calls_relevant_what_either_split_pairs():
    exam = search.own_exam(*small_study())
    assert exam.judge.n_docs == 5 and exam.judge.query_ids == ["0", "1"]  # X Y Z W V; a b
    assert exam.judge.n_relevant.tolist() == [3, 1]  # a: X and Y in validation, W in training
    np.testing.assert_array_equal(exam.documents, axes(0, 1, 2, 3, 4))
    np.testing.assert_array_equal(exam.queries, axes(0, 2))
    # a finds X first; of the others, all of score 0, the larger number comes first: V, W, Z, Y. b finds Z first.
    discount = 1 / np.log2(np.arange(2, 7))
    a = (discount[0] + discount[2] + discount[4]) / discount[:3].sum()
    assert exam.score({}, "cosine") == pytest.approx((a + 1) / 2)


def test_a_transfer_study_that_holds_a_test_collection_of_this_one_is_refused():
    study, vectors = small_study()
    other = Study("other", study.train, study.validation, {"mine": None, "forbidden": None}, "1" * 64, Path("other"))
    with pytest.raises(InputError, match=r"study 'other' holds forbidden, which study 'small' is tested on"):
        search.transfer_exams(study, other, vectors)


def test_the_tests_of_another_study_become_exams_with_their_own_vectors():
    study, _ = small_study()
    test = Collection("mine", ["a", "b"], ["a", "b"], ["q"], ["q"], {"q": {"a": 1}})
    other = Study("other", study.train, study.validation, {"mine": test}, "1" * 64, Path("other"))
    vectors = StudyVectors(*[axes(0)] * 4, {"mine": (axes(1), axes(1, 2))}, 6, "", "", None)
    (exam,) = search.transfer_exams(study, other, vectors)
    assert (exam.part, exam.judge.name) == ("transfer", "mine")
    assert exam.score({}, "cosine") == 1.0


def one_query(name: str, document: int, part: str) -> search.Exam:
    """Query on axis 0; the relevant document on axis `document`; its rival on axis 1. nDCG is 1 or 1/log2(3)."""
    test = Collection(name, ["a", "b"], ["a", "b"], ["q"], ["q"], {"q": {"a": 1}})
    return search.Exam(part, Judge(test), axes(0, dim=3), axes(document, 1, dim=3))


def swapped(first: int, second: int) -> train.TrainedRun:
    """A query head that exchanges two axes."""
    weight = torch.eye(3)[[{first: second, second: first}.get(i, i) for i in range(3)]]
    best = {"query.weight": weight, "query.bias": torch.zeros(3)}
    return train.TrainedRun(System("x", sides="query", start="identity"), 0, best, best, 1, [1.0, 0.5])


def test_the_own_pool_counts_as_much_as_all_transfer_collections_together():
    low, own = 1 / np.log2(3), one_query("own", 0, "own")
    transfer = [one_query("t1", 0, "transfer"), one_query("t2", 2, "transfer")]  # t2: a tie at 0, which b wins
    criterion = search.Criterion([own, *transfer])
    assert criterion.weights.tolist() == [0.5, 0.25, 0.25]
    assert criterion.each_frozen == pytest.approx([1, 1, low])
    assert criterion.frozen == pytest.approx(0.75 + 0.25 * low)
    ndcg, percent = criterion.score(swapped(0, 2))  # now own and t1 are lost to the tie, t2 is won
    assert ndcg == pytest.approx(0.75 * low + 0.25)
    assert percent == pytest.approx(100 * (0.75 * (low - 1) + 0.25 * (1 / low - 1)))
    assert search.Criterion([own]).score(swapped(0, 2))[1] == pytest.approx(100 * (low - 1))
    for wrong in ([], transfer, [own, own]):
        with pytest.raises(InputError, match="expected one exam of part 'own'"):
            search.Criterion(wrong)


# ---------------------------------------------------------------- rounds

DIM = 12


def noisy_pairs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and documents agree in half of their dimensions; the other half is loud and says nothing."""
    generator = np.random.default_rng(seed)
    signal = generator.standard_normal((n, DIM // 2))
    sides = [np.hstack([signal, 2 * generator.standard_normal((n, DIM // 2))]) for _ in range(2)]
    return tuple((z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in sides)


@pytest.fixture(scope="module")
def case():
    (tq, td), (vq, vd) = noisy_pairs(256, 0), noisy_pairs(64, 1)
    texts = [[f"{kind}{i}" for i in range(n)] for n, kind in ((256, "tq"), (256, "td"), (64, "vq"), (64, "vd"))]
    study = Study("s", Pairs("t", *texts[:2]), Pairs("v", *texts[2:]), Untouchable(), "", Path("s"))
    vectors = StudyVectors(tq, td, vq, vd, Untouchable(), DIM, "", "", None)
    training, validation = (
        train.PairVectors.of(q, d, pairs.passage, pairs.query_number)
        for q, d, pairs in ((tq, td, study.train), (vq, vd, study.validation))
    )
    return search.Criterion([search.own_exam(study, vectors)]), training, validation


START = IDENTITY.with_changes(batch_size=32, lr=1e-6, epochs=2)


def run_search(case, rounds, start=START, **keywords):
    criterion, training, validation = case
    return search.search(start, rounds, criterion, training, validation, progress=False, **keywords)


def test_every_round_keeps_what_the_criterion_likes_best_and_the_log_keeps_the_rest(case):
    rounds = [{"lr": [1e-5, 2e-2], "epochs": [1, 4]}, {"temperature": [0.05, 100.0]}, {"hard_negatives": [1]}]
    choice, log = run_search(case, rounds)
    assert (choice.system.lr, choice.system.epochs, choice.system.temperature) == (2e-2, 4, 0.05)
    assert log.groupby("round").size().tolist() == [1, 5, 2, 2, 2]  # the start, 4 and what was kept, ...
    assert log["changed"].iloc[0] == "start" and log["changed"].iloc[1] == "nothing"
    assert log["changed"].iloc[2:6].tolist() == [
        "lr 1e-05, epochs 1",
        "lr 1e-05, epochs 4",
        "lr 0.02, epochs 1",
        "lr 0.02, epochs 4",
    ]
    for _, part in log.groupby("round"):
        assert (
            part["chosen"].sum() == 1
            and part.loc[part["chosen"], "delta_percent"].iloc[0] == part["delta_percent"].max()
        )
    ends = log.loc[log["chosen"], "delta_percent"]
    assert ends.is_monotonic_increasing and ends.iloc[1] > ends.iloc[0] + 10
    assert log.loc[log["round"] == 2, "chosen"].tolist() == [True, False]  # nothing was better, so nothing changed
    final = log[log["final"]]
    assert len(final) == 1 and final["round"].iloc[0] == 4
    fields = {name: value for name, value in choice.system.to_dict().items() if name != "name"}
    assert {name: final[name].iloc[0] for name in fields} == fields and final["averaged"].iloc[0] == choice.averaged


def test_a_row_of_the_log_is_the_mean_over_the_seeds_of_runs_trained_alone(case):
    criterion, training, validation = case
    _, log = run_search(case, [{"lr": [2e-2]}], seeds=[3, 4], averaged=1)
    system = START.with_changes(lr=2e-2)
    alone = [train.train([(system, seed)], training, validation, progress=False)[0] for seed in (3, 4)]
    scores = np.array([criterion.score(run) for run in alone])
    row = log.iloc[2]
    assert row["validation"] == pytest.approx(scores[:, 0].mean()) and row["delta_percent"] == pytest.approx(
        scores[:, 1].mean()
    )
    assert row["sd"] == pytest.approx(scores[:, 0].std(ddof=1)) and row["seeds"] == 2
    assert row["frozen"] == pytest.approx(criterion.exams[0].score({}, "cosine"))


def test_two_spellings_of_no_isotropy_are_one_candidate_and_what_is_kept_is_not_tried_again(case):
    grid = {"isotropy": ["none", "covariance", "cosine"], "isotropy_weight": [0.0, 0.05]}
    _, log = run_search(case, [grid], averaged=1, seeds=[0])
    tried = log[log["round"] == 1][["isotropy", "isotropy_weight"]].apply(tuple, axis=1).tolist()
    assert tried == [("covariance", 0.05), ("none", 0.0), ("cosine", 0.05)]


def test_the_averaging_round_trains_disjoint_seeds_and_is_left_out_for_heads_with_random_weights(case):
    criterion, training, validation = case
    _, log = run_search(case, [{"lr": [2e-2]}], seeds=[0, 1])
    system = START.with_changes(lr=2e-2)
    runs = train.train([(system, seed) for seed in range(6)], training, validation, progress=False)
    means = [train.average_runs(runs[:3], 0), train.average_runs(runs[3:], 1)]
    row = log[log["averaged"] == 3].iloc[-1]
    assert row["changed"] == "averaged 3" and row["seeds"] == 2
    assert row["delta_percent"] == pytest.approx(np.mean([criterion.score(run)[1] for run in means]))
    _, log = run_search(case, [], start=START.with_changes(head="residual"))
    assert len(log) == 1 and log["final"].all()


def test_a_candidate_that_diverges_is_logged_and_never_chosen(case):
    broken = START.with_changes(similarity="dot")
    choice, log = run_search(case, [{"lr": [1e25]}], start=broken, averaged=1)
    assert choice.system == broken and log["delta_percent"].iloc[2] == -100


def test_an_average_leaves_out_members_that_diverged_and_is_never_chosen():
    def run(seed, value, diverged_at=None):
        weight = {"query.weight": torch.full((2, 2), value)}
        return train.TrainedRun(IDENTITY, seed, weight, weight, 1, [1.0, 0.5], diverged_at)

    candidate = search.Candidate(IDENTITY, averaged=3)
    whole, part, none = candidate.join(
        [run(0, 1.0), run(1, 2.0), run(2, 6.0), run(3, 1.0), run(4, 99.0, 7), run(5, 3.0)]
        + [run(6, 4.0, 5), run(7, 5.0, 2), run(8, 6.0, 9)],
        [0, 1, 2],
    )
    assert [one.seed for one in (whole, part, none)] == [0, 1, 2]
    assert [one.best["query.weight"][0, 0].item() for one in (whole, part, none)] == [3.0, 2.0, 4.0]
    assert [one.diverged_at for one in (whole, part, none)] == [None, 7, 2]


def test_a_choice_is_trained_under_its_name_and_read_back_without_its_weights(case, tmp_path):
    _, training, validation = case
    choice = search.Candidate(START.with_changes(lr=2e-2), 2)
    runs = search.train_choice(choice, "best-head", [0, 4], training, validation, progress=False)
    assert [(run.system.name, run.seed) for run in runs] == [("best-head", 0), ("best-head", 4)]
    parts = train.train([(choice.system, seed) for seed in (8, 9)], training, validation, progress=False)
    torch.testing.assert_close(
        runs[1].best["query.weight"], (parts[0].best["query.weight"] + parts[1].best["query.weight"]) / 2
    )
    train.save_runs(tmp_path / "best-head", runs, averaged=choice.averaged)
    again = search.load_choice(tmp_path / "best-head")
    assert again == search.Candidate(choice.system.with_changes(name="best-head"), 2)
    config = json.loads((tmp_path / "best-head/config.json").read_text())
    del config["averaged"]
    (tmp_path / "best-head/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="expected the fields 'system' and 'averaged'"):
        search.load_choice(tmp_path / "best-head")


def test_a_recipe_taken_over_has_a_log_of_one_row_with_the_same_columns(case):
    criterion, training, validation = case
    choice, log = run_search(case, [], averaged=1)
    runs = search.train_choice(choice, "best-head", [0, 1], training, validation, progress=False)
    taken = search.log_of_one(choice, runs, criterion)
    assert list(taken.columns) == list(log.columns) and taken["final"].all()
    assert taken["delta_percent"].iloc[0] == pytest.approx(log["delta_percent"].iloc[0])


@pytest.mark.parametrize(
    ("steps", "pairs", "epochs"), [(150, 10_000, 1), (750, 10_000, 5), (750, 500, 50), (100, 2_000, 3)]
)
def test_updates_become_whole_epochs(steps, pairs, epochs):
    assert search.epochs_for(steps, pairs) == epochs
