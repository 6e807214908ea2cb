"""What pruning to half of the multiply-adds is worth on the clock, by how channels are rounded.

    python benchmarks/prune_latency.py [--folder prune-latency] [--size 224] [--rounds 20]

torchvision's MobileNetV2 and ResNet-18 and our RepVGG-A0, with random norm statistics, are pruned
by the norms' scales to half of the multiply-adds of the folded network. Every layer keeps a tenth,
and a multiple of 1, 4, 8 or 16 channels; residuals are kept or removed. torch-pruning prunes to the
same target by the same scales, its ratio found by as many halvings as ours. Where it stops short of
the target, or goes beyond it, nothing compares the two: so one more form of ours has the
multiply-adds that torch-pruning was left with. Accuracy plays no part here.

Each form is written to FOLDER once, as an .onnx file, and found there by the next run; `--make`
ends there (nine minutes of processor time), so that only the timing, a few minutes, needs a quiet
machine. All forms of a network are then timed in ONNX Runtime and in OpenVINO: in every round each
in turn, one image, one thread. A row is the median of the passes, each of which loads all files
anew, in processor time, which is the time by the clock where nothing else runs; what other work
took is printed below the table.
FOLDER/results.json has every number.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_pruning
from torch import nn

import refold
from refold.pruning import Layer, pruning, within
from refold.pruning.choice import Budget
from refold.workload import workload_of

STEPS = (1, 4, 8, 16)
Times = dict[str, dict[str, dict[str, list[float]]]]  # by runtime and form: "cpu" and "wall"
RUNTIMES = ("onnxruntime", "openvino")
WHOLE, THEIRS = "not pruned", "torch-pruning, multiples of 8"
OURS, AS_THEIRS = "residuals kept, multiples of 8", "as many as torch-pruning, multiples of 8"
HEAD = (
    "| | parameters, M | multiply-adds, M | ONNX Runtime, ms | times as fast "
    "| OpenVINO, ms | times as fast |"
)


def relative(layer: Layer) -> torch.Tensor:
    """Return scales over the mean of their layer."""
    return layer.scale / layer.scale[layer.rows].nanmean()


def networks() -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks with norms as if they had been trained."""
    from torchvision.models import mobilenet_v2, resnet18

    makers: dict[str, Callable[[], nn.Module]] = {
        "MobileNetV2": mobilenet_v2,
        "ResNet-18": resnet18,
        "RepVGG-A0": partial(refold.create_model, "repvgg_a0"),
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        model = make()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias, 0, 0.2)
        yield name, model.eval()


