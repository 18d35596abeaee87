"""Trained runs on disk, a folder a recipe: heads.safetensors, history.parquet, and config.json, which says what they are."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame, read_parquet
from safetensors.torch import load, save

from asymlib import heads
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_record, write_record
from asymlib.recipes import Recipe
from asymlib.train import TrainedRun


def save_runs(folder: str | Path, runs: Sequence[TrainedRun], history: DataFrame | None = None, **origin: Any) -> None:
    """Write runs of one recipe; config.json, written last, marks the folder complete and holds the others' SHA-256.

    history: what magnitude.Recorder recorded of these runs, if anything did.
    origin: anything else to keep beside the recipe, e.g. the encoder's key (JSON literals).
    """
    folder = Path(folder)
    if len({run.recipe for run in runs}) != 1:
        raise InputError(f"{folder}: expected runs of exactly one recipe")
    tensors = {
        f"{kind}/{run.seed}/{name}": value.contiguous().cpu()
        for run in runs
        for kind, parameters in (("best", run.best), ("last", run.last))
        for name, value in parameters.items()
    }
    contents = {"heads.safetensors": save(tensors)}  # save_file would hide a full disk in an error of its own
    (folder / "history.parquet").unlink(missing_ok=True)
    if history is not None:
        contents["history.parquet"] = history.to_parquet(index=False)
    for name, content in contents.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(content)
    described = ("seed", "best_epoch", "validation_loss", "diverged_at")
    rows = [{name: getattr(run, name) for name in described} for run in runs]
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    write_record(folder / "config.json", {**origin, "recipe": runs[0].recipe.to_dict(), "runs": rows, "files": files})


def _read(folder: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """config.json, and a file that it describes, compared with its SHA-256."""
    config, path = read_record(folder / "config.json", "train again"), folder / name
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != config["files"].get(name):
        what = "changed since it was written (SHA-256 differs from config.json)" if path.is_file() else "no such file"
        raise InputError(f"{path}: {what}; train again")
    return config, data


def load_runs(folder: str | Path, **expected: Any) -> tuple[list[TrainedRun], dict[str, Any]]:
    """Read what save_runs wrote: the runs, and config.json whole (recipe, runs, SHA-256 of the files, and origin).

    expected: what the heads must have been trained on, by the names given to save_runs, e.g. encoder=key, study=hash.
    A missing or altered file, or heads trained on something else, is an InputError that names it.
    """
    config, data = _read(Path(folder), "heads.safetensors")
    for name, value in expected.items():
        if (found := config.get(name)) != value:
            raise InputError(f"{folder}: trained with {name} {found!r}, but {value!r} is in use now; train again")
    stored: dict[tuple[str, int], heads.Parameters] = defaultdict(dict)
    for key, value in load(data).items():
        kind, seed, name = key.split("/", 2)
        stored[kind, int(seed)][name] = value
    recipe = Recipe(**config["recipe"])
    runs = [
        TrainedRun(recipe=recipe, best=stored["best", row["seed"]], last=stored["last", row["seed"]], **row)
        for row in config["runs"]
    ]
    return runs, config


def load_history(folder: str | Path) -> DataFrame:
    """The history that save_runs was given; one that is missing or altered is an InputError that names it."""
    return read_parquet(io.BytesIO(_read(Path(folder), "history.parquet")[1]))


def load_all(folder: str | Path, names: Sequence[str] = (), **expected: Any) -> dict[str, list[TrainedRun]]:
    """The runs of each recipe below `folder`, in the order of `names`, or of all that are there by name; as load_runs."""
    names = names or sorted(path.parent.name for path in Path(folder).glob("*/config.json"))
    return {name: load_runs(Path(folder) / name, **expected)[0] for name in names}
