"""asymlib diagnose: what it measures against outside oracles, and its verdict on models that are healthy or sick on purpose."""

import json
import re

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
from sentence_transformers.util import cos_sim, dot_score
from tokenizers import Tokenizer, models, pre_tokenizers

from asymlib.data import docstrings
from asymlib.data.collections import Collection
from asymlib.data.pairs import Pairs
from asymlib.errors import InputError
from asymlib.significance import holm
from asymlib.tools import diagnose as tool
from asymlib.tools.main import main
from asymlib.words.block import Block

WORDS = [f"w{i}" for i in range(200)]
LOUD = np.where(np.arange(200) < 20, 4.0, 1.0)  # one word in ten makes a text's vector long
pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(count=300, seed=0):
    """Documents of 12 words, and queries of 4 of them."""
    rng = np.random.default_rng(seed)
    documents = [rng.choice(WORDS, 12, replace=False) for _ in range(count)]
    queries = [rng.choice(words, 4, replace=False) for words in documents]
    return Pairs("words", [" ".join(words) for words in queries], [" ".join(words) for words in documents])


def vectors_of_words(scale=1.0, seed=0, dim=32):
    return np.random.default_rng(seed).standard_normal((len(WORDS), dim)) * np.reshape(scale, (-1, 1))


def build(folder, weights, *more, extra=(), **about):
    """A model that gives the mean of its words' vectors, followed by more modules. extra: (word, vector) rows."""
    words = ["?", *WORDS, *(word for word, _ in extra)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = np.vstack([np.zeros((1, weights.shape[1])), weights, *(row for _, row in extra)]).astype(np.float32)
    modules = [StaticEmbedding(tokenizer, embedding_weights=rows), *more]
    model = SentenceTransformer(modules=modules, device="cpu", **about)
    model.save(str(folder), create_model_card=False)
    return model


@pytest.fixture(scope="module")
def collection():
    return tool.of_pairs(pairs())


@pytest.fixture
def look(tmp_path, collection):
    """Diagnose a folder: the report, and {(rule, of): finding}."""

    def measure(folder, other=None, **options):
        report = tool.diagnose(
            str(folder), other or collection, cache_folder=tmp_path / "cache", progress=False, **options
        )
        return report, {(row["rule"], row["of"]): row for row in report["findings"]}

    return measure


def wrong(found):
    return {key for key, row in found.items() if row["verdict"] == "wrong"}


def published(model, collection):
    """nDCG@10 as Sentence Transformers' own evaluator measures it, by similarity."""
    scores = {"cosine": cos_sim, "dot": dot_score, "euclidean": lambda a, b: -torch.cdist(a, b)}
    relevant = {query: set(grades) for query, grades in collection.qrels.items()}
    texts = (dict(zip(ids, part, strict=True)) for ids, part in
             ((collection.query_ids, collection.queries), (collection.doc_ids, collection.documents)))  # fmt: skip
    evaluator = InformationRetrievalEvaluator(*texts, relevant, score_functions=scores, ndcg_at_k=[10])
    return {name: evaluator.compute_metrices(model)[name]["ndcg@k"][10] for name in scores}


# ------------------------------------------------------------------------------------------------- what is measured


def test_ndcg_is_what_sentence_transformers_own_evaluator_finds(tmp_path, look, collection):
    model = build(tmp_path / "loud", vectors_of_words(LOUD), similarity_fn_name="dot")
    report, _ = look(tmp_path / "loud")
    found = {name: row["value"] for name, row in report["similarities"].items()}
    assert found == pytest.approx(published(model, collection), abs=1e-6)


def test_each_side_of_a_router_takes_its_route(tmp_path, look, collection):
    torch.manual_seed(0)
    router = Router.for_query_document([Dense(32, 32, activation_function=torch.nn.Identity())], [Dropout(0.0)])
    model = build(tmp_path / "router", vectors_of_words(), router, similarity_fn_name="cosine")
    report, _ = look(tmp_path / "router")
    found = {name: row["value"] for name, row in report["similarities"].items()}
    assert found == pytest.approx(published(model, collection), abs=1e-6)
    length = np.linalg.norm(model.encode_query(collection.queries), axis=1)
    assert report["lengths"]["query"]["mean"] == pytest.approx(length.mean(), rel=1e-5)


def test_length_and_hubs_are_what_a_plain_loop_finds(tmp_path, look, collection):
    model = build(tmp_path / "loud", vectors_of_words(LOUD), similarity_fn_name="dot")
    report, found = look(tmp_path / "loud")
    q, d = model.encode_query(collection.queries), model.encode_document(collection.documents)
    length = np.linalg.norm(d, axis=1)
    z = (length - length.mean()) / length.std()
    times, gaps = np.zeros(len(d)), []
    for i, row in enumerate(np.argsort(-(q @ d.T), axis=1)[:, :10]):
        right = collection.documents.index(next(iter(collection.qrels[collection.queries[i]])))
        gaps.append(z[row].mean() - z[right])
        times[row[row != right]] += 1
    rho = spearmanr(times, length)
    assert found["length", ""]["value"] == pytest.approx(np.mean(gaps), abs=1e-5)
    assert found["hubs", ""]["value"] == pytest.approx(rho.statistic, abs=1e-6)
    assert found["hubs", ""]["p"] == pytest.approx(rho.pvalue, rel=1e-3, abs=1e-9)
    assert found["hubs", ""]["low"] < rho.statistic < found["hubs", ""]["high"]
    lengths = report["lengths"]["document"]
    assert lengths["cv"] == pytest.approx(length.std() / length.mean(), abs=1e-6)
    assert lengths["percentiles"][5] == pytest.approx(np.quantile(length, 0.05), abs=1e-6)
    tau = 0.05 / (np.linalg.norm(q, axis=1) * length)
    assert report["statistics"]["temperature.effective"] == pytest.approx(tau.mean(), rel=1e-5)


def test_words_beside_the_vectors_are_what_a_plain_loop_finds(tmp_path, look):
    model = build(tmp_path / "plain", vectors_of_words(), similarity_fn_name="dot")
    texts = pairs(80)
    named = [
        (f"{q} rare{i}", f"{d} rare{i}") for i, (q, d) in enumerate(zip(texts.queries, texts.documents, strict=True))
    ]
    collection = tool.of_pairs(Pairs("named", *map(list, zip(*named, strict=True))))
    report, found = look(tmp_path / "plain", collection)
    block = Block.fit(collection.documents)
    q, d = (block.join(side, getattr(model, f"encode_{side}")(part), part) for side, part in
            (("query", collection.queries), ("document", collection.documents)))  # fmt: skip
    places = [(row > row[i]).sum() + 1 for i, row in enumerate(q @ d.T)]  # answer i is document i
    expected = np.mean([1 / np.log2(place + 1) if place <= 10 else 0 for place in places])
    words, row = report["words"], found["words", ""]
    assert words["lexical"]["value"] == pytest.approx(expected, abs=1e-6)
    assert words["bm25"]["value"] > 0.99 and words["against"] in ("dot", "cosine")
    alone = report["similarities"][words["against"]]["value"]
    assert alone == max(report["similarities"][name]["value"] for name in ("dot", "cosine"))
    assert row["value"] == pytest.approx(expected - alone, abs=1e-6)
    assert words["lexical"]["difference"] == {"value": row["value"], "low": row["low"], "high": row["high"]}
    assert row["verdict"] == "information" and row["p_holm"] == row["p"] < 0.05
    wrongs = [one for one in report["findings"] if "p" in one and one["rule"] != "words"]
    assert [one["p_holm"] for one in wrongs] == pytest.approx(holm(np.array([one["p"] for one in wrongs])), abs=1e-9)
    text, page = tool.summary(report), tool.page(report)
    assert "information: Words that the vectors miss\n" in text and "asymlib lexical" in text
    assert (
        f"nDCG@10 with words {expected:.4f}" in text
        and f"{row['value']:+.4f}" in page
        and "of BM25, words alone" in page
    )


def test_words_that_find_nothing_are_no_finding(tmp_path, look):
    weights = np.vstack([vectors_of_words()[:100]] * 2)  # w100 means what w0 means
    build(tmp_path / "synonyms", weights)
    rng = np.random.default_rng(0)
    documents = [rng.choice(100, 12, replace=False) for _ in range(100)]
    queries = [" ".join(f"w{i + 100}" for i in rng.choice(words, 4, replace=False)) for words in documents]
    texts = Pairs("synonyms", queries, [" ".join(f"w{i}" for i in words) for words in documents])
    report, found = look(tmp_path / "synonyms", tool.of_pairs(texts))
    assert found["words", ""]["verdict"] == "fine" and report["words"]["bm25"]["difference"]["high"] < 0


def test_cohens_d_by_hand():
    # lengths 1, 2, 4, 5; of 1 query the last two are chosen: means 4.5 and 1.5, squares .25 * 4 = 1, sd sqrt(1/4) = .5
    assert tool.cohens_d(np.array([1.0, 2, 4, 5]), np.array([0, 0, 1, 1]), 1) == pytest.approx(6)
    # of 2 queries one chooses document 0 and one document 1: chosen 1, 3; others 3, 1: no difference
    assert tool.cohens_d(np.array([1.0, 3]), np.array([1, 1]), 2) == 0
    assert np.isnan(tool.cohens_d(np.ones(3), np.array([1, 0, 0]), 1))
    assert np.isnan(tool.cohens_d(np.arange(3.0), np.array([2, 2, 2]), 2))


def test_limit_of_tokens_and_share_cut_are_the_models_own(bert, look):
    texts = [
        " ".join(["w1"] * count) for count in (5, 10, 20, 30, 40, 50, 61, 62, 63, 90)
    ]  # [CLS] and [SEP] are two more
    other = tool.of_pairs(Pairs("long", [f"w{i}" for i in range(10)], texts))
    report, found = look(bert, other)
    assert report["max_length"] == 64 and report["cut"] == {"query": 0, "document": pytest.approx(0.2)}
    assert found["cut", ""]["verdict"] == "note" and "64 tokens" in found["cut", ""]["evidence"]
    report, _ = look(bert, other, max_length=12)
    assert report["max_length"] == 12 and report["cut"]["document"] == pytest.approx(0.8)


def test_grades_and_judgements_of_missing_documents(tmp_path, look):
    build(tmp_path / "plain", vectors_of_words())
    texts = pairs(40)
    ids = [f"d{i}" for i in range(40)]
    qrels = {f"q{i}": {f"d{i}": 2, f"d{(i + 1) % 40}": 0, "gone": 1} for i in range(40)}
    report, _ = look(tmp_path / "plain", Collection("mine", ids, texts.documents, list(qrels), texts.queries, qrels))
    assert (report["queries"], report["documents"], report["collection"]) == (40, 40, "mine")
    assert 0.5 < report["similarities"]["cosine"]["value"] < 2 / (2 + 1 / np.log2(3)) + 1e-9  # `gone` cannot be found


# ----------------------------------------------------------------------------------------------------- verdicts


def test_a_healthy_model_is_healthy_and_leaves_with_0(tmp_path, capsys):
    build(tmp_path / "healthy", vectors_of_words(), Normalize())
    texts = pairs()
    lines = [json.dumps({"query": q, "document": d}) for q, d in zip(texts.queries, texts.documents, strict=True)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    files = [tmp_path / "report.json", tmp_path / "page.html"]
    arguments = [tmp_path / "healthy", "--pairs", tmp_path / "words.jsonl", "--json", files[0], "--html", files[1]]
    assert main(["diagnose", *map(str, arguments), "--cache", str(tmp_path / "cache")]) == 0
    shown = capsys.readouterr().out
    assert (
        "on words: 300 queries, 300 documents" in shown
        and "nothing found beyond chance; all similarities rank these 300" in shown
    )
    report = json.loads(files[0].read_text())
    assert {row["rule"] for row in report["findings"] if row["verdict"] == "fine"} == {
        "similarity",
        "cut",
        "zero",
        "own",
        "cone",
    }  # lengths are all 1
    assert [row["rule"] for row in report["findings"] if row["verdict"] == "information"] == ["words"]
    assert report["declared"] is not None and report["store"].startswith("inner product: all vectors have the same")
    assert "Nothing found beyond chance; all similarities" in files[1].read_text()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_model_trained_with_raw_dot_is_sick_and_its_twin_with_cosine_is_not(tmp_path, look, similarity):
    model = build(tmp_path / similarity, vectors_of_words(seed=1), similarity_fn_name=similarity)
    texts, score = pairs(640, seed=1), dot_score if similarity == "dot" else cos_sim
    loss = MultipleNegativesRankingLoss(model, scale=20, similarity_fct=score)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for start in [*range(0, 640, 64)] * 5:
        batch = [model.preprocess(side[start : start + 64]) for side in (texts.queries, texts.documents)]
        optimizer.zero_grad()
        loss(batch, None).backward()
        optimizer.step()
    model.save(str(tmp_path / similarity), create_model_card=False)
    report, found = look(tmp_path / similarity)
    if similarity == "cosine":
        assert wrong(found) == set() and report["store"].startswith("cosine") and report["best"] == "cosine"
        return
    assert {("similarity", "cosine"), ("length", ""), ("hubs", "")} <= wrong(found)
    assert found["length", ""]["value"] > 0 and report["cohens_d"]["retrieved"] > 0.2
    assert report["cohens_d"]["relevant"] == pytest.approx(0, abs=1e-6)  # each document answers one query


def test_a_wrong_declaration_is_named_with_its_evidence(tmp_path, look, capsys, collection):
    for declared in ("euclidean", "cosine"):
        build(tmp_path / declared, vectors_of_words(LOUD), similarity_fn_name=declared)
    report, found = look(tmp_path / "euclidean")
    gap = report["similarities"]["cosine"]["value"] - report["similarities"]["euclidean"]["value"]
    row = found["similarity", "cosine"]
    assert row["verdict"] == "wrong" and row["value"] == pytest.approx(gap) and 0 < row["low"] < gap < row["high"]
    assert row["p"] <= row["p_holm"] < 0.05 and report["best"] == "cosine" and report["store"].startswith("cosine")
    assert found["similarity", "dot"]["verdict"] == "fine"  # beyond chance, but worse
    assert found["length", ""]["value"] < 0  # Euclidean distance favours the short ones
    text = tool.summary(report)
    assert "wrong: Another similarity ranks better than the declared one: cosine" in text and "euclidean" in text
    report, found = look(tmp_path / "cosine")  # the same vectors
    assert wrong(found) == set() and not {"length", "hubs", "sharp"} & {rule for rule, _ in found}


def test_prompts_that_a_family_needs_are_tried_when_they_are_missing(tmp_path, look):
    up = np.full((1, 32), 5.0)  # all words share a direction, which the prompts of E5 take away
    extra = [("query", -4 * up), ("passage", -12 * up), (":", 0 * up)]
    build(tmp_path / "e5-tiny", vectors_of_words() + up, extra=extra, similarity_fn_name="dot")
    report, found = look(tmp_path / "e5-tiny")
    row = found["prompts", "e5"]
    assert row["verdict"] == "wrong" and row["value"] > 0.01 and row["low"] > 0 and report["family"] == "e5"
    assert "prompts" in row["advice"] and '(the authors of e5 ask for "query: ")' in tool.summary(report)
    stored = {"query": "query: ", "document": "passage: "}
    build(tmp_path / "e5-with", vectors_of_words() + up, extra=extra, similarity_fn_name="dot", prompts=stored)
    report, found = look(tmp_path / "e5-with")
    assert report["prompts"] == stored and ("prompts", "e5") not in found
    assert report["similarities"]["dot"]["value"] == pytest.approx(row["a"])
    build(
        tmp_path / "e5-half",
        vectors_of_words() + up,
        extra=extra,
        similarity_fn_name="dot",
        prompts={"query": "query: ", "passage": "passage: "},
    )  # nothing asks for a prompt of this name
    report, found = look(tmp_path / "e5-half")
    assert report["prompts"] == {"query": "query: ", "document": ""} and report["asked"] == stored
    assert found["prompts", "e5"]["a"] == pytest.approx(row["a"])
    text = tool.summary(report)
    assert 'prompt of document: none (the authors of e5 ask for "passage: ")' in text and text.count("authors") == 1


@pytest.mark.parametrize(
    ("name", "family"),
    [("finetune5-v2", None), ("my-e5", "e5"), ("multilingual-e5-large-instruct", "e5-large-instruct"),
     ("e5-mistral-7b-instruct", "e5-mistral"), ("bge-base-en-v1.5", "bge-base-en"), ("bge-m3", None)],
)  # fmt: skip
def test_a_family_is_whole_parts_of_a_name(name, family):
    assert tool._family(f"some/{name}", {"query": "", "document": ""})[0] == family


def test_all_vectors_alike_and_a_text_without_a_word(tmp_path, look, collection):
    build(tmp_path / "collapsed", np.ones((len(WORDS), 32)))
    report, found = look(tmp_path / "collapsed")
    assert found["cone", ""]["verdict"] == "note" and report["statistics"]["isoscore.document"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "not known" in tool.summary(report) and "not known" in tool.page(report)
    build(tmp_path / "plain", vectors_of_words(), similarity_fn_name="dot")
    texts = pairs(30)
    _, found = look(tmp_path / "plain", tool.of_pairs(Pairs("holes", texts.queries, ["unknown", *texts.documents[1:]])))
    assert found["zero", ""]["verdict"] == "note" and found["zero", ""]["value"] == 1


def test_pairs_both_ways_do_not_find_themselves(tmp_path, look):
    build(tmp_path / "plain", vectors_of_words())
    texts = pairs(60)
    both = Pairs("both", texts.queries + texts.documents, texts.documents + texts.queries)
    report, found = look(tmp_path / "plain", tool.of_pairs(both))
    assert report["similarities"]["cosine"]["value"] > 0.7  # 0.63 is what the second place gives
    assert report["self_matches"] == 120 and report["drop_self"] and found["own", ""]["verdict"] == "fine"
    assert "queries that are documents: 120, no results of their own" in tool.summary(report)
    other = tool.of_pairs(Pairs("same", [*texts.queries, "w1 w2"], [*texts.documents, "w1 w2"]))
    report, _ = look(tmp_path / "plain", other)
    assert (report["queries"], report["documents"], report["tolerated"]) == (60, 60, {"pairs_of_one_text": 1})
    assert "let pass: pairs of one text: 1" in tool.summary(report)
    assert "let pass in the collection: pairs of one text</td>" in tool.page(report)


def test_what_a_few_queries_could_not_see_is_said(tmp_path, look, collection):
    build(tmp_path / "plain", vectors_of_words(np.where(np.arange(200) < 20, 1.05, 1.0)), similarity_fn_name="cosine")
    report, found = look(tmp_path / "plain", tool.of_pairs(pairs(45)))
    gaps = [found["similarity", name]["detectable"] for name in ("dot", "euclidean")]
    assert wrong(found) == set() and report["detectable"] == max(gaps) > 0.005
    said = f"nothing found beyond chance; 45 queries show differences of about {max(gaps):.3f} nDCG@10 or more"
    assert report["headline"] == said and said in tool.summary(report) and said[1:] in tool.page(report)
    assert "ealthy" not in tool.page(report).split("<h2>Rules")[0]


def test_own_documents_of_a_collection_are_noted_and_dropped(tmp_path, capsys):
    build(tmp_path / "plain", vectors_of_words())
    texts = pairs(40)
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts.documents)]
    asked = [{"_id": f"q{i}", "text": text} for i, text in enumerate(texts.queries)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, [*rows, *asked])))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    judged = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(40)), "q0\tgone\t1", "none\td1\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged))
    command = ["diagnose", str(tmp_path / "plain"), "--cache", str(tmp_path / "cache")]
    main([*command, "--collection", str(folder)])
    shown = capsys.readouterr().out
    assert "note: Queries are their own results" in shown and "--drop-self" in shown
    assert "missing documents: 1" in shown and "unknown queries: 1" in shown
    main([*command, "--collection", str(folder), "--drop-self"])
    shown = capsys.readouterr().out
    assert "queries that are documents: 40, no results of their own" in shown and "note: Queries" not in shown
    with pytest.raises(InputError, match="--drop-self: expected with --collection"):
        main([*command, "--drop-self"])


