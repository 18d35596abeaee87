"""The command compare: its formats, its numbers against pytrec_eval and scipy, and what it says."""

import math

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import scipy.stats

from asymlib.errors import InputError
from asymlib.significance import bootstrap_interval, holm
from asymlib.tools.compare import compare, detectable, read_rankings, score
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
    lines = [f"{q} Q0 {d} {rank} {s!r} x" for q, found in run.items() for rank, (d, s) in enumerate(found.items())]
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
    values = score(read_rankings(write_run(tmp_path / "run", run)), qrels, list(MEASURES)).set_index(
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
    judged = read_rankings(qrels, int)
    runs, in_order = [plain(read_rankings(path)) for path in paths], np.argsort(list(judged))
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
        assert (line.mean_a, line.mean_b, line.difference) == pytest.approx(
            (b.mean(), a.mean(), (b - a).mean()), abs=1e-9
        )
        low, high = bootstrap_interval((b - a)[None, in_order])
        assert (line.difference_low, line.difference_high) == pytest.approx((float(low), float(high)))
        assert line.detectable == pytest.approx((1.959964 + 0.841621) * (b - a).std(ddof=1) / math.sqrt(40), rel=1e-5)
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
        "\ufeffq1 0 d1 1\n   \nq1\t0\td2\t0",
        "q1  d1 1\nq1\td2 -1",
    ],
)
def test_qrels_of_trec_and_beir_with_marks_blanks_tabs_and_spaces(text, tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_bytes(text.encode())
    found = read_rankings(path, int)
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
    assert (line["mean_b"], line["mean_a"]) == pytest.approx(
        (reported["cosine_ndcg@10"], reported["dot_ndcg@10"]), abs=1e-9
    )


def test_mteb_predictions(study, tmp_path):
    from types import SimpleNamespace

    from mteb.abstasks.retrieval import AbsTaskRetrieval

    paths, qrels = study
    task = SimpleNamespace(_predictions_path=lambda folder: folder / "Task_predictions.json")
    model = SimpleNamespace(mteb_model_meta=SimpleNamespace(name="a/b", revision="1"))
    run = plain(read_rankings(paths[1]))
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
    run = read_rankings(paths[1])
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
    judged = read_rankings(qrels, int)
    whole = trec_eval(judged, plain(run), "ndcg_cut.10")
    assert table["mean_a"].item() == pytest.approx(sum(whole.values()) / 40)


BAD = {
    "a.run": ("q1 Q0 d1 1 0.5 x\n\nq1 Q0 d2 2 0.5\n", r"a\.run:3: expected query Q0 document rank score tag"),
    "b.run": ("q1 Q0 d1 1 much x\n", r"b\.run:1: expected query Q0.*much"),
    "c.run": ("q1 Q0 d1 1 nan x\n", r"c\.run:1: .*'d1' has no score, or two"),
    "d.run": ("q1 Q0 d1 1 1 x\nq1 Q0 d1 2 0 x\n", r"d\.run:2: .*'d1' has no score, or two"),
    "e.jsonl": ('{"query_id": "q1", "results": [{"corpus_id": "d1"}]}\n', r"e\.jsonl:1: expected .*'score'"),
    "f.jsonl": ('{"query_id": "q1", "results": []}\n[1]\n', r"f\.jsonl:2: expected .*or \.jsonl"),
    "g.json": ('{"default": {"test": {"q1": ["d1"]}}}', r"g\.json:1: expected .*mteb's \.json"),
    "h.json": ("{", r"h\.json:1: expected .*mteb's \.json"),
    "i.run": ("other Q0 d1 1 1 x\n", r"i\.run: expected queries with relevant documents in --qrels"),
    "j.run": ("", r"j\.run: expected queries with relevant documents in --qrels"),
    "n.parquet": ("no table", r"n\.parquet: expected columns"),
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
    for line in ("q1 0 d1 1.5", "q1 d1", "q1 0 d1 1 x", "q1 0 d1 high"):
        (tmp_path / "bad").write_text(f"q1 0 d0 1\n{line}\n")
        with pytest.raises(InputError, match=r"bad:2: expected .*query 0 document grade"):
            compare(paths, tmp_path / "bad")
    (tmp_path / "bytes").write_bytes(b"q1 0 d1 1\n\xff\xfe")
    with pytest.raises(InputError, match="bytes:"):
        compare(paths, tmp_path / "bytes")
    with pytest.raises(InputError, match="expected scores of two systems or more"):
        compare(paths[:1], qrels)
    with pytest.raises(InputError, match="with relevant documents in --qrels"):
        compare(paths)
    with pytest.raises(InputError, match="expected ndcg@k"):
        compare(paths, qrels, ["map"])


def test_the_command(study, capsys):
    paths, qrels = study
    assert main(["compare", *map(str, paths), "--qrels", str(qrels)]) == 0
    printed, table = capsys.readouterr().out, compare(paths, qrels)
    assert all(f"{line.system}, {line.metric}: {line.verdict}" in printed for line in table.itertuples())
    assert table["metric"].tolist() == ["ndcg@10"] * 2 + ["mrr@10"] * 2 + ["recall@100"] * 2
