"""The caller's default device: what refold makes for itself is made on the CPU all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import gap, images, live, net, norms
from refold.graph.trace.recorder.recorder import Recorder

X = images(2, 3, 12, 12)


def ranged(self: Any, x: Tensor) -> Tensor:
    """A gate, whose range a fold looks up, between convolutions and norms."""
    y = self.norm(self.conv(x)).clamp(0, 1)
    return self.last(self.far(self.pool(y)))


def model() -> nn.Module:
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "pool": nn.MaxPool2d(3, 1, 1),
        "far": nn.Conv2d(4, 5, 1), "last": nn.BatchNorm2d(5),
    }  # fmt: skip
    return live(net(ranged, **parts))


@pytest.mark.parametrize("check", [True, False])
def test_a_fold_is_the_same(check: bool) -> None:
    plain = model()
    with torch.device("meta"):
        folded = refold.reparameterize(plain, X, check=check)
    assert norms(folded) == 0
    assert gap(plain, folded, X) <= 1e-9


def test_a_network_without_storage_folds_as_one_with_it() -> None:
    with torch.device("meta"):
        blank = net(ranged, **dict(model().to("meta").named_children())).eval()
        folded = refold.reparameterize(blank, torch.empty(2, 3, 12, 12, dtype=torch.float64))
    assert norms(folded) == 0
    assert {p.device.type for p in folded.parameters()} == {"meta"}


def test_other_verbs_are_the_same() -> None:
    torch.manual_seed(0)
    plain = live(refold.create_model("rmnext_26x3_32", num_classes=3, depths=(1, 1, 1)))
    x = images(1, 3, 32, 32)
    with torch.device("meta"):
        removed = refold.remove_residuals(plain, x)
        pruned = refold.prune(plain, x, ratio=0.3)
    small = pruned.model if hasattr(pruned, "model") else pruned
    assert gap(plain, removed, x) <= 1e-9
    assert {p.device.type for m in (removed, small) for p in m.parameters()} == {"cpu"}


def test_code_of_the_model_still_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward makes without a device is made where the caller says."""
    seen: list[str] = []
    run = Recorder.run

    def spy(self: Recorder, *args: Any) -> Any:
        seen.append(torch.get_default_device().type)
        return run(self, *args)

    monkeypatch.setattr(Recorder, "run", spy)
    with torch.device("meta"):
        refold.reparameterize(model(), X)
    assert set(seen) == {"meta"}
