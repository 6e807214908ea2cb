"""Compute the kernels of all blocks of one shape at once, for one forward pass.

A block whose branches are kernels computes many small products before its one convolution; on a GPU
to launch them takes longer than to compute them. Stacked, a network launches them once a shape.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refold.blocks.base import BranchedBlock
from refold.torch_versions import hooks_of_saved_tensors

_PAYS_ON_CPU = 2**16
"""Numbers of a kernel up to which stacking pays on a CPU: larger products outweigh their calls."""

_PLAIN_TENSORS = (nn.Parameter, Tensor)


@dataclass(frozen=True)
class _Ready:
    """A kernel computed with others, of which parameters, and under which conditions."""

    kernel: Tensor
    own: list[Tensor]
    version: int
    when: Hashable

    def holds(self, block: LinearBlock) -> bool:
        """Say whether the block would compute the same kernel here."""
        names = zip(self.own, block._own, strict=True)
        same = all(tensor is block._parameters.get(name) for tensor, name in names)
        return same and self.version == _version(self.own) and self.when == _when(self.kernel)


class LinearBlock(BranchedBlock):
    """A block whose branches add their kernels, before its one convolution runs.

    A subclass writes `kernels` and `convolve`, and ends its constructor with `_finish`.

    Attributes:
        ready: the kernel for the next call, where `stack_kernels` computed it.
    """

    ready: _Ready | None = None

    def kernels(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the kernels of several blocks of this shape.

        Args:
            parts: their own parameters and buffers by name, stacked.

        Shape:
            -> (blocks, *kernel).
        """
        raise NotImplementedError

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Return the affine part with a kernel of `weight_gen`."""
        raise NotImplementedError

    def alike(self) -> Hashable:
        """Return what must be equal, shapes apart, for kernels to be computed together."""
        return type(self), self.spec.groups, self.spec.kernel_size, self.spec.transposed

    def weight_gen(self) -> Tensor:
        """Return the summed kernel, (O, I/groups, *kernel)."""
        names = (*self._own, *self._constants)
        return self.kernels({name: getattr(self, name)[None] for name in names})[0]

    def branches(self, x: Tensor) -> Tensor:
        """Return the sum of the branches: one convolution with the summed kernel."""
        return self.convolve(x, self.weight_gen())

    def computed(self) -> Callable[[Tensor], Tensor]:
        """Return what computes the branches: with the kernel that is ready, once, if it holds."""
        ready = None if torch.compiler.is_compiling() else self.ready
        if ready is None:
            return self.branches
        self.ready = None
        return partial(self.convolve, kernel=ready.kernel) if ready.holds(self) else self.branches

    def own_parts(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return parameters and buffers in order; None where something else stands for one."""
        held = [self._parameters.get(name) for name in self._own]
        constants = [self._buffers.get(name) for name in self._constants]
        if any(type(tensor) not in _PLAIN_TENSORS for tensor in (*held, *constants)):
            return None
        return cast("list[Tensor]", held), cast("list[Tensor]", constants)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and files hold: not the kernel of a call to come."""
        return {name: value for name, value in self.__dict__.items() if name != "ready"}

    def _finish(self, make: Any) -> None:
        self._own, self._constants = tuple(self._parameters), tuple(self._buffers)
        super()._finish(make)


@dataclass
class _Group:
    """Blocks of one shape, with their tensors: a list of each name, in the blocks' order.

    Args:
        blocks: of one shape.
        own: their parameters.
        constants: their buffers.
        used: whose kernels have a gradient in the backward pass that is running.
    """

    blocks: list[LinearBlock] = field(default_factory=list[LinearBlock])
    own: list[list[Tensor]] = field(default_factory=list[list[Tensor]])
    constants: list[list[Tensor]] = field(default_factory=list[list[Tensor]])
    used: list[bool] = field(default_factory=list[bool])


@contextmanager
def stack_kernels(network: nn.Module, wanted: bool | None = None) -> Generator[dict[str, str]]:
    """Have all blocks of a network that add kernels compute them together, for one forward pass.

    Values and gradients are the same, roundings apart; the network is as before afterwards. What
    runs under other conditions than those around the `with` (autocast, gradients off, gradient
    checkpointing), runs twice, or has changed since computes its kernel itself, as outside.

    Args:
        network: any module; also one inside `DistributedDataParallel`, whose own buffers it
            synchronises first: best entered in the forward of the module that it wraps.
        wanted: None stacks where it takes less time: two kernels of a shape or more, of any size
            on a GPU and small ones on a CPU. True stacks all, False none.

    Yields:
        Which blocks compute their own all the same, and why.

    Examples:
        >>> from refold import blocks
        >>> network = nn.Sequential(*(blocks.OREPABlock(4, 4, 3, padding=1) for _ in range(3)))
        >>> x = torch.randn(2, 4, 8, 8)
        >>> with blocks.stack_kernels(network):
        ...     y = network(x)
        >>> torch.allclose(y, network(x), atol=1e-4)
        True
    """
    left: dict[str, str] = {}
    groups = _groups(network, wanted, left) if wanted is not False else []
    for block, kernel in _computed(groups):
        own = [cast(Tensor, block._parameters[name]) for name in block._own]
        block.ready = _Ready(kernel, own, _version(own), _when(kernel))
    try:
        yield left
    finally:
        for group in groups:
            for block in group.blocks:
                block.ready = None


def _groups(network: nn.Module, wanted: bool | None, left: dict[str, str]) -> list[_Group]:
    """Return the blocks to compute together; note in `left` why others do not take part."""
    found: dict[Hashable, _Group] = {}
    paths: dict[int, str] = {}
    elsewhere = _whole_reason(network)
    for path, block in network.named_modules():
        if not isinstance(block, LinearBlock) or block.deploy:
            continue
        parts = block.own_parts()
        if elsewhere or parts is None:
            left[path] = elsewhere or "a tensor of its own is sharded, or computed from others"
            continue
        own, constants = parts
        if wanted is None and not _pays(own[0]):
            left[path] = "on a CPU kernels of its size take no less time together"
            continue
        trains = any(tensor.requires_grad for tensor in own)
        forms = tuple((t.shape, t.is_contiguous(), t.dtype, t.device) for t in (*own, *constants))
        group = found.setdefault((block.alike(), trains, block.recompute, forms), _Group())
        group.blocks.append(block)
        paths[id(block)] = path
        for rows, tensors in ((group.own, own), (group.constants, constants)):
            rows.extend([] for _ in range(len(tensors) - len(rows)))
            for row, tensor in zip(rows, tensors, strict=True):
                row.append(tensor)
    if wanted is None:
        for group in [group for group in found.values() if len(group.blocks) == 1]:
            left[paths[id(group.blocks[0])]] = "no other block has its shape"
    return [group for group in found.values() if wanted or len(group.blocks) > 1]


def _pays(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu" or tensor.numel() <= _PAYS_ON_CPU


def _whole_reason(network: nn.Module) -> str:
    """Return why no block of a network can have its kernel computed ahead; empty if it can."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who has not loaded it shards nothing
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    for module in network.modules():
        if kinds and isinstance(module, kinds):
            return "parameters are gathered only while their part of the network runs (FSDP)"
        if module._compiled_call_impl is not None:
            return "torch.compile computes kernels within the compiled code"
    return ""


