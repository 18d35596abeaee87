"""Studies on the disk: made once, found unaltered or made again, opened with vectors, ranked."""

import hashlib
import json
import os

import numpy as np
import pytest

from asymlib.data import studies
from asymlib.data.collections import load_beir
from asymlib.data.plans import RESERVED
from asymlib.encoding.encoder import EncoderConfig
from asymlib.errors import InputError
from asymlib.files import read_record, write_record
from tests.conftest import ROOT
from tests.small_encoders import build_bert, build_static
from tests.test_collections import CORPUS, prose, write_beir, write_lines
from tests.test_docstrings import made_up_packages
from tests.test_pairs import collection as graded_collection


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder with pairs of one's own and a collection to test on; data/prepared is below it."""
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ASYMLIB_DATA", raising=False)
    root = tmp_path / "home"
    write_lines(root / "pairs.jsonl", [{"query": f"w{i // 100} w{i % 100}", "document": prose(i)} for i in range(700)])
    write_beir(root / "beir" / "food")
    return root


OWN = {"train": "pairs.jsonl", "tests": ["beir/food"]}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return made_up_packages(tmp_path / "site")


def described(name: str = "s") -> dict:
    return json.loads((studies.prepared(name) / "study.json").read_text())


def test_a_study_of_each_source_says_what_it_is_made_of(home, packages, monkeypatch):
    own = studies.prepare("own", "folder", **OWN)
    assert (own.track, own.source, len(own.train), len(own.validation)) == ("zero-shot", "folder", 630, 70)
    assert own.tests == {"food": load_beir(home / "beir" / "food")}
    assert studies.load("own", vectors=False) == own
    paths = {f"food/{file}": home / "beir/food" / file for file in ("corpus.jsonl", "qrels/test.tsv", "queries.jsonl")}
    paths |= {file: own.folder / file for file in ("train.jsonl", "validation.jsonl")}  # sorted by name
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in paths.items()]
    assert own.content_sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    made = studies.prepare("made", "docstrings", packages=packages, limit_per_collection=3)
    assert (len(made.train), list(made.tests), len(made.tests["madetest"].documents)) == (10, ["madetest"], 3)
    assert described("made")["sources"] == {"madetest": "1.0", "madecheck": "1.0", "madetrain": "1.0"}
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    corpus = [{"_id": f"d{i}", "title": f"Title {i}", "text": prose(i)} for i in range(700)]
    write_beir(home / "beir" / "arguana", corpus, qrels=["q1\td1\t1", "q1\tlost\t1"])
    target = studies.prepare("target", "target", target="arguana")
    assert (target.track, len(target.train), target.tests["arguana"].drop_self) == ("adapted", 630, True)
    assert described("target")["pairs_made_of"] == "title and text"
    limits = {"limit_train": 300, "limit_validation": 99}
    real = studies.prepare("real", "real", sources=["pairs.jsonl"], tests=["food"], **limits)
    assert (real.track, len(real.train), len(real.validation)) == ("zero-shot", 300, 99)
    food = {"name": "food", "folder": "$ASYMLIB_DATA/beir/food", "drop_self": False, "strict": True}
    assert described("real")["collections"] == [food]


def test_an_unaltered_study_is_opened_and_anything_else_is_made_again(home, packages):
    stamp = 0

    def build(source: str = "folder", **parameters) -> bool:  # whether the study was written anew
        nonlocal stamp
        studies.prepare("s", source, **(parameters or OWN))
        before, stamp = stamp, (studies.prepared("s") / "train.jsonl").stat().st_mtime_ns
        return before != stamp

    assert build() and not build()
    first = described()["content_sha256"]
    assert build(**OWN, limit_validation=64) and build()
    assert described()["content_sha256"] == first
    write_lines(home / "beir" / "food" / "corpus.jsonl", CORPUS[::-1])
    assert build() and not build()
    assert described()["content_sha256"] != first
    (home / "pairs.jsonl").write_text((home / "pairs.jsonl").read_text().replace("w1 w2", "w1 w3"))
    assert build() and not build()
    assert build("docstrings", packages=packages) and not build("docstrings", packages=packages)
    corpus = studies.prepared("s") / "collections" / "madetest" / "corpus.jsonl"
    whole = corpus.read_text()
    corpus.write_text(whole.replace("a", "e", 1))
    with pytest.raises(InputError, match=r"corpus\.jsonl: altered since it was recorded in .*study\.json"):
        studies.load("s", vectors=False)
    assert build("docstrings", packages=packages)
    assert corpus.read_text() == whole
    assert build()
    assert not corpus.exists()


