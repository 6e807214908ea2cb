"""The choices that leave a network's function as it is, and the network that they make."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from refold.graph import duplicate, fold_model, unwrap
from refold.inputs import Arguments, required
from refold.planning import Plan, costed
from refold.residuals import removal
from refold.workload import workload_of


@dataclass(frozen=True)
class Choices:
    """Which exact form of a network to make. The first of each pair is what a fold does.

    Args:
        folded: fold at all.
        apart: paths of parts whose parallel branches are not merged; norms fold into each of them.
        grown: paths of parts where merges may need more multiply-adds.
        without_residuals: write residual additions into the convolutions around them.
        channels_last: store the weights of convolutions with a pixel's channels together.
    """

    folded: bool = True
    apart: tuple[str, ...] = ()
    grown: tuple[str, ...] = ()
    without_residuals: bool = False
    channels_last: bool = False

    def __str__(self) -> str:
        """Say them in one line."""
        said = [] if self.folded else ["not folded"]
        said += [f"apart: {', '.join(self.apart)}"] if self.apart else []
        said += [f"grown: {', '.join(path or 'all' for path in self.grown)}"] if self.grown else []
        said += ["without residuals"] if self.without_residuals else []
        said += ["channels last"] if self.channels_last else []
        return "; ".join(said) or "folded"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def tuned(model: nn.Module, example_inputs: Any, choices: Choices) -> Plan:
    """Return a network in the form that these choices name, and the account of its fold.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        choices: as `tune` found them, or others.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it cannot run on the example.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> tuned(net, torch.zeros(1, 3, 8, 8), Choices()).summary()
        '1 folded; parameters 240 -> 224; multiply-adds 7,776 -> 7,776'
    """
    inputs = required(model, example_inputs)
    plain = unwrap(model)
    if not choices.folded:
        cost = workload_of(plain, inputs)
        made = Plan(model=duplicate(plain), steps=(), kept=(), cost_before=cost, cost_after=cost)
    elif choices.without_residuals:
        made = _without_residuals(plain, inputs)
    else:
        made = _folded(plain, inputs, choices)
    if choices.channels_last:
        made.model.to(memory_format=torch.channels_last)  # pyright: ignore
    return made


def _folded(model: nn.Module, inputs: Arguments, choices: Choices) -> Plan:
    done = fold_model(model, inputs, check=True, apart=choices.apart, grown=choices.grown)
    return costed(model, inputs, done)


def _without_residuals(model: nn.Module, inputs: Arguments) -> Plan:
    done = removal(model, inputs)
    return Plan(
        model=done.model,
        steps=done.steps,
        kept=done.kept,
        cost_before=workload_of(model, inputs),
        cost_after=done.cost_after,
        done=done.done,
    )


def digest(model: nn.Module) -> str:
    """Return a digest of a network's structure: the names and shapes of all it stores.

    Examples:
        >>> digest(nn.Linear(2, 3)) == digest(nn.Linear(2, 3)), len(digest(nn.ReLU()))
        (True, 16)
    """
    state = unwrap(model).state_dict().items()
    text = "\n".join(f"{n} {tuple(t.shape)}" for n, t in state if isinstance(t, torch.Tensor))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
