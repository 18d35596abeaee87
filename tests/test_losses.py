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


# ---------------------------------------------------------------- similarities


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


@pytest.mark.parametrize("similarity", losses.SIMILARITIES)
def test_scores_equal_a_loop_over_pairs_and_keep_leading_axes(similarity):
    q, d = draw(2, 3, 4, 5, seed=1), draw(2, 3, 6, 5, seed=2)
    scores = losses.score_matrix(q, d, similarity)
    assert scores.shape == (2, 3, 4, 6)
    one = {
        "dot": lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)),
        "euclidean": lambda a, b: -sum((x - y) ** 2 for x, y in zip(a, b, strict=True)),
    }
    one["qnorm"] = lambda a, b: one["dot"](a, b) / math.sqrt(one["dot"](a, a))
    one["dnorm"] = lambda a, b: one["dot"](a, b) / math.sqrt(one["dot"](b, b))
    one["cosine"] = lambda a, b: one["dot"](a, b) / math.sqrt(one["dot"](a, a) * one["dot"](b, b))
    for r, k, i, j in itertools.product(range(2), range(3), range(4), range(6)):
        expected = one[similarity](q[r, k, i].tolist(), d[r, k, j].tolist())
        assert float(scores[r, k, i, j]) == pytest.approx(expected, abs=1e-5)


def test_an_unknown_similarity_is_refused_and_the_valid_ones_are_named():
    with pytest.raises(
        InputError, match=r"'manhattan' is unknown, expected one of dot, cosine, qnorm, dnorm, euclidean"
    ):
        losses.score_matrix(draw(2, 3), draw(2, 3), "manhattan")


def test_lengths_neither_underflow_nor_overflow_and_a_zero_row_stays_zero():
    z = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(losses.lengths(z), torch.tensor([5e-30, 5e30, 5.0, 0.0]), rtol=1e-6, atol=0)
    unit = losses.normalize(z[1:])
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))
    assert torch.isfinite(gradient_of(lambda x: losses.normalize(x).sum(), z)).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=seeds, factor=st.floats(1e-3, 1e3).filter(lambda x: abs(math.log(x)) > 0.01))
