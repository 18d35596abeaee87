"""Tables with their origin: written atomically, refused when the origin is missing or the bytes have changed.

A results folder holds tables (.csv or .parquet), origin.json and nothing that cannot be rebuilt. origin.json names, for each
table, its SHA-256, the parameters that made it and where: commit, versions, data hashes, seeds, hardware.
"""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from asymlib.errors import InputError
from asymlib.files import atomic_path, project_path, read_json, sha256_file, write_json

SYSTEM_COLUMNS = (  # of systems.csv
    "track", "system", "dataset", "metric", "mean", "sd", "ci_low", "ci_high", "baseline", "delta_percent", "p_value", "seeds",
    "similarity_train", "similarity_eval", "encoder", "pairs", "p_raw", "difference_low", "difference_high",
)  # fmt: skip
PACKAGES = ("torch", "numpy", "pandas", "scipy", "scikit-learn", "transformers", "sentence-transformers", "safetensors")
# columns that are text, even where a name reads as a number
NAMES = ("study", "track", "system", "dataset", "metric", "name", "a", "b", "part", "encoder")
CODE = ("asymlib", "notebooks", "workflow", "requirements.txt")  # what a result depends on


def origin(parameters: dict[str, Any], data: dict[str, str], seeds: list[int]) -> dict[str, Any]:
    """Where a result comes from, as JSON literals.

    parameters: the notebook's. data: name -> SHA-256 of what was read (study content, encoder weights). Adds the commit
    (None outside a checkout), whether the tree had uncommitted changes, versions, threads and the processor or GPU.
    """
    return {
        "parameters": parameters,
        "data": data,
        "seeds": seeds,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", *CODE)),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(project_path()), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_table(folder: str | Path, name: str, table: pd.DataFrame, origin: dict[str, Any]) -> Path:
    """Write `table` as folder/name (.csv with 8 significant digits, or .parquet) and enter it in folder/origin.json.

    NaN in a CSV is an empty field. The table is renamed into place
    before its entry is, so a kill between the two leaves a table that read_table refuses and a rerun replaces.
    """
    path = Path(folder) / name
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
        else:
            table.to_parquet(temporary, index=False, compression="zstd")
    with FileLock(path.parent / ".origin.lock"):  # notebooks that run side by side share origin.json
        entries = read_json(path.parent / "origin.json") if (path.parent / "origin.json").exists() else {}
        entries[name] = {**origin, "sha256": sha256_file(path), "rows": len(table)}
        write_json(path.parent / "origin.json", entries)
    return path


def read_origin(folder: str | Path, name: str) -> dict[str, Any]:
    """The origin of one table; refused when there is none."""
    path = Path(folder) / "origin.json"
    if not path.exists():
        raise InputError(f"{Path(folder) / name}: a table without origin; expected {path} beside it")
    try:
        entry = read_json(path)[name]
        return {**entry, "sha256": entry["sha256"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no entry with a SHA-256 for {name}, so its origin is unknown") from error


def read_table(folder: str | Path, name: str) -> pd.DataFrame:
    """Read a table that write_table wrote; refused without an origin, or when its bytes are not those of the origin."""
    path = Path(folder) / name
    if not path.exists():
        raise InputError(f"{path}: no such table; run the notebook that writes it first")
    if sha256_file(path) != read_origin(folder, name)["sha256"]:
        raise InputError(f"{path}: changed since it was written (another SHA-256); run its notebook again")
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # Only an empty field is NaN: a system or query called "None" or "NA" keeps its name.
    return pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=[""])