def forms(
    model: nn.Module, example: torch.Tensor, share: float, cost: Callable[[str], float]
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield what makes each form; `cost` tells the multiply-adds of one made before."""

    def ours(macs: Callable[[], float], step: int, removed: bool) -> nn.Module:
        return pruning(
            model, example, macs=macs(), importance=relative, floor=0.1, round_to=step,
            remove_residuals=removed,
        ).model  # fmt: skip

    yield WHOLE, partial(refold.reparameterize, model, example)
    for removed in (False, True):
        for step in STEPS:
            name = f"residuals {'removed' if removed else 'kept'}, multiples of {step}"
            yield name, partial(ours, lambda: share, step, removed)
    for step in (1, 8):
        budget = partial(lambda: share * cost(WHOLE))
        make = partial(by_torch_pruning, model, example, budget, step)
        yield f"torch-pruning, multiples of {step}", make
    yield AS_THEIRS, partial(ours, lambda: cost(THEIRS), 8, False)


def by_torch_pruning(
    model: nn.Module, example: torch.Tensor, budget: Callable[[], float], step: int
) -> nn.Module:
    """Return what torch-pruning makes of a network: global, tied channels together."""
    heads = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]

    def attempt(ratio: float) -> tuple[nn.Module, float]:
        pruned = copy.deepcopy(model)
        torch_pruning.pruner.BasePruner(
            pruned, example, torch_pruning.importance.BNScaleImportance(), global_pruning=True,
            pruning_ratio=ratio, max_pruning_ratio=0.9, round_to=step,
            ignored_layers=[pruned.get_submodule(name) for name in heads],
        ).step()  # fmt: skip
        folded = refold.reparameterize(pruned.eval(), example)
        return folded, workload_of(folded, example).macs or 0

    most = budget()
    return within(Budget("multiply-adds", most, lambda model, cost: cost.macs or 0), attempt)


def make_files(folder: Path, model: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """Return the forms of a network by name: file, parameters, multiply-adds; make what lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "forms.json"
    found: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {}
    example = torch.randn(1, 3, args.size, args.size)
    for name, make in forms(model, example, args.share, lambda form: found[form]["macs"]):
        if name in found:
            continue
        form = make()
        cost = workload_of(form, example)
        file = f"{len(found)}.onnx"
        refold.export(form, folder / file, example)
        found[name] = {"file": file, "parameters": cost.parameters, "macs": cost.macs}
        index.write_text(json.dumps(found, indent=1))
        print(f"{folder.name}, {name}: {(cost.macs or 0) / 1e6:.1f} M", flush=True)
    return found


def time_files(folder: Path, made: dict[str, Any], args: argparse.Namespace) -> Times:
    """Return the milliseconds of each pass, by runtime and form: of the processor and the clock."""
    inputs = (torch.randn(1, 3, args.size, args.size),)
    files = {name: folder / form["file"] for name, form in made.items()}
    times: Times = {}
    for runtime in RUNTIMES:
        own = times[runtime] = {name: {"cpu": [], "wall": []} for name in files}
        for _ in range(args.passes):
            table = refold.bench.benchmark_files(files, inputs, (runtime,), rounds=args.rounds)
            for row in table.rows:
                if row.milliseconds is None or row.cpu_milliseconds is None:
                    raise SystemExit(row.skipped)
                own[row.model]["cpu"].append(row.cpu_milliseconds)
                own[row.model]["wall"].append(row.milliseconds.median)
    return times


def show(made: dict[str, Any], times: Times) -> Iterator[str]:
    """Yield the lines of a table, and below it ours against torch-pruning's, pass by pass."""
    yield HEAD
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, form in made.items():
        cells = [name, f"{form['parameters'] / 1e6:.2f}", f"{form['macs'] / 1e6:.1f}"]
        for runtime in RUNTIMES:
            own = times[runtime][name]["cpu"]
            whole = times[runtime][WHOLE]["cpu"]
            cells += [f"{median(own):.2f}", f"{_ratio(whole, own)[1]:.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    for runtime in RUNTIMES:
        theirs = times[runtime][THEIRS]["cpu"]
        for name in (OURS, AS_THEIRS):
            low, middle, high = _ratio(theirs, times[runtime][name]["cpu"])
            yield (
                f"{runtime}: {name}: {middle:.3f} ({low:.3f} to {high:.3f}) times as fast as "
                "torch-pruning's"
            )
        waits = _ratio(times[runtime][WHOLE]["wall"], times[runtime][WHOLE]["cpu"])[1]
        yield f"{runtime}: the clock's time is {waits:.2f} of the processor's"


def _ratio(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Return the least, the median and the largest ratio of paired passes."""
    ratios = [one / other for one, other in zip(first, second, strict=True)]
    return min(ratios), median(ratios), max(ratios)


def main() -> None:
    """Make what lacks, time all and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("prune-latency"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--network", action="append")
    parser.add_argument("--make", action="store_true", help="write the files, and time none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, model in networks():
        if args.network and name not in args.network:
            continue
        folder = args.folder / name
        made = make_files(folder, model, args)
        if args.make:
            continue
        times = time_files(folder, made, args)
        results[name] = {"forms": made, "milliseconds": times}
        (args.folder / "results.json").write_text(json.dumps(results, indent=1))
        print(f"\n{name}\n", *show(made, times), sep="\n", flush=True)


if __name__ == "__main__":
    main()
