"""Five networks of known families in every format, with each choice of free axes, at two sizes.

Narrow and shallow, with every kind of block that the family has. `export` itself runs every free
axis at two sizes; here the file is run once more, by its runtime alone, against the unfolded net in
float64.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import refold
from helpers.exported import run_file
from helpers.nightly import some
from helpers.traps import live
from refold.exporting import Options, write
from refold.exporting.formats.aot import open_aot, run_aot

NETS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG": lambda: refold.create_model(
        "repvgg_a0", num_classes=7, depths=(1, 2, 2, 1), width=(0.25, 0.25, 0.125, 0.05)
    ),
    "MobileOne": lambda: refold.create_model(
        "mobileone_s0", num_classes=7, depths=(1, 2, 2, 1), width=(0.5, 0.5, 0.25, 0.1)
    ),
    "FastViT": lambda: timm.create_model(
        "fastvit_sa12", num_classes=7, layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 64)
    ),
    "DBB ResNet-18": lambda: refold.create_model(
        "dbb_resnet18", num_classes=7, depths=(1, 1, 1, 1), width=0.25
    ),
    "RMNeXt": lambda: refold.create_model("rmnext_26x3_32", num_classes=7, depths=(1, 1, 1)),
}
SUFFIXES = (".onnx", ".xml", ".pt2", ".safetensors")
PHONES = {".pte": "executorch", ".tflite": "litert_torch"}
PRIVATE = (b"site-packages", b"/tmp/", str(Path.home()).encode(), str(Path.cwd()).encode())
DYNAMIC = {"none": (1, 64, 64), "batch": (3, 64, 64), "batch,size": (2, 96, 64)}


ALWAYS = [("RepVGG", ".pt2", "batch,size"), ("RMNeXt", ".safetensors", "none")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix", "dynamic"), some(product(NETS, SUFFIXES, DYNAMIC), keep=ALWAYS)
)
def test_every_format_with_every_choice_of_axes(
    name: str, suffix: str, dynamic: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = live(NETS[name]()).float()
    example = torch.randn(1, 3, 64, 64)
    folded = refold.reparameterize(net, example)
    path = tmp_path / f"net{suffix}"
    done = write(folded, path, example, Options(dynamic=dynamic))
    assert done.notes == ()
    free = {axis for shape in done.shapes.values() for axis in shape if isinstance(axis, str)}
    assert free == set(dynamic.replace("size", "height,width").split(",")) - {"none"}
    batch, height, width = DYNAMIC[dynamic]
    with torch.no_grad():
        for x in (example, torch.randn(batch, 3, height, width)):
            got = refold_loaded(net, path, x) if suffix == ".safetensors" else run_file(path, x)
            want = copy.deepcopy(net).double()(x.double())
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    some(product(NETS, PHONES), keep=[("RMNeXt", ".pte"), ("RMNeXt", ".tflite")]),
)
def test_formats_for_phones(name: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip(PHONES[suffix])
    torch.manual_seed(0)
    net = live(NETS[name]()).float()
    x = torch.randn(2, 3, 64, 64)
    path = refold.export(refold.reparameterize(net, x), tmp_path / f"net{suffix}", x)
    with torch.no_grad():
        other = torch.randn(2, 3, 64, 64)
        want = copy.deepcopy(net).double()(other.double())
        assert (run_file(path, other) - want).abs().max() <= 1e-4 * want.abs().max()
    assert not any(place in path.read_bytes() for place in PRIVATE)


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.skipif(not shutil.which("g++"), reason="it needs a C++ compiler")
@pytest.mark.parametrize(("name", "dynamic"), list(product(NETS, DYNAMIC)))
def test_machine_code_with_every_choice_of_axes(name: str, dynamic: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = live(NETS[name]()).float()
    example = torch.randn(1, 3, 64, 64)
    folded = refold.reparameterize(net, example)
    loaded = open_aot(
        write(folded, tmp_path / "net.pt2", example, Options(dynamic=dynamic, aot=True)).path
    )
    batch, height, width = DYNAMIC[dynamic]
    with torch.no_grad():
        for x in (example, torch.randn(batch, 3, height, width)):
            want = copy.deepcopy(net).double()(x.double())
            assert (run_aot(loaded, (x,))[0] - want).abs().max() <= 1e-4 * want.abs().max()


def refold_loaded(net: nn.Module, path: Path, x: Tensor) -> Tensor:
    """Load weights alone into the folded form of the network, and run it."""
    from safetensors.torch import load_file

    plain = refold.reparameterize(net, x)
    for tensor in plain.state_dict().values():
        tensor.zero_()
    plain.load_state_dict(load_file(path))
    return plain(x)
