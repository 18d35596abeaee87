"""Tables -> figures for a paper: one style sheet in physical sizes, one colour and marker a system, a CSV beside each figure.

Every function here takes a DataFrame that was computed elsewhere and returns (figure, shown): `shown` is the long table of
exactly what is drawn. Nothing is computed but means and intervals over seeds for display, and nothing is written but by save().

Colours are Okabe & Ito's (jfly.uni-koeln.de/color), with three darker ones for the last systems; no figure relies on colour
alone. Where a band or a bar is drawn, the figure says which interval it is.
"""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib import colormaps, style, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Normalize, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.special import stdtrit

from asymlib.errors import InputError
from asymlib.files import atomic_path
from asymlib.losses import SIMILARITIES

STYLE_SHEET = Path(__file__).with_name("paper.mplstyle")
COLUMN, PAGE = 3.35, 6.9  # inches: one column of a two-column paper, and both with the gap between them
ROW = 0.19  # inches of height for a row of text
NEAR = 0.1  # relative distance from the baseline within which a second panel magnifies
TANGENTIAL = 1e-3  # radial share of a gradient below which a system is named, not drawn
ROUNDING = 1e-9  # radial share that rounding alone can give a gradient that is exactly tangential
NEAR_NOTE = f" (within {100 * NEAR:g} % of the baseline)"

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
DASHED, DOTTED, DASH_DOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))

Style = dict[str, Any]
Drawn = tuple[matplotlib.figure.Figure, pd.DataFrame]


def _paler(color: str) -> tuple[float, ...]:
    """Half-way to white."""
    return tuple((1 + channel) / 2 for channel in to_rgb(color))


def _style(color: str, marker: str, linestyle: Any = "-") -> Style:
    return {
        "color": color,
        "marker": marker,
        "linestyle": linestyle,
        "markersize": {"*": 5.4, "p": 4.6}.get(marker, 3.6),
    }


SYSTEM_STYLE: dict[str, Style] = {
    "baseline": _style(BLACK, "s", DOTTED),
    "asym-dot": _style(VERMILLION, "o"),
    "asym-cos": _style(SKY, "^"),
    "asym-cos-identity": _style(BLUE, "D"),
    "asym-qnorm": _style(GREEN, "v", DASHED),
    "asym-dnorm": _style(PURPLE, "<", DASHED),
    "asym-euclidean": _style(ORANGE, "P"),
    "iso15-pred12": _style("#7A4B1D", "X", DASH_DOT),
    "respred": _style("#332288", ">", DASHED),
    "whitened": _style("#882255", "*", DASH_DOT),
    "best-head": _style("#7800F0", "p"),
}
# A system that has no style of its own: greys, told apart by marker and line.
NEUTRAL_STYLES = [
    _style(color, marker, line)
    for color, marker, line in zip(
        ("#5F5F5F", "#9A9A9A") * 3, "hxd8H|", ("-", DASHED, DASH_DOT, "-", DASHED, DASH_DOT), strict=True
    )
]
SIMILARITY_STYLE: dict[str, Style] = {
    "dot": SYSTEM_STYLE["asym-dot"],
    "cosine": SYSTEM_STYLE["asym-cos"],
    "qnorm": SYSTEM_STYLE["asym-qnorm"],
    "dnorm": SYSTEM_STYLE["asym-dnorm"],
    "euclidean": SYSTEM_STYLE["asym-euclidean"],
}
_RANKED_AS = {"qnorm": "dot", "dnorm": "cosine"}  # |q| does not reorder the documents of a query
PART_STYLE: dict[str, Style] = {  # of a logit's growth
    "query": {"color": SKY, "hatch": ""},
    "document": {"color": BLUE, "hatch": "////"},
    "angle": {"color": ORANGE, "hatch": "...."},
}
PART_LABEL = {"query": "query length $|q|$", "document": "document length $|d|$", "angle": "angle"}

# Marks that mean the same in every figure.
_BASELINE_LINE: Style = {"color": BLACK, "linestyle": DOTTED, "linewidth": 0.9}
_TOTAL_MARK: Style = {"color": BLACK, "marker": "|", "markersize": 9, "markeredgewidth": 1.4, "linestyle": ""}
_DATASET_MARK: Style = {"color": "#909090", "marker": "o", "markersize": 2.2, "markeredgewidth": 0, "linestyle": ""}
_ORACLE: Style = {"color": "#707070", "marker": "h", "markersize": 4.2, "markerfacecolor": "white"}
_HUBNESS = {
    "k_skewness": "skewness of $N_{10}$ (0: no hubs)",
    "anti_hubs": "share of documents never retrieved",
    "robin_hood": "Robin Hood index of $N_{10}$ (0 to 1)",
}

# Statistics of a history: 'quantity, unit or symbol'; the first comma becomes a line break in a panel's title.
LABELS: dict[str, str] = {
    "loss.total": "total loss, nats + weighted terms",
    "loss.contrastive": "contrastive loss, nats",
    "loss.isotropy": "isotropy loss, unweighted",
    "loss.prediction": "prediction loss, unweighted",
    "loss.recovery": "recovery loss, unweighted",
    "similarity.positive.logit": r"positive logit, score$(q, d^+)/\tau$",
    "similarity.negative.logit": r"negative logit, score$(q, d^-)/\tau$",
    "similarity.positive.cosine": r"positive cosine, $\cos(q, d^+)$",
    "similarity.negative.cosine": r"negative cosine, $\cos(q, d^-)$",
    "similarity.positive.dot": r"positive dot product, $q\cdot d^+/\tau$",
    "accuracy": "in-batch accuracy, share of queries",
    "temperature.effective": r"effective temperature, $\tau/(|q||d|)$",
    "alignment": r"alignment, mean $|q-d^+|^2$ of units",
    "gradient.parameters": "gradient norm, parameters, unclipped",
} | {
    name: text
    for side, z in (("query", "q"), ("document", "d"))
    for name, text in (
        (f"std.{side}", f"{side} std, mean over dimensions"),
        (f"length.{side}.mean", f"{side} length, mean $|{z}|$"),
        (f"length.{side}.p05", f"{side} length, 5th percentile of $|{z}|$"),
        (f"length.{side}.p95", f"{side} length, 95th percentile of $|{z}|$"),
        (f"isoscore.{side}", f"{side} IsoScore, 0 to 1"),
        (f"rankme.{side}", f"{side} RankMe, effective directions"),
        (f"uniformity.{side}", f"{side} uniformity, log-mean kernel"),
        (f"gradient.{side}.norm", rf"{side} gradient, $|\nabla_{z} L|$"),
        (f"gradient.{side}.radial", f"{side} gradient, norm along ${z}$"),
        (f"gradient.{side}.tangential", f"{side} gradient, norm across ${z}$"),
        (f"gradient.{side}.radial_share", f"{side} gradient, radial share of its square"),
    )
}


