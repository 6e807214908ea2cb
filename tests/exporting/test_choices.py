"""Axes, names, opset and precision of a file are what was asked for; it says where it is from."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nightly import rare, some
from refold.equivalence import tensor_leaves
from refold.errors import ExportError, InputError
from refold.exporting import (
    Options,
    describe,
    described,
    export,
    onnx_session,
    openvino_model,
    read_provenance,
    run_onnx,
    run_openvino,
    write,
)

pytestmark = pytest.mark.slow

SUFFIXES = (".onnx", ".pt2", ".xml")
IMAGE = torch.linspace(-2, 2, 3 * 8 * 12).reshape(1, 3, 8, 12)


def run_file(path: Path, *x: Tensor) -> Any:
    if path.suffix == ".onnx":
        return run_onnx(onnx_session(path), x)[0]
    if path.suffix == ".xml":
        return run_openvino(openvino_model(path), x)[0]
    return torch.export.load(path).module()(*x)


class Segment(nn.Module):
    """Takes any size, and says so by reading it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(self.head(self.down(image)), size=image.shape[2:], mode="bilinear")


class OneOnly(nn.Module):
    """Its head takes a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 4 * 6, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).view(1, -1))


@pytest.mark.parametrize("suffix", some(SUFFIXES, keep=[".onnx"]))
def test_height_and_width_are_free_where_asked(tmp_path: Path, suffix: str) -> None:
    net = Segment().eval()
    path = export(net, tmp_path / f"net{suffix}", IMAGE, dynamic="batch,size")
    for shape in ((1, 3, 8, 12), (2, 3, 20, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(run_file(path, x), net(x), rtol=1e-4, atol=1e-5)
    if suffix == ".onnx":
        session = onnx_session(path)
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        assert session.get_outputs()[0].shape == ["batch", 2, "height", "width"]


@pytest.mark.parametrize("suffix", some(SUFFIXES, keep=[".onnx"]))
def test_nothing_is_free_where_asked(tmp_path: Path, suffix: str) -> None:
    path = export(Segment().eval(), tmp_path / f"net{suffix}", IMAGE, dynamic="none")
    assert run_file(path, IMAGE).shape == (1, 2, 8, 12)
    with pytest.raises(Exception, match=r"(?i)dimension|shape|guard|expected"):
        run_file(path, torch.cat([IMAGE, IMAGE]))


@pytest.mark.parametrize("suffix", some(SUFFIXES, keep=[".onnx"]))
def test_a_batch_that_the_net_fixes_is_fixed_and_said(tmp_path: Path, suffix: str) -> None:
    net = OneOnly().eval()
    with pytest.warns(UserWarning, match="takes only a batch of 1"):
        path = export(net, tmp_path / f"net{suffix}", IMAGE)
    torch.testing.assert_close(run_file(path, IMAGE), net(IMAGE), rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(net, path, IMAGE, dynamic="none")
    with pytest.raises(ExportError, match="batch"):
        export(net, tmp_path / f"other{suffix}", IMAGE, dynamic={"image": {0: "batch"}})
    assert not (tmp_path / f"other{suffix}").exists()


def test_a_size_that_the_net_fixes_is_an_error(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(240, 2)).eval()
    with pytest.raises(ExportError, match=r"height, width free|does not run at"):
        export(net, tmp_path / "net.onnx", IMAGE, dynamic="batch,size")
    assert not list(tmp_path.iterdir())


class Two(nn.Module):
    """An image and a sound, whose length is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.sound = nn.Conv2d(3, 4, 1), nn.Conv1d(2, 4, 3)

    def forward(self, image: Tensor, sound: Tensor) -> Tensor:
        return self.image(image).mean((2, 3)) + self.sound(sound).mean(2)


