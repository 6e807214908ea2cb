"""Every verb takes a tensor, a tuple, a list or a mapping of arguments, and reads them alike."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.errors import InputError
from refold.inputs import arguments, required
from refold.workload import workload_of


class Net(nn.Module):
    """Takes an optional mask between two images, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.b.running_mean.normal_()
            self.b.running_var.uniform_(0.5, 2)
            self.b.weight.normal_()
            self.b.bias.normal_()

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        y = self.b(self.a(x)).relu()
        y = y if mask is None else y * mask
        y = self.c(y)
        return y if scale is None else y * scale


X, SCALE = torch.randn(2, 3, 8, 8), torch.rand(2, 1, 1, 1)
FORMS = {
    "a tensor": X,
    "a tuple": (X,),
    "a list": [X],
    "a mapping": {"x": X},
    "a user's mapping": UserDict({"x": X}),
    "a mapping with a gap": {"scale": SCALE, "x": X},
}
VERBS: dict[str, Callable[[nn.Module, Any, Path], object]] = {
    "reparameterize": lambda net, given, _: refold.reparameterize(net, given),
    "plan": lambda net, given, _: refold.plan(net, given),
    "verify": lambda net, given, _: refold.verify(net, net, given).check(),
    "remove_residuals": lambda net, given, _: refold.remove_residuals(net, given),
    "prune": lambda net, given, _: refold.prune(net, given, ratio=0.3),
    "benchmark": lambda net, given, _: refold.benchmark({"net": net}, given, ["eager"], rounds=1),
    "export": lambda net, given, folder: refold.export(net, folder / "net.pt2", given),
    "measure": lambda net, given, _: workload_of(net, given),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_every_form(verb: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found = VERBS[verb](net, FORMS[form], tmp_path)
    if isinstance(found, nn.Module) and verb != "prune":
        torch.testing.assert_close(found(X), net(X))
        assert not any(isinstance(part, nn.BatchNorm2d) for part in found.modules())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_files_have_an_input_for_each_tensor(suffix: str, tmp_path: Path) -> None:
    path = refold.export(Net().eval(), tmp_path / f"net{suffix}", {"scale": SCALE, "x": X})
    if suffix == ".onnx":
        from refold.exporting import onnx_session

        assert [port.name for port in onnx_session(path).get_inputs()] == ["x", "scale"]


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_input_is_refused_alike(verb: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"example_inputs must be a tensor, .* by name, got str"):
        VERBS[verb](Net().eval(), "x", tmp_path)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"y": X}, r"Net\.forward\(x, mask, scale\) has no argument 'y'"),
        ({"scale": SCALE}, r"Net\.forward\(x, mask, scale\) needs 'x'"),
    ],
)
def test_names_must_fit_the_signature(given: dict[str, Tensor], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        arguments(Net(), given)


def test_a_gap_takes_its_default() -> None:
    assert arguments(Net(), {"scale": 2, "x": 1}) == (1, None, 2)
    assert arguments(nn.DataParallel(Net()), {"x": 1}) == (1,)
    assert arguments(Net(), None) is None


@pytest.mark.parametrize("nothing", [None, (), {}])
def test_a_verb_that_needs_inputs_says_so(nothing: Any) -> None:
    with pytest.raises(InputError, match="needs example_inputs: give a tensor"):
        required(Net(), nothing)


def test_a_mapping_that_is_one_argument_goes_in_a_tuple() -> None:
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["x"])

    net = Batch().eval()
    folded = refold.reparameterize(net, ({"x": X},))
    assert refold.verify(net, folded, ({"x": X},))
    assert refold.benchmark({"net": net}, ({"x": X},), ["eager"], rounds=1).shapes == (
        (2, 3, 8, 8),
    )
