"""Results: no table without its origin, no altered byte, and an old table stays whole when a new one cannot be written."""

import json
import math
import os
import re
import threading

import numpy as np
import pandas as pd
import pytest

from asymlib import files, results
from asymlib.errors import InputError
from tests.conftest import full_disk

ORIGIN = {"parameters": {"seeds": 5}, "data": {"study": "abc"}, "seeds": [0, 1]}
TABLE = pd.DataFrame({"name": ["a", "b"], "value": [0.1234567891, 2.0], "count": [3, 4]})


def systems_table() -> pd.DataFrame:
    row = dict.fromkeys(results.SYSTEM_COLUMNS, "x") | {"mean": 0.64508, "p_value": math.nan, "seeds": 5}
    return pd.DataFrame([row])[list(results.SYSTEM_COLUMNS)]


def test_systems_csv_has_the_designed_columns_in_their_order():
    designed = ("track,system,dataset,metric,mean,sd,ci_low,ci_high,baseline,delta_percent,p_value,seeds,similarity_train,"
                "similarity_eval,encoder,pairs")  # fmt: skip
    assert ",".join(results.SYSTEM_COLUMNS) == designed


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_comes_back_as_it_was_written(tmp_path, name):
    table = TABLE.assign(
        missing=[math.nan, 1.5], text=["None", 'a,"b"\nc'], flag=[True, False], huge=[math.inf, -1e-300]
    )
    results.write_table(tmp_path / "new" / "folder", name, table, ORIGIN)
    back = results.read_table(tmp_path / "new" / "folder", name)
    pd.testing.assert_frame_equal(
        back, table, rtol=1e-7 if name.endswith("csv") else 0, check_exact=name.endswith("parquet")
    )


def test_a_csv_has_eight_significant_digits_and_empty_fields_for_nan(tmp_path):
    path = results.write_table(tmp_path, "table.csv", TABLE.assign(missing=[math.nan, 1 / 3]), ORIGIN)
    assert path.read_bytes() == b"name,value,count,missing\na,0.12345679,3,\nb,2,4,0.33333333\n"


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path):
    names = ["None", "NA", "nan", "null", "n/a"]
    results.write_table(tmp_path, "names.csv", pd.DataFrame({"name": names}), ORIGIN)
    assert results.read_table(tmp_path, "names.csv")["name"].tolist() == names


def test_every_float_that_a_csv_holds_is_read_back_exactly(tmp_path):
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal(2000) * 10.0 ** generator.integers(-20, 20, 2000)
    path = results.write_table(tmp_path, "numbers.csv", pd.DataFrame({"x": numbers}), ORIGIN)
    written = [float(line) for line in path.read_text().splitlines()[1:]]
    assert results.read_table(tmp_path, "numbers.csv")["x"].tolist() == written


def test_writing_the_same_table_twice_gives_the_same_bytes(tmp_path):
    for name in ("table.csv", "table.parquet"):
        first = results.write_table(tmp_path / "a", name, TABLE, ORIGIN).read_bytes()
        assert results.write_table(tmp_path / "b", name, TABLE, ORIGIN).read_bytes() == first
    assert (tmp_path / "a" / "origin.json").read_bytes() == (tmp_path / "b" / "origin.json").read_bytes()


def test_each_table_keeps_its_own_origin(tmp_path):
    results.write_table(tmp_path, "one.csv", TABLE, ORIGIN)
    results.write_table(tmp_path, "two.parquet", TABLE, {**ORIGIN, "seeds": [7]})
    assert results.read_origin(tmp_path, "one.csv")["seeds"] == [0, 1]
    two = results.read_origin(tmp_path, "two.parquet")
    assert two["seeds"] == [7] and two["rows"] == 2
    assert two["sha256"] == files.sha256_file(tmp_path / "two.parquet")


def test_an_origin_cannot_claim_another_hash_for_its_table(tmp_path):
    results.write_table(tmp_path, "one.csv", TABLE, {**ORIGIN, "sha256": "0" * 64, "rows": 99})
    assert results.read_origin(tmp_path, "one.csv")["rows"] == 2
    results.read_table(tmp_path, "one.csv")


