"""Reading, splitting and checking of text: hand-made folders, made-up packages, and the real collections."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from beir.datasets.data_loader import GenericDataLoader
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib import datasets
from asymlib.datasets import (
    Collection,
    Pairs,
    beir_pairs,
    docstring_study,
    folder_study,
    load_beir,
    load_pairs,
    open_study,
    overlap,
    real_study,
    study_source,
)
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


# ---------------------------------------------------------------------------------------------------------- load_beir


def test_a_collection_joins_titles_and_keeps_only_judged_queries(tmp_path):
    collection = load_beir(write_beir(tmp_path / "food"))
    assert collection == Collection(
        name="food",
        doc_ids=["a", "b", "c"],
        docs=["Apples grow on trees", "Bread is baked", "Cheese is made of milk"],
        query_ids=["q1", "q2"],  # in the order of queries.jsonl; q3 has no judgement
        queries=["where do apples grow", "what is baked"],
        qrels={"q1": {"a": 1, "b": 0}, "q2": {"b": 2, "c": 1}},
        drop_self=False,
    )
    assert collection.counts() == {
        "documents": 3,
        "empty_documents": 0,
        "queries": 2,
        "judgements": 4,
        "judgements_of_missing_documents": 0,
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # beir leaves its files open
def test_a_collection_reads_what_beir_reads(tmp_path):
    folder = write_beir(tmp_path / "food")
    corpus, queries, qrels = GenericDataLoader(str(folder)).load("test")
    ours = load_beir(folder)
    assert dict(zip(ours.query_ids, ours.queries, strict=True)) == queries
    assert ours.qrels == qrels
    texts = {key: ((doc["title"] or "") + " " + doc["text"]).strip() for key, doc in corpus.items()}
    assert dict(zip(ours.doc_ids, ours.docs, strict=True)) == texts


def test_name_split_and_self_matches_can_be_chosen(tmp_path):
    folder = write_beir(tmp_path / "food", split="dev")
    collection = load_beir(folder, "dev", name="menu", drop_self=True)
    assert (collection.name, collection.drop_self) == ("menu", True)
    with pytest.raises(InputError, match=r"test\.tsv: no such file; splits here: dev"):
        load_beir(folder)


JUDGED = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS}


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("corpus", [*CORPUS[:1], '{"_id": "b", "text": '], r"corpus\.jsonl:2: not valid JSON"),
        ("corpus", [*CORPUS[:2], "", "[1]"], r"corpus\.jsonl:4: expected a JSON object, found list"),
        ("corpus", [{"text": "no id"}], r"corpus\.jsonl:1: field '_id' must be a string, found nothing"),
        ("corpus", [{"_id": 7, "text": "x"}], r"corpus\.jsonl:1: field '_id' must be a string, found int"),
        ("corpus", [{"_id": " ", "text": "x"}], r"corpus\.jsonl:1: field '_id' is empty"),
        ("corpus", [{"_id": "a"}], r"corpus\.jsonl:1: field 'text' must be a string, found nothing"),
        ("corpus", [{"_id": "a", "title": 3, "text": "x"}], r"corpus\.jsonl:1: field 'title' must be a string"),
        ("corpus", [*CORPUS, CORPUS[0]], r"corpus\.jsonl:4: id 'a' occurs a second time"),
        ("corpus", [], r"corpus\.jsonl: holds no documents"),
        ("queries", [*QUERIES, QUERIES[0]], r"queries\.jsonl:4: id 'q1' occurs a second time"),
        ("queries", [{"_id": "q1", "text": " \t"}], r"queries\.jsonl:1: the text of query 'q1' is empty"),
        ("queries", [], r"queries\.jsonl: holds no queries"),
        ("qrels", [*QRELS, "q1 a 1"], r"test\.tsv:6: expected query-id <tab> corpus-id <tab> whole-number grade"),
        ("qrels", [*QRELS, "q1\tc\t0.5"], r"test\.tsv:6: expected query-id"),
        ("qrels", [*QRELS, "q9\ta\t1"], r"test\.tsv:6: query 'q9' is not in queries\.jsonl"),
        ("qrels", [*QRELS, "q1\tz\t1"], r"test\.tsv:6: document 'z' is not in corpus\.jsonl"),
        ("qrels", [*QRELS, "q1\ta\t2"], r"test\.tsv:6: query 'q1' and document 'a' were judged before"),
        ("qrels", [*QRELS, "q3\ta\t0"], r"test\.tsv: query 'q3' has no relevant document"),
        ("qrels", QRELS[:1], r"test\.tsv: holds no query with a relevant document"),
    ],
)
def test_bad_collections_are_refused_with_file_and_line(tmp_path, file, lines, message):
    with pytest.raises(InputError, match=message):
        load_beir(write_beir(tmp_path / "food", **{**JUDGED, file: lines}))


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


def test_an_empty_document_is_kept_and_counted(tmp_path):
    collection = load_beir(write_beir(tmp_path / "food", corpus=[*CORPUS, {"_id": "d", "title": "", "text": ""}]))
    assert collection.docs[3] == ""
    assert collection.counts()["empty_documents"] == 1


ODD_QRELS = [*QRELS, "q1\tlost\t1", "q9\ta\t1", "q3\tb\t-1"]


@pytest.mark.parametrize(("folder", "strict"), [("food", False), ("arguana", None)])
def test_without_strictness_unfindable_documents_stay_and_unjudgeable_queries_go(tmp_path, folder, strict):
    write_beir(tmp_path / folder, qrels=ODD_QRELS)
    collection = load_beir(tmp_path / folder, strict=strict)
    assert collection.qrels == {"q1": {"a": 1, "b": 0, "lost": 1}, "q2": {"b": 2, "c": 1}}
    assert collection.counts()["judgements_of_missing_documents"] == 1
    assert collection.drop_self == (folder == "arguana")


def test_grades_below_zero_are_zero(tmp_path):
    collection = load_beir(write_beir(tmp_path / "food", qrels=[*QRELS, "q1\tc\t-2"]))
    assert collection.qrels["q1"] == {"a": 1, "b": 0, "c": 0}


# -------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_number_equal_passages_equally(tmp_path):
    write_lines(
        tmp_path / "p.jsonl",
        [
            {"query": "one", "document": "same"},
            {"query": " two ", "positive": "other"},
            "",
            {"query": "three", "document": "same"},
        ],
    )
    pairs = load_pairs(tmp_path / "p.jsonl")
    assert pairs == Pairs("p", ["one", "two", "three"], ["same", "other", "same"])
    assert pairs.passage.dtype == np.int64
    assert pairs.passage.tolist() == [0, 1, 0]
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"p\.jsonl:2: not valid JSON"),
        ({"query": "x"}, r"p\.jsonl:2: expected the fields 'query' and 'document'"),
        ({"query": "x", "document": "y", "positive": "z"}, r"p\.jsonl:2: expected the fields"),
        ({"document": "y"}, r"p\.jsonl:2: field 'query' must be a string, found nothing"),
        ({"query": ["x"], "document": "y"}, r"p\.jsonl:2: field 'query' must be a string, found list"),
        ({"query": "x", "document": " "}, r"p\.jsonl:2: the document is empty"),
        ({"query": "", "positive": "y"}, r"p\.jsonl:2: the query is empty"),
    ],
)
def test_bad_pairs_are_refused_with_file_and_line(tmp_path, line, message):
    write_lines(tmp_path / "p.jsonl", [{"query": "fine", "document": "fine"}, line])
    with pytest.raises(InputError, match=message):
        load_pairs(tmp_path / "p.jsonl")


def test_no_pairs_is_an_error(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no pairs"):
        load_pairs(tmp_path / "p.jsonl")


def test_beir_pairs_give_every_passage_once_before_any_twice(tmp_path):
    corpus = [{"_id": f"d{i}", "text": f"passage {i // 2}"} for i in range(6)]  # three distinct texts
    corpus.append({"_id": "void", "text": ""})
    queries = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(12)]
    qrels = [f"q{i}\td{i % 6}\t1" for i in range(12)] + ["q0\td5\t0", "q1\tvoid\t1"]
    folder = write_beir(tmp_path / "train", corpus, queries, qrels, split="train")
    expected = {(f"question {i}", f"passage {i % 6 // 2}") for i in range(12)}
    orders = set()
    for seed in range(5):
        pairs = beir_pairs(folder, seed=seed)
        rows = list(zip(pairs.queries, pairs.docs, strict=True))
        assert sorted(rows) == sorted(expected)
        assert sorted(pairs.docs[:3]) == ["passage 0", "passage 1", "passage 2"]
        assert beir_pairs(folder, seed=seed, limit=5).queries == pairs.queries[:5]
        orders.add(tuple(pairs.queries))
    assert len(orders) == 5


# --------------------------------------------------------------------------------------------------------- docstrings

LONG = "It walks over all rows and columns of the table, one after another, and adds what it finds to a running total."


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (f"Sum all\nthe rows.\n\n{LONG}", ("Sum all the rows.", LONG)),
        (f"Sum all rows.\n\n{LONG}\n\n>>> total(3)\n3\n\nSee other.", ("Sum all rows.", f"{LONG} See other.")),
        (f"Use :class:`~a.B` with ``x``.\n\nNotes\n-----\n{LONG}", ("Use a.B with x.", f"Notes {LONG}")),
        (f"Sum all rows.\n\nThis will SUM all\nrows. {LONG}", ("Sum all rows.", LONG)),  # the repeating sentence goes
        (f"total(x, y=(1, 2)) -> int\n\nSum all rows.\n\n{LONG}", ("Sum all rows.", LONG)),  # the signature goes
        (f"Sum rows.\n\n{LONG}", None),  # two words
        (f"{'very ' * 40}long.\n\n{LONG}", None),  # 41 words
        (f"1 2 3 4\n\n{LONG}", None),  # no words
        (f"Parameters\n----------\nx : the first value\n\n{LONG}", None),
        (f".. note:: this is old\n\n{LONG}", None),
        (f"mask (Tensor of shape (n,)): hides some values\n\n{LONG}", None),
        ("Sum all the rows.\n\nToo short to be a document.", None),
        ("Sum all the rows of it.", None),
        (f"Sum all rows. Then stop.\n\n{LONG} Sum all rows. Then stop.", None),  # the query is two of its sentences
    ],
)
def test_what_a_docstring_becomes(doc, expected):
    assert datasets._pair_from_docstring(doc) == expected


def slow_near_duplicates(docs: list[str]) -> list[bool]:
    """The definition, pair by pair, on sets of word triples."""
    sets = []
    for doc in docs:
        words = doc.lower().split()
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    dropped: list[bool] = []
    for i, mine in enumerate(sets):
        near = [len(mine & other) >= datasets.NEAR_DUPLICATE * len(mine | other) for other in sets[:i]]
        dropped.append(any(close and not gone for close, gone in zip(near, dropped, strict=True)))
    return dropped


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), min_size=3, max_size=9).map(" ".join), min_size=1, max_size=12))
def test_near_duplicates_are_those_of_the_definition(docs):
    assert datasets._near_duplicates(docs).tolist() == slow_near_duplicates(docs)


def test_near_duplicates_across_blocks_of_the_product():
    rng = np.random.default_rng(0)
    docs = [" ".join(rng.choice(list("abcd"), size=6)) for _ in range(1200)]  # the product is done in blocks of 500
    found = datasets._near_duplicates(docs).tolist()
    assert found == slow_near_duplicates(docs)
    assert 100 < sum(found) < 1100


# ---------------------------------------------------------------------------------- the docstring study, on packages


def install(site: Path, name: str, sources: dict[str, str], version: str = "1.0") -> None:
    """Lay out a distribution as pip does: its files, METADATA, and RECORD in the given order."""
    for file, source in sources.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(source, encoding="utf-8")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*sources, f"{info.name}/METADATA"]))


def function(name: str, summary: str, rest: str) -> str:
    return f'def {name}():\n    """{summary}\n\n    {rest}\n    """\n\n\n'


def prose(seed: int, words: int = 30) -> str:
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("aeioubdfgklmnprst"), size=6)) for _ in range(words)) + "."


CRASH = 'raise RuntimeError("a source was imported")\n'
SHARED = prose(1000)


def made_up_packages(site: Path) -> dict[str, list[str]]:
    """Three packages whose overlaps are known; see the test below."""
    tested = [function(f"t{i}", f"Tested thing number {i}.", prose(i)) for i in range(6)]
    tested.append(function("shared", "Shared thing as tested.", SHARED))
    tested.append(function("one", "Ambiguous thing it is.", prose(20)))
    tested.append(function("two", "Ambiguous thing it is.", prose(21)))
    install(
        site,
        "madetest",
        {
            "madetest/a.py": CRASH + "".join(tested[:4]),
            "madetest/b.py": CRASH + "".join(tested[4:]),
            "madetest/tests/test_a.py": function("hidden", "Hidden in the tests.", prose(30)),
            "madetest/generated.py": f"# {datasets.GENERATED} x\n"
            + function("g", "Generated from another file.", prose(31)),
            "madetest/broken.py": 'def broken(:\n    """Never parsed.\n\n    """',
        },
    )
    checked = [function(f"v{i}", f"Checked thing number {i}.", prose(100 + i)) for i in range(4)]
    checked.append(function("asked", "Tested thing number 3.", prose(110)))  # test asks it too
    install(site, "madecheck", {"madecheck.py": CRASH + "".join(checked)})
    trained = [function(f"n{i}", f"Trained thing number {i}.", prose(200 + i)) for i in range(9)]
    trained.append(function("shared", "Shared thing as trained.", SHARED + " Slightly longer."))  # near-equal to a test
    trained.append(function("asked", "Checked thing number 2.", prose(210)))  # validation asks it too
    trained.append(
        function("wrapped", "Trained thing of a class.", prose(220)).replace("def wrapped()", "class Wrapped")
    )
    install(site, "madetrain", {"madetrain/__init__.py": CRASH + "".join(trained)})
    return {"test": ["madetest"], "validation": ["madecheck"], "train": ["madetrain"]}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    names = made_up_packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return names


def test_the_docstring_study_splits_by_package_and_keeps_the_splits_apart(tmp_path, packages):
    study = docstring_study(tmp_path / "study", packages=packages, progress=False)
    assert study.name == "study"
    assert list(study.tests) == ["madetest"]
    tested = study.tests["madetest"]
    assert sorted(tested.queries) == [
        "Shared thing as tested.",
        *(f"Tested thing number {i}." for i in range(6)),
    ]
    answers = {key: dict(zip(tested.doc_ids, tested.docs, strict=True))[doc] for key, doc in one_answer(tested).items()}
    by_query = {query: answers[key] for key, query in zip(tested.query_ids, tested.queries, strict=True)}
    assert by_query["Tested thing number 5."] == prose(5)
    assert by_query["Shared thing as tested."] == SHARED
    assert sorted(study.validation.queries) == [f"Checked thing number {i}." for i in range(4)]
    assert sorted(study.train.queries) == [
        *(f"Trained thing number {i}." for i in range(9)),
        "Trained thing of a class.",
    ]
    written = json.loads((tmp_path / "study" / "study.json").read_text())
    assert written["sources"] == {"madetest": "1.0", "madecheck": "1.0", "madetrain": "1.0"}
    assert written["counts"]["removed"] == {
        "pairs_read": 9 + 5 + 12,
        "near_duplicate_documents": 1,
        "ambiguous_queries": 2,
        "queries_of_an_earlier_split": 2,
    }
    assert not {"madetest", "madecheck", "madetrain"} & set(sys.modules)


def one_answer(collection: Collection) -> dict[str, str]:
    """query id -> its one relevant document; fails if a query has another number of them."""
    assert all(list(grades.values()) == [1] for grades in collection.qrels.values())
    return {query: next(iter(grades)) for query, grades in collection.qrels.items()}


def test_the_docstring_study_does_not_depend_on_the_order_of_files_or_hashes(tmp_path, packages):
    first = docstring_study(tmp_path / "one", 5, 3, 4, packages, progress=False)
    assert (len(first.train), len(first.validation), len(first.tests["madetest"].docs)) == (5, 3, 4)
    record = next((tmp_path / "site").glob("madetest*/RECORD"))
    record.write_text("".join(reversed(record.read_text().splitlines(keepends=True))))
    code = (
        "import sys; from asymlib.datasets import docstring_study; import json;"
        "print(docstring_study(sys.argv[1], 5, 3, 4, json.loads(sys.argv[2]), progress=False).content_sha256)"
    )
    hashes = {first.content_sha256}
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path]),
        }
        command = [sys.executable, "-c", code, str(tmp_path / seed), json.dumps(packages)]
        hashes.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(hashes) == 1


def test_a_smaller_docstring_study_is_a_part_of_the_larger(tmp_path, packages):
    large = docstring_study(tmp_path / "large", packages=packages, progress=False)
    small = docstring_study(tmp_path / "small", 4, 2, 3, packages, progress=False)
    assert small.train.queries == large.train.queries[:4]
    assert small.validation.queries == large.validation.queries[:2]
    assert small.tests["madetest"].docs == large.tests["madetest"].docs[:3]
    assert small.content_sha256 != large.content_sha256


def test_an_unaltered_docstring_study_is_reused_and_anything_else_is_rebuilt(tmp_path, packages, monkeypatch):
    folder = tmp_path / "study"
    first = docstring_study(folder, packages=packages, progress=False)
    stamp = (folder / "train.jsonl").stat().st_mtime_ns

    def build(**changes) -> bool:
        """Ask for the study again; True if it was written anew."""
        nonlocal stamp
        docstring_study(folder, packages=packages, progress=False, **changes)
        before, stamp = stamp, (folder / "train.jsonl").stat().st_mtime_ns
        return before != stamp

    assert not build()
    corpus = folder / "collections" / "madetest" / "corpus.jsonl"
    whole = corpus.read_text()
    corpus.write_text(whole.replace("a", "e", 1))
    with pytest.raises(InputError, match=r"corpus\.jsonl: altered since"):
        open_study(folder)
    assert build()
    assert corpus.read_text() == whole
    assert build(limit_train=2)
    assert build()
    assert open_study(folder).content_sha256 == first.content_sha256
    (folder / "study.json").write_text("{}")  # as after a crash
    assert build()
    described = json.loads((folder / "study.json").read_text())
    assert study_source(folder) == described.pop("source") == "docstrings"
    (folder / "study.json").write_text(json.dumps(described))  # as written before studies said their source
    assert open_study(folder).content_sha256 == first.content_sha256
    with pytest.raises(InputError, match=r"study\.json: field 'source' must be one of .*found None; build the study"):
        study_source(folder)
    assert build()
    assert open_study(folder).content_sha256 == first.content_sha256
    metadata = next((tmp_path / "site").glob("madetrain*/METADATA"))
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    assert build()
    assert json.loads((folder / "study.json").read_text())["sources"]["madetrain"] == "1.1"


def test_an_interrupted_docstring_study_is_absent_and_the_next_call_builds_it(tmp_path, packages, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "study"
    whole = docstring_study(folder, packages=packages, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "write_json", interrupt)  # the last step
        with pytest.raises(KeyboardInterrupt):
            docstring_study(folder, limit_train=3, packages=packages, progress=False)
    with pytest.raises(InputError, match=r"holds no study\.json"):
        open_study(folder)
    again = docstring_study(folder, packages=packages, progress=False)
    assert again.content_sha256 == whole.content_sha256


def test_wrong_requests_for_a_docstring_study(tmp_path, packages):
    with pytest.raises(InputError, match="package no-such-package is not installed"):
        docstring_study(tmp_path, packages={**packages, "train": ["no-such-package"]}, progress=False)
    with pytest.raises(InputError, match="one occurs twice"):
        docstring_study(tmp_path, packages={**packages, "train": packages["test"]}, progress=False)
    with pytest.raises(InputError, match="expected at least one name for each"):
        docstring_study(tmp_path, packages={"train": ["madetrain"]}, progress=False)
    with pytest.raises(InputError, match="limit of train pairs must be a whole number >= 1, found 0"):
        docstring_study(tmp_path, limit_train=0, packages=packages, progress=False)
    assert not (tmp_path / "study.json").exists()


def test_a_package_without_docstrings_or_with_a_missing_file_is_named(tmp_path, packages):
    install(tmp_path / "site", "madeempty", {"madeempty.py": "x = 1\n"})
    for role, message in (("test", "package madeempty: no docstring"), ("train", "packages madeempty: no docstring")):
        with pytest.raises(InputError, match=message):
            docstring_study(tmp_path / "study", packages={**packages, role: ["madeempty"]}, progress=False)
    (tmp_path / "site" / "madetest" / "b.py").unlink()
    with pytest.raises(InputError, match=r"package madetest lacks its file madetest/b\.py"):
        docstring_study(tmp_path / "study", packages=packages, progress=False)


def test_rules_hold_on_installed_packages(tmp_path):
    names = {"test": ["networkx"], "validation": ["seaborn"], "train": ["jedi", "datasets"]}
    study = docstring_study(tmp_path / "study", packages=names, limit_per_collection=300, progress=False)
    tested = study.tests["networkx"]
    assert len(tested.docs) == len(tested.queries) == 300
    text = dict(zip(tested.doc_ids, tested.docs, strict=True))
    rows = [(query, text[one_answer(tested)[key]]) for key, query in zip(tested.query_ids, tested.queries, strict=True)]
    for part in (study.validation, study.train):
        assert len(part) > 50
        rows += zip(part.queries, part.docs, strict=True)
    for query, doc in rows:
        assert 3 <= len(query.split()) <= 40
        assert len(doc.split()) >= 20
        assert query.casefold() not in doc.casefold()
        assert not doc.startswith(">>>")
        assert "\n" not in query + doc
    assert len({query.casefold() for query, _ in rows}) == len(rows)
    assert not any(slow_near_duplicates([doc for _, doc in rows[::5]]))


# ------------------------------------------------------------------------------------------------------ stored studies


def test_broken_studies_are_named(tmp_path, packages, monkeypatch):
    with pytest.raises(InputError, match=r"holds no study\.json; build it"):
        open_study(tmp_path / "nowhere")
    folder = tmp_path / "study"
    docstring_study(folder, packages=packages, progress=False)
    described = json.loads((folder / "study.json").read_text())

    def rewrite(**changes) -> None:
        (folder / "study.json").write_text(json.dumps({**described, **changes}))

    rewrite(content_sha256="0" * 64)
    with pytest.raises(InputError, match="content_sha256 does not belong to the files"):
        open_study(folder)
    rewrite(collections=[{**described["collections"][0], "root": "ASYMLIB_DATA"}])
    monkeypatch.delenv("ASYMLIB_DATA", raising=False)
    with pytest.raises(InputError, match="collection 'madetest' lies below ASYMLIB_DATA; set it"):
        open_study(folder)
    (folder / "study.json").write_text('{"name": "x"}')
    with pytest.raises(InputError, match="not a study; expected an object with the keys"):
        open_study(folder)
    (folder / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study\.json:1:2: not valid JSON"):
        open_study(folder)
    rewrite()
    (folder / "validation.jsonl").unlink()
    with pytest.raises(InputError, match=r"validation\.jsonl: no such file, but .*study\.json names it"):
        open_study(folder)


# --------------------------------------------------------------------------------------------- real study and leakage


def test_overlap_counts_texts_that_start_or_end_alike():
    body = prose(7, words=60)  # 360 letters
    train = Pairs("train", ["Who built it?"], [f"A Title {body}"])
    collection = Collection(
        "test",
        ["1", "2", "3", "4"],
        [body.upper(), f"A title: {body[:300]}", body[10:300], ""],  # same end, same start, neither, nothing
        ["q1", "q2"],
        ["who BUILT it", "who built them"],
        {"q1": {"1": 1}, "q2": {"2": 1}},
    )
    assert overlap(train, collection) == {
        "queries": 2,
        "queries_in_training": 1,
        "queries_share": 0.5,
        "documents": 4,
        "documents_in_training": 2,
        "documents_share": 0.5,
    }


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two sources and two tests, 40 passages each source; small sizes in place of 10,000 and 87,599."""
    folder = tmp_path / "data"
    corpus = [{"_id": f"d{i}", "title": "T", "text": prose(i)} for i in range(40)]
    queries = [{"_id": f"q{i}", "text": f"squad question {i}"} for i in range(120)]
    qrels = [f"q{i}\td{i % 40}\t1" for i in range(120)]
    write_beir(folder / "beir" / "squad_train", corpus, queries, qrels, split="train")
    pairs = [{"query": f"natural question {i}", "positive": prose(500 + i)} for i in range(40)]
    pairs += [{"query": "squad question 3", "positive": prose(900)}]  # test asks squad question 3: both must go
    pairs += [{"query": "cheese query", "positive": CORPUS[2]["text"]}]  # a passage of a test collection
    write_lines(folder / "pairs" / "nq_qed.jsonl", pairs)
    write_beir(folder / "beir" / "scifact")
    write_beir(folder / "beir" / "arguana", queries=[*QUERIES, {"_id": "q4", "text": "Squad question 3?"}])
    monkeypatch.setattr(datasets, "REAL_PAIRS", {"smoke": 40, "full": 90})
    monkeypatch.delenv("ASYMLIB_DATA", raising=False)
    return folder


