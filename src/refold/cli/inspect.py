"""`refold inspect`: what would be folded, what is refused, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refold.cli import options
from refold.cli.console import print_json, say, say_block, step
from refold.cli.onnx_model import check_options, inspect_onnx, is_onnx
from refold.cli.shipping import provenance_of, say_provenance
from refold.cli.subject import prepare
from refold.cli.summary import why_lines

if TYPE_CHECKING:
    from refold.graph import Kept

FILES = tuple(suffix for suffix in options.FORMATS if suffix not in (".onnx", ".pt2"))
"""What says where it comes from, and is not a network that can be folded."""


def inspect(
    network: Annotated[options.Network, options.without("live_statistics")],
    allow_growth: options.AllowGrowth = False,
    every: Annotated[
        bool, typer.Option("--all", help="List every step and refusal instead of summing up.")
    ] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Also explain what is kept: the cause, and what to do.")
    ] = False,
    drop_unused: options.DropUnused = False,
    as_json: options.Json = False,
    fail_on_refusal: Annotated[
        bool,
        typer.Option(
            "--fail-on-refusal",
            help="Exit with 1 if a fold is refused for any reason but its cost; for CI.",
        ),
    ] = False,
) -> int:
    """Show what would be folded, what is refused, and why; of a file, where it comes from."""
    import refold

    model = network.model
    if is_onnx(model):
        check_options(network, locals())
        kept = inspect_onnx(model, allow_growth=allow_growth, as_json=as_json).kept
        say(*why_lines(kept if why and not as_json else ()))
        return _code(kept, fail_on_refusal)
    if model.lower().endswith(FILES) or _is_compiled(model):
        say_provenance(Path(model), as_json)
        return 0
    subject = prepare(network)
    with step("plan"):
        plan = refold.plan(
            subject.model,
            subject.example_inputs,
            allow_growth=allow_growth,
            drop_unused=drop_unused,
        )
    if as_json:
        told = provenance_of(Path(model)) if model.lower().endswith(".pt2") else {}
        print_json(told | plan.to_dict())
    else:
        if model.lower().endswith(".pt2"):
            say_provenance(Path(model), as_json)
        say_block(str(plan) if every else plan.digest())
        say(*why_lines(plan.kept if why else ()))
    return _code(plan.kept, fail_on_refusal)


def _is_compiled(model: str) -> bool:
    if not model.lower().endswith(".pt2"):
        return False
    from refold.exporting import is_compiled

    return is_compiled(Path(model))


def _code(kept: Iterable[Kept], fail_on_refusal: bool) -> int:
    """Return the exit code: what is kept only for its cost is a choice, not a failure for CI."""
    return 1 if fail_on_refusal and any(not item.costlier for item in kept) else 0
