"""Encoding speed: asymlib.encoding against plain SentenceTransformer.encode, the same texts, in alternating runs.

    python benchmarks/encoding.py [--texts 600] [--pairs 3] [--batch-size 32]

Prints texts a second as a ratio (above 1: ours is faster), by the clock and by processor time, which moves less while
other programs run. Ours starts from an empty cache each time and includes
hashing the weights, reading, writing and checking the cache; both have the model in memory and went through a warm-up.
The texts are docstrings of scikit-learn, the encoder is the embedded one at 256 tokens on the CPU.
"""

import argparse
import ast
import importlib.util
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from asymlib.encoding.encode import encode
from asymlib.encoding.encoder import EncoderConfig, find_encoder


def docstrings(package: str, count: int) -> list[str]:
    """`count` distinct docstrings of an installed package, without their first paragraph, in a seeded order."""
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    found = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                _, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                if rest.strip():
                    found.add(" ".join(rest.split()))
    return random.Random(0).sample(sorted(found), min(count, len(found)))


def timed(run) -> tuple[np.ndarray, np.ndarray]:
    """Seconds by the clock and of processor time, (2,), and what the run returned."""
    started = np.array([time.perf_counter(), time.process_time()])
    vectors = run()
    return np.array([time.perf_counter(), time.process_time()]) - started, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, alternating")
    parser.add_argument("--batch-size", type=int, default=32, help="the rival's; 32 is its default")
    arguments = parser.parse_args()

    texts = docstrings("sklearn", arguments.texts)
    config = EncoderConfig(device="cpu")
    rival = SentenceTransformer(str(find_encoder(config).folder), device="cpu", local_files_only=True)
    rival.max_seq_length = config.max_length

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:
            return encode(texts, config, cache, progress=False)

    def plain() -> np.ndarray:
        return rival.encode(texts, batch_size=arguments.batch_size, show_progress_bar=False)

    with tempfile.TemporaryDirectory() as cache:  # warm-up, which also loads our model
        encode(texts[:32], config, cache, progress=False)
    rival.encode(texts[:32], show_progress_bar=False)

    ratios, cosine = [], 1.0
    for pair in range(arguments.pairs):
        order = (ours, plain) if pair % 2 == 0 else (plain, ours)
        taken = {run: timed(run) for run in order}
        ratios.append(taken[plain][0] / taken[ours][0])
        cosine = min(cosine, float((taken[ours][1] * taken[plain][1]).sum(axis=1).min()))
        print(f"pair {pair + 1}: {ratios[-1][0]:.2f}x by the clock, {ratios[-1][1]:.2f}x by processor time", flush=True)
    clock, processor = np.median(ratios, axis=0)
    print(
        f"encoding {len(texts)} texts on {torch.get_num_threads()} CPU threads, asymlib.encoding against "
        f"SentenceTransformer.encode (batch size {arguments.batch_size}), texts a second: {clock:.2f}x by the clock, "
        f"{processor:.2f}x by processor time (medians of {len(ratios)}); smallest cosine between the two {cosine:.6f}"
    )


if __name__ == "__main__":
    main()
