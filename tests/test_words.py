"""The words' block: a formula by hand, BM25 in many dimensions, sklearn's hashing, files, and the encoder that joins both."""

from dataclasses import replace
from math import log, sqrt

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher

from asymlib.encoding.encode import encode
from asymlib.errors import InputError
from asymlib.files import read_record, write_record
from asymlib.words.block import Block, Counts, LexicalEncoder, tokenize
from asymlib.words.bm25 import BM25
from tests.small_encoders import some_texts

TEXTS = ["red fox, red dog!", "Dog sleeps", "the", ""]
PROSE = [text.replace("w", "word") for text in some_texts(60, seed=3)]


def test_the_formula_by_hand():
    # N = 4 texts of 4, 2, 0, 0 words: 1.5 on average; df: red 1, fox 1, dog 2, sleeps 1
    # idf(df 1) = ln(1 + 3.5/1.5) = ln(10/3), idf(df 2) = ln(1 + 2.5/2.5) = ln 2, never seen: ln(1 + 4.5/0.5) = ln 10
    # saturation of the first text: 0.9 (0.6 + 0.4 * 4/1.5) = 1.5; red: 2 * 1.9 / (2 + 1.5), fox and dog: 1.9 / (1 + 1.5)
    # of the second: 0.9 (0.6 + 0.4 * 2/1.5) = 1.02; dog and sleeps: 1.9 / (1 + 1.02)
    block = Block.fit(TEXTS, dimensions=2**20)
    assert (block.texts, block.mean_words) == (4, 1.5)
    assert block.frequency == {"red": 1, "fox": 1, "dog": 2, "sleeps": 1}
    one, two, none = sqrt(log(10 / 3)), sqrt(log(2)), sqrt(log(10))
    first = [one * 3.8 / 3.5, one * 1.9 / 2.5, two * 1.9 / 2.5]
    second = [two * 1.9 / 2.02, one * 1.9 / 2.02]
    lengths = [np.linalg.norm(first), np.linalg.norm(second)]
    assert block.mean_length == pytest.approx(np.mean(lengths))
    raw = block.raw("document", TEXTS)
    assert (raw.shape, raw.dtype) == ((4, 2**20), np.float32)
    np.testing.assert_allclose(np.linalg.norm(raw, axis=1), [*lengths / np.mean(lengths), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(sorted(np.abs(raw[0][raw[0] != 0])), sorted(first / np.mean(lengths)), rtol=1e-6)
    asked = block.raw("query", ["dog zebra dog"])[0]  # binary, of a word seen and one never seen
    np.testing.assert_allclose(sorted(np.abs(asked[asked != 0])), [two, none], rtol=1e-6)
    score = block.raw("query", ["dog fox"]) @ raw[0]  # signs cancel
    assert score[0] == pytest.approx((log(2) * 1.9 / 2.5 + log(10 / 3) * 1.9 / 2.5) / np.mean(lengths), rel=1e-6)


def test_exponents_and_the_joined_product():
    block, rng = Block.fit(PROSE, dimensions=96, weight=0.3), np.random.default_rng(0)
    raw = block.raw("document", PROSE)
    length = np.linalg.norm(raw, axis=1)
    assert length.mean() == pytest.approx(1, rel=1e-6)
    for exponent in (0.0, 0.5, 1.0):
        found = np.linalg.norm(block.with_settings(exponent=exponent).block("document", PROSE), axis=1)
        np.testing.assert_allclose(found, length ** (1 - exponent), rtol=1e-5)
    x, y = rng.normal(size=(2, 60, 8)).astype(np.float32) * 7
    x[3] = 0
    q, d = block.join("query", x, PROSE), block.join("document", y, PROSE)
    assert (q.shape, q.dtype, d.dtype) == ((60, 104), np.float32, np.float32)
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, y, block.raw("query", PROSE))]
    np.testing.assert_allclose(q @ d.T, unit[0] @ unit[1].T + 0.3 * unit[2] @ raw.T, atol=2e-6)
    np.testing.assert_array_equal(q[3, :8], 0)


def test_texts_without_a_word_keep_their_dense_part_and_no_texts_are_no_rows():
    block = Block.fit(PROSE, dimensions=16)
    for exponent in (0.0, 1.0):
        joined = block.with_settings(exponent=exponent).join("document", np.full((2, 4), 2.0), ["of the", "!"])
        np.testing.assert_array_equal(joined, np.hstack([np.full((2, 4), 0.5), np.zeros((2, 16))]).astype(np.float32))
    assert block.join("query", np.zeros((0, 4)), []).shape == (0, 20)


def test_in_many_dimensions_the_product_is_bm25_of_distinct_words():
    block, queries = Block.fit(PROSE, dimensions=2**22, seed=5), [" ".join({*text.split()}) for text in PROSE[:9]]
    found = block._hashed("query", Counts.of(queries)) @ block._hashed("document", Counts.of(PROSE)).T
    np.testing.assert_allclose(found.toarray(), 1.9 * BM25(PROSE).scores(queries), rtol=1e-5)  # which leaves out k1 + 1


def test_axes_and_signs_are_those_of_sklearn():
    ours = Block.fit(PROSE, dimensions=50).raw("query", PROSE)
    ids, words = tokenize(PROSE)
    idf = {word: log(1 + (60 - n + 0.5) / (n + 0.5)) for word, n in Block.fit(PROSE).frequency.items()}
    rows = [{words[i]: sqrt(idf[words[i]]) for i in {*row.tolist()}} for row in ids]
    np.testing.assert_allclose(ours, FeatureHasher(50).transform(rows).toarray(), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(60)), st.integers(1, 60), st.sampled_from([None, "english"]))
