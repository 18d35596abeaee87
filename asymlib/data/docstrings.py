"""Pairs and test collections from the docstrings of the installed packages: a study that needs no download."""

import ast
import gc
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from asymlib.data.collections import same_words, whole_text
from asymlib.data.leakage import Rows, near_duplicates
from asymlib.data.pairs import SENTENCE_END, Split, pair_hash
from asymlib.errors import InputError

# By role, as distribution names. Whole packages are held out, so a test collection shares no code base with training.
PACKAGES = {
    "test": ["numpy", "pandas", "scikit-learn", "matplotlib", "networkx"],
    "validation": ["scipy"],  # the same kind of text as the test packages
    "train": ["torch", "transformers", "sympy", "huggingface_hub", "datasets", "sentence-transformers", "seaborn",
              "fonttools", "jedi"],
}  # fmt: skip
ROLES = tuple(PACKAGES)
# what lies elsewhere, tests, what other projects wrote, and torch's and transformers' own test machinery
SKIPPED_FOLDERS = frozenset(".. test tests _internal externals extern _external _vendor vendored third_party".split())
GENERATED = "This file was automatically generated from"  # transformers' copies of its modular files: duplicates


def docstring_pairs(
    packages: dict[str, list[str]], limit_train: int, limit_validation: int, limit_per_collection: int
) -> Split:
    """Pairs and test collections from the docstrings of installed packages.

    packages: as PACKAGES. limits: pairs at most, in all or, limit_per_collection, of each test package.
    A docstring's first paragraph (after a bare signature) is the query, the rest the document. Sources are parsed,
    never imported; test and vendored folders and generated copies are left out. Query: 3 to 40 words, at least 3 of
    them starting with a letter. Document: at least 20 words, once doctests, underlines, markup and the sentences that
    repeat the query are taken out. Then, with test packages before validation before training:
    - of near-equal documents (leakage.near_duplicates) the first stays, of queries that an earlier role asks, that;
    - a query that two different documents of a pool answer goes with all its documents: it is ambiguous.
    Of what is left, the pairs with the smallest content hashes are taken: the same versions give the same everywhere.
    """
    role_of = {package: role for role in ROLES for package in packages[role]}
    read = {package: _package_rows(package) for package in tqdm(role_of, desc="read docstrings", unit="package")}
    pairs, removed = _clean(read, role_of) if any(read.values()) else (read, {})
    tested = {package: pairs[package][:limit_per_collection] for package in packages["test"]}
    split = {
        role: sorted((pair for package in packages[role] for pair in pairs[package]), key=pair_hash)[:limit]
        for role, limit in (("train", limit_train), ("validation", limit_validation))
    }
    for part, rows in (tested | split).items():
        if not rows:
            raise InputError(f"packages: no docstring of {', '.join(packages.get(part, [part]))} makes a pair")
    test, available = ({package: len(rows) for package, rows in part.items()} for part in (tested, pairs))
    return Split(**split, counts={"test": test, "available": available, "removed": removed}, collections=tested)


def versions(packages: dict[str, list[str]]) -> dict[str, str]:
    """The installed version of each package, after a check of the names by role."""
    names = [str(name) for role in ROLES for name in packages.get(role) or ()]
    if set(packages) != set(ROLES) or not all(packages.values()) or len(set(names)) < len(names):
        raise InputError(f"packages: expected names for each of {', '.join(ROLES)}, and none twice; found {packages}")
    try:
        return {name: metadata.version(name).partition("+")[0] for name in names}
    except metadata.PackageNotFoundError as error:
        raise InputError(f"packages: {error.name} is not installed (requirements.txt: the built-in ones)") from error


def _package_rows(distribution: str) -> Rows:
    """The distinct pairs of an installed distribution in content-hash order; nothing is imported."""
    installed, pairs = metadata.distribution(distribution), set()
    files = [file for file in installed.files or [] if file.suffix == ".py" and SKIPPED_FOLDERS.isdisjoint(file.parts)]
    gc.disable()  # syntax trees are millions of short-lived objects without cycles: half of the time goes otherwise
    try:
        for file in files:
            try:
                source = Path(installed.locate_file(file)).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError:
                continue
            except OSError as error:
                raise InputError(f"package {distribution}: {file}: {error.strerror}; install it again") from error
            if ('"""' in source or "'''" in source) and GENERATED not in source[:2000]:
                pairs.update(pair for doc in _docstrings(source) if (pair := pair_from_docstring(doc)))
    finally:
        gc.enable()
    return sorted(pairs, key=pair_hash)


