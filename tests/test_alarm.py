"""The alarm: the case's own failure, rule by rule, over histories, and in a plain torch loop."""

import math

import pandas as pd
import pytest
import torch

from asymlib import losses, magnitude
from asymlib.alarm import Alarm, Limits, check, check_history, rules_in_training
from asymlib.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def row(logit: float, query: float, document: float, **more: float) -> pd.Series:
    return pd.Series(
        {"similarity.positive.dot": logit, "length.query.mean": query, "length.document.mean": document, **more}
    )


def long(rows: list[pd.Series], system: str = "x", seed: int = 0, split: str = "validation") -> pd.DataFrame:
    """A history from one row of statistics an epoch, epochs 0, 1, 2, ..."""
    return pd.DataFrame(
        [(system, seed, 10 * epoch, float(epoch), split, name, value)
         for epoch, values in enumerate(rows) for name, value in values.items()],
        columns=magnitude.HISTORY_COLUMNS,
    )  # fmt: skip


def test_the_alarm_raises_the_cases_own_failure():
    table = magnitude.case_arithmetic().set_index("epoch")
    rows = {
        epoch: row(r["positive_logit"], r["query_length"], r["document_length"], epoch=float(epoch),
                   **{"std.query": s["std.query"], "std.document": s["std.document"]})
        for (epoch, r), (_, s) in zip(table.iterrows(), magnitude.CASE_LOG.iterrows(), strict=True)
    }  # fmt: skip
    found = {finding.rule: finding for finding in check(rows[1], rows[3], rows[2])}
    assert set(found) == {"std-query-growing", "std-document-growing", "length-without-angle"}
    assert found["std-query-growing"].value == pytest.approx(0.146 / 0.067)
    assert found["length-without-angle"].value == pytest.approx(math.sqrt(0.146 / 0.109 * 0.129 / 0.096))
    assert all(finding.epoch == 3.0 for finding in found.values())


# ---------------------------------------------------------------- the alarm, rule by rule

HEALTHY = row(10, 1, 1, epoch=1.0, **{
    "similarity.positive.cosine": 0.7, "std.query": 0.05, "std.document": 0.05, "accuracy": 0.95, "loss.contrastive": 0.3,
})  # fmt: skip


def rules(lowest_loss: float | None = None, halfway: pd.Series | None = None, limits=None, **now: float) -> set[str]:
    changed = pd.Series({**HEALTHY, **{name.replace("__", "."): value for name, value in now.items()}})
    return {finding.rule for finding in check(HEALTHY, changed, halfway, lowest_loss, limits)}


def test_a_healthy_run_raises_nothing():
    assert rules(lowest_loss=0.3) == set()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"similarity__positive__cosine": 0.49}, {"positive-cosine"}),
        ({"similarity__positive__cosine": 0.5}, set()),
        ({"similarity__positive__cosine": 1.0 + 1e-7}, set()),  # float32 rounding is no finding
        ({"similarity__positive__cosine": 1.01}, {"positive-cosine"}),
        ({"similarity__positive__cosine": math.nan}, {"positive-cosine"}),
        ({"std__query": 0.0751}, {"std-query-growing"}),
        ({"std__query": 0.0749}, set()),
        ({"std__document": 0.0751}, {"std-document-growing"}),
        ({"std__document": 0.01}, set()),
        ({"accuracy": 0.89}, {"accuracy"}),
        ({"accuracy": 0.9}, set()),
        # lengths x 1.3 each, logit x 1.69: all of it length
        ({"length__query__mean": 1.3, "length__document__mean": 1.3, "similarity__positive__dot": 16.9}, {"length-without-angle"}),
        # the same lengths, logit x 3: log 1.69/log 3 = 48 % length, the angle moves too
        ({"length__query__mean": 1.3, "length__document__mean": 1.3, "similarity__positive__dot": 30.0}, set()),
        # lengths x 1.2: within the limit of 1.25
        ({"length__query__mean": 1.2, "length__document__mean": 1.2, "similarity__positive__dot": 14.4}, set()),
        # one side alone: geometric mean of 1.7 and 1 is 1.30
        ({"length__query__mean": 1.7, "similarity__positive__dot": 17.0}, {"length-without-angle"}),
        # lengths grow and the angle falls by more, so that the logit falls: the worst case, not a silent one
        ({"length__query__mean": 2.0, "length__document__mean": 2.0, "similarity__positive__dot": 8.0}, {"length-without-angle"}),
        ({"length__query__mean": 0.5, "length__document__mean": 0.5, "similarity__positive__dot": 2.5}, set()),
    ],
)  # fmt: skip
def test_each_rule_is_raised_beyond_its_limit_and_not_within(now, expected):
    assert rules(**now) == expected


