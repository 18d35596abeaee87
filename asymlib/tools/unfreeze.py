"""An encoder's top layers trained through Sentence Transformers; what is below them stays frozen and is computed once.

The layers below, in evaluation mode, give a text the same token states in every step, epoch and run: `Below` keeps them.
The layers that are trained are in training mode, with the model's own dropout. A Normalize at the model's end is left out,
so that lengths are free. Lengths are counted in units of the frozen documents' mean, a constant: a dot product then begins
about where the cosine does, and a temperature means the same under both.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asymlib.alarm import Finding
from asymlib.encoding.encode import CHUNK_TEXTS, CPU_TOKENS, CUDA_TOKENS, token_batches
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_encoder, load_model
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, read_record, write_json, write_record
from asymlib.losses import info_nce, score_matrix
from asymlib.magnitude import HISTORY_COLUMNS, statistics
from asymlib.pair_vectors import PairVectors
from asymlib.tools.callback import MagnitudeCallback

UNIT_TEXTS = 1_000  # documents whose mean length is the unit
WARM_UP = 0.1  # share of the steps in which the rate rises along a line; it then falls to 0 along another
LOSS = "loss.contrastive"  # of the history
WEIGHTS, WATCHED = "top.safetensors", "watched.json"  # of a checkpoint, which is whole once it has the second


class Below:
    """The frozen layers of an encoder under its `layers` top ones, and the token states that they give.

    encoder: in float32, whose layers are network.encoder.layer, as BERT, RoBERTa and MPNet have them. documents: texts whose
    mean length is the unit. InputError: another architecture, no layer left below, a prompt that pooling would skip.
    """

    def __init__(self, encoder: EncoderConfig, layers: int, documents: Sequence[str]):
        found = find_encoder(replace(encoder, dtype="float32"))
        model = load_model(found.folder, found.key, encoder.max_length, "float32", encoder.device)
        stack = getattr(getattr(getattr(model[0], "auto_model", None), "encoder", None), "layer", ())
        if not 0 < layers < len(stack) or (any(found.prompts.values()) and not model[1].include_prompt):
            expected = "at least 1 and fewer than all, and pooling over prompts"
            raise InputError(f"{encoder.model}: {layers} of {len(stack)} in network.encoder.layer, expected {expected}")
        self.model, self.prompts, self.layers, self.key, self.unit = model, found.prompts, layers, found.key, 1.0
        self.lower, self.upper = copy.deepcopy(model[0].auto_model), copy.deepcopy(model[0].auto_model)
        self.lower.pooler = self.upper.pooler = None
        self.lower.encoder.layer, self.upper.encoder.layer = stack[:-layers], self.upper.encoder.layer[-layers:]
        self.upper.embeddings = _Given()
        self.kept: dict[str, Tensor] = {}  # prompt and text: its token states (L, H)
        (vectors,) = self.encode([self.top()], "document", documents[:UNIT_TEXTS])
        self.unit = float(np.linalg.norm(vectors, axis=1).mean())

    def keep(self, side: str, texts: Sequence[str]) -> None:
        """Compute the states of one side's texts and hold them in float16, 2 bytes a token and dimension.

        All-MiniLM-L6-v2's losses over two epochs moved by at most 0.02 % against states computed anew in float32.
        """
        for states in self._compute({self.prompts[side] + text for text in texts} - self.kept.keys()):
            self.kept |= {text: state.half() for text, state in states.items()}

    def features(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the layers above read: states (B, L, H) float32, kept or new, of texts with their prompt; mask (B, L)."""
        found = {text: self.kept[text] for text in texts if text in self.kept}
        for states in self._compute(set(texts) - found.keys()):
            found |= states
        return _padded([found[text] for text in texts])

    def top(self) -> Any:
        """A SentenceTransformer of the layers above, as they were, that reads texts through this object."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize

        rest = [copy.deepcopy(module) for module in list(self.model)[1:] if not isinstance(module, Normalize)]
        first = _Top(copy.deepcopy(self.upper), self)
        model = SentenceTransformer(modules=[first, *rest], device=str(self.model.device)).requires_grad_(False)
        first.network.encoder.layer.requires_grad_(True)
        return model.eval()

    @torch.no_grad()
    def encode(self, models: Sequence[Any], side: str, texts: Sequence[str]) -> list[np.ndarray]:
        """Vectors (N, D) float32 of N texts under each of these models of top(); the layers below run once for all."""
        given, order, vectors = [self.prompts[side] + text for text in texts], [], [[] for _ in models]
        for states in self._compute(set(given)):
            order += states
            for model, own in zip(models, vectors, strict=True):
                own.append(model(_padded([*states.values()]))["sentence_embedding"].float().cpu().numpy())
        row = {text: row for row, text in enumerate(order)}
        return [np.concatenate(own)[[row[text] for text in given]] for own in vectors]

    @torch.no_grad()
    def _compute(self, texts: Collection[str]) -> Iterator[dict[str, Tensor]]:
        """Yield batches of texts, longest first, with their states (L, H), without padding."""
        ordered = sorted(texts, key=lambda text: (-len(text), text))
        budget = CPU_TOKENS if self.model.device.type == "cpu" else CUDA_TOKENS
        for chunk in (ordered[start : start + CHUNK_TEXTS] for start in range(0, len(ordered), CHUNK_TEXTS)):
            read = self.model.preprocess(chunk)
            read = {name: read[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in read}
            for rows in token_batches(read["attention_mask"].sum(1).clamp(min=1).numpy(), budget):
                used = read["attention_mask"][rows].any(dim=0)
                given = {name: part[rows][:, used].to(self.model.device) for name, part in read.items()}
                states, mask = self.lower(**given).last_hidden_state, given["attention_mask"].bool()
                yield {chunk[row]: state[own] for row, state, own in zip(rows, states, mask, strict=True)}


def _padded(states: list[Tensor]) -> dict[str, Tensor]:
    found = pad_sequence(states, batch_first=True).float()
    lengths = torch.tensor([len(state) for state in states], device=found.device)
    mask = torch.arange(found.shape[1], device=found.device) < lengths[:, None]
    return {"input_features": found, "attention_mask": mask.long()}  # the trainer looks for the first name


class _Given(torch.nn.Module):
    """In place of a network's embeddings: the states of the layers below."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Tensor:
        return inputs_embeds