def _docstrings(source: str) -> Iterator[str]:
    """Cleaned docstrings of the module, classes and functions of a source."""
    with warnings.catch_warnings(action="ignore"):  # other people's invalid escapes
        try:
            nodes: list[ast.AST] = [ast.parse(source)]
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # templates, files for another Python, too deep
            return
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if doc := ast.get_docstring(node):
                yield doc
        for block in ("finalbody", "orelse", "handlers", "body"):  # statements only: no docstring hides in expressions
            nodes.extend(getattr(node, block, None) or [])


_RULE = re.compile(r"[\s=\-~^*#\"'`_.+]*")  # an underline or table border
_SIGNATURE = re.compile(r"[\w.]+\([^()]*(\([^()]*\)[^()]*)*\)(\s*->.*)?", re.S)  # numpy's and torch's first line
_NO_SUMMARY = re.compile(  # a section's name, a directive, code, or a parameter block such as "x (Tensor): ..."
    r"(parameters|args|arguments|returns?|yields|raises|examples?|notes?|attributes)\s*:?\s*(\n|$)"
    r"|\.\. |[#{\[>]|\*{0,2}\w+ \([^()]*(\([^()]*\)[^()]*)*\)\s*:",
    re.I,
)
_ROLE = re.compile(r":[A-Za-z][\w:+-]*:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`")  # :class:`~torch.Tensor` -> torch.Tensor


def pair_from_docstring(doc: str) -> tuple[str, str] | None:
    """(summary, rest), or None if the docstring makes no sensible pair: see docstring_pairs for the rules."""
    summary, _, rest = doc.strip().partition("\n\n")
    if _SIGNATURE.fullmatch(summary.strip()):
        summary, _, rest = rest.strip().partition("\n\n")
    query, document = _prose(summary), _prose(rest)
    words = query.split()
    if not 3 <= len(words) <= 40 or sum(word[:1].isalpha() for word in words) < 3 or _NO_SUMMARY.match(summary):
        return None
    essence = query.casefold().rstrip(".:!? ")
    if essence in document.casefold():
        document = " ".join(part for part in SENTENCE_END.split(document) if essence not in part.casefold())
    if essence in document.casefold() or len(document.split()) < 20:
        return None
    return query, document


def _prose(text: str) -> str:
    """One line of plain text: doctests with their output, underlines, table borders and role markup taken out."""
    kept, in_doctest = [], False
    for line in whole_text(text).splitlines():
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest and not _RULE.fullmatch(line):
            kept.append(line)
    return " ".join(_ROLE.sub(r"\1", " ".join(kept)).replace("`", "").split())


def _clean(read: dict[str, Rows], role_of: dict[str, str]) -> tuple[dict[str, Rows], dict[str, int]]:
    """What is left of each package, and the numbers of what went; of duplicates the first in read's order stays."""
    rows = [(package, ROLES.index(role_of[package]), *pair) for package, pairs in read.items() for pair in pairs]
    table = pd.DataFrame(rows, columns=["package", "role", "query", "document"])
    near = near_duplicates(list(table["document"]))
    table = table[~near].assign(words=lambda left: left["query"].map(same_words))
    table["pool"] = table["package"].where(table["role"] == 0, table["role"])  # training packages share one pool
    ambiguous = table.duplicated(["pool", "words"], keep=False)
    earlier = table["role"] > table.groupby("words")["role"].transform("min")
    pairs: dict[str, Rows] = {package: [] for package in read}
    for package, _, query, document, *_ in table[~ambiguous & ~earlier].itertuples(index=False):
        pairs[package].append((query, document))
    kinds = ("pairs_read", "near_duplicate_documents", "ambiguous_queries", "queries_of_an_earlier_split")
    numbers = (len(rows), near.sum(), ambiguous.sum(), (earlier & ~ambiguous).sum())
    return pairs, dict(zip(kinds, map(int, numbers), strict=True))
