"""One loop that trains R runs at once: parameters stacked along a leading axis, one batch of pairs a run and step.

A run is a (Recipe, seed). Runs that share an architecture are stacked; their learning rate, weight decay, temperature,
loss weights and clipping are (R,) tensors, and everything that decides about a run (clipping, early stopping, best epoch,
divergence) acts on its own row. R = 1 is just a single run.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from asymlib import heads, losses
from asymlib.errors import InputError
from asymlib.pair_vectors import PairVectors, mine
from asymlib.recipes import Recipe

Runs = Sequence[tuple[Recipe, int]]


@dataclass(frozen=True)
class Snapshot:
    """What an observer of the training loop is shown; K blocks of B pairs a run (K = 1 in training)."""

    runs: Runs
    active: Tensor  # (R,) bool, False once a run has stopped early or diverged
    step: int  # updates done so far
    epoch: float  # step / steps per epoch
    split: str  # 'train' (the batch), 'training sample' (as many pairs as validation has) or 'validation'
    query: Tensor  # (R, K, B, D) after the heads
    document: Tensor  # (R, K, B, D)
    scores: Tensor  # (R, K, B, B), before the temperature
    same: Tensor  # (R, K, B, B) bool, document j is a positive of query i, see PairVectors.positive
    temperature: Tensor  # (R,)
    losses: dict[str, Tensor]  # name -> (R,)
    gradients: dict[str, Tensor]  # of a train batch: 'query', 'document' (R, K, B, D), 'parameters' (R,)


LARGEST = 1e12  # of a parameter or loss; far below what scores in float32 can hold, far above what training needs
Observer = Callable[[Snapshot], None]
# runs, their stacked parameters, (R,) bool: still training
AfterEpoch = Callable[[Runs, heads.Parameters, Tensor], None]
# query, document, scores, same, losses of a Snapshot
Forward = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]


@dataclass
class TrainedRun:
    """One finished run. `best` holds the parameters after the epoch with the lowest validation loss, `last` the final ones."""

    recipe: Recipe
    seed: int
    best: heads.Parameters
    last: heads.Parameters
    best_epoch: int  # 1, 2, ...; 0 only if no epoch gave a finite validation loss, and then `best` is the start
    validation_loss: list[float]  # contrastive loss after epoch 0 (untrained), 1, 2, ... until it stopped, in nats
    diverged_at: int | None = None  # updates done when a loss, gradient or parameter was first seen not to be finite

    @property
    def diverged(self) -> bool:
        """Whether a loss or gradient was not finite, or too large a parameter: there is nothing to rank with."""
        return self.diverged_at is not None


def train(
    runs: Runs, training: PairVectors, validation: PairVectors, observe: Observer | None = None,
    log_every: int = 10, device: str | torch.device | None = None, progress: bool = True,
    negatives: Tensor | None = None, after_epoch: AfterEpoch | None = None,
) -> list[TrainedRun]:  # fmt: skip
    """Train every (recipe, seed) and return the results in the order given.

    training, validation: frozen embeddings. A run sees floor(N / batch_size) batches an epoch, in an order drawn from
        its seed; the incomplete last batch is dropped. Validation is in blocks of batch_size, in the order given.
    observe: called every `log_every` steps on the training batch (gradients included) before its update, and on the
        validation pairs and as many training pairs before the first step and after each epoch.
    negatives: (N, C) of `mine`, with C at least the largest hard_negatives of a run; None: mined here if a run asks for any.
        A run with hard_negatives = K adds the first K of each pair of its batch as columns for the whole batch, as in DPR:
        B documents become B (1 + K). Observers, isotropy, prediction, recovery and validation see the B alone.
    after_epoch: called after the validation of every epoch, once for each group of runs that share an architecture.
    device: default CUDA when there is one. The same seed on the same device gives the same numbers.
    The best epoch, early stopping (`patience`) and TrainedRun.validation_loss go by the contrastive loss alone, so that
    runs with different weights stay comparable.
    """
    _check(runs, training, validation, log_every)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training, validation = training.to(device), validation.to(device)
    most = max((recipe.hard_negatives for recipe, _ in runs), default=0)
    if most and negatives is None:
        negatives = mine(training, most)
    elif most and (negatives.shape[0] != len(training.queries) or negatives.shape[1] < most):
        shape, rows = tuple(negatives.shape), len(training.queries)
        raise InputError(f"train: negatives have shape {shape}, expected {rows} rows of at least {most}")
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)  # runs with the same key can be stacked
    for index, (r, _) in enumerate(runs):
        key = r.head, r.sides, r.similarity, r.isotropy, r.batch_size, r.epochs, r.hard_negatives
        groups[*key, r.prediction_weight > 0, r.recovery_weight > 0, r.exponent_lr > 0].append(index)
    results: dict[int, TrainedRun] = {}
    torch.set_flush_denormal(True)  # dying ReLU and Adam moments reach denormals, which cost a CPU 100 times the time
    try:
        for indices in groups.values():
            stack = _Stack([runs[i] for i in indices], training, validation, negatives)
            results.update(zip(indices, stack.run(observe, log_every, progress, after_epoch), strict=True))
    finally:
        torch.set_flush_denormal(False)
    return [results[index] for index in range(len(runs))]


def _check(runs: Runs, training: PairVectors, validation: PairVectors, log_every: int) -> None:
    """Refuse what cannot be trained."""
    if log_every < 1:
        raise InputError(f"train: log_every = {log_every}, expected 1 or more")
    for (name, seed), count in Counter((recipe.name, seed) for recipe, seed in runs).items():
        if count > 1:
            raise InputError(f"train: two runs named {name!r} with seed {seed}, their rows could not be told apart")
    for recipe, _ in runs:
        if not recipe.trained:
            raise InputError(f"train: recipe {recipe.name!r} has no head, there is nothing to train")
        for split, pairs in (("training", training), ("validation", validation)):
            if (n := len(pairs.queries)) < recipe.batch_size:
                raise InputError(f"train: {n} {split} pairs, expected at least batch_size = {recipe.batch_size}")
    if (found := validation.queries.shape[1]) != (dim := training.queries.shape[1]):
        raise InputError(f"train: validation vectors have {found} dimensions, training {dim}")


def rate_factor(warm_up: float, updates: int, step: int) -> float:
    """What the rates are multiplied with after `step` of all updates: 1 without a warm-up, else a line up and a line down.

        step / w below w = floor(warm_up * updates), then (updates - step) / (updates - w)

    As transformers' get_linear_schedule_with_warmup: the first update is at rate 0.
    """
    if not warm_up:
        return 1.0
    rising = int(warm_up * updates)
    return step / rising if step < rising else (updates - step) / max(1, updates - rising)


class _Stack:
    """R runs of one architecture: their parameters, their optimiser, and what has been decided about each."""

    def __init__(self, runs: Runs, training: PairVectors, validation: PairVectors, negatives: Tensor | None):
        self.runs, self.training, self.validation = runs, training, validation
        self.shape = shape = runs[0][0]  # what all runs share: similarity, isotropy, batch size, epochs
        device, dim = training.queries.device, training.queries.shape[1]
        self.negatives = negatives[:, : shape.hard_negatives].to(device) if shape.hard_negatives else None
        starts = [
            heads.start_heads(r.head, r.start, r.sides, dim, seed, r.prediction_weight > 0, r.exponent_lr > 0)
            for r, seed in runs
        ]
        self.parameters = {name: value.to(device).requires_grad_() for name, value in heads.stack(starts).items()}
        # A run's slices share memory with the stack, so a step moves the stack itself.
        self.slices = [[v.detach()[i].requires_grad_() for v in self.parameters.values()] for i in range(len(runs))]
        self.step, self.steps = 0, len(training.queries) // shape.batch_size  # done so far, an epoch
        groups, factors = [], []  # of parameters: a run's head and, apart, its exponents
        for (recipe, _), parts in zip(runs, self.slices, strict=True):
            named = list(zip(self.parameters, parts, strict=True))
            for exponents, lr, decay in ((False, recipe.lr, recipe.weight_decay), (True, recipe.exponent_lr, 0.0)):
                if own := [part for name, part in named if name.endswith(".exponent") is exponents]:
                    groups.append({"params": own, "lr": lr, "weight_decay": decay})
                    factors.append(partial(rate_factor, recipe.warm_up, shape.epochs * self.steps))
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors)
        self.orders = [torch.Generator().manual_seed(1_000_003 + seed) for _, seed in runs]
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        each = partial(torch.tensor, device=device)  # one value a run, (R,)
        fields = ("temperature", "isotropy_weight", "prediction_weight", "recovery_weight", "clip_norm", "patience")
        self.hyper = {name: each([getattr(recipe, name) for recipe, _ in runs]) for name in fields}
        self.best_loss, self.best_epoch = each([torch.inf] * len(runs)), each([0] * len(runs))
        self.active, self.diverged, self.epochs = (each([start] * len(runs)) for start in (True, -1, 0))

    def run(
        self, observe: Observer | None, log_every: int, progress: bool, after_epoch: AfterEpoch | None
    ) -> list[TrainedRun]:
        """Every epoch, until each run is done or has stopped."""
        batch, pairs = self.shape.batch_size, len(self.training.queries)
        curves, title = [self.validate(0.0, observe)], f"{self.shape.name} x{len(self.runs)}"
        with tqdm(total=self.shape.epochs * self.steps, desc=title, unit="step", disable=not progress) as bar:
            for epoch in range(1, self.shape.epochs + 1):
                self.epochs += self.active
                orders = torch.stack([torch.randperm(pairs, generator=g) for g in self.orders]).to(self.active.device)
                for i in range(self.steps):
                    watching = observe if self.step % log_every == 0 else None
                    self.update(orders[:, None, i * batch : (i + 1) * batch], watching)
                    bar.update()
                curves.append(self.validate(float(epoch), observe))
                if after_epoch:
                    after_epoch(self.runs, self.parameters, self.active)
                self.keep_best(epoch, curves[-1])
                bar.set_postfix(validation=f"{float(curves[-1].median()):.3f}")
                if not bool(self.active.any()):
                    break
        curves = torch.stack(curves, 1).tolist()
        return [
            TrainedRun(
                recipe, seed, heads.unstack(self.best, r), heads.unstack(self.parameters, r), int(self.best_epoch[r]),
                curves[r][: int(self.epochs[r]) + 1], int(self.diverged[r]) if self.diverged[r] >= 0 else None,
            )
            for r, (recipe, seed) in enumerate(self.runs)
        ]  # fmt: skip

    def update(self, rows: Tensor, observe: Observer | None) -> None:
        """One step of every active run on its own batch: rows (R, 1, B) of the training pairs."""
        added = None if self.negatives is None else self.negatives[rows].flatten(2)
        forward = self.forward(self.training, rows, added)
        total, sides = forward[-1]["total"], zip(("query", "document"), forward[:2], strict=True)
        watched = {side: z for side, z in sides if observe and z.requires_grad}
        # Rows of the total loss are independent, so the gradient of their sum is every run's own gradient.
        found = torch.autograd.grad(total.sum(), [*self.parameters.values(), *watched.values()])
        # contiguous: the gradient of weight.mT comes transposed, and the fused kernel takes no strides
        gradients = [part.contiguous() for part in found[: len(self.parameters)]]
        norm = self.clip(gradients)
        self.stop_where(~(torch.isfinite(norm) & torch.isfinite(total)))
        if observe:
            shown = {"parameters": norm, **dict(zip(watched, found[len(gradients) :], strict=True))}
            observe(self.snapshot("train", self.step / self.steps, forward, shown))
        self.step += 1
        for r, (parts, active) in enumerate(zip(self.slices, self.active.tolist(), strict=True)):
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient[r] if active else None  # a parameter without a gradient is left as it is
        self.optimizer.step()
        self.schedule.step()

    def forward(self, pairs: PairVectors, rows: Tensor, added: Tensor | None = None) -> Forward:
        """Embeddings, scores, mask of positives and losses of K blocks.

        rows: (R or 1, K, B) pair numbers; 1 where every run sees the same. added: (R, K, M) numbers of pairs whose documents
        are negatives for the whole block, -1 for none; they are in the contrastive loss and in nothing that is returned.
        """
        x_q, x_d = (side[rows].expand(len(self.runs), -1, -1, -1) for side in (pairs.queries, pairs.documents))
        runs, blocks, batch, dim = x_q.shape
        q = heads.apply_head(self.parameters, "query", x_q.reshape(runs, -1, dim)).view(runs, blocks, batch, dim)
        d = heads.apply_head(self.parameters, "document", x_d.reshape(runs, -1, dim)).view(runs, blocks, batch, dim)
        scores = losses.score_matrix(q, d, self.shape.similarity)
        same = pairs.positive(rows, rows).expand(runs, -1, -1, -1)
        compared, masked = scores, same
        if added is not None:
            x_n = pairs.documents[added.clamp_min(0)]
            n = heads.apply_head(self.parameters, "document", x_n.view(runs, -1, dim)).view(*x_n.shape)
            compared = torch.cat([scores, losses.score_matrix(q, n, self.shape.similarity)], -1)
            none = pairs.positive(rows, added.clamp_min(0)) | (added < 0).unsqueeze(-2)
            masked = torch.cat([same, none], -1)
        terms = {"contrastive": losses.info_nce(compared, self.hyper["temperature"][:, None], masked).mean(1)}
        if isotropy := losses.ISOTROPY[self.shape.isotropy]:
            terms["isotropy"] = (isotropy(q) + isotropy(d)).mean(1) / 2
        if self.shape.prediction_weight > 0:
            predicted = heads.apply_head(self.parameters, "predictor", q.reshape(runs, -1, dim))
            terms["prediction"] = losses.prediction(predicted, d.reshape(runs, -1, dim))
        if self.shape.recovery_weight > 0:
            terms["recovery"] = (losses.recovery(q, x_q) + losses.recovery(d, x_d)).mean(1) / 2
        total = terms["contrastive"]
        for name in list(terms)[1:]:
            total = total + self.hyper[f"{name}_weight"] * terms[name]
        return q, d, scores, same, {"total": total, **terms}

    def clip(self, gradients: list[Tensor]) -> Tensor:
        """Scale each run's gradient to at most its clip_norm; returns the norms before, (R,)."""
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        if bool(((limit := self.hyper["clip_norm"]) > 0).any()):
            scale = torch.where(limit > 0, (limit / (norm + 1e-6)).clamp_max(1.0), 1.0)
            for gradient in gradients:
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return norm

    def snapshot(self, split: str, epoch: float, forward: Forward, gradients: dict[str, Tensor]) -> Snapshot:
        *shown, same, terms = forward
        return Snapshot(
            self.runs, self.active.clone(), self.step, epoch, split, *(value.detach() for value in shown), same,
            self.hyper["temperature"], {name: value.detach() for name, value in terms.items()}, gradients,
        )  # fmt: skip

    @torch.no_grad()
    def validate(self, epoch: float, observe: Observer | None) -> Tensor:
        """Contrastive loss on the validation pairs, (R,); an observer also sees as many of the training pairs.

        A run whose loss or one of whose parameters is not below LARGEST has diverged.
        """
        batch = self.shape.batch_size
        sample = {"training sample": self.training.first(len(self.validation.queries))} if observe else {}
        for split, pairs in {**sample, "validation": self.validation}.items():
            whole = len(pairs.queries) // batch * batch
            forward = self.forward(pairs, torch.arange(whole, device=self.active.device).view(1, -1, batch))
            if observe:
                observe(self.snapshot(split, epoch, forward, {}))
        loss = forward[-1]["contrastive"]
        largest = [value.detach().abs().flatten(1).amax(1) for value in self.parameters.values()]
        self.stop_where(~(torch.stack([loss.abs(), *largest]) < LARGEST).all(0))  # true for NaN as well
        return loss

    def stop_where(self, diverged: Tensor) -> None:
        """Note the step at which active runs diverged, and stop them; diverged: (R,) bool."""
        self.diverged = torch.where(self.active & diverged, self.step, self.diverged)
        self.active &= ~diverged

    def keep_best(self, epoch: int, loss: Tensor) -> None:
        """Keep the parameters of the runs whose validation loss (R,) is a new low; stop those whose patience is over."""
        better = self.active & (loss < self.best_loss)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_epoch = torch.where(better, epoch, self.best_epoch)
        for name, value in self.parameters.items():
            self.best[name][better] = value.detach()[better]
        patience = self.hyper["patience"]
        self.active &= (patience == 0) | (epoch - self.best_epoch < patience)


