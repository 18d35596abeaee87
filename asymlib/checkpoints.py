"""Trained runs on disk: one folder a recipe, with heads.safetensors and the config.json that says what they are."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from asymlib import heads
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, sha256_file, write_json
from asymlib.recipes import Recipe
from asymlib.train import TrainedRun


def save_runs(folder: str | Path, runs: Sequence[TrainedRun], **origin: Any) -> None:
    """Write runs of one recipe as heads.safetensors and config.json; config.json, written last, marks the folder complete.

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
    with atomic_path(folder / "heads.safetensors") as temporary:
        temporary.write_bytes(save(tensors))  # save_file would hide a full disk in an error of its own
    described = ("seed", "best_epoch", "validation_loss", "diverged_at")
    rows = [{name: getattr(run, name) for name in described} for run in runs]
    sha256 = sha256_file(folder / "heads.safetensors")
    write_json(folder / "config.json", {**origin, "recipe": runs[0].recipe.to_dict(), "runs": rows, "sha256": sha256})


def load_runs(folder: str | Path, **expected: Any) -> tuple[list[TrainedRun], dict[str, Any]]:
    """Read what save_runs wrote: the runs, and config.json whole (recipe, runs, SHA-256 of the heads, and origin).

    expected: what the heads must have been trained on, by the names given to save_runs, e.g. encoder=key, study=hash.
    A missing or altered file, or heads trained on something else, is an InputError that names it.
    """
    path, config_path = Path(folder) / "heads.safetensors", Path(folder) / "config.json"
    config = read_json(config_path)
    if not isinstance(config, dict) or not {"recipe", "runs", "sha256"} <= set(config):
        raise InputError(
            f"{config_path}: expected the fields recipe, runs and sha256, which save_runs writes; train again"
        )
    for name, value in expected.items():
        if (found := config.get(name)) != value:
            raise InputError(f"{config_path}: trained with {name} {found!r}, but {value!r} is in use now; train again")
    if not path.exists():
        raise InputError(f"{path}: no such file, though config.json beside it describes it; train again")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != config["sha256"]:
        raise InputError(f"{path}: changed since it was written (SHA-256 differs from config.json); train again")
    stored: dict[tuple[str, int], heads.Parameters] = defaultdict(dict)
    for key, value in load(data).items():
        kind, seed, name = key.split("/", 2)
        stored[kind, int(seed)][name] = value
    recipe = Recipe.from_dict(config["recipe"])
    runs = [
        TrainedRun(recipe=recipe, best=stored["best", row["seed"]], last=stored["last", row["seed"]], **row)
        for row in config["runs"]
    ]
    return runs, config


def load_all(folder: str | Path, names: Sequence[str] = (), **expected: Any) -> dict[str, list[TrainedRun]]:
    """The runs of each recipe below `folder`, in the order of `names`, or of all that are there by name; as load_runs."""
    names = names or sorted(path.parent.name for path in Path(folder).glob("*/config.json"))
    return {name: load_runs(Path(folder) / name, **expected)[0] for name in names}
