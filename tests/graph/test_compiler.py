"""A fold leaves torch's compiler alone: to load it takes longer than to fold most networks.

Torch loads it at the first sum without storage, at the first operator that a mode sees, and at
many a check, in a process that has not loaded it for something else.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import sys
import torch
from torch import nn
import refold
from refold import blocks

class Paths(nn.Module):
    def __init__(self):
        super().__init__()
        path = lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.paths = nn.ModuleList(path() for _ in range(3))
        self.left, self.right = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = sum(path(x) for path in self.paths)
        return self.last(self.norm(torch.cat([self.left(x), self.right(x)], 1)))

def pools():
    ahead = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*ahead, nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())

before = set(sys.modules)
"""
FOLD = """
x = torch.randn(1, 4, 12, 12)
folded = refold.reparameterize(model.eval(), x, check=check)
assert sum(isinstance(part, nn.BatchNorm2d) for part in folded.modules()) == 0
heavy = {"sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes"}
print(*sorted(heavy & (set(sys.modules) - before)))
"""
MODELS = {
    "RepMLP": "blocks.RepMLPBlock(4, 4, img_size=12, partition=6, groups=2)",
    "DBB": "blocks.DiverseBranchBlock(4, 4, 3, padding=1)",
    "paths and slices": "Paths()",
    "pools": "pools()",
}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_a_fold_does_not_load_it(made: str, check: bool) -> None:
    code = f"{START}\nmodel, check = {made}, {check}\n{FOLD}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
