"""Kernels of many blocks computed at once: the numbers are those of every block on its own."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import refold
from refold import blocks
from refold.blocks import OREPABlock, recompute_branches, stack_kernels

_NO_LAUNCH = {"aten._unsafe_view.default", "aten.detach.default"}


class Launches(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and str(func) not in _NO_LAUNCH
        return func(*args, **(kwargs or {}))


def _net(*, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Return a network of blocks of three shapes, in float64."""
    torch.manual_seed(0)
    layers = [
        OREPABlock(3, 4, 3, padding=1),
        OREPABlock(4, 4, 3, padding=1),
        OREPABlock(4, 4, 3, padding=1, stride=2, groups=2),
        OREPABlock(4, 4, 3, padding=2, dilation=2),
        OREPABlock(4, 4, 3, padding=1, groups=2),
    ]
    net = nn.Sequential(*layers).double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.to(memory_format=layout)


def _x() -> Tensor:
    return torch.randn(2, 3, 7, 6, dtype=torch.double, generator=torch.manual_seed(1))


def _steps(net: nn.Module, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return outputs, gradients, parameters and buffers of two steps."""
    found: list[Tensor] = []
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, 0.9)
    for _ in range(2):
        y = forward(_x())
        y.square().mean().backward()
        found += [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
        optimizer.step()
        optimizer.zero_grad()
    return [*found, *(value.detach().clone() for value in net.state_dict().values())]


def _agree(expected: list[Tensor], found: list[Tensor], bound: float = 1e-11) -> bool:
    pairs = zip(expected, found, strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=0, atol=bound) for a, b in pairs)


def _together(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward in which every kernel must come from the stack."""

    def forward(x: Tensor) -> Tensor:
        with stack_kernels(net, True) as left:
            assert not left
            own = [block for block in net if block.ready is not None]
            assert len(own) == len(net)
            return net(x)

    return forward


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["plain", "frozen", "recompute"])
def test_steps_are_those_of_single_blocks(layout: torch.memory_format, mode: str) -> None:
    plain = _net(layout=layout)
    if mode == "frozen":
        plain[1].requires_grad_(False)
        plain[3].weight_orepa_origin.requires_grad_(False)
    stacked = copy.deepcopy(plain)
    if mode == "recompute":
        recompute_branches(stacked)
    assert _agree(_steps(plain, plain), _steps(stacked, _together(stacked)))
    assert plain.state_dict().keys() == stacked.state_dict().keys()
    weights = stacked[1].weight_orepa_origin
    assert weights.is_contiguous(memory_format=layout)


def test_evaluation_and_the_fold_are_as_before() -> None:
    net = _net().eval()
    with torch.no_grad():
        expected = net(_x())
        assert _agree([expected], [_together(net)(_x())])
    folded = refold.reparameterize(net, _x())
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 5
    assert _agree([expected], [folded(_x()).detach()], 1e-9)
    with stack_kernels(folded, True) as left:
        assert not left
        assert _agree([expected], [folded(_x()).detach()], 1e-9)


