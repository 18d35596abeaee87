"""Training speed: R linear-head runs stacked in one loop, against the same runs one after another and a plain torch loop.

    python benchmarks/training.py [--runs 16] [--steps 100] [--dim 384] [--batch 64] [--repeats 3] [--device cpu]

Four ways to train asym-dot with R seeds on the same synthetic vectors, in alternating repeats:
    together   asymlib.train.train, all runs in one call
    in turn    asymlib.train.train, one run a call
    plain      a hand-written loop a run: two torch.nn.Linear, torch.optim.AdamW, cross_entropy, the same isotropy term
    fused      the same with AdamW(fused=True), which asymlib uses
Prints the median time of a run and step, and ratios (above 1: together is faster) by the clock and, on a CPU, by processor
time, which moves less while other programs run. That all train the same heads is checked first.

What limits it: on a CPU the matrix products, 6 of batch x dim x dim a run and step (0.1 GFLOP at the defaults), which
stacking does not shorten; it saves the calls between them, so the ratio rises as --dim and --batch fall.
"""

import argparse
import time

import numpy as np
import torch

from asymlib import heads
from asymlib.pair_vectors import PairVectors
from asymlib.recipes import Recipe, get_recipe
from asymlib.train import train

VALIDATION = 64  # pairs; few, so that the steps are what is timed


def plain_run(recipe: Recipe, seed: int, pairs: PairVectors, device: str, fused: bool) -> torch.nn.ModuleList:
    """One run as a team would write it, with the start and the order of batches of asymlib's run."""
    start = heads.start_heads(recipe.head, recipe.start, recipe.sides, pairs.queries.shape[1], seed)
    modules = torch.nn.ModuleList()
    for side in ("query", "document"):
        module = torch.nn.Linear(*pairs.queries.shape[1:], pairs.queries.shape[1])
        module.load_state_dict({kind: start[f"{side}.{kind}"] for kind in ("weight", "bias")})
        modules.append(module.to(device))
    optimizer = torch.optim.AdamW(modules.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    order = torch.randperm(len(pairs.queries), generator=torch.Generator().manual_seed(1_000_003 + seed)).to(device)
    target = torch.arange(recipe.batch_size, device=device)
    own = torch.eye(recipe.batch_size, dtype=torch.bool, device=device)
    pairs_off = recipe.batch_size * (recipe.batch_size - 1)
    for rows in order.split(recipe.batch_size):
        q, d = modules[0](pairs.queries[rows]), modules[1](pairs.documents[rows])
        passage = pairs.passage[rows]
        logits = (q @ d.T / recipe.temperature).masked_fill((passage[:, None] == passage) & ~own, -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, target)
        for z in (q, d):
            unit = torch.nn.functional.normalize(z)
            loss = loss + recipe.isotropy_weight / 2 * (unit @ unit.T).masked_fill(own, 0).square().sum() / pairs_off
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return modules


def timed(run, device: str) -> np.ndarray:
    """Seconds by the clock and of processor time, (2,)."""
    started = np.array([time.perf_counter(), time.process_time()])
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()]) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of each way, alternating")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()

    recipe = get_recipe("asym-dot").with_changes(epochs=1, batch_size=arguments.batch)
    runs = [(recipe, seed) for seed in range(arguments.runs)]
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((arguments.batch * arguments.steps, arguments.dim), dtype=np.float32)
    queries = documents + generator.standard_normal(documents.shape, dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    pairs = PairVectors.of(queries, documents, np.arange(len(queries)))
    validation = pairs.first(max(VALIDATION, arguments.batch))
    on_device = pairs.to(torch.device(arguments.device))

    def together(some=runs):
        return train(some, pairs, validation, device=arguments.device, progress=False)

    ways = {
        "together": together,
        "in turn": lambda: [together([run])[0] for run in runs],
        "plain": lambda: [plain_run(recipe, seed, on_device, arguments.device, False) for _, seed in runs],
        "fused": lambda: [plain_run(recipe, seed, on_device, arguments.device, True) for _, seed in runs],
    }
    first = {name: way() for name, way in ways.items()}  # a warm-up, and the check that all do the same work
    apart = 0.0  # largest relative difference of two heads; float32 rounding grows with the steps
    for stacked, single, *modules in zip(*first.values(), strict=True):
        weight = stacked.last["document.weight"].cpu()
        for other in (single.last["document.weight"], *(pair[1].weight.detach() for pair in modules)):
            apart = max(apart, float((weight - other.cpu()).norm() / weight.norm()))
    if apart > 1e-2:
        raise SystemExit(f"error: the ways trained different heads, which differ by {apart:.2g} of their norm")

    seconds = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way, arguments.device))
    gpu = arguments.device == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{arguments.runs} runs x {arguments.steps} steps, batch {arguments.batch}, {arguments.dim} dimensions, {where}"
    )
    print(f"the same heads to {apart:.1g} of their norm")
    table = {name: np.array(values) for name, values in seconds.items()}  # (repeats, 2)
    for name, values in table.items():
        clock, processor = 1e3 * np.median(values, 0) / arguments.runs / arguments.steps
        print(
            f"{name:9} {clock:7.3f} ms a run and step by the clock"
            + ("" if gpu else f", {processor:7.3f} of processor")
        )
    for name in ("in turn", "plain", "fused"):
        ratio = table[name] / table["together"]
        for column, unit in enumerate(["clock"] if gpu else ["clock", "processor time"]):
            low, middle, high = np.quantile(ratio[:, column], [0, 0.5, 1])
            print(
                f"together against {name} by the {unit}: {middle:.2f} times as fast (repeats {low:.2f} to {high:.2f})"
            )


if __name__ == "__main__":
    main()
