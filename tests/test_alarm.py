"""The alarm: the case's own failure, rule by rule, over histories, and in a plain torch loop."""

import math

import pandas as pd
import pytest
import torch

from asymlib import losses, magnitude
from asymlib.alarm import ROWS, Alarm, Limits, check, check_history, rules_in_training
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


def rules(lowest_loss: float = math.nan, halfway: pd.Series | None = None, limits=None, **now: float) -> set[str]:
    changed = pd.Series({**HEALTHY, **{name.replace("__", "."): value for name, value in now.items()}})
    return {finding.rule for finding in check(HEALTHY, changed, halfway, lowest_loss, limits or Limits())}


def test_a_healthy_run_raises_nothing():
    assert rules(lowest_loss=0.3) == set()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"similarity__positive__cosine": 0.49}, {"positive-cosine"}),
        ({"similarity__positive__cosine": 0.5}, set()),
        ({"similarity__positive__cosine": 1.0 + 1e-7}, set()),  # float32 rounding is no finding
        ({"similarity__positive__cosine": 1.01}, {"positive-cosine"}),
        ({"similarity__positive__cosine": math.nan}, {"not-finite"}),
        ({"loss__contrastive": math.inf, "accuracy": 0.1}, {"not-finite"}),  # alone: the others would be noise
        ({"isoscore__query": math.nan}, set()),  # a cloud without variance has none
        ({"similarity__negative__cosine": 0.91}, {"negative-cosine"}),
        ({"similarity__negative__cosine": 0.9}, set()),
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
    assert rules() == set()


@pytest.mark.parametrize(
    ("accuracy", "found"),
    [(0.931, set()), (0.9300001, {"accuracy-below-frozen"}), (0.5, {"accuracy", "accuracy-below-frozen"})],
)
def test_one_point_below_the_frozen_encoder_is_raised(accuracy, found):
    now = pd.Series({**HEALTHY, "accuracy": accuracy})
    assert {finding.rule for finding in check(HEALTHY, now, frozen_accuracy=0.94)} == found


def test_limits_can_be_changed_and_missing_statistics_skip_their_rule():
    assert rules(similarity__positive__cosine=0.3, limits=Limits(cosine_low=0.2)) == set()
    assert check(pd.Series(dtype=float), pd.Series({"epoch": 3.0})) == []


def test_growth_without_a_measurable_start_is_not_a_finding():
    nothing = row(0, 0, 0, **{"std.query": 0.0, "std.document": 0.0})
    assert check(nothing, HEALTHY) == []
    broken = row(math.inf, math.nan, 0, **{"std.query": math.nan, "std.document": math.inf})
    assert check(broken, HEALTHY) == [] and check(None, pd.Series({**HEALTHY, "std.query": 9.0})) == []


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


def found_in(history: pd.DataFrame, *frozen: float | dict[str, float]) -> list[list]:
    return check_history(history, *frozen)[["seed", "epoch", "rule"]].to_numpy().tolist()


def test_a_history_gives_one_row_a_run_epoch_and_rule():
    names = ["similarity.positive.cosine", "std.query", "loss.contrastive"]
    good = ((0.6, 0.05, 0.5), (0.6, 0.05, 0.4), (0.6, 0.06, 0.3))
    identity = ((0.6, 0.05, 0.5), (0.6, 0.08, 0.4), (0.6, 0.06, 0.5))
    random = ((0.1, 0.05, 0.5), (0.6, 0.08, 0.4), (0.6, 0.13, 0.3))  # 0.13 is 1.63 times 0.08, which ends the warm-up
    runs = [
        long([pd.Series(one, names) for one in values], seed=seed)
        for seed, values in enumerate((good, identity, random))
    ]
    other = long([pd.Series((0.0, 1.0, 9.0), names)], seed=3, split="train")
    assert found_in(pd.concat([*runs, other])) == [
        [1, 1.0, "std-query-growing"], [1, 2.0, "loss-rising"], [2, 0.0, "positive-cosine"], [2, 2.0, "std-query-growing"],
    ]  # fmt: skip
    columns = ["system", "seed", "epoch", "rule", "message", "value", "expected"]
    for silent in (runs[0], other, other[:0]):
        assert check_history(silent).columns.tolist() == columns and check_history(silent).empty


