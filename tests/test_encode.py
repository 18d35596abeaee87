"""Texts to vectors: against sentence-transformers' own, each text once, batches, bad input, vectors by key alone."""

import itertools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asymlib.encoding import encode as module
from asymlib.encoding.encode import encode, encode_lists, read_vectors, share_cut, token_batches
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_encoder
from asymlib.errors import InputError
from tests.small_encoders import (
    build_bert,
    build_static,
    build_two_encoders,
    build_two_heads,
    plain,
    some_texts,
    store,
    stored,
)


@pytest.fixture
def static(tmp_path):
    """Of the mean of the words' vectors: no attention, any length."""
    return EncoderConfig(model=str(build_static(tmp_path)), device="cpu")


def test_embedded_encoder_equals_sentence_transformers(tmp_path):
    texts = ["", "Hello, world!", "déjà vu, 東京", "ωμέγα 🙂"]
    texts += [f"{i} apples and oranges " * (i % 18 * 4 + 1) for i in range(18)]
    config = EncoderConfig(device="cpu")
    vectors = encode(texts, config, tmp_path, progress=False)
    assert vectors.shape == (22, 384) and vectors.dtype == np.float32 and vectors.flags.c_contiguous
    np.testing.assert_allclose(vectors, plain(find_encoder(config).folder, texts, 256), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)  # its Normalize module, not us
    # 69 times four words are more than 8 tokens: a shorter maximum must change the vector
    shorter = encode(texts[-1:], replace(config, max_length=8), tmp_path, progress=False)
    assert np.abs(shorter - vectors[-1]).max() > 0.01


@pytest.mark.parametrize("pooling, include_prompt", [("cls", True), ("mean", False)])
def test_another_model_pooling_and_prompt(tmp_path, pooling, include_prompt):
    folder = build_bert(tmp_path / "m", pooling, include_prompt, hidden=32)
    texts, prompt = some_texts(50, longest=60), "w1 w2: "
    config = EncoderConfig(model=str(folder), document_prompt=prompt, max_length=24, device="cpu")
    vectors = encode(texts, config, tmp_path / "cache", progress=False)
    assert vectors.shape == (50, 32)
    np.testing.assert_allclose(vectors, plain(folder, texts, 24, prompt=prompt), atol=1e-5)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).min() > 0.1  # no Normalize module: lengths are the model's
    without = encode(texts, config, tmp_path / "cache", progress=False, side="query")
    np.testing.assert_allclose(without, plain(folder, texts, 24, prompt=""), atol=1e-5)
    assert np.abs(without - vectors).max() > 0.01


STORED = {  # in config_sentence_transformers.json, and what encode_query and encode_document then put before a text
    "both": ({"query": "w1 w2 ", "document": "w3 "}, None, ("w1 w2 ", "w3 ")),
    "query": ({"query": "w1 w2 "}, "query", ("w1 w2 ", "")),
    "passage": ({"query": "w1 ", "passage": "w2 "}, None, ("w1 ", "")),
    "default": ({"search": "w1 w2 ", "document": None}, "search", ("", "")),
    "nothing": ({}, None, ("", "")),
}


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("prompts, default, expected", STORED.values(), ids=STORED)
def test_prompts_stored_with_the_model(tmp_path, prompts, default, expected, include_prompt):
    folder, texts = build_bert(tmp_path, "mean", include_prompt), some_texts(20)
    store(folder, prompts=prompts, default_prompt_name=default)
    config, cache = EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache"
    found, encoder = encode_lists([texts, texts], SIDES, config, cache, progress=False)
    assert encoder.prompts == dict(zip(SIDES, expected, strict=True))
    for side, vectors in zip(SIDES, found, strict=True):
        np.testing.assert_allclose(vectors, plain(folder, texts, 32, side), atol=1e-6)
    bare = find_encoder(replace(config, query_prompt="", document_prompt=""))
    assert (encoder.key == bare.key) == (encoder.keys == bare.keys) == (not any(expected))
    assert stored(cache) == 20 * len(set(expected))  # one vector a text where the sides agree


def test_prompts_that_are_given_go_before_those_that_are_stored(tmp_path):
    folder, texts = build_bert(tmp_path), some_texts(20)
    store(folder, prompts={"query": "w1 ", "document": "w2 "})
    config = EncoderConfig(str(folder), query_prompt="w3 w4 ", document_prompt="", max_length=32, device="cpu")
    (queries, documents), encoder = encode_lists([texts, texts], SIDES, config, tmp_path / "cache", progress=False)
    np.testing.assert_allclose(queries, plain(folder, texts, 32, "query", prompt="w3 w4 "), atol=1e-6)
    np.testing.assert_allclose(documents, plain(folder, texts, 32, "document", prompt=""), atol=1e-6)
    same = replace(config, query_prompt=None, document_prompt="w1 ")  # both sides have one prompt, one from the model
    (queries, documents), other = encode_lists([texts, texts[:5]], SIDES, same, tmp_path / "cache", progress=False)
    assert other.key == other.keys["query"] == other.keys["document"] and other.identity["prompt"] == "w1 "
    np.testing.assert_array_equal(queries[:5], documents)
    keys = [*encoder.keys.values(), encoder.key, other.key]
    assert len(set(keys)) == 4 and encoder.identity["prompt"] == {"query": "w3 w4 ", "document": ""}


