"""The look that all figures share: one style sheet in physical sizes, one colour and marker a system, a CSV beside each figure.

A figure function takes a table that was computed elsewhere and returns (figure, shown): `shown` is the table of exactly what
is drawn. Colours are Okabe & Ito's (jfly.uni-koeln.de/color), with darker ones for the last systems; no figure relies on
colour alone.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from asymlib.files import atomic_path, safe_name
from asymlib.losses import SIMILARITIES

STYLE_SHEET = Path(__file__).with_name("paper.mplstyle")
COLUMN, PAGE = 3.35, 6.9  # inches: one column of a two-column paper, and both with the gap between them
ROW = 0.19  # inches of height for a row of text

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK, PALE = "#404040", "#A8A8A8"  # what has no colour of its own
DASHED, DOTTED, DASH_DOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))
BASELINE_LINE = {"color": BLACK, "linestyle": DOTTED, "linewidth": 0.9}
TICK = {"color": BLACK, "marker": "|", "markersize": 8, "markeredgewidth": 1.4, "linestyle": ""}  # one value on a bar

Look = dict[str, Any]
Drawn = tuple[matplotlib.figure.Figure, pd.DataFrame]


def _look(color: str, marker: str, linestyle: Any = "-") -> Look:
    size = {"*": 5.4, "p": 4.6}.get(marker, 3.6)
    return {"color": color, "marker": marker, "linestyle": linestyle, "markersize": size}


SYSTEM_STYLE: dict[str, Look] = {
    "baseline": _look(BLACK, "s", DOTTED),
    "asym-dot": _look(VERMILLION, "o"),
    "asym-cos": _look(SKY, "^"),
    "asym-cos-identity": _look(BLUE, "D"),
    "asym-qnorm": _look(GREEN, "v", DASHED),
    "asym-dnorm": _look(PURPLE, "<", DASHED),
    "asym-euclidean": _look(ORANGE, "P"),
    "iso15-pred12": _look("#7A4B1D", "X", DASH_DOT),
    "respred": _look("#332288", ">", DASHED),
    "whitened": _look("#882255", "*", DASH_DOT),
    "best-head": _look("#7800F0", "p"),
}
OLIVE, MAGENTA = "#808000", "#E0119D"
KIN = {  # a family's colour, and the marker of what else differs: the similarity, the head under the whitening
    VERMILLION: {"asym-dot-iso01": "d", "asym-dot-iso0": "h", "asym-gamma": "8"},
    SKY: {"asym-cos-iso01": "d", "asym-cos-iso0": "h"},
    BLUE: {"identity-dot": "o", "identity-cos": "^", "identity-qnorm": "v", "identity-dnorm": "<"}
    | {"identity-gamma": "8", "llamaindex-adapter": ">"},
    SYSTEM_STYLE["whitened"]["color"]: {"best-head-whitened": "p", "asym-cos-identity-whitened": "D"},
    OLIVE: {"bm25": "s", "hybrid": "D", "lexical": "o", "lexical-normalised": "v", "lexical-head": "P"}
    | {"lexical-head-normalised": "X"},
    MAGENTA: {"unfrozen-top-1-dot": "o", "unfrozen-top-1-cosine": "^", "unfrozen-top-2-dot": "v"}
    | {"unfrozen-top-2-cosine": "D"},
}
SYSTEM_STYLE |= {name: _look(color, marker) for color, kin in KIN.items() for name, marker in kin.items()}
NEUTRAL_STYLES = [
    _look(color, marker, line) for color, line in (("#5F5F5F", "-"), ("#9A9A9A", DASHED)) for marker in "dh8H"
]
SIMILARITY_STYLE = {name: SYSTEM_STYLE[f"asym-{name}".replace("cosine", "cos")] for name in SIMILARITIES}


def looks(names: Iterable[str], known: dict[str, Look] = SYSTEM_STYLE) -> dict[str, Look]:
    """Colour, marker and line of each name: its own where it has one, greys in turn for the others."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in known]
    return {name: known.get(name) or NEUTRAL_STYLES[others.index(name) % len(NEUTRAL_STYLES)] for name in names}


