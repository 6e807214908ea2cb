"""Attributes set after a fold: what the fold takes for granted is refused, all else is free.

The oracle is the model with the same attribute set, in float64; the control is the fold that holds
the old value.
"""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import refold
from helpers.traps import EXACT, WRONG, conv, gap, images, live, norms
from refold.errors import RefusedError
from refold.graph.copies.watching import watched_reads
from refold.graph.trace.overridden import disguise
from refold.graph.trace.recorder.flags import readable_attributes

X = images(2, 4, 6, 5)


class Branches(nn.Module):
    """Its forward is written anew: the branches become one layer."""

    kind = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.norm = conv(4), conv(4, kernel=1), nn.BatchNorm2d(4)
        self.factor, self.steps, self.act, self.down = 0.5, [1, 2], F.relu, None
        self.adds, self.in_training, self.unread, self.recomputes = True, True, 0, False

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.one(x) + self.other(x))
        if self.training and self.in_training:
            y = -y
        if self.adds:
            y = y + self.factor * self.steps[1] * x
        if self.down is not None:
            y = self.down(y)
        if self.recomputes:
            return checkpoint(self.act, y, use_reentrant=False)
        y = self.act(y if self.kind == "plain" else -y)
        return -y if getattr(self, "flips", False) else y


class Skips(nn.Module):
    """Its forward stays, and the norm is an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.uses_norm, self.is_last = conv(4), nn.BatchNorm2d(4), True, True

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.uses_norm:
            y = self.norm(y)
        return y.relu() if self.is_last else y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.flips = Skips(), Branches(), False

    def forward(self, x: Tensor) -> Any:
        y = self.body(self.stem(x))
        return -y if self.flips else y


class Asks(nn.Module):
    """Another part's flag decides."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.one, self.other = Skips(), conv(4), conv(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) + self.other(x)
        return self.part(y) if self.part.is_last else y


