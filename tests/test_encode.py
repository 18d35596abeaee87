"""The encoder and its cache: vectors against sentence-transformers' own, addresses, kills, races, damage, bad input."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asymlib import encode as module
from asymlib.encode import EncoderConfig, encode, encode_study, find_encoder
from asymlib.errors import InputError

WORDS = [f"w{i}" for i in range(200)]


def some_texts(count, seed=0, longest=30):
    """Distinct texts of 2 to `longest` known words, the first of them a serial number, in no order of length."""
    rng = np.random.default_rng(seed)
    serial = lambda i: [f"w{i // 100 % 100}", f"w{100 + i % 100}"]  # noqa: E731
    return [" ".join(serial(i) + rng.choice(WORDS, rng.integers(0, longest - 1)).tolist()) for i in range(count)]


def build_model(folder, pooling="cls", include_prompt=True, hidden=48, seed=0):
    """A small BERT with random weights, a WordPiece tokenizer and 64 positions, saved as sentence-transformers saves."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz", ":"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder / "bert")
    size = dict(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)).save_pretrained(
        folder / "bert"
    )
    pool = Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt)
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), pool], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("small"))


@pytest.fixture
def config(small_model):
    return EncoderConfig(model=str(small_model), max_length=32, device="cpu")


@pytest.fixture
def forwarded(monkeypatch):
    """A list that grows by the number of texts of each forward pass."""
    counts, original = [], module._vectors

    def counting(model, features):
        values = original(model, features)
        counts.append(len(values))
        return values

    monkeypatch.setattr(module, "_vectors", counting)
    return counts