# ----------------------------------------------------------------------------------------------- pages and input


def test_the_page_stands_alone_and_shows_every_rule(tmp_path, look):
    build(tmp_path / "<b>loud", vectors_of_words(LOUD), similarity_fn_name="dot")
    report, found = look(tmp_path / "<b>loud")
    text = tool.page(report)
    assert "<b>loud" not in text and "&lt;b&gt;loud" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text) and "<script" not in text
    for rule, of in found:
        assert f"<td>{rule}{': ' + of if of else ''}</td>" in text
    for row in found.values():
        assert row["verdict"] == "fine" or row["advice"] in text.replace("&#39;", "'")
    drawn = tool.figure(report)
    assert [axis.get_title(loc="left") for axis in drawn.axes] == [
        "nDCG@10",
        "Vector length",
        "Results by vector length",
    ]
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == ["cosine", "dot, in use", "euclidean", "with words", "BM25"]


@pytest.mark.parametrize(
    ("declared", "count", "message"),
    [
        ("manhattan", 20, "similarity_fn_name 'manhattan'; expected one of cosine, dot"),
        (None, 9, "at least 10 queries"),
    ],
)
def test_what_cannot_be_diagnosed_is_said_in_one_sentence(tmp_path, look, declared, count, message):
    build(tmp_path / "model", vectors_of_words(), similarity_fn_name=declared)
    with pytest.raises(InputError, match=message):
        look(tmp_path / "model", tool.of_pairs(pairs(count)))


