"""The workflow on a toy project: what would run and why, what is refused, failures, kills, damage."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_run_notebook import SLEEPER, gone, wait_for, write_notebook

sys.path.insert(0, str(ROOT / "workflow"))
from config import read_config, read_family

SNAKEMAKE = [Path(sys.executable).parent / "snakemake"]
NAME = "the user's ü $HOME"  # of the checkout's folder
CONFIG = {"study": "s", "studies": {"s": {}}, "recipes": ["a", "b"], "seeds": [0], "limit": 120}
ALL = {"01-data", "02-a", "02-b", "04-magnitude", "05-evaluation", "06-robustness", "07-ablation", "09-writeup"}
MODULES = {
    "__init__": "",
    "room/__init__": "",
    "room/heads": "X = 1",
    "data/__init__": "",
    "data/collections": "FILES = ['corpus.jsonl']",
    "data/docstrings": "PACKAGES = ['toy']\ndef versions(packages):\n    return packages",
    "data/plans": "from pathlib import Path\ndef data_root():\n    return Path('given').resolve()",
    "data/studies": "def input_files(source, given):\n    return [given['train']]",
    "table": """
from asymlib.files import write_text
def write(names, text):
    for name in names.split():
        write_text(name, text)
""",
    "recipes": """
from asymlib.errors import InputError
class Recipe:
    trained = True
    def with_changes(self, **changes):
        if set(changes) - {"lr"}:
            raise InputError(f"recipe: unknown field {changes}")
        return self
def get_recipe(name):
    return Recipe()
""",
}
# Each toy notebook: its parameters besides study, and its files (r: data/results/<study>, f: figures/<study>, h: heads, k: ranked).
NOTEBOOKS = {
    "00_parity": ("collections: list = []", "{r}/parity.csv"),
    "01_data_prep": (
        "size: int = 1\nsource: str = 'docstrings'\ntrain: str = ''\nencoder: str = ''\nlabels: bool = False",
        "data/prepared/{study}/study.json {r}/texts.csv",
    ),
    "02_train_heads": (
        "recipe: str = 'a'\nseeds: list[int] = [0]\nchanges: dict = {}\nupdates: int = 0\nlr: float = 0.1",
        "{h}/config.json {h}/heads.safetensors {h}/history.parquet",
    ),
    "03_select_head": ("lrs: list = []", ""),
    "04_magnitude": (
        "systems: list = []",
        "{r}/history.parquet {r}/attribution.csv {r}/case_log.csv {r}/case_columns.csv {r}/trajectory.csv"
        " {r}/warnings.csv {f}/signature.png {f}/growth_split.png",
    ),
    "05_evaluation": (
        "systems: list = []\nothers: list = []\nmore: dict = {}",
        "{r}/systems.csv {r}/per_query.parquet {r}/recipes.csv {r}/contrasts.csv {r}/hubness.csv {r}/ties.csv"
        " {r}/length_relevance.csv {r}/overlap.csv {f}/length_relevance.png {f}/hubness.png",
    ),
    "06_robustness": (
        "systems: list = []\nothers: list = []",
        "{r}/similarity_matrix.csv {r}/checkpoints.csv {r}/last_epoch.csv {f}/similarity_matrix.png",
    ),
    "07_ablation": ("lrs: list[float] = [0.1]", "{r}/ablations.csv {r}/ablation_effects.csv {f}/ablation.png"),
    "08_oracle": ("seed: int = 0", "{r}/oracle.csv {f}/oracle.png"),
    "09_writeup": ("title: str = ''", ""),
    "11_words": (
        "seeds: list = [0]\nablation: bool = False\nalone: bool = True",
        "{k}/lexical.parquet {k}/lexical.json {k}/lexical-head.parquet {k}/lexical-head.json"
        " {r}/words_ablation.csv {r}/words_cost.csv",
    ),
    "12_unfrozen_top": ("layers: list[int] = [1]", "{r}/unfrozen.csv"),
}


def write_toy(home, name, cell=None):
    """A notebook of the toy project: it writes its files, or does what the cell says."""
    parameters, files = NOTEBOOKS[name]
    files = (
        files.replace("{r}", "data/results/{study}")
        .replace("{f}", "figures/{study}")
        .replace("{h}", "data/runs/{study}/heads/{recipe}")
        .replace("{k}", "data/runs/{study}/ranked")
    )
    text = "recipe + str(heads.X)" if "recipe" in parameters else "'text'"
    cell = cell or f"from asymlib.room import heads\nfrom asymlib.table import write\nwrite(f'{files}', {text})"
    if "recipe" not in parameters:
        cell = cell.replace("from asymlib.room import heads\n", "")
    write_notebook(home / f"notebooks/{name}.ipynb", cell, parameters=f"study: str = 's'\n{parameters}")


def make_toy(home):
    """A project of toy notebooks with a package of its own and the real workflow."""
    shutil.copytree(ROOT / "workflow", home / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in MODULES.items():
        (home / f"asymlib/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (home / f"asymlib/{name}.py").write_text(text)
    for name in ("errors", "files"):
        shutil.copy(ROOT / f"asymlib/{name}.py", home / "asymlib")
    (home / "requirements.txt").touch()
    (home / "toy-1.dist-info").mkdir()  # an installed package, whose docstrings make the study
    for name in ("METADATA", "RECORD"):
        (home / f"toy-1.dist-info/{name}").touch()
    for name in NOTEBOOKS:
        write_toy(home, name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The toy project, run to its end."""
    home = tmp_path_factory.mktemp("toy") / NAME
    make_toy(home)
    code, shown, ran = run(home)
    assert (code, ran) == (0, ALL), shown
    return home


