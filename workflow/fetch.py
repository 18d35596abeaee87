"""Download public retrieval data: BEIR collections, those of ir_datasets, and training pairs, as of MS MARCO, from the Hub.

`python workflow/fetch.py config workflow/public.yaml` brings what that file names under `fetch`;
`python workflow/fetch.py beir scifact nfcorpus`, `python workflow/fetch.py pairs --sample 88000` single ones.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooch
from config import read_config, read_family
from tqdm.auto import tqdm

from asymlib.data.collections import load_beir, text_field, write_lines
from asymlib.errors import InputError, run_command
from asymlib.files import write_text

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
_MD5_LINES = Path(__file__).with_name("beir.md5").read_text().splitlines()  # of the zips, as published in BEIR's README
BEIR_MD5 = {file.removesuffix(".zip"): md5 for md5, file in map(str.split, _MD5_LINES)}
MSMARCO_DATASET = "sentence-transformers/msmarco-bm25"  # MS MARCO's training queries with their relevant passage
MSMARCO_REVISION = "6b1596a63475a7bf6d4d397d6b9f599ef3fc8d29"


def fetch_beir(name: str, to: str | Path = "data/beir", url: str = BEIR_URL) -> Path:
    """Unpack a BEIR collection, downloaded or from `to/name.zip`, to `to/name`, which appears only when it is whole.

    Nothing is unpacked but a zip with the published MD5.
    """
    to = Path(to)
    if name not in BEIR_MD5:
        raise InputError(f"{name}: no collection of BEIR, expected one of {', '.join(BEIR_MD5)}")
    if (to / name).exists():
        return to / name
    to.mkdir(parents=True, exist_ok=True)
    address, brought = f"{url.rstrip('/')}/{name}.zip", to / f"{name}.zip"
    by_hand = f"run again, or download it elsewhere and put it at {brought}"
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=to) as temporary:
        unzip = pooch.Unzip(extract_dir=str(Path(temporary, "unpacked").absolute()))
        folder = to if brought.exists() else temporary
        try:
            pooch.retrieve(address, f"md5:{BEIR_MD5[name]}", brought.name, folder, unzip, progressbar=True)
        except (OSError, ValueError) as error:  # unreachable, or another MD5
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{address}: cannot be had ({reason}); {by_hand}") from error
        Path(temporary, "unpacked", name).replace(to / name)
    return to / name


def fetch_ir_dataset(name: str, dataset: str, to: str | Path = "data/beir") -> Path:
    """Write a data set of ir_datasets, by its id there, to `to/name` in BEIR's layout, when it is whole and can be read.

    Its own files are downloaded, checked and kept by ir_datasets, in IR_DATASETS_HOME (~/.ir_datasets).
    """
    import ir_datasets  # reads the list of all data sets, and only this function needs it

    if (folder := Path(to) / name).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=to) as temporary:
        made = Path(temporary) / name
        try:
            source = ir_datasets.load(dataset)
            write_lines(
                made / "corpus.jsonl",
                ({"_id": doc.doc_id, "title": "", "text": _line(doc)} for doc in source.docs_iter()),
            )
            write_lines(made / "queries.jsonl", ({"_id": q.query_id, "text": _line(q)} for q in source.queries_iter()))
            judged = (f"{row.query_id}\t{row.doc_id}\t{row.relevance}\n" for row in source.qrels_iter())
            write_text(made / "qrels" / "test.tsv", "".join(["query-id\tcorpus-id\tscore\n", *judged]))
        except (
            AttributeError,
            KeyError,
            OSError,
            RuntimeError,
        ) as error:  # no such set, no judgements, no server, other MD5
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"{name}: {dataset} of ir_datasets cannot be had ({reason}); run again, or take it out"
            ) from error
        load_beir(made, strict=False, drop_self=False)
        made.replace(folder)
    return folder


def _line(record: Any) -> str:
    """The text of a document or query of ir_datasets, on one line."""
    return " ".join(record.default_text().split())


def fetch_config(path: str | Path, to: str | Path = "data", url: str = BEIR_URL) -> Iterator[Path]:
    """Bring what a config file names under `fetch`, each either whole or not at all, below `to`; gives its places.

    What is there already is left alone, so the same command goes on where it was stopped.
    """
    wanted, to = read_family(read_config(path)).fetch, Path(to)
    for name in wanted.beir:
        yield fetch_beir(name, to / "beir", url)
    for name, dataset in wanted.ir_datasets.items():
        yield fetch_ir_dataset(name, dataset, to / "beir")
    for name, draw in wanted.pairs.items():
        file = to / "pairs" / f"{name}.jsonl"
        yield file if file.exists() else fetch_pairs(to=file, **dict(draw))


def fetch_pairs(
    sample: int = 10_000, seed: int = 0, to: str | Path = "", dataset: str = MSMARCO_DATASET,
    revision: str = MSMARCO_REVISION, subset: str = "triplet",
) -> Path:  # fmt: skip
    """Draw training pairs from the Hub, MS MARCO's for non-commercial research only; returns the JSONL file of them.

    The sample is the distinct (query, positive) rows with the smallest SHA-256 of seed, query and passage: uniform,
    independent of the order of rows, and a smaller sample of the same seed is a part of a larger one.
    to: data/pairs/msmarco_<sample>_seed<seed>.jsonl if empty. dataset: a Hub id or a folder of the same layout.
    """
    from datasets import load_dataset  # takes seconds, and only this function needs it
    from datasets.exceptions import DatasetsError

    if sample < 1:
        raise InputError(f"sample: expected at least 1, found {sample}")
    to = Path(to) if to else Path("data/pairs") / f"msmarco_{sample}_seed{seed}.jsonl"
    try:
        rows = load_dataset(dataset, subset, split="train", revision=revision)  # query, positive, negative
        rows = rows.select_columns(["query", "positive"])
    except (OSError, ValueError, DatasetsError) as error:
        by_hand = f"download '{subset}' and README.md of revision {revision} elsewhere and give their folder as dataset"
        own = f"put pairs of your own ({{'query', 'document'}} a line) at {to}"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{dataset}: cannot be read ({reason}); {by_hand}, or {own}") from error
    keyed: set[tuple[bytes, str, str]] = set()
    for i, row in enumerate(tqdm(rows, desc="draw pairs", unit="pair"), start=1):
        query, doc = (" ".join(text_field(row, name, f"{dataset}, row {i}").split()) for name in ("query", "positive"))
        if query and doc:
            keyed.add((hashlib.sha256(f"{seed}\0{query}\0{doc}".encode()).digest(), query, doc))
    chosen = sorted(keyed)[:sample]
    if len(chosen) < sample:
        raise InputError(f"{dataset}: holds only {len(chosen)} distinct pairs, {sample} were asked for")
    write_lines(to, ({"query": query, "document": doc} for _, query, doc in chosen))
    return to


def main(arguments: list[str] | None = None) -> None:
    """The command line: fetch what a config names, or BEIR collections, or draw MS MARCO pairs."""
    parser = argparse.ArgumentParser(prog="python workflow/fetch.py", description="Download public retrieval data.")
    commands = parser.add_subparsers(dest="command", required=True)
    config = commands.add_parser("config", help="bring all that a config file names under `fetch`")
    config.add_argument("path", metavar="FILE", help="e.g. workflow/public.yaml")
    config.add_argument("--to", default="data", help="folder that gets beir/ and pairs/ (data)")
    config.add_argument("--url", default=BEIR_URL, help="where BEIR's zips lie, if not at its own address")
    beir = commands.add_parser("beir", help="download BEIR collections, checked against their published MD5")
    beir.add_argument("names", nargs="+", metavar="NAME", choices=BEIR_MD5, help=", ".join(BEIR_MD5))
    beir.add_argument("--to", default="data/beir", help="folder that gets one folder a collection (data/beir)")
    beir.add_argument("--url", default=BEIR_URL, help="where the zips lie, if not at BEIR's own address")
    marco = commands.add_parser("pairs", help="draw MS MARCO training pairs from the Hub (non-commercial use)")
    marco.add_argument("--sample", type=int, default=10_000, help="pairs (10000; the case's full size: 88000)")
    marco.add_argument("--seed", type=int, default=0)
    marco.add_argument("--to", default="", help="JSONL file (data/pairs/msmarco_<sample>_seed<seed>.jsonl)")
    marco.add_argument("--dataset", default=MSMARCO_DATASET, help="Hub id, or a folder of its layout")
    given = vars(parser.parse_args(arguments))
    if (command := given.pop("command")) == "pairs":
        print(fetch_pairs(**given))
    for place in fetch_config(**given) if command == "config" else ():
        print(place)
    for name in given.pop("names", []):
        print(fetch_beir(name, **given))


if __name__ == "__main__":
    run_command(main)
