"""Branches computed again in the backward pass: the same numbers, less that is kept for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from refold import blocks
from refold.blocks import BNAndPad, BranchedBlock, recompute_branches
from refold.blocks.layers import WindowMean
from refold.blocks.spec import ConvSpec

KINDS = [blocks.RepVGGBlock, blocks.DiverseBranchBlock, blocks.ACBlock, blocks.MobileOneBlock]


def _net(kind: type[BranchedBlock]) -> nn.Module:
    torch.manual_seed(0)
    layers = [kind(3, 8, 3, padding=1), nn.ReLU(), kind(8, 8, 3, padding=1, stride=2)]
    return nn.Sequential(*layers).double()


def _trained(net: nn.Module, x: Tensor) -> tuple[list[Tensor], int]:
    """Return the output, all gradients and all statistics of two steps, and the bytes kept."""
    kept: dict[int, int] = {}
    results: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    for _ in range(2):
        given = x.clone().requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = net(given)
        bytes_kept = sum(size for key, size in kept.items() if key not in weights)
        y.pow(2).sum().backward()
        results += [y.detach(), given.grad]
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    return [*results, *grads, *net.buffers()], bytes_kept


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_plain_run(kind: type[BranchedBlock]) -> None:
    plain, x = _net(kind), torch.randn(2, 3, 7, 9, dtype=torch.double)
    again = copy.deepcopy(plain)
    assert recompute_branches(again) == 2
    expected, kept = _trained(plain, x)
    found, less = _trained(again, x)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert less < kept / 2


def test_statistics_that_moved_twice_would_be_seen() -> None:
    from torch.utils.checkpoint import checkpoint

    plain, x = _net(blocks.RepVGGBlock), torch.randn(2, 3, 7, 9, dtype=torch.double)
    naive = copy.deepcopy(plain)
    for block in (naive[0], naive[2]):
        branches = block.branches
        block.branches = lambda v, f=branches: checkpoint(f, v, use_reentrant=False)
    expected, found = _trained(plain, x)[0], _trained(naive, x)[0]
    assert not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_it_ends_where_it_is_no_longer_wanted_and_folds_alike() -> None:
    net, x = _net(blocks.DiverseBranchBlock), torch.randn(2, 3, 7, 9, dtype=torch.double)
    recompute_branches(net)
    net(x).sum().backward()
    folded = blocks.DiverseBranchBlock.fuse(copy.deepcopy(net).eval()[0])
    assert torch.allclose(folded(x), net.eval()[0](x), rtol=0, atol=1e-9)
    recompute_branches(net.train(), wanted=False)
    assert not any(m.recompute for m in net.modules() if isinstance(m, BranchedBlock))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_average_is_the_same_in_training(layout: torch.memory_format, stride: int) -> None:
    spec = ConvSpec.of(4, 4, 3, padding=1, stride=stride)
    layer = WindowMean(4, spec, dtype=torch.double)
    x = torch.randn(2, 4, 7, 6, dtype=torch.double).to(memory_format=layout)
    trained, judged = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer.train()(trained), layer.eval()(judged)
    assert torch.allclose(y, expected, rtol=0, atol=1e-14)
    slope = torch.randn_like(y)
    y.backward(slope)
    expected.backward(slope)
    assert torch.allclose(trained.grad, judged.grad, rtol=0, atol=1e-14)
    pooled = nn.functional.avg_pool2d(x, 3, stride, 1)  # the oracle of both
    assert torch.equal(expected.detach(), pooled)


@pytest.mark.parametrize("rings", [(1, 1), (2, 1), (0, 1)])
def test_a_ring_is_what_the_norm_makes_of_zero(rings: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = BNAndPad(nn.BatchNorm2d(3), rings).double().train()
    nn.init.uniform_(layer.bn.weight, -1.5, 1.5)
    nn.init.normal_(layer.bn.bias)
    x = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    y = layer(x)
    norm = copy.deepcopy(layer.bn).eval()
    zero = norm(torch.zeros(1, 3, 1, 1, dtype=torch.double)).detach()
    high, wide = rings
    inside = torch.zeros_like(y, dtype=torch.bool)
    inside[:, :, high : 4 + high, wide : 5 + wide] = True
    assert torch.allclose(torch.where(inside, zero, y), zero.expand_as(y), rtol=0, atol=1e-12)
    plain = nn.functional.batch_norm(x, None, None, layer.bn.weight, layer.bn.bias, True)
    assert torch.allclose(y[inside], plain.flatten()[None].squeeze(0), rtol=0, atol=1e-12)
    slope = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, slope, retain_graph=True)
    (expected,) = torch.autograd.grad(plain, x, slope[inside].reshape(plain.shape))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
