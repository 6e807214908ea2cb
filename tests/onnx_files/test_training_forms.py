"""What PyTorch writes in training form becomes what refold exports of the folded network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import refold
from helpers.nightly import some
from helpers.onnx_texts import kinds, run
from refold.onnx_files import fold_onnx, read

pytestmark = pytest.mark.slow


def ours(name: str) -> Callable[[], nn.Module]:
    return lambda: refold.create_model(name, num_classes=10)


def of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=10)


def detector() -> nn.Module:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    made = tasks.DetectionModel("yolov9t.yaml", nc=4, verbose=False)
    made.model[-1].export, made.model[-1].format = True, "onnx"
    return made


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "RepVGG-A0": (ours("repvgg_a0"), 64),
    "MobileOne-S1": (ours("mobileone_s1"), 64),
    "DBB-ResNet-18": (ours("dbb_resnet18"), 64),
    "ACNet-ResNet-18": (ours("acnet_resnet18"), 64),
    "RMNeXt": (ours("rmnext_26x3_32"), 64),
    "FastViT-T8": (of_timm("fastvit_t8"), 128),
    "HGNetV2-B0": (of_timm("hgnetv2_b0"), 64),  # LAB: a scale and a shift behind every function
    "YOLOv9t": (detector, 64),
}
CASES = list(product(NETS, ("old", "new")))


def alive(net: nn.Module) -> nn.Module:
    """Give every norm statistics, and every single number a value."""
    draw = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            norm: Any = module
            norm.running_mean.normal_(0, 0.3, generator=draw)
            norm.running_var.uniform_(0.5, 2, generator=draw)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=draw)
            nn.init.uniform_(norm.bias, -0.5, 0.5, generator=draw)
    for parameter in net.parameters():
        if parameter.numel() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=draw)
    return net.eval()


def exported(net: nn.Module, x: torch.Tensor, path: Path, exporter: str) -> None:
    """Export a network as it trains."""
    if exporter == "new":
        program: Any = torch.onnx.export(net, (x,), dynamo=True, optimize=False, verbose=False)
        program.save(path)
        return
    torch.onnx.export(
        net, (x,), path, dynamo=False, input_names=["x"],
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "exporter"), some(CASES, keep=[("RMNeXt", "old")]))
@pytest.mark.filterwarnings("ignore")
def test_as_few_nodes_as_the_folded_network(tmp_path: Path, name: str, exporter: str) -> None:
    make, size = NETS[name]
    torch.manual_seed(0)
    net, x = alive(make()), torch.randn(1, 3, size, size)
    wanted = net(x)  # detectors make their grid in the first call
    source, out, own = (tmp_path / f"{part}.onnx" for part in ("net", "folded", "own"))
    exported(net, x, source, exporter)
    fold_onnx(source, out)
    refold.export(refold.reparameterize(net, x), own, x)
    assert len(kinds(source)) > len(kinds(own))
    assert len(kinds(out)) <= len(kinds(own))
    assert "BatchNormalization" not in kinds(out)
    [given] = [value.name for value in read(out).model.graph.input]
    [got] = run(out, **{given: x.numpy()})[:1]
    first = wanted[0] if isinstance(wanted, (tuple, list)) else wanted
    worst = (torch.from_numpy(got) - first).abs().max() / first.abs().max()
    assert worst < 1e-4  # float32 against PyTorch's own answer
