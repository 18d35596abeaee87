"""Batches: what is refused before anything runs, how jobs are scheduled, and real kernels that fail in every way."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import nbformat
import psutil
import pytest

from asymlib import batch
from asymlib.errors import InputError
from asymlib.files import project_path, read_json, sha256_file

PARAMETERS = """\
# what the notebook is told
system: str = "asym-dot"
lr: float = 1e-3  # AdamW's; tau = 0.05
steps = 10
masked = True
weights: list[float] = [1.0, 0.1]
names = ["a"]
grid: dict[str, float] = {"low": 0.1}
limit: int = None
anything = None
changes: dict = {}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty repository to run in."""
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notebook(path, *cells, parameters=PARAMETERS, tags=("parameters",)):
    """Write a notebook: the tagged parameters cell, then code cells."""
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    book.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": list(tags)})]
    book.cells += [nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def listing(text, path="jobs.yaml"):
    """Write a list of jobs."""
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def ledger(name):
    return read_json(f"data/runs/{name}/ledger.json")["jobs"]


# --- what is refused before anything runs ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\njobs: [}", r"jobs\.yaml:2:8: not valid YAML"),
        ("- a\n- b", r"expected the keys name, defaults and jobs"),
        ("name: x\nname: y\njobs: []", r"jobs\.yaml:2: the key 'name' is given twice"),
        ("name: x\njobs: []", r"jobs: expected a list with at least one job"),
        ("name: x", r"the key 'jobs' is missing \(valid keys: name, jobs, defaults\)"),
        ("name: x/y\njobs: [{id: a, notebook: n.ipynb}]", r"name: 'x/y' does not fit"),
        ("name: x\ndefault: {}\njobs: [{id: a, notebook: n.ipynb}]", r"unknown key 'default' \(valid keys: name, jobs"),
        ("name: x\ndefaults: {retries: 1}\njobs: [{id: a, notebook: n.ipynb}]", r"unknown key 'retries' .*timeout"),
        ("name: x\njobs:\n  - {id: a, notebok: n.ipynb}", r"jobs\.yaml:3: unknown key 'notebok' .*notebook"),
        ("name: x\njobs:\n  - just text", r"jobs\.yaml:3: expected keys and values, not 'just text'"),
        (
            "name: x\njobs:\n  - {id: 01, notebook: n.ipynb}",
            r"jobs\.yaml:3: id: expected text, not 1; put it in quotes",
        ),
        ("name: x\njobs:\n  - {id: a b, notebook: n.ipynb}", r"jobs\.yaml:3: id: 'a b' does not fit"),
        ("name: x\njobs:\n  - {id: a, notebook: n.ipynb, timeout: -1}", r"'a': timeout: expected seconds above 0"),
        ("name: x\njobs:\n  - {id: a, notebook: n.ipynb, timeout: true}", r"'a': timeout: expected seconds above 0"),
        ("name: x\njobs:\n  - {id: a, notebook: n.ipynb, needs: b}", r"'a': needs: expected a list, not 'b'"),
        (
            "name: x\njobs:\n  - {id: a, notebook: n.ipynb}\n  - {id: a, notebook: n.ipynb}",
            r"jobs\.yaml:4: id 'a' is already taken by the job at jobs\.yaml:3",
        ),
        (
            "name: x\njobs:\n  - {id: a, notebook: n.ipynb, needs: [b]}",
            r"yaml:3: job 'a' needs 'b', which is not one of a",
        ),
        (
            "name: x\njobs:\n  - {id: a, notebook: n.ipynb, needs: [b]}\n  - {id: b, notebook: n.ipynb, needs: [a]}",
            r"need each other in a circle: (a -> b -> a|b -> a -> b)",
        ),
        ("name: x\njobs:\n  - {id: a, notebook: none.ipynb}", r"none\.ipynb: no such notebook .*repository root"),
        ("name: x\njobs:\n  - {id: a, notebook: text.ipynb}", r"text\.ipynb:1:1: not valid JSON"),
        ("name: x\njobs:\n  - {id: a, notebook: old.ipynb}", r"old\.ipynb: not a notebook of format 4"),
        (
            "name: x\njobs:\n  - {id: a, notebook: untagged.ipynb}",
            r"exactly one code cell tagged 'parameters', found 0",
        ),
        (
            "name: x\njobs:\n  - {id: 'a-{lr}', notebook: n.ipynb, foreach: {system: [b]}}",
            r"'lr' in braces.*has system",
        ),
        ("name: x\njobs:\n  - {id: a, notebook: n.ipynb, foreach: {system: b}}", r"foreach: expected a list of values"),
    ],
)
def test_a_faulty_list_is_refused_with_its_place(root, text, message):
    notebook("n.ipynb")
    notebook("untagged.ipynb", tags=())
    Path("text.ipynb").write_text("not json")
    Path("old.ipynb").write_text('{"nbformat": 3, "worksheets": []}')
    with pytest.raises(InputError, match=message):
        batch.main([listing(text)])
    assert not Path("data").exists()


def test_every_wrong_parameter_of_every_job_is_named_before_anything_runs(root):
    notebook("n.ipynb", "open('ran', 'w')")
    listing("""\
        name: x
        defaults: {parameters: {system: a}}
        jobs:
          - {id: good, notebook: n.ipynb}
          - {id: typo, notebook: n.ipynb, parameters: {learning_rate: 0.1}}
          - {id: types, notebook: n.ipynb, parameters: {lr: fast, steps: 1.5, masked: 1}}
        """)
    with pytest.raises(InputError) as error:
        batch.main(["jobs.yaml"])
    text = str(error.value)
    assert "2 job(s) cannot run, nothing was started" in text
    valid = "system, lr, steps, masked, weights, names, grid, limit, anything, changes"
    assert f"jobs.yaml:5: job 'typo': unknown parameter 'learning_rate'; n.ipynb has {valid}" in text
    assert "jobs.yaml:6: job 'types': parameter 'lr': expected float, not str 'fast'" in text
    assert "parameter 'steps': expected int, not float 1.5" in text
    assert "parameter 'masked': expected bool, not int 1" in text
    assert "good" not in text
    assert not Path("ran").exists() and not Path("data").exists()


@pytest.mark.parametrize(
    ("name", "written", "arrives"),
    [
        ("lr", "1e-3", 0.001),  # a string to YAML 1.1
        ("lr", "-2E+05", -200000.0),
        ("lr", "1", 1.0),
        ("weights", "[1e-1, 2, 0.5]", [0.1, 2.0, 0.5]),
        ("grid", "{high: 1e1}", {"high": 10.0}),
        ("steps", "3", 3),
        ("masked", "false", False),
        ("limit", "null", None),
        ("limit", "5", 5),
        ("anything", "[1, {a: null}]", [1, {"a": None}]),
        ("system", "'1e-3'", "1e-3"),
        ("changes", "{lr: 1e-3}", {"lr": 0.001}),
        (
            "changes",
            "{a: [-.5E3, {b: 1e3}], c: '1e-3', d: 1e-3x}",
            {"a": [-500.0, {"b": 1000.0}], "c": "1e-3", "d": "1e-3x"},
        ),
        ("anything", "[1e-3, 1]", [0.001, 1]),
    ],
)
def test_parameters_arrive_in_the_notebooks_types(root, name, written, arrives):
    notebook("n.ipynb")
    listing(f"name: x\njobs: [{{id: a, notebook: n.ipynb, parameters: {{{name}: {written}}}}}]")
    value = batch.read_jobs("jobs.yaml")[1][0].parameters[name]
    assert value == arrives and type(value) is type(arrives)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("lr", "true"),
        ("lr", "nan"),
        ("lr", "[0.1]"),
        ("steps", "true"),
        ("steps", "1e3"),
        ("masked", "'true'"),
        ("system", "no"),  # YAML 1.1: the boolean False
        ("system", "null"),
        ("weights", "0.1"),
        ("weights", "[a]"),
        ("names", "[1]"),
        ("grid", "{1: 0.1}"),
        ("limit", "a"),
        ("anything", "2026-01-01"),  # a date, which the notebook would get as text
    ],
)
def test_parameters_of_another_type_are_refused(root, name, written):
    notebook("n.ipynb")
    listing(f"name: x\njobs: [{{id: a, notebook: n.ipynb, parameters: {{{name}: {written}}}}}]")
    with pytest.raises(InputError, match=f"parameter '{name}': expected "):
        batch.read_jobs("jobs.yaml")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a = 1\nb = a * 2", "line 2: b is computed, and would stay so"),
        ("import os\na = 1", "line 1: only assignments of literals"),
        ("a: int", "line 1: only assignments of literals"),
        ("a = ", "line 1: .*only assignments of literals"),
        ("a: int = 'x'", "a = 'x' does not fit the type int"),
        ("a: Path = 'x'", "a = 'x' does not fit the type Path"),
        ("a = (1, 2)", r"a = \(1, 2\) does not fit the type tuple"),
    ],
)
def test_a_parameters_cell_holds_literals_only(root, cell, message):
    notebook("n.ipynb", parameters=cell)
    with pytest.raises(InputError, match=message):
        batch.read_parameters("n.ipynb")


def test_two_tagged_cells_and_executed_copies_are_refused(root):
    notebook("n.ipynb")
    book = nbformat.read("n.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}))
    nbformat.write(book, "two.ipynb")
    with pytest.raises(InputError, match="found 2"):
        batch.read_parameters("two.ipynb")
    book.cells[-1].metadata.tags = ["injected-parameters"]
    nbformat.write(book, "executed.ipynb")
    with pytest.raises(InputError, match="an executed copy"):
        batch.read_parameters("executed.ipynb")


def test_names_and_types_agree_with_papermills_inspection_where_it_can_read_the_line(root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import alone warns
        import papermill
    notebook("n.ipynb", parameters=PARAMETERS.replace("; tau = 0.05", ""))
    theirs = papermill.inspect_notebook("n.ipynb")
    _, ours = batch.read_parameters("n.ipynb")
    assert list(ours) == list(theirs)
    for name in ("system", "lr", "weights"):
        assert batch.ast.unparse(ours[name]) == theirs[name]["inferred_type_name"]
    notebook("n.ipynb")  # with a second "=" in lr's comment
    assert "lr" not in papermill.inspect_notebook("n.ipynb")
    assert "lr" in batch.read_parameters("n.ipynb")[1]


def test_foreach_fills_its_keys_into_parameters_and_leaves_other_braces(root):
    notebook("n.ipynb", parameters="study: str = ''\nnames: list = []\nmore: dict = {}\nsystem: str = ''")
    listing("""
        name: x
        jobs:
          - id: "02-{system}"
            foreach: {system: [a, b]}
            notebook: n.ipynb
            parameters: {study: "s-{system}", names: ["{system}", "{other}"], more: {as: "{system}-slow"}}
        """)
    first, second = batch.read_jobs("jobs.yaml")[1]
    assert first.parameters == {"study": "s-a", "names": ["a", "{other}"], "more": {"as": "a-slow"}, "system": "a"}
    assert second.parameters["study"] == "s-b" and second.fingerprint != first.fingerprint


def test_foreach_gives_a_job_for_each_value_and_needs_finds_them(root):
    notebook("n.ipynb")
    listing("""\
        name: x
        jobs:
          - id: 02-{system}-{steps}
            foreach: {system: [a, b], steps: [1, 2]}
            notebook: n.ipynb
            parameters: {lr: 0.1}
            outputs: ["heads/{system}.bin"]
          - {id: "03-{system}", foreach: {system: [a, b]}, notebook: n.ipynb, needs: ["02-{system}-1"]}
          - {id: "04", notebook: n.ipynb, needs: ["02-{system}-{steps}"]}
        """)
    jobs = {job.id: job for job in batch.read_jobs("jobs.yaml")[1]}
    assert list(jobs) == ["02-a-1", "02-a-2", "02-b-1", "02-b-2", "03-a", "03-b", "04"]
    assert jobs["02-b-1"].parameters == {"lr": 0.1, "system": "b", "steps": 1}
    assert jobs["02-b-1"].outputs == ("heads/b.bin",)
    assert jobs["03-b"].needs == ("02-b-1",)
    assert jobs["04"].needs == ("02-a-1", "02-a-2", "02-b-1", "02-b-2")


def test_check_only_checks(root, capsys):
    notebook("n.ipynb")
    listing("name: x\njobs: [{id: a, notebook: n.ipynb}]")
    assert batch.main(["--check", "jobs.yaml"]) == 0
    assert "1 jobs" in capsys.readouterr().out
    assert not Path("data").exists()
    for wrong, message in (
        (["--jobs", "0"], "at least 1"),
        (["--gpus", "0,"], "ids with commas"),
        (["--gpus", "0", "--jobs", "2"], "repeat an id to share it"),
    ):
        with pytest.raises(InputError, match=message):
            batch.main(["jobs.yaml", *wrong])


# --- scheduling, with jobs that only pretend to run ---


class PretendedJob:
    """Stands in for a job's process: lasts three looks, then ends with the next outcome of its script."""

    script: dict[str, list[dict]]
    seen: list[tuple]
    busy: list[str | None]  # the GPU of each running job
    most = 0

    def __init__(self, job, folder, scratch, environment, gpu, attempt):
        self.job, self.gpu, self.start, self.looks = job, gpu, time.monotonic(), 0
        self.output = folder / f"{job.id}.ipynb"
        PretendedJob.seen.append((job.id, gpu, attempt))
        assert gpu is None or gpu not in PretendedJob.busy
        PretendedJob.busy.append(gpu)
        PretendedJob.most = max(PretendedJob.most, len(PretendedJob.busy))

    def finished(self):
        self.looks += 1
        return self.looks > 3

    def outcome(self):
        PretendedJob.busy.remove(self.gpu)
        script = PretendedJob.script.get(self.job.id, [])
        outcome = script.pop(0) if script else {"status": "ok"}
        if outcome["status"] == "ok":
            for path in (self.output, *map(project_path, self.job.outputs)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"of {self.job.id}")
        return outcome


