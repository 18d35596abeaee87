"""The write-up: how numbers are written, claims that stop it, and the page of the committed tables."""

import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymlib.errors import InputError
from asymlib.report import claims, tables
from tests.conftest import ROOT
from workflow import write_page

REAL = ROOT / "data/results/real"


def test_a_claim_is_its_sentence_or_stops_the_page():
    assert claims.claim(np.True_, "one is less than two") == "one is less than two"
    for condition in (False, np.False_, math.nan, 0):
        with pytest.raises(claims.ClaimError, match="one is more than two"):
            claims.claim(condition, "one is more than two")


def test_numbers_are_written_with_a_sign_only_where_one_is_left():
    assert [claims.percent(x) for x in (6.549, -0.32, -0.04, 0.04, math.nan)] == [
        "+6.5 %",
        "−0.3 %",
        "0.0 %",
        "0.0 %",
        "",
    ]
    assert [claims.number(x, 2) for x in (-0.004, -0.006, 1)] == ["0.00", "−0.01", "1.00"]
    assert claims.share(0.9746) == "97 %"


@given(st.floats(-1e4, 1e4))
def test_no_percentage_is_minus_zero(value):
    text = claims.percent(value)
    assert not re.search(r"[+−-]0\.0 ", text)
    assert float(text.removesuffix(" %").replace("−", "-")) == pytest.approx(value, abs=0.051)


def test_a_p_value_at_the_floor_of_the_flips_is_a_bound():
    assert (
        claims.p_text(0.062) == "p = 0.062" and claims.p_text(0.0002) == "p < 0.001" and claims.p_text(math.nan) == ""
    )
    assert claims.p_text(150 * claims.FLOOR, claims.FLOOR) == "p < 0.0015"  # Holm over 150 tests
    assert claims.p_text(151 * claims.FLOOR, claims.FLOOR) == "p < 0.0016"  # a bound is rounded up
    assert claims.p_text(0.0016, 3 * claims.FLOOR) == "p = 0.002"


def test_rows_become_a_table_and_none_are_said():
    assert claims.markdown_table([{"a": "1", "b": "2"}]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert claims.markdown_table([]) == "none"


def test_change_and_verdict():
    row = pd.Series(
        {"delta_percent": -50.0, "difference_low": -0.3, "difference_high": -0.2, "baseline": 0.5, "p_value": 0.01}
    )
    assert claims.change(row) == "−50.0 % [−60.0, −40.0]"  # -0.3 / 0.5 and -0.2 / 0.5
    assert claims.verdict(row) == "below"
    assert claims.verdict(pd.Series({**row, "p_value": 0.05})) == "tied"
    assert claims.verdict(pd.Series({**row, "delta_percent": 1.0})) == "above"


def test_the_block_between_the_markers_is_replaced_and_nothing_else():
    text = f"before\n{write_page.BEGIN}\nold\n{write_page.END}\nafter\n"
    assert (
        write_page.with_block(text, "new", "README.md") == f"before\n{write_page.BEGIN}\nnew\n{write_page.END}\nafter\n"
    )
    with pytest.raises(InputError, match="expected one line"):
        write_page.with_block("no markers", "new", "README.md")


def _run(home, tmp_path, **parameters):
    """The write-up notebook executed on the tables below `home`."""
    executed = tmp_path / "executed.ipynb"
    given = [word for name, value in parameters.items() for word in ("-p", name, value)]
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "-k",
        "python3",
        "notebooks/09_writeup.ipynb",
        str(executed),
        *given,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ASYMLIB_HOME": str(home)}, capture_output=True, text=True, timeout=200
    )
    return done, executed


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project folder that holds the committed tables and figures alone."""
    home = tmp_path_factory.mktemp("home")
    for part in (
        "data/results/real",
        "data/results/real-full",
        "data/results/real-mpnet",
        "figures/real",
        "figures/real-mpnet",
    ):
        files = subprocess.run(["git", "ls-files", part], cwd=ROOT, capture_output=True, text=True).stdout.split()
        for file in files or [str(path.relative_to(ROOT)) for path in (ROOT / part).iterdir()]:
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, home / file)
    return home


@pytest.mark.notebook
def test_the_committed_page_is_what_the_committed_tables_say(home, tmp_path):
    done, executed = _run(home, tmp_path, study="real", full="real-full", case="real-mpnet")
    assert done.returncode == 0, done.stderr[-2000:]
    page = write_page.page(executed, "markdown")
    assert page == (ROOT / "ANALYSIS.md").read_text(encoding="utf-8")
    assert len(page.encode()) <= 26_000
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert write_page.with_block(readme, write_page.tagged_output(executed, "readme-table"), "README.md") == readme


@pytest.mark.notebook
def test_a_sentence_that_no_longer_holds_stops_the_page(home, tmp_path):
    other = tmp_path / "home"
    shutil.copytree(home, other)
    folder = other / "data/results/real"
    systems = tables.read_table(folder, "systems.csv")
    systems.loc[systems["system"] == "asym-dot", "delta_percent"] = -1.0
    tables.write_table(folder, "systems.csv", systems, tables.read_origin(folder, "systems.csv"))
    done, executed = _run(other, tmp_path, study="real", full="real-full")
    assert done.returncode != 0 and "asym-dot loses more than half" in done.stderr
    with pytest.raises(InputError, match="stopped at ClaimError"):
        write_page.page(executed, "markdown")


def test_the_page_says_what_the_tables_hold():
    """Some thirty numbers, each computed here from its table in another way than the notebook does."""
    page = (ROOT / "ANALYSIS.md").read_text(encoding="utf-8")
    plain = page.replace("−", "-")
    read = lambda name: pd.read_csv(REAL / name, keep_default_na=False, na_values=[""])  # noqa: E731
    systems = read("systems.csv").query("metric == 'ndcg@10' and dataset == 'average'")
    for row in systems[systems["system"] != "baseline"].itertuples():  # 30 rows in three tracks
        line = next(line for line in plain.splitlines() if line.startswith(f"| `{row.system}` |"))
        shown = round(100 * (row.mean / row.baseline - 1), 1) + 0.0
        assert f"{shown:+.1f} %".replace("+0.0", "0.0") in line, (row.track, row.system)
    effects = read("ablation_effects.csv").set_index("term")["share"]
    assert f"the similarity {100 * effects['similarity']:.0f} %" in plain.replace("\n", " ").replace("   ", " ")
    growth = read("attribution.csv").query("system == 'asym-dot'")
    assert f"**Lengths carry {100 * ((growth['query'] + growth['document']) / growth['total']).mean():.0f} %" in plain
    met = read("answers_met.csv").query("system == 'best-head' and dataset == 'scifact'").set_index("answers")
    for answers in ("met in training", "not met"):
        assert f"{100 * (met.loc[answers, 'mean'] / met.loc[answers, 'baseline'] - 1):+.1f} %" in plain
    last = pd.read_csv(ROOT / "data/results/real-mpnet/last_epoch.csv").query("dataset in ('scifact', 'nfcorpus')")
    last = last.query("system == 'asym-dot'")[["last", "best", "baseline"]].sum()
    for epoch in ("last", "best"):
        assert f"{100 * (1 - last[epoch] / last['baseline']):.1f} %" in plain
    oracle = read("oracle.csv").query("dataset == 'average'")
    for best in oracle.groupby("kind")["mean"].max():
        assert f"{100 * (best / oracle['baseline'].iloc[0] - 1):+.1f} %" in plain
    assert "-0.0 %" not in plain
