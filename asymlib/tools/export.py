"""Heads on a frozen encoder as an ordinary SentenceTransformer folder: stock modules alone, nothing of asymlib inside."""

import json
import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from asymlib import checkpoints, heads, magnitude
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_encoder, load_model, longest
from asymlib.errors import InputError
from asymlib.files import read_json
from asymlib.losses import SIMILARITIES
from asymlib.recipes import Recipe
from asymlib.report.tables import read_table

EXAMPLE = "asymlib export data/runs/reproduce/heads/asym-cos-identity --out exported"
STORED = ("cosine", "dot", "euclidean")  # similarities that a model's folder can declare and asymlib knows
CARD = Path(__file__).with_name("card.md").read_text(encoding="utf-8")  # of a model


def export(
    folder: str | Path, encoder: EncoderConfig | str, recipe: Recipe, parameters: heads.Parameters, origin: dict
) -> Path:
    """Write a model whose encode_query and encode_document give heads.project of the encoder's vectors.

        the encoder's own modules -> Router: query -> the query's head, document -> the document's head

    folder: new or empty. encoder: whose vectors the heads were trained on, a name with its own max_length. Prompts and
        max_length are kept, weights are float32; a text without a task goes the document's way. recipe: its similarity becomes
        the model's, qnorm and dnorm a Normalize on that side and dot. parameters: one run's, or of heads.soft_whitening.
    origin: JSON literals for the model card, such as hashes, lengths and the seed; `results`, rows, is its table.
    Returns the folder: whole, or not there. InputError: a folder that holds something, parameters of another dimension.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router

    folder = check_new(folder)
    if learnt := [name for name in parameters if name.endswith(".exponent")]:
        raise InputError(f"export: {learnt[0]}, a power of a vector's length, is no module of Sentence Transformers")
    config = encoder_of(encoder)
    found = find_encoder(config)
    model = load_model(found.folder, found.key, found.config.max_length, "float32", "cpu")
    if wrong := {value.shape[-1] for value in parameters.values()} - {model.get_embedding_dimension()}:
        raise InputError(f"export: heads of {wrong.pop()} dimensions do not fit {found.config.model}")
    modules = [*model, Router.for_query_document(*(_side(parameters, side, recipe.similarity) for side in SIDES))]
    if cut := model.truncate_dim:  # a layer of its own, because the heads come after it
        with model.truncate_embeddings(None):
            dim = model.get_embedding_dimension()
        modules.insert(-1, Dense(dim, cut, False, None, torch.eye(cut, dim)))
    whole = SentenceTransformer(modules=modules, device="cpu", prompts=dict(found.prompts))
    whole.default_prompt_name = "document" if found.prompts["document"] else None
    whole.similarity_fn_name = "dot" if recipe.similarity in ("qnorm", "dnorm") else recipe.similarity
    about = {"recipe": recipe.to_dict(), "identity": found.identity, **origin}
    told = {"recipe": recipe.name, "similarity": whole.similarity_fn_name}
    return write_folder(folder, partial(whole.save, create_model_card=False), found.config, about, CARD, told)


def write_folder(
    folder: Path, save: Callable[[str], None], encoder: EncoderConfig, origin: dict, card: str, told: dict[str, str]
) -> Path:  # fmt: skip
    """A new folder with what `save` writes into a path, and its card, filled in with origin and told: whole, or not there."""
    about = dict(origin)
    results = pd.DataFrame(about.pop("results", ["No results were given: measure it before use."]))
    text = card.format(
        name=folder.name, model=Path(encoder.model).name, length=encoder.max_length, origin=json.dumps(about, indent=2),
        means="Means over the study's seeds, of which this model is one:" if "seeds" in results else "Results:",
        results=results.to_string(index=False, header=len(results.columns) > 1, float_format="%.4f"), **told,
    )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        save(f"{temporary}/model")
        Path(temporary, "model", "README.md").write_text(text, encoding="utf-8")
        os.replace(f"{temporary}/model", folder)
    return folder


def encoder_of(encoder: EncoderConfig | str) -> EncoderConfig:
    """A configuration as it is; of a name or folder one with the model's own max_length."""
    if isinstance(encoder, EncoderConfig):
        return encoder
    return EncoderConfig(encoder, max_length=longest(EncoderConfig(encoder)))


def add_encoder(parser: ArgumentParser) -> None:
    """The arguments that encoder_config reads."""
    parser.add_argument("--encoder", required=True, help="a folder that Sentence Transformers saved, or a Hub id")
    parser.add_argument("--max-length", type=int, help="tokens a text is cut to; left out: the model's own")
    parser.add_argument("--query-prompt", help="put before every query; left out: the model's own")
    parser.add_argument("--document-prompt", help="put before every document; left out: the model's own")


