"""All that a run carries from step to step, and how it becomes a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.errors import CheckpointError
from refold.training.loop.captured import HOW
from refold.training.loop.learner import Learner
from refold.training.loop.penalties import Penalty
from refold.training.loop.snapshot import Snapshot


@dataclass
class Position:
    """How far a run has come, and what it has seen on the way.

    Args:
        epoch: whole epochs that are done.
        step: steps of the next one that are done.
        done: steps that are done in all.
        loss: sum over the images of these steps.
        images: of these steps.
        right: answers of these steps that were right.
        answers: of these steps.
        best: the best judgement so far.
        best_loss: the loss there, which decides between equal judgements.
        best_epoch: where it was.
        unreadable: numbers of the images of train that could not be read so far.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    loss: float = 0.0
    images: int = 0
    right: int = 0
    answers: int = 0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    unreadable: list[int] = field(default_factory=list[int])

    def begin_epoch(self) -> None:
        """Reset the sums for the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss, self.images, self.right, self.answers = 0.0, 0, 0, 0


@dataclass
class Parts:
    """What has a state.

    Args:
        learner: the network with its loss.
        optimizer: what changes it.
        average: the moving average of the network, if there is one.
        scaler: of gradients in half precision, if there is one.
        position: how far the run has come.
    """

    learner: Learner
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    scaler: Any
    position: Position

    def network(self) -> nn.Module:
        """Return the network that is judged and deployed: the average where there is one."""
        return self.average or self.learner.network

    def penalised(self, penalty: Penalty) -> Tensor:
        """Return what a penalty says of the network."""
        return penalty(self.learner.network)

    def snapshot(self) -> Snapshot:
        """Return all state as it is now, without copying memory."""
        tensors = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{name}": v for name, v in self.average.state_dict().items()}
        content = self.optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for index, entries in content["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
        groups: list[dict[str, Any]] = [{} for _ in content["param_groups"]]
        for index, entries in enumerate(content["param_groups"]):
            for name, value in entries.items():
                if name == "lr":
                    groups[index][name] = float(value)
                elif isinstance(value, Tensor):  # such as the steps that LAMB counts
                    tensors[f"group.{index}.{name}"] = value
                else:
                    groups[index][name] = value
        plain = {
            "position": asdict(self.position),
            "groups": groups,
            "numbers": numbers,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        return Snapshot(tensors, plain)

    def restore(self, snapshot: Snapshot) -> None:
        """Load a checkpoint.

        Raises:
            CheckpointError: when it belongs to another network.
        """
        try:
            self.learner.load_state_dict(snapshot.part("learner"))
            if self.average is not None:
                self.average.load_state_dict(snapshot.part("ema"))
            groups = self.optimizer.param_groups
            how = [{name: group[name] for name in HOW if name in group} for group in groups]
            self.optimizer.load_state_dict(_optimizer_state(snapshot, how))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint belongs to another network: {error}") from error
        if self.scaler is not None and snapshot.plain["scaler"] is not None:
            self.scaler.load_state_dict(snapshot.plain["scaler"])
        for name, value in snapshot.plain["position"].items():
            setattr(self.position, name, value)


def _optimizer_state(snapshot: Snapshot, how: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of the optimizer, whose groups compute as this run has it."""
    state: dict[int, dict[str, Any]] = _numbered(snapshot.part("optimizer"))
    numbers = cast("dict[str, dict[str, Any]]", snapshot.plain["numbers"])
    for index, entries in numbers.items():
        state.setdefault(int(index), {}).update(entries)
    groups = cast("list[dict[str, Any]]", snapshot.plain["groups"])
    counted = _numbered(snapshot.part("group"))
    rows = enumerate(zip(groups, how, strict=True))
    groups = [{**group, **counted.get(index, {}), **own} for index, (group, own) in rows]
    return {"state": state, "param_groups": groups}


def _numbered(tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
    """Return tensors by the number and the name that theirs are made of."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        found.setdefault(int(index), {})[name] = value
    return found
