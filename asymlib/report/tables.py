"""Tables with their origin: written atomically, refused when the origin is missing or the bytes have changed.

A results folder holds tables (.csv or .parquet), origin.json and nothing that cannot be rebuilt. origin.json names, for each
table, its SHA-256, the parameters that made it and where: commit, versions, data hashes, seeds, hardware. Where origin.json is
damaged or lost, each notebook enters what it writes anew.
"""

import contextlib
import hashlib
import io
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
from asymlib.files import atomic_path, project_path, read_record, write_record

PACKAGES = ("torch", "numpy", "pandas", "scipy", "scikit-learn", "transformers", "sentence-transformers", "safetensors")
WRITTEN_BY = {
    "00_parity": "parity.csv",
    "01_data_prep": "texts.csv",
    "03_select_head": "search.csv",
    "04_magnitude": "history.parquet attribution.csv case_log.csv case_columns.csv trajectory.csv warnings.csv",
    "05_evaluation": "systems.csv per_query.parquet recipes.csv overlap.csv choices.csv contrasts.csv hubness.csv ties.csv "
    "length_relevance.csv whitening.csv two_by_two.csv",
    "06_robustness": "similarity_matrix.csv checkpoints.csv last_epoch.csv answers_met.csv",
    "07_ablation": "ablations.csv ablation_effects.csv",
    "08_oracle": "oracle.csv",
    "11_words": "words_ablation.csv words_cost.csv",
    "12_unfrozen_top": "unfrozen.csv",
}
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

    NaN in a CSV is an empty field; which columns are text stands in the entry. The table is renamed into place
    before its entry is, so a kill between the two leaves a table that read_table refuses and a rerun replaces.
    """
    path, record = Path(folder) / name, Path(folder) / "origin.json"
    if path.suffix == ".csv":
        content = table.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode("utf-8")
    else:
        content = table.to_parquet(index=False, compression="zstd")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    text = [column for column in table if pd.api.types.infer_dtype(table[column]) == "string"]
    about = {"sha256": hashlib.sha256(content).hexdigest(), "rows": len(table), "text": text}
    with FileLock(path.parent / ".origin.lock"):  # notebooks that run side by side share origin.json
        entries = {}
        with contextlib.suppress(InputError):
            entries = read_record(record, "")
        write_record(record, {**entries, name: {**origin, **about}})
    return path


def _cure(folder: str | Path, name: str) -> str:
    """What brings a table back."""
    writers = [notebook for notebook, names in WRITTEN_BY.items() if name in names.split()]
    return f"run {''.join(writers) or 'the notebook that writes it'} for the study {Path(folder).name!r} again"


def read_origin(folder: str | Path, name: str) -> dict[str, Any]:
    """The origin of one table; refused when there is none, or origin.json is damaged."""
    path, cure = Path(folder) / "origin.json", _cure(folder, name)
    entries = read_record(path, f"without it nobody knows where {name} comes from, so {cure}")
    if name not in entries:
        raise InputError(f"{path}: no entry for {name}, so its origin is unknown; {cure}")
    return entries[name]


def read_table(folder: str | Path, name: str) -> pd.DataFrame:
    """Read a table that write_table wrote; refused without an origin, or when its bytes are not those of the origin."""
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"{path}: no such table; {_cure(folder, name)}")
    content, entry = path.read_bytes(), read_origin(folder, name)
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise InputError(f"{path}: changed since it was written (another SHA-256); {_cure(folder, name)}")
    if path.suffix == ".parquet":
        return pd.read_parquet(io.BytesIO(content))
    # A name that reads as a number stays text; only an empty field is NaN, so "None" and "NA" keep their names.
    types = dict.fromkeys(entry.get("text", ()), str)
    return pd.read_csv(io.BytesIO(content), dtype=types, keep_default_na=False, na_values=[""])
