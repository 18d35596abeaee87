"""Studies: what one line of work trains, validates and tests on, as a folder below data/prepared.

    study.json                what the study is made of, its counts and the SHA-256 of every file that it is read from
    train.jsonl, validation.jsonl                pairs
    known.jsonl               of an in-domain study: further judgements, whose documents are no negatives of their queries
    collections/<name>/       test collections in BEIR's layout, where they are made with the pairs
    encoder.json              the encoder that its texts were given to; their vectors are in data/cache

`prepare` makes one, `Study.encode` encodes it, and every notebook after that opens it with `load`.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from asymlib import evaluate, heads
from asymlib.data import collections, pairs
from asymlib.data.collections import is_arguana, load_beir
from asymlib.data.plans import DATA_VARIABLE, Request, below, data_root, plan_study, portable
from asymlib.encoding.encode import encode_lists, read_vectors
from asymlib.encoding.encoder import SIDES, EncoderConfig
from asymlib.errors import InputError
from asymlib.files import project_path, read_record, safe_name, sha256_file, write_record

KNOWN = "known.jsonl"  # where training judgements make the pairs
AGAIN = "run 01_data_prep for this study again"
FORMAT = 1  # raised whenever the pairs that come out of the same files change


@dataclass(frozen=True)
class Study:
    """An opened study; content_sha256 covers every file it is read from, and where self-matches are dropped.

    track, source: as of plans.Plan and SOURCES. encoder, encoder_key: of its vectors, None where it has text alone.
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
        parts, cache = self._parts(), project_path("data/cache")
        sides, named = [*SIDES] * len(parts), lambda number, row: parts[number // 2].name_of(SIDES[number % 2], row)
        vectors, encoder = encode_lists(self._texts(), sides, config, cache, progress, named)
        config = replace(config, device=None)
        about = {"config": asdict(config), "prompts": encoder.prompts, "keys": encoder.keys, "key": encoder.key}
        write_record(self.folder / "encoder.json", {**about, "dim": vectors[0].shape[1]})
        return self._with_vectors(vectors, config, encoder.key)

    def reading(self) -> list[dict]:
        """A row a part: distinct texts with U+FFFD; of tests what was tolerated, of encoded pairs those left out."""
        rows = []
        for part in self._parts():
            count = sum("\ufffd" in text for text in {*part.queries, *part.documents})
            rows.append({"part": part.name, "texts_with_fffd": count})
            if isinstance(part, collections.Collection):
                rows[-1] |= {"drop_self": part.drop_self, "self_matches": part.self_matches, **part.tolerated}
            elif part.query_vectors is not None:
                rows[-1]["pairs_left_out"] = int((~part.encoded).sum())
        return rows

    def rank(
        self, parameters: heads.Parameters, similarity: str, trained_with: str | None = None,
        only: Container[str] | None = None, **options: int | bool,
    ) -> Iterator[tuple[str, evaluate.Ranking]]:  # fmt: skip
        """Rank every test collection, or those in `only`, after one run's heads; yields (name, ranking).

        parameters: {} is the frozen encoder, which was trained_with None. options: k, allow_other_similarity.
        """
        for name, test in self.tests.items():
            if only is None or name in only:
                queries = heads.project(parameters, "query", test.query_vectors)
                documents = heads.project(parameters, "document", test.document_vectors)
                yield name, evaluate.rank(test.judgements, queries, documents, similarity, trained_with, **options)

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
    return Path(os.path.abspath(project_path("data/prepared", safe_name(name, "study"))))


def prepare(name: str, source: str, **parameters: object) -> Study:
    """Make a study, or open it, text alone, if it is there with the same parameters and files, all of them unaltered.

    parameters: fields of plans.Request. study.json is written last, so that a study is either whole or absent.
    """
    folder, request = prepared(name), Request(**parameters)
    plan = plan_study(source, request)
    identity = {
        "name": name,
        "source": source,
        "track": plan.track,
        "collections": [{"name": test.name, "folder": portable(test),
                         "drop_self": is_arguana(test.name) or test.name in request.drop_self,
                         "strict": request.strict and not is_arguana(test.name)} for test in plan.tests],
        "parameters": {"format": FORMAT, "seed": pairs.SEED, **asdict(request)},
        "sources": plan.versions or {portable(path): sha256_file(path) for path in plan.reads},
    }  # fmt: skip
    stored: dict = {}
    with contextlib.suppress(InputError):
        stored = _described(folder, lambda path: True)
    if not identity.items() <= stored.items():
        split = plan.make()
        for file in ("study.json", "encoder.json", KNOWN):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(folder / "collections", ignore_errors=True)
        for collection, rows in split.collections.items():
            collections.write_beir(folder / "collections" / collection, rows)
        for part, rows in (("train", split.train), ("validation", split.validation)):
            collections.write_lines(folder / f"{part}.jsonl", ({"query": q, "document": d} for q, d in rows))
        if split.known is not None:
            pairs.write_known(folder / KNOWN, split)
        files = {file: sha256_file(path) for file, path in _files(identity, folder).items()}
        lines = [f"{sha256}  {file}\n" for file, sha256 in sorted(files.items())]
        lines += [f"drop_self  {test}\n" for test in sorted({*request.drop_self}) if not is_arguana(test)]
        counts = {"train": len(split.train), "validation": len(split.validation), **split.counts}
        described = {**identity, "pairs_made_of": split.made_of, "counts": counts, "files": files}
        described["content_sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
        write_record(folder / "study.json", described)
    study = load(name, vectors=False)
    for test in study.tests.values():
        test.notice_self_matches()
    return study


def load(name: str, vectors: bool = True) -> Study:
    """Open a study: pairs and test collections with text and, unless vectors is False, with the vectors of encode.

    InputError: a text that was never encoded; a missing or altered file of judgements or inside the study's folder.
    Corpora and queries elsewhere are not hashed again.
    """
    folder = prepared(name)
    described = _described(folder, lambda path: path.is_relative_to(folder) or path.suffix == ".tsv")
    tests = {}
    for entry in described["collections"]:
        tests[entry["name"]] = load_beir(_located(entry, folder), "test", entry["strict"], entry["drop_self"])
    split = [pairs.load_pairs(folder / f"{part}.jsonl") for part in ("train", "validation")]
    split = pairs.with_known(folder / KNOWN, *split) if KNOWN in described["files"] else split
    study = Study(name, described["track"], described["source"], folder, *split, tests, described["content_sha256"])
    if not vectors:
        return study
    about = read_record(folder / "encoder.json", AGAIN)
    try:
        config, keys, dim = EncoderConfig(**about["config"]), about["keys"], about["dim"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'encoder.json'}: not the encoder of a study of this version; {AGAIN}") from error
    found = read_vectors(study._texts(), [*SIDES] * len(study._parts()), keys, project_path("data/cache"), dim)
    return study._with_vectors(found, config, about["key"])


def input_files(source: str, parameters: dict) -> list[str]:
    """The files that `prepare` reads, checked as there; parameters that are not plans.Request's are passed over."""
    asked = Request(**{key: parameters[key] for key in vars(Request()) if key in parameters})
    return sorted(map(str, plan_study(source, asked).files))


def _located(entry: dict, study_folder: Path) -> Path:
    """Where a collection of study.json lies."""
    path = entry["folder"].removeprefix(f"${DATA_VARIABLE}/")
    root = study_folder if path == entry["folder"] else data_root()
    return Path(path) if os.path.isabs(path) else below(root, path, f"study.json: {entry['name']}")


def _files(described: dict, folder: Path) -> dict[str, Path]:
    """Every file that a study is read from, by a name that is the same on every machine."""
    parts = ["train.jsonl", "validation.jsonl", *([KNOWN] if described["track"] == "in-domain" else [])]
    files = {file: folder / file for file in parts}
    for entry in described["collections"]:
        files |= {f"{entry['name']}/{file}": _located(entry, folder) / file for file in collections.FILES}
    return files


def _described(folder: Path, wanted: Callable[[Path], bool]) -> dict:
    """study.json, once the wanted ones of the study's files were compared with their recorded SHA-256."""
    described = read_record(path := folder / "study.json", AGAIN)
    if described.get("parameters", {}).get("format") != FORMAT:
        raise InputError(f"{path}: not a study of this version; {AGAIN}")
    for name, file in _files(described, folder).items():
        if wanted(file):
            collections.check_file(file, f", but it is named in {path}; {AGAIN}")
            if sha256_file(file) != described["files"][name]:
                raise InputError(f"{file}: altered since it was recorded in {path}; {AGAIN}")
    return described
