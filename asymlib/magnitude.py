"""Length and angle: every statistic of a training run as long-format rows, and the attribution of growth."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asymlib import losses
from asymlib.errors import InputError
from asymlib.pair_vectors import PairVectors
from asymlib.train import Snapshot

HISTORY_COLUMNS = ("system", "seed", "step", "epoch", "split", "name", "value")
GROWTH = ("length.query.mean", "length.document.mean", "similarity.positive.dot")  # what attribution() needs

# The training log of the case's failed run, as its team printed it, on d = 768 with temperature 0.05. Its train column is the
# mean over the epoch's batches: validation after epochs 1 and 2 is 64.65 and 134.36, and 88.00 lies between them.
CASE_LOG = pd.DataFrame(
    [
        (1, 32.25, 64.65, -0.50, 0.32, 0.067, 0.059),
        (2, 88.00, 134.36, -0.52, -0.10, 0.109, 0.096),
        (3, 163.60, 228.52, 0.55, 1.24, 0.146, 0.129),
    ],
    columns=["epoch", "positive.train", "positive.validation", "negative.train", "negative.validation", "std.query",
             "std.document"],
)  # fmt: skip


def iso_score(variances: Tensor) -> Tensor:
    """IsoScore from the PCA variances of a point cloud: 1 when all are equal, 0 when one direction holds all.

        v^ = v sqrt(n) / |v|,  delta = |v^ - 1| / sqrt(2 (n - sqrt n)),
        score = ((n - delta^2 (n - sqrt n))^2 - n) / (n (n - 1))

    variances: (..., n), at least 0 and not all 0. Returns (...,), in [0, 1]. Rudman et al. 2022 (arXiv:2108.07344).
    """
    n = variances.shape[-1]
    scaled = variances * math.sqrt(n) / torch.linalg.vector_norm(variances, dim=-1, keepdim=True)
    delta = torch.linalg.vector_norm(scaled - 1, dim=-1) / math.sqrt(2 * (n - math.sqrt(n)))
    return ((n - delta.square() * (n - math.sqrt(n))).square() - n) / (n * (n - 1))


def rank_me(singular_values: Tensor) -> Tensor:
    """RankMe, the effective number of directions: exp of the entropy of the L1-normalised singular values.

    singular_values: (..., n), at least 0. Returns (...,), in [1, n]. Garrido et al. 2023, Eq. 1 (arXiv:2210.02885).
    """
    share = singular_values / singular_values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def radial_share(gradient: Tensor, z: Tensor) -> Tensor:
    """Share of the squared gradient that points along the embedding (changes its length), the rest turns it.

        sum_i (g_i . z_i/|z_i|)^2 / sum_i |g_i|^2

    gradient, z: (..., B, D). Returns (...,), in [0, 1]; 0 for any loss that sees only the cosine; nan without gradient.
    """
    along = (gradient * losses.normalize(z)).sum(-1)
    return along.square().sum(-1) / gradient.square().sum((-2, -1))


def _side(name: str, z: Tensor, spectrum: bool) -> dict[str, Tensor]:
    """Statistics of one side's embeddings z (R, N, D): std, lengths and, if asked, IsoScore and RankMe."""
    length = losses.lengths(z)  # (R, N)
    low, high = torch.quantile(length, torch.tensor([0.05, 0.95], dtype=z.dtype, device=z.device), dim=-1)
    rows = {
        f"std.{name}": z.std(-2).mean(-1),  # mean over dimensions of the std over texts, as the case logged it
        f"length.{name}.mean": length.mean(-1),
        f"length.{name}.p05": low,
        f"length.{name}.p95": high,
    }
    if spectrum:
        # A run that has overflowed counts as all 0 and gets nan: eigvalsh would raise, and stop its neighbours too.
        z = z.double().where(torch.isfinite(z).all(-1).all(-1)[:, None, None], 0.0)
        covariance = torch.stack([torch.cov(run.T) for run in z])
        rows[f"isoscore.{name}"] = iso_score(torch.linalg.eigvalsh(covariance).clamp_min(0))
        rows[f"rankme.{name}"] = rank_me(torch.linalg.eigvalsh(z.mT @ z).clamp_min(0).sqrt())  # singular values of z
    return rows


