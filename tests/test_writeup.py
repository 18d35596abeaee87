"""The write-up's rules for the three lessons, its formatting, and that its templates hold no typed number."""

import re

import numpy as np
import pandas as pd
import pytest

from asymlib import writeup
from asymlib.errors import InputError
from tests.conftest import ROOT

TEMPLATES = sorted((ROOT / "asymlib/templates").glob("*.j2"))
# digits that are names, not measurements
NAMES = [
    "nDCG@10",
    "MRR@10",
    "recall@100",
    "95 % interval",
    "iso15-pred12",
    "ISO15_PRED12",
    "asym-",
    "C^(−a/2)",
    "SHA-256",
]


def prose(template: str) -> str:
    text = re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}|`[^`]*`|!\[|arXiv:[\d.]+|TREC DL \d+/\d+", "", template, flags=re.S)
    for name in NAMES:
        text = text.replace(name, "")
    return text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_number_in_a_template_is_typed_by_hand(path):
    found = re.findall(r".{0,30}\d.{0,30}", prose(path.read_text(encoding="utf-8")))
    assert not found, found


def test_the_check_for_typed_numbers_finds_one():
    assert re.search(r"\d", prose("nDCG@10 fell by 59 % for `asym-dot` {{ x|num(4) }}"))


def systems(**deltas):
    rows = {
        name: {"mean": 0.5 * (1 + d / 100), "baseline": 0.5, "delta_percent": d, "p_value": p, "seeds": 5}
        for name, (d, p) in deltas.items()
    }
    return pd.DataFrame.from_dict({name.replace("_", "-"): row for name, row in rows.items()}, orient="index")


@pytest.mark.parametrize(
    ("cosine", "difference", "p", "verdict"),
    [((2.0, 0.2), -0.2, 0.001, "confirmed"), ((-20.0, 0.001), -0.2, 0.001, "refined"), ((-20.0, 0.001), -0.01, 0.4, "contradicted"),
     ((-20.0, 0.001), 0.1, 0.001, "contradicted")],
)  # fmt: skip
def test_lesson_one_weighs_dot_against_cosine_and_cosine_against_the_baseline(cosine, difference, p, verdict):
    table = systems(asym_dot=(-50.0, 0.001), asym_cos=cosine)
    against = {"a": 0.25, "b": 0.25 - difference, "difference": difference, "p_value": p}
    assert writeup.lesson_dot(table, against, None)["verdict"] == verdict


def test_lesson_one_is_refined_by_a_harmless_dot_product_and_says_which():
    table = systems(asym_dot=(-50.0, 0.001), asym_cos=(1.0, 0.9))
    grid = pd.DataFrame({"similarity": ["dot", "dot"], "start": ["random", "identity"], "lr": [1e-2, 1e-4],
                         "delta_percent": [-50.0, 3.0], "p_value": [0.001, 0.01]})  # fmt: skip
    lesson = writeup.lesson_dot(table, {"a": 0.25, "b": 0.45, "difference": -0.2, "p_value": 0.001}, grid)
    assert lesson["verdict"] == "refined" and lesson["harmless"]["start"] == "identity"
    assert lesson["recovered"] == pytest.approx(0.2 / 0.25)  # (0.45 - 0.25) of the 0.5 - 0.25 that dot lost


def warnings(*rows):
    return pd.DataFrame(
        [(s, seed, e, r) for s, r, e, seeds in rows for seed in range(seeds)],
        columns=["system", "seed", "epoch", "rule"],
    )


@pytest.mark.parametrize(
    ("raised", "verdict"),
    [
        (warnings(("asym-dot", "length-without-angle", 2.0, 5)), "confirmed"),
        (warnings(("asym-dot", "length-without-angle", 2.0, 2)), "contradicted"),  # 2 of 5 seeds are not most
        (
            warnings(("asym-dot", "accuracy", 0.0, 5), ("asym-dot", "accuracy", 2.0, 5)),
            "contradicted",
        ),  # the start raised it too
        (warnings(("asym-dot", "accuracy", 2.0, 5)), "refined"),  # warned, but not about length
        (
            warnings(("asym-dot", "std-query-growing", 2.0, 5), ("asym-cos", "accuracy", 1.0, 5)),
            "refined",
        ),  # a false alarm
    ],
)
def test_lesson_two_wants_the_damaged_warned_and_the_healthy_not(raised, verdict):
    table = systems(asym_dot=(-50.0, 0.001), asym_cos=(1.0, 0.9))
    assert writeup.lesson_log(table, raised)["verdict"] == verdict


def test_lesson_two_judges_whom_it_is_told_to():
    table = systems(asym_dot=(-50.0, 0.001), best_head=(-20.0, 0.001))
    raised = warnings(("asym-dot", "length-without-angle", 2.0, 5))
    assert "best-head" not in writeup.lesson_log(table, raised)["rules"]
    lesson = writeup.lesson_log(table, raised, watched=["asym-dot", "best-head"])
    assert lesson["silent"] == ["best-head"] and lesson["verdict"] == "refined"


def test_lesson_two_also_judges_the_cells_of_the_grid():
    table = systems(asym_dot=(-50.0, 0.001))
    raised = warnings(("asym-dot", "length-without-angle", 2.0, 5))
    cells = [("dot", -40.0, ""), ("cosine", 2.0, "")]
    grid = pd.DataFrame(
        [{"similarity": s, "start": "random", "lr": 1e-4, "delta_percent": d, "warnings": w} for s, d, w in cells]
    )
    lesson = writeup.lesson_log(table, raised, grid)
    assert lesson["verdict"] == "refined" and lesson["silent"] == ["dot, random start, 0.0001"]
    assert lesson["damaged"] == ["asym-dot", "dot, random start, 0.0001"] and not lesson["false"]


@pytest.mark.parametrize(
    ("mismatch", "p", "verdict"),
    [(0.3, 0.001, "confirmed"), (0.5, 0.2, "confirmed"), (0.5, 0.001, "refined")],
)
def test_lesson_three_yields_to_a_significantly_better_mismatch_only(mismatch, p, verdict):
    rows = [("dot", "dot", 0.4, True, np.nan), ("dot", "cosine", mismatch, False, p),
            ("dnorm", "cosine", 0.4, True, np.nan), ("dnorm", "dot", 0.3, False, 0.001)]  # fmt: skip
    matrix = pd.DataFrame(rows, columns=["similarity_train", "similarity_eval", "mean", "own", "p_value"])
    lesson = writeup.lesson_same(matrix)
    assert lesson["verdict"] == verdict
    assert lesson["rows"][0]["gain"] == pytest.approx(mismatch - 0.4) and lesson["rows"][1]["evaluated"] == "cosine"


def test_formats():
    assert writeup._percent(-40.176) == "−40.2 %" and writeup._percent(3.55) == "+3.5 %"
    assert writeup._p_equals(0.0001) == "p < 0.001" and writeup._p_equals(0.0312) == "p = 0.031"
    assert writeup._factor(np.log(5.07)) == "5.1" and writeup._share(0.961) == "96 %" and writeup._number(np.nan) == "–"


def test_page_embeds_its_pictures_and_refuses_a_missing_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    page = writeup.to_html("# Title\n\n![x](a.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", tmp_path)
    assert "<title>Title</title>" in page and "data:image/png;base64,iVBORw0K" in page and "<table>" in page
    with pytest.raises(InputError, match=r"b\.png is missing"):
        writeup.to_html("![x](b.png)", tmp_path)
