"""Figures of results: systems against the frozen encoder, similarities, learning rates, oracles, lengths and hubs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from asymlib.evaluate import METRIC
from asymlib.report import style
from asymlib.report.claims import SIGNIFICANT, p_text, percent
from asymlib.report.style import BASELINE_LINE, BLACK, INK, PALE

NDCG = METRIC.replace("ndcg", "nDCG")
NEAR = 10  # percent of the baseline: systems that fall further stand in a panel of their own
FROZEN = {"label": "frozen encoder", **BASELINE_LINE}
NO_SCORE = "no finite score"


def _averages(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of METRIC averaged over collections, with the paired interval of the difference in percent of the baseline."""
    rows = table[(table["dataset"] == "average") & (table["metric"] == METRIC)]
    in_percent = {f"{end}_percent": 100 * rows[f"difference_{end}"] / rows["baseline"] for end in ("low", "high")}
    columns = ["track", "system", "pairs", "mean", "baseline", "delta_percent", *in_percent, "p_value", "p_raw"]
    return rows.assign(**in_percent)[columns]


def _blocks(rows: pd.DataFrame, by: pd.Series, titles: Sequence[str], width: float) -> tuple:
    """Rows by the change of their system, highest first, panels for them, where each system stands, and a note on the scales.

    Systems that fall by more than NEAR % somewhere are a second block of panels, one a title, of a scale of its own.
    """
    order = by.sort_values(ascending=False, kind="stable").index
    rows = rows.sort_values("system", key=lambda names: names.map(order.get_loc), kind="stable")
    far = set(rows["system"][~(rows["delta_percent"] >= -NEAR)])
    blocks = [block for block in ([n for n in order if n not in far], [n for n in order if n in far]) if block]
    figure = style.Figure(width, sum(map(len, blocks)) * style.ROW + 0.33 * len(blocks) + 0.75)
    heights = [len(block) + 0.6 for block in blocks]
    grid = figure.subplots(len(blocks), len(titles), sharex="row", squeeze=False, height_ratios=heights)
    for block, line in zip(blocks, grid, strict=True):
        for axis in line:
            axis.axvline(0, zorder=1, **BASELINE_LINE)
            axis.update_datalim([(-0.5, 0), (0.5, 0)])  # a change of nothing is not magnified
            axis.autoscale_view()
            style.text_rows(axis, block if axis is line[0] else [""] * len(block))
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    grid[-1][len(titles) // 2].set_xlabel("change against the frozen encoder (%)")
    place = {name: (line, y) for block, line in zip(blocks, grid, strict=True) for y, name in enumerate(block)}
    return rows, figure, place, "; upper and lower panels differ in scale" * (len(blocks) > 1)


@style.drawn
def systems_forest(table: pd.DataFrame) -> style.Drawn:
    """Difference of each system to the frozen encoder in % of it with its paired 95 % interval, highest first.

    table: rows of systems.csv, of which METRIC and dataset 'average' are drawn, one column of panels a track. Systems more
    than NEAR % below the frozen encoder stand in a lower panel of smaller scale. Right margin: mean (of one track), change, p.
    A filled mark and a star: p < 0.05; 'tied': not.
    shown: track, system, mean, baseline, delta_percent, low_percent, high_percent, p_value, p_raw.
    """
    rows = _averages(table)
    tracks = list(dict.fromkeys(rows["track"]))
    changes = rows.groupby("system", sort=False)["delta_percent"].mean()
    rows, figure, place, magnified = _blocks(rows, changes, tracks, style.PAGE)
    for row in rows.itertuples():
        axes, y = place[row.system]
        axis = axes[tracks.index(row.track)]
        if np.isnan(row.delta_percent):
            style.inside(axis, y, NO_SCORE)
            continue
        axis.plot([row.low_percent, row.high_percent], [y, y], color=INK, solid_capstyle="butt")
        tied, fill = ("tied", "white") if row.p_value >= SIGNIFICANT else ("*", INK)
        marker = "s" if np.isnan(row.p_value) else "o"
        axis.plot(row.delta_percent, y, marker, color=INK, markerfacecolor=fill, label=row.system)
        change = [percent(row.delta_percent), p_text(row.p_value, row.p_raw), tied] * (row.p_value >= 0)
        if len(tracks) == 1:
            style.beside(axis, y, *zip([f"{row.mean:.3f}", *change], (26, 64, 112, 130), strict=False))
        else:
            style.beside(axis, y, *zip(change[::2], (32, 50), strict=False))
    handles = [
        Line2D([], [], color=INK, marker="o", label=f"* p < {SIGNIFICANT:g}"),
        Line2D([], [], color=INK, marker="o", markerfacecolor="white", label="tied with the frozen encoder"),
    ]
    note = "bar: paired 95 % interval of the difference over seeds and queries, one comparison at a time; p: paired "
    note += "randomisation test, Holm-corrected within a track"
    style.legend(figure, [*handles, Line2D([], [], **FROZEN)], note + magnified)
    return figure, rows.drop(columns="pairs")


@style.drawn
def few_many(table: pd.DataFrame) -> style.Drawn:
    """Few training pairs against many: the change in % of the frozen encoder, joined by a line a system, highest first.

    table: rows of two systems.csv of one track, `pairs` set to the number of training pairs of the study that they are from;
    the baseline is left out. Faint bars: paired 95 % intervals. shown: as of systems_forest, and pairs.
    """
    rows = _averages(table[table["system"] != "baseline"])
    sizes = sorted(rows["pairs"].unique())
    changes = rows.sort_values("pairs").groupby("system", sort=False)["delta_percent"].last()
    rows, figure, place, magnified = _blocks(rows, changes, [""], style.COLUMN)
    tones = dict(zip(sizes, [PALE, INK] if len(sizes) > 1 else [INK], strict=True))
    for system, ((axis,), y) in place.items():
        part = rows[rows["system"] == system]
        axis.plot(part["delta_percent"], [y] * len(part), color=PALE, linewidth=1.6, zorder=2)
        for row in part.itertuples():
            aside = y + (0.2 if row.pairs == sizes[-1] else -0.2)
            axis.plot([row.low_percent, row.high_percent], [aside] * 2, color=tones[row.pairs], linewidth=0.6)
            axis.plot(row.delta_percent, y, "o", color=tones[row.pairs], label=f"{system} {row.pairs}", zorder=3)
        if part["delta_percent"].isna().any():
            style.inside(axis, y, NO_SCORE)
    handles = [Line2D([], [], color=tone, marker="o", label=f"{size:,} pairs") for size, tone in tones.items()]
    style.legend(figure, [*handles, Line2D([], [], **FROZEN)], "thin bars: paired 95 % intervals" + magnified)
    return figure, rows


@style.drawn
def similarity_matrix(table: pd.DataFrame) -> style.Drawn:
    """Similarity in training x similarity in evaluation: nDCG@10, its sd over seeds and its change against the baseline.

    table: columns similarity_train, similarity_eval, mean, sd, delta_percent, p_value (Holm-corrected, of the cell against
    the system's own evaluation), own (the evaluation ranks as the training did: framed). Colour: the mean. shown: the same.
    """
    train, evaluated = (list(dict.fromkeys(table[f"similarity_{of}"])) for of in ("train", "eval"))
    figure = style.Figure(style.COLUMN if len(evaluated) <= 3 else style.PAGE, 0.34 * len(train) + 1.1)
    axis = figure.subplots()
    means = table.pivot(index="similarity_train", columns="similarity_eval", values="mean").loc[train, evaluated]
    light = ListedColormap(colormaps["cividis"](np.linspace(0.5, 1, 256)))  # black text stays legible on all of it
    seaborn.heatmap(means, cmap=light, cbar=False, linewidths=0.8, ax=axis)
    for row in table.itertuples():
        x, y = evaluated.index(row.similarity_eval), train.index(row.similarity_train)
        spread, star = f" ± {row.sd:.3f}" * (row.sd >= 0), " *" * (row.p_value < SIGNIFICANT)
        text = f"{row.mean:.3f}{spread}{star}\n{percent(row.delta_percent)}"
        axis.text(x + 0.5, y + 0.5, NO_SCORE if np.isnan(row.mean) else text, ha="center", va="center")
        if row.own:
            axis.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, fill=False, linewidth=1.3, zorder=3))
    axis.set(xlabel="similarity in evaluation", ylabel="similarity in training")
    axis.tick_params(length=0, labelrotation=0)
    axis.grid(False)
    note = f"{NDCG}, mean ± sd over seeds (yellower: higher), and change against the frozen encoder; "
    note += f"*: p < {SIGNIFICANT:g} (Holm) against the system's own evaluation"
    style.legend(figure, [Patch(fill=False, linewidth=1.3, label="ranks as in training")], note)
    return figure, table


