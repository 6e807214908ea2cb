"""Skeletons share tensors and nothing else; owning copies exactly what is still shared."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from refold.errors import InputError
from refold.graph.copies.held import storage_key
from refold.graph.copies.owned import own_tensors
from refold.graph.copies.skeleton import skeleton
from refold.graph.copies.wrappers import unwrap


class Holder(nn.Module):
    """Tensors in every place where a model keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.tied = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.tied.weight
        self.norm = nn.BatchNorm2d(4)
        self.table = torch.arange(6.0)
        self.views = [self.table[:4], {"tail": self.table[2:]}]
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float16), requires_grad=False)
        self.frozen.note = "kept"
        self.generator = torch.Generator()


def storages(module: nn.Module) -> set[int]:
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [v for m in module.modules() for v in vars(m).values() if torch.is_tensor(v)]
    return {storage_key(tensor) for tensor in tensors}


def test_a_skeleton_shares_every_tensor_and_no_module() -> None:
    net = Holder()
    net.conv.register_forward_hook(lambda *_: None)
    copied = skeleton(net)
    assert all(copied.get_parameter(name) is p for name, p in net.named_parameters())
    assert copied.table is net.table
    assert copied.views[1]["tail"] is net.views[1]["tail"]
    assert copied.views is not net.views
    assert len(copied.conv._forward_hooks) == 1
    assert not {id(m) for m in net.modules()} & {id(m) for m in copied.modules()}


class Stateful(nn.Module):
    """Leaves its cache behind when copied, and counts its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {"big": object()}
        self.copies = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.copies += 1


def test_a_module_is_copied_in_its_own_way() -> None:
    class Own(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = Own()
            made.by_hand = True
            return made

    net = nn.Sequential(Stateful(), Own())
    copied = skeleton(net)
    assert (copied[0].cache, copied[0].copies) == ({}, 1)
    assert copied[1].by_hand


def test_modules_and_containers_met_twice_are_copied_once() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    net.again, net.table = net[1], {"layers": [net[0]], 3: "three"}
    net[0].table = net.table
    copied = skeleton(net)
    assert copied.again is copied[1]
    assert copied[0].table is copied.table
    assert copied.table["layers"][0] is copied[0]
    assert copied.table is not net.table


def test_a_non_leaf_tensor_does_not_stop_the_copy() -> None:
    net = nn.Module()
    net.computed = nn.Linear(2, 2).weight * 2
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly"):
        copy.deepcopy(net)
    assert skeleton(net).computed is net.computed


def test_an_attribute_that_cannot_be_copied_is_shared() -> None:
    net = Holder()
    net.lock = threading.Lock()
    assert skeleton(net).lock is net.lock


def test_a_model_that_cannot_be_copied_is_named() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
            raise ValueError("never")

    with pytest.raises(InputError, match=r"Stubborn cannot be copied \(never\); .* inplace=True"):
        skeleton(Stubborn())


def test_owning_leaves_no_storage_shared_and_keeps_everything_else() -> None:
    net = Holder()
    copied = skeleton(net)
    assert storages(copied) == storages(net)  # the control: without owning, all is shared
    own_tensors(copied, net)
    assert not storages(copied) & storages(net)
    for name, parameter in net.named_parameters():
        mine = copied.get_parameter(name)
        assert torch.equal(mine, parameter)
        assert (mine.dtype, mine.requires_grad) == (parameter.dtype, parameter.requires_grad)
        assert mine.stride() == parameter.stride()
        assert type(mine) is nn.Parameter
    assert copied.frozen.note == "kept"
    assert copied.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_ties_stay_ties() -> None:
    net = Holder()
    copied = skeleton(net)
    own_tensors(copied, net)
    assert copied.tied.weight is copied.again.weight
    copied.table[3] = -1  # seen by both overlapping views, not by the original
    assert copied.views[0][3] == copied.views[1]["tail"][1] == -1
    assert net.table[3] == 3


def test_replaced_tensors_are_not_copied_again() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(4, 4, bias=False))
    copied = skeleton(net)
    fresh = nn.Linear(8, 8, bias=False)
    copied[0] = fresh
    weight = fresh.weight
    assert own_tensors(copied, net) == 4 * 4 * 4
    assert copied[0].weight is weight


def test_disjoint_views_of_one_storage_cost_their_own_size() -> None:
    flat = torch.zeros(1000)
    net = nn.Module()
    net.a, net.b = nn.Parameter(flat[:10]), nn.Parameter(flat[10:20])
    copied = skeleton(net)
    assert own_tensors(copied, net) == 80
    assert copied.a.untyped_storage().nbytes() == 40


def test_recurrent_layers_still_run_after_owning() -> None:
    net = nn.Sequential(nn.LSTM(3, 4))
    copied = skeleton(net)
    own_tensors(copied, net)
    x = torch.randn(2, 1, 3)
    before = net(x)[0].clone()
    with torch.no_grad():
        copied[0].weight_ih_l0.zero_()
    assert torch.equal(net(x)[0], before)
    assert not torch.equal(copied(x)[0], before)


def test_meta_tensors_are_owned_too() -> None:
    net = nn.Linear(2, 2, device="meta")
    copied = skeleton(net)
    own_tensors(copied, net)
    assert copied.weight is not net.weight
    assert copied.weight.device.type == "meta"


class Averaged(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Doubler(Averaged):
    """One child called `module`, but a forward that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.module(x)


def test_wrappers_are_looked_through() -> None:
    inner = nn.Sequential(nn.ReLU())
    assert unwrap(inner) is inner
    assert unwrap(nn.DataParallel(torch.compile(inner))) is inner
    assert unwrap(Averaged(inner)) is inner
    assert type(unwrap(AveragedModel(inner))) is nn.Sequential
    doubler = Doubler(inner)
    assert unwrap(doubler) is doubler
