"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = (
    "One of our names, timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:factory, or an "
    "exported .pt2 file; `refold models` lists names. convert, inspect, verify and bench also take "
    "an .onnx file of any origin."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="Weights to load: .pt, .pth, .safetensors."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="KEY",
        help="Which weights of the checkpoint to take, where it holds several: the container, "
        "such as teacher, or what their names begin with.",
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        min=1,
        help="Outputs of the classifier that MODEL is built with. Default: its own, mostly 1000.",
    ),
]
InputSize = Annotated[
    list[str] | None,
    typer.Option(
        "--input-size",
        metavar="CxHxW",
        help="Size of one example, without the batch; repeat it for several inputs. "
        "Default: the network's own, else 3x224x224.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Batch size.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights and inputs.")]
LiveStatistics = Annotated[
    bool | None,
    typer.Option(
        "--live-statistics/--no-live-statistics",
        help="Give norms with initial statistics random but sane ones, so that checking an "
        "untrained network proves something. "
        "Default: only for our names, timm: and torchvision: without --checkpoint.",
    ),
]
AllowGrowth = Annotated[
    bool,
    typer.Option("--allow-growth", help="Also make merges that cost more multiply-adds."),
]
DropUnused = Annotated[
    bool,
    typer.Option(
        "--drop-unused",
        help="Leave out the parts that no recorded call runs, such as heads for training.",
    ),
]
OUTPUT = typer.Option(
    "-o", "--output", metavar="OUT", help="File to write: .onnx, .pt2, .safetensors, .xml."
)
Output = Annotated[Path | None, OUTPUT]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write an HTML page that shows what happened, layer by layer.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class Source:
    """Which network to build, with which weights, and what to feed it."""

    model: str
    checkpoint: Path | None = None
    input_size: Sequence[str] | None = None
    batch: int = 1
    seed: int = 0
    live_statistics: bool | None = None
    weights_key: str | None = None
    num_classes: int | None = None
