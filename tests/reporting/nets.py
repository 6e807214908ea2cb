"""Networks for reports: branches, names like markup, layers that stay, a thousand layers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HOSTILE = "</script><script>window&broken</script>"
"""The name of a module that a careless page would take for markup."""


class Block(nn.Module):
    """A 3×3, a 1×1 and an identity, each with its norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = conv_norm(channels, channels, 3)
        self.point = conv_norm(channels, channels, 1)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.point(x) + self.identity(x))


class Net(nn.Module):
    """Two blocks, a part of a hostile name, and a norm that has to stay before a padded layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, 3)
        self.stage = nn.Sequential(Block(8), Block(8))
        self.add_module(HOSTILE, conv_norm(8, 8, 1))
        self.stays = nn.BatchNorm2d(8)
        self.padded = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(torch.relu(self.stem(x)))
        x = torch.relu(getattr(self, HOSTILE)(x))
        x = torch.relu(self.padded(self.stays(x)))
        return self.head(x.mean((2, 3)))


def conv_norm(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Sequential:
    """Return a convolution that keeps the size, and its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def deep(layers: int) -> nn.Sequential:
    """Return a chain of so many steps: convolution, norm, activation."""
    parts = (nn.Sequential(*conv_norm(4, 4, 3), nn.ReLU()) for _ in range(layers // 3))
    return nn.Sequential(*parts)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a network in eval mode whose norms have statistics and scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            mean, variance = module.running_mean, module.running_var
            assert mean is not None
            assert variance is not None
            mean.normal_(generator=generator)
            variance.uniform_(0.5, 2, generator=generator)
            module.weight.data.normal_(generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()


def facts_in(page: Path) -> dict[str, Any]:
    """Return the facts inside a page."""
    found = re.search(r'id="facts">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def repeated(facts: dict[str, Any], times: int) -> dict[str, Any]:
    """Return the facts of a network that runs another one so many times, one after the other."""
    lengths = {side: len(facts[side]["boxes"]) for side in ("before", "after")}

    def moved(box: dict[str, Any], turn: int, side: str) -> dict[str, Any]:
        own, other = turn * lengths[side], turn * lengths["before"]
        reads = [source + own for source in box["reads"]]
        if turn and box["kind"] == "input":
            reads = [own - 1]
        sources = {key: [n + other for n in box[key]] for key in ("from", "layers") if key in box}
        branches = [
            branch | {"boxes": [n + other for n in branch["boxes"]]}
            for branch in box.get("branches", [])
        ]
        place = {"place": f"{turn}.{box['place']}", "reads": reads}
        return box | place | sources | ({"branches": branches} if branches else {})

    sides = {
        side: facts[side]
        | {"boxes": [moved(b, t, side) for t in range(times) for b in facts[side]["boxes"]]}
        for side in lengths
    }
    return facts | sides