def _computed(groups: list[_Group]) -> Iterator[tuple[LinearBlock, Tensor]]:
    """Give every block with its kernel."""
    kinds: dict[Hashable, list[_Group]] = {}
    for group in groups:
        first = group.own[0][0]
        trains = any(tensor.requires_grad for row in group.own for tensor in row)
        kind = (trains, group.blocks[0].recompute, first.dtype, first.device)
        kinds.setdefault(kind, []).append(group)
    for alike in kinds.values():
        tensors = [tensor for group in alike for row in group.own for tensor in row]
        compute: Callable[..., list[Tensor]] = partial(_kernels, alike)
        if alike[0].blocks[0].recompute and torch.is_grad_enabled():
            compute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
        blocks = [block for group in alike for block in group.blocks]
        yield from zip(blocks, compute(*tensors), strict=True)


def _kernels(groups: list[_Group], *tensors: Tensor) -> list[Tensor]:
    """Return the kernels of all groups' blocks from their parameters, each kind stacked."""
    rest = iter(tensors)
    rows = [[[next(rest) for _ in row] for row in group.own] for group in groups]
    own = _stacked(groups, rows)
    constants = _stacked(groups, [group.constants for group in groups])
    kernels: list[Tensor] = []
    for group, mine, fixed in zip(groups, own, constants, strict=True):
        block = group.blocks[0]
        parts = dict(zip((*block._own, *block._constants), (*mine, *fixed), strict=True))
        kernels += cast("tuple[Tensor, ...]", _Apart.apply(group, block.kernels(parts)))
    return kernels