def test_a_loss_above_its_lowest_is_raised():
    assert rules(lowest_loss=0.29) == {"loss-rising"}  # 0.3 > 0.29 x 1.02
    assert rules(lowest_loss=0.295) == set()  # 0.3 < 0.295 x 1.02
    assert rules(lowest_loss=None) == set()


def test_limits_can_be_changed_and_missing_statistics_skip_their_rule():
    assert rules(similarity__positive__cosine=0.3, limits=Limits(cosine_low=0.2)) == set()
    assert check(pd.Series(dtype=float), pd.Series({"epoch": 3.0})) == []


def test_growth_without_a_measurable_start_is_not_a_finding():
    nothing = row(0, 0, 0, **{"std.query": 0.0, "std.document": 0.0})
    assert check(nothing, HEALTHY) == []


def test_length_growth_is_measured_from_half_way_and_std_from_the_start():
    halfway = pd.Series({**HEALTHY, "length.query.mean": 1.25, "length.document.mean": 1.25})
    now = {
        "length__query__mean": 1.3,
        "length__document__mean": 1.3,
        "similarity__positive__dot": 16.9,
        "std__query": 0.08,
    }
    assert rules(halfway=halfway, **now) == {"std-query-growing"}


def test_a_message_names_what_was_seen_and_what_was_expected():
    changed = pd.Series({**HEALTHY, "std.document": 0.1})
    (finding,) = check(HEALTHY, changed)
    assert finding.message == "document std grew 2.00 times to 0.1" and finding.expected == "at most 1.5 times"


def test_a_history_gives_one_row_a_run_epoch_and_rule():
    names = ["similarity.positive.cosine", "std.query", "loss.contrastive"]
    good = long([pd.Series(values, names) for values in ((0.6, 0.05, 0.5), (0.6, 0.05, 0.4), (0.6, 0.06, 0.3))], seed=1)
    bad = long([pd.Series(values, names) for values in ((0.4, 0.05, 0.5), (0.6, 0.08, 0.4), (0.6, 0.06, 0.5))], seed=2)
    other = long([pd.Series((0.0, 1.0, 9.0), names)], seed=3, split="train")
    found = check_history(pd.concat([good, bad, other]))
    assert found[["seed", "epoch", "rule"]].to_numpy().tolist() == [
        [2, 0.0, "positive-cosine"], [2, 1.0, "std-query-growing"], [2, 2.0, "loss-rising"],
    ]  # fmt: skip
    assert check_history(good).columns.tolist() == found.columns.tolist() and check_history(good).empty


def test_a_history_judges_length_from_the_row_half_way():
    # epochs 0 to 4: lengths double at first together with the angle, then the angle stands still while they grow 1.3 times
    turned = [row(1, 1, 1), row(16, 2, 2), row(16, 2, 2), row(16, 2, 2), row(16 * 1.69, 2.6, 2.6)]
    held = [row(1, 1, 1), row(4, 2, 2), row(4, 2, 2), row(4, 2, 2), row(4, 2, 2)]
    history = pd.concat([long(rows, seed=seed) for seed, rows in enumerate((turned, held))])
    losses_too = long([pd.Series({"loss.contrastive": 1.0})] * 5)
    history = pd.concat([history, losses_too, losses_too.assign(seed=1)])
    found = check_history(history)
    # seed 0: at epoch 4 against epoch 2; seed 1: at epoch 1 against epoch 0, and no more once half-way is past the growth
    assert found[["seed", "epoch", "rule"]].to_numpy().tolist() == [
        [0, 4.0, "length-without-angle"], [1, 1.0, "length-without-angle"],
    ]  # fmt: skip


# ---------------------------------------------------------------- the alarm in any training loop


