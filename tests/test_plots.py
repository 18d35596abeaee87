"""Figures: what is drawn is what the table says, in its physical size; a wrong table is refused; saved files are the same twice."""

import io
import itertools

import matplotlib
import matplotlib.text
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from asymlib import losses, magnitude, plots, train
from asymlib.errors import InputError
from asymlib.systems import SYSTEMS

RNG_SEED = 7
SHAPES = {  # system -> (growth of each side's length by epoch 3, cosine at the start and at epoch 3, change of nDCG@10 in %)
    "baseline": (1.0, 0.60, 0.60, 0.0),
    "asym-dot": (2.4, 0.50, 0.54, -57.3),
    "asym-cos": (1.3, 0.50, 0.66, -28.1),
    "asym-cos-identity": (1.02, 0.60, 0.66, 3.9),
    "asym-qnorm": (1.9, 0.50, 0.60, -35.2),
    "asym-dnorm": (1.8, 0.50, 0.61, -33.0),
    "asym-euclidean": (0.7, 0.50, 0.45, -41.7),
    "iso15-pred12": (1.05, 0.60, 0.64, 2.4),
    "respred": (1.0, 0.60, 0.63, 1.1),
    "whitened": (1.0, 0.58, 0.58, 0.9),
    "best-head": (1.03, 0.60, 0.65, 4.2),
}
TRAINED = [name for name, system in SYSTEMS.items() if system.trained]


def history(systems=TRAINED, seeds=5, epochs=3):
    """A synthetic history: validation rows of every statistic an epoch, training rows of the radial shares every 10 steps."""
    random = np.random.default_rng(RNG_SEED)
    rows = []
    for system in systems:
        grown, first, last, _ = SHAPES[system]
        for seed in range(seeds):
            noise = 1 + 0.03 * random.standard_normal()
            for epoch in range(epochs + 1):
                factor = grown ** (epoch / epochs) * noise
                cosine = first + (last - first) * epoch / epochs
                values = {
                    "length.query.mean": factor, "length.document.mean": 1.1 * factor, "std.document": 0.05 * factor,
                    "similarity.positive.cosine": cosine * noise, "similarity.negative.cosine": 0.05 * noise - 0.04,
                    "similarity.positive.dot": 22 * cosine * factor**2, "loss.contrastive": 0.5 * noise / (1 + epoch),
                    "accuracy": min(1.0, 0.9 * noise), "temperature.effective": 0.05 / 1.1 / factor**2,
                }  # fmt: skip
                where = {
                    "system": system,
                    "seed": seed,
                    "step": epoch * 156,
                    "epoch": float(epoch),
                    "split": "validation",
                }
                rows += [where | {"name": name, "value": value} for name, value in values.items()]
            for step in range(0, epochs * 156, 10):
                where = {"system": system, "seed": seed, "step": step, "epoch": step / 156, "split": "train"}
                dot = 0.35 if SYSTEMS[system].similarity == "dot" else 0.2 if "norm" in system else 0.0
                dot = 5e-4 if system == "asym-cos-identity" else dot
                for side in ("query", "document"):
                    if system == "respred" and side == "document":
                        continue
                    across = (system, side) in (("asym-qnorm", "query"), ("asym-dnorm", "document"))
                    share = (0.0 if across else dot) * (1 + 0.15 * random.standard_normal())
                    rows.append(where | {"name": f"gradient.{side}.radial_share", "value": share})
    return pd.DataFrame(rows)[list(magnitude.HISTORY_COLUMNS)]


def attribution():
    rows = history(TRAINED + ["whitened"])
    table = magnitude.attribute_history(rows, since=0)
    table.loc[table["system"] == "asym-euclidean", ["query", "document", "angle", "total"]] = [
        -0.36,
        -0.36,
        -0.1,
        -0.82,
    ]
    table.loc[table["system"] == "whitened", ["query", "document", "angle", "total"]] = np.nan
    return table


DATASETS = {"networkx": 0.61, "sympy": 0.52, "seaborn": 0.66, "beir": 0.71, "papermill": 0.43}


def systems_table(systems=tuple(SHAPES)):
    """systems.csv of one track and one metric."""
    random = np.random.default_rng(RNG_SEED)
    rows = []
    for system in systems:
        change = SHAPES[system][3]
        parts = {name: change + (0 if system == "baseline" else 1.5 * random.standard_normal()) for name in DATASETS}
        for dataset, delta in {**parts, "average": float(np.mean(list(parts.values())))}.items():
            baseline = DATASETS.get(dataset, float(np.mean(list(DATASETS.values()))))
            mean = baseline * (1 + delta / 100)
            rows.append(
                {
                    "track": "zero-shot", "system": system, "dataset": dataset, "metric": "ndcg@10", "mean": mean, "sd": 0.004,
                    "ci_low": mean - 0.008, "ci_high": mean + 0.007, "baseline": baseline, "delta_percent": delta,
                    "p_value": np.nan if system == "baseline" else 0.2 if system == "respred" else 0.004, "seeds": 5,
                    "similarity_train": "cosine", "similarity_eval": "cosine", "encoder": "all-MiniLM-L6-v2", "pairs": 10000,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def similarity_table():
    means = {
        ("dot", "dot"): 0.251, ("dot", "cosine"): 0.312, ("dot", "euclidean"): 0.207, ("cosine", "dot"): 0.377,
        ("cosine", "cosine"): 0.421, ("cosine", "euclidean"): 0.399, ("euclidean", "dot"): 0.288,
        ("euclidean", "euclidean"): 0.341,
    }  # fmt: skip
    return pd.DataFrame(
        [
            (a, b, mean, 0.004 if a == "dot" else np.nan, (mean / 0.586 - 1) * 100, np.nan if a == b else 20 * mean - 6)
            for (a, b), mean in means.items()
        ],
        columns=["similarity_train", "similarity_eval", "mean", "sd", "delta_percent", "p_value"],
    )


def length_table(systems=("baseline", "asym-dot", "asym-cos", "asym-cos-identity")):
    decile = np.arange(1, 11)
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "system": system, "length_decile": decile, "relevant_rate": 0.001 * (1 + 0.02 * decile),
                    "retrieved_rate": 0.01 * (decile / 5.5) ** (2.0 if system == "asym-dot" else 0.1),
                }
            )
            for system in systems
        ]
    )  # fmt: skip
    single = table["system"] == "baseline"
    return table.assign(
        retrieved_low=(0.9 * table["retrieved_rate"]).mask(single),
        retrieved_high=(1.2 * table["retrieved_rate"]).mask(single),
        seeds=np.where(single, 1, 5),
    )


