"""What pruning to half of the multiply-adds is worth on the clock, by how channels are rounded.

    python benchmarks/prune_latency.py [--size 224] [--rounds 15] [--runtime onnxruntime]

torchvision's MobileNetV2 and ResNet-18 and our RepVGG-A0, with random norm statistics, are pruned
by the norms' scales to half of the multiply-adds of the folded network. Every layer keeps a tenth,
and a multiple of 1, 4, 8 or 16 channels; residuals are kept or removed. torch-pruning prunes to the
same target by the same scales, with the ratio found by halving. All forms of a network are
timed in one paired run, each in turn, on one thread and one image; "times as fast" is against the
folded network that was not pruned. Accuracy plays no part here.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
import torch_pruning
from torch import nn

import refold
from refold.errors import RefusedError
from refold.pruning import Layer, pruning
from refold.table import render
from refold.training.studies.shapes import to_budget
from refold.workload import workload_of

STEPS = (1, 4, 8, 16)


def relative(layer: Layer) -> torch.Tensor:
    """Return scales over the mean of their layer."""
    return layer.scale / layer.scale[layer.rows].nanmean()


def networks() -> dict[str, nn.Module]:
    """Return the networks with norms as if they had been trained."""
    from torchvision.models import mobilenet_v2, resnet18

    torch.manual_seed(0)
    found = {
        "MobileNetV2": mobilenet_v2(),
        "ResNet-18": resnet18(),
        "RepVGG-A0": refold.create_model("repvgg_a0"),
    }
    for model in found.values():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias, 0, 0.2)
        model.eval()
    return found


def forms(model: nn.Module, example: torch.Tensor, share: float) -> dict[str, nn.Module]:
    """Return the folded network, and what pruning makes of it."""
    found = {"not pruned": refold.reparameterize(model, example)}
    for removed in (False, True):
        for step in STEPS:
            name = f"{'residuals removed' if removed else 'residuals kept'}, {step}"
            try:
                found[name] = pruning(
                    model, example, macs=share, importance=relative, floor=0.1, round_to=step,
                    remove_residuals=removed,
                ).model  # fmt: skip
            except RefusedError as reason:
                print(f"{name}: {reason}")
    for step in (1, 8):
        name = f"torch-pruning, {step}"
        try:
            budget = share * (workload_of(found["not pruned"], example).macs or 0)
            pruned = to_budget(partial(by_torch_pruning, model, example, step), budget, example)
            found[name] = refold.reparameterize(pruned, example)
        except Exception as error:  # a library of its own
            print(f"{name}: {type(error).__name__}: {error}")
    return found


def by_torch_pruning(model: nn.Module, example: torch.Tensor, step: int, ratio: float) -> nn.Module:
    """Return what torch-pruning makes of a network: global, tied channels together."""
    model = copy.deepcopy(model)
    heads = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    torch_pruning.pruner.BasePruner(
        model, example, torch_pruning.importance.BNScaleImportance(), global_pruning=True,
        pruning_ratio=ratio, max_pruning_ratio=0.9, ignored_layers=heads, round_to=step,
    ).step()  # fmt: skip
    return model.eval()


def main() -> None:
    """Prune, time and print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--network", action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    example = torch.randn(1, 3, args.size, args.size)
    for name, model in networks().items():
        if args.network and name not in args.network:
            continue
        made = forms(model, example, args.share)
        table = refold.benchmark(made, example, (args.runtime,), rounds=args.rounds)
        rows = [[row.model, row.milliseconds] for row in table.rows]
        base = float(getattr(rows[0][1], "median", rows[0][1]))
        lines = []
        for form, clock in rows:
            median = float(getattr(clock, "median", clock))
            cost = workload_of(made[form], example)
            lines.append(
                [form, f"{cost.parameters / 1e6:.2f} M", f"{(cost.macs or 0) / 1e6:.1f} M",
                 f"{median:.2f}", f"{base / median:.2f}"]
            )  # fmt: skip
        print(f"{name}, {args.runtime}")
        print(render(["", "parameters", "multiply-adds", "ms", "times as fast"], lines), flush=True)


if __name__ == "__main__":
    main()
