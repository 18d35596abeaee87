"""Files are whole or absent, and a wrong input ends a command in one line and a code that is not 0."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from asymlib import files
from asymlib.errors import InputError, run_command
from tests.conftest import flipped, full_disk


def test_sha256_by_known_values(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "big").write_bytes(b"\0" * 3_000_000)
    assert files.sha256_file(str(tmp_path / "big")) == hashlib.sha256(b"\0" * 3_000_000).hexdigest()


def test_a_file_appears_whole_under_its_name_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with files.atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary != path
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_user_asks_for(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "file.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1), PermissionError(13, "no")]
)
@pytest.mark.parametrize("old", ["before", None])
def test_after_any_error_the_old_file_stands_and_no_half_file_is_left(tmp_path, error, old):
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)
    with pytest.raises(type(error)), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("path", [".", "", "..", "folder", "/"])
def test_a_folder_is_not_a_file_to_write(tmp_path, monkeypatch, path):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="a folder, expected a file"):
        files.write_text(path, "text")
    assert [(p.name, list(p.iterdir())) for p in tmp_path.iterdir()] == [("folder", [])]


def test_a_disk_that_is_really_full_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "file.json").write_text("{}")
    full_disk(monkeypatch)
    with pytest.raises(InputError, match=r"file\.json: no space left on the disk") as caught:
        files.write_json(tmp_path / "file.json", {"a": 1})
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file.json", "{}")]


def test_json_is_written_the_same_way_every_time(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": ["ü", None, 1.5]})
    assert (
        tmp_path / "a.json"
    ).read_bytes() == '{\n  "a": [\n    "ü",\n    null,\n    1.5\n  ],\n  "b": 1\n}\n'.encode()
    assert files.read_json(tmp_path / "a.json") == {"a": ["ü", None, 1.5], "b": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "a": 1,\n  "b" 2\n}\n', r"broken\.json:3:7: not valid JSON"),  # line 3, column 7: the missing colon
        (b"", r"broken\.json:1:1: not valid JSON"),
        (b'{"a": 1}\n{"b": 2}\n', r"broken\.json:2:1: not valid JSON"),
        (b'{"a": "\xff"}', r"broken\.json: not valid JSON .*utf-8"),
        (b"[" * 100_000, r"broken\.json: not valid JSON .*recursion"),
        (b"1" * 5_000, r"broken\.json: not valid JSON .*digits"),
    ],
)
def test_broken_json_is_refused_naming_file_line_and_column(tmp_path, content, message):
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.read_json(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        files.read_json(tmp_path / "nowhere.json")


RECORD = {
    "name": "größe",
    "lr": 1e-05,
    "epochs": 10,
    "best": True,
    "none": None,
    "losses": [0.5, -0.0, 1e300],
    "in": {"a": ""},
}


def test_a_record_comes_back_with_its_values_and_types(tmp_path):
    files.write_record(tmp_path / "a.json", RECORD)
    found = files.read_record(tmp_path / "a.json", "make it again")
    assert found == RECORD and all(type(found[name]) is type(value) for name, value in RECORD.items())
    assert str(found["losses"][1]) == "-0.0"
    files.write_record(tmp_path / "b.json", {"runs": ({1: 2},)})  # as JSON has it
    assert files.read_record(tmp_path / "b.json", "") == {"runs": [{"1": 2}]}
    with pytest.raises(InputError, match=r"absent\.json: no such file; make it again"):
        files.read_record(tmp_path / "absent.json", "make it again")


def test_every_flipped_bit_of_a_record_is_an_error_or_changes_no_value(tmp_path):
    path = tmp_path / "a.json"
    files.write_record(path, RECORD)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, 8 * len(whole), 3):
        path.write_bytes(flipped(whole, place))
        try:
            assert repr(sorted(files.read_record(path, "").items())) == repr(sorted(RECORD.items()))
        except InputError as error:
            refused += str(path) in str(error)
    assert refused > 0.9 * 8 * len(whole) / 3  # the others are blanks


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"3", b'{"a": 1, "record_sha256": 5}', b"[" * 100_000])
def test_what_is_no_record_is_refused_with_the_cure(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json.*; make it again"):
        files.read_record(tmp_path / "a.json", "make it again")


def test_a_short_write_that_numpy_counts_is_a_full_disk_with_its_path(tmp_path):
    with pytest.raises(InputError, match=r"a\.npy: no space left on the disk"), files.atomic_path(tmp_path / "a.npy"):
        raise OSError("399360 requested and 54240 written")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), files.atomic_path(tmp_path / "file" / "a.npy"):
        pass  # no folder can be made there
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_job_is_told_of_every_file_that_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMLIB_WRITTEN", str(tmp_path / "noted"))
    monkeypatch.chdir(tmp_path)
    files.write_text("a/ü.txt", "")
    with pytest.raises(RuntimeError), files.atomic_path("b"):
        raise RuntimeError
    files.write_json(tmp_path / "c.json", {})
    assert (tmp_path / "noted").read_text(encoding="utf-8").split() == [f"{tmp_path}/a/ü.txt", f"{tmp_path}/c.json"]


def test_project_paths_lie_in_the_checkout_or_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("ASYMLIB_HOME", raising=False)
    assert files.project_path("asymlib", "files.py") == Path(files.__file__).resolve()
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))
    assert files.project_path("data", "cache") == tmp_path / "data" / "cache"
    assert files.project_path() == tmp_path


@pytest.mark.parametrize("name", ["asym-dot", "_1e-05", "a+b=c.d", "0"])
def test_a_name_that_can_be_part_of_a_path_is_taken_as_it_is(name):
    assert files.safe_name(name, "study") == name


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-n", ".hidden", "a b", "a\n", "é", "a\\b"])
def test_any_other_name_is_refused_by_field(name):
    with pytest.raises(InputError, match=r"study: .*, expected letters, digits and \. _ \+ = -, not starting with"):
        files.safe_name(name, "study")


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (InputError("pairs.jsonl:7: expected a query"), 2, "error: pairs.jsonl:7: expected a query\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "error: No space left on device: /x/y\n"),
        (OSError("strange"), 2, "error: strange\n"),
        (KeyboardInterrupt(), 130, "interrupted: what was finished is kept; the same command goes on from there\n"),
    ],
)
def test_a_command_ends_in_one_line_and_its_code(capsys, outcome, code, message):
    def main() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == message


def test_an_error_of_the_program_itself_is_not_hidden():
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)