@pytest.fixture
def pretend(root, monkeypatch):
    monkeypatch.setattr(batch, "_Child", PretendedJob)
    monkeypatch.setattr(batch, "BACK_OFF", (0.05, 0.05))
    monkeypatch.setattr(batch.time, "sleep", lambda seconds: None)
    PretendedJob.script, PretendedJob.seen, PretendedJob.busy, PretendedJob.most = {}, [], [], 0
    notebook("n.ipynb", "print(1)")
    notebook("m.ipynb", "print(2)")

    def run(text, *arguments):
        PretendedJob.seen = []
        code = batch.main([listing(text), *arguments])
        return code, [id for id, _, _ in PretendedJob.seen]

    return run


CHAIN = """\
name: x
jobs:
  - {id: c, notebook: n.ipynb, needs: [b]}
  - {id: a, notebook: n.ipynb, parameters: {lr: 0.1}, outputs: [out/a]}
  - {id: b, notebook: m.ipynb, needs: [a], outputs: [out/b]}
  - {id: d, notebook: n.ipynb}
"""


def test_needs_come_first_and_a_failure_stops_only_its_dependents(pretend, capsys):
    assert pretend(CHAIN) == (0, ["a", "b", "c", "d"])
    PretendedJob.script = {"a": [{"status": "failed", "error": "In [2]: ValueError: x", "line": "f(1)"}]}
    assert pretend(CHAIN) == (1, ["a", "d"])
    states = {id: entry["status"] for id, entry in ledger("x").items()}
    assert states == {"a": "failed", "b": "skipped", "c": "skipped", "d": "ok"}
    assert ledger("x")["b"]["error"] == "skipped: needs a"
    assert "a: In [2]: ValueError: x\n  f(1)\n  log: data/runs/x/a.log" in capsys.readouterr().out