def test_vectors_are_cut_to_the_dimension_that_is_stored_with_the_model(tmp_path):
    folder, texts = build_bert(tmp_path), some_texts(5)
    config = EncoderConfig(str(folder), max_length=32, device="cpu")
    whole = find_encoder(config).key
    store(folder, truncate_dim=7)
    vectors = encode(texts, config, tmp_path / "cache", progress=False)
    assert vectors.shape == (5, 7) and find_encoder(config).key != whole
    np.testing.assert_allclose(vectors, plain(folder, texts, 32, "document"), atol=1e-6)


@pytest.mark.parametrize("build", [build_two_encoders, build_two_heads])
def test_each_side_goes_its_own_way_through_a_router(tmp_path, build):
    folder, texts = build(tmp_path), [*some_texts(30, longest=50), "", "unknown"]
    config, cache = EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache"
    lists = [texts, texts[3:], texts[::-1]]
    (queries, documents, more), encoder = encode_lists(lists, [*SIDES, "query"], config, cache, progress=False)
    np.testing.assert_allclose(queries, plain(folder, texts, 32, "query"), atol=1e-6)
    np.testing.assert_allclose(documents, plain(folder, texts[3:], 32, "document"), atol=1e-6)
    np.testing.assert_array_equal(more, queries[::-1])
    assert len({encoder.key, *encoder.keys.values()}) == 3 and stored(cache) == 32 + 29
    found = read_vectors(lists, [*SIDES, "query"], encoder.keys, cache)
    assert all(np.array_equal(*pair) for pair in zip(found, (queries, documents, more), strict=True))
    # w1 thirty times and two special tokens are 32; static embeddings read more
    long = [" ".join(["w1"] * count) for count in (30, 31)]
    assert share_cut([long, long], SIDES, config) == [0 if build is build_two_encoders else 0.5, 0.5]


def test_a_router_that_has_no_way_for_a_side(tmp_path):
    folder = build_two_heads(tmp_path)
    path = folder / "2_Router/router_config.json"
    path.write_text(path.read_text().replace('"query": [', '"question": ['))
    with pytest.raises(InputError, match=r"cannot load this model.*No route found for task type 'query'"):
        encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")


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
    arrays, encoder = encode_lists(lists, ["document"] * 3, config, tmp_path)
    assert [array.shape for array in arrays] == [(4, 48), (0, 48), (3, 48)] and stored(tmp_path) == 4
    for part, array in zip(lists, arrays, strict=True):
        assert array.flags.c_contiguous
        for text, vector in zip(part, array, strict=True):
            np.testing.assert_allclose(vector, plain(config.model, [text], 32)[0], atol=1e-5)
    assert (arrays[0][0] == arrays[0][2]).all() and (arrays[0][3] == arrays[2][1]).all()
    assert encoder == find_encoder(config)
    assert len(encode(texts, config, tmp_path, progress=False)) == 30 and capsys.readouterr().err == ""


def test_a_log_gets_a_line_now_and_then(tmp_path, config, capsys, monkeypatch):
    clock = itertools.count(0, 4)  # seconds: four between two looks at it
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(clock)))
    monkeypatch.setattr(module, "CPU_TOKENS", 64)
    monkeypatch.setattr(module, "SHARD_BATCHES", 10_000)  # the lines do not wait for what is written
    encode(some_texts(200), config, tmp_path)
    lines = capsys.readouterr().err.strip().split("\n")
    done = [
        re.fullmatch(r"\r?encode \(model\): (\d+)/200 texts, +(\S+) texts/s, (\d\d:\d\d) left *", line)
        for line in lines
    ]
    assert all(done) and done[-1][1] == "200" and done[-1][3] == "00:00"
    assert 3 < len(lines) <= next(clock) / 10 + 1


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
    assert (about["key"], about["identity"]) == (encoder.key, encoder.identity)
    path.write_text("{")  # nothing depends on it
    np.testing.assert_array_equal(encode(texts, config, tmp_path, progress=False), before)


