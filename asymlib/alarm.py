"""The alarm: warnings in the case's own terms, from a history or from the batches of any training loop."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from asymlib import losses
from asymlib.errors import InputError
from asymlib.magnitude import attribution, statistics, wide

GROWTH = ("length.query.mean", "length.document.mean", "similarity.positive.dot")  # what attribution() needs


@dataclass(frozen=True)
class Finding:
    """One finding of the alarm: what was seen, what was expected, and since when."""

    rule: str
    message: str
    value: float
    expected: str
    epoch: float


@dataclass(frozen=True)
class Limits:
    """What the alarm tolerates. The case's own terms: cosine in [0.5, 1], std not growing, accuracy about 90 %."""

    cosine_low: float = 0.5
    cosine_high: float = 1.0
    std_growth: float = 1.5  # factor over the first row
    length_growth: float = 1.25  # factor since half-way, of the geometric mean of both sides
    length_share: float = 0.75  # of the log-growth of q.d since half-way, above which 'the angle stands still'
    accuracy: float = 0.9
    loss_rise: float = 0.02  # relative, validation loss above its lowest value so far


def check(
    first: pd.Series,
    now: pd.Series,
    halfway: pd.Series | None = None,
    lowest_loss: float | None = None,
    limits: Limits | None = None,
) -> list[Finding]:
    """The warnings that a row of statistics raises, given earlier rows of the same run.

    first, now, halfway: named as in statistics(), plus 'epoch'. Names that are missing skip their rule. halfway: the row at
    half of the training so far, what "lengths grow while the angle stands still" is measured against, so that the rule has no
    time scale of its own and forgets the first turn of a random start; default `first`. lowest_loss: the lowest
    loss.contrastive so far, for the rising-loss rule.
    """
    halfway = first if halfway is None else halfway
    limits = limits or Limits()
    found = []  # rule, message, value, expected
    cosine = now.get("similarity.positive.cosine")
    if cosine is not None and not limits.cosine_low <= cosine <= limits.cosine_high + 1e-6:
        expected = f"within [{limits.cosine_low:g}, {limits.cosine_high:g}]"
        found.append(("positive-cosine", f"positive cosine is {cosine:.2f}", cosine, expected))
    for side in ("query", "document"):
        name = f"std.{side}"
        if name in now and name in first and now[name] > limits.std_growth * first[name] > 0:
            growth = now[name] / first[name]
            message = f"{side} std grew {growth:.2f} times to {now[name]:.3g}"
            found.append((f"std-{side}-growing", message, growth, f"at most {limits.std_growth:g} times"))
    known = all(name in now and name in halfway for name in GROWTH)
    if known and now["similarity.positive.dot"] > 0 and halfway["similarity.positive.dot"] > 0:
        growth = math.sqrt(math.prod(now[name] / halfway[name] for name in GROWTH[:2]))
        grown = attribution(halfway, now)
        # length >= share x total, not length / total >= share: it also holds where the angle lost more than length gained
        if growth > limits.length_growth and grown["total"] - grown["angle"] >= limits.length_share * grown["total"]:
            share = (
                f"carry {grown['length_share']:.0%} of the logit's growth" if grown["total"] > 0 else "the angle fell"
            )
            expected = f"at most {limits.length_growth:g} times, or the angle moving too"
            found.append(("length-without-angle", f"lengths grew {growth:.2f} times and {share}", growth, expected))
    accuracy = now.get("accuracy")
    if accuracy is not None and accuracy < limits.accuracy:
        message = f"in-batch accuracy is {accuracy:.0%}"
        found.append(("accuracy", message, accuracy, f"at least {limits.accuracy:.0%}"))
    loss = now.get("loss.contrastive", 0.0)
    if lowest_loss is not None and loss > lowest_loss * (1 + limits.loss_rise):
        message = f"contrastive loss {loss:.3f} is above its lowest, {lowest_loss:.3f}"
        found.append(("loss-rising", message, loss, "a falling loss"))
    epoch = float(now.get("epoch", math.nan))
    return [Finding(rule, message, float(value), expected, epoch) for rule, message, value, expected in found]


