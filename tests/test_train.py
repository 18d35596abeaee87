"""The training loop: R runs together are R runs alone, and one run is a plain torch loop."""

import errno
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from asymlib import heads, losses, train
from asymlib.errors import InputError
from asymlib.magnitude import Recorder, wide
from asymlib.systems import System, get_system
from tests.conftest import full_disk

DIM, BATCH = 16, 16


pytestmark = pytest.mark.usefixtures("one_thread")


def pair_vectors(
    n: int = 64, seed: int = 0, noise: float = 0.5, passages: int | None = None, dim: int = DIM
) -> train.PairVectors:
    """n unit queries near their unit document; `passages`: how many different documents there are (default n)."""
    generator = np.random.default_rng(seed)
    passage = np.arange(n) % (passages or n)
    documents = generator.standard_normal((n, dim))[passage]
    queries = documents + noise * generator.standard_normal((n, dim))
    return train.PairVectors.of(
        (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32),
        (documents / np.linalg.norm(documents, axis=1, keepdims=True)).astype(np.float32),
        passage,
    )


TRAINING, VALIDATION = pair_vectors(), pair_vectors(32, seed=1)
SMALL = System("small", similarity="dot", temperature=0.5, lr=1e-2, batch_size=BATCH, epochs=2)


def fit(*runs: tuple[System, int], observe=None, log_every: int = 1, training=TRAINING, validation=VALIDATION):
    return train.train(runs, training, validation, observe, log_every, device="cpu", progress=False)


def assert_same(a: train.TrainedRun, b: train.TrainedRun, atol: float = 1e-5) -> None:
    assert (a.system, a.seed, a.best_epoch, a.diverged_at) == (b.system, b.seed, b.best_epoch, b.diverged_at)
    assert len(a.validation_loss) == len(b.validation_loss)
    np.testing.assert_allclose(a.validation_loss, b.validation_loss, atol=atol, rtol=1e-5)
    for kind in ("best", "last"):
        mine, other = getattr(a, kind), getattr(b, kind)
        assert mine.keys() == other.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], atol=atol, rtol=1e-5)


# ---------------------------------------------------------------- together = alone

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
        assert (result.system, result.seed) == run
        assert_same(result, fit(run)[0])


def test_a_recovery_weight_of_zero_beside_another_run_leaves_no_trace():
    recorder = Recorder()
    fit((SMALL, 0), (SMALL.with_changes(name="held", recovery_weight=1.0), 0), observe=recorder)
    history = recorder.frame()
    assert set(history[history["name"] == "loss.recovery"]["system"]) == {"held"}


# ---------------------------------------------------------------- one run = a plain torch loop


