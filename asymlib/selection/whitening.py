"""Soft whitening as a rival of heads and as what comes after one: its exponent is chosen on validation, as a head is."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from asymlib import heads
from asymlib.selection.search import ValidationSet


def choose(
    runs: Sequence[heads.Parameters], similarity: str, documents: np.ndarray, exponents: Sequence[float], validation: ValidationSet
) -> tuple[list[heads.Parameters], pd.DataFrame]:  # fmt: skip
    """Each run's head followed by soft whitening, at the exponent that ranks validation best on the mean over the runs.

    runs: parameters of linear heads, one a seed; {} is no head. documents: (N, D) frozen vectors; the whitening of a run is
    fitted on what its head makes of them (heads.soft_whitening, heads.compose). exponents: 0 leaves a head as it is.
    Returns the parameters, one a run, and a row an exponent: exponent, validation (nDCG@10), chosen; of equals the first.
    InputError: heads that are not linear, which no single map can follow (heads.compose).
    """
    moved = [heads.project(run, "document", documents) for run in runs]
    found = [
        [heads.compose(run, heads.soft_whitening(z, exponent)) if exponent else run for run, z in zip(runs, moved, strict=True)]
        for exponent in exponents
    ]  # fmt: skip
    scores = [float(np.mean([validation.score(run, similarity) for run in each])) for each in found]
    best = int(np.argmax(scores))
    chosen = [i == best for i in range(len(found))]
    return found[best], pd.DataFrame({"exponent": exponents, "validation": scores, "chosen": chosen})
