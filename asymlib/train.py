"""One loop that trains R runs at once: parameters stacked along a leading axis, one batch of pairs a run and step.

A run is a (System, seed). Runs that share an architecture are stacked; their learning rate, weight decay, temperature,
loss weights and clipping are (R,) tensors, and everything that decides about a run (clipping, early stopping, best epoch,
divergence) acts on its own row. R = 1 is just a single run.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from tqdm.auto import tqdm

from asymlib import heads, losses
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, sha256_file, write_json
from asymlib.systems import System, system_from_dict


@dataclass(frozen=True)
class PairVectors:
    """Frozen embeddings of (query, document) pairs: row i of documents is the positive of row i of queries.

    queries, documents: (N, D) float32. passage: (N,) int64, equal where two rows have the same document text.
    query: (N,) int64, equal where two rows have the same query text; None: all texts differ.
    known: (P,) int64, the distinct (query, passage) pairs in order, each as one integer; None without `query`.
    documents and passage may be longer than queries (see with_corpus): what comes after row N belongs to no pair and can
    only be mined.
    """

    queries: Tensor
    documents: Tensor
    passage: Tensor
    query: Tensor | None = None
    known: Tensor | None = None

    @staticmethod
    def of(
        queries: np.ndarray, documents: np.ndarray, passage: np.ndarray, query: np.ndarray | None = None
    ) -> "PairVectors":
        """Check and wrap arrays; NaN, zero rows and shapes that disagree are refused, naming the side and row."""
        for side, array in (("queries", queries), ("documents", documents)):
            if array.ndim != 2 or array.shape != queries.shape or len(array) != len(passage):
                raise InputError(
                    f"pairs: {side} has shape {array.shape}, expected two equal (N, D) shapes and N = {len(passage)} passages"
                )
            bad = np.flatnonzero(~np.isfinite(array).all(1) | ~array.any(1))
            if len(bad):
                raise InputError(f"pairs: {side} row {bad[0]} is NaN, infinite or zero ({len(bad)} such rows)")
        numbers = [torch.from_numpy(np.array(passage, dtype=np.int64))]
        if query is not None:
            numbers.append(torch.from_numpy(np.array(query, dtype=np.int64)))
            for name, value in zip(("passage", "query"), numbers, strict=True):
                if len(value) != len(queries) or bool((value < 0).any()) or bool((value >= 2**31).any()):
                    raise InputError(f"pairs: expected {len(queries)} {name} numbers from 0 to {2**31 - 1}")
            numbers.append(_joined(numbers[1], numbers[0]).unique())
        return PairVectors(
            torch.from_numpy(np.array(queries, dtype=np.float32)),
            torch.from_numpy(np.array(documents, dtype=np.float32)),
            *numbers,
        )

    def with_corpus(self, documents: np.ndarray, passage: np.ndarray, known: np.ndarray) -> "PairVectors":
        """The same pairs, with documents of no pair to mine from and further (query, passage) that are no negatives.

        documents: (C, D); passage: (C,), numbered as the pairs' are. known: (K, 2) int64. Only for pairs with `query`.
        """
        if self.query is None or documents.shape != (len(passage), self.queries.shape[1]):
            raise InputError(f"pairs: expected query numbers and {len(passage)} documents, found {documents.shape}")
        more = torch.from_numpy(np.array(known, dtype=np.int64)).reshape(-1, 2)
        return PairVectors(
            self.queries,
            torch.cat([self.documents, torch.from_numpy(np.array(documents, dtype=np.float32))]),
            torch.cat([self.passage, torch.from_numpy(np.array(passage, dtype=np.int64))]),
            self.query,
            torch.cat([self.known, _joined(more[:, 0], more[:, 1])]).unique(),
        )

    def first(self, count: int) -> "PairVectors":
        """The first `count` pairs; a document that a later pair calls positive stays known as such."""
        query = None if self.query is None else self.query[:count]
        return PairVectors(self.queries[:count], self.documents[:count], self.passage[:count], query, self.known)

    def to(self, device: torch.device) -> "PairVectors":
        """The same on another device."""
        fields = (self.queries, self.documents, self.passage, self.query, self.known)
        return PairVectors(*(None if value is None else value.to(device) for value in fields))

    def positive(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which documents are known positives, and so no negatives: (..., B) and (..., M) pair numbers -> (..., B, M) bool.

        The document of pair j is a positive of the query of pair i if they have the same passage, or if any pair at all,
        in the batch or not, joins a query of the same text to it (so also if i and j have the same query text).
        """
        same = self.passage[rows].unsqueeze(-1) == self.passage[columns].unsqueeze(-2)
        if self.query is None:
            return same
        asked = _joined(self.query[rows].unsqueeze(-1), self.passage[columns].unsqueeze(-2))
        place = torch.searchsorted(self.known, asked).clamp_max(len(self.known) - 1)
        return same | (self.known[place] == asked)


