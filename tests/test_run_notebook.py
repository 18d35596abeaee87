"""One notebook as a job: what its parameters may be, what it depends on, and real kernels that fail in every way."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from asymlib.errors import InputError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
import run_notebook

PARAMETERS = """\
# what the notebook is told
recipe: str = "asym-dot"
lr: float = 1e-3
steps: int = 10
masked: bool = True
weights: list[float] = [1.0, 0.1]
grid: dict[str, float] = {"low": 0.1}
limit: int = None
changes: dict = {}
"""
SLEEPER = """
    import os, subprocess, time
    worker = subprocess.Popen(["sh", "-c", "trap '' INT; exec sleep 600"], start_new_session=True)
    with open(f"pids-{recipe}.part", "w") as file:
        file.write(f"{os.getpid()} {worker.pid}")
    os.rename(f"pids-{recipe}.part", f"pids-{recipe}")
    try:
        time.sleep(600)
    finally:
        open(f"cleaned-{recipe}", "w").close()
"""


def write_notebook(path, *cells, parameters=PARAMETERS):
    """A notebook on disk: the tagged parameters cell, then code cells."""
    sources = [textwrap.dedent(cell).strip("\n") for cell in (parameters, *cells)]
    tags = [["parameters"]] + [[] for _ in cells]
    made = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {"tags": tag},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for n, (source, tag) in enumerate(zip(sources, tags, strict=True))
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        json.dumps({"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )
    return Path(path)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def gone(pid):
    """Whether a process has ended (a zombie that nobody reaped has)."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def start(home, name, *cells, given=None, files=(), environment=None, **options):
    """Start one notebook as a job of the study "s" in the folder home."""
    notebook = write_notebook(home / f"{name}.ipynb", *cells)
    (home / "data/runs/s").mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        ROOT / "workflow/run_notebook.py",
        notebook,
        f"data/runs/s/{name}.json",
        json.dumps(given or {}),
    ]
    command += [f"--{key}={value}" for key, value in options.items()] + ["--files", *files, "--inputs", str(notebook)]
    return subprocess.Popen(command, cwd=home, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True)


def status(home, name):
    return json.loads((home / f"data/runs/s/{name}.status.json").read_text())


# --- parameters and code ---