def test_a_history_judges_length_from_the_row_half_way_since_the_warm_up():
    # epochs 0 to 4: lengths double at first together with the angle, then the angle stands still while they grow 1.3 times
    turned = [row(1, 1, 1), row(16, 2, 2), row(16, 2, 2), row(16, 2, 2), row(16 * 1.69, 2.6, 2.6)]
    held = [row(1, 1, 1), row(4, 2, 2), row(4, 2, 2), row(4, 2, 2), row(4, 2, 2)]  # all growth is the first epoch's
    later = [row(1, 1, 1), row(1, 1, 1), row(4, 2, 2), row(4, 2, 2), row(4, 2, 2)]
    history = pd.concat([long(rows, seed=seed) for seed, rows in enumerate((turned, held, later))])
    # seed 0: epoch 4 against epoch 2; seed 2: 2 and, against (1 + 3) // 2 = 2, not 3
    assert found_in(history) == [[0, 4.0, "length-without-angle"], [2, 2.0, "length-without-angle"]]


def test_a_history_without_an_untrained_start_is_judged_from_its_first_row():
    log = magnitude.CASE_LOG.assign(system="case", seed=0, split="validation", step=magnitude.CASE_LOG["epoch"])
    history = log.melt(["system", "seed", "step", "epoch", "split"], var_name="name")
    # 0.109/0.067 = 1.63 and 0.096/0.059 = 1.63 after one epoch
    sides = ["std-query-growing", "std-document-growing"]
    assert found_in(history) == [[0, epoch, rule] for epoch in (2, 3) for rule in sides]


def test_a_history_is_compared_with_the_frozen_encoder_after_the_start():
    rows = [pd.Series({"accuracy": value}) for value in (0.10, 0.95, 0.97)]  # a random start
    history = pd.concat([long(rows), long(rows[1:], "y")])
    below, start = "accuracy-below-frozen", [0, 0.0, "accuracy"]
    assert found_in(history) == [start]  # both are above their own start
    assert found_in(history, 0.97) == [start, [0, 1.0, below]]  # y starts at .95, and its start is not compared
    assert found_in(history, {"x": 0.97, "y": 0.99}) == [start, [0, 1.0, below], [0, 1.0, below]]
    assert found_in(history, {"y": 0.99}) == [start, [0, 1.0, below]]
    assert found_in(long(rows[::-1])) == [[0, 1.0, below], [0, 2.0, "accuracy"], [0, 2.0, below]]  # an identity start


def test_a_run_that_exploded_says_so_and_its_neighbours_are_judged():
    # lr 1e6: every number after the start is nan. The other system records a loss that this one does not have.
    numbers = {"loss.contrastive": 1.0, "accuracy": 0.95, **row(10, 1, 1)}
    exploded = long([pd.Series(numbers), *[pd.Series(dict.fromkeys(numbers, math.nan))] * 2])
    healthy = long([pd.Series({**numbers, "loss.isotropy": 0.1})] * 3, "y", seed=1)
    assert found_in(pd.concat([exploded, healthy])) == [[0, 1.0, "not-finite"], [0, 2.0, "not-finite"]]
    back = long([pd.Series(numbers), pd.Series({**numbers, "similarity.positive.dot": math.inf}), pd.Series(numbers)])
    assert found_in(back) == [[0, 1.0, "not-finite"]]  # a warm-up that is not finite judges nobody


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


def spoken(alarm: Alarm, *batch: torch.Tensor) -> set[str]:
    return {finding.rule for finding in alarm(*batch)}


def test_the_alarm_speaks_in_a_plain_torch_loop_on_raw_dot_and_does_not_touch_it():
    found, watched = plain_training("dot", Alarm(temperature=0.05))
    by_rule = {warning.rule: step for step, warning in found}
    assert {"std-query-growing", "std-document-growing"} <= set(by_rule)
    assert all(warning.epoch == step for step, warning in found)
    assert by_rule["std-document-growing"] >= 10  # after the warm-up
    assert torch.equal(watched, plain_training("dot", None)[1])


def test_the_alarm_is_silent_for_embeddings_that_only_turn():
    alarm = Alarm(temperature=0.05)
    d = losses.normalize(draw(16, 32, seed=7))
    for mix in (0.6, 0.4, 0.2, 0.1):
        assert alarm(losses.normalize(d + mix * losses.normalize(draw(16, 32, seed=8))), d) == []


