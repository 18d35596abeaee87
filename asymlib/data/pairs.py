"""(query, document) pairs: how they are read, and how training and validation pairs are made of public or own data.

A pair-maker gives a Split: pairs without text that they must not share with each other or with the test collections.
Two texts are the same if they share an overlap key (leakage.overlap_keys).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from asymlib.data.collections import json_lines, load_beir, same_words, text_field, write_lines
from asymlib.data.leakage import Rows, keys_of, overlap_keys, tested_keys, without_overlap
from asymlib.errors import InputError
from asymlib.pair_vectors import PairVectors

MIN_PAIRS = 64  # of training and of validation: with fewer, one batch is the whole set
POSITIVES_A_QUERY = 4
SEED = 0  # of the order in which pairs are taken
SENTENCE_END = re.compile(r"(?<=[.!?]) ")


@dataclass(frozen=True)
class Pairs:
    """Training or validation pairs: documents[i] is the positive of queries[i]; vectors as of Collection.

    known: further (query, document) texts that were judged relevant, so that the document is no negative of the query.
    """

    name: str
    queries: list[str]
    documents: list[str]
    query_vectors: np.ndarray | None = field(default=None, compare=False, repr=False)
    document_vectors: np.ndarray | None = field(default=None, compare=False, repr=False)
    known: Rows = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def passage(self) -> np.ndarray:
        """int64 (N,): the number of each row's document text, equal for equal texts, counted by first appearance."""
        return pd.factorize(np.array(self.documents, dtype=object))[0]

    @cached_property
    def query_number(self) -> np.ndarray:
        """int64 (N,): the same for the queries."""
        return pd.factorize(np.array(self.queries, dtype=object))[0]

    def known_numbers(self) -> np.ndarray:
        """int64 (K, 2): query_number and passage of what is known, where both texts are in these pairs."""
        query, passage = (dict(zip(texts, numbers, strict=True)) for texts, numbers in
                          ((self.queries, self.query_number), (self.documents, self.passage)))  # fmt: skip
        numbers = [(query[q], passage[d]) for q, d in self.known if q in query and d in passage]
        return np.array(numbers, dtype=np.int64).reshape(-1, 2)

    def name_of(self, side: str, row: int) -> str:
        """What an error calls the text of a row. side: "query" or "document"."""
        text = (self.queries if side == "query" else self.documents)[row]
        return f"{self.name}, {side} of pair {row + 1} ({text!r:.60})"

    @property
    def encoded(self) -> np.ndarray:
        """bool (N,): neither vector is zero, as the one of a text without a word that the encoder knows may be."""
        return self.query_vectors.any(1) & self.document_vectors.any(1)

    def tensors(self) -> PairVectors:
        """The vectors of the encoded pairs as tensors, with the numbers of passages and queries and what is known."""
        if not (used := self.encoded).any():
            raise InputError(f"{self.name}: no pair has two vectors that are not zero; expected another encoder")
        arrays = (self.query_vectors, self.document_vectors, self.passage, self.query_number)
        made = PairVectors.of(*(array[used] for array in arrays))
        none = (self.document_vectors[:0], self.passage[:0])
        return made.with_corpus(*none, self.known_numbers()) if self.known else made


@dataclass(frozen=True)
class Split:
    """What a pair-maker gives. collections: made of pairs, by name. made_of: what serves as query and document.

    known: as of Pairs, for both parts; None where there are no judgements to know it from.
    """

    train: Rows
    validation: Rows
    counts: dict
    collections: dict[str, Rows] = field(default_factory=dict)
    made_of: str = ""
    known: Rows | None = None


def load_pairs(path: str | Path) -> Pairs:
    """Read pairs from JSONL: an object a line with `query` and `document` (or `positive`), both not empty."""
    path = Path(path)
    queries, documents = [], []
    for where, record in json_lines(path):
        fields = [key for key in ("document", "positive") if key in record]
        if len(fields) != 1:
            raise InputError(f"{where}: expected fields 'query' and 'document' (or 'positive'), found {sorted(record)}")
        queries.append(text_field(record, "query", where, filled=True))
        documents.append(text_field(record, fields[0], where, filled=True))
    if not queries:
        raise InputError(f"{path}: holds no pairs")
    return Pairs(path.stem, queries, documents)