@pytest.fixture
def home(finished, tmp_path):
    """A copy of the finished toy project, times of change included."""
    return shutil.copytree(finished, tmp_path / NAME)


def start(home, *arguments, **changes):
    """Start snakemake in the toy project, on the toy config with changes."""
    (home / "toy.yaml").write_text(json.dumps(CONFIG | changes))
    command = [*SNAKEMAKE, *arguments, "--configfile", "toy.yaml"] + ["--quiet", "all"] * ("-n" not in arguments)
    return subprocess.Popen(
        command,
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(home)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(home, *arguments, **changes):
    """Its exit code, its output, and which jobs ran to an end ("as before" is none)."""
    process = start(home, *arguments, **changes)
    shown = process.communicate(timeout=200)[0]
    return (
        process.returncode,
        shown,
        {line.split()[0][2:] for line in shown.splitlines() if " ok " in line or " failed " in line},
    )


def status(home):
    """The lines of `make status`, by job."""
    command, environment = [sys.executable, home / "workflow/status.py"], os.environ | {"PYTHONPATH": str(home)}
    shown = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=True).stdout
    return {line.split()[0]: line for line in shown.splitlines()}


# --- running ---


def test_every_wrong_parameter_stops_everything_before_anything_runs(home):
    wrong = {"02_train_heads": {"lr": "fast"}, "01_data_prep": {"sise": 2}}
    code, shown, ran = run(home, parameters=wrong)
    assert code == 1 and not ran and "Traceback" not in shown
    assert "01-data.json: 01_data_prep.ipynb: parameter 'sise': unknown; the notebook has study, size, source" in shown
    assert "02-b.json: 02_train_heads.ipynb: parameter 'lr': Input should be a valid number: 'fast'" in shown
    assert "recipe: unknown field {'lrr': 1}" in run(home, changes={"a": {"lrr": 1}})[1]
    (home / "data/runs/t").touch()  # in the way of a folder
    shown = run(home, "-n", study="t", studies={"t": {}})[1]
    assert (
        f"{home}/data/runs: Not a directory; give yourself the right to write there" in shown
        and "Traceback" not in shown
    )


