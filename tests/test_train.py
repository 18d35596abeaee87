"""The training loop: R runs together are R runs alone, and one run is a plain torch loop."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from asymlib import heads, losses, train
from asymlib.errors import InputError
from asymlib.magnitude import Recorder, wide
from asymlib.pair_vectors import PairVectors, mine
from asymlib.recipes import Recipe, get_recipe

DIM, BATCH = 16, 16
pytestmark = pytest.mark.usefixtures("one_thread")


def pair_vectors(n: int = 64, seed: int = 0, noise: float = 0.5, passages: int = 0, dim: int = DIM) -> PairVectors:
    """n unit queries near their unit document; `passages`: how many different documents there are (default n)."""
    generator = np.random.default_rng(seed)
    passage = np.arange(n) % (passages or n)
    documents = generator.standard_normal((n, dim))[passage]
    queries = documents + noise * generator.standard_normal((n, dim))
    return PairVectors.of(
        (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32),
        (documents / np.linalg.norm(documents, axis=1, keepdims=True)).astype(np.float32),
        passage,
    )


TRAINING, VALIDATION = pair_vectors(), pair_vectors(32, seed=1)
SMALL = Recipe(name="small", similarity="dot", temperature=0.5, lr=1e-2, batch_size=BATCH, epochs=2)


def fit(*runs, observe=None, log_every: int = 1, training=TRAINING, validation=VALIDATION, negatives=None):
    return train.train(runs, training, validation, observe, log_every, "cpu", progress=False, negatives=negatives)


def assert_same(a: train.TrainedRun, b: train.TrainedRun, atol: float = 1e-5) -> None:
    assert (a.recipe, a.seed, a.best_epoch, a.diverged_at) == (b.recipe, b.seed, b.best_epoch, b.diverged_at)
    np.testing.assert_allclose(a.validation_loss, b.validation_loss, atol=atol, rtol=1e-5 if atol else 0)
    torch.testing.assert_close([a.best, a.last], [b.best, b.last], atol=atol, rtol=1e-5 if atol else 0)


GROUPS = {
    "linear": [
        (SMALL, 1),
        (SMALL, 2),
        (SMALL.with_changes(name="fast", lr=5e-2, temperature=0.1), 1),
        (SMALL.with_changes(name="clipped", clip_norm=0.3, weight_decay=0.5, isotropy_weight=0.0), 3),
    ],
    "residual-identity": [
        (SMALL.with_changes(name=f"r{i}", head="residual", start="identity", similarity="cosine", isotropy="covariance",
                            lr=lr, isotropy_weight=weight), seed)
        for i, (lr, weight, seed) in enumerate([(1e-2, 0.1, 1), (1e-3, 1.0, 1), (1e-3, 0.0, 9)])
    ],
    "deep": [
        (SMALL.with_changes(name=f"d{i}", head="deep", similarity="qnorm", isotropy="variance-hinge", temperature=tau), i)
        for i, tau in enumerate([0.3, 1.0, 3.0])
    ],
    "shared-euclidean": [
        (SMALL.with_changes(name=f"s{i}", sides="shared", similarity="euclidean", isotropy="none", lr=lr), i)
        for i, lr in enumerate([1e-3, 1e-2])
    ],
    "exponents": [
        (SMALL.with_changes(name=f"e{i}", exponent_lr=lr, warm_up=warm_up, weight_decay=0.5, isotropy="none"), i)
        for i, (lr, warm_up) in enumerate([(1e-2, 0.0), (1e-1, 0.0), (1e-1, 0.3)])
    ],
    "shared-exponents-predicting": [
        (SMALL.with_changes(name=f"g{i}", sides="shared", exponent_lr=lr, prediction_weight=0.5, recovery_weight=0.2), 1)
        for i, lr in enumerate([1e-2, 1e-1])
    ],
    "query-predicting": [
        (SMALL.with_changes(name=f"q{i}", sides="query", similarity="dnorm", isotropy="uniformity", start="identity",
                            prediction_weight=weight, recovery_weight=0.5 * weight), i)
        for i, weight in enumerate([0.3, 1.2])
    ],
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_runs_trained_together_equal_each_trained_alone(group):
    together = Recorder()
    results = fit(*GROUPS[group], observe=together)
    history = together.frame().set_index(["system", "seed"]).sort_index()
    assert len({str(run.last) for run in results}) == len(results)
    for run, result in zip(GROUPS[group], results, strict=True):
        alone = Recorder()
        assert_same(result, fit(run, observe=alone)[0])
        mine, other = history.loc[(run[0].name, run[1])], alone.frame()
        for column in ("step", "epoch", "split", "name"):
            assert mine[column].tolist() == other[column].tolist()
        # lengths, cosines, losses, gradients: what the write-up is made from
        np.testing.assert_allclose(mine["value"], other["value"], atol=2e-4, rtol=2e-4)


def test_different_architectures_in_one_call_come_back_in_the_order_given():
    runs = [GROUPS[group][i] for i in (0, 1) for group in GROUPS]
    for run, result in zip(runs, fit(*runs), strict=True):
        assert (result.recipe, result.seed) == run
        assert_same(result, fit(run)[0])


def plain_loop(recipe: Recipe, seed: int, batches: list[torch.Tensor], training: PairVectors) -> dict:
    """Two torch.nn.Linear, torch.optim.AdamW and clip_grad_norm_, written without asymlib's loop or losses.

    With exponents, modules["exponents"] holds both, (2,).
    """
    start = heads.start_heads("linear", recipe.start, "both", DIM, seed)
    modules = {side: torch.nn.Linear(DIM, DIM) for side in ("query", "document")}
    for side, module in modules.items():
        module.load_state_dict({kind: start[f"{side}.{kind}"] for kind in ("weight", "bias")})
    parameters = [p for module in modules.values() for p in module.parameters()]
    groups = [{"params": parameters, "lr": recipe.lr, "weight_decay": recipe.weight_decay}]
    gamma = torch.full((2,), 0.5, requires_grad=True)
    if recipe.exponent_lr:
        groups.append({"params": [gamma], "lr": recipe.exponent_lr, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    warm_up = int(recipe.warm_up * len(batches))
    schedule = get_linear_schedule_with_warmup(optimizer, warm_up, len(batches) if recipe.warm_up else 10**12)
    for rows in batches:
        q, d = modules["query"](training.queries[rows]), modules["document"](training.documents[rows])
        unit_q, unit_d = torch.nn.functional.normalize(q), torch.nn.functional.normalize(d)
        scores = {
            "dot": lambda q=q, d=d: (
                (q @ d.T) / (q.norm(dim=1)[:, None] ** gamma[0] * d.norm(dim=1) ** gamma[1])
                if recipe.exponent_lr
                else q @ d.T
            ),
            "cosine": lambda q=unit_q, d=unit_d: q @ d.T,
            "euclidean": lambda q=q, d=d: -(torch.cdist(q[None], d[None])[0] ** 2),
        }[recipe.similarity]()
        passage = training.passage[rows]
        repeated = (passage[:, None] == passage[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
        logits = (scores / recipe.temperature).masked_fill(repeated, -math.inf)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(rows)))
        if recipe.isotropy == "cosine":
            n = len(rows)
            terms = [((u @ u.T) ** 2).fill_diagonal_(0).sum() / (n * (n - 1)) for u in (unit_q.clone(), unit_d.clone())]
            loss = loss + recipe.isotropy_weight * sum(terms) / 2
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
    return modules | {"exponents": gamma.detach()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"similarity": "cosine", "start": "identity", "isotropy": "none"},
        {"similarity": "euclidean", "isotropy": "none"},
        {"weight_decay": 0.5, "isotropy_weight": 5.0},
        {"clip_norm": 0.7, "lr": 5e-2},  # clips some of the steps
        {"warm_up": 0.3},
        {"exponent_lr": 3e-2},
        {"exponent_lr": 1e-1, "warm_up": 0.1, "isotropy": "none", "weight_decay": 0.5},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_one_run_equals_a_plain_torch_loop_with_adamw(changes):
    recipe = SMALL.with_changes(epochs=4, **changes)
    order = torch.Generator().manual_seed(1_000_003 + 5)  # a run's order is drawn from its seed
    batches = [rows for _ in range(4) for rows in torch.randperm(64, generator=order).split(BATCH)]
    training = pair_vectors(passages=20)  # every batch repeats some documents, which are no negatives of each other
    expected, result = plain_loop(recipe, 5, batches, training), fit((recipe, 5), training=training)[0]
    sides = ("query", "document")
    found = {f"{side}.{kind}": getattr(expected[side], kind).detach() for side in sides for kind in ("weight", "bias")}
    if recipe.exponent_lr:
        found |= {f"{side}.exponent": value[None] for side, value in zip(sides, expected["exponents"], strict=True)}
        assert all(abs(float(value) - 0.5) > 0.05 for value in expected["exponents"])
    torch.testing.assert_close(result.last, found, atol=1e-5, rtol=1e-5)
    # and the validation loss is the mean over blocks of BATCH in the order given
    q, d = (
        heads.apply_head(found, side, getattr(VALIDATION, rows))
        for side, rows in zip(sides, ("queries", "documents"), strict=True)
    )
    blocks = [
        losses.info_nce(losses.score_matrix(a, b, recipe.similarity), recipe.temperature)
        for a, b in zip(q.split(BATCH), d.split(BATCH), strict=True)
    ]
    assert result.validation_loss[-1] == pytest.approx(float(torch.stack(blocks).detach().mean()), rel=1e-4, abs=1e-6)


WILD = SMALL.with_changes(name="wild", lr=1.0, epochs=6)  # validation gets worse after some epoch
STEADY = SMALL.with_changes(name="steady", lr=1e-3, epochs=6)


def test_early_stopping_stops_the_run_whose_validation_loss_rises_and_no_other():
    impatient = WILD.with_changes(name="impatient", patience=2)
    recorder = Recorder()
    stopped, steady, wild = fit((impatient, 1), (STEADY, 1), (WILD, 1), observe=recorder)
    end = len(stopped.validation_loss) - 1
    assert (
        end == stopped.best_epoch + 2 < 6 and stopped.diverged_at is None
    )  # two epochs without a lower validation loss
    assert len(steady.validation_loss) == len(wild.validation_loss) == 7
    for together, alone in ((stopped, (impatient, 1)), (steady, (STEADY, 1)), (wild, (WILD, 1))):
        assert_same(together, fit(alone)[0])
    shorter = impatient.with_changes(epochs=end)
    assert_same(fit((shorter, 1))[0], replace(stopped, recipe=shorter))
    assert recorder.frame().groupby("system")["epoch"].max().to_dict() == {"impatient": end, "steady": 6, "wild": 6}


def test_the_best_epoch_is_the_lowest_validation_loss_and_its_parameters_are_kept():
    runs = [(WILD.with_changes(name=f"w{lr}", lr=lr, epochs=5), 0) for lr in (1.0, 0.3, 1e-3)]
    results = fit(*runs)
    assert len({result.best_epoch for result in results}) > 1
    up_and_down = results[1].validation_loss[results[1].best_epoch :]
    assert min(np.diff(up_and_down)) < 0  # it falls again after its best epoch, though not as low
    for (recipe, seed), result in zip(runs, results, strict=True):
        assert result.best_epoch == 1 + int(np.argmin(result.validation_loss[1:]))
        until = fit((recipe.with_changes(epochs=result.best_epoch), seed))[0]
        torch.testing.assert_close(result.best, until.last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("similarity", "lr"), [("dot", 1e6), ("dot", 1e25), ("cosine", 1e13)])
def test_what_only_validation_sees_to_have_diverged_has_diverged(similarity, lr):
    """One update: no training loss comes after it."""
    once = SMALL.with_changes(similarity=similarity, epochs=1, batch_size=len(TRAINING.queries))
    broken, fine = fit((once.with_changes(name="explosive", lr=lr), 0), (once, 0), validation=TRAINING)
    assert (broken.diverged_at, broken.best_epoch, fine.diverged_at, fine.best_epoch) == (1, 0, None, 1)
    assert broken.diverged and not fine.diverged and len(broken.validation_loss) == len(fine.validation_loss) == 2


def test_a_run_that_diverges_is_stopped_kept_finite_and_does_not_disturb_the_others():
    explosive = SMALL.with_changes(name="explosive", lr=1e25, epochs=2)
    recorder = Recorder()
    broken, fine = fit((explosive, 0), (SMALL, 0), observe=recorder)
    assert broken.diverged_at == 1 and broken.best_epoch == 0  # the first update overflows the second loss
    start = heads.start_heads("linear", "random", "both", DIM, 0)
    assert all(torch.equal(broken.best[name], value) for name, value in start.items())
    assert all(torch.isfinite(value).all() for value in broken.last.values())
    assert len(broken.validation_loss) == 2  # untrained, and after the epoch in which it broke
    assert_same(broken, fit((explosive, 0))[0])
    assert_same(fine, fit((SMALL, 0))[0])
    rows = recorder.frame()
    assert rows[rows["system"] == "explosive"]["step"].max() == 0 and np.isfinite(rows["value"]).all()


def test_the_observer_sees_every_epoch_every_log_step_and_the_right_shapes():
    seen = []
    fit((SMALL, 0), (SMALL, 1), observe=seen.append, log_every=3, validation=pair_vectors(40, seed=1))
    # 64 pairs in batches of 16: 4 steps an epoch, 8 in all
    assert [(s.step, s.epoch) for s in seen if s.split == "train"] == [(0, 0.0), (3, 0.75), (6, 1.5)]
    for split in ("training sample", "validation"):
        assert [(s.step, s.epoch) for s in seen if s.split == split] == [(0, 0.0), (4, 1.0), (8, 2.0)]
    for shown in seen:
        blocks = 1 if shown.split == "train" else 2  # 40 validation pairs: two blocks of 16, the rest is left out
        assert shown.query.shape == shown.document.shape == (2, blocks, BATCH, DIM)
        assert shown.scores.shape == shown.same.shape == (2, blocks, BATCH, BATCH)
        total = shown.losses["contrastive"] + SMALL.isotropy_weight * shown.losses["isotropy"]
        torch.testing.assert_close(shown.losses["total"], total)
        assert bool(shown.gradients) == (shown.split == "train")


def test_the_gradients_shown_are_those_of_the_total_loss():
    seen = []
    fit((SMALL, 0), (SMALL.with_changes(name="hot", temperature=2.0, clip_norm=1e-3), 1), observe=seen.append)
    shown = next(s for s in seen if s.split == "train" and s.step == 2)
    for r, (recipe, _) in enumerate(shown.runs):
        q, d = shown.query[r, 0].clone().requires_grad_(), shown.document[r, 0].clone().requires_grad_()
        isotropy = (losses.cosine_isotropy(q) + losses.cosine_isotropy(d)) / 2
        total = losses.info_nce(q @ d.T, recipe.temperature) + isotropy
        for side, gradient in zip(("query", "document"), torch.autograd.grad(total, [q, d]), strict=True):
            torch.testing.assert_close(shown.gradients[side][r, 0], gradient)
        assert float(shown.gradients["parameters"][r]) > 2e-3  # the norm before clipping


def test_the_same_seed_gives_the_same_history_another_seed_another_and_watching_changes_nothing():
    def history(seed: int) -> tuple[pd.DataFrame, train.TrainedRun]:
        recorder = Recorder()
        run = fit((SMALL, seed), observe=recorder)[0]
        return recorder.frame().drop(columns="seed"), run

    (rows, watched), (again, _), (other, _) = history(4), history(4), history(5)
    pd.testing.assert_frame_equal(rows, again, check_exact=True)
    assert not rows["value"].equals(other["value"])
    assert_same(watched, fit((SMALL, 4))[0], atol=0)


def test_raw_dot_grows_lengths_and_cosine_bounds_the_logit():
    # the project's claim in small: 512 pairs of random 64-d vectors, 5 epochs of 16 steps, three seeds each
    recorder = Recorder()
    recipes = [get_recipe(name).with_changes(batch_size=32, epochs=5, lr=2e-2) for name in ("asym-dot", "asym-cos")]
    training, validation = pair_vectors(512, noise=1.0, dim=64), pair_vectors(64, seed=1, noise=1.0, dim=64)
    runs = [(recipe, seed) for recipe in recipes for seed in (0, 1, 2)]
    fit(*runs, observe=recorder, log_every=8, training=training, validation=validation)
    rows = wide(recorder.frame(), "validation").set_index(["system", "seed", "epoch"])
    for seed in (0, 1, 2):
        dot, cos = rows.loc["asym-dot", seed], rows.loc["asym-cos", seed]
        for name in ("std.document", "std.query", "length.document.mean", "length.query.mean"):
            assert dot[name].iloc[-1] > 1.5 * dot[name].iloc[0] and dot[name].is_monotonic_increasing, name
        assert dot["similarity.positive.logit"].iloc[-1] > 20  # no cosine over tau = 0.05 can exceed 1/tau = 20
        assert cos["similarity.positive.logit"].abs().max() <= 20


def hard_loss(recipe, training: PairVectors, rows: torch.Tensor, negatives: torch.Tensor, parameters) -> torch.Tensor:
    """The contrastive loss of one batch, one query at a time."""
    relevant = set(zip(training.query.tolist(), training.passage.tolist(), strict=False))
    q = heads.apply_head(parameters, "query", training.queries)
    d = heads.apply_head(parameters, "document", training.documents)
    total = 0.0
    for i in rows.tolist():
        columns = [j for j in rows.tolist() + negatives[rows, : recipe.hard_negatives].flatten().tolist() if j >= 0]
        kept = [j for j in columns if (int(training.query[i]), int(training.passage[j])) not in relevant]
        logits = (q[i] @ d[[i, *kept]].T) / recipe.temperature
        total = total + torch.logsumexp(logits, 0) - logits[0]
    return total / len(rows)


def test_hard_negatives_are_columns_for_the_whole_batch_and_positives_among_them_are_masked():
    generator = np.random.default_rng(4)
    queries, passages, others = generator.integers(0, 40, 64), generator.integers(0, 30, 64), np.arange(30, 50)
    vectors = [generator.standard_normal((n, DIM))[at] for n, at in ((40, queries), (50, passages), (50, others))]
    unit = [(z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in vectors]
    training = PairVectors.of(*unit[:2], passages, queries).with_corpus(unit[2], others, np.empty((0, 2)))
    negatives = torch.from_numpy(generator.integers(0, 84, (64, 3)))  # of pairs, known positives too, and of the corpus
    negatives[5, 1] = -1
    hard = SMALL.with_changes(name="hard", hard_negatives=2, isotropy="none", isotropy_weight=0.0, epochs=1)
    seen = []
    fit((hard, 5), (hard, 6), observe=seen.append, training=training, negatives=negatives)
    first = next(shown for shown in seen if shown.split == "train" and shown.step == 0)
    assert first.scores.shape == first.same.shape == (2, 1, BATCH, BATCH)  # what an observer sees is in-batch
    for r, seed in enumerate((5, 6)):
        start = heads.start_heads("linear", "random", "both", DIM, seed)
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(1_000_003 + seed))[:BATCH]
        for value in start.values():
            value.requires_grad_()
        expected = hard_loss(hard, training, rows, negatives, start)
        assert float(first.losses["contrastive"][r]) == pytest.approx(expected.item(), rel=1e-5)
        norm = torch.stack([g.norm() for g in torch.autograd.grad(expected, list(start.values()))]).norm()
        assert float(first.gradients["parameters"][r]) == pytest.approx(float(norm), rel=1e-4)
    validation = next(shown.losses["contrastive"] for shown in seen if shown.split == "validation")
    plain = fit((hard.with_changes(hard_negatives=0), 5), training=training)[0]
    assert float(validation[0]) == pytest.approx(plain.validation_loss[0], rel=1e-6)  # in-batch only, comparable


def test_runs_with_and_without_hard_negatives_go_together_and_mine_for_themselves():
    runs = [(SMALL.with_changes(name=f"h{count}", hard_negatives=count), 1) for count in (0, 1, 3)]
    together, given = fit(*runs), fit(*runs, negatives=mine(TRAINING, 5))
    for run, result, other in zip(runs, together, given, strict=True):
        assert_same(result, fit(run)[0], atol=0)
        assert_same(result, other, atol=0)
    assert len({str(run.last["query.weight"]) for run in together}) == 3
    with pytest.raises(InputError, match=r"negatives have shape \(64, 2\), expected 64 rows of at least 3"):
        fit(*runs, negatives=mine(TRAINING, 2))


def test_the_average_of_runs_is_the_mean_of_their_parameters_best_with_best_and_last_with_last():
    runs = fit(*((WILD.with_changes(start="identity"), seed) for seed in (0, 1, 2)))
    assert any(run.best_epoch < 6 for run in runs)
    mean = train.average_runs(runs, 7)
    assert (mean.seed, mean.recipe) == (7, runs[0].recipe)
    for kind in ("best", "last"):
        for name, value in getattr(mean, kind).items():
            expected = sum(getattr(run, kind)[name].double() for run in runs) / 3
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert mean.validation_loss[1] == pytest.approx(np.mean([run.validation_loss[1] for run in runs]))
    assert mean.best_epoch == round(np.mean([run.best_epoch for run in runs]))


def test_exponents_are_averaged_and_follow_the_best_epoch():
    runs = fit(*((WILD.with_changes(start="identity", exponent_lr=0.3), seed) for seed in (0, 1)))
    assert any(not torch.equal(run.best["query.exponent"], run.last["query.exponent"]) for run in runs)
    for kind in ("best", "last"):
        expected = sum(getattr(run, kind)["query.exponent"] for run in runs) / 2
        torch.testing.assert_close(getattr(train.average_runs(runs, 7), kind)["query.exponent"], expected)


def test_a_warm_up_rises_from_nothing_and_falls_to_nothing():
    # 10 updates, floor(.25 x 10) = 2 of them rising
    factors = [train.rate_factor(0.25, 10, step) for step in range(11)]
    assert factors == [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert [train.rate_factor(0.05, 10, step) for step in (0, 5, 10)] == [1, 0.5, 0]  # no whole update rises
    assert {train.rate_factor(0.0, 10, step) for step in range(11)} == {1.0}


def test_what_has_no_mean_is_not_averaged():
    close = SMALL.with_changes(name="close", start="identity")
    for changes in ({"start": "random"}, {"head": "residual"}):  # weights that were drawn with different seeds
        with pytest.raises(InputError, match="only linear heads from the identity share a basin"):
            train.average_runs(fit(*((close.with_changes(**changes), seed) for seed in (0, 1))), 0)
    for wrong in ([], fit((close, 0), (close.with_changes(name="other"), 0))):
        with pytest.raises(InputError, match="runs of exactly one recipe"):
            train.average_runs(wrong, 0)
    with pytest.raises(InputError, match="diverged with seed 1"):
        train.average_runs(fit((close.with_changes(lr=1e25), 1)), 0)


def test_training_refuses_what_it_cannot_train():
    few, other = pair_vectors(BATCH - 1), pair_vectors(32, dim=8)
    with pytest.raises(InputError, match="recipe 'baseline' has no head, there is nothing to train"):
        fit((get_recipe("baseline"), 0))
    with pytest.raises(InputError, match="15 training pairs, expected at least batch_size = 16"):
        fit((SMALL, 0), training=few)
    with pytest.raises(InputError, match="15 validation pairs, expected at least batch_size = 16"):
        fit((SMALL, 0), validation=few)
    with pytest.raises(InputError, match="validation vectors have 8 dimensions, training 16"):
        fit((SMALL, 0), validation=other)
    with pytest.raises(InputError, match="log_every = 0, expected 1 or more"):
        fit((SMALL, 0), log_every=0)
    with pytest.raises(InputError, match="two runs named 'small' with seed 3"):
        fit((SMALL, 3), (SMALL.with_changes(lr=1.0), 3))
