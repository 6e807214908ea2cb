"""Fold thousands of random graphs and judge every one against its original.

    python benchmarks/random_graphs.py --count 3000 --start 0 --processes 2
    python benchmarks/random_graphs.py --seed 123          one network: its source and its fault
    python benchmarks/random_graphs.py --seed 123 --shrink the smallest network with that fault

Prints progress, and for every fault the seed, what went wrong and the source. Exit code 1 when one
is found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the generator lives

import torch

from helpers.random_graph_growth import Program, grow
from helpers.random_graph_judge import Fault, fault, shrink

Judged = tuple[int, Fault | None, Program]


def judge(seed: int, longest: int, *, small: bool = False) -> Judged:
    """Return the fault of one network and its source, shrunk if asked."""
    torch.set_num_threads(1)
    program = grow(seed, longest)
    found = fault(program)
    if found is not None and small:
        program = shrink(program, found.kind, fault)
        found = fault(program)
    return seed, found, program


def judged(seeds: range, processes: int, work: Callable[[int], Judged]) -> Iterator[Judged]:
    """Judge many networks, in this process or in several."""
    if processes == 1:
        yield from map(work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(work, seeds, chunksize=8)


def main() -> int:
    """Judge the networks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, help="judge this network alone, and print it")
    parser.add_argument("--shrink", action="store_true", help="make every faulty network small")
    parser.add_argument("--longest", type=int, default=12, help="most lines in a forward")
    asked = parser.parse_args()
    work = partial(judge, longest=asked.longest, small=asked.shrink)
    if asked.seed is not None:
        _, found, program = work(asked.seed)
        print(program.source(), found or "clean", sep="\n")
        return int(found is not None)
    seeds = range(asked.start, asked.start + asked.count)
    kinds, began = Counter[str](), time.perf_counter()
    for done, (seed, found, program) in enumerate(judged(seeds, asked.processes, work), 1):
        kinds[found.kind if found else "clean"] += 1
        if found:
            print(f"\n# seed {seed}: {found}\n{program.source()}", flush=True)
        if done % 50 == 0 or done == asked.count:
            spent = time.perf_counter() - began
            print(f"{done}/{asked.count} networks, {spent:.0f} s: {dict(kinds)}", flush=True)
    return int(kinds["clean"] < asked.count)


if __name__ == "__main__":
    raise SystemExit(main())