@pytest.mark.notebook
def test_only_what_a_change_reaches_runs_again_and_the_dry_run_says_why(home):
    assert run(home)[2] == set() and status(home)["s:"] == "s: 8 ok"
    os.utime(home / "asymlib/room/heads.py")  # touched, not changed
    assert "Nothing to be done" in run(home, "-n")[1]
    (home / "asymlib/room/heads.py").write_text("X = 1  # a comment")
    os.utime(home / "asymlib/room/heads.py", (0, 0))  # an older file, moved there
    dry = run(home, "-n")[1]
    assert "rule train_heads:" in dry and "rule data_prep:" not in dry
    assert "02-a.json: asymlib/room/heads.py has changed, so the job runs again" in dry
    assert run(home)[2] == {"02-a", "02-b"}  # they write the same bytes, so nothing else
    (home / "toy-1.dist-info/RECORD").write_text("another version")
    os.utime(home / "toy-1.dist-info/RECORD", (0, 0))
    assert run(home, "data/runs/s/02-a.json")[2] == {"01-data"}
    (home / "asymlib/room/heads.py").write_text("X = 2")
    assert run(home, "data/runs/s/04-magnitude.json")[2] == {"02-a", "02-b", "04-magnitude"}
    dry = run(home, "-n", "data/runs/s/02-a.json", "data/runs/s/02-b.json", changes={"a": {"lr": 0.5}})[1]
    assert "recipe=a" in dry and "Params have changed" in dry and "recipe=b" not in dry


@pytest.mark.notebook
def test_what_is_altered_truncated_damaged_or_lost_is_noticed_and_made_again_by_the_same_command(home):
    before = {path: path.read_bytes() for path in home.glob("data/**/*.csv")}
    (home / "data/results/s/ties.csv").write_text("altered")
    (home / "figures/s/signature.png").unlink()  # which the receipt has from the job itself
    (home / "data/runs/s/heads/a/heads.safetensors").write_text("")
    (home / "data/runs/s/07-ablation.json").write_text('{"files')
    (home / "data/runs/s/06-robustness.status.json").write_text('{"state": []}')
    (home / "data/prepared/s/study.json").unlink()
    code, shown, ran = run(home)
    assert code == 0 and "Traceback" not in shown  # and the receipts come out as before, so that nothing else runs
    assert ran == {"01-data", "02-a", "04-magnitude", "05-evaluation", "06-robustness"}
    assert "05-evaluation.json: data/results/s/ties.csv was altered, so the job runs again" in shown
    assert "figures/s/signature.png is lost" in shown and "study.json is lost" in shown
    assert "heads/a/heads.safetensors was altered" in shown
    assert "07-ablation.json:1:2: not valid JSON" in shown and "s/07-ablation" in shown.partition("as before")[0]
    assert "06-robustness.status.json: not as it was written (its own SHA-256 is another, or missing)" in shown
    assert before == {path: path.read_bytes() for path in home.glob("data/**/*.csv")}
    (home / "data/runs/s/04-magnitude.status.json").write_text("[" * 100_000)
    assert "outdated" in status(home)["s/04-magnitude"]


@pytest.mark.notebook
def test_the_users_own_files_are_inputs_and_one_that_is_not_there_stops_everything(home):
    cell = """
        from pathlib import Path
        from asymlib.table import write
        text = Path(train).read_text() + Path(encoder, "weights").read_text()
        write(f"data/prepared/{study}/study.json data/results/{study}/texts.csv", text)
        """
    write_toy(home, "01_data_prep", cell)
    (home / "own").mkdir()
    (home / "own/weights").write_text("encoder")
    pairs = home / "pairs.jsonl"
    own = {"studies": {"s": {"source": "folder", "train": str(pairs), "encoder": "own"}}}
    target = "data/runs/s/02-a.json"
    code, shown, _ = run(home, "-n", target, **own)
    assert code == 1 and f"{pairs}: no such file; s is read from it" in shown
    pairs.write_text("a pair")
    assert run(home, target, **own)[2] == {"01-data", "02-a"}
    pairs.write_text("another pair")
    os.utime(pairs, (0, 0))
    assert run(home, target, **own)[2] == {"01-data", "02-a"}
    assert (home / "data/prepared/s/study.json").read_text() == "another pair" + "encoder"
    (home / "own/weights").write_text("another encoder")
    assert "own/weights has changed, so the job runs again" in run(home, "-n", target, **own)[1]


