"""The notebooks keep the house rules, and a study of one's own with a single recipe runs through them in order."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter

import nbformat
import pytest

from asymlib.report import tables
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
pytestmark = pytest.mark.timeout(600)
LINES = 24  # a cell longer than this holds logic that belongs in asymlib


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_the_house_wants(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    first, code = notebook.cells[0], code_cells(path)
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.stem[:2]} · ")
    assert all(word in first.source for word in ("**Question.**", "**In:**", "**Out:**"))
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "stored with outputs"
        if cell is not code[0] and path.stem != "09_writeup":  # whose cells are prose
            assert len(cell.source.splitlines()) <= LINES, cell.source
        assert not any(word in cell.source for word in ("sys.path", "!pip", "%pip", "filterwarnings"))
    assert "assert " in code[-1].source and "print(" in code[-1].source, "the last cell answers, beside an assert"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_typed_literals_under_their_comments(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code_cells(path)[:1] and tagged[0].source.startswith("# ")
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.AnnAssign) and type(ast.literal_eval(node.value)).__name__ == node.annotation.id
    assert "  #" not in tagged[0].source, "a comment stands above its parameter"


def test_no_function_stands_in_two_notebooks():
    nodes = [node for path in NOTEBOOKS for cell in code_cells(path) for node in ast.parse(cell.source).body]
    found = Counter(ast.dump(node) for node in nodes if isinstance(node, ast.FunctionDef))
    assert found and max(found.values()) == 1


def test_notebooks_are_linted_like_code():
    ruff = [sys.executable, "-m", "ruff"]
    for command in ([*ruff, "check", "--no-cache"], [*ruff, "format", "--check", "--no-cache"]):
        done = subprocess.run([*command, *NOTEBOOKS], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------ one recipe of one's own

OWN = {"study": "own", "packages": {"test": ["seaborn"], "validation": ["jedi"], "train": ["fonttools"]}}
TRAINING = {"study": "own", "seeds": [0, 1], "changes": {"epochs": 2, "batch_size": 16}}
JOBS = [
    ("01_data_prep", OWN | {"limit_train": 160, "limit_validation": 48, "limit_per_collection": 40, "max_length": 16}),
    ("02_train_heads", TRAINING | {"save_as": "1e-3"}),
    ("02_train_heads", TRAINING | {"save_as": "exploded", "changes": TRAINING["changes"] | {"lr": 1e12}}),
    *((name, {"study": "own"}) for name in ("04_magnitude", "05_evaluation", "06_robustness", "09_writeup")),
]
# Runs the notebooks of a list of [path, parameters] in one process, each in a namespace of its own.
RUNNER = """
import builtins, json, nbformat, sys
builtins.display = lambda *shown: None
for path, parameters in json.loads(sys.argv[1]):
    space = {"__name__": "__main__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, path, "exec"), space)
            space |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The project folder after the notebooks ran on 160 pairs of docstrings, with one healthy recipe and one that explodes."""
    folder = tmp_path_factory.mktemp("home")
    jobs = [[str(ROOT / "notebooks" / f"{name}.ipynb"), parameters] for name, parameters in JOBS]
    setting = {"env": os.environ | {"ASYMLIB_HOME": str(folder), "OMP_NUM_THREADS": "1"}, "cwd": ROOT}
    done = subprocess.run([sys.executable, "-c", RUNNER, json.dumps(jobs)], capture_output=True, text=True, **setting)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.notebook
def test_a_name_that_reads_as_a_number_stays_text_in_every_table(home):
    folder, own = home / "data/results/own", ["1e-3"]
    expected = {name: ["baseline", "whitened", *own] for name in ("systems.csv", "hubness.csv", "per_query.parquet")}
    expected |= {"length_relevance.csv": own} | {
        f"{name}.csv": [*own, "exploded"] for name in ("checkpoints", "attribution")
    }
    found = {name: list(tables.read_table(folder, name)["system"].unique()) for name in expected}
    assert found == expected


@pytest.mark.notebook
def test_a_run_that_exploded_is_a_row_that_says_so_and_has_no_ranking(home):
    folder = home / "data/results/own"
    recipes = tables.read_table(folder, "recipes.csv").set_index("name")
    assert recipes["diverged"].to_dict() == {"1e-3": 0, "exploded": 2} and recipes["seeds"].eq(2).all()
    last = tables.read_table(folder, "checkpoints.csv").set_index("system")[["last", "best"]]
    assert last.loc["exploded"].isna().all() and last.loc["1e-3"].notna().all()
    assert tables.read_table(folder, "attribution.csv").set_index("system").loc["exploded", "length_share"].isna().all()


@pytest.mark.notebook
def test_tables_with_nothing_to_compare_keep_their_columns_and_figures_show_what_is_there(home):
    folder, figures = home / "data/results/own", home / "figures/own"
    contrasts = tables.read_table(folder, "contrasts.csv")
    assert contrasts.empty and {"track", "a", "b", "difference", "p_value", "p_raw"} <= set(contrasts.columns)
    matrix = tables.read_table(folder, "similarity_matrix.csv")
    assert dict(zip(matrix["similarity_eval"], matrix["own"], strict=True)) == {"dot": 1, "cosine": 0, "euclidean": 0}
    assert not (folder / "answers_met.csv").exists() and not (folder / "choices.csv").exists()
    names = (
        "signature growth_split systems_zero_shot systems_adapted length_relevance hubness similarity_matrix".split()
    )
    files = {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "csv")}
    assert {path.name for path in figures.iterdir()} == files
