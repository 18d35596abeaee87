"""Figures of training: the signature of the failure over epochs, and what the growth of the logit is made of."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from asymlib.report import style

SIGNATURE = {  # the statistics that are drawn, with their titles of two lines
    "similarity.positive.logit": "positive logit\nscore$(q, d^+)/\\tau$",
    "similarity.positive.cosine": "positive cosine\n$\\cos(q, d^+)$",
    "length.document.mean": "document length\nmean $|d|$",
    "loss.contrastive": "contrastive loss\nnats",
}
CASE_COLUMNS = {  # of magnitude.CASE_LOG, with their titles
    "positive.train": "positive logit\ntraining batches",
    "positive.validation": "positive logit\nvalidation pairs",
    "negative.train": "negative logit\ntraining batches",
    "negative.validation": "negative logit\nvalidation pairs",
    "std.query": "query std\ntraining batches",
    "std.document": "document std\ntraining batches",
}
PARTS = {  # of a logit's growth
    "query": {"facecolor": style.SKY, "hatch": "", "label": "query length $|q|$"},
    "document": {"facecolor": style.BLUE, "hatch": "////", "label": "document length $|d|$"},
    "angle": {"facecolor": style.ORANGE, "hatch": "....", "label": "angle"},
}


@style.drawn
def signature(history: pd.DataFrame, systems: Sequence[str] | None = None) -> style.Drawn:
    """SIGNATURE of the validation pairs over the epochs, one panel a statistic: mean over seeds, band from lowest to highest.

    history: magnitude.HISTORY_COLUMNS. systems: in the order of the legend, None for all. A seed whose value is not finite is
    left out and named. shown: system, name, epoch, mean, low, high, seeds.
    """
    rows = history[(history["split"] == "validation") & history["name"].isin(list(SIGNATURE))]
    there = dict.fromkeys(rows["system"])
    systems = list(there if systems is None else [system for system in systems if system in there])
    rows = rows[rows["system"].isin(systems)]
    values = rows.groupby(["system", "name", "epoch"], sort=False)["value"]
    shown = values.agg(mean="mean", low="min", high="max", seeds="count").reset_index()
    figure, axes = style.panels(list(SIGNATURE.values()), 1.45)
    looks = style.looks(systems)
    colors, markers, lines = ({name: look[k] for name, look in looks.items()} for k in ("color", "marker", "linestyle"))
    dashes = {system: "" if line == "-" else line[1] for system, line in lines.items()}
    for axis, name in zip(axes, SIGNATURE, strict=True):
        seaborn.lineplot(
            rows[rows["name"] == name].dropna(subset="value"), x="epoch", y="value", hue="system", style="system",
            palette=colors, markers=markers, dashes=dashes, errorbar=("pi", 100), err_kws={"linewidth": 0},
            markersize=4.5, markeredgewidth=0.4, legend=False, ax=axis,
        )  # fmt: skip
        axis.set(xlabel="epoch", ylabel="")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        style.even_ticks(axis.yaxis)
    note = f"line: mean, band: range of {style.of_seeds(shown['seeds'])}"
    note = "line: the only seed" if shown["seeds"].max() <= 1 else note
    missing = rows["value"].isna().groupby([rows["system"], rows["name"]], sort=False).mean()  # 1: never recorded
    lost = ", ".join(dict.fromkeys(missing[(missing > 0) & (missing < 1)].index.get_level_values("system")))
    note += "; validation pairs" + f"; values that are not finite are left out: {lost}" * bool(lost)
    style.legend(figure, [Line2D([], [], label=system, **look) for system, look in looks.items()], note)
    return figure, shown


@style.drawn
def case_log(columns: pd.DataFrame, system: str) -> style.Drawn:
    """One system's first epochs over the columns of the case's log, one panel a column: mean over seeds, band lowest to highest.

    columns: magnitude.case_columns. Drawn as far as the case's log goes. A black square is the case's value.
    shown: system, column, epoch, case, mean, low, high, seeds, ratio (mean / case), off (mean over seeds).
    """
    rows = columns[(columns["system"] == system) & columns["case"].notna()]
    runs = rows.groupby(["system", "column", "epoch", "case"], sort=False)
    shown = runs["value"].agg(mean="mean", low="min", high="max", seeds="count").reset_index()
    shown = shown.assign(ratio=shown["mean"] / shown["case"], off=runs["off"].mean().to_numpy())
    figure, axes = style.panels(list(CASE_COLUMNS.values()), 1.45)
    look, case = (
        style.looks([system])[system],
        {"color": style.BLACK, "marker": "s", "markersize": 3.6, "linestyle": ":"},
    )
    for axis, name in zip(axes, CASE_COLUMNS, strict=True):
        part = shown[shown["column"] == name]
        axis.fill_between(part["epoch"], part["low"], part["high"], color=look["color"], alpha=0.2, linewidth=0)
        axis.plot(part["epoch"], part["mean"], **look)
        axis.plot(part["epoch"], part["case"], **case)
        if name.startswith("negative"):  # near 0: what differs is small beside the positive logit
            most = shown.loc[shown["column"] == "positive.train", ["mean", "case"]].max(axis=None) / 10
            axis.set_ylim(min(-most, 1.1 * part["low"].min()), max(most, 1.1 * part["high"].max()))
        else:
            axis.set_ylim(bottom=0)
        axis.set(xlabel="epoch", xticks=sorted(part["epoch"].unique()))
        style.even_ticks(axis.yaxis)
    note = f"line: mean, band: range of {style.of_seeds(shown['seeds'])}; training batches: mean over an epoch"
    lines = {system: look, "the case": case}
    style.legend(figure, [Line2D([], [], label=label, **about) for label, about in lines.items()], note)
    return figure, shown


@style.drawn
def growth_split(attribution: pd.DataFrame, case: pd.DataFrame | None = None) -> style.Drawn:
    """How much of the positive logit's growth since epoch 1 is query length, document length and angle, largest first.

        log(S1/S0) = log(Q1/Q0) + log(D1/D0) + log(C1/C0)        (magnitude.attribution)

    attribution: columns system, seed, query, document, angle, total in natural logs, a row a run; empty where the logit was
    not above 0; with a column diverged, such runs are named. case: magnitude.case_arithmetic(), whose last row then stands
    among the systems. Bars: means over seeds; a part below 0 goes left. Black: the total and its standard deviation over
    seeds; the right margin gives it as a factor.
    shown: system, runs, seeds (with a logarithm), diverged (runs), query, document, angle, total, sd (of the total).
    """
    parts = [*PARTS, "total"]
    runs = attribution.assign(diverged=attribution.get("diverged", False)).groupby("system", sort=False)
    spread = {"sd": runs["total"].std(), "seeds": runs["total"].count(), "runs": runs.size()}
    spread["diverged"] = runs["diverged"].sum()
    shown = runs[parts].mean().assign(**spread).reset_index()
    if case is not None:
        last = case.iloc[-1]
        name = f"the case, epoch {case['epoch'].iloc[0]:g} to {last['epoch']:g}"
        shown.loc[len(shown)] = {"system": name, **last[parts], "sd": np.nan, "seeds": 1, "runs": 1, "diverged": 0}
    shown = shown.sort_values("total", ascending=False, kind="stable", ignore_index=True)
    figure = style.Figure(style.COLUMN, style.ROW * 1.1 * len(shown) + 1)
    axis = figure.subplots()
    axis.use_sticky_edges = False
    y, values = np.arange(len(shown)), shown[list(PARTS)].fillna(0).to_numpy()
    ends = np.where(values >= 0, values.clip(min=0).cumsum(1), values.clip(max=0).cumsum(1))
    for look, width, end in zip(PARTS.values(), values.T, ends.T, strict=True):
        axis.barh(y, width, left=end - width, height=0.68, edgecolor="white", **look)
    axis.errorbar(shown["total"], y, xerr=shown["sd"], ecolor=style.BLACK, elinewidth=1, **style.TICK)
    for row in shown[shown["total"].isna()].itertuples():
        style.inside(axis, row.Index, "diverged" if row.diverged else "logit not above 0: no logarithm")
    axis.axvline(0, color=style.INK, linewidth=0.6)
    some = [
        f" ({row.seeds} of {row.runs} seeds)" * (0 < row.seeds < row.runs)
        + f" ({row.diverged} diverged)" * (0 < row.seeds and 0 < row.diverged)
        for row in shown.itertuples()
    ]
    style.text_rows(axis, shown["system"] + some, r"growth of $q\cdot d^+/\tau$ since epoch 1 (natural log)")
    for row in shown[shown["total"].notna()].itertuples():
        style.beside(axis, row.Index, (f"×{np.exp(row.total):,.{0 if row.total > 4.6 else 2}f}", 30))
    low, high = axis.get_xlim()
    axis.set_xlim(low, max(high, low + 0.5))  # a growth of nothing is not magnified
    several = shown["runs"][shown["runs"] > 1]
    note = f"bars: mean of {style.of_seeds(several)}, line: ± 1 sd of the total" * bool(shown["sd"].notna().any())
    handles = [Patch(edgecolor="white", **look) for look in PARTS.values()]
    style.legend(figure, [*handles, Line2D([], [], label="total", **style.TICK)], note)
    return figure, shown[["system", "runs", "seeds", "diverged", *parts, "sd"]]
