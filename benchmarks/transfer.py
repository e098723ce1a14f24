"""Tree distances against scipy's shortest paths, the graph layer against torch-geometric, and what the hooks cost."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import quantiles
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path

from polyloom.core.seeding import python_random
from polyloom.methods.transfer.adaptor import SyntaxAdaptor, word_embeddings
from polyloom.methods.transfer.method import GraphAttention, neighbours, tree_distances
from polyloom.methods.transfer.sequences import NUM_UPOS
from polyloom.models.device import pin_threads
from polyloom.models.tiny import build_tiny


def random_trees(number: int, size: int) -> list[list[int]]:
    """Return heads of random trees with node 1 as root."""
    rng = python_random(0, "benchmark trees", size)
    return [[0, *(rng.randint(1, node) for node in range(1, size))] for _ in range(number)]


def by_shortest_paths(heads: list[int]) -> np.ndarray[Any, Any]:
    """Return the distances by scipy, as the reference's loader does for each item of each epoch."""
    nodes = [node for node, head in enumerate(heads) if head]
    links = (np.ones(len(nodes)), (nodes, [heads[node] - 1 for node in nodes]))
    return np.asarray(shortest_path(csr_matrix(links, shape=(len(heads), len(heads))), directed=False, unweighted=True))


def ratios(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> list[float]:
    """Return CPU seconds of ours over the peer's, one a round, the order alternating; the first round warms up."""

    def seconds(work: Callable[[], object]) -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    found = []
    for turn in range(rounds + 1):
        if turn % 2:
            a, b = seconds(ours), seconds(peer)
        else:
            b, a = seconds(peer), seconds(ours)
        found.append(a / b)
    return sorted(found[1:])


def show(what: str, found: list[float]) -> None:
    low, middle, high = quantiles(found, n=4)
    print(f"{what}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def all_distances(trees: list[list[int]], work: Callable[[list[int]], object]) -> None:
    for heads in trees:
        work(heads)


def distances(rounds: int) -> None:
    for size in (20, 60, 128):
        trees = random_trees(60, size)
        assert all((tree_distances(heads)[0] == by_shortest_paths(heads)).all() for heads in trees)
        ours, peer = partial(all_distances, trees, tree_distances), partial(all_distances, trees, by_shortest_paths)
        show(f"distances of trees of {size} nodes, ours over scipy's shortest paths", ratios(ours, peer, rounds))


def layers(rounds: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.nn import GATConv
    width, num_heads, head_width, size, number = 256, 4, 64, 40, 16
    ours = GraphAttention(width, num_heads, head_width)
    peer: Any = GATConv(width, head_width, heads=num_heads, negative_slope=0.2, add_self_loops=False, bias=False)
    stack = np.stack([tree_distances(heads)[0] for heads in random_trees(number, size)]).astype(np.int64)
    adjacency = neighbours(torch.from_numpy(stack), 1)
    nodes = torch.randn(number, size, width, requires_grad=True)
    batch, receiver, sender = adjacency.nonzero(as_tuple=True)
    edges = torch.stack([batch * size + sender, batch * size + receiver])
    show(
        f"graph layer, forward and backward, {number} trees of {size} nodes, radius 1, ours over torch-geometric",
        ratios(
            lambda: ours(nodes, adjacency).sum().backward(),
            lambda: peer(nodes.flatten(0, 1), edges).sum().backward(),
            rounds,
        ),
    )


def hooks(rounds: int) -> None:
    plain, hooked = build_tiny("bert-4x128", 1000), build_tiny("bert-4x128", 1000)
    adaptor = SyntaxAdaptor(hooked, num_upos=NUM_UPOS).eval()
    stack = np.stack([tree_distances(heads)[0] for heads in random_trees(16, 40)]).astype(np.int64)
    syntax = {"distances": torch.from_numpy(stack), "upos": torch.ones(16, 40, dtype=torch.long)}
    syntax["deprel"] = syntax["upos"]
    ids = torch.randint(3, 1000, (16, 40))

    def run(model: Any, on: bool) -> None:
        with torch.no_grad():
            if on:
                adaptor.prepare(word_embeddings(hooked)(ids), syntax)
            model(input_ids=ids)
            adaptor.clear()

    show(
        "forward with hooks and no syntax over the plain model",
        ratios(lambda: run(hooked, False), lambda: run(plain, False), rounds),
    )
    show(
        "forward with syntax (L = H = 4) over the plain model",
        ratios(lambda: run(hooked, True), lambda: run(plain, False), rounds),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    pin_threads()
    print(f"torch {torch.__version__}, one thread, {rounds} interleaved rounds")
    distances(rounds)
    layers(rounds)
    hooks(rounds)


if __name__ == "__main__":
    main()