def _rate(value: float) -> str:
    """A learning rate as a tick: 1e-3, 1.5e-2."""
    return np.format_float_scientific(value, exp_digits=1, trim="-")


@style.drawn
def ablation(table: pd.DataFrame) -> style.Drawn:
    """What moves nDCG@10: learning rate along the axis, one panel a start, one line a similarity, the baseline dotted.

    table: columns similarity, start, lr, mean, ci_low, ci_high (95 %), baseline, seeds; one row a combination. Points of one
    learning rate stand a little apart, so that their bars can be told from each other. shown: the same columns.
    """
    shown = table.sort_values("lr", kind="stable")
    starts, similarities = list(dict.fromkeys(table["start"])), list(dict.fromkeys(table["similarity"]))
    looks = style.looks(similarities, style.SIMILARITY_STYLE)
    rates = sorted(shown["lr"].unique())
    figure, axes = style.panels([f"{start} start" for start in starts], 1.75, sharey=True, sharex=True)
    for axis, start in zip(axes, starts, strict=True):
        axis.set_xscale("log")
        axis.axhline(shown["baseline"].iloc[0], **BASELINE_LINE)
        for i, (similarity, look) in enumerate(looks.items()):
            rows = shown[(shown["start"] == start) & (shown["similarity"] == similarity)]
            x = rows["lr"].to_numpy() * 1.15 ** (i - (len(looks) - 1) / 2)
            bars = rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]
            axis.errorbar(x, rows["mean"], yerr=bars, elinewidth=1, label=similarity, **look)
        axis.set_xlabel("learning rate")
        axis.set_xticks(rates, [_rate(rate) for rate in rates])
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel(NDCG)
    lost = [f"{row.similarity}, {row.start}, {_rate(row.lr)}" for row in shown[shown["mean"].isna()].itertuples()]
    note = f"mean of {style.of_seeds(shown['seeds'])}, bar: 95 % interval" + f"; {NO_SCORE}: " * bool(lost)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    style.legend(figure, [*handles, Line2D([], [], **FROZEN)], note + "; ".join(lost))
    return figure, shown


