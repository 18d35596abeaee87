"""Texts to vectors: from the cache where they are there, else through the encoder in batches of about equal tokens."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import Module
from tqdm import tqdm

from asymlib.encoding.cache import Cache
from asymlib.encoding.encoder import Encoder, EncoderConfig, find_encoder, find_folder, load_model, module_folders
from asymlib.errors import InputError

CHUNK_TEXTS = 2_000  # texts tokenised at once
SHARD_BATCHES = 32  # batches between two writes: what a kill can cost at most
CPU_TOKENS = 2_048  # tokens a batch, padding included, on a CPU: 512 to 2,048 measured fastest, 8,192 a fifth slower
CUDA_TOKENS = 262_144  # the same on CUDA, where memory allows
LINE = "{desc}: {n_fmt}/{total_fmt} texts, {rate_noinv_fmt}, {remaining} left\n"  # of a log
Lists = Sequence[Sequence[str]]  # of texts


def encode(texts: Sequence[str], config: EncoderConfig, cache_folder: str | Path, progress: bool = True) -> np.ndarray:
    """Vectors of N texts, (N, D) float32, row i that of texts[i]; the rest as encode_lists."""
    (vectors,), _ = encode_lists([texts], config, cache_folder, progress)
    return vectors


def encode_lists(
    lists: Lists, config: EncoderConfig, cache_folder: str | Path, progress: bool = True
) -> tuple[list[np.ndarray], Encoder]:
    """Vectors of several lists of texts under one bar; a text that comes twice, in whichever list, is encoded once.

    progress: show a bar while texts are encoded; where stderr is no terminal, a line at most every 10 s.
    Returns the encoder, and an array (N, D) float32, C-contiguous, a list: row i is the vector of its text i, exactly as
    the model's own modules leave it (all-MiniLM-L6-v2 ends in a Normalize module; nothing is normalised here).
    InputError: a text that is no text, an encoder that cannot be had or loaded, a damaged cache, a full disk, a vector
    that is zero or not finite (nothing is stored for it). After an error, Ctrl-C or a kill every finished shard is
    kept, and the same call goes on from there.
    """
    texts, digests = _texts(lists)
    encoder = find_encoder(config)
    cache = Cache(cache_folder, encoder.key)
    vectors, missing = cache.read(digests)
    if len(missing) or not vectors.shape[1]:
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(encoder.folder, encoder.key, config.max_length, config.dtype, device)
        dim, total = model.get_embedding_dimension(), len(np.unique(digests))
        cache.describe(encoder, dim)
        how = {"total": total, "initial": total - len(missing), "desc": f"encode ({Path(config.model).name})"}
        line = {} if sys.stderr.isatty() else {"bar_format": LINE, "mininterval": 10, "miniters": 1, "unit": " texts"}
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(**how, **line, disable=not progress))
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")  # no TF32 or bfloat16 inside, so that a GPU agrees with a CPU
            _encode_missing(model, config.prompt, texts, digests, missing, cache, bar)
        vectors, _ = cache.read(digests, dim)
    return np.split(vectors, np.cumsum([len(part) for part in lists])[:-1]), encoder


def read_vectors(lists: Lists, key: str, cache_folder: str | Path, dim: int | None = None) -> list[np.ndarray]:
    """What encode_lists returned for these lists, by the encoder's key alone: no model, no hashing of its weights.

    dim: D, for an empty cache. InputError: a text whose vector is not in the cache, a damaged cache.
    """
    texts, digests = _texts(lists)
    cache = Cache(cache_folder, key)
    vectors, missing = cache.read(digests, dim)
    if len(missing):
        text = texts[missing.min()]
        raise InputError(f"{cache.folder}: no vector of {len(missing)} texts ({text!r:.60}); run 01_data_prep again")
    return np.split(vectors, np.cumsum([len(part) for part in lists])[:-1])


def share_cut(lists: Lists, config: EncoderConfig) -> list[float]:
    """Share of each list's texts, in [0, 1], that lose their end: longer than max_length tokens, prompt and all.

    NaN for a model without a tokenizer.json.
    """
    from tokenizers import Tokenizer

    paths = [path for place in module_folders(find_folder(config)) for path in place.glob("tokenizer.json")]
    if not paths:
        return [float("nan")] * len(lists)
    tokenizer = Tokenizer.from_file(str(paths[0]))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    shares = []
    for texts in lists:
        parts = (texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS))
        read = (found for part in parts for found in tokenizer.encode_batch([config.prompt + text for text in part]))
        shares.append(sum(len(found.ids) > config.max_length for found in read) / max(len(texts), 1))
    return shares


def _texts(lists: Lists) -> tuple[list[str], np.ndarray]:
    """All texts in one list, and (N,) S32: SHA-256 of each text's UTF-8 bytes."""
    if any(isinstance(part, str) for part in lists):
        raise InputError("texts: expected a list of texts, got a single text")
    texts = [text for part in lists for text in part]
    digests = np.empty(len(texts), dtype="S32")
    for row, text in enumerate(texts):
        try:
            digests[row] = hashlib.sha256(text.encode("utf-8")).digest()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError(f"texts, row {row}: expected a text, got {text!r:.60}") from error
    return texts, digests


