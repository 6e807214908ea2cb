"""Pruning small ResNets with and without their residuals, on real digits.

    python benchmarks/rm_prune.py [--seeds 3] [--epochs 4] [--tune 2] [--share 0.4]

The data are the 5,000 digits of `refold train digits`: 4,000 to train, 1,000 to test. A ResNet
(stem of stride 2, widths 16, 32, 64, two basic blocks each) is trained three ways: as it is, with
an L1 penalty on its norms' scales (network slimming), and with one on masks behind the first norm,
behind the addition and on the shortcut, as RMNet trains for pruning. Each is pruned to the same
multiply-adds, a share of the folded network's, then trained on and folded:

* "residuals removed" and "residuals kept" by refold.prune, which keeps channels that a sum ties;
* "torch-pruning" by that library, which prunes tied channels together.

Importance is compared within the whole network, relative to the mean of the layer, as torch-pruning
does; every layer keeps a tenth. All train on with norms: refold's get them back from
`restore_norms`, torch-pruning never lost its. Accuracy is on the test digits, in percent; times are
of one digit with one thread, and how many times as fast as the plain network not pruned, in rounds
that take turns. The table gives the median of the seeds and their range.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning
from torch import nn

import refold
from digits import Digits, load, resnet, train
from refold.pruning import Importance, clear_masks, pruning, restore_norms, slimming_penalty
from refold.training.studies.shapes import folded_size, relative_scale, to_budget

RUNTIMES = ("eager", "onnxruntime")
EXAMPLE = torch.zeros(1, 1, 28, 28)
COLUMNS = [
    ("raw", "accuracy, pruned", 1, ".1f"),
    ("accuracy", "trained on", 1, ".1f"),
    ("parameters", "parameters, k", 1e3, ".1f"),
    ("macs", "multiply-adds, M", 1e6, ".2f"),
    ("onnxruntime", "onnxruntime, ms", 1, ".3f"),
    ("onnxruntime faster", "times as fast", 1, ".2f"),
    ("eager", "eager, ms", 1, ".2f"),
    ("eager faster", "times as fast", 1, ".2f"),
]


# pruning to a share of the multiply-adds


def by_refold(importance: Importance, *, removed: bool) -> Callable[[nn.Module, float], nn.Module]:
    """Return a pruner of ours, that takes a network and a ratio."""

    def prune(model: nn.Module, ratio: float) -> nn.Module:
        how: dict[str, Any] = {"importance": importance, "remove_residuals": removed}
        return pruning(model, EXAMPLE, ratio=ratio, floor=0.1, round_to=1, **how).model

    return prune


def by_torch_pruning(importance: str) -> Callable[[nn.Module, float], nn.Module]:
    """Return a pruner of torch-pruning: global, tied channels together."""
    kinds = torch_pruning.importance
    wanted = {"bn": kinds.BNScaleImportance, "l1": lambda: kinds.GroupMagnitudeImportance(p=1)}

    def prune(model: nn.Module, ratio: float) -> nn.Module:
        model = copy.deepcopy(model)
        torch_pruning.pruner.BasePruner(
            model, EXAMPLE, wanted[importance](), global_pruning=True, pruning_ratio=ratio,
            max_pruning_ratio=0.9, ignored_layers=[model[-1]],
        ).step()  # fmt: skip
        return model.eval()

    return prune


WAYS: list[tuple[str, str, Callable[[nn.Module, float], nn.Module]]] = [
    ("masks", "residuals removed", by_refold(relative_scale, removed=True)),
    ("slimmed", "residuals removed", by_refold(relative_scale, removed=True)),
    ("slimmed", "residuals kept", by_refold(relative_scale, removed=False)),
    ("slimmed", "torch-pruning", by_torch_pruning("bn")),
    ("plain", "residuals removed", by_refold("l1", removed=True)),
    ("plain", "residuals kept", by_refold("l1", removed=False)),
    ("plain", "torch-pruning", by_torch_pruning("l1")),
]


def one_seed(seed: int, options: argparse.Namespace) -> dict[tuple[str, str], dict[str, float]]:
    """Return the figures of every way, by training and method."""
    data, rows, final = load(), {}, {}
    for kind in ("plain", "slimmed", "masks"):
        model = trained(kind, data, seed, options)
        rows[kind, "not pruned"] = figures(model, data)
        final[kind, "not pruned"] = refold.reparameterize(model, EXAMPLE)
        # without masks, which fold away only where the residual does
        budget = options.share * rows["plain", "not pruned"]["macs"]
        for way, method, prune in WAYS:
            if way == kind:
                pruned = to_budget(lambda r, p=prune, m=model: p(m, r), budget, EXAMPLE)
                raw = data.accuracy(pruned)
                tuned = tune(pruned, data, seed, options)
                rows[way, method] = figures(tuned, data) | {"raw": raw}
                final[way, method] = refold.reparameterize(tuned, EXAMPLE)
    named = {" / ".join(key): model for key, model in final.items()}
    table = refold.benchmark(named, torch.randn(1, 1, 28, 28), RUNTIMES, rounds=options.rounds)
    for key in rows:
        for runtime in RUNTIMES:
            row = table.row(runtime, " / ".join(key))
            if row.milliseconds is not None and row.speedup is not None:
                rows[key][runtime] = row.milliseconds.median
                rows[key][f"{runtime} faster"] = row.speedup.median
    return rows


def trained(kind: str, data: Digits, seed: int, options: argparse.Namespace) -> nn.Module:
    """Return a trained network of one kind."""
    torch.manual_seed(seed)
    model = resnet(masks=kind == "masks")
    on = "masks" if kind == "masks" else "norms"
    strength = options.penalty
    penalty = None if kind == "plain" else lambda m: strength * slimming_penalty(m, on)
    train(model, data, seed, options.epochs, 0.1, penalty)
    if kind == "masks":
        clear_masks(model, options.clear)
    return model


def tune(model: nn.Module, data: Digits, seed: int, options: argparse.Namespace) -> nn.Module:
    """Train a pruned network on, with norms."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model = restore_norms(model, [data.x[:512]])
    return train(model, data, seed + 1, options.tune, 0.03)