def _apart(net: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Check a forward in which blocks may have to compute their own kernels."""

    def forward(x: Tensor) -> Tensor:
        with stack_kernels(stacked, True):
            return run(stacked, x)

    stacked = copy.deepcopy(net)
    assert _agree(_steps(net, lambda x: run(net, x)), _steps(stacked, forward))
    assert all(block.ready is None for block in stacked)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_inside(reentrant: bool) -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        x = net[0](x)
        return checkpoint(net[1:], x, use_reentrant=reentrant)

    _apart(_net(), run)


def test_called_twice_or_alone() -> None:
    _apart(_net(), lambda net, x: net[1](net[1](net[0](x))))
    _apart(_net()[2:3], lambda net, x: net[0](x.repeat(1, 2, 1, 1)[:, :4]))


def test_without_gradients_inside() -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = net[0](x)
        return net[1:](x)

    _apart(_net(), run)


def test_a_kernel_holds_for_one_call_and_for_the_weights_it_was_made_of() -> None:
    net = _net().eval()
    with torch.no_grad(), stack_kernels(net, True):
        net(_x())
        for change in (lambda p: p.mul_(2), lambda p: p.zero_()):
            change(net[1].weight_orepa_origin)
            found = net(_x())
    assert _agree([net(_x())], [found])
    with torch.no_grad(), stack_kernels(net, True):
        naive = net[1].ready.kernel
        net[1].weight_orepa_origin.add_(1.0)
        found = net(_x())
    assert _agree([net(_x())], [found])
    assert not torch.allclose(net[1].weight_gen(), naive)  # what a stale one would have been


def test_steps_inside_one_with() -> None:
    plain = _net()
    stacked = copy.deepcopy(plain)
    with stack_kernels(stacked, True):
        found = _steps(stacked, stacked)
    assert _agree(_steps(plain, plain), found)


def test_lower_precision() -> None:
    net = _net().float()
    x = _x().float()

    def run(x: Tensor) -> list[Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = net[:2](x)
            with torch.autocast("cpu", enabled=False):
                y = net[2:](y.float())
        y.square().mean().backward()
        return [y.detach(), *(p.grad for p in net.parameters())]

    expected = run(x)
    with torch.autocast("cpu", torch.bfloat16), stack_kernels(net, True):
        assert net[0].ready.kernel.dtype == torch.bfloat16
        found = run(x)
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == a.dtype
        assert (a - b).abs().max() <= 0.05 * a.abs().max()


def test_copies_and_files_know_nothing_of_it() -> None:
    net, file = _net(), io.BytesIO()
    with stack_kernels(net, True):
        copied = copy.deepcopy(net)
        torch.save(net, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    for other in (copied, read):
        assert not any("ready" in vars(block) for block in other)
        assert _agree([net(_x())], [other(_x())])


def test_it_ends_with_an_error() -> None:
    net = _net()
    with pytest.raises(RuntimeError), stack_kernels(net, True):
        net(torch.zeros(1, 2, 5, 5, dtype=torch.double))
    assert all(block.ready is None for block in net)


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_what_computes_its_own_is_named() -> None:
    plain = _net()
    parametrize.register_parametrization(plain[1], "weight_orepa_origin", _Doubled())
    stacked = copy.deepcopy(plain)
    with stack_kernels(stacked, True) as left:
        assert left == {"1": "a tensor of its own is sharded, or computed from others"}
        found = stacked(_x())
    assert _agree([plain(_x())], [found])
    small = [OREPABlock(4, 4, 3, padding=1) for _ in range(2)]
    wide = nn.Sequential(*small, OREPABlock(128, 128, 3, padding=1), OREPABlock(4, 5, 1))
    with stack_kernels(wide) as left:
        assert left == {
            "2": "on a CPU kernels of its size take no less time together",
            "3": "no other block has its shape",
        }
    with stack_kernels(wide, False) as left:
        assert wide[0].ready is None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_launches_are_those_of_a_shape(layout: torch.memory_format) -> None:
    net = nn.Sequential(*(OREPABlock(4, 4, 3, padding=1) for _ in range(12)))
    net.to(memory_format=layout)
    x = torch.randn(2, 4, 5, 5).to(memory_format=layout)
    counts: dict[bool, int] = {}
    plain = nn.Sequential(*(nn.Conv2d(4, 4, 3, 1, 1, bias=False) for _ in range(12)))
    layers = [layer for conv in plain for layer in (conv, nn.BatchNorm2d(4), nn.ReLU())]
    tail = nn.Sequential(*layers)
    tail.to(memory_format=layout)
    with Launches() as base:
        tail(x).sum().backward()
    for wanted in (False, True):
        net.zero_grad()
        with Launches() as launches:
            with stack_kernels(net, wanted):
                y = net(x)
            y.sum().backward()
        counts[wanted] = launches.count - base.count
    assert counts[True] <= 50
    assert counts[False] / counts[True] > 5


@pytest.mark.slow
def test_compiled_code_computes_its_own() -> None:
    plain = _net()[:1]
    stacked = copy.deepcopy(plain)
    compiled = torch.compile(stacked, backend="eager", fullgraph=True)
    with stack_kernels(stacked, True):
        assert _agree([plain(_x())], [compiled(_x())])
        assert stacked[0].ready is not None


def test_a_network_that_compiles_its_call_is_left_alone() -> None:
    net = _net()
    net._compiled_call_impl = net._call_impl
    with stack_kernels(net, True) as left:
        assert set(left.values()) == {"torch.compile computes kernels within the compiled code"}
        assert all(block.ready is None for block in net)


def test_parameters_that_are_lent() -> None:
    net = _net()
    lent = {name: 2 * p.detach() for name, p in net.named_parameters()}
    expected = torch.func.functional_call(net, lent, (_x(),))
    with stack_kernels(net, True):
        found = torch.func.functional_call(net, lent, (_x(),))
    assert _agree([expected.detach()], [found.detach()])


def test_blocks_that_add_kernels_share_one_base() -> None:
    found = [kind for kind in vars(blocks).values() if isinstance(kind, type)]
    linear = {kind for kind in found if issubclass(kind, blocks.LinearBlock)}
    assert linear == {blocks.LinearBlock, OREPABlock}