class _Top(torch.nn.Module):
    """Texts to token states through `below`, on through the network's own layers, and into units."""

    def __init__(self, network: torch.nn.Module, below: Below):
        super().__init__()
        self.network, self.below = network, below

    def preprocess(self, texts: list[str], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        return self.below.features([(prompt or "") + text for text in texts])

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        found = self.network(inputs_embeds=features["input_features"], attention_mask=features["attention_mask"])
        return features | {"token_embeddings": found.last_hidden_state / self.below.unit}


class _Watch(MagnitudeCallback):
    """The callback, whose rows and alarm go into each checkpoint: a resumed training ends with the same ones."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        alarm = {name: vars(self.alarm)[name] for name in ("_past", "_held", "_calls")}
        about = {"rows": self._rows, "findings": [vars(one) for one in self.findings], "alarm": alarm}
        about["spoken"] = sorted(self.alarm._spoken)
        write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WATCHED, about)

    def restore(self, path: Path) -> None:
        about = read_json(path)
        self._rows, self.findings = [tuple(row) for row in about["rows"]], [Finding(**one) for one in about["findings"]]
        vars(self.alarm).update(about["alarm"], _spoken=set(about["spoken"]))


def train_top(
    below: Below, train: Any, validation: Any, similarity: str, seed: int, folder: Path, epochs: int = 3,
    lr: float = 5e-5, batch_size: int = 64, temperature: float = 0.05, log_every: int = 10,
) -> tuple[Any, pd.DataFrame, int]:  # fmt: skip
    """Train the layers above `below` by SentenceTransformerTrainer with MultipleNegativesRankingLoss, alarm attached.

        L = -1/B sum_i log( exp(s(q_i, d_i) / tau) / sum_j exp(s(q_i, d_j) / tau) )

    train, validation: pairs of texts, as data.pairs.Pairs; no text comes twice in a batch. similarity: "dot" or "cosine".
    seed: of the order of pairs and of dropout. lr: AdamW's highest, see WARM_UP. folder: of this run alone; a checkpoint
    follows each epoch, from which a killed run goes on to the same numbers; a finished run is read, one of other settings
    or texts begins anew. Returns the model of below.top() at the best epoch by validation loss; the history, with
    magnitude.HISTORY_COLUMNS (of split "train" the callback's rows, loss.contrastive and alarm.<rule>, what the alarm saw; of
    "validation" statistics and loss.contrastive at each epoch, of blocks of batch_size pairs, as train.train); that epoch.
    """
    texts = [train.queries, train.documents, validation.queries, validation.documents]
    settings = {"layers": below.layers, "similarity": similarity, "seed": seed, "epochs": epochs, "lr": lr,
                "batch_size": batch_size, "temperature": temperature, "log_every": log_every, "encoder": below.key,
                "unit": below.unit, "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}  # fmt: skip
    if not (folder / "settings.json").is_file() or read_json(folder / "settings.json") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "settings.json", settings)
    model = below.top()
    if not (folder / "run.json").is_file():
        rows, best = _fit(below, model, train, validation, folder, settings)
        with atomic_path(folder / WEIGHTS) as path:
            save_file(_trained(model), path)
        write_record(folder / "run.json", {"history": rows, "best_epoch": best})
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    run = read_record(folder / "run.json", "delete the folder and train again")
    model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    history = pd.DataFrame(run["history"], columns=list(HISTORY_COLUMNS))
    return model.eval(), history.assign(system=f"unfrozen-top-{below.layers}-{similarity}"), run["best_epoch"]


def _trained(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: own.detach().contiguous() for name, own in model.named_parameters() if own.requires_grad}


@torch.no_grad()
def _validate(below: Below, model: Any, pairs: Any, settings: dict) -> dict[str, float]:
    """statistics() and loss.contrastive of whole blocks of batch_size validation pairs."""
    size, tau = min(settings["batch_size"], len(pairs.queries)), settings["temperature"]
    vectors = []
    for side, texts in zip(SIDES, (pairs.queries, pairs.documents), strict=True):
        given = (model.preprocess(texts[i : i + size], prompt=below.prompts[side]) for i in range(0, len(texts), size))
        vectors.append(torch.cat([model(features)["sentence_embedding"] for features in given]).cpu().numpy())
    known = PairVectors.of(*vectors, pairs.passage, pairs.query_number)
    rows = torch.arange(len(known.queries) // size * size).view(1, -1, size)
    q, d, same = known.queries[rows], known.documents[rows], known.positive(rows, rows)
    scores = score_matrix(q, d, settings["similarity"])
    found = statistics(q, d, scores, same, torch.tensor([tau])) | {LOSS: info_nce(scores, tau, same).mean()}
    return {name: float(value) for name, value in found.items()}


def _fit(below: Below, model: Any, train: Any, validation: Any, folder: Path, settings: dict) -> tuple[list, int]:
    """Train the model in place, from its last whole checkpoint; rows of the history and the best epoch."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, util
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    class Trainer(SentenceTransformerTrainer):
        """Its checkpoints hold the trained weights alone, it is evaluated by _validate, and it writes no model card."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(_trained(self.model), Path(output_dir) / WEIGHTS)

        def _load_from_checkpoint(self, checkpoint_path: str, *_: Any) -> None:
            self.model.load_state_dict(load_file(Path(checkpoint_path) / WEIGHTS), strict=False)

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            found = _validate(below, self.model.eval(), validation, settings)
            self.log(metrics := {f"eval_{name}": value for name, value in found.items()})
            return metrics

        def add_model_card_callback(self, default_args_dict: dict) -> None:
            pass

    epochs, size = settings["epochs"], settings["batch_size"]
    steps = epochs * -(-len(train.queries) // size)
    last = max(folder.glob(f"checkpoint-*/{WATCHED}"), key=lambda path: int(path.parent.name[11:]), default=None)
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder), seed=settings["seed"], num_train_epochs=epochs, learning_rate=settings["lr"],
        warmup_steps=round(WARM_UP * steps), per_device_train_batch_size=size, batch_sampler="no_duplicates",
        prompts={"anchor": below.prompts["query"], "positive": below.prompts["document"]}, save_strategy="epoch",
        eval_strategy="epoch", eval_on_start=last is None, load_best_model_at_end=True, greater_is_better=False,
        metric_for_best_model=f"eval_{LOSS}", logging_steps=settings["log_every"], report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, use_cpu=model.device.type == "cpu",
    )  # fmt: skip
    data = Dataset.from_dict({"anchor": train.queries, "positive": train.documents})
    function = {"dot": util.dot_score, "cosine": util.cos_sim}[settings["similarity"]]
    loss = MultipleNegativesRankingLoss(model, scale=1 / settings["temperature"], similarity_fct=function)
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, loss=loss)
    trainer.remove_callback(PrinterCallback)
    watch = _Watch(loss).attach(trainer)
    if last:
        watch.restore(last)
    trainer.train(resume_from_checkpoint=str(last.parent) if last else None)
    rows = watch.history.values.tolist()
    for log in trainer.state.log_history:
        where = ("", args.seed, log["step"], log["epoch"])
        rows += [(*where, "validation", name[5:], value) for name, value in log.items() if name.startswith("eval_")]
        rows += [(*where, "train", LOSS, log["loss"])] if "loss" in log else []
    for one in watch.findings:
        where = ("", args.seed, round(one.epoch * steps / epochs), one.epoch)
        rows.append((*where, "train", f"alarm.{one.rule}", one.value))
    losses = {row[3]: row[-1] for row in rows if row[4:6] == ("validation", LOSS) and row[2]}
    return rows, round(min(losses, key=losses.get))