def test_vectors_by_the_key_alone_need_no_model(tmp_path, bert, config):
    config = replace(config, model=str(shutil.copytree(bert, tmp_path / "model")))
    texts = some_texts(20)
    (queries, documents), encoder = encode_lists([texts[:5], texts[3:]], SIDES, config, tmp_path / "cache", False)
    shutil.rmtree(tmp_path / "model")
    found = read_vectors([texts[:5], [], texts[3:]], [*SIDES, "query"], encoder.keys, tmp_path / "cache")
    np.testing.assert_array_equal(found[0], queries)
    np.testing.assert_array_equal(found[2], documents)
    assert found[1].shape == (0, 48)
    with pytest.raises(InputError, match=r"no vector of 1 texts \('new'\); run 01_data_prep again"):
        read_vectors([texts, ["new", "new"]], SIDES, encoder.keys, tmp_path / "cache")
    elsewhere = dict.fromkeys(SIDES, "f" * 64)
    with pytest.raises(InputError, match="run 01_data_prep again"):
        read_vectors([texts], ["query"], elsewhere, tmp_path / "cache")
    assert read_vectors([[]], ["query"], elsewhere, tmp_path / "cache", dim=48)[0].shape == (0, 48)


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

    np.testing.assert_array_equal(module._in_memory(run, np.arange(50)), lengths * 2.0)
    assert sizes[0] > 800 and len([size for size in sizes if size <= 100]) >= 16  # 50 rows, halved four times at most
    with pytest.raises(InputError, match="not enough memory for one text"):
        module._in_memory(lambda rows: run(rows, most=0), np.arange(50))


@pytest.mark.parametrize(
    "texts, message",
    [
        ("one", "a list of texts"),
        (["a", None], "texts, row 1: expected a text, got None"),
        (["a", b"b"], "texts, row 1: expected a text, got b'b'"),
        (["a", "half an emoji \ud83d"], r"texts, row 1: .* U\+FFFD .*, got 'half an emoji \\ud83d'"),
        (["\udc80 at the start"], r"texts, row 0: .* U\+FFFD"),
    ],
)
def test_bad_texts(tmp_path, config, texts, message):
    with pytest.raises(InputError, match=message):
        encode(texts, config, tmp_path)
    if isinstance(texts, list):
        for call in (share_cut, lambda *how: read_vectors(*how[:2], dict.fromkeys(SIDES, "f" * 64), tmp_path)):
            with pytest.raises(InputError, match="list 1, row"):
                call([[], texts], SIDES, config)


@pytest.mark.parametrize("sides", [["query"], ["query", "passage"], "query"])
def test_bad_sides(tmp_path, config, sides):
    keys = dict.fromkeys(SIDES, "f" * 64)
    for call in (encode_lists, share_cut, lambda *how: read_vectors(*how[:2], keys, tmp_path)):
        with pytest.raises(InputError, match="sides: expected 'query' or 'document' for each of 2 lists"):
            call([["w1"], ["w2"]], sides, config, *([tmp_path] if call is encode_lists else []))


def name(number, row):
    return f"{('scifact', 'fiqa')[number]}, document {row}"


def test_an_error_calls_a_text_as_it_is_told(tmp_path, static):
    for bad, message in (("\ud83d", "expected a text"), ("w1 nan w2", "not finite is the vector of 'w1 nan w2'")):
        lists = [some_texts(3), [*some_texts(5), bad]]
        with pytest.raises(InputError, match=f"^fiqa, document 5: {message}"):
            encode_lists(lists, SIDES, static, tmp_path / "cache", progress=False, name=name)


def test_a_vector_that_is_not_finite_is_not_stored(tmp_path, static):
    texts = some_texts(10)
    texts.insert(7, "w1 nan w2")
    with pytest.raises(InputError, match="texts, row 7: not finite is the vector of 'w1 nan w2'"):
        encode(texts, static, tmp_path / "cache", progress=False)
    assert stored(tmp_path / "cache") == 10  # the others were kept
    good = encode(some_texts(10), static, tmp_path / "cache", progress=False)
    np.testing.assert_allclose(good, plain(static.model, some_texts(10), None), atol=1e-5)
    with pytest.raises(InputError, match="texts, row 0"):
        encode(["w1 nan w2"], static, tmp_path / "cache", progress=False)
    assert stored(tmp_path / "cache") == 10


def test_a_zero_vector_is_a_vector(tmp_path, static):
    texts = [*some_texts(3), "", "unknown words"]
    vectors = encode(texts, static, tmp_path, progress=False)
    assert not vectors[3:].any() and vectors[:3].any(axis=1).all() and stored(tmp_path) == 5
    np.testing.assert_array_equal(encode(texts, static, tmp_path, progress=False), vectors)


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_encoded(tmp_path, config, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("loaded the model"))
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file/[0-9a-f]{16}: vectors cannot be stored here .*; make the folder writable"
    ):
        encode(["w1"], config, tmp_path / "file")


def test_the_share_of_texts_that_lose_their_end(tmp_path, config, static):
    texts = [" ".join(["w1"] * count) for count in (1, 29, 30, 31, 100)]  # and two special tokens each; 32 are read
    lists, sides = [texts, texts[:3], []], ["query", "document", "query"]
    assert share_cut(lists, sides, config) == [2 / 5, 0, 0]
    assert share_cut(lists, sides, replace(config, query_prompt="w2 ")) == [3 / 5, 0, 0]
    assert share_cut([texts], ["query"], static) == [0]
    vectors = encode([texts[2] + " w3", texts[2] + " w4", texts[1] + " w3", texts[1] + " w4"], config, tmp_path, False)
    assert np.array_equal(vectors[0], vectors[1]) and not np.array_equal(vectors[2], vectors[3])
