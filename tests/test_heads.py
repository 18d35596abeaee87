"""Heads: starts that are exact, runs that do not see each other, and soft whitening against its definition."""

import math

import numpy as np
import pytest
import torch

from asymlib import heads, losses
from asymlib.errors import InputError

DIM = 16
ARCHITECTURES = [("linear", "random"), ("linear", "identity"), ("residual", "random"), ("residual", "identity"),
                 ("deep", "random")]  # fmt: skip


def vectors(n: int = 40, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    """n random vectors of length 1."""
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return z / z.norm(dim=1, keepdim=True)


def test_a_random_start_has_torchs_default_bound_and_gives_unit_vectors_length_082():
    # Entries of W and b are U(-1/sqrt D, 1/sqrt D), variance 1/(3 D). For |x| = 1: E|W x|^2 = D 1/(3 D) = 1/3, E|b|^2 = 1/3,
    # W x and b independent: |W x| about sqrt(1/3) = 0.577, |W x + b| about sqrt(2/3) = 0.816.
    dim = 384
    parameters = heads.start_heads("linear", "random", "both", dim, seed=0)
    for name, value in parameters.items():
        assert 0.9 / math.sqrt(dim) < float(value.abs().max()) <= 1 / math.sqrt(dim), name
        assert float(value.var()) == pytest.approx(1 / (3 * dim), rel=0.15), name
    z = heads.apply_head(parameters, "query", vectors(200, dim, seed=9))  # not the seed of the head
    assert float((z - parameters["query.bias"]).norm(dim=1).mean()) == pytest.approx(0.577, abs=0.01)
    assert float(z.norm(dim=1).mean()) == pytest.approx(0.816, abs=0.02)


@pytest.mark.parametrize(("head", "start"), ARCHITECTURES)
def test_heads_equal_torch_modules(head, start):
    parameters = heads.start_heads(head, start, "query", DIM, seed=1)
    layers = {"linear": [""], "residual": ["up.", "down."], "deep": ["first.", "second.", "third."]}[head]
    modules = []
    for layer in layers:
        module = torch.nn.Linear(DIM, DIM)
        module.load_state_dict({kind: parameters[f"query.{layer}{kind}"] for kind in ("weight", "bias")})
        modules += [module, torch.nn.GELU() if head == "residual" else torch.nn.ReLU()]
    expected = torch.nn.Sequential(*modules[:-1])(vectors()) + (vectors() if head == "residual" else 0)
    torch.testing.assert_close(heads.apply_head(parameters, "query", vectors()), expected)
    assert torch.equal(heads.apply_head(parameters, "document", vectors()), vectors())  # that side has no head


@pytest.mark.parametrize("head", ["linear", "residual"])
def test_an_identity_start_returns_its_input_bit_for_bit(head):
    parameters = heads.start_heads(head, "identity", "both", DIM, seed=3, predictor=True)
    for side in ("query", "document", "predictor"):
        assert torch.equal(heads.apply_head(parameters, side, vectors()), vectors())


@pytest.mark.parametrize(("head", "start"), ARCHITECTURES)
@pytest.mark.parametrize("sides", heads.SIDES)
def test_a_stack_equals_its_single_runs_and_the_start_depends_on_the_seed_alone(head, start, sides):
    singles = [heads.start_heads(head, start, sides, DIM, seed, predictor=True) for seed in (5, 6, 7)]
    again = heads.start_heads(head, start, sides, DIM, 6, predictor=True)
    stacked = heads.stack(singles)
    x = torch.stack([vectors(seed=s) for s in range(3)])
    for r, single in enumerate(singles):
        assert all(torch.equal(heads.unstack(stacked, r)[name], value) for name, value in single.items())
        for side in ("query", "document", "predictor"):
            together = heads.apply_head(stacked, side, x)
            torch.testing.assert_close(together[r], heads.apply_head(single, side, x[r]))
    assert all(torch.equal(again[name], value) for name, value in singles[1].items())
    if (head, start) != ("linear", "identity"):
        assert any(not torch.equal(singles[0][name], value) for name, value in singles[1].items())


def test_sides_decide_which_parameters_exist():
    names = {sides: set(heads.start_heads("linear", "random", sides, 4, 0)) for sides in heads.SIDES}
    assert names["both"] == {"query.weight", "query.bias", "document.weight", "document.bias"}
    assert names["query"] == {"query.weight", "query.bias"}
    assert names["document"] == {"document.weight", "document.bias"}
    assert names["shared"] == {"shared.weight", "shared.bias"}
    shared = heads.start_heads("linear", "random", "shared", DIM, 0)
    assert torch.equal(heads.apply_head(shared, "query", vectors()), heads.apply_head(shared, "document", vectors()))
    both = heads.start_heads("linear", "random", "both", DIM, 0)
    assert not torch.equal(both["query.weight"], both["document.weight"])


def test_a_misspelt_side_is_refused_instead_of_passing_the_input_through():
    parameters = heads.start_heads("linear", "random", "both", DIM, 0)
    with pytest.raises(InputError, match="side: 'documents' is unknown, expected query, document or predictor"):
        heads.apply_head(parameters, "documents", vectors())
    with pytest.raises(InputError, match="no predictor"):
        heads.apply_head(parameters, "predictor", vectors())


@pytest.mark.parametrize(("head", "start"), [("none", "random"), *ARCHITECTURES])
@pytest.mark.parametrize("chunk", [1, 7, 40, 8192])
def test_project_in_chunks_equals_apply_head(head, start, chunk):
    parameters = heads.start_heads(head, start, "both", DIM, seed=2)
    whole = heads.apply_head(parameters, "document", vectors())
    projected = heads.project(parameters, "document", vectors().numpy(), chunk=chunk)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, whole.numpy(), atol=1e-6)


