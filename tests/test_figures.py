"""Figures: what is drawn is what the table says, legible and in its physical size; saved files are the same twice."""

import io
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from asymlib import losses, magnitude
from asymlib.errors import InputError
from asymlib.files import project_path
from asymlib.recipes import RECIPES
from asymlib.report import result_figures, style, training_figures, words_figures
from asymlib.report.claims import FLOOR

PARTS = ["query", "document", "angle"]


def real(name, study="real"):
    return pd.read_csv(project_path("data/results", study, name))


def history(systems=("asym-dot", "asym-cos", "mine"), seeds=3):
    """A synthetic history: four epochs of the signature's statistics, and a training row that is not drawn."""
    random = np.random.default_rng(7)
    keys = pd.MultiIndex.from_product([systems, range(seeds), range(4), training_figures.SIGNATURE])
    rows = keys.to_frame(index=False, name=["system", "seed", "epoch", "name"]).assign(split="validation")
    rows["value"] = rows["epoch"] + random.random(len(rows))
    return pd.concat([rows, rows[:1].assign(split="train", value=1e6)], ignore_index=True)


def systems_table(study="real", track=None):
    """systems.csv with intervals of our own making: from 0.4 % of the baseline below each change to 0.3 % above it."""
    table = real("systems.csv", study)
    low, high = (table["baseline"] * (table["delta_percent"] + shift) / 100 for shift in (-0.4, 0.3))
    p_raw = (table["p_value"] / 90).mask(table["p_value"] < 0.0016, FLOOR)
    table = table.assign(p_raw=p_raw, difference_low=low, difference_high=high)
    return table if track is None else table[table["track"] == track]


def every_system():
    """The same table with rows of all systems that have a look: one after another 2 % above the one before, from -20 %."""
    table = systems_table()
    new = [name for name in style.SYSTEM_STYLE if name not in set(table["system"])]
    frozen, parts = table[table["system"] == "baseline"], [table]
    for i, name in enumerate(new):
        change, p_value = 2 * i - 20, 0.01 if i % 3 else 0.8
        ends = {
            f"difference_{end}": frozen["baseline"] * (change + shift) / 100
            for end, shift in (("low", -0.4), ("high", 0.3))
        }
        parts.append(frozen.assign(system=name, delta_percent=change, p_value=p_value, p_raw=p_value / 30, **ends))
    return pd.concat(parts, ignore_index=True)


def pairs_table():
    sizes = {"real": 10_000, "real-full": 87_599}
    tables = [systems_table(study, "zero-shot").assign(pairs=size) for study, size in sizes.items()]
    return pd.concat([table[table["system"].isin(tables[-1]["system"])] for table in tables])


def case_columns():
    """What magnitude.case_columns returns for three seeds of a system: 1.1, 1.2, 1.3 times the case."""
    rows = pd.concat([magnitude.CASE_LOG, magnitude.CASE_LOG.tail(1).assign(epoch=4)]).melt(
        "epoch", var_name="column", value_name="case"
    )
    rows.loc[rows["epoch"] == 4, "case"] = np.nan
    runs = [
        rows.assign(system=name, seed=seed, value=rows["case"] * (1.1 + 0.1 * seed))
        for name in "ab"
        for seed in range(3)
    ]
    return pd.concat(runs).assign(off=lambda rows: rows["value"] / rows["case"] - 1)


DRAW = {
    **vars(training_figures),
    **vars(result_figures),
    "case_log": partial(training_figures.case_log, system="a"),
    "three_tracks": result_figures.systems_forest,
    "all_systems": result_figures.systems_forest,
    "words_gain": partial(words_figures.words_gain, track="adapted"),
}
TABLES = {
    "signature": history,
    "growth_split": partial(real, "attribution.csv"),
    "case_log": case_columns,
    "systems_forest": partial(systems_table, track="in-domain"),
    "three_tracks": systems_table,
    "all_systems": every_system,
    "words_gain": every_system,
    "few_many": pairs_table,
    "similarity_matrix": partial(real, "similarity_matrix.csv"),
    "ablation": partial(real, "ablations.csv"),
    "oracle": lambda: real("oracle.csv").assign(held_out=lambda table: table["kind"].str.contains("rest")),
    "length_relevance": partial(real, "length_relevance.csv"),
    "hubness": lambda: real("hubness.csv").query("track == 'zero-shot'"),
}


@pytest.fixture(scope="module")
def drawn():
    """Every figure once: {name: (figure, shown)}."""
    return {name: DRAW[name](table()) for name, table in TABLES.items()}


