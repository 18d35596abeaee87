"""Reading of folders in BEIR's layout, and the errors that name file and line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from beir.datasets.data_loader import GenericDataLoader

from asymlib.data.collections import Collection, load_beir
from asymlib.errors import InputError

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
    with pytest.raises(InputError, match=r"test\.tsv: no such file; splits here: dev"):
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
        ("queries", [{"_id": "q1", "text": " \t"}], r"queries\.jsonl:1: the text of query 'q1' is empty"),
        ("queries", [], r"queries\.jsonl: holds no queries"),
        ("qrels", [*QRELS, "q1 a 1"], r"test\.tsv:6: expected query-id <tab> corpus-id <tab> whole number"),
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


def test_missing_files_and_wrong_encodings_are_named(tmp_path):
    with pytest.raises(InputError, match="food: no such folder"):
        load_beir(tmp_path / "food")
    folder = write_beir(tmp_path / "food")
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"queries\.jsonl:1: not valid JSON .*utf-8"):
        load_beir(folder)
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"queries\.jsonl: no such file"):
        load_beir(folder)


ODD_QRELS = [*QRELS, "q1\tlost\t1", "q1\tc\t-2", "q9\ta\t1", "q3\tb\t-1"]


@pytest.mark.parametrize(("folder", "strict"), [("food", False), ("arguana", None)])
def test_without_strictness_unfindable_documents_stay_and_unjudgeable_queries_go(tmp_path, folder, strict):
    write_beir(tmp_path / folder, qrels=ODD_QRELS)
    collection = load_beir(tmp_path / folder, strict=strict)
    assert collection.qrels == {"q1": {"a": 1, "b": 0, "lost": 1, "c": 0}, "q2": {"b": 2, "c": 1}}
    assert counts(collection)[-1] == 1
    assert collection.drop_self == (folder == "arguana")


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
