"""Tables: none without its origin, no altered byte, no value that comes back otherwise."""

import json
import math
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from asymlib.errors import InputError
from asymlib.files import read_record, sha256_file
from asymlib.report.tables import WRITTEN_BY, origin, read_origin, read_table, write_table
from tests.conftest import ROOT

ORIGIN = {"parameters": {"seeds": 5}, "data": {"study": "abc"}, "seeds": [0, 1]}
TABLE = pd.DataFrame({"name": ["a", "b"], "value": [0.1234567891, 2.0], "count": [3, 4]})


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_comes_back_as_it_was_written_and_twice_in_the_same_bytes(tmp_path, name):
    table = TABLE.assign(missing=[math.nan, 1.5], text=['a,"b"\nc', "ü"], flag=[True, False], huge=[math.inf, -1e-300])
    first, second = (write_table(tmp_path / "new" / folder, name, table, ORIGIN) for folder in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_name("origin.json").read_bytes() == second.with_name("origin.json").read_bytes()
    exact = name.endswith("parquet")
    pd.testing.assert_frame_equal(read_table(first.parent, name), table, rtol=0 if exact else 1e-7, check_exact=exact)


def test_a_csv_has_eight_significant_digits_and_empty_fields_for_nan_alone(tmp_path):
    table = TABLE.assign(missing=[math.nan, 1 / 3], text=["None", "NA"])
    path = write_table(tmp_path, "table.csv", table, ORIGIN)
    assert path.read_bytes() == b"name,value,count,missing,text\na,0.12345679,3,,None\nb,2,4,0.33333333,NA\n"
    assert read_table(tmp_path, "table.csv")["text"].tolist() == ["None", "NA"]


def test_each_table_keeps_its_own_origin_and_its_own_hash(tmp_path):
    write_table(tmp_path, "one.csv", TABLE, {**ORIGIN, "sha256": "0" * 64, "rows": 99})
    write_table(tmp_path, "two.parquet", TABLE, {**ORIGIN, "seeds": [7]})
    for name, seeds in (("one.csv", [0, 1]), ("two.parquet", [7])):
        found = read_origin(tmp_path, name)
        assert (found["seeds"], found["rows"], found["sha256"]) == (seeds, 2, sha256_file(tmp_path / name))


def test_a_table_without_origin_is_refused(tmp_path):
    folder = tmp_path / "mine"
    cure = "run 05_evaluation for the study 'mine' again"
    with pytest.raises(InputError, match=rf"ties\.csv: no such table; {cure}"):
        read_table(folder, "ties.csv")
    write_table(folder, "two.csv", TABLE, ORIGIN)
    TABLE.to_csv(folder / "ties.csv")
    with pytest.raises(InputError, match=rf"origin\.json: no entry for ties\.csv, so its origin is unknown; {cure}"):
        read_table(folder, "ties.csv")
    whole = (folder / "origin.json").read_text()
    for content, message in {
        '{"ties.csv": ': r"origin\.json:1:14: not valid JSON",
        "[]": r"origin\.json: not as it was written",
        '{"ties.csv": {"sha256": "0"}}': r"origin\.json: not as it was written",
        whole.replace('"seeds": 5', '"seeds": 6'): r"origin\.json: not as it was written",
        "": r"origin\.json:1:1: not valid JSON",
    }.items():
        (folder / "origin.json").write_text(content)
        with pytest.raises(InputError, match=f"{message}.*{cure}"):
            read_table(folder, "ties.csv")
    (folder / "origin.json").unlink()
    with pytest.raises(
        InputError, match=r"origin\.json: no such file; .*run the notebook that writes it for the study 'mine'"
    ):
        read_table(folder, "two.csv")


@pytest.mark.parametrize("damage", ["", "{", '{"one.csv": {"sha256": "0"}}', None])
def test_the_same_notebook_heals_a_damaged_or_deleted_origin(tmp_path, damage):
    for name in ("one.csv", "two.csv"):
        write_table(tmp_path, name, TABLE, ORIGIN)
    record = tmp_path / "origin.json"
    record.unlink() if damage is None else record.write_text(damage)
    write_table(tmp_path, "one.csv", TABLE, ORIGIN)
    pd.testing.assert_frame_equal(read_table(tmp_path, "one.csv"), TABLE)
    with pytest.raises(InputError, match="no entry for two"):
        read_table(tmp_path, "two.csv")


def test_every_table_of_the_notebooks_has_its_notebook():
    written = {}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        for name in re.findall(r'write_table\(.*?"(\w+\.(?:csv|parquet))\b', path.read_text().replace("\\", "")):
            written.setdefault(path.stem, set()).add(name)
    for stem, names in WRITTEN_BY.items():
        assert set(names.split()) == written.pop(stem), stem
    assert set(written) <= {"10_diagnose"}


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize(
    "system", ["1e-3", "007", "None", "NA", "nan", "true", "inf", "-", "1_000", "0x1F", "2024-01-01", ""]
)
def test_text_comes_back_as_text_whatever_the_column_is_called(tmp_path, name, system):
    table = pd.DataFrame({"any": [system, system], "mixed": [system, "word"], "value": [1.5, 2], "flag": [True, False]})
    table = pd.concat([table, table.iloc[:1].assign(mixed=None)], ignore_index=True)
    write_table(tmp_path, name, table, ORIGIN)
    found = read_table(tmp_path, name)
    assert found["any"].isna().all() if (system, name) == ("", "table.csv") else found["any"].tolist() == [system] * 3
    assert found["mixed"].iloc[1] == "word" and pd.isna(found["mixed"].iloc[2])
    assert found["value"].tolist() == [1.5, 2, 1.5] and found["flag"].tolist() == [True, False, True]


def test_a_folder_whose_name_the_locale_cannot_write_holds_tables(tmp_path):
    code = "import pandas as pd, sys; from asymlib.report.tables import read_table, write_table\nfor kind in ('csv', 'parquet'):"
    code += (
        " write_table(sys.argv[1], f'one.{kind}', pd.DataFrame({'name': ['1e-3', 'ü']}), {'parameters': {'of': 'ü'}});"
    )
    code += " assert read_table(sys.argv[1], f'one.{kind}')['name'].tolist() == ['1e-3', 'ü']"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code.encode("ascii", "backslashreplace").decode(), tmp_path / "Mosè"]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_table(tmp_path / "Mosè", "one.csv")["name"].tolist() == ["1e-3", "ü"]