def test_each_running_job_has_a_gpu_of_its_own_and_no_more_run_than_asked(pretend):
    text = "name: x\njobs: [" + ", ".join(f"{{id: j{i}, notebook: n.ipynb}}" for i in range(7)) + "]"
    assert pretend(text, "--gpus", "0,3,MIG-7")[0] == 0
    assert PretendedJob.most == 3
    assert {gpu for _, gpu, _ in PretendedJob.seen[:3]} == {"0", "3", "MIG-7"}
    assert {gpu for _, gpu, _ in PretendedJob.seen} == {"0", "3", "MIG-7"}
    PretendedJob.most = 0
    pretend(text, "--jobs", "2")
    assert PretendedJob.most == 2 and {gpu for _, gpu, _ in PretendedJob.seen} == {None}


def test_a_kernel_that_does_not_start_is_tried_three_times_and_a_cell_error_once(pretend):
    dead = {"status": "no kernel", "error": "the kernel did not start: RuntimeError: Kernel died"}
    PretendedJob.script = {"a": [dead, dead], "d": [dead, dead, dead, {"status": "ok"}]}
    code, order = pretend(CHAIN)
    assert code == 1 and order.count("a") == 3 and order.count("d") == 3
    states = ledger("x")
    assert (states["a"]["status"], states["a"]["attempts"], states["a"]["error"]) == ("ok", 3, None)
    assert (states["d"]["status"], states["d"]["attempts"]) == ("failed", 3)
    PretendedJob.script = {"a": [{"status": "failed", "error": "In [1]: E", "line": None}]}
    assert pretend(CHAIN)[1].count("a") == 1


