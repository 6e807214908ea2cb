"""`refold convert --stream`: from files of weights to files of weights, in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refold.cli.console import count, note, print_json, say, step, table
from refold.cli.destination import note_written
from refold.cli.options import Network
from refold.cli.subject import examples
from refold.cli.summary import kept_lines
from refold.errors import InputError
from refold.sources.networks import build

if TYPE_CHECKING:
    from torch import nn


def convert_streamed(
    network: Network, output: Path, *, allow_growth: bool, given: bool, as_json: bool
) -> None:
    """Fold a checkpoint that need not fit into memory, and print what changed.

    Args:
        network: which one; it has a checkpoint.
        output: a `.safetensors` file, or a folder.
        allow_growth: also make merges that need more multiply-adds.
        given: whether options were given that make no sense here.
        as_json: print a record instead of a table.

    Raises:
        RefoldError: when an option does not fit, or as `fold_checkpoint`.
    """
    if network.checkpoint is None:
        raise InputError("--stream folds the weights of a --checkpoint: give that as well")
    if given:
        raise InputError(
            "--stream writes only weights, those of the whole network: leave out --drop-unused, "
            "--tuning, --norm-eps, --report, --live-statistics and the options of other formats"
        )
    from refold.streaming import fold_checkpoint, target_of, without_weights

    target_of(output)  # before anything is built

    def make() -> nn.Module:
        return build(network.model, network.num_classes).model

    with step(f"build {network.model}"), without_weights():
        built = build(network.model, network.num_classes)
        example = examples(built.model, network, built.sizes)
        del built
    with step("fold"):
        done = fold_checkpoint(
            make, network.checkpoint, output, example,
            allow_growth=allow_growth, key=network.weights_key,
        )  # fmt: skip
    if as_json:
        print_json({"output": str(output)} | done.to_dict())
        return
    before, after = done.cost_before.parameters, done.cost_after.parameters
    table(
        f"{network.model} -> {output}",
        ["", "before", "after"],
        [["parameters", count(before), count(after)]],
    )
    say(f"folds: {len(done.steps)}", *kept_lines(done.kept))
    say(f"the two forms differ by {done.error:.1e} of the largest output")
    for remark in done.loaded.notes:
        note(f"{network.checkpoint}: {remark}")
    for file in done.files:
        note_written(file, file)