def ablation_table():
    rows = []
    for start in ("random", "identity"):
        for i, similarity in enumerate(("dot", "cosine", "euclidean")):
            for j, lr in enumerate((1e-4, 1e-3, 5e-3, 2e-2)):
                mean = 0.6 - (0.1 if start == "random" else 0.01) * (i != 1) - 0.02 * j * j
                rows.append((similarity, start, lr, mean, mean - 0.012, mean + 0.01, 0.586, 3))
    return pd.DataFrame(rows, columns=["similarity", "start", "lr", "mean", "ci_low", "ci_high", "baseline", "seeds"])


def hubness_table():
    random = np.random.default_rng(RNG_SEED)
    n = len(SHAPES)
    table = {"system": list(SHAPES)}
    for name, scale in (("k_skewness", 4.0), ("anti_hubs", 0.3), ("robin_hood", 0.5)):
        table[name] = scale * (1 + 0.3 * random.random(n))
        table[f"{name}_sd"] = [np.nan] + [0.05 * scale] * (n - 1)
    return pd.DataFrame(table)


def pairs_table(sizes=("smoke", "full")):
    rows = []
    for system in SHAPES:
        for i, size in enumerate(sizes):
            mean = 0.481 * (1 + SHAPES[system][3] * (1 - 0.2 * i) / 100)
            rows.append((system, size, mean, mean - 0.006, mean + 0.007, 0.481))
    return pd.DataFrame(rows, columns=["system", "pairs", "mean", "ci_low", "ci_high", "baseline"])


def parity_table():
    ours = [0.645083, 0.315942, 0.501671, 0.36931]
    published = [0.64508, 0.31594, 0.50167, 0.36867]
    table = pd.DataFrame({"dataset": ["scifact", "nfcorpus", "arguana", "fiqa"], "ours": ours, "published": published})
    return table.assign(difference=table["ours"] - table["published"])


def oracle_table():
    rows = [
        ("zero-shot", "baseline", "system", 0.481), ("zero-shot", "asym-cos-identity", "system", 0.486),
        ("zero-shot", "linear oracle", "oracle", 0.547), ("adapted", "baseline", "system", 0.481),
        ("adapted", "whitened", "system", 0.485), ("adapted", "asym-cos-identity", "system", 0.491),
        ("adapted", "linear oracle", "oracle", 0.547), ("in-domain", "baseline", "system", 0.481),
        ("in-domain", "asym-cos-identity", "system", 0.502), ("in-domain", "linear oracle", "oracle", 0.547),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["track", "system", "kind", "mean"])
    return table.assign(ci_low=table["mean"] - 0.006, ci_high=table["mean"] + 0.007)


CURVES = ["similarity.positive.dot", "length.document.mean", "similarity.positive.cosine", "loss.contrastive"]
FIGURES = {
    "trajectories": lambda: plots.trajectories(history(), CURVES, TRAINED, log={"similarity.positive.dot"}),
    "growth_split": lambda: plots.growth_split(attribution(), since=0),
    "case_log": lambda: plots.case_log(magnitude.case_arithmetic()),
    "gradient_shares": lambda: plots.gradient_shares(history()),
    "systems_forest": lambda: plots.systems_forest(systems_table()),
    "similarity_matrix": lambda: plots.similarity_matrix(similarity_table()),
    "length_relevance": lambda: plots.length_relevance(length_table()),
    "ablation_grid": lambda: plots.ablation_grid(ablation_table()),
    "hubness_bars": lambda: plots.hubness_bars(hubness_table()),
    "smoke_full": lambda: plots.smoke_full(pairs_table()),
    "parity": lambda: plots.parity(parity_table()),
    "oracle_room": lambda: plots.oracle_room(oracle_table()),
}


@pytest.fixture(scope="module")
def drawn():
    """Every figure once: {name: (figure, shown)}."""
    return {name: draw() for name, draw in FIGURES.items()}


def lines(figure, label):
    """The lines of a figure that carry a label, in the order of the axes."""
    return [line for axis in figure.axes for line in axis.lines if line.get_label() == label]


def texts_on(figure, monkeypatch):
    """The texts that a figure draws, each with its box in pixels at 100 dpi."""
    found = {}  # by artist: a figure is drawn twice, first for its layout only
    draw = matplotlib.text.Text.draw

    def recorded(text, renderer, *arguments, **keywords):
        if text.get_visible() and text.get_text().strip():
            found[text] = (text.get_text(), text.get_fontsize(), text.get_window_extent(renderer))
        return draw(text, renderer, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib.text.Text, "draw", recorded)
        plots._rendered(figure, "png", 100)
    return list(found.values())