TESTS = {"tests": ("scifact", "arguana"), "limit_validation": 10}


def test_the_real_study_shares_sources_and_keeps_splits_and_tests_apart(tmp_path, data):
    write_beir(
        data / "beir" / "arguana",
        queries=[*QUERIES, {"_id": "q4", "text": "Squad question 3?"}],
        qrels=[*QRELS, "q4\ta\t1"],
    )
    smoke = real_study(tmp_path / "smoke", data, "smoke", **TESTS)
    full = real_study(tmp_path / "full", data, "full", **TESTS)
    assert (len(smoke.train), len(full.train), len(smoke.validation)) == (40, 90, 10)
    assert smoke.validation == full.validation
    assert sum(query.startswith("squad") for query in smoke.train.queries) == 20
    assert sum(query.startswith("natural") for query in full.train.queries) == 35  # all that validation left
    assert len(set(smoke.train.docs)) == 40  # one question of each passage first
    assert set(smoke.train.queries) <= set(full.train.queries)
    for study in (smoke, full):
        assert set(study.train.docs).isdisjoint(study.validation.docs)
        assert set(study.train.queries).isdisjoint(study.validation.queries)
        assert not {"squad question 3", "cheese query"} & {*study.train.queries, *study.validation.queries}
        for collection in study.tests.values():
            assert overlap(study.train, collection)["documents_in_training"] == 0
            assert overlap(study.train, collection)["queries_in_training"] == 0
    assert smoke.tests["arguana"].drop_self
    assert study_source(tmp_path / "smoke") == "real"
    removed = json.loads((tmp_path / "smoke" / "study.json").read_text())["counts"]["removed"]
    assert removed["overlap_with_tests"] == {"beir/squad_train": 1, "pairs/nq_qed.jsonl": 2}
    other = real_study(tmp_path / "other", data, "smoke", seed=1, **TESTS)
    assert other.train.queries != smoke.train.queries