def figures(model: nn.Module, data: Digits) -> dict[str, float]:
    """Return accuracy and size."""
    size = folded_size(model, EXAMPLE)
    return {"accuracy": data.accuracy(model), "parameters": size.parameters, "macs": size.macs or 0}


def main() -> None:
    """Print one table of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of the first training")
    parser.add_argument("--tune", type=int, default=2, help="epochs after pruning")
    parser.add_argument("--share", type=float, default=0.4, help="of the multiply-adds to keep")
    parser.add_argument("--penalty", type=float, default=7e-3, help="the factor of the L1 norm")
    parser.add_argument("--clear", type=float, default=0.01, help="masks up to here are off")
    parser.add_argument("--rounds", type=int, default=30, help="of timing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds: list[dict[tuple[str, str], dict[str, float]]] = []
    for seed in range(options.seeds):
        seeds.append(one_seed(seed, options))
        print(
            f"seed {seed}: done after {time.process_time() / 60:.1f} CPU minutes", file=sys.stderr
        )
    print("median of the seeds (lowest to highest)\n")
    print(report(seeds))


def report(seeds: list[dict[tuple[str, str], dict[str, float]]]) -> str:
    """Return the medians and ranges as a table in Markdown."""
    heads = [head for _, head, _, _ in COLUMNS]
    lines = [["training", "pruning", *heads], ["---", "---", *("---:" for _ in heads)]]
    for key in seeds[0]:
        rows = [seed[key] for seed in seeds]
        cells = (_cell(rows, name, unit, form) for name, _, unit, form in COLUMNS)
        lines.append([*key, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rows: list[dict[str, float]], name: str, unit: float, form: str) -> str:
    values = [row[name] / unit for row in rows if name in row]
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    text, ends = format(middle, form), [format(low, form), format(high, form)]
    return text if ends[0] == ends[1] else f"{text} ({' to '.join(ends)})"


if __name__ == "__main__":
    main()