def plain(folder, texts, max_length, **arguments):
    """sentence-transformers' own way, in the default batch size."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if max_length is not None:
        model.max_seq_length = max_length
    return model.encode(texts, show_progress_bar=False, **arguments)


def shards(cache):
    return sorted(Path(cache).glob("*/shard-*.json"))


# ---- vectors --------------------------------------------------------------------------------------------------------


def test_embedded_encoder_equals_sentence_transformers(tmp_path):
    texts = ["", "Hello, world!", "déjà vu, 東京", "ωμέγα 🙂"] + [
        f"{i} apples and oranges " * (i % 18 * 4 + 1) for i in range(36)
    ]
    vectors = encode(texts, EncoderConfig(device="cpu"), tmp_path, progress=False)
    assert vectors.shape == (40, 384) and vectors.dtype == np.float32 and vectors.flags.c_contiguous
    np.testing.assert_allclose(vectors, plain(find_encoder(EncoderConfig()).folder, texts, 256), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)  # its Normalize module, not us
    # 69 times four words are more than 8 tokens: a shorter maximum must change the vector
    assert (
        np.abs(encode(texts[-1:], EncoderConfig(device="cpu", max_length=8), tmp_path, False) - vectors[-1]).max()
        > 0.01
    )


@pytest.mark.parametrize("pooling, include_prompt", [("cls", True), ("mean", False)])
def test_another_model_pooling_and_prompt(tmp_path, pooling, include_prompt):
    folder = build_model(tmp_path / "m", pooling, include_prompt, hidden=32)
    texts, prompt = some_texts(50, longest=60), "w1 w2: "
    config = EncoderConfig(model=str(folder), prompt=prompt, max_length=24, device="cpu")
    vectors = encode(texts, config, tmp_path / "cache", progress=False)
    assert vectors.shape == (50, 32)
    np.testing.assert_allclose(vectors, plain(folder, texts, 24, prompt=prompt), atol=1e-5)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.abs(lengths - 1).min() > 0.1  # no Normalize module: lengths are the model's
    without = encode(texts, replace(config, prompt=""), tmp_path / "cache", progress=False)
    assert np.abs(without - vectors).max() > 0.01


def test_a_prompt_stored_with_the_model_is_not_used(tmp_path, small_model):
    folder = shutil.copytree(small_model, tmp_path / "model")
    path = folder / "config_sentence_transformers.json"
    stored = json.loads(path.read_text()) | {"prompts": {"query": "w7 w8 "}, "default_prompt_name": "query"}
    path.write_text(json.dumps(stored))
    config = EncoderConfig(model=str(folder), max_length=32, device="cpu")
    texts = some_texts(5)
    vectors = encode(texts, config, tmp_path / "cache", progress=False)
    np.testing.assert_allclose(vectors, plain(small_model, texts, 32), atol=1e-5)


def test_a_model_without_attention(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=20)]).save(str(tmp_path / "model"))
    texts = some_texts(30)
    vectors = encode(texts, EncoderConfig(str(tmp_path / "model"), device="cpu"), tmp_path / "cache", progress=False)
    np.testing.assert_allclose(vectors, plain(tmp_path / "model", texts, None), atol=1e-5)


def test_order_and_duplicates(tmp_path, config, forwarded):
    texts = some_texts(30)
    mixed = [texts[i] for i in (5, 29, 5, 0, 17, 0, 5)]
    vectors = encode(mixed, config, tmp_path, progress=False)
    assert sum(forwarded) == 4
    one_by_one = np.concatenate([plain(config.model, [text], 32) for text in mixed])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)
    assert (vectors[0] == vectors[2]).all() and (vectors[3] == vectors[5]).all()


def test_no_texts(tmp_path, config):
    assert encode([], config, tmp_path, progress=False).shape == (0, 48)
    assert encode([], config, tmp_path, progress=False).shape == (0, 48)


def test_half_precision_is_another_address_and_float32_out(tmp_path, config):
    texts = some_texts(8)
    single, half = (encode(texts, replace(config, dtype=name), tmp_path, False) for name in ("float32", "bfloat16"))
    assert half.dtype == np.float32 and not np.array_equal(single, half)
    cosine = (single * half).sum(1) / np.linalg.norm(single, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99


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


def test_batches_run_side_by_side_come_back_in_order_and_leave_the_threads_as_they_were(small_model):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        lengths = np.array([5, 9, 2, 9, 1, 7])
        run = lambda rows: (rows * 10, torch.get_num_threads())  # noqa: E731
        batches = list(module._side_by_side(run, lengths, 18, 3))
        # longest first, count times longest at most 18: 9 + 9, then 7 + 5, then 2 + 1
        assert [rows.tolist() for rows, _ in batches] == [[1, 3], [5, 0], [2, 4]]
        assert all((values == rows * 10).all() and inside == 1 for rows, (values, inside) in batches)
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(module._side_by_side(lambda rows: 1 // 0, lengths, 18, 3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "free, tokens",
    [
        (24e9, 144_675),  # 24e9 / 3 / (4 bytes x (12 x 384 + 3 x 12 heads x 256)) = 8e9 / 55,296
        (1e6, 256),  # at least one text
        (999e9, module.CUDA_TOKENS),
    ],
)
def test_cuda_batches_are_sized_to_the_free_memory(monkeypatch, free, tokens):
    class Model(list):
        device, max_seq_length = torch.device("cuda"), 256

    bert = SimpleNamespace(config=SimpleNamespace(hidden_size=384, num_attention_heads=12))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert module._token_budget(Model([SimpleNamespace(auto_model=bert)])) == tokens


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_equals_cpu(tmp_path):
    texts = [f"{i} apples and oranges " * (i % 60 + 1) for i in range(300)]
    cpu, cuda = (encode(texts, EncoderConfig(device=d), tmp_path / d, progress=False) for d in ("cpu", "cuda"))
    assert (cpu * cuda).sum(axis=1).min() > 1 - 1e-4


# ---- the address ----------------------------------------------------------------------------------------------------


def test_adding_ten_encodes_ten(tmp_path, config, forwarded):
    texts = some_texts(3000, longest=6)
    before = encode(texts[:2990], config, tmp_path, progress=False)
    assert sum(forwarded) == 2990
    forwarded.clear()
    after = encode(texts[::-1], config, tmp_path, progress=False)
    assert sum(forwarded) == 10
    np.testing.assert_array_equal(after[::-1][:2990], before)


def test_everything_cached_loads_no_model(tmp_path, config, monkeypatch):
    texts = some_texts(20)
    before = encode(texts, config, tmp_path, progress=False)
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("loaded the model"))
    np.testing.assert_array_equal(encode(texts, config, tmp_path, progress=False), before)
    next(tmp_path.glob("*/config.json")).write_text("{")  # for people only: nothing depends on it
    np.testing.assert_array_equal(encode(texts, config, tmp_path, progress=False), before)


def alter(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda config, folder: replace(config, prompt="w1 "),
        lambda config, folder: replace(config, max_length=31),
        lambda config, folder: replace(config, dtype="float16"),
        lambda config, folder: alter(folder, "model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        lambda config, folder: alter(folder, "1_Pooling/config.json", lambda data: data.replace(b"cls", b"max")),
        lambda config, folder: alter(folder, "tokenizer.json", lambda data: data.replace(b'"w198"', b'"x198"')),
        lambda config, folder: alter(folder, "config.json", lambda data: data.replace(b'"gelu"', b'"relu"')),
    ],
    ids=["prompt", "max_length", "dtype", "weights", "pooling", "tokenizer", "architecture"],
)
def test_what_moves_vectors_moves_the_key(tmp_path, small_model, config, change):
    folder = shutil.copytree(small_model, tmp_path / "model")
    config = replace(config, model=str(folder))
    before = find_encoder(config).key
    after = find_encoder(change(config, folder) or config).key
    assert before != after and len(before) == len(after) == 64


def test_what_moves_no_vector_moves_no_key(tmp_path, small_model, config):
    folder = shutil.copytree(small_model, tmp_path / "elsewhere")
    (folder / "README.md").write_text("changed")
    assert find_encoder(replace(config, model=str(folder), device=None)).key == find_encoder(config).key


def test_cache_on_disk_is_readable_by_people_and_checked(tmp_path, config):
    texts = some_texts(3)
    vectors = encode(texts, config, tmp_path, progress=False)
    encoder = find_encoder(config)
    folder = tmp_path / encoder.key[:16]
    about = json.loads((folder / "config.json").read_text())
    assert about["key"] == encoder.key and about["identity"] == encoder.identity and about["dim"] == 48
    (sidecar,) = shards(tmp_path)
    stored = np.load(sidecar.with_suffix(".npy"))
    assert sorted(map(bytes, stored)) == sorted(map(bytes, vectors))
    cache = module.Cache(tmp_path, encoder)
    assert isinstance(cache._open(sidecar.stem, ".npy", json.loads(sidecar.read_text())), np.memmap)


# ---- kills, races, damage -------------------------------------------------------------------------------------------

# The cache and `encode` as they are, the network replaced by the first bytes of a hash: it starts in half a second.
CHILD = """
import hashlib, os, signal, sys
import numpy as np
from asymlib import encode as module