def test_resume_runs_what_changed_and_what_depends_on_it(pretend, monkeypatch):
    monkeypatch.setattr(batch, "__file__", "asymlib/batch.py")  # where requirements.txt is looked for
    pretend(CHAIN)
    assert pretend(CHAIN, "--resume") == (0, [])
    before = Path("data/runs/x/ledger.json").read_bytes()
    assert pretend(CHAIN, "--resume") == (0, []) and Path("data/runs/x/ledger.json").read_bytes() == before
    assert pretend(CHAIN.replace("lr: 0.1", "lr: 1e-1"), "--resume") == (0, [])  # the same number
    assert pretend(CHAIN.replace("lr: 0.1", "lr: 0.2"), "--resume") == (0, ["a", "b", "c"])
    pretend(CHAIN)
    notebook("m.ipynb", "print(3)")
    assert pretend(CHAIN, "--resume") == (0, ["b", "c"])
    Path("out/b").unlink()
    assert pretend(CHAIN, "--resume") == (0, ["b"])
    Path("data/runs/x/d.ipynb").unlink()
    assert pretend(CHAIN, "--resume") == (0, ["d"])
    PretendedJob.script = {"b": [{"status": "failed", "error": "E", "line": None}]}
    assert pretend(CHAIN) == (1, ["a", "b", "d"])
    assert pretend(CHAIN, "--resume") == (0, ["b", "c"])
    Path("requirements.txt").write_text("numpy==2.0\n")
    assert pretend(CHAIN, "--resume") == (0, ["a", "b", "c", "d"])
    stale = read_json("data/runs/x/ledger.json")
    stale["jobs"]["d"]["status"] = "running"  # as a killed batch leaves it
    Path("data/runs/x/ledger.json").write_text(json.dumps(stale))
    assert pretend(CHAIN, "--resume") == (0, ["d"])
    assert pretend(CHAIN) == (0, ["a", "b", "c", "d"])  # without --resume all of it


