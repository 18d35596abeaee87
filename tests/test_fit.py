"""Fit: pairs in, a model folder out if held-out queries say so, and the way back through plain sentence-transformers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asymlib.data.collections import write_lines
from asymlib.data.pairs import Pairs
from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import EncoderConfig
from asymlib.errors import InputError
from asymlib.evaluate import METRIC, Qrels, rank
from asymlib.recipes import Recipe
from asymlib.selection.search import OWN, ValidationSet
from asymlib.tools import fit as tool
from asymlib.tools import lexical
from asymlib.tools.fit import MET, SELECT, TEST, TRAIN, compare, fit, split
from asymlib.tools.main import main, parser_of
from asymlib.words.block import Block, LexicalEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
TOPICS, NOISE, DIM = 60, 60, 24


def build_encoder(folder, similarity=None):
    """Words of topics lie in 12 dimensions, loud words that mean nothing in 12 others: a head can turn these down.

    A topic has one word in queries and another in documents, with the same vector: no search by words finds it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["?", *(f"{word}{i}" for word in "tsn" for i in range(TOPICS if word in "ts" else NOISE))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(words), DIM)).astype(np.float32)
    weights[0] = 0
    weights[TOPICS + 1 : 2 * TOPICS + 1] = weights[1 : TOPICS + 1]
    weights[: 2 * TOPICS + 1, DIM // 2 :] = 0
    weights[2 * TOPICS + 1 :, : DIM // 2] = 0
    module = StaticEmbedding(tokenizer, embedding_weights=1.5 * weights)
    SentenceTransformer(modules=[module], similarity_fn_name=similarity, device="cpu").save(str(folder))
    return EncoderConfig(str(folder), device="cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return build_encoder(tmp_path_factory.mktemp("static"))


@pytest.fixture
def quick(monkeypatch):
    """A search of one learning rate."""
    monkeypatch.setattr(tool, "ROUNDS", [{"lr": [1e-2]}])
    monkeypatch.setattr(tool, "UPDATES", 40)


def some_pairs(count, noise, queries=1, named=False):
    """(query, document), `queries` of each document: three topics in both, and in each `noise` words that mean nothing.

    named: the query says one topic, and a rare word of the document, which the encoder does not know.
    """
    rng = np.random.default_rng(0)
    found = []
    for serial in range(count):
        topics = rng.choice(TOPICS, 3, replace=False)
        said = [[f"{'s' if i else 't'}{topic}" for topic in topics] for i in range(1 + queries)]
        document, *asked = ([*words, *(f"n{i}" for i in rng.choice(NOISE, noise))] for words in said)
        filler = [f"x{serial:04d}"] * 30  # no word of the encoder's, but more than 120 letters
        asked = [[query[0], filler[0]] for query in asked] if named else asked
        found += [
            (" ".join([*query, f"q{len(found) + i}"]), " ".join([*document, *filler])) for i, query in enumerate(asked)
        ]
    return found


def write(path, pairs):
    write_lines(path, ({"query": query, "document": document} for query, document in pairs))
    return path


def parts_of(pairs, seed=0):
    return split(Pairs("pairs", *map(list, zip(*pairs, strict=True))), seed)


def test_groups_that_share_text_stay_together():
    pairs = some_pairs(400, 1)
    twin = "Title of the copy " + pairs[7][1]  # the last 120 letters are those of another document
    again = pairs[9][0].upper().replace(" ", ", ")  # the same query to the eye, with a document of its own
    frame = parts_of([*pairs, ("another query", twin), (again, "another document")])
    assert frame["group"].nunique() == 400
    assert frame["group"][400] == frame["group"][7] and frame["group"][401] == frame["group"][9]
    assert (frame.groupby("group")["part"].nunique() == 1).all()
    counts = frame["part"].value_counts()
    assert 58 <= counts[TEST] <= 60 and 58 <= counts[SELECT] <= 61  # 15 % of 402 are 60.3; a group may not fit
    assert MET not in counts
    other = parts_of(pairs, seed=1)
    assert not (other["part"] == frame["part"][:400]).all()
    assert (parts_of(pairs)["part"] == parts_of(pairs)["part"]).all()


def test_met_takes_one_query_of_documents_that_training_keeps():
    frame = parts_of(some_pairs(300, 1, queries=5))
    met, train = frame[frame["part"] == MET], frame[frame["part"] == TRAIN]
    assert 200 <= len(met) <= 0.15 * len(frame)  # nearly every document of TRAIN has one to give
    assert met["d"].is_unique and met["d"].isin(train["d"]).all()
    assert not met["q"].isin(train["q"]).any()
    for part in (SELECT, TEST):
        assert not frame.loc[frame["part"] == part, "document"].isin(train["document"]).any()


@pytest.mark.parametrize("documents", [1, 50])
def test_few_documents_are_split_by_query(documents):
    frame = parts_of([(f"query {i}", f"document {i % documents}") for i in range(600)])
    assert frame["group"].nunique() == 600
    counts = frame["part"].value_counts()
    assert counts[TEST] == counts[SELECT] == 90
    train = frame[frame["part"] == TRAIN]
    assert frame.loc[frame["part"] == TEST, "d"].isin(train["d"]).all()  # all answers are met, all queries are new


def test_a_large_group_trains():
    pairs = [*some_pairs(700, 1), *((f"question {i}", "the one answer") for i in range(300))]
    for seed in range(5):
        frame = parts_of(pairs, seed)
        assert set(frame.loc[frame["document"] == "the one answer", "part"]) <= {TRAIN, MET}
        assert (frame["part"] == TEST).sum() == (frame["part"] == SELECT).sum() == 150


def test_compare_by_hand():
    # Documents e0, e1, e2, e3. Frozen queries: q0 = e0 and q1 = e0 + e1/2 of one group, q2 = e2. The answers are 0, 1, 3.
    documents, queries = np.eye(4, dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    queries[0, 0], queries[1, :2], queries[2], queries[3, 3] = 1, (1, 0.5), (0.3, 0.2, 1, 0.1), 1
    frame = pd.DataFrame(
        {
            "id": list("abcd"),
            "q": [0, 1, 2, 3],
            "d": [0, 1, 3, 3],
            "group": [5, 5, 6, 7],
            "part": [TEST, TEST, MET, TRAIN],
        }
    )
    head = {"query.weight": np.eye(4), "query.bias": np.zeros(4)}  # sends e2 to e3
    head["query.weight"][2:, 2:] = [[0, 1], [1, 0]]
    import torch

    head = {name: torch.tensor(value, dtype=torch.float32) for name, value in head.items()}
    own = [queries, documents]
    systems = {"frozen": (Recipe(name="a", head="none"), {}, own), "head": (Recipe(name="b", sides="query"), head, own)}
    table = compare(frame, systems).set_index(["answers", "system"])
    # q0 finds 0 at rank 1, q1 finds 1 at rank 2: their group has (1 + 1/log2(3)) / 2; q2 finds 3 at rank 4, the head at 1
    group, last = (1 + 1 / np.log2(3)) / 2, 1 / np.log2(5)
    assert table.loc[("all", "frozen"), METRIC] == pytest.approx(group)
    assert table.loc[("not met", "head"), METRIC] == pytest.approx(group)
    assert table.loc[("met", "frozen"), METRIC] == pytest.approx(last)
    assert table.loc[("met", "head"), "difference"] == pytest.approx(1 - last)
    assert table.loc[("met", "head"), ["low", "high"]].tolist() == pytest.approx([1 - last] * 2)
    assert table["queries"].tolist() == [2, 2, 2, 2, 1, 1]


PLAIN = """
import json, sys
sys.modules["asymlib"] = None  # importing it is an ImportError from here on
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
asked = json.load(sys.stdin)
model = SentenceTransformer(asked["folder"], device="cpu", local_files_only=True)
relevant = {query: set(found) for query, found in asked["relevant"].items()}
judge = InformationRetrievalEvaluator(asked["queries"], asked["corpus"], relevant, show_progress_bar=False, write_csv=False)
found = judge(model)
print(json.dumps({"ndcg": found[judge.primary_metric], "modules": [m for m in sys.modules if m.startswith("asymlib")]}))
"""


def test_fit_exports_what_plain_sentence_transformers_ranks_alike(tmp_path, encoder, quick):
    pairs = some_pairs(600, 3)
    model, results = fit(write(tmp_path / "pairs.jsonl", pairs), encoder, tmp_path / "model", cache=tmp_path / "cache")
    table = results.set_index(["answers", "system"])
    assert model == tmp_path / "model" and table.loc[("all", "head"), "low"] > 0.1
    assert results.loc[results["chosen"], "system"].unique().tolist() == ["head"]
    frame = parts_of(pairs)
    test = frame[frame["part"] == TEST]
    asked = {
        "folder": str(model),
        "corpus": {str(i): text for i, text in enumerate(frame["document"])},
        "queries": {str(i): text for i, text in test["query"].items()},
        "relevant": {str(i): [str(i)] for i in test.index},
    }
    (tmp_path / "elsewhere").mkdir()
    how = {"input": json.dumps(asked), "capture_output": True, "text": True, "cwd": tmp_path / "elsewhere"}
    done = subprocess.run([sys.executable, "-c", PLAIN], env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] == ["asymlib"]  # the mark that forbids it
    assert found["ndcg"] == pytest.approx(table.loc[("all", "head"), METRIC], abs=1e-4)
    told = json.loads((model / "README.md").read_text().split("```json\n")[1].split("```")[0])
    assert (
        told["pairs"] == {"train": 420, "select": 90, "test": 90, "met": 0} and len(told["sha256"]["pairs.jsonl"]) == 64
    )
    assert told["select"]["head"] > told["select"]["frozen"] and told["lengths"]["query"]["count"] == 600


def test_nothing_better_is_exit_code_3_and_no_folder(tmp_path, encoder, quick, capsys):
    pairs = write(tmp_path / "pairs.jsonl", some_pairs(450, 0))  # a query's topics are its document's: nothing to gain
    arguments = ["fit", str(pairs), "--encoder", encoder.model, "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 3
    out = capsys.readouterr().out
    assert "nothing beats the frozen encoder" in out and "not met" in out
    assert re.search(r"was the best of the others: [+-]0\.\d{4} \[.*\] on 67 queries; about 0\.\d{4} or more", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "pairs.jsonl"]


def test_words_that_the_encoder_does_not_know_are_exported_and_rank_alike_in_a_fresh_object(tmp_path, encoder, quick):
    pairs = some_pairs(450, 3, named=True)
    cache = tmp_path / "cache"
    model, results = fit(write(tmp_path / "pairs.jsonl", pairs), encoder, tmp_path / "words", cache=cache)
    table = results.set_index(["answers", "system"])
    assert results.loc[results["chosen"], "system"].unique().tolist() == ["lexical"]
    assert table.loc[("all", "lexical"), "low"] > 0.1 and table.loc[("all", "head"), "low"] < 0.1
    gain = f"{table.loc[('all', 'lexical'), 'difference']:+.4f}"
    said, use = results.attrs["notes"]
    assert said.startswith("lexical (1,536 dimensions of words, weight ") and f"): {gain} [" in said
    assert use == lexical.USE and "LexicalEncoder.load" in use
    frame = parts_of(pairs)
    test = frame[frame["part"] == TEST]
    one = LexicalEncoder.load(model, cache)
    q, d = one.encode_query(list(test["query"])), one.encode_document(list(frame["document"]))
    assert d.shape == (450, DIM + 1536)
    names = {"doc_ids": [str(i) for i in frame.index], "query_ids": [str(i) for i in test.index]}
    qrels = Qrels("t", **names, qrels={str(i): {str(i): 1} for i in test.index})
    assert rank(qrels, q, d, "dot", None).mean() == pytest.approx(table.loc[("all", "lexical"), METRIC], abs=1e-6)
    card = (model / "README.md").read_text()
    assert "LexicalEncoder.load" in card and "Plain Sentence Transformers cannot load" in card
    told = json.loads(card.split("```json\n")[1].split("```")[0])
    assert told["select"]["lexical"] > told["select"]["head"] and told["lengths"]["document"]["count"] == 450


def test_a_block_is_chosen_by_its_rank_on_select_alone():
    # two queries of two words; the long document says both words of query 0 but is not its answer, and with its length
    # kept it wins over the short one, which says one of them: only exponent 1 is right. The vectors say nothing.
    documents = ["alpha beta " * 4 + "gamma delta " * 8, "alpha beta", "epsilon zeta", "eta theta"]
    texts = ValidationSet(OWN, None, np.array(["alpha beta", "epsilon zeta"], object), np.array(documents, object))
    qrels = Qrels("s", list("abcd"), ["x", "y"], {"x": {"b": 1}, "y": {"c": 1}})
    frozen = ValidationSet(OWN, qrels, np.ones((2, 3), np.float32), np.ones((4, 3), np.float32))
    block, score = lexical.choose(Block.fit(documents, k1=100.0, b=0.0), frozen, texts)
    assert score == 1 and (block.weight, block.exponent) == (0.2, 1)
    assert lexical.settings(block) == "1,536 dimensions of words, weight 0.2, exponent of document length 1"


def test_the_words_of_a_corpus_are_saved_without_a_pair(tmp_path, encoder, capsys, monkeypatch):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "made" / "words"
    write_lines(corpus, [{"_id": str(i), "title": f"t{i}", "text": f"name{i}" if i else ""} for i in range(20)])
    there = Path(encoder.model)
    monkeypatch.chdir(there.parent)
    options = {"--encoder": there.name, "--max-length": "30", "--weight": "0.3", "--out": str(out)}
    asked = ["lexical", str(corpus), *(word for option in options.items() for word in option)]
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(out)
    monkeypatch.chdir(tmp_path)
    one = LexicalEncoder.load(out, tmp_path / "cache")
    assert one.encoder.max_length == 30 and (one.block.weight, one.block.exponent) == (0.3, 0)
    documents = one.encode_document(["t1 name1", "t2 name2", "later"])  # a word that came later has the largest idf
    scores = one.encode_query(["name2", "later"]) @ documents.T
    assert scores.argmax(1).tolist() == [1, 2]
    assert "No results were given" in (out / "README.md").read_text()
    with pytest.raises(InputError, match="holds something already"):
        main(asked)
    write_lines(corpus, [{"_id": "a", "title": "", "text": "a !"}])
    with pytest.raises(InputError, match="none of them has a word"):
        main([*asked[:-1], str(tmp_path / "other")])


def test_frozen_is_ranked_with_its_own_similarity_against_the_whole_corpus(tmp_path, quick):
    config = build_encoder(tmp_path / "dot", "dot")
    pairs, corpus = some_pairs(450, 2), tmp_path / "corpus.jsonl"
    others = [" ".join([*(f"t{(i + j) % TOPICS}" for j in range(3)), f"other{i}"]) for i in range(100)]
    twins = [f"a title {document}" for _, document in pairs]  # the pairs' own documents under a title
    records = [{"_id": str(i), "title": "", "text": text} for i, text in enumerate([*twins, *others, others[0]])]
    write_lines(corpus, records)
    path = write(tmp_path / "pairs.jsonl", pairs)
    _, results = fit(path, config, tmp_path / "model", corpus, cache=tmp_path / "cache")
    frame = parts_of(pairs)
    test = frame[frame["part"] == TEST]
    pool = [*frame["document"], *others]
    qrels = Qrels(
        "t", [str(i) for i in range(len(pool))], [str(i) for i in test.index], {str(i): {str(i): 1} for i in test.index}
    )
    q, d = (
        encode(list(x), config, tmp_path / "cache", False, s) for x, s in ((test["query"], "query"), (pool, "document"))
    )
    expected = {name: rank(qrels, q, d, name, None).mean() for name in ("dot", "cosine")}
    found = results.set_index(["answers", "system"]).loc[("all", "frozen"), METRIC]
    assert found == pytest.approx(expected["dot"], abs=1e-6) and abs(expected["dot"] - expected["cosine"]) > 0.01


def test_a_query_of_unknown_words_stops_nothing(tmp_path, encoder, quick):
    pairs = [*some_pairs(450, 3), *((f"unknown{i}", f"nothing{i} known") for i in range(20))]
    model, results = fit(write(tmp_path / "pairs.jsonl", pairs), encoder, tmp_path / "model", cache=tmp_path / "cache")
    assert model and np.isfinite(results[METRIC]).all()


def test_too_few_pairs_and_a_full_folder_are_refused_at_once(tmp_path, encoder):
    pairs = write(tmp_path / "pairs.jsonl", some_pairs(100, 1) * 5)  # repeats are no further pairs
    expected = (
        r"pairs.jsonl: 100 distinct pairs, 100 groups of 1 to 1: .*'select': 15.*; expected 64 or more in each of train"
    )
    with pytest.raises(InputError, match=expected):
        fit(pairs, encoder, tmp_path / "model", cache=tmp_path / "cache")
    with pytest.raises(InputError, match="holds something already"):
        fit(pairs, encoder, tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(f"q{i}", "the one answer") for i in range(500)], r"fewer than 10 distinct documents \(1\)"),
        (
            [("q", f"d{i}") for i in range(565)],
            r"565 distinct pairs, 1 groups of 1 to 565.*pairs that share a text stay together",
        ),
        (some_pairs(432, 1)[:420], r"'test': 63.*expected 64 or more in each of train, select, test"),
        ([(f"q{i}", f"q{i}") for i in range(500)], r"fewer than 10 distinct documents \(0\)"),
    ],
)
def test_pairs_that_cannot_be_split_are_refused_with_what_is_needed(tmp_path, encoder, pairs, message):
    with pytest.raises(InputError, match=message):
        fit(write(tmp_path / "p.jsonl", pairs), encoder, tmp_path / "model", cache=tmp_path / "cache")


def test_a_seed_and_a_similarity_that_cannot_be_are_refused_before_the_search(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(tool, "encode_lists", lambda *_, **__: pytest.fail("encoded first"))
    pairs = write(tmp_path / "pairs.jsonl", some_pairs(450, 1))
    with pytest.raises(InputError, match=r"seed: expected a whole number from 0 .* got -1"):
        fit(pairs, encoder, tmp_path / "model", seed=-1)
    with pytest.raises(InputError, match="similarity_fn_name 'manhattan'; expected one of"):
        fit(pairs, build_encoder(tmp_path / "other", "manhattan"), tmp_path / "model")


def test_a_query_that_is_a_document_does_not_find_itself():
    # queries 0 and 1 are the texts of documents 1 and 0; each is the other's answer and nearest to itself
    queries, documents = np.float32([[1, 0], [0.6, 0.8]]), np.float32([[0.6, 0.8], [1, 0], [0, 1]])
    frame = pd.DataFrame({"id": ["1", "0"], "q": [0, 1], "d": [0, 1], "group": [0, 1], "part": [TEST, TEST]})
    frozen = Recipe(name="a", head="none", similarity="cosine")
    table = compare(frame, {"frozen": (frozen, {}, [queries, documents])})
    # query 0 finds document 0 first; query 1 has 0.8 with document 2 and 0.6 with its answer, which is second
    assert table.loc[0, METRIC] == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_pairs_both_ways_are_judged_without_themselves(tmp_path, encoder, quick):
    pairs = some_pairs(300, 0)
    both = [*pairs, *((document, query) for query, document in pairs), ("t1 t2", "t1 t2")]
    path = write(tmp_path / "pairs.jsonl", both)
    _, results = fit(path, encoder, tmp_path / "model", cache=tmp_path / "cache")
    found = results.set_index(["answers", "system"]).loc[("all", "frozen"), METRIC]
    assert found > 0.85  # a text that finds itself first leaves 0.63 at most
    assert "left out: 1 pairs of a text with itself" in results.attrs["notes"]


def test_an_encoder_by_name_takes_its_own_length(tmp_path, encoder, monkeypatch):
    taken = []
    monkeypatch.setattr("asymlib.tools.export.longest", lambda config: 77)
    monkeypatch.setattr(
        tool,
        "encode_lists",
        lambda lists, sides, config, *_, **how: taken.extend([config, how["name"], lists]) or 1 / 0,
    )
    pairs = write(tmp_path / "pairs.jsonl", some_pairs(450, 1))
    write_lines(corpus := tmp_path / "corpus.jsonl", [{"_id": "a", "title": "", "text": "t1 t2 other"}])
    with pytest.raises(ZeroDivisionError):
        fit(pairs, encoder.model, tmp_path / "model", corpus)
    config, name, lists = taken
    assert config.max_length == 77 and len(lists[1]) == 451
    assert name(1, 450) == f"{corpus}:1" and name(0, 2) == f"{pairs}, distinct query 3"


@pytest.mark.parametrize("name", ["fit", "export", "lexical"])
def test_the_example_of_the_help_can_be_parsed(name):
    from importlib import import_module

    example = import_module(f"asymlib.tools.{name}").EXAMPLE
    options = parser_of(name).parse_args(example.split()[1:])
    assert options.out and getattr(options, "seed", 0) == 0
