"""The alarm: warnings in the case's own terms, from a history or from the batches of any training loop."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from asymlib import losses
from asymlib.errors import InputError
from asymlib.magnitude import GROWTH, attributable, attribution, statistics, wide

FINITE = ("similarity.", "length.", "std.", "accuracy", "loss.")  # statistics that are numbers in any run that is well
KEPT = [*GROWTH, "std.query", "std.document"]  # what growth is judged by
ROWS = 2048  # of a larger batch, the first pairs that are looked at
SMALL = 8  # pairs: so few may all be of one text, as in the last batch of an epoch


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
    negative_cosine: float = 0.9  # above which all texts lie in one cone
    std_growth: float = 1.5  # factor since the warm-up
    length_growth: float = 1.25  # factor since half-way, of the geometric mean of both sides
    length_share: float = 0.75  # of the log-growth of q.d since half-way, above which 'the angle stands still'
    accuracy: float = 0.9
    accuracy_lost: float = 0.01  # against the frozen encoder
    loss_rise: float = 0.02  # relative, validation loss above its lowest value so far


def check(
    first: pd.Series | None, now: pd.Series, halfway: pd.Series | None = None, lowest_loss: float = math.nan,
    limits: Limits = Limits(), frozen_accuracy: float = math.nan,
) -> list[Finding]:  # fmt: skip
    """The warnings that a row of statistics raises, given earlier rows of the same run.

    first, now, halfway: named as in statistics(), plus 'epoch'. A missing name skips its rule; a row that is not finite
    raises that alone. first: what the growth of std is measured against; None: growth is not judged. halfway: the same for
    length without angle, at half of the training so far; default `first`. lowest_loss: so far. frozen_accuracy: the encoder's.
    """
    epoch = float(now.get("epoch", math.nan))
    if lost := [name for name, value in now.items() if name.startswith(FINITE) and not math.isfinite(value)]:
        return [Finding("not-finite", f"{lost[0]} is {now[lost[0]]}", float(now[lost[0]]), "finite numbers", epoch)]
    first = pd.Series(dtype=float) if first is None else first
    halfway = first if halfway is None else halfway
    found = []  # rule, message, value, expected
    cosine, negative = (now.get(f"similarity.{kind}.cosine", math.nan) for kind in ("positive", "negative"))
    if cosine < limits.cosine_low or cosine > limits.cosine_high + 1e-6:
        expected = f"within [{limits.cosine_low:g}, {limits.cosine_high:g}]"
        found.append(("positive-cosine", f"positive cosine is {cosine:.2f}", cosine, expected))
    if negative > limits.negative_cosine:
        message = f"negative cosine is {negative:.3f}, all texts lie in one cone"
        found.append(("negative-cosine", message, negative, f"at most {limits.negative_cosine:g}"))
    for side in ("query", "document"):
        std, start = now.get(f"std.{side}", math.nan), first.get(f"std.{side}", math.nan)
        if std > limits.std_growth * start > 0:
            message = f"{side} std grew {std / start:.2f} times to {std:.3g}"
            found.append((f"std-{side}-growing", message, std / start, f"at most {limits.std_growth:g} times"))
    if attributable(halfway, now):
        growth = math.sqrt(math.prod(now[name] / halfway[name] for name in GROWTH[:2]))
        grown = attribution(halfway, now)
        # length >= share x total, not length / total >= share: it also holds where the angle lost more than length gained
        if growth > limits.length_growth and grown["total"] - grown["angle"] >= limits.length_share * grown["total"]:
            share = f"carry {grown['length_share']:.0%} of the logit's growth"
            message = f"lengths grew {growth:.2f} times and {share if grown['total'] > 0 else 'the angle fell'}"
            expected = f"at most {limits.length_growth:g} times, or the angle moving too"
            found.append(("length-without-angle", message, growth, expected))
    accuracy, loss = now.get("accuracy", math.nan), now.get("loss.contrastive", math.nan)
    if accuracy < limits.accuracy:
        found.append(("accuracy", f"in-batch accuracy is {accuracy:.0%}", accuracy, f"at least {limits.accuracy:.0%}"))
    if frozen_accuracy - accuracy > limits.accuracy_lost - 1e-6:  # rounded to float32
        message = f"accuracy {accuracy:.1%} is below the frozen encoder's, {frozen_accuracy:.1%}"
        expected = f"less than {100 * limits.accuracy_lost:g} points below"
        found.append(("accuracy-below-frozen", message, accuracy, expected))
    if loss > lowest_loss * (1 + limits.loss_rise):
        message = f"contrastive loss {loss:.3f} is above its lowest, {lowest_loss:.3f}"
        found.append(("loss-rising", message, loss, "a falling loss"))
    return [Finding(rule, message, float(value), expected, epoch) for rule, message, value, expected in found]


def check_history(history: pd.DataFrame, frozen_accuracy: float | dict[str, float] | None = None) -> pd.DataFrame:
    """Warnings for every run and epoch of a history's validation rows: system, seed and a Finding's fields.

    Growth is measured from the untrained start, or from the row after it where the start's positive cosine is below the limit,
    as a random one's. frozen_accuracy: magnitude.frozen_accuracy() of these pairs, for all or by system, which rows after the
    start are compared with; default: the run's own start, which says little of a random one.
    """
    rows, validation = [], history[history["split"] == "validation"]
    for (system, seed), part in validation.groupby(["system", "seed"], observed=True):
        run = wide(part, "validation").sort_values("step", ignore_index=True)
        lowest = run.get("loss.contrastive", pd.Series(math.nan, run.index)).cummin().shift(1)
        frozen = frozen_accuracy.get(system) if isinstance(frozen_accuracy, dict) else frozen_accuracy
        frozen = run.get("accuracy", [math.nan])[0] if frozen is None else frozen
        start = int((run["epoch"] <= 0).sum())
        warm = 0 if run.get("similarity.positive.cosine", [math.nan])[0] >= Limits.cosine_low else start
        for i, low in enumerate(lowest):
            first, halfway = (run.iloc[warm], run.iloc[(warm + i) // 2]) if i > warm else (None, None)
            for warning in check(first, run.iloc[i], halfway, low, Limits(), frozen if i >= start else math.nan):
                rows.append({"system": system, "seed": seed, **vars(warning)})
    return pd.DataFrame(rows, columns=["system", "seed", "epoch", "rule", "message", "value", "expected"])


def rules_in_training(warnings: pd.DataFrame, seeds: int) -> dict[str, list[str]]:
    """system -> the rules that most of its `seeds` runs raised in training and had not at their untrained start."""
    first = warnings.groupby(["system", "seed", "rule"])["epoch"].min()
    often = first[first > 0].groupby(["system", "rule"]).size().loc[lambda runs: runs > seeds / 2].reset_index()
    return often.groupby("system")["rule"].agg(list).to_dict()


class Alarm:
    """The alarm for any training loop: call it with each batch's embeddings, it returns the new warnings.

    Growth is judged after `warm_up` calls: std against their mean, length without angle against half-way since the last.
    A rule speaks once it has held for `hold` calls in a row, and again only after it has not held for as many. A batch that
    is not finite says so every time and counts for no other rule. A finding's `epoch` is the number of the call. Nothing is
    raised or changed in what is watched: what cannot be looked at, e.g. shapes that do not fit, is a finding, not-watched.
    """

    def __init__(
        self, temperature: float, similarity: str = "dot", limits: Limits = Limits(), hold: int = 1, warm_up: int = 10
    ):
        if not 0 < temperature < math.inf or hold < 1 or warm_up < 1:
            raise InputError(f"alarm: {temperature = }, {hold = }, {warm_up = }; expected above 0 and 1 or more")
        losses.score_matrix(torch.ones(1, 1), torch.ones(1, 1), similarity)  # refuses an unknown one
        self.temperature, self.similarity, self.limits, self.hold = temperature, similarity, limits, hold
        self._past: list[list[float]] = []  # KEPT of every call
        self._held: dict[str, int] = {}  # calls in a row that a rule held; below 0: that it did not
        self.warm_up, self._calls, self._spoken = warm_up, 0, set()

    @torch.no_grad()
    def __call__(self, q: Tensor, d: Tensor, same: Tensor | None = None) -> list[Finding]:
        """The warnings that are new with this batch; of fewer than two pairs, not-finite alone.

        q: (B, D). d: (M, D), M >= B: row i is the positive of row i of q, rows from B on are negatives of all, as in info_nce.
        Equal rows are one text: positives of one query are positives of all its rows, unless so many are equal that they have
        collapsed (more than 0.5 of all pairs of rows, in a batch of more than SMALL). same: (B, M) bool of further positives.
        """
        call, self._calls, first, halfway = float(self._calls), self._calls + 1, None, None
        try:
            if torch.as_tensor(q).shape[:-1].numel() < 2:
                lost = Finding("not-finite", "an embedding is not finite", math.nan, "finite numbers", call)
                return [] if all(torch.as_tensor(z).isfinite().all() for z in (q, d)) else [lost]
            now = pd.Series(self._look(q, d, same) | {"epoch": call})
        except Exception as error:  # whatever it is, the training goes on
            message = f"the alarm cannot look at this: {error!r:.200}"
            found = [Finding("not-watched", message, math.nan, "q (B, D) and d (B or more, D)", call)]
            return self._news(found, {"not-watched"})
        if len(self._past) >= self.warm_up:
            first = pd.DataFrame(self._past[: self.warm_up], columns=KEPT).mean()
            halfway = pd.Series(self._past[(self.warm_up - 1 + len(self._past)) // 2], index=KEPT)
        found = check(first, now, halfway, limits=self.limits)
        if [finding.rule for finding in found] == ["not-finite"]:
            return found
        self._past.append(now[KEPT].tolist())
        return self._news(found, {finding.rule for finding in found} | self._held.keys())

    def _look(self, q: Tensor, d: Tensor, same: Tensor | None) -> dict[str, float]:
        """statistics() of one batch, whose accuracy counts any positive of a query."""
        q, d = torch.as_tensor(q).detach(), torch.as_tensor(d).detach()
        same = torch.tensor(False).expand(len(q), len(d)) if same is None else torch.as_tensor(same)
        if q.ndim != 2 or d.shape[1:] != q.shape[1:] or len(d) < len(q) or same.shape != (len(q), len(d)):
            raise InputError(f"q has shape {tuple(q.shape)}, d {tuple(d.shape)}, same {tuple(same.shape)}")
        columns = torch.cat([torch.arange(min(len(q), ROWS)), torch.arange(len(q), len(d))[:ROWS]])
        same = same[:ROWS, columns.to(same.device)].to(q.device, torch.bool)
        dtype = torch.promote_types(torch.promote_types(q.dtype, d.dtype), torch.float32)
        q, d = q[:ROWS].to(dtype), d[columns.to(d.device)].to(q.device, dtype)
        with torch.autocast(q.device.type, enabled=False):
            scores = losses.score_matrix(q, d, self.similarity)
            positive = _one_text(q).to(dtype) @ _one_text(d)[: len(q)].to(dtype) > 0
            if len(q) > SMALL and positive[:, : len(q)].float().mean() > 0.5:  # a collapse: no text is that common
                positive = torch.eye(*positive.shape, dtype=torch.bool, device=q.device)
            positive |= same
            batch = (value[None, None] for value in (q, d, scores, positive))
            rows = statistics(*batch, q.new_tensor([self.temperature]))
        best, other = (scores.masked_fill(mask, -math.inf).amax(-1) for mask in (~positive, positive))
        rows["accuracy"] = (best > other).to(dtype).mean()[None]
        return dict(zip(rows, torch.cat(list(rows.values())).tolist(), strict=True))

    def _news(self, found: list[Finding], judged: set[str]) -> list[Finding]:
        """Those of this call's findings that have held for long enough and were not said yet."""
        for rule in judged:
            count = self._held.get(rule, 0)
            self._held[rule] = max(count, 0) + 1 if rule in {one.rule for one in found} else min(count, 0) - 1
        self._spoken -= {rule for rule, count in self._held.items() if count <= -self.hold}
        new = [one for one in found if self._held[one.rule] >= self.hold and one.rule not in self._spoken]
        self._spoken |= {one.rule for one in new}
        return new


def _one_text(z: Tensor) -> Tensor:
    """(M, M) bool: rows with |a - b|^2 <= 1e-5 (|a|^2 + |b|^2), as one text has."""
    z = z / z.abs().amax().clamp_min(losses.TINY)
    product = z @ z.mT
    both = product.diagonal().unsqueeze(-1) + product.diagonal()
    return both - 2 * product <= 1e-5 * both
