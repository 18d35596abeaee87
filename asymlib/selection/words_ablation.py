"""What each choice of the block does: one collection ranked with many blocks, and what the words cost."""

import functools
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from asymlib import evaluate
from asymlib.data.collections import Collection
from asymlib.words.block import Block, Counts

DIMENSIONS = (96, 192, 384, 768, 1536, 3072, 6144)
WEIGHTS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5)
EXPONENTS = (0.0, 0.5, 1.0)
STOP_WORDS = ("english_plus", "english", "none")
SETTINGS = ["varied", "dimensions", "weight", "exponent", "seed", "stop_words", "stemmer"]


def variants(
    own: dict[str, str | None], dimensions: Sequence[int] = DIMENSIONS, seeds: Sequence[int] = range(5)
) -> list[tuple[str, dict]]:
    """(what is varied, settings to fit a block with): the block of `own` settings first, then one change of it at a time."""
    block = Block(**own)
    changes = [
        ("weight", {}),
        *(("dimensions", {"dimensions": m}) for m in dimensions if m != block.dimensions),
        *(("seed", {"seed": seed}) for seed in seeds if seed != block.seed),
        *(("stop words", {"stop_words": words}) for words in STOP_WORDS if words != block.stop_words),
        ("stems", {"stemmer": None if block.stemmer else "english"}),
    ]
    return [(varied, own | changed) for varied, changed in changes]


def ablate(
    test: Collection, fitted_on: Sequence[str], changes: Sequence[tuple[str, dict]],
    weights: Sequence[float] = WEIGHTS, exponents: Sequence[float] = EXPONENTS,
) -> pd.DataFrame:  # fmt: skip
    """nDCG@10 of one collection with each block: SETTINGS, dataset, mean, baseline (the frozen encoder's cosine).

    fitted_on: the texts of every block's idf. The block without changes takes every weight, those of other dimensions the
    block's own weight, both with every exponent; the others the block's own weight and exponent.
    """
    texts = {"fit": fitted_on, "query": test.queries, "document": test.documents}

    @functools.cache
    def counts(which: str, stop_words: str, stemmer: str | None) -> Counts:
        return Counts.of(texts[which], stop_words, stemmer)

    cosine = _unit(test.query_vectors) @ _unit(test.document_vectors).T
    baseline, rows = evaluate.rank_scores(test.judgements, lambda part: cosine[part], evaluate.DEPTH).mean(), []
    for varied, changed in changes:
        how = (changed.get("stop_words", Block().stop_words), changed.get("stemmer", Block().stemmer))
        block = Block.fit(counts("fit", *how), **changed)
        product, length = _products(block, counts("query", *how), counts("document", *how))
        kept = exponents if varied in ("weight", "dimensions") else [block.exponent]
        for exponent in kept:
            scaled = product / length ** np.float32(exponent)
            for weight in weights if varied == "weight" else [block.weight]:

                def scores(part: slice, weight: float = weight, scaled: np.ndarray = scaled) -> np.ndarray:
                    return cosine[part] + np.float32(weight) * scaled[part]

                mean = evaluate.rank_scores(test.judgements, scores, evaluate.DEPTH).mean()
                settings = (varied, block.dimensions, weight, exponent, block.seed, block.stop_words)
                rows.append([*settings, block.stemmer or "none", test.name, mean, baseline])
    return pd.DataFrame(rows, columns=[*SETTINGS, "dataset", "mean", "baseline"])


def with_average(table: pd.DataFrame) -> pd.DataFrame:
    """The same with rows of dataset 'average', the means over the collections, and delta_percent of all."""
    by = [name for name in table if name not in ("dataset", "mean", "baseline")]
    average = table.groupby(by, sort=False)[["mean", "baseline"]].mean().reset_index().assign(dataset="average")
    table = pd.concat([table, average], ignore_index=True)[list(table)]
    return table.assign(delta_percent=100 * (table["mean"] / table["baseline"] - 1))


def cost(test: Collection, blocks: dict[str, Block], queries: int = 100, repeats: int = 3) -> pd.DataFrame:
    """What a search costs with each block joined to the vectors, and without: exact inner products in numpy, one query a time.

    blocks: by the name of the system. Columns: system, dataset, documents, dimensions (of a joined vector), bytes_a_text (of
    float32), milliseconds_a_query (the fastest of so many repeats).
    """
    rows = []
    for system, block in {"baseline": None, **blocks}.items():
        if block is None:
            sides = [_unit(test.query_vectors[:queries]), _unit(test.document_vectors)]
        else:
            sides = [
                block.join("query", test.query_vectors[:queries], test.queries[:queries]),
                block.join("document", test.document_vectors, test.documents),
            ]
        took, depth = [], min(evaluate.DEPTH, len(sides[1])) - 1
        for _ in range(repeats):
            start = time.perf_counter()
            for query in sides[0]:
                np.argpartition(-(sides[1] @ query), depth)
            took.append(time.perf_counter() - start)
        dimensions = sides[1].shape[1]
        milliseconds = 1000 * min(took) / len(sides[0])
        rows.append([system, test.name, len(sides[1]), dimensions, 4 * dimensions, milliseconds])
    names = ["system", "dataset", "documents", "dimensions", "bytes_a_text", "milliseconds_a_query"]
    return pd.DataFrame(rows, columns=names)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def _products(block: Block, queries: Counts, documents: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Unit query blocks with raw document blocks, (Q, N) float32, and the documents' lengths, (N,), 1 where they are 0."""
    raw = block.raw("document", documents)
    length = np.linalg.norm(raw, axis=1)
    return block.block("query", queries) @ raw.T, np.where(length > 0, length, 1)