folder, cache, die_at, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def forward(model, texts, prompt):
    for start in range(0, len(texts), 5):
        some = texts[start : start + 5]
        rows = [np.frombuffer(hashlib.sha512(t.encode()).digest()[:48], np.uint8) for t in some]
        yield np.arange(start, start + len(some)), np.stack(rows).astype(np.float32)

class Model:
    def get_embedding_dimension(self):
        return 48

module._load, module._forward, module.SHARD_TEXTS = lambda *_: Model(), forward, 20
write_json, shards = module.write_json, []

def deadly(path, value):
    if path.name.startswith("shard-"):
        shards.append(path)
        if len(shards) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)  # vectors and keys are in place, the .json is not
    write_json(path, value)

module.write_json = deadly
texts = [f"text {i}" for i in range(count)]
vectors = module.encode(texts, module.EncoderConfig(folder, device="cpu"), cache, progress=False)
expected = np.stack([np.frombuffer(hashlib.sha512(t.encode()).digest()[:48], np.uint8) for t in texts])
assert (vectors == expected).all()
print(len(shards))
"""


def start_child(folder, cache, die_at=0, count=110):
    command = [sys.executable, "-c", CHILD, str(folder), str(cache), str(die_at), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_half_way_goes_on_where_it_stopped(tmp_path, small_model):
    killed = start_child(small_model, tmp_path, die_at=4)
    assert killed.wait(60) == -9
    killed.communicate()
    assert len(shards(tmp_path)) == 3 and len(list(tmp_path.glob("*/shard-*.keys.npy"))) == 4
    resumed = start_child(small_model, tmp_path)
    out, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert out.strip() == "3"  # 110 - 3 x 20 texts are left: shards of 20, 20 and 10
    assert sum(json.loads(path.read_text())["rows"] for path in shards(tmp_path)) == 110


def test_two_processes_at_once(tmp_path, small_model):
    both = [start_child(small_model, tmp_path, count=1500) for _ in range(2)]  # 75 shards each: they also merge
    for child in both:
        _, errors = child.communicate(timeout=100)
        assert child.returncode == 0, errors
    again = start_child(small_model, tmp_path, count=1500)
    out, errors = again.communicate(timeout=60)
    assert (again.returncode, out.strip()) == (0, "0"), errors


def test_ctrl_c_keeps_what_was_encoded(tmp_path, config, monkeypatch, forwarded):
    monkeypatch.setattr(module, "SHARD_TEXTS", 20)
    monkeypatch.setattr(module, "CPU_TOKENS", 32 * 4)

    class Interrupted(module.tqdm):
        def update(self, count):
            super().update(count)
            if self.n >= 50:
                raise KeyboardInterrupt

    texts, bar = some_texts(110), module.tqdm
    monkeypatch.setattr(module, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(texts, config, tmp_path)
    kept = sum(json.loads(path.read_text())["rows"] for path in shards(tmp_path))
    assert 50 <= kept < 60 and kept % 20  # two whole shards and what the third had
    assert not list(tmp_path.glob("*/.*"))
    forwarded.clear()
    monkeypatch.setattr(module, "tqdm", bar)
    vectors = encode(texts, config, tmp_path, progress=False)
    assert sum(forwarded) == 110 - kept
    np.testing.assert_allclose(vectors, plain(config.model, texts, 32), atol=1e-5)


def test_full_disk_keeps_finished_shards(tmp_path, config, monkeypatch, forwarded):
    monkeypatch.setattr(module, "SHARD_TEXTS", 20)
    texts, save = some_texts(60), np.save

    def full(file, array, **arguments):
        if len(shards(tmp_path)) == 2:
            file.write(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, array, **arguments)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"shard-.*no space left on the disk"):
        encode(texts, config, tmp_path, progress=False)
    names = {path.name.split(".")[0] for path in tmp_path.glob("*/shard-*")}
    assert len(names) == 2 and not list(tmp_path.glob("*/.*"))  # no half shard, no temporary file
    monkeypatch.setattr(np, "save", save)
    forwarded.clear()
    encode(texts, config, tmp_path, progress=False)
    assert sum(forwarded) == 20


@pytest.mark.parametrize("suffix", [".npy", ".keys.npy", ".json"])
def test_a_flipped_byte_is_found_and_mended(tmp_path, config, monkeypatch, forwarded, suffix):
    monkeypatch.setattr(module, "SHARD_TEXTS", 20)
    texts = some_texts(60)
    before = encode(texts, config, tmp_path, progress=False)
    victim = shards(tmp_path)[1].with_suffix("")
    path = victim.with_name(victim.name + suffix)
    at = 5 if suffix == ".json" else len(path.read_bytes()) // 2
    path.write_bytes(bytes(byte ^ 1 if i == at else byte for i, byte in enumerate(path.read_bytes())))
    with pytest.raises(InputError, match=rf"{victim.name}\{suffix}: .*damaged.*delete .*{victim.name}\.\*"):
        encode(texts, config, tmp_path, progress=False)
    for part in tmp_path.glob(f"*/{victim.name}.*"):  # what the message says
        part.unlink()
    forwarded.clear()
    np.testing.assert_allclose(encode(texts, config, tmp_path, progress=False), before, atol=1e-6)
    assert sum(forwarded) == 20


def test_a_missing_part_of_a_shard_is_damage(tmp_path, config):
    encode(some_texts(3), config, tmp_path, progress=False)
    shards(tmp_path)[0].with_suffix(".npy").unlink()
    with pytest.raises(InputError, match="damaged"):
        encode(some_texts(3), config, tmp_path, progress=False)


@pytest.mark.parametrize("value, kind", [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "zero")])
def test_a_bad_vector_names_its_row_and_is_not_stored(tmp_path, config, monkeypatch, forwarded, value, kind):
    texts, counting, bad = some_texts(10), module._vectors, "w150 w151 w152 w153"
    texts.insert(7, bad)

    def poisoned(model, features):
        values = counting(model, features)
        ids = model.tokenizer(bad)["input_ids"]
        rows = [list(filter(None, row)) == ids for row in features["input_ids"].tolist()]
        values[rows, : None if value == 0 else 1] = value
        return values

    monkeypatch.setattr(module, "_vectors", poisoned)
    with pytest.raises(InputError, match=f"texts, row 7: the encoder's vector is {kind}"):
        encode(texts, config, tmp_path, progress=False)
    forwarded.clear()
    monkeypatch.setattr(module, "_vectors", counting)
    encode(texts, config, tmp_path, progress=False)
    assert sum(forwarded) == 1  # the others of its batch were kept


def test_many_small_shards_are_merged(tmp_path, config, monkeypatch, forwarded):
    texts = some_texts(300)
    cache = module.Cache(tmp_path, find_encoder(config))
    vectors = np.random.default_rng(0).standard_normal((300, 48)).astype(np.float32)
    digests = [digest.ljust(32, b"\0") for digest in module._digests(texts).tolist()]
    for i in range(70):
        cache.write(digests[4 * i : 4 * i + 5], vectors[4 * i : 4 * i + 5])  # a row in common with the next
    monkeypatch.setattr(module, "MERGED_ROWS", 100)
    encode(texts, config, tmp_path, progress=False)
    # 70 shards of 5 and one of 19 (in order of name): 100 rows reached every 20 shards, the last group has 10 + the 19
    assert len(shards(tmp_path)) == 4
    assert len(list(tmp_path.glob("*/shard-*"))) == 12  # the small ones left nothing behind
    forwarded.clear()
    np.testing.assert_array_equal(encode(texts, config, tmp_path, progress=False)[:281], vectors[:281])
    assert not forwarded


def test_a_reader_survives_a_merge_beside_it(tmp_path, config, monkeypatch, forwarded):
    texts = some_texts(70, longest=5)
    expected = plain(config.model, texts, 32)
    for text in texts:
        encode([text], config, tmp_path / "many", progress=False)
        if text == texts[60]:
            stale = module.Cache(tmp_path / "many", find_encoder(config))._shards()
            assert len(stale) == 61
    assert len(shards(tmp_path / "many")) < 61
    listed = module.Cache._shards
    for stale_call in (1, 2):  # when the dimension is looked up, when the vectors are
        calls = []

        def shards_then(self, calls=calls, stale_call=stale_call):
            calls.append(1)
            return stale if len(calls) == stale_call else listed(self)

        monkeypatch.setattr(module.Cache, "_shards", shards_then)
        forwarded.clear()
        vectors = encode(texts, config, tmp_path / "many", progress=False)
        assert len(calls) == 3 and not forwarded
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model": ""}, r"EncoderConfig\.model"),
        ({"max_length": "256"}, r"EncoderConfig\.max_length: expected int, got '256'"),
        ({"max_length": True}, r"EncoderConfig\.max_length"),
        ({"max_length": 2}, r"EncoderConfig\.max_length: expected at least 3"),
        ({"prompt": None}, r"EncoderConfig\.prompt: expected str"),
        ({"dtype": "float64"}, r"EncoderConfig\.dtype: expected one of float32"),
        ({"revision": 3}, r"EncoderConfig\.revision: expected str or None"),
        ({"device": 0}, r"EncoderConfig\.device: expected str or None"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        EncoderConfig(**fields)


@pytest.mark.parametrize("texts, message", [("one", "a list of texts"), (["a", None], "row 1"), (["\ud800"], "row 0")])
def test_bad_texts(tmp_path, config, texts, message):
    with pytest.raises(InputError, match=message):
        encode(texts, config, tmp_path)


def test_longer_than_the_model_allows(tmp_path, config):
    with pytest.raises(InputError, match="at most 64 tokens, got 65"):
        encode(["w1"], replace(config, max_length=65), tmp_path)


def test_unknown_device(tmp_path, config):
    with pytest.raises(InputError, match=r"EncoderConfig\.device: 'abacus'"):
        encode(["w1"], replace(config, device="abacus"), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_where_there_is_none(tmp_path, config):
    with pytest.raises(InputError, match="no CUDA device"):
        encode(["w1"], replace(config, device="cuda"), tmp_path)


@pytest.fixture
def impostor(tmp_path, small_model, monkeypatch):
    """A package with the embedded encoder's name and other weights, found before the real one."""
    package = tmp_path / "site" / module.EMBEDDED_PACKAGE
    shutil.copytree(small_model, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, module.EMBEDDED_PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return package / "model"


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_altered_weights_of_the_embedded_encoder(tmp_path, impostor, name):
    found = module.sha256_file(impostor / "model.safetensors")
    expected = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    with pytest.raises(InputError) as caught:
        encode(["w1"], EncoderConfig(name), tmp_path / "cache")
    for part in (str(impostor / "model.safetensors"), found, expected):
        assert part in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_without_the_package_the_hub_is_asked_and_checked_alike(monkeypatch, small_model):
    real = find_encoder(EncoderConfig()).folder
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(real))
    assert find_encoder(EncoderConfig()).model_sha256 == module.EMBEDDED_SHA256
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(small_model))
    with pytest.raises(InputError, match="altered weights"):
        find_encoder(EncoderConfig())


