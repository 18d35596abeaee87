"""Heads of learnt scalars on [vector, block of words]: hand-worked scores, a slow loop, and gradients that go the right way."""

import math

import numpy as np
import pytest
import torch

from asymlib import evaluate
from asymlib.data.collections import Collection
from asymlib.errors import InputError
from asymlib.report import words_figures
from asymlib.selection import words_ablation
from asymlib.words.block import Block
from asymlib.words.head import SCALARS, LexicalHead, Task, crops, project, train

TEXTS = ["alpha beta gamma", "beta beta delta epsilon zeta", "gamma", "alpha delta eta theta iota kappa lamda"]


def task(cosine, product, query_length, document_length, positive, known=None):
    numbers = [torch.tensor(one, dtype=torch.float32) for one in (cosine, product, query_length, document_length)]
    known = torch.zeros(numbers[0].shape, dtype=torch.bool) if known is None else torch.tensor(known)
    return Task(*numbers, torch.tensor(positive), known)


def test_one_score_by_hand():
    """x = (3, 4), y = (0, 2): cosine 0.8. r = (4, 0), l = 4, typical 2: weight e^ln(0.5) (4 / 2)^2 = 2, so (2, 0).
    Document block (3, 4), length 5, exponent 0.5: (3, 4) / sqrt(5). Score 0.8 + 2 x 3 / sqrt(5)."""
    head = LexicalHead(math.log(0.5), slope=2.0, exponent=0.5, typical=2.0)
    query = project(head, "query", np.array([[3.0, 4.0]], np.float32), np.array([[4.0, 0.0]], np.float32))
    document = project(head, "document", np.array([[0.0, 2.0]], np.float32), np.array([[3.0, 4.0]], np.float32))
    assert query.dtype == document.dtype == np.float32
    np.testing.assert_allclose(query, [[0.6, 0.8, 2.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(document, [[0.0, 1.0, 3 / 5**0.5, 4 / 5**0.5]], rtol=1e-6)
    assert (query @ document.T).item() == pytest.approx(0.8 + 6 / 5**0.5, rel=1e-6)


def test_projections_are_a_slow_loop_and_zeros_stay_zero():
    draw = np.random.default_rng(0)
    vectors, raw = draw.normal(size=(5, 3)).astype(np.float32), draw.normal(size=(5, 4)).astype(np.float32)
    vectors[1], raw[2] = 0, 0
    head = LexicalHead(-0.3, slope=0.7, exponent=0.4, typical=1.7)
    for side in ("query", "document"):
        for x, r, found in zip(vectors, raw, project(head, side, vectors, raw), strict=True):
            length = math.sqrt(sum(float(value) ** 2 for value in r))
            by = length**-head.exponent if length else 0.0
            if side == "query":
                by = (
                    math.exp(head.log_weight + head.slope * math.log(length / head.typical)) / length if length else 0.0
                )
            expected = [*(x / max(np.linalg.norm(x), 1e-30)), *(r * by)]
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_an_untrained_head_is_the_block(exponent):
    block = Block.fit(TEXTS, dimensions=16, exponent=exponent)
    vectors = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    for side in ("query", "document"):
        found = project(LexicalHead.untrained(block), side, vectors, block.raw(side, TEXTS))
        np.testing.assert_allclose(found, block.join(side, vectors, TEXTS), rtol=2e-6, atol=1e-7)


def test_loss_by_hand():
    """Scores 0.5 + 2 x 0.1 x 1 = 0.7 (own), 0.2 + 2 x 0.3 x 4^-0.5 = 0.5; the third is a known positive and left out.
    At temperature 0.1: ln(1 + e^(5 - 7))."""
    values = {"log_weight": torch.tensor(math.log(2.0)), "slope": torch.tensor(1.0), "exponent": torch.tensor(0.5)}
    one = task([[0.5, 0.2, 9.0]], [[0.1, 0.3, 9.0]], [3.0], [1.0, 4.0, 1.0], [0], [[True, False, True]])
    found = one.loss(values, 3.0, torch.tensor(0.1), torch.tensor([0]))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_scalars_move_the_right_way_and_others_stay():
    """The positive's words match where its cosine does not: weight up. The positive is the longer: exponent down; the shorter:
    up. Words help long queries and mislead short ones: slope up."""
    start = LexicalHead(math.log(0.6))
    words = task([[0.4, 0.5]], [[0.3, 0.1]], [1.0], [1.0, 1.0], [0])
    head = train([words], start, ["log_weight"], steps=5)
    assert head.log_weight > start.log_weight and (head.slope, head.exponent) == (0, 0)
    longer = task([[0.5, 0.5]], [[0.3, 0.3]], [1.0], [2.0, 0.5], [0])
    shorter = task([[0.5, 0.5]], [[0.3, 0.3]], [1.0], [0.5, 2.0], [0])
    assert (
        train([longer], start, ["exponent"], steps=5).exponent
        < 0
        < train([shorter], start, ["exponent"], steps=5).exponent
    )
    mixed = task([[0.5, 0.5]] * 2, [[0.3, 0.1], [0.1, 0.3]], [4.0, 1.0], [1.0, 1.0], [0, 0])
    head = train([mixed], start, ["slope"], steps=5)
    assert head.slope > 0 and head.typical == pytest.approx(2.0)  # sqrt(4 x 1)


def test_a_known_positive_leaves_all_numbers_finite_and_a_seed_repeats():
    draw = np.random.default_rng(3)
    one = task(draw.normal(size=(6, 8)), draw.normal(size=(6, 8)), draw.uniform(1, 4, 6), draw.uniform(0.5, 2, 8),
               list(range(6)), draw.random((6, 8)) < 0.3)  # fmt: skip
    first, again, other = (train([one, one], LexicalHead(0.0), seed=seed, steps=10, batch_size=3) for seed in (0, 0, 1))
    assert all(math.isfinite(getattr(first, name)) for name in SCALARS) and first == again != other


def test_a_task_holds_the_scores_of_its_pairs():
    queries, documents = ["alpha", "beta", "alpha", "epsilon"], [TEXTS[0], TEXTS[1], TEXTS[3], TEXTS[1]]
    draw = np.random.default_rng(2)
    vectors = draw.normal(size=(4, 3)).astype(np.float32), draw.normal(size=(4, 3)).astype(np.float32)
    vectors[1][3] = vectors[1][1]
    block = Block.fit(TEXTS, dimensions=64)
    found = Task.of((queries, documents), vectors, block)
    order = np.random.default_rng(0).permutation(4)
    columns = list(dict.fromkeys(documents[i] for i in order))
    assert found.cosine.shape == found.known.shape == (4, 3)
    for row, i in enumerate(order):
        assert columns[found.positive[row]] == documents[i]
        joined = {documents[j] for j in range(4) if queries[j] == queries[i]}
        assert {columns[j] for j in found.known[row].nonzero()[:, 0]} == joined
        for column, text in enumerate(columns):
            y = vectors[1][documents.index(text)]
            cosine = vectors[0][i] @ y / np.linalg.norm(vectors[0][i]) / np.linalg.norm(y)
            assert found.cosine[row, column].item() == pytest.approx(cosine, abs=1e-5)
            product = block.block("query", [queries[i]]) @ block.raw("document", [text]).T
            assert found.product[row, column].item() == pytest.approx(product.item(), abs=1e-5)
    few = Task.of((queries, documents), vectors, block, queries=1, documents=2, seed=5)
    assert few.cosine.shape[0] == 1 and few.cosine.shape[1] <= 2


def test_crops_cut_documents_in_two():
    long, longer = " ".join(f"w{i}" for i in range(20)), " ".join(f"v{i}" for i in range(40))
    queries, ends = crops([long, "too short", longer, long], 5)
    assert sorted(f"{q} {e}" for q, e in zip(queries, ends, strict=True)) == sorted([long, longer])
    assert all(0.3 <= len(q.split()) / len(f"{q} {e}".split()) <= 0.7 for q, e in zip(queries, ends, strict=True))
    assert len(crops([long, longer], 1)[0]) == 1 and crops(["short"], 3) == ([], [])


def test_a_head_is_found_again_and_what_is_wrong_is_named(tmp_path):
    head = LexicalHead(-0.25, 0.5, 0.125, 3.0)
    head.save(tmp_path / "head.json")
    assert LexicalHead.load(tmp_path / "head.json") == head
    text = (tmp_path / "head.json").read_text()
    (tmp_path / "head.json").write_text(text.replace("0.125", "0.25"))
    with pytest.raises(InputError, match=r"head\.json.*train the lexical head again"):
        LexicalHead.load(tmp_path / "head.json")
    with pytest.raises(InputError, match="above 0, found 0"):
        LexicalHead.untrained(Block(weight=0.0))
    with pytest.raises(InputError, match="2 vectors and 1 blocks"):
        project(head, "query", np.ones((2, 3), np.float32), np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="learnt among log_weight"):
        train([task([[1.0]], [[1.0]], [1.0], [1.0], [0])], head, ["bias"])
    with pytest.raises(InputError, match="none has two vectors"):
        Task.of((["a"], ["b"]), (np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)), Block.fit(TEXTS))


@pytest.fixture(scope="module")
def collection():
    draw = np.random.default_rng(4)
    queries = ["alpha beta", "delta", "kappa gamma"]
    documents = [f"{text} {i}{i}" for i, text in enumerate(TEXTS * 5)]
    ids, asked = [f"d{i}" for i in range(20)], ["q0", "q1", "q2"]
    vectors = {"query_vectors": draw.normal(size=(3, 6)), "document_vectors": draw.normal(size=(20, 6))}
    vectors = {name: value.astype(np.float32) for name, value in vectors.items()}
    return Collection(
        "small", ids, documents, asked, queries, {q: {f"d{i}": 1} for i, q in enumerate(asked)}, **vectors
    )


def test_the_ablation_ranks_as_joined_vectors_do(collection):
    changes = words_ablation.variants({"stemmer": "english"}, [8], [0, 1])
    table = words_ablation.ablate(collection, collection.documents, changes, weights=[0.3, 0.6], exponents=[0.0, 1.0])
    assert table["varied"].value_counts().to_dict() == {
        "weight": 4,
        "dimensions": 2,
        "seed": 1,
        "stop words": 2,
        "stems": 1,
    }
    for row in table.itertuples():
        block = Block.fit(
            collection.documents, dimensions=row.dimensions, weight=row.weight, exponent=row.exponent, seed=row.seed,
            stop_words=row.stop_words, stemmer=None if row.stemmer == "none" else row.stemmer,
        )  # fmt: skip
        q = block.join("query", collection.query_vectors, collection.queries)
        d = block.join("document", collection.document_vectors, collection.documents)
        assert row.mean == pytest.approx(evaluate.rank(collection.judgements, q, d, "dot", "dot").mean())
    whole = words_ablation.with_average(table)
    average = whole[whole["dataset"] == "average"]
    assert len(average) == len(table) and (average["delta_percent"].to_numpy() == pytest.approx(
        100 * (table["mean"] / table["baseline"] - 1).to_numpy()
    ))  # fmt: skip


def test_cost_counts_bytes_and_figure_draws_every_collection(collection):
    cost = words_ablation.cost(collection, {"lexical": Block.fit(collection.documents, dimensions=10)}, repeats=1)
    assert cost["dimensions"].tolist() == [6, 16] and cost["bytes_a_text"].tolist() == [24, 64]
    assert (cost["milliseconds_a_query"] > 0).all()
    table = words_ablation.ablate(collection, TEXTS, words_ablation.variants({}, [], []), [0.3, 0.6], [0.0, 0.5, 1.0])
    figure, shown = words_figures.words_weight(words_ablation.with_average(table))
    assert len(figure.axes) == 3 and len(shown) == 12
    assert {line.get_label() for line in figure.axes[0].lines} >= {"small", "average"}