def plain_loop(system: System, seed: int, batches: list[torch.Tensor], training=TRAINING) -> dict[str, torch.nn.Module]:
    """Two torch.nn.Linear, torch.optim.AdamW and clip_grad_norm_, written without asymlib's loop or losses."""
    start = heads.start_heads("linear", system.start, "both", DIM, seed)
    modules = {side: torch.nn.Linear(DIM, DIM) for side in ("query", "document")}
    for side, module in modules.items():
        module.load_state_dict({kind: start[f"{side}.{kind}"] for kind in ("weight", "bias")})
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=system.lr, weight_decay=system.weight_decay)
    norms = []
    for rows in batches:
        q, d = modules["query"](training.queries[rows]), modules["document"](training.documents[rows])
        unit_q, unit_d = torch.nn.functional.normalize(q), torch.nn.functional.normalize(d)
        scores = {
            "dot": lambda q=q, d=d: q @ d.T,
            "cosine": lambda q=unit_q, d=unit_d: q @ d.T,
            "euclidean": lambda q=q, d=d: -(torch.cdist(q[None], d[None])[0] ** 2),
        }[system.similarity]()
        passage = training.passage[rows]
        repeated = (passage[:, None] == passage[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
        logits = (scores / system.temperature).masked_fill(repeated, -math.inf)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(rows)))
        if system.isotropy == "cosine":
            n = len(rows)
            terms = [((u @ u.T) ** 2).fill_diagonal_(0).sum() / (n * (n - 1)) for u in (unit_q.clone(), unit_d.clone())]
            loss = loss + system.isotropy_weight * sum(terms) / 2
        optimizer.zero_grad()
        loss.backward()
        if system.clip_norm:
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, system.clip_norm)))
        optimizer.step()
    if system.clip_norm:
        assert min(norms) < system.clip_norm < max(norms), norms  # clipping acts on some steps and not on others
    return modules


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"similarity": "cosine", "start": "identity", "isotropy": "none"},
        {"similarity": "euclidean", "isotropy": "none"},
        {"weight_decay": 0.5, "isotropy_weight": 5.0},
        {"clip_norm": 0.7, "lr": 5e-2},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_one_run_equals_a_plain_torch_loop_with_adamw(changes):
    system = SMALL.with_changes(epochs=4, **changes)
    order = torch.Generator().manual_seed(1_000_003 + 5)  # a run's order is drawn from its seed
    batches = [rows for _ in range(4) for rows in torch.randperm(len(TRAINING.queries), generator=order).split(BATCH)]
    expected, result = plain_loop(system, 5, batches), fit((system, 5))[0]
    for side, module in expected.items():
        torch.testing.assert_close(result.last[f"{side}.weight"], module.weight.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result.last[f"{side}.bias"], module.bias.detach(), atol=1e-5, rtol=1e-5)
    # and the validation loss is the mean over blocks of BATCH in the order given
    q, d = expected["query"](VALIDATION.queries), expected["document"](VALIDATION.documents)
    blocks = [
        losses.info_nce(losses.score_matrix(a, b, system.similarity), system.temperature)
        for a, b in zip(q.split(BATCH), d.split(BATCH), strict=True)
    ]
    assert result.validation_loss[-1] == pytest.approx(float(torch.stack(blocks).detach().mean()), rel=1e-4, abs=1e-6)


def test_the_same_positive_twice_in_a_batch_is_masked_as_in_the_plain_loop():
    repeated = pair_vectors(passages=5)  # 64 queries for 5 documents: every batch of 16 repeats each about three times
    order = torch.Generator().manual_seed(1_000_003 + 5)
    batches = [rows for _ in range(2) for rows in torch.randperm(64, generator=order).split(BATCH)]
    masked = fit((SMALL, 5), training=repeated)[0].last
    torch.testing.assert_close(masked["query.weight"], plain_loop(SMALL, 5, batches, repeated)["query"].weight.detach())
    distinct = train.PairVectors(repeated.queries, repeated.documents, torch.arange(64))
    unmasked = fit((SMALL, 5), training=distinct)[0].last
    assert float((masked["query.weight"] - unmasked["query.weight"]).abs().max()) > 1e-3


# ---------------------------------------------------------------- what decides about a run acts on that run alone

WILD = SMALL.with_changes(name="wild", lr=1.0, epochs=6)  # validation gets worse after some epoch
STEADY = SMALL.with_changes(name="steady", lr=1e-3, epochs=6)


def test_early_stopping_stops_the_run_whose_validation_loss_rises_and_no_other():
    impatient = WILD.with_changes(name="impatient", patience=2)
    recorder = Recorder()
    stopped, steady, wild = fit((impatient, 1), (STEADY, 1), (WILD, 1), observe=recorder)
    end = len(stopped.validation_loss) - 1
    assert end == stopped.best_epoch + 2 < 6  # two epochs without a lower validation loss
    assert min(stopped.validation_loss[1:]) == stopped.validation_loss[stopped.best_epoch]
    assert len(steady.validation_loss) == len(wild.validation_loss) == 7
    for together, alone in ((stopped, (impatient, 1)), (steady, (STEADY, 1)), (wild, (WILD, 1))):
        assert_same(together, fit(alone)[0])
    assert_same(fit((impatient.with_changes(epochs=end), 1))[0], train.TrainedRun(
        impatient.with_changes(epochs=end), 1, stopped.best, stopped.last, stopped.best_epoch, stopped.validation_loss,
    ))  # fmt: skip
    rows = recorder.frame()
    assert rows[rows["system"] == "impatient"]["epoch"].max() == end
    assert rows[rows["system"] == "wild"]["epoch"].max() == 6
    assert stopped.diverged_at is None


