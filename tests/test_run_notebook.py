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
from asymlib.files import read_record, sha256_file, write_record, write_text
from tests.conftest import ROOT, flipped

sys.path.insert(0, str(ROOT / "workflow"))
import receipts
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
seeds: list = [0]
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


def start(home, name, *cells, given=None, files=(), environment=None, process=None, **options):
    """Start one notebook as a job of the study "s" in the folder home. process: further arguments of its Popen."""
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
    return subprocess.Popen(
        command, cwd=home, env=os.environ | (environment or {}), stdout=subprocess.PIPE, text=True, **(process or {})
    )


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
        ("recipe", False, r"valid string: False \(quote it\)"),  # what YAML makes of an unquoted no
        ("weights", 0.1, "valid list"),
        ("weights", ["0.001"], "valid number: '0.001'"),
        ("weights", [1.0, None], "valid number: None"),
        ("grid", {"a": "b"}, "valid number"),
        ("seeds", [], "at least 1 item"),
        ("seeds", [0, 0], "one stands twice"),
        ("seeds", [0.5], "valid integer"),
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
    for name in ("a", "heads/b", "figures/noted.png", "data/cache/1/shard-2.npy"):
        write_text(name, "x")
    elsewhere = [str(tmp_path.parent / "c"), str(tmp_path / "data/cache/1/shard-2.npy"), str(tmp_path / "deleted")]
    write_text("noted", "\n".join([str(tmp_path / "figures/noted.png"), str(tmp_path / "a"), *elsewhere]))
    files = receipts.written(["a", "heads/"], Path("noted"))
    assert list(files) == ["a", "figures/noted.png", "heads/b"]
    status = {"receipt": {"files": files}, "cached": receipts.cached(Path("data/cache"))}
    assert receipts.problem(status) == ""
    Path("data/cache/1/shard-2.npy").unlink()
    assert receipts.problem(status) == "data/cache/1/shard-2.npy is lost"
    Path("heads/b").write_text("")
    assert receipts.problem(status) == "heads/b was altered"
    Path("a").unlink()
    assert receipts.problem(status) == "a is lost"
    for name in ("a", "absent/"):
        with pytest.raises(InputError, match=f"did not write {name}"):
            receipts.written([name], Path("noted"))


def test_a_receipt_holds_its_tables_entries_in_the_shared_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("r/mine.csv", "r/other.csv"):
        write_text(name, name)
    entries = {path.name: {"sha256": sha256_file(path)} for path in Path("r").iterdir()}
    write_record("r/origin.json", entries)
    files = receipts.written(["r/mine.csv"], Path("none"))
    assert files == {"r/mine.csv": sha256_file("r/mine.csv"), "r/origin.json:mine.csv": sha256_file("r/mine.csv")}
    write_record("r/origin.json", entries | {"other.csv": {"sha256": "another"}})  # by the job that owns it
    assert receipts.problem({"receipt": {"files": files}}) == ""
    lost = {name: entry for name, entry in entries.items() if name != "mine.csv"}
    for wrong in (lost, {"mine.csv": {"sha256": "0"}}, {"mine.csv": []}):
        write_record("r/origin.json", wrong)
        assert receipts.problem({"receipt": {"files": files}}) == (
            "r/origin.json: the entry mine.csv was altered or is lost"
        )
    for damaged in (json.dumps(entries), "{", ""):
        write_text("r/origin.json", damaged)
        assert "origin.json: the entry" in receipts.problem({"receipt": {"files": files}})
    Path("r/origin.json").unlink()
    assert "origin.json: the entry" in receipts.problem({"receipt": {"files": files}})


def test_a_flipped_bit_in_a_receipt_or_a_status_makes_the_job_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("a.csv", "1")
    receipt = {"notebook": "n", "parameters": {"lr": 0.25}, "files": {"a.csv": sha256_file("a.csv")}}
    record = {"parameters": receipt["parameters"], "files": ["a.csv"], "inputs": {"x.ipynb": "0" * 64}}
    status, job = Path("job.status.json"), Path("job.json")
    write_record(job, receipt)
    write_record(status, record | {"state": "ok", "receipt": receipt})
    assert receipts.trouble(job) == "" and receipts.as_before(record, status)["receipt"] == receipt
    for path in (status, job):
        whole = path.read_bytes()
        for place in range(0, 8 * len(whole), 23):
            path.write_bytes(flipped(whole, place))
            last = receipts.as_before(record, status)
            assert last == {} or last["receipt"] == receipt
            assert receipts.trouble(job) or read_record(path, "")
        for wrong in (b"", b"[]", b"null", b'{"receipt": 3}', b"[" * 100_000, b"\xff", b"1" * 5000):
            path.write_bytes(wrong)
            assert "run" in receipts.trouble(job)
        path.write_bytes(whole)


def test_nothing_is_as_before_while_a_file_behind_an_input_is_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "heads"):
        write_text(name, name)
    stated = {name: {"files": {name: sha256_file(name)}} for name in ("train.jsonl", "heads")}
    write_record("01.json", stated["train.jsonl"])
    write_record("01.status.json", {"receipt": stated["train.jsonl"]})
    record = {"parameters": {}, "files": ["heads"], "inputs": {"01.json": sha256_file("01.json")}}
    write_record("02.status.json", record | {"receipt": stated["heads"]})
    assert receipts.as_before(record, Path("02.status.json"))
    write_text("train.jsonl", "damaged")
    assert receipts.as_before(record, Path("02.status.json")) == {}


