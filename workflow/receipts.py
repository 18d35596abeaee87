"""What finished jobs left: the files of a receipt, whether they still stand, and what a power cut left over."""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from asymlib.errors import InputError
from asymlib.files import read_record, sha256_file

DAY = 86_400.0  # s
CURE = "the same command runs the job again"


def written(files: list[str], noted: Path) -> dict[str, str]:
    """Path -> SHA-256 of the files that were asked for, and of those of the project that the notebook noted to have written.

    A name that ends in / stands for every file below it. One that is absent: InputError. A table's entry in origin.json, which
    many jobs share, is there as origin.json:<table>.
    """
    paths = set()
    for name in files:
        below = [str(path) for path in Path(name).rglob("*") if path.is_file()] if name.endswith("/") else [name]
        if not below or not Path(below[-1]).is_file():
            raise InputError(f"ended well but did not write {name}")
        paths |= set(below)
    for path in map(
        Path, noted.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if noted.exists() else ()
    ):
        if path.is_relative_to(Path.cwd()) and path.is_file() and path.name != "origin.json":
            paths.add(str(path.relative_to(Path.cwd())))
    paths = sorted(path for path in paths if not path.startswith("data/cache/"))
    entries = {f"{Path(path).parent}/origin.json:{Path(path).name}": path for path in paths}
    digests = {path: sha256_file(path) for path in paths}
    return digests | {entry: digests[path] for entry, path in entries.items() if _entry(entry)}


def _entry(name: str) -> str | None:
    """The SHA-256 of a table in origin.json, by origin.json:<table>; None where there is none, or the file is damaged."""
    path, _, table = name.partition(":")
    with suppress(InputError, AttributeError):
        return read_record(path, CURE).get(table, {}).get("sha256")


def cached(folder: Path) -> dict[str, str]:
    """The shards of vectors that a study was encoded into, or read from, each with its SHA-256."""
    return {str(path): sha256_file(path) for path in sorted(folder.glob("*/shard-*"))}


def problem(status: dict) -> str:
    """Why what a job left no longer stands as it was written, else ""."""
    for path, digest in (status["receipt"]["files"] | status.get("cached", {})).items():
        if "origin.json:" in path:
            if _entry(path) != digest:
                return f"{path.replace(':', ': the entry ')} was altered or is lost"
        elif not Path(path).is_file() or sha256_file(path) != digest:
            return f"{path} {'was altered' if Path(path).is_file() else 'is lost'}"
    return ""


def changed(receipt: Path) -> str:
    """The first input of a job that is lost or another file than when the job began, whatever its time of change; else ""."""
    try:
        inputs = read_record(receipt.with_suffix(".status.json"), CURE)["inputs"]
    except InputError:
        return ""  # `trouble` says so
    return next((path for path in inputs if not Path(path).is_file() or sha256_file(path) != inputs[path]), "")


def trouble(receipt: Path) -> str:
    """Why a job that has a receipt must run again, else ""."""
    try:
        status, stated = read_record(receipt.with_suffix(".status.json"), CURE), read_record(receipt, CURE)
        return problem(status) if status.get("receipt") == stated else f"{receipt} is of another run"
    except InputError as error:
        return str(error)


def as_before(record: dict, status: Path) -> dict:
    """The status of an earlier run that was asked for the same and whose files, and whose inputs' files, all stand; else {}."""
    try:
        last = read_record(status, CURE)
    except InputError:
        return {}
    same = all(last.get(key) == record[key] for key in record) and last.get("receipt") and not problem(last)
    receipts = [Path(path) for path in record["inputs"] if Path(path).with_suffix(".status.json").exists()]
    return last if same and not any(map(trouble, receipts)) else {}


def sweep(home: Path) -> None:
    """Remove what a power cut or a kill left: unfinished files of the project and scratch folders, older than a day."""
    old = time.time() - DAY
    unfinished = [
        *home.glob(".*.part"),
        *(path for name in ("data", "figures") for path in (home / name).rglob(".*.part")),
    ]
    scratch = [path for path in Path(tempfile.gettempdir()).glob("asymlib-job-*") if not _runs(path)]
    for path in unfinished + scratch:
        with suppress(OSError):  # finished by a job that runs beside this one, or another user's
            if path.lstat().st_mtime < old:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(scratch: Path) -> bool:
    return psutil.pid_exists(int(scratch.name.split("-")[2]))