def _encode_missing(
    model: Module, prompt: str, texts: list[str], digests: np.ndarray, rows: np.ndarray, cache: Cache, bar: tqdm
) -> None:
    """Encode texts[i] for i in `rows` into the cache, a shard at a time, longest first: a batch is hardly padded."""
    order = rows[np.argsort([-len(texts[row]) for row in rows], kind="stable")]
    for start in range(0, len(order), CHUNK_TEXTS):
        rows = order[start : start + CHUNK_TEXTS]
        with closing(_forward(model, [texts[row] for row in rows], prompt)) as batches:
            while group := list(islice(batches, SHARD_BATCHES)):
                places, values = map(np.concatenate, zip(*group, strict=True))
                good = np.isfinite(values).all(axis=1) & values.any(axis=1)
                if good.any():
                    cache.write(digests[rows[places[good]]], values[good])
                if not good.all():
                    row = rows[places[np.argmin(good)]]
                    raise InputError(f"texts, row {row}: zero or not finite is the vector of {texts[row]!r:.60}")
                bar.update(len(values))


def _forward(model: Module, texts: list[str], prompt: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, their vectors (n, D) float32) until every text had its turn, in batches of about equal tokens.

    All texts are tokenised at once; a batch takes its rows and drops the columns that are padding in all of them.
    """
    features = model.preprocess(texts, prompt=prompt or None)
    mask = features.get("attention_mask")

    def run(rows: np.ndarray | slice) -> np.ndarray:
        batch = features
        if mask is not None:
            used = mask[rows].any(dim=0)  # (L,) bool
            used[0] |= not used.any()  # texts without a single token keep one column of padding
            batch = {
                name: value[rows][:, used] if isinstance(value, torch.Tensor) and value.shape == mask.shape else value
                for name, value in features.items()
            }
        with torch.inference_mode():
            placed = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            return model(placed)["sentence_embedding"].float().cpu().numpy()

    if mask is None:  # a model without attention (static embeddings, a bag of words): any number fits
        yield np.arange(len(texts)), run(slice(None))
        return
    lengths = mask.sum(dim=1).clamp(min=1).numpy()
    if model.device.type == "cpu":
        yield from _side_by_side(run, lengths, CPU_TOKENS, torch.get_num_threads())
    else:
        yield from _one_after_another(run, lengths, _token_budget(model))


def _side_by_side(run: Callable, lengths: np.ndarray, budget: int, workers: int) -> Iterator:
    """A batch of `budget` tokens on each of `workers` cores: nothing waits for another core inside a layer.

    Splitting every product over the cores instead stalls all of them whenever one is busy with another program.
    """
    batches = token_batches(lengths, budget)
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from zip(batches, pool.map(run, batches), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(workers)


def _one_after_another(run: Callable, lengths: np.ndarray, budget: int) -> Iterator:
    """Batches of `budget` tokens; when one does not fit the memory, the rest is done in batches of half the tokens."""
    waiting = token_batches(lengths, budget)
    while waiting:
        rows = waiting[0]
        try:
            yield rows, run(rows)
            waiting.pop(0)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise InputError(f"not enough memory for one text of {lengths[rows[0]]} tokens") from error
            rest = np.concatenate(waiting)
            waiting = [rest[part] for part in token_batches(lengths[rest], int(lengths[rows[0]]) * len(rows) // 2)]
            torch.cuda.empty_cache()


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Rows, longest first, in groups whose count times longest length is at most `budget` (but one row at least)."""
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        groups.append(order[start : start + size])
        start += size
    return groups


def _token_budget(model: Module) -> int:
    """Tokens a batch, padding included, that a third of the free memory of a GPU holds."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    hidden, heads = getattr(config, "hidden_size", 1024), getattr(config, "num_attention_heads", 16)
    # float32 bytes a token: about 12 activations of the hidden size, and 3 rows of attention scores a head
    bytes_a_token = 4 * (12 * hidden + 3 * heads * model.max_seq_length)
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(np.clip(free / 3 / bytes_a_token, model.max_seq_length, CUDA_TOKENS))
