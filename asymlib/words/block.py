"""The words of a text as numbers that are joined to its vector, so that one inner product sees meaning and words.

    query     sum over its distinct words of sqrt(idf) e(word)
    document  sum over its distinct words of sqrt(idf) tf (k1 + 1) / (tf + k1 (1 - b + b words / mean words)) e(word)
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))

Their product is BM25 (Robertson & Zaragoza 2009, with Lucene's idf) where e(word) are axes of their own. Here e(word) is one
of m axes with a sign, both from a hash of the spelling (feature hashing, Weinberger et al. 2009, arXiv:0902.2206): products
stay right on average, and a word that was never seen has its place too. The length of a document's block is kept by default.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy.sparse import csr_array

from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import SIDES, EncoderConfig, find_encoder, find_folder
from asymlib.errors import InputError
from asymlib.files import atomic_path, read_record, write_record

AGAIN = "fit and save it again"
STOP_WORDS = "english_plus"


def tokenize(texts: Sequence[str], stop_words: str = STOP_WORDS, stemmer: str | None = None) -> tuple[list, list[str]]:
    """The words of texts as bm25s reads them: lower case, of two or more letters or digits, without stop words.

    stop_words: bm25s's list, "english" (33), "english_plus" (179) or "none". stemmer: None, or "english" of PyStemmer.
    Returns, for each text, the numbers of its words in their order, and the distinct words, sorted, that they count.
    """
    import bm25s

    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("texts: expected a list of texts")
    if stemmer:  # needs PyStemmer, which few use
        import Stemmer
    removed, stem = [] if stop_words == "none" else stop_words, stemmer and Stemmer.Stemmer(stemmer)
    ids, vocabulary = bm25s.tokenize(list(texts), stopwords=removed, stemmer=stem, show_progress=False)
    place = np.empty(len(vocabulary), dtype=np.int64)  # bm25s numbers stems by the order of a set
    place[[vocabulary[word] for word in sorted(vocabulary)]] = np.arange(len(vocabulary))
    return [place[row] for row in ids], sorted(vocabulary)


class Counts(NamedTuple):
    """How often each word is in each text: all that a block needs of texts, so that several blocks may share it."""

    matrix: csr_array  # (N, V) float64
    words: list[str]  # V, sorted
    how: tuple[str, str | None]  # stop_words and stemmer, as of tokenize

    @classmethod
    def of(cls, texts: Sequence[str], stop_words: str = STOP_WORDS, stemmer: str | None = None) -> Self:
        rows, words = tokenize(texts, stop_words, stemmer)
        ends = np.cumsum([0, *map(len, rows)])
        columns = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
        matrix = csr_array((np.ones(len(columns)), columns, ends), shape=(len(rows), len(words)))
        matrix.sum_duplicates()
        return cls(matrix, words, (stop_words, stemmer))


@dataclass(frozen=True)
class Block:
    """The words' part of a vector, fitted on a corpus by `fit`; what is fitted stays as it is for texts that come later.

    dimensions: m. weight: of the block's product beside the cosine. exponent: 0 keeps the lengths of document blocks, 1 makes
        them 1, between: length^(1 - exponent), in units of the mean. k1, b: BM25's. stop_words, stemmer: of tokenize.
    seed: of the hash. Fitted: texts, how many they were; mean_words, of a text; mean_length, of a document's block;
        frequency: word -> how many of the texts hold it.
    """

    dimensions: int = 1536
    weight: float = 0.6
    exponent: float = 0.0
    k1: float = 0.9
    b: float = 0.4
    stop_words: str = STOP_WORDS
    stemmer: str | None = None
    seed: int = 0
    texts: int = 0
    mean_words: float = 1.0
    mean_length: float = 1.0
    frequency: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        allowed = {"stop_words": ("english_plus", "english", "none"), "stemmer": (None, "english")}
        if wrong := [f"{name} {value!r}" for name in allowed if (value := getattr(self, name)) not in allowed[name]]:
            raise InputError(f"{wrong[0]}: expected one of {allowed[wrong[0].split()[0]]}")
        ranges = {"dimensions": (1, 2**31 - 1), "seed": (0, 2**32 - 1), "weight": (0, 1e6), "exponent": (-10, 10)}
        for name, (low, high) in (ranges | {"k1": (0, 1e6), "b": (0, 1)}).items():
            if not low <= (value := getattr(self, name)) <= high:
                raise InputError(f"{name}: expected a number from {low} to {high}, got {value!r}")

    @classmethod
    def fit(cls, texts: Sequence[str] | Counts, **settings: float | str | None) -> Self:
        """The block of a corpus: its idf, mean number of words, and mean block length of the texts that have a word."""
        block = cls(**settings)
        counts = block._counts(texts)
        if not counts.matrix.nnz:
            raise InputError("texts: none of them has a word; expected a corpus")
        held = np.bincount(counts.matrix.indices, minlength=len(counts.words))
        frequency = dict(zip(counts.words, held.tolist(), strict=True))
        words, some = float(counts.matrix.sum() / counts.matrix.shape[0]), np.diff(counts.matrix.indptr) > 0
        block = replace(block, texts=counts.matrix.shape[0], mean_words=words, frequency=frequency)
        hashed = block._hashed("document", counts)
        return replace(block, mean_length=float(np.sqrt(hashed.multiply(hashed).sum(axis=1))[some].mean()))

    def with_settings(self, **changes: float) -> Self:
        """The same with another weight or exponent; the other settings decide what is fitted."""
        if not {*changes} <= {"weight", "exponent"}:
            raise InputError(f"{', '.join(changes)}: only weight and exponent change without fitting anew")
        return replace(self, **changes)

    def raw(self, side: str, texts: Sequence[str] | Counts) -> np.ndarray:
        """(N, m) float32: the sums above; of documents in units of the mean length. Zero for a text without words."""
        hashed = self._hashed(side, self._counts(texts))
        return (hashed / (self.mean_length if side == "document" else 1.0)).astype(np.float32).toarray()

    def block(self, side: str, texts: Sequence[str] | Counts) -> np.ndarray:
        """(N, m) float32: queries divided by their lengths, documents by length^exponent."""
        raw, power = self.raw(side, texts), 1.0 if side == "query" else self.exponent
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        return raw / np.where(length > 0, length, 1) ** np.float32(power)

    def join(self, side: str, vectors: np.ndarray, texts: Sequence[str] | Counts) -> np.ndarray:
        """One vector a text, (N, D + m) float32, to be compared by inner products: cosine + weight x block product.

        Query: [x/|x|, weight block]; document: [x/|x|, block]. vectors: (N, D); a zero vector stays zero, as a block does.
        """
        block = self.block(side, texts)
        if len(vectors) != len(block):
            raise InputError(f"{side}: {len(vectors)} vectors and {len(block)} texts, expected one for each")
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        dense = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
        return np.hstack([dense, block * np.float32(self.weight) if side == "query" else block])

    def save(self, folder: str | Path) -> None:
        """Write block.safetensors (the words and their frequencies) and block.json, which holds the rest and its SHA-256."""
        from safetensors.numpy import save

        words = np.frombuffer("\n".join(self.frequency).encode(), dtype=np.uint8)
        content = save({"words": words, "frequency": np.array([*self.frequency.values()], dtype=np.int64)})
        with atomic_path(Path(folder) / "block.safetensors") as temporary:
            temporary.write_bytes(content)
        about = {name: value for name, value in asdict(self).items() if name != "frequency"}
        write_record(Path(folder) / "block.json", about | {"sha256": hashlib.sha256(content).hexdigest()})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; a missing or altered file is an InputError that names it."""
        from safetensors.numpy import load

        about, path = read_record(Path(folder) / "block.json", AGAIN), Path(folder) / "block.safetensors"
        content = path.read_bytes() if path.is_file() else b""
        if about.pop("sha256", None) != hashlib.sha256(content).hexdigest():
            raise InputError(f"{path}: missing, or altered since block.json was written; {AGAIN}")
        if {*about, "frequency"} != {own.name for own in fields(cls)}:
            raise InputError(f"{Path(folder) / 'block.json'}: not a block of this version; {AGAIN}")
        stored = load(content)
        words = stored["words"].tobytes().decode().split("\n")
        return cls(**about, frequency=dict(zip(words, stored["frequency"].tolist(), strict=True)))

    def _counts(self, texts: Sequence[str] | Counts) -> Counts:
        counts = texts if isinstance(texts, Counts) else Counts.of(texts, self.stop_words, self.stemmer)
        if counts.how != (self.stop_words, self.stemmer):
            raise InputError(f"counts: made with {counts.how}, expected {(self.stop_words, self.stemmer)}")
        return counts

    def _hashed(self, side: str, counts: Counts) -> csr_array:
        """(N, m) float64 of the sums above. Words come in the order of their letters, so a text's sum knows no neighbours."""
        from sklearn.utils import murmurhash3_32

        if side not in SIDES:
            raise InputError(f"side: expected query or document, got {side!r}")
        held = np.array([self.frequency.get(word, 0) for word in counts.words], dtype=np.float64)
        root = np.sqrt(np.log1p((self.texts - held + 0.5) / (held + 0.5)))  # (V,)
        code = np.array([murmurhash3_32(word, self.seed) for word in counts.words], dtype=np.int64)  # signed
        places = (np.arange(len(code)), np.abs(code) % self.dimensions)
        axes = csr_array((np.where(code >= 0, root, -root), places), shape=(len(code), self.dimensions))
        tf = counts.matrix.copy()
        if side == "query":
            tf.data[:] = 1.0
        else:
            words = tf.sum(axis=1) / self.mean_words
            saturation = np.repeat(self.k1 * (1 - self.b + self.b * words), np.diff(tf.indptr))
            tf.data *= (self.k1 + 1) / (tf.data + saturation)
        return (tf @ axes).tocsr()