def average(parts: Sequence[heads.Parameters]) -> heads.Parameters:
    """The mean of several runs' parameters."""
    return {name: value.mean(0) for name, value in heads.stack(list(parts)).items()}


def average_runs(runs: Sequence[TrainedRun], seed: int) -> TrainedRun:
    """One run whose parameters are the mean of several runs' of one recipe: best with best, last with last.

    Only for linear heads that start at the identity: their seeds differ in the order of the batches alone, so they end in
    one basin. Random weights (of a start or a hidden layer) have no mean: InputError, as for runs that diverged.
    seed: of the result. best_epoch is the members' rounded mean, validation_loss their mean over the epochs that all of them
    ran; neither is measured on the averaged parameters.
    Wortsman et al. 2022, uniform soup (arXiv:2203.05482).
    """
    if len({run.recipe for run in runs}) != 1:
        raise InputError("average_runs: expected runs of exactly one recipe")
    recipe = runs[0].recipe
    if recipe.start != "identity" or recipe.head != "linear":
        what = f"a {recipe.head} head with a {recipe.start} start"
        raise InputError(f"average_runs: {recipe.name!r} has {what}; only linear heads from the identity share a basin")
    if broken := [run.seed for run in runs if run.diverged]:
        raise InputError(f"average_runs: {recipe.name!r} diverged with seed {broken[0]}")
    best, last = average([run.best for run in runs]), average([run.last for run in runs])
    epoch = round(sum(run.best_epoch for run in runs) / len(runs))
    curve = [sum(values) / len(values) for values in zip(*(run.validation_loss for run in runs), strict=False)]
    return TrainedRun(recipe, seed, best, last, epoch, curve)
