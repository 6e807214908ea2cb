"""One small network a checkpoint layout, under the names of the repository that published it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import refold
from refold.blocks import (
    ACBlock,
    BranchedBlock,
    DiverseBranchBlock,
    LargeKernelBlock,
    MobileOneBlock,
    RepVGGBlock,
)
from refold.blocks.partition import PartitionBlock
from refold.models.repmlp_units import Perceptrons, RepMLPBottleneck, RepMLPLight, normed

State = dict[str, Tensor]
ReLU = nn.ReLU


def conv_bn(*arguments: int, **options: int) -> nn.Sequential:
    """Return a plain pair as the repositories name it: `conv` and `bn` in a module of their own."""
    conv = nn.Conv2d(*arguments, bias=False, **options)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels)))


class Chain(nn.Sequential):
    """Named layers in a row, the last of them a classifier of channel means."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        *body, head = self
        for layer in body:
            x = layer(x)
        return head(x.mean((2, 3)))


def repvgg(se: bool = False) -> nn.Module:
    place = "before" if se else None
    return Chain(
        stage0=RepVGGBlock(3, 8, 3, 2, 1, se=place, se_channels=2),
        stage1=nn.Sequential(
            RepVGGBlock(8, 8, 3, 2, 1, se=place, se_channels=2),
            RepVGGBlock(8, 8, 3, 1, 1, groups=1 if se else 2, se=place, se_channels=2),
        ),
        stage2=nn.Sequential(RepVGGBlock(8, 16, 3, 2, 1, se=place, se_channels=4)),
        linear=nn.Linear(16, 5),
    )


class Plus(nn.Module):
    """RepVGGplus: stages with `blocks`, a gate after the activation, heads that only train."""

    def __init__(self, deploy: bool = False) -> None:
        super().__init__()
        self.stage0 = RepVGGBlock(3, 8, 3, 2, 1, se="after")
        self.stage1 = nn.ModuleDict(
            {"blocks": nn.ModuleList(RepVGGBlock(8, 8, 3, 1, 1, se="after") for _ in range(2))}
        )
        self.stage3_first = nn.ModuleDict(
            {"blocks": nn.ModuleList([RepVGGBlock(8, 8, 3, 2, 1, groups=4, se="after")])}
        )
        self.linear = nn.Linear(8, 5)
        if not deploy:
            parts = (conv_bn(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5))
            self.stage1_aux = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage0(x)
        for stage in (self.stage1, self.stage3_first):
            for block in stage["blocks"]:
                x = block(x)
        return self.linear(x.mean((2, 3)))


def mobileone() -> nn.Module:
    return Chain(
        stage0=MobileOneBlock(3, 8, 3, 2, 1),
        stage1=nn.Sequential(
            MobileOneBlock(8, 8, 3, 2, 1, groups=8, num_conv_branches=3),
            MobileOneBlock(8, 16, 1),  # a lone branch: the engine folds it where it stands
            MobileOneBlock(16, 16, 3, 1, 1, groups=16),
            MobileOneBlock(16, 16, 1, num_conv_branches=2, se=True),
        ),
        stage2=nn.Sequential(MobileOneBlock(16, 16, 3, 2, 1, groups=16)),
        linear=nn.Linear(16, 5),
    )


def acnet() -> nn.Module:
    block = ACBlock(8, 8, 3, 1, 1, groups=2)
    return Chain(
        conv1=nn.Sequential(conv_bn(3, 8, 3, stride=2), nn.ReLU()),
        conv2=nn.Sequential(OrderedDict(acb=block, relu=nn.ReLU())),
        stage1=nn.Sequential(ACBlock(8, 12, 5, 2, 2, activation=ReLU)),
        linear=nn.Linear(12, 5),
    )


def dbb() -> nn.Module:
    return Chain(
        conv1=nn.Sequential(OrderedDict(cbr=conv_bn(3, 8, 3, stride=2), relu=nn.ReLU())),
        stage1=nn.Sequential(
            DiverseBranchBlock(8, 8, 3, 1, 1, groups=2, activation=ReLU),
            DiverseBranchBlock(8, 12, 3, 2, 1, activation=ReLU),
            DiverseBranchBlock(12, 12, 5, 1, 2, groups=12, activation=ReLU),
            DiverseBranchBlock(12, 12, 3, 1, 1, internal_channels=6, activation=ReLU),
        ),
        linear=nn.Linear(12, 5),
    )