def test_a_table_without_origin_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one\.csv: a table is written with its origin only"):
        results.write_table(tmp_path, "one.csv", TABLE, {})
    assert list(tmp_path.iterdir()) == []
    TABLE.to_csv(tmp_path / "one.csv")
    with pytest.raises(InputError, match=r"one\.csv: a table without origin; expected .*origin\.json beside it"):
        results.read_table(tmp_path, "one.csv")
    results.write_table(tmp_path, "two.csv", TABLE, ORIGIN)
    with pytest.raises(InputError, match=r"one\.csv: no entry with a SHA-256 in .*origin\.json"):
        results.read_table(tmp_path, "one.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"one.csv": ', r"origin\.json:1:13: not valid JSON"),
        ("[]", r"origin\.json: expected an object with one entry a table"),
        ('{"one.csv": 3}', "no entry with a SHA-256"),
        ('{"one.csv": {"rows": 2}}', "no entry with a SHA-256"),
    ],
)
def test_a_broken_origin_is_refused_naming_the_place(tmp_path, content, message):
    results.write_table(tmp_path, "one.csv", TABLE, ORIGIN)
    (tmp_path / "origin.json").write_text(content)
    with pytest.raises(InputError, match=message):
        results.read_table(tmp_path, "one.csv")


@pytest.mark.parametrize("name", ["one.csv", "one.parquet"])
def test_an_altered_byte_is_refused(tmp_path, name):
    path = results.write_table(tmp_path, name, TABLE, ORIGIN)
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=re.escape(f"{name}: changed since it was written")):
            results.read_table(tmp_path, name)
    path.write_bytes(whole)
    assert len(results.read_table(tmp_path, name)) == 2


def test_a_missing_table_names_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"one\.csv: no such table; run the notebook that writes it first"):
        results.read_table(tmp_path, "one.csv")


def test_systems_csv_with_other_columns_is_refused(tmp_path):
    results.write_table(tmp_path, "systems.csv", systems_table(), ORIGIN)
    before = (tmp_path / "systems.csv").read_bytes()
    swapped = ["system", "track", *results.SYSTEM_COLUMNS[2:]]
    for wrong in (systems_table().drop(columns="seeds"), systems_table().assign(extra=1), systems_table()[swapped]):
        with pytest.raises(InputError, match=r"systems\.csv: columns \[.*\], expected \['track', 'system', "):
            results.write_table(tmp_path, "systems.csv", wrong, ORIGIN)
    assert (tmp_path / "systems.csv").read_bytes() == before
    assert math.isnan(results.read_table(tmp_path, "systems.csv")["p_value"][0])


def test_a_name_that_is_neither_csv_nor_parquet_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"table\.xlsx: expected a name that ends in \.csv or \.parquet"):
        results.write_table(tmp_path, "table.xlsx", TABLE, ORIGIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch, name):
    results.write_table(tmp_path, name, TABLE, ORIGIN)
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patched:
        full_disk(patched)
        with pytest.raises(InputError, match=re.escape(f"{name}: no space left on the disk")):
            results.write_table(tmp_path, name, pd.concat([TABLE] * 5_000), ORIGIN)
    pd.testing.assert_frame_equal(results.read_table(tmp_path, name), TABLE, rtol=1e-7)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_ctrl_c_between_table_and_origin_gives_a_table_that_is_refused_until_it_is_written_again(tmp_path, monkeypatch):
    results.write_table(tmp_path, "one.csv", TABLE, ORIGIN)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results.write_table(tmp_path, "one.csv", TABLE.assign(value=[9, 9]), ORIGIN)
    with pytest.raises(InputError, match="changed since it was written"):
        results.read_table(tmp_path, "one.csv")
    results.write_table(tmp_path, "one.csv", TABLE.assign(value=[9, 9]), ORIGIN)
    assert results.read_table(tmp_path, "one.csv")["value"].tolist() == [9, 9]


def test_notebooks_that_write_side_by_side_lose_no_entry(tmp_path):
    def writer(i: int) -> None:
        for k in range(4):
            results.write_table(tmp_path, f"t{i}-{k}.csv", TABLE, ORIGIN)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((tmp_path / "origin.json").read_text())) == 24
    for i in range(6):
        results.read_table(tmp_path, f"t{i}-3.csv")


def test_an_origin_says_where_a_result_comes_from_and_is_json():
    found = results.origin({"lr": 1e-3}, {"study": "abc"}, [0, 1])
    assert json.loads(json.dumps(found)) == found
    assert found["parameters"] == {"lr": 1e-3} and found["data"] == {"study": "abc"} and found["seeds"] == [0, 1]
    assert {"python", "torch", "numpy", "sentence-transformers"} <= set(found["versions"])
    assert found["versions"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["threads"] >= 1
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}", found["commit"])


def test_outside_a_checkout_the_commit_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMLIB_HOME", str(tmp_path))
    found = results.origin({}, {}, [])
    assert found["commit"] is None and found["uncommitted_changes"] is False
    monkeypatch.setenv("PATH", "")  # no git at all
    assert results.origin({}, {}, [])["commit"] is None