def test_what_a_power_cut_left_is_swept_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(receipts.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    parts = [tmp_path / name for name in (".page.md.1.part", "data/runs/s/.a.json.2.part", "figures/s/.f.png.3.part")]
    scratch = [tmp_path / f"tmp/asymlib-job-{pid}-x" for pid in (2**22 + 1, os.getpid())]  # one ended, one runs
    for path in [
        *parts,
        tmp_path / "data/runs/s/.new.4.part",
        tmp_path / "data/kept.part",
        *(s / "k" for s in scratch),
    ]:
        write_text(path, "half")
    for path in [*parts, tmp_path / "data/kept.part", *scratch]:
        os.utime(path, (time.time() - 90_000,) * 2)
    receipts.sweep(tmp_path)
    assert not any(path.exists() for path in [*parts, scratch[0]])
    assert all(
        path.exists() for path in (tmp_path / "data/runs/s/.new.4.part", tmp_path / "data/kept.part", scratch[1])
    )


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


def ignore_interrupts():
    """What a program inherits that a shell starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.notebook
def test_jobs_fail_run_out_of_time_and_lose_their_engine_without_leaving_anything_running(tmp_path):
    background = {"preexec_fn": ignore_interrupts}
    stopped, killed, slow = (
        start(tmp_path, name, SLEEPER, given={"recipe": name}, process=background, **options)
        for name, options in (("stopped", {}), ("killed", {}), ("slow", {"limit": 12}))
    )
    for name, process, number in (("stopped", stopped, signal.SIGTERM), ("killed", killed, signal.SIGKILL)):
        wait_for((tmp_path / f"pids-{name}").exists)
        process.send_signal(number)
    jobs = {
        "error": ("raise ValueError('too long\\nby far')", "In [2]: ValueError: too long"),
        "group": ("raise ExceptionGroup('two', [KeyError(1), TypeError('the cause')])", "In [2]: TypeError: the cause"),
        "dies": ("import os\nos.kill(os.getpid(), 9)", "Kernel died"),
        "silent": ("1", "did not write never"),
    }
    started = {
        name: start(tmp_path, name, cell, files=["never"] * (name == "silent")) for name, (cell, _) in jobs.items()
    }
    expected = {name: words for name, (_, words) in jobs.items()}
    expected |= {"stopped": "terminated", "slow": "time limit reached"}
    for name, process in (started | {"stopped": stopped, "slow": slow}).items():
        shown = process.communicate(timeout=60)[0]
        assert process.returncode == 1 and status(tmp_path, name)["state"] == "failed"
        assert expected[name] in status(tmp_path, name)["error"] and expected[name] in shown
        written = {path.suffix for path in (tmp_path / "data/runs/s").glob(f"{name}.*")}
        assert ".ipynb" in written and not (tmp_path / f"data/runs/s/{name}.json").exists()
    killed.communicate()
    for name in ("stopped", "killed", "slow"):  # the kernel, and what it started in a session of its own
        wait_for(lambda name=name: all(gone(int(pid)) for pid in (tmp_path / f"pids-{name}").read_text().split()), 10)
        assert (tmp_path / f"cleaned-{name}").exists() == (name != "killed")  # interrupted before it was killed
    again = start(tmp_path, "killed", "1")  # at once: nothing holds the log
    assert " ok " in again.communicate(timeout=30)[0]


@pytest.mark.notebook
def test_a_job_in_a_locale_without_unicode_keeps_paths_names_and_the_users_mode(tmp_path):
    home = tmp_path / "Müller"
    home.mkdir()
    cell = """
        from asymlib.files import atomic_path, write_text
        with atomic_path(f"ü/{recipe}.txt") as path:
            path.write_text("ü")
        print("ü")
        """
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    given = {"recipe": "größe"}
    for words in ("ok", "as before"):
        process = start(home, "a", cell, given=given, environment=plain, process={"umask": 0o077})
        assert words in process.communicate()[0] and process.returncode == 0
        receipt = json.loads((home / "data/runs/s/a.json").read_text())
        assert receipt["parameters"] == given and list(receipt["files"]) == ["ü/größe.txt"]
        (home / "data/runs/s/a.json").unlink()
    assert (home / "ü/größe.txt").read_text() == "ü" and not (home / "data/runs/s/a.written").exists()
    made = [*(home / "data/runs/s").glob("a.*"), home / "ü/größe.txt"]
    assert len(made) == 4 and not any(path.stat().st_mode & 0o077 for path in made)


@pytest.mark.notebook
@pytest.mark.parametrize("name", ["../../../../x", "a/b", ".hidden"])
def test_a_name_that_leaves_its_folder_is_refused_before_anything_runs(tmp_path, name):
    notebook = write_notebook(tmp_path / "n.ipynb", parameters='study: str = "s"\nsave_as: str = ""')
    for field in ("study", "save_as"):
        with pytest.raises(InputError, match=rf"n.ipynb: parameter '{field}': '{name}', expected letters, digits"):
            run_notebook.check(notebook, {field: name})
    assert run_notebook.check(notebook, {"save_as": ""}) == {"save_as": ""}
    with pytest.raises(InputError, match=r"expected parameters as a mapping, .*, found \[1\]"):
        run_notebook.check(notebook, [1])


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