@pytest.mark.parametrize(
    ("name", "value", "arrives"),
    [
        ("lr", 1, 1.0),
        ("weights", [2, 0.5], [2.0, 0.5]),
        ("limit", None, None),
        ("limit", 5, 5),
        ("changes", {"a": [1, None]}, {"a": [1, None]}),
    ],
)
def test_parameters_arrive_in_the_notebooks_types(tmp_path, name, value, arrives):
    assert run_notebook.check(write_notebook(tmp_path / "n.ipynb"), {name: value}) == {name: arrives}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", "fast", "valid number"),
        ("lr", True, "valid number"),
        ("lr", float("nan"), "finite number"),
        ("steps", 1.5, "valid integer"),
        ("steps", True, "valid integer"),
        ("masked", 1, "valid boolean"),
        ("recipe", False, "valid string"),  # what YAML makes of an unquoted no
        ("weights", 0.1, "valid list"),
        ("grid", {"a": "b"}, "valid number"),
        ("learning_rate", 0.1, "unknown; the notebook has recipe, lr, steps"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_notebook_and_the_expected_type(tmp_path, name, value, expected):
    with pytest.raises(InputError, match=f"n.ipynb: parameter '{name}': .*{expected}"):
        run_notebook.check(write_notebook(tmp_path / "n.ipynb"), {name: value})


@pytest.mark.parametrize(
    "cell", ["a: int = 1\nb: int = a * 2", "import os", "a: int", "a = 1", "a: int = 'x'", "a: Path = 'x'", "a: int ="]
)
def test_a_parameters_cell_holds_typed_literals_only(tmp_path, cell):
    with pytest.raises(InputError, match=r"line \d: expected `name: type = literal`"):
        run_notebook.check(write_notebook(tmp_path / "n.ipynb", parameters=cell), {})


def test_what_a_notebook_depends_on_is_found_through_rooms_and_names(tmp_path):
    files = {
        "__init__.py": "from lib.core import Thing",
        "core.py": "",
        "alone.py": "",
        "room/__init__.py": "",
        "room/inner.py": "from . import beside\nfrom ..core import Thing",
        "room/beside.py": "STYLE = 'paper.mplstyle'",
        "room/far.py": "import lib.alone",
        "room/paper.mplstyle": "",
        "room/other.mplstyle": "",
    }
    for name, text in files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(text)

    def used(cell):
        found = run_notebook.code_of(write_notebook(tmp_path / "n.ipynb", cell), tmp_path / "lib")
        return {str(path.relative_to(tmp_path / "lib")) for path in found}

    assert used("import numpy") == set()
    assert used("from lib.room import inner") == {"room/inner.py", "room/beside.py", "room/paper.mplstyle", "core.py"}
    assert used("def f():\n    from lib.room.far import x") == {"room/far.py", "alone.py"}
    assert used("from lib import Thing") == {"__init__.py", "core.py"}  # a name, so the package's own file
    assert used("%magic") >= {"core.py", "alone.py", "room/far.py"}  # no plain Python: everything


def test_a_receipt_names_what_was_lost_or_altered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "heads/b"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    files = run_notebook.written(["a", "heads/"])
    assert list(files) == ["a", "heads/b"] and run_notebook.problem({"files": files}) == ""
    Path("heads/b").write_text("")
    assert run_notebook.problem({"files": files}) == "heads/b was altered"
    Path("a").unlink()
    assert run_notebook.problem({"files": files}) == "a is lost"
    for name in ("a", "absent/"):
        with pytest.raises(InputError, match=f"did not write {name}"):
            run_notebook.written([name])


# --- real kernels ---


@pytest.mark.notebook
def test_a_job_leaves_a_receipt_and_an_equal_one_is_not_run_again(tmp_path):
    cell = """
        import json, os, sys
        from pathlib import Path
        seen = [sys.executable, os.getcwd(), recipe, weights, os.environ["PYTHONHASHSEED"]]
        Path("seen.json").write_text(json.dumps(seen))
        print("said in a cell")
        """
    given = {"recipe": 'it\'s "q" \\ ü {x}', "weights": [0.1, 2]}
    other = tmp_path / "jupyter/kernels/python3"  # a user's own python3, which must not be taken
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    shown = start(
        tmp_path, "a", cell, given=given, files=["seen.json"], environment={"JUPYTER_PATH": str(tmp_path / "jupyter")}
    ).communicate()[0]
    assert "s/a " in shown and "ok" in shown and len(shown.splitlines()) == 2
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == [sys.executable, str(tmp_path), given["recipe"], [0.1, 2.0], "0"]
    receipt = (tmp_path / "data/runs/s/a.json").read_text()
    assert json.loads(receipt)["files"].keys() == {"seen.json"} and "seconds" not in receipt
    assert (
        "said in a cell" in (tmp_path / "data/runs/s/a.log").read_text() and (tmp_path / "data/runs/s/a.ipynb").exists()
    )
    (tmp_path / "data/runs/s/a.json").unlink()
    assert "as before" in start(tmp_path, "a", cell, given=given, files=["seen.json"]).communicate()[0]
    assert (tmp_path / "data/runs/s/a.json").read_text() == receipt
    assert (
        "started" in start(tmp_path, "a", cell + "\n", given=given | {"lr": 0.1}, files=["seen.json"]).communicate()[0]
    )


@pytest.mark.notebook
def test_jobs_fail_run_out_of_time_and_lose_their_engine_without_leaving_anything_running(tmp_path):
    jobs = {
        "slow": start(tmp_path, "slow", SLEEPER, given={"recipe": "slow"}, limit=15),
        "error": start(tmp_path, "error", "raise ValueError('too long\\nby far')"),
        "dies": start(tmp_path, "dies", "import os\nos.kill(os.getpid(), 9)"),
        "silent": start(tmp_path, "silent", "1", files=["never"]),
    }
    words = {
        "slow": "time limit reached",
        "error": "In [2]: ValueError: too long",
        "dies": "Kernel died",
        "silent": "did not write never",
    }
    for name, process in jobs.items():
        shown = process.communicate()[0]
        assert process.returncode == 1 and status(tmp_path, name)["state"] == "failed"
        assert words[name] in status(tmp_path, name)["error"] and words[name] in shown
        assert (tmp_path / f"data/runs/s/{name}.ipynb").exists() and not (
            tmp_path / f"data/runs/s/{name}.json"
        ).exists()
    assert (tmp_path / "cleaned-slow").exists()  # interrupted before it was killed
    assert all(gone(int(pid)) for pid in (tmp_path / "pids-slow").read_text().split())
    stopped = start(tmp_path, "stopped", SLEEPER, given={"recipe": "stopped"})
    wait_for((tmp_path / "pids-stopped").exists)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=30)
    assert stopped.returncode == 1 and status(tmp_path, "stopped")["error"].endswith("terminated")
    assert all(gone(int(pid)) for pid in (tmp_path / "pids-stopped").read_text().split())


@pytest.mark.notebook
def test_a_kernel_that_dies_before_it_answers_is_started_again(tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'ipykernel_launcher' in sys.orig_argv and os.path.exists('die'):\n"
        "    os.remove('die')\n"
        "    os._exit(1)\n"
    )
    (tmp_path / "die").touch()
    process = start(tmp_path, "a", "1 + 1", environment={"PYTHONPATH": str(tmp_path / "hook")})
    assert "ok" in process.communicate()[0] and process.returncode == 0
    assert "the kernel did not start; once more" in (tmp_path / "data/runs/s/a.log").read_text()


@pytest.mark.notebook
def test_two_gpus_are_shared_out_and_given_back(tmp_path):
    cell = """
        import os, time
        from pathlib import Path
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        open(f"busy-{gpu}", "x").close()
        time.sleep(1)
        os.remove(f"busy-{gpu}")
        Path(recipe).write_text(gpu)
        """
    given = {"ASYMLIB_GPUS": "5,6", "TMPDIR": str(tmp_path)}
    jobs = [
        start(tmp_path, f"g{n}", cell, given={"recipe": f"seen{n}"}, files=[f"seen{n}"], environment=given)
        for n in range(3)
    ]
    assert all(" ok " in job.communicate()[0] for job in jobs)
    assert {(tmp_path / f"seen{n}").read_text() for n in range(3)} == {"5", "6"}