def _stacked(groups: list[_Group], rows: list[list[list[Tensor]]]) -> list[list[Tensor]]:
    """Return each group's rows of tensors stacked, for all groups in one copy of a kind.

    Not in one of all kinds: the backward pass needs some, which would keep the others in memory.
    """
    found: list[list[Tensor]] = [[] for _ in groups]
    for kind in range(max(map(len, rows))):
        places = [at for at, mine in enumerate(rows) if kind < len(mine)]
        tensors = [_in_memory_order(tensor) for at in places for tensor in rows[at][kind]]
        pieces = _Stack.apply([groups[at] for at in places], *tensors)
        for at, piece in zip(places, cast("tuple[Tensor, ...]", pieces), strict=True):
            in_order = rows[at][kind][0].is_contiguous()
            found[at].append(piece if in_order else piece.movedim(-1, 2))
    return found


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return a tensor with its second axis last unless it is contiguous: channels-last in order."""
    return tensor if tensor.is_contiguous() else tensor.movedim(1, -1)


class _Stack(torch.autograd.Function):
    """Tensors stacked row by row, in one copy. What was not used has no gradient, as on its own."""

    @staticmethod
    def forward(groups: list[_Group], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return a stack for each group of the list: the next tensors, one of each block."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        rest = iter(tensors)
        shapes: list[tuple[int, ...]] = []
        for group in groups:
            row = [next(rest) for _ in group.blocks]
            shapes.append((len(row), *row[0].shape))
        pieces = flat.split([prod(shape) for shape in shapes])
        return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep what there is a stack of."""
        ctx.groups = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of each tensor, None where its block was not used."""
        found: list[Tensor | None] = [None]
        for group, grad in zip(ctx.groups, grads, strict=True):
            if grad is None:
                found += [None] * len(group.blocks)
            else:
                rows = grad.contiguous().unbind(0)
                found += [x if used else None for x, used in zip(rows, group.used, strict=True)]
        return tuple(found)


class _Apart(torch.autograd.Function):
    """Kernels taken out of their stack; notes which of them a backward pass comes through."""

    @staticmethod
    def forward(group: _Group, kernels: Tensor) -> tuple[Tensor, ...]:
        """Return the kernel of each block of a group."""
        return kernels.unbind(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the group."""
        ctx.group = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, Tensor | None]:  # type: ignore[override]
        """Return the gradient of the stack."""
        ctx.group.used = [grad is not None for grad in grads]
        like = next((grad for grad in grads if grad is not None), None)
        if like is None:
            return None, None
        zeros = None if all(ctx.group.used) else torch.zeros_like(like)
        return None, torch.stack([zeros if grad is None else grad for grad in grads])  # type: ignore[misc]


def _when(kernel: Tensor) -> Hashable:
    """Return the conditions here that a kernel depends on."""
    kind = kernel.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return autocast, modes, hooks_of_saved_tensors()


def _version(parameters: list[Tensor]) -> int:
    """Return a number that grows whenever one of the tensors is written to."""
    return 0 if torch.is_inference_mode_enabled() else sum(p._version for p in parameters)
