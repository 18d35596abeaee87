"""Downloads, against a server on this machine that breaks in the ways servers break."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymlib import datasets
from asymlib.datasets import fetch_beir, fetch_pairs, load_beir, load_pairs, main
from asymlib.errors import InputError

FILES = {
    "scifact/corpus.jsonl": json.dumps({"_id": "d", "title": "T", "text": "x" * 300_000}) + "\n",
    "scifact/queries.jsonl": '{"_id": "q", "text": "what"}\n',
    "scifact/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\n",
}
BLOCK = 2**16  # what is written at once: a block that breaks off is asked for again


def make_zip(files: dict[str, str], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as bundle:
        for name, text in files.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one zip; `cuts` are the numbers of bytes after which the next answers break off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.ranges, self.status, self.asked = b"", [], True, None, []
        self.url = f"http://127.0.0.1:{self.server_port}/datasets"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        whole = self.server.content
        if self.server.status:
            self.send_error(self.server.status)
            return
        if start >= len(whole):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(whole) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(whole)
        self.wfile.write(whole[start:end])  # the connection closes after it, whatever was promised

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(datasets, "RETRY_SECONDS", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        publish(running, monkeypatch, make_zip(FILES))
        yield running
        running.shutdown()
        thread.join()


def publish(server: Server, monkeypatch, content: bytes) -> None:
    """Serve these bytes as scifact.zip, with their MD5 as the published one."""
    server.content = content
    monkeypatch.setitem(datasets.BEIR_MD5, "scifact", hashlib.md5(content).hexdigest())


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_collection_is_downloaded_checked_and_unpacked_once(tmp_path, server):
    folder = fetch_beir("scifact", tmp_path / "beir", server.url, progress=False)
    assert folder == tmp_path / "beir" / "scifact"
    assert load_beir(folder).queries == ["what"]
    assert left_behind(tmp_path / "beir") == ["scifact"]
    assert server.asked == [("/datasets/scifact.zip", None)]
    assert stat.S_IMODE((folder / "corpus.jsonl").stat().st_mode) & 0o444 == 0o444
    fetch_beir("scifact", tmp_path / "beir", server.url, progress=False)
    assert len(server.asked) == 1


def test_a_server_that_goes_away_twice_is_asked_for_the_rest(tmp_path, server):
    server.cuts = [2 * BLOCK, BLOCK]
    load_beir(fetch_beir("scifact", tmp_path, server.url, progress=False))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=131072-", "bytes=196608-"]


def test_a_server_that_stays_away_leaves_a_half_file_that_the_next_call_takes_up(tmp_path, server):
    server.cuts = [BLOCK + 1, 0, 0, 0]
    message = r"scifact\.zip: cannot be reached .*65536 bytes are kept in .*scifact\.zip\.part.*run again to go on"
    with pytest.raises(InputError, match=message):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    assert left_behind(tmp_path) == ["scifact.zip.part"]
    load_beir(fetch_beir("scifact", tmp_path, server.url, progress=False))
    assert server.asked[-1] == ("/datasets/scifact.zip", "bytes=65536-")
    assert left_behind(tmp_path) == ["scifact"]


def test_a_server_without_ranges_sends_everything_anew(tmp_path, server):
    server.ranges = False
    (tmp_path / "scifact.zip.part").write_bytes(b"half of something else")
    load_beir(fetch_beir("scifact", tmp_path, server.url, progress=False))


def test_a_download_that_was_whole_but_not_unpacked_is_not_repeated(tmp_path, server):
    (tmp_path / "scifact.zip.part").write_bytes(server.content)
    load_beir(fetch_beir("scifact", tmp_path, server.url, progress=False))
    assert server.asked == [("/datasets/scifact.zip", f"bytes={len(server.content)}-")]


def test_a_wrong_checksum_is_refused_and_the_file_deleted(tmp_path, server):
    server.content = server.content[:-1] + b"!"
    with pytest.raises(InputError, match=r"its MD5 is [0-9a-f]{32}, published is [0-9a-f]{32}; it was deleted"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_zip_is_refused(tmp_path, server, monkeypatch, keep):
    whole = make_zip(FILES)
    server.content = whole[: int(len(whole) * keep)]
    with pytest.raises(InputError, match="its MD5 is"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    publish(server, monkeypatch, server.content)  # even if the published MD5 were that of the truncated file
    with pytest.raises(InputError, match="not a whole zip file"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    assert "scifact" not in left_behind(tmp_path)


def test_a_damaged_member_is_refused(tmp_path, server, monkeypatch):
    whole = bytearray(make_zip(FILES))
    whole[whole.index(b"xxxx")] = ord("y")  # the member's CRC no longer fits
    publish(server, monkeypatch, bytes(whole))
    with pytest.raises(InputError, match="not a whole zip file"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    assert left_behind(tmp_path) == ["scifact.zip.part"]


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/outside.txt", "scifact/../../outside.txt", "..\\outside.txt", "C:/x"]
)
def test_a_member_that_leaves_the_folder_is_refused_before_anything_is_unpacked(tmp_path, server, monkeypatch, name):
    publish(server, monkeypatch, make_zip({**FILES, name: "escaped"}))
    folder = tmp_path / "deep" / "beir"
    with pytest.raises(InputError, match="leaves the folder or is a link; refused"):
        fetch_beir("scifact", folder, server.url, progress=False)
    assert left_behind(folder) == ["scifact.zip.part"]
    assert left_behind(tmp_path / "deep") == ["beir"]


def test_a_link_in_the_zip_is_refused(tmp_path, server, monkeypatch):
    link = zipfile.ZipInfo("scifact/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    publish(server, monkeypatch, buffer.getvalue())
    with pytest.raises(InputError, match="'scifact/link' leaves the folder or is a link"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)


def test_a_zip_of_something_else_is_refused(tmp_path, server, monkeypatch):
    publish(server, monkeypatch, make_zip({"scifact/readme.txt": "hello"}))
    with pytest.raises(InputError, match=r"holds no scifact/corpus\.jsonl; expected a BEIR collection"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)


def test_an_error_of_the_server_is_told_with_the_way_by_hand(tmp_path, server):
    server.status = 404
    with pytest.raises(InputError, match=r"answered 404 Not Found; or download http://127.* put it at .*scifact\.zip"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)


def test_a_zip_brought_by_hand_is_used_checked_and_left_alone(tmp_path, server):
    brought = tmp_path / "scifact.zip"
    brought.write_bytes(server.content[:-1])
    with pytest.raises(InputError, match=r"scifact\.zip: its MD5 is .*; delete it, then run again"):
        fetch_beir("scifact", tmp_path, server.url, progress=False)
    brought.write_bytes(server.content)
    load_beir(fetch_beir("scifact", tmp_path, server.url, progress=False))
    assert server.asked == []
    assert left_behind(tmp_path) == ["scifact", "scifact.zip"]


# ------------------------------------------------------------------------------------------------------- command line


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "asymlib.datasets", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_without_a_network_the_command_says_what_to_bring_and_where(tmp_path, server):
    server.shutdown()
    server.server_close()  # nothing listens there any more: connection refused
    result = run("fetch", "scifact", "--to", str(tmp_path / "beir"), "--url", server.url)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {server.url}/scifact.zip: cannot be reached (ConnectionError)")
    assert (
        f"download {server.url}/scifact.zip elsewhere, put it at {tmp_path}/beir/scifact.zip and run this again" in last
    )


def test_several_collections_in_one_command(tmp_path, server, monkeypatch, capsys):
    assert main(["fetch", "scifact", "--to", str(tmp_path), "--url", server.url]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "scifact")
    with pytest.raises(InputError, match="no-such-set: no BEIR collection with a published MD5; known: arguana, "):
        main(["fetch", "nfcorpus", "no-such-set", "--to", str(tmp_path), "--url", server.url])
    assert len(server.asked) == 1  # an unknown name is refused before anything is downloaded


# ------------------------------------------------------------------------------------------------------ pairs, the Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder laid out as the Hub's repository: two parquet files of the subset, named by the card's header."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "triplet").mkdir()
    for part in range(2):
        rows = range(60 * part, 60 * part + 60)
        table = pa.table(
            {
                "query": [f"question {i // 2 * 2}" if i > 100 else f"question {i}" for i in rows],  # some repeat
                "positive": [f"passage\n {i // 2 * 2}" if i > 100 else f"passage\n {i}" for i in rows],
                "negative": ["other"] * 60,
            }
        )
        pq.write_table(table, folder / "triplet" / f"train-0000{part}-of-00002.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: triplet\n  data_files:\n  - split: train\n    path: triplet/train-*\n---\n"
    )
    return folder


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory, monkeypatch):
    import datasets as hub_library

    monkeypatch.setattr(hub_library.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hub_cache")


def draw(hub: Path, to: Path, sample: int, seed: int = 0) -> list[tuple[str, str]]:
    pairs = load_pairs(fetch_pairs(sample, seed, to, str(hub), progress=False))
    return list(zip(pairs.queries, pairs.docs, strict=True))


def test_a_sample_of_pairs_is_fixed_by_its_seed_and_grows_by_its_size(hub, tmp_path):
    small, large = draw(hub, tmp_path / "s.jsonl", 20), draw(hub, tmp_path / "l.jsonl", 60)
    assert large[:20] == small
    assert len(set(large)) == 60
    assert all(doc == f"passage {query.split()[1]}" for query, doc in large)  # a pair stays a pair, on one line
    assert draw(hub, tmp_path / "again.jsonl", 20) == small
    other = draw(hub, tmp_path / "o.jsonl", 20, seed=1)
    assert other != small
    assert 10 < sum(int(query.split()[1]) < 60 for query, _ in large) < 50  # from both files


def test_a_sample_does_not_depend_on_the_order_of_rows(hub, tmp_path):
    turned = tmp_path / "turned"
    (turned / "triplet").mkdir(parents=True)
    (turned / "README.md").write_text((hub / "README.md").read_text())
    for part, name in enumerate(sorted(path.name for path in (hub / "triplet").iterdir())):
        table = pq.read_table(hub / "triplet" / name)
        turned_name = f"train-0000{1 - part}-of-00002.parquet"
        pq.write_table(table.take(list(range(len(table)))[::-1]), turned / "triplet" / turned_name)
    assert draw(turned, tmp_path / "t.jsonl", 20) == draw(hub, tmp_path / "s.jsonl", 20)


def test_too_few_pairs_and_wrong_columns_are_told(hub, tmp_path):
    with pytest.raises(InputError, match=r"holds only 1\d\d distinct pairs, 1000 were asked for"):
        draw(hub, tmp_path / "p.jsonl", 1000)
    with pytest.raises(InputError, match="sample: expected a whole number >= 1, found 0"):
        draw(hub, tmp_path / "p.jsonl", 0)
    wrong = tmp_path / "wrong"
    (wrong / "triplet").mkdir(parents=True)
    (wrong / "README.md").write_text((hub / "README.md").read_text())
    pq.write_table(pa.table({"text": ["x"]}), wrong / "triplet" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="expected the columns query and positive, found text"):
        draw(wrong, tmp_path / "p.jsonl", 1)
    assert not (tmp_path / "p.jsonl").exists()


def test_pairs_by_command_line_and_without_a_network(hub, tmp_path):
    to = tmp_path / "pairs.jsonl"
    cache = {"HF_HOME": str(tmp_path / "home")}
    result = run("fetch-pairs", "--sample", "5", "--seed", "3", "--to", str(to), "--dataset", str(hub), **cache)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(to)
    assert len(load_pairs(to)) == 5
    result = run("fetch-pairs", "--to", str(tmp_path / "none.jsonl"), HF_HUB_OFFLINE="1", **cache)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: sentence-transformers/msmarco-bm25: cannot be read from the Hub (")
    for told in (datasets.MSMARCO_REVISION, "'triplet'", "--dataset", f"at {tmp_path}/none.jsonl"):
        assert told in last
    assert not (tmp_path / "none.jsonl").exists()
