"""The cache on disk: a dictionary of vectors that outlives kills, races, damage and a full disk."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib.encoding.cache import Cache
from asymlib.errors import InputError
from tests.conftest import full_disk

KEY = "0123456789abcdef" * 4


def digests(numbers):
    return np.array([hashlib.sha256(b"%d" % number).digest() for number in numbers], dtype="S32")


def vectors(numbers):
    """(n, 4): of text i the vector i, i + 1/4, i + 1/2, i + 3/4."""
    return np.asarray(numbers, dtype=np.float32)[:, None] + np.arange(4, dtype=np.float32) / 4


def shards(cache):
    return sorted(cache.folder.glob("shard-*.json"))


def add(cache, *numbers):
    cache.write(digests(numbers), vectors(numbers))


def assert_holds(cache, numbers):
    found, missing = cache.read(digests(numbers))
    assert not len(missing)
    np.testing.assert_array_equal(found, vectors(numbers))


def test_the_layout_on_disk(tmp_path):
    cache = Cache(tmp_path, KEY)
    add(cache, 5, 6)
    (about,) = shards(cache)
    vectors_file, keys_file = about.with_suffix(".npy"), about.with_suffix(".keys.npy")
    assert about.parent == tmp_path / "0123456789abcdef"
    np.testing.assert_array_equal(np.load(vectors_file), vectors([5, 6]))
    assert np.load(keys_file).tobytes() == hashlib.sha256(b"5").digest() + hashlib.sha256(b"6").digest()
    assert json.loads(about.read_text()) == {
        "rows": 2,
        "dim": 4,
        "vectors_sha256": hashlib.sha256(vectors_file.read_bytes()).hexdigest(),
        "keys_sha256": hashlib.sha256(keys_file.read_bytes()).hexdigest(),
    }


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=4), st.lists(st.integers(0, 12), max_size=8)
)
def test_it_is_a_dictionary(writes, wanted):
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(folder, KEY)
        for numbers in writes:
            add(cache, *numbers)
        known = {number for numbers in writes for number in numbers}
        found, missing = cache.read(digests(wanted), dim=4)
        there = [row for row, number in enumerate(wanted) if number in known]
        np.testing.assert_array_equal(found[there], vectors([wanted[row] for row in there]))
        assert sorted(missing) == [wanted.index(number) for number in dict.fromkeys(wanted) if number not in known]
        assert digests(wanted)[missing].tolist() == sorted(digests(wanted)[missing])


def test_a_digest_that_ends_in_zero_bytes(tmp_path):
    cache = Cache(tmp_path, KEY)
    ends_in_zero = next(i for i in range(9999) if hashlib.sha256(b"%d" % i).digest().endswith(b"\0"))
    add(cache, 1, ends_in_zero)
    assert_holds(cache, [ends_in_zero, 1])


def test_what_a_killed_writer_left_is_ignored(tmp_path):
    cache = Cache(tmp_path, KEY)
    add(cache, 1)
    add(cache, 2)
    shards(cache)[1].unlink()  # it is written last
    (cache.folder / ".shard-3.npy.x.part").write_bytes(b"half")
    assert_holds(cache, [1])
    assert cache.read(digests([2]))[1].tolist() == [0]


@pytest.mark.parametrize("suffix", [".npy", ".keys.npy", ".json"])
def test_a_flipped_byte_is_found_and_mended(tmp_path, suffix):
    cache = Cache(tmp_path, KEY)
    for number in range(3):
        add(cache, 2 * number, 2 * number + 1)
    victim = shards(cache)[1].with_suffix("")
    path = victim.with_name(victim.name + suffix)
    content = bytearray(path.read_bytes())
    content[5 if suffix == ".json" else len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{victim.name}\.\*: .*damaged.*delete the files"):
        cache.read(digests([2]))
    for part in cache.folder.glob(f"{victim.name}.*"):  # what the message says
        part.unlink()
    assert cache.read(digests(range(6)))[1].size == 2
    assert_holds(cache, [0, 1, 4, 5])


@pytest.mark.parametrize("suffix", [".npy", ".keys.npy"])
def test_a_missing_part_of_a_shard_is_damage(tmp_path, suffix):
    cache = Cache(tmp_path, KEY)
    add(cache, 1)
    shards(cache)[0].with_suffix(suffix).unlink()
    with pytest.raises(InputError, match="damaged"):
        cache.read(digests([1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"rows": 2', '"rows": 3'),
        lambda text: text.replace('"rows": 2', '"rows": "2"'),
        lambda text: text.replace('"dim": 4', '"dim": 5'),
        lambda text: text.replace('"dim": 4', '"dim": null'),
        lambda text: text.replace('"dim": 4', '"dim": -4'),
        lambda text: text.replace("keys_sha256", "keys_sha255"),
    ],
)
def test_a_record_that_does_not_fit_its_shard_is_damage(tmp_path, change):
    cache = Cache(tmp_path, KEY)
    add(cache, 0, 1)
    add(cache, 2, 3)
    victim = shards(cache)[0]
    victim.write_text(change(victim.read_text()))
    with pytest.raises(InputError, match=rf"{victim.stem}\.\*: .*damaged.*delete the files"):
        cache.read(digests(range(4)))


@pytest.mark.parametrize("suffix", [".npy", ".keys.npy"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr': ", b"\x80\x04N."])
def test_what_numpy_cannot_read_is_damage_even_with_the_right_hash(tmp_path, suffix, content):
    cache = Cache(tmp_path, KEY)
    add(cache, 0, 1)
    (about,) = shards(cache)
    about.with_suffix(suffix).write_bytes(content)
    field = {".npy": "vectors_sha256", ".keys.npy": "keys_sha256"}[suffix]
    about.write_text(json.dumps(json.loads(about.read_text()) | {field: hashlib.sha256(content).hexdigest()}))
    with pytest.raises(InputError, match=rf"{about.stem}\.\*: .*damaged"):
        cache.read(digests([0]))


def counted(file, array, **_):
    """What numpy says of a disk that fills up under it."""
    raise OSError(f"{array.size} requested and 0 written")


@pytest.mark.parametrize("numpy_counts", [False, True])
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, numpy_counts):
    cache = Cache(tmp_path, KEY)
    add(cache, 1)
    monkeypatch.setattr(np, "save", counted) if numpy_counts else full_disk(monkeypatch)
    with pytest.raises(InputError, match=r"shard-\S+\.npy: no space left"):
        cache.write(digests(range(3_000)), np.ones((3_000, 96), dtype=np.float32))
    assert_holds(cache, [1])
    assert len(list(cache.folder.iterdir())) == 3


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_open_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        cache = Cache(tmp_path / "cache", KEY)
        cache.prepare(model="m")
        add(cache, 1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {mode}


def test_what_killed_writers_left_is_swept_when_it_is_a_day_old(tmp_path):
    cache = Cache(tmp_path, KEY)
    add(cache, 1)
    add(cache, 2)
    shards(cache)[1].unlink()
    (cache.folder / ".shard-3.npy.0123.part").write_bytes(b"half")
    (cache.folder / "notes.txt").write_text("not ours")
    kept = {path.name for path in shards(cache)[0].parent.glob(f"{shards(cache)[0].stem}.*")} | {"notes.txt"}
    for path in cache.folder.iterdir():
        os.utime(path, (time.time() - 86_000,) * 2)
    cache.prepare(model="m")
    assert len(list(cache.folder.iterdir())) == 8  # nothing is old enough
    for path in cache.folder.iterdir():
        os.utime(path, (time.time() - 87_000,) * 2)
    cache.prepare(model="m")
    assert {path.name for path in cache.folder.iterdir()} == kept | {"config.json"}
    assert_holds(cache, [1])


def test_a_cache_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", "/proc/self/cache"):
        with pytest.raises(InputError, match=rf"{folder}/0123456789abcdef: vectors cannot be stored here \(.+\); make"):
            Cache(folder, KEY).prepare(model="m")


CHILD = """
import hashlib, sys
import numpy as np
from asymlib.encoding.cache import Cache
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    pair = np.array([number, number + 1], dtype=np.float32)
    digests = np.array([hashlib.sha256(b"%d" % text).digest() for text in (number, number + 1)], dtype="S32")
    Cache(sys.argv[1], sys.argv[4]).write(digests, pair[:, None] + np.arange(4, dtype=np.float32) / 4)
"""


def start_child(cache, first, end):
    command = [sys.executable, "-c", CHILD, str(cache), str(first), str(end), KEY]
    return subprocess.Popen(command, cwd=Path(__file__).parent.parent)


def test_a_reader_beside_two_writers_one_of_which_is_killed(tmp_path):
    cache, found = Cache(tmp_path, KEY), set()
    steady, killed = start_child(tmp_path, 0, 50), start_child(tmp_path, 500, 9_999)
    while steady.poll() is None or len(found) < 60:
        missing = cache.read(digests(range(9_999)))[1]
        before, found = found, set(range(9_999)) - set(missing.tolist())
        assert before <= found  # what was there once stays
    killed.kill()
    killed.wait(10)
    assert steady.returncode == 0
    assert_holds(cache, range(51))
    kept = np.setdiff1d(np.arange(500, 9_999), cache.read(digests(range(9_999)))[1])
    assert kept.tolist() == list(range(500, 500 + len(kept)))  # what it had finished, and nothing half
    assert_holds(cache, kept)
