"""`refold expand` and `refold collapse`: branches for training, and the stock network again."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refold.cli import options
from refold.cli.console import note, print_json, say, step, table
from refold.cli.destination import WEIGHTS, check_destination, note_written, sources_of, whole
from refold.cli.subject import Subject, check_finite, load_weights, prepare
from refold.cli.summary import NetworkSize, kept_lines, record, size_of, size_rows
from refold.errors import CheckpointError, InputError, RefusedError

if TYPE_CHECKING:
    from torch import nn

    from refold.account import Account

_FIXED = ("weights_key", "batch", "live_statistics")
Own = Annotated[options.Network, options.without("batch", "live_statistics")]
Stock = Annotated[options.Network, options.without("checkpoint", *_FIXED)]
Block = Annotated[
    str,
    typer.Option(
        "--block", metavar="NAME", help="What convolutions become: acb, dbb, repvgg, mobileone ..."
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="PATTERN",
        help="Only convolutions whose name matches, such as 'layer1.*'; repeatable.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="OUT", help="Weights to write: .safetensors, .pth, .pt."
    ),
]
Expanded = Annotated[
    Path,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Weights of the expanded network: .pt, .pth, "
        ".safetensors, or the folder of a run.",
    ),
]  # fmt: skip


def expand(
    output: Out,
    *,
    block: Block = "dbb",
    where: Where = None,
    network: Own,
    as_json: options.Json = False,
) -> None:
    """Put training-time branches into a network and write its weights.

    The network computes what it did before. To train it, give refold train the same MODEL and
    --block, and the file with --checkpoint.
    """
    import refold

    place = check_destination(output, WEIGHTS, sources_of(network))
    subject = prepare(replace(network, live_statistics=False))  # its weights will be written
    wide, done = _expanded(subject, block, where)
    with step("verify"):
        proof = refold.verify(subject.model, wide, subject.example_inputs).check()
    _write(wide, place)
    before, after = _size(subject.model, subject), _size(wide, subject)
    if as_json:
        outcome = {"output": str(output), "proof": proof.to_dict()}
        print_json(outcome | record(done, before, after))
        return
    table(f"{network.model} -> {output}", ["", "before", "after"], size_rows(before, after))
    say(*(f"{one.where} {one.detail}" for one in done.steps))
    say(f"blocks: {len(done.steps)}", *kept_lines(done.kept))
    say(f"equal: largest error {proof.max_rel_error:.1e}")
    note_written(output, place)


def collapse(
    output: Out,
    checkpoint: Expanded,
    *,
    block: Block = "dbb",
    where: Where = None,
    network: Stock,
    as_json: options.Json = False,
) -> None:
    """Turn the weights of an expanded network into those of the network it came from.

    Give the MODEL, --block and --where that it was expanded with. The file loads strictly into
    MODEL and computes the same in evaluation mode.
    """
    import refold

    place = check_destination(output, WEIGHTS, sources_of(network, checkpoint))
    weights = whole(checkpoint)
    subject = prepare(replace(network, live_statistics=False), checkpoint)
    try:
        wide, _ = _expanded(subject, block, where)
    except RefusedError as error:
        raise InputError(
            f"{network.model} has branches already: MODEL is the network without them, as it was "
            "given to refold expand or refold train"
        ) from error
    with step(f"load {checkpoint}"):
        notes = _load(wide, weights, f"{network.model} with --block {block}")
    for remark in notes:
        note(f"{checkpoint}: {remark}")
    with step("collapse"):
        plain = refold.collapse(wide)
    with step("verify"):
        proof = refold.verify(wide, plain, subject.example_inputs).check()
    _write(plain, place)
    before, after = _size(wide, subject), _size(plain, subject)
    if as_json:
        sizes = {"before": asdict(before), "after": asdict(after)}
        print_json({"output": str(output), "proof": proof.to_dict()} | sizes)
        return
    table(f"{checkpoint} -> {output}", ["", "before", "after"], size_rows(before, after))
    say(f"equal: largest error {proof.max_rel_error:.1e}")
    note_written(output, place)


def _expanded(subject: Subject, block: str, where: list[str] | None) -> tuple[nn.Module, Account]:
    import refold
    from refold.branches import expand_plan

    with step(f"expand by {block}"):
        done = expand_plan(subject.model, block, where=where or None)
        if not done.steps:
            why = "; ".join(kept_lines(done.kept)) or "it has none"
            raise InputError(f"no convolution of {subject.name} can become {block}: {why}")
        return refold.expand(subject.model, block, where=where or None), done


def _load(wide: nn.Module, checkpoint: Path, what: str) -> tuple[str, ...]:
    """Load the weights and return what was done to them on the way."""
    try:
        notes = load_weights(wide, checkpoint, None)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the file must hold {what}, expanded with the same --where"
        ) from error
    check_finite(wide, str(checkpoint))
    return notes


def _size(model: nn.Module, subject: Subject) -> NetworkSize:
    from refold.workload import workload_of

    return size_of(model, workload_of(model, subject.example_inputs))


def _write(model: nn.Module, output: Path) -> None:
    """Write the state dict, whole or not at all."""
    import torch

    from refold.checkpoint import write_state_dict
    from refold.files import atomic_path

    state = model.state_dict()
    with step(f"write {output}"):
        if output.suffix.lower() == ".safetensors":
            write_state_dict(state, output)
            return
        with atomic_path(output) as path:
            torch.save(dict(state), path)