def statistics(
    q: Tensor, d: Tensor, scores: Tensor, same: Tensor, temperature: Tensor, spectrum: bool = False
) -> dict[str, Tensor]:
    """Every statistic of K blocks of B pairs a run, as {name: (R,)}.

    q: (R, K, B, D). d: (R, K, M, D), M >= B: rows from B on are negatives, for similarity.negative and accuracy.
    scores: (R, K, B, M), before the temperature. same: (R, K, B, M) bool. temperature: (R,).
    spectrum: also IsoScore, RankMe, alignment and uniformity (on normalised rows), by an eigendecomposition.
    A logit is score / tau; accuracy is the share of queries whose own document scores highest in its block;
    temperature.effective is the mean of tau / (|q||d|) over positives: that of a cosine with the lengths multiplied in.
    """
    batch, dim = q.shape[-2:]
    negative = ~(torch.eye(batch, d.shape[-2], dtype=torch.bool, device=q.device) | same)
    count = negative.sum((-3, -2, -1)).clamp_min(1)
    tau = temperature[:, None, None, None]
    rows = {}
    for unit, values in (("logit", scores / tau), ("cosine", losses.score_matrix(q, d, "cosine"))):
        rows[f"similarity.positive.{unit}"] = values.diagonal(dim1=-2, dim2=-1).mean((-2, -1))
        rows[f"similarity.negative.{unit}"] = torch.where(negative, values, 0.0).sum((-3, -2, -1)) / count
    d = d[..., :batch, :]
    rows["similarity.positive.dot"] = ((q * d).sum(-1) / tau[..., 0]).mean((-2, -1))  # whatever the similarity
    best_negative = scores.masked_fill(~negative, -torch.inf).amax(-1)
    rows["accuracy"] = (scores.diagonal(dim1=-2, dim2=-1) > best_negative).float().mean((-2, -1))
    product = losses.lengths(q) * losses.lengths(d)
    rows["temperature.effective"] = (temperature[:, None, None] / product.clamp_min(losses.TINY)).mean((-2, -1))
    flat_q, flat_d = q.reshape(len(q), -1, dim), d.reshape(len(d), -1, dim)
    rows |= _side("query", flat_q, spectrum) | _side("document", flat_d, spectrum)
    if spectrum:
        unit_q, unit_d = losses.normalize(flat_q), losses.normalize(flat_d)
        rows["alignment"] = losses.alignment(unit_q, unit_d)
        rows["uniformity.query"], rows["uniformity.document"] = losses.uniformity(unit_q), losses.uniformity(unit_d)
    return rows


