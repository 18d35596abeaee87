"""A content-addressed cache of vectors on disk, which any number of processes may read and write at once.

A vector's address is what decides its value: the key of the encoder's side (see find_encoder) gives the folder, the
SHA-256 of the text gives the row. The text's origin, the device, the batch size and names of files play no part.

    <cache>/<first 16 digits of the key>/config.json          what decides the values, for people to read
    <cache>/<...>/shard-<unique>.npy        (n, D) float32    vectors
    <cache>/<...>/shard-<unique>.keys.npy   (n, 32) uint8     SHA-256 of each row's text
    <cache>/<...>/shard-<unique>.json                         rows, dim and the SHA-256 of both files; written last

A shard without its .json is a killed writer's: ignored, and deleted when it is a day old. The others are never changed.
"""

import contextlib
import time
import uuid
from pathlib import Path

import numpy as np

from asymlib.errors import InputError
from asymlib.files import atomic_path, read_json, sha256_file, write_json

HASHES = {".npy": "vectors_sha256", ".keys.npy": "keys_sha256"}  # a shard's files and their fields in its .json


class Cache:
    """The vectors of one side of an encoder. key: of Encoder.keys; cache_folder: need not exist yet."""

    def __init__(self, cache_folder: str | Path, key: str):
        self.key, self.folder = key, Path(cache_folder) / key[:16]

    def prepare(self, **about: object) -> None:
        """Before texts are encoded: write config.json (InputError if it cannot be), sweep what killed writers left."""
        try:
            write_json(self.folder / "config.json", {"key": self.key, **about})
        except OSError as error:
            raise InputError(
                f"{self.folder}: vectors cannot be stored here ({error.strerror or error}); "
                "make the folder writable or give another cache folder"
            ) from error
        for path in self.folder.iterdir():
            left = path.suffix == ".npy" and not (self.folder / f"{path.name.partition('.')[0]}.json").exists()
            with contextlib.suppress(OSError):  # another process may sweep too
                if (left or path.suffix == ".part") and path.stat().st_mtime < time.time() - 86_400:
                    path.unlink()

    def read(self, digests: np.ndarray, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of texts, by the SHA-256 of each, (N,) S32.

        dim: D, used while the cache is empty. Returns vectors (N, D) float32, and missing (M,) int: the first row of
        each distinct text that is not in the cache, in the order of the digests; its rows hold nothing of use.
        InputError: a shard whose bytes changed, naming it. Each keys file is checked against its SHA-256 before use,
        the vectors file if it holds a wanted text.
        """
        wanted, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        found, vectors = np.zeros(len(wanted), dtype=bool), None
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                about = read_json(path)
                dim = about["dim"]
                keys = np.ascontiguousarray(_open(path, ".keys.npy", about, 32)).view("S32").ravel()
                place = np.searchsorted(wanted, keys)
                hit = np.flatnonzero(place < len(wanted))
                hit = hit[(wanted[place[hit]] == keys[hit]) & ~found[place[hit]]]
                if len(hit):
                    rows = _open(path, ".npy", about, dim)
                    vectors = np.empty((len(digests), dim), dtype=np.float32) if vectors is None else vectors
                    vectors[first[place[hit]]] = rows[hit]
                    found[place[hit]] = True
            except (EOFError, KeyError, OSError, TypeError, ValueError) as error:
                raise InputError(
                    f"{path.with_suffix('.*')}: these cached vectors are damaged (another SHA-256 or size, or a part "
                    "is missing); delete the files and run again: only their texts are encoded anew"
                ) from error
        if vectors is None:
            vectors = np.empty((len(digests), dim or 0), dtype=np.float32)
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


def _open(path: Path, suffix: str, about: dict, width: int) -> np.ndarray:
    """A checked, memory-mapped file of a shard, (rows, width)."""
    path = path.with_suffix(suffix)
    if sha256_file(path) == about[HASHES[suffix]]:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.shape == (about["rows"], width):
            return array
    raise ValueError(f"{path} is not as it was written")