def test_project_takes_read_only_memory_maps_and_nothing_at_all(tmp_path):
    np.save(tmp_path / "x.npy", vectors().numpy().astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    parameters = heads.start_heads("linear", "identity", "both", DIM, seed=2)
    np.testing.assert_array_equal(heads.project(parameters, "query", mapped), np.asarray(mapped, dtype=np.float32))
    assert heads.project(parameters, "query", np.empty((0, DIM), np.float32)).shape == (0, DIM)


def test_vectors_of_another_dimension_are_refused():
    parameters = heads.start_heads("linear", "random", "both", DIM, seed=2)
    with pytest.raises(InputError, match=r"document vectors: shape \(40, 8\), expected \(N, 16\)"):
        heads.project(parameters, "document", vectors(dim=8).numpy())


def skewed(n: int = 300, dim: int = 6) -> np.ndarray:
    """Vectors with very different variances along correlated directions."""
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    return (z * torch.logspace(0, -1.5, dim, dtype=torch.float64) @ turn).numpy()


def test_whitening_with_exponent_0_is_the_identity():
    parameters = heads.soft_whitening(skewed(), 0.0)
    np.testing.assert_allclose(heads.project(parameters, "query", skewed()), skewed(), atol=1e-5)


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0, 2.0])
def test_whitening_raises_each_eigenvalue_to_one_minus_the_exponent(exponent):
    def eigenvalues(x: np.ndarray) -> np.ndarray:
        return np.linalg.eigvalsh(x.T @ x / len(x))

    # z C^(-a/2) has second moments C^(1-a), for C scaled to a trace of D = 6
    z = heads.project(heads.soft_whitening(skewed(), exponent), "query", skewed()).astype(np.float64)
    before = eigenvalues(skewed())
    expected = np.sort((before * 6 / before.sum()) ** (1 - exponent)) * before.sum() / 6
    np.testing.assert_allclose(eigenvalues(z), expected, rtol=1e-3)


def test_whitening_with_fewer_documents_than_dimensions_stays_finite():
    few = heads.soft_whitening(skewed(3), 1.0)
    assert np.isfinite(heads.project(few, "query", skewed())).all()
    # the largest eigenvalue is at least the mean, 1, so none counts as less than 1e-6: a factor of at most 1e-6^(-1/2)
    assert float(few["shared.weight"].abs().max()) <= 1e3


@pytest.mark.parametrize("head", ["linear", "residual", "deep"])
def test_a_zero_vector_stays_zero_after_a_head_with_a_bias(head):
    parameters = heads.start_heads(head, "random", "both", DIM, seed=4)
    x = vectors(5).numpy().copy()
    x[2] = 0
    z = heads.project(parameters, "query", x, chunk=2)
    assert z.any(1).tolist() == [True, True, False, True, True]
    np.testing.assert_allclose(z[:2], heads.apply_head(parameters, "query", torch.from_numpy(x[:2])).numpy(), rtol=1e-6)


def test_exponents_divide_each_sides_vectors_by_a_power_of_their_length():
    parameters = heads.start_heads("linear", "random", "both", DIM, seed=1, exponents=True)
    assert all(parameters[f"{side}.exponent"].tolist() == [0.5] for side in ("query", "document"))
    plain = {name: value for name, value in parameters.items() if not name.endswith(".exponent")}
    parameters["query.exponent"], parameters["document.exponent"] = torch.tensor([0.3]), torch.tensor([-0.2])
    for side, gamma in (("query", 0.3), ("document", -0.2)):
        rows = [z / z.norm() ** gamma for z in heads.apply_head(plain, side, vectors())]
        torch.testing.assert_close(heads.apply_head(parameters, side, vectors()), torch.stack(rows))
        x = torch.cat([vectors(), torch.zeros(1, DIM)]).numpy()
        projected = heads.project(parameters, side, x, chunk=7)
        np.testing.assert_allclose(projected[:-1], torch.stack(rows).numpy(), rtol=1e-5, atol=1e-7)
        assert not projected[-1].any()
    with pytest.raises(InputError, match=r"query vectors: shape \(40, 8\), expected \(N, 16\)"):
        heads.project(parameters, "query", vectors(dim=8).numpy())


