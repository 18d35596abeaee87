"""A content-addressed cache of vectors on disk, which any number of processes may read and write at once.

A vector's address is what decides its value: the encoder's key (the hash of the model's weights, of its tokenizer and
of its module configurations, the prompt, the maximum length and the dtype) gives the folder, the SHA-256 of the text
gives the row. Where a text comes from, the device, the batch size and the names of files play no part.

    <cache>/<first 16 digits of the key>/config.json          what decides the values, for people to read
    <cache>/<...>/shard-<unique>.npy        (n, D) float32    vectors
    <cache>/<...>/shard-<unique>.keys.npy   (n, 32) uint8     SHA-256 of each row's text
    <cache>/<...>/shard-<unique>.json                         rows, dim and the SHA-256 of both files; written last

A shard without its .json is a writer that was killed, and is ignored; a shard is never changed, and the same text
encoded twice is a harmless duplicate.
"""

import time
import uuid
from pathlib import Path

import numpy as np

from asymlib.encoding.encoder import Encoder
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, sha256_file, write_json

HASHES = {".npy": "vectors_sha256", ".keys.npy": "keys_sha256"}  # a shard's files and their fields in its .json


class Cache:
    """The vectors of one encoder. key: Encoder.key; cache_folder: need not exist yet."""

    def __init__(self, cache_folder: str | Path, key: str):
        self.folder = Path(cache_folder) / key[:16]

    def describe(self, encoder: Encoder, dim: int) -> None:
        """Write config.json, for people to read, unless it is there."""
        path = self.folder / "config.json"
        if not path.is_file():
            about = {"model": encoder.config.model, "revision": encoder.config.revision}
            write_json(path, {"key": encoder.key, "identity": encoder.identity, "dim": dim, **about})

    def read(self, digests: np.ndarray, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of texts, by the SHA-256 of each, (N,) S32.

        dim: D, used while the cache is empty. Returns vectors (N, D) float32, and missing (M,) int: the first row of
        each distinct text that is not in the cache, in the order of the digests; its rows hold nothing of use.
        InputError: a shard whose bytes changed, naming it. Each keys file is checked against its SHA-256 before use,
        the vectors file if it holds a wanted text.
        """
        wanted, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        found = np.zeros(len(wanted), dtype=bool)
        shards = self._shards()
        vectors = np.empty((len(digests), shards[0][1]["dim"] if shards else dim or 0), dtype=np.float32)
        for name, about in shards if len(wanted) else ():
            keys = np.ascontiguousarray(self._open(name, ".keys.npy", about)).view("S32").ravel()
            place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
            hit = (wanted[place] == keys) & ~found[place]
            if hit.any():
                vectors[first[place[hit]]] = self._open(name, ".npy", about)[hit]
                found[place[hit]] = True
        repeated = np.flatnonzero(first[inverse] != np.arange(len(digests)))
        vectors[repeated] = vectors[first[inverse[repeated]]]
        return vectors, first[~found]

    def write(self, digests: np.ndarray, vectors: np.ndarray) -> None:
        """Add a shard: digests (n,) S32, vectors (n, D) float32. Whole or not at all."""
        name = f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        keys = np.ascontiguousarray(digests).view(np.uint8).reshape(len(digests), 32)
        about = {"rows": len(digests), "dim": int(vectors.shape[1])}
        for suffix, array in ((".npy", vectors), (".keys.npy", keys)):
            with atomic_path(self.folder / (name + suffix)) as temporary:
                with open(temporary, "wb") as file:
                    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
                about[HASHES[suffix]] = sha256_file(temporary)
        write_json(self.folder / f"{name}.json", about)

    def _shards(self) -> list[tuple[str, dict]]:
        shards = []
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                about = read_json(path)
                shards.append((path.stem, {field: about[field] for field in ("rows", "dim", *HASHES.values())}))
            except (InputError, KeyError, TypeError) as error:
                raise self._damaged(path.stem, ".json") from error
        return shards

    def _open(self, name: str, suffix: str, about: dict) -> np.ndarray:
        """A checked, memory-mapped file of a shard."""
        path = self.folder / (name + suffix)
        if not path.is_file() or sha256_file(path) != about[HASHES[suffix]]:
            raise self._damaged(name, suffix)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _damaged(self, name: str, suffix: str) -> InputError:
        return InputError(
            f"{self.folder / (name + suffix)}: the cached vectors are damaged (another SHA-256, or a part is missing); "
            f"delete {self.folder / name}.* and run again: only its texts are encoded anew"
        )
