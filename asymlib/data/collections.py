"""Retrieval test collections, and how a folder in BEIR's layout is read.

Conventions that move numbers:
- A document's text is `title + " " + text`, stripped. An empty corpus document stays (published sets have some);
  an empty query is an error.
- Ids are compared without the blanks around them; an id that is a whole number is read as its digits.
- A lone surrogate (half a character, as in "\\ud83d", which no file can hold) becomes U+FFFD, in ids and in texts.
- A query without a judgement is not evaluated. A grade below 0 counts as 0.
- A judgement of a document that the corpus lacks, where it is tolerated, lowers the score, as in pytrec_eval.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from asymlib.errors import InputError
from asymlib.evaluate import Qrels
from asymlib.files import write_text

FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")  # what a test collection is read from
GRADE = re.compile(r"([+-]?\d{1,9})(\.0*)?")
# vowel signs, tones and accents that no single character includes; not the variation selectors of emoji, U+FE00 to U+FE0F
_MARKS = frozenset(chr(i) for i in (*range(0xFE00), *range(0xFE10, 0x1F000)) if unicodedata.category(chr(i))[0] == "M")
_WORD, _MARKED_WORD = re.compile(r"\w+"), re.compile(rf"\w[\w{''.join(sorted(_MARKS))}]*")


@dataclass(frozen=True)
class Collection:
    """A retrieval test collection.

    doc_ids, documents: N in corpus order. query_ids, queries: M in the order of the file.
    qrels: query id -> {document id: grade >= 0}, for exactly the M queries; each has a grade above 0.
    drop_self: a document whose id equals the query's id is not a result (ArguAna's queries are documents).
    query_vectors (M, D), document_vectors (N, D): float32, None where only the text was asked for.
    self_matches: queries that are the document with the query's id: the same words as its title, its text or both.
    tolerated: what strict=False let pass: missing_documents and unknown_queries, both judgements, and queries_left_out;
        and dropped_relevant: of drop_self, relevant documents that are no result, so that no ranking of theirs scores 1.
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
    self_matches: int = field(default=0, compare=False)
    tolerated: dict[str, int] = field(default_factory=dict, compare=False)

    @cached_property
    def judgements(self) -> Qrels:
        """The relevance judgements as arrays, in the order of the ids."""
        return Qrels(self.name, self.doc_ids, self.query_ids, self.qrels, self.drop_self)

    def notice_self_matches(self) -> None:
        """Log that documents which are queries count as results, where that is so."""
        if self.self_matches and not self.drop_self:
            found = f"{self.name}: {self.self_matches} queries are documents of the corpus, with the same id and text"
            cure = f"drop_self=True (of a study: drop_self=['{self.name}']) leaves them out"
            logging.getLogger(__name__).warning(f"{found}, and count as their own results; {cure}")

    def name_of(self, side: str, row: int) -> str:
        """What an error calls the text of a row. side: "query" or "document"."""
        ids, texts = (self.query_ids, self.queries) if side == "query" else (self.doc_ids, self.documents)
        return f"{self.name}, {side} {ids[row]:.60} ({texts[row]!r:.60})"


def is_arguana(name: str) -> bool:
    """Whether a collection is the one whose queries are documents, with five judgements of missing documents."""
    return name.casefold() == "arguana"


def load_beir(
    folder: str | Path, split: str = "test", strict: bool | None = None, drop_self: bool | None = None
) -> Collection:
    """Read a folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv; its name is the collection's.

    strict: judgements of unknown queries or documents, and queries judged only with grades <= 0, are errors. With
        False the first are skipped, the second kept, the third not evaluated. None: True but for arguana.
    drop_self: as of Collection; wrong where ids merely coincide. None: False but for arguana, with a notice.
    """
    folder = Path(folder)
    parts = _read_texts(folder / "corpus.jsonl", is_corpus=True)
    documents = {doc: " ".join(both).strip() for doc, both in parts.items()}
    queries = {query: text for query, (_, text) in _read_texts(folder / "queries.jsonl", is_corpus=False).items()}
    strict = not is_arguana(folder.name) if strict is None else strict
    qrels, tolerated = _read_qrels(folder / "qrels" / f"{split}.tsv", queries, documents, strict)
    used = {query: text for query, text in queries.items() if query in qrels}
    texts = (list(documents), list(documents.values()), list(used), list(used.values()))
    drops = is_arguana(folder.name) if drop_self is None else drop_self
    own = [query for query in used if query in documents]
    same = sum(same_words(used[doc]) in map(same_words, (*parts[doc], documents[doc])) for doc in own)
    tolerated["dropped_relevant"] = sum(drops and qrels[query].get(query, 0) > 0 for query in own)
    collection = Collection(folder.name, *texts, qrels, drops, self_matches=same, tolerated=tolerated)
    if drop_self is None:
        collection.notice_self_matches()
    return collection


