"""Texts to vectors: from the cache where they are there, else through the encoder in batches of about equal tokens."""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import Module
from tqdm import tqdm

from asymlib.encoding.cache import Cache
from asymlib.encoding.encoder import SIDES, Encoder, EncoderConfig, find_encoder, load_model
from asymlib.errors import InputError

CHUNK_TEXTS = 2_000  # texts tokenised at once
SHARD_BATCHES = 16  # batches a core between two writes: what a kill can cost at most
CPU_TOKENS = 2_048  # tokens a batch, padding included, on a CPU: 512 to 2,048 measured fastest, 8,192 a fifth slower
CUDA_TOKENS = 262_144  # the same on CUDA, halved where they do not fit the memory
LINE = "{desc}: {n_fmt}/{total_fmt} texts, {rate_noinv_fmt}, {remaining} left\n"
LINES = {"bar_format": LINE, "mininterval": 10, "delay": 10, "miniters": 1, "unit": " texts"}  # of a log
Lists = Sequence[Sequence[str]]  # of texts
Name = Callable[[int, int], str]  # number of a list and row in it, to what an error calls that text
PLACE: Name = "list {}, row {}".format


def encode(
    texts: Sequence[str], config: EncoderConfig, cache_folder: str | Path, progress: bool = True, side: str = "document"
) -> np.ndarray:
    """Vectors of N texts of one side, (N, D) float32, row i that of texts[i]; the rest as encode_lists."""
    (vectors,), _ = encode_lists([texts], [side], config, cache_folder, progress, "texts, row {1}".format)
    return vectors


def encode_lists(
    lists: Lists, sides: Sequence[str], config: EncoderConfig, cache_folder: str | Path, progress: bool = True,
    name: Name = PLACE,
) -> tuple[list[np.ndarray], Encoder]:  # fmt: skip
    """Vectors of several lists of texts under one bar; a text that comes twice on a side is encoded once.

    sides: "query" or "document" for each list; a side may have a prompt and, in a Router, modules of its own.
    progress: show a bar while texts are encoded; where stderr is no terminal, a line at most every 10 s.
    Returns the encoder, and an array (N, D) float32, C-contiguous, a list: row i is the vector of its text i, as
    SentenceTransformer.encode_query or encode_document leaves it: not normalised here; maybe zero for an empty text.
    InputError: a text that is no text, an encoder that cannot be had or loaded, a cache that is damaged or cannot be
    written, a full disk, a vector that is not finite (nothing is stored for it). After an error, Ctrl-C or a kill
    every finished shard is kept, and the same call goes on from there.
    """
    texts, digests = _texts(lists, sides, name)
    ends = np.cumsum([len(part) for part in lists])
    encoder = find_encoder(config)
    sides, rows = _rows(lists, sides, encoder.keys)
    caches = {side: Cache(cache_folder, encoder.keys[side]) for side in rows}
    found = {side: cache.read(digests[rows[side]]) for side, cache in caches.items()}
    if any(len(missing) or not vectors.shape[1] for vectors, missing in found.values()):
        for cache in caches.values():
            cache.prepare(identity=encoder.identity, model=config.model, revision=config.revision)
        model = load_model(encoder.folder, encoder.key, config.max_length, config.dtype, config.device)
        how = {"desc": f"encode ({Path(config.model).name})"} | ({} if sys.stderr.isatty() else LINES)
        with tqdm(total=sum(len(missing) for _, missing in found.values()), disable=not progress, **how) as bar:
            for side, cache in caches.items():
                wanted = rows[side][found[side][1]]
                for part, vectors in _encode_missing(model, encoder, side, texts, wanted, bar):
                    good = np.isfinite(vectors).all(axis=1)
                    if good.any():
                        cache.write(digests[part[good]], vectors[good])
                    if not good.all():
                        row = part[np.argmin(good)]
                        number = int(np.searchsorted(ends, row, side="right"))
                        where = name(number, int(row - ends[number]) + len(lists[number]))
                        raise InputError(f"{where}: not finite is the vector of {texts[row]!r:.60}")
        dim = model.get_embedding_dimension()
        found = {side: cache.read(digests[rows[side]], dim) for side, cache in caches.items()}
    return _by_list(lists, sides, {side: vectors for side, (vectors, _) in found.items()}), encoder


def read_vectors(
    lists: Lists, sides: Sequence[str], keys: Mapping[str, str], cache_folder: str | Path, dim: int | None = None
) -> list[np.ndarray]:
    """What encode_lists returned for these lists, by Encoder.keys alone: no model, no hashing of its weights.

    dim: D, for an empty cache. InputError: a text whose vector is not in the cache, a damaged cache.
    """
    texts, digests = _texts(lists, sides)
    sides, rows = _rows(lists, sides, keys)
    found = {}
    for side, own in rows.items():
        cache = Cache(cache_folder, keys[side])
        found[side], missing = cache.read(digests[own], dim)
        if count := len(missing):
            text = texts[own[missing.min()]]
            raise InputError(f"{cache.folder}: no vector of {count} texts ({text!r:.60}); run 01_data_prep again")
    return _by_list(lists, sides, found)


