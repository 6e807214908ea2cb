"""A network ready for a command: built, loaded, enlivened, and known to run on its example."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.cli.console import note, step
from refold.cli.live_statistics import enliven
from refold.cli.options import Network
from refold.errors import CheckpointError, InputError, one_line
from refold.files import is_file
from refold.sources.guest import describe, place_of, restored
from refold.sources.networks import build, is_zoo
from refold.sources.runs import run_at

if TYPE_CHECKING:
    import torch
    from torch import nn

DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode and inputs that it accepts."""

    name: str
    model: nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its classes, and how images are prepared, where the place that it is from says so."""
    options: Mapping[str, int] = field(default_factory=dict[str, int])
    """What it was built with, beside its name."""


def prepare(network: Network, like: Path | None = None) -> Subject:
    """Build, load and enliven the network of a command, and run it once on its example.

    Args:
        network: which one.
        like: weights that the caller loads later, where the command has no others: they say how
            many classes it has, and of which size its images are.

    Raises:
        InputError: if the model, the checkpoint or the input size cannot be used.
    """
    import torch

    if network.weights_key is not None and network.checkpoint is None:
        raise InputError("--weights-key chooses weights of a --checkpoint: give that as well")
    torch.manual_seed(network.seed)
    notes: tuple[str, ...] = ()
    told = told_by(network.checkpoint or like)
    fitting = _fitting(network, told, network.checkpoint or like)
    with step(f"build {network.model}"):
        model, exported_inputs, sizes, about = build(network.model, network.num_classes, fitting)
        about = told or about
        sizes = _sizes_told(told) or sizes
        if network.checkpoint is not None:
            notes = load_weights(model, network.checkpoint, network.weights_key)
        check_finite(model, network.model)
        example_inputs = examples(model, network, sizes)
        if exported_inputs is not None and not network.input_size:
            example_inputs = _accepted(model, example_inputs if sizes else None, exported_inputs)
        check_runs(model, example_inputs, network.model)
        untrained = is_zoo(network.model) and network.checkpoint is None
        wanted = untrained if network.live_statistics is None else network.live_statistics
        enlivened = enliven(model, example_inputs, network.seed) if wanted else 0
    for remark in notes:
        note(f"{network.checkpoint}: {remark}")
    is_given = bool(network.input_size or sizes) or exported_inputs is not None
    if not is_given and stated(model) is None:
        assumed = "x".join(map(str, example_inputs[0].shape[1:]))
        note(f"assuming an input of {assumed}, as nothing states its size (--input-size sets it)")
    if enlivened:
        note(
            f"{enlivened} untrained norms got random statistics (--no-live-statistics keeps theirs)"
        )
    return Subject(network.model, model, example_inputs, about, fitting)


def told_by(checkpoint: Path | None) -> Mapping[str, Any]:
    """Return what weights say of their network: its classes, and how images are prepared.

    The folder of a run says it, and a file that it wrote; nothing where nothing is said.
    """
    if checkpoint is None:
        return {}
    for place in (checkpoint, checkpoint.parent if is_file(checkpoint) else None):
        if place is not None and run_at(str(place)):
            from refold.training import about_at

            return about_at(place)
    if checkpoint.suffix.lower() != ".safetensors":
        return {}
    from refold.exporting import described

    try:
        return {key: text for key, text in described(checkpoint).items() if key != "pruned"}
    except InputError:  # whoever loads the weights says why they cannot be read
        return {}


def _sizes_told(told: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    size = told.get("preprocessing", {}).get("input")
    return () if size is None else (tuple(size),)


def _fitting(network: Network, told: Mapping[str, Any], weights: Path | None) -> dict[str, int]:
    """Return what a network is built with: as was asked, else as that of some weights was.

    Args:
        network: what was asked.
        told: what the weights say of theirs, which is printed.
        weights: the file, or the folder of a run.

    Raises:
        InputError: when another number of classes is asked for.
    """
    asked = {} if network.num_classes is None else {"num_classes": network.num_classes}
    if not told:
        return asked
    classes = None
    if "classes" in told or told.get("task") == "embed":
        classes = len(told.get("classes", ()))
    if network.num_classes is not None and classes not in (None, network.num_classes):
        raise InputError(
            f"--num-classes {network.num_classes}: {weights} was trained for {classes} classes; "
            "leave the option out"
        )
    sizes = _sizes_told(told)
    said = [] if not classes else [f"{classes} classes"]
    said += [f"images of {'x'.join(map(str, size))}" for size in sizes]
    note(f"{weights}: {', '.join(said)}")
    if classes is not None:
        asked["num_classes"] = classes
    channels = sizes[0][0] if sizes else DEFAULT_SIZE[0]
    return asked if channels == DEFAULT_SIZE[0] else {**asked, "in_chans": channels}


def _accepted(
    model: nn.Module, wanted: tuple[torch.Tensor, ...] | None, own: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Return inputs of the asked batch where an exported program takes them, else its own."""
    if wanted is None:
        return own
    try:
        check_runs(model, wanted, "")
    except InputError:
        return own
    return wanted