def _joined(query: Tensor, passage: Tensor) -> Tensor:
    """One int64 for each (query, passage), both below 2^31."""
    return (query << 32) | passage


MARGIN = 0.95  # NV-Retriever's share of the positive's score that a negative may reach


@torch.no_grad()
def mine(training: PairVectors, count: int, margin: float = MARGIN, chunk: int = 512) -> Tensor:
    """The hardest documents that are probably no positives: for each pair, `count` others by frozen cosine with its query.

        keep d with cos(q_i, d) <= c_i + (margin - 1) |c_i|,  c_i = cos(q_i, d_i)

    Known positives of the query are left out (PairVectors.positive); above margin x the positive's own cosine lie probable
    positives that nobody has marked, and they are left out too (margin inf: they are not). Every distinct passage is a
    candidate once. Exact, `chunk` queries at a time.
    Returns (N, count) int64 pair numbers whose documents are meant, hardest first, -1 where there are no more.
    Moreira et al. 2024, positive-aware mining with TopK-PercPos (arXiv:2407.15831).
    """
    if count < 1 or not margin > 0:
        raise InputError(f"mine: count {count} and margin {margin}, expected at least 1 and a share above 0")
    device, total, documents = training.passage.device, len(training.queries), len(training.passage)
    distinct, which = training.passage.unique(return_inverse=True)
    place = torch.full((len(distinct),), documents, device=device)
    place.scatter_reduce_(0, which, torch.arange(documents, device=device), "amin")  # the first row of each passage
    candidates = losses.normalize(training.documents[place])
    found = torch.full((total, count), -1, device=device)
    for start in range(0, total, chunk):
        rows = torch.arange(start, min(start + chunk, total), device=device)
        queries = losses.normalize(training.queries[rows])
        own = (queries * losses.normalize(training.documents[rows])).sum(-1, keepdim=True)
        cosine = queries @ candidates.T
        cosine.masked_fill_(cosine > own + (margin - 1) * own.abs().clamp_min(losses.TINY), -torch.inf)
        # Positives are looked up only where they would be taken: as many more as a query of this chunk has positives.
        more = min(count + _most_positives(training, rows), len(place))
        best = cosine.topk(more, dim=1)
        taken = place[best.indices]
        out = torch.isneginf(best.values)
        out |= training.positive(rows.unsqueeze(1), taken).squeeze(1)  # each query against its own candidates
        order = out.to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]
        found[rows, : order.shape[1]] = torch.where(out.gather(1, order), -1, taken.gather(1, order))
    return found


def _most_positives(training: PairVectors, rows: Tensor) -> int:
    """The largest number of distinct positives that the query of any of these pairs has."""
    if training.query is None:
        return 1
    return int(torch.bincount(training.known >> 32)[training.query[rows]].max())


@dataclass(frozen=True)
class Snapshot:
    """What an observer of the training loop is shown; K blocks of B pairs a run (K = 1 in training)."""

    runs: Sequence[tuple[System, int]]
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
    gradients: dict[str, Tensor] = field(default_factory=dict)  # 'query', 'document' (R, K, B, D), 'parameters' (R,)


Observer = Callable[[Snapshot], None]


@dataclass
class TrainedRun:
    """One finished run. `best` holds the parameters after the epoch with the lowest validation loss, `last` the final ones."""

    system: System
    seed: int
    best: heads.Parameters
    last: heads.Parameters
    best_epoch: int  # 1, 2, ...; 0 only if no epoch gave a finite validation loss, and then `best` is the start
    validation_loss: list[float]  # contrastive loss after epoch 0 (untrained), 1, 2, ... until it stopped, in nats
    diverged_at: int | None = None  # step of the first loss or gradient that was not finite