def test_the_best_epoch_is_the_lowest_validation_loss_and_its_parameters_are_kept():
    runs = [(WILD.with_changes(name=f"w{lr}", lr=lr, epochs=5), 0) for lr in (1.0, 0.3, 1e-3)]
    results = fit(*runs)
    assert len({result.best_epoch for result in results}) > 1
    up_and_down = results[1].validation_loss[results[1].best_epoch :]
    assert min(np.diff(up_and_down)) < 0  # it falls again after its best epoch, though not as low
    for (system, seed), result in zip(runs, results, strict=True):
        assert result.best_epoch == 1 + int(np.argmin(result.validation_loss[1:]))
        until = fit((system.with_changes(epochs=result.best_epoch), seed))[0]
        for name, value in until.last.items():
            torch.testing.assert_close(result.best[name], value, atol=1e-5, rtol=1e-5)


def test_a_run_that_diverges_is_stopped_kept_finite_and_does_not_disturb_the_others():
    explosive = SMALL.with_changes(name="explosive", lr=1e25)
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
    assert rows[rows["system"] == "explosive"]["step"].max() == 0
    assert np.isfinite(rows["value"]).all()


def test_all_runs_stopped_ends_the_training():
    result = fit((WILD.with_changes(lr=1e25, epochs=50), 0))[0]
    assert len(result.validation_loss) == 2


# ---------------------------------------------------------------- what an observer sees


def test_the_observer_sees_every_epoch_every_log_step_and_the_right_shapes():
    seen = []
    fit((SMALL, 0), (SMALL, 1), observe=seen.append, log_every=3, validation=pair_vectors(40, seed=1))
    train_steps = [s.step for s in seen if s.split == "train"]
    assert train_steps == [0, 3, 6]  # 64 pairs in batches of 16: 4 steps an epoch, 8 in all
    assert [(s.step, s.epoch) for s in seen if s.split == "validation"] == [(0, 0.0), (4, 1.0), (8, 2.0)]
    assert [s.epoch for s in seen if s.split == "train"] == [0.0, 0.75, 1.5]
    for shown in seen:
        blocks = 1 if shown.split == "train" else 2  # 40 validation pairs: two blocks of 16, the rest is left out
        assert shown.query.shape == shown.document.shape == (2, blocks, BATCH, DIM)
        assert shown.scores.shape == shown.same.shape == (2, blocks, BATCH, BATCH)
        assert all(value.shape == (2,) for value in shown.losses.values())
        total = shown.losses["contrastive"] + SMALL.isotropy_weight * shown.losses["isotropy"]
        torch.testing.assert_close(shown.losses["total"], total)
        assert bool(shown.gradients) == (shown.split == "train")


def test_validation_takes_whole_blocks_in_the_order_given():
    forty = pair_vectors(40, seed=1)
    first = train.PairVectors(forty.queries[:32], forty.documents[:32], forty.passage[:32])
    assert fit((SMALL, 0), validation=forty)[0].validation_loss == fit((SMALL, 0), validation=first)[0].validation_loss


