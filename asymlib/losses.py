"""Similarities and loss terms as pure functions of tensors shaped (..., B, D).

A loss never normalises its inputs behind the caller's back: length is what this project studies. Whether a side is
normalised is a property of the similarity, one boolean a side in SIMILARITIES. Terms that see the angle alone say so.
"""

import math

import torch
from torch import Tensor

from asymlib.errors import InputError

# name: (query side normalised, document side normalised); euclidean uses neither.
SIMILARITIES = {
    "dot": (False, False),
    "cosine": (True, True),
    "qnorm": (True, False),
    "dnorm": (False, True),
    "euclidean": (False, False),
}
TINY = 1e-12  # added to nothing: a floor for lengths, so that a zero vector gives a finite gradient


def lengths(z: Tensor) -> Tensor:
    """Euclidean length of each row: (..., B, D) -> (..., B).

    Rows are divided by their largest entry first, so that neither 1e-30 nor 1e30 under- or overflows in float32.
    """
    largest = z.detach().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    return torch.linalg.vector_norm(z / largest, dim=-1) * largest.squeeze(-1)


def normalize(z: Tensor) -> Tensor:
    """Rows divided by their length: (..., B, D) -> (..., B, D); a zero row stays zero."""
    return z / lengths(z).clamp_min(TINY).unsqueeze(-1)


def score_matrix(q: Tensor, d: Tensor, similarity: str) -> Tensor:
    """All scores of queries against documents, before the temperature.

        dot q.d | cosine q.d/(|q||d|) | qnorm q.d/|q| | dnorm q.d/|d| | euclidean -|q - d|^2

    q: (..., B, D); d: (..., M, D). Returns (..., B, M), in the similarity's own unit.
    qnorm and dnorm: Feng & Watanabe 2026 (arXiv:2602.09229).
    """
    if similarity not in SIMILARITIES:
        raise InputError(f"similarity: {similarity!r} is unknown, expected one of {', '.join(SIMILARITIES)}")
    if similarity == "euclidean":
        return 2 * (q @ d.mT) - q.square().sum(-1).unsqueeze(-1) - d.square().sum(-1).unsqueeze(-2)
    normalize_query, normalize_document = SIMILARITIES[similarity]
    return (normalize(q) if normalize_query else q) @ (normalize(d) if normalize_document else d).mT


def info_nce(scores: Tensor, temperature: Tensor | float, same: Tensor | None = None) -> Tensor:
    """In-batch softmax cross-entropy; column i holds the positive of row i.

        L = -1/B sum_i log( exp(s_ii / tau) / sum_j exp(s_ij / tau) )

    scores: (..., B, M) with M >= B, as given: lengths are part of the score. Columns from B on are negatives of all,
        e.g. mined ones as in DPR (Karpukhin et al. 2020, arXiv:2004.04906).
    temperature: tau > 0, in units of the score; scalar or (...,).
    same: (..., B, M) bool, True where document j is a positive of query i as well; such a j != i is not a negative.
    Returns (...,), in nats. van den Oord et al. 2018, Eq. 4 (arXiv:1807.03748). One direction only, unlike CLIP.
    """
    if scores.shape[-1] < scores.shape[-2]:
        raise InputError(f"scores: {tuple(scores.shape[-2:])}, expected at least as many documents as queries")
    tau = torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    if not bool((tau > 0).all()):
        raise InputError("temperature: expected a number above 0")
    logits = scores / tau[..., None, None]
    if same is not None:
        diagonal = torch.eye(*scores.shape[-2:], dtype=torch.bool, device=scores.device)
        logits = logits.masked_fill(same & ~diagonal, -math.inf)
    return (torch.logsumexp(logits, -1) - logits.diagonal(dim1=-2, dim2=-1)).mean(-1)


def cosine_isotropy(z: Tensor) -> Tensor:
    """Mean squared cosine between different rows: 0 when all are orthogonal, 1 when all are parallel.

        1/(B (B - 1)) sum_{i != j} (z_i.z_j / (|z_i||z_j|))^2

    z: (..., B, D). Returns (...,). A function of angles alone: it can neither ask for length nor forbid it.
    """
    unit = normalize(z)
    batch = z.shape[-2]
    squares = (unit @ unit.mT).square() * ~torch.eye(batch, dtype=torch.bool, device=z.device)
    return squares.sum((-2, -1)) / (batch * (batch - 1))