def make(home, config):
    """The exit code and what `make study` shows in the toy project."""
    shutil.copy(ROOT / "Makefile", home)
    (home / "pyproject.toml").touch()
    (home / "venv").mkdir(exist_ok=True)
    (home / "venv/.installed").touch()
    command = [
        "make",
        "--no-print-directory",
        "study",
        f"CONFIG={config}",
        "VENV=venv",
        f"BIN={Path(sys.executable).parent}",
    ]
    own = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS")}  # as by hand
    environment = own | {"PYTHONPATH": str(home), "ASYMLIB_HOME": str(home)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.notebook
def test_make_shows_the_engines_own_errors_and_nothing_else_of_it(home):
    (home / "toy.yaml").write_text(json.dumps(CONFIG))
    (home / "my own.yaml").write_text(json.dumps(CONFIG))
    assert make(home, "my own.yaml") == (0, "s: 8 ok\n")
    write_toy(home, "09_writeup", "1 / 0")
    code, shown = make(home, "toy.yaml")
    lines = [line.split()[:2] for line in shown.splitlines()]
    assert code == 2 and lines[:3] == [
        ["s/09-writeup", "started"],
        ["s/09-writeup", "failed"],
        ["s/09-writeup", "failed"],
    ]
    assert lines[3:4] == [["s:", "7"]] and lines[5][0] == "make:" and len(lines) == 6
    assert "09-writeup.json: notebooks/09_writeup.ipynb has changed, so the job runs again" in shown
    with open(home / "data/runs/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is going on in this folder" in make(home, "toy.yaml")[1]
    snakefile = home / "workflow/Snakefile"
    whole = snakefile.read_text()
    cyclic = "\nrule a:\n    input: 'b'\n    output: 'a'\nrule b:\n    input: 'a'\n    output: 'b'\n"
    absent = "\nrule c:\n    input: 'nowhere'\n    output: 'c'\n"
    for added, wanted in (
        (cyclic, "Cyclic dependency"),
        (absent, "MissingInputException"),
        ("\nrule x y", "SyntaxError"),
    ):
        name = added.split()[1].rstrip(":")
        snakefile.write_text(whole.replace("input: list(PLAN)", f"input: {name!r}") + added)
        code, shown = make(home, "toy.yaml")
        assert code == 2 and wanted in shown, shown
    (home / "toy.yaml").write_text("study: no")
    code, shown = make(home, "toy.yaml")
    assert (
        code == 2
        and shown.startswith("error: toy.yaml:1: `no` has more than one reading")
        and len(shown.splitlines()) == 2
    )


@pytest.mark.notebook
def test_a_failure_keeps_its_copy_and_older_tables_and_stops_only_what_needs_it(home):
    write_toy(home, "07_ablation", "raise ValueError('too\\nlong')")
    write_toy(home, "04_magnitude", "from asymlib.table import write\n1")  # ends well and leaves the older tables
    code, shown, ran = run(home)
    assert code == 1 and ran == {"04-magnitude", "07-ablation"}
    assert "In [3]: ValueError: too (data/runs/s/07-ablation.log)" in shown
    for name in ("data/runs/s/07-ablation.ipynb", "data/runs/s/07-ablation.log"):
        assert "ValueError" in (home / name).read_text()
    assert (home / "data/results/s/ablations.csv").exists() and not (home / "data/runs/s/07-ablation.json").exists()
    lines = status(home)
    assert "failed" in lines["s/07-ablation"] and "outdated" in lines["s/09-writeup"] and " ok " in lines["s/02-a"]
    write_toy(home, "07_ablation")
    assert run(home)[2] == {"07-ablation", "09-writeup"}  # 04 has no figures any more


@pytest.mark.notebook
def test_parity_stops_everything_and_studies_join_or_stand_apart(home):
    write_toy(home, "00_parity", "assert 0")
    family = {
        "studies": {"s": {}, "t": {}, "apart": {}, "unused": {}},
        "apart": ["apart"],
        "untrained": ["unused"],
        "oracle": True,
    }
    assert "given/beir/x/corpus.jsonl: no such file; parity is read from it" in run(home, **family, parity=["x"])[1]
    (home / "given/beir/x").mkdir(parents=True)
    (home / "given/beir/x/corpus.jsonl").touch()
    assert run(home, **family, parity=["x"])[2] == {"00-parity"}
    dry = run(home, "-n", **family)[1]
    assert all(
        f"output: data/runs/{job}.json" in dry
        for job in ("s/08-oracle", "t/02-a", "apart/05-evaluation", "unused/01-data")
    )
    assert not any(
        f"output: data/runs/{job}.json" in dry for job in ("t/05-evaluation", "unused/02-a", "apart/06-robustness")
    )


@pytest.mark.notebook
def test_a_study_has_recipes_updates_and_systems_ranked_apart_of_its_own(home):
    family = {
        "studies": {"s": {}, "t": {"labels": True}, "apart": {}},
        "apart": ["apart"],
        "more": {"s": ["c"], "apart": ["d"]},
        "changes": {"c": {"lr": 0.5}},
        "updates": {"t": 600},
        "words": True,
        "unfrozen": {"t": {"layers": [2]}},
    }
    dry = run(home, "-n", **family)[1]
    jobs = "s/02-c apart/02-d t/02-a s/11-words t/11-words t/12-unfrozen"
    assert all(f"output: data/runs/{job}.json" in dry for job in jobs.split())
    absent = "t/02-c s/02-d apart/11-words s/12-unfrozen"
    assert not any(f"output: data/runs/{job}.json" in dry for job in absent.split())
    assert (
        "12_unfrozen_top.ipynb: parameter 'layers': Input should be a valid integer: 'two'"
        in run(home, "-n", **family | {"unfrozen": {"t": {"layers": ["two"]}}})[1]
    )
    assert run(home, "data/runs/s/05-evaluation.json", **family)[0] == 0
    given = {job: json.loads((home / f"data/runs/{job}.json").read_text())["parameters"]
             for job in ("t/02-a", "s/02-c", "s/05-evaluation", "s/11-words", "t/11-words", "t/12-unfrozen")}  # fmt: skip
    assert given["t/02-a"]["updates"] == 600 and "updates" not in given["s/02-c"]
    assert given["s/02-c"]["changes"] == {"lr": 0.5}
    assert given["s/05-evaluation"] == {"study": "s", "others": ["t"], "systems": ["a", "b"], "more": {"s": ["c"]}}
    words = {"seeds": [0], "ablation": True, "alone": True}
    assert given["s/11-words"] == {"study": "s"} | words
    assert given["t/11-words"] == {"study": "t"} | words | {"ablation": False, "alone": False}
    assert given["t/12-unfrozen"] == {"study": "t", "layers": [2]}
    inputs = json.loads((home / "data/runs/s/05-evaluation.status.json").read_text())["inputs"]
    assert {f"data/runs/{job}.json" for job in given if job != "s/05-evaluation"} <= inputs.keys()


@pytest.mark.notebook
@pytest.mark.parametrize("name", ["real.yaml", "real-mpnet.yaml", "public.yaml"])
def test_every_parameter_of_a_large_study_is_one_of_its_notebooks(tmp_path, name):
    given = read_family(read_config(ROOT / "workflow" / name))
    for study in given.studies.values():
        folders = [f"beir/{test}" for test in [*study.get("tests", []), *filter(None, [study.get("target")])]]
        for source in folders + study.get("sources", []):
            files = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/train.tsv")
            for path in [source] if source.endswith(".jsonl") else [f"{source}/{file}" for file in files]:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).touch()
    command = [*SNAKEMAKE, "-n", "--quiet", "all", "--configfile", f"workflow/{name}"]
    environment = os.environ | {"ASYMLIB_DATA": str(tmp_path), "ASYMLIB_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.notebook
def test_an_engine_killed_leaves_no_orphan_and_no_lock(home):
    write_toy(home, "02_train_heads", SLEEPER)
    engine = start(home)
    wait_for((home / "pids-a").exists)
    assert "running" in status(home)["s/02-a"]
    engine.kill()
    write_toy(home, "02_train_heads")
    assert run(home, "data/runs/s/02-a.json")[0] == 0 and " ok " in status(home)["s/02-a"]  # at once, without --unlock
    wait_for(lambda: all(gone(int(pid)) for path in home.glob("pids-?") for pid in path.read_text().split()))
    assert (home / "cleaned-a").exists()
    engine.communicate()