def frozen_accuracy(pairs: PairVectors, batch_size: int) -> float:
    """The frozen encoder's accuracy on pairs, by cosine, as a Recorder measures it: training must not fall below it."""
    rows = torch.arange(len(pairs.queries) // batch_size * batch_size).view(1, -1, batch_size)
    q, d, same = pairs.queries[rows], pairs.documents[rows], pairs.positive(rows, rows)
    return float(statistics(q, d, losses.score_matrix(q, d, "cosine"), same, q.new_ones(1))["accuracy"])


class Recorder:
    """An observer for train.train that keeps every statistic of every snapshot.

    Gradient rows: gradient.parameters (norm before clipping) and, of a side's embeddings, gradient.<side>.norm, .radial
    and .tangential, radial^2 + tangential^2 = norm^2, and .radial_share = radial^2 / norm^2.
    """

    def __init__(self) -> None:
        self._rows: list[tuple] = []

    def __call__(self, shown: Snapshot) -> None:
        rows = {f"loss.{name}": value for name, value in shown.losses.items()}
        spectrum = shown.split != "train"
        rows |= statistics(shown.query, shown.document, shown.scores, shown.same, shown.temperature, spectrum)
        if gradients := dict(shown.gradients):
            rows["gradient.parameters"] = gradients.pop("parameters")
        for name, gradient in gradients.items():
            norm = rows[f"gradient.{name}.norm"] = gradient.square().sum((-3, -2, -1)).sqrt()
            share = radial_share(gradient.flatten(1, 2), getattr(shown, name).flatten(1, 2))
            rows[f"gradient.{name}.radial_share"] = share
            rows[f"gradient.{name}.radial"] = norm * share.sqrt()
            rows[f"gradient.{name}.tangential"] = norm * (1 - share).clamp_min(0).sqrt()
        values = torch.stack([value.double() for value in rows.values()], 1).tolist()  # (R, names)
        for (recipe, seed), active, row in zip(shown.runs, shown.active.tolist(), values, strict=True):
            if active:
                about = (recipe.name, seed, shown.step, shown.epoch, shown.split)
                self._rows += [(*about, name, value) for name, value in zip(rows, row, strict=True)]

    def frame(self) -> pd.DataFrame:
        """The history, long: system, seed, step, epoch, split, name, value; a stopped run's later rows are left out."""
        frame = pd.DataFrame(self._rows, columns=list(HISTORY_COLUMNS))
        return frame.sort_values(["system", "seed", "split", "step", "name"], kind="stable", ignore_index=True)


def wide(history: pd.DataFrame, split: str) -> pd.DataFrame:
    """One row a (system, seed, epoch, step) of one split, one column a statistic."""
    part = history[history["split"] == split]
    if part.empty:
        raise InputError(f"history: no rows with split {split!r}, found {sorted(set(history['split']))}")
    keys = ["system", "seed", "epoch", "step"]
    return part.pivot(index=keys, columns="name", values="value").reset_index().rename_axis(columns=None)


def attributable(start: pd.Series, end: pd.Series) -> bool:
    """Whether two rows have what attribution() takes the logarithm of, above 0 and finite."""
    return all(0 < row.get(name, math.nan) < math.inf for row in (start, end) for name in GROWTH)


def attribution(start: pd.Series, end: pd.Series) -> dict[str, float]:
    """Split the growth of the mean positive logit into query length, document length and angle.

        log(S1/S0) = log(Q1/Q0) + log(D1/D0) + log(C1/C0),   C = S tau / (Q D)

    S: mean of q.d/tau over positives; Q, D: mean lengths; C: the length-weighted mean cosine makes the sum exact.
    start, end: attributable rows (tau cancels). Returns natural logs 'query', 'document', 'angle', 'total', and
    'length_share' = (query + document) / total.
    """
    if not attributable(start, end):
        found = ", ".join(f"{name} is {start.get(name)} then {end.get(name)}" for name in GROWTH)
        raise InputError(f"attribution: {found}; its logarithm needs both above 0, and finite")
    query, document, total = (math.log(end[name] / start[name]) for name in GROWTH)
    parts = {"query": query, "document": document, "angle": total - query - document, "total": total}
    return {**parts, "length_share": (query + document) / total if total else math.nan}


def attribute_history(history: pd.DataFrame, since: float = 1.0) -> pd.DataFrame:
    """attribution() from each run's first validation row at or after epoch `since` to its last, by (system, seed).

    since: 1, as the case's log: a random head's first epoch is mostly angle. nan where a run cannot be attributed.
    """
    rows = []
    for (system, seed), run in wide(history, "validation").groupby(["system", "seed"], sort=False):
        run = run[run["epoch"] >= since].sort_values("step")
        parts = attribution(run.iloc[0], run.iloc[-1]) if len(run) and attributable(run.iloc[0], run.iloc[-1]) else {}
        rows.append({"system": system, "seed": seed, **parts})
    return pd.DataFrame(rows, columns=["system", "seed", "query", "document", "angle", "total", "length_share"])


def case_arithmetic() -> pd.DataFrame:
    """The case's published training log under attribution(): its lengths follow from its standard deviations.

        |q| = std_q sqrt(768),  implied cosine = S tau / (|q||d|) = S 0.05 / (768 std_q std_d)

    One row an epoch, with the logs of growth since epoch 1. Assumes mean embeddings near zero.
    """
    sides = {f"length.{side}.mean": CASE_LOG[f"std.{side}"] * 768**0.5 for side in ("query", "document")}
    log = CASE_LOG.assign(**sides).rename(columns={"positive.train": "similarity.positive.dot"})
    query, document, logit = (log[name] for name in GROWTH)
    table = log[["epoch"]].assign(positive_logit=logit, query_length=query, document_length=document)
    table["implied_cosine"] = logit * 0.05 / (query * document)
    return table.join(pd.DataFrame([attribution(log.iloc[0], row) for _, row in log.iterrows()]))


def case_columns(history: pd.DataFrame) -> pd.DataFrame:
    """Each run's statistics in the case's columns: system, seed, epoch (1, 2, ...), column, value, case, off.

    positive, negative: mean logit of the positives, of all other documents of the batch. train, and std (mean over dimensions
    of the standard deviation over texts): means over the recorded batches of the epoch, weights still moving. validation:
    the validation pairs after the epoch. off: (value - case) / case; of a negative, near 0, (value - case) / the positive's case.
    case and off are nan after the case's three epochs.
    """
    keys, logit = ["system", "seed", "epoch"], "similarity.{}.logit".format
    during, after = wide(history, "train"), wide(history, "validation")
    during["epoch"] = np.floor(during["epoch"]) + 1
    names = {logit(kind): kind for kind in ("positive", "negative")}
    during = during.groupby(keys, sort=False).mean().rename(columns=names)
    after = after[after["epoch"] > 0].set_index(keys).rename(columns=names)
    ours = {
        f"{kind}.{split}": part[kind]
        for kind in names.values()
        for split, part in (("train", during), ("validation", after))
    }
    ours |= {f"std.{side}": during[f"std.{side}"] for side in ("query", "document")}
    columns = list(CASE_LOG.columns[1:])
    rows = pd.DataFrame(ours)[columns].reset_index().melt(keys, var_name="column")
    case = CASE_LOG.melt("epoch", var_name="column", value_name="case")
    units = CASE_LOG.assign(**{name: CASE_LOG[name.replace("negative", "positive")] for name in columns})
    case["unit"] = units.melt("epoch")["value"]
    rows = rows.merge(case, "left", ["epoch", "column"])
    return rows.assign(off=(rows["value"] - rows["case"]) / rows.pop("unit"))


def rates_by_length(length: np.ndarray, found: np.ndarray, relevant: np.ndarray, groups: int = 10) -> pd.DataFrame:
    """How often documents of each length are retrieved, against how often they are relevant.

    length: (N,) of documents, after the head. found: (Q, k) result rows, -1 for none. relevant: (N,) queries answered.
    groups: equally large, by length. Returns a row a group, the shortest first; a rate of 1 is the average document's.
    """
    group = np.argsort(np.argsort(length, kind="stable")) * groups // len(length)
    times = np.bincount(found[found >= 0], minlength=len(length))
    rows = []
    for g in range(groups):
        part = group == g
        rates = (count[part].sum() / count.sum() / part.mean() for count in (times, relevant))
        rows.append((g + 1, length[part].mean(), *rates))
    return pd.DataFrame(rows, columns=["length_decile", "length", "retrieved_rate", "relevant_rate"])
