"""Lengths and angles while Sentence Transformers trains: a callback that records them, raises the alarm and can stop."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import TrainerCallback

from asymlib.alarm import ROWS, Alarm, Finding
from asymlib.errors import InputError
from asymlib.losses import score_matrix
from asymlib.magnitude import HISTORY_COLUMNS, radial_share, statistics

logger = logging.getLogger(__name__)
SIMILARITIES = {"dot_score": "dot", "cos_sim": "cosine", "CosineSimilarity": "cosine"}  # by similarity_fct's name


def alarm_for(loss: torch.nn.Module) -> Alarm:
    """The alarm with a loss's own temperature, which is 1 / scale, and similarity_fct."""
    function, scale = getattr(loss, "similarity_fct", None), getattr(loss, "scale", None)
    temperature = getattr(loss, "temperature", None) if scale is None else 1 / float(scale)
    similarity = SIMILARITIES.get(getattr(function, "__name__", type(function).__name__))
    if temperature is None or similarity is None:
        raise InputError(f"{type(loss).__name__}: temperature or similarity unknown; expected alarm=Alarm(...)")
    return Alarm(float(temperature), similarity)


class MagnitudeCallback(TrainerCallback):
    """Watches what a contrastive loss does to lengths and angles while SentenceTransformerTrainer trains.

        trainer = SentenceTransformerTrainer(model=model, args=args, train_dataset=pairs, loss=loss)
        callback = MagnitudeCallback(loss).attach(trainer)
        trainer.train()
        callback.findings, callback.history

    loss: the trainer's own, with columns anchor, positive, negatives; of a wrapper such as MatryoshkaLoss the inner one.
    stop: end the training at the first finding. alarm: if other limits than those of alarm_for(loss) are wanted.
    Each step's last batch of at least two pairs goes to the alarm; new findings are logged. At each logging step the history
    gets its magnitude.statistics, gradient.<side>.radial_share (nan for a frozen side) and the number of findings so far, and
    the trackers get them as magnitude/<name>; where stop ended the training, the history gets that step too, the trackers
    do not. Not recorded: steps between logging steps, evaluation, batches of one pair, all batches of a step but the last,
    other processes' batches. Training is the same to the bit as without the callback.
    """

    def __init__(self, loss: torch.nn.Module, stop: bool = False, alarm: Alarm | None = None):
        self.loss, self.stop, self.alarm, self.attached = loss, stop, alarm or alarm_for(loss), False
        self.findings: list[Finding] = []  # their epoch is the training's
        self._rows: list[tuple] = []  # of the history
        self._restore: Any = None  # makes the loss what it was
        self._batch: tuple[list[Tensor], list[Tensor]] | None = None  # anchors and documents, in parts
        self._last: dict[str, tuple[Tensor, Tensor]] = {}  # side: embeddings (B, D) or (n B, D), gradient

    def attach(self, trainer: Any) -> "MagnitudeCallback":
        """Take the first place among the trainer's callbacks, before its trackers, so that they get the rows."""
        others = [callback for callback in trainer.callback_handler.callbacks if callback is not self]
        trainer.callback_handler.callbacks[:] = [self, *others]
        self.attached = True
        return self

    @property
    def history(self) -> pd.DataFrame:
        """The rows so far, as magnitude.Recorder's: system (the loss), seed, step, epoch, split ('train'), name, value."""
        return pd.DataFrame(self._rows, columns=list(HISTORY_COLUMNS))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop and args.world_size > 1:
            raise InputError("MagnitudeCallback: stop=True would end one of several processes; expected stop=False")
        if args.report_to and not self.attached:
            logger.warning("the rows reach no tracker: use attach(trainer) in place of callbacks=[...]")
        name = "calculate_loss" if hasattr(self.loss, "calculate_loss") else "forward"  # cached losses have the first
        if self._restore is None:  # else a training before ended in an error
            before = vars(self.loss).get(name)
            self._restore = partial(setattr, self.loss, name, before) if before else partial(delattr, self.loss, name)
            setattr(self.loss, name, partial(getattr(self, f"_{name}"), getattr(self.loss, name)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._restore()
        self._restore = None
        if self.stop and self.findings and self._last:
            self._record(args, state)
        if not (self._rows or self._last):
            logger.warning("no batch was seen: %s is not the loss of this trainer", type(self.loss).__name__)

    def _calculate_loss(self, original: Any, columns: list[list[Tensor]], *arguments: Any, **keywords: Any) -> Any:
        self._watch(columns[0], [part for column in columns[1:] for part in column])
        return original(columns, *arguments, **keywords)

    def _forward(self, original: Any, *arguments: Any, **keywords: Any) -> Any:
        seen: list[Tensor] = []
        with self.loss.model.register_forward_hook(lambda _, __, output: seen.append(output["sentence_embedding"])):
            result = original(*arguments, **keywords)
        self._watch(seen[:1], seen[1:])
        return result

    def _watch(self, anchors: list[Tensor], documents: list[Tensor]) -> None:
        """Keep a training batch's embeddings; their gradients come with the backward pass."""
        if torch.is_grad_enabled() and sum(map(len, anchors)) > 1:
            if not documents:
                raise InputError(f"{type(self.loss).__name__}: one column of texts, expected anchors and positives")
            self._batch = anchors, documents
            for part in (*anchors, *documents):
                if part.requires_grad:
                    part.retain_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._batch is None:
            return
        for side, parts in zip(("query", "document"), self._batch, strict=True):
            gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in parts]
            self._last[side] = tuple(torch.cat(all_parts).detach().float() for all_parts in (parts, gradients))
        self._batch = None
        for finding in self.alarm(self._last["query"][0], self._last["document"][0]):
            logger.warning("step %d: %s, expected %s", state.global_step, finding.message, finding.expected)
            self.findings.append(replace(finding, epoch=float(state.epoch)))
            control.should_training_stop |= self.stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs and self._last:
            logs.update({f"magnitude/{name}": value for name, value in self._record(args, state).items()})

    def _record(self, args: Any, state: Any) -> dict[str, float]:
        """The last batch's values, which become rows of the history."""
        last, self._last = self._last, {}
        (q, _), (d, _) = last.values()
        few, many = q[:ROWS], torch.cat([column[:ROWS] for column in d.split(len(q))])
        kind = torch.unique(many, dim=0, return_inverse=True)[1]
        scores, same = score_matrix(few, many, self.alarm.similarity), kind[: len(few), None] == kind
        rows = statistics(*(x[None, None] for x in (few, many, scores, same)), q.new_tensor([self.alarm.temperature]))
        rows |= {f"gradient.{side}.radial_share": radial_share(g, z) for side, (z, g) in last.items()}
        values = {name: float(value) for name, value in rows.items()} | {"findings": float(len(self.findings))}
        where = (type(self.loss).__name__, args.seed, state.global_step, float(state.epoch), "train")
        self._rows += [(*where, *row) for row in values.items()]
        return values