def write_beir(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Write pairs as a BEIR folder with one relevant document a query; ids are ranks in the given order."""
    documents = ({"_id": f"d{i:05d}", "title": "", "text": document} for i, (_, document) in enumerate(rows))
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "queries.jsonl", ({"_id": f"q{i:05d}", "text": query} for i, (query, _) in enumerate(rows)))
    judgements = [f"q{i:05d}\td{i:05d}\t1\n" for i in range(len(rows))]
    write_text(folder / "qrels" / "test.tsv", "".join(["query-id\tcorpus-id\tscore\n", *judgements]))


def write_lines(path: Path, records: Iterable[dict]) -> None:
    """Write an object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Give ("path:line", object) for every line that is not blank; anything but a JSON object is an InputError."""
    for where, line in text_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
            raise InputError(f"{where}: not valid JSON ({error}); expected one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
        yield where, record


def text_field(record: dict, name: str, where: str, default: str | None = None, filled: bool = False) -> str:
    """The stripped whole_text in a field. InputError: missing without a default, no text, or empty where `filled`."""
    value = default if record.get(name) is None else record[name]
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise InputError(f"{where}: field '{name}' must be a string, found {found}")
    if not (text := whole_text(value).strip()) and filled:
        raise InputError(f"{where}: field '{name}' is empty")
    return text


def whole_text(text: str) -> str:
    """The text with surrogates that belong together joined and each lone one replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def words(text: str) -> list[str]:
    """Words and numbers, or else the symbols, the same whatever the case and the Unicode form (NFKC; UAX 15)."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return (_WORD if _MARKS.isdisjoint(plain) else _MARKED_WORD).findall(plain) or plain.split()


def same_words(text: str) -> str:
    """The words of a text with one space between them: what is the same query."""
    return " ".join(words(text))


def check_file(path: Path, why: str = "") -> None:
    """InputError unless it is a file that can be read; why: how its message ends."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror.lower()}{why}") from error


def text_lines(path: Path, why: str = "") -> Iterator[tuple[str, str]]:
    """Give ("path:line", text) for every line of UTF-8 that is not blank. why: as of check_file."""
    check_file(path, why)
    with open(path, encoding="utf-8", errors="surrogateescape") as file:  # other bytes become lone surrogates
        for number, line in enumerate(file, start=1):
            where, text = f"{path}:{number}", line.removeprefix("\ufeff").strip()  # a byte order mark may come first
            if whole_text(text) != text:
                raise InputError(f"{where}: not UTF-8 text")
            if text:
                yield where, text


def _read_texts(path: Path, is_corpus: bool) -> dict[str, tuple[str, str]]:
    """id -> title and text of a BEIR corpus.jsonl (empty texts kept) or queries.jsonl (no titles, no empty texts)."""
    texts: dict[str, tuple[str, str]] = {}
    for where, record in json_lines(path):
        key = str(record["_id"]) if type(record.get("_id")) is int else text_field(record, "_id", where, filled=True)
        text = text_field(record, "text", where, filled=not is_corpus)
        title = text_field(record, "title", where, default="") if is_corpus else ""
        if key in texts:
            raise InputError(f"{where}: id {key!r} occurs a second time; ids must be unique")
        texts[key] = title, text
    if not texts:
        raise InputError(f"{path}: holds no {'documents' if is_corpus else 'queries'}")
    return texts


def _read_qrels(path: Path, queries: dict, documents: dict, strict: bool) -> tuple[dict[str, dict], dict[str, int]]:
    """query id -> {document id: grade}, and what was tolerated."""
    judged, unknown = {}, 0
    for where, query, doc, grade in _judgements(path):
        if query not in queries:
            if strict:
                raise InputError(f"{where}: query {query!r} is not in queries.jsonl (strict=False skips such lines)")
            unknown += 1
            continue
        if doc not in documents and strict:
            raise InputError(f"{where}: document {doc!r} is not in corpus.jsonl (strict=False keeps it, as unfindable)")
        if judged.setdefault(query, {}).setdefault(doc, grade) != grade:
            raise InputError(f"{where}: query {query!r} and document {doc!r} were judged before with another grade")
    used = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if not used:
        raise InputError(f"{path}: holds no query with a relevant document")
    if (left_out := [query for query in judged if query not in used]) and strict:
        why = f"{len(left_out)} queries have only grades <= 0; strict=False does not evaluate them"
        raise InputError(f"{path}: query {left_out[0]!r} has no relevant document ({why})")
    qrels = {query: {doc: max(grade, 0) for doc, grade in grades.items()} for query, grades in used.items()}
    missing = sum(doc not in documents for grades in qrels.values() for doc in grades)
    return qrels, {"missing_documents": missing, "unknown_queries": unknown, "queries_left_out": len(left_out)}


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """("path:line", query id, document id, grade) of a tab-separated file, with or without BEIR's header."""
    splits = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv")))
    for where, line in text_lines(path, f"; splits here: {splits or 'none'}"):
        columns = [column.strip() for column in line.split("\t")]
        if [column.casefold().replace("_", "-") for column in columns[:2]] == ["query-id", "corpus-id"]:
            continue
        if len(columns) != 3 or not (grade := GRADE.fullmatch(columns[2])):
            expected = "query-id <tab> corpus-id <tab> whole number (no other blanks, no second column as TREC has)"
            raise InputError(f"{where}: expected {expected}, found {line[:80]!r}")
        yield where, columns[0], columns[1], int(grade[1])
