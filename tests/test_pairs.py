"""Pairs: reading them, and the pair-makers on small made-up data whose overlaps are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asymlib.data import pairs as module
from asymlib.data.leakage import keys_of
from asymlib.data.pairs import Pairs, beginning_and_rest, load_pairs, of_the_tested, own, pooled, training_rows
from asymlib.errors import InputError
from asymlib.pair_vectors import mine as hardest
from tests.test_collections import CORPUS, QRELS, QUERIES, prose, write_beir, write_lines


def test_pairs_number_equal_passages_equally(tmp_path):
    lines = [{"query": "one", "document": "same"}, {"query": " two ", "positive": "other"}, ""]
    write_lines(tmp_path / "p.jsonl", [*lines, {"query": "three", "document": "same"}])
    pairs = load_pairs(tmp_path / "p.jsonl")
    assert pairs == Pairs("p", ["one", "two", "three"], ["same", "other", "same"])
    assert pairs.passage.tolist() == [0, 1, 0]
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no pairs"):
        load_pairs(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl:2: not valid JSON"),
        ({"query": "x", "document": ["y"]}, r"p\.jsonl:2: field 'document' must be a string, found list"),
        ({"query": 3, "positive": "y"}, r"p\.jsonl:2: field 'query' must be a string, found int"),
        ("[" * 99_999, r"p\.jsonl:2: not valid JSON"),
        ({"query": "x"}, r"p\.jsonl:2: expected fields 'query' and 'document'"),
        ({"document": "y"}, r"p\.jsonl:2: field 'query' must be a string, found nothing"),
        ({"query": "x", "document": " "}, r"p\.jsonl:2: field 'document' is empty"),
        ({"query": "", "positive": "y"}, r"p\.jsonl:2: field 'query' is empty"),
    ],
)
def test_bad_pairs_are_refused_with_file_and_line(tmp_path, line, message):
    write_lines(tmp_path / "p.jsonl", [{"query": "fine", "document": "fine"}, line])
    with pytest.raises(InputError, match=message):
        load_pairs(tmp_path / "p.jsonl")


def test_pairs_with_a_byte_order_mark_and_half_a_character_are_read(tmp_path):
    lines = '\ufeff{"query": "half an emoji \\ud83d", "document": "\\udc00 and one \\ud83d\\ude00"}\r\n\r\n'
    (tmp_path / "p.jsonl").write_bytes(lines.encode())
    pairs = load_pairs(tmp_path / "p.jsonl")
    assert pairs == Pairs("p", ["half an emoji \ufffd"], ["\ufffd and one \U0001f600"])
    assert module.pair_hash((pairs.queries[0], pairs.documents[0]))
    assert pairs.name_of("document", 0) == "p, document of pair 1 ('\ufffd and one \U0001f600')"


def test_a_pair_without_a_vector_is_left_out_of_training():
    texts = ["a", "b", "c", "d"]
    q, d = np.ones((2, 4, 3), dtype=np.float32) * [[[1], [0], [2], [3]], [[1], [1], [0], [4]]]
    pairs = Pairs("train", texts, texts, q, d)
    assert pairs.encoded.tolist() == [True, False, False, True]
    made = pairs.tensors()
    assert made.queries[:, 0].tolist() == [1, 3] and made.documents[:, 0].tolist() == [1, 4]
    assert made.passage.tolist() == made.query.tolist() == [0, 3]
    with pytest.raises(InputError, match="train: no pair has two vectors that are not zero"):
        Pairs("train", texts, texts, 0 * q, d).tensors()


def test_training_rows_give_every_passage_once_before_any_twice(tmp_path):
    corpus = [{"_id": f"d{i}", "text": f"passage {i // 2}"} for i in range(6)]  # three distinct texts
    corpus.append({"_id": "void", "text": ""})
    queries = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(12)]
    qrels = [f"q{i}\td{i % 6}\t1" for i in range(12)] + ["q0\td5\t0", "q1\tvoid\t1"]
    expected = sorted((f"question {i}", f"passage {i % 6 // 2}") for i in range(12))
    rows = training_rows(write_beir(tmp_path / "train", corpus, queries, qrels, split="train"))
    write_lines(tmp_path / "p.jsonl", [{"query": query, "document": doc} for query, doc in expected])
    for found in (rows, training_rows(tmp_path / "p.jsonl")):
        assert sorted(found) == expected
        assert sorted(doc for _, doc in found[:3]) == ["passage 0", "passage 1", "passage 2"]
        assert found != expected


@pytest.fixture
def data(tmp_path):
    """Two sources of 40 passages and two tests; one pair shares a query, two a query or a passage with them."""
    corpus = [{"_id": f"d{i}", "title": "T", "text": prose(i)} for i in range(40)]
    queries = [{"_id": f"q{i}", "text": f"squad question {i}"} for i in range(120)]
    qrels = [f"q{i}\td{i % 40}\t1" for i in range(120)]
    sources = {"squad": write_beir(tmp_path / "squad", corpus, queries, qrels, split="train")}
    pairs = [{"query": f"natural question {i}", "positive": prose(500 + i)} for i in range(40)]
    pairs += [{"query": "squad question 3", "positive": prose(900)}]  # a test asks squad question 3: both must go
    pairs += [{"query": "cheese query", "positive": CORPUS[2]["text"]}]  # a passage of a test collection
    write_lines(tmp_path / "nq.jsonl", pairs)
    asked = [*QUERIES, {"_id": "q4", "text": "Squad question 3?"}]
    tests = [write_beir(tmp_path / "food"), write_beir(tmp_path / "arguana", queries=asked, qrels=[*QRELS, "q4\ta\t1"])]
    return sources | {"nq": tmp_path / "nq.jsonl"}, tests


def test_pooled_sources_share_equally_and_keep_splits_and_tests_apart(data):
    sources, tests = data
    small, large = pooled(sources, tests, 40, 10), pooled(sources, tests, 90, 10)
    assert small.validation == large.validation and len(small.validation) == 10
    assert small.counts["train"] == {"squad": 20, "nq": 20}
    assert large.counts["train"] == {"squad": 55, "nq": 35}  # all that validation left of nq
    assert len({doc for _, doc in small.train}) == 40  # one question of each passage first
    assert set(small.train) <= set(large.train)
    for split in (small, large):
        held = keys_of(text for pair in split.validation for text in pair)
        assert held.isdisjoint(keys_of(text for pair in split.train for text in pair))
        assert not {"squad question 3", "cheese query"} & dict(split.train + split.validation).keys()
    assert small.counts["removed"]["overlap_with_tests"] == {"squad": 1, "nq": 2}


def test_too_little_to_pool_is_named(data):
    for limits, message in [
        ((40, 100), "too few distinct passages for 100 validation pairs"),
        ((40, 1), "sources: expected at least one, and limit_validation"),
        ((1000, 10), r"limit_train: squad, nq give \d+ pairs, not 1000"),
    ]:
        with pytest.raises(InputError, match=message):
            pooled(*data, *limits)


@pytest.fixture
def mine(tmp_path):
    """1,000 clean pairs of 500 passages, and two that share a query or a passage with the test."""
    rows = [(f"question {i}", prose(i // 2)) for i in range(1000)]
    rows += [("Where do apples GROW?", prose(900)), ("cheese query", CORPUS[2]["text"])]
    return [{"query": query, "document": doc} for query, doc in rows], [write_beir(tmp_path / "food")]


def test_validation_is_taken_out_by_whole_passages(tmp_path, mine):
    pairs, tests = mine
    write_lines(tmp_path / "pairs.jsonl", pairs)
    split = own({"train": tmp_path / "pairs.jsonl"}, tests, 500)
    assert (len(split.validation), len(split.train)) == (100, 900)  # a tenth of 1,000
    assert len({doc for _, doc in split.validation}) == 50  # both questions of each passage
    assert len({doc for _, doc in split.train[:450]}) == 450  # one question of each passage first
    assert sorted(query for query, _ in split.train + split.validation) == sorted(f"question {i}" for i in range(1000))
    assert split.counts["removed"] == {"overlap_with_tests": {"train": 2}, "overlap_with_validation": {"train": 0}}
    assert (
        own({"train": tmp_path / "pairs.jsonl"}, tests, 65).validation == split.validation[:64]
    )  # the next does not fit


def test_validation_passages_share_no_text_with_each_other_or_training(tmp_path, mine):
    near = [{"query": f"near {i}", "document": f"Title {prose(i)}"} for i in range(500)]  # ends as passage i does
    write_lines(tmp_path / "near.jsonl", [*mine[0], *near])
    split = own({"train": tmp_path / "near.jsonl"}, mine[1], 100)
    chosen = {doc: keys_of([doc]) for _, doc in split.validation}
    assert len(set().union(*chosen.values())) == sum(map(len, chosen.values()))
    assert keys_of(chosen).isdisjoint(keys_of(doc for _, doc in split.train))


def test_training_pairs_that_share_text_with_given_validation_go(tmp_path, mine):
    rows = [*((f"question {i}", prose(i)) for i in range(200)), ("near", f"Title {prose(7)}"), ("other", prose(3))]
    write_lines(tmp_path / "train.jsonl", [{"query": query, "document": doc} for query, doc in rows])
    pairs = [{"query": f"validation question {i}", "document": prose(i)} for i in range(70)]
    pairs += [{"query": "Question 100", "document": prose(950)}, {"query": "what is baked", "document": prose(951)}]
    write_lines(tmp_path / "validation.jsonl", pairs)
    split = own({"train": tmp_path / "train.jsonl", "validation": tmp_path / "validation.jsonl"}, mine[1], 1)
    assert sorted(dict(split.validation)) == sorted(pair["query"] for pair in pairs[:71])
    assert sorted(dict(split.train)) == sorted(f"question {i}" for i in range(70, 200) if i != 100)
    removed = split.counts["removed"]  # by validation: the passages, question 100, near and other
    assert removed["overlap_with_tests"] == {"train": 0, "validation": 1}
    assert removed["overlap_with_validation"] == {"train": 70 + 1 + 2}


def test_the_message_names_what_took_the_pairs_and_the_way_out(tmp_path, mine):
    rows = [{"query": f"question {i}", "document": prose(i)} for i in range(200)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "validation.jsonl", [{**row, "query": f"other {i}"} for i, row in enumerate(rows)])
    message = (
        r"train\.jsonl: 0 training and 200 validation pairs left, expected 64 of each "
        r"\(train: of 200 pairs 0 share text with the tests; validation: of 200 pairs 0 share text with the tests; "
        r"200 training pairs share text with \S+validation\.jsonl\)$"
    )
    with pytest.raises(InputError, match=message):
        own({"train": tmp_path / "train.jsonl", "validation": tmp_path / "validation.jsonl"}, mine[1], 500)
    tested = write_beir(tmp_path / "tested", [{"_id": f"d{i}", "text": row["document"]} for i, row in enumerate(rows)],
                        [{"_id": "q", "text": "what"}], ["q\td1\t1"])  # fmt: skip
    way_out = r"of 200 pairs 200 share text with the tests: to train on a tested .* take source: target"
    with pytest.raises(InputError, match=rf"train\.jsonl: 0 training and 0 validation pairs left.*{way_out}"):
        own({"train": tmp_path / "train.jsonl"}, [tested], 500)
    with pytest.raises(InputError, match=f"too few distinct passages for 70 validation pairs .{way_out}"):
        pooled({"mine": tmp_path / "train.jsonl"}, [tested], 64, 70)


def test_a_question_of_symbols_is_neither_trained_on_nor_alone_a_group(tmp_path, mine):
    food = write_beir(
        tmp_path / "symbols" / "food", queries=[*QUERIES, {"_id": "q4", "text": "???"}], qrels=["q4\ta\t1"]
    )
    write_lines(tmp_path / "p.jsonl", [*mine[0][:700], {"query": "? ??", "document": prose(901)}])
    split = own({"train": tmp_path / "p.jsonl"}, [food], 70)
    assert split.counts["removed"]["overlap_with_tests"] == {"train": 1}
    assert not [query for query, _ in split.train + split.validation if not query[0].isalpha()]


@pytest.mark.parametrize("maker", ["pooled", "own", "of_the_tested"])
def test_unfindable_judgements_of_tests_and_training_pass_where_asked(tmp_path, maker):
    folder = collection(tmp_path / "c")
    for part in ("test", "train"):
        with open(folder / f"qrels/{part}.tsv", "a") as file:
            file.write("q0\tlost\t1\nnobody\td1\t1\n")
    write_lines(tmp_path / "p.jsonl", [{"query": f"w{i}", "document": prose(9000 + i)} for i in range(700)])
    makers = {
        "pooled": lambda **how: pooled({"mine": tmp_path / "p.jsonl"}, [folder], 600, 64, **how),
        "own": lambda **how: own({"train": tmp_path / "p.jsonl"}, [folder], 70, **how),
        "of_the_tested": lambda **how: of_the_tested(folder, True, 10_000, 500, **how),
    }
    with pytest.raises(InputError, match=r"\(strict=False keeps it"):
        makers[maker]()
    assert len(makers[maker](strict=False).train) >= 600


DOCUMENTS = 800


def collection(folder: Path, titled: bool = True) -> Path:
    """DOCUMENTS documents; queries q0-q9 for the test split, t0-t399 with three graded documents each for the train split."""
    corpus = []
    for i in range(DOCUMENTS):
        text = f"Document {i} says {prose(i, 6)[:-1]}. {prose(1000 + i, 30)}"
        corpus.append({"_id": f"d{i}", "title": f"Title number {i}" if titled else "news", "text": text})
    queries = [{"_id": f"q{i}", "text": f"test question {i} {prose(5000 + i, 5)}"} for i in range(10)]
    queries += [{"_id": f"t{i}", "text": f"training question {i} {prose(6000 + i, 5)}"} for i in range(400)]
    head = "query-id\tcorpus-id\tscore"
    write_beir(folder, corpus, queries, [head, *(f"q{i}\td{i}\t1" for i in range(10))])
    grades = [(i, j, grade) for i in range(400) for j, grade in enumerate((1, 2, 1, 0, 2, 1, 1))]
    train = [f"t{i}\td{(2 * i + j) % DOCUMENTS}\t{grade}" for i, j, grade in grades]
    (folder / "qrels" / "train.tsv").write_text("\n".join([head, *train]) + "\n")
    return folder


def test_titles_serve_as_queries_where_documents_have_their_own(tmp_path):
    split = of_the_tested(collection(tmp_path / "c"), False, 10_000, 500)
    assert len(split.validation) == DOCUMENTS // 10 and len(split.train) == DOCUMENTS - DOCUMENTS // 10
    for query, doc in split.train + split.validation:
        assert query.startswith("Title number ") and doc.startswith(f"Document {query.split()[-1]} says ")
    assert keys_of(doc for _, doc in split.train).isdisjoint(keys_of(doc for _, doc in split.validation))
    assert len(of_the_tested(tmp_path / "c", False, 100, 70).train) == 100
    with pytest.raises(InputError, match=r"790 training and 10 validation pairs left, expected 64 of each"):
        of_the_tested(tmp_path / "c", False, 10_000, 10)


def test_a_beginning_and_its_rest():
    for text, expected in [
        ("One two three. " + "rest " * 8, ("One two three.", ("rest " * 8).strip())),
        ("One two. a b c d e f g h i j k l m n", ("One two. a b c d e f", "g h i j k l m n")),  # too short a sentence
        ("w " * 33 + "end. " + "rest " * 8, ("w w w w w w w w", "w " * 25 + "end. " + ("rest " * 8).strip())),
        ("a b c d e f g h  i\nj k l m n o p", ("a b c d e f g h", "i j k l m n o p")),
        ("One two three. too short a rest", None),
    ]:
        assert beginning_and_rest(text.strip()) == expected


def test_judged_documents_beyond_the_pairs_are_known_and_no_negatives(tmp_path):
    """Two more of each query's seven documents are relevant; the one of grade 0 stays a negative."""
    split = of_the_tested(collection(tmp_path / "c"), True, 10_000, 500)
    parts, grades = {"train": split.train, "validation": split.validation}, (1, 2, 1, 0, 2, 1, 1)
    documents = {doc for rows in parts.values() for _, doc in rows}
    found: dict[int, list[int]] = {}
    for query, doc in split.train + split.validation + split.known:
        found.setdefault(int(query.split()[2]), []).append(int(doc.split("Document ")[1].split()[0]))
    for i, docs in found.items():
        expected = [(2 * i + j) % DOCUMENTS for j, grade in enumerate(grades) if grade]
        assert len(docs) == len(set(docs)) and set(docs) <= set(expected)
        assert len(docs) == 6 or len(documents) < DOCUMENTS
    both = {part: sum(q in dict(rows) and d in {doc for _, doc in rows} for q, d in split.known)
            for part, rows in parts.items()}  # fmt: skip
    assert split.counts["known"] == both and both["train"] > 500
    assert of_the_tested(tmp_path / "c", False, 10_000, 500).known is None


