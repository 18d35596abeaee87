"""The write-up: tables in, Markdown and self-contained HTML out. Every number in the prose comes from a table.

    python -m asymlib.writeup [--results data/results/real] [--full data/results/real-full]

facts() reads a results folder and computes what the sentences need, analysis_facts() what ANALYSIS.md says beyond that; the
templates in asymlib/templates hold the sentences. The verdicts, on the case's three lessons and others, are decided by the
rules below, never typed. The command draws the figures of ANALYSIS.md, writes it, and fills the README's table.
"""

import argparse
import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mistune
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from asymlib import evaluate, magnitude, plots, results
from asymlib.datasets import POSITIVES_A_QUERY
from asymlib.errors import InputError, run_command
from asymlib.files import project_path, write_text
from asymlib.systems import SYSTEMS

SIGNIFICANT = 0.05
DAMAGED = -10.0  # percent of the baseline's nDCG@10 below which a system counts as damaged in lesson two
METRIC = "ndcg@10"
TRACKS = ("zero-shot", "adapted", "in-domain")
BEST = "best-head"  # the head that the search chose on validation pairs

# The systems as the case's team published them: average nDCG@10 over its BEIR collections, change in percent of its baseline;
# beside each the system here that stands for it. ISO15_PRED12 and ResPred are our reading of the names.
CASE_SYSTEMS = pd.DataFrame(
    [
        ("Baseline (MPNet, frozen, no heads)", "baseline", 0.4628, np.nan),
        ("ISO15_PRED12", "iso15-pred12", 0.4759, 2.83),
        ("ResPred (epoch 1)", "respred", 0.4416, -4.59),
        ("Asymmetric heads, raw dot product (epoch 3)", "asym-dot", 0.1888, -59.20),
    ],
    columns=["name", "system", "mean", "delta_percent"],
)
CASE_SETUP = {"pairs": 10_000, "epochs": 3, "batch_size": 64}
GOAL = 3.5  # percent above the frozen baseline, with p < 0.05: the case's stretch goal
FALL = -45.0  # percent: a fall of asym-dot at least this deep counts as the case's
STILL = (
    0.1  # change of the mean positive cosine within which it hardly moves; the case's own, implied, is a third of it
)
TOLERANCE = 5e-4  # of parity with published nDCG@10


def _number(value: float, digits: int = 3) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


def _percent(value: float, digits: int = 1) -> str:
    """A change that is already in percent, signed."""
    return "–" if value is None or pd.isna(value) else f"{value:+.{digits}f} %".replace("-", "−")


def _points(value: float, digits: int = 1) -> str:
    """A difference of two changes in percent, in percentage points, signed."""
    return "–" if value is None or pd.isna(value) else f"{value:+.{digits}f}".replace("-", "−")


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


def _plain(value: Any) -> str:
    """A field of a recipe as text, the same for 3 and 3.0: '0.0003', '3', 'linear'."""
    return f"{value:g}" if isinstance(value, int | float | np.number) and not isinstance(value, bool) else str(value)


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
        "points": _points,
        "plain": _plain,
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


