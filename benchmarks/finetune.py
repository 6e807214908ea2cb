"""Does a trained network gain by branches that are added to it? On real digits, as it comes out.

    python benchmarks/finetune.py [--seeds 3] [--epochs 4] [--more 3]

A plain VGG (seven convolutions, 8 to 64 channels) is trained with `refold train` on the 4,000
digits that ship with refold. Its best weights are then trained on, as they are and with DBB, ACB
and RepVGG branches that are added so that the network computes what it did. Every run of a seed has
the same images in the same order, the same number of epochs, and the same rate.

The table has the accuracy on 1,000 digits before the first step, of the best epoch, and of the
weights without branches (`stock.safetensors`), which load strictly into the network that was
there at first: median of the seeds, lowest and highest. "same answers" counts the test digits, of
all seeds, to which the expanded network gives the answer of the checkpoint before it trains.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import refold
from refold.training import Trained, load_recipe, network_of, open_data
from refold.training.data.augment import eval_transform

NET: dict[str, Any] = {
    "model": "cifar_vgg11", "options": {"depths": [1, 1, 1, 2, 2], "width": 0.125},
    "augment.size": 32, "deploy.files": ["safetensors"],
}  # fmt: skip
WAYS: dict[str, str | None] = {"plain": None, "DBB": "dbb", "ACB": "acb", "RepVGG": "repvgg"}
COLUMNS = ["checkpoint", "before the first step", "trained on", "without branches"]


def run(output: Path, **changes: Any) -> Trained:
    """Train on the digits with one thread."""
    habits = refold.training.Habits(workers=0)
    return refold.train(
        "digits", output=output, changes={**NET, **changes}, habits=habits, cpu=True, tracker="none"
    )


def test_images() -> Tensor:
    """Return the digits to judge by, as the network sees them."""
    data = open_data("digits")
    prepare = eval_transform(load_recipe("digits", NET).augment, data)
    return torch.stack([prepare(*data.val.load(n))[0] for n in range(len(data.val))])


def answers(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Return the class that a network sees in every image."""
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in images.split(200)])


def one_seed(
    folder: Path, seed: int, options: argparse.Namespace, images: Tensor
) -> dict[str, dict[str, float]]:
    """Return the figures of every way."""
    first = run(folder / "first", seed=seed, epochs=options.epochs, **{"optimizer.lr": 0.05})
    said = answers(network_of(first.folder, "best"), images)
    rows: dict[str, dict[str, float]] = {}
    for way, block in WAYS.items():
        changes = {"optimizer.lr": options.lr, "checkpoint": str(first.folder), "block": block}
        done = run(folder / way, seed=seed, epochs=options.more, **changes)
        summary = done.summary
        same = answers(network_of(done.folder, None), images) == said
        shares = [
            first.summary["train_form"], summary["start"], summary["train_form"],
            summary.get("stock_form", summary["train_form"]),
        ]  # fmt: skip
        rows[way] = {
            name: 100 * form["top1"] for name, form in zip(COLUMNS, shares, strict=True)
        }  # fmt: skip
        rows[way] |= {"same": int(same.sum()), "of": len(said)}
    return rows


def report(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Return medians and ranges as a table in Markdown."""
    lines = [["trained on", *COLUMNS, "same answers"], ["---", *("---:" for _ in range(5))]]
    for way in WAYS:
        rows = [seed[way] for seed in seeds]
        same, of = (int(sum(row[name] for row in rows)) for name in ("same", "of"))
        lines.append([way, *(_cell([row[c] for row in rows]) for c in COLUMNS), f"{same} of {of}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: list[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f}" if low == high else f"{middle:.1f} ({low:.1f}–{high:.1f})"


def main() -> int:
    """Print the table; return 1 where adding branches changed an answer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of the first training")
    parser.add_argument("--more", type=int, default=3, help="epochs after it")
    parser.add_argument("--lr", type=float, default=0.02, help="highest rate of those")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, seeds = test_images(), list[dict[str, dict[str, float]]]()
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(one_seed(Path(folder), seed, options, images))
        minutes = time.process_time() / 60
        print(f"seed {seed}: done after {minutes:.1f} CPU minutes", file=sys.stderr)
    print(report(seeds))
    exact = all(
        row["same"] == row["of"] and row["before the first step"] == row["checkpoint"]
        for seed in seeds
        for row in seed.values()
    )
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
