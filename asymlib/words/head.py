"""A head of a few learnt scalars on [vector, block of words]: how much words count, and what the lengths of blocks say.

    query     [x/|x|, exp(log_weight + slope ln(l / typical)) r / l],  l = |r|
    document  [x/|x|, r / l^exponent]

x is the frozen vector, r the raw block (block.Block.raw). The inner product of the two is the score. At the start it is that
of the block's own weight and exponent. Pairs teach it by InfoNCE against all documents; a temperature that is learnt beside
the scalars is dropped, as rankings know no scale. Training pairs ask short questions alone, so crops of documents, each one's
beginning as a query for its end, teach what long queries want, without a label (Izacard et al. 2022, arXiv:2112.09118).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from asymlib import losses
from asymlib.errors import InputError
from asymlib.files import read_record, write_record
from asymlib.words.block import Block

SCALARS = ("log_weight", "slope", "exponent")
SHORTEST = 16  # words of a document that is cut in two


@dataclass(frozen=True)
class LexicalHead:
    """The scalars above. typical: the geometric mean length of the raw blocks of training queries, where slope has no say."""

    log_weight: float
    slope: float = 0.0
    exponent: float = 0.0
    typical: float = 1.0

    @classmethod
    def untrained(cls, block: Block) -> Self:
        """The head that scores as the block itself does. InputError: a block of weight 0, from which nothing is learnt."""
        if block.weight <= 0:
            raise InputError(f"weight: a lexical head starts at a weight above 0, found {block.weight}")
        return cls(math.log(block.weight), exponent=block.exponent)

    def save(self, path: str | Path) -> None:
        """Write the scalars as a JSON record."""
        write_record(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; a missing or altered file is an InputError that names it."""
        values = read_record(path, "train the lexical head again")
        if {*values} != {own.name for own in fields(cls)}:
            raise InputError(f"{path}: not a lexical head of this version; train it again")
        return cls(**values)