def test_the_gradients_shown_are_those_of_the_total_loss():
    seen = []
    fit((SMALL, 0), (SMALL.with_changes(name="hot", temperature=2.0, clip_norm=1e-3), 1), observe=seen.append)
    shown = next(s for s in seen if s.split == "train" and s.step == 2)
    for r, (system, _) in enumerate(shown.runs):
        q, d = shown.query[r, 0].clone().requires_grad_(), shown.document[r, 0].clone().requires_grad_()
        total = (
            losses.info_nce(q @ d.T, system.temperature) + (losses.cosine_isotropy(q) + losses.cosine_isotropy(d)) / 2
        )
        for side, gradient in zip(("query", "document"), torch.autograd.grad(total, [q, d]), strict=True):
            torch.testing.assert_close(shown.gradients[side][r, 0], gradient)
        # |dL/dW|^2 for z = W x + b: dL/dW = g^T x; the norm is the one before clipping
        assert float(shown.gradients["parameters"][r]) > 2e-3


def test_the_same_seed_gives_the_same_history_and_another_seed_another():
    def history(seed: int) -> pd.DataFrame:
        recorder = Recorder()
        fit((SMALL, seed), observe=recorder)
        return recorder.frame().drop(columns="seed")

    pd.testing.assert_frame_equal(history(4), history(4), check_exact=True)
    assert not history(4)["value"].equals(history(5)["value"])


def test_an_observer_does_not_change_the_training():
    watched, unwatched = fit((SMALL, 0), observe=Recorder())[0], fit((SMALL, 0))[0]
    assert all(torch.equal(watched.last[name], value) for name, value in unwatched.last.items())


# ---------------------------------------------------------------- the project's claim, in small


@pytest.fixture(scope="module")
def small_case() -> pd.DataFrame:
    """asym-dot and asym-cos on 512 pairs of random 64-d vectors, 5 epochs of 16 steps, three seeds each."""
    recorder = Recorder()
    systems = [get_system(name).with_changes(batch_size=32, epochs=5, lr=2e-2) for name in ("asym-dot", "asym-cos")]
    training, validation = pair_vectors(512, noise=1.0, dim=64), pair_vectors(64, seed=1, noise=1.0, dim=64)
    fit(*[(system, seed) for system in systems for seed in (0, 1, 2)], observe=recorder, log_every=8,
        training=training, validation=validation)  # fmt: skip
    return recorder.frame()


def test_raw_dot_grows_lengths_and_cosine_bounds_the_logit(small_case):
    rows = wide(small_case, "validation").set_index(["system", "seed", "epoch"])
    for seed in (0, 1, 2):
        dot, cos = rows.loc["asym-dot", seed], rows.loc["asym-cos", seed]
        for name in ("std.document", "std.query", "length.document.mean", "length.query.mean"):
            assert dot[name].iloc[-1] > 1.5 * dot[name].iloc[0], name
            assert dot[name].is_monotonic_increasing, name
        assert dot["similarity.positive.logit"].iloc[-1] > 20  # no cosine over tau = 0.05 can exceed 1/tau = 20
        assert cos["similarity.positive.logit"].abs().max() <= 20


def test_linear_heads_grow_under_cosine_too_although_the_loss_cannot_see_it(small_case):
    share = wide(small_case, "train").groupby("system")[
        ["gradient.query.radial_share", "gradient.document.radial_share"]
    ]
    assert (share.max().loc["asym-cos"] < 1e-6).all()  # the gradient never points along an embedding ...
    assert (share.mean().loc["asym-dot"] > 0.005).all()
    length = wide(small_case, "validation").set_index(["system", "epoch"])["length.document.mean"]
    assert (length["asym-cos", 5.0] > 1.3 * length["asym-cos", 0.0].to_numpy()).all()  # ... and they still grow


# ---------------------------------------------------------------- which documents are no negatives, and the mined ones


