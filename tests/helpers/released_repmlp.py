"""RepMLP as a stranger's file holds it: the authors' names and order of steps, none of our blocks.

The maps are cut by one six-axis reshape and permutation; from that one value a reshape makes rows
for FC3, and another one maps for the convolutions. Both results are laid out with six axes again
before they are added. Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def pair(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Sequential:
    """Return a convolution without bias and its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class Perceptron(nn.Module):
    """The first RepMLP (2021): maps of (height, width) in partitions of (h, w)."""

    def __init__(
        self,
        channels: tuple[int, int],
        size: tuple[int, int],
        partition: tuple[int, int],
        groups: int = 1,
        kernels: Sequence[int] | None = (1, 3),
        reduction: int = 1,
    ) -> None:
        super().__init__()
        (self.C, self.O), (self.H, self.W), (self.h, self.w) = channels, size, partition
        self.rows, self.columns = self.H // self.h, self.W // self.w
        self.sees_all = size != partition
        if self.sees_all:
            numbers = self.C * self.rows * self.columns
            self.fc1_fc2 = nn.Sequential(
                OrderedDict(
                    fc1=nn.Linear(numbers, numbers // reduction),
                    relu=nn.ReLU(),
                    fc2=nn.Linear(numbers // reduction, numbers),
                )
            )
            pool = nn.AvgPool2d((self.h, self.w))
            self.avg = nn.Sequential(OrderedDict(avg=pool, bn=nn.BatchNorm2d(self.C)))
        area = self.h * self.w
        self.fc3 = nn.Conv2d(self.C * area, self.O * area, 1, 1, 0, bias=False, groups=groups)
        self.fc3_bn = nn.BatchNorm1d(self.O * area)
        self.kernels = kernels
        for k in kernels or ():
            branch = pair(self.C, self.O, k, padding=k // 2, groups=groups)
            setattr(self, f"repconv{k}", branch)

    def forward(self, x: Tensor) -> Tensor:
        six = (-1, self.C, self.rows, self.h, self.columns, self.w)
        if self.sees_all:
            v = self.avg(x).reshape(-1, self.C * self.rows * self.columns)
            v = self.fc1_fc2(v).reshape(-1, self.C, self.rows, 1, self.columns, 1)
            x = x.reshape(*six) + v
        else:
            x = x.reshape(*six)
        parts = x.permute(0, 2, 4, 1, 3, 5)
        row = self.fc3(parts.reshape(-1, self.C * self.h * self.w, 1, 1))
        row = self.fc3_bn(row.reshape(-1, self.O * self.h * self.w))
        out = row.reshape(-1, self.rows, self.columns, self.O, self.h, self.w)
        if self.kernels is not None:
            maps, local = parts.reshape(-1, self.C, self.h, self.w), 0
            for k in self.kernels:
                local += getattr(self, f"repconv{k}")(maps)
            out += local.reshape(-1, self.rows, self.columns, self.O, self.h, self.w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.O, self.H, self.W)


class GatedPerceptron(nn.Module):
    """The block of RepMLPNet (2022): sets of channels share FC3, a gate multiplies the result."""

    def __init__(
        self,
        channels: int,
        partition: tuple[int, int],
        sets: int = 1,
        kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
    ) -> None:
        super().__init__()
        self.C, self.S, (self.h, self.w) = channels, sets, partition
        self.gp = nn.Module()
        self.gp.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.gp.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        numbers = self.h * self.w * sets
        self.fc3 = nn.Conv2d(numbers, numbers, 1, 1, 0, bias=False, groups=sets)
        self.fc3_bn = nn.BatchNorm2d(sets)
        self.kernels = kernels
        for k in kernels:
            setattr(self, f"repconv{k}", pair(sets, sets, k, padding=k // 2, groups=sets))

    def gate(self, x: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(x, output_size=(1, 1))
        vector = self.gp.fc2(F.relu(self.gp.fc1(mean), inplace=True))
        return F.sigmoid(vector).view(-1, self.C, 1, 1)

    def through_rows(self, parts: Tensor, rows: int, columns: int) -> Tensor:
        out = self.fc3(parts.reshape(-1, self.S * self.h * self.w, 1, 1))
        out = self.fc3_bn(out.reshape(-1, self.S, self.h, self.w))
        return out.reshape(-1, rows, columns, self.S, self.h, self.w)

    def forward(self, x: Tensor) -> Tensor:
        gate, shape = self.gate(x), x.size()
        rows, columns = shape[2] // self.h, shape[3] // self.w
        parts = x.reshape(-1, self.C, rows, self.h, columns, self.w).permute(0, 2, 4, 1, 3, 5)
        out = self.through_rows(parts, rows, columns)
        maps, local = parts.reshape(-1, self.S, self.h, self.w), 0
        for k in self.kernels:
            local += getattr(self, f"repconv{k}")(maps)
        out += local.reshape(-1, rows, columns, self.S, self.h, self.w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(*shape) * gate


class Unit(nn.Module):
    """A unit of RepMLPNet, with its norms and the two pointwise layers after the block."""

    def __init__(self, channels: int, partition: tuple[int, int], sets: int) -> None:
        super().__init__()
        self.repmlp_block = GatedPerceptron(channels, partition, sets)
        ffn = {
            "ffn_fc1": pair(channels, 4 * channels),
            "ffn_fc2": pair(4 * channels, channels),
            "act": nn.GELU(),
        }
        self.ffn_block = nn.ModuleDict(ffn)
        self.prebn1, self.prebn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y, ffn = x + self.repmlp_block(self.prebn1(x)), self.ffn_block
        return y + ffn["ffn_fc2"](ffn["act"](ffn["ffn_fc1"](self.prebn2(y))))


class Net(nn.Module):
    """A small RepMLPNet of two stages for images of 32 pixels; `cut` partitions along an axis."""

    def __init__(self, classes: int = 5, cut: int = 1) -> None:
        super().__init__()
        self.conv_embedding = pair(3, 8, 4, stride=4)
        self.conv_embedding.add_module("relu", nn.ReLU())
        self.stages = nn.ModuleList(
            [
                nn.ModuleList([Unit(8, (8, 8 // cut), 2), Unit(8, (8, 8 // cut), 2)]),
                nn.ModuleList([Unit(16, (4 // cut, 4), 4)]),
            ]
        )
        self.embeds = nn.ModuleList([pair(8, 16, 2, stride=2)])
        self.embeds[0].add_module("relu", nn.ReLU())
        self.head_norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_embedding(x)
        for i, stage in enumerate(self.stages):
            for unit in stage:
                x = unit(x)
            if i < len(self.stages) - 1:
                x = self.embeds[i](x)
        x = F.adaptive_avg_pool2d(self.head_norm(x), 1)
        return self.head(x.view(x.size(0), -1))