@pytest.mark.parametrize("warm_up", [1, 3])
def test_the_alarm_hears_pure_growth_after_the_warm_up_and_says_so_once(warm_up):
    alarm = Alarm(temperature=0.05, warm_up=warm_up)
    z = losses.normalize(draw(16, 32, seed=9))
    said = [spoken(alarm, z * 1.2**step, z * 1.2**step) for step in range(12)]
    assert sum(map(len, said)) == 3
    # warm_up 1: std is 1.2^3 = 1.73 times its start at step 3; lengths are 1.2^(3 - 1) = 1.44 times those half-way.
    # warm_up 3: the mean of 1, 1.2 and 1.44 is 1.21, 1.2^4/1.21 = 1.71 (at 3: 1.42); half-way from 2 to 4 is 3, to 5 also 3
    std = {"std-query-growing", "std-document-growing"}
    assert (said[3], said[4], said[5]) == (
        (std | {"length-without-angle"}, set(), set()) if warm_up == 1 else (set(), std, {"length-without-angle"})
    )


def test_the_first_turn_of_a_random_start_is_no_growth_but_what_comes_after_it_is():
    z, alarm = losses.normalize(draw(16, 32, seed=9)), Alarm(temperature=0.05)
    factors = [min(1 + step / 5, 2.0) for step in range(60)] + [6.0]  # doubles in five calls, holds, triples
    said = [spoken(alarm, factor * z, factor * z) for factor in factors]
    assert set().union(*said[:-1]) == set() and "std-query-growing" in said[-1]


def test_a_rule_speaks_again_once_it_has_not_held_for_hold_calls():
    z = losses.normalize(draw(16, 32, seed=10))
    bad = [step < 3 or step >= 150 for step in range(160)]
    for hold, calls in ((1, [0, 150]), (3, [2, 152])):
        alarm = Alarm(temperature=0.05, hold=hold)
        said = [spoken(alarm, -z if wrong else z, z) for wrong in bad]
        assert [step for step, rules in enumerate(said) if rules] == calls, hold
        assert said[calls[0]] == said[calls[1]] == {"positive-cosine", "accuracy"}


def test_hold_waits_for_calls_in_a_row_and_a_short_recovery_is_none():
    z = losses.normalize(draw(16, 32, seed=10))
    calls = [z, -z, z, -z, -z, -z, z, -z, -z, z, z, -z, -z]  # positive cosine 1 or -1
    alarm = Alarm(temperature=0.05, hold=2)
    assert [step for step, q in enumerate(calls) if "positive-cosine" in spoken(alarm, q, z)] == [4, 12]


# ---------------------------------------------------------------- what a loop really brings


@pytest.mark.parametrize("broken", [math.nan, math.inf, 3e38])  # 3e38 is finite, divided by the temperature it is not
@pytest.mark.parametrize("where", ["query", "document", "negative"])
def test_numbers_that_are_not_finite_speak_at_every_call_and_disturb_no_other_rule(broken, where):
    z = losses.normalize(draw(24, 32, seed=12))
    q, d = z[:8].clone(), torch.cat([z[:8], z[8:]])
    lost = {"query": (q.clone(), d), "document": (q, d.clone()), "negative": (q, d.clone())}[where]
    lost[where != "query"][{"query": 3, "document": 2, "negative": 20}[where], 5] = broken
    alarm = Alarm(temperature=0.05, hold=2, warm_up=2)
    said = [spoken(alarm, *batch) for batch in (lost, (q, d), lost, lost, (-q, d), lost, (-q, d), (-q, d))]
    gone = {"not-finite"}
    assert said == [gone, set(), gone, gone, set(), gone, {"positive-cosine", "accuracy"}, set()]


def test_equal_documents_are_positives_of_each_others_queries():
    z, rows = losses.normalize(draw(20, 384, seed=13)), torch.arange(64) % 20  # 64 rows, 20 documents
    assert Alarm(temperature=0.05)(z[rows], z[rows]) == []
    noise = 1 + 1e-4 * draw(64, 384, seed=14)  # rounding: another batch size, bf16
    assert Alarm(temperature=0.05)(z[rows], z[rows] * noise) == []
    # half of the 20 are confused with another document: right or wrong, a document's copies do not count against it
    swapped = z[torch.where(rows < 10, (rows + 1) % 10, rows)]
    wrong = float((rows < 10).float().mean())
    (found,) = [one for one in Alarm(temperature=0.05)(swapped, z[rows]) if one.rule == "accuracy"]
    assert found.value == pytest.approx(1 - wrong)