class Figure(matplotlib.figure.Figure):
    """A figure outside pyplot's global list, which a notebook shows at 150 dpi of its physical size."""

    def _repr_png_(self) -> bytes:
        return _rendered(self, "png", 150)


def _rendered(figure: matplotlib.figure.Figure, kind: str, dpi: int) -> bytes:
    """The bytes of a figure as 'png' or 'pdf', without a date or a version in them."""
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    buffer = io.BytesIO()
    with style.context(STYLE_SHEET, after_reset=True):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata[kind])
    return buffer.getvalue()


def save(figure: matplotlib.figure.Figure, shown: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write folder/name.pdf, .png (300 dpi) and .csv (`shown`, 8 significant digits), each whole or not at all.

    The same figure gives the same bytes. name: letters, digits, '.', '_' and '-'. Returns the three paths.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"figure name {name!r}: expected letters, digits, '.', '_' or '-', and no folder")
    if shown.empty:
        raise InputError(f"figure {name}: the table that it shows is empty; a figure is saved with what it shows")
    text = shown.to_csv(index=False, float_format="%.8g", lineterminator="\n")
    parts = {"pdf": _rendered(figure, "pdf", 300), "png": _rendered(figure, "png", 300), "csv": text.encode()}
    paths = []
    for kind, content in parts.items():
        paths.append(Path(folder) / f"{name}.{kind}")
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(content)
    return paths


# ---------------------------------------------------------------------------------------------------------------------
# Checks and parts that the figures share