DAMAGES = [
    lambda whole: b"",
    lambda whole: whole[: len(whole) // 2],
    lambda whole: whole.replace(b"a", b"e", 1),
    lambda whole: b"\0" * len(whole),
    lambda whole: b"[" * 99_999,
    *(lambda whole, text=text: text for text in (b"{}", b"[1]", b"null", b'{"parameters": 3, "config": 3}')),
]


@pytest.mark.parametrize("file", ["study.json", "train.jsonl", "encoder.json"])
def test_damage_is_named_and_the_same_command_heals_it(home, config, file):
    for part, start in (("train", 0), ("validation", 100)):
        pairs = [{"query": f"{part} w{i}", "document": prose(start + i, 5)} for i in range(64)]
        write_lines(home / f"{part}.jsonl", pairs)
    own = {"train": "train.jsonl", "validation": "validation.jsonl", "tests": ["beir/food"]}

    def command() -> studies.Study:
        return studies.prepare("s", "folder", **own).encode(config, progress=False)

    study = command()
    path = study.folder / file
    whole = path.read_bytes()
    path.unlink()
    for damage in (None, *DAMAGES):
        if damage:
            path.write_bytes(damage(whole))
        with pytest.raises(InputError, match=rf"{file}\b.*run 01_data_prep for this study again$"):
            studies.load("s")
        assert command() == study
        assert path.read_bytes() == whole
    assert studies.load("s") == study


def test_records_of_another_version_or_place_are_refused(home, config, monkeypatch):
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    folder = studies.prepare("s", "folder", **OWN).encode(config, progress=False).folder
    about = read_record(folder / "encoder.json", "")
    write_record(folder / "encoder.json", about | {"config": about["config"] | {"prompt": ""}})
    with pytest.raises(
        InputError, match=r"encoder\.json: not the encoder of a study of this version; run 01_data_prep"
    ):
        studies.load("s")
    made = read_record(folder / "study.json", "")
    for below in ("../other", "collections/../../x", "$ASYMLIB_DATA/../x"):
        entry = made["collections"][0] | {"folder": below}
        write_record(folder / "study.json", made | {"collections": [entry]})
        with pytest.raises(InputError, match=r"study\.json: food: expected a path below .*, found '.*\.\./"):
            studies.load("s")
    write_record(folder / "study.json", about)
    with pytest.raises(InputError, match=r"study\.json: not a study of this version; run 01_data_prep"):
        studies.load("s")


def test_what_was_asked_about_self_matches_and_odd_judgements_is_done_and_counted(home, caplog):
    queries = [{"_id": "a", "text": "grow on trees"}, {"_id": "q", "text": "half \ud83d"}, {"_id": "z", "text": "zero"}]
    odd = ["a\tb\t1", "q\tc\t1", "q\tlost\t1", "nobody\ta\t1", "z\tc\t0"]
    write_beir(home / "beir" / "odd", queries=queries, qrels=odd)
    asked = OWN | {"tests": ["beir/food", "beir/odd"]}
    with pytest.raises(InputError, match=r"test\.tsv:3: document 'lost' is not in corpus\.jsonl \(strict=False keeps"):
        studies.prepare("s", "folder", **asked)
    first = studies.prepare("s", "folder", **asked, strict=False)
    assert "odd: 1 queries are documents of the corpus, with the same id and text" in caplog.text
    rows = {row.pop("part"): row for row in first.reading()}
    assert list(rows) == ["train", "validation", "food", "odd"] and rows["train"] == {"texts_with_fffd": 0}
    passed = {"missing_documents": 1, "unknown_queries": 1, "queries_left_out": 1, "dropped_relevant": 0}
    assert rows["odd"] == {"texts_with_fffd": 1, "drop_self": False, "self_matches": 1} | passed
    assert studies.load("s", vectors=False).tests["odd"].tolerated == passed
    caplog.clear()
    dropped = studies.prepare("s", "folder", **asked, strict=False, drop_self=["odd"])
    assert not caplog.text and dropped.tests["odd"].drop_self and not dropped.tests["food"].drop_self
    assert dropped.train == first.train and dropped.content_sha256 != first.content_sha256
    assert studies.load("s", vectors=False).tests["odd"].judgements.exclude.tolist() == [0, -1]
    assert (
        dropped.content_sha256
        == studies.prepare("t", "folder", **asked, strict=False, drop_self=["odd"]).content_sha256
    )


def test_an_empty_document_is_encoded_and_one_that_cannot_be_is_named(home, tmp_path):
    config = EncoderConfig(model=str(build_static(tmp_path / "static")), device="cpu")
    write_beir(home / "beir" / "food", [*CORPUS, {"_id": "void", "text": " "}])
    study = studies.prepare("s", "folder", **OWN).encode(config, progress=False)
    assert not study.tests["food"].document_vectors[3].any()
    left_out = [row.get("pairs_left_out") for row in study.reading()]
    assert left_out == [630, 70, None]  # the made-up words are all unknown to it
    write_beir(home / "beir" / "food", [*CORPUS, {"_id": "4983", "text": "nan"}])
    with pytest.raises(InputError, match=r"^food, document 4983 \('nan'\): "):
        studies.prepare("s", "folder", **OWN).encode(config, progress=False)


def test_a_study_that_cannot_be_written_whole_is_absent(home):
    whole = studies.prepare("s", "folder", **OWN)
    (whole.folder / "train.jsonl").unlink()
    (whole.folder / "train.jsonl").mkdir()  # so that no file can take its name
    with pytest.raises(InputError, match=r"train\.jsonl: a folder, expected a file"):
        studies.prepare("s", "folder", **OWN)
    with pytest.raises(InputError, match=r"s/study\.json: no such file; run 01_data_prep for this study again"):
        studies.load("s")
    (whole.folder / "train.jsonl").rmdir()
    assert studies.prepare("s", "folder", **OWN) == whole


def test_a_study_can_move_with_its_data(home, tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    study = studies.prepare("s", "folder", **OWN)
    assert str(tmp_path) not in (study.folder / "study.json").read_text()
    home.rename(tmp_path / "moved")
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path / "moved"))
    with pytest.raises(InputError, match=r"food/qrels/test\.tsv: no such file or directory, but it is named in"):
        studies.load("s", vectors=False)
    monkeypatch.setenv("ASYMLIB_DATA", str(tmp_path / "moved"))
    assert studies.load("s", vectors=False).content_sha256 == study.content_sha256