def test_equal_queries_have_each_others_documents_as_positives():
    z, rows = losses.normalize(draw(8, 32, seed=13)), torch.arange(8)
    q = losses.normalize(
        z[rows // 2 * 2] + z[rows // 2 * 2 + 1]
    )  # queries 0 and 1 are one text with two answers, and so on
    q[1], limits = q[0], Limits(cosine_low=0)
    assert Alarm(0.05, limits=limits)(q, z) == []
    assert Alarm(0.05, limits=limits)(q, torch.cat([z, z.flip(0)])) == []  # answers that come again as negatives
    assert spoken(Alarm(0.05, limits=limits), q, z[rows ^ 2]) == {"accuracy"}  # those of another query are wrong


def test_further_positives_are_told_by_same_and_any_of_them_counts():
    z = losses.normalize(draw(8, 32, seed=15))
    pair = torch.arange(8) // 2  # documents 0 and 1 both answer queries 0 and 1, and so on
    q = z[torch.arange(8) ^ 1]  # every query is at the other one
    limits = Limits(cosine_low=-1)
    assert spoken(Alarm(0.05, limits=limits), q, z) == {"accuracy"}
    assert spoken(Alarm(0.05, limits=limits), q, z, pair[:, None] == pair) == set()
    assert spoken(Alarm(0.05, limits=limits), q, z, (pair[:, None] == pair).numpy()) == set()
    assert spoken(Alarm(0.05, limits=limits), q, z, pair[:7, None] == pair) == {"not-watched"}


def test_mined_negatives_are_columns_for_every_query_as_in_info_nce():
    z = losses.normalize(draw(16, 32, seed=16))
    assert Alarm(0.05)(z[:8], torch.cat([z[:8], z[8:]])) == []
    # a negative that is nearer than the positive to queries 0, 1 and 2, of which 0 is told to have it as a positive
    d = torch.cat([losses.normalize(z[:8] + 0.3 * draw(8, 32, seed=17)), z[:3], z[8:]])
    (found,) = Alarm(0.05)(z[:8], d)
    assert (found.rule, found.value) == ("accuracy", 5 / 8)
    same = torch.zeros(8, len(d), dtype=torch.bool)
    same[0, 8] = True
    (found,) = Alarm(0.05)(z[:8], d, same)
    assert (found.rule, found.value) == ("accuracy", 6 / 8)


def test_a_cone_is_heard_though_every_positive_is_the_best():
    # z = c + t u, u orthogonal unit rows: cosine of two rows 1/(1 + t^2) = 0.99, of z and c + t v with u.v = 1/2: 0.995
    t, base = math.sqrt(0.01 / 0.99), torch.eye(33)
    q = base[32] + t * base[:16]
    d = base[32] + t * (base[:16] / 2 + math.sqrt(0.75) * base[16:32])
    (found,) = Alarm(0.05, similarity="cosine")(q, d)
    assert found.rule == "negative-cosine" and found.value == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize("rows", [9, 64])
def test_a_collapse_to_one_point_is_not_taken_for_one_document(rows):
    point = losses.normalize(draw(1, 32, seed=18)).expand(rows, -1)
    assert spoken(Alarm(0.05), point, point) == {"negative-cosine", "accuracy"}
    assert "accuracy" in spoken(Alarm(0.05), draw(rows, 32, seed=19), point)
    d = torch.cat([point, losses.normalize(draw(rows, 32, seed=20))])  # mined negatives apart from the point
    assert "accuracy" in spoken(Alarm(0.05), point, d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spread", [0, 0.001, 0.0028, 0.003, 0.0032, 0.0034, 0.01])
def test_rows_that_are_nearly_one_point_have_collapsed(spread, dtype):
    z = losses.normalize(draw(1, 128, seed=18)) + spread * losses.normalize(draw(64, 128, seed=19))
    assert "negative-cosine" in spoken(Alarm(0.05), z.to(dtype), z.to(dtype))


@pytest.mark.parametrize("equal", [48, 60, 63])
def test_most_rows_of_a_batch_at_one_point_have_collapsed(equal):
    z = losses.normalize(draw(64, 128, seed=18))
    z[:equal] = z[0]
    (found,) = [one for one in Alarm(0.05)(z, z) if one.rule == "accuracy"]
    assert found.value == (64 - equal) / 64
    z[:32], z[32:] = z[0], losses.normalize(draw(32, 128, seed=19))
    assert Alarm(0.05)(z, z) == []  # 32 may be one text


@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_a_small_batch_of_one_text_is_no_collapse(rows):
    z = losses.normalize(draw(2 * rows, 32, seed=18))
    pair, limits = z[:1].expand(rows, -1), Limits(cosine_low=-1)
    assert Alarm(0.05)(pair, pair) == []
    assert Alarm(0.05, limits=limits)(z[:rows], pair) == []  # queries of one document
    near = losses.normalize(z[:1] + 0.3 * z[:rows])  # positives of one query, and mined negatives
    assert Alarm(0.05)(pair, torch.cat([near, z[rows:]])) == []


def test_one_pair_that_is_not_finite_speaks_at_every_call():
    z, lost, alarm = torch.ones(1, 3), torch.full((1, 3), math.nan), Alarm(0.05)
    said = [spoken(alarm, *batch) for batch in ((z, z), (lost, z), (lost, z), (z, torch.cat([z, -lost])), (z, z))]
    assert said == [set(), {"not-finite"}, {"not-finite"}, {"not-finite"}, set()]


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (3,), ()])
def test_less_than_two_pairs_have_nothing_to_say(shape):
    assert Alarm(temperature=0.05)(torch.ones(shape), torch.ones(shape)) == []