def project(head: LexicalHead, side: str, vectors: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Joined vectors to be compared by inner products: (N, D) and (N, m) -> (N, D + m) float32.

    vectors: of the frozen encoder. raw: Block.raw of the same texts. A zero vector stays zero, as a zero block does.
    """
    if side not in ("query", "document") or len(vectors) != len(raw):
        raise InputError(f"{side}: {len(vectors)} vectors and {len(raw)} blocks, expected a query or document for each")
    length = np.linalg.norm(raw.astype(np.float64), axis=1, keepdims=True)
    length[length == 0] = head.typical if side == "query" else 1.0
    if side == "query":
        factor = np.exp(head.log_weight + head.slope * np.log(length / head.typical)) / length
    else:
        factor = length**-head.exponent
    return np.hstack([unit(vectors), raw * factor.astype(np.float32)]).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Task:
    """What a head is trained on: scores of queries against documents that its scalars weigh, each query with one positive.

    cosine: (Q, N). product: (Q, N), of unit query blocks with raw document blocks. query_length: (Q,), document_length: (N,),
    of raw blocks, 1 where a block is zero. positive: (Q,) int64. known: (Q, N) bool, positives, so no negatives.
    """

    cosine: Tensor
    product: Tensor
    query_length: Tensor
    document_length: Tensor
    positive: Tensor
    known: Tensor

    @classmethod
    def of(
        cls, texts: tuple[Sequence[str], Sequence[str]], vectors: tuple[np.ndarray, np.ndarray], block: Block,
        queries: int = 1_000, documents: int = 10_000, seed: int = 0, known: Sequence[tuple[str, str]] = (),
    ) -> Self:  # fmt: skip
        """The task of pairs. texts: N queries and their documents; vectors: (N, D) each, pairs with a zero vector are left out.

        queries, documents: at most so many; drawn by the seed: its documents are the distinct ones of the pairs drawn first.
        known: further (query, document) texts that are no negatives of each other.
        """
        encoded = np.flatnonzero(vectors[0].any(1) & vectors[1].any(1))
        if not len(encoded):
            raise InputError("pairs: none has two vectors that are not zero; expected another encoder")
        drawn = np.random.default_rng(seed).permutation(encoded)[:documents]
        asked = drawn[:queries]
        column: dict[str, int] = {}
        for i in drawn:
            column.setdefault(texts[1][i], len(column))
        first = {texts[1][i]: i for i in drawn[::-1]}
        joined: dict[str, set[int]] = {texts[0][i]: set() for i in asked}
        for query, document in [*zip(*texts, strict=True), *known]:
            if query in joined and document in column:
                joined[query].add(column[document])
        relevant = torch.zeros(len(asked), len(column), dtype=torch.bool)
        for row, i in enumerate(asked):
            relevant[row, list(joined[texts[0][i]])] = True
        raw = block.raw("query", [texts[0][i] for i in asked]), block.raw("document", list(column))
        length = [np.linalg.norm(one, axis=1) for one in raw]
        length = [np.where(one > 0, one, 1).astype(np.float32) for one in length]
        of_documents = vectors[1][[first[text] for text in column]]
        return cls(
            torch.from_numpy(unit(vectors[0][asked]) @ unit(of_documents).T),
            torch.from_numpy((raw[0] / length[0][:, None]) @ raw[1].T),
            *map(torch.from_numpy, length),
            torch.tensor([column[texts[1][i]] for i in asked]),
            relevant,
        )

    def loss(self, values: dict[str, Tensor], typical: float, temperature: Tensor, rows: Tensor) -> Tensor:
        """InfoNCE of some of the queries under scalars: each positive against all documents that are no known positive."""
        weight = torch.exp(values["log_weight"] + values["slope"] * torch.log(self.query_length[rows] / typical))
        scores = self.cosine[rows] + weight[:, None] * self.product[rows] * self.document_length ** -values["exponent"]
        own = self.positive[rows]
        others = self.known[rows].clone()
        others[torch.arange(len(rows)), own] = False
        return torch.nn.functional.cross_entropy((scores / temperature).masked_fill(others, -math.inf), own)


def train(
    tasks: Sequence[Task], start: LexicalHead, learnt: Sequence[str] = SCALARS, seed: int = 0, steps: int = 100,
    batch_size: int = 128, lr: float = 0.03,
) -> LexicalHead:  # fmt: skip
    """The head after Adam on the sum of the tasks' losses, from `start`; scalars that are not in `learnt` stay as they are.

    tasks: the pairs first, whose queries say what is typical. Each has a temperature of its own, 0.05 at the start.
    """
    if not tasks or not {*learnt} <= {*SCALARS}:
        raise InputError(f"train: expected a task at least, and learnt among {', '.join(SCALARS)}, found {[*learnt]}")
    typical = float(tasks[0].query_length.log().mean().exp())
    values = {name: torch.tensor(getattr(start, name), requires_grad=name in learnt) for name in SCALARS}
    temperatures = [torch.tensor(math.log(0.05), requires_grad=True) for _ in tasks]
    optimizer = torch.optim.Adam([*(values[name] for name in learnt), *temperatures], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        for task, temperature in zip(tasks, temperatures, strict=True):
            rows = torch.randperm(len(task.positive), generator=generator)[:batch_size]
            task.loss(values, typical, temperature.exp(), rows).backward()
        optimizer.step()
    return LexicalHead(**{name: float(value.detach()) for name, value in values.items()}, typical=typical)


def crops(documents: Sequence[str], count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Up to `count` distinct documents, each cut in two between 30 and 70 % of its words: beginnings, and the ends they ask for.

    Documents of fewer than SHORTEST words are left out, so there may be fewer, or none.
    """
    generator, queries, ends = np.random.default_rng(seed), [], []
    distinct = list(dict.fromkeys(documents))
    for i in generator.permutation(len(distinct)):
        words = distinct[i].split()
        if len(queries) < count and len(words) >= SHORTEST:
            cut = round(len(words) * generator.uniform(0.3, 0.7))
            queries.append(" ".join(words[:cut]))
            ends.append(" ".join(words[cut:]))
    return queries, ends


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, (N, D) float32; a zero row stays zero."""
    return losses.normalize(torch.from_numpy(np.array(vectors, dtype=np.float32))).numpy()
