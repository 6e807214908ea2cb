"""Shard the weights across processes: torch's fully sharded data parallelism (FSDP2).

Each process keeps its part of every parameter, and with it of the gradient, the optimizer's state
and the moving average; the parameters of a block are gathered while it computes. Between the steps
all is as with one process: the whole network is judged, proved and written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from refold.errors import RefusedError
from refold.training.loop.learner import Learner
from refold.training.loop.optim import make_optimizer
from refold.training.loop.penalties import Penalty
from refold.training.loop.snapshot import Snapshot
from refold.training.loop.state import Parts, Position
from refold.training.recipes.recipe import Recipe

_BLOCK = 2**20  # parameters that are worth a gathering of their own


@dataclass
class ShardedParts(Parts):
    """What has a state, each process with its part of it; every method needs all processes.

    Args:
        plain: a copy of the network as it was, in the memory of the host.
    """

    plain: nn.Module

    def network(self) -> nn.Module:
        """Return a copy of the network that is judged and deployed, whole in each process."""
        source = super().network()
        for buffer in source.buffers():  # those of the checkpoints, should the processes differ
            dist.broadcast(buffer, 0)
        network = copy.deepcopy(self.plain).to(next(source.parameters()).device)
        values = source.state_dict()
        for name, value in network.state_dict().items():
            value.copy_(_whole(values[name]))
        return network

    def penalised(self, penalty: Penalty) -> Tensor:
        """Return what a penalty says of the network, which it sees whole."""
        network = self.learner.network
        whole = {f"network.{name}": _whole(p) for name, p in network.named_parameters()}
        return cast(Tensor, functional_call(_Seen(network, penalty), whole, ()))

    def snapshot(self) -> Snapshot:
        """Return all of it, whole; empty but for the process that writes."""
        found, writes = super().snapshot(), dist.get_rank() == 0
        tensors: dict[str, Tensor] = {}
        for name, value in found.tensors.items():
            whole = _whole(value)  # one after another, so that a device need not hold them all
            if writes:
                tensors[name] = whole.cpu()
        return Snapshot(tensors, found.plain)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what a checkpoint holds, of any number of processes.

        Raises:
            CheckpointError: when it belongs to another network.
        """
        likes = super().snapshot().tensors
        groups = self.optimizer.param_groups
        numbered = dict(enumerate(p for group in groups for p in group["params"]))
        tensors: dict[str, Tensor] = {}
        for name, value in snapshot.tensors.items():
            part, number, *_ = name.split(".")
            like = numbered.get(int(number)) if part == "optimizer" else likes.get(name)
            tensors[name] = _share(value, like)
        super().restore(Snapshot(tensors, snapshot.plain))


class _Seen(nn.Module):
    """A penalty of a network, as a module that `functional_call` can lend parameters."""

    def __init__(self, network: nn.Module, penalty: Penalty) -> None:
        super().__init__()
        self.network, self.penalty = network, penalty

    def forward(self) -> Tensor:
        return self.penalty(self.network)


def prepare_sharded(
    learner: Learner, average: Any, recipe: Recipe, accelerator: Any
) -> tuple[Parts, nn.Module, Any]:
    """Shard a learner across the processes; return parts, prepared learner and optimizer.

    Args:
        learner: the same in each process, its numbers included.
        average: timm's moving average of its network; None for none.
        recipe: how to train.
        accelerator: of several processes.

    Raises:
        RefusedError: when the network has parameters that cannot be sharded.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    plain = copy.deepcopy(learner.network).cpu()
    for module in [learner] if average is None else [learner, average.module]:
        _shard(module, mesh, recipe.model)
    if average is not None:
        average.foreach = False  # parameters are spread and buffers are not: no list holds both
    optimizer = make_optimizer(learner, recipe.optimizer, recipe.decay)
    parts = ShardedParts(
        learner, optimizer, average.module if average else None, accelerator.scaler, Position(),
        plain,
    )  # fmt: skip
    # Accelerate shards on no CPU; what it is left to do is the precision.
    wrapped = accelerator.prepare_model(learner, device_placement=False, evaluation_mode=True)
    return parts, wrapped, accelerator.prepare_optimizer(optimizer)


def _shard(module: nn.Module, mesh: DeviceMesh, name: str) -> None:
    """Leave each process its part of a module's parameters, in place."""
    module.to(memory_format=torch.contiguous_format)  # which FSDP asks for
    try:
        for part in reversed(list(module.modules())):  # what is inside another one comes first
            if part is module or _is_block(part):
                cast(Any, fully_shard)(part, mesh=mesh, reshard_after_forward=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise RefusedError(
            f"{name} cannot be sharded: {error}; train it without --fsdp (Habits(fsdp=False))"
        ) from error


def _is_block(module: nn.Module) -> bool:
    """Say whether a module is called as a whole and has enough parameters that are not spread yet.

    A bare layer is none: networks are known to read the weight of a layer that they never call.
    """
    called = type(module).forward is not nn.Module.forward
    loose = (p.numel() for p in module.parameters() if not isinstance(p, DTensor))
    return called and any(True for _ in module.children()) and sum(loose) >= _BLOCK


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share(value: Tensor, like: Tensor | None) -> Tensor:
    """Return this process's part of a tensor where that which it is for is spread."""
    if not isinstance(like, DTensor) or like.shape != value.shape:
        return value
    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
