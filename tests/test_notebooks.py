"""The notebooks keep the house rules, and a study of one's own with a single recipe runs through them in order."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter

import nbformat
import pytest

from asymlib.errors import InputError
from asymlib.report import tables
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
import run_notebook

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
        assert isinstance(node, ast.AnnAssign)
        value, kind = ast.literal_eval(node.value), ast.unparse(node.annotation)
        assert kind.partition("[")[0] == type(value).__name__ or (value is None and kind == "str"), node.target.id
    assert run_notebook.check(path, {}) == {}  # of a list[float], say, every element is looked at
    assert "  #" not in tagged[0].source, "a comment stands above its parameter"


@pytest.mark.parametrize(("number", "name"), [("03", "lrs"), ("08", "lrs"), ("08", "collections")])
def test_a_wrong_element_of_a_list_is_refused_before_anything_starts(number, name):
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    wrong = ["0.001"] if name == "lrs" else [1]
    with pytest.raises(InputError, match=rf"{path.name}: parameter '{name}': Input should be a valid .*: '?{wrong[0]}"):
        run_notebook.check(path, {name: wrong})


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

PAIRS = {"packages": {"test": ["seaborn"], "validation": ["jedi"], "train": ["fonttools"]}, "max_length": 16}
PAIRS |= {"limit_train": 160, "limit_validation": 80, "limit_per_collection": 40}
SHORT = {"epochs": 2, "batch_size": 16}
# Systems that other notebooks rank, in the order of the tables of scores.
APART = ["bm25", "hybrid", "lexical-head-normalised", "lexical-head", "lexical-normalised", "lexical"]
APART += ["unfrozen-top-1-cosine", "unfrozen-top-1-dot"]
# study: what is trained on it (a recipe, the name that it is saved as, further changes), and what is asked of it after that
FAMILIES = {
    "own": ([("asym-dot", "1e-3", {}), ("asym-dot", "exploded", {"lr": 1e12})], "04 05 06 07 08 09"),
    "default": ([("asym-dot", "", {})], "11 12 04 05 06 09"),
    "others": ([("respred", "", {}), ("iso15-pred12", "007", {})], "03 04 05 06 09"),
    "lost": ([("asym-cos", "true", {"lr": 1e12}), ("asym-dot", "None", {"lr": 1e6})], "04 05 06 09"),
}
GIVEN = {
    "03": {
        "lrs": [1e-4, 1e12],
        "steps": 8,
        "rounds": [{"sides": ["query"]}],
        "seeds": [0],
        "final_seeds": [0, 1],
        "averaged": 2,
    },
    "07": {"seeds": [0, 1], "starts": ["identity"], "lrs": [1e-3, 1e12], "batch_size": 16},
    "08": {"lrs": [1e-3, 1e12], "steps": [4], "folds": 2},
    "11": {"seeds": [0, 1], "cut": 40, "ablation": True},
    "12": {"seeds": [0, 1], "epochs": 2, "batch_size": 16, "layers": [1], "limit_train": 64},
}
JOBS = [
    job
    for study, (trained, asked) in FAMILIES.items()
    for job in [
        ("01", {"study": study, **PAIRS}),
        *(
            (
                "02",
                {
                    "study": study,
                    "recipe": recipe,
                    "save_as": name,
                    "changes": SHORT | changes,
                    "seeds": [0, 1],
                    "updates": 30 * (name == "007"),
                },
            )
            for recipe, name, changes in trained
        ),
        *((number, {"study": study, **GIVEN.get(number, {})}) for number in asked.split()),
    ]
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
    """The project folder after the notebooks ran on 160 pairs of docstrings, for every family of recipes."""
    folder = tmp_path_factory.mktemp("home")
    path = {notebook.stem[:2]: str(notebook) for notebook in NOTEBOOKS}
    jobs = [[path[number], parameters] for number, parameters in JOBS]
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
    folder = home / "data/results/own"
    contrasts = tables.read_table(folder, "contrasts.csv")
    assert contrasts.empty and {"track", "a", "b", "difference", "p_value", "p_raw"} <= set(contrasts.columns)
    matrix = tables.read_table(folder, "similarity_matrix.csv")
    assert dict(zip(matrix["similarity_eval"], matrix["own"], strict=True)) == {"dot": 1, "cosine": 0, "euclidean": 0}
    assert not (folder / "answers_met.csv").exists() and not (folder / "choices.csv").exists()
    names = (
        "signature case_log growth_split systems_zero_shot systems_adapted length_relevance hubness similarity_matrix"
    )
    words = " words_gain_zero_shot words_gain_adapted words_weight_zero_shot words_weight_adapted unfrozen"
    for study, more in {"own": " ablation oracle", "default": words, "others": "", "lost": ""}.items():
        files = {f"{name}.{kind}" for name in (names + more).split() for kind in ("png", "pdf", "csv")}
        assert {path.name for path in (home / "figures" / study).iterdir()} == files, study


@pytest.mark.notebook
def test_every_family_of_recipes_has_its_rows_in_every_table(home):
    rows = {"default": ["asym-dot"], "others": ["007", "best-head", "respred"], "lost": []}
    pairs = {
        "others": {("best-head", "whitened"), ("best-head-whitened", "best-head"), ("best-head-whitened", "whitened")}
    }
    pairs |= {"default": {(f"lexical{end}", b) for end, b in (("", "whitened"), ("-head", "lexical"))}, "lost": set()}
    for study, trained in rows.items():
        folder = home / "data/results" / study
        ranked = ["baseline", "whitened", *trained, *["best-head-whitened"] * (study == "others")]
        apart = APART if study == "default" else []
        assert list(tables.read_table(folder, "hubness.csv")["system"].unique()) == ranked, study
        assert list(tables.read_table(folder, "per_query.parquet")["system"].unique()) == ranked + apart
        assert set(tables.read_table(folder, "systems.csv")["system"]) == {*ranked, *apart}
        contrasts = tables.read_table(folder, "contrasts.csv")
        own = contrasts[contrasts["track"] == "zero-shot"]
        assert set(zip(own["a"], own["b"], strict=True)) == pairs[study]
        matrix = tables.read_table(folder, "similarity_matrix.csv")
        assert len(matrix) == (0 if study == "lost" else 3)
        assert list(tables.read_table(folder, "length_relevance.csv")["system"].unique()) == trained
        assert not tables.read_table(folder, "overlap.csv")["drop_self"].any()
    recipes = tables.read_table(home / "data/results/others", "recipes.csv").set_index("name")
    assert recipes["epochs"][["007", "respred"]].tolist() == [3, 2]  # 30 updates are three epochs of ten
    recipes = tables.read_table(home / "data/results/lost", "recipes.csv").set_index("name")
    assert recipes["diverged"].to_dict() == {"None": 2, "true": 2}
    assert list(tables.read_table(home / "data/results/lost", "checkpoints.csv")["system"]) == ["None", "true"]


@pytest.mark.notebook
def test_a_family_of_tests_is_a_tracks_own(home):
    """Adapted: whitening, 4 systems of words. Zero-shot: also the head, learnt words, the encoder's top; no BM25, no hybrid.
    Each on one collection and on the average of it, in 3 metrics."""
    systems = tables.read_table(home / "data/results/default", "systems.csv")
    tested = systems.dropna(subset="p_raw").groupby(["track", "metric"])["p_raw"]
    assert tested.size().to_dict() == {
        (track, metric): count
        for track, count in (("zero-shot", 16), ("adapted", 10))
        for metric in ("ndcg@10", "mrr@10", "recall@100")
    }
    adapted = systems[(systems["track"] == "adapted") & systems["p_raw"].notna()]
    assert (adapted["p_value"] <= 10 * adapted["p_raw"] + 1e-7).all()


@pytest.mark.notebook
def test_systems_ranked_apart_say_what_they_are_in_the_tables(home):
    folder = home / "data/results/default"
    systems = tables.read_table(folder, "systems.csv").drop_duplicates("system").set_index("system")
    kinds = {"bm25": "BM25", "hybrid": "cosine + BM25", "unfrozen-top-1-cosine": "cosine"}
    assert systems.loc[APART, "similarity_eval"].to_dict() == dict.fromkeys(APART, "dot") | kinds
    assert systems.loc[["unfrozen-top-1-dot", "lexical"], "pairs"].tolist() == [64, 0]
    runs = tables.read_table(folder, "unfrozen.csv").groupby("system")["seed"].agg(set).to_dict()
    assert runs == {"unfrozen-top-1-cosine": {0, 1}, "unfrozen-top-1-dot": {0, 1}}
    tracks = tables.read_table(folder, "words_ablation.csv").groupby("track")["varied"].agg(set).to_dict()
    assert tracks["zero-shot"] == tracks["adapted"] == {"weight", "dimensions", "seed", "stop words", "stems"}
    assert tables.read_table(folder, "words_cost.csv")["system"].tolist()[1:] == ["lexical-384", "lexical"]


@pytest.mark.notebook
def test_a_cell_of_the_grid_that_exploded_is_empty_and_nothing_is_split(home):
    folder = home / "data/results/own"
    cells = tables.read_table(folder, "ablations.csv").set_index(["similarity", "lr"])
    assert cells["diverged"].to_dict() == {(s, lr): 2 * (lr > 1) for s in ("dot", "cosine") for lr in (1e-3, 1e12)}
    assert cells["mean"].isna().tolist() == cells["validation_loss"].isna().tolist() == [False, True, False, True]
    assert tables.read_table(folder, "ablation_effects.csv")["share"].isna().all()
    assert set(tables.read_table(folder, "oracle.csv")["lr"].dropna()) == {1e-3}


@pytest.mark.notebook
def test_the_searched_head_is_kept_after_the_epochs_that_its_table_shows(home):
    log = tables.read_table(home / "data/results/others", "search.csv")
    assert log["changed"].str.partition(",")[0].tolist()[:4] == ["start", "nothing", "lr 1e+12", "nothing"]
    assert log["delta_percent"].eq(-100).tolist() == [False, False, True, *[False] * (len(log) - 3)]
    recipes = tables.read_table(home / "data/results/others", "recipes.csv").set_index("name")
    epochs = int(log.loc[log["final"], "epochs"].item())
    assert recipes.loc["best-head", ["epochs", "best_epochs"]].tolist() == [epochs, f"[{epochs}, {epochs}]"]


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("number", "name"),
    [("02", "lr/0.001"), ("02", "baseline"), ("02", "best-head"), ("02", "../../x"), ("03", "average"), ("03", ".x")],
)
def test_a_name_that_tables_or_folders_cannot_hold_is_refused_before_anything_is_trained(
    home, number, name, monkeypatch
):
    monkeypatch.setenv("ASYMLIB_HOME", str(home))
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    space, cells = {}, code_cells(path)
    with pytest.raises(InputError, match=f"save_as: '{name}'"):
        for i, cell in enumerate(cells[:4] if number == "03" else cells[:3]):
            exec(compile(cell.source, path.name, "exec"), space)
            space |= {"study": "others", "save_as": name} if i == 0 else {}