def test_vectors_belong_to_their_texts_and_are_ranked(home, tmp_path):
    config = EncoderConfig(model=str(build_bert(tmp_path / "model")), max_length=32, device="cpu")
    text = studies.prepare("s", "folder", **OWN)
    with pytest.raises(InputError, match=r"encoder\.json: no such file; run 01_data_prep"):
        studies.load("s")
    encoded = text.encode(config, progress=False)
    study = studies.load("s")
    assert study == encoded
    assert study.made_with == {"encoder": encoded.encoder_key, "study": text.content_sha256}
    assert (study.train.tensors().documents.numpy() == encoded.train.document_vectors).all()
    turned = studies.prepare("turned", "folder", **OWN, limit_validation=64).encode(config, progress=False).train
    row = turned.queries.index(study.train.queries[5])
    assert np.array_equal(turned.query_vectors[row], study.train.query_vectors[5])

    ((name, ranking),) = study.rank({}, "cosine", only=["food", "other"])
    food = study.tests[name]
    q, d = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (food.query_vectors, food.document_vectors))
    assert (np.argsort(-(q @ d.T), axis=1)[:, 0] == ranking.rows[:, 0]).all()
    assert next(study.rank({}, "cosine", k=2))[1].rows.shape == (2, 2)
    with pytest.raises(InputError, match="trained with dot, evaluated with cosine"):
        next(study.rank({}, "cosine", "dot"))
    write_lines(home / "beir/food/queries.jsonl", [{"_id": f"q{i}", "text": f"never encoded {i}"} for i in (1, 2, 3)])
    with pytest.raises(InputError, match=r"no vector of 2 texts .* run 01_data_prep again"):
        studies.load("s")


