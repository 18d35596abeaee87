"""Runs against each other on the same queries: scores, paired tests, intervals, and the smallest difference to be seen."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from asymlib.data.collections import GRADE, json_lines, text_lines
from asymlib.errors import InputError
from asymlib.evaluate import METRICS, Qrels, parse_metric
from asymlib.files import read_json, write_text
from asymlib.significance import contrast, holm

EXAMPLE = "asymlib compare frozen.run trained.run --qrels qrels/test.tsv"
TYPES = dict.fromkeys(["track", "system", "seed", "dataset", "query_id", "metric"], str) | {"value": float}


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """query -> {document: grade} of TREC's judgements (query 0 document grade) or BEIR's (query-id corpus-id grade)."""
    judged: dict[str, dict[str, int]] = defaultdict(dict)
    for where, line in text_lines(Path(path)):
        columns = [column.strip() for column in line.split("\t")] if line.count("\t") == 2 else line.split()
        if [column.casefold().replace("_", "-") for column in columns[:2]] == ["query-id", "corpus-id"]:
            continue
        grade = GRADE.fullmatch(columns[-1]) if len(columns) in (3, 4) else None
        if not grade or judged[columns[0]].setdefault(columns[-2], int(grade[1])) != int(grade[1]):
            raise InputError(f"{where}: expected query 0 document grade, or BEIR's, each once; found {line[:60]!r}")
    return judged


def read_run(path: str | Path) -> tuple[dict[str, dict[str, np.float32]], list[str]]:
    """query -> {document: score}, float32, to which trec_eval rounds scores; and a note if ranks contradict them."""
    path, rankings, ranks = Path(path), defaultdict(dict), defaultdict(list)
    parts = json_lines(path) if path.suffix == ".jsonl" else text_lines(path)
    for where, part in [(path, read_json(path))] if path.suffix == ".json" else parts:
        try:
            if path.suffix == ".json":  # of mteb
                subsets = [(name, of) for name, of in part.items() if name != "mteb_model_meta"]
                splits = [(f"{name}/{split}", of[split]) for name, of in subsets for split in of]
                if two := [(q, a, b) for a, x in splits for b, y in splits if a < b for q in x.keys() & y.keys()]:
                    raise ValueError("query {!r} is in {} and in {}; make a file of each".format(*two[0]))
                rows = [(q, d, 0, of[q][d]) for _, of in splits for q in of for d in of[q]]
            elif path.suffix == ".jsonl":  # of Sentence Transformers
                rows = [(part["query_id"], found["corpus_id"], 0, found["score"]) for found in part["results"]]
            else:
                rows = [(query, document, rank, score) for query, _, document, rank, score, _ in [part.split()]]
            for query, document, rank, score in rows:
                value = np.float32(score if abs(float(score)) < 3.4e38 else "nan")
                if rankings[str(query).strip()].setdefault(str(document).strip(), value) != value:  # nan, too
                    raise ValueError(f"document {document!r} has no finite score, or two")
                ranks[query].append((int(rank), -value))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(f"{where}: expected a run of TREC (six columns), mteb or .jsonl ({error})") from error
    against = sum((by_rank := [x for _, x in sorted(found)]) != sorted(by_rank) for found in ranks.values())
    note = f"{path}: ranks contradict scores in {against} queries (distances?); the higher score is the better"
    return rankings, [note] if against else []


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


def detectable(difference: pd.Series, level: float = 0.05) -> float:
    """The smallest true difference that a two-sided test finds four times in five: (z_{1-level/2} + z_.8) sd / sqrt(n).

    difference: paired by query; index level `dataset`, which weigh the same each; nan if one has one query. Bloom 1995.
    """
    groups = difference.groupby(level="dataset")
    error = np.sqrt((groups.var() / groups.size()).sum(skipna=False)) / groups.ngroups
    return float(error * (NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(0.8)))


def compare(runs: Sequence[str | Path], qrels: str | Path = "", metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Every system against the first: a line a track, metric and system; attrs["notes"]: what is odd about the runs.

    runs: of read_table (.parquet), or of read_run, which need qrels; queries without a relevant document are left out.
    metrics: None is METRICS, of tables all that they share. Columns: of significance.contrast (difference: mean, of system,
    less mean_against), queries, detectable (at level .05 / systems, Holm's first), p_holm over a track's systems, verdict.
    """
    paths, notes = [Path(path) for path in runs], []
    tabular = [path for path in paths if path.suffix == ".parquet"]
    if len({path.resolve() for path in paths}) < len(paths) or tabular not in ([], paths):
        raise InputError("compare: expected different files, all of them runs or all of them tables (.parquet)")
    if not (tabular or qrels):
        raise InputError("compare: runs need --qrels, the judgements to score them with")
    tables = [read_table(path, f"{path}:" if len(paths) > 1 else "") for path in tabular]
    tables = tables or _of_runs(paths, qrels, metrics or METRICS, notes)
    known = [name for name in tables[0]["metric"].unique() if all((table["metric"] == name).any() for table in tables)]
    if wrong := [name for name in metrics or () if name not in known]:
        raise InputError(f"--metrics {wrong[0]}: expected some of {', '.join(known)}, which every table has")
    per_query = pd.concat(tables)[lambda table: table["metric"].isin(metrics or known)]
    first, lines = next(iter(per_query["system"]), "none"), []
    if per_query["system"].nunique() < 2 or per_query.duplicated(list(TYPES)[:-1]).any():
        raise InputError(f"compare: expected scores of two systems or more, each once; the first is {first}")
    for (track, metric), part in per_query.groupby(["track", "metric"], sort=False):
        means = part.groupby(["dataset", "query_id", "system"])["value"].mean().unstack()
        others = part["system"][part["system"] != first].unique()
        level = f" (at level .05 / {len(others)}, for {len(others)} systems)" if len(others) > 1 else ""
        for system in others:
            line = {"track": track, "metric": metric, "system": system, "against": first}
            least = detectable(means[system] - means[first], 0.05 / len(others))
            seen = f"; a difference of about {least:.4f} would be{level}" if least > 0 else ""
            line |= contrast(part, system, first, track, metric) | {"queries": len(means), "detectable": least}
            lines.append({**line, "verdict": f"not separable with these {len(means)} queries{seen}"})
    table = pd.DataFrame(lines).rename(columns={"mean_a": "mean", "mean_b": "mean_against"}).astype({"p_value": float})
    table["p_holm"] = table.groupby(["track", "metric"])["p_value"].transform(lambda p: holm(p.to_numpy()))
    told_apart = table["difference"].map(lambda x: f"{'better' if x > 0 else 'worse'} by {abs(x):.4f}")
    table["verdict"] = told_apart.where(table["p_holm"] < 0.05, table.pop("verdict"))
    table.attrs["notes"] = notes
    return table


