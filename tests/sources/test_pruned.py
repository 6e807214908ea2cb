"""A pruned `.safetensors` is a MODEL: the same network is built again, or the file is refused.

Oracle: the pruned network itself, bit by bit.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.errors import CheckpointError, InputError, RefusedError
from refold.exporting import describe, described, export
from refold.pruning import Pruning, narrow, pruning
from refold.sources.networks import build, build_to_train, note_origin
from refold.sources.pruned import KEY, Narrowing, Origin, is_pruned, next_origin

pytestmark = pytest.mark.slow

NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.act = nn.ReLU6()
        nn.init.zeros_(self.norm2.weight)  # as many networks start: its channels would be dead

    def forward(self, x):
        return x + self.norm2(self.two(self.act(self.norm1(self.one(x)))))

def build(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU6(), Block(6), Block(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))
"""
X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def trained(model: str) -> nn.Module:
    """Return the network with numbers as if it had been trained."""
    net, generator = build(model).model, torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return net


def pruned(folder: Path, *, remove_residuals: bool) -> tuple[Pruning, Path, Origin]:
    """Prune a network of a file, and write it where it is a MODEL."""
    (folder / "net.py").write_text(NET)
    model = f"{folder / 'net.py'}:build"
    done = pruning(
        trained(model), X, ratio=0.4, round_to=1, remove_residuals=remove_residuals
    )  # fmt: skip
    file = folder / "small.safetensors"
    export(done.model, file, X)
    origin = Origin(model, ((3, 10, 10),), (Narrowing(done.gone, remove_residuals),))
    note_origin(done.model, file, origin)
    return done, file, origin


def answers(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("remove_residuals", [False, True])
def test_the_same_network_is_built_again(tmp_path: Path, remove_residuals: bool) -> None:
    done, file, origin = pruned(tmp_path, remove_residuals=remove_residuals)
    again = build(str(file))
    assert torch.equal(answers(again.model), answers(done.model))
    assert again.sizes == ((3, 10, 10),)
    to_train = build_to_train(str(file), num_classes=3, in_chans=3)
    assert torch.equal(answers(to_train), answers(done.model))
    # Without the mask it would be the folded network, which has more channels.
    folded = narrow(build(origin.model).model, X, {}, remove_residuals=remove_residuals)
    counts = [sum(p.numel() for p in net.parameters()) for net in (again.model, folded)]
    assert counts[0] < counts[1]
    with pytest.raises(CheckpointError, match="does not fit"):
        refold.load_checkpoint(folded, file)
    if remove_residuals:  # the ranges of carried channels have no end
        assert any(bool(x.isinf().any()) for x in again.model.buffers())


def test_what_cannot_be_built_again_holds_weights_alone(tmp_path: Path) -> None:
    done, file, origin = pruned(tmp_path, remove_residuals=False)
    export(done.model, file, X)
    assert not is_pruned(str(file))
    with pytest.raises(RefusedError, match="holds weights alone"):
        note_origin(done.model, file, replace(origin, steps=(Narrowing({}),)))
    assert not is_pruned(str(file))
    with pytest.raises(InputError, match="weights with --checkpoint"):
        build(str(file))


def test_another_source_is_refused_and_named(tmp_path: Path) -> None:
    _, file, origin = pruned(tmp_path, remove_residuals=False)
    (tmp_path / "net.py").write_text(NET.replace("(3, 6, 3, 2", "(3, 5, 3, 2").replace("6)", "5)"))
    with pytest.raises(RefusedError, match="has changed since; prune it again"):
        build(str(file))
    (tmp_path / "net.py").unlink()
    with pytest.raises(InputError, match=r"was pruned from .*net\.py:build: there is no file"):
        build(str(file))
    with pytest.raises(InputError, match="leave the option out"):
        build(str(file), 7)
    describe(file, {**described(file), KEY: {**asdict(origin), "sizes": None}})
    with pytest.raises(InputError, match="does not say which network it was pruned from"):
        build(str(file))


def test_what_was_pruned_twice_needs_no_file_between(tmp_path: Path) -> None:
    _, file, _ = pruned(tmp_path, remove_residuals=False)
    first = build(str(file)).model
    done = pruning(first, X, ratio=0.3, round_to=1, importance="l1")
    origin = next_origin(str(file), ((3, 10, 10),), Narrowing(done.gone))
    export(done.model, file, X)  # over the one that it comes from
    note_origin(done.model, file, origin)
    again = build(str(file)).model
    assert torch.equal(answers(again), answers(done.model))
    counts = [sum(p.numel() for p in net.parameters()) for net in (again, first)]
    assert counts[0] < counts[1]