def write_known(path: Path, split: Split) -> None:
    """Write what a split knows as numbers of rows, counted from 0 through its training and then its validation pairs."""
    rows = [*split.train, *split.validation]
    query, document = ({row[side]: i for i, row in enumerate(rows)} for side in (0, 1))
    write_lines(path, ({"query": query[q], "document": document[d]} for q, d in split.known))


def with_known(path: Path, train: Pairs, validation: Pairs) -> tuple[Pairs, Pairs]:
    """The two parts of a split with what write_known wrote of it."""
    queries, documents = train.queries + validation.queries, train.documents + validation.documents
    known = [(queries[row["query"]], documents[row["document"]]) for _, row in json_lines(path)]
    return replace(train, known=known), replace(validation, known=known)


def training_rows(path: Path, strict: bool | None = None) -> Rows:
    """The pairs of a .jsonl file (see load_pairs), or those with a grade above 0 of a BEIR folder's train split.

    One query of each distinct document text comes first, then the others, each part in an order drawn by SEED.
    Empty documents give no pair. strict: as of load_beir, here and in all that follows.
    """
    own = load_pairs(path) if path.suffix == ".jsonl" else None
    rows = list(zip(own.queries, own.documents, strict=True)) if own else _judged_rows(path, strict=strict)
    drawn = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
    repeated = pd.Series([document for _, document in drawn], dtype=object).duplicated()
    return [drawn[i] for i in np.argsort(repeated, kind="stable")]


def pair_hash(pair: tuple[str, str]) -> str:
    """SHA-256 of a pair's text: an order that no file, package or machine decides."""
    return hashlib.sha256("\0".join(pair).encode()).hexdigest()