def test_a_text_without_a_finite_vector_is_named(tmp_path, look):
    build(tmp_path / "nan", vectors_of_words(), extra=[("bad", np.full((1, 32), np.nan))])
    texts = pairs(20)
    other = Collection("mine", [f"d{i}" for i in range(20)], [*texts.documents[:19], "bad"],
                       [f"q{i}" for i in range(20)], texts.queries, {f"q{i}": {f"d{i}": 1} for i in range(20)})  # fmt: skip
    with pytest.raises(InputError, match="mine, document d19"):
        look(tmp_path / "nan", other)


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, option):
    monkeypatch.setattr(tool, "diagnose", lambda *_: pytest.fail("worked first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder"):
        main(["diagnose", "all-MiniLM-L6-v2", option, str(tmp_path)])
    with pytest.raises(OSError, match="file"):  # one line by run_command
        main(["diagnose", "all-MiniLM-L6-v2", option, str(tmp_path / "file" / "report")])


def test_input_that_is_not_there(tmp_path, capsys):
    with pytest.raises(InputError, match="no such folder"):
        main(["diagnose", str(tmp_path / "none")])
    with pytest.raises(InputError, match="no such file"):
        main(["diagnose", "all-MiniLM-L6-v2", "--pairs", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="2"):
        main(["diagnose", "all-MiniLM-L6-v2", "--pairs", "a", "--collection", "b"])
    assert "not allowed with" in capsys.readouterr().err


def test_without_a_collection_docstrings_are_asked(monkeypatch):
    monkeypatch.setitem(docstrings.PACKAGES, "test", ["seaborn"])
    found = tool.docstring_collection(30)
    assert found.name == "docstrings" and len(found.documents) == len(found.queries) == 30
    assert all(len(grades) == 1 for grades in found.qrels.values())
