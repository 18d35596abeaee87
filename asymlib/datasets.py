"""Where text comes from: retrieval collections and (query, document) pairs, and the studies that put them together.

Three sources: the docstrings of the installed packages (no download), folders in BEIR's layout, and JSONL files of
pairs. A *study* is a folder with `study.json`, `train.jsonl`, `validation.jsonl` and its test collections; every
notebook reads its text through `open_study`. `python -m asymlib.datasets fetch ...` downloads what is public.

Conventions that move numbers:
- A document's text is `title + " " + text`, stripped. An empty corpus document stays (published sets have some);
  an empty query or pair is an error.
- A query counts only if the split's judgements hold a grade above 0 for it. Other queries are not evaluated.
- A judgement of a document that the corpus lacks can never be found, but it stays in the judgements and lowers the
  score, as in pytrec_eval. It is an error unless `strict=False`; published ArguAna has five and is read that way.
"""

import argparse
import ast
import gc
import hashlib
import heapq
import json
import os
import re
import shutil
import stat
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np
import requests
from tqdm.auto import tqdm

from asymlib.errors import InputError, run_command
from asymlib.files import read_json, sha256_file, write_json, write_text

DATA_VARIABLE = "ASYMLIB_DATA"
# Nothing of the tested collections | their documents' text | their training judgements
TRACKS = ("zero-shot", "adapted", "in-domain")