def texts(figure):
    """The texts of a figure, without the labels of ticks beyond its axes."""
    unseen = set()
    for axis in (one for axes in figure.axes for one in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        unseen |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    seen = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen]
    return [text for text in seen if text.get_text().strip()]


def said(figure):
    """All words of a figure, in one line."""
    return " ".join(" ".join(text.get_text() for text in texts(figure)).split())


def row_labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def spans(axis, y):
    """The x values of each line that is drawn in row y, points left out."""
    rows = [line for line in axis.lines if set(line.get_ydata()) == {y} and len(line.get_ydata()) > 1]
    return [list(line.get_xdata()) for line in rows]


@pytest.mark.parametrize("name", TABLES)
def test_a_figure_has_a_papers_width_and_legible_text_that_does_not_collide(name, drawn):
    figure, shown = drawn[name]
    assert figure.get_figwidth() in (style.COLUMN, style.PAGE) and figure.get_figheight() < 9
    assert list(shown.index) == list(range(len(shown))) and len(shown)
    assert "−0.0 %" not in said(figure) and "+0.0 %" not in said(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    assert len(boxes) > 5 and all(6.9 <= text.get_fontsize() <= 8 for text in texts(figure))
    for i, (first, a) in enumerate(boxes):
        assert min(a.x0, a.y0) > -1 and a.x1 < figure.bbox.x1 + 1 and a.y1 < figure.bbox.y1 + 1, f"{first} is cut"
        for second, b in boxes[i + 1 :]:
            across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 1 or along < 2, f"{first!r} and {second!r} overlap"


def test_every_known_system_has_its_own_colour_and_marker():
    known = style.SYSTEM_STYLE
    assert {*RECIPES, "best-head", "bm25", "hybrid", "lexical-head"} <= set(known)
    assert set(style.SIMILARITY_STYLE) == set(losses.SIMILARITIES)
    seen = {(look["color"], look["marker"]) for look in [*known.values(), *style.NEUTRAL_STYLES]}
    assert len(seen) == len(known) + len(style.NEUTRAL_STYLES)
    heads = [known[name] for name in known if name not in {name for kin in style.KIN.values() for name in kin}]
    for key in ("color", "marker"):  # those that stand in one figure's lines are told apart by either
        assert len({look[key] for look in heads}) == len(heads)
    looks = style.looks(["asym-dot", "mine", "theirs", "mine"])
    assert looks["asym-dot"] == known["asym-dot"]
    assert [looks["mine"], looks["theirs"]] == style.NEUTRAL_STYLES[:2]


def test_signature_draws_the_mean_and_the_range_of_the_seeds(drawn):
    figure, shown = drawn["signature"]
    rows = history().query("split == 'validation'")
    for axis, name in zip(figure.axes, training_figures.SIGNATURE, strict=True):
        for system, line, band in zip(("asym-dot", "asym-cos", "mine"), axis.lines, axis.collections, strict=True):
            raw = rows[(rows["system"] == system) & (rows["name"] == name)].groupby("epoch")["value"]
            expected = raw.agg(["mean", "min", "max"]).to_numpy()
            table = shown[(shown["system"] == system) & (shown["name"] == name)]
            np.testing.assert_allclose(table[["mean", "low", "high"]], expected)
            np.testing.assert_allclose(line.get_ydata(), expected[:, 0])
            edges = band.get_paths()[0].vertices[:, 1]
            np.testing.assert_allclose(np.unique(edges.round(9)), np.unique(expected[:, 1:].round(9)))
            assert line.get_color() == style.looks([system])[system]["color"]
    assert set(shown["seeds"]) == {3} and "band: range of 3 seeds" in said(figure)


def test_signature_draws_only_who_is_asked_for_and_there():
    figure, shown = training_figures.signature(history(), ["asym-cos", "asym-dot", "not run"])
    assert "mine" not in said(figure) and "not run" not in said(figure)
    assert set(shown["system"]) == {"asym-cos", "asym-dot"}


def test_a_diverged_seed_is_left_out_of_the_mean_and_named():
    rows = history()
    rows.loc[(rows["seed"] == 2) & (rows["epoch"] == 3) & (rows["system"] == "mine"), "value"] = np.inf
    figure, shown = training_figures.signature(rows)
    assert set(shown.query("system == 'mine' and epoch == 3")["seeds"]) == {2} and np.isfinite(shown["mean"]).all()
    assert "range of 2 to 3 seeds" in said(figure) and "not finite are left out: mine" in said(figure)


def test_the_cases_log_is_laid_over_ours_as_far_as_it_goes(drawn):
    figure, shown = drawn["case_log"]
    assert set(shown["epoch"]) == {1, 2, 3} and set(shown["seeds"]) == {3} and "the case" in said(figure)
    np.testing.assert_allclose(shown[["ratio", "off"]], np.tile([1.2, 0.2], (18, 1)))
    for axis, name in zip(figure.axes, training_figures.CASE_COLUMNS, strict=True):
        part = shown[shown["column"] == name]
        np.testing.assert_allclose([line.get_ydata() for line in axis.lines], part[["mean", "case"]].T)
        np.testing.assert_allclose(part["case"], magnitude.CASE_LOG[name])


def test_growth_is_stacked_so_that_the_bars_end_at_the_total_largest_first():
    case = magnitude.case_arithmetic()
    figure, shown = training_figures.growth_split(real("attribution.csv"), case)
    (axis,) = figure.axes
    assert row_labels(axis) == list(shown["system"]) and list(shown["total"]) == sorted(shown["total"], reverse=True)
    assert shown["system"][0] == "the case, epoch 1 to 3" and "×5.07" in said(figure)  # 163.60 / 32.25
    assert list(shown.loc[0, PARTS]) == list(case.iloc[-1][PARTS])
    for y, row in shown.iterrows():
        bars = [container[y] for container in axis.containers[:3]]
        left, width = np.array([(bar.get_x(), bar.get_width()) for bar in bars]).T
        np.testing.assert_allclose(width, row[PARTS].astype(float), atol=1e-12)
        # Parts above 0 stand side by side to the right of it, the others to the left; both ends sum to the total.
        ends = np.append(left, left + width)
        expected = [width.clip(min=0).sum(), width.clip(max=0).sum()]
        np.testing.assert_allclose([ends.max(), ends.min()], expected, atol=1e-12)
        assert ends.max() + ends.min() == pytest.approx(row["total"], abs=1e-7)


def test_growth_without_a_logarithm_is_said_in_words():
    table = real("attribution.csv").query("system in ['asym-dot', 'asym-cos', 'asym-qnorm']").copy()
    lost = (table["system"] == "asym-cos") | ((table["system"] == "asym-qnorm") & (table["seed"] == 1))
    table.loc[lost, [*PARTS, "total"]] = np.nan
    figure, shown = training_figures.growth_split(table)
    assert row_labels(figure.axes[0]) == ["asym-dot", "asym-qnorm (4 of 5 seeds)", "asym-cos"]
    assert "logit not above 0: no logarithm" in said(figure) and list(shown["seeds"]) == [5, 4, 0]
    low, high = training_figures.growth_split(table[lost])[0].axes[0].get_xlim()
    assert low <= 0 < 0.4 < high  # a growth of nothing is not magnified


@pytest.mark.parametrize("name", ["systems_forest", "three_tracks", "all_systems"])
def test_forests_stand_at_the_paired_differences_in_the_same_rows_for_each_track(name, drawn):
    figure, shown = drawn[name]
    tracks = [track for track in ("zero-shot", "adapted", "in-domain") if track in set(shown["track"])]
    assert [axis.get_title(loc="left") for axis in figure.axes[: len(tracks)]] == tracks
    assert tracks == (["in-domain"] if name == "systems_forest" else ["zero-shot", "adapted", "in-domain"])
    near, far = labels = [row_labels(axis) for axis in figure.axes[:: len(tracks)]]
    for row in shown.itertuples():
        block = int(row.system in far)
        axis, y = figure.axes[block * len(tracks) + tracks.index(row.track)], labels[block].index(row.system)
        (dot,) = (line for line in axis.lines if line.get_label() == row.system)
        assert (*dot.get_xdata(), *dot.get_ydata()) == (row.delta_percent, y)
        assert (dot.get_markerfacecolor() == "white") == (row.p_value >= 0.05) and dot.get_color() == style.INK
        np.testing.assert_allclose(spans(axis, y), [[row.delta_percent - 0.4, row.delta_percent + 0.3]])
    changes = shown.groupby("system")["delta_percent"].agg(["mean", "min"])
    assert all(changes.loc[block, "mean"].is_monotonic_decreasing for block in (near, far))
    assert (changes.loc[near, "min"] >= -10).all() and (changes.loc[far, "min"] < -10).all()
    assert "bar: paired 95 % interval of the difference" in said(figure)
    if name == "systems_forest":
        assert "0.520 +8.2 % p < 0.00051 *" in said(figure) and "−9.5 % p = 0.025 *" in said(figure)


def test_what_the_words_add_stands_beside_what_the_head_adds_in_every_collection(drawn):
    figure, shown = drawn["words_gain"]
    systems, table = ["best-head", *words_figures.GAINS], every_system()
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(dict.fromkeys(shown["dataset"]))
    assert figure.axes[0].get_title(loc="left") == "average" and set(shown["system"]) == set(systems)
    for axis, (dataset, rows) in zip(figure.axes, shown.groupby("dataset", sort=False), strict=True):
        assert row_labels(axis) in (systems, []) and len(rows) == len(systems)  # beside the first of a line
        for row in rows.itertuples():
            y = systems.index(row.system)
            (dot,) = (line for line in axis.lines if line.get_label() == row.system)
            assert (*dot.get_xdata(), *dot.get_ydata()) == (row.delta_percent, y)
            assert (dot.get_markerfacecolor() == "white") == (not row.p_value < 0.05)
            np.testing.assert_allclose(spans(axis, y), [[row.low_percent, row.high_percent]])
            keys = {"track": "adapted", "dataset": dataset, "metric": "ndcg@10", "system": row.system}
            assert table.loc[(table[list(keys)] == pd.Series(keys)).all(axis=1), "delta_percent"].tolist() == [
                row.delta_percent
            ]
    without = table[table["system"] != "best-head"]
    assert row_labels(words_figures.words_gain(without, "adapted")[0].axes[0])[0] == "asym-cos-identity"


def test_a_system_without_a_score_is_said_in_words():
    table = systems_table(track="in-domain")
    table.loc[table["system"] == "asym-cos", ["mean", "delta_percent", "difference_low", "difference_high"]] = np.nan
    for draw in (result_figures.systems_forest, result_figures.few_many):
        figure, _ = draw(table)
        assert "no finite score" in said(figure) and row_labels(figure.axes[1])[-1] == "asym-cos"


def test_few_and_many_pairs_are_joined_best_with_many_first(drawn):
    figure, shown = drawn["few_many"]
    assert "baseline" not in set(shown["system"])
    for axis in figure.axes:
        for y, system in enumerate(row_labels(axis)):
            few, many = shown[shown["system"] == system].sort_values("pairs").itertuples()
            assert spans(axis, y) == [[few.delta_percent, many.delta_percent]]
            assert spans(axis, y - 0.2) == [[few.low_percent, few.high_percent]]
            assert spans(axis, y + 0.2) == [[many.low_percent, many.high_percent]]
            dots = {line.get_label(): line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"}
            assert dots[f"{system} 10000"] == few.delta_percent and dots[f"{system} 87599"] == many.delta_percent
    assert shown.query("pairs == 87599")["delta_percent"].is_monotonic_decreasing


def test_the_matrix_writes_each_cell_and_frames_its_own_ranking(drawn):
    figure, shown = drawn["similarity_matrix"]
    (axis,) = figure.axes
    columns, rows = [label.get_text() for label in axis.get_xticklabels()], row_labels(axis)
    written = {tuple(text.get_position()): text.get_text() for text in axis.texts}
    framed = {(round(patch.get_x() - 0.04), round(patch.get_y() - 0.06)) for patch in axis.patches}
    brightness = axis.collections[0].get_facecolors()[:, :3].sum(1)
    cells = []
    for row in shown.itertuples():
        x, y = columns.index(row.similarity_eval), rows.index(row.similarity_train)
        star = " *" * (row.p_value < 0.05)
        text = f"{row.mean:.3f} ± {row.sd:.3f}{star}\n{row.delta_percent:.1f} %".replace("-", "−")
        assert written[x + 0.5, y + 0.5] == text and ((x, y) in framed) == row.own
        cells.append(y * len(columns) + x)
    assert list(brightness[cells][shown["mean"].argsort()]) == sorted(brightness)  # a sequential map
    lost = shown.assign(mean=shown["mean"].mask(shown.index == 3))
    assert "no finite score" in said(result_figures.similarity_matrix(lost)[0])


def test_the_ablation_has_a_tick_at_each_tried_rate(drawn):
    figure, shown = drawn["ablation"]
    for axis, start in zip(figure.axes, ("random", "identity"), strict=True):
        assert axis.get_title(loc="left") == f"{start} start"
        assert list(axis.get_xticks()) == sorted(set(shown["lr"])) and not len(axis.get_xticks(minor=True))
        assert [label.get_text() for label in axis.get_xticklabels()] == ["3e-5", "1e-3", "5e-3"]
        baseline, *points = axis.lines
        assert list(baseline.get_ydata()) == [shown["baseline"][0]] * 2
        for similarity, bars, line in zip(("dot", "cosine"), axis.collections, points, strict=True):
            table = shown[(shown["start"] == start) & (shown["similarity"] == similarity)]
            np.testing.assert_array_equal(line.get_ydata(), table["mean"])
            np.testing.assert_allclose(np.log(line.get_xdata()), np.log(table["lr"]), atol=0.15)
            np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], table[["ci_low", "ci_high"]])
    lost = shown.assign(mean=shown["mean"].mask((shown["lr"] == 5e-3) & (shown["similarity"] == "dot")))
    assert "no finite score: dot, random, 5e-3; dot, identity, 5e-3" in said(result_figures.ablation(lost)[0])


