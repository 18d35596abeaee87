"""Studies: what one line of work trains, validates and tests on, as a folder below data/prepared.

    study.json                what the study is made of, its counts and the SHA-256 of every file that it is read from
    train.jsonl, validation.jsonl                pairs
    collections/<name>/       test collections in BEIR's layout, where they are made with the pairs
    encoder.json              the encoder that its texts were given to; their vectors are in data/cache

`prepare` makes one, `Study.encode` encodes it, and every notebook after that opens it with `load`.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from asymlib import evaluate, heads
from asymlib.data import collections, docstrings, pairs
from asymlib.encoding.encode import encode_lists, read_vectors
from asymlib.encoding.encoder import EncoderConfig
from asymlib.errors import InputError
from asymlib.files import project_path, read_json, safe_name, sha256_file, write_json

# What training may know of the tested collections: nothing | their documents' text | their training judgements
TRACKS = ("zero-shot", "adapted", "in-domain")
SOURCES = ("docstrings", "real", "folder", "target")
DATA_VARIABLE = "ASYMLIB_DATA"
FORMAT = 1  # raised whenever the pairs that come out of the same files change


@dataclass(frozen=True)
class Request:
    """What a study is made of: parameters of notebook 01_data_prep. What they do is said at the pair-makers.

    sources: paths below ASYMLIB_DATA. target: a folder below ASYMLIB_DATA/beir. tests: folders below ASYMLIB_DATA/beir
    (source "real") or from the checkout (source "folder"), as train and validation are. packages: {} is
    docstrings.PACKAGES.
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

    def __post_init__(self):
        for name in ("limit_train", "limit_validation", "limit_per_collection"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Study:
    """An opened study; content_sha256 covers every file it is read from.

    track: one of TRACKS. source: which pair-maker made it, one of SOURCES.
    encoder, encoder_key: how its texts were encoded; None, as all vectors, where only the text was asked for.
    """

    name: str
    track: str
    source: str
    folder: Path
    train: pairs.Pairs
    validation: pairs.Pairs
    tests: dict[str, collections.Collection]
    content_sha256: str
    encoder: EncoderConfig | None = None
    encoder_key: str | None = None

    @property
    def made_with(self) -> dict[str, str | None]:
        """The hashes that results of this study carry."""
        return {"encoder": self.encoder_key, "study": self.content_sha256}

    def encode(self, config: EncoderConfig, progress: bool = True) -> "Study":
        """The study with vectors: every text once, from the cache where it is there. Writes encoder.json."""
        vectors, encoder = encode_lists(self._texts(), config, project_path("data/cache"), progress)
        config = replace(config, device=None)
        about = {"config": asdict(config), "key": encoder.key, "dim": vectors[0].shape[1]}
        write_json(self.folder / "encoder.json", about)
        return self._with_vectors(vectors, config, encoder.key)

    def rank(
        self, parameters: heads.Parameters, similarity: str, trained_with: str | None = None,
        allow_other_similarity: bool = False, k: int = 100, only: Container[str] | None = None,
    ) -> Iterator[tuple[str, evaluate.Ranking]]:  # fmt: skip
        """Rank every test collection, or those in `only`, after one run's heads; yields (name, ranking).

        parameters: {} is the frozen encoder, which was trained_with None. Other arguments as evaluate.rank.
        """
        for name, test in self.tests.items():
            if only is None or name in only:
                queries = heads.project(parameters, "query", test.query_vectors)
                documents = heads.project(parameters, "document", test.document_vectors)
                how = (similarity, trained_with, k, allow_other_similarity)
                yield name, evaluate.rank(test.judgements, queries, documents, *how)

    def _parts(self) -> list[pairs.Pairs | collections.Collection]:
        return [self.train, self.validation, *self.tests.values()]

    def _texts(self) -> list[list[str]]:
        return [texts for part in self._parts() for texts in (part.queries, part.documents)]

    def _with_vectors(self, vectors: list[np.ndarray], config: EncoderConfig, key: str) -> "Study":
        """vectors: an array for each list of _texts, in its order."""
        both = zip(self._parts(), vectors[::2], vectors[1::2], strict=True)
        train, validation, *tests = (replace(part, query_vectors=q, document_vectors=d) for part, q, d in both)
        tests = dict(zip(self.tests, tests, strict=True))
        return replace(self, train=train, validation=validation, tests=tests, encoder=config, encoder_key=key)


def prepared(name: str) -> Path:
    """The folder of a study."""
    return project_path("data/prepared", safe_name(name, "study"))


def prepare(name: str, source: str, **parameters: object) -> Study:
    """Make a study, or open it, text alone, if it is there with the same parameters and files, all of them unaltered.

    source: one of SOURCES. parameters: fields of Request.
    study.json is written last, so that a study is either whole or absent.
    """
    folder, request = prepared(name), Request(**parameters)
    plan = _plan(source, request)
    if missing := [path for path in plan.reads if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; it is needed for training pairs")
    identity = {
        "name": name,
        "source": source,
        "track": plan.track,
        "collections": [{"name": test.name, "folder": _portable(test), "drop_self": collections.is_arguana(test),
                         "strict": not collections.is_arguana(test)} for test in plan.tests],
        "parameters": {"format": FORMAT, "seed": pairs.SEED, **asdict(request)},
        "sources": plan.versions or {_portable(path): sha256_file(path) for path in plan.reads},
    }  # fmt: skip
    stored: dict = {}
    with contextlib.suppress(InputError):
        stored = _described(folder, lambda path: True)
    if not identity.items() <= stored.items():
        split = plan.make()
        for file in ("study.json", "encoder.json"):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(folder / "collections", ignore_errors=True)
        for collection, rows in split.collections.items():
            collections.write_beir(folder / "collections" / collection, rows)
        for part, rows in (("train", split.train), ("validation", split.validation)):
            lines = ({"query": query, "document": document} for query, document in rows)
            collections.write_lines(folder / f"{part}.jsonl", lines)
        files = {file: sha256_file(path) for file, path in _files(identity, folder).items()}
        lines = "".join(f"{files[file]}  {file}\n" for file in sorted(files))
        content_sha256 = hashlib.sha256(lines.encode("utf-8")).hexdigest()
        counts = {"train": len(split.train), "validation": len(split.validation), **split.counts}
        described = {**identity, "pairs_made_of": split.made_of, "counts": counts, "files": files}
        write_json(folder / "study.json", {**described, "content_sha256": content_sha256})
    return load(name, vectors=False)


def load(name: str, vectors: bool = True) -> Study:
    """Open a study: pairs and test collections with text and, unless vectors is False, with the vectors of encode.

    A file inside the study's folder, or a file of judgements, that is missing or altered is an InputError that names
    it. Corpora and queries elsewhere and the encoder's weights are not hashed again: `prepare` and `encode` did, and a
    text that was never encoded is an InputError.
    """
    folder = prepared(name)
    described = _described(folder, lambda path: path.is_relative_to(folder) or path.suffix == ".tsv")
    located = {entry["name"]: _located(entry, folder) for entry in described["collections"]}
    tests = {name: collections.load_beir(path) for name, path in located.items()}
    split = (pairs.load_pairs(folder / f"{part}.jsonl") for part in ("train", "validation"))
    study = Study(name, described["track"], described["source"], folder, *split, tests, described["content_sha256"])
    if not vectors:
        return study
    if not (folder / "encoder.json").is_file():
        raise InputError(f"{folder / 'encoder.json'}: no such file; run 01_data_prep, which writes it, for this study")
    about = read_json(folder / "encoder.json")
    found = read_vectors(study._texts(), about["key"], project_path("data/cache"), about["dim"])
    return study._with_vectors(found, EncoderConfig(**about["config"]), about["key"])


def input_files(source: str, parameters: dict) -> list[str]:
    """The files that `prepare` reads for these parameters; parameters that are not Request's are passed over."""
    known = vars(Request())
    plan = _plan(source, Request(**{key: value for key, value in parameters.items() if key in known}))
    tested = (folder / file for folder in plan.tests if folder.is_absolute() for file in collections.FILES)
    return sorted({str(path) for path in (*plan.reads, *tested)})


@dataclass(frozen=True)
class Plan:
    """How a study is made. make: the pair-maker with its arguments. tests: folders of test collections, relative to the
    study's if they are made with the pairs. reads: the files, or versions: the packages, that pairs are made of."""

    make: Callable[[], pairs.Split]
    tests: list[Path]
    reads: list[Path] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    track: str = TRACKS[0]


def _plan(source: str, asked: Request) -> Plan:
    if source == "docstrings":
        packages = asked.packages or docstrings.PACKAGES
        versions = docstrings.versions(packages)
        limits = (asked.limit_train, asked.limit_validation, asked.limit_per_collection)
        tests = [Path("collections", package) for package in packages["test"]]
        return Plan(partial(docstrings.docstring_pairs, packages, *limits), tests, versions=versions)
    if source == "real":
        sources = {name: data_root() / name for name in asked.sources}
        tests = _test_folders(data_root() / "beir" / test for test in asked.tests)
        make = partial(pairs.pooled, sources, tests, asked.limit_train, asked.limit_validation)
        return Plan(make, tests, [file for path in sources.values() for file in _training_files(path)])
    if source == "folder":
        train = _given_path("train", asked.train)
        validation = _given_path("validation", asked.validation) if asked.validation else None
        tests = _test_folders(map(project_path, asked.tests))
        make = partial(pairs.own, train, validation, tests, asked.limit_validation)
        return Plan(make, tests, _training_files(train) + ([validation] if validation else []))
    if source == "target":
        tests = _test_folders([data_root() / "beir" / asked.target] if asked.target else [])
        make = partial(pairs.of_the_tested, tests[0], asked.labels, asked.limit_train, asked.limit_validation)
        reads = _training_files(tests[0])
        return Plan(make, tests, reads if asked.labels else reads[:1], track=TRACKS[2 if asked.labels else 1])
    raise InputError(f"source: {source!r} is unknown, expected one of {', '.join(SOURCES)}")


def data_root() -> Path:
    """The folder that ASYMLIB_DATA names; InputError where it is not set."""
    if not os.environ.get(DATA_VARIABLE):
        raise InputError(f"{DATA_VARIABLE}: not set; expected the folder that holds beir/<collection>/")
    return Path(os.path.abspath(os.environ[DATA_VARIABLE]))


def _given_path(name: str, given: str) -> Path:
    """The absolute path of pairs that exist: a .jsonl file, or, for training, a folder."""
    path = Path(os.path.abspath(project_path(given)))
    if not given or not (path.is_file() if path.suffix == ".jsonl" else name == "train" and path.is_dir()):
        wanted = "a .jsonl file of pairs" + (" or a folder in BEIR's layout" if name == "train" else "")
        raise InputError(f"{name}: expected {wanted} that exists, found {given!r}")
    return path


def _test_folders(folders: Iterable[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in (Path(os.path.abspath(folder)) for folder in folders):
        if folder.name in found:
            raise InputError(f"tests: {folder} and {found[folder.name]} have the same name; rename one of them")
        found[folder.name] = folder
    if not found:
        raise InputError("no test collection: expected at least one folder in BEIR's layout as tests or target")
    return list(found.values())


def _training_files(path: Path) -> list[Path]:
    """A .jsonl file of pairs itself, or the files of a BEIR folder with a train split."""
    parts = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
    return [path] if path.suffix == ".jsonl" else [path / part for part in parts]


def _portable(path: Path) -> str:
    """A path as study.json keeps it: below ASYMLIB_DATA relative to that, so that it holds on another machine."""
    root = os.path.abspath(os.environ.get(DATA_VARIABLE) or os.devnull)
    return f"${DATA_VARIABLE}/{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else str(path)


def _located(entry: dict, study_folder: Path) -> Path:
    """Where a collection of study.json lies."""
    below = entry["folder"].removeprefix(f"${DATA_VARIABLE}/")
    return (study_folder if below == entry["folder"] else data_root()) / below


def _files(described: dict, folder: Path) -> dict[str, Path]:
    """Every file that a study is read from, by a name that is the same on every machine."""
    files = {file: folder / file for file in ("train.jsonl", "validation.jsonl")}
    for entry in described["collections"]:
        files |= {f"{entry['name']}/{file}": _located(entry, folder) / file for file in collections.FILES}
    return files


def _described(folder: Path, wanted: Callable[[Path], bool]) -> dict:
    """study.json, once the wanted ones of the study's files were compared with their recorded SHA-256."""
    path = folder / "study.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no study.json; run 01_data_prep for this study first")
    described = read_json(path)
    if not isinstance(described, dict) or described.get("parameters", {}).get("format") != FORMAT:
        raise InputError(f"{path}: not a study of this version; run 01_data_prep for it again")
    for name, file in _files(described, folder).items():
        if wanted(file) and (not file.is_file() or sha256_file(file) != described["files"][name]):
            what = "altered since it was recorded in" if file.is_file() else "no such file, but it is named in"
            raise InputError(f"{file}: {what} {path}; run 01_data_prep for this study again")
    return described
