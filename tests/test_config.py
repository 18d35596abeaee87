"""The config file of a family of studies: what is wrong in it is one sentence, and no word in it has two readings."""

import json
import subprocess
import sys

import pytest
import yaml

from asymlib.errors import InputError
from tests.conftest import ROOT
from tests.test_workflow import CONFIG

sys.path.insert(0, str(ROOT / "workflow"))
from config import read_config, read_family


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipez: [a]", "recipez: Extra inputs are not permitted .keys: study, studies, recipes"),
        ("seeds: [one]", "seeds.0: Input should be a valid integer"),
        ("seeds: [0, 0]", "seeds: one stands twice"),
        ("seeds: [-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("seeds: [99999999999999999999999]", "seeds.0: Input should be less than 9223372036854775808"),
        ("study: t", "study: 't' is not one of s"),
        ("study: 7", "study: Input should be a valid string, found 7; quote it"),
        ("recipes: [a, 1e-3]", "recipes.1: Input should be a valid string, found 0.001; quote it"),
        ("apart: [t]", "apart: 't' is not one of s"),
        ("changes: {c: {}}", "changes: 'c' is not one of a, b"),
        ("changes: {a: {name: ../../x}}", "changes: a: 'name' is given by the workflow itself"),
        ("studies: {s: {save_as: x}}", "studies: s: 'save_as' is given by the workflow itself"),
        ("search: {s: {transfer: t}}", "search: 't' is not one of s"),
        ("studies: {s: {}, t: {}}\nsearch: {t: {}}", "search: s, t are compared: give all of them a search, or none"),
        ("studies: {s: {}, ../t: {}}", r"config: .*\.\./t"),
        ("more: {t: [c]}", "more: 't' is not one of s"),
        ("more: {s: [c, a]}", "recipes: one stands twice for s, in recipes or in more"),
        ("more: {s: [../c]}", r"config: .*\.\./c"),
        (
            "studies: {s: {}, t: {}}\nmore: {t: [c]}",
            "more, unfrozen: s, t stand in one track: give all of them the same",
        ),
        (
            "studies: {s: {}, t: {}}\nunfrozen: {t: {}}",
            "more, unfrozen: s, t stand in one track: give all of them the same",
        ),
        ("updates: {s: 0}", "updates.s: Input should be greater than or equal to 1"),
        ("updates: {t: 600}", "updates: 't' is not one of s"),
        ("words: 1", "words: Input should be a valid boolean"),
        ("unfrozen: {s: {study: t}}", "unfrozen: s: 'study' is given by the workflow itself"),
        ("parity: [../../t]", r"config: .*\.\./t"),
    ],
)
def test_a_wrong_config_is_refused_with_a_sentence(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_family(CONFIG | read_config(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("1e-3", 0.001), ("3E5", 3e5), ("1.", 1.0), ("-0.5", -0.5), (".5", 0.5), ("+1", 1), ("0", 0), ("12", 12)),
        *(("'1e-3'", "1e-3"), ('"007"', "007"), ("'no'", "no"), ("'2026-01-01'", "2026-01-01"), ("'1:30'", "1:30")),
        *(("true", True), ("False", False), ("null", None), ("", None), ("1e-3x", "1e-3x"), ("1.2.3", "1.2.3")),
        *(("v1", "v1"), ("nan", "nan"), ("[1, {b: c}]", [1, {"b": "c"}])),
    ],
)
def test_numbers_and_quoted_text_arrive_as_they_are_written(tmp_path, written, value):
    (tmp_path / "c.yaml").write_text(f"a: {{b: {written}}}")
    (found,) = read_config(tmp_path / "c.yaml")["a"].values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "word",
    [
        *("yes", "no", "On", "OFF", "007", "-010", "08", "0o7", "0x1F", "0b11", "1_000", "1:30", "1:30:00.5", "00.5"),
        *(".inf", "-.inf", ".NaN", "1e999", "2026-01-01", "2026-01-01 10:00:00", "2026-01-01T10:00:00Z"),
    ],
)
def test_a_word_with_two_readings_must_be_quoted_wherever_it_stands(tmp_path, word):
    for text in (f"a: 1\nb: {word}", f"a: 1\nb: {{c: [1, {{d: [{word}]}}]}}"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(InputError) as caught:
            read_config(tmp_path / "c.yaml")
        assert f"c.yaml:2: `{word}` has more than one reading in YAML: quote it if it is text, or" in str(caught.value)
        (tmp_path / "c.yaml").write_text(text.replace(word, f'"{word}"'))
        assert word in str(read_config(tmp_path / "c.yaml")["b"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((f"a: {{b: {{{key}: 1}}}}", rf"c\.yaml:1: keys must be text, found `{key}`; quote it")
          for key in ("1", "1e-3", "null", "~", "true", "no", "2026-01-01", "1:30")),
        ("? [a]\n: 1", "keys must be text, found a list or mapping"),
        ("a: 1\nb: 2\na: 3", r"c\.yaml:3: the key `a` stands twice"),
        ("a: {b: 1, 'b': 2}", r"c\.yaml:1: the key `b` stands twice"),
        ("a:\n\tb: 1", r"c\.yaml:2: .*; indent with blanks, not tabs"),
        ("a: " + "[" * 5_000, r"c\.yaml: nested too deeply"),
        ("a: &a [*a]", r"c\.yaml: nested too deeply, or in itself"),
        ("a: [1", r"c\.yaml:1: expected ',' or '\]'"),
        ("", "expected keys"),
        ("- a", "expected keys"),
        ("a: b\0", r"c\.yaml: unacceptable character"),
        ("a: !!set {x}", "config: a: .* is a set; quote it"),
        ("a: !!python/object:os.system x", r"c\.yaml:1: could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused_with_file_and_line(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_config(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_and_merged_mappings_are_not(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file or directory; expected a config file"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="Is a directory"):
        read_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: ü".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 text"):
        read_config(tmp_path / "latin.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}")
    assert read_config(tmp_path / "c.yaml") == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    assert read_config(tmp_path / "c.json") == CONFIG


def test_what_comes_from_elsewhere_is_held_to_the_same():
    for text, words in (
        ("parameters: {x: {y: [2026-01-01]}}", "config: parameters.x.y: 2026-01-01 is a date; quote it"),
        ("changes: {a: {1: 2}}", "config: changes.a: keys must be text, found 1; quote it"),
    ):
        with pytest.raises(InputError, match=words):
            read_family(CONFIG | yaml.safe_load(text))


@pytest.mark.parametrize("name", ["reproduce.yaml", "real.yaml", "public.yaml", "tiny.yaml"])
def test_the_studies_of_the_checkout_are_whole(name):
    config = read_config(ROOT / "workflow" / name)
    family = read_family(config)
    assert family.joined[0] == family.study == name.removesuffix(".yaml")
    assert config == yaml.safe_load((ROOT / "workflow" / name).read_text())
    command = [sys.executable, ROOT / "workflow/config.py", ROOT / "workflow" / name]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
