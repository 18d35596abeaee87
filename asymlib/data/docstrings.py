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

from asymlib.data.collections import whole_text
from asymlib.data.leakage import Rows, near_duplicates, same_words
from asymlib.data.pairs import SENTENCE_END, Split, pair_hash
from asymlib.errors import InputError

# By role, as distribution names. Whole packages are held out, so a test collection shares no code base with training.
PACKAGES = {
    # five widely read packages, each with enough docstrings to be a collection of its own
    "test": ["numpy", "pandas", "scikit-learn", "matplotlib", "networkx"],
    # the same kind of text as the test packages, so the best epoch is chosen for what is tested
    "validation": ["scipy"],
    # the large ones first; the small ones add other vocabularies (fonts, hubs, notebooks, plots)
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

    packages: distribution names by role, as PACKAGES. limit_train, limit_validation: pairs in all, at most.
    limit_per_collection: pairs, thus documents, of each test package.
    A docstring's first paragraph (after a bare signature) is the query, the rest the document. Sources are parsed,
    never imported; test and vendored folders and generated copies are left out. Query: 3 to 40 words, at least 3 of
    them starting with a letter. Document: at least 20 words, once doctests, underlines, markup and the sentences that
    repeat the query are taken out. Then, with test packages before validation before training:
    - of equal or near-equal documents (leakage.near_duplicates) the first stays;
    - a query that two different documents of a pool answer goes with all its documents: it is ambiguous;
    - a training query that validation or test asks too, or a validation query that test asks, goes.
    Of what is left, the pairs with the smallest content hashes are taken, so neither the order of files nor a seed
    matters: the same package versions give the same files everywhere.
    """
    role_of = {package: role for role in ROLES for package in packages[role]}
    read = {package: _package_rows(package) for package in tqdm(role_of, desc="read docstrings", unit="package")}
    pairs, removed = _clean(read, role_of)
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
    installed = metadata.distribution(distribution)
    pairs = set()
    gc.disable()  # syntax trees are millions of short-lived objects without cycles: half of the time goes otherwise
    try:
        for file in installed.files or []:
            if file.suffix != ".py" or not SKIPPED_FOLDERS.isdisjoint(file.parts):
                continue
            try:
                source = Path(installed.locate_file(file)).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError:
                continue
            except FileNotFoundError as error:
                raise InputError(f"package {distribution} lacks its file {file}; install it again") from error
            if ('"""' in source or "'''" in source) and GENERATED not in source[:2000]:
                pairs.update(pair for doc in _docstrings(source) if (pair := pair_from_docstring(doc)))
    finally:
        gc.enable()
    return sorted(pairs, key=pair_hash)


def _docstrings(source: str) -> Iterator[str]:
    """Cleaned docstrings of the module, classes and functions of a source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
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
    """One line of plain text: doctests with their output, underlines, table borders and role markup taken out.

    Doctests go because they are code and printed numbers, not language that a query could ask for.
    """
    kept, in_doctest = [], False
    for line in whole_text(text).splitlines():
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest and not _RULE.fullmatch(line):
            kept.append(line)
    return " ".join(_ROLE.sub(r"\1", " ".join(kept)).replace("`", "").split())


def _clean(read: dict[str, Rows], role_of: dict[str, str]) -> tuple[dict[str, Rows], dict[str, int]]:
    """Drop duplicates within and between the packages, earlier packages first; return what is left and what went.

    read is ordered test, validation, training, so whatever occurs twice stays where it is tested.
    """
    rows = [(package, ROLES.index(role_of[package]), *pair) for package, pairs in read.items() for pair in pairs]
    table = pd.DataFrame(rows, columns=["package", "role", "query", "document"])
    near = near_duplicates(list(table["document"]))
    table = table[~near].assign(words=lambda left: left["query"].map(same_words))
    # A test collection is its own pool of queries; all training packages share one.
    table["pool"] = table["package"].where(table["role"] == 0, table["role"])
    ambiguous = table.duplicated(["pool", "words"], keep=False)
    earlier = table["role"] > table.groupby("words")["role"].transform("min")
    pairs: dict[str, Rows] = {package: [] for package in read}
    for package, _, query, document, *_ in table[~ambiguous & ~earlier].itertuples(index=False):
        pairs[package].append((query, document))
    removed = {
        "pairs_read": len(rows),
        "near_duplicate_documents": int(near.sum()),
        "ambiguous_queries": int(ambiguous.sum()),
        "queries_of_an_earlier_split": int((earlier & ~ambiguous).sum()),
    }
    return pairs, removed
