"""Exact search over a million vectors: asymlib against faiss, beir and the bare matrix product, in one process.

    python benchmarks/search.py [--docs 1000000] [--queries 100] [--k 100] [--repeats 3]

Every contender scores the same synthetic float32 vectors (384 dimensions) with the dot product, on the same threads; the repeats
take turns, and ratios are of each contender's best time, so that other work on the machine disturbs all of them alike.

- bare product: torch.mm of the same chunks into one buffer, no top-k: what any exact search must at least do
- faiss: IndexFlatIP, vectors already added
- beir: DenseRetrievalExactSearch with its default chunks, the "encoder" hands out the stored vectors
- asymlib, array / file: search on the array in memory, and streamed from the .npy file

The peak memory is that of a process of its own which searches the file.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from asymlib.exact_search import top_k

DIMENSIONS = 384
CHUNK = 8192  # the default of top_k


def queries(count: int) -> np.ndarray:
    """(count, 384) standard normal vectors, seed 1."""
    return np.random.default_rng(1).standard_normal((count, DIMENSIONS), dtype=np.float32)


def write_docs(path: Path, count: int) -> None:
    """(count, 384) standard normal vectors, seed 0, written in chunks."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:  # not a memmap: its pages would count as this process's memory, and its children's
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, DIMENSIONS)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, 50_000):
            rng.standard_normal((min(50_000, count - start), DIMENSIONS), dtype=np.float32).tofile(file)


def bare_product(docs: np.ndarray, q: np.ndarray) -> None:
    """Every score, chunk by chunk, each thrown away by the next."""
    d, columns = torch.from_numpy(docs), torch.from_numpy(q).T
    buffer = torch.empty(CHUNK, len(q))
    for start in range(0, len(d), CHUNK):
        chunk = d[start : start + CHUNK]
        torch.mm(chunk, columns, out=buffer[: len(chunk)])


class StoredVectors:
    """The encoder that beir asks for, with vectors instead of a model."""

    def __init__(self, docs: np.ndarray, q: np.ndarray):
        self.docs, self.q = torch.from_numpy(docs), torch.from_numpy(q)

    def encode_queries(self, texts: list[str], **_) -> torch.Tensor:
        """The vectors of the queries, whose order beir keeps."""
        return self.q

    def encode_corpus(self, texts: list[dict], **_) -> torch.Tensor:
        """The vectors of a run of documents; all texts are empty, so beir's sort by length keeps their order."""
        return self.docs[texts[0]["row"] : texts[-1]["row"] + 1]


def contenders(path: Path, q: np.ndarray, k: int) -> dict:
    """Name -> function that searches once and returns the (Q, k) rows found, None for the bare product."""
    import faiss
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    docs = np.load(path, allow_pickle=False)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(docs)
    corpus = {str(i): {"text": "", "row": i} for i in range(len(docs))}
    texts = {f"q{i}": "" for i in range(len(q))}

    def beir() -> np.ndarray:
        found = DenseRetrievalExactSearch(StoredVectors(docs, q)).search(corpus, texts, k, "dot")
        return np.array([sorted(map(int, row), key=lambda i, row=row: -row[str(i)]) for row in found.values()])

    return {
        "bare product": lambda: bare_product(docs, q),
        "asymlib, array": lambda: top_k(q, docs, k, "dot")[1],
        "asymlib, file": lambda: top_k(q, path, k, "dot")[1],
        "faiss IndexFlatIP": lambda: index.search(q, k)[1],
        "beir exact search": beir,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)  # the process that is measured: search this file
    args = parser.parse_args()
    q = queries(args.queries)
    if args.memory:
        top_k(q, args.memory, args.k, "cosine")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.npy"
        write_docs(path, args.docs)
        command = [sys.executable, __file__, "--memory", path, "--queries", str(args.queries), "--k", str(args.k)]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

        runs = contenders(path, q, args.k)
        seconds, found = {name: [] for name in runs}, {}
        for _ in range(args.repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                found[name] = run()
                seconds[name].append(time.perf_counter() - start)

    print(
        f"{args.docs:,} x {DIMENSIONS} float32, {args.queries} queries, k = {args.k}, {torch.get_num_threads()} threads"
    )
    print(
        f"{'best of ' + str(args.repeats):20}{'seconds':>9}{'asymlib, array is':>19}{'asymlib, file is':>18}{'same rows':>11}"
    )
    ours, streamed = min(seconds["asymlib, array"]), min(seconds["asymlib, file"])
    for name, times in seconds.items():
        same = "" if found[name] is None else f"{(found[name] == found['asymlib, array']).mean():.4%}"
        best = min(times)
        print(f"{name:20}{best:9.2f}{best / ours:16.2f} x{best / streamed:15.2f} x{same:>13}")
    print(f"peak memory of a search of the {args.docs * DIMENSIONS * 4 / 2**30:.2f} GiB file: {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