@pytest.mark.parametrize(
    ("q", "d"),
    [
        (torch.ones(5, 3), torch.ones(4, 3)),
        (torch.ones(4, 3), torch.ones(4, 2)),
        (torch.ones(2, 4, 3), torch.ones(2, 4, 3)),
        (torch.ones(1, 4, 3), torch.ones(1, 4, 3)),  # a batch of one sequence of tokens
        (torch.ones(4, 0), torch.ones(4, 0)),
        (torch.ones(4, 3, device="meta"), torch.ones(4, 3)),
        (torch.ones(4, 3, dtype=torch.complex64), torch.ones(4, 3)),
        (torch.ones(4, 3).to_sparse(), torch.ones(4, 3)),
        (None, "text"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_one_finding_and_no_error(q, d):
    alarm, z = Alarm(temperature=0.05), losses.normalize(draw(8, 16, seed=11))
    found, *more = [alarm(q, d) for _ in range(3)]
    assert [finding.rule for finding in found] == ["not-watched"] and more == [[], []]
    assert "\n" not in found[0].message and len(found[0].message) < 250
    assert alarm(z, z) == [] and spoken(alarm, q, d) == {"not-watched"}


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "int32", "numpy", "gradient", "inference", "mixed"])
def test_the_alarm_takes_the_embeddings_as_they_come(kind):
    z = losses.normalize(draw(8, 16, seed=11))
    if kind == "inference":
        with torch.inference_mode():
            q = d = z * 1
            assert Alarm(temperature=0.05)(q, d) == []
    elif kind in ("numpy", "mixed"):
        q, d = (z.numpy(), z.numpy()) if kind == "numpy" else (z.half(), z.double())
    else:
        q = d = z.clone().requires_grad_() if kind == "gradient" else (100 * z).to(getattr(torch, kind))
    random = torch.get_rng_state()
    assert Alarm(temperature=0.05)(q, d) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert kind != "gradient" or q.grad is None


def test_autocast_does_not_coarsen_what_the_alarm_sees():
    d = draw(1, 16, seed=20) + 1e-3 * draw(64, 16, seed=21)  # told apart in float32, not in bfloat16
    plain = Alarm(0.05, similarity="euclidean")(d, d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Alarm(0.05, similarity="euclidean")(d, d) == plain
    assert {finding.rule for finding in plain} == {"negative-cosine"}


def test_of_a_large_batch_the_first_rows_are_looked_at():
    z = losses.normalize(draw(ROWS + 10, 16, seed=22))
    q, same = z.clone(), torch.zeros(len(z), 3 * len(z), dtype=torch.bool)
    q[ROWS:] = math.nan
    assert Alarm(0.05)(q, torch.cat([z, draw(2 * len(z), 16, seed=23) * 0.1]), same) == []


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"hold": 0}, {"warm_up": 0}],
)  # fmt: skip
def test_the_alarm_refuses_settings_that_mean_nothing(wrong):
    with pytest.raises(InputError, match="expected above 0 and 1 or more"):
        Alarm(**{"temperature": 0.05, **wrong})


def test_the_alarm_refuses_an_unknown_similarity_before_the_training():
    with pytest.raises(InputError, match="'l2' is unknown, expected one of dot"):
        Alarm(temperature=0.05, similarity="l2")


def test_rules_in_training_are_those_that_most_seeds_raise_and_no_start_had():
    rows = [("x", seed, epoch, "accuracy") for seed in (0, 1) for epoch in (1.0, 2.0)]
    rows += [("x", 0, 1.0, "loss-rising")]  # one seed of three
    rows += [("x", seed, epoch, "positive-cosine") for seed in (0, 1, 2) for epoch in (0.0, 1.0)]  # raised at the start
    warnings = pd.DataFrame(rows, columns=["system", "seed", "epoch", "rule"])
    assert rules_in_training(warnings, seeds=3) == {"x": ["accuracy"]}
    assert rules_in_training(warnings, seeds=5) == {}
    assert rules_in_training(warnings[:0], seeds=3) == {}
