"""Figures of the words: what the weight of the block and the length of documents do, and what heads cannot add."""

import pandas as pd
from matplotlib.lines import Line2D

from asymlib.evaluate import METRIC
from asymlib.report import style
from asymlib.report.claims import SIGNIFICANT, percent

# What a head adds and what the words add; asym-cos-identity stands for heads where none was searched.
GAINS = ("whitened", "bm25", "lexical", "lexical-head", "hybrid")


@style.drawn
def words_weight(table: pd.DataFrame) -> style.Drawn:
    """Change of nDCG@10 against the weight of the block, a panel an exponent of the document's length, a line a collection.

    table: rows of one track of words_ablation.csv, of which those whose weight is varied are drawn; the average is thick.
    shown: exponent, weight, dataset, delta_percent.
    """
    rows = table[table["varied"] == "weight"].sort_values(["exponent", "weight"])
    exponents = sorted(rows["exponent"].unique())
    kinds = {0.0: "length kept", 1.0: "length divided out"}
    titles = [kinds.get(one, f"divided by length$^{{{one:g}}}$") for one in exponents]
    figure, axes = style.panels(titles, 1.9, sharex=True, sharey=True)
    looks = style.looks(rows["dataset"]) | {
        "average": style.SYSTEM_STYLE["baseline"] | {"linestyle": "-", "linewidth": 2}
    }
    palette = [
        style.SYSTEM_STYLE[name] for name in ("asym-dot", "asym-cos", "asym-qnorm", "asym-dnorm", "asym-euclidean")
    ]
    names = [name for name in looks if name != "average"]
    looks |= dict(zip(names, palette, strict=False))  # more collections than colours: greys
    for axis, exponent in zip(axes, exponents, strict=True):
        for dataset, line in rows[rows["exponent"] == exponent].groupby("dataset", sort=False):
            axis.plot(line["weight"], line["delta_percent"], label=dataset, **looks[dataset])
        axis.axhline(0, **style.BASELINE_LINE)
        axis.set_xlabel("weight of the words")
        style.even_ticks(axis.yaxis)
    axes[0].set_ylabel("change of nDCG@10 (%)")
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    style.legend(figure, handles, "against the frozen encoder; block of hashed words joined to its vectors")
    return figure, rows[["exponent", "weight", "dataset", "delta_percent"]]


@style.drawn
def words_gain(table: pd.DataFrame, track: str) -> style.Drawn:
    """Change of nDCG@10 against the frozen encoder by collection: what a head cannot add and the words can.

    table: systems.csv, of which best-head (or asym-cos-identity) and GAINS are drawn in one track, as far as they are there;
    all systems where none is. A panel a collection, the average first. Bars: paired 95 % intervals of the difference. A filled
    mark: p < 0.05. shown: dataset, system, delta_percent, low_percent, high_percent, p_value.
    """
    rows = table[(table["track"] == track) & (table["metric"] == METRIC)]
    rows = rows.assign(
        **{f"{end}_percent": 100 * rows[f"difference_{end}"] / rows["baseline"] for end in ("low", "high")}
    )
    there = list(dict.fromkeys(rows["system"]))
    head = ["best-head" if "best-head" in there else "asym-cos-identity"]
    systems = [name for name in [*head, *GAINS] if name in there] or there
    looks = style.looks(systems)
    rows = rows[rows["system"].isin(systems)].sort_values(
        "dataset", key=lambda names: names != "average", kind="stable"
    )
    datasets = list(dict.fromkeys(rows["dataset"]))
    figure, axes = style.panels(datasets, len(systems) * style.ROW + 0.4, sharex=True, sharey=True)
    for axis, dataset in zip(axes, datasets, strict=True):
        style.text_rows(axis, systems)
        axis.axvline(0, zorder=1, **style.BASELINE_LINE)
        for row in rows[rows["dataset"] == dataset].itertuples():
            y, look = systems.index(row.system), looks[row.system] | {"linestyle": ""}
            axis.plot([row.low_percent, row.high_percent], [y, y], color=look["color"], solid_capstyle="butt")
            fill = look["color"] if row.p_value < SIGNIFICANT else "white"
            axis.plot(row.delta_percent, y, markerfacecolor=fill, label=row.system, **look)
            style.beside(axis, y, (percent(row.delta_percent), 34))
    handles = [
        Line2D([], [], color=style.INK, marker="o", label=f"p < {SIGNIFICANT:g}"),
        Line2D([], [], color=style.INK, marker="o", markerfacecolor="white", label="tied with the frozen encoder"),
    ]
    note = "change of nDCG@10 against the frozen encoder in %; bar: paired 95 % interval of the difference; p: paired "
    note += "randomisation test, Holm-corrected within a track"
    style.legend(figure, handles, note)
    return figure, rows[["dataset", "system", "delta_percent", "low_percent", "high_percent", "p_value"]]