def test_the_real_study_can_move_with_its_data(tmp_path, data, monkeypatch):
    monkeypatch.setenv("ASYMLIB_DATA", str(data))
    study = real_study(tmp_path / "study", data, **TESTS)
    described = (tmp_path / "study" / "study.json").read_text()
    assert str(tmp_path) not in described
    data.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"scifact/corpus\.jsonl: no such file"):
        open_study(tmp_path / "study")
    monkeypatch.setenv("ASYMLIB_DATA", str(tmp_path / "moved"))
    assert open_study(tmp_path / "study").content_sha256 == study.content_sha256
    real_study(tmp_path / "study", tmp_path / "moved", **TESTS)
    assert (tmp_path / "study" / "study.json").read_text() == described
    write_lines(tmp_path / "moved" / "beir" / "scifact" / "corpus.jsonl", CORPUS[::-1])
    with pytest.raises(InputError, match=r"scifact/corpus\.jsonl: altered since"):
        open_study(tmp_path / "study")


def test_wrong_requests_for_a_real_study(tmp_path, data):
    with pytest.raises(InputError, match="pairs: expected one of smoke, full, found 'tiny'"):
        real_study(tmp_path / "study", data, "tiny")
    with pytest.raises(InputError, match=r"corpus\.jsonl: no such file; it is needed for training pairs"):
        real_study(tmp_path / "study", tmp_path / "nowhere")
    with pytest.raises(InputError, match="too few distinct passages for 100 validation pairs"):
        real_study(tmp_path / "study", data, tests=("scifact",), limit_validation=100)
    with pytest.raises(InputError, match="limit_validation: expected at least one pair for each of 2 sources"):
        real_study(tmp_path / "study", data, limit_validation=1)
    datasets.REAL_PAIRS["full"] = 1000
    with pytest.raises(InputError, match=r"only \d+ training pairs, full needs 1000"):
        real_study(tmp_path / "study", data, "full", **TESTS)
    assert not (tmp_path / "study" / "study.json").exists()


