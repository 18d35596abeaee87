"""One notebook as a job: its parameters checked against its tagged cell, the files it depends on, its run and its receipt.

    python workflow/run_notebook.py NOTEBOOK data/runs/STUDY/JOB.json '{"recipe": "asym-dot"}' --files FILE FOLDER/ --inputs FILE

The receipt JOB.json holds the parameters and the SHA-256 of every file in --files and of every other file of the project that the
notebook wrote, and nothing that changes between equal runs. Beside it lie JOB.ipynb (the executed copy), JOB.log and
JOB.status.json (state, seconds, error and what was asked of the run).
"""

import argparse
import ast
import errno
import fcntl
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TextIO

import psutil
from config import Seed, Seeds
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from receipts import as_before, cached, written

from asymlib.errors import InputError, run_command
from asymlib.files import safe_name, sha256_file, write_record, write_text

START_TIMEOUT = 120  # s for a kernel to answer; a busy machine needs more than the usual 60
BACK_OFF = (2.0, 8.0)  # s before the second and the third start of a kernel that did not come up
GRACE = 5.0  # s between interrupting a kernel, so that its cells can clean up, and killing it
TYPES = {"list": list, "dict": dict, "int": int, "float": float, "str": str, "bool": bool}
SEEDS = {"seed": Seed, "seeds": Seeds, "final_seeds": Seeds}  # what a name means, whatever the notebook's type says

# --- what a notebook is --------------------------------------------------------------------------------------------


def check(notebook: Path, given: dict) -> dict:
    """The parameters in the notebook's types; an InputError names every unknown or mistyped one and the expected type."""
    model = parameters_of(notebook)
    if not isinstance(given, dict):
        raise InputError(
            f'{notebook.name}: expected parameters as a mapping, e.g. {{"study": "mine"}}, found {given!r}'
        )
    try:
        checked = model(**given).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            name, known = e["loc"][0], e["loc"][0] in model.model_fields
            what = (
                f"{e['msg']}: {e['input']!r}" if known else f"unknown; the notebook has {', '.join(model.model_fields)}"
            )
            problems.append(f"parameter {name!r}: {what}" + " (quote it)" * (e["type"] == "string_type"))
        raise InputError(f"{notebook.name}: {'; '.join(problems)}") from error
    for name in ("study", "save_as"):  # parts of paths; "" is the notebook's own choice
        if checked.get(name):
            safe_name(checked[name], f"{notebook.name}: parameter {name!r}")
    return checked


@cache
def parameters_of(notebook: Path) -> type[BaseModel]:
    """A strict model of the one tagged cell, which holds `name: type = literal` only: papermill puts the given values into
    a cell after it, so anything computed in it would keep the default's value."""
    tagged = [cell["source"] for cell in cells_of(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"{notebook}: expected one cell tagged 'parameters', found {len(tagged)}")
    fields, config = {}, ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)
    try:
        for node in ast.parse(tagged[0]).body:
            name, default = node.target.id, ast.literal_eval(node.value)
            kind = SEEDS.get(name) or eval(ast.unparse(node.annotation), {"__builtins__": {}}, TYPES)
            fields[name] = (kind | None if default is None else kind, default)
            create_model("Parameter", __config__=config, **{name: fields[name]})()
    except (AttributeError, NameError, SyntaxError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None) or node.lineno
        raise InputError(f"{notebook}: parameters, line {line}: expected `name: type = literal`") from error
    return create_model("Parameters", __config__=config, **fields)


