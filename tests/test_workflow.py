"""The workflow on a toy project: what would run and why, what is refused, failures, kills. And the tiny study, killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from asymlib.errors import InputError
from tests.conftest import ROOT
from tests.test_run_notebook import SLEEPER, gone, wait_for, write_notebook

sys.path.insert(0, str(ROOT / "workflow"))
from config import read_family

SNAKEMAKE = [Path(sys.executable).parent / "snakemake"]
CONFIG = {"study": "s", "studies": {"s": {}}, "recipes": ["a", "b"], "seeds": [0], "limit": 120}
ALL = {"01-data", "02-a", "02-b", "04-magnitude", "05-evaluation", "06-robustness", "07-ablation", "09-writeup"}
MODULES = {
    "__init__": "",
    "room/__init__": "",
    "room/heads": "X = 1",
    "table": """
from pathlib import Path
def write(names, text):
    for path in map(Path, names.split()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
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
# Each toy notebook: its parameters besides study, and its files (r: data/results/<study>, f: figures/<study>, h: heads).
NOTEBOOKS = {
    "00_parity": ("collections: list = []", "{r}/parity.csv"),
    "01_data_prep": ("size: int = 1\nsource: str = 'docstrings'", "data/prepared/{study}/study.json {r}/texts.csv"),
    "02_train_heads": (
        "recipe: str = 'a'\nseeds: list[int] = [0]\nchanges: dict = {}\nlr: float = 0.1",
        "{h}/config.json {h}/heads.safetensors {h}/history.parquet",
    ),
    "03_select_head": ("lrs: list = []", ""),
    "04_magnitude": (
        "systems: list = []",
        "{r}/history.parquet {r}/attribution.csv {r}/case_log.csv {r}/trajectory.csv {r}/warnings.csv"
        " {f}/signature.png {f}/growth_split.png",
    ),
    "05_evaluation": (
        "systems: list = []\nothers: list = []",
        "{r}/systems.csv {r}/per_query.parquet {r}/recipes.csv {r}/contrasts.csv {r}/hubness.csv {r}/ties.csv"
        " {r}/length_relevance.csv {r}/overlap.csv {f}/length_relevance.png {f}/hubness.png",
    ),
    "06_robustness": (
        "systems: list = []\nothers: list = []",
        "{r}/similarity_matrix.csv {r}/checkpoints.csv {f}/similarity_matrix.png",
    ),
    "07_ablation": ("lrs: list[float] = [0.1]", "{r}/ablations.csv {r}/ablation_effects.csv {f}/ablation.png"),
    "08_oracle": ("seed: int = 0", "{r}/oracle.csv {f}/oracle.png"),
    "09_writeup": ("title: str = ''", ""),
}


def write_toy(home, name, cell=None):
    """A notebook of the toy project: it writes its files, or does what the cell says."""
    parameters, files = NOTEBOOKS[name]
    files = (
        files.replace("{r}", "data/results/{study}")
        .replace("{f}", "figures/{study}")
        .replace("{h}", "data/runs/{study}/heads/{recipe}")
    )
    text = "recipe + str(heads.X)" if "recipe" in parameters else "'text'"
    cell = cell or f"from asymlib.room import heads\nfrom asymlib.table import write\nwrite(f'{files}', {text})"
    if "recipe" not in parameters:
        cell = cell.replace("from asymlib.room import heads\n", "")
    write_notebook(home / f"notebooks/{name}.ipynb", cell, parameters=f"study: str = 's'\n{parameters}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project of toy notebooks with a package of its own and the real workflow, run to its end."""
    home = tmp_path_factory.mktemp("toy")
    shutil.copytree(ROOT / "workflow", home / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in MODULES.items():
        (home / f"asymlib/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (home / f"asymlib/{name}.py").write_text(text)
    for name in ("errors", "files"):
        shutil.copy(ROOT / f"asymlib/{name}.py", home / "asymlib")
    (home / "requirements.txt").touch()
    for name in NOTEBOOKS:
        write_toy(home, name)
    code, shown, ran = run(home)
    assert (code, ran) == (0, ALL), shown
    return home


@pytest.fixture
def home(finished, tmp_path):
    """A copy of the finished toy project, times of change included."""
    return shutil.copytree(finished, tmp_path / "home")


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


# --- the config file ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipez: [a]", "recipez: Extra inputs are not permitted .keys: study, studies, recipes"),
        ("seeds: [one]", "seeds.0: Input should be a valid integer"),
        ("study: t", "study: 't' is not one of s"),
        ("study: no", "study: Input should be a valid string"),
        ("apart: [t]", "apart: 't' is not one of s"),
        ("changes: {c: {}}", "changes: 'c' is not one of a, b"),
        ("changes: {a: {1: 2}}", "changes.a: the key 1 is no text; quote it"),
        (
            "parameters: {01_data_prep: {source: 2026-01-01}}",
            "parameters.01_data_prep.source: 2026-01-01 is a date in YAML; quote it",
        ),
        ("search: {s: {transfer: t}}", "search: 't' is not one of s"),
        (
            "studies: {s: {}, t: {}}\nsearch: {t: {}}",
            "search: s, t are compared: give all of them a search, or none",
        ),
        ("studies: {s: {}, ../t: {}}", r"config: .*\.\./t"),
    ],
)
def test_a_wrong_config_is_refused_with_a_sentence(text, words):
    with pytest.raises(InputError, match=words):
        read_family(CONFIG | yaml.safe_load(text))


def test_a_number_that_yaml_takes_for_text_arrives_as_a_number():
    family = read_family(CONFIG | yaml.safe_load("changes: {a: {lr: 1e-3}}\nparameters: {x: {lrs: [3E-5, 1e-3x]}}"))
    assert family.changes == {"a": {"lr": 0.001}} and family.parameters == {"x": {"lrs": [3e-5, "1e-3x"]}}


@pytest.mark.parametrize("name", ["reproduce.yaml", "real.yaml", "tiny.yaml"])
def test_the_studies_of_the_checkout_are_whole(name):
    family = read_family(yaml.safe_load((ROOT / "workflow" / name).read_text()))
    assert family.joined[0] == family.study == name.removesuffix(".yaml")


# --- running ---


def test_every_wrong_parameter_stops_everything_before_anything_runs(home):
    wrong = {"02_train_heads": {"lr": "fast"}, "01_data_prep": {"sise": 2}}
    code, shown, ran = run(home, parameters=wrong)
    assert code == 1 and not ran and "Traceback" not in shown
    assert "01-data.json: 01_data_prep.ipynb: parameter 'sise': unknown; the notebook has study, size, source" in shown
    assert "02-b.json: 02_train_heads.ipynb: parameter 'lr': Input should be a valid number: 'fast'" in shown
    assert "recipe: unknown field {'lrr': 1}" in run(home, changes={"a": {"lrr": 1}})[1]


@pytest.mark.notebook
def test_only_what_a_change_reaches_runs_again_and_the_dry_run_says_why(home):
    assert run(home)[2] == set() and status(home)["s:"] == "s: 8 ok"
    os.utime(home / "asymlib/room/heads.py")  # touched, not changed
    assert "Nothing to be done" in run(home, "-n")[1]
    (home / "asymlib/room/heads.py").write_text("X = 1  # a comment")
    dry = run(home, "-n")[1]
    assert (
        "rule train_heads:" in dry
        and "Updated input files: asymlib/room/heads.py" in dry
        and "rule data_prep:" not in dry
    )
    assert run(home)[2] == {"02-a", "02-b"}  # they write the same bytes, so nothing else
    (home / "asymlib/room/heads.py").write_text("X = 2")
    assert run(home, "data/runs/s/04-magnitude.json")[2] == {"02-a", "02-b", "04-magnitude"}
    dry = run(home, "-n", "data/runs/s/02-a.json", "data/runs/s/02-b.json", changes={"a": {"lr": 0.5}})[1]
    assert "recipe=a" in dry and "Params have changed" in dry and "recipe=b" not in dry


@pytest.mark.notebook
def test_an_altered_truncated_or_lost_file_is_noticed_and_made_again(home):
    before = {path: path.read_bytes() for path in home.glob("data/**/*.csv")}
    (home / "data/results/s/ties.csv").write_text("altered")
    (home / "data/runs/s/heads/a/heads.safetensors").write_text("")
    (home / "data/runs/s/07-ablation.json").write_text('{"files')
    (home / "data/prepared/s/study.json").unlink()
    code, shown, ran = run(home)
    assert code == 0 and ran == {"01-data", "02-a", "05-evaluation"}  # whose receipts come out as before
    assert "05-evaluation.json: data/results/s/ties.csv was altered, so the job runs again" in shown
    assert "heads/a/heads.safetensors was altered" in shown and "study.json is lost" in shown
    assert "07-ablation.json: the receipt is not whole" in shown
    assert before == {path: path.read_bytes() for path in home.glob("data/**/*.csv")}


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
    assert run(home)[2] == {"07-ablation"}  # the write-up is as before


@pytest.mark.notebook
def test_parity_stops_everything_and_studies_join_or_stand_apart(home):
    write_toy(home, "00_parity", "assert 0")
    family = {
        "studies": {"s": {}, "t": {}, "apart": {}, "unused": {}},
        "apart": ["apart"],
        "untrained": ["unused"],
        "oracle": True,
    }
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


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_the_tiny_study_killed_at_a_random_point_ends_with_the_same_tables(tmp_path):
    command = [*SNAKEMAKE, "--quiet", "all", "--configfile", "workflow/tiny.yaml"]
    seconds = {}
    for name in ("through", "killed"):
        (tmp_path / name).mkdir()
        begun, given = time.monotonic(), os.environ | {"ASYMLIB_HOME": str(tmp_path / name), "HF_HUB_OFFLINE": "1"}
        if name == "killed":
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=given,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(random.Random(os.getpid()).uniform(0.1, 0.9) * seconds["through"])
            os.killpg(process.pid, signal.SIGKILL)  # the engine and the jobs; kernels have sessions of their own
            process.wait()
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds[name] = time.monotonic() - begun
    found = {
        path.relative_to(tmp_path / "through")
        for path in (tmp_path / "through").glob("data/r*/**/*")
        if path.suffix in (".csv", ".safetensors", ".parquet")
    }
    assert len(found) > 15
    for path in found:
        assert (tmp_path / "through" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes(), path
    assert not list(tmp_path.rglob("*.part"))
