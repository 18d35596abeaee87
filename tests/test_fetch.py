"""Downloads, against a server on this machine and a folder laid out as the Hub's."""

import hashlib
import io
import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymlib.data.collections import load_beir
from asymlib.data.pairs import load_pairs
from asymlib.errors import InputError, run_command
from tests.conftest import ROOT
from tests.test_collections import write_beir
from tests.test_workflow import CONFIG

sys.path.insert(0, str(ROOT / "workflow"))
import fetch
from fetch import fetch_beir, fetch_ir_dataset, fetch_pairs, main


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """scifact.zip, whose MD5 is the published one, in the folder that the server serves."""
    write_beir(tmp_path / "whole" / "scifact")
    path = Path(shutil.make_archive(str(tmp_path / "served" / "scifact"), "zip", tmp_path / "whole", "scifact"))
    monkeypatch.setitem(fetch.BEIR_MD5, "scifact", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def url(archive) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_collection_is_downloaded_checked_and_unpacked_once(tmp_path, archive, url, capsys):
    to = tmp_path / "deep" / "beir"
    main(["beir", "scifact", "--to", str(to), "--url", url])
    assert capsys.readouterr().out.strip() == str(to / "scifact")
    assert load_beir(to / "scifact").queries[1] == "what is baked"
    assert left_behind(to) == ["scifact"]
    archive.unlink()
    assert fetch_beir("scifact", to, url) == to / "scifact"


def test_another_md5_is_refused_and_nothing_is_unpacked(tmp_path, archive, url):
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"scifact\.zip: cannot be had .*does not match the known hash"):
        fetch_beir("scifact", tmp_path / "beir", url)
    assert left_behind(tmp_path / "beir") == []


def test_a_zip_brought_by_hand_is_used_and_left_alone(archive):
    fetch_beir("scifact", archive.parent, "http://127.0.0.1:1")  # where nothing listens
    assert load_beir(archive.parent / "scifact").queries[1] == "what is baked"
    assert left_behind(archive.parent) == ["scifact", "scifact.zip"]


def test_what_cannot_be_had_is_told_with_the_way_by_hand(tmp_path, archive, url):
    archive.unlink()
    for address, why in ((url, "404"), ("http://127.0.0.1:1", "ConnectionError")):
        with pytest.raises(InputError, match=rf"scifact\.zip: cannot be had .*{why}.*put it at .*beir/scifact\.zip"):
            fetch_beir("scifact", tmp_path / "beir", address)
        assert left_behind(tmp_path / "beir") == []
    with pytest.raises(SystemExit):
        main(["beir", "scifact", "no-such-set"])


def parquet(folder: Path, parts: list[dict]) -> Path:
    """A folder laid out as the Hub's repository: parquet files of the subset, named by the card's header."""
    (folder / "triplet").mkdir(parents=True)
    for i, columns in enumerate(parts):
        pq.write_table(pa.table(columns), folder / "triplet" / f"train-0000{i}-of-0000{len(parts)}.parquet")
    card = "configs:\n- config_name: triplet\n  data_files:\n  - split: train\n    path: triplet/train-*\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


def part(rows: range) -> dict:
    numbers = [i // 2 * 2 if i > 100 else i for i in rows]  # some repeat
    return {"query": [f"question {i}" for i in numbers], "positive": [f"passage\n {i}" for i in numbers],
            "negative": ["other"] * len(rows)}  # fmt: skip


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")


def draw(hub: Path, to: Path, sample: int, seed: int = 0) -> list[tuple[str, str]]:
    pairs = load_pairs(fetch_pairs(sample, seed, to, str(hub)))
    return list(zip(pairs.queries, pairs.documents, strict=True))


def test_a_sample_of_pairs_is_fixed_by_its_seed_and_grows_by_its_size(tmp_path):
    hub = parquet(tmp_path / "hub", [part(range(60)), part(range(60, 120))])
    small, large = draw(hub, tmp_path / "s.jsonl", 20), draw(hub, tmp_path / "l.jsonl", 60)
    assert large[:20] == small and len(set(large)) == 60
    assert all(doc == f"passage {query.split()[1]}" for query, doc in large)  # a pair stays a pair, on one line
    assert draw(hub, tmp_path / "o.jsonl", 20, seed=1) != small
    assert 10 < sum(int(query.split()[1]) < 60 for query, _ in large) < 50  # from both files
    turned = parquet(tmp_path / "turned", [part(range(119, 59, -1)), part(range(59, -1, -1))])
    assert draw(turned, tmp_path / "t.jsonl", 20) == small
    with pytest.raises(InputError, match=r"holds only 1\d\d distinct pairs, 1000 were asked for"):
        draw(hub, tmp_path / "p.jsonl", 1000)
    with pytest.raises(InputError, match=r"wrong: cannot be read \(.*query"):
        draw(parquet(tmp_path / "wrong", [{"text": ["x"]}]), tmp_path / "p.jsonl", 1)
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize(
    ("passages", "found"), [(["fine", None], "nothing"), ([["in"], ["a list"]], "list"), ([1, 2], "int")]
)
def test_a_passage_that_is_no_text_is_named_with_its_row(tmp_path, passages, found):
    hub = parquet(tmp_path / "hub", [{"query": ["one", "two"], "positive": passages}])
    row = 2 if found == "nothing" else 1
    with pytest.raises(InputError, match=f"hub, row {row}: field 'positive' must be a string, found {found}$"):
        fetch_pairs(1, 0, tmp_path / "p.jsonl", str(hub))
    assert not (tmp_path / "p.jsonl").exists()


def test_a_damaged_part_and_wrong_arguments_are_one_sentence(tmp_path, capsys):
    hub = parquet(tmp_path / "hub", [part(range(9))])
    next(hub.glob("triplet/*")).write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match=r"^\S+hub: cannot be read \(\w+: [^\n]*or put pairs of your own[^\n]*$"):
        fetch_pairs(5, 0, tmp_path / "p.jsonl", str(hub))
    for sample in (0, -5):
        with pytest.raises(InputError, match=f"sample: expected at least 1, found {sample}"):
            fetch_pairs(sample, 0, tmp_path / "p.jsonl", str(hub))
    with pytest.raises(InputError, match="no-such-set: no collection of BEIR, expected one of arguana"):
        fetch_beir("no-such-set", tmp_path)
    for arguments in (["beir", "scifact", "--to", str(tmp_path / "file")], ["pairs", "--sample", "0"]):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as ended:
            run_command(partial(main, arguments))
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_pairs_by_command_line_and_without_a_network(tmp_path, capsys):
    hub, to = parquet(tmp_path / "hub", [part(range(60))]), tmp_path / "pairs.jsonl"
    main(["pairs", "--sample", "5", "--seed", "3", "--to", str(to), "--dataset", str(hub)])
    assert capsys.readouterr().out.strip() == str(to)
    assert len(load_pairs(to)) == 5
    told = rf"^sentence-transformers/msmarco-bm25: cannot be read \(.*'triplet'.*{fetch.MSMARCO_REVISION}.*as dataset.*none"
    with pytest.raises(InputError, match=told):
        main(["pairs", "--to", str(tmp_path / "none.jsonl")])
    assert not (tmp_path / "none.jsonl").exists()


