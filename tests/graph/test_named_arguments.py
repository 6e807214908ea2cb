"""Arguments that a forward takes by name alone: every verb takes them from a mapping."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import images, live
from refold import export, plan, reparameterize, verify
from refold.errors import InputError
from refold.workload import workload_of


class OnlyNamed(nn.Module):
    """Arguments behind a star, the last of them without a default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, *, scale: float = 1.0, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + self.conv(x) * scale)


class Inner(nn.Module):
    """A part whose forward is written anew, called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, bias: float = 0.5, *, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x) + self.other(x))) + bias


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor, /, *, mask: Tensor) -> Tensor:
        return self.inner(x=x) * mask


class Open(nn.Module):
    """Hands on whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (Inner, {"x": (2, 3, 5, 6)}),
        (Outer, {"x": (2, 3, 5, 6), "mask": (2, 4, 5, 6)}),
        (Open, {"x": (2, 3, 5, 6)}),
    ],
)
def test_every_verb_takes_arguments_that_only_have_a_name(
    make: type[nn.Module], named: dict[str, tuple[int, ...]]
) -> None:
    model = live(make())
    example = {key: images(*shape) for key, shape in named.items()}
    folded = reparameterize(model, example)
    assert norms(folded) == 0
    assert verify(model, folded, example)
    found = plan(model, example)
    assert len(found.steps) >= 1
    assert workload_of(model, example).macs == found.cost_before.macs
    args = [example.pop("x")] if make is Outer else []
    assert torch.allclose(model(*args, **example), folded(*args, **example), rtol=1e-9)


def test_a_forward_written_anew_takes_its_names_as_before() -> None:
    model = live(Inner())
    folded = reparameterize(model, {"x": images(2, 3, 5, 5)})
    assert type(folded) is not Inner
    x = images(1, 3, 7, 4)
    assert torch.allclose(folded(x=x), model(x=x), rtol=1e-9)
    with pytest.raises(TypeError, match="positional"):
        folded(0.5, x)
    buffer = io.BytesIO()
    torch.save(folded, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    for twin in (again, copy.deepcopy(folded)):
        assert torch.equal(twin(x=x), folded(x=x))


def test_a_shared_layer_behind_names_is_still_compared() -> None:
    model = live(OnlyNamed())
    example = {"x": images(2, 3, 5, 5), "scale": 2.0}
    folded = reparameterize(model, example)
    assert verify(model, folded, example)


def test_a_missing_name_is_said() -> None:
    with pytest.raises(InputError, match="needs 'mask'"):
        reparameterize(live(Outer()), {"x": images(2, 3, 5, 5)})
    with pytest.raises(InputError, match="has no argument 'y'"):
        reparameterize(live(Outer()), {"x": images(2, 3, 5, 5), "y": 1})


@pytest.mark.parametrize("make", [Outer, Open])
def test_a_file_is_written_from_names(make: type[nn.Module], tmp_path: Path) -> None:
    model = live(make()).float()
    example = {"x": images(2, 3, 5, 5).float()}
    if make is Outer:
        example["mask"] = images(2, 4, 5, 5).float()
    path = export(model, tmp_path / "net.pt2", example, dynamic="batch")
    loaded = torch.export.load(path).module()
    args = [example.pop("x")] if make is Outer else []
    assert torch.allclose(loaded(*args, **example), model(*args, **example), atol=1e-5)