def test_a_hub_id_is_fetched_at_its_revision_without_pickles(monkeypatch, small_model, config):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **how: asked.update(how, name=name) or str(small_model)
    )
    encoder = find_encoder(EncoderConfig("someone/model", revision="0123abc", max_length=32))
    assert encoder.key == find_encoder(config).key
    assert (asked["name"], asked["revision"]) == ("someone/model", "0123abc")
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])


def test_no_network_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"hf download nobody/nothing --revision abc --local-dir FOLDER"):
        encode(["w1"], EncoderConfig("nobody/nothing", revision="abc"), tmp_path / "cache")


def test_bad_folders(tmp_path, small_model):
    def refused(folder, message, **fields):
        with pytest.raises(InputError, match=message):
            encode(["w1"], EncoderConfig(str(folder), device="cpu", max_length=32, **fields), tmp_path / "cache")

    refused(tmp_path / "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no modules\.json")
    refused(small_model, "has no revision", revision="main")
    pickled = shutil.copytree(small_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"pytorch_model\.bin: weights as a pickle are not loaded")
    (pickled / "pytorch_model.bin").unlink()
    refused(pickled, "no weights")
    broken = shutil.copytree(small_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    refused(broken, "cannot load this model")
    foreign = shutil.copytree(small_model, tmp_path / "foreign")
    (foreign / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "mine.Custom"}]))
    (foreign / "mine.py").write_text("raise SystemExit('ran code that came with a model')")
    refused(foreign, "cannot load this model")
    (foreign / "modules.json").write_text('{"a": 1}')
    refused(foreign, r"modules\.json: expected a list")


