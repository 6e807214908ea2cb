"""Networks to expand, and what every expansion must keep."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from refold import blocks
from refold.branches import expand, expand_plan
from zoo.live import enliven

BLOCKS = ("acb", "repvgg", "dbb", "mobileone", "qarepvgg", "dilated", "orepa")
TOLERANCE = 1e-9


class Toy(nn.Module):
    """Norms, biases, a stride, groups, a dilation and a residual, in 1-D, 2-D or 3-D."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 1]
        self.stem = conv(3, 8, 5, 2, 2, bias=False)
        self.stem_bn = norm(8, eps=1e-3, momentum=0.2)
        self.body = nn.Sequential(conv(8, 8, 3, padding=1, groups=2), norm(8), nn.ReLU())
        self.wide = conv(8, 12, 3, padding=2, dilation=2)
        self.head = conv(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        return self.head(self.wide(x + self.body(x)).relu())


class Vgg(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False),
        )  # fmt: skip


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "toy1d": (partial(Toy, 1), (3, 16)),
    "toy2d": (partial(Toy, 2), (3, 12, 12)),
    "toy3d": (partial(Toy, 3), (3, 8, 8, 8)),
    "vgg": (Vgg, (3, 12, 12)),
    "resnet18": (torchvision.models.resnet18, (3, 32, 32)),
}
ZOO = (
    "mobilenetv3_small_050", "efficientnet_b0", "regnetx_002", "resnet18", "resnext26ts",
    "densenet121", "mobileone_s0", "ghostnet_050", "convnext_atto", "mixnet_s", "dla34",
    "hardcorenas_a",
)  # fmt: skip
NETS.update({f"timm:{name}": (partial(timm.create_model, name), (3, 64, 64)) for name in ZOO})
FAST = ("toy1d", "toy2d", "toy3d", "vgg")


def batch(label: str, size: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, *NETS[label][1], generator=generator, dtype=torch.float64)


@cache
def network(label: str) -> nn.Module:
    torch.manual_seed(0)
    return enliven(NETS[label][0]().double(), (batch(label),)).eval()


def answer(model: nn.Module, x: Tensor, *, training: bool = False) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return copy.deepcopy(model).train(training)(x)


def error(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).abs().max() / wanted.abs().max())


def train(model: nn.Module, x: Tensor, steps: int = 2) -> nn.Module:
    """Take steps of SGD; the gradients of the last stay."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval()


def is_idle(model: nn.Module, name: str) -> bool:
    """Say whether a norm behind it takes a parameter away again: DBB's inner bias without ring."""
    inner = (".dbb_avg.bn.bn.bias", ".dbb_1x1_kxk.bn1.bn.bias")
    block = model.get_submodule(name.partition(".dbb_")[0]) if name.endswith(inner) else None
    return isinstance(block, blocks.BranchedBlock) and not any(block.spec.padding)


def suits(conv: _ConvNd, block: str, normed: bool) -> bool:
    """Say what may become a block, from the papers and apart from the code under test."""
    if type(conv).__module__ != "torch.nn.modules.conv":
        return False
    if any(size % 2 == 0 for size in conv.kernel_size):
        return False
    if block == "dilated" and min(conv.kernel_size) < 5:
        return False
    return normed or conv.bias is not None or block in ("qarepvgg", "orepa")


def count_eligible(model: nn.Module, x: Tensor, block: str) -> int:
    """Count by running: a norm belongs to the convolution whose result it is given."""
    made: dict[int, nn.Module] = {}
    normed: set[nn.Module] = set()
    handles: list[Any] = []

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        made[id(output)] = module
        held.append(output)  # so that no other tensor gets its id

    def before(module: nn.Module, args: Any) -> None:
        if id(args[0]) in made:
            normed.add(made[id(args[0])])

    held: list[Tensor] = []
    convs = [module for module in model.modules() if isinstance(module, _ConvNd)]
    handles += [conv.register_forward_hook(after) for conv in convs]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles += [norm.register_forward_pre_hook(before) for norm in norms]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(suits(conv, block, conv in normed) for conv in convs)


def check(label: str, block: str) -> nn.Module:
    """Expand, count, compare in both modes, train two steps; return the trained network."""
    model, x = network(label), batch(label)
    eligible = count_eligible(copy.deepcopy(model), x, block)
    plan = expand_plan(model, block)
    wide = expand(model, block)
    assert len(plan.steps) == eligible, plan
    assert sum(isinstance(part, blocks.BranchedBlock) for part in wide.modules()) == eligible
    assert error(answer(model, x), answer(wide, x)) <= TOLERANCE
    wanted, found = answer(model, x, training=True), answer(wide, x, training=True)
    assert error(wanted, found) <= TOLERANCE
    trained = train(wide, x)
    old = {name for name, _ in model.named_parameters()}
    for name, parameter in trained.named_parameters():
        if name not in old and not is_idle(trained, name):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
    assert eligible > 0 or block == "dilated"
    return trained