@style.drawn
def oracle(table: pd.DataFrame) -> style.Drawn:
    """How far a linear head fitted on judgements of the same collection gets: from the frozen encoder to the held-out oracle.

    table: oracle.csv: dataset, head, held_out (scored on other queries than fitted on), mean, ci_low, ci_high (95 %),
    baseline, delta_percent. One line a head; faint: the oracle scored on the very queries that it was fitted on, no bound that
    a head could reach. Most room first, 'average' last. shown: the same columns.
    """
    room = table[table["held_out"].astype(bool)].groupby("dataset")["delta_percent"].max()
    datasets = [name for name in room.sort_values(ascending=False).index if name != "average"]
    datasets += ["average"] * ("average" in room.index)
    heads = dict(zip(dict.fromkeys(table["head"]), "o^Dv", strict=False))
    figure = style.Figure(style.COLUMN, 2.1 * style.ROW * len(datasets) + 1.25)
    axis = figure.subplots()
    for row in table[table["dataset"].isin(datasets)].itertuples():
        y = datasets.index(row.dataset) + 0.54 * ((list(heads).index(row.head) + 0.5) / len(heads) - 0.5)
        marker, label = heads[row.head], f"{row.dataset} {row.head}"
        if not row.held_out:
            axis.plot(row.mean, y, marker, color=PALE, markerfacecolor="white", label=f"{label}, same queries")
            continue
        axis.plot([row.baseline, row.mean], [y, y], color=PALE, linewidth=2.4, zorder=2)
        axis.plot([row.ci_low, row.ci_high], [y, y], color=INK, linewidth=0.8, zorder=2)
        axis.plot(row.mean, y, marker, color=INK, label=label, zorder=4)
        axis.plot(row.baseline, y, zorder=3, **style.TICK)
        style.beside(axis, y, (percent(row.delta_percent) or NO_SCORE, 40))
    style.text_rows(axis, datasets, NDCG)
    handles = [Line2D([], [], color=INK, marker=marker, label=f"{head}, held-out") for head, marker in heads.items()]
    faint = Line2D([], [], color=PALE, marker="o", markerfacecolor="white", linestyle="", label="on its own queries")
    handles = [Line2D([], [], label="frozen encoder", **style.TICK), *handles, faint]
    style.legend(figure, handles, "thin bar: 95 % interval of the score; right: held-out change")
    return figure, table


