"""What a study is asked to be, checked before any text is read: names that can be told apart, files that are there."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from asymlib.data import collections, docstrings, pairs
from asymlib.errors import InputError
from asymlib.files import project_path, safe_name

DATA_VARIABLE = "ASYMLIB_DATA"
RESERVED = ("train", "validation", "average")  # what tables call other things than test collections


@dataclass(frozen=True)
class Request:
    """What a study is made of: parameters of notebook 01_data_prep. What they do is said at the pair-makers.

    sources: paths below ASYMLIB_DATA. target: a folder below ASYMLIB_DATA/beir. tests: folders below ASYMLIB_DATA/beir
    (source "real") or from the checkout (source "folder"), as train and validation are. packages: {} is
    docstrings.PACKAGES. strict: as of collections.load_beir, for every BEIR folder that is read.
    drop_self: names of test collections in which a document with the query's own id is no result (besides arguana).
    """

    train: str = ""
    validation: str = ""
    sources: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    target: str = ""
    labels: bool = False
    packages: dict[str, list[str]] = field(default_factory=dict)
    limit_train: int = 10_000
    limit_validation: int = 500
    limit_per_collection: int = 1_000
    strict: bool = True
    drop_self: list[str] = field(default_factory=list)

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.startswith("limit") and value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
            if isinstance(value, list) and (wrong := [one for one in value if not isinstance(one, str)]):
                raise InputError(f"{name}: expected names, found {wrong[0]!r}; quote it")


@dataclass(frozen=True)
class Plan:
    """How a study is made, by a pair-maker. tests: folders, relative to the study's where they are made with the pairs.
    reads: the files, or versions: the packages, that pairs are made of.
    track: what training may know of the tests: nothing, or, adapted, their text, or, in-domain, training judgements."""

    make: Callable[[], pairs.Split]
    tests: list[Path]
    reads: list[Path] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    track: str = "zero-shot"

    @property
    def files(self) -> set[Path]:
        """All files that it reads: of pairs, and of test collections that are there already."""
        return {*self.reads, *(test / file for test in self.tests if test.is_absolute() for file in collections.FILES)}


def plan_study(source: str, asked: Request) -> Plan:
    """The plan of a request that can be followed: names that can be told apart, files that are there."""
    if source not in SOURCES:
        raise InputError(f"source: {source!r} is unknown, expected one of {', '.join(SOURCES)}")
    plan = SOURCES[source](asked, None if asked.strict else False)
    names = [safe_name(folder.name, "tests") for folder in plan.tests]
    if wrong := [name for name in names if name in RESERVED or names.count(name) > 1]:
        raise InputError(f"tests: {wrong[0]}: another collection, or a part of every study, has this name; rename it")
    if not names:
        raise InputError("no test collection: expected at least one folder in BEIR's layout as tests or target")
    if unknown := sorted({*asked.drop_self} - {*names}):
        raise InputError(f"drop_self: {unknown[0]!r} is no test collection of this study; it has {', '.join(names)}")
    for path in sorted(plan.files):
        collections.check_file(path, "; expected a .jsonl file of pairs, or a file of BEIR's layout")
    return plan


def _plan_docstrings(asked: Request, strict: bool | None) -> Plan:
    packages = asked.packages or docstrings.PACKAGES
    versions = docstrings.versions(packages)
    limits = (asked.limit_train, asked.limit_validation, asked.limit_per_collection)
    tests = [Path("collections", package) for package in packages["test"]]
    return Plan(partial(docstrings.docstring_pairs, packages, *limits), tests, versions=versions)


def _plan_real(asked: Request, strict: bool | None) -> Plan:
    sources = {name: below(data_root(), name, "sources") for name in asked.sources}
    if len({*sources.values()}) < len(asked.sources):
        raise InputError(f"sources: one of {', '.join(asked.sources)} stands twice")
    tests = [below(data_root() / "beir", test, "tests") for test in asked.tests]
    make = partial(pairs.pooled, sources, tests, asked.limit_train, asked.limit_validation, strict)
    return Plan(make, tests, [file for path in sources.values() for file in _training_files(path)])


def _plan_folder(asked: Request, strict: bool | None) -> Plan:
    parts = {"train": asked.train, "validation": asked.validation}
    given = {part: Path(os.path.abspath(project_path(path))) for part, path in parts.items() if path}
    if "train" not in given:
        raise InputError("train: expected a .jsonl file of pairs or a folder in BEIR's layout")
    tests = [Path(os.path.abspath(project_path(test))) for test in asked.tests]
    make = partial(pairs.own, given, tests, asked.limit_validation, strict)
    return Plan(make, tests, [file for path in given.values() for file in _training_files(path)])


def _plan_target(asked: Request, strict: bool | None) -> Plan:
    test = below(data_root() / "beir", asked.target, "target")
    make = partial(pairs.of_the_tested, test, asked.labels, asked.limit_train, asked.limit_validation, strict)
    reads = _training_files(test) if asked.labels else [test / "corpus.jsonl"]
    return Plan(make, [test], reads, track="in-domain" if asked.labels else "adapted")


SOURCES = {"docstrings": _plan_docstrings, "real": _plan_real, "folder": _plan_folder, "target": _plan_target}


def data_root() -> Path:
    """The folder that ASYMLIB_DATA names; InputError where it is not set."""
    if not os.environ.get(DATA_VARIABLE):
        raise InputError(f"{DATA_VARIABLE}: not set; expected the folder that holds beir/<collection>/")
    return Path(os.path.abspath(os.environ[DATA_VARIABLE]))


def below(root: Path, name: str, what: str) -> Path:
    """The path of something below a folder; one that leaves the folder is refused."""
    path = Path(os.path.abspath(root / name))
    if root not in path.parents:
        raise InputError(f"{what}: expected a path below {root}, found {name!r}")
    return path


def _training_files(path: Path) -> list[Path]:
    """A .jsonl file of pairs itself, or the files of a BEIR folder with a train split."""
    return [path] if path.suffix == ".jsonl" else [path / file for file in (*collections.FILES[:2], "qrels/train.tsv")]


def portable(path: Path) -> str:
    """A path as study.json keeps it: below ASYMLIB_DATA relative to that, so that it holds on another machine."""
    root = os.path.abspath(os.environ.get(DATA_VARIABLE) or os.devnull)
    return f"${DATA_VARIABLE}/{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else str(path)
