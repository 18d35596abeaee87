"""Files that are either whole or absent: hashes, and writes to a temporary name that are renamed at the end."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asymlib.errors import InputError


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it takes the name `path` only if the block ends without an error.

    The bytes are flushed to disk before the rename. After any error, Ctrl-C included, the temporary file is gone
    and what stood at `path` before is untouched. A full disk (or quota) is an InputError that names `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected a file")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if noted := os.environ.get("ASYMLIB_WRITTEN"):  # a job's list of the files that it wrote
            with open(noted, "ab") as file:
                file.write(os.fsencode(path.absolute()) + b"\n")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, None):  # None: numpy, which counts what it wrote
            raise InputError(f"{path}: no space left on the disk; free some and run the same command again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically: sorted keys, two spaces, a final newline."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> object:
    """Read JSON; what is not JSON is an InputError that names the file, the line and the column."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        where = f"{path}:{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else str(path)
        raise InputError(f"{where}: not valid JSON ({error})") from error


def _record_sha256(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def write_record(path: str | Path, values: dict[str, Any]) -> None:
    """Write JSON that carries its own SHA-256, in the field record_sha256 beside the values (JSON literals)."""
    values = json.loads(json.dumps(values))
    write_json(path, {**values, "record_sha256": _record_sha256(values)})


def read_record(path: str | Path, cure: str) -> dict[str, Any]:
    """The values that write_record wrote. An absent, altered or other file is an InputError with the cure, e.g. "train again"."""
    try:
        values = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {cure}") from error
    if not isinstance(values, dict) or values.pop("record_sha256", None) != _record_sha256(values):
        raise InputError(f"{path}: not as it was written (its own SHA-256 is another, or missing); {cure}")
    return values


def project_path(*parts: str) -> Path:
    """A path below the project's folder: $ASYMLIB_HOME if set, else the checkout that holds this package.

    A notebook that JupyterLab starts in notebooks/ and one that a job starts elsewhere find data/ and figures/ alike.
    """
    return Path(os.environ.get("ASYMLIB_HOME") or Path(__file__).resolve().parent.parent).joinpath(*parts)


def safe_name(value: str, field: str) -> str:
    """`value` itself if it can be part of a path: letters, digits and . _ + = -, not starting with . or -."""
    if not re.fullmatch(r"[A-Za-z0-9_+=][A-Za-z0-9._+=-]*", value):
        raise InputError(f"{field}: {value!r}, expected letters, digits and . _ + = -, not starting with . or -")
    return value