def share_cut(lists: Lists, sides: Sequence[str], config: EncoderConfig) -> list[float]:
    """Share in [0, 1] of each list's texts longer than max_length tokens, prompt and all; 0 where any length is read."""
    _texts(lists, sides)
    encoder = find_encoder(config)
    model, shares = load_model(encoder.folder, encoder.key, config.max_length, config.dtype, config.device), []
    how, none = {"processing_kwargs": {"text": {"max_length": config.max_length + 1}}}, torch.zeros(0, 0)
    for texts, side in zip(lists, sides, strict=True):
        cut = 0
        for start in range(0, len(texts), CHUNK_TEXTS):
            part = list(texts[start : start + CHUNK_TEXTS])
            features = model.preprocess(part, prompt=encoder.prompts[side] or None, task=side, **how)
            cut += int((features.get("attention_mask", none).sum(dim=1) > config.max_length).sum())
        shares.append(cut / max(len(texts), 1))
    return shares


def _texts(lists: Lists, sides: Sequence[str], name: Name = PLACE) -> tuple[list[str], np.ndarray]:
    """All texts in one list, and (N,) S32: SHA-256 of each text's UTF-8 bytes."""
    if len(sides) != len(lists) or not set(sides) <= set(SIDES):
        raise InputError(f"sides: expected 'query' or 'document' for each of {len(lists)} lists, got {list(sides)}")
    if any(isinstance(part, str) for part in lists):
        raise InputError("texts: expected a list of texts, got a single text")
    digests = np.empty(sum(map(len, lists)), dtype="S32")
    texts: list[str] = []
    for number, part in enumerate(lists):
        for row, text in enumerate(part):
            try:
                digests[len(texts)] = hashlib.sha256(text.encode("utf-8")).digest()
            except (AttributeError, UnicodeEncodeError) as error:
                half = " without half characters (put U+FFFD in their place)" if isinstance(text, str) else ""
                raise InputError(f"{name(number, row)}: expected a text{half}, got {text!r:.60}") from error
            texts.append(text)
    return texts, digests


def _rows(lists: Lists, sides: Sequence[str], keys: Mapping[str, str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The side of each list, "document" for all where the keys agree, and the rows of each side among all texts."""
    if keys["query"] == keys["document"]:
        sides = ["document"] * len(sides)
    queries = np.repeat([side == "query" for side in sides], [len(part) for part in lists])
    return list(sides), {side: np.flatnonzero(queries == (side == "query")) for side in dict.fromkeys(sides)}


def _by_list(lists: Lists, sides: list[str], vectors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The vectors of each list, from those of each side, which follow one another in the order of the lists."""
    parts = {}
    for side, array in vectors.items():
        ends = np.cumsum([len(part) for part, own in zip(lists, sides, strict=True) if own == side])
        parts[side] = iter(np.split(array, ends[:-1]))
    return [next(parts[side]) for side in sides]


def _encode_missing(
    model: Module, encoder: Encoder, side: str, texts: list[str], rows: np.ndarray, bar: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and their vectors, a shard at a time, longest texts first: a batch is hardly padded."""
    at_once, budget = (torch.get_num_threads(), CPU_TOKENS) if model.device.type == "cpu" else (1, CUDA_TOKENS)
    order = rows[np.argsort([-len(texts[row]) for row in rows], kind="stable")]
    for start in range(0, len(order), CHUNK_TEXTS):
        chunk = order[start : start + CHUNK_TEXTS]
        features = model.preprocess([texts[row] for row in chunk], prompt=encoder.prompts[side] or None, task=side)
        mask, run = features.get("attention_mask"), partial(_forward, model, side, features)
        if mask is None:  # a model without attention (static embeddings, a bag of words): any number fits
            batches = [np.arange(len(chunk))]
        else:
            batches = token_batches(mask.sum(dim=1).clamp(min=1).numpy(), budget)
        for first in range(0, len(batches), SHARD_BATCHES * at_once):
            part = batches[first : first + SHARD_BATCHES * at_once]
            yield chunk[np.concatenate(part)], _side_by_side(run, part, at_once, bar)


def _forward(model: Module, side: str, features: Mapping[str, object], rows: np.ndarray) -> np.ndarray:
    """The vectors (n, D) float32 of rows of tokenised texts, without the columns that are padding in all of them."""
    if (mask := features.get("attention_mask")) is not None:
        used = mask[rows].any(dim=0)  # (L,) bool
        used[0] |= not used.any()  # texts without a single token keep one column of padding
        of_tokens = [k for k, v in features.items() if isinstance(v, torch.Tensor) and v.shape == mask.shape]
        features = {**features, **{name: features[name][rows][:, used] for name in of_tokens}}
    with torch.inference_mode():
        placed = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        vectors = model(placed, task=side)["sentence_embedding"]
        return vectors[:, : model.truncate_dim].float().cpu().numpy()


def _side_by_side(run: Callable, batches: list[np.ndarray], workers: int, bar: tqdm) -> np.ndarray:
    """The vectors of all batches, on a CPU one on each core: nothing waits for another core inside a layer."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # no TF32 or bfloat16 inside, so that a GPU agrees with a CPU
    pool, found = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)), []
    try:
        for vectors in pool.map(partial(_in_memory, run), batches):
            bar.update(len(vectors))
            found.append(vectors)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    return np.concatenate(found)


def _in_memory(run: Callable, rows: np.ndarray) -> np.ndarray:
    """run(rows), in halves where the memory of a GPU does not hold them."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return run(rows)
    if len(rows) == 1:
        raise InputError("not enough memory for one text; expected a smaller max_length")
    torch.cuda.empty_cache()
    return np.concatenate([_in_memory(run, half) for half in np.array_split(rows, 2)])


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows, longest first, in groups whose count times longest length is at most `budget` (but one row at least)."""
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        groups.append(order[start : start + size])
        start += size
    return groups
