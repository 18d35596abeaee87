"""What the words' block costs: joined vectors against dense ones in faiss, and the making of blocks against bm25s.

    python benchmarks/words.py [--texts 3000] [--queries 100] [--dense 384] [--dimensions 1536] [--repeats 3]

The texts are docstrings of scikit-learn, pandas and numpy, repeated until there are enough of them; the queries are their first ten
words. The dense part is random: faiss reads every number whatever it is. Both indices are IndexFlatIP; the repeats take turns,
and a ratio is of the best times. Bytes are those of a document's vector: stored, as faiss keeps it, and as float16.
"""

import argparse
import time

import bm25s
import numpy as np
from encoding import docstrings

from asymlib.words.block import Block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dense", type=int, default=384, help="dimensions of the encoder")
    parser.add_argument("--dimensions", type=int, default=1536, help="of the block")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    import faiss

    found = [text for package in ("sklearn", "pandas", "numpy") for text in docstrings(package, arguments.texts)]
    texts = (found * -(-arguments.texts // len(found)))[: arguments.texts]
    asked = [" ".join(text.split()[:10]) for text in texts[: arguments.queries]]
    rng = np.random.default_rng(0)
    q, d = (rng.standard_normal((n, arguments.dense), dtype=np.float32) for n in (len(asked), len(texts)))
    block = Block.fit(texts, dimensions=arguments.dimensions)
    vectors = {"dense": (q, d), "joined": (block.join("query", q, asked), block.join("document", d, texts))}
    indices = {}

    def build(name: str) -> None:
        indices[name] = faiss.IndexFlatIP(vectors[name][1].shape[1])
        indices[name].add(vectors[name][1])

    def bm25s_index() -> None:
        ids = bm25s.tokenize(texts, stopwords=block.stop_words, show_progress=False)
        bm25s.BM25(k1=block.k1, b=block.b).index(ids, show_progress=False)

    runs = {
        ("build of the index", "dense"): lambda: build("dense"),
        ("build of the index", "joined"): lambda: build("joined"),
        ("search", "dense"): lambda: indices["dense"].search(vectors["dense"][0], 10),
        ("search", "joined"): lambda: indices["joined"].search(vectors["joined"][0], 10),
        ("texts to index", "bm25s"): bm25s_index,
        ("texts to index", "block"): lambda: Block.fit(texts, dimensions=arguments.dimensions),
        ("texts to blocks", "bm25s"): bm25s_index,
        ("texts to blocks", "block"): lambda: block.raw("document", texts),
    }
    seconds = {key: [] for key in runs}
    for _ in range(arguments.repeats):
        for key, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - started)

    size = {name: pair[1].shape[1] * 4 for name, pair in vectors.items()}
    print(f"{len(texts):,} texts, {len(asked)} queries, {arguments.dense} + {arguments.dimensions} dimensions")
    print(f"{'bytes a document':22}{'float32':>10}{'float16':>10}")
    for name, stored in size.items():
        print(f"{name:22}{stored:10,}{stored // 2:10,}{stored / size['dense']:8.2f} x")
    print(f"{'best of ' + str(arguments.repeats):22}{'seconds':>10}")
    for pair in ([*seconds][i : i + 2] for i in range(0, len(seconds), 2)):
        first = min(seconds[pair[0]])
        for what, name in pair:
            best = min(seconds[what, name])
            print(f"{what + ', ' + name:28}{best:9.3f}{best / first:8.2f} x")


if __name__ == "__main__":
    main()