def check_history(history: pd.DataFrame) -> pd.DataFrame:
    """Warnings for every run and epoch of a history's validation rows: system, seed, epoch, rule, message, value, expected.

    The first row of a run is what growth is measured against; it is judged itself for everything but growth.
    """
    rows = []
    for (system, seed), run in wide(history, "validation").groupby(["system", "seed"], sort=False):
        run = run.sort_values("step")
        lowest = run["loss.contrastive"].cummin().shift(1)  # nan for the first row: no loss is above it
        for i, low in enumerate(lowest):
            for warning in check(run.iloc[0], run.iloc[i], run.iloc[i // 2], low):
                rows.append({"system": system, "seed": seed, **vars(warning)})
    return pd.DataFrame(rows, columns=["system", "seed", "epoch", "rule", "message", "value", "expected"])


def rules_in_training(warnings: pd.DataFrame, seeds: int) -> dict[str, list[str]]:
    """The rules that most of a system's seeds raised during training and that the same seed's untrained start had not raised.

    warnings: as check_history() returns them. seeds: runs a system. A system without such a rule has no entry.
    """
    first = warnings.groupby(["system", "seed", "rule"])["epoch"].min()
    counts = first[first > 0].groupby(["system", "rule"]).size()
    often = counts[counts > seeds / 2].reset_index()
    return often.groupby("system")["rule"].agg(list).to_dict()


class Alarm:
    """The alarm for any training loop: call it with each batch's embeddings, it returns the new warnings.

        alarm = Alarm(temperature=0.05)
        for q, d in batches:                      # (B, D) embeddings that enter the loss, row i of d the positive of row i of q
            for warning in alarm(q, d):
                print(warning.message, "- expected", warning.expected)

    Growth of std is measured against the first call, growth of length without angle against half of the calls so far.
    Each rule speaks once, when it first holds for `hold` calls in a row. A finding's `epoch` is the number of the call.
    Detached and without gradients: it never changes the training that it watches.
    """

    def __init__(self, temperature: float, similarity: str = "dot", limits: Limits | None = None, hold: int = 1):
        if not temperature > 0 or hold < 1:
            raise InputError(f"alarm: temperature {temperature}, hold {hold}; expected above 0 and 1 or more")
        self.temperature, self.similarity, self.limits, self.hold = temperature, similarity, limits, hold
        self._first: pd.Series | None = None
        self._past: list[tuple[float, ...]] = []  # GROWTH of every call, three numbers each
        self._counts: dict[str, int] = {}
        self._spoken: set[str] = set()

    @torch.no_grad()
    def __call__(self, q: Tensor, d: Tensor) -> list[Finding]:
        """q, d: (B, D), B >= 2. Returns the warnings that are new with this batch."""
        if q.shape != d.shape or q.ndim != 2 or len(q) < 2:
            shapes = f"q has shape {tuple(q.shape)}, d {tuple(d.shape)}"
            raise InputError(f"alarm: {shapes}; expected two equal (B, D) with B >= 2")
        q, d = q.detach().float()[None, None], d.detach().float()[None, None]
        scores = losses.score_matrix(q, d, self.similarity)
        same, temperature = (
            torch.zeros_like(scores, dtype=torch.bool),
            torch.tensor([self.temperature], device=q.device),
        )
        rows = statistics(q, d, scores, same, temperature)
        now = pd.Series({name: float(value[0]) for name, value in rows.items()} | {"epoch": float(len(self._past))})
        self._first = now if self._first is None else self._first
        self._past.append(tuple(now[name] for name in GROWTH))
        halfway = pd.Series(self._past[(len(self._past) - 1) // 2], index=GROWTH)
        found = {warning.rule: warning for warning in check(self._first, now, halfway, limits=self.limits)}
        self._counts = {rule: self._counts.get(rule, 0) + 1 for rule in found}
        new = [found[rule] for rule in found if self._counts[rule] >= self.hold and rule not in self._spoken]
        self._spoken |= {warning.rule for warning in new}
        return new
