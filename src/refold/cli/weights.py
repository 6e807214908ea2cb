"""`refold convert` on weights alone: their keys tell the layout, and no network is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from refold.cli.console import count, note, print_json, say, step, table
from refold.cli.destination import check_destination, note_written
from refold.errors import CheckpointError, InputError
from refold.files import is_file
from refold.sources.networks import WEIGHTS
from refold.sources.pruned import is_pruned

if TYPE_CHECKING:
    from torch import Tensor


def is_weights(name: str) -> bool:
    """Say whether MODEL names a file of weights alone; one that is missing too, by its suffix.

    >>> is_weights("RepVGG-A0-train.pth"), is_weights("timm:repvgg_a0"), is_weights("net.py:build")
    (True, False, False)
    """
    if Path(name).suffix.lower() not in WEIGHTS or name.startswith(("timm:", "torchvision:")):
        return False
    return not is_pruned(name)


def convert_weights(
    source: Path,
    output: Path,
    given: bool,
    key: str | None = None,
    eps: float | None = None,
    *,
    as_json: bool = False,
) -> None:
    """Fold the blocks of a file of weights, write the rest beside them, and print what changed.

    Args:
        source: the file of weights.
        output: the file to write.
        given: whether options were given that only a network can use.
        key: the container in the file to take the weights from.
        eps: of the norms; None for PyTorch's default.
        as_json: print a record instead of a table.

    Raises:
        InputError: when the output cannot hold weights alone, or the options make no sense here.
    """
    from refold.checkpoint import DEFAULT_EPS, read_weights, to_deploy, write_state_dict

    if not is_file(source):
        raise InputError(f"there is no file {str(source)!r}: give a file of weights")
    if given or output.suffix.lower() != ".safetensors":
        options = "--checkpoint, --input-size and --report belong to a network"
        what = options if given else f"not {output}"
        raise InputError(
            f"{source} is read as weights alone, which become a .safetensors file: {what}; to "
            f"export a network, give it (MODEL --checkpoint {source})"
        )
    check_destination(output, sources=[source])
    with step(f"read {source}"):
        state, notes = read_weights(source, key)
    with step("fold"):
        try:
            deployed = to_deploy(state, DEFAULT_EPS if eps is None else eps)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
    with step(f"write {output}"):
        write_state_dict(deployed.state, output)
    before, after = _values(state), _values(deployed.state)
    if as_json:
        print_json(
            {
                "output": str(output),
                "layout": deployed.layout,
                "folded": deployed.folded,
                "left_out": list(deployed.left_out),
                "notes": list(notes),
                "tensors": {"before": len(state), "after": len(deployed.state)},
                "values": {"before": before, "after": after},
            }
        )
        return
    rows = [
        ["tensors", str(len(state)), str(len(deployed.state))],
        ["values", count(before), count(after)],
    ]
    table(f"{source.name} ({deployed.layout}) -> {output}", ["", "before", "after"], rows)
    say(f"folds: {deployed.folded}" + ("" if deployed.folded else " (it is in deploy form)"))
    if deployed.folded and eps is None:
        note(
            f"assuming that the norms have eps {DEFAULT_EPS:g}, which weights do not store "
            "(--norm-eps sets it)"
        )
    if deployed.left_out:
        note(f"left out {len(deployed.left_out)} tensors of heads that only training uses")
    for remark in notes:
        note(f"{source}: {remark}")
    note_written(output, output)


def _values(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())