def plain_training(similarity: str, alarm: Alarm | None, steps: int = 120) -> tuple[list, torch.Tensor]:
    """Two torch.nn.Linear under InfoNCE, as a team would write it; returns the warnings and the final weights."""
    torch.manual_seed(0)
    heads = torch.nn.ModuleList([torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)])
    optimizer = torch.optim.AdamW(heads.parameters(), lr=2e-2)
    pairs, found = losses.normalize(draw(2, 256, 64, seed=6)), []
    for step in range(steps):
        rows = torch.arange(32) + 32 * (step % 8)
        q, d = heads[0](pairs[0, rows]), heads[1](losses.normalize(pairs[0, rows] + pairs[1, rows]))
        if similarity == "cosine":
            scores = losses.normalize(q) @ losses.normalize(d).T
        else:
            scores = q @ d.T
        loss = torch.nn.functional.cross_entropy(scores / 0.05, torch.arange(32))
        if alarm:
            found += [(step, warning) for warning in alarm(q, d)]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found, heads[0].weight.detach()


def test_the_alarm_speaks_in_a_plain_torch_loop_on_raw_dot_and_does_not_touch_it():
    found, watched = plain_training("dot", Alarm(temperature=0.05))
    by_rule = {warning.rule: step for step, warning in found}
    assert {"std-query-growing", "std-document-growing"} <= set(by_rule)
    assert len(by_rule) == len(found)  # each rule speaks once
    assert all(warning.epoch == step for step, warning in found)
    assert by_rule["std-document-growing"] > 0
    assert torch.equal(watched, plain_training("dot", None)[1])


def test_the_alarm_is_silent_for_embeddings_that_only_turn():
    alarm = Alarm(temperature=0.05)
    d = losses.normalize(draw(16, 32, seed=7))
    for mix in (0.6, 0.4, 0.2, 0.1):
        assert alarm(losses.normalize(d + mix * losses.normalize(draw(16, 32, seed=8))), d) == []


def test_the_alarm_hears_pure_growth_and_says_so_once():
    alarm = Alarm(temperature=0.05)
    z = losses.normalize(draw(16, 32, seed=9))
    spoken = [{warning.rule for warning in alarm(z * 1.2**step, z * 1.2**step)} for step in range(12)]
    assert set.union(*spoken) == {"std-query-growing", "std-document-growing", "length-without-angle"}
    assert sum(len(rules) for rules in spoken) == 3
    # std is 1.2^3 = 1.73 times its start at step 3; lengths are 1.2^(3 - 1) = 1.44 times those half-way at step 3
    assert spoken[3] == {"std-query-growing", "std-document-growing", "length-without-angle"}


def test_hold_waits_for_calls_in_a_row_and_a_rule_that_comes_back_is_not_repeated():
    z = losses.normalize(draw(16, 32, seed=10))
    calls = [z, -z, z, -z, -z, -z, z, -z, -z]  # positive cosine 1 or -1
    spoken = []
    alarm = Alarm(temperature=0.05, hold=2)
    for q in calls:
        spoken.append([warning.rule for warning in alarm(q, z) if warning.rule == "positive-cosine"])
    assert spoken == [[], [], [], [], ["positive-cosine"], [], [], [], []]


def test_the_alarm_takes_half_precision_and_embeddings_that_carry_gradients():
    alarm = Alarm(temperature=0.05, similarity="cosine")
    z = losses.normalize(draw(8, 16, seed=11)).bfloat16().requires_grad_()
    assert alarm(z, z) == []
    assert z.grad is None


@pytest.mark.parametrize(("q", "d"), [((4, 3), (5, 3)), ((4,), (4,)), ((1, 3), (1, 3)), ((2, 4, 3), (2, 4, 3))])
def test_the_alarm_refuses_shapes_that_are_no_batch_of_pairs(q, d):
    with pytest.raises(InputError, match=r"expected two equal \(B, D\) with B >= 2"):
        Alarm(temperature=0.05)(torch.ones(q), torch.ones(d))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": math.nan}, {"temperature": 0.05, "hold": 0}])
def test_the_alarm_refuses_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError, match="expected above 0 and 1 or more"):
        Alarm(**wrong)


def test_rules_in_training_are_those_that_most_seeds_raise_and_no_start_had():
    rows = [("x", seed, epoch, "accuracy") for seed in (0, 1) for epoch in (1.0, 2.0)]
    rows += [("x", 0, 1.0, "loss-rising")]  # one seed of three
    rows += [("x", seed, epoch, "positive-cosine") for seed in (0, 1, 2) for epoch in (0.0, 1.0)]  # raised at the start
    warnings = pd.DataFrame(rows, columns=["system", "seed", "epoch", "rule"])
    assert rules_in_training(warnings, seeds=3) == {"x": ["accuracy"]}
    assert rules_in_training(warnings, seeds=5) == {}
    assert rules_in_training(warnings[:0], seeds=3) == {}