def covariance_isotropy(z: Tensor) -> Tensor:
    """Distance of the covariance's shape from a sphere: 0 when all D variances are equal and uncorrelated.

        |C D/tr(C) - I|_F^2 / D,  C = covariance of the rows

    z: (..., B, D). Returns (...,), at most D - 1. Scale-free: z and 10 z give the same value. With B <= D a batch
    cannot reach 0 (its covariance has rank below D); only differences matter. Rows that are all the same have no
    shape: C counts as 0, the value is 1 and the gradient 0.
    Computed from the (B, B) Gram matrix: |C|_F^2 is the same for both and B is smaller than D.
    """
    batch, dim = z.shape[-2:]
    centred = z - z.mean(-2, keepdim=True)
    spread = lengths(centred).square().mean(-1).clamp_min(TINY**2).sqrt()  # the root of 0 has no finite gradient
    centred = centred / spread[..., None, None]  # tr(C) (B-1)/B = 1
    gram = centred @ centred.mT / batch  # trace 1 (0 without any spread), same nonzero eigenvalues as C / tr(C)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return dim * gram.square().sum((-2, -1)) - 2 * trace + 1  # sum over D eigenvalues of (D l - 1)^2 / D


def variance_hinge(z: Tensor) -> Tensor:
    """VICReg's variance term: mean over dimensions of max(0, 1 - std).

    z: (..., B, D). Returns (...,). Bardes et al. 2022, Eq. 1 (arXiv:2105.04906), with epsilon 1e-4 inside the root.
    Not scale-free: it asks for vectors of length about sqrt(D).
    """
    return (1 - (z.var(-2) + 1e-4).sqrt()).clamp_min(0).mean(-1)


def uniformity(z: Tensor) -> Tensor:
    """Log of the mean Gaussian potential between different rows: log mean_{i<j} exp(-2 |z_i - z_j|^2).

    z: (..., B, D), rows of length 1 expected (normalise first). Returns (...,), nats, at most 0; lower is more uniform.
    Wang & Isola 2020 (arXiv:2005.10242).
    """
    batch = z.shape[-2]
    distance = z.square().sum(-1).unsqueeze(-1) + z.square().sum(-1).unsqueeze(-2) - 2 * (z @ z.mT)
    diagonal = torch.eye(batch, dtype=torch.bool, device=z.device)
    potential = (-2 * distance).masked_fill(diagonal, -math.inf)
    return torch.logsumexp(potential.flatten(-2), -1) - math.log(batch * (batch - 1))


def alignment(q: Tensor, d: Tensor) -> Tensor:
    """Mean squared distance of positives: mean_i |q_i - d_i|^2.

    q, d: (..., B, D), rows of length 1 expected (normalise first). Returns (...,), in [0, 4].
    Wang & Isola 2020 (arXiv:2005.10242).
    """
    return (q - d).square().sum(-1).mean(-1)


def prediction(predicted: Tensor, d: Tensor) -> Tensor:
    """One minus the cosine between the predictor's output and the (held fixed) document: mean_i 1 - cos(p(q_i), d_i).

    predicted, d: (..., B, D). Returns (...,), in [0, 2]. The gradient reaches query side and predictor alone, as in
    SimSiam (Chen & He 2021, Eq. 1, arXiv:2011.10566). Scale-free. Our reading of the case's "prediction" term.
    """
    return 1 - (normalize(predicted) * normalize(d.detach())).sum(-1).mean(-1)


def recovery(z: Tensor, x: Tensor) -> Tensor:
    """How far a head has moved its input: mean_i |z_i - x_i|^2 / mean_i |x_i|^2.

    z, x: (..., B, D), a head's output and input. Returns (...,), 0 if the head is the identity. After the recovery term
    of Search-Adaptor (arXiv:2310.08750), with squares in place of absolute values. Not scale-free: it forbids growth.
    """
    return (z - x).square().sum(-1).mean(-1) / x.square().sum(-1).mean(-1).clamp_min(TINY)


ISOTROPY = {
    "none": None,
    "cosine": cosine_isotropy,
    "covariance": covariance_isotropy,
    "variance-hinge": variance_hinge,
    "uniformity": lambda z: uniformity(normalize(z)),
}