def replknet() -> nn.Module:
    return Chain(
        stem=nn.Sequential(conv_bn(3, 8, 3, stride=2, padding=1), nn.ReLU()),
        prelkb_bn=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()),
        stage=nn.Sequential(LargeKernelBlock(8, 8, 13, 1, 6, groups=8, activation=ReLU)),
        alone=nn.Sequential(OrderedDict(lkb_origin=conv_bn(8, 8, 9, padding=4, groups=8))),
        relu=nn.ReLU(),
        linear=nn.Linear(8, 5),
    )


def repmlp() -> nn.Module:
    cut = Perceptrons((8, 8), (4, 4), groups=2, kernels=(1, 3), reduction=2, fc_reduction=2)
    whole = Perceptrons((8, 8), (8, 8), kernels=(3, 5))
    return Chain(
        stage0=nn.Sequential(normed(3, 8, 3, 2)),
        stage1=nn.Sequential(RepMLPBottleneck(8, 8, 16, cut), RepMLPLight(16, 4, 16, whole)),
        linear=nn.Linear(16, 5),
    )


def _byob(stem: str, blocks: object, **config: object) -> nn.Module:
    return ByobNet(ByoModelCfg(blocks, stem_type=stem, stem_chs=8, **config), num_classes=5)


def timm_repvgg(se: bool = False) -> nn.Module:
    grouped = None if se else (lambda channels, index: 4 if index == 1 else 0)
    blocks = (ByoBlockCfg("rep", 2, 8, gs=grouped), ByoBlockCfg("rep", 1, 16))
    gate = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.25, "rd_divisor": 1}}
    return _byob("rep", blocks, **(gate if se else {}))


def timm_mobileone() -> nn.Module:
    gate = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.0625, "rd_divisor": 1}}
    three, point = {"num_conv_branches": 3}, {"kernel_size": 1}
    two = {"num_conv_branches": 2, **point}
    stage = [
        ByoBlockCfg("one", 1, 8, 2, gs=1, block_kwargs=three),
        ByoBlockCfg("one", 1, 16, 1, gs=0, block_kwargs=point),
        ByoBlockCfg("one", 1, 16, 1, gs=1),
        ByoBlockCfg("one", 1, 16, 1, gs=0, block_kwargs=two, **gate),
    ]
    return _byob("one", (stage, ByoBlockCfg("one", 1, 16, 2, gs=1)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": repvgg,
    "RepVGGplus": Plus,
    "MobileOne": mobileone,
    "ACNet": acnet,
    "DBB": dbb,
    "RepLKNet": replknet,
    "RepMLP": repmlp,
    "timm RepVGG": timm_repvgg,
    "timm MobileOne": timm_mobileone,
}


def live(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a network in eval mode and float64 whose norms all do something, of either sign."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double().eval()
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return model


def deployed(layout: str, seed: int = 7) -> nn.Module:
    """Return the network of a layout as its own repository deploys it, with other weights."""
    if layout.startswith("timm"):
        return reparameterize_model(live(NETS[layout], seed)).double()
    model = (
        live(lambda: Plus(deploy=True), seed)
        if layout == "RepVGGplus"
        else live(NETS[layout], seed)
    )
    for part in list(model.modules()):
        if isinstance(part, BranchedBlock | PartitionBlock):
            part.switch_to_deploy()
        elif isinstance(part, nn.Sequential) and set(part._modules) == {"conv", "bn"}:
            refold.reparameterize(part, inplace=True)
        elif isinstance(part, nn.Sequential) and set(part._modules) == {"lkb_origin"}:
            plain = refold.reparameterize(part.lkb_origin).conv
            del part.lkb_origin
            part.lkb_reparam = plain
    return model


def refolded(layout: str, seed: int = 7) -> nn.Module:
    """Return the network of a layout as this library's engine folds it, with other weights."""
    build = (lambda: Plus(deploy=True)) if layout == "RepVGGplus" else NETS[layout]
    return refold.reparameterize(live(build, seed), image() if layout == "RepMLP" else None)


def image(seed: int = 3) -> Tensor:
    return torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(seed)).double()


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(image())


def error(wanted: Tensor, found: Tensor) -> float:
    return float((wanted - found).abs().max() / wanted.abs().max())
