"""Real digits, a small ResNet that reads them, and its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.pruning import channel_mask
from refold.training.data.digits import digits


class Block(nn.Module):
    """A basic block; with masks, channels compete inside, behind the sum and on the shortcut."""

    def __init__(self, width: int, out: int, *, masks: bool) -> None:
        super().__init__()
        stride = out // width
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.down = None
        if stride > 1:
            point = nn.Conv2d(width, out, 1, stride, bias=False)
            self.down = nn.Sequential(point, nn.BatchNorm2d(out))
        made = [channel_mask(c) if masks else nn.Identity() for c in (out, out, width)]
        self.inner, self.outer, self.short = made

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        y = self.bn2(self.conv2(self.inner(self.bn1(self.conv1(x))).relu()))
        x = self.short(x)
        return self.outer(y + (x if self.down is None else self.down(x))).relu()


def resnet(*, masks: bool) -> nn.Module:
    """Return an untrained network."""
    layers = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for width, out in ((16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers.append(Block(width, out, masks=masks))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)  # as network slimming starts
    return model


@dataclass(frozen=True)
class Digits:
    """Images and labels to train on and to test with."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def batches(
        self, generator: torch.Generator, size: int = 64
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training digits in random order, moved by up to two pixels."""
        for rows in torch.randperm(len(self.x), generator=generator).split(size):
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            yield self.x[rows].roll((down, right), (2, 3)), self.y[rows]

    def accuracy(self, model: nn.Module) -> float:
        """Return the percentage of test digits that a network recognises."""
        with torch.no_grad():
            return 100 * float((model(self.test_x).argmax(1) == self.test_y).float().mean())


def load() -> Digits:
    """Return the digits, centred and scaled."""
    parts = [
        ((source.pixels / 255 - 0.13) / 0.31, torch.tensor(source.labels)) for source in digits()
    ]
    return Digits(*parts[0], *parts[1])


def train(
    model: nn.Module,
    data: Digits,
    seed: int,
    epochs: int,
    rate: float,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """Train in place by SGD with a cosine rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * -(-len(data.x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for x, y in data.batches(generator):
            loss = F.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
