"""Runs against each other on the same queries: scores, paired tests, intervals, and the smallest difference to be seen."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from asymlib.errors import InputError
from asymlib.evaluate import METRICS, Qrels, parse_metric
from asymlib.files import write_json
from asymlib.significance import contrast, holm

EXAMPLE = "asymlib compare frozen.run trained.run --qrels qrels/test.tsv"
KEY = ["track", "system", "seed", "dataset", "query_id", "metric"]
EXPECTED = {  # of a line; of a .json file the whole
    ".json": "mteb's {subset: {split: {query: {document: score}}}}",
    ".jsonl": "Sentence Transformers' {query_id, results: [{corpus_id, score}]}",
    "": "query Q0 document rank score tag; of qrels: query 0 document grade, or BEIR's query document grade",
}


def _triples(suffix: str, text: str) -> list[tuple[Any, Any, Any]]:
    """(query, document, score or grade) of a line; of a .json file the whole text."""
    if suffix == ".json":
        parts = [part for name, of in json.loads(text).items() if name != "mteb_model_meta" for part in of.values()]
        return [(query, *result) for part in parts for query, found in part.items() for result in found.items()]
    if suffix == ".jsonl":
        record = json.loads(text)
        return [(record["query_id"], found["corpus_id"], found["score"]) for found in record["results"]]
    columns = text.split("\t") if text.count("\t") == 2 else text.split()
    places = {6: (0, 2, 4), 4: (0, 2, 3), 3: (0, 1, 2)}.get(len(columns), ())
    query, document, number = (columns[i].strip() for i in places)
    return [(query, document, number)] if number != "score" else []  # BEIR's header


def read_rankings(path: str | Path, number: Callable[[Any], Any] = np.float32) -> dict[str, dict[str, Any]]:
    """query -> {document: score} of a run in TREC's, mteb's (.json) or Sentence Transformers' (.jsonl) format.

    number: float32, to which trec_eval rounds scores; int for qrels, in TREC's or BEIR's format.
    """
    path, at, rankings = Path(path), 0, {}
    suffix = path.suffix if path.suffix in EXPECTED else ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        for at, line in enumerate([text] if suffix == ".json" else text.split("\n"), start=1):  # noqa: B007
            for query, document, score in _triples(suffix, line) if line.strip() else ():
                value = number(score)
                known = rankings.setdefault(str(query), {}).setdefault(str(document), value)
                if known != value:  # nan, too, is unlike itself
                    raise ValueError(f"document {document!r} has no score, or two")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}:{at}: expected {EXPECTED[suffix]} ({error})") from error
    return rankings


def read_table(path: Path) -> pd.DataFrame:
    """Per-query scores, .csv or .parquet: columns system, seed, dataset, query_id, metric, value, maybe track."""
    try:
        text = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, **text)
        table = table.assign(track=table.get("track", ""), value=pd.to_numeric(table["value"], errors="coerce"))
        table = table.astype(dict.fromkeys(KEY, str))
        if len(bad := np.flatnonzero(~np.isfinite(table["value"]) | table.duplicated(KEY))):
            raise ValueError(f"row {bad[0] + 1} has no number, or is there twice")
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: expected columns {', '.join(KEY[1:])}, value ({error})") from error
    return table


def score(rankings: dict, qrels: dict[str, dict[str, int]], metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """query_id, metric, value of every judged query, as `trec_eval -c`: a query without results scores 0."""
    place = {document: i for i, document in enumerate({d for query in qrels for d in rankings.get(query, ())})}
    rows = np.full((len(qrels), max(parse_metric(metric)[1] for metric in metrics)), -1)
    for row, query in zip(rows, qrels, strict=True):
        best = sorted(((value, document) for document, value in rankings.get(query, {}).items()), reverse=True)
        row[: len(best)] = [place[document] for _, document in best[: len(row)]]
    values = Qrels("", list(place), list(qrels), qrels).scores(rows, metrics)
    return pd.DataFrame({"query_id": list(qrels), **values}).melt("query_id", var_name="metric")


def detectable(difference: pd.Series, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true mean difference that a two-sided test at `level` finds with probability `power`.

        (z_{1 - level/2} + z_{power}) sd(difference) / sqrt(n)

    difference: paired by query; index level `dataset`, data sets weigh the same each. nan if one has a single query.
    Normal approximation, one comparison. Bloom 1995, Minimum detectable effects, Evaluation Review 19(5).
    """
    groups = difference.groupby(level="dataset")
    error = np.sqrt((groups.var() / groups.size()).sum(skipna=False)) / groups.ngroups
    return float(error * (NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)))