def cells_of(notebook: Path) -> list[dict]:
    """The cells, each with its source as one string; nbformat's own reader takes seconds to import."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{notebook}: not a notebook of format 4 ({error!r})") from error


def code_of(notebook: Path, package: Path) -> list[Path]:
    """The package's files that a notebook's result depends on: modules that it imports, directly or through each other, and
    what else lies in the package and is named in one of them (a style sheet)."""
    modules = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    code = [cell["source"] for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    wanted, used = set().union(*(_imported(source, modules, "") for source in code)), {}
    while new := wanted - set(used):
        used |= {name: modules[name].read_text(encoding="utf-8") for name in new}
        wanted |= set().union(*(_imported(used[name], modules, name) for name in new))
    others = [path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    named = [path for path in others if any(path.name in source for source in used.values())]
    return sorted([modules[name] for name in used] + named)


def _imported(source: str, modules: dict[str, Path], within: str) -> set[str]:
    """Which of `modules` a source imports, anywhere in it; all of them where it is no plain Python (a cell with a magic)."""
    names = set()
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return set(modules)
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = within.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {name if name in modules else base for name in (f"{base}.{alias.name}" for alias in node.names)}
    return {name if name in modules else f"{name}.__init__" for name in names} & set(modules)


# --- running -------------------------------------------------------------------------------------------------------


class Guard(threading.Thread):
    """Interrupts the kernel, then kills it, when the time is up, on SIGTERM or SIGINT, or when the engine is gone."""

    def __init__(self, parent: int):
        super().__init__(daemon=True)
        self.parent, self.deadline, self.ended, self.done = parent, float("inf"), "", threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: setattr(self, "ended", signal.strsignal(number).lower()))

    def run(self) -> None:
        while not self.ended:
            time.sleep(0.2)
            if os.getppid() != self.parent:
                self.ended = "the engine is gone"
            elif time.monotonic() > self.deadline:
                self.ended = "time limit reached"
        for number in (signal.SIGINT, signal.SIGKILL):
            end_started(number)
        self.done.set()
        time.sleep(GRACE)  # in which the executed copy is written
        os._exit(1)


def end_started(number: int) -> None:
    """Send a signal to every process that this job started, those in sessions of their own too, and wait until they are gone.

    They carry the job's mark in their environment, or descend from a process that does.
    """
    found, mark = set(), os.environ["ASYMLIB_JOB"]
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended, or another user's
            if process.environ().get("ASYMLIB_JOB") == mark:
                found |= {process, *process.children(recursive=True)}
    for process in found:
        with suppress(psutil.Error, OSError):
            process.send_signal(number)
    psutil.wait_procs(found, timeout=GRACE)


def outlive() -> None:
    """Leave a process behind that waits for the end of this one, by kill -9 too, and then kills whatever it had started."""
    os.environ["ASYMLIB_JOB"] = uuid.uuid4().hex
    reading, writing = os.pipe()  # the writing end is closed when this process ends, and no kernel inherits it
    if os.fork():
        os.close(reading)
        return
    os.setsid()
    os.close(writing)
    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    os.read(reading, 1)
    end_started(signal.SIGKILL)
    os._exit(0)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold one of $ASYMLIB_GPUS=0,1 for this process (an id given twice serves two); a scheduler gives us ours itself."""
    gpus = [gpu for gpu in os.environ.get("ASYMLIB_GPUS", "").split(",") if gpu]
    slots = [] if "SLURM_JOB_ID" in os.environ else [(gpu, gpus[:n].count(gpu)) for n, gpu in enumerate(gpus)]
    while slots:
        for gpu, copy in slots:
            with open(Path(tempfile.gettempdir()) / f"asymlib-gpu-{os.getuid()}-{gpu}-{copy}.lock", "w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                os.environ |= {"CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
                yield
                return
        time.sleep(0.5)
    yield


def execute(notebook: Path, executed: Path, parameters: dict, guard: Guard) -> str:
    """Run the notebook in a fresh kernel of this interpreter; what went wrong in one line, else ""."""
    sys.modules["rfc3987_syntax"] = (
        None  # jsonschema does without; its grammar takes longer to build than a kernel to start
    )
    import papermill  # here, not above: slow, and its imports warn
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory(prefix=f"asymlib-job-{os.getpid()}-") as scratch:
        write_kernel_spec(Path(scratch) / "kernels/python3")  # whatever python3 means to the user's Jupyter
        os.environ |= dict.fromkeys(["JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"], scratch)
        os.environ |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
        for wait in (*BACK_OFF, None):
            executed.unlink(missing_ok=True)
            try:
                papermill.execute_notebook(notebook, executed, parameters, kernel_name="python3", progress_bar=False,
                                           log_output=True, start_timeout=START_TIMEOUT, iopub_timeout=60)  # fmt: skip
                return guard.ended
            except Exception as error:
                logging.exception("the notebook did not run to its end")
                cells = cells_of(executed) if executed.exists() else []
                begun = any(cell["metadata"].get("papermill", {}).get("start_time") for cell in cells)
                if begun or guard.ended or wait is None:
                    place = f"In [{getattr(error, 'exec_count', '*')}]: " if begun else ""
                    return place + (guard.ended or cause(error, cells, executed))
                logging.error("the kernel did not start; once more in %g s", wait)
                time.sleep(wait)


def cause(error: Exception, cells: list[dict], executed: Path) -> str:
    """What stopped a notebook, in one line."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error)).strip()
    if kind == "CellExecutionError" and not text:  # the kernel sent no error; what it printed is all there is
        failed = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("exception")]
        outputs = [output for cell in failed for output in cell["outputs"] if output["output_type"] == "stream"]
        printed = re.sub(r"\x1b\[[0-9;]*m", "", "".join("".join(output["text"]) for output in outputs)).split("\n")
        return next(
            filter(None, (line.strip(" |+-") for line in reversed(printed))),
            "the cell ended in an error that it did not show",
        )
    if getattr(error, "errno", None) == errno.ENOSPC and not error.filename:
        text += f": {executed}"
    return f"{kind}: {text}".splitlines()[0].rstrip(": ")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run_notebook.py", description="Run one notebook as a job.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("receipt", type=Path, help="data/runs/STUDY/JOB.json, written at the end")
    parser.add_argument("parameters", type=json.loads)
    parser.add_argument("--files", nargs="*", default=[], help="what the notebook must write; a folder ends in /")
    parser.add_argument("--inputs", nargs="*", default=[], help="files that the result depends on")
    parser.add_argument("--page", help="self-contained HTML page to make of the executed notebook, one of --files")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="the process to end with")
    options = parser.parse_args(argv)
    base = options.receipt.with_suffix("")
    name, status, base = f"{base.parent.name}/{base.name}", Path(f"{base}.status.json"), str(base)
    record = {"parameters": check(options.notebook, options.parameters), "files": options.files}
    outlive()
    guard = Guard(options.parent)
    guard.start()
    with (
        open(f"{base}.log", "a", encoding="utf-8") as log,
        os.fdopen(os.dup(1), "w", buffering=1, errors="replace") as console,
    ):
        fcntl.flock(log, fcntl.LOCK_EX)  # a run whose engine was killed may still be ending its kernel
        record["inputs"] = {path: sha256_file(path) for path in sorted(options.inputs)}
        if last := as_before(record, status):
            print(f"{name:48} as before", file=console)
            write_record(options.receipt, last["receipt"])
            return 0
        log.truncate(0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        try:
            record |= run(options, record, guard, console)
            if not record["error"]:
                write_record(options.receipt, record["receipt"])
            write_record(status, record)
        except (InputError, OSError) as error:  # of this program, not of the notebook: a full disk
            record["error"] = str(error)
        seconds, state = record.get("seconds", 0.0), "failed" if record["error"] else "ok"
        shown = record["error"] and f"{record['error']} ({base}.log)"
        print(f"{name:48} {state:7}{seconds:8.1f} s  {shown}".rstrip(), file=console)
    return bool(record["error"])


def run(options: argparse.Namespace, record: dict, guard: Guard, console: TextIO) -> dict:
    """What status.json says of this run besides `record`."""
    base = options.receipt.with_suffix("")
    noted, executed = Path(f"{base}.written"), Path(f"{base}.ipynb")
    noted.unlink(missing_ok=True)
    with gpu_slot():
        start = time.time()
        guard.deadline = time.monotonic() + options.limit
        print(f"{f'{base.parent.name}/{base.name}':48} started", file=console)
        write_record(options.receipt.with_suffix(".status.json"), record | {"state": "running", "started": start})
        os.environ["ASYMLIB_WRITTEN"] = str(noted.absolute())
        error = execute(options.notebook, executed, record["parameters"], guard)
        del os.environ["ASYMLIB_WRITTEN"]
    if guard.ended:
        guard.done.wait()  # until nothing that the kernel started is left
    told = {"started": start, "error": error}
    try:
        if options.page and not error:
            from write_page import page  # here: nbconvert is slow to import

            write_text(options.page, page(executed, "html"))
        if not error:
            files = written(options.files, noted)
            told["receipt"] = {"notebook": options.notebook.stem, "parameters": record["parameters"], "files": files}
            told["executed"] = sha256_file(executed)  # which a page is made of
            if any(path.startswith("data/prepared/") for path in files):
                told["cached"] = cached(Path("data/cache"))
    except InputError as absent:
        told["error"] = str(absent)
    noted.unlink(missing_ok=True)
    return told | {"state": "failed" if told["error"] else "ok", "seconds": round(time.time() - start, 1)}


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8":  # a locale that cannot write every path and name
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
    run_command(main)
