"""A file of an older opset: nodes in the form that they had then; what had none is named."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from refold import export
from refold.errors import ExportError
from refold.exporting import onnx_session, run_onnx

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Mean(nn.Module):
    """What ends nearly every classifier, and what a decoder has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = self.conv(image).chunk(2, 1)
        wide = F.interpolate(torch.cat([right, left], 1), scale_factor=2, mode="bilinear")
        return self.head(wide.mean((2, 3))), wide.amax((2, 3))


def test_means_and_splits_have_older_forms(tmp_path: Path) -> None:
    net = Mean().eval()
    path = export(net, tmp_path / "net.onnx", IMAGE, opset=17)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {item.domain: item.version for item in file.opset_import} == {"": 17}
    assert file.ir_version == 8  # what a runtime of that time reads
    means = [node for node in file.graph.node if node.op_type in ("ReduceMean", "ReduceMax")]
    assert len(means) == 2
    for node in means:
        assert len(node.input) == 1
        assert {item.name: list(item.ints) for item in node.attribute}["axes"] == [2, 3]
    read = {name for node in file.graph.node for name in node.input}
    assert {item.name for item in file.graph.initializer} <= read  # the axes left no orphan
    batch = torch.cat([IMAGE, IMAGE.flip(3)])
    for made, wanted in zip(run_onnx(onnx_session(path), (batch,)), net(batch), strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_a_layer_without_an_older_form_is_named(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(3 * 8 * 8)).eval()
    with pytest.raises(ExportError, match="LayerNormalization came with opset 17; leave opset out"):
        export(net, tmp_path / "net.onnx", IMAGE, opset=16)
    assert not any(tmp_path.iterdir())