class Figure(matplotlib.figure.Figure):
    """A figure of a size in inches outside pyplot's global list, which a notebook shows at 150 dpi of that size."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        return _rendered(self, "png", 150)


def _rendered(figure: matplotlib.figure.Figure, kind: str, dpi: int) -> bytes:
    """The bytes of a figure as 'png' or 'pdf', without a date or a version in them."""
    metadata = dict.fromkeys(("CreationDate", "Creator", "Producer") if kind == "pdf" else ("Software",))
    buffer = io.BytesIO()
    with style.context(STYLE_SHEET, after_reset=True):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def save(figure: matplotlib.figure.Figure, shown: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write folder/name.pdf, .png (300 dpi) and .csv (`shown`, 8 significant digits), each whole or not at all.

    The same figure gives the same bytes. Returns the three paths.
    """
    safe_name(name, "figure name")
    text = shown.to_csv(index=False, float_format="%.8g", lineterminator="\n")
    parts = {"pdf": _rendered(figure, "pdf", 300), "png": _rendered(figure, "png", 300), "csv": text.encode()}
    for kind, content in parts.items():
        with atomic_path(Path(folder) / f"{name}.{kind}") as temporary:
            temporary.write_bytes(content)
    return [Path(folder) / f"{name}.{kind}" for kind in parts]


def drawn(function: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """Draw under the style sheet alone, lay the figure out there, then fix the layout: saving it cannot move anything.

    A value that is not finite reaches the function as NaN. A table without rows gives a figure that says so.
    """

    @functools.wraps(function)
    def draw(table: pd.DataFrame, *args: Any, **kwargs: Any) -> Drawn:
        with style.context(STYLE_SHEET, after_reset=True):
            if table.empty:
                figure, shown = Figure(COLUMN, 0.5), pd.DataFrame({"note": ["The table has no rows."]})
                figure.text(0.5, 0.5, shown["note"][0], ha="center", va="center")
            else:
                figure, shown = function(table.replace([np.inf, -np.inf], np.nan), *args, **kwargs)
            for _ in range(2):  # the second time with the ticks that the first one chose
                figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure, shown.reset_index(drop=True)

    return draw


def panels(titles: Sequence[str], height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """One panel a title, up to two in a column's width, else up to four a row of the page's."""
    count = len(titles)
    columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
    rows = -(-count // columns)
    figure = Figure(COLUMN if count <= 2 else PAGE, rows * height + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for axis in grid[count:]:
        axis.remove()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title)
        axis.tick_params(labelbottom=True)  # of a shared axis too: there may be no panel below
    return figure, list(grid[:count])


def text_rows(axis: Axes, labels: Sequence[str], xlabel: str = "") -> None:
    """Rows of text on the left, the first at the top, over even ticks; no horizontal grid."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set(ylim=(len(labels) - 0.4, -0.6), xlabel=xlabel)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    even_ticks(axis.xaxis)


def beside(axis: Axes, y: float, *columns: tuple[str, float]) -> None:
    """Text at the right of row y, each with the distance of its right end from the axis, in points."""
    for text, distance in columns:
        at = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        axis.annotate(text, (1, y), (distance, 0), va="center_baseline", ha="right", annotation_clip=False, **at)


def inside(axis: Axes, y: float, text: str) -> None:
    """Words in row y in place of a mark."""
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axis.text(0.03, y, text, transform=axis.get_yaxis_transform(), va="center_baseline", bbox=white, in_layout=False)


def even_ticks(axis: Axis) -> None:
    """At most 5 steps of 1, 2 or 5 times a power of ten, and at least three ticks."""
    axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))


def legend(figure: Figure, handles: Sequence[Any], note: str = "") -> None:
    """A legend below the axes in as many columns as fit, under a note that says what lines, bands and bars are."""
    note = textwrap.fill(note, int(18 * figure.get_figwidth()), break_on_hyphens=False)  # a system's name stays whole
    count = max(1, len(handles))  # without a handle there is still the note
    for rows in range(1, count + 1):
        columns = -(-count // rows)
        below = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=note or None)
        if columns == 1 or below.get_window_extent().width <= figure.bbox.width:
            return
        below.remove()


def of_seeds(counts: pd.Series) -> str:
    """'1 seed', '5 seeds', '3 to 5 seeds'."""
    few, many = counts.min(), counts.max()
    return f"{few:g} to {many:g} seeds" if few != many else "1 seed" if many == 1 else f"{many:g} seeds"