def test_what_a_notebook_imports_is_part_of_its_fingerprint(root, monkeypatch, tmp_path):
    package = tmp_path / "asymlib"
    (package / "templates").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "batch.py": "",
        "losses.py": "",
        "train.py": "from asymlib import losses\nimport numpy",
        "plots.py": "from asymlib.errors import InputError",
        "errors.py": "",
        "writeup.py": "import asymlib.errors",
        "paper.mplstyle": "",
        "templates/page.md.j2": "",
    }
    for name, source in sources.items():
        (package / name).write_text(source)
    monkeypatch.setattr(batch, "__file__", str(package / "batch.py"))
    imports = {
        "train": "from asymlib import train",
        "plot": "def f():\n    import asymlib.plots",
        "page": "from asymlib.writeup import write",
        "magic": "%time from asymlib import errors",
    }
    for name, source in imports.items():
        notebook(f"{name}.ipynb", source)
    listing("name: x\njobs:\n" + "".join(f"  - {{id: {name}, notebook: {name}.ipynb}}\n" for name in imports))

    def fingerprints():
        return {job.id: job.fingerprint for job in batch.read_jobs("jobs.yaml")[1]}

    everything = set(imports)
    for changed, expected in (
        ("losses.py", {"train", "magic"}),
        ("train.py", {"train", "magic"}),
        ("errors.py", {"plot", "page", "magic"}),
        ("paper.mplstyle", {"plot", "magic"}),
        ("templates/page.md.j2", {"page", "magic"}),
        ("batch.py", {"magic"}),
        ("__init__.py", everything),
    ):
        before = fingerprints()
        assert before == fingerprints()
        (package / changed).write_text((package / changed).read_text() + "\n# changed")
        after = fingerprints()
        assert {id for id in after if after[id] != before[id]} == expected, changed


