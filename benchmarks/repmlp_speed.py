"""Deployed RepMLP-Res50 beside ResNet-50 and ResNet-101, all in one paired run.

    python benchmarks/repmlp_speed.py [--rounds 12] [--batch 1] [--threads 1] [--runtime eager ...]

Every network is built as it trains, given live norms and folded; then all take turns. Networks for
224 pixels read a corner of the 320-pixel images that the others read, which takes next to no time.
"speed" is relative to RepMLP-Res50 g8/16: medians and quartiles of ratios, each of one round.

Below stand the article's claims and what the rows say to them. It timed batches of 128 on a GPU;
the counts are the same anywhere, the speeds are not: at batch 1 a processor mostly waits for FC3's
weights, which --batch 8 shares among more images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import refold
from refold.bench import RUNTIMES, BenchmarkTable
from refold.workload import Workload, workload_of
from zoo.live import enliven


@dataclass(frozen=True)
class Net:
    """A network by its name, the size of its images, and how it is built."""

    name: str
    size: int
    build: Callable[[], nn.Module]


def repmlp(**options: object) -> Callable[[], nn.Module]:
    """Return what builds a RepMLP-Res50."""
    return partial(refold.create_model, "repmlp_resnet50", **options)


_NETS = (
    Net("RepMLP-Res50 g8/16", 320, repmlp(img_size=320, groups=(8, 16))),
    Net("RepMLP-Res50 g4/8", 320, repmlp(img_size=320, groups=(4, 8))),
    Net("ResNet-50", 320, torchvision.models.resnet50),
    Net("ResNet-101", 320, torchvision.models.resnet101),
    Net("RepMLP-Res50 g8/8", 224, repmlp()),
    Net("RepMLP-Res50 light", 224, repmlp(light=True, groups=4)),
    Net("ResNet-50", 224, torchvision.models.resnet50),
    Net("ResNet-101", 224, torchvision.models.resnet101),
)
# This row against that one: what the article says of parameters, multiply-adds and speed.
_CLAIMS = (
    (1, 0, "+47 %", "+3.6 %", "-2.2 %"),
    (4, 7, "-4 M", "-50 %", "+50 %"),
    (5, 6, "", "-30 %", "+55 %"),
)


class Corner(nn.Module):
    """A network on the first pixels of larger images."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's value."""
        return self.net(x[..., : self.size, : self.size])


def main() -> None:
    """Build, fold, time and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", action="append", choices=tuple(RUNTIMES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models: dict[str, nn.Module] = {}
    sizes: list[Workload] = []
    for net in _NETS:
        model = deployed(net)
        sizes.append(workload_of(model, torch.zeros(1, 3, net.size, net.size)))
        models[label(net)] = model if net.size == 320 else Corner(model, net.size).eval()
    x = torch.randn(options.batch, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    runtimes = tuple(options.runtime or ("eager", "onnxruntime"))
    found = refold.benchmark(models, x, runtimes, rounds=options.rounds)
    console = Console(width=130)
    for runtime in runtimes:
        console.print(report(found, runtime, sizes))
        console.print(claims(found, runtime, sizes))
    console.print(f"batch {options.batch}, {found.rounds} rounds in turn; {found.machine}")


def deployed(net: Net) -> nn.Module:
    """Return the folded network, its norms alive before the fold."""
    torch.manual_seed(0)
    model = net.build().eval()
    enliven(model, (torch.randn(2, 3, net.size, net.size),))
    return refold.reparameterize(model, torch.zeros(1, 3, net.size, net.size), inplace=True)


def label(net: Net) -> str:
    """Return what a row is called."""
    return f"{net.name} @{net.size}"


def report(found: BenchmarkTable, runtime: str, sizes: list[Workload]) -> Table:
    """Return the counts and times of all networks on one runtime."""
    table = Table(title=f"deployed, {runtime}")
    columns = (
        "network",
        "parameters, M",
        "multiply-adds, G",
        "ms (quartiles)",
        "speed (quartiles)",
    )
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left")
    for net, size in zip(_NETS, sizes, strict=True):
        row = found.row(runtime, label(net))
        if row.milliseconds is None or row.speedup is None:
            table.add_row(label(net), f"skipped: {row.skipped}")
            continue
        ms, speed = row.milliseconds, row.speedup
        table.add_row(
            label(net),
            f"{size.parameters / 1e6:.2f}",
            f"{cast(int, size.macs) / 1e9:.2f}",
            f"{ms.median:.1f} ({ms.low:.1f} to {ms.high:.1f})",
            f"{speed.median:.3f} ({speed.low:.3f} to {speed.high:.3f})",
        )
    return table


def claims(found: BenchmarkTable, runtime: str, sizes: list[Workload]) -> Table:
    """Return what the article claims of some rows beside what they show."""
    table = Table(title=f"the article's claims, and here ({runtime})")
    for at, column in enumerate(("claim | here", "parameters", "multiply-adds", "speed")):
        table.add_column(column, justify="right" if at else "left")
    for this, that, *said in _CLAIMS:
        speeds = [found.row(runtime, label(_NETS[at])).speedup for at in (this, that)]
        more = sizes[this].parameters - sizes[that].parameters
        macs = cast(int, sizes[this].macs) / cast(int, sizes[that].macs) - 1
        faster = speeds[0] and speeds[1] and speeds[0].median / speeds[1].median - 1
        cells = [
            f"{more / sizes[that].parameters:+.1%} ({more / 1e6:+.1f} M)",
            f"{macs:+.1%}",
            "" if faster is None else f"{faster:+.1%}",
        ]
        table.add_row(
            f"{label(_NETS[this])} against {label(_NETS[that])}",
            *(f"{claim or '-'} | {cell}" for claim, cell in zip(said, cells, strict=True)),
        )
    return table


if __name__ == "__main__":
    main()
