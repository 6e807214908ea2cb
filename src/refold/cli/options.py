"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Result = TypeVar("Result")

MODEL_HELP = (
    "One of our names, timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:factory, an "
    "exported .pt2 file, the folder of a run of `refold train`, or a .safetensors file of "
    "`refold prune`; `refold models` lists names. "
    "convert, inspect, verify, bench, prune, remove-residuals and report also take an .onnx file."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Weights to load: .pt, .pth, .safetensors, or the folder of a run (its best epoch).",
    ),
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
        help="Outputs of the classifier that MODEL is built with. Default: its own, usually 1000.",
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
Seed = Annotated[
    int,  # as large as torch takes them
    typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of weights and inputs."),
]
LiveStatistics = Annotated[
    bool | None,
    typer.Option(
        "--live-statistics/--no-live-statistics",
        help="Replace initial norm statistics by random but plausible ones, so that checking an "
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
        help="Leave out the parts that no recorded call runs, or whose value nobody reads, such "
        "as heads for training.",
    ),
]
FORMATS = (".onnx", ".pt2", ".pte", ".safetensors", ".tflite", ".xml")
"""What `refold.exporting` writes, which `--help` shows without waiting for torch."""
OUTPUT = typer.Option(
    "-o",
    "--output",
    metavar="OUT",
    help=f"File to write: {', '.join(FORMATS)}.",
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
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any key of the recipe; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class Network:
    """Which network to build, with which weights, and what to feed it."""

    model: Model
    checkpoint: Checkpoint = None
    weights_key: WeightsKey = None
    num_classes: NumClasses = None
    input_size: InputSize = None
    batch: Batch = 1
    seed: Seed = 0
    live_statistics: LiveStatistics = None


def without(*names: str) -> frozenset[str]:
    """Say beside an options class which of its fields a command does not ask for."""
    return frozenset(names)


def spread(command: Callable[..., Result]) -> Callable[..., Result]:
    """Return a command that is asked for each field of the options classes it takes.

    A class such as `Network` declares options that several commands share: its fields stand in the
    command's signature, as typer reads it, where the parameter of that class stands in the source.
    """
    asked: list[Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        hint = hints[name]
        group, *left_out = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if isinstance(group, type) and is_dataclass(group):
            own = [part for part in _parameters(group) if part.name not in chain(*left_out)]
            groups[name] = group, [part.name for part in own]
            asked += own
        else:
            asked.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**given: Any) -> Result:
        for name, (group, parts) in groups.items():
            given[name] = group(**{part: given.pop(part) for part in parts})
        return command(**given)

    run.__signature__ = Signature(asked)  # type: ignore[attr-defined]
    run.__annotations__ = {part.name: part.annotation for part in asked}
    return run


def _parameters(group: type) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parts = signature(group).parameters.values()
    return [x.replace(annotation=hints[x.name], kind=Parameter.KEYWORD_ONLY) for x in parts]
