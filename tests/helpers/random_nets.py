"""Random branchy networks that know how few operators they fold to.

A network is a row of stages with a nonlinearity between any two, so that no fold reaches across.
`python tests/random_nets.py --count 2000 --seed 0` folds that many, with progress, and names the
seeds that fail.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).parents[2] / "src"))  # run as a script
sys.path.append(str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from helpers.random_count import count
from helpers.random_forms import UnwritableError
from helpers.random_joins import Dresser, Inline
from helpers.random_stages import SMALLEST, Pair, Shape, Stage, Stages
from refold import reparameterize

SIZES = {1: (33,), 2: (17, 14), 3: (9, 8, 10)}
TOLERANCE = 1e-9
LIMIT = 60  # seconds a network may take when it is run from the command line


@dataclass(frozen=True)
class Net:
    """A network, what it reads, and the operators it folds to."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    minimal: int
    story: str


def build(seed: int) -> Net:
    """Return the network of a seed."""
    rng = Random(seed)
    rank = rng.choice([1, 1, 2, 2, 2, 3])
    while True:
        try:
            return _pair(rng, rank) if rng.random() < 0.15 else _single(rng, rank)
        except UnwritableError:
            continue


def _single(rng: Random, rank: int) -> Net:
    start = (rng.randint(1, 4), *SIZES[rank])
    body, minimal, story = _row(Stages(rng, rank), start)
    while next(body.parameters(), None) is None:  # nothing would tell the precision
        body, minimal, story = _row(Stages(rng, rank), start)
    return Net(body.double().eval(), _inputs(rng, start), minimal, f"{rank}-D: {story}")


def _pair(rng: Random, rank: int) -> Net:
    """Return a network of two inputs."""
    stages = Stages(rng, rank)
    while len((case := stages.several_sources()).sources) != 2:
        pass
    starts = [(channels, *SIZES[rank]) for channels in case.sources.values()]
    tree = Dresser(rng, rank).meet(case.op).double().eval()
    inputs = _inputs(rng, *starts)
    with torch.no_grad():
        middle = tree(dict(zip("ab", inputs, strict=True)))
    if min(middle.shape[2:]) < SMALLEST[rank]:
        raise UnwritableError
    body, minimal, story = _row(stages, tuple(middle.shape[1:]))
    model = Pair(Inline(tree, stages.bend()), body).double().eval()
    return Net(model, inputs, minimal + 2, f"{rank}-D: pair, {story}")


def _row(stages: Stages, shape: Shape) -> tuple[nn.Module, int, str]:
    rng, drawn, parts = stages.rng, list[Stage](), list[nn.Module]()
    for _ in range(rng.randint(1, 4)):
        drawn.append(rng.choice(stages.kinds)(shape))
        parts += [drawn[-1].module, stages.bend()]
        shape = drawn[-1].shape
        if min(shape[1:]) < SMALLEST[stages.rank]:
            break
    if rng.random() < 0.4:
        drawn.append(stages.head(shape))
        parts.append(drawn[-1].module)
    wrap = rng.choice([Inline, nn.Sequential])
    names = ", ".join(stage.name for stage in drawn)
    return wrap(*parts), sum(stage.minimal for stage in drawn), names


def _inputs(rng: Random, *shapes: Shape) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(rng.getrandbits(31))
    draw = (torch.randn(2, *shape, generator=noise, dtype=torch.float64) for shape in shapes)
    return tuple(draw)


def fault(net: Net) -> str | None:
    """Fold a network; return what is wrong with the result, None when nothing is."""
    folded = reparameterize(net.model, net.inputs, allow_growth=True)
    with torch.no_grad():
        wanted, got = net.model(*net.inputs), folded(*net.inputs)
    if wanted.shape != got.shape:
        return f"shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))
    if not error <= TOLERANCE:
        return f"error {error:.2e}"
    found = count(folded, net.inputs)
    # A stage that happens to compute nothing may leave fewer.
    return None if found <= net.minimal else f"{found} operators, minimal {net.minimal}"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not folded after {LIMIT} s")


def _try(seed: int) -> str | None:
    signal.alarm(LIMIT)
    try:
        return fault(build(seed))
    except Exception as error:  # a crash is one more finding
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def main() -> int:
    """Fold many networks and name the seeds that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    failed, start = list[int](), time.perf_counter()
    for done, seed in enumerate(range(asked.seed, asked.seed + asked.count), 1):
        if wrong := _try(seed):
            failed.append(seed)
            sys.stdout.write(f"seed {seed}: {wrong}\n")
        if done % 50 == 0 or done == asked.count:
            spent = time.perf_counter() - start
            sys.stdout.write(f"{done}/{asked.count} nets, {len(failed)} failed, {spent:.0f} s\n")
            sys.stdout.flush()
    sys.stdout.write(f"failing seeds: {failed or 'none'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