def test_what_is_known_reaches_batches_and_mining_by_its_text(tmp_path):
    """Query a: x is its positive, y known, z not. What is known of texts of another part counts for nothing here."""
    parts = {"train": [*zip("abc", "xyz", strict=True)], "validation": [("e", "w")]}
    split = module.Split(**parts, counts={}, known=[("a", "y"), ("a", "w"), ("e", "z")])
    module.write_known(tmp_path / "known.jsonl", split)
    for part, rows in parts.items():
        write_lines(tmp_path / f"{part}.jsonl", [{"query": q, "document": d} for q, d in rows])
    plain, validation = (load_pairs(tmp_path / f"{part}.jsonl") for part in parts)
    train, validation = module.with_known(tmp_path / "known.jsonl", plain, validation)
    assert train.known == validation.known == split.known
    assert train.known_numbers().tolist() == [[0, 1]] and validation.known_numbers().shape == (0, 2)
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]], dtype=np.float32)
    made, rows = replace(train, query_vectors=vectors, document_vectors=vectors).tensors(), torch.arange(3)
    assert made.positive(rows, rows).tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    assert hardest(made, 1, np.inf)[0].tolist() == [2]  # y is nearer to a, but known
    made = replace(plain, query_vectors=vectors, document_vectors=vectors).tensors()
    assert torch.equal(made.positive(rows, rows), torch.eye(3, dtype=torch.bool))