@pytest.mark.parametrize("name", ["one.csv", "one.parquet"])
def test_an_altered_byte_is_refused(tmp_path, name):
    path = write_table(tmp_path, name, TABLE, ORIGIN)
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=re.escape(f"{name}: changed since it was written")):
            read_table(tmp_path, name)


def test_notebooks_that_write_side_by_side_lose_no_entry(tmp_path):
    names = [[f"t{i}-{k}.csv" for k in range(4)] for i in range(6)]
    writers = [
        threading.Thread(target=lambda some=some: [write_table(tmp_path, name, TABLE, ORIGIN) for name in some])
        for some in names
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert set(read_record(tmp_path / "origin.json", "")) == {name for some in names for name in some}


def test_an_origin_says_where_a_result_comes_from_and_is_json(tmp_path, monkeypatch):
    found = origin({"lr": 1e-3}, {"study": "abc"}, [0, 1])
    assert json.loads(json.dumps(found)) == found
    assert found["parameters"] == {"lr": 1e-3} and found["data"] == {"study": "abc"} and found["seeds"] == [0, 1]
    assert {"python", "torch", "sentence-transformers"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["threads"] >= 1
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", found["commit"])
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))  # outside a checkout
    assert origin({}, {}, [])["commit"] is None and origin({}, {}, [])["uncommitted_changes"] is False
    monkeypatch.setenv("PATH", "")  # no git at all
    assert origin({}, {}, [])["commit"] is None
