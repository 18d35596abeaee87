"""The write-up: tables in, Markdown and self-contained HTML out. Every number in the prose comes from a table.

facts() reads a results folder and computes what the sentences need; the templates in asymlib/templates hold the sentences. The
verdicts on the case's three lessons are decided by the rules below, never typed.
"""

import base64
import html
import re
from pathlib import Path
from typing import Any

import mistune
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from asymlib import magnitude, results
from asymlib.errors import InputError
from asymlib.files import write_text
from asymlib.systems import SYSTEMS

SIGNIFICANT = 0.05
DAMAGED = -10.0  # percent of the baseline's nDCG@10 below which a system counts as damaged in lesson two
METRIC = "ndcg@10"


def _number(value: float, digits: int = 3) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


def _percent(value: float, digits: int = 1) -> str:
    """A change that is already in percent, signed."""
    return "–" if value is None or pd.isna(value) else f"{value:+.{digits}f} %".replace("-", "−")


def _share(value: float, digits: int = 0) -> str:
    """A ratio as a percentage."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.{digits}f} %".replace("-", "−")


def _p_value(value: float) -> str:
    if value is None or pd.isna(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _p_equals(value: float) -> str:
    return f"p {'' if value < 0.001 else '= '}{_p_value(value)}"


def _factor(log: float) -> str:
    """A natural logarithm as the factor that it stands for."""
    return "–" if pd.isna(log) else f"{np.exp(log):.1f}"


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) if names else "none"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("asymlib"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "num": _number,
        "percent": _percent,
        "share": _share,
        "p": _p_value,
        "p_equals": _p_equals,
        "factor": _factor,
        "codes": _codes,
    }
    return environment


def lesson_dot(systems: pd.DataFrame, against: dict[str, float], ablations: pd.DataFrame | None) -> dict[str, Any]:
    """Lesson one: never train a contrastive loss on raw dot products of unnormalised embeddings.

    confirmed: cosine beats dot (p < 0.05) and cosine is not below the baseline. refined: cosine beats dot, but cosine is itself
    significantly below the baseline, or some run on dot products is not significantly below it. contradicted: otherwise.
    """
    cosine = systems.loc["asym-cos"]
    harmless = None
    if ablations is not None:
        dots = ablations[ablations["similarity"] == "dot"].sort_values("delta_percent", ascending=False)
        unharmed = dots[(dots["delta_percent"] > 0) | (dots["p_value"] >= SIGNIFICANT)]
        harmless = None if unharmed.empty else unharmed.iloc[0].to_dict()
    cosine_hurts = bool(cosine["delta_percent"] < 0 and cosine["p_value"] < SIGNIFICANT)
    better = against["difference"] < 0 and against["p_value"] < SIGNIFICANT
    verdict = "contradicted" if not better else "refined" if cosine_hurts or harmless else "confirmed"
    lost = systems.loc["asym-dot", "baseline"] - against["a"]
    recovered = (against["b"] - against["a"]) / lost if lost else np.nan
    return {"verdict": verdict, "cosine_hurts": cosine_hurts, "harmless": harmless, "recovered": recovered, **against}


def lesson_log(systems: pd.DataFrame, warnings: pd.DataFrame, ablations: pd.DataFrame | None = None) -> dict[str, Any]:
    """Lesson two: log these statistics in every run.

    A run is warned when most of its seeds raise a rule in training that their untrained start had not raised. Judged: every
    trained system and every cell of the ablation's grid. Damaged: nDCG@10 more than 10 % below the baseline; healthy: not
    below it. confirmed: every damaged run is warned, about length or std among others, and no healthy one is.
    contradicted: most damaged runs are not warned. refined: anything between.
    """
    seeds = int(systems.loc[systems["seeds"] > 1, "seeds"].max()) if (systems["seeds"] > 1).any() else 1
    found = magnitude.rules_in_training(warnings, seeds)
    rules = {name: found.get(name, []) for name in systems.index if name in SYSTEMS and SYSTEMS[name].trained}
    change = systems["delta_percent"].to_dict()
    for row in [] if ablations is None else ablations.to_dict("records"):
        name = f"{row['similarity']}, {row['start']} start, {row['lr']:g}"
        rules[name] = row["warnings"].split(", ") if isinstance(row["warnings"], str) and row["warnings"] else []
        change[name] = row["delta_percent"]
    damaged = [name for name in rules if change[name] < DAMAGED]
    silent = [name for name in damaged if not rules[name]]
    no_length = [name for name in damaged if rules[name] and not any("length" in r or "std" in r for r in rules[name])]
    false = [name for name in rules if change[name] >= 0 and rules[name]]
    contradicted = len(silent) > len(damaged) / 2
    verdict = "contradicted" if contradicted else "refined" if silent or no_length or false else "confirmed"
    return {"verdict": verdict, "rules": rules, "change": change, "damaged": damaged, "silent": silent,
            "no_length": no_length, "false": false, "threshold": -DAMAGED}  # fmt: skip


def lesson_same(matrix: pd.DataFrame) -> dict[str, Any]:
    """Lesson three: train and evaluate with the same similarity.

    Judged per training similarity against evaluation by dot, cosine and Euclidean distance; qnorm ranks as dot does and dnorm
    as cosine does. It holds where no other evaluation is significantly better (Holm-corrected p < 0.05). confirmed: it holds
    for all; contradicted: for none; refined: for some.
    """
    rows = []
    for trained, part in matrix.groupby("similarity_train", sort=False):
        own, others = part[part["own"]].iloc[0], part[~part["own"]]
        other = others.loc[others["mean"].idxmax()]
        better = bool(((others["mean"] > own["mean"]) & (others["p_value"] < SIGNIFICANT)).any())
        rows.append({"trained": trained, "own": own["mean"], "evaluated": own["similarity_eval"], "other": other["similarity_eval"],
                     "other_mean": other["mean"], "gain": other["mean"] - own["mean"], "p_value": other["p_value"],
                     "holds": not better})  # fmt: skip
    held = sum(row["holds"] for row in rows)
    verdict = "confirmed" if held == len(rows) else "contradicted" if held == 0 else "refined"
    return {"verdict": verdict, "rows": rows}


def _chosen(ablations: pd.DataFrame) -> dict[str, Any]:
    """The cell of the grid that validation alone would choose, among cosine runs: losses of other similarities differ in scale."""
    cosine = ablations[ablations["similarity"] == "cosine"]
    return cosine.loc[cosine["validation_loss"].idxmin()].to_dict()


def _optional(folder: Path, name: str) -> pd.DataFrame | None:
    return results.read_table(folder, name) if (folder / name).exists() else None


def facts(results_folder: str | Path) -> dict[str, Any]:
    """Everything that the templates may say about a study, computed from its tables; every table must have its origin."""
    folder = Path(results_folder)
    systems = results.read_table(folder, "systems.csv")
    average = systems[(systems["dataset"] == "average") & (systems["metric"] == METRIC)]
    zero = average[average["track"] == "zero-shot"].set_index("system")
    missing = [name for name in SYSTEMS if name not in zero.index]
    if missing:
        raise InputError(
            f"{folder / 'systems.csv'}: no zero-shot {METRIC} 'average' of {', '.join(missing)}; the write-up speaks of every "
            "system, so train the missing ones (02) and evaluate again (04)"
        )
    ablations, effects = _optional(folder, "ablations.csv"), _optional(folder, "ablation_effects.csv")
    attribution, warnings = results.read_table(folder, "attribution.csv"), results.read_table(folder, "warnings.csv")
    matrix = results.read_table(folder, "similarity_matrix.csv")
    contrasts = results.read_table(folder, "contrasts.csv").set_index(["a", "b"])
    against = contrasts.loc[("asym-dot", "asym-cos")].rename({"mean_a": "a", "mean_b": "b"}).to_dict()
    by_cosine = matrix.set_index(["similarity_train", "similarity_eval"]).loc[("dot", "cosine"), "mean"]
    dot = zero.loc["asym-dot"]
    hubness = results.read_table(folder, "hubness.csv").query("track == 'zero-shot'").groupby("system")
    origin = results.read_origin(folder, "systems.csv")
    return {
        "study": folder.name,
        "origin": origin,
        "source": origin["parameters"]["source"],
        "encoder": systems["encoder"].iloc[0],
        "pairs": f"{systems['pairs'].max():,}",
        "systems": systems,
        "datasets": [name for name in systems["dataset"].unique() if name != "average"],
        "tracks": {
            track: part.sort_values("mean", ascending=False) for track, part in average.groupby("track", sort=False)
        },
        "zero": zero,
        "adapted": average[average["track"] == "adapted"].set_index("system"),
        "recipes": results.read_table(folder, "recipes.csv").to_dict("records"),
        "checkpoints": results.read_table(folder, "checkpoints.csv").set_index("system"),
        "contrasts": contrasts,
        "growth": attribution.groupby("system")[["query", "document", "angle", "total", "length_share"]].mean(),
        "trajectory": results.read_table(folder, "trajectory.csv").set_index(["system", "epoch"]),
        "case": magnitude.case_arithmetic().set_index("epoch"),
        "ablations": ablations,
        "effects": effects,
        "chosen": None if ablations is None else _chosen(ablations),
        "hubness": hubness[["k_skewness", "anti_hubs"]].mean(),
        "by_cosine": by_cosine,
        "regained_by_cosine": (by_cosine - dot["mean"]) / (dot["baseline"] - dot["mean"]),
        "lesson_dot": lesson_dot(zero, against, ablations),
        "lesson_log": lesson_log(zero, warnings, ablations),
        "lesson_same": lesson_same(matrix),
        "significant": SIGNIFICANT,
    }


def render(template: str, values: dict[str, Any]) -> str:
    """A template of asymlib/templates filled in; a name that the template uses and `values` lacks is an error."""
    return _environment().get_template(template).render(**values)


STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }
th { border-bottom: 2px solid #555 }
img { max-width: 100%; height: auto; display: block; margin: 1rem auto }
code { background: #f3f3f3; padding: 0 .2em }
h1, h2 { line-height: 1.2 }
blockquote { border-left: 3px solid #999; margin-left: 0; padding-left: 1rem; color: #444 }
"""


def to_html(markdown: str, folder: str | Path) -> str:
    """A self-contained page: pictures that lie below `folder` are embedded, nothing is loaded from elsewhere."""

    def embed(match: re.Match[str]) -> str:
        path = Path(folder) / html.unescape(match[1])
        if not path.exists():
            raise InputError(f"write-up: the picture {path} is missing; run the notebook that draws it first")
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = mistune.create_markdown(plugins=["table"])(markdown)
    body = re.sub(r'src="([^":]+\.png)"', embed, body)
    title = html.escape(next((line[2:] for line in markdown.splitlines() if line.startswith("# ")), "asymlib"))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}</body></html>\n'


def write(results_folder: str | Path, template: str = "reproduce.md.j2") -> Path:
    """Write writeup.md and writeup.html into the results folder; returns the page's path."""
    folder = Path(results_folder)
    markdown = render(template, facts(folder))
    page = to_html(markdown, folder)
    write_text(folder / "writeup.md", markdown)
    write_text(folder / "writeup.html", page)
    return folder / "writeup.html"