# --- how the figures look


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_papers_width_and_legible_text_that_does_not_collide(name, drawn, monkeypatch):
    figure, shown = drawn[name]
    assert figure.get_figwidth() in (plots.COLUMN, plots.PAGE) and figure.get_figheight() < 9
    assert len(shown) and list(shown.index) == list(range(len(shown)))
    texts = texts_on(figure, monkeypatch)
    assert len(texts) > 5
    width, height = 100 * figure.get_size_inches()
    for text, size, box in texts:
        assert 6.9 <= size <= 8, text
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, f"{text} leaves the figure"
    for i, (first, _, a) in enumerate(texts):
        for second, _, b in texts[i + 1 :]:
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            along = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 1 or along < 1.5, f"{first!r} and {second!r} overlap"


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_with_an_interval_says_which(name, drawn, monkeypatch):
    text = " ".join(text.replace("\n", " ") for text, _, _ in texts_on(drawn[name][0], monkeypatch))
    says = {
        "trajectories": "band: range of 5 seeds", "gradient_shares": "band: range of 5 seeds",
        "growth_split": "line: ± 1 sd of the total", "systems_forest": "95 % interval (seeds and queries)",
        "ablation_grid": "mean of 3 seeds, bar: 95 % interval", "length_relevance": "band: range of 5 seeds",
        "similarity_matrix": "mean ± sd over seeds", "hubness_bars": "± 1 sd over seeds", "smoke_full": "bar: 95 % interval",
        "oracle_room": "bar: 95 % interval", "case_log": "one run", "parity": "tolerance ± 0.0005",
    }  # fmt: skip
    assert says.get(name, "") in text


def test_every_system_has_its_own_colour_and_marker():
    looks = plots.SYSTEM_STYLE
    assert list(looks) == [*SYSTEMS, "best-head"]
    assert (
        len({look["color"] for look in looks.values()})
        == len({look["marker"] for look in looks.values()})
        == len(looks)
    )
    taken = {look["marker"] for look in looks.values()}
    assert not taken & {look["marker"] for look in plots.NEUTRAL_STYLES}
    assert set(plots.SIMILARITY_STYLE) == set(losses.SIMILARITIES)


# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}  # fmt: skip


