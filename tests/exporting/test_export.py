"""Every format computes what torch computes at any batch size, in one file, in silence."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from helpers.exported import run_file
from refold.checkpoint import load_checkpoint
from refold.cli import options
from refold.errors import ExportError, InputError, MissingDependencyError, RefusedError
from refold.exporting import (
    SUFFIXES,
    export,
    onnx_session,
    run_onnx,
    write_unfused,
)

pytestmark = pytest.mark.slow

EXAMPLE = torch.linspace(-2, 2, 3 * 6 * 6).reshape(1, 3, 6, 6)


@pytest.fixture
def model(generator: torch.Generator) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_(generator=generator)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)
    ).eval()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_a_batch_of_one_becomes_any_batch(
    tmp_path: Path, model: nn.Module, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / f"net{suffix}"
    assert export(model, path, EXAMPLE) == path
    expected_files = {path.name, "net.bin"} if suffix == ".xml" else {path.name}
    assert {file.name for file in tmp_path.iterdir()} == expected_files
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 6, 6)
        torch.testing.assert_close(run_file(path, x), model(x), rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert next(model.parameters()).requires_grad


def test_safetensors_hold_every_key_and_load_again(tmp_path: Path, model: nn.Sequential) -> None:
    tied = nn.ModuleDict({"a": model, "b": nn.Linear(64, 5), "c": nn.Conv2d(3, 4, 3)})
    tied["b"].weight = model[4].weight
    tied["c"].to(memory_format=torch.channels_last)
    network = _First(tied).eval()
    path = export(network, tmp_path / "net.safetensors", EXAMPLE)
    with safetensors.safe_open(path, "pt") as file:
        assert {*file.keys()} == {*network.state_dict()}
        assert {"format", "refold", "refold.source", "refold.torch"} == {*file.metadata()}
    other = _First(copy.deepcopy(tied)).eval()
    nn.init.zeros_(other.parts["a"][0].weight)
    load_checkpoint(other, path)
    assert torch.equal(other(EXAMPLE), network(EXAMPLE))


class _First(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["a"](x)


class _Nested(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, table: Tensor) -> dict[str, Any]:
        return {"sum": x * scale, "pair": (x - scale, x @ table)}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_nested_outputs_and_inputs_without_a_batch(tmp_path: Path, suffix: str) -> None:
    inputs = (torch.randn(2, 4), torch.randn(2, 1), torch.randn(4, 3))
    path = export(_Nested().eval(), tmp_path / f"net{suffix}", inputs)
    if suffix == ".onnx":
        batches = [node.shape[0] for node in onnx_session(path).get_inputs()]
        assert batches == ["batch", "batch", 4]


def test_half_precision_and_existing_files(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("old")
    export(copy.deepcopy(model).bfloat16(), path, EXAMPLE.bfloat16())
    assert run_file(path, EXAMPLE.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["net.h5", "net", "net.onnx.gz"])
def test_an_unknown_suffix_lists_the_known(tmp_path: Path, model: nn.Module, name: str) -> None:
    with pytest.raises(
        InputError, match=r"use one of \.onnx, \.pt2, \.pte, \.safetensors, \.tflite, \.xml"
    ):
        export(model, tmp_path / name, EXAMPLE)


def test_the_command_line_names_every_format() -> None:
    assert options.FORMATS == SUFFIXES


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bad_calls_leave_nothing(tmp_path: Path, model: nn.Module, suffix: str) -> None:
    pytest.importorskip({".pte": "executorch", ".tflite": "litert_torch"}.get(suffix, "torch"))
    path = tmp_path / f"net{suffix}"
    with pytest.raises(InputError, match=r"Sequential cannot run .*\(1, 4, 6, 6\)"):
        export(model, path, torch.zeros(1, 4, 6, 6))
    with pytest.raises(RefusedError, match=r"call model\.eval\(\)"):
        export(copy.deepcopy(model).train(), path, EXAMPLE)
    with pytest.raises(InputError, match="cannot write"):
        export(model, tmp_path / "no" / "such" / path.name, EXAMPLE)
    assert not list(tmp_path.iterdir())


class _NotTraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_what_a_format_cannot_express_is_one_sentence(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError) as caught:
        export(_NotTraceable().eval(), tmp_path / f"net{suffix}", torch.ones(2, 4))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_file_that_computes_something_else_is_not_left(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_spoiled(program: Any, path: Path, **_: object) -> None:
        proto = program.model_proto
        weight = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.raw_data = weight.raw_data[4:] + weight.raw_data[:4]
        onnx.save(proto, path)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save_spoiled)
    with pytest.raises(ExportError, match=r"ONNX Runtime: output\[0\] is off by [\d.]+"):
        export(model, tmp_path / "net.onnx", EXAMPLE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "library", "extra"),
    [
        (".onnx", "onnxscript", "onnx"),
        (".onnx", "onnxruntime", "onnx"),
        (".xml", "openvino", "openvino"),
    ],
)
def test_a_missing_library_names_its_extra(
    tmp_path: Path,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    library: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'refold\[{extra}\]'"):
        export(model, tmp_path / f"net{suffix}", EXAMPLE)
    assert not list(tmp_path.iterdir())


def test_more_than_one_file_can_hold_goes_beside_it(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by its dotted name: refold.export is also the verb.
    monkeypatch.setattr(
        importlib.import_module("refold.exporting.formats.onnx"), "_PROTOBUF_LIMIT", 100
    )
    path = export(model, tmp_path / "net.onnx", EXAMPLE)
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "net.onnx.data"}
    torch.testing.assert_close(run_file(path, EXAMPLE), model(EXAMPLE), rtol=1e-4, atol=1e-5)


def test_an_unfused_file_keeps_every_norm(tmp_path: Path) -> None:
    """Both the exporter and ONNX Runtime fold norms, which `before` in a benchmark must not."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    path = write_unfused(net, (x,), tmp_path / "net.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("BatchNormalization") == 1
    fused = [node.op_type for node in onnx.load(export(net, tmp_path / "f.onnx", x)).graph.node]
    assert "BatchNormalization" not in fused
    (got,) = run_onnx(onnx_session(path, fuse=False), (x,))
    torch.testing.assert_close(got, net(x), rtol=1e-4, atol=1e-5)


def test_nobody_is_told_of_a_conversion(tmp_path: Path, model: nn.Module) -> None:
    """OpenVINO's converter would start a process that connects to an analytics service."""
    export(model, tmp_path / "net.xml", EXAMPLE)
    converter = sys.modules["openvino.tools.ovc.convert_impl"]
    assert vars(converter)["tm"].__name__ == "openvino.tools.ovc.telemetry_stub"
