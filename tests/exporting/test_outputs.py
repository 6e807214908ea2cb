"""Whatever a forward returns is exported: records, constants, one tensor twice; else it is said."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.errors import ExportError, InputError
from refold.exporting import export, onnx_session, openvino_model, run_onnx, run_openvino
from refold.exporting.table import FORMATS, Format

Pair = namedtuple("Pair", ["left", "right"])
IMAGE = torch.linspace(-2, 2, 3 * 6 * 8).reshape(1, 3, 6, 8)


class Net(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 4, 1), form

    def forward(self, image: Tensor) -> Any:
        return self.form(image, self.conv(image))


def nested(image: Tensor, y: Tensor) -> Any:
    return {"pair": Pair(y, None), "scale": 3, "list": (y + 1, {"most": y.amax((1, 2, 3))})}


def repeated(image: Tensor, y: Tensor) -> Any:
    return {"a": y, "b": y}


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_graph_returns_the_tensors_alone(tmp_path: Path, suffix: str) -> None:
    net = Net(nested).eval()
    with pytest.warns(UserWarning, match="returns tensors alone: int that Net returns is left out"):
        path = export(net, tmp_path / f"net{suffix}", IMAGE, dynamic="none")
    if suffix == ".onnx":
        session = onnx_session(path)
        assert [o.name for o in session.get_outputs()] == ["pair_left", "list_0", "list_1_most"]
        got = run_onnx(session, (IMAGE,))
    else:
        got = run_openvino(openvino_model(path), (IMAGE,))
    y = net.conv(IMAGE)
    for one, other in zip(got, (y, y + 1, y.amax((1, 2, 3))), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_tensor_may_be_returned_twice(tmp_path: Path, suffix: str) -> None:
    net = Net(repeated).eval()
    path = export(net, tmp_path / f"net{suffix}", IMAGE, dynamic="none")
    if suffix == ".onnx":
        got = run_onnx(onnx_session(path), (IMAGE,))
    else:
        got = run_openvino(openvino_model(path), (IMAGE,))
    assert len(got) == 2
    torch.testing.assert_close(got[0], net.conv(IMAGE))
    torch.testing.assert_close(got[1], got[0])


def test_a_program_returns_named_tuples_as_dicts(tmp_path: Path) -> None:
    net = Net(nested).eval()
    path = export(net, tmp_path / "net.pt2", IMAGE, dynamic="none")
    answer = torch.export.load(path).module()(IMAGE)
    torch.testing.assert_close(answer["pair"]["left"], net.conv(IMAGE))
    assert answer["scale"] == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_names": ["x"], "output_names": ["x"]}, "both called 'x'"),
        ({"input_names": "x"}, "input_names must be a list of names, got 'x'"),
        ({"output_names": [1]}, r"output_names must be a list of names, got \[1\]"),
        ({"opset": "17"}, "opset must be a number"),
        ({"half": "yes"}, "half must be True or False"),
        ({"dynamic": True}, "dynamic is a word"),
    ],
)
def test_a_wrong_option_is_said(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        export(nn.Conv2d(3, 4, 1).eval(), tmp_path / "net.onnx", IMAGE, **options)
    assert not list(tmp_path.iterdir())


def test_what_no_file_can_return_is_said(tmp_path: Path) -> None:
    numbers = Net(lambda image, y: y.mean().tolist()).eval()
    with pytest.raises(InputError, match="Net returns no tensor, but float"):
        export(numbers, tmp_path / "net.onnx", IMAGE)
    text = Net(lambda image, y: {"y": y, "kind": "map"}).eval()
    with pytest.raises(
        InputError, match=r"Net returns str beside tensors: a \.pt2 returns numbers"
    ):
        export(text, tmp_path / "net.pt2", IMAGE)
    double = nn.Conv2d(3, 4, 1).eval().double()
    with pytest.raises(ExportError, match=r"few layers in float64: export model\.float\(\)"):
        export(double, tmp_path / "net.onnx", IMAGE.double())
    with pytest.raises(InputError, match=r"weight is on the meta device, where it has no values"):
        export(nn.Conv2d(3, 4, 1, device="meta").eval(), tmp_path / "net.pt2", IMAGE)
    net = nn.Conv2d(3, 4, 1).eval()
    with pytest.raises(InputError, match=r"holds weights alone, which have no axes"):
        export(net, tmp_path / "net.safetensors", IMAGE, dynamic={"input": {0: "n"}})
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantized_layer_is_none_of_a_file_s(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), torch.ao.nn.quantized.Linear(3 * 6 * 8, 2)).eval()
    with pytest.raises(InputError, match=r"1 is quantized \(Linear\), which \.onnx cannot hold"):
        export(net, tmp_path / "net.onnx", IMAGE)


@pytest.mark.parametrize(("suffix", "way"), [(".engine", "TensorRT"), (".mlpackage", "Core ML")])
def test_a_format_of_other_tools_is_named(tmp_path: Path, suffix: str, way: str) -> None:
    with pytest.raises(InputError, match=way):
        export(nn.Conv2d(3, 4, 1).eval(), tmp_path / f"net{suffix}", IMAGE)


def test_float64_is_none_of_openvinos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.float\(\)"):
        export(nn.Conv2d(3, 4, 1).double().eval(), tmp_path / "net.xml", IMAGE.double())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_module_is_refused(tmp_path: Path) -> None:
    traced = torch.jit.trace(nn.Conv2d(3, 4, 1).eval(), IMAGE)
    with pytest.raises(InputError, match="TorchScript"):
        export(traced, tmp_path / "net.safetensors", IMAGE)


def test_a_wrapper_has_no_mode_of_its_own(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(nn.Conv2d(3, 4, 1).eval())
    assert wrapped.training
    assert export(wrapped, tmp_path / "net.safetensors", IMAGE).exists()
    refold.verify(wrapped, wrapped.module, IMAGE).check()


def test_colours_of_a_terminal_are_no_part_of_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("\x1b[96mstep 3/3\x1b[0m failed")

    monkeypatch.setitem(FORMATS, ".pt2", Format(fails))
    with pytest.raises(ExportError, match=r"net\.pt2: step 3/3 failed$"):
        export(nn.Conv2d(3, 4, 1).eval(), tmp_path / "net.pt2", IMAGE)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_complex_numbers_are_one_sentence(tmp_path: Path, suffix: str) -> None:
    net = Net(lambda image, y: torch.complex(y, y)).eval()
    with pytest.raises(InputError, match=r"complex numbers.*view_as_real.*\.pt2"):
        export(net, tmp_path / f"net{suffix}", IMAGE)
    assert list(tmp_path.iterdir()) == []
    inside = Net(lambda image, y: torch.complex(y, y).abs()).eval()
    if suffix == ".onnx":
        assert export(inside, tmp_path / "net.onnx", IMAGE, dynamic="none").exists()