def lab(color, vision):
    """CIELAB (D65) of a colour as someone with this vision sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.array(to_xyz) @ seen / (0.95047, 1, 1.08883)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_stay_apart_for_the_colour_blind(vision):
    # CIE76 distances; 2.3 is just noticeable.
    sets = {
        "systems": [look["color"] for look in plots.SYSTEM_STYLE.values()],
        "parts": [look["color"] for look in plots.PART_STYLE.values()],
    }
    for name, colors in sets.items():
        for i, first in enumerate(colors):
            for second in colors[i + 1 :]:
                distance = np.linalg.norm(lab(first, vision) - lab(second, vision))
                assert distance > 15, f"{name}: {first} and {second} are {distance:.1f} apart under {vision}"


def test_the_simulation_sees_the_classical_mistake():
    red, green = "#B03030", "#4B7A00"
    assert np.linalg.norm(lab(red, "normal") - lab(green, "normal")) > 60
    assert np.linalg.norm(lab(red, "deuteranopia") - lab(green, "deuteranopia")) < 15
    assert lab("white", "normal") == pytest.approx([100, 0, 0], abs=0.1)


def test_an_unknown_system_gets_a_grey_of_its_own():
    looks = plots.styles(["asym-dot", "mine", "asym-cos", "theirs", "mine"])
    assert list(looks) == ["asym-dot", "mine", "asym-cos", "theirs"]
    assert looks["asym-dot"] == plots.SYSTEM_STYLE["asym-dot"]
    assert (looks["mine"], looks["theirs"]) == tuple(plots.NEUTRAL_STYLES[:2])


def test_every_statistic_of_a_training_run_has_a_label():
    random = np.random.default_rng(RNG_SEED)
    vectors = random.standard_normal((2, 24, 6)).astype(np.float32)
    data = train.PairVectors.of(vectors[0], vectors[1], np.arange(24))
    recorder = magnitude.Recorder()
    for name in ("asym-dot", "iso15-pred12"):
        system = SYSTEMS[name].with_changes(batch_size=8, epochs=1, recovery_weight=0.1)
        train.train([(system, 0)], data, data, recorder, log_every=1, progress=False)
    logged = set(recorder.frame()["name"])
    assert len(logged) > 30 and not logged - set(plots.LABELS)
    assert not set(plots.LABELS) - logged  # and no label is for something that nothing logs


def test_every_label_fits_above_a_panel_of_four_a_row():
    figure, _ = FIGURES["parity"]()
    for label in plots.LABELS.values():
        text = figure.text(0, 0, label.replace(", ", "\n", 1), fontsize=7)
        assert text.get_window_extent().width / figure.dpi < 1.5, label


def test_a_users_settings_change_nothing_and_are_left_alone(drawn):
    expected = plots._rendered(drawn["parity"][0], "png", 100)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "yellow", "savefig.bbox": "tight"}):
        figure, _ = FIGURES["parity"]()
        assert plots._rendered(figure, "png", 100) == expected
        assert matplotlib.rcParams["font.size"] == 20 and matplotlib.rcParams["axes.facecolor"] == "yellow"


def test_a_notebook_shows_a_figure_at_its_physical_size(drawn):
    figure, _ = drawn["parity"]
    image = Image.open(io.BytesIO(figure._repr_png_()))
    assert image.size == tuple(int(150 * inches) for inches in figure.get_size_inches())


# --- what the figures draw


def test_trajectories_draw_the_mean_and_the_range_of_the_seeds(drawn):
    figure, shown = drawn["trajectories"]
    assert [axis.get_title(loc="left").split("\n")[0] for axis in figure.axes] == [
        "positive dot product", "document length", "positive cosine", "contrastive loss",
    ]  # fmt: skip
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear", "linear"]
    rows = history()
    for axis, name in zip(figure.axes, CURVES, strict=True):
        for system in TRAINED:
            raw = rows[(rows["system"] == system) & (rows["name"] == name) & (rows["split"] == "validation")]
            raw = raw.pivot(index="epoch", columns="seed", values="value")
            table = shown[(shown["system"] == system) & (shown["name"] == name)]
            (line,) = [line for line in axis.lines if line.get_label() == system]
            np.testing.assert_allclose(line.get_ydata(), raw.mean(axis=1))
            np.testing.assert_array_equal(line.get_ydata(), table["mean"])
            np.testing.assert_array_equal(table["low"], raw.min(axis=1))
            np.testing.assert_array_equal(table["high"], raw.max(axis=1))
            assert line.get_color() == plots.SYSTEM_STYLE[system]["color"]
    assert set(shown["seeds"]) == {5} and set(shown["band"]) == {"range of seeds"}


def test_the_t_interval_is_the_textbooks():
    rows = history(["asym-dot"], seeds=3)
    rows = rows[(rows["name"] == "accuracy") & (rows["epoch"] == 1)].assign(value=[1.0, 2.0, 3.0])
    _, shown = plots.trajectories(rows, ["accuracy"], ["asym-dot"], band="t")
    # mean 2, sd 1, t(0.975, 2) = 4.302653: 2 -+ 4.302653 / sqrt(3)
    np.testing.assert_allclose(shown[["mean", "low", "high"]].iloc[0], [2, 2 - 2.484138, 2 + 2.484138], atol=1e-6)
    _, single = plots.trajectories(rows[rows["seed"] == 0], ["accuracy"], ["asym-dot"], band="t")
    assert single["low"].isna().all() and list(single["seeds"]) == [1]


def test_means_that_come_without_seeds_have_no_band(monkeypatch):
    means = history(["asym-dot"], seeds=1)
    figure, shown = plots.trajectories(means, CURVES[:2], ["asym-dot"], band="none")
    assert (
        shown[["low", "high"]].isna().all(axis=None) and shown["seeds"].isna().all() and set(shown["band"]) == {"none"}
    )
    text = " ".join(text for text, _, _ in texts_on(figure, monkeypatch))
    assert "line: mean over seeds; validation pairs" in text and "band" not in text


def test_a_diverged_seed_is_left_out_of_the_mean_and_of_the_count(monkeypatch):
    rows = history(["asym-dot"], seeds=3)
    rows.loc[(rows["seed"] == 2) & (rows["epoch"] == 3) & (rows["split"] == "validation"), "value"] = np.inf
    figure, shown = plots.trajectories(rows, ["accuracy"], ["asym-dot"])
    assert list(shown["seeds"]) == [3, 3, 3, 2] and np.isfinite(shown["mean"]).all()
    assert any("range of 2 to 3 seeds" in text for text, _, _ in texts_on(figure, monkeypatch))


def test_a_system_without_a_statistic_is_left_out_of_its_panel_only():
    names = ["gradient.query.radial_share", "gradient.document.radial_share"]
    figure, shown = plots.trajectories(history(), names, ["asym-dot", "respred"], split="train")
    assert [len(lines(figure, system)) for system in ("asym-dot", "respred")] == [2, 1]
    assert len(shown[shown["system"] == "respred"]["name"].unique()) == 1


def test_logarithmic_axes_are_chosen_or_demanded():
    rows = history(["asym-dot"])
    rows.loc[rows["name"] == "similarity.negative.cosine", "value"] -= 1
    names = ["similarity.positive.dot", "similarity.negative.cosine"]
    figure, _ = plots.trajectories(rows, names, ["asym-dot"], log=True)
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear"]
    with pytest.raises(InputError, match=r"similarity\.negative\.cosine falls to -0\.9"):
        plots.trajectories(rows, names, ["asym-dot"], log={"similarity.negative.cosine"})


def test_gradient_shares_draw_both_sides_over_the_steps(drawn):
    figure, shown = drawn["gradient_shares"]
    for line, side in zip(lines(figure, "asym-dot"), ("query", "document"), strict=True):
        table = shown[(shown["system"] == "asym-dot") & (shown["name"] == f"gradient.{side}.radial_share")]
        np.testing.assert_array_equal(line.get_xdata(), table["step"])
        np.testing.assert_array_equal(line.get_ydata(), table["mean"])
    assert set(shown["split"]) == {"train"}
    rows = history(["asym-dot"])
    rows.loc[rows["name"] == "gradient.query.radial_share", "value"] /= 20
    query, document = plots.gradient_shares(rows)[0].axes
    assert query.get_ylim()[1] < 0.04 < 0.4 < document.get_ylim()[1]  # each panel has its own scale


def test_a_tangential_system_is_named_and_not_drawn(drawn, monkeypatch):
    figure, shown = drawn["gradient_shares"]
    said = " ".join(" ".join(text for text, _, _ in texts_on(figure, monkeypatch)).split())
    assert "exactly tangential: asym-cos, asym-euclidean, iso15-pred12, respred;" in said
    assert "tangential but for a share below 0.001: asym-cos-identity" in said
    named = ["asym-cos", "asym-euclidean", "iso15-pred12", "respred", "asym-cos-identity"]
    assert not any(lines(figure, system) for system in named) and set(named) < set(shown["system"])
    # on one side only: drawn, on both panels, and so is a share that rises once
    assert [len(lines(figure, system)) for system in ("asym-qnorm", "asym-dnorm")] == [2, 2]
    rows = history(["asym-cos"])
    rows.loc[(rows["split"] == "train") & (rows["step"] == 50) & (rows["seed"] == 3), "value"] = 2e-3
    assert len(lines(plots.gradient_shares(rows)[0], "asym-cos")) == 2


def test_only_tangential_systems_leave_their_names(monkeypatch):
    figure, _ = plots.gradient_shares(history(), ["respred", "asym-cos"])
    assert "training batches; exactly tangential: respred, asym-cos" in [t for t, _, _ in texts_on(figure, monkeypatch)]
    assert not any(axis.lines for axis in figure.axes)


def bars(axis, part):
    """(y, left end, right end) of the bars of one part."""
    found = [bar for container in axis.containers if container.get_label() == part for bar in container]
    return {round(bar.get_y() + bar.get_height() / 2): (bar.get_x(), bar.get_x() + bar.get_width()) for bar in found}


def test_growth_is_stacked_so_that_the_bars_end_at_the_total(drawn):
    figure, shown = drawn["growth_split"]
    (axis,) = figure.axes
    assert axis.get_xlabel().endswith("since the start (natural log)")
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert rows[:2] == ["asym-dot", "asym-cos"] and rows[-1] == "whitened"  # the order of the systems, not the table's
    table = shown.pivot(index="system", columns="part", values="mean")
    y = rows.index("asym-dot")
    query, document, angle = (bars(axis, part)[y] for part in ("query", "document", "angle"))
    assert query[0] == 0 and query[1] == document[0] and document[1] == angle[0]
    assert angle[1] == pytest.approx(table.loc["asym-dot", "total"])
    assert query[1] == pytest.approx(np.log(2.4)) and document[1] - document[0] == pytest.approx(np.log(2.4))
    fallen = rows.index("asym-euclidean")  # all parts negative: stacked to the left of zero
    assert bars(axis, "query")[fallen] == pytest.approx((0, -0.36)) and bars(axis, "angle")[fallen][1] == pytest.approx(
        -0.82
    )
    assert rows.index("whitened") not in bars(axis, "query")
    totals = {round(line.get_ydata()[0]): line.get_xdata()[0] for line in lines(figure, "total")}
    assert totals[y] == pytest.approx(table.loc["asym-dot", "total"]) and rows.index("whitened") not in totals


def test_a_part_below_zero_goes_left_and_the_others_right():
    rows = [("asym-cos", seed, -0.2, 0.5, 0.4, 0.7) for seed in (0, 1)]
    table = pd.DataFrame(rows, columns=["system", "seed", "query", "document", "angle", "total"])
    figure, shown = plots.growth_split(table)
    (axis,) = figure.axes
    assert axis.get_xlabel().endswith("since epoch 1 (natural log)")
    assert [bars(axis, part)[0] for part in ("query", "document", "angle")] == [
        pytest.approx((0, -0.2)), pytest.approx((0, 0.5)), pytest.approx((0.5, 0.9)),
    ]  # fmt: skip
    assert list(shown["seeds"]) == [2] * 4 and list(shown["sd"]) == [0] * 4


def test_growth_of_almost_nothing_is_not_magnified_and_no_growth_at_all_is_said(monkeypatch):
    columns = ["system", "seed", "query", "document", "angle", "total"]
    rows = [("asym-dot", 0, *[np.nan] * 4), ("asym-cos", 0, 1e-6, 2e-6, -1e-6, 2e-6)]
    for table in (pd.DataFrame(rows, columns=columns), pd.DataFrame(rows[:1], columns=columns)):
        figure, _ = plots.growth_split(table)
        low, high = figure.axes[0].get_xlim()
        assert low <= 0 < 0.4 < high
        assert "logit ≤ 0: no log" in [text for text, _, _ in texts_on(figure, monkeypatch)]


def test_the_cases_log_shows_that_lengths_carry_the_growth(drawn, monkeypatch):
    figure, shown = drawn["case_log"]
    last = shown[shown["epoch"] == 3].set_index("part")["mean"]
    assert np.exp(last["total"]) == pytest.approx(163.60 / 32.25)
    assert np.exp(last["query"]) == pytest.approx(0.146 / 0.067) and np.exp(last["document"]) == pytest.approx(
        0.129 / 0.059
    )
    assert bars(figure.axes[0], "angle")[2] == pytest.approx((last["query"] + last["document"], last["total"]))
    texts = [text for text, _, _ in texts_on(figure, monkeypatch)]
    assert "×5.07" in texts and "epoch 3\n(logit 164, cos 0.57)" in texts


def test_the_forest_stands_at_the_means_with_their_intervals(drawn, monkeypatch):
    figure, shown = drawn["systems_forest"]
    table = shown[shown["dataset"] == "average"].set_index("system")
    assert list(table["mean"]) == sorted(table["mean"], reverse=True)
    near = [
        system for system in table.index if abs(table.loc[system, "mean"] / table.loc[system, "baseline"] - 1) < 0.1
    ]
    for y, system in enumerate(table.index):
        dots = lines(figure, system)
        assert len(dots) == (2 if system in near else 1)
        for dot in dots:
            assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (table.loc[system, "mean"], y)
        spans = [tuple(line.get_xdata()) for line in figure.axes[0].lines if list(line.get_ydata()) == [y, y]]
        assert (table.loc[system, "ci_low"], table.loc[system, "ci_high"]) in spans
    assert len(lines(figure, "off scale")) == len(table) - len(near) > 0
    left = figure.axes[0]
    for dataset in DATASETS:  # its own change, on the scale of the average's baseline
        rows = shown[(shown["dataset"] == dataset) & (shown["system"] == "asym-dot")]
        expected = table["baseline"].iloc[0] * (1 + rows["delta_percent"].iloc[0] / 100)
        assert any(line.get_xdata()[0] == pytest.approx(expected) for line in left.lines if line.get_label() == dataset)
    texts = [text for text, _, _ in texts_on(figure, monkeypatch)]
    assert (
        f"{table.loc['asym-dot', 'mean']:.3f}  −57.7 % *" in texts and f"{table.loc['baseline', 'mean']:.3f}" in texts
    )
    assert not any("*" in text for text in texts if text.startswith(f"{table.loc['respred', 'mean']:.3f}"))  # p = 0.2
    upper = left.child_axes[0]
    low, high = left.get_xlim()
    np.testing.assert_allclose(upper.get_xlim(), [(low / 0.586 - 1) * 100, (high / 0.586 - 1) * 100])


def test_the_forest_needs_no_second_panel_when_all_systems_are_near():
    near = tuple(system for system, shape in SHAPES.items() if abs(shape[3]) < 10)
    figure, _ = plots.systems_forest(systems_table(near))
    assert figure.get_figwidth() == plots.COLUMN and len(figure.axes) == 1


def test_the_matrix_writes_each_cell_where_it_belongs(drawn):
    figure, shown = drawn["similarity_matrix"]
    (axis,) = figure.axes
    columns, rows = (
        [label.get_text() for label in labels] for labels in (axis.get_xticklabels(), axis.get_yticklabels())
    )
    assert columns == rows == ["dot", "cosine", "euclidean"]
    written = {tuple(text.get_position()): text.get_text() for text in axis.texts}
    assert len(written) == len(shown) == 8
    for row in shown.itertuples():
        at = columns.index(row.similarity_eval), rows.index(row.similarity_train)
        spread = " ± 0.004" if row.similarity_train == "dot" else ""
        star = " *" if (row.similarity_train, row.similarity_eval) in STARRED else ""
        assert written[at] == f"{row.mean:.3f}{spread}{star}\n{row.delta_percent:+.1f} %".replace("-", "−")
    assert (columns.index("cosine"), rows.index("euclidean")) not in written  # not run


STARRED = {("dot", "euclidean"), ("euclidean", "dot")}  # 20 * mean - 6 < 0.05, and not of its own evaluation


def test_a_matrix_without_tests_or_seeds_says_nothing_of_them(monkeypatch):
    table = similarity_table()
    with_p, _ = plots.similarity_matrix(table)
    said = [text for text, _, _ in texts_on(with_p, monkeypatch)]
    assert any("*: p < 0.05 (Holm) against" in " ".join(text.split()) for text in said)
    figure, shown = plots.similarity_matrix(table.drop(columns="p_value").assign(sd=np.nan))
    said = [text for text, _, _ in texts_on(figure, monkeypatch)]
    assert not any("*" in text or "±" in text for text in said) and "p_value" not in shown.columns


def test_the_matrix_frames_what_ranks_as_in_training(monkeypatch):
    names = list(losses.SIMILARITIES)
    cells = [(a, b, 0.3, 0.01, -40.0) for a in names for b in names]
    columns = ["similarity_train", "similarity_eval", "mean", "sd", "delta_percent"]
    figure, _ = plots.similarity_matrix(pd.DataFrame(cells, columns=columns))
    framed = {
        (names[round(patch.get_y() + 0.46)], names[round(patch.get_x() + 0.46)])
        for patch in figure.axes[0].patches
        if not patch.get_fill() and not patch.get_hatch()
    }
    # the same by the formulas: rank the same documents for the same queries with each pair of similarities
    q, d = torch.from_numpy(np.random.default_rng(RNG_SEED).standard_normal((2, 40, 5)))
    order = {name: losses.score_matrix(q, d, name).argsort(dim=1).tolist() for name in names}
    assert framed == {(a, b) for a in names for b in names if order[a] == order[b]}
    assert ("qnorm", "dot") in framed and ("dnorm", "cosine") in framed and len(framed) == 9
    texts = texts_on(figure, monkeypatch)
    assert "same ranking as in training" in [text for text, _, _ in texts]
    boxes = sorted((box for text, _, box in texts if "±" in text and "\n−" in text), key=lambda box: (box.y0, box.x0))
    assert len(boxes) == 25 and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes) if a.y0 == b.y0)


def test_length_relevance_is_relative_to_the_average_document(drawn):
    figure, shown = drawn["length_relevance"]
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "baseline",
        "asym-dot",
        "asym-cos",
        "asym-cos-identity",
    ]
    rows = length_table()
    for axis, system in zip(figure.axes, shown["system"].unique(), strict=True):
        raw, table = rows[rows["system"] == system], shown[shown["system"] == system]
        for label in ("retrieved", "relevant"):
            (line,) = [line for line in axis.lines if line.get_label() == label]
            np.testing.assert_allclose(line.get_ydata(), raw[f"{label}_rate"] / raw[f"{label}_rate"].mean())
            np.testing.assert_array_equal(line.get_ydata(), table[f"{label}_relative"])
    other, _ = plots.length_relevance(length_table().rename(columns={"length_decile": "length"}))
    assert other.axes[0].get_xlabel() == "document length $|d|$"


def test_the_band_of_length_relevance_is_on_the_scale_of_its_line(drawn, monkeypatch):
    figure, shown = drawn["length_relevance"]
    for axis, system in zip(figure.axes, shown["system"].unique(), strict=True):
        (line,) = [line for line in axis.lines if line.get_label() == "retrieved"]
        (band,) = axis.collections
        if system == "baseline":  # one run: no range
            assert not len(band.get_paths())
            continue
        corners = band.get_paths()[0].vertices
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            at = corners[corners[:, 0] == x, 1]
            assert (at.min(), at.max()) == (pytest.approx(0.9 * y), pytest.approx(1.2 * y))
    bare = length_table().drop(columns=["retrieved_low", "retrieved_high"])
    figure, shown = plots.length_relevance(bare)
    assert not any(axis.collections for axis in figure.axes) and "seeds" not in shown.columns
    assert not any("band" in text for text, _, _ in texts_on(figure, monkeypatch))


def test_ablation_lines_are_the_means_and_intervals_of_their_panel(drawn):
    figure, shown = drawn["ablation_grid"]
    for axis, start in zip(figure.axes, ("random", "identity"), strict=True):
        assert axis.get_title(loc="left") == f"{start} start" and axis.get_xscale() == "log"
        for collection, similarity in zip(axis.collections, ("dot", "cosine", "euclidean"), strict=True):
            table = shown[(shown["start"] == start) & (shown["similarity"] == similarity)]
            (line,) = [line for line in axis.lines if line.get_label() == similarity]
            np.testing.assert_array_equal(line.get_ydata(), table["mean"])
            np.testing.assert_allclose(np.log(line.get_xdata()), np.log(table["lr"]), atol=0.15)
            spans = [segment[:, 1] for segment in collection.get_segments()]
            np.testing.assert_array_equal(spans, table[["ci_low", "ci_high"]])
        assert any(list(line.get_ydata()) == [0.586, 0.586] for line in axis.lines)


def test_the_ablations_say_how_many_seeds_if_the_table_does(monkeypatch):
    table = ablation_table()
    said = {
        "mean of 3 to 5 seeds, bar: 95 % interval": table.assign(seeds=[3] * 12 + [5] * 12),
        "mean of 1 seed, bar: 95 % interval": table.assign(seeds=1),
        "bar: 95 % interval": table.drop(columns="seeds"),
    }
    for note, rows in said.items():
        assert note in [text for text, _, _ in texts_on(plots.ablation_grid(rows)[0], monkeypatch)]


def test_hubness_bars_have_the_tables_lengths(drawn):
    figure, shown = drawn["hubness_bars"]
    for axis, measure in zip(figure.axes, ("k_skewness", "anti_hubs", "robin_hood"), strict=True):
        table = shown[shown["measure"] == measure]
        assert [container[0].get_width() for container in axis.containers] == list(table["mean"])
        assert [container.get_label() for container in axis.containers] == list(table["system"]) == list(SHAPES)
        row = table.iloc[1]
        assert [row["mean"] - row["sd"], row["mean"] + row["sd"]] in [list(line.get_xdata()) for line in axis.lines]


@pytest.mark.parametrize("sizes", [("smoke", "full"), (10_000, 87_599), ("87599", "10000")])
def test_smoke_and_full_stand_one_below_the_other(sizes, monkeypatch):
    small, large = sizes if sizes[0] != "87599" else sizes[::-1]
    figure, shown = plots.smoke_full(pairs_table(sizes).sample(frac=1, random_state=0))
    for system in ("baseline", "asym-dot"):
        for size, below in ((small, False), (large, True)):
            row = shown[(shown["system"] == system) & (shown["pairs"] == size)].iloc[0]
            dot = lines(figure, f"{system} {size}")[0]
            assert dot.get_xdata()[0] == row["mean"]
            assert (
                dot.get_ydata()[0] % 1 < 0.5
            ) == below  # the axis points down: +0.18 for the larger, -0.18 for the smaller
            assert (dot.get_markerfacecolor() == "white") == (not below)
    wanted = f"{small:,} pairs" if isinstance(small, int) else f"{small} pairs"
    assert wanted in [text for text, _, _ in texts_on(figure, monkeypatch)]


def test_parity_marks_what_is_beyond_the_tolerance(drawn):
    figure, shown = drawn["parity"]
    for y, row in enumerate(shown.itertuples()):
        (dot,) = lines(figure, row.dataset)
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (row.difference, y)
        assert (dot.get_color() == plots.VERMILLION) == (row.dataset == "fiqa")


def test_the_oracles_room_runs_from_the_best_system_of_its_track(drawn):
    figure, shown = drawn["oracle_room"]
    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:5] == ["zero-shot", "linear oracle", "asym-cos-identity", "baseline", "adapted"]
    room = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches]
    assert room == [pytest.approx((best, 0.547)) for best in (0.486, 0.491, 0.502)]
    for row in shown.itertuples():
        (dot,) = lines(figure, f"{row.track} {row.system}")
        assert dot.get_xdata()[0] == row.mean
        assert (dot.get_markerfacecolor() == "white") == (row.kind == "oracle")


# --- what the figures refuse

TABLES = {
    "trajectories": (history, lambda table: plots.trajectories(table, CURVES, ["asym-dot"])),
    "gradient_shares": (history, plots.gradient_shares),
    "growth_split": (attribution, plots.growth_split),
    "case_log": (magnitude.case_arithmetic, plots.case_log),
    "systems_forest": (systems_table, plots.systems_forest),
    "similarity_matrix": (similarity_table, plots.similarity_matrix),
    "length_relevance": (length_table, plots.length_relevance),
    "ablation_grid": (ablation_table, plots.ablation_grid),
    "hubness_bars": (hubness_table, plots.hubness_bars),
    "smoke_full": (pairs_table, plots.smoke_full),
    "parity": (parity_table, plots.parity),
    "oracle_room": (oracle_table, plots.oracle_room),
}
UNUSED = {  # columns of the real tables that a figure does not show
    "growth_split": {"length_share"},
    "similarity_matrix": {"p_value"},
    "ablation_grid": {"seeds"},
    "case_log": {"query_length", "document_length", "length_share"},
    "systems_forest": {"sd", "seeds", "similarity_train", "similarity_eval", "encoder", "pairs"},
}


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_column_is_refused_by_name(name):
    build, draw = TABLES[name]
    table = build()
    for column in set(table.columns) - UNUSED.get(name, set()):
        with pytest.raises(InputError, match=rf"{name}: column {column} missing; expected .*{column}"):
            draw(table.drop(columns=column))


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_words_for_numbers_and_two_rows_for_one_point_are_refused(name):
    build, draw = TABLES[name]
    table = build()
    with pytest.raises(InputError, match=f"{name}: the table has no rows"):
        draw(table.iloc[:0])
    with pytest.raises(InputError, match=f"{name}: more than one row for "):
        draw(pd.concat([table, table.iloc[:1]]))
    number = next(c for c in ("value", "mean", "total", "ours", "k_skewness", "retrieved_rate") if c in table.columns)
    with pytest.raises(InputError, match=rf"{name}: column {number} holds \w+ values, expected numbers"):
        draw(table.assign(**{number: "0.5"}))


@pytest.mark.parametrize("name", ["systems_forest", "similarity_matrix", "ablation_grid", "smoke_full", "oracle_room"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mean_that_is_not_finite_is_refused_by_its_row(name, value):
    build, draw = TABLES[name]
    table = build()
    table.loc[table.index[3], "mean"] = value
    with pytest.raises(InputError, match=f"{name}: column mean is empty or infinite in row 3"):
        draw(table)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.trajectories(history(), CURVES, ["asym-dott"]), "system: asym-dott not in the history; it has asym-cos,"),
        (lambda: plots.trajectories(history(), ["std"], ["asym-dot"]), "statistic: std not in the history; it has accuracy,"),
        (lambda: plots.trajectories(history(), [], ["asym-dot"]), "statistic: none asked for"),
        (lambda: plots.trajectories(history(), CURVES, ["asym-dot"], split="test"), "no rows with split 'test', found"),
        (lambda: plots.trajectories(history(), CURVES, ["asym-dot"], band="sd"), "band 'sd': expected 'range'"),
        (lambda: plots.gradient_shares(history(), ["whitened"]), "whitened not in the history"),
        (lambda: plots.systems_forest(pd.concat([systems_table(), systems_table().assign(track="adapted")])),
         "column track holds zero-shot, adapted; filter"),
        (lambda: plots.systems_forest(systems_table().assign(metric=["mrr@10"] + ["ndcg@10"] * 65)),
         "column metric holds mrr@10, ndcg@10; filter"),
        (lambda: plots.systems_forest(systems_table().query("dataset != 'average'")), "no row with dataset 'average'"),
        (lambda: plots.systems_forest(systems_table().assign(baseline=0.0)), "column baseline holds 0, expected a number above 0"),
        (lambda: plots.ablation_grid(ablation_table().assign(lr=0.0).drop_duplicates(["start", "similarity"])), "lr falls to 0"),
        (lambda: plots.smoke_full(pairs_table(("smoke", "large"))), "column pairs holds smoke, large; expected 'smoke' and 'full'"),
        (lambda: plots.oracle_room(oracle_table().assign(kind="bound")), "column kind holds bound; expected 'system' or 'oracle'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_with_what_was_expected(draw, message):
    with pytest.raises(InputError, match=message):
        draw()


# --- saving


def test_a_saved_figure_is_three_files_and_the_same_bytes_twice(drawn, tmp_path):
    for name in ("trajectories", "oracle_room"):
        figure, shown = drawn[name]
        places = [axis.get_position().bounds for axis in figure.axes]
        paths = plots.save(figure, shown, tmp_path / "a", name)
        assert [axis.get_position().bounds for axis in figure.axes] == places  # 300 dpi lays out as 150 dpi did
        assert [path.name for path in paths] == [f"{name}.pdf", f"{name}.png", f"{name}.csv"]
        again = plots.save(figure, shown, tmp_path / "b", name)
        anew = plots.save(*FIGURES[name](), tmp_path / "c", name)
        for first, second, third in zip(paths, again, anew, strict=True):
            assert first.read_bytes() == second.read_bytes() == third.read_bytes(), first.name
        assert b"CreationDate" not in paths[0].read_bytes()
        with Image.open(paths[1]) as image:
            assert image.size == tuple(int(300 * inches) for inches in figure.get_size_inches())
        read = pd.read_csv(paths[2])
        assert list(read.columns) == list(shown.columns)
        np.testing.assert_allclose(read["mean"], shown["mean"], rtol=1e-7)
    assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [
        ".csv",
        ".csv",
        ".pdf",
        ".pdf",
        ".png",
        ".png",
    ]


def test_an_interrupted_save_leaves_what_was_there(drawn, tmp_path, monkeypatch):
    figure, shown = drawn["parity"]
    (tmp_path / "parity.png").write_bytes(b"before")

    def interrupted(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plots.save(figure, shown, tmp_path, "parity")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["parity.png"]
    assert (tmp_path / "parity.png").read_bytes() == b"before"


@pytest.mark.parametrize("name", ["", "../parity", "a/b", ".hidden", "two words"])
def test_a_figures_name_is_a_plain_one(name, drawn, tmp_path):
    with pytest.raises(InputError, match="expected letters, digits"):
        plots.save(*drawn["parity"], tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_figure_is_not_saved_without_what_it_shows(drawn, tmp_path):
    figure, shown = drawn["parity"]
    with pytest.raises(InputError, match="the table that it shows is empty"):
        plots.save(figure, shown.iloc[:0], tmp_path, "parity")
