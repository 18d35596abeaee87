"""The notebooks keep the house rules, and the whole job list runs end to end on a small study of real text and the real encoder."""

import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml

from asymlib import batch, results
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
LINES = 24  # a cell longer than this holds logic that belongs in asymlib


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_the_house_wants(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert "**Question.**" in notebook.cells[0].source and "**In:**" in notebook.cells[0].source
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "stored with outputs"
        assert len(cell.source.splitlines()) <= LINES
        assert not any(word in cell.source for word in ("sys.path", "!pip", "%pip", "filterwarnings"))
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(cell.source)))
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code[0]
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.AnnAssign), "a parameter needs a type"
        ast.literal_eval(node.value)
    assert "assert " in code[-1].source and "print(" in code[-1].source, "the last cell answers, beside an assert"


def tiny_jobs(path):
    """The job list of `make reproduce`, same notebooks and order, on a study of a few hundred pairs."""
    jobs = yaml.safe_load((ROOT / "notebooks/reproduce.yaml").read_text(encoding="utf-8"))
    packages = {"test": ["seaborn", "jedi"], "validation": ["datasets"], "train": ["networkx"]}
    small = {
        "01-data": {
            "limit_train": 320,
            "limit_validation": 80,
            "limit_per_collection": 60,
            "max_length": 32,
            "packages": packages,
        },
        "02-{system}": {"seeds": [0, 1], "changes": {"epochs": 2, "batch_size": 16}},
        "05-ablations": {"seeds": [0, 1], "lrs": [1e-3], "batch_size": 64},
    }
    for job in jobs["jobs"]:
        job["notebook"] = str(ROOT / job["notebook"])
        job["parameters"] = job.get("parameters", {}) | small.get(job["id"], {})
    path.write_text(yaml.safe_dump(jobs, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    tiny_jobs(folder / "jobs.yaml")
    return folder


def run_batch(home):
    environment = os.environ | {"ASYMLIB_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "asymlib.batch", "jobs.yaml", "--jobs", "2", "--resume"]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


@pytest.mark.notebook
@pytest.mark.timeout(600)
def test_the_job_list_runs_end_to_end_and_a_second_run_changes_nothing(home):
    done = run_batch(home)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = home / "data/results/reproduce"
    table = results.read_table(folder, "systems.csv")
    assert set(table["dataset"]) == {"seaborn", "jedi", "average"}
    assert {"baseline", "asym-dot", "asym-cos", "asym-cos-identity", "respred", "whitened"} <= set(table["system"])
    assert table.loc[table["system"] == "asym-dot", "seeds"].eq(2).all()
    history = pd.read_parquet(folder / "history.parquet")
    assert list(history.columns) == ["system", "seed", "step", "epoch", "split", "name", "value"]
    assert set(history["split"]) == {"train", "training sample", "validation"}
    page = (folder / "writeup.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and 'src="http' not in page
    origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    assert {"systems.csv", "per_query.parquet", "history.parquet", "ablations.csv"} <= set(origin)
    before = {name: (folder / name).read_bytes() for name in ("systems.csv", "writeup.md")}
    again = run_batch(home)
    assert again.returncode == 0, again.stdout[-3000:]
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.notebook
def test_every_figure_has_its_table(home):
    pictures = list((home / "figures/reproduce").glob("*.png"))
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture.with_suffix(".csv").exists() and picture.with_suffix(".pdf").exists()


def test_the_readmes_command_makes_a_list_of_ones_own(tmp_path):
    command = re.search(r"^sed '(s/[^']+)' notebooks/reproduce.yaml", (ROOT / "README.md").read_text("utf-8"), re.M)
    text = subprocess.run(
        ["sed", command[1], ROOT / "notebooks/reproduce.yaml"], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "mine.yaml").write_text(text)
    name, jobs = batch.read_jobs(tmp_path / "mine.yaml")
    assert name == "mine" and {job.parameters["study"] for job in jobs} == {"mine"}
    assert not [output for job in jobs for output in job.outputs if "reproduce" in output]
