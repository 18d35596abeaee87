"""Retrieval test collections, and how a folder in BEIR's layout is read.

Conventions that move numbers:
- A document's text is `title + " " + text`, stripped. An empty corpus document stays (published sets have some);
  an empty query is an error.
- A query counts only if the split's judgements hold a grade above 0 for it. Other queries are not evaluated.
- A judgement of a document that the corpus lacks is an error, unless `strict=False`: then it lowers the score, as in
  pytrec_eval. Published ArguAna has five and is read that way.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from asymlib.errors import InputError
from asymlib.evaluate import Qrels
from asymlib.files import write_text

FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")  # what a test collection is read from


@dataclass(frozen=True)
class Collection:
    """A retrieval test collection.

    doc_ids, documents: N ids and texts in corpus order. query_ids, queries: M ids and texts in the order of the file.
    qrels: query id -> {document id: grade >= 0}, for exactly the M queries; each has a grade above 0.
    drop_self: a document whose id equals the query's id is not a result (ArguAna's queries are documents).
    query_vectors (M, D), document_vectors (N, D): float32, None where only the text was asked for.
    """

    name: str
    doc_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    drop_self: bool = False
    query_vectors: np.ndarray | None = field(default=None, compare=False, repr=False)
    document_vectors: np.ndarray | None = field(default=None, compare=False, repr=False)

    @cached_property
    def judgements(self) -> Qrels:
        """The relevance judgements as arrays, in the order of the ids."""
        return Qrels(self.name, self.doc_ids, self.query_ids, self.qrels, self.drop_self)


def is_arguana(folder: Path) -> bool:
    """Whether a folder's name says that its queries are documents and that five judged documents are missing."""
    return folder.name.casefold() == "arguana"


def load_beir(folder: str | Path, split: str = "test", strict: bool | None = None) -> Collection:
    """Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv; its name is the collection's.

    strict: judgements of unknown queries or documents, and queries judged only with grades <= 0, are errors. With
        False the first are skipped, the second kept, the third not evaluated. None means True but for a folder named
        arguana. Repeated ids, empty queries and contradicting judgements are always errors.
    Grades below 0 become 0.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected corpus.jsonl, queries.jsonl and qrels/{split}.tsv in it")
    documents = _read_texts(folder / "corpus.jsonl", is_corpus=True)
    queries = _read_texts(folder / "queries.jsonl", is_corpus=False)
    strict = not is_arguana(folder) if strict is None else strict
    qrels = _read_qrels(folder / "qrels" / f"{split}.tsv", queries, documents, strict)
    used = [query for query in queries if query in qrels]
    return Collection(
        name=folder.name,
        doc_ids=list(documents),
        documents=list(documents.values()),
        query_ids=used,
        queries=[queries[query] for query in used],
        qrels={query: qrels[query] for query in used},
        drop_self=is_arguana(folder),
    )


def write_beir(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Write pairs as a BEIR folder with one relevant document a query; ids are ranks in the given order."""
    numbered = [(f"{i:05d}", query, document) for i, (query, document) in enumerate(rows)]
    corpus = ({"_id": f"d{i}", "title": "", "text": document} for i, _, document in numbered)
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", ({"_id": f"q{i}", "text": query} for i, query, _ in numbered))
    judgements = "".join(f"q{i}\td{i}\t1\n" for i, _, _ in numbered)
    write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + judgements)


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write an object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Give ("path:line", object) for every line that is not blank; anything but a JSON object is an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
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


def text_field(record: dict, name: str, where: str, default: str | None = None) -> str:
    """The stripped string in a field; a missing field (without a default) or another type is an InputError."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(f"{where}: field '{name}' must be a string, found {found}")
    return value.strip()


def _read_texts(path: Path, is_corpus: bool) -> dict[str, str]:
    """id -> text of a BEIR corpus.jsonl (title joined, empty texts kept) or queries.jsonl (empty texts refused)."""
    texts: dict[str, str] = {}
    for where, record in json_lines(path):
        key = text_field(record, "_id", where)
        text = text_field(record, "text", where)
        if is_corpus:
            text = f"{text_field(record, 'title', where, default='')} {text}".strip()
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


def _read_qrels(path: Path, queries: dict, documents: dict, strict: bool) -> dict[str, dict[str, int]]:
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
        columns, where = line.split("\t"), f"{path}:{number}"
        if (number == 1 and columns[:2] == ["query-id", "corpus-id"]) or not line.strip():
            continue
        if len(columns) != 3 or not re.fullmatch(r"-?\d+", columns[2].strip()):
            raise InputError(f"{where}: expected query-id <tab> corpus-id <tab> whole number, found {line[:80]!r}")
        query, doc, grade = columns[0], columns[1], int(columns[2])
        if query not in queries:
            if strict:
                raise InputError(f"{where}: query '{query}' is not in queries.jsonl (strict=False skips such lines)")
            continue
        if doc not in documents and strict:
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
    if len(without) == len(qrels):
        raise InputError(f"{path}: holds no query with a relevant document")
    for query in without:
        del qrels[query]
    return {query: {doc: max(grade, 0) for doc, grade in grades.items()} for query, grades in qrels.items()}