# nDCG@10 of frozen encoders on BEIR test sets, from the result files of the MTEB leaderboard (title + " " + text).
PUBLISHED_NDCG = {
    "all-MiniLM-L6-v2": {
        "scifact": 0.64508, "nfcorpus": 0.31594, "arguana": 0.50167, "fiqa": 0.36867, "scidocs": 0.21641, "trec-covid": 0.47232,
    },
    "all-mpnet-base-v2": {
        "scifact": 0.6557, "nfcorpus": 0.33289, "arguana": 0.46521, "fiqa": 0.49963, "scidocs": 0.23765, "trec-covid": 0.51326,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """A retrieval test collection.

    doc_ids, docs: N ids and texts in corpus order. query_ids, queries: M ids and texts in the order of the file.
    qrels: query id -> {document id: grade >= 0}, for exactly the M queries; each has a grade above 0.
    drop_self: a document whose id equals the query's id is not a result (ArguAna's queries are documents).
    """

    name: str
    doc_ids: list[str]
    docs: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    drop_self: bool = False

    def counts(self) -> dict[str, int]:
        """Numbers of documents, empty documents, queries, judgements, and judgements of documents not in the corpus."""
        known = set(self.doc_ids)
        judged = [doc for grades in self.qrels.values() for doc in grades]
        return {
            "documents": len(self.docs),
            "empty_documents": sum(not doc for doc in self.docs),
            "queries": len(self.queries),
            "judgements": len(judged),
            "judgements_of_missing_documents": sum(doc not in known for doc in judged),
        }


@dataclass(frozen=True)
class Pairs:
    """Training or validation pairs: docs[i] is the positive of queries[i]."""

    name: str
    queries: list[str]
    docs: list[str]

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def passage(self) -> np.ndarray:
        """int64 (N,): the number of each row's document text, equal for equal texts, counted by first appearance."""
        return _numbered(self.docs)

    @cached_property
    def query_number(self) -> np.ndarray:
        """int64 (N,): the same for the queries."""
        return _numbered(self.queries)


def _numbered(texts: list[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


@dataclass(frozen=True)
class Study:
    """What one line of work trains, validates and tests on; content_sha256 covers every file it is read from.

    track: what training may know of the tested collections: one of TRACKS.
    """

    name: str
    train: Pairs
    validation: Pairs
    tests: dict[str, Collection]
    content_sha256: str
    folder: Path
    track: str = "zero-shot"


# ---------------------------------------------------------------------------------------------------- reading files


def _json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Give ("path:line", object) for every line that is not blank; anything but a JSON object is an InputError."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    record = json.loads(line.decode("utf-8"))
                except ValueError as error:  # both a JSON and a UTF-8 error
                    raise InputError(f"{where}: not valid JSON ({error})") from error
                if not isinstance(record, dict):
                    raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
                yield where, record
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error


def _text(record: dict, field: str, where: str, default: str | None = None) -> str:
    """The stripped string in a field; a missing field (without a default) or another type is an InputError."""
    value = record.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(f"{where}: field '{field}' must be a string, found {found}")
    return value.strip()


def _read_texts(path: Path, is_corpus: bool) -> dict[str, str]:
    """id -> text of a BEIR corpus.jsonl (title joined, empty texts kept) or queries.jsonl (empty texts refused)."""
    texts: dict[str, str] = {}
    for where, record in _json_lines(path):
        key = _text(record, "_id", where)
        text = _text(record, "text", where)
        if is_corpus:
            text = f"{_text(record, 'title', where, default='')} {text}".strip()
        elif not text:
            raise InputError(f"{where}: the text of query '{key}' is empty")
        if not key:
            raise InputError(f"{where}: field '_id' is empty")
        if key in texts:
            raise InputError(f"{where}: id '{key}' occurs a second time; ids must be unique")
        texts[key] = text
    if not texts:
        raise InputError(f"{path}: holds no {'documents' if is_corpus else 'queries'}")
    return texts


def _read_qrels(path: Path, queries: dict, docs: dict, strict: bool) -> dict[str, dict[str, int]]:
    """query id -> {document id: grade} of a tab-separated file with the header query-id, corpus-id, score."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        splits = sorted(file.stem for file in path.parent.glob("*.tsv"))
        raise InputError(f"{path}: no such file; splits here: {', '.join(splits) or 'none'}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        where = f"{path}:{number}"
        if (number == 1 and columns[:2] == ["query-id", "corpus-id"]) or not line.strip():
            continue
        if len(columns) != 3 or not re.fullmatch(r"-?\d+", columns[2].strip()):
            raise InputError(
                f"{where}: expected query-id <tab> corpus-id <tab> whole-number grade, found {line[:80]!r}"
            )
        query, doc, grade = columns[0], columns[1], int(columns[2])
        if query not in queries:
            if strict:
                raise InputError(f"{where}: query '{query}' is not in queries.jsonl (strict=False skips such lines)")
            continue
        if doc not in docs and strict:
            raise InputError(
                f"{where}: document '{doc}' is not in corpus.jsonl "
                "(strict=False keeps it as a judgement that nothing can find, as pytrec_eval does)"
            )
        if qrels.setdefault(query, {}).setdefault(doc, grade) != grade:
            raise InputError(f"{where}: query '{query}' and document '{doc}' were judged before with another grade")
    without = [query for query, grades in qrels.items() if max(grades.values()) <= 0]
    if without and strict:
        raise InputError(
            f"{path}: query '{without[0]}' has no relevant document, only grades <= 0 ({len(without)} such queries; "
            "strict=False leaves them out of the evaluation)"
        )
    qrels = {query: {doc: max(grade, 0) for doc, grade in grades.items()} for query, grades in qrels.items()}
    qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
    if not qrels:
        raise InputError(f"{path}: holds no query with a relevant document")
    return qrels


def load_beir(
    folder: str | Path,
    split: str = "test",
    name: str | None = None,
    drop_self: bool | None = None,
    strict: bool | None = None,
) -> Collection:
    """Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

    split: which judgements. name: the folder's name if None.
    drop_self: see Collection; None means "only for a folder named arguana".
    strict: judgements of unknown queries or documents, and queries judged only with grades <= 0, are errors. With
        False the first are skipped, the second kept (nothing can find them, so they lower scores as in pytrec_eval),
        the third not evaluated. None means True but for a folder named arguana, whose published form has five
        judgements of missing documents. Repeated ids, empty queries and contradicting judgements are always errors.
    Grades below 0 become 0.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; expected one with corpus.jsonl, queries.jsonl and qrels/{split}.tsv"
        )
    is_arguana = folder.name.casefold() == "arguana"
    docs = _read_texts(folder / "corpus.jsonl", is_corpus=True)
    queries = _read_texts(folder / "queries.jsonl", is_corpus=False)
    strict = not is_arguana if strict is None else strict
    qrels = _read_qrels(folder / "qrels" / f"{split}.tsv", queries, docs, strict)
    used = [query for query in queries if query in qrels]
    return Collection(
        name=name or folder.name,
        doc_ids=list(docs),
        docs=list(docs.values()),
        query_ids=used,
        queries=[queries[query] for query in used],
        qrels={query: qrels[query] for query in used},
        drop_self=is_arguana if drop_self is None else drop_self,
    )


def load_pairs(path: str | Path, name: str | None = None) -> Pairs:
    """Read pairs from JSONL: an object a line with `query` and `document` (or `positive`), both not empty."""
    path = Path(path)
    queries, docs = [], []
    for where, record in _json_lines(path):
        fields = [field for field in ("document", "positive") if field in record]
        if len(fields) != 1:
            raise InputError(
                f"{where}: expected the fields 'query' and 'document' (or 'positive'), found {sorted(record)}"
            )
        query, doc = _text(record, "query", where), _text(record, fields[0], where)
        if not query or not doc:
            raise InputError(f"{where}: the {'query' if not query else fields[0]} is empty")
        queries.append(query)
        docs.append(doc)
    if not queries:
        raise InputError(f"{path}: holds no pairs")
    return Pairs(name or path.stem, queries, docs)


def beir_pairs(folder: str | Path, split: str = "train", limit: int | None = None, seed: int = 0) -> Pairs:
    """The relevant (query, document) pairs of a BEIR folder, at most `limit`, over as many documents as can be.

    The pairs are shuffled by `seed`; first comes one query for each distinct document text, then the others, each
    part in shuffled order. So a smaller limit is a prefix of a larger one. Empty documents give no pair.
    """
    collection = load_beir(folder, split)
    text = dict(zip(collection.doc_ids, collection.docs, strict=True))
    rows = [
        (query, text[doc])
        for key, query in zip(collection.query_ids, collection.queries, strict=True)
        for doc, grade in collection.qrels[key].items()
        if grade > 0 and text.get(doc)
    ]
    rows = _one_query_a_passage_first(rows, seed)[:limit]
    return Pairs(collection.name, [query for query, _ in rows], [doc for _, doc in rows])


def _one_query_a_passage_first(rows: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    order = np.random.default_rng(seed).permutation(len(rows))
    seen: set[str] = set()
    first, others = [], []
    for i in order:
        (others if rows[i][1] in seen else first).append(rows[i])
        seen.add(rows[i][1])
    return first + others


# ----------------------------------------------------------------------------------------------- studies on the disk


def _collection_folder(entry: dict, study_folder: Path) -> Path:
    """Where a collection of study.json lies: below ASYMLIB_DATA if it says so, else relative to study.json."""
    if entry.get("root") != DATA_VARIABLE:
        return study_folder / entry["folder"]
    if not os.environ.get(DATA_VARIABLE):
        raise InputError(
            f"{study_folder / 'study.json'}: collection '{entry['name']}' lies below {DATA_VARIABLE}; set it"
        )
    return Path(os.environ[DATA_VARIABLE]) / entry["folder"]


def _study_files(study: dict, folder: Path) -> dict[str, Path]:
    """Every file that a study is read from, by a name that is the same on every machine."""
    files = {study[part]: folder / study[part] for part in ("train", "validation")}
    for entry in study["collections"]:
        for file in ("corpus.jsonl", "queries.jsonl", f"qrels/{entry['split']}.tsv"):
            files[f"{entry['name']}/{file}"] = _collection_folder(entry, folder) / file
    return files


def _content_sha256(hashes: dict[str, str]) -> str:
    """One hash over the names and hashes of all files, whatever their order."""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _read_study(folder: Path) -> dict:
    """study.json after a check that every file it names still has its recorded SHA-256."""
    path = folder / "study.json"
    study = read_json(path)
    needed = {"name", "collections", "train", "validation", "content_sha256", "files"}
    if not isinstance(study, dict) or not needed <= study.keys():
        raise InputError(f"{path}: not a study; expected an object with the keys {', '.join(sorted(needed))}")
    found = {}
    for name, file in _study_files(study, folder).items():
        if not file.is_file():
            raise InputError(f"{file}: no such file, but {path} names it; build the study again")
        found[name] = sha256_file(file)
        if found[name] != study["files"].get(name):
            raise InputError(f"{file}: altered since {path} was written (its SHA-256 differs); build the study again")
    if _content_sha256(found) != study["content_sha256"]:
        raise InputError(f"{path}: content_sha256 does not belong to the files; build the study again")
    return study


def _write_study(folder: Path, study: dict, train: list[tuple[str, str]], validation: list[tuple[str, str]]) -> None:
    """Write the pairs, then study.json as the last file, so that a study is either whole or absent."""
    for part, rows in (("train", train), ("validation", validation)):
        write_text(folder / f"{part}.jsonl", _lines({"query": query, "document": doc} for query, doc in rows))
    study = {**study, "train": "train.jsonl", "validation": "validation.jsonl"}
    files = {name: sha256_file(file) for name, file in _study_files(study, folder).items()}
    write_json(folder / "study.json", {**study, "files": files, "content_sha256": _content_sha256(files)})


def _lines(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


STUDY_SOURCES = (
    "docstrings",
    "real",
    "folder",
    "target",
)  # the key "source" of study.json: which function built the study


def study_source(folder: str | Path) -> str:
    """Which function built a study: "docstrings" (docstring_study), "real" (real_study), "folder" or "target".

    A study.json without that key, written before it existed, is an InputError; building the study again adds it.
    """
    path = Path(folder) / "study.json"
    study = read_json(path)
    source = study.get("source") if isinstance(study, dict) else None
    if source not in STUDY_SOURCES:
        raise InputError(
            f"{path}: field 'source' must be one of {', '.join(STUDY_SOURCES)}, found {source!r}; build the study again"
        )
    return source


def open_study(folder: str | Path) -> Study:
    """Read a study; a file that is missing or altered since study.json was written is an InputError that names it."""
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise InputError(f"{folder}: holds no study.json; build it with docstring_study or another ..._study first")
    study = _read_study(folder)
    track = study.get("track", "zero-shot")
    if track not in TRACKS:
        raise InputError(f"{folder / 'study.json'}: field 'track' is {track!r}, expected one of {', '.join(TRACKS)}")
    tests = {
        entry["name"]: load_beir(
            _collection_folder(entry, folder),
            entry["split"],
            entry["name"],
            entry.get("drop_self"),
            entry.get("strict"),
        )
        for entry in study["collections"]
    }
    return Study(
        name=study["name"],
        train=load_pairs(folder / study["train"]),
        validation=load_pairs(folder / study["validation"]),
        tests=tests,
        content_sha256=study["content_sha256"],
        folder=folder,
        track=track,
    )


# ------------------------------------------------------------------------------------------- the docstring collection

# By role, as distribution names. Whole packages are held out, so a test collection shares no code base with training.
DOCSTRING_PACKAGES = {
    # five widely read packages, each with enough docstrings to be a collection of its own
    "test": ["numpy", "pandas", "scikit-learn", "matplotlib", "networkx"],
    # the same kind of text as the test packages, so the best epoch is chosen for what is tested
    "validation": ["scipy"],
    # the large ones first; the small ones add other vocabularies (fonts, hubs, notebooks, plots)
    "train": [
        "torch",
        "transformers",
        "sympy",
        "huggingface_hub",
        "datasets",
        "sentence-transformers",
        "seaborn",
        "fonttools",
        "jedi",
    ],
}
NEAR_DUPLICATE = 0.7  # Jaccard index of two documents' sets of three-word shingles, at and above which they are one
# tests, what other projects wrote, and torch's and transformers' own test machinery
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "_internal",
    "externals",
    "extern",
    "_external",
    "_vendor",
    "vendored",
    "third_party",
}
GENERATED = "This file was automatically generated from"  # transformers' copies of its modular files: duplicates
RECIPE = 3  # raised whenever the text that comes out of the same packages changes


def _docstrings(source: str) -> Iterator[str]:
    """Cleaned docstrings of the module, classes and functions of a source, in source order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's invalid escapes
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            nodes: list[ast.AST] = [ast.parse(source)]
        except (SyntaxError, ValueError):  # templates and files for another Python
            return
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                yield doc
        for block in ("finalbody", "orelse", "handlers", "body"):  # statements only: no docstring hides in expressions
            nodes.extend(reversed(getattr(node, block, None) or []))


_RULE = re.compile(r"[\s=\-~^*#\"'`_.+]*")  # an underline or table border
# numpy and torch write one above the summary
_SIGNATURE = re.compile(r"[\w.]+\([^()]*(\([^()]*\)[^()]*)*\)(\s*->.*)?", re.S)
_NO_SUMMARY = re.compile(  # a section's name, a directive, code, or a parameter block such as "x (Tensor): ..."
    r"(parameters|args|arguments|returns?|yields|raises|examples?|notes?|attributes)\s*:?\s*(\n|$)"
    r"|\.\. |[#{\[>]|\*{0,2}\w+ \([^()]*(\([^()]*\)[^()]*)*\)\s*:",
    re.I,
)
_ROLE = re.compile(r":[A-Za-z][\w:+-]*:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`")  # :class:`~torch.Tensor` -> torch.Tensor
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")


def _prose(text: str) -> str:
    """One line of plain text: doctests with their output, underlines, table borders and role markup taken out.

    Doctests go because they are code and printed numbers, not language that a query could ask for.
    """
    kept, in_doctest = [], False
    for line in text.encode("utf-8", "ignore").decode().splitlines():  # lone surrogates cannot be stored
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest and not _RULE.fullmatch(line):
            kept.append(line)
    return " ".join(_ROLE.sub(r"\1", " ".join(kept)).replace("`", "").split())


def _pair_from_docstring(doc: str) -> tuple[str, str] | None:
    """(summary, rest) or None if the docstring makes no sensible pair: see docstring_study for the rules."""
    summary, _, rest = doc.strip().partition("\n\n")
    if _SIGNATURE.fullmatch(summary.strip()):
        summary, _, rest = rest.strip().partition("\n\n")
    query, document = _prose(summary), _prose(rest)
    words = query.split()
    if not 3 <= len(words) <= 40 or sum(word[:1].isalpha() for word in words) < 3 or _NO_SUMMARY.match(summary):
        return None
    essence = query.casefold().rstrip(".:!? ")
    if essence in document.casefold():
        document = " ".join(part for part in _SENTENCE_END.split(document) if essence not in part.casefold())
    if essence in document.casefold() or len(document.split()) < 20:
        return None
    return query, document


def _installed(distribution: str) -> metadata.Distribution:
    try:
        return metadata.distribution(distribution)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"package {distribution} is not installed; pip install -r requirements.txt brings it"
        ) from error


def _package_pairs(distribution: str, progress: bool) -> list[tuple[str, str]]:
    """The distinct pairs of an installed distribution in content-hash order; nothing is imported."""
    installed = _installed(distribution)
    files = [
        file
        for file in installed.files or []
        if file.suffix == ".py" and ".." not in file.parts and not SKIPPED_FOLDERS & set(file.parts)
    ]
    pairs = set()
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are millions of short-lived objects without cycles: half of the time goes otherwise
    try:
        for file in tqdm(files, desc=f"read {distribution}", unit="file", disable=not progress, leave=False):
            try:
                source = Path(installed.locate_file(file)).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            except FileNotFoundError as error:
                raise InputError(f"package {distribution} lacks its file {file}; install it again") from error
            if ('"""' in source or "'''" in source) and GENERATED not in source[:2000]:
                pairs.update(pair for doc in _docstrings(source) if (pair := _pair_from_docstring(doc)))
    finally:
        if collecting:
            gc.enable()
    return sorted(pairs, key=_pair_hash)


def _pair_hash(pair: tuple[str, str]) -> str:
    return hashlib.sha256("\0".join(pair).encode()).hexdigest()


def _near_duplicates(docs: list[str], progress: bool = False) -> np.ndarray:
    """bool (N,): True where an earlier document that is itself kept has a Jaccard index >= NEAR_DUPLICATE.

    The sets are hashed three-word shingles of the casefolded words: |A and B| comes from a sparse product of the
    0/1 matrix with itself, |A or B| = |A| + |B| - |A and B|.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # seconds to import, and only this function needs it

    vectorizer = HashingVectorizer(
        n_features=2**24,
        ngram_range=(3, 3),
        binary=True,
        norm=None,
        alternate_sign=False,
        token_pattern=r"\w+",
        dtype=np.float32,
    )
    shingles = vectorizer.transform(docs).tocsr()
    sizes = np.diff(shingles.indptr)
    dropped = np.zeros(len(docs), dtype=bool)
    columns = shingles.T.tocsr()
    step = 500
    for start in tqdm(range(0, len(docs), step), desc="near duplicates", disable=not progress, leave=False):
        common = (shingles[start : start + step] @ columns).tocoo()
        row, col, both = common.row + start, common.col, common.data
        near = (col < row) & (both >= NEAR_DUPLICATE * (sizes[row] + sizes[col] - both))
        for later, earlier in sorted(zip(row[near].tolist(), col[near].tolist(), strict=True)):
            dropped[later] |= not dropped[earlier]
    return dropped


def _same_words(text: str) -> str:
    """A text's words and numbers, casefolded, one space between them: what counts as the same query."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _clean_roles(
    by_package: dict[str, list[tuple[str, str]]], role_of: dict[str, str], progress: bool
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, int]]:
    """Drop duplicates within and between the packages, earlier packages first; return what is left and what went.

    by_package is ordered test, validation, training, so whatever occurs twice stays where it is tested.
    """
    rows = [(package, *pair) for package, pairs in by_package.items() for pair in pairs]
    removed = Counter(pairs_read=len(rows))
    near = _near_duplicates([doc for _, _, doc in rows], progress)
    removed["near_duplicate_documents"] = int(near.sum())
    rows = [row for row, drop in zip(rows, near, strict=True) if not drop]

    # A test collection is its own pool of queries; all training packages share one.
    pool = {package: package if role == "test" else role for package, role in role_of.items()}
    asked = Counter((pool[package], _same_words(query)) for package, query, _ in rows)
    elsewhere: dict[str, set[str]] = defaultdict(set)
    for package, query, _ in rows:
        elsewhere[role_of[package]].add(_same_words(query))
    before = {"test": set(), "validation": elsewhere["test"], "train": elsewhere["test"] | elsewhere["validation"]}
    left: dict[str, list[tuple[str, str]]] = {package: [] for package in by_package}
    for package, query, doc in rows:
        if asked[pool[package], _same_words(query)] > 1:
            removed["ambiguous_queries"] += 1
        elif _same_words(query) in before[role_of[package]]:
            removed["queries_of_an_earlier_split"] += 1
        else:
            left[package].append((query, doc))
    return left, dict(removed)


def _write_beir(folder: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs as a BEIR folder with one relevant document a query; ids are ranks in the given order."""
    numbered = [(f"{i:05d}", query, doc) for i, (query, doc) in enumerate(pairs)]
    write_text(folder / "corpus.jsonl", _lines({"_id": f"d{i}", "title": "", "text": doc} for i, _, doc in numbered))
    write_text(folder / "queries.jsonl", _lines({"_id": f"q{i}", "text": query} for i, query, _ in numbered))
    judgements = "".join(f"q{i}\td{i}\t1\n" for i, _, _ in numbered)
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + judgements)


def _stored(folder: Path, expected: dict) -> bool:
    """True if the folder holds a study whose study.json says all that is expected, with all its files unaltered."""
    try:
        study = _read_study(folder)
    except InputError:
        return False
    return all(study.get(key) == value for key, value in expected.items())


def docstring_study(
    out_folder: str | Path,
    limit_train: int = 10_000,
    limit_validation: int = 500,
    limit_per_collection: int = 1_000,
    packages: dict[str, list[str]] | None = None,
    progress: bool = True,
) -> Study:
    """Build the study that needs no download, from the docstrings of installed packages, or open it if it is there.

    A docstring's first paragraph (after a bare signature) is the query, the rest the document. Sources are parsed,
    never imported; test and vendored folders and generated copies are left out. Query: 3 to 40 words, at least 3 of
    them starting with a letter. Document: at least 20 words, once doctests, underlines, markup and the sentences that
    repeat the query are taken out. Then, with test packages before validation before training:
    - of equal or near-equal documents (Jaccard index of three-word shingles >= NEAR_DUPLICATE) the first stays;
    - a query that two different documents of a pool answer goes with all its documents: it is ambiguous;
    - a training query that validation or test asks too, or a validation query that test asks, goes.
    Of what is left, the pairs with the smallest content hashes are taken, so neither the order of files nor a seed
    matters: the same package versions give the same files everywhere.

    limit_train, limit_validation: pairs in all. limit_per_collection: pairs, thus documents, of each test package.
    packages: distribution names by role, as DOCSTRING_PACKAGES.
    An existing study of the same parameters and versions is opened if its files are unaltered, and rebuilt otherwise.
    """
    out_folder = Path(out_folder)
    packages = {role: list(names) for role, names in (packages or DOCSTRING_PACKAGES).items()}
    limits = {"train": limit_train, "validation": limit_validation, "test": limit_per_collection}
    for role, limit in limits.items():
        if not isinstance(limit, int) or limit < 1:
            raise InputError(f"the limit of {role} pairs must be a whole number >= 1, found {limit!r}")
    if set(packages) != set(limits) or not all(packages.values()):
        raise InputError(f"packages: expected at least one name for each of test, validation, train; found {packages}")
    role_of = {package: role for role in ("test", "validation", "train") for package in packages[role]}
    if len(role_of) != sum(map(len, packages.values())):
        raise InputError("packages: one occurs twice; a package is tested on or trained on, never both")

    sources = {package: _installed(package).version.partition("+")[0] for package in role_of}
    parameters = {"recipe": RECIPE, "near_duplicate": NEAR_DUPLICATE, "limits": limits, "packages": packages}
    identity = {"source": "docstrings", "parameters": parameters, "sources": sources}
    if _stored(out_folder, identity):
        return open_study(out_folder)

    read = {package: _package_pairs(package, progress) for package in role_of}
    pairs, removed = _clean_roles(read, role_of, progress)
    for package in packages["test"]:
        if not pairs[package]:
            raise InputError(f"package {package}: no docstring of it makes a pair, so it cannot be a test collection")
    split = {
        role: sorted((pair for package in packages[role] for pair in pairs[package]), key=_pair_hash)[: limits[role]]
        for role in ("train", "validation")
    }
    for role, rows in split.items():
        if not rows:
            raise InputError(f"packages {', '.join(packages[role])}: no docstring of them makes a {role} pair")

    (out_folder / "study.json").unlink(missing_ok=True)
    shutil.rmtree(out_folder / "collections", ignore_errors=True)
    tested = {package: pairs[package][:limit_per_collection] for package in packages["test"]}
    for package, rows in tested.items():
        _write_beir(out_folder / "collections" / package, rows)
    study = {
        "name": out_folder.resolve().name,
        "collections": [
            {"name": package, "folder": f"collections/{package}", "split": "test", "drop_self": False}
            for package in tested
        ],
        **identity,
        "counts": {
            "train": len(split["train"]),
            "validation": len(split["validation"]),
            "test": {package: len(rows) for package, rows in tested.items()},
            "available": {package: len(rows) for package, rows in pairs.items()},
            "removed": removed,
        },
    }
    _write_study(out_folder, study, split["train"], split["validation"])
    return open_study(out_folder)


# ------------------------------------------------------------------------------------------------- real data, leakage

REAL_TESTS = ("scifact", "nfcorpus", "arguana", "msmarco_dl_pool", "vaswani_npl")
REAL_SOURCES = ("beir/squad_train", "pairs/nq_qed.jsonl")
REAL_RECIPE = 1  # raised whenever the pairs that come out of the same files change
REAL_PAIRS = {"smoke": 10_000, "full": 87_599}  # the case's small run; as many as SQuAD's training questions


def _ends(text: str) -> set[str]:
    """The first and the last 120 letters and digits, casefolded: two texts that share one are taken as the same.

    Both ends, because one copy of a passage may carry a title before it or be cut short after it.
    """
    plain = re.sub(r"[\W_]+", "", text.casefold())
    return {f"first {plain[:120]}", f"last {plain[-120:]}"} if plain else set()


def overlap(train: Pairs, collection: Collection) -> dict[str, int | float]:
    """How much of a test collection occurs in the training text, as queries or as documents.

    Two texts are the same if their first or their last 120 letters and digits are, casefolded.
    Returns the numbers of queries and documents, how many of each occur in training, and these as shares in [0, 1].
    """
    seen = set().union(*map(_ends, train.queries), *map(_ends, train.docs))
    report: dict[str, int | float] = {}
    for kind, texts in (("queries", collection.queries), ("documents", collection.docs)):
        found = sum(not seen.isdisjoint(_ends(text)) for text in texts)
        report |= {kind: len(texts), f"{kind}_in_training": found, f"{kind}_share": found / len(texts)}
    return report


def _tested_ends(folders: Iterable[Path]) -> set[str]:
    """The ends of all queries and documents of the test splits of BEIR folders."""
    tested: set[str] = set()
    for folder in folders:
        collection = load_beir(folder)
        tested.update(*map(_ends, collection.queries), *map(_ends, collection.docs))
    return tested


def _without(
    seen: set[str], rows: list[tuple[str, str]], ends: Callable[[str], set[str]] = _ends
) -> list[tuple[str, str]]:
    """The pairs of which neither the query nor the document has an end that was seen. ends: _ends, or a cache of it."""
    return [(query, doc) for query, doc in rows if seen.isdisjoint(ends(query)) and seen.isdisjoint(ends(doc))]


def _collection_entry(name: str, below_root: str | None, folder: Path) -> dict:
    """A test collection in study.json, by its path below ASYMLIB_DATA if it has one, else by its absolute path."""
    entry = {"name": name, "folder": below_root or str(folder.resolve()), "split": "test"}
    return entry | {"drop_self": name.casefold() == "arguana"} | ({"root": DATA_VARIABLE} if below_root else {})


def real_study(
    out_folder: str | Path,
    data_folder: str | Path,
    pairs: str = "smoke",
    seed: int = 0,
    limit_validation: int = 1_000,
    sources: tuple[str, ...] = REAL_SOURCES,
    tests: tuple[str, ...] = REAL_TESTS,
) -> Study:
    """Build the study on published collections, or open it if it is there: train on some, test on others.

    data_folder: holds `beir/<name>/` and `pairs/*.jsonl`. If it is what ASYMLIB_DATA points to, study.json says so
        instead of its path, and the study can be read on another machine.
    pairs: "smoke" (10,000) or "full" (87,599) training pairs.
    sources: BEIR folders with train judgements or JSONL files, relative to data_folder. Each gives the same number
        of pairs as long as it has them, the larger ones the rest: smoke is half SQuAD and half Natural Questions, full
        is all of Natural Questions and SQuAD for the rest. Within a source one query of each distinct passage comes
        first, in an order drawn by `seed`, then the others; a smaller study is a part of a larger one.
    limit_validation: pairs of as many passages, the same number from each source, equal for smoke and full. No
        passage or query of theirs is in training.
    tests: names of the test collections below `beir/`. A pair whose query or passage occurs in one of them is left
        out of training and validation, and counted in study.json as removed.
    "Occurs" and "same" mean: the first or the last 120 letters and digits are equal, casefolded.
    """
    out_folder, data_folder = Path(out_folder), Path(data_folder)
    if pairs not in REAL_PAIRS:
        raise InputError(f"pairs: expected one of {', '.join(REAL_PAIRS)}, found {pairs!r}")
    if limit_validation < len(sources):
        raise InputError(f"limit_validation: expected at least one pair for each of {len(sources)} sources")
    root = os.environ.get(DATA_VARIABLE)
    is_root = bool(root) and Path(root).resolve() == data_folder.resolve()
    folders = {name: data_folder / "beir" / name for name in tests}
    collections = [
        _collection_entry(name, f"beir/{name}" if is_root else None, folder) for name, folder in folders.items()
    ]
    parameters = {
        "recipe": REAL_RECIPE,
        "pairs": pairs,
        "seed": seed,
        "limit_validation": limit_validation,
        "sources": list(sources),
    }
    origin = {source: _source_sha256(data_folder / source) for source in sources}
    identity = {"source": "real", "collections": collections, "parameters": parameters, "sources": origin}
    if _stored(out_folder, identity):
        return open_study(out_folder)

    read = {source: _source_pairs(data_folder / source, seed) for source in sources}
    ends = cache(_ends)  # every text is looked at several times
    tested = _tested_ends(folders.values())
    clean = {source: _without(tested, rows, ends) for source, rows in read.items()}
    validation: list[tuple[str, str]] = []
    held: set[str] = set()
    for source, rows in clean.items():
        wanted = len(validation) + limit_validation // len(sources)
        for pair in rows:
            if len(validation) < wanted and _without(held, [pair], ends):
                validation.append(pair)
                held.update(*map(ends, pair))
        if len(validation) < wanted:
            raise InputError(
                f"{data_folder / source}: too few distinct passages for {limit_validation} validation pairs"
            )
    left = {source: _without(held, rows, ends) for source, rows in clean.items()}
    size = REAL_PAIRS[pairs]
    available = sum(map(len, left.values()))
    if available < size:
        raise InputError(f"{data_folder}: only {available} training pairs, {pairs} needs {size}")
    taken: dict[str, list[tuple[str, str]]] = {}
    for i, source in enumerate(sorted(left, key=lambda source: len(left[source]))):  # the smallest first
        taken[source] = left[source][: (size - sum(map(len, taken.values()))) // (len(left) - i)]
    (out_folder / "study.json").unlink(missing_ok=True)
    study = {
        "name": out_folder.resolve().name,
        **identity,
        "counts": {
            "train": {source: len(taken[source]) for source in sources},
            "validation": len(validation),
            "removed": {
                "overlap_with_tests": {source: len(read[source]) - len(clean[source]) for source in sources},
                "overlap_with_validation": {source: len(clean[source]) - len(left[source]) for source in sources},
            },
        },
    }
    _write_study(out_folder, study, [pair for source in sources for pair in taken[source]], validation)
    return open_study(out_folder)


def _source_pairs(path: Path, seed: int) -> list[tuple[str, str]]:
    """The pairs of a BEIR folder's train split or of a JSONL file, one query of each passage first."""
    pairs = load_pairs(path) if path.suffix == ".jsonl" else beir_pairs(path, "train", seed=seed)
    rows = list(zip(pairs.queries, pairs.docs, strict=True))
    return _one_query_a_passage_first(rows, seed) if path.suffix == ".jsonl" else rows


def _source_sha256(path: Path) -> str:
    files = ("",) if path.suffix == ".jsonl" else ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
    missing = [path / file for file in files if not (path / file).is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file; it is needed for training pairs")
    return _content_sha256({file: sha256_file(path / file) for file in files})


# ------------------------------------------------------------------------------------------------- data of one's own

FOLDER_RECIPE = 1  # raised whenever the pairs that come out of the same files change
FOLDER_MIN_PAIRS = 64  # of training and of validation: with fewer, one batch is the whole set


def folder_study(
    out_folder: str | Path,
    train: str | Path,
    tests: list[str | Path],
    validation: str | Path = "",
    limit_validation: int = 500,
    seed: int = 0,
) -> Study:
    """Build a study on data of one's own, or open it if it is there.

    train: a .jsonl file of pairs (see load_pairs), or a folder in BEIR's layout with qrels/train.tsv. One query of
        each distinct passage comes first, in an order drawn by `seed`, then the others.
    tests: at least one folder in BEIR's layout with qrels/test.tsv; its name is the collection's name. A pair whose
        query or passage occurs in one of them is left out of training and validation and counted in study.json. So
        training pairs must not come from a tested corpus.
    validation: a .jsonl file of pairs, all of which are used. "": taken out of the training pairs by whole passages,
        in the order drawn by `seed`, as many as fit into limit_validation pairs and a tenth of the training pairs; a
        passage that shares text with one taken before is passed over.
    limit_validation: number of pairs, at least FOLDER_MIN_PAIRS; of no effect if `validation` is a file.
    A training pair whose query or passage occurs in validation is left out and counted as well. "Occurs" means, as in
    real_study, that the first or the last 120 letters and digits are equal, casefolded.
    Fewer than FOLDER_MIN_PAIRS training or validation pairs are an InputError. Paths below ASYMLIB_DATA are stored
    relative to it, others absolute. An existing study of the same files and parameters is opened if unaltered.
    """
    out_folder = Path(out_folder)
    if not isinstance(limit_validation, int) or limit_validation < FOLDER_MIN_PAIRS:
        raise InputError(f"limit_validation: expected a whole number >= {FOLDER_MIN_PAIRS}, found {limit_validation!r}")
    if isinstance(tests, str | Path) or not tests:
        raise InputError(f"tests: expected a list of at least one folder in BEIR's layout, found {tests!r}")
    train = _given_path("train", train)
    held_out = _given_path("validation", validation) if validation else None
    folders: dict[str, Path] = {}
    for folder in (Path(os.path.abspath(test)) for test in tests):
        if folder.name in folders:
            raise InputError(f"tests: {folder} and {folders[folder.name]} have the same name; rename one of them")
        folders[folder.name] = folder

    parameters = {
        "recipe": FOLDER_RECIPE,
        "train": _stored_path(train),
        "validation": _stored_path(held_out) if held_out else "",
        "seed": seed,
        "limit_validation": limit_validation,
    }
    identity = {
        "source": "folder",
        "collections": [_collection_entry(name, _below_root(folder), folder) for name, folder in folders.items()],
        "parameters": parameters,
        "sources": {_stored_path(path): _source_sha256(path) for path in (train, held_out) if path},
    }
    if _stored(out_folder, identity):
        return open_study(out_folder)

    tested = _tested_ends(folders.values())
    read = {"train": _source_pairs(train, seed)}
    if held_out:
        read["validation"] = _source_pairs(held_out, seed)
    clean = {part: _without(tested, rows) for part, rows in read.items()}
    removed = {part: len(read[part]) - len(clean[part]) for part in read}
    limit = min(limit_validation, len(clean["train"]) // 10)
    held = clean["validation"] if held_out else _whole_passages(clean["train"], limit)
    left = _without(set().union(*(_ends(text) for pair in held for text in pair)), clean["train"])
    if min(len(left), len(held)) < FOLDER_MIN_PAIRS:
        of_validation = (
            f"{len(held)} validation pairs ({len(read['validation'])} in {held_out}, of which {removed['validation']} "
            "share text with a test collection)"
            if held_out
            else f"{len(held)} validation pairs, at most a tenth, taken out of them"
        )
        raise InputError(
            f"{train}: {len(left)} training pairs left of {len(read['train'])} ({removed['train']} share text with a "
            f"test collection) and {of_validation}; expected at least {FOLDER_MIN_PAIRS} of each"
        )
    overlapping = len(clean["train"]) - len(left) - (0 if held_out else len(held))
    (out_folder / "study.json").unlink(missing_ok=True)
    study = {
        "name": out_folder.resolve().name,
        **identity,
        "counts": {
            "train": len(left),
            "validation": len(held),
            "removed": {"overlap_with_tests": removed, "overlap_with_validation": {"train": overlapping}},
        },
    }
    _write_study(out_folder, study, left, held)
    return open_study(out_folder)


def _given_path(field: str, path: str | Path) -> Path:
    """The absolute path of pairs that exist: a .jsonl file, or, for training, a folder."""
    given = Path(os.path.abspath(path))
    if not path or not (given.is_file() if given.suffix == ".jsonl" else field == "train" and given.is_dir()):
        wanted = "a .jsonl file of pairs" + (" or a folder in BEIR's layout" if field == "train" else "")
        raise InputError(f"{field}: expected {wanted} that exists, found {str(path)!r}")
    return given


def _below_root(path: Path) -> str | None:
    """An absolute path relative to ASYMLIB_DATA, or None if it is not below that."""
    root = os.environ.get(DATA_VARIABLE)
    if not root or not path.is_relative_to(os.path.abspath(root)):
        return None
    return path.relative_to(os.path.abspath(root)).as_posix()


def _stored_path(path: Path) -> str:
    below = _below_root(path)
    return f"{DATA_VARIABLE}/{below}" if below else str(path)


def _whole_passages(rows: list[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """At most `limit` pairs: all pairs of a passage or none, in the rows' order, no two passages sharing text."""
    by_passage: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query, doc in rows:
        by_passage[doc].append((query, doc))
    taken: list[tuple[str, str]] = []
    held: set[str] = set()
    for group in by_passage.values():
        if len(taken) + len(group) <= limit and _without(held, group) == group:
            taken += group
            held.update(*(_ends(text) for pair in group for text in pair))
    return taken


# ------------------------------------------------------------------------------------ pairs of the tested collection

TARGET_RECIPE = 1  # raised whenever the pairs that come out of the same files change
OWN_TITLES = 0.9  # share of the documents with a title of their own, from which on titles serve as queries
BEGINNING_WORDS = (3, 32)  # words of a first sentence that serves as a query
FIRST_WORDS = 8  # words that serve as a query where there is no such sentence; also the fewest that must be left
TARGET_PAIRS = 10_000
POSITIVES_A_QUERY = 4


def target_study(
    out_folder: str | Path,
    collection: str | Path,
    labels: bool = False,
    limit_train: int = TARGET_PAIRS,
    limit_validation: int = 500,
    seed: int = 0,
) -> Study:
    """Build a study that trains on the collection it tests, or open it if it is there.

    collection: a folder in BEIR's layout with qrels/test.tsv.
    labels: False, track "adapted": no judgement is read, pairs are made of the documents' text alone. Where at least
        OWN_TITLES of the documents have a title that no other has, title -> text. Otherwise the text's beginning -> its
        rest, as in the inverse cloze task (Lee et al. 2019, arXiv:1906.00300): the first sentence if it has 3 to 32
        words, else the first 8 words; the rest must have at least 8. One pair a document.
        True, track "in-domain": the pairs of qrels/train.tsv with a grade above 0, of each query at most
        POSITIVES_A_QUERY, the highest grades first and equal ones by content hash.
    A pair whose query or document shares text with a test query (first or last 120 letters and digits, casefolded) is
    left out and counted; with ArguAna, whose test queries are documents, these documents give no pair.
    Validation: in an order drawn by `seed`, whole queries with all their pairs, until limit_validation pairs or a
    tenth of all are reached. Without labels, no training pair shares text with a validation pair; with labels, no query
    of theirs does, while documents may be relevant to both, as they are to test queries.
    limit_train, limit_validation: pairs at most. Fewer than FOLDER_MIN_PAIRS of either are an InputError.
    """
    out_folder, folder = Path(out_folder), Path(os.path.abspath(collection))
    tested = load_beir(folder)
    parameters = {
        "recipe": TARGET_RECIPE,
        "labels": labels,
        "limit_train": limit_train,
        "limit_validation": limit_validation,
        "seed": seed,
    }
    used = ["corpus.jsonl", *(["queries.jsonl", "qrels/train.tsv"] if labels else [])]
    if missing := [folder / file for file in used if not (folder / file).is_file()]:
        raise InputError(f"{missing[0]}: no such file; it is needed for training pairs")
    identity = {
        "source": "target",
        "track": "in-domain" if labels else "adapted",
        "collections": [_collection_entry(folder.name, _below_root(folder), folder)],
        "parameters": parameters,
        "sources": {file: sha256_file(folder / file) for file in used},
    }
    if _stored(out_folder, identity):
        return open_study(out_folder)

    rows, made_of = _judged_pairs(folder) if labels else _text_pairs(folder / "corpus.jsonl")
    clean = _without(set().union(*map(_ends, tested.queries)), rows)
    order = np.random.default_rng(seed).permutation(len(clean))
    clean = [clean[i] for i in order]
    by_query: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query, doc in clean:
        by_query[_same_words(query)].append((query, doc))
    validation: list[tuple[str, str]] = []
    for group in by_query.values():
        if len(validation) + len(group) <= min(limit_validation, len(clean) // 10):
            validation += group
    held = set().union(*(_ends(text) for query, doc in validation for text in ([query] if labels else [query, doc])))
    if labels:
        left = [(query, doc) for query, doc in clean if held.isdisjoint(_ends(query))]
    else:
        left = _without(held, clean)
    train = left[:limit_train]
    if min(len(train), len(validation)) < FOLDER_MIN_PAIRS:
        raise InputError(
            f"{folder}: {len(train)} training and {len(validation)} validation pairs of {len(rows)} ({made_of}); "
            f"expected at least {FOLDER_MIN_PAIRS} of each"
        )
    (out_folder / "study.json").unlink(missing_ok=True)
    study = {
        "name": out_folder.resolve().name,
        **identity,
        "pairs_made_of": made_of,
        "counts": {
            "train": len(train),
            "validation": len(validation),
            "removed": {
                "overlap_with_test_queries": len(rows) - len(clean),
                "overlap_with_validation": len(clean) - len(validation) - len(left),
                "over_the_limit": len(left) - len(train),
            },
        },
    }
    _write_study(out_folder, study, train, validation)
    return open_study(out_folder)


def _judged_pairs(folder: Path) -> tuple[list[tuple[str, str]], str]:
    """Pairs of the train split: of each query the POSITIVES_A_QUERY best documents."""
    collection = load_beir(folder, "train")
    text = dict(zip(collection.doc_ids, collection.docs, strict=True))
    rows = []
    for key, query in zip(collection.query_ids, collection.queries, strict=True):
        found = [(-grade, _pair_hash((query, text[doc])), text[doc]) for doc, grade in collection.qrels[key].items()
                 if grade > 0 and text.get(doc)]  # fmt: skip
        rows += [(query, doc) for _, _, doc in sorted(found)[:POSITIVES_A_QUERY]]
    return rows, "training judgements"


def _text_pairs(corpus: Path) -> tuple[list[tuple[str, str]], str]:
    """One pair of each document's own text, and what it is made of."""
    fields = [
        (_text(record, "title", where, ""), _text(record, "text", where)) for where, record in _json_lines(corpus)
    ]
    times = Counter(_same_words(title) for title, _ in fields)
    own = sum(bool(title) and times[_same_words(title)] == 1 for title, _ in fields)
    if own >= OWN_TITLES * len(fields):
        return [(title, text) for title, text in fields if title and text], "title and text"
    return [pair for _, text in fields if (pair := _beginning_and_rest(text))], "beginning and rest"


def _beginning_and_rest(text: str) -> tuple[str, str] | None:
    first = _SENTENCE_END.split(text, maxsplit=1)[0]
    low, high = BEGINNING_WORDS
    if not low <= len(first.split()) <= high or len(first) == len(text):
        first = " ".join(text.split()[:FIRST_WORDS])
        text = " ".join(text.split())
    rest = text[len(first) :].strip()
    return (first, rest) if len(rest.split()) >= FIRST_WORDS else None


# ---------------------------------------------------------------------------------------------------------- downloads

# The addresses are beir's. Its own downloader (beir.util) is not used: it neither looks at the server's answer, nor
# resumes, nor compares the MD5, and it unpacks whatever the zip says.
BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
BEIR_MD5 = {  # of the zips, as published in BEIR's README
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}
MSMARCO_DATASET = "sentence-transformers/msmarco-bm25"  # MS MARCO's training queries with their relevant passage
MSMARCO_SUBSET = "triplet"  # one row a query: query, positive, negative
MSMARCO_REVISION = "6b1596a63475a7bf6d4d397d6b9f599ef3fc8d29"
RETRY_SECONDS = 1.0
STALLS = 3  # connections in a row without a new byte, after which a download gives up


def fetch_beir(name: str, to: str | Path = "data/beir", url: str = BEIR_URL, progress: bool = True) -> Path:
    """Download a BEIR collection and unpack it to `to/name`, which appears only when it is whole.

    A half download stays as `to/name.zip.part` and is resumed by the next call. A zip that lies at `to/name.zip`
    already (brought by hand) is used instead. Nothing is unpacked whose MD5 is not the published one.
    """
    to = Path(to)
    if name not in BEIR_MD5:
        raise InputError(f"{name}: no BEIR collection with a published MD5; known: {', '.join(BEIR_MD5)}")
    if (to / name).exists():
        return to / name
    to.mkdir(parents=True, exist_ok=True)
    archive, brought = to / f"{name}.zip.part", to / f"{name}.zip"
    address = f"{url.rstrip('/')}/{name}.zip"
    if brought.exists():
        archive = brought
    else:
        _download(
            address, archive, f"or download {address} elsewhere, put it at {brought} and run this again", progress
        )
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != BEIR_MD5[name]:
        if archive != brought:
            archive.unlink()
        raise InputError(
            f"{archive}: its MD5 is {found}, published is {BEIR_MD5[name]}; "
            f"{'delete it' if archive == brought else 'it was deleted'}, then run again to download anew"
        )
    _unpack(archive, name, to)
    if archive != brought:
        archive.unlink()
    return to / name


def _download(url: str, part: Path, by_hand: str, progress: bool) -> None:
    """Append to `part` what the server still has of `url`; connections that break are taken up again."""
    stalls = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with requests.get(url, stream=True, timeout=30, headers=headers) as response:
                if have and response.status_code == 416:
                    return  # nothing after these bytes: whole, or wrong, which the MD5 tells
                if response.status_code not in (200, 206):
                    raise InputError(f"{url}: the server answered {response.status_code} {response.reason}; {by_hand}")
                resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
                if response.status_code == 206 and not resumed:
                    raise InputError(f"{url}: the server sent another part than bytes {have}- asked for; {by_hand}")
                rest = int(response.headers.get("Content-Length", 0))
                size = (rest + have if resumed else rest) or None
                with (
                    open(part, "ab" if resumed else "wb") as file,
                    tqdm(
                        desc=url.rsplit("/", 1)[-1],
                        total=size,
                        initial=have if resumed else 0,
                        unit="B",
                        unit_scale=True,
                        disable=not progress,
                    ) as bar,
                ):
                    for block in response.iter_content(2**16):
                        file.write(block)
                        bar.update(len(block))
            return
        except requests.RequestException as error:
            got = part.stat().st_size if part.exists() else 0
            stalls = 0 if got > have else stalls + 1
            if stalls == STALLS:
                kept = f" ({got} bytes are kept in {part})" if got else ""
                reason = type(error).__name__
                raise InputError(f"{url}: cannot be reached ({reason}){kept}; run again to go on, {by_hand}") from error
            time.sleep(RETRY_SECONDS)


def _unpack(archive: Path, name: str, to: Path) -> None:
    """Unpack the folder `name` of a zip to `to/name`; a member outside of the zip's own tree, or a link, is refused."""
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".part", dir=to) as temporary:
        try:
            with zipfile.ZipFile(archive) as bundle:
                for member in bundle.infolist():
                    path = PurePosixPath(member.filename)
                    outside = (
                        path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
                    )
                    if outside or stat.S_ISLNK(member.external_attr >> 16):
                        raise InputError(
                            f"{archive}: member {member.filename!r} leaves the folder or is a link; refused"
                        )
                bundle.extractall(temporary)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise InputError(f"{archive}: not a whole zip file ({error}); delete it and run again") from error
        missing = [
            part for part in ("corpus.jsonl", "queries.jsonl", "qrels") if not (Path(temporary) / name / part).exists()
        ]
        if missing:
            raise InputError(f"{archive}: holds no {name}/{missing[0]}; expected a BEIR collection")
        os.replace(Path(temporary) / name, to / name)


def fetch_pairs(
    sample: int = 10_000,
    seed: int = 0,
    to: str | Path | None = None,
    dataset: str = MSMARCO_DATASET,
    revision: str | None = MSMARCO_REVISION,
    progress: bool = True,
) -> Path:
    """Draw `sample` MS MARCO training pairs from the Hub and write them as JSONL; returns the file.

    The sample is the distinct (query, positive) rows with the smallest SHA-256 of seed, query and passage: uniform,
    independent of the order of rows, and a smaller sample of the same seed is a part of a larger one.
    The subset is downloaded whole (329 MB), because a stream's shuffle draws from its beginning only; `datasets` keeps
    it in its cache and resumes.
    to: data/pairs/msmarco_<sample>_seed<seed>.jsonl if None. dataset: a Hub id or a folder of the same layout.
    MS MARCO is for non-commercial research use only.
    """
    from datasets import load_dataset, utils  # takes seconds, and only this function needs it

    if not isinstance(sample, int) or sample < 1:
        raise InputError(f"sample: expected a whole number >= 1, found {sample!r}")
    to = Path(to) if to else Path("data/pairs") / f"msmarco_{sample}_seed{seed}.jsonl"
    if not progress:
        utils.logging.disable_progress_bar()
    try:
        rows = load_dataset(dataset, MSMARCO_SUBSET, split="train", revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{dataset}: cannot be read from the Hub ({reason}); or download the folder '{MSMARCO_SUBSET}' and README.md "
            f"of https://huggingface.co/datasets/{MSMARCO_DATASET}/tree/{MSMARCO_REVISION} elsewhere and "
            f"give their folder with --dataset, or put pairs of your own ({{'query', 'document'}} a line) at {to}"
        ) from error
    if not {"query", "positive"} <= set(rows.column_names):
        raise InputError(f"{dataset}: expected the columns query and positive, found {', '.join(rows.column_names)}")
    rows = rows.select_columns(["query", "positive"])
    seen: set[bytes] = set()

    def drawn() -> Iterator[tuple[bytes, str, str]]:
        for row in tqdm(rows, desc="draw pairs", unit="pair", disable=not progress):
            query, doc = " ".join(row["query"].split()), " ".join(row["positive"].split())
            key = hashlib.sha256(f"{seed}\0{query}\0{doc}".encode()).digest()
            if query and doc and key not in seen:
                seen.add(key)
                yield key, query, doc

    chosen = heapq.nsmallest(sample, drawn())
    if len(chosen) < sample:
        raise InputError(f"{dataset}: holds only {len(chosen)} distinct pairs, {sample} were asked for")
    write_text(to, _lines({"query": query, "document": doc} for _, query, doc in chosen))
    return to


def main(arguments: list[str] | None = None) -> int:
    """The command line: fetch BEIR collections, fetch MS MARCO pairs."""
    parser = argparse.ArgumentParser(prog="python -m asymlib.datasets", description="Download public retrieval data.")
    commands = parser.add_subparsers(dest="command", required=True)
    beir = commands.add_parser("fetch", help="download BEIR collections, checked against their published MD5")
    beir.add_argument("names", nargs="+", metavar="NAME", help=", ".join(BEIR_MD5))
    beir.add_argument("--to", default="data/beir", help="folder that gets one folder a collection (data/beir)")
    beir.add_argument("--url", default=BEIR_URL, help="where the zips lie, if not at BEIR's own address")
    marco = commands.add_parser("fetch-pairs", help="draw MS MARCO training pairs from the Hub (non-commercial use)")
    marco.add_argument(
        "--sample", type=int, default=10_000, help="number of pairs (10000; the case's full size: 88000)"
    )
    marco.add_argument("--seed", type=int, default=0)
    marco.add_argument("--to", help="JSONL file (data/pairs/msmarco_<sample>_seed<seed>.jsonl)")
    marco.add_argument("--dataset", default=MSMARCO_DATASET, help="Hub id, or a folder of its layout")
    marco.add_argument("--revision", default=MSMARCO_REVISION, help="commit of the Hub's repository")
    given = parser.parse_args(arguments)
    if given.command == "fetch":
        for name in given.names:
            if name not in BEIR_MD5:
                raise InputError(f"{name}: no BEIR collection with a published MD5; known: {', '.join(BEIR_MD5)}")
        for name in given.names:
            print(fetch_beir(name, given.to, given.url))
    else:
        print(fetch_pairs(given.sample, given.seed, given.to, given.dataset, given.revision))
    return 0


if __name__ == "__main__":
    run_command(main)