def test_the_oracles_are_drawn_from_the_frozen_encoder(drawn):
    figure, shown = drawn["oracle"]
    (axis,) = figure.axes
    assert row_labels(axis)[0] == "arguana" and row_labels(axis)[-1] == "average"
    for row in shown.itertuples():
        label = f"{row.dataset} {row.head}{'' if row.held_out else ', same queries'}"
        ((x, y),) = (line.get_xydata()[0] for line in axis.lines if line.get_label() == label)
        assert x == row.mean and row_labels(axis)[round(y)] == row.dataset
        span = [[row.baseline, row.mean], [row.ci_low, row.ci_high]]
        assert (spans(axis, y) == span) == row.held_out


def test_lengths_and_hubs_have_the_tables_values(drawn):
    figure, shown = drawn["length_relevance"]
    for axis, (system, table) in zip(figure.axes, shown.groupby("system", sort=False), strict=True):
        assert axis.get_title(loc="left") == system
        for line, rate in zip(axis.lines[-2:], ("relevant_rate", "retrieved_rate"), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), table[rate])
        edges = set(axis.collections[0].get_paths()[0].vertices[:, 1])
        assert {*table["retrieved_low"], *table["retrieved_high"]} <= edges
    figure, shown = drawn["hubness"]
    (axis,) = figure.axes
    assert row_labels(axis) == list(shown["system"]) and shown["anti_hubs"].is_monotonic_decreasing
    assert [bar.get_width() for bar in axis.patches] == list(shown["anti_hubs"])
    rows = [("a", 0, 0.1), ("a", 0, 0.3), ("a", 1, 0.4), ("a", 1, 0.6), ("b", 0, 0.7)]  # collections first, then seeds
    _, shown = result_figures.hubness(pd.DataFrame(rows, columns=["system", "seed", "anti_hubs"]))
    assert shown["anti_hubs"].tolist() == pytest.approx([0.7, 0.35])
    assert shown["anti_hubs_sd"].tolist() == pytest.approx([np.nan, 0.045**0.5], nan_ok=True)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if "system" in table() and name != "case_log"])
