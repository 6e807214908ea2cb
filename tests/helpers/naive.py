"""A deliberately naive folder, the control of the trap tests: it folds pairs and checks nothing.

It does what published conversion scripts do: trace, find neighbours by type, write folded weights
into the modules, add the kernels of parallel branches around their centres, and take every border,
mode and second reader for granted.
"""

from __future__ import annotations

import copy
import operator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SCATTERS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *SCATTERS, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.InstanceNorm2d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d)


class Tracer(fx.Tracer):
    """Takes layers by their base class, whatever their own forward does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def naive(model: nn.Module) -> nn.Module:
    """Return a copy with norms, pointwise convolutions and parallel branches folded carelessly."""
    root = copy.deepcopy(model)
    graph = Tracer().trace(root)
    modules = dict(root.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if node.op == "call_module" and isinstance(before, fx.Node) and before.op == "call_module":
            _fold_pair(node, before, modules)
        elif node.target in (operator.add, operator.iadd, torch.add):
            _fold_sum(node, modules)
    return fx.GraphModule(root, graph)


def _fold_pair(node: fx.Node, before: fx.Node, modules: dict[str, nn.Module]) -> None:
    first, second = modules[before.target], modules[node.target]
    if isinstance(first, LAYERS) and isinstance(second, NORMS):
        _fold_norm(first, *_affine(second))
    elif isinstance(first, NORMS) and isinstance(second, (*CONVS, nn.Linear)):
        scale, shift = _affine(first)
        _fold_ahead(second, scale, shift)
        before.replace_all_uses_with(before.args[0])
        return
    elif isinstance(first, CONVS) and isinstance(second, CONVS):
        _fold_series(first, second)
        before.replace_all_uses_with(before.args[0])
        return
    else:
        return
    node.replace_all_uses_with(before)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)  # everybody's eps
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def _fold_norm(layer: Any, scale: Tensor, shift: Tensor) -> None:
    axis = 1 if isinstance(layer, SCATTERS) else 0
    shape = [1] * layer.weight.ndim
    shape[axis] = -1
    bias = 0.0 if layer.bias is None else layer.bias
    layer.weight.copy_(layer.weight * scale.reshape(shape))
    layer.bias = nn.Parameter(bias * scale + shift)


@torch.no_grad()
def _fold_ahead(layer: Any, scale: Tensor, shift: Tensor) -> None:
    spare = (1,) * (layer.weight.ndim - 2)
    moved = (layer.weight * shift.reshape(-1, *spare)).flatten(1).sum(1)
    layer.bias = nn.Parameter(moved if layer.bias is None else layer.bias + moved)
    layer.weight.copy_(layer.weight * scale.reshape(-1, *spare))


@torch.no_grad()
def _fold_series(first: Any, second: Any) -> None:
    outer, inner = second.weight, first.weight
    rank = outer.ndim - 2
    merged = (
        torch.einsum("om...,mi->oi...", outer, inner.flatten(2).sum(2)) if rank else outer @ inner
    )
    if first.bias is not None:
        moved = outer.flatten(2).sum(2) @ first.bias
        second.bias = nn.Parameter(moved if second.bias is None else second.bias + moved)
    second.weight = nn.Parameter(merged)
    second.in_channels = first.in_channels


def _fold_sum(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    terms = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if len(terms) != 2 or any(term.op != "call_module" for term in terms):
        return
    one, two = (modules[term.target] for term in terms)
    if not isinstance(one, CONVS) or terms[0].args != terms[1].args:
        return
    if isinstance(two, (*CONVS, *POOLS)):
        _add_kernel(one, two)
        node.replace_all_uses_with(terms[0])


@torch.no_grad()
def _add_kernel(conv: Any, other: Any) -> None:
    """Add the other branch around the centre of the kernel."""
    if isinstance(other, CONVS):
        kernel, bias = other.weight, other.bias
    else:
        size = other.kernel_size if isinstance(other.kernel_size, int) else other.kernel_size[0]
        eye = torch.eye(conv.out_channels, dtype=conv.weight.dtype)
        spare = conv.weight.ndim - 2
        kernel, bias = (
            eye.reshape(*eye.shape, *(1,) * spare).expand(-1, -1, *(size,) * spare) / size**spare,
            None,
        )
    flat: list[int] = []
    for big, small in zip(reversed(conv.weight.shape[2:]), reversed(kernel.shape[2:]), strict=True):
        flat += [(big - small) // 2, big - small - (big - small) // 2]
    conv.weight.copy_(conv.weight + F.pad(kernel, flat))
    if bias is not None:
        conv.bias = nn.Parameter(bias if conv.bias is None else conv.bias + bias)


def by_order(model: nn.Module) -> nn.Module:
    """Return a copy with each norm folded into the layer that was registered just before it."""
    root = copy.deepcopy(model)
    leaves = [(name, m) for name, m in root.named_modules() if not any(m.children())]
    for (_, first), (name, second) in pairwise(leaves):
        if isinstance(first, LAYERS) and isinstance(second, NORMS):
            _fold_norm(first, *_affine(second))
            home, _, last = name.rpartition(".")
            setattr(root.get_submodule(home), last, nn.Identity())
    return root