def test_resume_runs_what_lost_an_output_or_the_bytes_it_wrote(pretend, capsys):
    text = CHAIN.replace("outputs: [out/b]", "outputs: [out/b, out/folder]")
    Path("out/folder").mkdir(parents=True)
    pretend(text.replace(", out/folder", ""))
    assert ledger("x")["b"]["outputs"] == {"out/b": sha256_file("out/b")} and ledger("x")["c"]["outputs"] == {}
    assert pretend(text, "--resume") == (0, [])  # a folder only has to be there
    Path("out/folder/file").touch()
    assert pretend(text, "--resume") == (0, [])
    assert "again" not in capsys.readouterr().out
    Path("out/a").write_text("of someone else")
    assert pretend(text, "--resume") == (0, ["a"])
    assert "again    a  out/a is not what the job wrote\n" in capsys.readouterr().out
    Path("out/a").unlink()
    assert pretend(text, "--resume") == (0, ["a"])
    assert "again    a  out/a is missing\n" in capsys.readouterr().out
    PretendedJob.script = {"a": [{"status": "failed", "error": "E", "line": None}]}
    assert pretend(text)[0] == 1 and ledger("x")["a"]["outputs"] == {}


def test_a_batch_started_elsewhere_works_in_the_projects_folder(pretend, root, monkeypatch, capsys):
    notebook("notebooks/own.ipynb")
    text = CHAIN.replace("m.ipynb", "notebooks/own.ipynb")
    listing(text, "notebooks/list.yaml")
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    PretendedJob.script = {"d": [{"status": "failed", "error": "E", "line": None}]}
    assert batch.main(["../notebooks/list.yaml"]) == 1
    assert not list(Path.cwd().iterdir()) and (root / "out/b").exists()
    jobs = read_json(root / "data/runs/x/ledger.json")["jobs"]
    assert jobs["b"]["output"] == "data/runs/x/b.ipynb" and jobs["b"]["notebook"] == "../notebooks/own.ipynb"
    assert "log: ../data/runs/x/d.log" in capsys.readouterr().out
    monkeypatch.chdir(root)
    PretendedJob.seen = []
    assert batch.main(["notebooks/list.yaml", "--resume"]) == 0 and [id for id, _, _ in PretendedJob.seen] == ["d"]
    notebook("elsewhere/n.ipynb", parameters="other = 1")  # below the current folder comes first
    monkeypatch.chdir(root / "elsewhere")
    with pytest.raises(InputError, match=r"unknown parameter 'lr'; n\.ipynb has other"):
        batch.main(["../notebooks/list.yaml"])


def test_an_unreadable_ledger_is_an_error_and_not_a_fresh_start(pretend):
    pretend(CHAIN)
    Path("data/runs/x/ledger.json").write_text("{")
    with pytest.raises(InputError, match=r"ledger\.json:1:2: not valid JSON"):
        pretend(CHAIN, "--resume")


