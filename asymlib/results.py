"""Results tables with their origin: written atomically, refused when the origin is missing or the bytes have changed.

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

SYSTEM_COLUMNS = (
    "track", "system", "dataset", "metric", "mean", "sd", "ci_low", "ci_high", "baseline", "delta_percent", "p_value", "seeds",
    "similarity_train", "similarity_eval", "encoder", "pairs",
)  # fmt: skip
PACKAGES = ("torch", "numpy", "pandas", "scipy", "scikit-learn", "transformers", "sentence-transformers", "safetensors")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(project_path()), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


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
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", "asymlib", "notebooks", "requirements.txt")),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_table(folder: str | Path, name: str, table: pd.DataFrame, origin: dict[str, Any]) -> Path:
    """Write `table` as folder/name (.csv with 8 significant digits, or .parquet) and enter it in folder/origin.json.

    systems.csv must have DESIGN's columns in order. NaN in a CSV is an empty field. The table is renamed into place
    before its entry is, so a kill between the two leaves a table that read_table refuses and a rerun replaces.
    """
    path = Path(folder) / name
    if name == "systems.csv" and tuple(table.columns) != SYSTEM_COLUMNS:
        raise InputError(f"{path}: columns {list(table.columns)}, expected {list(SYSTEM_COLUMNS)}")
    if not origin:
        raise InputError(f"{path}: a table is written with its origin only, found none")
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
        elif path.suffix == ".parquet":
            table.to_parquet(temporary, index=False, compression="zstd")
        else:
            raise InputError(f"{path}: expected a name that ends in .csv or .parquet")
    with FileLock(path.parent / ".origin.lock"):  # notebooks that run side by side share origin.json
        entries = _entries(path.parent) if (path.parent / "origin.json").exists() else {}
        entries[name] = {**origin, "sha256": sha256_file(path), "rows": len(table)}
        write_json(path.parent / "origin.json", entries)
    return path


def _entries(folder: Path) -> dict[str, Any]:
    entries = read_json(folder / "origin.json")
    if not isinstance(entries, dict):
        raise InputError(f"{folder / 'origin.json'}: expected an object with one entry a table")
    return entries


def read_origin(folder: str | Path, name: str) -> dict[str, Any]:
    """The origin of one table; refused when there is none."""
    folder = Path(folder)
    if not (folder / "origin.json").exists():
        raise InputError(f"{folder / name}: a table without origin; expected {folder / 'origin.json'} beside it")
    entries = _entries(folder)
    if not isinstance(entries.get(name), dict) or "sha256" not in entries[name]:
        raise InputError(
            f"{folder / name}: no entry with a SHA-256 in {folder / 'origin.json'}, so its origin is unknown"
        )
    return entries[name]


def read_table(folder: str | Path, name: str) -> pd.DataFrame:
    """Read a table that write_table wrote; refused without an origin, or when its bytes are not those of the origin."""
    path = Path(folder) / name
    if not path.exists():
        raise InputError(f"{path}: no such table; run the notebook that writes it first")
    if sha256_file(path) != read_origin(folder, name)["sha256"]:
        raise InputError(
            f"{path}: changed since it was written (SHA-256 differs from origin.json); run its notebook again"
        )
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # Only an empty field is NaN: a system or query called "None" or "NA" keeps its name.
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
