"""`refold prune` and `refold remove-residuals` where MODEL is an .onnx file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.cli.console import count, note, print_json, say, say_block, step, table
from refold.cli.destination import note_written
from refold.cli.onnx_model import (
    check_options,
    check_place,
    check_runtimes,
    file_inputs,
    node_rows,
    time_files,
    to_openvino,
)
from refold.cli.options import Network
from refold.cli.summary import kept_lines
from refold.errors import InputError

Wanted = Mapping[str, Any]
UNTUNED = "a pruned network is less accurate until it is trained again"
_ROUNDS = 30

if TYPE_CHECKING:
    from refold.bench import BenchmarkTable
    from refold.onnx_files import OnnxAccount


def prune_file(
    network: Network, output: Path | None, given: dict[str, Any], targets: Wanted
) -> None:
    """Drop the least important channels of an .onnx file.

    Args:
        network: names the file.
        output: what to write, if anything.
        given: the other arguments of the command by name.
        targets: the arguments of `refold.onnx_files.prune_onnx`.

    Raises:
        InputError: when an option needs the network in PyTorch.
    """
    if given["importance"] == "bn":
        raise InputError(
            f"--importance bn reads the norms of a network, and {network.model} is folded before "
            "its channels are chosen: give --importance l1, or leave it out"
        )
    if targets.get("latency") is not None:
        raise InputError(
            f"--latency needs the network in PyTorch, and {network.model} is a file: give "
            "--ratio, --params or --macs"
        )
    from refold.onnx_files import prune_onnx

    wanted = {name: value for name, value in targets.items() if name != "latency"}
    account = _made(network, output, given, prune_onnx, wanted)
    if given["as_json"]:
        return
    if account.steps:
        note(UNTUNED)
    else:
        say(nothing_dropped(wanted))


def nothing_dropped(targets: Wanted) -> str:
    """Return why pruning dropped no channel.

    Args:
        targets: what was asked for, by the names of `refold.prune`.

    >>> nothing_dropped({"ratio": 0.0, "round_to": 8})
    'nothing was dropped: no channel is dead, and --ratio 0 drops those alone'
    """
    if targets.get("threshold") is not None:
        what = f"no channel is worth as little as {targets['threshold']:g}"
    elif targets.get("ratio") == 0:
        what = "no channel is dead, and --ratio 0 drops those alone"
    elif targets["round_to"] > 1:
        what = (
            f"layers keep a multiple of {targets['round_to']} channels, and none had so many to "
            "lose (--round-to 1 drops any number)"
        )
    else:
        what = "so small a share is no whole channel, or --floor keeps them all"
    return f"nothing was dropped: {what}"


def rewrite_file(
    network: Network, output: Path | None, given: dict[str, Any], *, strict: bool
) -> None:
    """Rewrite an .onnx file without residual additions; the arguments are those above."""
    from refold.onnx_files import remove_residuals_onnx

    _made(network, output, given, remove_residuals_onnx, {"strict": strict})


def _made(
    network: Network, output: Path | None, given: dict[str, Any], make: Any, wanted: Wanted
) -> OnnxAccount:
    """Run a verb on a file, print its account and return it."""
    check_options(network, given)
    runtimes = tuple(given["runtime"] or ("onnxruntime",))
    check_runtimes(network.model, runtimes)
    if given["report"] is not None:
        raise InputError(
            f"--report compares networks in PyTorch, and {network.model} is a file: leave it out, "
            "or see its fold with refold report"
        )
    place = None if output is None else check_place(network.model, output)
    with tempfile.TemporaryDirectory(prefix="refold-") as name:
        folder = Path(name)
        is_onnx_file = place is not None and place.suffix.lower() == ".onnx"
        made = place if place is not None and is_onnx_file else folder / "made.onnx"
        with step("fold, edit, and run both files"):
            account = make(network.model, made, **wanted)
            if place is not None and not is_onnx_file:
                to_openvino(made, place, made)
        timings = _time(network, folder, made, runtimes) if given["measure"] else None
    if given["as_json"]:
        outcome = {"output": None if output is None else str(output)}
        outcome |= {"timings": None if timings is None else timings.to_dict()}
        print_json(account.to_dict() | outcome)
        return account
    _show(network.model, account)
    if timings is not None:
        say_block(str(timings))
    if output is not None and place is not None:
        note_written(output, place)
    return account


def _time(network: Network, folder: Path, made: Path, runtimes: tuple[str, ...]) -> BenchmarkTable:
    import refold

    folded = folder / "folded.onnx"
    refold.fold_onnx(network.model, folded)
    files = {"folded": folded, "after": made}
    return time_files(files, file_inputs(network), runtimes, _ROUNDS)


def _show(model: str, account: OnnxAccount) -> None:
    costs = account.cost_before, account.cost_after
    rows = [
        ["parameters of layers", *(count(cost.parameters) for cost in costs)],
        ["multiply-adds", *(count(cost.macs) for cost in costs)],
        *node_rows(account),
    ]
    table(f"{model}, folded", ["", "before", account.done], rows)
    if account.done == "narrowed" and account.steps:
        layers = [[step.where, step.detail] for step in account.steps]
        table("channels", ["layer", ""], layers)
    say(f"{account.done}: {len(account.steps)}", *kept_lines(account.kept))
    like = "compared with the folded file whose chosen channels are silenced: "
    say(f"{like if account.done == 'narrowed' else ''}{account.proof()}")