def pooled(
    sources: dict[str, Path], tests: list[Path], limit_train: int, limit_validation: int, strict: bool | None = None
) -> Split:
    """Pairs of several published sources, to be tested on other collections.

    sources: what training_rows reads, by name. Each gives the same number of pairs as long as it has them, the larger
        ones the rest, in the order of training_rows: a smaller study is a part of a larger one.
    limit_train: number of pairs, exactly. limit_validation: pairs of as many passages, equally many from each source.
    Pairs that share text with a test collection, and training pairs that do with validation, are left out and counted.
    """
    if not 1 <= len(sources) <= limit_validation:
        raise InputError("sources: expected at least one, and limit_validation a pair for each of them or more")
    read = {source: training_rows(path, strict) for source, path in sources.items()}
    keys, tested = cache(overlap_keys), tested_keys(tests, strict)  # every text is looked at several times
    clean = {source: without_overlap(tested, rows, keys) for source, rows in read.items()}
    validation: Rows = []
    held: set[str] = set()
    for source, rows in clean.items():
        wanted = len(validation) + limit_validation // len(sources)
        for pair in rows:
            if len(validation) < wanted and without_overlap(held, [pair], keys):
                validation.append(pair)
                held.update(*map(keys, pair))
        if len(validation) < wanted:
            why = f"{limit_validation} validation pairs ({_of_the_tests(len(read[source]), len(rows))})"
            raise InputError(f"{sources[source]}: too few distinct passages for {why}")
    left = {source: without_overlap(held, rows, keys) for source, rows in clean.items()}
    if (available := sum(map(len, left.values()))) < limit_train:
        why = _of_the_tests(*(sum(map(len, part.values())) for part in (read, clean)))
        raise InputError(f"limit_train: {', '.join(sources)} give {available} pairs, not {limit_train} ({why})")
    taken: dict[str, Rows] = {}
    for i, source in enumerate(sorted(left, key=lambda source: len(left[source]))):  # the smallest first
        taken[source] = left[source][: (limit_train - sum(map(len, taken.values()))) // (len(left) - i)]
    removed = {"overlap_with_tests": _gone(read, clean), "overlap_with_validation": _gone(clean, left)}
    counts = {"train": {source: len(taken[source]) for source in sources}, "removed": removed}
    return Split([pair for source in sources for pair in taken[source]], validation, counts)


def own(given: dict[str, Path], tests: list[Path], limit_validation: int, strict: bool | None = None) -> Split:
    """Pairs of one's own data, to be tested on one's own collections.

    given: what training_rows reads, as "train" and maybe "validation". Without the latter, whole passages are taken out
        of the training pairs that share no text, as many as fit into limit_validation pairs and a tenth of all.
    What shares text goes as in `pooled`. So training pairs must not come from a tested corpus.
    """
    tested = tested_keys(tests, strict)
    read = {part: training_rows(path, strict) for part, path in given.items()}
    clean = {part: without_overlap(tested, rows) for part, rows in read.items()}
    train = clean["train"]
    held = clean["validation"] if "validation" in given else _whole_groups(train, itemgetter(1), limit_validation)
    left = without_overlap(keys_of(text for pair in held for text in pair), train)
    overlapping = len(train) - len(left) - (0 if "validation" in given else len(held))
    why = "; ".join(f"{part}: {_of_the_tests(len(read[part]), len(clean[part]))}" for part in read)
    why += f"; {overlapping} training pairs share text with {given.get('validation', 'validation, a tenth of them')}"
    _check_enough(given["train"], left, held, why)
    removed = {"overlap_with_tests": _gone(read, clean), "overlap_with_validation": {"train": overlapping}}
    return Split(left, held, {"removed": removed})


def of_the_tested(
    folder: Path, labels: bool, limit_train: int, limit_validation: int, strict: bool | None = None
) -> Split:
    """Pairs of the very collection that is tested.

    labels: False: no judgement is read, pairs are made of the documents' text alone. Where at least 90 % of the
        documents have a title that no other has, title -> text, else beginning_and_rest. One pair a document.
        True: the pairs of qrels/train.tsv with a grade above 0, of each query the POSITIVES_A_QUERY best. What else has
        such a grade is known, where another pair brings the document in: it is no negative.
    A pair that shares text with a test query is left out and counted, so ArguAna's test queries give no pair.
    Validation: in an order drawn by SEED, whole queries, limit_validation pairs and a tenth of all at most. No training
    pair shares text with one of validation; with labels no query does, but documents may be relevant to both.
    """
    judged = None
    if labels:
        judged = _judged_rows(folder, strict=strict)
        rows, made_of = _judged_rows(folder, POSITIVES_A_QUERY, strict), "training judgements"
    else:
        rows, made_of = _text_rows(folder / "corpus.jsonl")
    clean = without_overlap(keys_of(load_beir(folder, strict=strict, drop_self=False).queries), rows)
    clean = [clean[i] for i in np.random.default_rng(SEED).permutation(len(clean))]
    validation = _whole_groups(clean, lambda pair: same_words(pair[0]), limit_validation, apart=False)
    apart = slice(1 if labels else 2)  # the query, or both texts, of a training pair must not be in validation
    held = keys_of(text for pair in validation for text in pair[apart])
    left = [pair for pair in clean if held.isdisjoint(keys_of(pair[apart]))]
    removed = {
        "overlap_with_test_queries": len(rows) - len(clean),
        "overlap_with_validation": len(clean) - len(validation) - len(left),
        "over_the_limit": max(0, len(left) - limit_train),
    }
    why = f"of {len(rows)} pairs made of {made_of} went {removed}; validation takes at most a tenth"
    train, counts = left[:limit_train], {"removed": removed}
    _check_enough(folder, train, validation, why)
    if judged is not None:
        judged, counts["known"] = _known(judged, {"train": train, "validation": validation})
    return Split(train, validation, counts, made_of=made_of, known=judged)


def _known(judged: Rows, parts: dict[str, Rows]) -> tuple[Rows, dict[str, int]]:
    """The distinct judged rows that are no pair, but whose texts are in pairs; how many have both in the same part."""
    queries, documents = ({part: {row[side] for row in rows} for part, rows in parts.items()} for side in (0, 1))
    asked, there, taken = (set().union(*found) for found in (queries.values(), documents.values(), parts.values()))
    rows = [row for row in dict.fromkeys(judged) if row[0] in asked and row[1] in there and row not in taken]
    return rows, {part: sum(q in queries[part] and d in documents[part] for q, d in rows) for part in parts}


def _check_enough(where: Path, train: Rows, validation: Rows, why: str) -> None:
    if min(len(train), len(validation)) < MIN_PAIRS:
        found = f"{len(train)} training and {len(validation)} validation pairs"
        raise InputError(f"{where}: {found} left, expected {MIN_PAIRS} of each ({why})")


def _of_the_tests(read: int, clean: int) -> str:
    """How many pairs the tests took, and the way out where pairs come from what is tested."""
    way_out = ": to train on a tested collection's own text, take source: target" if 2 * clean < read else ""
    return f"of {read} pairs {read - clean} share text with the tests{way_out}"


def _gone(before: dict[str, Rows], after: dict[str, Rows]) -> dict[str, int]:
    """How many pairs of each part or source are left out."""
    return {name: len(before[name]) - len(after[name]) for name in before}


def _judged_rows(folder: Path, most: int | None = None, strict: bool | None = None) -> Rows:
    """The pairs of a train split; of each query the `most` best, the highest grades first and equal ones by hash."""
    collection = load_beir(folder, "train", strict, drop_self=False)
    text = dict(zip(collection.doc_ids, collection.documents, strict=True))
    rows: Rows = []
    for key, query in zip(collection.query_ids, collection.queries, strict=True):
        grades = collection.qrels[key]
        found = [doc for doc, grade in grades.items() if grade > 0 and text.get(doc)]
        if most is not None:
            found = sorted(found, key=lambda doc: (-grades[doc], pair_hash((query, text[doc]))))[:most]
        rows += [(query, text[doc]) for doc in found]
    return rows


def _whole_groups(rows: Rows, key: Callable[[tuple[str, str]], str], limit: int, apart: bool = True) -> Rows:
    """At most `limit` pairs and a tenth of all, in order: all pairs of a key or none. apart: no groups share text."""
    limit = min(limit, len(rows) // 10)
    groups: dict[str, Rows] = {}
    for pair in rows:
        groups.setdefault(key(pair), []).append(pair)
    taken: Rows = []
    held: set[str] = set()
    for group in groups.values():
        if len(taken) + len(group) <= limit and not (apart and without_overlap(held, group) != group):
            taken += group
            held |= keys_of(text for pair in group for text in pair)
    return taken


def _text_rows(corpus: Path) -> tuple[Rows, str]:
    """One pair of each document's own text, and what it is made of."""
    rows = [(text_field(line, "title", at, ""), text_field(line, "text", at)) for at, line in json_lines(corpus)]
    times = Counter(same_words(title) for title, _ in rows if title)
    if sum(times[same_words(title)] == 1 for title, _ in rows) >= 0.9 * len(rows):
        return [(title, text) for title, text in rows if title and text], "title and text"
    return [pair for _, text in rows if (pair := beginning_and_rest(text))], "beginning and rest"


def beginning_and_rest(text: str) -> tuple[str, str] | None:
    """A text's beginning, and what follows, as in the inverse cloze task; None if fewer than 8 words follow.

    The beginning is the first sentence if it has 3 to 32 words, else 8 words. Lee et al. 2019 (arXiv:1906.00300).
    """
    first = SENTENCE_END.split(text, maxsplit=1)[0]
    if not 3 <= len(first.split()) <= 32 or len(first) == len(text):
        text = " ".join(text.split())
        first = " ".join(text.split()[:8])
    rest = text[len(first) :].strip()
    return (first, rest) if len(rest.split()) >= 8 else None
