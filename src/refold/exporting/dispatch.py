"""The dispatcher: a copy of the model, a writer by suffix, one checked file or none."""

from __future__ import annotations

import copy
import os
import platform
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import prepared, run, tensor_leaves
from refold.errors import ExportError, InputError, RefoldError, one_line
from refold.exporting.axes import Dynamic, choose
from refold.exporting.formats.aot import write_aot
from refold.exporting.formats.onnx import require_opset
from refold.exporting.half import halved
from refold.exporting.libraries import require_installed
from refold.exporting.metadata import describe
from refold.exporting.names import input_names as name_inputs
from refold.exporting.names import output_names as name_outputs
from refold.exporting.outputs import opened, with_plain_outputs
from refold.exporting.provenance import PRECISION
from refold.exporting.request import Request
from refold.exporting.silence import quiet
from refold.exporting.table import ELSEWHERE, FORMATS, companions
from refold.files import atomic_path, require_named
from refold.graph import unwrap
from refold.inputs import required, tensors

SUFFIXES = tuple(FORMATS)
_MAP = 4  # dimensions of a batch of images
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of torch's exporter


@dataclass(frozen=True)
class Options:
    """How to write a file; see `export`."""

    dynamic: Dynamic = "auto"
    opset: int | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    half: bool = False
    aot: bool = False


@dataclass(frozen=True)
class Exported:
    """A written file, the shapes of its inputs by name, and what a user should know of it."""

    path: Path
    shapes: Mapping[str, tuple[int | str, ...]]
    notes: tuple[str, ...] = ()


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: Dynamic = "auto",
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    half: bool = False,
    aot: bool = False,
) -> Path:
    """Write the model in the format of the path's suffix and check the file by running it.

    The suffix is `.onnx` (ONNX Runtime), `.pt2` (`torch.export`), `.xml` (OpenVINO, with its
    `.bin`), `.pte` (ExecuTorch), `.tflite` (LiteRT) or `.safetensors` (the `state_dict`, which is
    read back). Every axis that is free is run at two sizes; a `.pte` and a `.tflite` have none. The
    file holds no line of source and no path of this machine. The model is never
    changed; on failure no file is left and an old one stays.

    Args:
        model: A module in eval mode, on any device; the file is for the CPU.
        path: The file to create or replace.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name.
        dynamic: Which axes take any size: `"none"`; `"batch"`, the first axis of every input that
            has as many as the first one; `"size"`, length, height and width; `"batch,size"`; or
            the axes by input, such as `{"image": {0: "batch", 2: "height"}}`. `"auto"` is
            `"batch"`, with height and width where an output has those of an input (segmentation)
            and the network takes others. Where it takes no other batch, both fix it and warn; every
            other choice is an error then.
        opset: Of ONNX, such as 17; the exporter's own if None.
        input_names: For ONNX and OpenVINO, one for each tensor; the arguments of the forward if
            None.
        output_names: The same of the outputs; their keys and fields if None, else `output0`, ...
        half: Write float16 weights and compute in float16; inputs and outputs keep their types.
        aot: Compile a `.pt2` to machine code for this kind of processor (AOTInductor); whoever
            loads it runs that code.

    Returns:
        The path written.

    Raises:
        InputError: When the suffix is unknown, the place cannot be written, the model cannot
            run on the example, or an option does not fit the model or the format.
        RefusedError: When the model is in training mode.
        ExportError: When the format cannot express the model, or the file computes otherwise.
        MissingDependencyError: When the format's library is not installed.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = export(nn.Linear(2, 3).eval(), f"{folder.name}/a.pt2", torch.ones(1, 2))
        >>> file.name
        'a.pt2'
        >>> folder.cleanup()
    """
    options = Options(dynamic, opset, input_names, output_names, half, aot)
    done = write(model, path, example_inputs, options)
    for note in done.notes:
        warnings.warn(note, stacklevel=2)
    return done.path


