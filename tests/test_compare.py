"""The command compare: its formats, its numbers against pytrec_eval and scipy, and what it says."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import scipy.stats

from asymlib.errors import InputError
from asymlib.significance import bootstrap_interval, holm
from asymlib.tools.compare import compare, detectable, read_qrels, read_run, score
from asymlib.tools.main import main
from tests.small_encoders import some_texts


def random_study(seed=0, queries=40, documents=60, runs=3):
    """Graded judgements and runs of 30 documents a query with many ties; a later run is the better one."""
    rng = np.random.default_rng(seed)
    grades = rng.choice([0, 0, 0, 1, 2], (queries, documents))
    grades[:, 0] = 1
    qrels = {f"q{i}": {f"d{j}": int(g) for j, g in enumerate(row) if g or j % 3} for i, row in enumerate(grades)}
    found = []
    for quality in range(runs):
        scores = np.round(rng.normal(size=grades.shape) + 0.3 * quality * grades, 1)
        found.append(
            {f"q{i}": {f"d{j}": float(row[j]) for j in rng.permutation(documents)[:30]} for i, row in enumerate(scores)}
        )
    return qrels, found


def write_run(path, run):
    rank = {q: sorted(found.values(), reverse=True).index for q, found in run.items()}
    lines = [f"{q} Q0 {d} {rank[q](s)} {s!r} x" for q, found in run.items() for d, s in found.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_qrels(path, qrels):
    path.write_text("".join(f"{q} 0 {d} {g}\n" for q, grades in qrels.items() for d, g in grades.items()))
    return path


@pytest.fixture
def study(tmp_path):
    qrels, runs = random_study()
    return [write_run(tmp_path / f"run{i}.trec", run) for i, run in enumerate(runs)], write_qrels(
        tmp_path / "qrels", qrels
    )


def trec_eval(qrels, run, measure):
    """query -> value, as pytrec_eval has it; a query that the run lacks counts as 0."""
    name = measure.replace(".", "_")
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run)
    return {query: found[query][name] if query in found else 0.0 for query in qrels}


def plain(run):
    """The same run with Python's floats, as pytrec_eval and JSON want them."""
    return {query: {document: float(value) for document, value in found.items()} for query, found in run.items()}


MEASURES = {"ndcg@10": "ndcg_cut.10", "recall@100": "recall.100", "recall@5": "recall.5"}


def test_scores_and_ties_are_pytrec_evals(tmp_path):
    qrels, (run, *_) = random_study(3)
    # In float32, as trec_eval reads scores, the first three are equal: the later id comes first.
    qrels["q0"], run["q0"] = {"ä": 1, "z": 2, "a": 3}, {"z": 1.0, "a": 1 + 1e-9, "ä": 1.0, "m": 1e30}
    del run["q7"]
    values = score(read_run(write_run(tmp_path / "run", run))[0], qrels, list(MEASURES)).set_index(
        ["metric", "query_id"]
    )["value"]
    for metric, measure in MEASURES.items():
        for query, value in trec_eval(qrels, run, measure).items():
            assert values[metric, query] == pytest.approx(value, abs=1e-9)
    at = [1 / math.log2(rank + 1) for rank in range(1, 5)]  # m, ä, z, a: grades 0, 1, 2, 3
    assert values["ndcg@10", "q0"] == pytest.approx((at[1] + 2 * at[2] + 3 * at[3]) / (3 * at[0] + 2 * at[1] + at[2]))
    cut = {
        query: dict(sorted(found.items(), key=lambda item: (np.float32(item[1]), item[0]))[-10:])
        for query, found in run.items()
    }
    mrr = score(run, qrels, ["mrr@10"]).set_index("query_id")["value"].to_dict()
    assert mrr == pytest.approx(trec_eval(qrels, cut, "recip_rank"), abs=1e-9)