NPL = {  # in the layout of Vaswani's archive
    "doc-text": "1\ncompact memories\nhave access\n   /\n2\nan electronic  switch\n   /\n3\n\n   /\n",
    "query-text": "1\nWHICH SWITCH\n/\n2\nWHICH MEMORY\n/\n",
    "rlv-ass": "1\n  2\n   /\n2\n  1   3\n   /\n",
}


@pytest.fixture
def npl(tmp_path, archive, url) -> Path:
    """The archive that the server serves as data set "made-up" of ir_datasets, read as Vaswani is."""
    import ir_datasets
    from ir_datasets.datasets import vaswani
    from ir_datasets.util import Cache, Download, RequestsDownload, TarExtract

    path = archive.parent / "npl.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in NPL.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    main = Download([RequestsDownload(f"{url}/npl.tar.gz", tries=1)], tmp_path / "kept" / "npl.tar.gz", md5)
    readers = {"doc-text": vaswani.VaswaniDocs, "query-text": vaswani.VaswaniQueries, "rlv-ass": vaswani.VaswaniQrels}
    parts = [reader(Cache(TarExtract(main, name), tmp_path / "kept" / name)) for name, reader in readers.items()]
    ir_datasets.registry._registered["made-up"] = vaswani.Dataset(*parts)
    yield path
    del ir_datasets.registry._registered["made-up"]


def config_file(folder: Path, **fetch: object) -> str:
    (folder / "family.yaml").write_text(json.dumps(CONFIG | {"fetch": fetch}))
    return str(folder / "family.yaml")


def test_a_config_brings_all_that_it_names_and_goes_on_where_it_stopped(tmp_path, archive, url, npl, capsys):
    hub, to = parquet(tmp_path / "hub", [part(range(60))]), tmp_path / "data"
    draw = {"dataset": str(hub), "revision": "main", "subset": "triplet", "sample": 7}
    wanted = {"beir": ["scifact"], "ir_datasets": {"npl": "made-up"}, "pairs": {"few": draw}}
    arguments = ["config", config_file(tmp_path, **wanted), "--to", str(to), "--url", url]
    whole = npl.read_bytes()
    npl.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"npl: made-up of ir_datasets cannot be had \(.*run again, or take it out"):
        main(arguments)
    assert left_behind(to / "beir") == ["scifact"]
    npl.write_bytes(whole)
    archive.unlink()
    capsys.readouterr()
    main(arguments)
    places = [to / "beir/scifact", to / "beir/npl", to / "pairs/few.jsonl"]
    assert capsys.readouterr().out.split() == list(map(str, places))
    found = load_beir(to / "beir/npl")
    assert found.documents == ["compact memories have access", "an electronic switch", ""]
    assert (found.doc_ids, found.queries) == (["1", "2", "3"], ["WHICH SWITCH", "WHICH MEMORY"])
    assert found.qrels == {"1": {"2": 1}, "2": {"1": 1, "3": 1}} and len(load_pairs(places[2])) == 7
    times = [place.stat().st_mtime_ns for place in places]
    npl.unlink()
    shutil.rmtree(hub)
    main(arguments)
    assert times == [place.stat().st_mtime_ns for place in places]
    assert left_behind(to / "beir") == ["npl", "scifact"]


def test_what_ir_datasets_or_the_config_does_not_have_is_named(tmp_path):
    with pytest.raises(InputError, match=r"x: no-such-set of ir_datasets cannot be had .KeyError"):
        fetch_ir_dataset("x", "no-such-set", tmp_path / "beir")
    assert left_behind(tmp_path / "beir") == []
    for wanted, words in (
        ({"bier": ["scifact"]}, "fetch.bier: Extra inputs are not permitted"),
        ({"ir_datasets": {"../x": "vaswani"}}, r"config: .*\.\./x"),
        ({"pairs": {"x": {"sample": 5}}}, "fetch.pairs.x.dataset: Field required"),
    ):
        with pytest.raises(InputError, match=words):
            main(["config", config_file(tmp_path, **wanted), "--to", str(tmp_path)])