def test_wrong_requests_are_named_before_anything_is_read(home, monkeypatch):
    def refused(message: str, source: str = "folder", **changes) -> None:
        with pytest.raises(InputError, match=message):
            studies.prepare("s", source, **(OWN | changes))

    refused("source: 'real-full' is unknown, expected one of docstrings, real, folder, target", "real-full")
    refused("limit_train: expected at least 1, found 0", limit_train=0)
    refused("no test collection: expected at least one folder", tests=[])
    refused(
        "food: another collection, or a part of every study, has this name; rename it",
        tests=["beir/food", "elsewhere/food"],
    )
    refused(r"tests: 'my food', expected letters, digits", tests=["beir/my food"])
    for name in RESERVED:
        refused(f"tests: {name}: another collection, or a part of every study, has this name", tests=[f"beir/{name}"])
    refused(r"tests: expected names, found 2026; quote it", tests=[2026])
    refused("drop_self: 'fod' is no test collection of this study; it has food", drop_self=["fod"])
    refused("beir/nowhere/corpus.jsonl: no such file or directory; expected", tests=["beir/nowhere"])
    refused(r"food/corpus\.jsonl/corpus\.jsonl: not a directory", tests=["beir/food/corpus.jsonl"])
    refused(r"train: expected a \.jsonl file of pairs or a folder in BEIR's layout", train="")
    (home / "folder.jsonl").mkdir()
    for path, why in (("absent.jsonl", "no such"), ("beir/food/qrels/test.tsv", "not a"), ("folder.jsonl", "is a")):
        for part in ("train", "validation"):
            refused(rf"{path}\S*: {why}.*; expected a \.jsonl file of pairs", **{part: path})
    refused(r"beir/food/qrels/train\.tsv: no such file", validation="beir/food")
    refused("ASYMLIB_DATA: not set", "real", sources=["pairs.jsonl"])
    with pytest.raises(InputError, match=r"study: '\.\./s'"):
        studies.prepare("../s", "folder", **OWN)
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    refused("target: expected a path below .*beir, found ''", "target")
    refused(r"target: expected a path below .*beir, found '\.\./food'", "target", target="../food")
    refused("sources: one of pairs.jsonl, ./pairs.jsonl stands twice", "real", sources=["pairs.jsonl", "./pairs.jsonl"])
    refused(r"sources: expected a path below .*home, found '\.\./p\.jsonl'", "real", sources=["../p.jsonl"])
    refused(r"tests: expected a path below .*beir, found '/food'", "real", sources=["pairs.jsonl"], tests=["/food"])
    refused(r"train\.tsv: no such file or directory; expected", "target", target="food", labels=True)
    assert not studies.prepared("s").exists()


def test_input_files_are_those_outside_the_study(home, monkeypatch):
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    food = [str(home / "beir/food" / file) for file in ("corpus.jsonl", "qrels/test.tsv", "queries.jsonl")]
    assert studies.input_files("folder", OWN | {"study": "s", "max_length": 64}) == [*food, str(home / "pairs.jsonl")]
    real = {"sources": ["pairs.jsonl"], "tests": ["food"]}
    assert studies.input_files("real", real) == [*food, str(home / "pairs.jsonl")]
    assert studies.input_files("target", {"target": "food"}) == food
    with pytest.raises(InputError, match=r"train\.tsv: no such file or directory; expected"):
        studies.input_files("target", {"target": "food", "labels": True})
    (home / "beir/food/qrels/test.tsv").rename(home / "beir/food/qrels/train.tsv")
    with pytest.raises(InputError, match=r"test\.tsv: no such file or directory; expected"):
        studies.input_files("real", real)
    (home / "beir/food/qrels/test.tsv").write_bytes((home / "beir/food/qrels/train.tsv").read_bytes())
    train = str(home / "beir/food/qrels/train.tsv")
    assert studies.input_files("target", {"target": "food", "labels": True}) == sorted([*food, train])


def test_an_in_domain_study_keeps_what_is_known_besides_its_pairs(home, monkeypatch):
    monkeypatch.setenv("ASYMLIB_DATA", str(home))
    graded_collection(home / "beir/graded")
    study = studies.prepare("s", "target", target="graded", labels=True)
    assert len(study.train.known) > 500 and study.train.known == study.validation.known
    assert studies.load("s", vectors=False) == study and "known.jsonl" in described()["files"]
    assert described()["counts"]["known"]["train"] == len(study.train.known_numbers())
    (study.folder / "known.jsonl").unlink()
    with pytest.raises(InputError, match=r"known\.jsonl: no such file .* run 01_data_prep for this study again"):
        studies.load("s", vectors=False)
    assert studies.prepare("s", "target", target="graded", labels=True) == study
    assert studies.prepare("s", "target", target="graded").train.known == []
    assert not (study.folder / "known.jsonl").exists()


@pytest.mark.real
def test_the_real_studies_have_their_committed_hashes(monkeypatch, tmp_path):
    committed = json.loads((ROOT / "data/results/real/origin.json").read_text())["systems.csv"]["data"]
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))
    tests = ["scifact", "nfcorpus", "arguana", "msmarco_dl_pool", "vaswani_npl"]
    wanted = {"study": ("real", {"sources": ["beir/squad_train", "pairs/nq_qed.jsonl"], "tests": tests,
                                 "limit_validation": 1_000})}  # fmt: skip
    wanted |= {f"study real-adapted-{name}": ("target", {"target": name, "limit_train": 5_000}) for name in tests}
    wanted |= {f"study real-in-domain-{name}": ("target", {"target": name, "labels": True}) for name in tests[:2]}
    for key, (source, parameters) in wanted.items():
        study = studies.prepare(key.removeprefix("study "), source, **parameters)
        assert study.content_sha256 == committed[key], key
        assert os.environ["ASYMLIB_DATA"] not in (study.folder / "study.json").read_text()