def test_a_text_has_the_same_bits_in_any_company(order, count, stemmer):
    block = Block.fit(PROSE, dimensions=32, stemmer=stemmer)
    part = order[:count]
    np.testing.assert_array_equal(
        block.raw("document", [PROSE[i] for i in part]), block.raw("document", PROSE)[part], strict=True
    )


def test_the_order_of_bm25s_own_numbers_decides_nothing(monkeypatch):
    """For stems it is that of a Python set, another one in each process."""
    expected, original = Block.fit(PROSE, dimensions=8, stemmer="english").raw("document", PROSE), bm25s.tokenize

    def backwards(*texts, **how):
        ids, vocabulary = original(*texts, **how)
        last = len(vocabulary) - 1
        return [[last - i for i in row] for row in ids], {word: last - i for word, i in vocabulary.items()}

    monkeypatch.setattr(bm25s, "tokenize", backwards)
    found = Block.fit(PROSE, dimensions=8, stemmer="english").raw("document", PROSE)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_stop_words_and_stems():
    texts = ["The foxes were sleeping", "it is a fox"]
    assert tokenize(texts)[1] == ["fox", "foxes", "sleeping"]
    assert tokenize(texts, "english")[1] == ["fox", "foxes", "sleeping", "were"]
    assert tokenize(texts, "none")[1] == ["fox", "foxes", "is", "it", "sleeping", "the", "were"]
    assert tokenize(texts, stemmer="english")[1] == ["fox", "sleep"]
    stems = Block.fit(texts, dimensions=64, stemmer="english")
    np.testing.assert_array_equal(*stems.raw("query", ["sleeping foxes", "fox sleeps"]))
    with pytest.raises(InputError, match="counts: made with"):
        stems.raw("query", Counts.of(texts))


def test_counts_serve_many_blocks():
    counts = Counts.of(PROSE)
    for seed in (0, 1):
        block = Block.fit(counts, dimensions=24, seed=seed)
        assert block == Block.fit(PROSE, dimensions=24, seed=seed)
        np.testing.assert_array_equal(block.raw("document", counts), block.raw("document", PROSE))
    assert not np.array_equal(block.raw("query", counts), Block.fit(counts, dimensions=24).raw("query", counts))


def test_a_saved_block_is_the_same_and_altered_files_are_refused(tmp_path):
    block = Block.fit([*PROSE, "naïve Straße 日本語"], dimensions=24, weight=0.5, stemmer="english", seed=3)
    block.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block.json", "block.safetensors"]
    assert Block.load(tmp_path) == block
    record = read_record(tmp_path / "block.json", "")
    write_record(tmp_path / "block.json", {**record, "more": 1})
    with pytest.raises(InputError, match="not a block of this version"):
        Block.load(tmp_path)
    write_record(tmp_path / "block.json", record)
    content = (tmp_path / "block.safetensors").read_bytes()
    (tmp_path / "block.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"block\.safetensors: missing, or altered"):
        Block.load(tmp_path)
    (tmp_path / "block.safetensors").unlink()
    with pytest.raises(InputError, match=r"block\.safetensors: missing, or altered"):
        Block.load(tmp_path)
    (tmp_path / "block.json").write_text((tmp_path / "block.json").read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(InputError, match="fit and save it again"):
        Block.load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"dimensions": 0}, "dimensions"), ({"seed": -1}, "seed"), ({"weight": float("nan")}, "weight"), ({"b": 2}, "b"),
     ({"stop_words": "german"}, "stop_words"), ({"stemmer": "porter"}, "stemmer")],
)  # fmt: skip
def test_wrong_settings_are_named(wrong, named):
    with pytest.raises(InputError, match=f"^{named}"):
        Block.fit(PROSE, **wrong)


def test_wrong_texts_and_sides_are_named():
    block = Block.fit(PROSE, dimensions=8)
    for texts, message in (("one text", "expected a list"), ([None], "expected a list"), (["the"], "none of them")):
        with pytest.raises(InputError, match=message):
            Block.fit(texts)
    with pytest.raises(InputError, match="expected query or document"):
        block.raw("queries", PROSE)
    with pytest.raises(InputError, match="2 vectors and 60 texts"):
        block.join("query", np.zeros((2, 4)), PROSE)
    with pytest.raises(InputError, match="only weight and exponent"):
        block.with_settings(dimensions=3)


def test_lexical_encoder_keeps_the_fitted_idf_and_refuses_another_encoder(config, tmp_path):
    texts, later, cache = some_texts(30), ["w7 w8 quite new words"], tmp_path / "cache"
    one = LexicalEncoder(config, Block.fit(texts, dimensions=40), cache)
    expected = one.block.join("document", encode(texts, config, cache, False), texts)
    np.testing.assert_array_equal(one.encode_document(texts), expected)
    one.save(tmp_path / "saved")
    two = LexicalEncoder.load(tmp_path / "saved", cache, device="cpu")
    assert two == one
    np.testing.assert_array_equal(two.encode_document(later + texts)[1:], expected)
    np.testing.assert_array_equal(two.encode_query(later), one.encode_query(later))
    assert two.encode_query(later).shape == (1, 88)
    record = read_record(tmp_path / "saved" / "encoder.json", "")
    write_record(tmp_path / "saved" / "encoder.json", record | {"config": record["config"] | {"max_length": 16}})
    with pytest.raises(InputError, match="saved with another encoder"):
        LexicalEncoder.load(tmp_path / "saved", cache)
    assert replace(config, max_length=16) != config
