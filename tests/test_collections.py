"""Reading of folders in BEIR's layout, and the errors that name file and line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from beir.datasets.data_loader import GenericDataLoader

from asymlib.data.collections import Collection, load_beir
from asymlib.errors import InputError
from asymlib.evaluate import rank

CORPUS = [
    {"_id": "a", "title": "Apples", "text": "grow on trees"},
    {"_id": "b", "title": "", "text": "Bread is baked"},
    {"_id": "c", "text": "Cheese is made of milk"},
]
QUERIES = [
    {"_id": "q1", "text": "where do apples grow"},
    {"_id": "q2", "text": "what is baked"},
    {"_id": "q3", "text": "asked by nobody"},
]
QRELS = ["query-id\tcorpus-id\tscore", "q2\tb\t2", "q2\tc\t1", "q1\ta\t1", "q1\tb\t0"]


def write_lines(path: Path, records: list) -> None:
    """JSONL from records; a record that is a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_beir(folder: Path, corpus: list = CORPUS, queries: list = QUERIES, qrels: list = QRELS, split="test") -> Path:
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    write_lines(folder / "qrels" / f"{split}.tsv", qrels)
    return folder


def prose(seed: int, words: int = 30) -> str:
    """Made-up words that no other seed gives."""
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("aeioubdfgklmnprst"), size=6)) for _ in range(words)) + "."


def counts(collection: Collection) -> list[int]:
    """Numbers of documents, empty ones, queries, judgements, and judgements of documents that the corpus lacks."""
    judged = [doc for grades in collection.qrels.values() for doc in grades]
    known, empty = set(collection.doc_ids), collection.documents.count("")
    missing = sum(doc not in known for doc in judged)
    return [len(collection.documents), empty, len(collection.queries), len(judged), missing]