@dataclass(frozen=True)
class LexicalEncoder:
    """An encoder whose vectors hold the words too, for any index of inner products; new documents keep the fitted idf.

    cache: the folder of the encoder's own vectors, as of encoding.encode.
    """

    encoder: EncoderConfig
    block: Block
    cache: str | Path

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D + m) float32 of queries."""
        return self._encode("query", texts)

    def encode_document(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D + m) float32 of documents."""
        return self._encode("document", texts)

    def _encode(self, side: str, texts: Sequence[str]) -> np.ndarray:
        cache = Path(self.cache).expanduser()
        return self.block.join(side, encode(texts, self.encoder, cache, False, side), texts)

    def save(self, folder: str | Path) -> None:
        """Write the block, and encoder.json: which encoder, by its whole path where it is a folder, and the key of its vectors.

        The encoder itself is not copied.
        """
        self.block.save(folder)
        place = Path(self.encoder.model).expanduser().resolve()
        model = str(place) if find_folder(self.encoder) == place else self.encoder.model
        config = replace(self.encoder, device=None, model=model)
        write_record(Path(folder) / "encoder.json", {"config": asdict(config), "key": find_encoder(config).key})

    @classmethod
    def load(cls, folder: str | Path, cache: str | Path, device: str | None = None) -> Self:
        """Read what `save` wrote. InputError: a missing or altered file, an encoder that is not the one of then."""
        path = Path(folder) / "encoder.json"
        about = read_record(path, AGAIN)
        config = EncoderConfig(**{**about["config"], "device": device})
        if (key := find_encoder(config).key) != about["key"]:
            raise InputError(f"{path}: saved with another encoder ({about['key'][:16]}, now {key[:16]}); {AGAIN}")
        return cls(config, Block.load(folder), cache)