@pytest.mark.parametrize("suffix", some(SUFFIXES, keep=[".pt2"]))
def test_axes_by_input(tmp_path: Path, suffix: str) -> None:
    net, x = Two().eval(), (IMAGE, torch.randn(1, 2, 9))
    dynamic = {"image": {0: "count"}, "sound": {0: "count", -1: "time"}}
    path = export(net, tmp_path / f"net{suffix}", x, dynamic=dynamic)
    y = (torch.randn(4, 3, 8, 12), torch.randn(4, 2, 31))
    torch.testing.assert_close(run_file(path, *y), net(*y), rtol=1e-4, atol=1e-5)
    if suffix == ".onnx":
        shapes = [node.shape for node in onnx_session(path).get_inputs()]
        assert shapes == [["count", 3, 8, 12], ["count", 2, "time"]]


@pytest.mark.parametrize(
    ("dynamic", "reason"),
    [
        ("height", "is not a choice: use 'none'"),
        ("none,batch", "is not a choice"),
        ({"picture": {0: "batch"}}, "names 'picture', which is no input: the inputs are image"),
        ({"image": {4: "batch"}}, "names axis 4 of image, which has 4"),
        ({"image": {0: "a b"}}, "'a b' is not a name"),
        ({"image": {2: "side", 3: "side"}}, "axes of two sizes one name, 'side': 8 in image, 12"),
    ],
)
def test_choices_that_are_none(tmp_path: Path, dynamic: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        export(Segment().eval(), tmp_path / "net.onnx", IMAGE, dynamic=dynamic)


@dataclasses.dataclass
class Found:
    boxes: Tensor
    scores: Tensor


class Answer(nn.Module):
    """Returns what a test asks for."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.answer = nn.Conv2d(3, 4, 1), answer

    def forward(self, image: Tensor) -> Any:
        return self.answer(self.conv(image))


@pytest.mark.parametrize(
    ("suffix", "answer", "names"),
    [
        (".onnx", lambda y: y, ["output0"]),
        (
            ".onnx",
            lambda y: (Found(y, y + 1), y + 2),
            ["output0_boxes", "output0_scores", "output1"],
        ),
        (".xml", lambda y: Found(y, y + 1), ["boxes", "scores"]),
        (".onnx", lambda y: (y, {"conv2d": y + 1}), ["output0", "output1_conv2d"]),
        (".onnx", lambda y: {"conv2d": y + 1, "add": y + 2}, ["conv2d", "add"]),
        (".onnx", lambda y: {"image": y, "conv.weight": y + 1}, ["image_1", "conv_weight"]),
        (".xml", lambda y: (y, y + 1), ["output0", "output1"]),
        (".xml", lambda y: {"b": y, "a": [y.exp(), y.mean((2, 3))]}, ["b", "a_0", "a_1"]),
    ],
)
def test_names_are_the_models_own(
    tmp_path: Path, suffix: str, answer: Callable[[Tensor], Any], names: list[str]
) -> None:
    net = Answer(answer).eval()
    path = export(net, tmp_path / f"net{suffix}", IMAGE)
    inputs, outputs = named(path)
    assert inputs == ["image"]
    assert outputs == names
    other = torch.randn(2, 3, 8, 12)
    answers = tensor_leaves(net(other))
    for got, wanted in zip(results(path, other), answers, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def named(path: Path) -> tuple[list[str], list[str]]:
    if path.suffix == ".onnx":
        session = onnx_session(path)
        onnx.checker.check_model(str(path), full_check=True)
        return [x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()]
    model = openvino_model(path)
    return (
        [port.get_any_name() for port in model.inputs],
        [port.get_any_name() for port in model.outputs],
    )


def results(path: Path, x: Tensor) -> list[Tensor]:
    if path.suffix == ".onnx":
        return run_onnx(onnx_session(path), (x,))
    return run_openvino(openvino_model(path), (x,))


@pytest.mark.parametrize("suffix", [".xml", *rare(".onnx")])
def test_names_that_are_given(tmp_path: Path, suffix: str) -> None:
    net = Answer(lambda y: (y, y + 1)).eval()
    path = export(
        net, tmp_path / f"net{suffix}", IMAGE, input_names=["data"], output_names=["x", "y"],
        dynamic={"data": {0: "batch"}},
    )  # fmt: skip
    assert named(path) == (["data"], ["x", "y"])
    for names in (["x"], ["x", "x"], ["x", ""]):
        with pytest.raises(InputError, match="output_names must be 2 different names, for output0"):
            export(net, path, IMAGE, output_names=names)
    with pytest.raises(InputError, match="keeps those of the model itself"):
        export(net, tmp_path / "net.pt2", IMAGE, input_names=["data"])


def test_an_added_layer_does_not_change_names(tmp_path: Path) -> None:
    short = Answer(lambda y: {"mask": y}).eval()
    longer = Answer(lambda y: {"mask": torch.relu(y + 1)}).eval()
    found = [named(export(net, tmp_path / "net.onnx", IMAGE)) for net in (short, longer)]
    assert found[0] == found[1] == (["image"], ["mask"])


@pytest.mark.parametrize("opset", [17, *rare(21)])
def test_the_opset_is_chosen(tmp_path: Path, opset: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    path = export(net, tmp_path / "net.onnx", IMAGE, opset=opset)
    assert {item.domain: item.version for item in onnx.load(path).opset_import}[""] == opset
    torch.testing.assert_close(run_file(path, IMAGE), net(IMAGE), rtol=1e-4, atol=1e-5)


def test_an_opset_that_cannot_be(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 4, 3).eval()
    with pytest.raises(InputError, match=r"opset 999 is not one that onnx writes: use 7 to \d+"):
        export(net, tmp_path / "net.onnx", IMAGE, opset=999)
    with pytest.raises(InputError, match=r"opset is ONNX's: \.pt2 has none"):
        export(net, tmp_path / "net.pt2", IMAGE, opset=17)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", *rare(".pt2", ".xml")])
def test_half_keeps_the_types_outside(tmp_path: Path, suffix: str) -> None:
    net = Segment().eval()
    whole = export(net, tmp_path / f"whole{suffix}", IMAGE)
    path = export(net, tmp_path / f"half{suffix}", IMAGE, half=True)
    assert next(net.parameters()).dtype == torch.float32
    if suffix == ".safetensors":
        assert path.stat().st_size < whole.stat().st_size
        return
    x = torch.randn(2, 3, 8, 12)
    got = run_file(path, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, net(x), rtol=1e-2, atol=1e-2)
    assert not torch.equal(got, run_file(whole, x))


def test_a_weight_beyond_half_is_refused(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 4, 3).eval()
    nn.init.constant_(net.weight, 1e5)
    with pytest.raises(
        ExportError, match=r"weight reaches 1e\+05, beyond the largest float16, 65504"
    ):
        export(net, tmp_path / "net.onnx", IMAGE, half=True)


@pytest.mark.parametrize("suffix", [".onnx", *rare(".xml")])
def test_bfloat16_is_one_sentence_and_half_a_way_out(tmp_path: Path, suffix: str) -> None:
    net = nn.Conv2d(3, 4, 3).eval().bfloat16()
    with pytest.raises(InputError, match=r"bfloat16 cannot .*float32.*half=True") as caught:
        export(net, tmp_path / f"net{suffix}", IMAGE.bfloat16())
    assert str(tmp_path) not in str(caught.value)


class SecretHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.conv(image)).mean((2, 3))  # a-trade-secret


def content(folder: Path) -> bytes:
    data = b""
    for file in folder.iterdir():
        data += file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                data += b"".join(archive.read(name) for name in archive.namelist())
    return data


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
def test_nothing_of_this_machine_is_in_a_file(tmp_path: Path, suffix: str) -> None:
    export(SecretHead().eval(), tmp_path / f"net{suffix}", IMAGE)
    data = content(tmp_path)
    for private in (__file__, "a-trade-secret", str(tmp_path), str(Path(torch.__file__).parent)):
        assert private.encode() not in data, private


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
def test_a_file_says_where_it_is_from(tmp_path: Path, suffix: str) -> None:
    told = {"source": 'timm:net <b> & "c"', "folds": "21", "error": "1.2e-15"}
    done = write(SecretHead().eval(), tmp_path / f"net{suffix}", IMAGE, Options(), told)
    found = read_provenance(done.path)
    assert found.items() >= told.items()
    assert found["version"]
    assert found["torch"] == torch.__version__
    assert done.shapes == {"image": ("batch", 3, 8, 12)}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors", ".png"])
def test_provenance_of_what_has_none(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"junk")
    with pytest.raises(InputError, match=f"cannot be read as {suffix}|says nothing of its origin"):
        read_provenance(tmp_path / f"a{suffix}")


def test_provenance_of_strangers_is_empty(tmp_path: Path) -> None:
    torch.onnx.export(nn.ReLU().eval(), (IMAGE,), tmp_path / "a.onnx", dynamo=True, verbose=False)
    assert read_provenance(tmp_path / "a.onnx") == {}
    (tmp_path / "a.xml").write_text("<net><rt_info/></net>")
    assert read_provenance(tmp_path / "a.xml") == {}
    assert ElementTree.parse(tmp_path / "a.xml").getroot().tag == "net"


class Amplifying(nn.Module):
    """Loses more in float32 than its layers explain: a difference of nearly equal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        y = self.conv(image)
        return ((y + 3000.0).sqrt() - 3000.0**0.5) * 50


@pytest.mark.parametrize("suffix", [".onnx", *rare(".xml")])
def test_the_bound_follows_the_models_own_rounding(tmp_path: Path, suffix: str) -> None:
    net = Amplifying().eval()
    path = export(net, tmp_path / f"net{suffix}", IMAGE)
    assert run_file(path, IMAGE).shape == (1, 4, 6, 10)


def test_inputs_in_containers_have_names(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def forward(self, pair: Any, table: Mapping[str, Tensor], *rest: Tensor) -> Tensor:
            return pair[0] + pair[1] + table["x"] + rest[0] + rest[1]

    one = torch.ones(2, 3)
    path = export(Nested().eval(), tmp_path / "n.onnx", ((one, one), {"x": one}, one, one))
    assert named(path)[0] == ["pair_0", "pair_1", "table_x", "rest0", "rest1"]


@pytest.mark.parametrize("suffix", [".onnx"])
def test_by_default_maps_of_the_inputs_size_take_any_size(tmp_path: Path, suffix: str) -> None:
    net, x = Segment().eval(), torch.randn(2, 3, 20, 16)
    torch.testing.assert_close(
        run_file(export(net, tmp_path / f"a{suffix}", IMAGE), x), net(x), rtol=1e-4, atol=1e-5
    )
    fixed = nn.Sequential(nn.LayerNorm((3, 8, 12))).eval()  # such a map, of one size only
    done = write(fixed, tmp_path / f"b{suffix}", IMAGE, Options())
    assert done.shapes == {"input": ("batch", 3, 8, 12)}
    assert not done.notes
    chosen = write(net, tmp_path / f"c{suffix}", IMAGE, Options(dynamic="batch"))
    assert chosen.shapes == {"image": ("batch", 3, 8, 12)}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
def test_what_is_added_later_leaves_the_origin(tmp_path: Path, suffix: str) -> None:
    told = {"source": "net.py:build"}
    done = write(nn.Conv2d(3, 4, 3).eval(), tmp_path / f"net{suffix}", IMAGE, Options(), told)
    describe(done.path, {"classes": ["ant", "bee"]})
    assert read_provenance(done.path).items() >= told.items()
    assert described(done.path) == {"classes": ["ant", "bee"]}