def test_a_collection_joins_titles_and_keeps_only_judged_queries(tmp_path):
    collection = load_beir(write_beir(tmp_path / "food"))
    documents = ["Apples grow on trees", "Bread is baked", "Cheese is made of milk"]
    queries = ["where do apples grow", "what is baked"]  # in the order of queries.jsonl; q3 has no judgement
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"b": 2, "c": 1}}
    assert collection == Collection("food", ["a", "b", "c"], documents, ["q1", "q2"], queries, qrels, drop_self=False)
    assert counts(collection) == [3, 0, 2, 4, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # beir leaves its files open
def test_a_collection_reads_what_beir_reads(tmp_path):
    folder = write_beir(tmp_path / "food")
    corpus, queries, qrels = GenericDataLoader(str(folder)).load("test")
    ours = load_beir(folder)
    assert dict(zip(ours.query_ids, ours.queries, strict=True)) == queries
    assert ours.qrels == qrels
    texts = {key: ((doc["title"] or "") + " " + doc["text"]).strip() for key, doc in corpus.items()}
    assert dict(zip(ours.doc_ids, ours.documents, strict=True)) == texts


def test_the_folder_gives_the_name_and_whether_self_matches_count_and_the_split_can_be_chosen(tmp_path):
    folder = write_beir(tmp_path / "ArguAna", split="dev")
    write_lines(folder / "corpus.jsonl", [*CORPUS, {"_id": "q1", "title": "", "text": ""}])
    collection = load_beir(folder, "dev")
    assert (collection.name, collection.drop_self, collection.documents[3]) == ("ArguAna", True, "")
    assert counts(collection)[1] == 1
    assert collection.judgements.exclude.tolist() == [3, -1]  # the document q1 is no result for the query q1
    with pytest.raises(InputError, match=r"test\.tsv: no such file or directory; splits here: dev"):
        load_beir(folder)


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("corpus", [*CORPUS[:1], '{"_id": "b", "text": '], r"corpus\.jsonl:2: not valid JSON"),
        ("corpus", [*CORPUS[:2], "", "[1]"], r"corpus\.jsonl:4: expected a JSON object, found list"),
        ("corpus", [{"text": "no id"}], r"corpus\.jsonl:1: field '_id' must be a string, found nothing"),
        ("corpus", [{"_id": " ", "text": "x"}], r"corpus\.jsonl:1: field '_id' is empty"),
        ("corpus", [{"_id": "a", "title": 3, "text": "x"}], r"corpus\.jsonl:1: field 'title' must be a string"),
        ("corpus", [*CORPUS, CORPUS[0]], r"corpus\.jsonl:4: id 'a' occurs a second time"),
        ("corpus", [], r"corpus\.jsonl: holds no documents"),
        ("queries", [{"_id": "q1", "text": " \t"}], r"queries\.jsonl:1: field 'text' is empty"),
        ("queries", [], r"queries\.jsonl: holds no queries"),
        ("corpus", ["[" * 99_999], r"corpus\.jsonl:1: not valid JSON \(.*recursion.*\); expected one object a line"),
        ("corpus", ['{"_id": "a", "text": "\0"}'], r"corpus\.jsonl:1: not valid JSON"),
        ("corpus", ["9" * 5_000], r"corpus\.jsonl:1: not valid JSON"),
        ("corpus", [*CORPUS, {"_id": "\u00a0b\t", "text": "x"}], r"corpus\.jsonl:4: id 'b' occurs a second time"),
        (
            "corpus",
            [{"_id": 7, "text": "x"}, {"_id": "7", "text": "y"}],
            r"corpus\.jsonl:2: id '7' occurs a second time",
        ),
        ("corpus", [{"_id": 7.5, "text": "x"}], r"corpus\.jsonl:1: field '_id' must be a string, found float"),
        ("corpus", [{"_id": True, "text": "x"}], r"corpus\.jsonl:1: field '_id' must be a string, found bool"),
        ("queries", [{"_id": "q1", "text": None}], r"queries\.jsonl:1: field 'text' must be a string, found nothing"),
        ("qrels", [*QRELS, "q1 a 1"], r"test\.tsv:6: .*query-id <tab> corpus-id <tab> whole number \(no other"),
        ("qrels", ["q1 0 a 1"], r"test\.tsv:1: .* \(no other blanks, no second column as TREC has\)"),
        ("qrels", ["q1\tQ0\ta\t1"], r"test\.tsv:1: .* \(no other blanks, no second column as TREC has"),
        ("qrels", ["q1,a,1"], r"test\.tsv:1: .* no second column as TREC has\), found 'q1,a,1'"),
        ("qrels", [*QRELS, "q1\ta\t0.5"], r"test\.tsv:6: expected .* whole number .*, found"),
        ("qrels", [*QRELS, f"q1\ta\t{9**99}"], r"test\.tsv:6: expected .* whole number .*, found"),
        ("qrels", ["\0" * 50], r"test\.tsv:1: expected .* whole number"),
        ("qrels", [*QRELS, "q9\ta\t1"], r"test\.tsv:6: query 'q9' is not in queries\.jsonl"),
        ("qrels", [*QRELS, "q1\tz\t1"], r"test\.tsv:6: document 'z' is not in corpus\.jsonl"),
        ("qrels", [*QRELS, "q1\ta\t2"], r"test\.tsv:6: query 'q1' and document 'a' were judged before"),
        ("qrels", [*QRELS, "q3\ta\t0"], r"test\.tsv: query 'q3' has no relevant document"),
        ("qrels", QRELS[:1], r"test\.tsv: holds no query with a relevant document"),
    ],
)
def test_bad_collections_are_refused_with_file_and_line(tmp_path, file, lines, message):
    with pytest.raises(InputError, match=message):
        load_beir(write_beir(tmp_path / "food", **{file: lines}))


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, file):
    path = write_beir(tmp_path / "food") / file

    def refused(why: str) -> None:
        with pytest.raises(InputError, match=rf"^\S+food/{file}{why}[^\n]*$"):
            load_beir(tmp_path / "food")

    path.chmod(0)
    if os.geteuid():  # root reads everything
        refused(": permission denied")
    for text in ('{"_id": "q1", "text": "caf\xe9"}\n'.encode("latin-1"), "q1\ta\t1\n".encode("utf-16")):
        path.unlink()
        path.write_bytes(text)
        refused(":1: not UTF-8 text")
    path.unlink()
    refused(": no such file")
    path.mkdir()
    refused(": is a directory")
    path.rmdir()
    path.symlink_to(path)
    refused(": too many levels of symbolic links")
    if file == "corpus.jsonl":
        (tmp_path / "food").rename(tmp_path / "gone")
        refused(": no such file")
        (tmp_path / "food").touch()
        refused(": not a directory")


