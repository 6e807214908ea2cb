"""`refold bench`: before and after, and what others make of it, timed in turn on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import complain, note, print_json, say_block, step
from refold.cli.destination import check_destination
from refold.cli.onnx_model import bench_onnx, check_options, is_onnx
from refold.cli.peers import peers_of
from refold.cli.subject import Subject, parse_size, prepare
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.bench import BenchmarkTable

RUNTIME_NAMES = ("eager", "onnxruntime", "onnxruntime-unfused", "openvino", "inductor")
"""Those of `refold.bench`, which `--help` shows without waiting for torch."""
A_RUNTIME = f"{', '.join(RUNTIME_NAMES[:-1])} or {RUNTIME_NAMES[-1]}"
"""What a message or a help asks for."""


def known_runtimes(given: Any) -> Any:
    """Reject unknown runtimes before minutes of work go into them.

    Raises:
        typer.BadParameter: naming the first.
    """
    for name in [given] if isinstance(given, str) else given or ():
        if name not in RUNTIME_NAMES:
            raise typer.BadParameter(f"{name!r} is not {A_RUNTIME}")
    return given


ROUNDS = 30
RuntimeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        callback=known_runtimes,
        help=f"{A_RUNTIME}; repeat for several. Default: eager; onnxruntime for .onnx files.",
    ),
]
Measure = Annotated[bool, typer.Option("--measure", help="Also time the network before and after.")]


def measured_in(default: str) -> Any:
    """Return the option that says where `--measure` times a network."""
    return typer.Option(
        "--runtime",
        callback=known_runtimes,
        help=f"Where --measure times: {A_RUNTIME}; repeat for several. Default: {default}.",
    )


Batches = Annotated[
    str, typer.Option("--batch", metavar="N[,N...]", help="Batch size, or several: 1,8,32.")
]
Sizes = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="N[,N...]", help="Height and width of the images, or several: 160,224."
    ),
]
Rounds = Annotated[
    int, typer.Option("--rounds", min=1, help="How many times each network is timed, in turn.")
]
Peers = Annotated[
    bool,
    typer.Option(
        "--peers",
        help="Also time what timm's conversion, torch.fx and the network's own switch_to_deploy "
        "make of it, and its plain form where we have it written by hand.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Where it runs: cpu, cuda, cuda:1 ...")]
Half = Annotated[bool, typer.Option("--half", help="Time it in float16.")]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Lay images out with a pixel's channels together.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Also draw the medians: .svg, .png or .pdf."),
]


def bench(
    network: Annotated[options.Network, options.without("batch")],
    batch: Batches = "1",
    size: Sizes = None,
    allow_growth: options.AllowGrowth = False,
    runtime: RuntimeOption = None,
    rounds: Rounds = ROUNDS,
    peers: Peers = False,
    device: Device = "cpu",
    half: Half = False,
    channels_last: ChannelsLast = False,
    plot: Plot = None,
    as_json: options.Json = False,
) -> None:
    """Time a network before and after folding, in turn, and say how sure the difference is."""
    if size is not None and len(network.input_size or ()) > 1:
        raise InputError("--size is for networks with one input: give --input-size alone")
    picture = None if plot is None else check_destination(plot, (".svg", ".png", ".pdf"))
    batches = numbers("--batch", batch)
    sizes = [None] if size is None else numbers("--size", size)
    if is_onnx(network.model):
        check_options(network, locals())
    tables: list[BenchmarkTable] = []
    for side in sizes:
        for number in batches:
            given = replace(network, batch=number, input_size=resized(network.input_size, side))
            if is_onnx(network.model):
                runtimes = tuple(runtime or ("onnxruntime",))
                tables.append(bench_onnx(given, runtimes, rounds, allow_growth))
            else:
                subject = placed(prepare(given), device, half, channels_last)
                tables.append(_table(subject, allow_growth, peers, runtime, rounds))
            if not as_json:
                say_block(str(tables[-1]))
    if picture is not None:
        from refold.bench import plot as draw

        draw(tables, picture)
        note(f"wrote {plot}")
    if as_json:
        records = [table.to_dict() for table in tables]
        print_json(records[0] if len(records) == 1 else records)


def numbers(option: str, text: str) -> list[int]:
    """Return the numbers in a list such as `1,8,32`.

    Raises:
        InputError: when it is another text, or a number is not positive.

    Examples:
        >>> numbers("--batch", "1,8,32")
        [1, 8, 32]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"{option} {text!r} is not a list of whole numbers such as 1,8,32")
    return [int(part) for part in parts]


def resized(input_size: list[str] | None, side: int | None) -> list[str] | None:
    """Return the size of the input with another height and width; None for its own.

    Examples:
        >>> resized(["4x64x64"], 96), resized(None, 96), resized(None, None)
        (['4x96x96'], ['3x96x96'], None)
    """
    if side is None:
        return input_size
    channels = parse_size(input_size[0])[0] if input_size else 3
    return [f"{channels}x{side}x{side}"]


def placed(subject: Subject, device: str, half: bool, channels_last: bool) -> Subject:
    """Return a network and its inputs where and as they are to be timed.

    Raises:
        InputError: when torch cannot use the device.
    """
    import torch

    if device.startswith("meta"):
        raise InputError("--device meta holds no numbers, so nothing is computed there")
    layout: Any = torch.channels_last if channels_last else torch.preserve_format
    try:
        model = subject.model.to(device=device, dtype=torch.float16 if half else None)
        inputs = [x.to(device=device) for x in subject.example_inputs]
    except (RuntimeError, AssertionError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"--device {device} cannot be used: {line}") from error
    if half:
        inputs = [x.half() if x.is_floating_point() else x for x in inputs]
    inputs = [x.to(memory_format=layout) if x.ndim == 4 else x for x in inputs]
    return Subject(subject.name, model.to(memory_format=layout), tuple(inputs))


def _table(
    subject: Subject, allow_growth: bool, peers: bool, runtime: list[str] | None, rounds: int
) -> BenchmarkTable:
    import refold

    with step("fold"):
        folded = refold.reparameterize(
            subject.model, subject.example_inputs, allow_growth=allow_growth
        )
    models = {"before": subject.model, "after": folded}
    if peers:
        with step("convert it with the peers"):
            others, missing = peers_of(subject)
        models |= others
        for reason in missing:
            complain(reason)
    with step("time"):
        runtimes = tuple(runtime or ("eager",))
        return refold.benchmark(models, subject.example_inputs, runtimes, rounds=rounds)
