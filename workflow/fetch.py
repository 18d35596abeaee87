"""Download public retrieval data: BEIR collections, and training pairs of MS MARCO.

`python workflow/fetch.py beir scifact nfcorpus`, `python workflow/fetch.py pairs --sample 88000`.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

import pooch
from tqdm.auto import tqdm

from asymlib.data.collections import text_field, write_lines
from asymlib.errors import InputError, run_command

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


def fetch_pairs(sample: int = 10_000, seed: int = 0, to: str | Path = "", dataset: str = MSMARCO_DATASET) -> Path:
    """Draw MS MARCO training pairs, for non-commercial research only, from the Hub; returns the JSONL file of them.

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
        rows = load_dataset(dataset, "triplet", split="train", revision=MSMARCO_REVISION)  # query, positive, negative
        rows = rows.select_columns(["query", "positive"])
    except (OSError, ValueError, DatasetsError) as error:
        address = f"https://huggingface.co/datasets/{MSMARCO_DATASET}/tree/{MSMARCO_REVISION}"
        by_hand = f"download 'triplet' and README.md of {address} elsewhere and give their folder with --dataset"
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
    """The command line: fetch BEIR collections, or draw MS MARCO pairs."""
    parser = argparse.ArgumentParser(prog="python workflow/fetch.py", description="Download public retrieval data.")
    commands = parser.add_subparsers(dest="command", required=True)
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
    if given.pop("command") == "pairs":
        print(fetch_pairs(**given))
    for name in given.pop("names", []):
        print(fetch_beir(name, **given))


if __name__ == "__main__":
    run_command(main)