def test_what_other_programs_write_is_read_alike(tmp_path):
    clean = load_beir(write_beir(tmp_path / "clean" / "food"))
    padded = [{**record, "_id": f" {record['_id']}\t"} for record in CORPUS]
    header = "\ufeff  Query_ID\tCORPUS-ID\tScore"
    qrels = [header, "q2 \tb\t 2.0", "", " q2\tc \t+1\t", "q1\ta\t1.", "q1\tb\t-0"]
    folder = write_beir(tmp_path / "dirty" / "food", padded, QUERIES[::-1], qrels)
    for path in folder.rglob("*.*"):
        if path.is_file():
            lines = path.read_bytes().removeprefix("\ufeff".encode()).replace(b"\n", b"\r\n")
            path.write_bytes("\ufeff".encode() + lines)
    dirty = load_beir(folder)
    assert (dirty.doc_ids, dirty.documents, dirty.qrels) == (clean.doc_ids, clean.documents, clean.qrels)
    assert dict(zip(dirty.query_ids, dirty.queries, strict=True)) == dict(
        zip(clean.query_ids, clean.queries, strict=True)
    )
    (tmp_path / "link").symlink_to(folder)
    assert load_beir(tmp_path / "link").documents == clean.documents


def test_ids_that_are_numbers_match_their_digits(tmp_path):
    corpus = [{"_id": 10, "text": "ten"}, {"_id": 2**70, "text": "many"}]
    found = load_beir(write_beir(tmp_path / "n", corpus, [{"_id": 10, "text": "which"}], [f"10\t{2**70}\t1"]))
    assert found.qrels == {"10": {str(2**70): 1}} and found.judgements.n_relevant.tolist() == [1]


def test_half_a_character_becomes_one_that_can_be_stored(tmp_path):
    corpus = ['{"_id": "a", "title": "cut \\ud83d", "text": "\\ude00 off, whole \\ud83d\\ude00"}', *CORPUS[1:]]
    queries = ['{"_id": "q1", "text": "half an emoji \\ud83d"}', '{"_id": "q\\udc00", "text": "x"}']
    found = load_beir(write_beir(tmp_path / "food", corpus, queries, ["q1\ta\t1", "q\ufffd\tb\t1"]))
    assert found.documents[0] == "cut \ufffd \ufffd off, whole \U0001f600"
    assert dict(zip(found.query_ids, found.queries, strict=True)) == {"q1": "half an emoji \ufffd", "q\ufffd": "x"}


SELF = [*CORPUS, {"_id": "q1", "title": "Orchards", "text": "where do apples  grow"}]


def test_a_query_that_is_a_document_is_noticed_and_left_out_on_demand(tmp_path, caplog):
    vectors = {"a": [1, 1], "b": [0, 1], "c": [0, -1], "q1": [1, 0]}  # q1 asks [1, 0]: its own document comes first

    def score(collection: Collection) -> float:
        documents = np.array([vectors[doc] for doc in collection.doc_ids], dtype=np.float32)
        return rank(collection.judgements, np.array([[1, 0]], dtype=np.float32), documents, "dot", None).mean()

    folder = write_beir(tmp_path / "food", SELF, qrels=["q1\ta\t1"])
    found = load_beir(folder)
    assert (found.self_matches, found.drop_self) == (1, False)
    assert score(found) == pytest.approx(1 / np.log2(3))  # 0.6309: the right document is second
    assert "food: 1 queries are documents of the corpus" in caplog.text and "drop_self=['food']" in caplog.text
    caplog.clear()
    dropped = load_beir(folder, drop_self=True)
    assert (dropped.drop_self, score(dropped)) == (True, 1.0)
    load_beir(folder, drop_self=False)
    write_beir(tmp_path / "ids", [{"_id": f"q{i}", "text": prose(i)} for i in range(3)], qrels=["q1\tq2\t1"])
    merely = load_beir(tmp_path / "ids")  # numbers on both sides: nothing is dropped, nothing to tell
    assert (merely.self_matches, merely.drop_self, merely.judgements.exclude.tolist()) == (0, False, [-1])
    assert not caplog.text