@pytest.mark.parametrize("labels", [False, True])
def test_no_test_query_is_trained_on_even_where_queries_are_documents(tmp_path, labels):
    folder = collection(tmp_path / "c", titled=False)
    docs = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    lines = (folder / "queries.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"_id": "q0", "text": docs[7]["text"]})  # as in ArguAna
    lines[30] = json.dumps({"_id": "t20", "text": json.loads(lines[1])["text"].upper()})
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    split = of_the_tested(folder, labels, 10_000, 500)
    assert split.made_of == ("training judgements" if labels else "beginning and rest")
    secret = keys_of(json.loads(line)["text"] for line in lines[:10])
    assert secret.isdisjoint(keys_of(text for pair in split.train + split.validation for text in pair))
    # document 7 is among the best four of t1 and t3; t20 has four
    assert split.counts["removed"]["overlap_with_test_queries"] == (2 + 4 if labels else 1)


def test_training_judgements_give_the_best_documents_and_validation_takes_whole_queries(tmp_path):
    folder = collection(tmp_path / "c")
    split = of_the_tested(folder, True, 10_000, 500)
    found: dict[int, set[int]] = {}
    for query, doc in split.train + split.validation:
        found.setdefault(int(query.split()[2]), set()).add(int(doc.split("Document ")[1].split()[0]))
    assert sorted(found) == list(range(400))
    for i, documents in found.items():
        graded = {(2 * i + j) % DOCUMENTS: g for j, g in enumerate((1, 2, 1, 0, 2, 1, 1))}
        assert sorted(graded[d] for d in documents) == [1, 1, 2, 2]
    assert len(split.validation) == 160 and dict(split.train).keys().isdisjoint(dict(split.validation))
    assert len(dict(split.validation)) == 160 // module.POSITIVES_A_QUERY
