"""Notebooks as a list of jobs: one process each, all checked before the first starts, a ledger, retry, resume.

    python -m asymlib.batch JOBS.yaml [--jobs N] [--gpus 0,1] [--resume] [--check]

JOBS.yaml; notebooks are looked for below the current folder, then below the parent of the list's folder (the repository
for notebooks/JOBS.yaml). Jobs run in the project's folder (asymlib.files.project_path: $ASYMLIB_HOME, else the checkout),
so relative outputs, and the paths in the ledger, start there:

    name: reproduce                                 # everything lands in data/runs/<name>/
    defaults: {timeout: 1800, parameters: {study: reproduce}}
    jobs:
      - id: 01-data
        notebook: notebooks/01_data_prep.ipynb
      - id: 02-{system}                             # foreach: one job a value, {key} filled in
        foreach: {system: [asym-dot, asym-cos]}     # each value is also passed as a parameter
        notebook: notebooks/02_train_heads.ipynb
        parameters: {lr: 1e-3, save_as: "{system}-slow"}  # {key} is filled in here too
        needs: [01-data]                            # "02-{system}" in a later job's needs: all of them
        outputs: ["data/runs/reproduce/heads/{system}/heads.safetensors"]  # --resume knows their SHA-256
        timeout: 900                                # seconds for the whole job, 3600 unless told

A job runs in a process of its own because papermill changes the process-wide working directory and because a
kernel that takes its process down must take nothing else.
"""

import argparse
import ast
import fcntl
import graphlib
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml
from tqdm import tqdm

from asymlib.errors import InputError, run_command
from asymlib.files import project_path, read_json, sha256_file, write_json

RUNS = Path("data/runs")  # below the project's folder
START_TIMEOUT = 120  # s for a kernel to answer; a busy machine needs more than the usual 60
BACK_OFF = (2.0, 8.0)  # s before the second and the third start of a kernel that did not come up
GRACE = 5.0  # s between interrupting a kernel, so that its cells can clean up, and killing it
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")  # a float in YAML 1.2; 1.1 knows only 1.0e-3


class _Loader(yaml.SafeLoader):
    """Reads an unquoted 1e-3 as a number wherever it stands; '1e-3' in quotes stays text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Job:
    """One notebook run: parameters are already converted to what the notebook wants, timeout is in seconds."""

    id: str
    notebook: str
    parameters: dict
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    timeout: float
    fingerprint: str = ""


# --- reading and checking the list ---------------------------------------------------------------------------------


def read_jobs(path: str | Path) -> tuple[str, list[Job]]:
    """Read and check a list of jobs; nothing is run.

    Returns the list's name and its jobs in the order of the file. An InputError names file and line for what is wrong
    in the YAML; what is wrong with notebooks and parameters is collected over all jobs and reported together.
    """
    path = Path(path)
    raw, lines = _read_yaml(path)
    _check_keys(raw, path, required=("name", "jobs"), optional=("defaults",))
    defaults = raw.get("defaults") or {}
    _check_keys(defaults, f"{path}: defaults", optional=("timeout", "parameters"))
    name = _text(raw["name"], f"{path}: name", SAFE_NAME)
    if not isinstance(raw["jobs"], list) or not raw["jobs"]:
        raise InputError(f"{path}: jobs: expected a list with at least one job")

    jobs, where, families = {}, {}, {}
    for entry, line in zip(raw["jobs"], lines or [1] * len(raw["jobs"]), strict=True):
        for single, family in _expand(entry, f"{path}:{line}"):
            job = _job(single, defaults, f"{path}:{line}")
            job = replace(job, notebook=_find(job.notebook, path))
            if job.id in jobs:
                raise InputError(f"{path}:{line}: id {job.id!r} is already taken by the job at {where[job.id]}")
            jobs[job.id], where[job.id] = job, f"{path}:{line}"
            families.setdefault(family, []).append(job.id)

    for job in jobs.values():
        needs = tuple(itertools.chain.from_iterable(families.get(need, [need]) for need in job.needs))
        if unknown := [need for need in needs if need not in jobs]:
            raise InputError(
                f"{where[job.id]}: job {job.id!r} needs {unknown[0]!r}, which is not one of {', '.join(jobs)}"
            )
        jobs[job.id] = replace(job, needs=needs)
    try:
        order = list(graphlib.TopologicalSorter({job.id: job.needs for job in jobs.values()}).static_order())
    except graphlib.CycleError as error:
        raise InputError(f"{path}: jobs need each other in a circle: {' -> '.join(reversed(error.args[1]))}") from error

    problems: list[str] = []
    for id in order:
        try:
            jobs[id] = _check_job(jobs[id], [jobs[need].fingerprint for need in jobs[id].needs])
        except InputError as error:
            problems.append(f"{where[id]}: job {id!r}: {error}")
    if problems:
        raise InputError("\n  ".join([f"{path}: {len(problems)} job(s) cannot run, nothing was started", *problems]))
    return name, list(jobs.values())


def _read_yaml(path: Path) -> tuple[dict, list[int]]:
    """The content of a YAML file and the line of each of its jobs; a key given twice is an error, not a silent loss."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise InputError(f"{path}: expected the keys name, defaults and jobs")
        nodes, seen, lines = [node], set(), []
        while nodes:
            node_below = nodes.pop()
            if id(node_below) in seen:  # an anchor used again, perhaps inside itself
                continue
            seen.add(id(node_below))
            if isinstance(node_below, yaml.MappingNode):
                keys = [key.value for key, _ in node_below.value]
                for position, (key, value) in enumerate(node_below.value):
                    if key.value in keys[:position]:
                        raise InputError(f"{path}:{key.start_mark.line + 1}: the key {key.value!r} is given twice")
                    if node_below is node and key.value == "jobs" and isinstance(value, yaml.SequenceNode):
                        lines = [item.start_mark.line + 1 for item in value.value]
                    nodes.append(value)
            elif isinstance(node_below, yaml.SequenceNode):
                nodes.extend(node_below.value)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{path}:{mark.line + 1}:{mark.column + 1}: not valid YAML ({error.problem})") from error
    finally:
        loader.dispose()


