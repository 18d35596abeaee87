"""Per-query scores of systems that are not heads on frozen vectors: each is ranked by a notebook of its own and kept here.

data/runs/<study>/ranked/<system>.parquet     track, system, seed, dataset, query_id, metric, value
data/runs/<study>/ranked/<system>.json        what the system is, what it was made with and the table's SHA-256
"""

import io
from typing import Any

import numpy as np
import pandas as pd

from asymlib.data.studies import Study
from asymlib.errors import InputError
from asymlib.evaluate import METRICS
from asymlib.files import atomic_path, project_path, read_record, safe_name, sha256_file, write_record

COLUMNS = ["track", "system", "seed", "dataset", "query_id", "metric", "value"]


def write_ranked(study: Study, per_query: pd.DataFrame, system: str, **about: Any) -> None:
    """Keep a system's scores, in place of those that were there.

    per_query: COLUMNS, of this system alone; value a finite number, of METRICS, once a track, seed, query and metric.
    about: JSON literals, among them notebook (its name, for the cure in errors), similarity, pairs, trained.
    """
    folder, path = project_path("data/runs", study.name, "ranked"), safe_name(system, "system")
    key = [name for name in COLUMNS if name != "value"]
    if {*per_query.columns} != {*COLUMNS} or per_query.empty or {*per_query["system"]} != {system}:
        raise InputError(f"{system}: expected rows of this system alone with the columns {', '.join(COLUMNS)}")
    wrong = per_query.duplicated(key) | ~np.isfinite(per_query["value"]) | ~per_query["metric"].isin(METRICS)
    if wrong.any():
        row = per_query[wrong].iloc[0].to_dict()
        raise InputError(f"{system}: expected each of {', '.join(METRICS)} once a query, as a finite number, got {row}")
    (folder / f"{path}.json").unlink(missing_ok=True)
    with atomic_path(folder / f"{path}.parquet") as temporary:
        per_query[COLUMNS].astype({"value": np.float64}).to_parquet(temporary, index=False)
        about |= {"made_with": study.made_with, "sha256": sha256_file(temporary)}
    write_record(folder / f"{path}.json", about)


def read_ranked(study: Study) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """The scores of all systems that were kept for this study, by name, and system -> about. No rows where there are none.

    InputError: a missing or altered file, a system that was ranked on another encoder or other data.
    """
    found, about = [pd.DataFrame(columns=COLUMNS).astype({"seed": np.int64, "value": np.float64})], {}
    for path in sorted(project_path("data/runs", study.name, "ranked").glob("*.json")):
        own = read_record(path, "rank this system again")
        cure = f"run {own.get('notebook', 'its notebook')} for this study again"
        if own["made_with"] != study.made_with:
            raise InputError(f"{path}: ranked on another encoder or other data than the study has now; {cure}")
        table = path.with_suffix(".parquet")
        if not table.is_file() or sha256_file(table) != own["sha256"]:
            raise InputError(f"{table}: missing, or altered since it was written; {cure}")
        found.append(pd.read_parquet(io.BytesIO(table.read_bytes())))
        about[path.stem] = own
    return pd.concat(found[1:] or found, ignore_index=True), about