# ---- a whole study --------------------------------------------------------------------------------------------------


def test_a_study_is_encoded_under_one_bar(tmp_path, config, monkeypatch, forwarded):
    texts = some_texts(40)
    pairs = lambda queries, docs: SimpleNamespace(queries=queries, docs=docs)  # noqa: E731
    study = SimpleNamespace(
        train=pairs(texts[:6], texts[10:16]),
        validation=pairs(texts[6:8], texts[10:12]),
        tests={"one": pairs(texts[20:23], texts[23:30]), "two": pairs(texts[30:31], texts[20:40])},
    )
    bars, bar = [], module.tqdm
    monkeypatch.setattr(module, "tqdm", lambda **how: bars.append(how) or bar(**(how | {"disable": True})))
    vectors = encode_study(study, config, tmp_path)
    assert len(bars) == 1 and bars[0]["total"] == sum(forwarded) == 34 and not bars[0]["disable"]
    every = encode(texts, config, tmp_path, progress=False)
    for found, rows in (
        (vectors.train_queries, every[:6]),
        (vectors.train_docs, every[10:16]),
        (vectors.validation_queries, every[6:8]),
        (vectors.validation_docs, every[10:12]),
        (vectors.tests["one"][0], every[20:23]),
        (vectors.tests["one"][1], every[23:30]),
        (vectors.tests["two"][0], every[30:31]),
        (vectors.tests["two"][1], every[20:40]),
    ):
        np.testing.assert_array_equal(found, rows)
        assert found.flags.c_contiguous
    encoder = find_encoder(config)
    assert (vectors.dim, vectors.model_sha256, vectors.key) == (48, encoder.model_sha256, encoder.key)
    assert vectors.config == config


