"""Commands whose MODEL is an .onnx file: it is folded as it is, without a network in PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.cli.console import print_json, say, say_block, step, table
from refold.cli.destination import check_destination, note_written
from refold.cli.options import Network
from refold.cli.shipping import provenance_of, say_provenance
from refold.cli.subject import parse_size
from refold.cli.summary import kept_lines
from refold.errors import InputError, NotEquivalentError
from refold.files import atomic_path

if TYPE_CHECKING:
    import torch

    from refold.bench import BenchmarkTable
    from refold.onnx_files import OnnxReport, Trial

SUFFIXES = (".onnx", ".xml")
"""What an .onnx file can become."""


def is_onnx(model: str) -> bool:
    """Say whether MODEL is an .onnx file."""
    return model.lower().endswith(".onnx")


def check_options(network: Network, given: dict[str, Any]) -> None:
    """Refuse options that say how to build or export a network.

    Args:
        network: names the file.
        given: the other arguments of the command by name.

    Raises:
        InputError: naming them.
    """
    asked = given | vars(network)
    chosen = [name for name in _OF_NETWORKS if asked.get(name)]
    if given.get("device", "cpu") != "cpu":
        chosen.append("device")
    wrong = [f"--{name.replace('_', '-')}" for name in chosen]
    if wrong:
        raise InputError(
            f"{network.model} is a finished file: {', '.join(wrong)} cannot change it; "
            "leave that out"
        )


_OF_NETWORKS = (
    *(
        "checkpoint",
        "weights_key",
        "num_classes",
        "live_statistics",
        "dynamic",
        "opset",
        "half",
        "aot",
    ),
    *("input_names", "output_names", "norm_eps", "peers", "channels_last", "tuning"),
    *("then_train", "data", "recipe", "epochs", "lr", "changes"),
)


def convert_onnx(network: Network, output: Path, given: dict[str, Any]) -> None:
    """Fold an .onnx file into another, or into OpenVINO's format.

    Args:
        network: names the file.
        output: what to write.
        given: the other arguments of the command by name.
    """
    check_options(network, given)
    model = network.model
    if network.input_size:
        raise InputError(
            f"{model} fixes its own input sizes, and the result works for all of them: leave "
            "--input-size out"
        )
    place = check_place(model, output)
    with step("fold, and run both files"):
        report = _written(Path(model), place, given["allow_growth"])
    if given["as_json"]:
        print_json(report.to_dict() | {"output": str(output)})
        return
    table(f"{model} -> {output}", ["", "before", "after"], node_rows(report))
    say(f"folds: {len(report.steps)}", *kept_lines(report.kept))
    if report.trials:
        say(report.proof())
    elif report.changed:
        say("equal: nothing but the format changed")
    else:
        say("nothing folds: the file is written as it is")
    note_written(output, place)


def check_place(model: str, output: Path) -> Path:
    """Refuse a place that an .onnx file cannot be written to, or that holds a part of it.

    Args:
        model: the file that is read.
        output: what to write.

    Returns:
        Its whole path.

    Raises:
        InputError: if so.
    """
    from refold.exporting import companions
    from refold.files import require_apart
    from refold.onnx_files import parts_of, read

    place = check_destination(output, SUFFIXES, [Path(model)])
    if place.suffix.lower() != ".onnx":  # of others the writer of files sees to it
        require_apart(output, parts_of(read(model)), companions(place))
    return place


def _written(model: Path, place: Path, allow_growth: bool) -> OnnxReport:
    import refold

    if place.suffix.lower() == ".onnx":
        return refold.fold_onnx(model, place, allow_growth=allow_growth)
    with tempfile.TemporaryDirectory(prefix="refold-") as folder:
        folded = Path(folder) / "folded.onnx"
        report = refold.fold_onnx(model, folded, allow_growth=allow_growth)
        to_openvino(folded, place, model)
    return report


def to_openvino(source: Path, place: Path, like: Path) -> None:
    """Write an .onnx file in OpenVINO's format, and compare it with another that is the same.

    Raises:
        InputError: when OpenVINO cannot read it.
        NotEquivalentError: when they differ; nothing is written then.
    """
    from refold.exporting import describe, described
    from refold.onnx_files import compare, write_openvino

    with atomic_path(place, [place.with_suffix(".bin").name]) as temporary:
        write_openvino(source, temporary)
        if about := described(like):
            describe(temporary, about)
        trials = compare(like, temporary)
        wrong = [trial for trial in trials if not trial.error <= trial.bound]
        if wrong:
            raise NotEquivalentError(_difference(place, wrong[0]))


def node_rows(report: OnnxReport) -> list[list[str]]:
    """Return how many nodes there are before and after, and of which kinds other numbers."""
    kinds = dict.fromkeys((*report.nodes_before, *report.nodes_after))
    pairs = {k: (report.nodes_before.get(k, 0), report.nodes_after.get(k, 0)) for k in kinds}
    rows = [[k, str(a), str(b)] for k, (a, b) in sorted(pairs.items()) if a != b]
    totals = sum(report.nodes_before.values()), sum(report.nodes_after.values())
    return [["nodes", *map(str, totals)], *rows]


def inspect_onnx(model: str, *, allow_growth: bool, as_json: bool) -> OnnxReport:
    """Show where an .onnx file comes from and what would be folded in it."""
    import refold

    with step("plan"):
        report = refold.fold_onnx(model, allow_growth=allow_growth)
    if as_json:
        print_json(provenance_of(Path(model)) | report.to_dict())
    else:
        say_provenance(Path(model), as_json)
        say_block(str(report))
    return report


def verify_onnx(model: str, out: Path, *, as_json: bool) -> int:
    """Compare an .onnx file with what it became."""
    from refold.onnx_files import compare

    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out} cannot be compared with {model}: give an .onnx or .xml file")
    with step(f"compare with {out}"):
        trials = compare(Path(model), out)
    wrong = [trial for trial in trials if not trial.error <= trial.bound]
    if as_json:
        print_json({"is_equal": not wrong, "trials": [trial.to_dict() for trial in trials]})
    elif wrong:
        say(_difference(out, wrong[0]))
    else:
        error, bound = max((trial.error, trial.bound) for trial in trials)
        runs = "1 run" if len(trials) == 1 else f"{len(trials)} runs"
        say(f"{out}: equal: largest error {error:.1e} in {runs} (bound {bound:.1e})")
    return 1 if wrong else 0


def _difference(out: Path, trial: Trial) -> str:
    if trial.note:
        return f"{out}: not equal: {trial.note}"
    return (
        f"{out}: not equal: largest error {trial.error:.1e} on inputs of {trial.shapes}, where "
        f"rounding explains {trial.bound:.1e}"
    )


def bench_onnx(
    network: Network, runtimes: tuple[str, ...], rounds: int, allow_growth: bool
) -> BenchmarkTable:
    """Time an .onnx file before and after folding, in turn."""
    import refold

    check_runtimes(network.model, runtimes)
    inputs = file_inputs(network)
    with tempfile.TemporaryDirectory(prefix="refold-") as folder:
        folded = Path(folder) / "folded.onnx"
        with step("fold"):
            refold.fold_onnx(network.model, folded, allow_growth=allow_growth)
        files = {"before": Path(network.model), "after": folded}
        return time_files(files, inputs, runtimes, rounds)


def check_runtimes(model: str, runtimes: tuple[str, ...]) -> None:
    """Refuse runtimes that run no .onnx file.

    Raises:
        InputError: naming the first.
    """
    from refold.bench import FILE_RUNTIMES

    unknown = [runtime for runtime in runtimes if runtime not in FILE_RUNTIMES]
    if unknown:
        raise InputError(
            f"--runtime {unknown[0]} does not run {model}: give one of {', '.join(FILE_RUNTIMES)}"
        )


def file_inputs(network: Network) -> tuple[torch.Tensor, ...]:
    """Return inputs to time the file of a command on.

    Raises:
        InputError: when it does not run on the sizes asked for.
    """
    import torch

    from refold.onnx_files import inputs_for, read

    sizes = [parse_size(text) for text in network.input_size or ()]
    arrays = inputs_for(read(network.model), sizes, network.batch, network.seed)
    return tuple(torch.from_numpy(array) for array in arrays.values())


def time_files(
    files: dict[str, Path],
    inputs: tuple[torch.Tensor, ...],
    runtimes: tuple[str, ...],
    rounds: int,
) -> BenchmarkTable:
    """Time some .onnx files in turn."""
    from refold.bench import benchmark_files

    with step("time"):
        return benchmark_files(files, inputs, runtimes, rounds=rounds)
