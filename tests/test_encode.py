"""Texts to vectors: against sentence-transformers' own, each text once, batches, bad input, vectors by key alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asymlib.encoding import encode as module
from asymlib.encoding.encode import encode, encode_lists, read_vectors, share_cut, token_batches
from asymlib.encoding.encoder import EncoderConfig, find_encoder
from asymlib.errors import InputError
from tests.small_encoders import build_bert, build_static, plain, some_texts, stored


@pytest.fixture
def static(tmp_path):
    return EncoderConfig(model=str(build_static(tmp_path)), device="cpu")


def test_embedded_encoder_equals_sentence_transformers(tmp_path):
    texts = ["", "Hello, world!", "déjà vu, 東京", "ωμέγα 🙂"]
    texts += [f"{i} apples and oranges " * (i % 18 * 4 + 1) for i in range(36)]
    config = EncoderConfig(device="cpu")
    vectors = encode(texts, config, tmp_path, progress=False)
    assert vectors.shape == (40, 384) and vectors.dtype == np.float32 and vectors.flags.c_contiguous
    np.testing.assert_allclose(vectors, plain(find_encoder(config).folder, texts, 256), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)  # its Normalize module, not us
    # 69 times four words are more than 8 tokens: a shorter maximum must change the vector
    shorter = encode(texts[-1:], replace(config, max_length=8), tmp_path, progress=False)
    assert np.abs(shorter - vectors[-1]).max() > 0.01


@pytest.mark.parametrize("pooling, include_prompt", [("cls", True), ("mean", False)])
def test_another_model_pooling_and_prompt(tmp_path, pooling, include_prompt):
    folder = build_bert(tmp_path / "m", pooling, include_prompt, hidden=32)
    stored_prompt = folder / "config_sentence_transformers.json"  # not used
    about = json.loads(stored_prompt.read_text()) | {"prompts": {"query": "w7 w8 "}, "default_prompt_name": "query"}
    stored_prompt.write_text(json.dumps(about))
    texts, prompt = some_texts(50, longest=60), "w1 w2: "
    config = EncoderConfig(model=str(folder), prompt=prompt, max_length=24, device="cpu")
    vectors = encode(texts, config, tmp_path / "cache", progress=False)
    assert vectors.shape == (50, 32)
    np.testing.assert_allclose(vectors, plain(folder, texts, 24, prompt=prompt), atol=1e-5)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.1  # no Normalize module: lengths are the model's
    without = encode(texts, replace(config, prompt=""), tmp_path / "cache", progress=False)
    np.testing.assert_allclose(without, plain(folder, texts, 24, prompt=""), atol=1e-5)
    assert np.abs(without - vectors).max() > 0.01


def test_half_precision_is_another_address_and_float32_out(tmp_path, config):
    texts = some_texts(8)
    single, half = (encode(texts, replace(config, dtype=name), tmp_path, False) for name in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and 0 < np.abs(single - half).max() < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_equals_cpu(tmp_path):
    texts = [f"{i} apples and oranges " * (i % 60 + 1) for i in range(300)]
    cpu, cuda = (encode(texts, EncoderConfig(device=d), tmp_path / d, progress=False) for d in ("cpu", "cuda"))
    assert (cpu * cuda).sum(axis=1).min() > 1 - 1e-4


def test_several_lists_are_encoded_at_once_and_each_text_once(tmp_path, config, capsys):
    assert encode([], config, tmp_path, progress=False).shape == (0, 48)
    texts = some_texts(30)
    lists = [[texts[i] for i in rows] for rows in ((5, 29, 5, 0), (), (17, 0, 5))]
    arrays, encoder = encode_lists(lists, config, tmp_path)
    assert [array.shape for array in arrays] == [(4, 48), (0, 48), (3, 48)] and stored(tmp_path) == 4
    for part, array in zip(lists, arrays, strict=True):
        assert array.flags.c_contiguous
        for text, vector in zip(part, array, strict=True):
            np.testing.assert_allclose(vector, plain(config.model, [text], 32)[0], atol=1e-5)
    assert (arrays[0][0] == arrays[0][2]).all() and (arrays[0][3] == arrays[2][1]).all()
    assert encoder == find_encoder(config)
    lines = capsys.readouterr().err.split()  # no terminal: whole lines instead of a bar
    assert lines[:4] == ["encode", "(model):", "0/4", "texts,"] and "4/4" in lines
    assert len(encode(texts, config, tmp_path, progress=False)) == 30 and capsys.readouterr().err == ""


def test_adding_ten_encodes_ten(tmp_path, config):
    texts = some_texts(3000, longest=6)
    before = encode(texts[:2990], config, tmp_path, progress=False)
    after = encode(texts[::-1], config, tmp_path, progress=False)
    assert stored(tmp_path) == 3000
    np.testing.assert_array_equal(after[::-1][:2990], before)


def test_the_cache_says_for_people_what_it_holds(tmp_path, config):
    texts, encoder = some_texts(3), find_encoder(config)
    before = encode(texts, config, tmp_path, progress=False)
    path = tmp_path / encoder.key[:16] / "config.json"
    about = json.loads(path.read_text())
    assert (about["key"], about["identity"], about["dim"]) == (encoder.key, encoder.identity, 48)
    path.write_text("{")  # nothing depends on it
    np.testing.assert_array_equal(encode(texts, config, tmp_path, progress=False), before)


def test_vectors_by_the_key_alone_need_no_model(tmp_path, bert, config):
    config = replace(config, model=str(shutil.copytree(bert, tmp_path / "model")))
    texts = some_texts(20)
    (queries, documents), encoder = encode_lists([texts[:5], texts[3:]], config, tmp_path / "cache", progress=False)
    shutil.rmtree(tmp_path / "model")
    found = read_vectors([texts[:5], [], texts[3:]], encoder.key, tmp_path / "cache")
    np.testing.assert_array_equal(found[0], queries)
    np.testing.assert_array_equal(found[2], documents)
    assert found[1].shape == (0, 48)
    with pytest.raises(InputError, match=r"no vector of 1 texts \('new'\); run 01_data_prep again"):
        read_vectors([texts, ["new", "new"]], encoder.key, tmp_path / "cache")
    with pytest.raises(InputError, match="run 01_data_prep again"):
        read_vectors([texts], "f" * 64, tmp_path / "cache")
    assert read_vectors([[]], "f" * 64, tmp_path / "cache", dim=48)[0].shape == (0, 48)


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2_048))
def test_batches_hold_every_row_once_longest_first_within_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    batches = token_batches(lengths, budget)
    order = np.concatenate([np.empty(0, dtype=int), *batches])
    assert order.tolist() == sorted(range(len(lengths)), key=lambda row: -lengths[row])  # ties in their order
    assert all(len(rows) == 1 or len(rows) * lengths[rows[0]] <= budget for rows in batches)


def test_vectors_do_not_depend_on_the_number_of_threads(tmp_path, config):
    texts, threads, found = some_texts(300), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(encode(texts, config, tmp_path / str(count), progress=False))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_out_of_memory_halves_the_batch():
    lengths = np.random.default_rng(0).integers(1, 33, 50)
    sizes = []

    def run(rows, most=100):
        sizes.append(int(lengths[rows].max() * len(rows)))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("too large")
        return lengths[rows] * 2.0

    batches = list(module._one_after_another(run, lengths, 1000))
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(50))
    assert all((values == lengths[rows] * 2.0).all() for rows, values in batches)
    assert sizes[0] > 800 and sum(size > 100 for size in sizes) == 4  # 1,000, 500, 250 and 125 do not fit, 62 does
    with pytest.raises(InputError, match="not enough memory for one text of 32 tokens"):
        list(module._one_after_another(lambda rows: run(rows, most=0), lengths, 1000))


@pytest.mark.parametrize("texts, message", [("one", "a list of texts"), (["a", None], "row 1"), (["\ud800"], "row 0")])
def test_bad_texts(tmp_path, config, texts, message):
    with pytest.raises(InputError, match=message):
        encode(texts, config, tmp_path)


@pytest.mark.parametrize("bad", ["w1 nan w2", "unknown words"])
def test_a_bad_vector_of_a_model_without_attention_names_its_row_and_is_not_stored(tmp_path, static, bad):
    texts = some_texts(10)
    texts.insert(7, bad)
    with pytest.raises(InputError, match=f"texts, row 7: zero or not finite is the vector of '{bad}'"):
        encode(texts, static, tmp_path / "cache", progress=False)
    assert stored(tmp_path / "cache") == 10  # the others were kept
    good = encode(some_texts(10), static, tmp_path / "cache", progress=False)
    np.testing.assert_allclose(good, plain(static.model, some_texts(10), None), atol=1e-5)
    with pytest.raises(InputError, match="texts, row 0"):
        encode([bad], static, tmp_path / "cache", progress=False)
    assert stored(tmp_path / "cache") == 10


def test_the_share_of_texts_that_lose_their_end(tmp_path, config, static):
    texts = [" ".join(["w1"] * count) for count in (1, 29, 30, 31, 100)]  # and two special tokens each; 32 are read
    assert share_cut([texts, texts[:3], []], config) == [2 / 5, 0, 0]
    assert share_cut([texts], replace(config, prompt="w2 ")) == [3 / 5]
    vectors = encode([texts[2] + " w3", texts[2] + " w4", texts[1] + " w3", texts[1] + " w4"], config, tmp_path, False)
    assert np.array_equal(vectors[0], vectors[1]) and not np.array_equal(vectors[2], vectors[3])
    next(find_encoder(static).folder.rglob("tokenizer.json")).unlink()
    assert np.isnan(share_cut([texts, texts], static)).tolist() == [True, True]