# ------------------------------------------------------------------------------------------------- data of one's own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """1,000 clean pairs of 500 passages, three pairs that share text with the two tests, one near-equal passage."""
    monkeypatch.delenv("ASYMLIB_DATA", raising=False)
    folder = tmp_path / "own"
    passages = [prose(i) for i in range(500)]
    pairs = [{"query": f"question {i}", "document": passages[i // 2]} for i in range(1000)]
    leaky = [
        {"query": "Where do apples GROW?", "document": prose(900)},
        {"query": "cheese query", "document": CORPUS[2]["text"]},
        {"query": "long query", "positive": f"{prose(901)} Tea is a drink that is made by pouring hot water over leaves "
         "of the tea plant and waiting until the water has taken up their taste and colour, which takes some minutes."},
    ]  # fmt: skip
    write_lines(folder / "pairs.jsonl", [*pairs, *leaky])
    write_beir(folder / "food")
    tea = {"_id": "t", "title": "Another start", "text": leaky[2]["positive"][-150:]}
    write_beir(folder / "drinks", [tea], QUERIES[2:], ["q3\tt\t1"])
    return folder


def test_a_study_of_ones_own_takes_validation_out_by_whole_passages(tmp_path, own):
    tests = [own / "food", str(own / "drinks")]
    study = folder_study(tmp_path / "study", own / "pairs.jsonl", tests)
    assert study_source(tmp_path / "study") == "folder"
    assert list(study.tests) == ["food", "drinks"]
    assert study.tests["food"] == load_beir(own / "food")
    assert (len(study.validation), len(study.train)) == (100, 900)  # a tenth of 1,000
    assert set(study.validation.docs).isdisjoint(study.train.docs)
    assert len(set(study.validation.docs)) == 50  # both questions of each passage
    assert len(set(study.train.docs[:450])) == 450  # one question of each passage first
    assert sorted([*study.train.queries, *study.validation.queries]) == sorted(f"question {i}" for i in range(1000))
    counts = json.loads((tmp_path / "study" / "study.json").read_text())["counts"]
    removed = {"overlap_with_tests": {"train": 3}, "overlap_with_validation": {"train": 0}}
    assert counts == {"train": 900, "validation": 100, "removed": removed}
    smaller = folder_study(tmp_path / "smaller", own / "pairs.jsonl", tests, limit_validation=65)
    assert smaller.validation.queries == study.validation.queries[:64]  # the next passage does not fit
    other = folder_study(tmp_path / "other", own / "pairs.jsonl", tests, seed=1)
    assert set(other.validation.docs) != set(study.validation.docs)


def test_training_pairs_that_share_text_with_validation_go(tmp_path, own):
    corpus = [{"_id": f"d{i}", "text": prose(i)} for i in range(200)]
    corpus += [{"_id": "near", "title": "Title", "text": prose(7)}]
    queries = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(201)]
    qrels = [f"q{i}\td{i}\t1" for i in range(200)] + ["q200\tnear\t1", "q150\td3\t1"]
    train = write_beir(own / "mine", corpus, queries, qrels, split="train")
    pairs = [{"query": f"validation question {i}", "document": prose(i)} for i in range(70)]
    pairs += [{"query": "Question 100", "document": prose(950)}, {"query": "what is baked", "document": prose(951)}]
    write_lines(own / "validation.jsonl", pairs)
    study = folder_study(tmp_path / "study", train, [own / "food"], own / "validation.jsonl")
    assert sorted(study.validation.queries) == sorted(pair["query"] for pair in pairs[:71])
    assert sorted(study.train.queries) == sorted(f"question {i}" for i in range(70, 200) if i != 100)
    removed = json.loads((tmp_path / "study" / "study.json").read_text())["counts"]["removed"]
    assert removed["overlap_with_tests"] == {"train": 0, "validation": 1}
    assert removed["overlap_with_validation"] == {"train": 70 + 1 + 2}  # passages, question 100, near and q150 of d3


def test_validation_passages_share_no_text_with_each_other_or_training():
    # 3 of d0's near-equals, a query asked of two passages, a passage with more pairs than fit
    rows = [("a", prose(0)), ("b", f"Title {prose(0)}"), ("c", prose(1)), ("c", prose(2)), ("d", prose(3))]
    rows += [(f"many {i}", prose(4)) for i in range(5)] + [("e", prose(5))]
    assert datasets._whole_passages(rows, 4) == [rows[0], rows[2], rows[4], rows[-1]]
    assert datasets._whole_passages(rows, 2) == [rows[0], rows[2]]


def test_an_unaltered_study_of_ones_own_is_reused_and_can_move_with_its_data(tmp_path, own, monkeypatch):
    outside = folder_study(tmp_path / "outside", own / "pairs.jsonl", [own / "food"])
    assert str(own / "food") in (tmp_path / "outside" / "study.json").read_text()
    monkeypatch.setenv("ASYMLIB_DATA", str(own))
    folder = tmp_path / "study"
    study = folder_study(folder, own / "pairs.jsonl", [own / "food"])
    assert study.content_sha256 == outside.content_sha256
    assert str(tmp_path) not in (folder / "study.json").read_text()
    moved = tmp_path / "moved"
    own.rename(moved)
    monkeypatch.setenv("ASYMLIB_DATA", str(moved))
    assert open_study(folder).content_sha256 == study.content_sha256
    stamp = (folder / "train.jsonl").stat().st_mtime_ns

    def build(tests=("food",), **changes) -> bool:
        """Ask for the study again; True if it was written anew."""
        nonlocal stamp
        folder_study(folder, moved / "pairs.jsonl", [moved / name for name in tests], **changes)
        before, stamp = stamp, (folder / "train.jsonl").stat().st_mtime_ns
        return before != stamp

    assert not build()
    assert build(seed=1)
    assert build()
    assert build(tests=("food", "drinks"))
    assert build()
    write_lines(moved / "food" / "corpus.jsonl", CORPUS[::-1])
    assert build()
    write_lines(moved / "pairs.jsonl", [*(moved / "pairs.jsonl").read_text().splitlines()[1:]])
    assert build()
    assert not build()


def test_wrong_requests_for_a_study_of_ones_own(tmp_path, own):
    def build(train=own / "pairs.jsonl", tests=(own / "food",), **options) -> None:
        folder_study(tmp_path / "study", train, list(tests), **options)

    with pytest.raises(InputError, match="tests: expected a list of at least one folder"):
        build(tests=())
    with pytest.raises(InputError, match=r"tests: expected a list of at least one folder .* found '/some/food'"):
        folder_study(tmp_path / "study", own / "pairs.jsonl", "/some/food")
    with pytest.raises(InputError, match=r"elsewhere/food and .*own/food have the same name"):
        build(tests=[own / "food", own / "elsewhere" / "food"])
    with pytest.raises(InputError, match="absent: no such folder"):
        build(tests=[own / "absent"])
    for train in ("", own / "absent.jsonl", own / "food" / "qrels" / "test.tsv"):
        with pytest.raises(InputError, match=r"train: expected a \.jsonl file of pairs or a folder in BEIR's layout"):
            build(train)
    with pytest.raises(InputError, match=r"train\.tsv: no such file; it is needed for training pairs"):
        build(own / "food")
    with pytest.raises(InputError, match=r"validation: expected a \.jsonl file of pairs that exists, found .*food"):
        build(validation=own / "food")
    for limit in (63, "100"):
        with pytest.raises(InputError, match="limit_validation: expected a whole number >= 64"):
            build(limit_validation=limit)
    lines = (own / "pairs.jsonl").read_text().splitlines()
    write_lines(own / "few.jsonl", lines[-603:])  # 600 without the leaky three; food has two of them
    with pytest.raises(
        InputError,
        match=r"few\.jsonl: 541 training pairs left of 603 \(2 share text with a test collection\) and 60 validation "
        "pairs, at most a tenth, taken out of them; expected at least 64 of each",
    ):
        build(own / "few.jsonl")
    write_lines(own / "validation.jsonl", [*lines[:63], lines[-2]])
    with pytest.raises(
        InputError, match=r"and 63 validation pairs \(64 in .*validation\.jsonl, of which 1 share text with a test"
    ):
        build(validation=own / "validation.jsonl")
    assert not (tmp_path / "study" / "study.json").exists()


# ----------------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def real():
    if not os.environ.get("ASYMLIB_DATA"):
        pytest.skip("ASYMLIB_DATA is not set")
    return Path(os.environ["ASYMLIB_DATA"])


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "documents", "queries", "judgements", "missing"),
    [
        ("scifact", 5_183, 300, 339, 0),
        ("nfcorpus", 3_633, 323, 12_334, 0),
        ("arguana", 8_674, 1_406, 1_406, 5),
        ("msmarco_dl_pool", 30_005, 97, 9_490, 0),
        ("vaswani_npl", 11_429, 93, 2_083, 0),
    ],
)
def test_real_collections_have_their_published_counts(real, name, documents, queries, judgements, missing):
    assert load_beir(real / "beir" / name).counts() == {
        "documents": documents,
        "empty_documents": 0,
        "queries": queries,
        "judgements": judgements,
        "judgements_of_missing_documents": missing,
    }


@pytest.mark.real
def test_real_training_pairs(real):
    squad = beir_pairs(real / "beir" / "squad_train")
    assert len(squad) == 87_599
    assert len(set(squad.docs[:18_891])) == len(set(squad.docs)) == 18_891
    assert len(load_pairs(real / "pairs" / "nq_qed.jsonl")) == 8_522
    assert overlap(squad, load_beir(real / "beir" / "squad_dev"))["queries_in_training"] == 8  # as its source says


@pytest.mark.real
def test_the_real_smoke_study(real, tmp_path):
    study = real_study(tmp_path / "study", real)
    assert (len(study.train), len(study.validation), len(study.tests)) == (10_000, 1_000, 5)
    assert set(study.train.docs).isdisjoint(study.validation.docs)
    for collection in study.tests.values():
        report = overlap(study.train, collection)
        assert report["queries_in_training"] == report["documents_in_training"] == 0