def test_the_vectors_of_a_prepared_study_come_from_the_encoder_it_names(tmp_path, config, forwarded):
    texts = some_texts(4)
    part = SimpleNamespace(queries=texts[:2], docs=texts[2:])
    study = SimpleNamespace(train=part, validation=part, tests={}, folder=tmp_path)
    with pytest.raises(InputError, match=r"encoder\.json: no such file; prepare the study with notebook 01_data_prep"):
        module.stored_vectors(study, tmp_path / "cache")
    (tmp_path / "encoder.json").write_text(json.dumps({**asdict(config), "max_length": 4}))
    vectors = module.stored_vectors(study, tmp_path / "cache")
    assert vectors.config == replace(config, max_length=4)
    np.testing.assert_array_equal(vectors.train_docs, encode(texts[2:], vectors.config, tmp_path / "cache", False))
    (tmp_path / "encoder.json").write_text('{"speed": 9}')
    with pytest.raises(InputError, match=r"encoder\.json: expected the fields of EncoderConfig .*speed"):
        module.stored_vectors(study, tmp_path / "cache")


def test_the_share_of_texts_that_lose_their_end(tmp_path, small_model, config):
    texts = [" ".join(["w1"] * count) for count in (1, 29, 30, 31, 100)]  # and two special tokens each; 32 are read
    assert module.share_cut(texts, config) == 2 / 5
    assert module.share_cut(texts, replace(config, prompt="w2 ")) == 3 / 5
    vectors = encode([texts[2] + " w3", texts[2] + " w4", texts[1] + " w3", texts[1] + " w4"], config, tmp_path, False)
    assert np.array_equal(vectors[0], vectors[1]) and not np.array_equal(vectors[2], vectors[3])
    other = shutil.copytree(small_model, tmp_path / "other")
    for path in other.rglob("tokenizer.json"):
        path.unlink()
    assert np.isnan(module.share_cut(texts, replace(config, model=str(other))))


def test_importing_is_light():
    code = "import sys, asymlib.encode; sys.exit(bool({'torch', 'transformers', 'sentence_transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