def _styled(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """Draw under the style sheet alone, lay the figure out there, then fix the layout: saving it cannot move anything."""

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Drawn:
        with style.context(STYLE_SHEET, after_reset=True):
            figure, shown = function(*args, **kwargs)
            for _ in range(2):  # the second time with the ticks that the first one chose
                figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure, shown.reset_index(drop=True)

    return drawn


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _require(
    table: pd.DataFrame, what: str, text: Iterable[str], numbers: Iterable[str], maybe: Iterable[str] = ()
) -> pd.DataFrame:
    """The named columns of a table, in order. Refused: a missing column, no row, other than finite values in `numbers`.

    Columns in `maybe` may have empty fields; an infinite value there, of a run that diverged, is made one.
    """
    text, numbers, maybe = list(text), list(numbers), list(maybe)
    wanted = text + numbers + maybe
    if missing := [name for name in wanted if name not in table.columns]:
        raise InputError(
            f"{what}: column {', '.join(missing)} missing; expected {', '.join(wanted)}, "
            f"found {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise InputError(f"{what}: the table has no rows")
    table = table[wanted].reset_index(drop=True)
    for name in numbers + maybe:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{what}: column {name} holds {table[name].dtype} values, expected numbers")
        finite = np.isfinite(table[name].astype(float))
        if name in maybe:
            table[name] = table[name].where(finite)
        elif not finite.all():
            raise InputError(
                f"{what}: column {name} is empty or infinite in row {int(np.argmin(finite))}, expected a number"
            )
    return table


def _one(table: pd.DataFrame, what: str, column: str) -> Any:
    """The single value of a column; refused if there are several."""
    values = table[column].unique()
    if len(values) != 1:
        raise InputError(f"{what}: column {column} holds {', '.join(map(str, values))}; filter the table to one")
    return values[0]


def _baseline(table: pd.DataFrame, what: str) -> float:
    """The one value of the column baseline, above 0."""
    value = float(_one(table, what, "baseline"))
    if not value > 0:
        raise InputError(f"{what}: column baseline holds {value:g}, expected a number above 0")
    return value


def _unique(table: pd.DataFrame, what: str, keys: list[str]) -> None:
    """Refuse a table with two rows for one point of the figure."""
    double = table[table.duplicated(keys)]
    if len(double):
        where = ", ".join(f"{key} = {double.iloc[0][key]}" for key in keys)
        raise InputError(f"{what}: more than one row for {where}; filter the table to one")


def _known(wanted: Sequence[str], there: Iterable[str], what: str) -> None:
    """Refuse names that a table does not hold."""
    there = sorted(set(there))
    unknown = [name for name in wanted if name not in there]
    if unknown or not len(wanted):
        asked = f"{', '.join(unknown)} not in the history" if unknown else "none asked for"
        raise InputError(f"{what}: {asked}; it has {', '.join(there)}")


def _in_order(systems: Iterable[str]) -> list[str]:
    """Each system once: the known ones as in SYSTEM_STYLE, then the others as they come."""
    there = dict.fromkeys(systems)
    return [name for name in SYSTEM_STYLE if name in there] + [name for name in there if name not in SYSTEM_STYLE]


def styles(systems: Iterable[str]) -> dict[str, Style]:
    """Colour, marker and line of each system: its own where it has one, greys in turn for the others."""
    systems = list(dict.fromkeys(systems))
    others = [name for name in systems if name not in SYSTEM_STYLE]
    neutral = {name: NEUTRAL_STYLES[i % len(NEUTRAL_STYLES)] for i, name in enumerate(others)}
    return {name: SYSTEM_STYLE.get(name) or neutral[name] for name in systems}


def _legend(figure: Figure, handles: Sequence[Any], note: str = "") -> None:
    """A legend below the axes in as many columns as fit, under a note that says what lines, bands and bars are."""
    note = textwrap.fill(note, int(18 * figure.get_figwidth()), break_on_hyphens=False)  # a system's name stays whole
    count = max(1, len(handles))  # without a handle there is still the note
    for rows in range(1, count + 1):
        columns = -(-count // rows)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=note or None)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _handles(by_name: dict[str, Style]) -> list[Line2D]:
    return [Line2D([], [], label=name, **style) for name, style in by_name.items()]


def _panels(titles: Sequence[str], height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """One panel a title, up to two in a column's width, else up to four a row of the page's."""
    count = len(titles)
    columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
    rows = -(-count // columns)
    figure = _figure(COLUMN if count <= 2 else PAGE, rows * height + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for axis in grid[count:]:
        axis.remove()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title)
        axis.tick_params(labelbottom=True)  # of a shared axis too: there may be no panel below
    return figure, list(grid[:count])


def _decade(value: float) -> str:
    """A power of ten as a tick: 1e-3, 0.1, 1, 100, 1e4."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if not 0.02 < value < 5000 else f"{value:g}"


def _factor(value: float) -> str:
    """A factor of growth: ×0.44, ×6.22, ×2,980."""
    return f"×{value:,.0f}" if value >= 1000 else f"×{value:.3g}"


def _even_ticks(axis: Axis, count: int = 5) -> None:
    """At most `count` steps of 1, 2 or 5 times a power of ten, and at least three ticks."""
    axis.set_major_locator(ticker.MaxNLocator(count, steps=[1, 2, 5, 10], min_n_ticks=3))


def _log_ticks(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: decades, or 1-2-5 steps, or even steps, by how much it spans."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    if decades > 0.8:
        axis.set_major_locator(ticker.LogLocator(subs=(1,) if decades > 2 else (1, 2, 5), numticks=8))
    else:
        ticks = ticker.MaxNLocator(4).tick_values(low, high)
        axis.set_major_locator(ticker.FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _decade(value) if decades > 2 else f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


_BANDS = {"range": "range of seeds", "t": "95 % t-interval", "none": "none"}


def _over_seeds(rows: pd.DataFrame, keys: list[str], band: str) -> pd.DataFrame:
    """Mean, band and number of seeds of 'value' for each combination of keys; a seed without a value does not count."""
    values = rows.groupby(keys, sort=False)["value"]
    if band == "range":
        low, high = values.min(), values.max()
    elif band == "t":
        seeds = values.count()
        half = values.std() * stdtrit(seeds - 1, 0.975) / np.sqrt(seeds)
        low, high = values.mean() - half, values.mean() + half
    elif band == "none":
        low = high = np.nan
    else:
        raise InputError(f"band {band!r}: expected {', '.join(map(repr, _BANDS))}")
    seeds = np.nan if band == "none" else values.count()  # of means, nobody here knows of how many
    shown = pd.DataFrame({"mean": values.mean(), "low": low, "high": high, "seeds": seeds}).reset_index()
    return shown.assign(band=_BANDS[band])


def _seeds(counts: pd.Series) -> str:
    """'1 seed', '5 seeds', '3 to 5 seeds'."""
    few, many = counts.min(), counts.max()
    if few != many:
        return f"{few:g} to {many:g} seeds"
    return "1 seed" if many == 1 else f"{many:g} seeds"


def _band_note(shown: pd.DataFrame) -> str:
    """What line and band are, in words."""
    if shown["band"].iloc[0] == "none":
        return "line: mean over seeds"
    if shown["seeds"].max() <= 1:
        return "line: the only seed"
    band = "range" if shown["band"].iloc[0] == "range of seeds" else "95 % t-interval of the mean"
    return f"line: mean, band: {band} of {_seeds(shown['seeds'])}"


def _draw_lines(axis: Axes, shown: pd.DataFrame, x: str, by_system: dict[str, Style]) -> None:
    """A line with its band for each system; markers are staggered, so that lines that coincide still show."""
    for i, (system, look) in enumerate(by_system.items()):
        rows = shown[shown["system"] == system].sort_values(x)
        if rows.empty:
            continue
        every = max(1, len(rows) // 6)
        axis.plot(rows[x], rows["mean"], label=system, markevery=((i * every) // len(by_system), every), **look)
        axis.fill_between(rows[x], rows["low"], rows["high"], color=look["color"], alpha=0.16, linewidth=0)


def _history(history: pd.DataFrame, what: str, split: str) -> pd.DataFrame:
    """The rows of one split."""
    rows = _require(history, what, ["system", "split", "name"], ["seed", "step", "epoch"], ["value"])
    if split not in set(rows["split"]):
        raise InputError(f"{what}: no rows with split {split!r}, found {sorted(set(rows['split']))}")
    _unique(rows, what, ["system", "seed", "split", "step", "name"])
    return rows[rows["split"] == split]


def _rows_axis(axis: Axes, labels: Sequence[str], right: Sequence[str] | None = None) -> None:
    """Text rows: `labels` on the left, the first at the top, and optionally text on the right; no horizontal grid."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    if right is not None:
        margin = axis.secondary_yaxis("right")
        margin.set_yticks(range(len(right)), right)
        margin.tick_params(length=0)
        margin.spines["right"].set_visible(False)


def _dot(axis: Axes, y: float, row: Any, look: Style, **marker: Any) -> None:
    """The mean of a row and the bar of its interval."""
    axis.plot([row.ci_low, row.ci_high], [y, y], color=look["color"], linewidth=1.1, solid_capstyle="butt", zorder=2)
    axis.plot(row.mean, y, zorder=3, **(look | {"linestyle": ""} | marker))


def _baseline_line(axis: Axes, value: float) -> None:
    axis.axvline(value, zorder=1, **_BASELINE_LINE)


def _percent_axis(axis: Axes, baseline: float) -> None:
    """An upper axis in percent of the baseline."""
    upper = axis.secondary_xaxis(
        "top", functions=(lambda x: (x / baseline - 1) * 100, lambda percent: baseline * (1 + percent / 100))
    )
    upper.set_xlabel("change against baseline (%)")
    _even_ticks(upper.xaxis)


def _magnified(table: pd.DataFrame, baseline: float) -> pd.Series:
    """Which rows a second panel shows larger: those near the baseline, if some are and others are not; else none."""
    near = (table["mean"] / baseline - 1).abs() <= NEAR
    return near if 2 <= near.sum() < len(near) else near & False


def _row_panels(count: int, magnify: bool, extra: float) -> tuple[Figure, list[Axes]]:
    """Axes for text rows: one of a column's width, or two of the page's, the second for the rows near the baseline."""
    figure = _figure(PAGE if magnify else COLUMN, count * ROW + extra)
    axes = figure.subplots(1, 2 if magnify else 1, squeeze=False)[0]
    return figure, list(axes)


def _off_scale(axis: Axes, y: float, row: Any, baseline: float, look: Style) -> None:
    """In the magnified panel: an arrow at the edge for a row that lies outside it."""
    x, marker = (0.012, "<") if row.mean < baseline else (0.988, ">")
    arrow = {"color": look["color"], "marker": f"${'◂▸'[marker == '>']}$", "linestyle": ""}
    axis.plot(x, y, transform=axis.get_yaxis_transform(), label="off scale", **arrow)


# ---------------------------------------------------------------------------------------------------------------------
# Training: trajectories, the split of growth, gradients


@_styled
def trajectories(
    history: pd.DataFrame,
    names: Sequence[str],
    systems: Sequence[str],
    split: str = "validation",
    log: bool | Collection[str] = False,
    band: str = "range",
) -> Drawn:
    """Statistics over training, one panel a name: line = mean over seeds, band = their range, a 95 % t-interval or none.

    history: magnitude.HISTORY_COLUMNS. names: statistics, as in LABELS. systems: in the order of the legend; one that has
    no rows of a name is left out of that panel. log: True puts every panel whose values are all above 0 on a logarithmic
    axis, a set names the panels (then a value at or below 0 is refused). band: 'range', 't' or, for a history that holds
    the means over seeds as one seed, 'none'.
    shown: system, split, name, epoch, mean, low, high, seeds (with a finite value there), band.
    """
    rows = _history(history, "trajectories", split)
    _known(systems, rows["system"], "system")
    rows = rows[rows["system"].isin(list(systems))]
    _known(names, rows["name"], "statistic")
    shown = _over_seeds(rows[rows["name"].isin(list(names))], ["system", "split", "name", "epoch"], band)
    order = {name: i for i, name in enumerate(names)} | {name: i for i, name in enumerate(systems)}
    shown = shown.sort_values(["name", "system"], key=lambda column: column.map(order), kind="stable")
    figure, axes = _panels([LABELS.get(name, name).replace(", ", "\n", 1) for name in names], 1.45)
    for axis, name in zip(axes, names, strict=True):
        part = shown[shown["name"] == name]
        _draw_lines(axis, part, "epoch", styles(systems))
        axis.set_xlabel("epoch")
        if split == "validation":
            axis.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        lowest = part[["mean", "low"]].min().min()  # an empty band does not count
        positive = bool(lowest > 0)
        if not isinstance(log, bool) and name in log and not positive:
            raise InputError(f"trajectories: {name} falls to {lowest:.3g}; a logarithmic axis needs it above 0")
        if positive and (log if isinstance(log, bool) else name in log):
            axis.set_yscale("log")
            _log_ticks(axis.yaxis)
        else:
            _even_ticks(axis.yaxis)
    pairs = "training batches" if split == "train" else f"{split} pairs"
    _legend(figure, _handles(styles(systems)), f"{_band_note(shown)}; {pairs}")
    return figure, shown


@_styled
def gradient_shares(history: pd.DataFrame, systems: Sequence[str] | None = None, band: str = "range") -> Drawn:
    """How much of each side's gradient points along the embedding, and so changes its length, over training steps.

    history: magnitude.HISTORY_COLUMNS with gradient.<side>.radial_share (split 'train'). systems: None for all that have
    it. band: 'range' or 't', as in trajectories(). A system whose share stays below TANGENTIAL on both sides, at every step
    of every seed, is named in the note and not drawn; 'exactly' tangential is one below ROUNDING. Each panel has its own
    scale. shown: system, split, name, step, mean, low, high, seeds, band; the named systems too.
    """
    rows = _history(history, "gradient_shares", "train")
    names = [f"gradient.{side}.radial_share" for side in ("query", "document")]
    rows = rows[rows["name"].isin(names)]
    wanted = _in_order(rows["system"]) if systems is None else list(systems)
    _known(wanted, rows["system"], "systems with gradient.<side>.radial_share")
    shown = _over_seeds(rows[rows["system"].isin(wanted)], ["system", "split", "name", "step"], band)
    largest = rows.groupby("system")["value"].max()
    exact = [system for system in wanted if largest[system] < ROUNDING]
    almost = [system for system in wanted if ROUNDING <= largest[system] < TANGENTIAL]
    looks = {system: look for system, look in styles(wanted).items() if system not in exact + almost}
    figure, axes = _panels(["query gradient", "document gradient"], 1.6)
    for axis, name in zip(axes, names, strict=True):
        part = shown[(shown["name"] == name) & shown["system"].isin(looks)]
        _draw_lines(axis, part, "step", looks)
        axis.set_xlabel("training step")
        _even_ticks(axis.xaxis, 4)
        top = max(TANGENTIAL, axis.get_ylim()[1] if len(part) else 0.0)  # rounding is not magnified
        axis.set_ylim(-0.04 * top, top)
        _even_ticks(axis.yaxis)
    axes[0].set_ylabel("radial share of $|\\nabla|^2$")
    notes = ["training batches"]
    if looks:
        notes = [_band_note(shown[shown["system"].isin(looks)]), "training batches, a scale for each panel"]
    notes += [f"exactly tangential: {', '.join(exact)}"] * bool(exact)
    notes += [f"tangential but for a share below {TANGENTIAL:g}: {', '.join(almost)}"] * bool(almost)
    _legend(figure, _handles(looks), "; ".join(notes))
    return figure, shown


def _split_figure(shown: pd.DataFrame, rows: list[str], title: str, note: str) -> Figure:
    """Stacked bars of the parts of log-growth: shown has row, part, mean, sd; the parts of a row sum to its total."""
    figure = _figure(COLUMN, sum(0.09 + 0.12 * (row.count("\n") + 1) for row in rows) + 1.2)
    axis = figure.subplots()
    axis.use_sticky_edges = False
    table = shown.pivot(index="row", columns="part", values="mean").loc[rows]
    spread = shown.pivot(index="row", columns="part", values="sd").loc[rows]
    for y, row in enumerate(rows):
        ends = {True: 0.0, False: 0.0}  # of the bar so far, above and below zero
        for part, look in PART_STYLE.items():
            value = table.loc[row, part]
            if np.isfinite(value):
                side = bool(value >= 0)
                axis.barh(
                    y, value, left=ends[side], height=0.68, label=part, edgecolor="white", facecolor=look["color"],
                    hatch=look["hatch"],
                )  # fmt: skip
                ends[side] += value
        total, sd = table.loc[row, "total"], spread.loc[row, "total"]
        if np.isfinite(total):
            axis.plot(total, y, label="total", **_TOTAL_MARK)
            if np.isfinite(sd):
                axis.plot([total - sd, total + sd], [y, y], color=BLACK, linewidth=1)
        else:
            why = axis.annotate(
                "logit ≤ 0: no log", (0, y), (3, 0), textcoords="offset points", va="center", color="#606060"
            )
            why.set_in_layout(False)
    axis.axvline(0, color="#404040", linewidth=0.6)
    _rows_axis(axis, rows, [_factor(np.exp(v)) if np.isfinite(v) else "" for v in table["total"]])
    axis.set_xlabel(title)
    low, high = axis.get_xlim()
    high = max(high, low + 0.5)  # a growth of nothing is not magnified
    axis.set_xlim(low, high)
    _even_ticks(axis.xaxis)
    for steps, most in (((1, 1.2, 1.5, 2, 3, 5, 8), 4), ((1, 2, 5), 6), ((1,), 6)):
        inside = [f * 10.0**e for e in range(-12, 13) for f in steps if low <= np.log(f * 10.0**e) <= high]
        if len(inside) <= most:
            break
    upper = axis.secondary_xaxis("top")
    upper.set_xticks([np.log(f) for f in inside], [_factor(f) for f in inside])
    upper.set_xlabel("factor")
    handles = [
        Patch(facecolor=look["color"], edgecolor="white", hatch=look["hatch"], label=PART_LABEL[part])
        for part, look in PART_STYLE.items()
    ]
    _legend(figure, [*handles, Line2D([], [], label="total", **_TOTAL_MARK)], note)
    return figure


@_styled
def growth_split(attribution: pd.DataFrame, since: float = 1.0) -> Drawn:
    """How much of the positive logit's growth is query length, document length and angle: one stacked bar a system.

        log(S1/S0) = log(Q1/Q0) + log(D1/D0) + log(C1/C0)        (magnitude.attribution)

    attribution: columns system, seed, query, document, angle, total in natural logs, a row a run
    (magnitude.attribute_history); empty where the logit was not above 0. Bars: means over seeds; a part below 0 goes left.
    The black mark is the total, with the standard deviation over seeds; the right margin gives it as a factor.
    since: the epoch that growth is counted from, as given to attribute_history; named on the axis.
    shown: system, part, mean, sd, seeds.
    """
    parts = [*PART_STYLE, "total"]
    rows = _require(attribution, "growth_split", ["system"], ["seed"], parts)
    _unique(rows, "growth_split", ["system", "seed"])
    long = rows.melt(id_vars=["system", "seed"], value_vars=parts, var_name="part")
    shown = (
        long.groupby(["system", "part"], sort=False)["value"].agg(mean="mean", sd="std", seeds="count").reset_index()
    )
    systems = _in_order(rows["system"])
    order = {name: i for i, name in enumerate([*systems, *parts])}
    shown = shown.sort_values(["system", "part"], key=lambda column: column.map(order), kind="stable")
    few, many = shown["seeds"][shown["seeds"] > 0].min(), shown["seeds"].max()
    seeds = f"{many} seeds" if few == many else f"{few} to {many} seeds"
    note = "" if many <= 1 else f"bars: mean of {seeds}, line: ± 1 sd of the total"
    start = f"epoch {since:g}" if since else "the start"
    title = rf"growth of $q\cdot d^+/\tau$ since {start} (natural log)"
    return _split_figure(shown.rename(columns={"system": "row"}), systems, title, note), shown


@_styled
def case_log(case: pd.DataFrame) -> Drawn:
    """The same split for the case's published training log, each epoch against epoch 1.

    case: magnitude.case_arithmetic(); shown are its epoch, positive_logit, implied_cosine, query, document, angle, total.
    shown: epoch, positive_logit, implied_cosine, part, mean (natural log; there is one run, so no interval).
    """
    parts = [*PART_STYLE, "total"]
    rows = _require(case, "case_log", [], ["epoch", "positive_logit", "implied_cosine", *parts])
    _unique(rows, "case_log", ["epoch"])
    keys = ["epoch", "positive_logit", "implied_cosine"]
    shown = rows.melt(id_vars=keys, value_vars=parts, var_name="part", value_name="mean")
    shown = shown.sort_values("epoch", kind="stable")

    def label(row: Any) -> str:
        return f"epoch {row.epoch:g}\n(logit {row.positive_logit:.3g}, cos {row.implied_cosine:.2f})"

    drawn = shown.assign(row=[label(row) for row in shown.itertuples()], sd=np.nan)
    note = "the case's own log, one run; lengths and cosine follow from its standard deviations"
    title = r"growth since epoch 1 (natural log)"
    return _split_figure(drawn, list(dict.fromkeys(drawn["row"])), title, note), shown


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval: systems, similarities, hubs, ablations


@_styled
def systems_forest(systems: pd.DataFrame) -> Drawn:
    """The systems table as a figure: mean nDCG with its 95 % interval, best first, against the baseline's line.

    systems: results.SYSTEM_COLUMNS filtered to one track and one metric, a row a (system, dataset), 'average' among them.
    Lower axis: the metric, of the averages. Upper axis: percent of the baseline's average; on it each small grey dot is
    one data set's change against its own baseline. If systems lie both within 10 % of the baseline and beyond, a second
    panel magnifies the first kind. Right margin: mean, change, * for p < 0.05.
    shown: track, system, dataset, metric, mean, baseline, ci_low, ci_high, delta_percent, p_value; averages first.
    """
    names, maybe = ["track", "system", "dataset", "metric"], ["ci_low", "ci_high", "delta_percent", "p_value"]
    rows = _require(systems, "systems_forest", names, ["mean", "baseline"], maybe)
    track, metric = (_one(rows, "systems_forest", name) for name in ("track", "metric"))
    _unique(rows, "systems_forest", ["system", "dataset"])
    average = rows[rows["dataset"] == "average"].sort_values("mean", ascending=False, kind="stable")
    if average.empty:
        raise InputError("systems_forest: no row with dataset 'average'")
    baseline = _baseline(average, "systems_forest")
    order = {name: i for i, name in enumerate(average["system"])}
    single = rows[(rows["dataset"] != "average") & rows["system"].isin(order)]
    near = _magnified(average, baseline)
    figure, axes = _row_panels(len(average), bool(near.any()), 1.35)
    looks = styles(order)
    for axis, zoomed in zip(axes, (False, True), strict=False):
        _baseline_line(axis, baseline)
        inside = set(average["system"][near]) if zoomed else set(order)
        for row in single.itertuples():
            if row.system in inside and row.system != "baseline":
                position = baseline * (1 + row.delta_percent / 100)
                axis.plot(position, order[row.system] + 0.27, label=row.dataset, **_DATASET_MARK)
        for row in average.itertuples():
            if row.system in inside:
                _dot(axis, order[row.system], row, looks[row.system], label=row.system)
            else:
                _off_scale(axis, order[row.system], row, baseline, looks[row.system])
        last = axis is axes[-1]
        _rows_axis(axis, list(order) if axis is axes[0] else [""] * len(order), _margin(average) if last else None)
        axis.set_xlabel(f"{_metric(metric)}, average" + (NEAR_NOTE if zoomed else ""))
        _even_ticks(axis.xaxis)
        _percent_axis(axis, baseline)
    handles = [
        Line2D([], [], color="#404040", marker="o", label="mean and 95 % interval (seeds and queries)"),
        Line2D([], [], label="one data set, change against its own baseline (upper axis)", **_DATASET_MARK),
        Line2D([], [], label="baseline", **_BASELINE_LINE),
    ]
    stars = "* p < 0.05, paired randomisation test over queries, Holm-corrected"
    _legend(figure, handles if len(single) else handles[::2], f"{track} track; {stars}")
    return figure, pd.concat([average, single.sort_values("system", key=lambda s: s.map(order), kind="stable")])


def _metric(name: str) -> str:
    """'ndcg@10' as it is written in prose: nDCG@10."""
    return name.replace("ndcg", "nDCG").replace("mrr", "MRR")


def _margin(average: pd.DataFrame) -> list[str]:
    """Right-margin text of the forest: mean, change, star."""
    return [
        f"{row.mean:.3f}"
        + ("" if row.system == "baseline" or np.isnan(row.delta_percent) else f"  {row.delta_percent:+.1f} %").replace("-", "−")
        + (" *" if row.p_value < 0.05 else "")
        for row in average.itertuples()
    ]  # fmt: skip


@_styled
def smoke_full(table: pd.DataFrame) -> Drawn:
    """Few training pairs against many: two intervals a system, against the baseline's line.

    table: columns system, pairs ('smoke' and 'full', or two counts), mean, ci_low, ci_high (nDCG@10, 95 %), baseline. The
    smaller size is drawn hollow, the larger filled. If systems lie both within 10 % of the baseline and beyond, a second
    panel magnifies the first kind. shown: the same columns, larger mean (of the larger size) first.
    """
    shown = _require(table, "smoke_full", ["system", "pairs"], ["mean", "baseline"], ["ci_low", "ci_high"])
    _unique(shown, "smoke_full", ["system", "pairs"])
    baseline = _baseline(shown, "smoke_full")
    sizes = shown["pairs"].unique().tolist()
    sizes = ["smoke", "full"] if set(sizes) == {"smoke", "full"} else sorted(sizes, key=float) if _counts(sizes) else []
    if len(sizes) != 2:
        raise InputError(
            f"smoke_full: column pairs holds {', '.join(map(str, shown['pairs'].unique()))}; "
            "expected 'smoke' and 'full', or two counts"
        )
    best = shown[shown["pairs"] == sizes[1]].set_index("system")["mean"]
    best = best.reindex(shown["system"].unique()).sort_values(ascending=False, kind="stable")
    order = {system: i for i, system in enumerate(best.index)}
    shown = shown.sort_values(
        ["system", "pairs"], key=lambda s: s.map(order | {size: i for i, size in enumerate(sizes)})
    )
    near = _magnified(shown, baseline)
    figure, axes = _row_panels(round(1.5 * len(order)), bool(near.any()), 1.05)
    looks = styles(order)
    for axis, zoomed in zip(axes, (False, True), strict=False):
        _baseline_line(axis, baseline)
        for visible, row in zip(near, shown.itertuples(), strict=True):
            large, look = row.pairs == sizes[1], looks[row.system]
            y = order[row.system] + (0.18 if large else -0.18)
            if visible or not zoomed:
                fill = look["color"] if large else "white"
                _dot(axis, y, row, look, markerfacecolor=fill, label=f"{row.system} {row.pairs}")
            else:
                _off_scale(axis, y, row, baseline, look)
        _rows_axis(axis, list(order) if axis is axes[0] else [""] * len(order))
        axis.set_xlabel("nDCG@10" + (NEAR_NOTE if zoomed else ""))
        _even_ticks(axis.xaxis)
        _percent_axis(axis, baseline)
    grey = {"color": "#404040", "marker": "o"}
    labels = [f"{size:,} pairs" if isinstance(size, int) else f"{size} pairs" for size in sizes]
    handles = [
        Line2D([], [], markerfacecolor="white", label=labels[0], **grey), Line2D([], [], label=labels[1], **grey),
        Line2D([], [], label="baseline", **_BASELINE_LINE),
    ]  # fmt: skip
    _legend(figure, handles, "bar: 95 % interval")
    return figure, shown


def _counts(values: Iterable[Any]) -> bool:
    """Whether every value is a number, or text that reads as one."""
    return bool(pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce").notna().all())


@_styled
def oracle_room(table: pd.DataFrame) -> Drawn:
    """How much room a head has: systems by track, and the oracle fitted on the test judgements: a bound, not a system.

    table: columns track, system, kind ('system' or 'oracle'), mean, ci_low, ci_high (nDCG@10, 95 %). In each track the grey
    span runs from its best system to its best oracle; a system named 'baseline' also draws a line. shown: the same columns.
    """
    shown = _require(table, "oracle_room", ["track", "system", "kind"], ["mean"], ["ci_low", "ci_high"])
    _unique(shown, "oracle_room", ["track", "system"])
    if wrong := sorted(set(shown["kind"]) - {"system", "oracle"}):
        raise InputError(f"oracle_room: column kind holds {', '.join(wrong)}; expected 'system' or 'oracle'")
    tracks = list(dict.fromkeys(shown["track"]))
    shown = shown.sort_values(["track", "mean"], ascending=[True, False], kind="stable",
                              key=lambda s: s.map(tracks.index) if s.name == "track" else s)  # fmt: skip
    figure = _figure(COLUMN, (len(shown) + len(tracks)) * ROW + 0.95)
    axis = figure.subplots()
    looks = styles(shown.loc[shown["kind"] == "system", "system"])
    labels, headings, margin = [], [], []
    for track, rows in shown.groupby("track", sort=False):
        headings.append(len(labels))
        labels.append(track)
        margin.append("")
        top = len(labels)
        for y, row in enumerate(rows.itertuples(), start=top):
            look = _ORACLE if row.kind == "oracle" else looks[row.system]
            _dot(axis, y, row, look, label=f"{track} {row.system}")
            labels.append(row.system)
            margin.append(f"{row.mean:.3f}")
        best = rows.groupby("kind")["mean"].max()
        if {"system", "oracle"} <= set(best.index):
            span = (best["system"], top - 0.45), best["oracle"] - best["system"], len(rows) - 0.1
            axis.add_patch(Rectangle(*span, facecolor="#DDDDDD", edgecolor="none", zorder=0.5))
        if "baseline" in set(rows["system"]):
            value = rows.set_index("system").loc["baseline", "mean"]
            axis.plot([value, value], [top - 0.45, top + len(rows) - 0.55], **_BASELINE_LINE)
    _rows_axis(axis, labels, margin)
    for y in headings:
        axis.get_yticklabels()[y].set_fontweight("bold")
    axis.set_xlabel("nDCG@10")
    _even_ticks(axis.xaxis)
    handles = [
        Line2D([], [], color="#404040", marker="o", label="system"),
        Line2D([], [], label="oracle: fitted on the test judgements", **_ORACLE),
        Patch(facecolor="#DDDDDD", label="room: best system to best oracle"),
        Line2D([], [], label="baseline", **_BASELINE_LINE),
    ]
    _legend(figure, handles, "bar: 95 % interval")
    return figure, shown


@_styled
def similarity_matrix(table: pd.DataFrame) -> Drawn:
    """Similarity in training x similarity in evaluation: nDCG@10 and its change against the baseline in each cell.

    table: columns similarity_train, similarity_eval, mean, sd (over seeds; empty where there is one run), delta_percent, and
    optionally p_value (Holm-corrected, of the cell against the system's own evaluation; empty where there is no test): a
    star where it is below 0.05. One row a cell, a cell without a row is hatched. Colour: the change, the same distance above
    and below the baseline equally strong. Framed: the evaluation ranks the documents of every query as the similarity in
    training does: the same one, or dot for qnorm and cosine for dnorm. shown: the same columns.
    """
    optional = [name for name in ("p_value",) if name in table.columns]
    shown = _require(
        table,
        "similarity_matrix",
        ["similarity_train", "similarity_eval"],
        ["mean", "delta_percent"],
        ["sd", *optional],
    )
    _unique(shown, "similarity_matrix", ["similarity_train", "similarity_eval"])
    first = list(SIMILARITIES)
    train, evaluated = (
        sorted(shown[name].unique(), key=lambda s: (first.index(s) if s in first else len(first), s))
        for name in ("similarity_train", "similarity_eval")
    )
    shown = shown.sort_values(
        ["similarity_train", "similarity_eval"], kind="stable",
        key=lambda s: s.map((train if s.name == "similarity_train" else evaluated).index),
    )  # fmt: skip
    figure = _figure(COLUMN if len(evaluated) <= 3 else PAGE, 0.34 * len(train) + 0.95)
    axis = figure.subplots()
    limit = float(shown["delta_percent"].abs().max())
    colours, norm = colormaps["RdBu"], Normalize(-(limit or 1), limit or 1)
    axis.set_facecolor("#F2F2F2")
    for row in shown.itertuples():
        x, y = evaluated.index(row.similarity_eval), train.index(row.similarity_train)
        colour = colours(norm(row.delta_percent))
        luminance = np.dot(colour[:3], (0.2126, 0.7152, 0.0722))
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
        spread = f" ± {row.sd:.3f}" if np.isfinite(row.sd) else ""
        star = " *" if optional and row.p_value < 0.05 else ""
        text = f"{row.mean:.3f}{spread}{star}\n{row.delta_percent:+.1f} %".replace("-", "−")
        axis.text(x, y, text, ha="center", va="center", color="black" if luminance > 0.42 else "white", linespacing=1.1)
        if len({_RANKED_AS.get(name, name) for name in (row.similarity_train, row.similarity_eval)}) == 1:
            axis.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=BLACK, linewidth=1.2))
    there = set(zip(shown["similarity_train"], shown["similarity_eval"], strict=True))
    for y, x in ((y, x) for y in range(len(train)) for x in range(len(evaluated))):
        if (train[y], evaluated[x]) not in there:
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////"))
    axis.set_xlim(-0.5, len(evaluated) - 0.5)
    axis.set_ylim(len(train) - 0.5, -0.5)
    axis.set_xticks(range(len(evaluated)), evaluated)
    axis.set_yticks(range(len(train)), train)
    axis.set_xlabel("similarity in evaluation")
    axis.set_ylabel("similarity in training")
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    handles = [Patch(fill=False, edgecolor=BLACK, linewidth=1.2, label="same ranking as in training")]
    if len(there) < len(train) * len(evaluated):
        handles.append(Patch(facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////", label="not run"))
    spread = ", mean ± sd over seeds," if shown["sd"].notna().any() else ""
    note = f"nDCG@10{spread} and its change against the frozen baseline (blue above it, red below it)"
    if optional:
        note += "; *: p < 0.05 (Holm) against the system's own evaluation"
    _legend(figure, handles, note)
    return figure, shown


@_styled
def hubness_bars(table: pd.DataFrame) -> Drawn:
    """Hubness of the top-10 lists: skewness of N_10, documents that are never retrieved, Robin Hood index.

    table: a row a system with k_skewness, anti_hubs, robin_hood (evaluate.hubness, means over seeds) and the standard
    deviations over seeds k_skewness_sd, anti_hubs_sd, robin_hood_sd (empty where there is one run).
    shown: system, measure, mean, sd.
    """
    spreads = [f"{name}_sd" for name in _HUBNESS]
    rows = _require(table, "hubness_bars", ["system"], _HUBNESS, spreads)
    _unique(rows, "hubness_bars", ["system"])
    systems = _in_order(rows["system"])
    rows = rows.set_index("system").loc[systems].reset_index()
    shown = pd.concat(
        [
            pd.DataFrame({"system": rows["system"], "measure": name, "mean": rows[name], "sd": rows[f"{name}_sd"]})
            for name in _HUBNESS
        ]
    )
    figure = _figure(PAGE, len(rows) * ROW + 0.8)
    axes = figure.subplots(1, len(_HUBNESS))
    looks = styles(systems)
    for axis, (measure, label) in zip(axes, _HUBNESS.items(), strict=True):
        for y, row in enumerate(shown[shown["measure"] == measure].itertuples()):
            colour = looks[row.system]["color"]
            axis.barh(y, row.mean, height=0.66, color=_paler(colour), edgecolor=colour, label=row.system)
            axis.plot([row.mean - row.sd, row.mean + row.sd], [y, y], color=BLACK, linewidth=1.2, solid_capstyle="butt")
        _rows_axis(axis, systems if axis is axes[0] else [""] * len(rows))
        axis.set_xlabel(label)
        _even_ticks(axis.xaxis)
    _legend(figure, [Line2D([], [], color=BLACK, linewidth=1.2, label="± 1 sd over seeds")])
    return figure, shown


@_styled
def length_relevance(table: pd.DataFrame) -> Drawn:
    """Are longer embeddings retrieved more often than they are relevant? One panel a system, by document length.

    table: columns system, retrieved_rate (in a top-10), relevant_rate (judged relevant), and length_decile (1 = shortest)
    or length (mean |d| of a bin; bins hold equally many documents). A rate may be a share of documents, of queries or of
    results: each is drawn relative to its system's mean over the bins, so 1 is the average document
    (magnitude.rates_by_length gives it so already). Optionally retrieved_low and retrieved_high, the range of retrieved_rate
    over seeds (empty where there is none), drawn as a band on the same scale, with seeds, their number.
    shown: the same columns, with retrieved_relative and relevant_relative, and retrieved_low_relative and
    retrieved_high_relative of a band.
    """
    x = next((name for name in ("length_decile", "length") if name in table.columns), "length_decile")
    band = ["retrieved_low", "retrieved_high"] if {"retrieved_low", "retrieved_high"} & set(table.columns) else []
    numbers = [x, "retrieved_rate", "relevant_rate", *(["seeds"] if band else [])]
    shown = _require(table, "length_relevance", ["system"], numbers, band)
    _unique(shown, "length_relevance", ["system", x])
    systems = _in_order(shown["system"])
    shown = shown.sort_values(["system", x], key=lambda s: s.map(systems.index) if s.name == "system" else s)
    for kind in ("retrieved", "relevant"):
        rate = shown[f"{kind}_rate"]
        average = rate.groupby(shown["system"]).transform("mean")
        shown[f"{kind}_relative"] = rate / average
        if kind == "retrieved":
            for edge in band:
                shown[f"{edge}_relative"] = shown[edge] / average
    figure, axes = _panels(systems, 1.35, sharey=True)
    looks = styles(systems)
    for axis, system in zip(axes, systems, strict=True):
        rows = shown[shown["system"] == system]
        axis.axhline(1, color="#404040", linewidth=0.6)
        axis.plot(rows[x], rows["relevant_relative"], label="relevant", color="#404040", linestyle=DASHED)
        axis.plot(rows[x], rows["retrieved_relative"], label="retrieved", **(looks[system] | {"linestyle": "-"}))
        if band:
            edges = rows["retrieved_low_relative"], rows["retrieved_high_relative"]
            axis.fill_between(rows[x], *edges, color=looks[system]["color"], alpha=0.22, linewidth=0)
        axis.set_xlabel("decile of $|d|$" if x == "length_decile" else "document length $|d|$")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=x == "length_decile"))
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("rate, relative to\nthe average document")
    axes[0].set_ylim(bottom=0)
    handles = [
        Line2D([], [], color="#404040", marker="o", label="in a top-10 list"),
        Line2D([], [], color="#404040", linestyle=DASHED, label="judged relevant"),
    ]
    if band and len(several := shown.loc[shown["seeds"] > 1, "seeds"]):
        label = f"band: range of {_seeds(several)}"
        handles.append(Patch(facecolor="#404040", alpha=0.22, linewidth=0, label=label))
    _legend(figure, handles)
    return figure, shown


@_styled
def ablation_grid(table: pd.DataFrame) -> Drawn:
    """What moves nDCG@10: learning rate along the axis, one panel a start, one line a similarity, the baseline dotted.

    table: columns similarity, start, lr, mean, ci_low, ci_high (95 %), baseline, and optionally seeds, the number of runs
    behind a mean, which the note then says; one row a combination. Points of one learning rate stand a little apart so that
    their intervals can be told from each other. shown: the same columns.
    """
    numbers = ["lr", "mean", "baseline", *(["seeds"] if "seeds" in table.columns else [])]
    shown = _require(table, "ablation_grid", ["similarity", "start"], numbers, ["ci_low", "ci_high"])
    _unique(shown, "ablation_grid", ["similarity", "start", "lr"])
    baseline = _baseline(shown, "ablation_grid")
    if not (shown["lr"] > 0).all():
        raise InputError(f"ablation_grid: lr falls to {shown['lr'].min():g}; a logarithmic axis needs it above 0")
    starts, similarities = list(dict.fromkeys(shown["start"])), list(dict.fromkeys(shown["similarity"]))
    others = [name for name in similarities if name not in SIMILARITY_STYLE]
    looks = SIMILARITY_STYLE | dict(zip(others, NEUTRAL_STYLES, strict=False))
    shown = shown.sort_values(
        ["start", "similarity", "lr"], kind="stable",
        key=lambda s: s if s.name == "lr" else s.map((starts if s.name == "start" else similarities).index),
    )  # fmt: skip
    figure, axes = _panels([f"{start} start" for start in starts], 1.75, sharey=True, sharex=True)
    for axis, start in zip(axes, starts, strict=True):
        axis.set_xscale("log")
        axis.axhline(baseline, **_BASELINE_LINE)
        for i, similarity in enumerate(similarities):
            rows = shown[(shown["start"] == start) & (shown["similarity"] == similarity)]
            if rows.empty:
                continue
            apart = 1.15 ** (i - (len(similarities) - 1) / 2)
            axis.vlines(
                rows["lr"] * apart, rows["ci_low"], rows["ci_high"], color=looks[similarity]["color"], linewidth=1
            )
            axis.plot(rows["lr"] * apart, rows["mean"], label=similarity, **looks[similarity])
        axis.set_xlabel("learning rate")
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("nDCG@10")
    for axis in axes:
        _log_ticks(axis.xaxis)
    handles = [
        *_handles({name: looks[name] for name in similarities}),
        Line2D([], [], label="baseline", **_BASELINE_LINE),
    ]
    mean = f"mean of {_seeds(shown['seeds'])}, " if "seeds" in shown.columns else ""
    _legend(figure, handles, f"{mean}bar: 95 % interval")
    return figure, shown


@_styled
def parity(table: pd.DataFrame, tolerance: float = 5e-4) -> Drawn:
    """Our nDCG@10 of the frozen encoder minus the published value, against the tolerance; the right margin gives both.

    table: columns dataset, ours, published, difference (ours - published). Vermillion: beyond the tolerance. shown: the same
    columns.
    """
    shown = _require(table, "parity", ["dataset"], ["ours", "published", "difference"])
    _unique(shown, "parity", ["dataset"])
    figure = _figure(COLUMN, len(shown) * ROW + 0.85)
    axis = figure.subplots()
    axis.axvspan(-tolerance, tolerance, color="#E4E4E4", zorder=0.5)
    axis.axvline(0, color="#404040", linewidth=0.6)
    for y, row in enumerate(shown.itertuples()):
        look = _style(VERMILLION, "X") if abs(row.difference) > tolerance else _style(BLUE, "o")
        axis.plot(row.difference, y, label=row.dataset, **(look | {"linestyle": ""}))
    reach = 1.25 * max(tolerance, float(shown["difference"].abs().max()))
    axis.set_xlim(-reach, reach)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(4, symmetric=True))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4f}".replace("-", "−")))
    _rows_axis(axis, list(shown["dataset"]), [f"{row.ours:.5f} / {row.published:.5f}" for row in shown.itertuples()])
    axis.set_xlabel("ours − published, nDCG@10")
    _legend(figure, [Patch(color="#E4E4E4", label=f"tolerance ± {tolerance:g}")], "right margin: ours / published")
    return figure, shown
