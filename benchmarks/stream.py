"""Fold a checkpoint in less memory than its weights take, and print time and memory.

    python benchmarks/stream.py [--gigabytes 4] [--limit 0.5] [--folder FOLDER] [--compare]

A network of RepVGG blocks is written as several safetensors files and folded in a process of its
own, which may take so many gigabytes beside what it holds before it starts; the system refuses it
more (RLIMIT_DATA, which counts the mapped checkpoint as well: that much is allowed on top). The
same fold with the weights loaded runs into that limit, which shows that it binds. `--compare` folds
in memory without a limit and compares the results bit for bit. The disk must have room for four
times the weights; all files are removed afterwards. Linux alone says what a process holds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

import refold
from refold.blocks import RepVGGBlock
from refold.checkpoint import files_of
from refold.engine.outside import kept_outside, outside
from refold.streaming import fold_checkpoint, without_weights, write_shards

_GB = 10**9
_WIDTH, _SIDE = 2048, 4
_BLOCK = 4 * 10 * _WIDTH**2  # bytes of the two kernels of a block


def main() -> None:
    """Write the checkpoint, fold it under the limit in both ways, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=0.5, help="gigabytes")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--compare", action="store_true", help="needs memory for three copies")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    blocks = max(1, round(options.gigabytes * _GB / _BLOCK))
    if options.job:
        print(json.dumps(_JOBS[options.job](options.folder, blocks, options.limit)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write(Path(folder), blocks)
        size = sum(file.stat().st_size for file in (Path(folder) / "in").iterdir())
        print(f"{blocks} blocks, {size / _GB:.2f} GB, limit {options.limit} GB", flush=True)
        jobs = ["streamed", "loaded"] + ["compare"] * options.compare
        for job in jobs:
            command = [sys.executable, __file__, f"--gigabytes={options.gigabytes}"]
            command += [f"--limit={options.limit}", f"--folder={folder}", f"--job={job}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            last = (done.stdout or done.stderr).strip().splitlines()[-1]
            print(f"{job}: {last}" + "" if done.returncode == 0 else f"{job} failed: {last}")


def network(blocks: int) -> nn.Module:
    """Return a chain of RepVGG blocks."""
    chain = (RepVGGBlock(_WIDTH, _WIDTH, 3, padding=1) for _ in range(blocks))
    return nn.Sequential(*chain).eval()


def write(folder: Path, blocks: int) -> None:
    """Write a checkpoint of random weights in several files."""
    torch.manual_seed(0)
    (folder / "scratch").mkdir()
    with kept_outside(folder / "scratch"):
        with without_weights():
            state = network(blocks).state_dict()
        for name, tensor in state.items():
            reach = (3 / tensor[0].numel()) ** 0.5 if tensor.ndim == 4 else 0.5
            if tensor.ndim == 4:
                state[name] = outside(torch.empty(tensor.shape).uniform_(-reach, reach))
            elif tensor.ndim:
                middle = 0.0 if name.endswith(("bias", "mean")) else 1.0
                tensor.uniform_(middle - 0.5, middle + 0.5)
    write_shards(state, folder / "in", shard_bytes=_GB)


def example() -> torch.Tensor:
    """Return a small map."""
    return torch.randn(1, _WIDTH, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))


def streamed(folder: Path, blocks: int, limit: float) -> dict[str, object]:
    """Fold from file to file."""
    with Watched(folder, limit) as watched:
        done = fold_checkpoint(lambda: network(blocks), folder / "in", folder / "out", example())
    return {**watched.figures(), "steps": len(done.steps), "error": done.error}


def loaded(folder: Path, blocks: int, limit: float) -> dict[str, object]:
    """Fold in memory, under the same limit."""
    with Watched(folder, limit) as watched:
        model = network(blocks)
        refold.load_checkpoint(model, folder / "in")
        refold.reparameterize(model, example())
    return watched.figures()


def compare(folder: Path, blocks: int, limit: float) -> dict[str, object]:
    """Fold in memory without a limit, and compare with what was written."""
    del limit
    model = network(blocks)
    refold.load_checkpoint(model, folder / "in")
    with Watched(folder, None) as watched:
        folded = refold.reparameterize(model, example(), inplace=True, check=False)
    own, same = folded.state_dict(), list[bool]()
    for shard in files_of(folder / "out")[1:]:
        with safe_open(shard, framework="pt") as stored:
            names = stored.keys()
            same += [torch.equal(own.pop(name), stored.get_tensor(name)) for name in names]
    same.append(not own)
    return {**watched.figures(), "equal bit for bit": all(same)}


class Watched:
    """Time, and the most memory that this process held beside files, above what it held before."""

    def __init__(self, folder: Path, limit: float | None) -> None:
        self._mapped = sum(file.stat().st_size for file in (folder / "in").iterdir())
        self._limit = limit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watched:
        self._start, self._before = time.perf_counter(), held("RssAnon")
        self._most = self._before
        self._thread.start()
        if self._limit is not None:
            most = held("VmData") + self._mapped + int(self._limit * _GB)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return self

    def __exit__(self, *error: object) -> None:
        self._seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self._most = max(self._most, held("RssAnon"))

    def figures(self) -> dict[str, object]:
        """Return what was measured."""
        gained = (self._most - self._before) / _GB
        return {"seconds": round(self._seconds, 1), "GB at the peak": round(gained, 3)}


def held(field: str) -> int:
    """Return a figure of this process in bytes, as the system tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


_JOBS = {"streamed": streamed, "loaded": loaded, "compare": compare}

if __name__ == "__main__":
    main()
