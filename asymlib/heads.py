"""Projection heads: what is trained on top of the frozen encoder, for R runs at once.

Every parameter carries a leading run axis, so one matrix product serves all runs and run r never sees run s.
A plain leading axis, not torch.func.vmap: linear maps batch by themselves, and R = 1 reads as a single run.
"""

import math

import numpy as np
import torch
from torch import Tensor

from asymlib.errors import InputError
from asymlib.losses import TINY, lengths

LAYERS = {
    "none": (),
    "linear": ("",),
    "residual": ("up.", "down."),
    "deep": ("first.", "second.", "third."),
}  # names of the linear layers
HEADS = tuple(LAYERS)
STARTS = ("random", "identity")
SIDES = ("both", "query", "document", "shared")

Parameters = dict[str, Tensor]


def _start_head(head: str, start: str, dim: int, generator: torch.Generator) -> Parameters:
    """Parameters of one head for one run.

    head: 'none' {} | 'linear' z = W x + b | 'residual' z = x + W2 gelu(W1 x + b1) + b2 |
        'deep' three linear layers with two ReLU layers between (the case's deeper variant).
    start: 'random' draws weights and biases from U(-1/sqrt(dim), 1/sqrt(dim)), torch.nn.Linear's: an input of length
        1 leaves a linear head with length about sqrt(2/3) = 0.82, made of sqrt(1/3) = 0.58 from the weight and, across
        it, another 0.58 from a bias that all texts share. 'identity' makes z = x at step 0 (W = I, or W2 = 0), so
        training starts at the baseline.
    generator: drawn from in a fixed order, on the CPU, so that a run's start does not depend on its neighbours.
    Returns {name: (out, in) or (out,)} float32 tensors on the CPU.
    """
    bound = 1 / math.sqrt(dim)
    parameters = {}
    for name in LAYERS[head]:
        parameters[f"{name}weight"] = torch.empty(dim, dim).uniform_(-bound, bound, generator=generator)
        parameters[f"{name}bias"] = torch.empty(dim).uniform_(-bound, bound, generator=generator)
    if start == "identity" and head == "linear":
        parameters["weight"] = torch.eye(dim)
        parameters["bias"] = torch.zeros(dim)
    if start == "identity" and head == "residual":
        parameters["down.weight"] = torch.zeros(dim, dim)
        parameters["down.bias"] = torch.zeros(dim)
    return parameters


def start_heads(
    head: str, start: str, sides: str, dim: int, seed: int, predictor: bool = False, exponents: bool = False
) -> Parameters:
    """Parameters of one run, with names 'query.weight', 'document.weight', ... and 'predictor.weight' if asked.

    sides: 'both' (two separate heads) | 'query' | 'document' (the other side stays as the encoder gave it) |
        'shared' (one head for both sides). The predictor is linear and starts as the identity: it maps a query's
        embedding to its document's and is used by the prediction term alone, never in evaluation.
    exponents: each side, with a head or not, divides its vectors z by |z|^gamma; 'query.exponent' and 'document.exponent'
        hold gamma, (1,), 0.5 at the start. With dot, (0, 0) is dot, (1, 1) cosine, (1, 0) qnorm and (0, 1) dnorm
        (Feng & Watanabe 2026, arXiv:2602.09229).
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: Parameters = {}
    for side in ("query", "document") if sides == "both" else (sides,):
        parameters |= {f"{side}.{name}": value for name, value in _start_head(head, start, dim, generator).items()}
    if predictor:
        parameters |= {"predictor.weight": torch.eye(dim), "predictor.bias": torch.zeros(dim)}
    if exponents:
        parameters |= {f"{side}.exponent": torch.tensor([0.5]) for side in ("query", "document")}
    return parameters


def stack(runs: list[Parameters]) -> Parameters:
    """R runs' parameters as one dictionary of (R, ...) tensors; all runs have the same names and shapes."""
    return {name: torch.stack([run[name] for run in runs]) for name in sorted(runs[0])}


def unstack(parameters: Parameters, run: int) -> Parameters:
    """One run's parameters out of a stack of R; a copy, without the run axis."""
    return {name: value[run].detach().clone() for name, value in parameters.items()}


def _linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    weight, bias = parameters[f"{name}weight"], parameters[f"{name}bias"]
    if weight.ndim == 2:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)  # (R, B, in) x (R, in, out) -> (R, B, out)