def _check_keys(value: object, where: object, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    valid = f"valid keys: {', '.join([*required, *optional])}"
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected keys and values, not {value!r} ({valid})")
    if unknown := [key for key in value if key not in required and key not in optional]:
        raise InputError(f"{where}: unknown key {unknown[0]!r} ({valid})")
    if missing := [key for key in required if key not in value]:
        raise InputError(f"{where}: the key {missing[0]!r} is missing ({valid})")


def _text(value: object, where: str, pattern: re.Pattern = re.compile(r".+")) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, not {value!r}; put it in quotes if it is meant as text")
    if not pattern.fullmatch(value):
        raise InputError(f"{where}: {value!r} does not fit {pattern.pattern}")
    return value


def _expand(entry: object, where: str) -> Iterator[tuple[dict, object]]:
    """The single jobs an entry stands for, each with the id as written; without foreach that is the entry itself."""
    keys = ("id", "notebook"), ("parameters", "needs", "outputs", "timeout", "foreach")
    _check_keys(entry, where, *keys)
    single = {key: value for key, value in entry.items() if key != "foreach"}
    each = entry.get("foreach")
    if each is None:
        yield single, entry["id"]
        return
    if not isinstance(each, dict) or not each or not all(isinstance(v, list) and v for v in each.values()):
        raise InputError(f"{where}: foreach: expected a list of values for each key, as in {{system: [a, b]}}")
    given = single.get("parameters") or {}
    if twice := sorted(set(each) & set(given)):
        raise InputError(f"{where}: {twice[0]!r} stands in foreach and in parameters; keep one")
    for combination in itertools.product(*each.values()):
        values = dict(zip(each, combination, strict=True))
        try:
            filled = {key: _fill(value, values) for key, value in single.items() if key != "parameters"}
        except (AttributeError, LookupError, ValueError) as error:
            raise InputError(f"{where}: {error} in braces, but foreach has {', '.join(each)}") from error
        yield {**filled, "parameters": {**_put(given, values), **values}}, entry["id"]


def _fill(value: object, values: dict) -> object:
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return value.format(**values) if isinstance(value, str) else value


def _put(value: object, values: dict) -> object:
    """Parameters with {key} of foreach replaced in their texts; other braces are the notebook's own business."""
    if isinstance(value, dict):
        return {key: _put(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_put(inner, values) for inner in value]
    for key in values if isinstance(value, str) else ():
        value = value.replace(f"{{{key}}}", str(values[key]))
    return value


def _job(entry: dict, defaults: dict, where: str) -> Job:
    """One checked Job of an entry; its notebook and parameters are looked at later, all jobs at once."""
    id = _text(entry["id"], f"{where}: id", SAFE_NAME)
    where = f"{where}: job {id!r}"
    lists = {}
    for key in ("needs", "outputs"):
        value = entry.get(key) or []
        if not isinstance(value, list):
            raise InputError(f"{where}: {key}: expected a list, not {value!r}")
        lists[key] = tuple(_text(item, f"{where}: {key}") for item in value)
    parameters = [group.get("parameters") or {} for group in (defaults, entry)]
    for group in parameters:
        if not isinstance(group, dict) or not all(isinstance(key, str) for key in group):
            raise InputError(f"{where}: parameters: expected names and values, not {group!r}")
    timeout = entry.get("timeout", defaults.get("timeout", 3600))
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InputError(f"{where}: timeout: expected seconds above 0, not {timeout!r}")
    notebook = _text(entry["notebook"], f"{where}: notebook")
    return Job(id, notebook, parameters[0] | parameters[1], lists["needs"], lists["outputs"], float(timeout))


def _find(notebook: str, path: Path) -> str:
    """The notebook as written if it is there, else below the parent of the list's folder, as seen from here."""
    beside = path.resolve().parent.parent / notebook
    return os.path.relpath(beside) if beside.exists() and not Path(notebook).exists() else notebook


def _check_job(job: Job, upstream: list[str]) -> Job:
    """The job with its parameters converted to the notebook's types, and its fingerprint."""
    cells, kinds = read_parameters(job.notebook)
    parameters, problems = {}, []
    for name, value in job.parameters.items():
        if name not in kinds:
            problems.append(f"unknown parameter {name!r}; {job.notebook} has {', '.join(kinds) or 'none'}")
            continue
        try:
            parameters[name] = _convert(value, kinds[name])
        except ValueError:
            kind = ast.unparse(kinds[name])
            problems.append(f"parameter {name!r}: expected {kind}, not {type(value).__name__} {value!r}")
    if problems:
        raise InputError("; ".join(problems))
    parts = [cells, parameters, _code_fingerprint(cells), upstream]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return replace(job, parameters=parameters, fingerprint=fingerprint)


def _code_fingerprint(cells: list) -> str:
    """One hash for what a notebook's result depends on besides itself: the modules of the package that it imports, directly
    or through each other, with the style sheet of plots and the templates of writeup, and the pinned requirements.
    """
    package = Path(__file__).resolve().parent
    modules = {path.stem: path for path in package.glob("*.py")}
    wanted = [
        *({"__init__"} & set(modules)),
        *(name for kind, _, source in cells if kind == "code" for name in _imported(source, modules)),
    ]
    used: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in used:
            used.add(name)
            wanted += _imported(modules[name].read_text(encoding="utf-8"), modules)
    files = [modules[name] for name in used]
    files += [path for owner, glob in (("plots", "*.mplstyle"), ("writeup", "templates/*.j2")) if owner in used
              for path in package.glob(glob)]  # fmt: skip
    files.append(package.parent / "requirements.txt")
    return " ".join(
        f"{file.relative_to(package.parent)}={sha256_file(file)}" for file in sorted(files) if file.exists()
    )


def _imported(source: str, modules: Iterable[str]) -> set[str]:
    """The package's own modules that a source imports, anywhere in it; all of them where it is no plain Python."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:  # a cell with a magic
        return set(modules)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "asymlib") == "asymlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.removeprefix("asymlib."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("asymlib.") for alias in node.names}
    return found & set(modules)


# --- parameters of a notebook --------------------------------------------------------------------------------------


def read_parameters(notebook: str) -> tuple[list, dict[str, ast.expr]]:
    """The cells of a notebook and the types of its parameters.

    Returns (type, tags and source of each cell; name -> type as a parsed annotation). The one cell tagged `parameters`
    may hold only assignments of literals: papermill puts the given values into a cell after it, so anything computed in
    it would keep the default's value. A type is the annotation's, else the default's; a default of None takes anything.
    Read from the syntax tree, because papermill's own inspection works line by line and loses a parameter whose line
    has a second "=".
    """
    cells = [(cell["cell_type"], sorted(cell["metadata"].get("tags", [])), cell["source"]) for cell in _cells(notebook)]
    if any("injected-parameters" in tags for _, tags, _ in cells):
        raise InputError(f"{notebook}: has a cell tagged 'injected-parameters': an executed copy, not a source")
    tagged = [source for kind, tags, source in cells if kind == "code" and "parameters" in tags]
    if len(tagged) != 1:
        raise InputError(f"{notebook}: expected exactly one code cell tagged 'parameters', found {len(tagged)}")

    kinds, where = {}, f"{notebook}: parameters cell"
    try:
        statements = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise InputError(
            f"{where}, line {error.lineno}: {error.msg}; only assignments of literals belong there"
        ) from error
    for statement in statements:
        match statement:
            case ast.Expr(ast.Constant(value=str())):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                annotation = None
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value, annotation=annotation):
                pass
            case _:
                raise InputError(f"{where}, line {statement.lineno}: only assignments of literals belong there")
        try:
            default = ast.literal_eval(value)
        except ValueError as error:
            raise InputError(
                f"{where}, line {statement.lineno}: {name} is computed, and would stay so when its source is "
                "overridden: give a literal there, compute in the next cell"
            ) from error
        kind = annotation or ast.parse(_kind(default), mode="eval").body
        if annotation and default is None:
            kind = ast.BinOp(annotation, ast.BitOr(), ast.Constant(None))
        try:
            _convert(default, kind)
        except ValueError as error:
            raise InputError(
                f"{where}, line {statement.lineno}: {name} = {default!r} does not fit the type {ast.unparse(kind)} "
                "(types: bool, int, float, str, list, dict, list[...], dict[str, ...], ... | None)"
            ) from error
        kinds[name] = kind
    return cells, kinds


def _cells(notebook: str | Path) -> list[dict]:
    """The cells of a notebook (format 4), each with its source as one string."""
    if not Path(notebook).exists():
        raise InputError(f"{notebook}: no such notebook below {Path.cwd().name}/ (run from the repository root)")
    content = read_json(notebook)
    try:
        return [cell | {"source": "".join(cell["source"])} for cell in content["cells"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{notebook}: not a notebook of format 4, save it again in Jupyter ({error!r})") from error


def _kind(value: object) -> str:
    """The annotation that fits a default: list[float] for [1, 0.5], a bare list for mixed or no elements."""
    if value is None:
        return "Any"
    if not isinstance(value, list):
        return type(value).__name__
    kinds = {_kind(item) for item in value}
    kinds = {"float"} if kinds == {"int", "float"} else kinds
    return f"list[{kinds.pop()}]" if len(kinds) == 1 else "list"


def _convert(value: object, kind: ast.expr) -> object:
    """The value as the type asks for it; ValueError if it is another type.

    An int serves as a float. A bool is never a number.
    """
    match kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            try:
                return _convert(value, left)
            except ValueError:
                return _convert(value, right)
        case ast.Subscript(value=ast.Name(id="list"), slice=item) if isinstance(value, list):
            return [_convert(entry, item) for entry in value]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[ast.Name(id="str"), item])) if isinstance(
            value, dict
        ) and all(isinstance(key, str) for key in value):
            return {key: _convert(entry, item) for key, entry in value.items()}
        case ast.Constant(value=None) if value is None:
            return None
        case ast.Name(id="float") if type(value) in (int, float):
            return float(value)
        case ast.Name(id="int" | "bool" | "str" as name) if type(value).__name__ == name:
            return value
        case ast.Name(id="list" | "dict" | "Any" as name) if name in ("Any", type(value).__name__):
            if isinstance(value, list):
                return [_convert(entry, ast.Name("Any")) for entry in value]
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return {key: _convert(entry, ast.Name("Any")) for key, entry in value.items()}
            if value is None or type(value) in (bool, int, float, str):
                return value
    raise ValueError


# --- running -------------------------------------------------------------------------------------------------------


def run_jobs(name: str, jobs: list[Job], workers: int = 1, gpus: Sequence[str] = (), resume: bool = False) -> int:
    """Run the jobs of read_jobs, at most `workers` at a time, and keep data/runs/<name>/ledger.json true all along.

    The ledger holds the SHA-256 of each job's output files; data/ and relative outputs are below project_path().

    gpus: ids for CUDA_VISIBLE_DEVICES, one for each running job; an id given twice serves two jobs. Empty: left alone.
    resume: leave out jobs that ended well with the same fingerprint and whose outputs still stand, files with the bytes that
        the ledger knows; of a folder only that it is there.
    Returns the number of jobs that are not ok. On Ctrl-C (SIGTERM, SIGHUP) the running jobs are stopped and marked pending,
    and KeyboardInterrupt goes on. InputError: the same name is being run by another process.
    """
    folder = project_path(RUNS / name)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".lock", name), tempfile.TemporaryDirectory(prefix="asymlib-batch-") as scratch:
        batch = _Batch(folder, Path(scratch), jobs, workers, gpus, resume)
        try:
            with _handling(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP):
                batch.run()
        finally:
            batch.stop_all()
        return batch.report()


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that the system drops with the process, so the file of a killed batch locks nobody out."""
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"batch {name!r} is already running as process {file.read().strip() or 'unknown'}; "
                "wait for it, or give this list another name"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class _Batch:
    """The state of one run of a list: the ledger, what waits, what runs."""

    def __init__(self, folder: Path, scratch: Path, jobs: list[Job], workers: int, gpus: Sequence[str], resume: bool):
        self.folder, self.scratch, self.workers = folder, scratch, workers
        self.gpus, self.free_gpus = bool(gpus), list(gpus)
        self.jobs = {job.id: job for job in jobs}
        self.alone = _alone(jobs)
        self.ready_at = {job.id: 0.0 for job in jobs}  # time.monotonic() before which a job is not started again
        self.running: dict[str, _Child] = {}
        self.changed: dict[str, str] = {}  # jobs that would be as before, but for an output
        old = read_json(folder / "ledger.json")["jobs"] if resume and (folder / "ledger.json").exists() else {}
        self.ledger = {job.id: self._entry(job, old.get(job.id, {})) for job in jobs}
        self._save()
        self.bar = tqdm(total=len(jobs), disable=not sys.stderr.isatty(), leave=False, bar_format="{n}/{total} {desc}")

    def _entry(self, job: Job, old: dict) -> dict:
        executed = str(RUNS / self.folder.name / f"{job.id}.ipynb")
        if old.get("status") == "ok" and old.get("fingerprint") == job.fingerprint:
            known = old.get("outputs", {})
            absent = [file for file in (*job.outputs, executed) if not project_path(file).exists()]
            other = [file for file in job.outputs if file not in absent and _sha256(file) != known.get(file)]
            if not absent and not other:
                return old
            reasons = [f"{file} is missing" for file in absent]
            reasons += [f"{file} is not what the job wrote" for file in other]
            self.changed[job.id] = ", ".join(reasons)
        return {
            "status": "pending",
            "notebook": job.notebook,
            "parameters": job.parameters,
            "fingerprint": job.fingerprint,
            "started": None,
            "seconds": None,
            "attempts": 0,
            "error": None,
            "line": None,
            "output": executed,
            "outputs": {},  # path: SHA-256, null for a folder
            "log": str(RUNS / self.folder.name / f"{job.id}.log"),
        }

    def _save(self) -> None:
        write_json(self.folder / "ledger.json", {"name": self.folder.name, "jobs": self.ledger})

    def _set(self, id: str, **changes: object) -> None:
        self.ledger[id].update(changes)
        self._save()

    def _say(self, text: str) -> None:
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def run(self) -> None:
        for id, entry in self.ledger.items():
            if entry["status"] == "ok":
                self._say(f"ok       {id}  as before")
            elif id in self.changed:
                self._say(f"again    {id}  {self.changed[id]}")
        while any(entry["status"] in ("pending", "running") for entry in self.ledger.values()):
            self._start_what_can()
            for child in list(self.running.values()):
                if child.finished():
                    self._finish(child)
            names = ", ".join(f"{id} {time.monotonic() - child.start:.0f} s" for id, child in self.running.items())
            self.bar.n = sum(entry["status"] in ("ok", "failed", "skipped") for entry in self.ledger.values())
            self.bar.set_description_str(f"running: {names}")
            time.sleep(0.1)
        self.bar.close()

    def _start_what_can(self) -> None:
        for id, job in self.jobs.items():
            if self.ledger[id]["status"] != "pending":
                continue
            needs = {need: self.ledger[need]["status"] for need in job.needs}
            if lost := [need for need, status in needs.items() if status in ("failed", "skipped")]:
                self._set(id, status="skipped", error=f"skipped: needs {', '.join(lost)}")
                self._say(f"skipped  {id}  needs {', '.join(lost)}")
            elif (
                all(status == "ok" for status in needs.values())
                and len(self.running) < self.workers
                and time.monotonic() >= self.ready_at[id]
            ):
                self._start(job)

    def _start(self, job: Job) -> None:
        attempt = self.ledger[job.id]["attempts"] + 1
        gpu = self.free_gpus.pop(0) if self.gpus else None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._set(job.id, status="running", started=started, seconds=None, attempts=attempt, error=None, line=None)
        notes = [f"gpu {gpu}"] * self.gpus + [f"attempt {attempt}"] * (attempt > 1)
        self._say(f"start    {job.id}  {', '.join(notes)}".rstrip())
        scratch = self.scratch / f"{job.id}-{attempt}"
        workers = 1 if job.id in self.alone else self.workers
        self.running[job.id] = _Child(job, self.folder, scratch, _environment(gpu, workers), gpu, attempt)

    def _finish(self, child: "_Child") -> None:
        id, attempt = child.job.id, self.ledger[child.job.id]["attempts"]
        del self.running[id]
        if self.gpus:
            self.free_gpus.append(child.gpu)
        seconds = round(time.monotonic() - child.start, 2)
        outcome = child.outcome()
        if outcome["status"] == "no kernel" and attempt <= len(BACK_OFF):
            wait = BACK_OFF[attempt - 1]
            self.ready_at[id] = time.monotonic() + wait
            self._set(id, status="pending", seconds=seconds, error=outcome["error"])
            self._say(f"again    {id}  in {wait:g} s: {outcome['error']}")
            return
        status = "ok" if outcome["status"] == "ok" else "failed"
        outputs = {file: _sha256(file) for file in child.job.outputs} if status == "ok" else {}
        changes = {"seconds": seconds, "outputs": outputs, "error": outcome.get("error"), "line": outcome.get("line")}
        self._set(id, status=status, **changes)
        self._say(f"{status:8} {id}  {seconds:.1f} s" + (f": {outcome['error']}" if status == "failed" else ""))

    def stop_all(self) -> None:
        """Stop what still runs, after Ctrl-C or an error in the batch itself, and mark it pending."""
        if not self.running:
            return
        with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl-C changes nothing
            for child in self.running.values():
                child.interrupt()
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and any(child.process.poll() is None for child in self.running.values()):
                time.sleep(0.05)
            for id, child in self.running.items():
                child.kill()
                self.ledger[id].update(status="pending", error="interrupted")
            self.running.clear()
            self._save()
        self.bar.close()

    def report(self) -> int:
        """Print a line a job and three lines a failure; return how many jobs are not ok."""
        width = max(len(id) for id in self.ledger)
        self._say(f"\n{'job':{width}}  status   seconds  attempts")
        for id, entry in self.ledger.items():
            seconds = "-" if entry["seconds"] is None else f"{entry['seconds']:.1f}"
            self._say(f"{id:{width}}  {entry['status']:7}  {seconds:>7}  {entry['attempts']:>8}")
        for id, entry in self.ledger.items():
            if entry["status"] == "failed":
                executed, log = (os.path.relpath(project_path(entry[key])) for key in ("output", "log"))
                self._say(f"\n{id}: {entry['error']}\n  {entry['line'] or executed}\n  log: {log}")
        return sum(entry["status"] != "ok" for entry in self.ledger.values())


@contextmanager
def _handling(handler: object, *numbers: signal.Signals) -> Iterator[None]:
    """Handle these signals so for the block; one that is ignored (nohup) stays ignored, other threads change nothing."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = {n: signal.getsignal(n) for n in numbers if in_main_thread and signal.getsignal(n) != signal.SIG_IGN}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _sha256(output: str) -> str | None:
    """SHA-256 of an output; None for a folder, of which only its existence counts."""
    path = project_path(output)
    return sha256_file(path) if path.is_file() else None


def _alone(jobs: Sequence[Job]) -> set[str]:
    """The jobs that no other can run beside, because each other job is before or after them: these get every core.

    Decided by the list and not by what happens to run: sums in floating point depend on the number of threads.
    """
    before: dict[str, set[str]] = {}
    needs = {job.id: job.needs for job in jobs}
    for id in graphlib.TopologicalSorter(needs).static_order():
        before[id] = set(needs[id]).union(*(before[need] for need in needs[id]))
    after = {id: sum(id in earlier for earlier in before.values()) for id in before}
    return {id for id in before if len(before[id]) + after[id] + 1 == len(jobs)}


def _environment(gpu: str | None, workers: int) -> dict[str, str]:
    """The environment of a job: this asymlib, a fixed hash seed, its GPU, and its share of the cores.

    Folders in it are made absolute: a job starts in the project's folder, whichever folder the batch runs in.
    """
    environment = dict(os.environ, PYTHONHASHSEED="0")
    paths = [Path(__file__).resolve().parents[1], *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths))
    for name in ("ASYMLIB_HOME", "ASYMLIB_DATA"):
        if environment.get(name):
            environment[name] = os.path.abspath(environment[name])
    if gpu is not None:
        environment |= {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # numbered as nvidia-smi does
    if workers > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment.setdefault(name, str(max(1, cores // workers)))
    return environment


class _Child:
    """One job's process, in a session of its own; the kernel below it has yet another."""

    def __init__(self, job: Job, folder: Path, scratch: Path, environment: dict, gpu: str | None, attempt: int):
        self.job, self.scratch, self.gpu = job, scratch, gpu
        self.start, self.timed_out, self.below = time.monotonic(), False, set()
        scratch.mkdir()
        home = project_path().resolve()
        notebook = os.path.relpath(Path(job.notebook).resolve(), home)  # papermill notes both paths in what it writes
        output = str(RUNS / folder.name / f"{job.id}.ipynb")
        order = {"notebook": notebook, "output": output, "parameters": job.parameters}
        write_json(scratch / "order.json", order)
        with open(folder / f"{job.id}.log", "w" if attempt == 1 else "a", encoding="utf-8") as log:
            log.write(f"attempt {attempt}: {job.notebook}\n")
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "asymlib.batch", "_run-one", str(scratch)],  # -P: not an asymlib/ in home
                cwd=home,
                stdin=subprocess.PIPE,  # never written to: its end tells the child that this process is gone
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def finished(self) -> bool:
        """Whether the process has ended; past its time limit it is first interrupted, then killed."""
        seconds = time.monotonic() - self.start
        if self.process.poll() is None and seconds > self.job.timeout and not self.timed_out:
            self.timed_out = True
            self.interrupt()
        if self.timed_out and (self.process.poll() is not None or seconds > self.job.timeout + GRACE):
            self.kill()
        if self.process.poll() is None:
            return False
        self.process.stdin.close()
        return True

    def interrupt(self) -> None:
        """Ctrl-C for the kernel: its cells clean up, and the executed notebook shows where it stood."""
        self.below |= _descendants(self.process.pid)
        _signal_groups(self.below, signal.SIGINT)

    def kill(self) -> None:
        """End every process group that the job started."""
        if self.process.poll() is None:
            self.below |= _descendants(self.process.pid)
            os.killpg(self.process.pid, signal.SIGKILL)
        _signal_groups(self.below, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()

    def outcome(self) -> dict:
        """status ok, failed or no kernel; error: one line; line: the failing source line, if known."""
        report = self.scratch / "outcome.json"
        outcome = read_json(report) if report.exists() else {"status": "failed", "error": None, "line": None}
        if self.timed_out:
            place = f" in {outcome['place']}" if outcome.get("place") else ""
            return outcome | {"status": "failed", "error": f"time limit of {self.job.timeout:g} s reached{place}"}
        if not report.exists():
            end = self.process.returncode
            cause = (
                f"was killed by signal {-end} (9: often out of memory)" if end < 0 else f"ended with exit code {end}"
            )
            return outcome | {"error": f"the process {cause} without a report"}
        if outcome["status"] == "ok" and (
            absent := [path for path in self.job.outputs if not project_path(path).exists()]
        ):
            return {"status": "failed", "error": f"ended well but did not write {', '.join(absent)}"}
        return outcome


def _descendants(pid: int) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return set(psutil.Process(pid).children(recursive=True))
    return set()


def _signal_groups(processes: set[psutil.Process], number: signal.Signals) -> None:
    """Signal the groups of those that still live; psutil knows a process from a later one of the same id."""
    groups = set()
    for process in processes:
        with suppress(ProcessLookupError):
            if process.is_running():
                groups.add(os.getpgid(process.pid))
    for group in groups - {os.getpgid(0)}:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


# --- the child process ---------------------------------------------------------------------------------------------


def _run_one(scratch: Path) -> None:
    """Execute the notebook that scratch/order.json names and leave scratch/outcome.json behind."""
    parent_gone = threading.Event()
    guard = threading.Thread(target=_end_with_parent, args=(parent_gone, scratch.parent), daemon=True)
    guard.start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in (
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
    ):  # no start-up files or history of the user's, nothing left behind
        (scratch / name).mkdir()
        os.environ[name] = str(scratch / name)
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(scratch), os.environ.get("JUPYTER_PATH")]))
    sys.modules["rfc3987_syntax"] = (
        None  # jsonschema does without; its grammar takes longer to build than a kernel to start
    )
    import papermill  # here, not above: slow, and its imports warn
    from ipykernel.kernelspec import write_kernel_spec

    write_kernel_spec(scratch / "kernels" / "python3")  # this interpreter, whatever python3 means to the user's Jupyter
    order = read_json(scratch / "order.json")
    output = Path(order["output"])
    output.unlink(missing_ok=True)
    outcome = {"status": "ok", "error": None}
    try:
        papermill.execute_notebook(
            order["notebook"],
            order["output"],
            order["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            log_output=True,
            start_timeout=START_TIMEOUT,
            iopub_timeout=60,  # the usual 4 s fail a good cell on a busy machine
        )
    except papermill.PapermillExecutionError as error:
        logging.error("%s", error)
        outcome = _cell_failure(error)
    except Exception as error:
        logging.exception("the notebook did not run to its end")
        outcome = _other_failure(error, output)
    if parent_gone.is_set():
        guard.join()  # which ends this process
    write_json(scratch / "outcome.json", outcome)


def _cell_failure(error: Exception) -> dict:
    """What a failing cell says in one line, and the source line that failed; error: papermill's PapermillExecutionError."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    place, line = f"In [{error.exec_count}]", None
    source = re.sub(r"\A(\s*\n)+", "", error.source).splitlines()  # IPython counts from the first line with text
    if found := re.search(rf"Cell In\[{error.exec_count}\], line (\d+)", trace):
        place += f", line {found[1]}"
        line = source[int(found[1]) - 1].strip() if int(found[1]) <= len(source) else None
    message = next((part.strip() for part in error.evalue.splitlines() if part.strip()), "")
    text = f"{place}: {error.ename}: {message}" if message else f"{place}: {error.ename}"
    return {"status": "failed", "error": text, "place": place, "line": line}


def _other_failure(error: Exception, output: Path) -> dict:
    """Tell a kernel that never came up, which is worth another try, from one that died in a cell."""
    text = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    if not output.exists():
        return {"status": "failed", "error": text, "line": None}
    cells = _cells(output)
    begun = [n for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    if not begun:
        return {"status": "no kernel", "error": f"the kernel did not start: {text}", "line": None}
    lines = cells[begun[-1] - 1]["source"].splitlines()
    place = f"cell {begun[-1]} of the executed notebook"
    hint = " (often out of memory)" if type(error).__name__ == "DeadKernelError" else ""
    return {"status": "failed", "error": f"{place}: {text}{hint}", "place": place, "line": lines[0] if lines else None}


def _end_with_parent(parent_gone: threading.Event, scratch: Path) -> None:
    """When the batch is gone, even killed, end the kernel and all it started instead of running on unseen."""
    os.read(sys.stdin.fileno(), 1)  # returns when the batch's end of the pipe closes
    parent_gone.set()
    below = _descendants(os.getpid())
    _signal_groups(below, signal.SIGINT)
    psutil.wait_procs(below, timeout=GRACE)
    _signal_groups(below | _descendants(os.getpid()), signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


# --- command line --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every job is ok; 1: some are not; InputError when nothing could be run."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if len(argv) == 2 and argv[0] == "_run-one":
        _run_one(Path(argv[1]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m asymlib.batch", description="Run notebooks as a list of jobs.")
    parser.add_argument("list", metavar="JOBS.yaml", help="the list of jobs; python -m pydoc asymlib.batch explains it")
    parser.add_argument("--jobs", type=int, metavar="N", help="jobs at a time (default: one a GPU, else 1)")
    parser.add_argument(
        "--gpus", metavar="0,1", help="a GPU for each job from these; an id given twice is shared by two"
    )
    parser.add_argument("--resume", action="store_true", help="leave out jobs that are done and unchanged")
    parser.add_argument("--check", action="store_true", help="only check the list, its notebooks and their parameters")
    options = parser.parse_args(argv)
    gpus = [] if options.gpus is None else [part.strip() for part in options.gpus.split(",")]
    if "" in gpus:
        raise InputError(f"--gpus {options.gpus!r}: expected ids with commas between them, as in 0,1")
    workers = options.jobs if options.jobs is not None else max(1, len(gpus))
    if workers < 1:
        raise InputError(f"--jobs {workers}: expected at least 1")
    if gpus and workers > len(gpus):
        raise InputError(f"--jobs {workers} with {len(gpus)} GPU(s): each job gets one; repeat an id to share it")
    name, jobs = read_jobs(options.list)
    if options.check:
        print(f"{options.list}: {len(jobs)} jobs, their notebooks and parameters are in order")
        return 0
    return 1 if run_jobs(name, jobs, workers, gpus, options.resume) else 0


if __name__ == "__main__":
    run_command(main)