def compare(runs: Sequence[str | Path], qrels: str | Path = "", metrics: Sequence[str] = ()) -> pd.DataFrame:
    """Every system against the first: a line a track, metric and system; attrs["notes"] counts queries without results.

    runs: files as of read_table, or of read_rankings, which need qrels; queries without a relevant document are left out.
    metrics: default METRICS, and all of a table.
    Columns: those of significance.contrast (b: against), p_holm over a track's systems, queries, detectable, verdict.
    """
    judged, tables, notes, lines = read_rankings(qrels, int) if qrels else {}, [], [], []
    judged = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    for path in map(Path, runs):
        if path.suffix in (".csv", ".parquet"):
            table = read_table(path)
            table["system"] = (f"{path}:" if len(runs) > 1 else "") + table["system"]
        else:
            rankings = read_rankings(path)
            lacking = len(judged.keys() - rankings.keys())
            if lacking == len(judged):
                raise InputError(f"{path}: expected queries with relevant documents in --qrels {qrels}; it has none")
            notes += [f"{path} lacks {lacking} of {len(judged)} queries, which score 0"] if lacking else []
            table = score(rankings, judged, metrics or METRICS).assign(track="", system=str(path), seed="0", dataset="")
        tables.append(table)
    per_query = pd.concat(tables)
    per_query = per_query[per_query["metric"].isin(metrics or per_query["metric"])]
    first = next(iter(per_query["system"]), "none")
    for (track, metric), part in per_query.groupby(["track", "metric"], sort=False):
        means = part.groupby(["dataset", "query_id", "system"])["value"].mean().unstack()
        for system in part["system"][part["system"] != first].unique():
            line = {"track": track, "system": system, "against": first, "metric": metric}
            line |= contrast(part, system, first, track, metric)
            lines.append({**line, "queries": len(means), "detectable": detectable(means[system] - means[first])})
    if not lines:
        raise InputError(f"compare: expected two systems or more with scores, found only {first}")
    table = pd.DataFrame(lines).astype({"p_value": float})
    table["p_holm"] = table.groupby(["track", "metric"])["p_value"].transform(lambda p: holm(p.to_numpy()))
    table["verdict"] = [_verdict(line) for line in table.itertuples()]
    table.attrs["notes"] = notes
    return table


def _verdict(line: Any) -> str:
    if line.p_holm < 0.05:
        return f"{'better' if line.difference > 0 else 'worse'} by {abs(line.difference):.4f}"
    least = f"; a difference of about {line.detectable:.4f} would be" if line.detectable > 0 else ""
    return f"not separable with these {line.queries} queries{least}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `asymlib compare`."""
    parser.add_argument("runs", nargs="+", help="TREC's, mteb's or Sentence Transformers' runs, or per-query tables")
    parser.add_argument("--qrels", default="", help="judgements in TREC's or BEIR's format; tables need none")
    parser.add_argument("--metrics", nargs="+", default=(), help="such as ndcg@10 mrr@10 recall@100")
    parser.add_argument("--json", help="a file for the same lines")


def run(options: argparse.Namespace) -> int:
    """Print the lines, what they say in words, and the notes."""
    table = compare(options.runs, options.qrels, options.metrics)
    print(table.drop(columns="verdict").to_string(index=False, float_format="%.4g"))
    words = [f"{line.track} {line.system}, {line.metric}: {line.verdict}".strip() for line in table.itertuples()]
    print("", *words, *table.attrs["notes"], sep="\n")
    if options.json:
        lines = json.loads(table.to_json(orient="records", double_precision=15))
        write_json(options.json, {"lines": lines, "notes": table.attrs["notes"]})
    return 0