@pytest.mark.parametrize(
    ("title", "text", "query", "same"),
    [
        ("", "Where do apples grow", "where do apples grow", 1),
        ("", "where do apples grow.", "where do apples grow", 1),
        ("", "where do apples grow", "where do apples grow?", 1),
        ("Fox", "text", "Fox. text", 1),
        ("", "caf\u00e9 cr\u00e8me", "cafe\u0301 cre\u0300me", 1),
        ("", "\uff21\uff42\uff43", "abc", 1),
        ("A long title", "text", "a long title", 1),  # the title alone
        ("A long title of many words", "text", "Text", 1),  # the text alone
        ("A title", "where do apples grow", "do apples grow", 0),
        ("", "\u0915\u0940", "\u0915\u093e", 0),
    ],
)
def test_a_self_match_is_one_whatever_its_case_end_mark_and_unicode_form(tmp_path, caplog, title, text, query, same):
    corpus = [{"_id": "q1", "title": title, "text": text}, CORPUS[0]]
    write_beir(tmp_path / "food", corpus, [{"_id": "q1", "text": query}], ["q1\ta\t1"])
    assert load_beir(tmp_path / "food").self_matches == same
    assert bool(caplog.text) == bool(same)


def test_relevant_documents_that_drop_self_takes_away_are_counted(tmp_path):
    write_beir(tmp_path / "food", SELF, qrels=["q1\tq1\t1", "q1\ta\t1", "q2\tb\t1"])
    for drops, count in ((True, 1), (False, 0)):
        assert load_beir(tmp_path / "food", drop_self=drops).tolerated["dropped_relevant"] == count
    found = load_beir(tmp_path / "food", drop_self=True)
    rows = np.array([[0, -1], [1, -1]])  # the best order without q1 itself; the ideal has it: 1 / (1 + 1 / log2(3))
    assert found.judgements.scores(rows, ["ndcg@2"])["ndcg@2"] == pytest.approx([0.6131, 1], abs=1e-4)


def test_an_error_names_a_text_by_its_id_and_its_beginning(tmp_path):
    found = load_beir(write_beir(tmp_path / "food"))
    assert found.name_of("document", 1) == "food, document b ('Bread is baked')"
    assert found.name_of("query", 0) == "food, query q1 ('where do apples grow')"


ODD_QRELS = [*QRELS, "q1\tlost\t1", "q1\tc\t-2", "q9\ta\t1", "q3\tb\t-1"]


@pytest.mark.parametrize(("folder", "strict"), [("food", False), ("arguana", None)])
def test_without_strictness_unfindable_documents_stay_and_unjudgeable_queries_go(tmp_path, folder, strict):
    write_beir(tmp_path / folder, qrels=ODD_QRELS)
    collection = load_beir(tmp_path / folder, strict=strict)
    assert collection.qrels == {"q1": {"a": 1, "b": 0, "lost": 1, "c": 0}, "q2": {"b": 2, "c": 1}}
    assert counts(collection)[-1] == 1
    counted = {"missing_documents": 1, "unknown_queries": 1, "queries_left_out": 1}
    assert collection.tolerated == counted | {"dropped_relevant": 0}
    assert collection.drop_self == (folder == "arguana")
    assert load_beir(write_beir(tmp_path / "clean"), strict=False).tolerated == dict.fromkeys(collection.tolerated, 0)


@pytest.mark.real
def test_real_collections_have_their_published_counts():
    for name, *published in [  # documents, empty ones, queries, judgements, those of missing documents
        ("scifact", 5_183, 0, 300, 339, 0),
        ("nfcorpus", 3_633, 0, 323, 12_334, 0),
        ("arguana", 8_674, 0, 1_406, 1_406, 5),
        ("msmarco_dl_pool", 30_005, 0, 97, 9_490, 0),
        ("vaswani_npl", 11_429, 0, 93, 2_083, 0),
    ]:
        assert counts(load_beir(Path(os.environ["ASYMLIB_DATA"]) / "beir" / name)) == published