def apply_head(parameters: Parameters, side: str, x: Tensor) -> Tensor:
    """A side's embeddings after its head, divided by |z|^gamma where the side has an exponent gamma.

    parameters: one run's, or a stack of R. side: 'query', 'document' or 'predictor'.
    x: (B, D) for one run, (R, B, D) for a stack. Returns the same shape; x itself where the side has no head.
    Lengths are otherwise left as they come out: normalisation belongs to the similarity.
    """
    if side not in ("query", "document", "predictor"):
        raise InputError(f"side: {side!r} is unknown, expected query, document or predictor")
    if (gamma := parameters.get(f"{side}.exponent")) is not None:
        z = apply_head({name: value for name, value in parameters.items() if not name.endswith(".exponent")}, side, x)
        return z * lengths(z).clamp_min(TINY).pow(-gamma).unsqueeze(-1)
    own = any(name.startswith(f"{side}.") for name in parameters)
    if side == "predictor" and not own:
        raise InputError("side: these parameters have no predictor; it is made only with a prediction weight above 0")
    if not own:
        side = "shared"
    if f"{side}.weight" in parameters:
        return _linear(parameters, f"{side}.", x)
    if f"{side}.up.weight" in parameters:
        return x + _linear(parameters, f"{side}.down.", torch.nn.functional.gelu(_linear(parameters, f"{side}.up.", x)))
    if f"{side}.first.weight" in parameters:
        hidden = torch.relu(_linear(parameters, f"{side}.first.", x))
        return _linear(parameters, f"{side}.third.", torch.relu(_linear(parameters, f"{side}.second.", hidden)))
    return x


@torch.no_grad()
def project(parameters: Parameters, side: str, x: np.ndarray, chunk: int = 8192) -> np.ndarray:
    """A side's embeddings after one run's head, for arrays of any length: (N, D) float32 -> (N, D) float32.

    A zero vector, of a text without known words, stays zero. Vectors of another dimension than the head was trained for are
    refused.
    """
    if not parameters:
        return np.asarray(x, dtype=np.float32)
    dim = max(value.shape[-1] for value in parameters.values())  # an exponent is a single number
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(f"{side} vectors: shape {x.shape}, expected (N, {dim}), as the head was trained for")
    device = next(iter(parameters.values())).device
    out = np.empty(x.shape, dtype=np.float32)
    for i in range(0, len(x), chunk):
        part = torch.from_numpy(np.array(x[i : i + chunk], dtype=np.float32)).to(device)
        out[i : i + chunk] = apply_head(parameters, side, part).cpu().numpy() * part.any(1, keepdim=True).cpu().numpy()
    return out


def soft_whitening(documents: np.ndarray, exponent: float) -> Parameters:
    """A shared linear head without training: z -> z C^(-a/2), C = Z^T Z / N, scaled so that tr(C) = D.

    documents: (N, D), the frozen embeddings that C is fitted on, not centred. exponent: a; 0 is the identity, 1 full
    whitening. Eigenvalues below 1e-6 of the largest count as that, so few documents in many dimensions stay finite.
    Returns parameters for apply_head, where both sides use the same map. Su et al. 2021 (arXiv:2103.15316) is a = 1
    with centring; the softness is ours.
    """
    z = torch.from_numpy(np.array(documents, dtype=np.float64))
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    values = (values * len(values) / values.sum()).clamp_min(1e-6 * float(values[-1] * len(values) / values.sum()))
    weight = (vectors * values.pow(-exponent / 2)) @ vectors.T
    return {"shared.weight": weight.float(), "shared.bias": torch.zeros(len(values))}


def compose(parameters: Parameters, whitening: Parameters) -> Parameters:
    """One run's linear head followed by whitening as one linear head: z -> M (W x + b) = (M W) x + M b.

    parameters: linear heads of one run, or {}; a side without a head gets M alone, and a predictor is left out. whitening:
    soft_whitening of the documents after their head. Both sides use the same M.
    Returns parameters for apply_head. InputError: a residual or deep head, or exponents, which no linear map holds.
    """
    after, shift = whitening["shared.weight"].cpu(), whitening["shared.bias"].cpu()
    kept = {name: value.cpu() for name, value in parameters.items() if not name.startswith("predictor.")}
    if other := sorted(name for name in kept if name.split(".", 1)[1] not in ("weight", "bias")):
        raise InputError(f"compose: {other[0]} is no part of a linear head; whiten the vectors after project instead")
    sides = ("shared",) if kept.keys() <= {"shared.weight", "shared.bias"} else ("query", "document")
    composed = {}
    for side in sides:
        weight, bias = (kept.get(f"{side}.{kind}") for kind in ("weight", "bias"))
        composed[f"{side}.weight"] = after if weight is None else after @ weight
        composed[f"{side}.bias"] = shift if bias is None else after @ bias + shift
    return composed
