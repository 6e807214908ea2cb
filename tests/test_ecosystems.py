"""A dozen small networks of other packages: folded wholly, equal, with the interface they had.

`benchmarks/ecosystems.py` does the same for many more packages.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from refold.inputs import arguments
from zoo.guests import GUESTS
from zoo.guests.guest import Guest
from zoo.guests.row import measure
from zoo.live import enliven, is_norm
from zoo.peers import relative_error

pytestmark = pytest.mark.slow

WHOLE = (
    "transformers:resnet", "transformers:mobilenet_v1", "transformers:hgnet_v2",
    "transformers:regnet", "transformers:textnet", "transformers:pp_lcnet",
    "transformers:hifi_gan", "torchvision:feature extractor", "torchvision:mc3_18",
    "timm:hgnetv2_b0 features", "ultralytics:yolo11n-cls",
)  # fmt: skip
IN_PARTS = ("transformers:levit",)
OFTEN = (
    "transformers:mobilenet_v1", "transformers:hifi_gan", "torchvision:feature extractor",
    "torchvision:mc3_18", "transformers:levit",
)  # fmt: skip


def guest_of(label: str) -> Guest:
    [guest] = [guest for guest in GUESTS if guest.label == label]
    pytest.importorskip(guest.package)
    return guest


@pytest.mark.parametrize("label", some(WHOLE + IN_PARTS, keep=OFTEN))
def test_no_norm_runs_and_the_answer_is_the_same(label: str) -> None:
    row = measure(guest_of(label))
    assert row.faults == []
    assert (row.norms[1], row.stays) == (0, {})
    assert row.parts == 1 or label in IN_PARTS


def test_the_check_can_fail() -> None:
    guest = guest_of("transformers:mobilenet_v1")
    broken = Guest(guest.package, "broken", lambda: Scaled(guest.build()), guest.example)
    assert [fault[:5] for fault in measure(broken).faults] == ["error"]


class Scaled(nn.Module):
    """Gives another answer at every call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.calls += 1
        return self.net(pixel_values).logits * self.calls


@pytest.mark.parametrize("is_given", [True, False])
def test_an_extractor_that_switches_graphs_keeps_its_mode(is_given: bool) -> None:
    features = pytest.importorskip("torchvision.models.feature_extraction")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Dropout()]
    model: Any = features.create_feature_extractor(nn.Sequential(*layers), ["2", "4"])
    model, x = model.double().eval(), torch.randn(2, 3, 9, 9).double()
    enliven(model, (x,))
    folded = refold.reparameterize(model, x if is_given else None)
    assert (model.training, folded.training) == (False, False)
    assert not any(map(is_norm, folded.modules()))
    assert relative_error(model(x), folded(x)) < 1e-9
    folded.train()(x)
    folded.eval()
    assert relative_error(model(x), folded(x)) < 1e-9


def test_a_hugging_face_result_keeps_its_interface() -> None:
    guest = guest_of("transformers:mobilenet_v1")
    model = guest.model()
    enliven(model, arguments(model, guest.example()) or ())
    folded: Any = refold.reparameterize(model, guest.example())
    asked = {**guest.example(), "output_hidden_states": True}  # type: ignore[dict-item]
    wanted, got = model(**asked), folded(**asked)
    assert type(got) is type(wanted)
    assert list(got) == list(wanted)
    assert relative_error(wanted.to_tuple(), got.to_tuple()) < 1e-9
    assert relative_error(wanted.logits, got.logits) < 1e-9
    assert torch.equal(got[0], got.logits)
    assert isinstance(folded, type(model))
    assert folded.config is not None