def test_jobs_at_a_time_share_the_cores(monkeypatch):
    monkeypatch.setattr(batch.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert batch._environment(None, 3)["OMP_NUM_THREADS"] == "2"
    alone = batch._environment(None, 1)
    assert "OMP_NUM_THREADS" not in alone and "CUDA_VISIBLE_DEVICES" not in alone
    assert batch._environment("1", 1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert batch._environment(None, 3)["OMP_NUM_THREADS"] == "1"  # the user's own choice stays


def test_a_job_that_none_can_run_beside_gets_every_core():
    def job(id, *needs):
        return batch.Job(id, "n.ipynb", {}, needs, (), 1.0)

    chain_and_fork = [job("a"), job("b", "a"), job("c", "a"), job("d", "b", "c")]
    assert batch._alone(chain_and_fork) == {"a", "d"}
    assert batch._alone([job("a"), job("b")]) == set()
    assert batch._alone([job("only")]) == {"only"}


# --- real kernels ---

PROBE = """
    import json, os, sys
    from pathlib import Path
    seen = {"python": sys.executable, "cwd": os.getcwd(), "system": system, "lr": lr, "weights": weights}
    seen |= {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONHASHSEED")}
    Path("seen.json").write_text(json.dumps(seen))
    print("said in a cell")
"""
SLEEPER = """
    import os, subprocess, time
    worker = subprocess.Popen(["sh", "-c", "trap '' INT; exec sleep 600"], start_new_session=True)
    with open("pids.part", "w") as file:
        file.write(f"{os.getpid()} {worker.pid}")
    os.rename("pids.part", "pids")
    try:
        time.sleep(600)
    finally:
        open("cleaned", "w").close()
"""


def gone(pid):
    """Whether a process has ended (a zombie that nobody reaped has)."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.notebook
def test_real_jobs_succeed_fail_and_run_out_of_time_side_by_side(root, monkeypatch, capsys):
    other = root / "jupyter" / "kernels" / "python3"  # a user's own python3, which must not be taken
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    notebook("notebooks/probe.ipynb", PROBE)
    notebook("notebooks/error.ipynb", "def f(x):\n    raise ValueError('too long\\nby far')", "\n\nx = 1\nf(x)")
    notebook("notebooks/sleeper.ipynb", SLEEPER)
    notebook("notebooks/dies.ipynb", "import os\nos.kill(os.getpid(), 9)")
    awkward = 'it\'s "q" \\ ü {x}'
    listing(f"""\
        name: real
        defaults: {{timeout: 120}}
        jobs:
          - {{id: slow, notebook: notebooks/sleeper.ipynb, timeout: 12}}
          - id: probe
            notebook: notebooks/probe.ipynb
            parameters: {{lr: 1e-4, system: {json.dumps(awkward, ensure_ascii=False)}, weights: [1e-1, 2]}}
            outputs: [seen.json]
          - {{id: error, notebook: notebooks/error.ipynb, needs: [probe], outputs: [nothing]}}
          - {{id: after, notebook: notebooks/probe.ipynb, needs: [error]}}
          - {{id: dies, notebook: notebooks/dies.ipynb}}
        """)
    assert batch.main(["jobs.yaml", "--gpus", "5,6"]) == 1

    seen = read_json("seen.json")
    assert seen["python"] == sys.executable and seen["cwd"] == str(root)
    assert (seen["system"], seen["lr"], seen["weights"]) == (awkward, 1e-4, [0.1, 2.0])
    assert seen["CUDA_VISIBLE_DEVICES"] == "6" and seen["PYTHONHASHSEED"] == "0"
    assert int(seen["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)

    entries = ledger("real")
    states = {id: entry["status"] for id, entry in entries.items()}
    assert states == {"slow": "failed", "probe": "ok", "error": "failed", "after": "skipped", "dies": "failed"}
    probe = entries["probe"]
    assert probe["parameters"] == {"lr": 1e-4, "system": awkward, "weights": [0.1, 2.0]}
    assert probe["attempts"] == 1 and probe["error"] is None and 0 < probe["seconds"] < 120
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", probe["started"])
    assert re.fullmatch(r"[0-9a-f]{64}", probe["fingerprint"])
    executed = nbformat.read(probe["output"], as_version=4)
    assert any("said in a cell" in output.get("text", "") for output in executed.cells[-1].outputs)
    assert "said in a cell" in Path(probe["log"]).read_text()
    assert executed.metadata.papermill.output_path == "data/runs/real/probe.ipynb"  # no machine's own path

    assert entries["error"]["error"] == "In [3], line 2: ValueError: too long" and entries["error"]["line"] == "f(x)"
    assert "by far" in Path(entries["error"]["log"]).read_text()
    assert entries["dies"]["attempts"] == 1 and "Kernel died" in entries["dies"]["error"]
    assert entries["slow"]["error"].startswith("time limit of 12 s reached in In [")
    assert 12 <= entries["slow"]["seconds"] < 12 + batch.GRACE + 3
    assert Path("cleaned").exists()  # interrupted before it was killed
    assert all(gone(int(pid)) for pid in Path("pids").read_text().split())
    shown = capsys.readouterr().out
    assert "error: In [3], line 2: ValueError: too long\n  f(x)\n  log: data/runs/real/error.log" in shown
    assert re.search(r"^after +skipped +- +0$", shown, re.MULTILINE)


@pytest.mark.notebook
def test_a_notebook_and_a_batch_started_elsewhere_mean_the_same_folder(root, monkeypatch):
    cell = """
        from pathlib import Path
        from asymlib.files import project_path
        Path("relative").write_text("x")
        project_path("below").write_text("x")
        """
    notebook("notebooks/n.ipynb", cell)
    listing("name: x\njobs: [{id: a, notebook: notebooks/n.ipynb, outputs: [relative, below]}]", "notebooks/list.yaml")
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    monkeypatch.setenv("ASYMLIB_HOME", "../home")
    (root / "home").mkdir()
    assert batch.main(["../notebooks/list.yaml"]) == 0
    assert not list(Path.cwd().iterdir())
    entry = read_json(root / "home/data/runs/x/ledger.json")["jobs"]["a"]
    assert entry["outputs"] == dict.fromkeys(["relative", "below"], sha256_file("../home/below"))
    executed = nbformat.read(root / "home" / entry["output"], as_version=4)
    assert executed.metadata.papermill.input_path == "../notebooks/n.ipynb"
    assert executed.metadata.papermill.output_path == "data/runs/x/a.ipynb"


@pytest.mark.notebook
def test_a_kernel_that_dies_before_it_answers_is_started_again(root, monkeypatch):
    hook = root / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'ipykernel_launcher' in sys.orig_argv and os.path.exists('die'):\n"
        "    os.remove('die')\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setattr(batch, "BACK_OFF", (0.1, 0.1))
    Path("die").touch()
    notebook("n.ipynb", "1 + 1")
    listing("name: x\njobs: [{id: a, notebook: n.ipynb, outputs: [never]}]")
    assert batch.main(["jobs.yaml"]) == 1
    entry = ledger("x")["a"]
    assert entry["attempts"] == 2 and entry["error"] == "ended well but did not write never"
    log = Path(entry["log"]).read_text()
    assert log.index("attempt 1") < log.index("Kernel died before replying") < log.index("attempt 2")


@pytest.mark.notebook
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_batch_stopped_in_the_middle_leaves_nothing_running_and_a_ledger_to_go_on_from(root, how):
    notebook("n.ipynb", SLEEPER)
    listing("name: x\njobs: [{id: a, notebook: n.ipynb}, {id: b, notebook: n.ipynb}]")
    environment = dict(os.environ, PYTHONPATH=str(Path(batch.__file__).parents[1]), TMPDIR=str(root / "scratch"))
    Path("scratch").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "asymlib.batch", "jobs.yaml"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_for(Path("pids").exists)
            pids = [int(pid) for pid in Path("pids").read_text().split()]
            assert ledger("x")["a"]["status"] == "running"
            if how == signal.SIGINT:
                with pytest.raises(InputError, match=f"'x' is already running as process {running.pid};"):
                    batch.main(["jobs.yaml", "--resume"])
        finally:
            running.send_signal(how)
            out, err = running.communicate(timeout=60)
    wait_for(lambda: all(gone(pid) for pid in pids))
    wait_for(lambda: not list(Path("scratch").glob("asymlib-batch-*")))
    assert Path("cleaned").exists()
    states = [ledger("x")[id]["status"] for id in "ab"]
    if how == signal.SIGINT:
        assert running.returncode == 130 and "interrupted" in err and "Traceback" not in err + out
        assert states == ["pending", "pending"]
    else:
        assert states == ["running", "pending"]
    assert (root / "data/runs/x/.lock").exists()
    with batch._lock(Path("data/runs/x/.lock"), "x"):  # what a killed batch leaves behind locks nobody out
        assert Path("data/runs/x/.lock").read_text() == f"{os.getpid()}\n"
