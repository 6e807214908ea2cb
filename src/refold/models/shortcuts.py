"""How a residual unit joins its input and its branch: the variants that ResNet v2's article tries.

He et al. 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from refold.errors import InputError

Kind = Literal["identity", "constant", "exclusive_gating", "shortcut_gating", "conv", "dropout"]


class AddShortcut(nn.Module):
    """path(x) + branch.

    Args:
        path: what the shortcut does: nothing, a projection, dropout.
    """

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the sum."""
        return self.path(x) + branch


class ConstantShortcut(nn.Module):
    """scales[0] * x + scales[1] * branch: through a row of these, scales[0] to the row's length.

    Args:
        scales: of the shortcut and of the branch.
    """

    def __init__(self, scales: tuple[float, float]) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the weighted sum."""
        return self.scales[0] * x + self.scales[1] * branch


class GatedShortcut(nn.Module):
    """(1 - g) * x + g * branch, or + branch, with g = sigmoid(conv1x1(x)).

    The gate depends on the input, so the sum is not affine and its residual cannot be removed.

    Args:
        channels: of both.
        exclusive: whether the branch has the gate too.
        bias: where the gate's bias starts: the lower, the more of `x` passes.

    Examples:
        >>> import torch
        >>> gate, x = GatedShortcut(4, False, -100.0), torch.ones(1, 4, 2, 2)
        >>> torch.equal(gate(x, x), 2 * x)
        True
    """

    def __init__(self, channels: int, exclusive: bool, bias: float) -> None:
        super().__init__()
        self.exclusive = exclusive
        self.gate = nn.Conv2d(channels, channels, 1)
        nn.init.constant_(cast(Tensor, self.gate.bias), bias)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the gated sum."""
        gate = self.gate(x).sigmoid()
        return (1 - gate) * x + (gate * branch if self.exclusive else branch)


class PadShortcut(nn.Module):
    """A shortcut without parameters where the shape changes: pixels left out, zero channels added.

    Args:
        channels: how many are added, after the others.
        stride: how far apart the pixels are that are kept.

    Examples:
        >>> import torch
        >>> PadShortcut(2, 2)(torch.ones(1, 3, 5, 5)).shape
        torch.Size([1, 5, 3, 3])

    Source: He et al. 2016, arXiv:1512.03385, option A of section 3.3.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller, deeper map."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.channels))


@dataclass(frozen=True)
class Shortcuts:
    """Makes the shortcuts of a network.

    Args:
        kind: of those that keep the shape; a `conv` shortcut is a 1x1 there too.
        scales: of a constant shortcut and of its branch.
        gate_bias: where the gates' biases start; the article tries 0 to -10.
        dropout: share of the shortcut's values that are dropped.

    Raises:
        InputError: when there is no such kind.
    """

    kind: Kind = "identity"
    scales: tuple[float, float] = (0.5, 0.5)
    gate_bias: float = -6.0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in self._makers():
            raise InputError(
                f"shortcut must be one of {', '.join(self._makers())}, got {self.kind!r}"
            )

    def __call__(self, channels: int, projection: Callable[[], nn.Module]) -> nn.Module:
        """Return the shortcut of a unit that keeps the shape.

        Args:
            channels: of the unit.
            projection: makes the network's 1x1 shortcut.
        """
        return self._makers()[self.kind](channels, projection)

    def _makers(self) -> dict[str, Callable[[int, Callable[[], nn.Module]], nn.Module]]:
        return {
            "identity": lambda channels, projection: AddShortcut(nn.Identity()),
            "constant": lambda channels, projection: ConstantShortcut(self.scales),
            "exclusive_gating": lambda channels, projection: GatedShortcut(
                channels, True, self.gate_bias
            ),
            "shortcut_gating": lambda channels, projection: GatedShortcut(
                channels, False, self.gate_bias
            ),
            "conv": lambda channels, projection: AddShortcut(projection()),
            "dropout": lambda channels, projection: AddShortcut(nn.Dropout(self.dropout)),
        }