def with_queries(queries: list[int], passages: list[int], seed: int = 0) -> train.PairVectors:
    """A pair for each entry; equal numbers have equal unit vectors, a passage lies near the first query that has it."""
    generator = np.random.default_rng(seed)
    q, d = (generator.standard_normal((max(part) + 1, DIM))[part] for part in (queries, passages))
    d = d + q[[passages.index(passage) for passage in passages]]
    unit = [(z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (q, d)]
    return train.PairVectors.of(*unit, np.array(passages), np.array(queries))


def test_a_document_of_the_same_query_or_known_from_a_pair_outside_the_batch_is_no_negative():
    #        pair:  0  1  2  3  4
    pairs = with_queries([0, 0, 1, 2, 2], [0, 1, 2, 2, 0])
    mask = pairs.positive(torch.arange(4), torch.arange(4)).int().tolist()
    assert mask == [
        [1, 1, 0, 0],  # query 0 asks for passages 0 and 1
        [1, 1, 0, 0],
        [0, 0, 1, 1],  # query 1 asks for passage 2 alone; pair 3 has the same passage
        [1, 0, 1, 1],  # query 2 asks for passage 2, and in pair 4, outside these four, for passage 0
    ]
    assert torch.equal(pairs.first(4).positive(torch.arange(4), torch.arange(4)).int(), torch.tensor(mask))
    alone = train.PairVectors.of(pairs.queries.numpy(), pairs.documents.numpy(), pairs.passage.numpy())
    assert alone.positive(torch.arange(4), torch.arange(4)).int().tolist() == [
        [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]  # fmt: skip


def test_queries_that_all_differ_change_nothing_and_queries_that_repeat_do():
    numbered = train.PairVectors.of(*(x.numpy() for x in (TRAINING.queries, TRAINING.documents, TRAINING.passage)),
                                    np.arange(64))  # fmt: skip
    plain, same = fit((SMALL, 5))[0], fit((SMALL, 5), training=numbered)[0]
    assert all(torch.equal(plain.last[name], same.last[name]) for name in plain.last)
    repeated = train.PairVectors.of(*(x.numpy() for x in (TRAINING.queries, TRAINING.documents, TRAINING.passage)),
                                    np.arange(64) % 8)  # fmt: skip
    assert (
        float((fit((SMALL, 5), training=repeated)[0].last["query.weight"] - plain.last["query.weight"]).abs().max())
        > 1e-3
    )


@pytest.mark.parametrize("margin", [math.inf, 1.0, 0.95, 0.5])
def test_mining_is_the_slow_definition(margin):
    generator = np.random.default_rng(3)
    pairs = with_queries(generator.integers(0, 30, 60).tolist(), generator.integers(0, 25, 60).tolist())
    found = train.mine(pairs, 6, margin, chunk=7)
    relevant = set(zip(pairs.query.tolist(), pairs.passage.tolist(), strict=True))
    cosine = pairs.queries.double() @ pairs.documents.double().T
    shorter = 0
    for i in range(60):
        bound, allowed = cosine[i, i] + (margin - 1) * abs(cosine[i, i]), {}
        for j in range(60):
            passage = int(pairs.passage[j])
            if (int(pairs.query[i]), passage) not in relevant and cosine[i, j] <= bound:
                allowed[passage] = float(cosine[i, j])
        expected = sorted(allowed, key=allowed.get, reverse=True)[:6]
        shorter += len(expected) < 6
        got = [int(pairs.passage[j]) for j in found[i] if j >= 0]
        assert got == expected and (found[i, len(expected) :] == -1).all()
    assert (
        (shorter == 0) if margin == math.inf else (0 < shorter < 60)
    )  # some queries have fewer candidates than asked for, and some have enough


def test_mining_in_a_corpus_takes_documents_of_no_pair_and_leaves_out_what_is_known_to_be_positive():
    pairs = with_queries([0, 1, 2], [0, 1, 2])
    near = pairs.queries.numpy() + 0.01  # passages 3, 4, 5: each next to one query
    corpus = pairs.with_corpus(near, np.array([3, 4, 5]), np.array([[1, 4]]))
    found = train.mine(corpus, 1, math.inf)[:, 0].tolist()
    assert (found[0], found[2]) == (3, 5) and found[1] != 4  # rows 3, 4, 5 of the documents; (1, 4) is known
    trusted = train.mine(corpus, 1)[:, 0].tolist()
    assert trusted[0] != 3 and trusted[2] != 5  # above the positive: too near to be a negative for certain
    assert corpus.positive(torch.arange(3), torch.tensor([3, 4, 5])).nonzero().tolist() == [[1, 1]]
    negatives = torch.tensor([[3], [4], [5]]).repeat(6, 1)[:16]
    many = (
        with_queries([0, 1, 2] * 6, [0, 1, 2] * 6).first(16).with_corpus(near, np.array([3, 4, 5]), np.array([[1, 4]]))
    )
    hard = SMALL.with_changes(name="hard", hard_negatives=1)
    with_them = train.train([(hard, 0)], many, VALIDATION, device="cpu", progress=False, negatives=negatives)[0]
    assert (
        float(
            (with_them.last["document.weight"] - fit((SMALL, 0), training=many)[0].last["document.weight"]).abs().max()
        )
        > 1e-3
    )
    with pytest.raises(InputError, match="expected query numbers and 3 documents"):
        TRAINING.with_corpus(near, np.array([3, 4, 5]), np.empty((0, 2)))


def test_mining_refuses_counts_and_margins_that_mean_nothing():
    for count, margin in ((0, 0.95), (1, 0.0), (1, math.nan)):
        with pytest.raises(InputError, match="expected at least 1 and a share above 0"):
            train.mine(TRAINING, count, margin)


def hard_loss(
    system: System, training: train.PairVectors, rows: torch.Tensor, negatives: torch.Tensor, z
) -> torch.Tensor:
    """The contrastive loss of one batch, one query at a time."""
    relevant = set(zip(training.query.tolist(), training.passage.tolist(), strict=True))
    q, d = (z(side, x) for side, x in (("query", training.queries), ("document", training.documents)))
    total = 0.0
    for i in rows.tolist():
        columns = [j for j in rows.tolist() + negatives[rows, : system.hard_negatives].flatten().tolist() if j >= 0]
        kept = [j for j in columns if (int(training.query[i]), int(training.passage[j])) not in relevant]
        logits = (q[i] @ d[[i, *kept]].T) / system.temperature
        total = total + torch.logsumexp(logits, 0) - logits[0]
    return total / len(rows)


def test_hard_negatives_are_columns_for_the_whole_batch_and_positives_among_them_are_masked():
    generator = np.random.default_rng(4)
    training = with_queries(generator.integers(0, 40, 64).tolist(), generator.integers(0, 30, 64).tolist())
    negatives = train.mine(training, 3)
    negatives[5, 1] = -1
    hard = SMALL.with_changes(name="hard", hard_negatives=2, isotropy="none", isotropy_weight=0.0, epochs=1)
    seen = []
    train.train([(hard, 5), (hard, 6)], training, VALIDATION, seen.append, 1, "cpu", False, negatives)
    first = next(shown for shown in seen if shown.split == "train" and shown.step == 0)
    assert first.scores.shape == first.same.shape == (2, 1, BATCH, BATCH)  # what an observer sees is in-batch
    for r, seed in enumerate((5, 6)):
        start = heads.start_heads("linear", "random", "both", DIM, seed)
        rows = torch.randperm(64, generator=torch.Generator().manual_seed(1_000_003 + seed))[:BATCH]
        for name in start:
            start[name].requires_grad_()
        expected = hard_loss(hard, training, rows, negatives, lambda side, x, p=start: heads.apply_head(p, side, x))
        assert float(first.losses["contrastive"][r]) == pytest.approx(expected.item(), rel=1e-5)
        norm = torch.stack([g.norm() for g in torch.autograd.grad(expected, list(start.values()))]).norm()
        assert float(first.gradients["parameters"][r]) == pytest.approx(float(norm), rel=1e-4)
    validation = [shown.losses["contrastive"] for shown in seen if shown.split == "validation"]
    plain = fit((hard.with_changes(hard_negatives=0), 5), training=training)[0]
    assert float(validation[0][0]) == pytest.approx(plain.validation_loss[0], rel=1e-6)  # in-batch only, comparable


def test_runs_with_and_without_hard_negatives_go_together_and_mine_for_themselves():
    runs = [
        (SMALL, 1),
        (SMALL.with_changes(name="h1", hard_negatives=1), 1),
        (SMALL.with_changes(name="h3", hard_negatives=3), 1),
    ]
    together = fit(*runs)
    for run, result in zip(runs, together, strict=True):
        assert_same(result, fit(run)[0], atol=0)
    given = train.train(runs, TRAINING, VALIDATION, device="cpu", progress=False, negatives=train.mine(TRAINING, 5))
    for mine, other in zip(together, given, strict=True):
        assert_same(mine, other, atol=0)
    assert len({str(run.last["query.weight"]) for run in together}) == 3
    with pytest.raises(InputError, match=r"negatives have shape \(64, 2\), expected 64 rows of at least 3"):
        train.train(runs, TRAINING, VALIDATION, device="cpu", progress=False, negatives=train.mine(TRAINING, 2))


# ---------------------------------------------------------------- averaged weights

CLOSE = SMALL.with_changes(name="close", start="identity", similarity="cosine", epochs=3)


def test_the_average_of_runs_is_the_mean_of_their_parameters_best_with_best_and_last_with_last():
    runs = fit(*((WILD.with_changes(start="identity"), seed) for seed in (0, 1, 2)))
    assert any(run.best_epoch < 6 for run in runs)
    mean = train.average_runs(runs, 7)
    assert (mean.seed, mean.system) == (7, runs[0].system)
    for kind in ("best", "last"):
        for name, value in getattr(mean, kind).items():
            expected = sum(getattr(run, kind)[name].double() for run in runs) / 3
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    assert mean.validation_loss[1] == pytest.approx(np.mean([run.validation_loss[1] for run in runs]))
    assert mean.best_epoch == round(np.mean([run.best_epoch for run in runs]))


@pytest.mark.parametrize("changes", [{"start": "random"}, {"head": "residual"}])
def test_weights_that_were_drawn_with_different_seeds_are_not_averaged(changes):
    runs = fit(*((CLOSE.with_changes(**changes), seed) for seed in (0, 1)))
    with pytest.raises(InputError, match="only linear heads from the identity share a basin"):
        train.average_runs(runs, 0)


def test_runs_of_two_systems_and_runs_that_diverged_are_not_averaged():
    with pytest.raises(InputError, match="runs of exactly one system"):
        train.average_runs(fit((CLOSE, 0), (CLOSE.with_changes(name="other"), 0)), 0)
    with pytest.raises(InputError, match="runs of exactly one system"):
        train.average_runs([], 0)
    with pytest.raises(InputError, match="diverged with seed 1"):
        train.average_runs(fit((CLOSE.with_changes(similarity="dot", lr=1e25), 1)), 0)


# ---------------------------------------------------------------- refused inputs


def arrays(n: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.ones((n, 3), np.float32), np.ones((n, 3), np.float32), np.arange(n)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("side", "name"), [(0, "queries"), (1, "documents")])
def test_vectors_that_are_not_finite_are_refused_naming_side_and_row(side, name, value):
    given = arrays()
    given[side][2, 1] = value
    with pytest.raises(InputError, match=rf"pairs: {name} row 2 is NaN, infinite or zero \(1 such rows\)"):
        train.PairVectors.of(*given)


def test_zero_vectors_are_refused_naming_the_first_and_their_number():
    given = arrays()
    given[1][[1, 3]] = 0
    with pytest.raises(InputError, match=r"pairs: documents row 1 is NaN, infinite or zero \(2 such rows\)"):
        train.PairVectors.of(*given)


@pytest.mark.parametrize(
    "given",
    [
        (np.ones((4, 3)), np.ones((4, 2)), np.arange(4)),
        (np.ones((4, 3)), np.ones((5, 3)), np.arange(4)),
        (np.ones((4, 3)), np.ones((4, 3)), np.arange(3)),
        (np.ones(4), np.ones(4), np.arange(4)),
    ],
)
def test_shapes_that_disagree_are_refused(given):
    with pytest.raises(InputError, match=r"expected two equal \(N, D\) shapes"):
        train.PairVectors.of(*given)


@pytest.mark.parametrize("query", [np.arange(3), np.array([0, 1, 2, -1]), np.array([0, 1, 2, 2**31])])
def test_query_numbers_that_do_not_fit_are_refused(query):
    with pytest.raises(InputError, match=r"pairs: expected 4 query numbers from 0 to 2147483647"):
        train.PairVectors.of(*arrays(), query)


def test_training_refuses_what_it_cannot_train():
    few, other = pair_vectors(BATCH - 1), train.PairVectors(torch.ones(32, 8), torch.ones(32, 8), torch.arange(32))
    with pytest.raises(InputError, match="system 'baseline' has no head, there is nothing to train"):
        fit((get_system("baseline"), 0))
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


# ---------------------------------------------------------------- saved and read back


@pytest.fixture
def finished() -> list[train.TrainedRun]:
    return fit((SMALL, 0), (SMALL, 7))


def test_runs_survive_being_saved_and_loaded(tmp_path, finished):
    train.save_runs(tmp_path / "small", finished, encoder="abc", pairs=64)
    loaded, config = train.load_runs(tmp_path / "small")
    assert config["encoder"] == "abc" and config["pairs"] == 64 and config["system"] == SMALL.to_dict()
    for mine, other in zip(finished, loaded, strict=True):
        assert_same(mine, other, atol=0)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["config.json", "heads.safetensors"]


def test_runs_of_two_systems_are_not_saved_as_one(tmp_path):
    runs = fit((SMALL, 0), (STEADY, 0))
    for wrong in (runs, []):
        with pytest.raises(InputError, match="expected runs of exactly one system"):
            train.save_runs(tmp_path, wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_altered_or_missing_heads_file_is_refused(tmp_path, finished):
    train.save_runs(tmp_path, finished)
    path = tmp_path / "heads.safetensors"
    whole = bytearray(path.read_bytes())
    for altered in (
        whole[:-1],
        whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        whole[:-7] + b"\0" + whole[-6:],
        b"",
    ):
        path.write_bytes(altered)
        with pytest.raises(InputError, match=r"heads\.safetensors: changed since it was written"):
            train.load_runs(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"heads\.safetensors: no such file"):
        train.load_runs(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("sha256"), "field 'sha256' is missing"),
        (lambda config: config.pop("system"), "field 'system' is missing"),
        (lambda config: config["system"].update(learning_rate=1), "unknown field learning_rate"),
        (lambda config: config["runs"][0].update(seed=5), "no parameters for seed 5 that config.json names"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, finished, change, message):
    train.save_runs(tmp_path, finished)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        train.load_runs(tmp_path)


def test_a_folder_without_config_is_not_a_finished_run(tmp_path, finished):
    train.save_runs(tmp_path, finished)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        train.load_runs(tmp_path)


def test_a_full_disk_while_saving_leaves_the_earlier_runs_whole(tmp_path, finished, monkeypatch):
    train.save_runs(tmp_path, finished[:1])
    with monkeypatch.context() as patched:
        full_disk(patched)
        with pytest.raises(InputError, match=r"heads\.safetensors: no space left on the disk") as caught:
            train.save_runs(tmp_path, finished)
        assert caught.value.__cause__.errno == errno.ENOSPC
    assert [run.seed for run in train.load_runs(tmp_path)[0]] == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "heads.safetensors"]


def test_ctrl_c_between_the_two_files_is_noticed_on_reading(tmp_path, finished, monkeypatch):
    train.save_runs(tmp_path, finished[:1])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.save_runs(tmp_path, finished)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "heads.safetensors"]
    with pytest.raises(InputError, match="changed since it was written"):  # new heads beside the old config
        train.load_runs(tmp_path)
    train.save_runs(tmp_path, finished)
    assert len(train.load_runs(tmp_path)[0]) == 2