def encoder_config(options: Namespace) -> EncoderConfig:
    config = EncoderConfig(options.encoder, None, options.query_prompt, options.document_prompt)
    return replace(config, max_length=longest(config) if options.max_length is None else options.max_length)


def declared_similarity(folder: Path) -> str | None:
    """The similarity that a model's folder declares, if any."""
    about = folder / "config_sentence_transformers.json"
    similarity = read_json(about).get("similarity_fn_name") if about.is_file() else None
    if similarity not in (None, *STORED):
        raise InputError(f"{about}: similarity_fn_name {similarity!r}; expected one of {', '.join(STORED)}")
    return similarity


def check_new(folder: str | Path) -> Path:
    """The folder's absolute path; InputError if it holds something."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds something already; expected a new or an empty folder for the model")
    return folder


def _side(parameters: heads.Parameters, side: str, similarity: str) -> list:
    """One side's head as stock modules; Dropout(0.0), which changes nothing, where there is none.

    residual: since gelu(x) - gelu(-x) = x, two Dense layers with 3D between them carry the input past the hidden layer,
        z = [W2 I -I] gelu([W1; I; -I] x + [b1; 0; 0]) + b2
    """
    from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize

    own = f"{side}." if any(name.startswith(f"{side}.") for name in parameters) else "shared."
    head = {name.removeprefix(own): value.cpu() for name, value in parameters.items() if name.startswith(own)}
    if "up.weight" in head:
        one = torch.eye(len(head["up.bias"]))
        head["up.weight"] = torch.cat([head["up.weight"], one, -one])
        head["up.bias"] = torch.cat([head["up.bias"], torch.zeros(2 * len(one))])
        head["down.weight"] = torch.cat([head["down.weight"], one, -one], dim=1)
    hidden, modules = {"up.": torch.nn.GELU(), "first.": torch.nn.ReLU(), "second.": torch.nn.ReLU()}, []
    for layer in (name for names in heads.LAYERS.values() for name in names if f"{name}weight" in head):
        weight, bias = head[f"{layer}weight"], head[f"{layer}bias"]
        modules.append(Dense(*weight.T.shape, True, hidden.get(layer), weight, bias))
    if similarity in ("qnorm", "dnorm") and SIMILARITIES[similarity][side == "document"]:
        modules.append(Normalize())
    return modules or [Dropout(0.0)]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("heads", help="a folder of 02_train_heads or 03_select_head: data/runs/<study>/heads/<recipe>")
    parser.add_argument("--seed", type=int, default=0, help="which of the runs (0)")
    parser.add_argument("--encoder", help="where the encoder is now; left out: where it was in training")
    parser.add_argument("--out", required=True, help="folder of the model, new or empty")
    parser.add_argument("--results", help="folder of the study's tables, for the model card: data/results/<study>")


def run(options: Namespace) -> int:
    """The command: the best epoch of one seed as a model."""
    check_new(options.out)
    runs, config = checkpoints.load_runs(options.heads)
    if "encoder_config" not in config:
        raise InputError(
            f"{options.heads}/config.json: expected encoder_config, as 02_train_heads writes it; train again"
        )
    encoder = EncoderConfig(**config["encoder_config"])
    encoder = replace(encoder, model=options.encoder or encoder.model)
    if find_encoder(encoder).key != config.get("encoder"):
        raise InputError(f"{encoder.model}: another model than that of {options.heads}; give the same as --encoder")
    chosen = {run.seed: run for run in runs if not run.diverged}
    if (one := chosen.get(options.seed)) is None:
        raise InputError(f"--seed {options.seed}: expected a run that did not diverge: {', '.join(map(str, chosen))}")
    origin = {name: value for name, value in config.items() if name != "runs"}
    origin |= {"seed": one.seed, "epoch": one.best_epoch, "validation_loss": one.validation_loss[one.best_epoch]}
    if "history.parquet" in config["files"]:
        rows = magnitude.wide(checkpoints.load_history(options.heads), "validation")
        rows = rows.query("seed == @one.seed and epoch == @one.best_epoch").filter(like="length.")
        origin["lengths"] = rows.iloc[0].to_dict()
    if options.results:
        rows = read_table(options.results, "systems.csv").query("system == @one.recipe.name")
        origin["results"] = rows.filter(regex="dataset|metric|mean|sd|seeds|ci_|base|diff|p_value").to_dict("records")
    print(export(options.out, encoder, one.recipe, one.best, origin))
    return 0
