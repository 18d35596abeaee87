"""Soft whitening as a rival of heads and as what comes after one: its exponent is chosen on validation, as a head is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from asymlib import heads
from asymlib.selection.search import ValidationSet

Chain = tuple[heads.Parameters, ...]  # heads.project with one after another; ({},) is the frozen encoder


def project(chain: Chain, side: str, vectors: np.ndarray) -> np.ndarray:
    """A side's embeddings after every part of a chain: (N, D) float32 -> (N, D) float32."""
    for parameters in chain:
        vectors = heads.project(parameters, side, vectors)
    return vectors


def choose(
    runs: Sequence[heads.Parameters], similarity: str, documents: np.ndarray, exponents: Sequence[float], validation: ValidationSet
) -> tuple[list[Chain], pd.DataFrame]:  # fmt: skip
    """Each run's head followed by soft whitening, at the exponent that ranks validation best on the mean over the runs.

    runs: parameters of heads of any kind, one a seed; {} is no head. documents: (N, D) frozen vectors; the whitening of a run
    is fitted on what its head makes of them (heads.soft_whitening). exponents: 0 leaves a head as it is.
    Returns the chains, one a run, and a row an exponent: exponent, validation (nDCG@10), chosen; of equals the first.
    heads.compose makes one linear head of a chain whose head is linear.
    """
    moved = [heads.project(run, "document", documents) for run in runs]
    found: list[list[Chain]] = [
        [(run, heads.soft_whitening(z, exponent)) if exponent else (run,) for run, z in zip(runs, moved, strict=True)]
        for exponent in exponents
    ]
    scores = [float(np.mean([_score(chain, similarity, validation) for chain in chains])) for chains in found]
    best = int(np.argmax(scores))
    chosen = [i == best for i in range(len(found))]
    return found[best], pd.DataFrame({"exponent": exponents, "validation": scores, "chosen": chosen})


def _score(chain: Chain, similarity: str, validation: ValidationSet) -> float:
    """Mean nDCG@10 on validation after a chain."""
    queries, documents = project(chain, "query", validation.queries), project(chain, "document", validation.documents)
    return replace(validation, queries=queries, documents=documents).score({}, similarity)