def write(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    options: Options,
    provenance: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Do as `export`, and return what to say of the file instead of warning.

    Args:
        model: as there.
        path: as there.
        example_inputs: as there.
        options: as there.
        provenance: what the file says of where it comes from, beside refold's version.
        about: what it says of what it is, as for `describe`.

    Raises:
        RefoldError: as there.
    """
    require_named("path", path)
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        way = f". {ELSEWHERE[suffix]}" if suffix in ELSEWHERE else ""
        raise InputError(
            f"cannot export to {target}: the suffix {target.suffix!r} names no format; "
            f"use one of {', '.join(SUFFIXES)}{way}"
        )
    require_options(options, suffix)
    kind = FORMATS[suffix]
    model = unwrap(model)
    _require_weights(model, suffix)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "a TorchScript module is a program already: export the module it was made from"
        )
    copied, inputs = prepared(model, example_inputs, device="cpu")
    names = name_inputs(model, inputs, options.input_names)
    answer = with_plain_outputs(copied, run(copied, inputs), flat=kind.is_flat)
    _require_types(copied, [*tensors(inputs), *tensor_leaves(answer)], suffix)
    notes = _left_out(model, answer, target)
    choices = _choices(options.dynamic, tensors(inputs), tensor_leaves(answer))
    choices = ["none"] if kind.is_fixed else choices
    axes = choose(choices[0], inputs, names)
    outputs = name_outputs(answer, options.output_names)
    _require_apart(names, outputs, options)
    origin = {"source": type(model).__name__, "torch": torch.__version__} | dict(provenance or {})
    origin |= {PRECISION: "float16"} if options.half else {}
    request = Request(
        model=halved(copy.deepcopy(copied)) if options.half else copied, reference=copied,
        axes=axes, inputs=names, outputs=outputs, opset=options.opset, provenance=origin,
        about=about or {},
    )  # fmt: skip
    for at, choice in enumerate(choices, 1):
        request = replace(request, axes=choose(choice, inputs, names))
        try:
            _write(request, target, write_aot if options.aot else kind.write)
            break
        except ExportError as error:
            if at == len(choices) or not request.axes.sizes:
                raise
            if choice == "batch":
                size = request.axes.sizes["batch"]
                notes += (f"{target.name} takes only a batch of {size}: {error}",)
    if options.aot:
        cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        notes += (f"{target.name} is code for {cpu} and torch {torch.__version__}",)
    return Exported(target, request.shapes, notes)


def _left_out(model: nn.Module, answer: object, target: Path) -> tuple[str, ...]:
    """Say what a model returns beside tensors that the file does not hold.

    Raises:
        InputError: when it returns no tensor, or what the format cannot hold.
    """
    others = [leaf for leaf in pytree.tree_leaves(answer) if not isinstance(leaf, Tensor | None)]
    kinds = ", ".join(sorted({type(leaf).__name__ for leaf in others})) or "nothing"
    name, suffix = type(model).__name__, target.suffix.lower()
    if FORMATS[suffix].is_weights:
        return ()
    if not tensor_leaves(answer):
        raise InputError(f"{name} returns no tensor, but {kinds}: what a file returns are tensors")
    if suffix == ".pt2" and any(not isinstance(leaf, int | float | torch.Size) for leaf in others):
        raise InputError(f"{name} returns {kinds} beside tensors: a .pt2 returns numbers at most")
    if FORMATS[suffix].is_flat and others:
        return (f"{target.name} returns tensors alone: {kinds} that {name} returns is left out",)
    return ()


def _choices(dynamic: Dynamic, given: list[Tensor], made: list[Tensor]) -> list[Dynamic]:
    """Return the choices of axes to try in turn: only the defaults leave room for a second."""
    if dynamic not in ("auto", "batch"):
        return [dynamic]
    maps = {x.shape[2:] for x in made if x.ndim >= _MAP}
    is_map = any(x.ndim >= _MAP and x.shape[2:] in maps for x in given)
    wide: list[Dynamic] = ["batch,size"] if dynamic == "auto" and is_map else []
    return [*wide, "batch", "none"]


def _write(request: Request, target: Path, writer: Callable[[Request, Path], None]) -> None:
    suffix = target.suffix.lower()
    try:
        with atomic_path(target, companions(target)) as temporary, quiet():
            # Libraries go by a suffix in small letters.
            written = temporary.with_suffix(suffix)
            writer(request, written)
            if request.about:
                describe(written, request.about)
            written.replace(temporary)
    except RefoldError:
        raise
    except Exception as error:
        first = error.__cause__ or error  # torch's exporter says which step it was in, then why
        reason = _COLOURS.sub("", one_line(first))
        raise ExportError(
            f"cannot export {type(request.model).__name__} to {target}: {reason}"
        ) from error


def _require_apart(inputs: Sequence[str], outputs: Sequence[str], options: Options) -> None:
    """Refuse requested names that cannot stand in one file."""
    given = [*(options.input_names or ()), *(options.output_names or ())]
    twice = [name for name in given if name in inputs and name in outputs]
    if twice:
        raise InputError(
            f"an input and an output are both called {twice[0]!r}: names in a file are unique"
        )


def require_options(options: Options, suffix: str) -> None:
    """Refuse options that are none, or that a format has no place for.

    Raises:
        InputError: naming the first.
        MissingDependencyError: when the format's library is not installed.
    """
    if options.opset is not None and not isinstance(cast(Any, options.opset), int):
        raise InputError(f"opset must be a number, such as 17, got {options.opset!r}")
    for name in ("half", "aot"):
        if not isinstance(getattr(options, name), bool):
            raise InputError(f"{name} must be True or False, got {getattr(options, name)!r}")
    if options.opset is not None and suffix != ".onnx":
        raise InputError(f"opset is ONNX's: {suffix} has none; leave it out, or write .onnx")
    if (options.input_names or options.output_names) and not FORMATS[suffix].takes_names:
        raise InputError(
            f"names can be given to .onnx and .xml: {suffix} keeps those of the model itself"
        )
    if isinstance(options.dynamic, Mapping) and FORMATS[suffix].is_weights:
        raise InputError(f"a {suffix} holds weights alone, which have no axes: leave dynamic out")
    if suffix == ".onnx":
        require_opset(options.opset)
    _require_place(options, suffix)


def _require_place(options: Options, suffix: str) -> None:
    if options.aot and suffix != ".pt2":
        raise InputError(f"aot compiles a .pt2: {suffix} is none; leave it out, or write .pt2")
    if options.dynamic not in ("auto", "none") and FORMATS[suffix].is_fixed:
        raise InputError(f"a {suffix} takes one size, that of the example: leave dynamic out")
    if (package := FORMATS[suffix].package) is not None:
        require_installed(*package)


def require_names(model: nn.Module, example_inputs: Any, options: Options) -> None:
    """Refuse names and axes of a file that are none of the model's, before work goes into it.

    Args:
        model: runs on the example.
        example_inputs: as `export` takes them.
        options: how the file is to be written.

    Raises:
        InputError: naming the first.
    """
    inputs = required(model, example_inputs)
    names = name_inputs(model, inputs, options.input_names)
    if isinstance(options.dynamic, Mapping):
        choose(options.dynamic, inputs, names)
    if options.output_names is None:
        return
    with torch.no_grad():
        answer = opened(run(model, inputs))
    _require_apart(names, name_outputs(answer, options.output_names), options)


def _require_weights(model: nn.Module, suffix: str) -> None:
    """Refuse a model without values, or whose layers are quantized already."""
    empty = [key for key, value in model.state_dict().items() if getattr(value, "is_meta", False)]
    if empty:
        raise InputError(
            f"{empty[0]} is on the meta device, where it has no values: load weights first, or "
            "call model.to_empty(device='cpu')"
        )
    for path, part in () if FORMATS[suffix].is_weights else model.named_modules():
        if type(part).__module__.startswith(_QUANTIZED):
            raise InputError(
                f"{path or 'the model'} is quantized ({type(part).__name__}), which {suffix} "
                "cannot hold: export the network that it was made of, and quantize the file"
            )


def _require_types(model: nn.Module, ends: Sequence[Tensor], suffix: str) -> None:
    """Refuse types that a format cannot hold, in a model or in what it takes and returns."""
    kind = FORMATS[suffix]
    if kind.is_flat and any(tensor.is_complex() for tensor in ends):
        raise InputError(
            f"{type(model).__name__} takes or returns complex numbers, which a {suffix} has no "
            "type for: let it take or return their parts (torch.view_as_real), or write .pt2"
        )
    held = {tensor.dtype for tensor in chain(model.parameters(), model.buffers(), ends)}
    for dtype, why in kind.lacks.items():
        if dtype in held:
            name = str(dtype).removeprefix("torch.")
            raise InputError(f"{name} cannot be exported to {suffix}: {why}")
