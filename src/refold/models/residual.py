"""The residual blocks that RMNet's authors trained: what they add, and what they log on the way.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687.
Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from refold.models.backbone import Backbone
from refold.residuals import remove_residuals


class Logged(nn.Module):
    """A residual that may log the mean and variance of its shortcut and of its sum in training.

    The authors give their plain network norms that start from these. Here norms are folded, so that
    they change nothing and are for files that others read.

    Args:
        shortcut: channels of the shortcut's input.
        out: channels of the sum.
        statistics: whether to log, as norms without weights.

    Attributes:
        running1: the norm that logs the shortcut's input, or None.
        running2: the norm that logs the sum, or None.
    """

    def __init__(self, shortcut: int, out: int, statistics: bool) -> None:
        super().__init__()
        self.running1 = nn.BatchNorm2d(shortcut, affine=False) if statistics else None
        self.running2 = nn.BatchNorm2d(out, affine=False) if statistics else None

    def log(self, x: Tensor, total: Tensor) -> None:
        """Log a shortcut's input and a sum, in training mode."""
        if self.training and self.running1 is not None and self.running2 is not None:
            self.running1(x)
            self.running2(total)


class LoggedResidual(Logged):
    """relu(branch(x) + downsample(x)); a subclass writes `branch`.

    Args:
        channels: of the input.
        out: channels of the output.
        stride: of the block.
        statistics: see `Logged`.
    """

    def __init__(self, channels: int, out: int, stride: int, statistics: bool) -> None:
        super().__init__(channels, out, statistics)
        self.downsample = nn.Sequential()
        if stride != 1 or channels != out:
            self.downsample.append(nn.Conv2d(channels, out, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out))
        self.relu = nn.ReLU()

    def branch(self, x: Tensor) -> Tensor:
        """Return what is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        total = self.branch(x) + self.downsample(x)
        self.log(x, total)
        return self.relu(total)


class Removable(Backbone):
    """A network whose deploy form is a plain chain: norms folded, residuals removed."""

    def deployed(self, example: Tensor) -> nn.Module:
        """Return the plain chain that computes the same."""
        return without_residuals(self, example)


def without_residuals(model: nn.Module, example: Tensor) -> nn.Module:
    """Return the plain chain that computes the same, and logs nothing."""
    plain = remove_residuals(model, example, strict=True)
    for module in plain.modules():
        if isinstance(module, Logged):
            module.running1 = module.running2 = None
    return plain


def conv_norm(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution that keeps the map's size but for its stride, and its norm."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out)