def test_scaling_the_query_changes_dot_and_never_cosine(seed, factor):
    q, d = draw(4, 8, seed=seed, dtype=torch.float64), draw(5, 8, seed=seed + 1, dtype=torch.float64)
    score = losses.score_matrix
    torch.testing.assert_close(score(factor * q, d, "cosine"), score(q, d, "cosine"), rtol=0, atol=1e-12)
    torch.testing.assert_close(score(factor * q, d, "qnorm"), score(q, d, "qnorm"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score(factor * q, d, "dot"), factor * score(q, d, "dot"), rtol=1e-9, atol=0)
    torch.testing.assert_close(score(factor * q, d, "dnorm"), factor * score(q, d, "dnorm"), rtol=1e-9, atol=0)
    assert not torch.allclose(score(factor * q, d, "dot"), score(q, d, "dot"), rtol=1e-3)
    # documents: cosine and dnorm blind to their length, dot and qnorm not
    torch.testing.assert_close(score(q, factor * d, "cosine"), score(q, d, "cosine"), rtol=0, atol=1e-12)
    torch.testing.assert_close(score(q, factor * d, "dnorm"), score(q, d, "dnorm"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(score(q, factor * d, "qnorm"), factor * score(q, d, "qnorm"), rtol=1e-9, atol=0)


# ---------------------------------------------------------------- InfoNCE


def test_info_nce_by_hand():
    # tau = 0.5, so logits are twice the scores: [[2 ln 2, 0], [0, 2 ln 3]], exponentials [[4, 1], [1, 9]]
    # row 1: -ln(4/5) = ln 1.25; row 2: -ln(9/10) = ln(10/9); mean = (0.223144 + 0.105361)/2 = 0.164252
    scores = torch.tensor([[math.log(2), 0.0], [0.0, math.log(3)]])
    assert float(losses.info_nce(scores, 0.5)) == pytest.approx((math.log(1.25) + math.log(10 / 9)) / 2, abs=1e-6)
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


def test_info_nce_equals_torch_cross_entropy_for_every_run_and_its_own_temperature():
    scores, tau = draw(3, 7, 7, seed=3), torch.tensor([0.05, 0.5, 2.0])
    expected = [torch.nn.functional.cross_entropy(scores[r] / tau[r], torch.arange(7)) for r in range(3)]
    torch.testing.assert_close(losses.info_nce(scores, tau), torch.stack(expected))


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


def test_a_batch_of_one_passage_has_loss_and_gradient_zero():
    scores, same = draw(4, 4, seed=6), torch.ones(4, 4, dtype=torch.bool)
    assert float(losses.info_nce(scores, 0.05, same)) == 0
    assert not gradient_of(lambda s: losses.info_nce(s, 0.05, same), scores).any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor([0.1, 0.0])])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(InputError, match="temperature: expected a number above 0"):
        losses.info_nce(torch.zeros(2, 3, 3), temperature)


@pytest.mark.parametrize(
    ("scale", "nats"),
    [(1, 3.17), (5, 0.33), (10, 0.0024), (20, 1e-7)],  # n = 64, as derived from NormFace for this project
)
def test_the_floor_of_cosine_info_nce_is_reached_by_the_simplex(scale, nats):
    assert losses.info_nce_floor(64, scale) == pytest.approx(nats, rel=0.06)
    corners = simplex(64)
    reached = losses.info_nce(losses.score_matrix(corners, corners, "cosine"), 1 / scale)
    assert float(reached) == pytest.approx(losses.info_nce_floor(64, scale), rel=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=seeds, batch=st.integers(2, 12), scale=st.floats(0.5, 20), noise=st.floats(0, 1), factor=st.floats(0.1, 1e4)
)
def test_cosine_info_nce_never_undercuts_its_floor_and_dot_does(seed, batch, scale, noise, factor):
    q = factor * (simplex(batch) + noise * draw(batch, batch, seed=seed, dtype=torch.float64))
    d = factor * (simplex(batch) + noise * draw(batch, batch, seed=seed + 1, dtype=torch.float64))
    floor = losses.info_nce_floor(batch, scale)
    assert (
        float(losses.info_nce(losses.score_matrix(q, d, "cosine"), 1 / scale)) >= floor * (1 - 1e-9) - 1e-13
    )  # rounding of float64
    longer = 2 * simplex(batch)  # the same directions at length 2: dot sees four times the scale and falls below
    assert float(losses.info_nce(losses.score_matrix(longer, longer, "dot"), 1 / scale)) < max(floor, 1e-12)


# ---------------------------------------------------------------- isotropy


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
    # target 2: (2 - sqrt(2.0001) + 1.99)/2 = (0.585751 + 1.99)/2
    assert float(losses.variance_hinge(z, target=2.0)) == pytest.approx(1.287876, abs=1e-5)


def test_uniformity_and_alignment_by_hand():
    # (1,0), (0,1), (-1,0): squared distances 2, 4, 2; ln((2 e^-4 + e^-8)/3)
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert float(losses.uniformity(z)) == pytest.approx(expected, abs=1e-5)
    # against itself rolled by one: distances 4 (to (-1,0)), 2, 2: mean 8/3
    assert float(losses.alignment(z, z.roll(1, 0))) == pytest.approx(8 / 3, abs=1e-6)
    assert float(losses.alignment(z, -z)) == pytest.approx(4, abs=1e-6)


def test_uniformity_equals_wang_and_isolas_pdist():
    z = losses.normalize(draw(3, 9, 6, seed=8))
    expected = torch.stack([torch.pdist(run).square().mul(-2).exp().mean().log() for run in z])
    torch.testing.assert_close(losses.uniformity(z), expected)


def test_isotropy_terms_equal_slow_loops():
    z = draw(6, 4, seed=9, dtype=torch.float64)
    rows = z.tolist()
    pairs = list(itertools.permutations(range(6), 2))

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    squares = [cosine(rows[i], rows[j]) ** 2 for i, j in pairs]
    assert float(losses.cosine_isotropy(z)) == pytest.approx(sum(squares) / len(squares), rel=1e-12)
    potential = [
        math.exp(-2 * (2 - 2 * cosine(rows[i], rows[j]))) for i, j in pairs
    ]  # |a - b|^2 = 2 - 2 cos on unit rows
    uniform = losses.ISOTROPY["uniformity"]
    assert float(uniform(z)) == pytest.approx(math.log(sum(potential) / len(potential)), rel=1e-12)
    hinge = []
    for k in range(4):
        column = [row[k] for row in rows]
        mean = sum(column) / 6
        hinge.append(max(0.0, 1 - math.sqrt(sum((x - mean) ** 2 for x in column) / 5 + 1e-4)))
    assert float(losses.variance_hinge(z)) == pytest.approx(sum(hinge) / 4, rel=1e-12)


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


def test_the_variance_hinge_asks_for_length_until_the_target_and_then_no_more():
    z = 0.1 * draw(32, 8, seed=10)
    gradient = gradient_of(losses.variance_hinge, z)
    assert float((gradient * (z - z.mean(0))).sum()) < 0  # going down the gradient spreads the rows
    assert float(losses.variance_hinge(10 * z)) < float(losses.variance_hinge(z))
    assert not gradient_of(losses.variance_hinge, 100 * z).any()


@pytest.mark.parametrize(
    ("name", "worst"), [("cosine", 1.0), ("covariance", 1.0), ("variance-hinge", 0.99), ("uniformity", 0.0)]
)
def test_a_collapsed_batch_has_a_bad_finite_value_and_a_finite_gradient(name, worst):
    collapsed = torch.ones(4, 6) * 0.3  # every row the same, as when all units of a deep head are dead
    assert float(losses.ISOTROPY[name](collapsed)) == pytest.approx(worst, abs=1e-5)
    assert torch.isfinite(gradient_of(losses.ISOTROPY[name], collapsed)).all()
    assert float(losses.ISOTROPY[name](draw(32, 6, seed=11))) < worst - 0.5


# ---------------------------------------------------------------- prediction, recovery


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


# ---------------------------------------------------------------- extreme scales

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


# ---------------------------------------------------------------- the argument: what a gradient can do to length

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


@pytest.mark.parametrize("similarity", ["dot", "dnorm", "euclidean"])
def test_the_gradient_of_a_loss_that_sees_the_query_length_is_not_orthogonal_to_it(similarity):
    q = draw(6, 8, seed=13)
    d = q + 0.1 * draw(6, 8, seed=14)
    assert radial(gradient_of(lambda z: TERMS[f"info_nce-{similarity}"](z, 0.1 * d), 0.1 * q), q) > 0.02


@pytest.mark.parametrize(("similarity", "blind"), [("qnorm", "query"), ("dnorm", "document")])
def test_one_normalised_side_is_blind_to_its_length_and_the_other_is_not(similarity, blind):
    q = 0.3 * draw(6, 8, seed=15, dtype=torch.float64)
    d = q + 0.1 * draw(6, 8, seed=16, dtype=torch.float64)
    loss = TERMS[f"info_nce-{similarity}"]
    shares = {"query": radial(gradient_of(lambda z: loss(z, d), q), q),
              "document": radial(gradient_of(lambda z: loss(q, z), d), d)}  # fmt: skip
    assert shares.pop(blind) < 1e-18
    assert next(iter(shares.values())) > 0.02


def test_covariance_isotropy_moves_single_lengths_but_never_their_overall_scale():
    z = draw(6, 5, seed=17, dtype=torch.float64)
    gradient = gradient_of(losses.covariance_isotropy, z)
    assert radial(gradient, z) > 0.01  # a row on its own may grow or shrink ...
    # ... yet sum_i g_i.z_i = 0, Euler's identity for a function of degree 0
    assert abs(float((gradient * z).sum())) < 1e-12 * float(gradient.norm() * z.norm())


def test_a_gradient_step_under_cosine_lengthens_every_embedding_by_pythagoras():
    # g orthogonal to z, so |z - lr g|^2 = |z|^2 + lr^2 |g|^2 (Draganov et al. 2025)
    q, d = draw(8, 16, seed=18, dtype=torch.float64), draw(8, 16, seed=19, dtype=torch.float64)
    gradient = gradient_of(lambda z: TERMS["info_nce-cosine"](z, d), q)
    stepped = q - 0.7 * gradient
    expected = q.square().sum(-1) + 0.7**2 * gradient.square().sum(-1)
    torch.testing.assert_close(stepped.square().sum(-1), expected, rtol=1e-12, atol=0)
    assert (stepped.norm(dim=-1) > q.norm(dim=-1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_an_adamw_step_under_cosine_still_lengthens_embeddings(seed):
    # Adam rescales every coordinate, so a single row may shrink; the mean square length grows from the first step on.
    z = draw(2, 64, 32, seed=20 + seed).requires_grad_()
    optimizer = torch.optim.AdamW([z], lr=0.05, weight_decay=0.0)
    before = z.detach().square().sum(-1).mean().sqrt()
    history = [float(before)]
    for _ in range(20):
        optimizer.zero_grad()
        TERMS["info_nce-cosine"](z[0], z[1]).backward()
        optimizer.step()
        history.append(float(z.detach().square().sum(-1).mean().sqrt()))
    assert history[1] > history[0]
    assert history[-1] > 1.02 * history[0]


def test_a_longer_embedding_gets_a_smaller_gradient_under_cosine():
    q, d = draw(8, 16, seed=30, dtype=torch.float64), draw(8, 16, seed=31, dtype=torch.float64)
    loss = TERMS["info_nce-cosine"]
    near, far = gradient_of(lambda z: loss(z, d), q), gradient_of(lambda z: loss(z, d), 10 * q)
    torch.testing.assert_close(near, 10 * far, rtol=1e-9, atol=1e-15)  # 1/|z|
