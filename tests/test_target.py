"""Studies that train on the collection they test: pairs of its documents' text, or of its training judgements."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from asymlib import datasets
from asymlib.datasets import open_study, study_source, target_study
from asymlib.errors import InputError
from tests.test_datasets import prose, write_beir

DOCUMENTS = 800


def collection(folder: Path, titled: bool = True, sentences: bool = True) -> Path:
    """DOCUMENTS documents; queries q0-q9 for the test split, t0-t399 with three graded documents each for the train split."""
    corpus = []
    for i in range(DOCUMENTS):
        words = f"Document {i} says {prose(i, 40)}"
        text = f"{' '.join(words.split()[:9])}. {' '.join(words.split()[9:])}." if sentences else words
        corpus.append({"_id": f"d{i}", "title": f"Title number {i}" if titled else "news", "text": text})
    queries = [{"_id": f"q{i}", "text": f"test question {i} {prose(5000 + i, 5)}"} for i in range(10)]
    queries += [{"_id": f"t{i}", "text": f"training question {i} {prose(6000 + i, 5)}"} for i in range(400)]
    head = "query-id\tcorpus-id\tscore"
    write_beir(folder, corpus, queries, [head, *(f"q{i}\td{i}\t1" for i in range(10))])
    train = [
        f"t{i}\td{(2 * i + j) % DOCUMENTS}\t{grade}"
        for i in range(400)
        for j, grade in enumerate((1, 2, 1, 0, 2, 1, 1))
    ]
    (folder / "qrels" / "train.tsv").write_text("\n".join([head, *train]) + "\n")
    return folder


def rows(pairs: datasets.Pairs) -> list[tuple[str, str]]:
    return list(zip(pairs.queries, pairs.docs, strict=True))


def ends(texts: list[str]) -> set[str]:
    return set().union(*map(datasets._ends, texts))


def test_titles_serve_as_queries_where_documents_have_their_own(tmp_path):
    study = target_study(tmp_path / "s", collection(tmp_path / "c"))
    assert study.track == "adapted" and study_source(tmp_path / "s") == "target"
    assert open_study(tmp_path / "s") == study
    assert list(study.tests) == ["c"] and len(study.tests["c"].docs) == DOCUMENTS
    assert len(study.validation) == DOCUMENTS // 10 and len(study.train) == DOCUMENTS - DOCUMENTS // 10
    for query, doc in rows(study.train) + rows(study.validation):
        assert query.startswith("Title number ") and doc.startswith(f"Document {query.split()[-1]} says ")
    assert ends(study.train.docs).isdisjoint(ends(study.validation.docs))
    assert len(target_study(tmp_path / "short", tmp_path / "c", limit_train=100, limit_validation=70).train) == 100


@pytest.mark.parametrize(("sentences", "words"), [(True, 9), (False, 8)])
def test_beginnings_serve_as_queries_where_titles_are_shared(tmp_path, sentences, words):
    study = target_study(tmp_path / "s", collection(tmp_path / "c", titled=False, sentences=sentences))
    assert json.loads((tmp_path / "s" / "study.json").read_text())["pairs_made_of"] == "beginning and rest"
    text = {f"{query} {doc}" for query, doc in rows(study.train)}
    assert text < {doc.removeprefix("news ") for doc in study.tests["c"].docs}
    assert {len(query.split()) for query in study.train.queries} == {words}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two three. " + "rest " * 8, ("One two three.", ("rest " * 8).strip())),
        ("One two. a b c d e f g h i j k l m n", ("One two. a b c d e f", "g h i j k l m n")),  # too short a sentence
        ("w " * 33 + "end. " + "rest " * 8, ("w w w w w w w w", "w " * 25 + "end. " + ("rest " * 8).strip())),
        ("a b c d e f g h  i\nj k l m n o p", ("a b c d e f g h", "i j k l m n o p")),
        ("One two three. too short a rest", None),
        ("", None),
    ],
)
def test_a_beginning_and_its_rest(text, expected):
    assert datasets._beginning_and_rest(text.strip()) == expected


@pytest.mark.parametrize("labels", [False, True])
def test_no_test_query_is_trained_on_even_where_queries_are_documents(tmp_path, labels):
    folder = collection(tmp_path / "c", titled=False)
    docs = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    lines = (folder / "queries.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"_id": "q0", "text": docs[7]["text"]})  # as in ArguAna
    lines[30] = json.dumps({"_id": "t20", "text": json.loads(lines[1])["text"].upper()})
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    study = target_study(tmp_path / "s", folder, labels=labels)
    secret = ends(study.tests["c"].queries)
    for pairs in (study.train, study.validation):
        assert secret.isdisjoint(ends(pairs.queries) | ends(pairs.docs))
    removed = json.loads((tmp_path / "s" / "study.json").read_text())["counts"]["removed"]
    # document 7 is among the best four of t1 and t3; t20 has four
    assert removed["overlap_with_test_queries"] == (2 + 4 if labels else 1)


def test_training_judgements_give_the_best_documents_and_validation_takes_whole_queries(tmp_path):
    study = target_study(tmp_path / "s", collection(tmp_path / "c"), labels=True)
    assert study.track == "in-domain"
    number = {doc: i for i, doc in enumerate(study.tests["c"].docs)}
    found: dict[int, set[int]] = {}
    for query, doc in rows(study.train) + rows(study.validation):
        found.setdefault(int(query.split()[2]), set()).add(number[doc])
    assert sorted(found) == list(range(400))
    for i, documents in found.items():
        graded = {(2 * i + j) % DOCUMENTS: g for j, g in enumerate((1, 2, 1, 0, 2, 1, 1))}
        assert len(documents) == datasets.POSITIVES_A_QUERY
        assert sorted(graded[d] for d in documents) == [1, 1, 2, 2]
    assert set(study.train.queries).isdisjoint(study.validation.queries)
    assert len(study.validation) == 160 and len(study.train) == 1440
    sizes = np.bincount(study.validation.query_number)
    assert (sizes == datasets.POSITIVES_A_QUERY).all()


def test_an_unaltered_study_is_reused_and_anything_else_is_rebuilt(tmp_path, monkeypatch):
    folder = collection(tmp_path / "c")
    first = target_study(tmp_path / "s", folder)
    stamp = (tmp_path / "s" / "study.json").stat().st_mtime_ns
    assert target_study(tmp_path / "s", folder) == first
    assert (tmp_path / "s" / "study.json").stat().st_mtime_ns == stamp
    assert rows(target_study(tmp_path / "s", folder, seed=1).train) != rows(first.train)
    assert target_study(tmp_path / "s", folder, labels=True).track == "in-domain"
    assert rows(target_study(tmp_path / "s", folder).train) == rows(first.train)
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "corpus.jsonl").write_text("\n".join(lines[:-100]) + "\n")
    (folder / "qrels" / "train.tsv").unlink()
    assert len(target_study(tmp_path / "s", folder).train) == 630
    monkeypatch.setenv("ASYMLIB_DATA", str(tmp_path))
    target_study(tmp_path / "moved", folder)
    (tmp_path / "elsewhere").mkdir()
    os.rename(folder, tmp_path / "elsewhere" / "c")
    monkeypatch.setenv("ASYMLIB_DATA", str(tmp_path / "elsewhere"))
    assert len(open_study(tmp_path / "moved").train) == 630


def test_wrong_requests_are_named(tmp_path):
    folder = collection(tmp_path / "c")
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        target_study(tmp_path / "s", tmp_path / "nowhere")
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(InputError, match=r"train\.tsv: no such file; it is needed for training pairs"):
        target_study(tmp_path / "s", folder, labels=True)
    with pytest.raises(InputError, match=r"expected at least 64 of each"):
        target_study(tmp_path / "s", folder, limit_validation=10)
    study = target_study(tmp_path / "s", folder)
    text = (study.folder / "study.json").read_text()
    (study.folder / "study.json").write_text(text.replace('"adapted"', '"adopted"'))
    with pytest.raises(InputError, match=r"field 'track' is 'adopted', expected one of zero-shot, adapted, in-domain"):
        open_study(study.folder)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "labels", "made_of", "train"),
    [
        ("scifact", False, "title and text", 4_683),
        ("nfcorpus", False, "title and text", 3_270),
        ("vaswani_npl", False, "beginning and rest", 9_085),
        ("scifact", True, "training judgements", 825),
    ],
)
def test_real_collections(tmp_path, name, labels, made_of, train):
    study = target_study(tmp_path / "s", Path(os.environ["ASYMLIB_DATA"]) / "beir" / name, labels=labels)
    assert json.loads((tmp_path / "s" / "study.json").read_text())["pairs_made_of"] == made_of
    assert len(study.train) == train
    assert datasets.overlap(study.train, study.tests[name])["queries_in_training"] == 0