@pytest.mark.parametrize(
    ("gammas", "similarity"), [((0, 0), "dot"), ((1, 1), "cosine"), ((1, 0), "qnorm"), ((0, 1), "dnorm")]
)
def test_the_corners_of_the_exponents_are_the_four_similarities(gammas, similarity):
    plain = heads.start_heads("residual", "random", "both", DIM, seed=1)
    exponents = {
        f"{side}.exponent": torch.tensor([float(g)]) for side, g in zip(("query", "document"), gammas, strict=True)
    }
    q, d = (heads.apply_head(plain, side, vectors()) for side in ("query", "document"))
    q_gamma, d_gamma = (heads.apply_head(plain | exponents, side, vectors()) for side in ("query", "document"))
    torch.testing.assert_close(q_gamma @ d_gamma.T, losses.score_matrix(q, d, similarity))


@pytest.mark.parametrize("sides", heads.SIDES)
def test_both_sides_have_exponents_whichever_has_a_head_and_stacks_keep_runs_apart(sides):
    singles = [heads.start_heads("linear", "random", sides, DIM, seed, True, exponents=True) for seed in (5, 6)]
    singles[1]["document.exponent"] = torch.tensor([0.9])
    stacked = heads.stack(singles)
    assert stacked["query.exponent"].shape == (2, 1)
    x = 2 * torch.stack([vectors(seed=s) for s in range(2)])
    for r, single in enumerate(singles):
        assert all(torch.equal(heads.unstack(stacked, r)[name], value) for name, value in single.items())
        for side in ("query", "document", "predictor"):
            torch.testing.assert_close(heads.apply_head(stacked, side, x)[r], heads.apply_head(single, side, x[r]))
    if sides == "query":
        torch.testing.assert_close(heads.apply_head(singles[1], "document", x[1]), x[1] / 2**0.9)


def test_the_gradient_of_an_exponent_is_that_of_the_formula():
    q, d = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    gammas = {f"{side}.exponent": torch.tensor([0.5], requires_grad=True) for side in ("query", "document")}
    score = (heads.apply_head(gammas, "query", q) * heads.apply_head(gammas, "document", d)).sum()
    assert score.item() == pytest.approx(8 / math.sqrt(10))  # q.d = 8, |q| = 2, |d| = 5
    score.backward()  # d score / d gamma = -ln(length) score
    for side, length in (("query", 2), ("document", 5)):
        assert gammas[f"{side}.exponent"].grad.item() == pytest.approx(-math.log(length) * 8 / math.sqrt(10))


@pytest.mark.parametrize("sides", [*heads.SIDES, "none"])
def test_composed_whitening_is_the_head_and_then_the_whitening(sides):
    head = "none" if sides == "none" else "linear"
    parameters = heads.start_heads(
        head, "random", "both" if sides == "none" else sides, 6, seed=3, predictor=sides == "query"
    )
    whitening = heads.soft_whitening(heads.project(parameters, "document", skewed()), 0.4)
    composed = heads.compose(parameters, whitening)
    for side in ("query", "document"):
        x = skewed(20)
        x[3] = 0
        after = heads.project(whitening, side, heads.project(parameters, side, x))
        np.testing.assert_allclose(heads.project(composed, side, x), after, rtol=1e-4, atol=1e-5)
    # a head that only turns and shifts, then whitening by hand: M = diag(2, 1), W = [[0, 1], [1, 0]], b = (1, 3)
    head = {"shared.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "shared.bias": torch.tensor([1.0, 3.0])}
    made = heads.compose(head, {"shared.weight": torch.diag(torch.tensor([2.0, 1.0])), "shared.bias": torch.zeros(2)})
    assert made["shared.weight"].tolist() == [[0, 2], [1, 0]] and made["shared.bias"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("head", "exponents", "named"),
    [("residual", False, "document.down.bias"), ("deep", False, "document.first"), ("linear", True, "document.exp")],
)
def test_what_is_not_linear_does_not_compose(head, exponents, named):
    parameters = heads.start_heads(head, "random", "both", 6, 3, exponents=exponents)
    with pytest.raises(InputError, match=f"compose: {named}.* is no part of a linear head"):
        heads.compose(parameters, heads.soft_whitening(skewed(), 0.1))
