"""Runs against each other on the same queries: scores, paired tests, intervals, and the smallest difference to be seen."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from asymlib.errors import InputError
from asymlib.evaluate import METRICS, Qrels, parse_metric
from asymlib.significance import contrast, holm

EXAMPLE = "asymlib compare frozen.run trained.run --qrels qrels/test.tsv"
TYPES = dict.fromkeys(["track", "system", "seed", "dataset", "query_id", "metric"], str) | {"value": float}


def read_rankings(path: str | Path, number: type = np.float32) -> dict[str, dict]:
    """query -> {document: score} of a run; float32, to which trec_eval rounds scores. Of qrels: number is int."""
    path, at, rankings = Path(path), 0, {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        for at, line in enumerate([text] if path.suffix == ".json" else text.split("\n"), start=1):  # noqa: B007
            if path.suffix == ".json":  # of mteb
                parts = [of for name, x in json.loads(line).items() if name != "mteb_model_meta" for of in x.values()]
                triples = [(query, *result) for of in parts for query, found in of.items() for result in found.items()]
            elif path.suffix == ".jsonl" and line.strip():  # of Sentence Transformers
                record = json.loads(line)
                triples = [(record["query_id"], found["corpus_id"], found["score"]) for found in record["results"]]
            else:
                columns = line.split("\t") if line.count("\t") == 2 else line.split()
                row = [columns[i].strip() for i in {6: (0, 2, 4), 4: (0, 2, 3), 3: (0, 1, 2), 0: ()}[len(columns)]]
                triples = [row] if row[2:] not in ([], ["score"]) else []  # an empty line, BEIR's header
            for query, document, value in triples:
                value, found = number(value), rankings.setdefault(str(query), {})
                if found.setdefault(str(document), value) != value:  # nan, too, is unlike itself
                    raise ValueError(f"document {document!r} has no score, or two")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        known = "query Q0 document rank score tag; of qrels: query 0 document grade, or BEIR's; mteb's .json, or .jsonl"
        raise InputError(f"{path}:{at}: expected {known} ({error!r})") from error
    return rankings


def read_table(path: Path, prefix: str = "") -> pd.DataFrame:
    """Per-query scores: columns track, system (prefix goes before it), seed, dataset, query_id, metric, value."""
    try:
        return pd.read_parquet(path).astype(TYPES).assign(system=lambda table: prefix + table["system"])
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: expected columns {', '.join(TYPES)} ({error})") from error


def score(rankings: dict, qrels: dict[str, dict[str, int]], metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """query_id, metric, value of every judged query, as `trec_eval -c`: a query without results scores 0."""
    place = {document: i for i, document in enumerate({d for query in qrels for d in rankings.get(query, ())})}
    rows = np.full((len(qrels), max(parse_metric(metric)[1] for metric in metrics)), -1)
    for row, query in zip(rows, qrels, strict=True):
        best = sorted(((value, document) for document, value in rankings.get(query, {}).items()), reverse=True)
        row[: len(best)] = [place[document] for _, document in best[: len(row)]]
    values = Qrels("", list(place), list(qrels), qrels).scores(rows, metrics)
    return pd.DataFrame({"query_id": list(qrels), **values}).melt("query_id", var_name="metric")


def detectable(difference: pd.Series) -> float:
    """The smallest true difference that a two-sided test at 5 % finds four times in five: (z_.975 + z_.8) sd / sqrt(n).

    difference: paired by query; index level `dataset`, which weigh the same each; nan if one has one query. Bloom 1995.
    """
    groups = difference.groupby(level="dataset")
    error = np.sqrt((groups.var() / groups.size()).sum(skipna=False)) / groups.ngroups
    return float(error * 2.801585218112968)


def compare(runs: Sequence[str | Path], qrels: str | Path = "", metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Every system against the first: a line a track, metric and system; attrs["notes"] counts queries without results.

    runs: of read_table (.parquet) or read_rankings, which need qrels; queries without a relevant document are left out.
    Columns: those of significance.contrast (b: against), p_holm over a track's systems, queries, detectable, verdict.
    """
    judged, tables, notes, lines = read_rankings(qrels, int) if qrels else {}, [], [], []
    judged = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    for path in map(Path, runs):
        if path.suffix == ".parquet":
            tables.append(read_table(path, f"{path}:" if len(runs) > 1 else ""))
            continue
        rankings = read_rankings(path)
        lacking = len(judged.keys() - rankings.keys())
        if lacking == len(judged):
            raise InputError(f"{path}: expected queries with relevant documents in --qrels {qrels}; it has none")
        notes += [f"{path} lacks {lacking} of {len(judged)} queries, which score 0"] if lacking else []
        tables.append(score(rankings, judged, metrics).assign(track="", system=str(path), seed="0", dataset=""))
    per_query = pd.concat(tables).query("metric in @metrics")
    first = next(iter(per_query["system"]), "none")
    if per_query["system"].nunique() < 2 or per_query.duplicated(list(TYPES)[:-1]).any():
        raise InputError(f"compare: expected scores of two systems or more, each once; the first is {first}")
    for (track, metric), part in per_query.groupby(["track", "metric"], sort=False):
        means = part.groupby(["dataset", "query_id", "system"])["value"].mean().unstack()
        for system in part["system"][part["system"] != first].unique():
            line = {"track": track, "system": system, "against": first, "metric": metric}
            line |= contrast(part, system, first, track, metric)
            lines.append({**line, "queries": len(means), "detectable": detectable(means[system] - means[first])})
    table = pd.DataFrame(lines).astype({"p_value": float})
    table["p_holm"] = table.groupby(["track", "metric"])["p_value"].transform(lambda p: holm(p.to_numpy()))
    told_apart = table["difference"].map(lambda x: f"{'better' if x > 0 else 'worse'} by {abs(x):.4f}")
    least = table["detectable"].map(lambda x: f"; a difference of about {x:.4f} would be" if x > 0 else "")
    alike = "not separable with these " + table["queries"].astype(str) + " queries" + least
    table["verdict"] = told_apart.where(table["p_holm"] < 0.05, alike)
    table.attrs["notes"] = notes
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `asymlib compare`."""
    parser.add_argument("runs", nargs="+", help="TREC's, mteb's or Sentence Transformers' runs, or per-query tables")
    parser.add_argument("--qrels", default="", help="judgements in TREC's or BEIR's format; tables need none")
    parser.add_argument("--metrics", nargs="+", default=METRICS, help="such as ndcg@10 mrr@10 recall@100")


def run(options: argparse.Namespace) -> int:
    """Print the lines, what they say in words, and the notes."""
    table = compare(options.runs, options.qrels, options.metrics)
    print(table.drop(columns="verdict").to_string(index=False, float_format="%.4g"), end="\n\n")
    words = [f"{line.track} {line.system}, {line.metric}: {line.verdict}".strip() for line in table.itertuples()]
    print(*words, *table.attrs["notes"], sep="\n")
    return 0