def test_one_recipe_of_a_users_own_is_drawn_and_no_row_gives_a_sentence(name):
    draw, table = DRAW[name], TABLES[name]
    figure, shown = draw(table().query("system == 'asym-cos'").assign(system="mine"))
    assert "mine" in set(shown["system"]) and "mine" in said(figure)
    for empty in (pd.DataFrame(), table().iloc[:0]):
        assert said(draw(empty)[0]) == "The table has no rows."


def test_a_saved_figure_is_three_files_and_the_same_bytes_twice(drawn, tmp_path):
    figure, shown = drawn["signature"]
    paths = style.save(figure, shown, tmp_path / "a", "name")
    assert [path.name for path in paths] == ["name.pdf", "name.png", "name.csv"]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "yellow"}):  # a user's settings change nothing
        again = style.save(*training_figures.signature(history()), tmp_path / "b", "name")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    for dpi, png in ((300, paths[1].read_bytes()), (150, figure._repr_png_())):
        assert Image.open(io.BytesIO(png)).size == tuple(int(dpi * inches) for inches in figure.get_size_inches())
    pd.testing.assert_frame_equal(pd.read_csv(paths[2]), shown, rtol=1e-7, check_dtype=False)


@pytest.mark.parametrize("name", ["", "../hubness", "a/b", ".hidden", "two words"])
def test_a_figures_name_is_a_plain_one(name, drawn, tmp_path):
    with pytest.raises(InputError, match="figure name"):
        style.save(*drawn["hubness"], tmp_path, name)
    assert not list(tmp_path.iterdir())