def _structure(system: System) -> tuple[Any, ...]:
    """Runs with the same key can be stacked."""
    return (
        system.head, system.sides, system.similarity, system.isotropy, system.batch_size, system.epochs,
        system.hard_negatives, system.prediction_weight > 0, system.recovery_weight > 0,
    )  # fmt: skip


def train(
    runs: Sequence[tuple[System, int]],
    training: PairVectors,
    validation: PairVectors,
    observe: Observer | None = None,
    log_every: int = 10,
    device: str | torch.device | None = None,
    progress: bool = True,
    negatives: Tensor | None = None,
) -> list[TrainedRun]:
    """Train every (system, seed) and return the results in the order given.

    training, validation: frozen embeddings. A run sees floor(N / batch_size) batches an epoch, in an order drawn from
        its seed; the incomplete last batch is dropped. Validation is in blocks of batch_size, in the order given.
    observe: called every `log_every` steps on the training batch (gradients included) before its update, and on the
        validation pairs and as many training pairs before the first step and after each epoch.
    negatives: (N, C) of `mine`, with C at least the largest hard_negatives of a run; None: mined here if a run asks for any.
        A run with hard_negatives = K adds the first K of each pair of its batch as columns for the whole batch, as in DPR:
        B documents become B (1 + K). Observers, isotropy, prediction, recovery and validation see the B alone.
    device: default CUDA when there is one. The same seed on the same device gives the same numbers.
    The best epoch, early stopping (`patience`) and TrainedRun.validation_loss go by the contrastive loss alone, so that
    runs with different weights stay comparable.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    if log_every < 1:
        raise InputError(f"train: log_every = {log_every}, expected 1 or more")
    names = [(system.name, seed) for system, seed in runs]
    for name, seed in names:
        if names.count((name, seed)) > 1:
            raise InputError(f"train: two runs named {name!r} with seed {seed}, their rows could not be told apart")
    for index, (system, _) in enumerate(runs):
        if not system.trained:
            raise InputError(f"train: system {system.name!r} has no head, there is nothing to train")
        for split, pairs in (("training", training), ("validation", validation)):
            if len(pairs.queries) < system.batch_size:
                raise InputError(
                    f"train: {len(pairs.queries)} {split} pairs, expected at least batch_size = {system.batch_size}"
                )
        if training.queries.shape[1] != validation.queries.shape[1]:
            raise InputError(
                f"train: validation vectors have {validation.queries.shape[1]} dimensions, training {training.queries.shape[1]}"
            )
        groups[_structure(system)].append(index)
    results: list[TrainedRun | None] = [None] * len(runs)
    training, validation = training.to(device), validation.to(device)
    most = max((system.hard_negatives for system, _ in runs), default=0)
    if most and negatives is None:
        negatives = mine(training, most)
    elif most and (negatives.shape[0] != len(training.queries) or negatives.shape[1] < most):
        raise InputError(
            f"train: negatives have shape {tuple(negatives.shape)}, expected {len(training.queries)} rows of at least {most}"
        )
    torch.set_flush_denormal(
        True
    )  # dying ReLU and Adam moments reach denormals, which cost a CPU 100 times a normal number
    try:
        for indices in groups.values():
            stack = _Stack([runs[i] for i in indices], training, validation, device, negatives)
            for index, result in zip(indices, stack.run(observe, log_every, progress), strict=True):
                results[index] = result
    finally:
        torch.set_flush_denormal(False)
    return results  # type: ignore[return-value]


class _Stack:
    """R runs of one architecture and their optimiser state."""

    def __init__(
        self,
        runs: list[tuple[System, int]],
        training: PairVectors,
        validation: PairVectors,
        device: torch.device,
        negatives: Tensor | None = None,
    ):
        self.runs, self.training, self.validation, self.device = runs, training, validation, device
        self.shape = runs[0][0]  # what all runs share: similarity, isotropy, batch size, epochs
        self.negatives = negatives[:, : self.shape.hard_negatives].to(device) if self.shape.hard_negatives else None
        dim = training.queries.shape[1]
        starts = [heads.start_heads(s.head, s.start, s.sides, dim, seed, s.prediction_weight > 0) for s, seed in runs]
        self.parameters = {name: value.to(device).requires_grad_() for name, value in heads.stack(starts).items()}
        # One group of parameters a run: the slices share memory with the stack, so a step moves the stack itself.
        slices = [[value.detach()[r].requires_grad_() for value in self.parameters.values()] for r in range(len(runs))]
        groups = [
            {"params": part, "lr": system.lr, "weight_decay": system.weight_decay}
            for part, (system, _) in zip(slices, runs, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.orders = [torch.Generator().manual_seed(1_000_003 + seed) for _, seed in runs]
        self.active = torch.ones(len(runs), dtype=torch.bool, device=device)
        self.step = 0
        self.hypers: dict[str, Tensor] = {}

    def hyper(self, name: str) -> Tensor:
        """One field of every run's system, as an (R,) tensor."""
        if name not in self.hypers:
            self.hypers[name] = torch.tensor([getattr(system, name) for system, _ in self.runs], device=self.device)
        return self.hypers[name]

    def forward(
        self, pairs: PairVectors, rows: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
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
        terms = {"contrastive": losses.info_nce(compared, self.hyper("temperature")[:, None], masked).mean(1)}
        isotropy = losses.ISOTROPY[self.shape.isotropy]
        if isotropy:
            terms["isotropy"] = (isotropy(q) + isotropy(d)).mean(1) / 2
        if self.shape.prediction_weight > 0:
            predicted = heads.apply_head(self.parameters, "predictor", q.reshape(runs, -1, dim))
            terms["prediction"] = losses.prediction(predicted, d.reshape(runs, -1, dim))
        if self.shape.recovery_weight > 0:
            terms["recovery"] = (losses.recovery(q, x_q) + losses.recovery(d, x_d)).mean(1) / 2
        total = terms["contrastive"]
        for name in ("isotropy", "prediction", "recovery"):
            if name in terms:
                total = total + self.hyper(f"{name}_weight") * terms[name]
        return q, d, scores, same, {"total": total, **terms}

    def update(self, gradients: dict[str, Tensor]) -> None:
        """One torch.optim.AdamW step of the runs that are active, each with its own learning rate and weight decay."""
        self.step += 1
        for r, (group, active) in enumerate(zip(self.optimizer.param_groups, self.active.tolist(), strict=True)):
            for part, gradient in zip(group["params"], gradients.values(), strict=True):
                part.grad = gradient[r] if active else None  # a parameter without a gradient is left as it is
        self.optimizer.step()

    def clip(self, gradients: dict[str, Tensor]) -> Tensor:
        """Scale each run's gradient to at most its clip_norm; returns the norms before, (R,)."""
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        limit = self.hyper("clip_norm")
        if bool((limit > 0).any()):
            scale = torch.where(limit > 0, (limit / (norm + 1e-6)).clamp_max(1.0), 1.0)
            for gradient in gradients.values():
                gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
        return norm

    def snapshot(self, split: str, epoch: float, forward: tuple[Any, ...], gradients: dict[str, Tensor]) -> Snapshot:
        q, d, scores, same, terms = forward
        return Snapshot(
            self.runs, self.active.clone(), self.step, epoch, split, q.detach(), d.detach(), scores.detach(), same,
            self.hyper("temperature"), {name: value.detach() for name, value in terms.items()}, gradients,
        )  # fmt: skip

    @torch.no_grad()
    def look(self, pairs: PairVectors, split: str, epoch: float, observe: Observer | None) -> Tensor:
        """Contrastive loss of every run on `pairs`, in blocks of the batch size and in the order given, (R,)."""
        batch = self.shape.batch_size
        blocks = len(pairs.queries) // batch
        forward = self.forward(pairs, torch.arange(blocks * batch, device=self.device).view(1, blocks, batch))
        if observe:
            observe(self.snapshot(split, epoch, forward, {}))
        return forward[-1]["contrastive"]

    def validate(self, epoch: float, observe: Observer | None) -> Tensor:
        """Contrastive loss on the validation pairs, (R,); an observer also sees as many of the training pairs."""
        if observe:
            self.look(self.training.first(len(self.validation.queries)), "training sample", epoch, observe)
        return self.look(self.validation, "validation", epoch, observe)

    def run(self, observe: Observer | None, log_every: int, progress: bool) -> list[TrainedRun]:
        batch, runs = self.shape.batch_size, len(self.runs)
        steps = len(self.training.queries) // batch
        validation_loss = [self.validate(0.0, observe)]
        best = {name: value.detach().clone() for name, value in self.parameters.items()}
        best_loss = torch.full((runs,), torch.inf, device=self.device)
        best_epoch = torch.zeros(runs, dtype=torch.long, device=self.device)
        diverged = torch.full((runs,), -1, dtype=torch.long, device=self.device)
        patience = self.hyper("patience")
        epochs_run = torch.zeros(runs, dtype=torch.long, device=self.device)
        bar = tqdm(
            total=self.shape.epochs * steps, desc=f"{self.shape.name} x{runs}", unit="step", disable=not progress
        )
        for epoch in range(1, self.shape.epochs + 1):
            epochs_run += self.active
            order = torch.stack([torch.randperm(len(self.training.queries), generator=g) for g in self.orders]).to(
                self.device
            )
            for i in range(steps):
                rows = order[:, None, i * batch : (i + 1) * batch]
                added = None if self.negatives is None else self.negatives[rows].flatten(2)
                forward = self.forward(self.training, rows, added)
                watched = observe is not None and self.step % log_every == 0
                embeddings = [z for z in forward[:2] if z.requires_grad] if watched else []
                wanted = [*self.parameters.values(), *embeddings]
                # Rows of the total loss are independent, so the gradient of their sum is every run's own gradient.
                found = torch.autograd.grad(forward[-1]["total"].sum(), wanted)
                # contiguous: the gradient of weight.mT comes transposed, and the fused kernel takes no strides
                gradients = {name: part.contiguous() for name, part in zip(self.parameters, found, strict=False)}
                norm = self.clip(gradients)
                finite = torch.isfinite(norm) & torch.isfinite(forward[-1]["total"])
                diverged = torch.where(self.active & ~finite, self.step, diverged)
                self.active &= finite
                if watched:
                    tail = iter(found[len(self.parameters) :])
                    sides = {
                        side: next(tail)
                        for side, z in zip(("query", "document"), forward[:2], strict=True)
                        if z.requires_grad
                    }
                    observe(self.snapshot("train", self.step / steps, forward, {"parameters": norm, **sides}))
                self.update(gradients)
                bar.update()
            loss = self.validate(float(epoch), observe)
            validation_loss.append(loss)
            better = self.active & (loss < best_loss)
            best_loss, best_epoch = torch.where(better, loss, best_loss), torch.where(better, epoch, best_epoch)
            for name, value in self.parameters.items():
                best[name][better] = value.detach()[better]
            self.active &= (patience == 0) | (epoch - best_epoch < patience)
            bar.set_postfix(validation=f"{float(loss.median()):.3f}")
            if not bool(self.active.any()):
                break
        bar.close()
        curves = torch.stack(validation_loss, 1).tolist()
        return [
            TrainedRun(
                system, seed, heads.unstack(best, r), heads.unstack(self.parameters, r), int(best_epoch[r]),
                curves[r][: int(epochs_run[r]) + 1],
                int(diverged[r]) if diverged[r] >= 0 else None,
            )
            for r, (system, seed) in enumerate(self.runs)
        ]  # fmt: skip


def average_runs(runs: Sequence[TrainedRun], seed: int) -> TrainedRun:
    """One run whose parameters are the mean of several runs' of one system: best with best, last with last.

    Only for linear heads that start at the identity: their seeds differ in the order of the batches alone, so they end in
    one basin. Random weights (a random start, or a residual head's hidden layer) of different seeds have nothing in common,
    and their mean is no head at all: InputError, as for runs that diverged.
    seed: the seed that the result is to carry. best_epoch is the members' rounded mean, validation_loss their mean over the
    epochs that all of them ran; neither is measured on the averaged parameters.
    Wortsman et al. 2022, uniform soup (arXiv:2203.05482).
    """
    if len({run.system for run in runs}) != 1:
        raise InputError("average_runs: expected runs of exactly one system")
    system = runs[0].system
    if system.start != "identity" or system.head != "linear":
        raise InputError(
            f"average_runs: system {system.name!r} has a {system.head} head with a {system.start} start; only linear heads"
            " from the identity share a basin, the mean of weights drawn with different seeds is no head"
        )
    if broken := [run.seed for run in runs if run.diverged_at is not None]:
        raise InputError(f"average_runs: system {system.name!r} diverged with seed {broken[0]}")
    best, last = (
        {name: torch.stack([getattr(run, kind)[name] for run in runs]).mean(0) for name in runs[0].best}
        for kind in ("best", "last")
    )
    curves = zip(*(run.validation_loss for run in runs), strict=False)
    losses_seen = [sum(values) / len(values) for values in curves]
    epoch = round(sum(run.best_epoch for run in runs) / len(runs))
    return TrainedRun(system, seed, best, last, epoch, losses_seen)


def save_runs(folder: str | Path, runs: Sequence[TrainedRun], **origin: Any) -> None:
    """Write runs of one system as heads.safetensors and config.json; config.json, written last, marks the folder complete.

    origin: anything else to keep beside the system's own fields, e.g. the encoder's key (JSON literals).
    """
    folder = Path(folder)
    if len({run.system for run in runs}) != 1:
        raise InputError(f"{folder}: expected runs of exactly one system")
    tensors = {
        f"{kind}/{run.seed}/{name}": value.contiguous().cpu()
        for run in runs
        for kind, parameters in (("best", run.best), ("last", run.last))
        for name, value in parameters.items()
    }
    with atomic_path(folder / "heads.safetensors") as temporary:
        temporary.write_bytes(save(tensors))  # save_file would hide a full disk in an error of its own
    rows = [
        {
            "seed": run.seed,
            "best_epoch": run.best_epoch,
            "validation_loss": run.validation_loss,
            "diverged_at": run.diverged_at,
        }
        for run in runs
    ]
    sha256 = sha256_file(folder / "heads.safetensors")
    write_json(folder / "config.json", {**origin, "system": runs[0].system.to_dict(), "runs": rows, "sha256": sha256})


def load_runs(folder: str | Path, **expected: Any) -> tuple[list[TrainedRun], dict[str, Any]]:
    """Read what save_runs wrote: the runs, and config.json whole (system, runs, SHA-256 of the heads, and origin).

    expected: what the heads must have been trained on, by the names given to save_runs, e.g. encoder=key, study=hash.
    A missing or altered file, or heads trained on something else, is an InputError that names it.
    """
    folder = Path(folder)
    path, config = folder / "heads.safetensors", read_json(folder / "config.json")
    missing = [name for name in ("system", "runs", "sha256") if not isinstance(config, dict) or name not in config]
    if missing:
        raise InputError(f"{folder / 'config.json'}: field {missing[0]!r} is missing; expected what save_runs writes")
    for name, value in expected.items():
        if config.get(name) != value:
            raise InputError(
                f"{folder / 'config.json'}: trained with {name} {config.get(name)!r}, but {value!r} is in use now; train again"
            )
    system = system_from_dict(config["system"])
    if not path.exists():
        raise InputError(f"{path}: no such file, though config.json beside it describes it; train again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config["sha256"]:
        raise InputError(f"{path}: changed since it was written (SHA-256 differs from config.json); train again")
    tensors = load(data)
    stored: dict[tuple[str, int], heads.Parameters] = defaultdict(dict)
    for key, value in tensors.items():
        kind, seed, name = key.split("/", 2)
        stored[kind, int(seed)][name] = value
    runs = []
    for row in config["runs"]:
        if system.trained and ("best", row["seed"]) not in stored:
            raise InputError(
                f"{folder / 'heads.safetensors'}: no parameters for seed {row['seed']} that config.json names"
            )
        best, last = stored["best", row["seed"]], stored["last", row["seed"]]
        runs.append(
            TrainedRun(system, row["seed"], best, last, row["best_epoch"], row["validation_loss"], row["diverged_at"])
        )
    return runs, config
