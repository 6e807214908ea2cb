"""`refold bench`: before and after, timed in turn on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from refold.cli import options
from refold.cli.console import print_json, say_block, step
from refold.cli.onnx_model import bench_onnx, check_options, is_onnx
from refold.cli.subject import prepare

Runtime = Annotated[
    list[str] | None,
    typer.Option(
        "--runtime",
        help="eager, onnxruntime, openvino or inductor; repeat for several. Default: eager, "
        "and onnxruntime for an .onnx file.",
    ),
]


def bench(
    model: options.Model,
    checkpoint: options.Checkpoint = None,
    weights_key: options.WeightsKey = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    batch: options.Batch = 1,
    seed: options.Seed = 0,
    live_statistics: options.LiveStatistics = None,
    allow_growth: options.AllowGrowth = False,
    runtime: Runtime = None,
    as_json: options.Json = False,
) -> None:
    """Time a network before and after folding, in turn."""
    import refold

    source = options.Source(
        model, checkpoint, input_size, batch, seed, live_statistics, weights_key, num_classes
    )
    if is_onnx(model):
        check_options(model, locals())
        bench_onnx(source, runtimes=tuple(runtime or ("onnxruntime",)), as_json=as_json)
        return
    subject = prepare(source)
    with step("fold"):
        folded = refold.reparameterize(
            subject.model, subject.example_inputs, allow_growth=allow_growth
        )
    with step("time"):
        timings = refold.benchmark(
            {"before": subject.model, "after": folded},
            subject.example_inputs,
            runtimes=tuple(runtime or ("eager",)),
        )
    if as_json:
        print_json(timings.to_dict())
    else:
        say_block(str(timings))