def load_weights(model: nn.Module, place: Path, key: str | None) -> tuple[str, ...]:
    """Load the weights of a file, or of a run by its folder, and return what was done on the way.

    Raises:
        RefoldError: when they cannot be read, or do not fit.
    """
    if place.is_dir() or place.name in ("best", "last"):
        from refold.checkpoint import MisfitError
        from refold.training import load_run

        try:
            return load_run(model, place)
        except MisfitError as error:
            raise CheckpointError(f"{error}; or give the run itself as MODEL: {place}") from error
    import refold

    return refold.load_checkpoint(model, place, key=key).notes


def parse_size(text: str) -> tuple[int, ...]:
    """Return the sizes in `CxHxW`; any number of them, each at least 1.

    >>> parse_size("3x224x224")
    (3, 224, 224)
    """
    if not re.fullmatch(r"\d+([x×,]\d+)*", text.strip()):
        raise InputError(
            f"--input-size {text!r} is not a size: write numbers joined by x, such as 3x224x224"
        )
    sizes = tuple(int(part) for part in re.split("[x×,]", text.strip()))
    if min(sizes) < 1:
        raise InputError(f"--input-size {text!r} has a size of 0: every size must be at least 1")
    return sizes


def examples(
    model: nn.Module, network: Network, said: Sequence[tuple[int, ...]] = ()
) -> tuple[torch.Tensor, ...]:
    """Return random inputs of the asked sizes, else of the sizes that its file or it says."""
    import torch

    generator = torch.Generator().manual_seed(network.seed)
    sizes = [parse_size(text) for text in network.input_size or ()]
    sizes = sizes or list(said) or [stated_size(model)]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tuple(
        torch.randn((network.batch, *size), generator=generator).to(dtype) for size in sizes
    )


def stated_size(model: nn.Module) -> tuple[int, ...]:
    """Return the size that the network states, else 3x224x224 with whatever it does state."""
    known = stated(model)
    if known is not None:
        return known
    config = getattr(model, "config", None)
    channels = getattr(config, "num_channels", None)
    return (channels if isinstance(channels, int) else DEFAULT_SIZE[0], *DEFAULT_SIZE[1:])


def stated(model: nn.Module) -> tuple[int, ...] | None:
    """Return the size that timm's or Hugging Face's configuration states, or None."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return tuple(int(size) for size in config["input_size"])
    config = getattr(model, "config", None)
    channels, side = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    sides = side if isinstance(side, list | tuple) else (side, side)
    known = [size for size in sides if isinstance(size, int)]
    if len(known) < len(sides):
        return None
    return (channels if isinstance(channels, int) else DEFAULT_SIZE[0], *known)


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse a network with a NaN or infinite weight or a negative variance, naming the first.

    Buffers other than a norm's may hold infinity: the range of a clamp, a mask of attention.
    """
    import torch

    state: dict[str, Any] = model.state_dict()  # a module may store anything there
    weights = {key for key, _ in model.named_parameters()}
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        if tensor.is_meta:
            raise InputError(
                f"{name}: {key!r} is on the meta device, where it has no values: let the factory "
                "build it on the CPU"
            )
        strict = key in weights or key.rpartition(".")[2] in ("running_mean", "running_var")
        if bool((~torch.isfinite(tensor) if strict else torch.isnan(tensor)).any()):
            raise InputError(
                f"{name}: weight {key!r} holds NaN or infinity, so a fold would be meaningless: "
                "give a checkpoint with finite weights"
            )
        if key.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(
                f"{name}: {key!r} holds a negative variance; a norm takes its square root. The "
                "weights are damaged or were changed: give others"
            )


def check_runs(model: nn.Module, example_inputs: tuple[torch.Tensor, ...], name: str) -> None:
    """Run the network once, and turn a failure into one line about the input size."""
    import torch

    sizes = ", ".join("x".join(str(n) for n in x.shape[1:]) for x in example_inputs)
    try:
        with restored(), torch.no_grad():
            model(*example_inputs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = one_line(error) if isinstance(error, Exception) else describe(error)
        cure = "pass a size that fits with --input-size"
        if isinstance(error, TypeError) and "required positional argument" in what:
            cure = "the command line gives it one tensor: let the factory wrap it"
        raise InputError(
            f"{name} does not run on an input of {sizes} (batch {len(example_inputs[0])})"
            f"{place_of(error)}: {what}; {cure}"
        ) from error
