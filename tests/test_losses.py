"""Losses: hand-worked numbers, slow loops, outside oracles, extreme scales, and the properties that carry the argument."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymlib import losses
from asymlib.errors import InputError

SCALES = (1e-6, 1.0, 1e6)
seeds = st.integers(0, 2**31 - 1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def simplex(n: int) -> torch.Tensor:
    """n unit vectors with every pairwise cosine -1/(n - 1): the corners of a regular simplex around 0."""
    corners = torch.eye(n, dtype=torch.float64) - 1 / n
    return corners / corners.norm(dim=1, keepdim=True)


def gradient_of(loss, z: torch.Tensor) -> torch.Tensor:
    z = z.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


def radial(gradient: torch.Tensor, z: torch.Tensor) -> float:
    """Share of the squared gradient along each row of z, in plain steps."""
    along = (gradient * z).sum(-1) / z.norm(dim=-1)
    return float(along.square().sum() / gradient.square().sum())


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        # q = (3, 4), |q| = 5; d1 = (1, 0), |d1| = 1; d2 = (6, 8), |d2| = 10
        ("dot", [3.0, 50.0]),  # 3*1 + 4*0; 3*6 + 4*8 = 18 + 32
        ("cosine", [0.6, 1.0]),  # 3/(5*1); 50/(5*10)
        ("qnorm", [0.6, 10.0]),  # 3/5; 50/5
        ("dnorm", [3.0, 5.0]),  # 3/1; 50/10
        ("euclidean", [-20.0, -25.0]),  # -((3-1)^2 + 4^2) = -(4 + 16); -((3-6)^2 + (4-8)^2) = -(9 + 16)
    ],
)
def test_each_similarity_by_hand(similarity, expected):
    q, d = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [6.0, 8.0]])
    torch.testing.assert_close(losses.score_matrix(q, d, similarity), torch.tensor([expected]))


def test_an_unknown_similarity_is_refused_and_the_valid_ones_are_named():
    with pytest.raises(
        InputError, match="'manhattan' is unknown, expected one of dot, cosine, qnorm, dnorm, euclidean"
    ):
        losses.score_matrix(draw(2, 3), draw(2, 3), "manhattan")


def test_lengths_neither_underflow_nor_overflow_and_a_zero_row_stays_zero():
    z = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(losses.lengths(z), torch.tensor([5e-30, 5e30, 5.0, 0.0]), rtol=1e-6, atol=0)
    unit = losses.normalize(z[1:])
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))
    assert torch.isfinite(gradient_of(lambda x: losses.normalize(x).sum(), z)).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=seeds, factor=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("name", ["dot", "cosine", "qnorm", "dnorm"])
def test_a_side_that_is_normalised_is_blind_to_its_length_and_the_other_is_not(name, seed, factor):
    q, d = draw(4, 8, seed=seed, dtype=torch.float64), draw(5, 8, seed=seed + 1, dtype=torch.float64)
    scores, (blind_query, blind_document) = losses.score_matrix(q, d, name), losses.SIMILARITIES[name]
    for longer, blind in (((factor * q, d), blind_query), ((q, factor * d), blind_document)):
        expected = scores if blind else factor * scores
        torch.testing.assert_close(losses.score_matrix(*longer, name), expected, rtol=1e-9, atol=1e-12)


def test_info_nce_by_hand():
    # tau = 0.5, so logits are twice the scores: [[2 ln 2, 0], [0, 2 ln 3]], exponentials [[4, 1], [1, 9]]
    # row 1: -ln(4/5) = ln 1.25; row 2: -ln(9/10) = ln(10/9); mean = (0.223144 + 0.105361)/2 = 0.164252
    scores = torch.tensor([[math.log(2), 0.0], [0.0, math.log(3)]])
    assert float(losses.info_nce(scores, 0.5)) == pytest.approx(0.164252, abs=1e-6)


def test_columns_beyond_the_square_are_negatives_of_every_row_unless_masked():
    # exp of the logits: row 0: 2, 1, 4 and row 1: 1, 3, 5; the positive is on the diagonal
    scores = torch.log(torch.tensor([[2.0, 1.0, 4.0], [1.0, 3.0, 5.0]]))
    expected = -(math.log(2 / 7) + math.log(3 / 9)) / 2
    assert float(losses.info_nce(scores, 1.0)) == pytest.approx(expected)
    same = torch.tensor([[True, False, True], [False, True, False]])  # the third document is a positive of query 0
    expected = -(math.log(2 / 3) + math.log(3 / 9)) / 2
    assert float(losses.info_nce(scores, 1.0, same)) == pytest.approx(expected)
    with pytest.raises(InputError, match="expected at least as many documents as queries"):
        losses.info_nce(scores.T, 1.0)


def test_info_nce_equals_sentence_transformers_for_cosine_and_dot():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim, dot_score

    q, d = draw(6, 16, seed=4), draw(6, 16, seed=5)
    for similarity, function in (("cosine", cos_sim), ("dot", dot_score)):
        theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0, similarity_fct=function)
        ours = losses.info_nce(losses.score_matrix(q, d, similarity), 0.05)
        torch.testing.assert_close(ours, theirs.compute_loss_from_embeddings([q, d], torch.arange(6)))


def test_a_repeated_passage_is_not_a_negative():
    # logits [[ln 2, ln 2, 0], [ln 2, ln 2, 0], [0, 0, ln 3]]; documents 0 and 1 are the same passage.
    # rows 1 and 2 keep exponentials 2 and 1: -ln(2/3); row 3 keeps 1, 1, 3: -ln(3/5)
    two, three = math.log(2), math.log(3)
    scores = torch.tensor([[two, two, 0.0], [two, two, 0.0], [0.0, 0.0, three]])
    passage = torch.tensor([7, 7, 9])
    same = passage[:, None] == passage[None, :]
    expected = (2 * math.log(1.5) + math.log(5 / 3)) / 3
    assert float(losses.info_nce(scores, 1.0, same)) == pytest.approx(expected, abs=1e-6)
    assert float(losses.info_nce(scores, 1.0)) > expected + 0.1
    gradient = gradient_of(lambda s: losses.info_nce(s, 1.0, same), scores)
    assert gradient[0, 1] == 0 and gradient[1, 0] == 0 and gradient[0, 2] > 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor([0.1, 0.0])])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(InputError, match="temperature: expected a number above 0"):
        losses.info_nce(torch.zeros(2, 3, 3), temperature)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=seeds, batch=st.integers(2, 12), scale=st.floats(0.5, 20), noise=st.floats(0, 1))
def test_cosine_info_nce_never_undercuts_normfaces_floor_and_dot_does(seed, batch, scale, noise):
    # log(1 + (n - 1) exp(-s n/(n - 1))), s = 1/tau, NormFace 2017 (arXiv:1704.06369): every positive cosine 1, all others
    # -1/(n - 1), as at the corners of a simplex. Rounding of float64 is allowed for.
    floor = math.log1p((batch - 1) * math.exp(-scale * batch / (batch - 1)))
    corners = simplex(batch)
    q, d = (corners + noise * draw(batch, batch, seed=seed + i, dtype=torch.float64) for i in (0, 1))

    def loss(x, y, similarity):
        return float(losses.info_nce(losses.score_matrix(x, y, similarity), 1 / scale))

    assert loss(100 * q, d, "cosine") >= floor * (1 - 1e-9) - 1e-13
    assert loss(corners, corners, "cosine") == pytest.approx(floor, rel=1e-6, abs=1e-13)
    assert loss(2 * corners, 2 * corners, "dot") < max(floor, 1e-12)  # length 2: dot sees four times the scale


def test_cosine_isotropy_by_hand():
    # rows (1,0), (0,2), (3,3): cosines 0, 1/sqrt 2, 1/sqrt 2; squares 0, 1/2, 1/2; mean over the three pairs = 1/3
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert float(losses.cosine_isotropy(z)) == pytest.approx(1 / 3, abs=1e-6)
    assert float(losses.cosine_isotropy(torch.eye(4))) == 0
    assert float(losses.cosine_isotropy(torch.tensor([[1.0, 1.0], [-2.0, -2.0]]))) == pytest.approx(1, abs=1e-6)


def test_covariance_isotropy_by_hand():
    # rows (+-1, 0), (0, +-1): mean 0, C = diag(2, 2)/3, C D/tr(C) = I: value 0
    round_cloud = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(losses.covariance_isotropy(round_cloud)) == pytest.approx(0, abs=1e-6)
    # rows (+-1, 0) alone, D = 2: C D/tr(C) = diag(2, 0); |diag(1, -1)|^2 / 2 = 1 = D - 1
    assert float(losses.covariance_isotropy(round_cloud[:2])) == pytest.approx(1, abs=1e-6)
    # rows (+-2, 0), (0, +-1): C proportional to diag(4, 1); times 2/5: diag(1.6, 0.4); (0.36 + 0.36)/2 = 0.36
    stretched = round_cloud * torch.tensor([2.0, 1.0])
    assert float(losses.covariance_isotropy(stretched)) == pytest.approx(0.36, abs=1e-6)


@pytest.mark.parametrize(("batch", "dim"), [(5, 16), (64, 8), (16, 16)])
def test_covariance_isotropy_equals_the_explicit_formula(batch, dim):
    z = draw(3, batch, dim, seed=7, dtype=torch.float64) * torch.linspace(0.5, 2, dim, dtype=torch.float64) + 1
    for run, value in zip(z, losses.covariance_isotropy(z), strict=True):
        covariance = torch.cov(run.T)
        shape = covariance * dim / covariance.trace() - torch.eye(dim, dtype=torch.float64)
        assert float(value) == pytest.approx(float(shape.square().sum() / dim), rel=1e-9)


def test_variance_hinge_by_hand():
    # dimension 1: values -1, 1: variance (1 + 1)/1 = 2, std > 1: hinge 0; dimension 2: constant: sqrt(1e-4) = 0.01: 0.99
    z = torch.tensor([[-1.0, 3.0], [1.0, 3.0]])
    assert float(losses.variance_hinge(z)) == pytest.approx(0.99 / 2, abs=1e-6)
    # half the first column: variance 1/2: (1 - sqrt(0.5001) + 0.99)/2 = (0.292822 + 0.99)/2
    half = z * torch.tensor([0.5, 1.0])
    assert float(losses.variance_hinge(half)) == pytest.approx(0.641411, abs=1e-5)


def test_uniformity_and_alignment_by_hand():
    # (1,0), (0,1), (-1,0): squared distances 2, 4, 2; ln((2 e^-4 + e^-8)/3)
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert float(losses.uniformity(z)) == pytest.approx(expected, abs=1e-5)
    # against itself rolled by one: distances 4 (to (-1,0)), 2, 2: mean 8/3
    assert float(losses.alignment(z, z.roll(1, 0))) == pytest.approx(8 / 3, abs=1e-6)
    assert float(losses.alignment(z, -z)) == pytest.approx(4, abs=1e-6)
    unit = losses.normalize(draw(3, 9, 6, seed=8))  # as Wang and Isola write it, with pdist
    expected = torch.stack([torch.pdist(run).square().mul(-2).exp().mean().log() for run in unit])
    torch.testing.assert_close(losses.uniformity(unit), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_what_each_isotropy_term_sees_of_length(seed, factor):
    z = draw(6, 5, seed=seed, dtype=torch.float64)
    each = draw(6, 1, seed=seed + 1, dtype=torch.float64).exp()  # a factor for every row on its own
    for name in ("cosine", "uniformity"):  # angle alone: not even a factor for each row changes them
        term = losses.ISOTROPY[name]
        assert float(term(z * each * factor)) == pytest.approx(float(term(z)), rel=1e-9, abs=1e-12)
    covariance = losses.ISOTROPY["covariance"]  # one factor for all does not change it, a factor for each row does
    assert float(covariance(z * factor)) == pytest.approx(float(covariance(z)), rel=1e-9)
    uneven = torch.tensor([100.0, 1, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    assert float(covariance(z * uneven)) > float(covariance(z)) + 0.05


@pytest.mark.parametrize(
    ("name", "worst"), [("cosine", 1.0), ("covariance", 1.0), ("variance-hinge", 0.99), ("uniformity", 0.0)]
)
def test_a_collapsed_batch_has_a_bad_finite_value_and_a_finite_gradient(name, worst):
    collapsed = torch.ones(4, 6) * 0.3  # every row the same, as when all units of a deep head are dead
    assert float(losses.ISOTROPY[name](collapsed)) == pytest.approx(worst, abs=1e-5)
    assert torch.isfinite(gradient_of(losses.ISOTROPY[name], collapsed)).all()
    assert float(losses.ISOTROPY[name](draw(32, 6, seed=11))) < worst - 0.5


def test_prediction_by_hand_and_the_document_gets_no_gradient():
    # cosines (3,4).(1,0)/5 = 0.6 and (0,2).(0,-1)/2 = -1: 1 - (0.6 - 1)/2 = 1.2
    predicted = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    d = torch.tensor([[1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    value = losses.prediction(predicted, d)
    assert float(value.detach()) == pytest.approx(1.2, abs=1e-6)
    to_prediction, to_document = torch.autograd.grad(value, [predicted, d], allow_unused=True)
    assert to_prediction.any() and to_document is None
    assert float(losses.prediction(1e3 * predicted, 1e-3 * d).detach()) == pytest.approx(1.2, abs=1e-6)


def test_recovery_by_hand():
    # |z - x|^2 = 1 and 4, mean 2.5; |x|^2 = 1 and 9, mean 5: 0.5
    x, z = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    assert float(losses.recovery(z, x)) == pytest.approx(0.5)
    assert float(losses.recovery(x, x)) == 0
    assert float(losses.recovery(2 * x, x)) == pytest.approx(1)  # doubling every length costs (2 - 1)^2


TERMS = {
    **{
        f"info_nce-{name}": lambda q, d, name=name: losses.info_nce(losses.score_matrix(q, d, name), 0.05)
        for name in losses.SIMILARITIES
    },
    **{f"isotropy-{name}": lambda q, d, term=term: term(q) + term(d) for name, term in losses.ISOTROPY.items() if term},
    "uniformity-raw": lambda q, d: losses.uniformity(q) + losses.uniformity(d),
    "alignment": losses.alignment,
    "prediction": losses.prediction,
    "recovery": losses.recovery,
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("query_scale", "document_scale"), list(itertools.product(SCALES, SCALES)))
def test_every_term_and_its_gradient_are_finite_at_extreme_lengths(name, query_scale, document_scale):
    q = (query_scale * draw(2, 8, 16, seed=11)).requires_grad_()
    d = (document_scale * draw(2, 8, 16, seed=12)).requires_grad_()
    value = TERMS[name](q, d)
    assert value.shape == (2,) and torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), [q, d], allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


ANGLE_ONLY = ("info_nce-cosine", "isotropy-cosine", "isotropy-uniformity", "prediction")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds, scale=st.floats(1e-2, 1e2), name=st.sampled_from(ANGLE_ONLY))
def test_the_gradient_of_a_cosine_loss_is_orthogonal_to_the_embedding(seed, scale, name):
    q, d = scale * draw(6, 8, seed=seed, dtype=torch.float64), draw(6, 8, seed=seed + 1, dtype=torch.float64)
    gradient = gradient_of(lambda z: TERMS[name](z, d), q)
    assert float(gradient.abs().max()) > 0
    assert radial(gradient, q) < 1e-18
    # row by row, not only in sum
    cosines = (gradient * q).sum(-1).abs() / (gradient.norm(dim=-1) * q.norm(dim=-1))
    assert float(cosines.max()) < 1e-7


@pytest.mark.parametrize("similarity", ["dot", "qnorm", "dnorm"])
def test_the_gradient_of_a_loss_that_sees_a_side_length_is_not_orthogonal_to_it(similarity):
    q = 0.3 * draw(6, 8, seed=15, dtype=torch.float64)
    d = q + 0.1 * draw(6, 8, seed=16, dtype=torch.float64)
    loss = TERMS[f"info_nce-{similarity}"]
    shares = (radial(gradient_of(lambda z: loss(z, d), q), q), radial(gradient_of(lambda z: loss(q, z), d), d))
    for share, blind in zip(shares, losses.SIMILARITIES[similarity], strict=True):
        assert share < 1e-18 if blind else share > 0.02
