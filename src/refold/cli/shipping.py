"""Write the file that a command was asked for, and say what was chosen and where it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from refold.cli.console import note, say, step
from refold.cli.subject import Subject
from refold.errors import InputError, RefusedError

if TYPE_CHECKING:
    from torch import nn

    from refold.exporting import Exported, Options
    from refold.sources.pruned import Origin

Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="AXES",
        help="Which axes of the file take any size: none, batch, size (height and width), "
        "batch,size, or INPUT:AXIS=NAME,..., which may be repeated. Default: batch where "
        "the network takes it, and size where an output has the size of an input.",
    ),
]
Opset = Annotated[
    int | None, typer.Option("--opset", help="ONNX opset, such as 17. Default: the exporter's.")
]
InputNames = Annotated[
    str | None,
    typer.Option(
        "--input-names",
        metavar="NAME,...",
        help="Names of the file's inputs. Default: the forward's arguments.",
    ),
]
OutputNames = Annotated[
    str | None,
    typer.Option(
        "--output-names",
        metavar="NAME,...",
        help="Names of the file's outputs. Default: their keys, or output0, output1, ...",
    ),
]
Half = Annotated[
    bool,
    typer.Option("--half", help="float16 weights and layers; inputs and outputs keep their types."),
]
Aot = Annotated[
    bool,
    typer.Option("--aot", help="Compile a .pt2 to machine code for this kind of processor."),
]


@dataclass(frozen=True)
class Wishes:
    """What a user asks of a file, in the words of the command line."""

    dynamic: Dynamic = None
    opset: Opset = None
    input_names: InputNames = None
    output_names: OutputNames = None
    half: Half = False
    aot: Aot = False


def ship(
    model: nn.Module,
    output: Path,
    place: Path,
    subject: Subject,
    *,
    wishes: Wishes | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Exported:
    """Write a network to a file, and say which sizes its inputs take.

    Args:
        model: what to write.
        output: the file as the user named it.
        place: the same, whole.
        subject: the network it came from, with example inputs.
        wishes: how to write it.
        provenance: what the file says of where it comes from, beside the network's name.

    Raises:
        RefoldError: as `refold.export`.
    """
    from refold.exporting import without_folders, write

    options = options_of(wishes or Wishes(), place)
    origin = {"source": without_folders(subject.name)} | dict(provenance or {})
    with step(f"export {output}"):
        done = write(model, place, subject.example_inputs, options, origin, subject.about)
    for remark in done.notes:
        note(f"note: {remark}")
    if output.suffix.lower() != ".safetensors":
        for name, shape in done.shapes.items():
            note(f"input {name}: {' x '.join(map(str, shape))}")
    return done


def ship_origin(model: nn.Module, place: Path, origin: Origin) -> None:
    """Make a written file of weights a MODEL, or say why it holds them alone.

    Args:
        model: the pruned network that was written.
        place: the file; one of another format stays as it is.
        origin: what it was pruned from.
    """
    from refold.sources.networks import note_origin

    if place.suffix.lower() != ".safetensors":
        return
    try:
        with step("build the network again from the file"):
            note_origin(model, place, origin)
    except RefusedError as error:
        note(f"note: {error}")


def options_of(asked: Wishes, place: Path) -> Options:
    """Return what was asked for as `refold.export` takes it.

    Raises:
        InputError: when the format of the file has no place for it.
    """
    from refold.exporting import Options, require_options

    options = Options(
        parse_dynamic(asked.dynamic), asked.opset, _names(asked.input_names),
        _names(asked.output_names), asked.half, asked.aot,
    )  # fmt: skip
    require_options(options, place.suffix.lower())
    return options


def parse_dynamic(words: Sequence[str] | None) -> Any:
    """Return the choice of axes as `refold.export` takes it.

    >>> parse_dynamic(["batch,size"]), parse_dynamic(["x:0=batch,2=height", "y:0=batch"])
    ('batch,size', {'x': {0: 'batch', 2: 'height'}, 'y': {0: 'batch'}})
    """
    if not words:
        return "auto"
    if len(words) == 1 and ":" not in words[0]:
        from refold.exporting import words_of

        return ",".join(words_of(words[0]))
    return dict(map(_axes, words))


def _axes(text: str) -> tuple[str, dict[int, str]]:
    name, _, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")]
    try:
        return name, {int(axis): label for axis, _, label in pairs}
    except ValueError:
        raise InputError(
            f"--dynamic {text!r} names no axes: write none, batch, size, batch,size or "
            "INPUT:AXIS=NAME,..., such as image:0=batch,2=height"
        ) from None


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def say_provenance(path: Path, as_json: bool) -> None:
    """Print where a file comes from.

    Raises:
        InputError: when it cannot be read.
    """
    from refold.cli.console import print_json

    told = provenance_of(path)
    found = told["provenance"]
    if as_json:
        print_json(told)
    elif not found:
        say(f"{path} does not say where it comes from: refold did not write it")
    else:
        say(f"{path}: written by refold {found.pop('version', 'unknown')}")
        say(*(f"{key}: {text}" for key, text in found.items()))
        about: dict[str, Any] = told.get("about", {})
        if pruned := about.pop("pruned", None):  # how it is built again, which is long
            say(f"pruned from: {pruned['model']}")
        say(*(f"{key}: {_short(value)}" for key, value in about.items()))


def provenance_of(path: Path) -> dict[str, Any]:
    """Return where a file comes from, and what its network is for, as `--json` prints it.

    Raises:
        InputError: when it cannot be read.
    """
    from refold.exporting import described, read_provenance

    about = described(path)
    told: dict[str, Any] = {"file": str(path), "provenance": read_provenance(path)}
    return told | ({"about": about} if about else {})


def _short(value: Any) -> str:
    """Return a value in one line; of a long list, such as classes, the first few.

    >>> _short(["ant", "bee"]), _short(list("abcdefg"))
    ('ant, bee', 'a, b, c, d, e, ... (7)')
    """
    if not isinstance(value, list):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = [str(word) for word in cast(list[object], value)]
    return ", ".join(words[:5]) + (f", ... ({len(words)})" if len(words) > 5 else "")