def test_a_comparison_is_scipys_test_with_holm_and_the_bootstraps_interval(study):
    paths, qrels = study
    table = compare(paths, qrels, ["ndcg@10"])
    judged = read_qrels(qrels)
    runs, in_order = [plain(read_run(path)[0]) for path in paths], np.argsort(list(judged))
    a, *others = (np.array(list(trec_eval(judged, run, "ndcg_cut.10").values())) for run in runs)
    assert table["system"].tolist() == [str(path) for path in paths[1:]]
    for line, b in zip(table.itertuples(), others, strict=True):
        oracle = scipy.stats.permutation_test(
            (b - a,),
            lambda x, axis: x.mean(axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=50_000,
            rng=0,
        )
        assert line.p_value == pytest.approx(oracle.pvalue, abs=4 * math.sqrt(0.25 / 50_000))
        assert (line.mean, line.mean_against, line.difference) == pytest.approx(
            (b.mean(), a.mean(), (b - a).mean()), abs=1e-9
        )
        low, high = bootstrap_interval((b - a)[None, in_order])
        assert (line.difference_low, line.difference_high) == pytest.approx((float(low), float(high)))
        least = (2.241403 + 0.841621) * (b - a).std(ddof=1) / math.sqrt(40)  # z of .05 / 2 systems / 2 sides
        assert line.detectable == pytest.approx(least, rel=1e-5)
    assert table["p_holm"].tolist() == holm(table["p_value"].to_numpy()).tolist()
    best = table.iloc[1]
    assert best["p_holm"] < 0.05 and best["verdict"] == f"better by {best['difference']:.4f}"


def test_what_cannot_be_told_apart_is_said_with_the_difference_that_could(tmp_path):
    qrels, runs = random_study(5)
    other = {query: dict(zip(found, reversed(found.values()), strict=True)) for query, found in runs[0].items()}
    paths = [write_run(tmp_path / "a", runs[0]), write_run(tmp_path / "b", other)]
    line = compare(paths, write_qrels(tmp_path / "qrels", qrels), ["ndcg@10"]).iloc[0]
    assert line["p_holm"] > 0.05
    assert (
        line["verdict"]
        == f"not separable with these 40 queries; a difference of about {line['detectable']:.4f} would be"
    )
    third = write_run(tmp_path / "third", other)
    family = compare([*paths, third], tmp_path / "qrels", ["ndcg@10"]).iloc[0]
    assert family["verdict"].endswith(f"{family['detectable']:.4f} would be (at level .05 / 2, for 2 systems)")
    assert family["detectable"] == pytest.approx(line["detectable"] * 3.083024 / 2.801585, rel=1e-5)
    again = write_run(tmp_path / "again", runs[0])
    same = compare([paths[0], again], tmp_path / "qrels").iloc[0]
    assert (same["detectable"], same["p_value"]) == (0, 1) and same["verdict"] == "not separable with these 40 queries"


def by_dataset(**differences):
    parts = {name: pd.Series(values) for name, values in differences.items()}
    return pd.concat(parts, names=["dataset", "query_id"])


def test_the_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=200)
    gaps = 0.3 * (gaps - gaps.mean()) / gaps.std(ddof=1)
    least = detectable(by_dataset(x=gaps))
    assert least == pytest.approx(2.801585 * 0.3 / math.sqrt(200), rel=1e-5)
    found = scipy.stats.power(
        scipy.stats.ttest_1samp, lambda size: rng.normal(least, 0.3, size), 200, significance=0.05, n_resamples=4000,
        kwargs={"popmean": 0.0},
    )  # fmt: skip
    assert found.power == pytest.approx(0.8, abs=0.03)
    # Two data sets of the same weight: sqrt(4/50 + 1/200) / 2 = 0.1457738
    x, y = (scipy.stats.zscore(rng.normal(size=size), ddof=1) for size in (50, 200))
    assert detectable(by_dataset(x=2 * x, y=y)) == pytest.approx(2.801585 * 0.1457738, rel=1e-5)
    assert math.isnan(detectable(by_dataset(x=[0.1])))


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t1\n\nq1\td 2\t0\r\n",
        "Query_ID\tcorpus_id\trelevance\n q1 \td1\t1.0\nq1\td 2\t0\n",
        "\ufeffq1 0 d1 1\n   \nq1\t0\td2\t0",
        "q1  d1 1\nq1\td2 -1",
    ],
)
def test_qrels_of_trec_and_beir_with_marks_blanks_tabs_and_spaces(text, tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_bytes(text.encode())
    found = read_qrels(path)
    assert found in ({"q1": {"d1": 1, "d2": 0}}, {"q1": {"d1": 1, "d 2": 0}}, {"q1": {"d1": 1, "d2": -1}})
    assert ("d 2" in found["q1"]) == ("d 2" in text)


def test_sentence_transformers_predictions(tmp_path, bert):
    from sentence_transformers import SentenceTransformer, util
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    texts = some_texts(60)
    queries = {f"q{i}": text for i, text in enumerate(some_texts(20, seed=1))}
    relevant = {query: {f"d{i}", f"d{i + 20}"} for i, query in enumerate(queries)}
    evaluator = InformationRetrievalEvaluator(
        queries, {f"d{i}": text for i, text in enumerate(texts)}, relevant, write_predictions=True,
        score_functions={"cosine": util.cos_sim, "dot": util.dot_score},
    )  # fmt: skip
    model = SentenceTransformer(str(bert), device="cpu", local_files_only=True)
    reported = evaluator(model, output_path=str(tmp_path))
    files = [tmp_path / f"Information-Retrieval_evaluation_predictions_{name}.jsonl" for name in ("cosine", "dot")]
    qrels = write_qrels(tmp_path / "qrels", {query: dict.fromkeys(found, 1) for query, found in relevant.items()})
    line = compare(files, qrels, ["ndcg@10"]).iloc[0]
    assert (line["mean_against"], line["mean"]) == pytest.approx(
        (reported["cosine_ndcg@10"], reported["dot_ndcg@10"]), abs=1e-9
    )


def test_mteb_predictions(study, tmp_path):
    from types import SimpleNamespace

    from mteb.abstasks.retrieval import AbsTaskRetrieval

    paths, qrels = study
    task = SimpleNamespace(_predictions_path=lambda folder: folder / "Task_predictions.json")
    model = SimpleNamespace(mteb_model_meta=SimpleNamespace(name="a/b", revision="1"))
    run = plain(read_run(paths[1])[0])
    for split, part in (("test", run), ("dev", {"unjudged": {"d1": 1.0}})):
        AbsTaskRetrieval._save_task_predictions(task, part, model, tmp_path, hf_subset="default", hf_split=split)
    line = compare([paths[0], tmp_path / "Task_predictions.json"], qrels, ["ndcg@10"]).iloc[0]
    assert (
        line.drop(["system", "verdict"]).tolist()
        == compare(paths[:2], qrels, ["ndcg@10"]).iloc[0].drop(["system", "verdict"]).tolist()
    )


def test_tables_of_per_query_scores(tmp_path):
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [["baseline", "NA"], [0, 1], ["x", "y"], [f"q{i}" for i in range(20)], ["ndcg@10", "mrr@10"]],
        names=["system", "seed", "dataset", "query_id", "metric"],
    )
    table = pd.DataFrame({"value": rng.random(len(index))}, index=index).reset_index()
    table = table[~((table["system"] == "baseline") & (table["seed"] == 1))]
    table["track"] = ""
    for name in ("scores", "again"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    text = compare([tmp_path / "scores.parquet"])
    assert text["system"].tolist() == ["NA", "NA"] and text["metric"].tolist() == ["ndcg@10", "mrr@10"]
    means = table.groupby(["metric", "system", "dataset"])["value"].mean().groupby(["metric", "system"]).mean()
    assert text["difference"].tolist() == pytest.approx([means[m, "NA"] - means[m, "baseline"] for m in text["metric"]])
    assert text["queries"].tolist() == [40, 40]
    both = compare([tmp_path / "scores.parquet", tmp_path / "again.parquet"], metrics=["mrr@10"])
    assert both["system"].tolist() == [
        f"{tmp_path}/scores.parquet:NA",
        f"{tmp_path}/again.parquet:baseline",
        f"{tmp_path}/again.parquet:NA",
    ]
    tracks = pd.concat([table.assign(track="all"), table[table["dataset"] == "y"].assign(track="y only")])
    tracks.to_parquet(tmp_path / "tracks.parquet")
    by_track = compare([tmp_path / "tracks.parquet"]).set_index(["track", "metric"])
    assert by_track["queries"].tolist() == [40, 40, 20, 20]
    assert by_track.loc["all", "p_value"].tolist() == by_track.loc["all", "p_holm"].tolist() == text["p_value"].tolist()
    lacking = table.drop(table.index[-1])
    lacking.to_parquet(tmp_path / "lacking.parquet")
    with pytest.raises(InputError, match="not judged on the same queries"):
        compare([tmp_path / "lacking.parquet"])
    table.assign(metric=table["metric"].replace("mrr@10", "map")).to_parquet(tmp_path / "other.parquet")
    assert compare([tmp_path / "other.parquet"])["metric"].tolist() == ["ndcg@10", "map"]
    shared = compare([tmp_path / "scores.parquet", tmp_path / "other.parquet"])
    assert set(shared["metric"]) == {"ndcg@10"}
    with pytest.raises(InputError, match="--metrics banana: expected some of ndcg@10, map, which"):
        compare([tmp_path / "other.parquet"], metrics=["map", "banana"])
    (tmp_path / "n.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"n\.parquet: expected columns"):
        compare([tmp_path / "n.parquet"])
    columns = r"wrong\.parquet: expected columns track, system, .*value \(.+\)$"
    for wrong, message in (
        (table.drop(columns="value"), columns),
        (table.assign(value="?"), columns),
        (pd.concat([table, table[:1]]), "expected scores of two systems or more, each once"),
    ):
        wrong.to_parquet(tmp_path / "wrong.parquet")
        with pytest.raises(InputError, match=message):
            compare([tmp_path / "wrong.parquet"])


# ---------------------------------------------------------------- what is left out, and what is refused


def test_lacking_queries_score_zero_and_are_counted(study, tmp_path):
    paths, qrels = study
    qrels.write_text(qrels.read_text() + "none 0 d1 0\n")
    run = read_run(paths[1])[0]
    for query in ("q1", "q2"):
        del run[query]
    short = write_run(
        tmp_path / "short",
        plain(run) | {"other": {"d1": 1.0}},
    )
    table = compare([paths[0], short], qrels, ["ndcg@10"])
    assert table.attrs["notes"] == [
        f"{short} lacks 2 of 40 queries, which score 0",
    ]
    judged = read_qrels(qrels)
    whole = trec_eval(judged, plain(run), "ndcg_cut.10")
    assert table["mean"].item() == pytest.approx(sum(whole.values()) / 40)


RUN, ONCE = "expected a run of TREC", "'d1' has no finite score, or two"
BAD = {
    "a.run": ("q1 Q0 d1 1 0.5 x\n\nq1 Q0 d2 2 0.5\n", rf"a\.run:3: {RUN} \(six columns\).*expected 6, got 5"),
    "b.run": ("q1 Q0 d1 1 much x\n", rf"b\.run:1: {RUN}.*much"),
    "c.run": ("q1 Q0 d1 1 nan x\n", rf"c\.run:1: .*{ONCE}"),
    "d.run": ("q1 Q0 d1 1 1 x\nq1 Q0 d1 2 0 x\n", rf"d\.run:2: .*{ONCE}"),
    "e.jsonl": ('{"query_id": "q1", "results": [{"corpus_id": "d1"}]}\n', rf"e\.jsonl:1: {RUN}.*'score'"),
    "f.jsonl": ('{"query_id": "q1", "results": []}\n[1]\n', r"f\.jsonl:2: expected a JSON object, found list"),
    "g.json": ('{"default": {"test": {"q1": ["d1"]}}}', rf"g\.json: {RUN}"),
    "h.json": ("{", r"h\.json:1:2: not valid JSON"),
    "i.run": ("other Q0 d1 1 1 x\n", r"i\.run: expected queries with relevant documents in --qrels"),
    "j.run": ("", r"j\.run: expected queries with relevant documents in --qrels"),
    "k.run": ("q1 0 d1 1\n", rf"k\.run:1: {RUN} \(six columns\).*got 4"),
    "l.tsv": ("q1\td1\t1\n", rf"l\.tsv:1: {RUN} \(six columns\).*got 3"),
    "m.run": ("q1 Q0 d1 1 inf x\n", rf"m\.run:1: .*{ONCE}"),
    "n.run": ("q1 Q0 d1 1 1e39 x\n", rf"n\.run:1: .*{ONCE}"),
    "o.run": ("q1 Q0 d1 0.9 1 x\n", rf"o\.run:1: {RUN}.*'0\.9'"),  # rank and score swapped
    "p.json": ("[" * 100_000, r"p\.json: not valid JSON .*recursion"),
    "q.jsonl": ("[" * 100_000, r"q\.jsonl:1: not valid JSON .*recursion"),
    "r.json": ('{"en": {"test": {"q1": {"d1": 1}}, "dev": {"q1": {"d2": 2}}}}', "'q1' is in en/dev and in en/test; make"),
    "s.json": ('{"de": {"test": {"q1": {}}}, "en": {"test": {"q1": {}}}}', "'q1' is in de/test and in en/test; make"),
    "t.json": ('{"en": {"test": {"q1": {"d1": 1, " d1": 2}}}}', r"t\.json: .*' d1' has no finite score, or two"),
    "u.json": ('{"en": {"test": {"q1": {"d1": null}}}}', rf"u\.json: {RUN}"),
    "v.json": ('{"en": {"test": {"q1": {"d1": 1%s}}}}' % ("0" * 400), rf"v\.json: {RUN}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_file_and_the_line(name, study, tmp_path):
    text, message = BAD[name]
    (tmp_path / name).write_text(text)
    paths, qrels = study
    with pytest.raises(InputError, match=message):
        compare([paths[0], tmp_path / name], qrels)


def test_bad_qrels_and_too_few_systems(study, tmp_path):
    paths, qrels = study
    for line in ("q1 0 d1 1.5", "q1 d1", "q1 0 d1 1 x", "q1 0 d1 high", "q1 0 d0 2", "q1 Q0 d1 1 0.5 x"):
        (tmp_path / "bad").write_text(f"q1 0 d0 1\n{line}\n")
        with pytest.raises(InputError, match=r"bad:2: expected query 0 document grade, or BEIR's"):
            compare(paths, tmp_path / "bad")
    (tmp_path / "bytes").write_bytes(b"q1 0 d1 1\n\xff\xfe")
    with pytest.raises(InputError, match="bytes:2: not UTF-8 text"):
        compare(paths, tmp_path / "bytes")
    (tmp_path / "bytes").write_bytes(b"q1 Q0 d1 1 1 x\n\xff")
    with pytest.raises(InputError, match="bytes:2: not UTF-8 text"):
        compare([*paths, tmp_path / "bytes"], qrels)
    for empty in ("", "q1 0 d1 0\n"):
        (tmp_path / "empty").write_text(empty)
        with pytest.raises(InputError, match="empty: holds no query with a relevant document"):
            compare(paths, tmp_path / "empty")
    with pytest.raises(InputError, match="expected scores of two systems or more"):
        compare(paths[:1], qrels)
    with pytest.raises(InputError, match="expected ndcg@k"):
        compare(paths, qrels, ["map"])


def test_files_that_do_not_go_together(study, tmp_path, monkeypatch):
    paths, qrels = study
    with pytest.raises(InputError, match="runs need --qrels"):
        compare(paths)
    monkeypatch.chdir(tmp_path)
    pd.DataFrame().to_parquet("table.parquet")
    for wrong in ([paths[0], paths[0].name], [paths[0], paths[1], paths[0]], [paths[0], "table.parquet"]):
        with pytest.raises(InputError, match="expected different files, all of them runs or all of them tables"):
            compare(wrong, qrels)


def test_ids_in_json_lose_the_blanks_around_them(study, tmp_path):
    paths, qrels = study
    run = plain(read_run(paths[1])[0])
    padded = {f" {query}": {f"{document}\t": x for document, x in found.items()} for query, found in run.items()}
    (tmp_path / "run.json").write_text(json.dumps({"default": {"test": padded}}))
    lines = [
        {"query_id": f"{query} ", "results": [{"corpus_id": f" {d}", "score": x} for d, x in found.items()]}
        for query, found in run.items()
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = compare([paths[1], tmp_path / "run.json", tmp_path / "run.jsonl"], qrels)
    assert table["difference"].tolist() == [0] * 6 and table.attrs["notes"] == [] and table["mean"].min() > 0


def test_what_is_odd_about_a_run_is_noted(study, tmp_path):
    paths, qrels = study
    for name, line in (("first", "q1 Q0 d0 1 0.1 x\nq1 Q0 d1 2 0.7 x\n"), ("same", "q2 Q0 d0 1 1 x\nq2 Q0 d1 2 1 x\n")):
        (tmp_path / name).write_text(line)
    assert read_run(tmp_path / "same")[1] == []
    assert read_run(tmp_path / "first")[1] == [
        f"{tmp_path}/first: ranks contradict scores in 1 queries (distances?); the higher score is the better"
    ]
    strange = write_run(tmp_path / "strange", {f"q{i}": {f"other {i}".replace(" ", "-"): 1.0} for i in range(40)})
    notes = compare([paths[0], strange], qrels).attrs["notes"]
    assert notes == [f"{strange}: no judged document is in its results; are they the same documents?"]


def test_the_command(study, capsys):
    paths, qrels = study
    assert main(["compare", *map(str, paths), "--qrels", str(qrels)]) == 0
    printed, table = capsys.readouterr().out, compare(paths, qrels)
    assert all(f"{line.system}, {line.metric}: {line.verdict}" in printed for line in table.itertuples())
    assert table["metric"].tolist() == ["ndcg@10"] * 2 + ["mrr@10"] * 2 + ["recall@100"] * 2


def test_the_lines_as_json(study, tmp_path, capsys, monkeypatch):
    paths, qrels = study
    command = ["compare", *map(str, paths[:2]), "--qrels", str(qrels), "--metrics", "ndcg@10", "--json"]
    assert main([*command, str(tmp_path / "lines.json")]) == 0
    (line,) = json.loads((tmp_path / "lines.json").read_text())
    expected = compare(paths[:2], qrels, ["ndcg@10"]).iloc[0]
    assert list(line) == list(expected.index)
    for name, value in line.items():
        assert value == (expected[name] if isinstance(value, str) else pytest.approx(expected[name], rel=1e-12))
    assert (line["system"], line["against"]) == (str(paths[1]), str(paths[0]))
    monkeypatch.setattr("asymlib.tools.compare.compare", None)  # nothing is computed
    for folder in (".", str(tmp_path)):
        with pytest.raises(InputError, match="a folder, expected a file"):
            main([*command, folder])