def made(model: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    model = live(model or Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    assert gap(model, folded, X) <= EXACT
    return model, folded


def place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


TAKEN: dict[str, Any] = {
    "stem.uses_norm": False,
    "body.adds": False,
    "body.factor": 0.25,
    "body.steps": [1, 3],
    "body.act": F.silu,
    "body.down": nn.Tanh(),
    "body.kind": "other",
    "body.flips": True,
}


@pytest.mark.parametrize("name", TAKEN)
def test_another_value_of_what_the_fold_takes_for_granted_is_refused(name: str) -> None:
    model, folded = made()
    part, last = place(folded, name)
    with pytest.raises(RefusedError, match=f"^{name} was .* when this model was folded.* got "):
        setattr(part, last, TAKEN[name])
    assert gap(model, folded, X) <= EXACT
    setattr(*place(model, name), TAKEN[name])
    again = refold.reparameterize(model, X)
    assert gap(model, again, X) <= EXACT
    assert gap(model, folded, X) > WRONG  # what silence would have been


FREE: dict[str, Any] = {
    "stem.uses_norm": True,
    "body.factor": 0.5,
    "body.steps": [1, 2],
    "body.flips": False,
    "body.unread": 7,
    "body.in_training": False,
    "body.recomputes": True,
    "body.fresh": 1,
    "flips": True,
    "stem.is_last": False,
}


@pytest.mark.parametrize("name", FREE)
def test_all_else_is_set_as_ever(name: str) -> None:
    model, folded = made()
    setattr(*place(folded, name), FREE[name])
    setattr(*place(model, name), FREE[name])
    assert gap(model, folded, X) <= EXACT


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "folded again": lambda model: refold.reparameterize(model, X),
    "moved": lambda model: model.train().eval().requires_grad_(False).to(torch.float64),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_refuse_as_well(way: str) -> None:
    model, folded = made()
    found = COPIES[way](folded)
    assert gap(model, found, X) <= EXACT
    with pytest.raises(RefusedError, match=r"^body\.adds was True"):
        found.body.adds = False
    if way != "pickled":
        with pytest.raises(RefusedError, match=r"^stem\.uses_norm was True"):
            found.stem.uses_norm = False


def test_a_file_holds_what_kept_its_own_code_as_what_it_was() -> None:
    _, folded = made()
    found = pickle.loads(pickle.dumps(folded.stem))
    assert type(found) is Skips
    assert b"refold" not in pickle.dumps(folded.stem)


def test_a_flag_of_another_part_that_the_written_code_has_read() -> None:
    model, folded = made(Asks())
    with pytest.raises(RefusedError, match=r"^part\.is_last was True"):
        folded.part.is_last = False
    assert gap(model, folded, X) <= EXACT


def test_a_scripted_fold_is_the_model() -> None:
    model = live(Skips())
    scripted = torch.jit.script(refold.reparameterize(model, X))
    assert (scripted(X) - model(X)).abs().max() <= EXACT


def test_a_layer_that_is_first_looked_at_while_it_runs_is_what_it_is() -> None:
    """What watches reads in its class is no attribute that the class computes."""

    class Mine(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.by

    layer = Mine(3, 3, 1)
    layer.by = 2.0
    names = readable_attributes([layer])
    assert "by" in names[Mine]
    with watched_reads(names, lambda *args: None):
        told = disguise(layer)
    assert told == "its class Mine replaces the forward of Conv2d"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_layers_that_quantize_their_weights_stay() -> None:
    import torch.ao.quantization as quantization

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    quantization.prepare_qat(model, inplace=True)
    x = torch.randn(2, 3, 8, 8)
    model(x)
    model.eval().apply(quantization.disable_observer)
    assert readable_attributes(model.modules()) == {}  # they are torch's own
    folded = refold.reparameterize(model, x)
    kinds = [isinstance(part, quantization.FakeQuantizeBase) for part in folded.modules()]
    assert sum(kinds) == 4
    assert torch.equal(folded(x), model(x))


class Again(nn.Module):
    """Its forward stays; where a flag says so it uses its norm, or its weight, once more."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.layer, self.norm, self.use = conv(4), nn.BatchNorm2d(4), use
        self.flag, self.table, self.is_last = False, {"again": False}, True

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        if self.use == "norm" and self.flag:
            y = self.norm(y)
        if self.use == "weight" and self.table["again"]:
            y = y * self.layer.weight.sum()
        if getattr(self, "late", None) is not None:
            y = self.norm(y + 1)
        return y.relu() if self.is_last else y


class Within(nn.Module):
    """A child holds the whole fold; where a flag says so its norm is used once more."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(OrderedDict(layer=conv(4), norm=nn.BatchNorm2d(4)))
        self.flag, self.is_last = False, True

    def forward(self, x: Tensor) -> Tensor:
        y = self.used(x)
        return y.relu() if self.is_last else y

    def used(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.block.norm(y) if self.flag else y


class ByAlias(Within):
    def used(self, x: Tensor) -> Tensor:
        block = self.block
        y = block(x)
        if not self.flag:
            return y
        return block.norm(y)


class ByPlace(Within):
    def __init__(self) -> None:
        super().__init__()
        del self.block
        self.pair = nn.ModuleList([nn.Sequential(conv(4), nn.BatchNorm2d(4))])

    def used(self, x: Tensor) -> Tensor:
        y = self.pair[0](x)
        return self.pair[0][1](y) if self.flag else y


def set_and_run(model: nn.Module, name: str, value: Any) -> None:
    setattr(model, name, value)
    model(X)


@pytest.mark.parametrize("name", ["flag", "table", "late"])
def test_a_flag_by_which_code_uses_a_folded_layer_again_is_fixed(name: str) -> None:
    model, folded = made(Again("weight" if name == "table" else "norm"))
    assert type(folded).forward is Again.forward or name == "table"
    changes = {"flag": True, "table": {"again": True}, "late": 1}
    with pytest.raises(RefusedError, match=name):
        set_and_run(folded, name, changes[name])
    model.is_last = folded.is_last = False
    assert gap(model, folded, X) <= EXACT


@pytest.mark.parametrize("kind", [Within, ByAlias, ByPlace])
def test_a_flag_by_which_code_uses_a_part_of_a_child_again_is_fixed(kind: type[Within]) -> None:
    model, folded = made(kind())
    with pytest.raises(RefusedError, match="flag"):
        set_and_run(folded, "flag", True)
    model.is_last = folded.is_last = False  # what else its code asks for is free
    assert gap(model, folded, X) <= EXACT


def test_an_entry_by_which_code_uses_a_folded_layer_again_is_looked_at() -> None:
    _, folded = made(Again("weight"))
    folded.table["again"] = True
    with pytest.raises(RefusedError, match="table"):
        folded(X)
