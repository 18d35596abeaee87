"""Docstrings as pairs: what one becomes, and made-up packages whose overlaps are known."""

import sys
from pathlib import Path

import pytest

from asymlib.data.docstrings import GENERATED, docstring_pairs, pair_from_docstring, versions
from asymlib.errors import InputError
from tests.test_collections import prose

LONG = "It walks over all rows and columns of the table, one after another, and adds what it finds to a running total."


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (f"Sum all\nthe rows.\n\n{LONG}", ("Sum all the rows.", LONG)),
        (f"Sum all rows.\n\n{LONG}\n\n>>> total(3)\n3\n\nSee other.", ("Sum all rows.", f"{LONG} See other.")),
        (f"Use :class:`~a.B` with ``x``.\n\nNotes\n-----\n{LONG}", ("Use a.B with x.", f"Notes {LONG}")),
        (f"Sum all rows.\n\nThis will SUM all\nrows. {LONG}", ("Sum all rows.", LONG)),  # the repeating sentence goes
        (f"total(x, y=(1, 2)) -> int\n\nSum all rows.\n\n{LONG}", ("Sum all rows.", LONG)),  # the signature goes
        (f"Sum all \ud83d rows.\n\n{LONG} \ud83d\ude00", ("Sum all \ufffd rows.", f"{LONG} \U0001f600")),  # half, whole
        (f"Sum rows.\n\n{LONG}", None),  # two words
        (f"{'very ' * 40}long.\n\n{LONG}", None),  # 41 words
        (f"1 2 3 4\n\n{LONG}", None),  # no words
        (f"Parameters\n----------\nx : the first value\n\n{LONG}", None),
        (f".. note:: this is old\n\n{LONG}", None),
        (f"mask (Tensor of shape (n,)): hides some values\n\n{LONG}", None),
        ("Sum all the rows.\n\nToo short to be a document.", None),
        (f"Sum all rows. Then stop.\n\n{LONG} Sum all rows. Then stop.", None),  # the query is two of its sentences
    ],
)
def test_what_a_docstring_becomes(doc, expected):
    assert pair_from_docstring(doc) == expected


def install(site: Path, name: str, sources: dict[str, str]) -> None:
    """Lay out a distribution as pip does: its files, METADATA, and RECORD in the given order."""
    for file, source in sources.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(source, encoding="utf-8")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*sources, f"{info.name}/METADATA"]))


def function(name: str, summary: str, rest: str) -> str:
    return f'def {name}():\n    """{summary}\n\n    {rest}\n    """\n\n\n'


CRASH = 'raise RuntimeError("a source was imported")\n'
SHARED = prose(1000)


def made_up_packages(site: Path) -> dict[str, list[str]]:
    """Three packages whose overlaps are known; see the test below."""
    tested = [function(f"t{i}", f"Tested thing number {i}.", prose(i)) for i in range(6)]
    tested.append(function("shared", "Shared thing as tested.", SHARED))
    tested.append(function("one", "Ambiguous thing it is.", prose(20)))
    tested.append(function("two", "Ambiguous thing it is.", prose(21)))
    files = {"a.py": CRASH + "".join(tested[:4]), "b.py": "\ufeff" + CRASH + "".join(tested[4:])}
    files["deep.py"] = f'"""Nested too deeply to be parsed."""\nx = {"-" * 50_000}1'
    files["tests/test_a.py"] = function("hidden", "Hidden in the tests.", prose(30))
    files["generated.py"] = f"# {GENERATED} x\n" + function("g", "Generated from another file.", prose(31))
    files["broken.py"] = 'def broken(:\n    """Never parsed.\n\n    """'
    install(site, "madetest", {f"madetest/{file}": source for file, source in files.items()})
    checked = [function(f"v{i}", f"Checked thing number {i}.", prose(100 + i)) for i in range(4)]
    checked.append(function("asked", "Tested thing number 3.", prose(110)))  # test asks it too
    install(site, "madecheck", {"madecheck.py": CRASH + "".join(checked)})
    trained = [function(f"n{i}", f"Trained thing number {i}.", prose(200 + i)) for i in range(9)]
    trained.append(function("shared", "Shared thing as trained.", SHARED + " Slightly longer."))  # near-equal to a test
    trained.append(function("asked", "Checked thing number 2.", prose(210)))  # validation asks it too
    wrapped = function("wrapped", "Trained thing of a class.", prose(220))
    trained.append(wrapped.replace("def wrapped()", "class Wrapped"))
    install(site, "madetrain", {"madetrain/__init__.py": CRASH + "".join(trained)})
    return {"test": ["madetest"], "validation": ["madecheck"], "train": ["madetrain"]}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    names = made_up_packages(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return names


def test_docstrings_are_split_by_package_and_the_splits_are_kept_apart(tmp_path, packages):
    split = docstring_pairs(packages, 10_000, 500, 1_000)
    assert list(split.collections) == ["madetest"]
    tested = dict(split.collections["madetest"])
    assert sorted(tested) == ["Shared thing as tested.", *(f"Tested thing number {i}." for i in range(6))]
    assert (tested["Tested thing number 5."], tested["Shared thing as tested."]) == (prose(5), SHARED)
    assert sorted(dict(split.validation)) == [f"Checked thing number {i}." for i in range(4)]
    trained = [*(f"Trained thing number {i}." for i in range(9)), "Trained thing of a class."]
    assert sorted(dict(split.train)) == trained
    assert versions(packages) == {"madetest": "1.0", "madecheck": "1.0", "madetrain": "1.0"}
    assert list(split.counts["removed"].values()) == [9 + 5 + 12, 1, 2, 2]  # read, near, ambiguous, asked earlier
    assert not {"madetest", "madecheck", "madetrain"} & set(sys.modules)
    for record in (tmp_path / "site").glob("*/RECORD"):  # the order of files does not matter
        record.write_text("".join(reversed(record.read_text().splitlines(keepends=True))))
    assert docstring_pairs(packages, 10_000, 500, 1_000) == split
    small = docstring_pairs(packages, 4, 2, 3)
    assert (small.train, small.validation) == (split.train[:4], split.validation[:2])
    assert small.collections["madetest"] == split.collections["madetest"][:3]


def test_wrong_packages_are_named(tmp_path, packages):
    with pytest.raises(InputError, match="no-such-package is not installed"):
        versions({**packages, "train": ["no-such-package"]})
    twice = {**packages, "train": packages["test"]}
    for wrong in (twice, {"train": ["madetrain"]}, {**packages, "test": []}, {**packages, "test": None}):
        with pytest.raises(InputError, match="packages: expected names for each of test, validation, train, and none"):
            versions(wrong)
    install(tmp_path / "site", "madeempty", {"madeempty.py": "x = 1\n"})
    for role in packages:
        with pytest.raises(InputError, match="packages: no docstring of madeempty makes a pair"):
            docstring_pairs({**packages, role: ["madeempty"]}, 10, 10, 10)
    install(tmp_path / "site", "madebare", {"madebare.py": "x = 1\n"})
    next((tmp_path / "site").glob("madebare*/RECORD")).unlink()  # no list of its files
    for empty in ("madeempty", "madebare"):
        with pytest.raises(InputError, match=f"packages: no docstring of {empty} makes a pair"):
            docstring_pairs({role: [empty] for role in packages}, 10, 10, 10)
    (tmp_path / "site" / "madetest" / "b.py").unlink()
    with pytest.raises(
        InputError, match=r"package madetest: madetest/b\.py: No such file or directory; install it again"
    ):
        docstring_pairs(packages, 10, 10, 10)
