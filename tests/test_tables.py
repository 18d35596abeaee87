"""Tables: none without its origin, no altered byte, no value that comes back otherwise."""

import json
import math
import os
import re
import threading

import numpy as np
import pandas as pd
import pytest

from asymlib.errors import InputError
from asymlib.files import sha256_file
from asymlib.report.tables import origin, read_origin, read_table, write_table

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
    with pytest.raises(InputError, match=r"one\.csv: no such table; run the notebook that writes it first"):
        read_table(tmp_path, "one.csv")
    TABLE.to_csv(tmp_path / "one.csv")
    with pytest.raises(InputError, match=r"one\.csv: a table without origin; expected .*origin\.json beside it"):
        read_table(tmp_path, "one.csv")
    for content, message in {
        '{"one.csv": ': r"origin\.json:1:13: not valid JSON",
        "[]": r"origin\.json: no entry with a SHA-256 for one\.csv",
        '{"two.csv": {"sha256": "0"}}': "no entry with a SHA-256",
        '{"one.csv": {"rows": 2}}': "no entry with a SHA-256",
    }.items():
        (tmp_path / "origin.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_table(tmp_path, "one.csv")


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
    assert set(json.loads((tmp_path / "origin.json").read_text())) == {name for some in names for name in some}


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