@style.drawn
def length_relevance(table: pd.DataFrame) -> style.Drawn:
    """Are longer embeddings retrieved more often than they are relevant? One panel a system, by decile of document length.

    table: columns system, length_decile (1: shortest), retrieved_rate (in a top-10) and its range over seeds retrieved_low,
    retrieved_high (the band), relevant_rate, seeds; rates relative to the average document, as magnitude.rates_by_length
    gives them. shown: the same columns.
    """
    looks = style.looks(table["system"])
    figure, axes = style.panels(list(looks), 1.35, sharey=True)
    for axis, (system, look) in zip(axes, looks.items(), strict=True):
        rows = table[table["system"] == system].sort_values("length_decile")
        x = rows["length_decile"]
        axis.axhline(1, color=INK, linewidth=0.6)
        axis.plot(x, rows["relevant_rate"], label="relevant", color=INK, linestyle=style.DASHED)
        axis.plot(x, rows["retrieved_rate"], label="retrieved", **(look | {"linestyle": "-"}))
        axis.fill_between(x, rows["retrieved_low"], rows["retrieved_high"], color=look["color"], alpha=0.22, lw=0)
        axis.set_xlabel("decile of $|d|$")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("rate, relative to\nthe average document")
    axes[0].set_ylim(bottom=0)
    handles: list = [Line2D([], [], color=INK, marker="o", label="in a top-10 list")]
    handles.append(Line2D([], [], color=INK, linestyle=style.DASHED, label="judged relevant"))
    if len(several := table.loc[table["seeds"] > 1, "seeds"]):
        handles.append(Patch(facecolor=INK, alpha=0.22, lw=0, label=f"band: range of {style.of_seeds(several)}"))
    style.legend(figure, handles)
    return figure, table


@style.drawn
def hubness(table: pd.DataFrame) -> style.Drawn:
    """The share of documents that are in nobody's top-10, highest first.

    table: rows of hubness.csv of one track: columns system, seed, anti_hubs, a row a collection, which weigh the same each.
    shown: system, anti_hubs and anti_hubs_sd: mean and sd over seeds; no sd where there is one run.
    """
    by_seed = table.groupby(["system", "seed"], sort=False)["anti_hubs"].mean()
    shown = by_seed.groupby("system", sort=False).agg(anti_hubs="mean", anti_hubs_sd="std").reset_index()
    shown = shown.sort_values("anti_hubs", ascending=False, kind="stable")
    figure = style.Figure(style.COLUMN, len(shown) * style.ROW + 0.8)
    axis = figure.subplots()
    for y, row in enumerate(shown.itertuples()):
        axis.barh(y, row.anti_hubs, height=0.66, color=BLACK if row.system == "baseline" else PALE, label=row.system)
        axis.errorbar(row.anti_hubs, y, xerr=row.anti_hubs_sd, color=BLACK, elinewidth=1.2, linestyle="")
        style.beside(axis, y, (f"{100 * row.anti_hubs:.0f} %" if row.anti_hubs >= 0 else NO_SCORE, 28))
    style.text_rows(axis, list(shown["system"]), "share of documents never in a top-10 list")
    style.legend(figure, [Line2D([], [], color=BLACK, linewidth=1.2, label="± 1 sd over seeds")])
    return figure, shown