def _of_runs(paths: list[Path], qrels: str | Path, metrics: Sequence[str], notes: list[str]) -> list[pd.DataFrame]:
    """The scores of each run; adds to notes what is odd about it."""
    judged, tables = {query: grades for query, grades in read_qrels(qrels).items() if max(grades.values()) > 0}, []
    if not judged:
        raise InputError(f"{qrels}: holds no query with a relevant document")
    for path in paths:
        rankings, said = read_run(path)
        if (lacking := len(judged.keys() - rankings.keys())) == len(judged):
            raise InputError(f"{path}: expected queries with relevant documents in --qrels {qrels}; it has none")
        notes += [*said, f"{path} lacks {lacking} of {len(judged)} queries, which score 0"] if lacking else said
        if not any(grades.keys() & rankings.get(query, ()) for query, grades in judged.items()):
            notes.append(f"{path}: no judged document is in its results; are they the same documents?")
        tables.append(score(rankings, judged, metrics).assign(track="", system=str(path), seed="0", dataset=""))
    return tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", help="TREC's, mteb's or Sentence Transformers' runs, or per-query tables")
    parser.add_argument("--qrels", default="", help="judgements in TREC's or BEIR's format; tables need none")
    parser.add_argument("--metrics", nargs="+", help="such as ndcg@10 mrr@10 recall@100 (those); of tables: all")
    parser.add_argument("--json", metavar="FILE", help="write the lines")


def run(options: argparse.Namespace) -> int:
    """Print the lines, what they say in words, and the notes."""
    if options.json and Path(options.json).is_dir():
        raise InputError(f"{options.json}: a folder, expected a file")
    table = compare(options.runs, options.qrels, options.metrics)
    if options.json:
        write_text(options.json, table.to_json(orient="records", double_precision=15, indent=2) + "\n")
    print(table.drop(columns="verdict").to_string(index=False, float_format="%.4g"), end="\n\n")
    words = [f"{line.track} {line.system}, {line.metric}: {line.verdict}".strip() for line in table.itertuples()]
    print(*words, *table.attrs["notes"], sep="\n")
    return 0