def lesson_log(
    systems: pd.DataFrame,
    warnings: pd.DataFrame,
    ablations: pd.DataFrame | None = None,
    watched: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Lesson two: log these statistics in every run.

    A run is warned when most of its seeds raise a rule in training that their untrained start had not raised. Judged: every
    trained system (or those of `watched`) and every cell of the ablation's grid. Damaged: nDCG@10 more than 10 % below the
    baseline; healthy: not below it. confirmed: every damaged run is warned, about length or std among others, and no healthy
    one is. contradicted: most damaged runs are not warned. refined: anything between.
    """
    seeds = int(systems.loc[systems["seeds"] > 1, "seeds"].max()) if (systems["seeds"] > 1).any() else 1
    found = magnitude.rules_in_training(warnings, seeds)
    if watched is None:
        watched = [name for name, system in SYSTEMS.items() if system.trained]
    rules = {name: found.get(name, []) for name in systems.index if name in set(watched)}
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
            "no_length": no_length, "false": false, "healthy": sum(change[name] >= 0 for name in rules),
            "threshold": -DAMAGED}  # fmt: skip


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


def _track(table: pd.DataFrame, where: Path, track: str) -> pd.DataFrame:
    """The rows of one track."""
    if "track" not in table.columns:
        raise InputError(f"{where}: no column 'track', so an older version wrote it; run 04 again")
    return table[table["track"] == track]


def facts(results_folder: str | Path) -> dict[str, Any]:
    """Everything that the templates may say about a study, computed from its tables; every table must have its origin.

    Where a table has several tracks, the zero-shot rows, but for `systems`, `tracks`, `collections` and `adapted`.
    """
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
    contrasts = _track(results.read_table(folder, "contrasts.csv"), folder / "contrasts.csv", "zero-shot")
    contrasts = contrasts.set_index(["a", "b"])
    against = contrasts.loc[("asym-dot", "asym-cos")].rename({"mean_a": "a", "mean_b": "b"}).drop("track").to_dict()
    by_cosine = matrix.set_index(["similarity_train", "similarity_eval"]).loc[("dot", "cosine"), "mean"]
    dot = zero.loc["asym-dot"]
    hubness = results.read_table(folder, "hubness.csv").query("track == 'zero-shot'").groupby("system")
    recipes = results.read_table(folder, "recipes.csv")
    if "track" in recipes.columns:
        recipes = recipes[recipes["track"] == "zero-shot"]
    trajectory = results.read_table(folder, "trajectory.csv").set_index(["system", "epoch"])
    origin = results.read_origin(folder, "systems.csv")
    single = systems[systems["dataset"] != "average"]
    collections = {track: list(part["dataset"].unique()) for track, part in single.groupby("track", sort=False)}
    return {
        "study": folder.name,
        "origin": origin,
        "source": origin["parameters"].get("source"),
        "encoder": systems["encoder"].iloc[0],
        "pairs": f"{zero['pairs'].max():,}",
        "systems": systems,
        "datasets": collections["zero-shot"],
        "collections": collections,
        "tracks": {
            track: part.sort_values("mean", ascending=False) for track, part in average.groupby("track", sort=False)
        },
        "zero": zero,
        "adapted": average[average["track"] == "adapted"].set_index("system"),
        "recipes": recipes.to_dict("records"),
        "checkpoints": results.read_table(folder, "checkpoints.csv").set_index("system"),
        "contrasts": contrasts,
        "growth": attribution.groupby("system")[["query", "document", "angle", "total", "length_share"]].mean(),
        "trajectory": trajectory,
        "case": magnitude.case_arithmetic().set_index("epoch"),
        "ablations": ablations,
        "effects": effects,
        "chosen": None if ablations is None else _chosen(ablations),
        "hubness": hubness[["k_skewness", "anti_hubs"]].mean(),
        "by_cosine": by_cosine,
        "regained_by_cosine": (by_cosine - dot["mean"]) / (dot["baseline"] - dot["mean"]),
        "lesson_dot": lesson_dot(zero, against, ablations),
        "lesson_log": lesson_log(zero, warnings, ablations, trajectory.index.get_level_values("system")),
        "lesson_same": lesson_same(matrix),
        "significant": SIGNIFICANT,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The analysis that the repository shows

TABLES = (
    "systems.csv", "parity.csv", "texts.csv", "ties.csv", "recipes.csv", "contrasts.csv", "checkpoints.csv", "attribution.csv",
    "trajectory.csv", "warnings.csv", "case_log.csv", "length_relevance.csv", "similarity_matrix.csv", "hubness.csv",
    "ablations.csv", "ablation_effects.csv", "choices.csv", "oracle.csv", "overlap.csv", "answers_met.csv",
)  # fmt: skip
DIVERGED = -100.0  # what search.search enters as the change of a candidate that diverged
COMMAND = "ASYMLIB_DATA=<folder> make real"
# Fields that a round of the search changes together are one kind of change.
KINDS = {"lr": "learning rate, epochs", "epochs": "learning rate, epochs", "isotropy": "isotropy and its weight",
         "isotropy_weight": "isotropy and its weight"}  # fmt: skip
SHOWN_IN_TRAINING = ("asym-dot", "asym-cos", "asym-cos-identity", BEST)
SIGNATURE = ("similarity.positive.logit", "similarity.positive.cosine", "length.document.mean", "loss.contrastive")


def _check_tables(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder}: no {', '.join(missing)}; `{COMMAND}` writes it")


def goal(row: pd.Series) -> dict[str, Any]:
    """Whether a system reaches the case's stretch goal: GOAL percent over the frozen baseline, with p < 0.05.

    against: 'above', 'below' or 'level' with the baseline, by its own p-value.
    """
    sure = bool(row["p_value"] < SIGNIFICANT)
    against = "level" if not sure else "above" if row["delta_percent"] > 0 else "below"
    return {"reached": sure and bool(row["delta_percent"] >= GOAL), "against": against}


def signature(dot: pd.Series, last_delta: float, growth: pd.Series, trajectory: pd.DataFrame) -> dict[str, Any]:
    """Whether asym-dot fails as the case's system did: deep enough, by length, with a cosine that hardly moves.

    falls: at least -FALL percent below the baseline with p < 0.05 (falls_last: at the last epoch, no test). grows: the
    positive logit grows after epoch 1, and lengths carry most of its logarithm. still: the mean positive cosine moves by
    less than STILL from epoch 1 to the last. trajectory: asym-dot's rows, by epoch. differs: what does not hold.
    """
    after = trajectory[trajectory.index >= 1]
    first, last = after["similarity.positive.cosine"].iloc[[0, -1]]
    holds = {
        "the depth of the fall": bool(dot["delta_percent"] <= FALL and dot["p_value"] < SIGNIFICANT),
        "the growth of the lengths": bool(growth["total"] > 0 and growth["length_share"] > 0.5),
        "the cosine, which moves": bool(abs(last - first) < STILL),
    }
    falls, grows, still = holds.values()
    return {"falls": falls, "falls_last": bool(last_delta <= FALL), "grows": grows, "still": still, "holds": all(holds.values()),
            "differs": [name for name, held in holds.items() if not held],
            "cosine_first": first, "cosine_last": last, "epochs": after.index[-1]}  # fmt: skip


def _measured(choices: pd.DataFrame) -> pd.DataFrame:
    """The candidates of search.search's log, each with what it had to beat and what it changed.

    A row that repeats the recipe kept so far ('nothing' changed) is no candidate. incumbent: delta_percent of the best row
    that an earlier round of the same study kept, in the first round 0, the frozen encoder. gain: delta_percent less that, in
    percentage points, empty where a run diverged. kind: the fields that `changed` names, by KINDS; empty for the recipe that
    a search starts from.
    """
    choices = choices.assign(incumbent=0.0)
    for study, number in choices[["study", "round"]].drop_duplicates().itertuples(index=False):
        here = choices["study"] == study
        earlier = choices.loc[here & (choices["round"] < number) & choices["chosen"], "delta_percent"]
        if len(earlier):
            choices.loc[here & (choices["round"] == number), "incumbent"] = earlier.max()
    tried = choices[choices["changed"] != "nothing"]
    fields = [[part.split()[0] for part in text.split(",")] for text in tried["changed"]]
    kinds = [", ".join(dict.fromkeys(KINDS.get(name, name) for name in names)) for names in fields]
    gain = tried["delta_percent"] - tried["incumbent"]
    diverged = tried["delta_percent"] <= DIVERGED
    kinds = ["" if kind == "start" else kind for kind in kinds]
    return tried.assign(kind=kinds, gain=gain.mask(diverged), better=gain > 0, diverged=diverged)


def _final(part: pd.DataFrame, systems: pd.DataFrame) -> dict[str, Any]:
    """The candidate that became a study's best head: what it changes in asym-cos-identity, and what it does on test queries."""
    final, identity = part[part["final"]].iloc[0], SYSTEMS["asym-cos-identity"].to_dict()
    tried = part[part["changed"] != "nothing"]
    names = [name for name in part.columns[: part.columns.get_loc("averaged")] if name in identity]
    recipe = [f"{name} {_plain(final[name])}" for name in names if _plain(final[name]) != _plain(identity[name])]
    recipe += [f"average of {final['averaged']} seeds' weights"] if final["averaged"] > 1 else []
    dataset = next((name for name in systems["dataset"].unique() if final["study"].endswith(f"-{name}")), "average")
    scored = systems[(systems["metric"] == METRIC) & (systems["system"] == BEST)]
    test = scored.set_index(["track", "dataset"]).loc[(final["track"], dataset)]
    return {"study": final["study"], "track": final["track"], "candidates": len(tried),
            "better": int((tried["delta_percent"] > 0).sum()), "recipe": ", ".join(recipe),
            "validation": final["delta_percent"], "test": test["delta_percent"], "p_value": test["p_value"]}  # fmt: skip


def _search(choices: pd.DataFrame, systems: pd.DataFrame) -> dict[str, Any]:
    """The log of choices in short: a row a round of the zero-shot study, a row a kind of change, a row a best head."""
    tried, finals = _measured(choices), choices[choices["final"]]
    if missing := [track for track in TRACKS if track not in set(finals["track"])]:
        raise InputError(f"choices.csv: no final choice in track {', '.join(missing)}; `{COMMAND}` writes it")
    zero = finals.loc[finals["track"] == "zero-shot", "study"].iloc[0]
    kept = choices[(choices["study"] == zero) & choices["chosen"]].set_index("round")
    rounds = []
    for number, rows in tried[tried["study"] == zero].groupby("round"):
        chosen, worst = kept.loc[number], rows.loc[rows["delta_percent"].idxmin()]
        rounds.append({"round": number, "candidates": len(rows), "better": int(rows["better"].sum()),
                       "chosen": chosen["changed"], "delta_percent": chosen["delta_percent"], "worst": worst["changed"],
                       "worst_delta": worst["delta_percent"], "diverged": worst["diverged"]})  # fmt: skip
    kinds = tried[tried["kind"] != ""].groupby("kind").agg(
        candidates=("better", "size"), better=("better", "sum"), chosen=("chosen", "sum"), best=("gain", "max"),
        worst=("gain", "min"), diverged=("diverged", "sum"),
    )  # fmt: skip
    kinds = kinds.sort_values("candidates", ascending=False, kind="stable").reset_index()
    scored = [_final(part, systems) for _, part in choices.groupby("study", sort=False) if part["final"].any()]
    return {
        "studies": choices["study"].nunique(),
        "candidates": len(tried),
        "better": int(tried["better"].sum()),
        "diverged": int(tried["diverged"].sum()),
        "zero": zero,
        "rounds": rounds,
        "kinds": kinds.to_dict("records"),
        "useless": list(kinds.loc[kinds["better"] == 0, "kind"]),
        "scored": scored,
        "noise": float((100 * tried["sd"] / tried["frozen"]).median()),
        "holds": sum(row["test"] > 0 and row["p_value"] < SIGNIFICANT for row in scored),
        "lost": [row["study"] for row in scored if row["validation"] > 0 >= row["test"]],
    }


def _case_validation() -> float:
    """The factor by which the positive logit of the case's validation log grew from the first epoch to the last."""
    log = magnitude.CASE_LOG[magnitude.CASE_LOG["split"] == "validation"]["similarity.positive.logit"]
    return float(log.iloc[-1] / log.iloc[0])


def _answers(table: pd.DataFrame) -> dict[str, Any]:
    """The best head's rows of answers_met.csv, and its change on either group of queries in a row for each collection."""
    best = table[table["system"] == BEST]
    change = best.set_index(["dataset", "answers"])["delta_percent"].unstack()
    met = [
        {"dataset": name, "met": row.get("met in training"), "other": row.get("not met")}
        for name, row in change.iterrows()
    ]
    return {"answers": best.to_dict("records"), "met": met}


def _room(oracle: pd.DataFrame, zero: pd.DataFrame, systems: pd.DataFrame) -> dict[str, Any]:
    """What the oracles say of the room that a head has: the best of each kind, on average and on each collection.

    beaten: collections on which the in-domain best head is above the held-out oracle.
    """
    same = oracle["kind"].str.contains("same")
    tops = [oracle[part].groupby("dataset", sort=False)["mean"].max() for part in (same, ~same)]
    frozen = oracle.groupby("dataset", sort=False)["baseline"].first().drop("average")
    trained = systems[(systems["track"] == "in-domain") & (systems["system"] == BEST) & (systems["metric"] == METRIC)]
    trained = trained.set_index("dataset")["mean"]
    by_collection = [
        {"dataset": name, "baseline": value}
        | {f"{kind}{part}": x for kind, top in zip(("same", "held"), tops, strict=True)
           for part, x in (("", top.get(name)), ("_delta", 100 * (top.get(name, np.nan) / value - 1)))}
        for name, value in frozen.items()
    ]  # fmt: skip
    beaten = [name for name in frozen.index if name in trained.index and trained[name] > tops[1].get(name, np.inf)]
    average = oracle[oracle["dataset"] == "average"].sort_values("mean", ascending=False, kind="stable")
    fitted = average[average["kind"].str.contains("same")]
    held = average[~average["kind"].str.contains("same")]
    best = zero.drop(index="baseline").sort_values("mean", ascending=False).iloc[0]
    held_best = held.iloc[0].to_dict() if len(held) else None
    return {
        "rows": average.to_dict("records"),
        "by_collection": by_collection,
        "beaten": beaten,
        "fitted": fitted.iloc[0].to_dict(),
        "held": held_best,
        "best": best.name,
        "best_row": best.to_dict(),
        "held_over": held_best is not None and held_best["mean"] > best["mean"],
        "held_reaches": held_best is not None and held_best["delta_percent"] >= GOAL,
    }


def _by_collection(systems: pd.DataFrame, track: str, order: Iterable[str]) -> list[dict[str, Any]]:
    """A row a system: its change on each collection and on their average, with the p-values."""
    rows = systems[(systems["track"] == track) & (systems["metric"] == METRIC)].set_index(["system", "dataset"])
    datasets = [name for name in rows.index.get_level_values("dataset").unique() if name != "average"]
    return [
        {"system": name, "cells": [rows.loc[(name, dataset)].to_dict() for dataset in [*datasets, "average"]]}
        for name in order
        if name != "baseline"
    ]


def analysis_facts(results_folder: str | Path, full_folder: str | Path) -> dict[str, Any]:
    """facts() of the real study and everything else that ANALYSIS.md and the README's table say."""
    folder, full_folder = Path(results_folder), Path(full_folder)
    _check_tables(folder, TABLES)
    _check_tables(full_folder, ["systems.csv"])
    values = facts(folder)
    zero, systems = values["zero"], values["systems"]
    average = systems[(systems["dataset"] == "average") & (systems["metric"] == METRIC)]
    by_track = average.set_index(["track", "system"])
    missing = [
        f"{name} ({track})" for track in TRACKS for name in (*SYSTEMS, BEST) if (track, name) not in by_track.index
    ]
    if missing:
        raise InputError(
            f"{folder / 'systems.csv'}: no {METRIC} 'average' of {', '.join(missing)}; `{COMMAND}` writes it"
        )
    table = {
        name: results.read_table(folder, name)
        for name in (
            "parity.csv",
            "texts.csv",
            "ties.csv",
            "choices.csv",
            "oracle.csv",
            "overlap.csv",
            "answers_met.csv",
        )
    }
    full = results.read_table(full_folder, "systems.csv")
    full = full[(full["dataset"] == "average") & (full["metric"] == METRIC) & (full["track"] == "zero-shot")].set_index(
        "system"
    )
    both = [name for name in zero.index if name in full.index and name != "baseline"]
    size = pd.DataFrame({"smoke": zero.loc[both, "mean"], "full": full.loc[both, "mean"],
                         "smoke_delta": zero.loc[both, "delta_percent"], "full_delta": full.loc[both, "delta_percent"],
                         "full_p": full.loc[both, "p_value"]}).sort_values("full", ascending=False)  # fmt: skip
    size["moved"] = size["full_delta"] - size["smoke_delta"]
    parity, texts, ties = table["parity.csv"], table["texts.csv"], table["ties.csv"]
    tested = texts[~texts["part"].isin(["train", "validation"])]
    shift = (ties["mean_reversed"] - ties["mean"]).abs()
    contrasts = results.read_table(folder, "contrasts.csv").set_index(["track", "a", "b"])
    trained = average[average["seeds"] > 1]
    checkpoints, growth = values["checkpoints"], values["growth"]
    falls = systems.query(
        "track == 'zero-shot' and metric == @METRIC and system == 'asym-dot' and dataset != 'average'"
    )
    order = {track: list(part["system"]) for track, part in values["tracks"].items()}
    return values | {
        "best": BEST,
        "goal": GOAL,
        "fall": -FALL,
        "still": STILL,
        "tolerance": TOLERANCE,
        "case_setup": CASE_SETUP,
        "case_systems": [row | {"ours": zero.loc[row["system"]].to_dict()} for row in CASE_SYSTEMS.to_dict("records")],
        "target": CASE_SYSTEMS.set_index("system").loc["iso15-pred12", "delta_percent"],
        "parity": parity.to_dict("records"),
        "parity_off": list(parity.loc[parity["difference"].abs() > TOLERANCE, "dataset"]),
        "parity_worst": parity["difference"].abs().max(),
        "texts": texts.to_dict("records"),
        "overlap": {kind: int(tested[f"{kind}_in_training"].sum()) for kind in ("queries", "documents")},
        "overlaps": table["overlap.csv"].to_dict("records"),
        "leaked": int(table["overlap.csv"]["queries_in_training"].sum()),
        "tested": {kind: int(tested[kind].sum()) for kind in ("queries", "documents")},
        "cut": tested.loc[tested["documents_cut"].idxmax()].to_dict(),
        "tied": ties.assign(shift=shift).loc[shift.idxmax()].to_dict(),
        "ties": {"lists": int(ties["queries"].sum()), "tied": int(ties["tied_queries"].sum()),
                 "systems": list(ties["system"].unique())},
        "spread": trained.loc[trained["sd"].idxmax()].to_dict(),
        "seeds": int(trained["seeds"].min()),
        "heads": {track: by_track.loc[(track, BEST)].to_dict() | goal(by_track.loc[(track, BEST)]) for track in TRACKS},
        "rivals": {track: contrasts.loc[(track, BEST, "whitened")].to_dict() for track in TRACKS},
        "over_identity": contrasts.loc[("zero-shot", BEST, "asym-cos-identity")].to_dict(),
        "leaders": {track: values["tracks"][track].iloc[0].to_dict() for track in TRACKS},
        "reaching": {
            track: [row["system"] for row in values["tracks"][track].to_dict("records") if goal(pd.Series(row))["reached"]]
            for track in TRACKS
        },
        "by_collection": {track: _by_collection(systems, track, order[track]) for track in TRACKS},
        "failing": {kind: falls.loc[at].to_dict() for kind, at in (("most", falls["delta_percent"].idxmin()),
                                                                   ("least", falls["delta_percent"].idxmax()))},
        "signature": signature(zero.loc["asym-dot"], checkpoints.loc["asym-dot", "last_delta_percent"], growth.loc["asym-dot"],
                               values["trajectory"].loc["asym-dot"]),
        "full_pairs": f"{full['pairs'].max():,}",
        "size": size,
        "helped": list(size.index[size["moved"] > 0]),
        "full_goal": goal(full.loc[BEST]) if BEST in full.index else None,
        "search": _search(table["choices.csv"], systems),
        "room": _room(table["oracle.csv"], zero, systems),
        "tests": int(systems.loc[systems["metric"] == METRIC, "p_value"].notna().sum()),
        "smallest_p": systems["p_value"].min(),
        "positives": POSITIVES_A_QUERY,
        "exponent": SYSTEMS["whitened"].whitening,
        "case_dimension": magnitude.CASE_DIMENSION,
        "case_temperature": magnitude.CASE_TEMPERATURE,
        "case_validation": _case_validation(),
        **_answers(table["answers_met.csv"]),
        "full_origin": results.read_origin(full_folder, "systems.csv"),
    }  # fmt: skip


def _trajectory_history(trajectory: pd.DataFrame) -> pd.DataFrame:
    """trajectory.csv, the means over seeds, as a history of one seed."""
    long = trajectory.melt(id_vars=["system", "epoch"], var_name="name").dropna(subset="value")
    return long.assign(seed=0, step=long["epoch"], split="validation")


def _oracle_table(systems: pd.DataFrame, oracle: pd.DataFrame) -> pd.DataFrame:
    """plots.oracle_room's table: in each track the frozen encoder, two systems, and the oracles on the track's collections."""
    rows = []
    for track, part in systems[systems["metric"] == METRIC].groupby("track", sort=False):
        average = part[part["dataset"] == "average"].set_index("system")
        names = list(dict.fromkeys(["baseline", "whitened", BEST, average["mean"].idxmax()]))
        rows += [{"track": track, "system": name, "kind": "system", **average.loc[name, ["mean", "ci_low", "ci_high"]]}
                 for name in names]  # fmt: skip
        datasets = set(part["dataset"]) - {"average"}
        for (head, kind), found in oracle.groupby(["head", "kind"], sort=False):
            name = f"{head}{' (same queries)' if 'same' in kind else ' (held-out)'}"
            single, whole = found[found["dataset"].isin(datasets)], found[found["dataset"] == "average"]
            if datasets == set(found["dataset"]) - {"average"}:
                numbers = whole.iloc[0][["mean", "ci_low", "ci_high"]].to_dict()
            else:  # the mean over fewer collections has no interval in the table
                numbers = {"mean": single["mean"].mean(), "ci_low": np.nan, "ci_high": np.nan}
            rows.append({"track": track, "system": name, "kind": "oracle", **numbers})
    return pd.DataFrame(rows)


def analysis_figures(results_folder: str | Path, full_folder: str | Path) -> dict[str, plots.Drawn]:
    """Every figure of ANALYSIS.md by its file's name, drawn from the tables."""
    folder = Path(results_folder)
    table = {name.removesuffix(".csv"): results.read_table(folder, name) for name in TABLES}
    systems = table["systems"][table["systems"]["metric"] == METRIC]
    smoke, full = (
        part[(part["track"] == "zero-shot") & (part["dataset"] == "average") & (part["metric"] == METRIC)]
        for part in (systems, results.read_table(full_folder, "systems.csv"))
    )
    both = set(smoke["system"]) & set(full["system"]) - {"baseline"}
    sizes = [part.assign(pairs=int(part["pairs"].max())) for part in (smoke, full)]
    hubs = evaluate.hubness_over_seeds(table["hubness"].query("track == 'zero-shot'"))
    watched = [name for name in SHOWN_IN_TRAINING if name in set(table["trajectory"]["system"])]
    history = _trajectory_history(table["trajectory"])
    forests = {f"systems_{track.replace('-', '_')}": systems[systems["track"] == track] for track in TRACKS}
    return {
        "parity": plots.parity(table["parity"], TOLERANCE),
        **{name: plots.systems_forest(part) for name, part in forests.items()},
        "signature": plots.trajectories(history, SIGNATURE, watched, band="none"),
        "growth_split": plots.growth_split(table["attribution"]),
        "case_log": plots.case_log(table["case_log"]),
        "similarity_matrix": plots.similarity_matrix(table["similarity_matrix"]),
        "ablation": plots.ablation_grid(table["ablations"]),
        "smoke_full": plots.smoke_full(pd.concat([part[part["system"].isin(both)] for part in sizes])),
        "room_by_track": plots.oracle_room(_oracle_table(table["systems"], table["oracle"])),
        "length_relevance": plots.length_relevance(table["length_relevance"]),
        "hubness": plots.hubness_bars(hubs),
    }


BEGIN, END = "<!-- real-table:begin -->", "<!-- real-table:end -->"
PIXELS = 130  # an inch of a figure on the page


def analysis(results_folder: str | Path, full_folder: str | Path) -> tuple[str, str, dict[str, plots.Drawn]]:
    """ANALYSIS.md, the README's block between its markers, and the figures, from the tables alone."""
    values = analysis_facts(results_folder, full_folder)
    figures = analysis_figures(results_folder, full_folder)
    widths = {name: round(PIXELS * figure.get_figwidth()) for name, (figure, _) in figures.items()}
    return *pages(values, widths), figures


def pages(values: dict[str, Any], widths: dict[str, int]) -> tuple[str, str]:
    """ANALYSIS.md and the README's block from analysis_facts(); widths: of the figures, in pixels on the page."""
    values = values | {"widths": widths, "folder": f"figures/{values['study']}"}
    return render("analysis.md.j2", values), render("readme.md.j2", values)


def with_block(readme: str, block: str, where: str | Path = "README.md") -> str:
    """A README whose text between the two markers is `block`; both must be there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise InputError(f"{where}: expected one line {BEGIN} and, below it, one line {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def write_analysis(results_folder: str | Path, full_folder: str | Path, root: str | Path) -> list[Path]:
    """Write root/ANALYSIS.md, root/figures/<study>/ and the block of root/README.md; returns the paths of the two pages."""
    root = Path(root)
    page, readme = root / "ANALYSIS.md", root / "README.md"
    if not readme.exists():
        raise InputError(f"{readme}: no such file; it holds the block that the command fills")
    text, block, figures = analysis(results_folder, full_folder)
    filled = with_block(readme.read_text(encoding="utf-8"), block, readme)
    for name, (figure, shown) in figures.items():
        plots.save(figure, shown, root / "figures" / Path(results_folder).name, name)
    write_text(page, text)
    write_text(readme, filled)
    return [page, readme]


def render(template: str, values: dict[str, Any]) -> str:
    """A template of asymlib/templates filled in; a name that the template uses and `values` lacks is an error.

    Several blank lines in a row become one: what a branch leaves out leaves no gap.
    """
    return re.sub(r"\n{3,}", "\n\n", _environment().get_template(template).render(**values)).strip() + "\n"


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


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asymlib.writeup", description="Write ANALYSIS.md from the stored tables."
    )
    parser.add_argument("--results", help="tables of the real study (data/results/real)")
    parser.add_argument("--full", help="tables of the same with all pairs (data/results/real-full)")
    options = parser.parse_args(arguments)
    folder = Path(options.results) if options.results else project_path("data/results/real")
    full = Path(options.full) if options.full else project_path("data/results/real-full")
    for path in write_analysis(folder, full, project_path()):
        print(path)


if __name__ == "__main__":
    run_command(main)
