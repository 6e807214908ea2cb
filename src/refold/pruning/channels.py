"""Prune: choose channels by importance, silence them, and drop what is dead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from refold.account import Account
from refold.errors import RefusedError
from refold.graph import Cropped, Fold, Kept, fold_model, outside_modes, submodule
from refold.inputs import required
from refold.pruning.choice import Amount, Budget, Chosen, Floor, check_step, choose, closest
from refold.pruning.dead_channels import Dropped, dropping
from refold.pruning.layers import Importance, Layer, find_layers, worth
from refold.residuals import removal
from refold.workload import Workload, workload_of


@dataclass(frozen=True)
class Slimmed(Fold):
    """One layer that lost channels.

    Args:
        before: its channels in the plain network.
        after: its channels now.
    """

    before: int = 0
    after: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruning(Account):
    """A pruned network, norms folded, and what that took.

    `steps` are the layers that lost channels (a chosen channel takes with it those that only hand
    it on, and those that nobody reads any more); `kept` are the layers that cannot lose any, and
    the residuals that stay. `cost_before` is that of the folded network as it was given.

    Args:
        masked: the same function with every channel still there: the plain network, weights and
            biases of the chosen channels 0.
        silenced: the channels that were chosen, by layer of the plain network.
        gone: those that went, among them what was dead or unread already.
        chained: whether residuals were removed first.
        cost_plain: before pruning, with residuals removed where that was asked for.
    """

    steps: tuple[Slimmed, ...]
    masked: nn.Module = field(repr=False)
    silenced: dict[str, list[int]]
    gone: dict[str, list[int]]
    chained: bool
    cost_plain: Workload

    @property
    def dropped(self) -> tuple[Slimmed, ...]:
        """The layers that lost channels: the same as `steps`, by the name that scripts know."""
        return self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        return {
            **super().to_dict(), "silenced": self.silenced, "gone": self.gone,
            "cost_plain": asdict(self.cost_plain),
        }  # fmt: skip


@outside_modes()
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    clock: Callable[[nn.Module, nn.Module], float] | None = None,
    importance: Importance = "bn",
    floor: Floor = 1,
    round_to: int = 8,
    remove_residuals: bool = False,
) -> nn.Module:
    """Return the network, norms folded, without its least important channels.

    A channel that goes is silenced before its activation: weights and bias 0, norm scale and shift
    included. The result equals the silenced network. Channels that a sum ties together stay; with
    `remove_residuals` there is no sum left, and every channel goes by itself.

    Args:
        model: any module in eval mode, norms not yet folded; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        ratio: the share of the channels that may go; either this or one of the next four.
        threshold: channels of at most this importance go.
        macs: what may be left of the folded network's multiply-adds: a share such as 0.5, or their
            number.
        params: the same of its parameters.
        latency: what may be left of the folded network's time: a share such as 0.6, as `clock`
            measures it.
        clock: returns the share of the first network's time that the second one takes, such as
            `refold.bench.share_of_time(example_inputs, "onnxruntime")`.
        importance: `"bn"`, the scale of the norm that made a channel (for the sum of a removed
            residual, the root of the summed squares); `"l1"`, the L1 norm of its folded filter
            over the mean of its layer; or a function of a `refold.pruning.Layer` that returns a
            number per channel.
        floor: how many (int) or which share (float) of the channels every layer keeps at least; a
            dict gives it by layer. A layer always keeps one.
        round_to: every layer that loses channels keeps a multiple of so many: runtimes compute
            those faster; 8 means 16 in layers of 64 or more. It then loses fewer than asked for;
            one with fewer channels is not rounded. 1 for no such limit.
        remove_residuals: write residuals as plain chains first; those that cannot be stay.

    Raises:
        RefusedError: when the model is in training mode, or no channel of it can go.
        InputError: when an argument is invalid, or the model cannot run on the example.

    Exact when:
        always: the result is the silenced network, at the borders too. How good that is, is for
        training to say.

    Examples:
        >>> layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)]
        >>> net = nn.Sequential(*layers).eval()
        >>> _ = net[1].weight.data.copy_(torch.tensor([0.1, -2.0, 0.3, -0.2]))
        >>> prune(net, torch.zeros(1, 1, 9, 9), ratio=0.5)[0]
        Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))

    Source: network slimming, arXiv:1708.06519; with residuals removed, arXiv:2111.00687.
    """
    return pruning(
        model,
        example_inputs,
        ratio=ratio,
        threshold=threshold,
        macs=macs,
        params=params,
        latency=latency,
        clock=clock,
        importance=importance,
        floor=floor,
        round_to=round_to,
        remove_residuals=remove_residuals,
    ).model


def pruning(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    clock: Callable[[nn.Module, nn.Module], float] | None = None,
    importance: Importance = "bn",
    floor: Floor = 1,
    round_to: int = 8,
    remove_residuals: bool = False,
) -> Pruning:
    """Return the pruned network with an account of what went; the arguments are those of `prune`.

    Raises:
        RefusedError: when the model is in training mode, or no channel of it can go.
        InputError: when an argument is invalid, or the model cannot run on the example.
    """
    amount = Amount(ratio, threshold, macs, params, latency)
    inputs = required(model, example_inputs)
    plain, stays, before = plain_form(model, inputs, remove_residuals)
    folded = fold_model(model, inputs).model if remove_residuals and latency else plain
    layers, kept = find_layers(plain, inputs)
    if not layers:
        reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept)
        if not reasons:
            raise RefusedError("the network has no layer whose channels can be dropped")
        raise RefusedError(f"no channel of this network can be dropped: {reasons}")
    values = worth(layers, importance, model, plain, inputs)
    case = _Case(plain, inputs, layers, values, floor, check_step(round_to))
    cost_plain = workload_of(plain, inputs)
    budget = amount.budget(before or cost_plain, partial(clock, folded) if clock else None)
    found = case.within(amount, budget)
    return Pruning(
        model=found.done.model,
        steps=tuple(slimmed(found.masked, found.done.model)),
        kept=(*stays, *kept, *found.done.kept),
        cost_before=before or cost_plain,
        cost_after=found.done.cost_after,
        done="narrowed",
        masked=found.masked,
        silenced=found.silenced,
        gone=_gone(found.done.steps),
        chained=remove_residuals,
        cost_plain=cost_plain,
    )


class _Try(NamedTuple):
    """A network with some channels silenced, and what is left without them."""

    silenced: dict[str, list[int]]
    masked: nn.Module
    done: Account


@dataclass(frozen=True, eq=False)
class _Case:
    """A plain network, and what its channels are worth."""

    plain: nn.Module
    inputs: Any
    layers: list[Layer]
    values: list[Tensor]
    floor: Floor
    round_to: int

    def within(self, amount: Amount, budget: Budget | None) -> _Try:
        """Return the network without as much as was asked for.

        Raises:
            RefusedError: when no ratio leads to so little.
        """
        if budget is None:
            return self._without(self._chosen(amount.ratio, amount.threshold))

        def attempt(silenced: Chosen) -> tuple[_Try, float]:
            found = self._without(silenced)
            return found, budget.of(found.done.model, found.done.cost_after)

        return closest(budget, lambda ratio: self._chosen(ratio, None), attempt)

    def _chosen(self, ratio: float | None, threshold: float | None) -> Chosen:
        return choose(
            self.layers, self.values, ratio=ratio, threshold=threshold, floor=self.floor,
            round_to=self.round_to,
        )  # fmt: skip

    def _without(self, silenced: Chosen) -> _Try:
        masked = copy.deepcopy(self.plain)
        silence(masked, silenced)
        return _Try(silenced, masked, dropping(masked, self.inputs, round_to=self.round_to))


def plain_form(
    model: nn.Module, example_inputs: Any, remove_residuals: bool
) -> tuple[nn.Module, tuple[Kept, ...], Workload | None]:
    """Return the folded network, the residuals that stay, and its cost before their removal."""
    if not remove_residuals:
        return fold_model(model, example_inputs).model, (), None
    done = removal(model, example_inputs)
    return done.model, done.kept, done.cost_before


def silence(plain: nn.Module, channels: dict[str, list[int]]) -> None:
    """Set weights and biases of some channels to 0, in place."""
    with torch.no_grad():
        for path, rows in channels.items():
            layer = cast(nn.Conv2d, _bare(submodule(plain, path)))
            layer.weight[rows] = 0
            if layer.bias is not None:
                layer.bias[rows] = 0


def _bare(layer: nn.Module | None) -> nn.Module | None:
    """Return a layer without the padding that its own arguments cannot say."""
    return layer.parts()[1] if isinstance(layer, Cropped) else layer


def slimmed(plain: nn.Module, pruned: nn.Module) -> Iterator[Slimmed]:
    """Yield the layers of a network that have fewer channels in its pruned form."""
    left = dict(pruned.named_modules())
    inside = [f"{path}." for path, layer in plain.named_modules() if isinstance(layer, Cropped)]
    for path, layer in plain.named_modules():
        if path.startswith(tuple(inside)):
            continue
        before, after = _width(layer), _width(left.get(path))
        if before and after and after < before:
            counts = [sum(p.numel() for p in one.parameters()) for one in (layer, left[path])]
            detail = f"{before} -> {after} channels"
            yield Slimmed(path, "prune", detail, counts[0], counts[1], before=before, after=after)


def _gone(steps: Iterable[Fold]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for step in steps:
        if isinstance(step, Dropped):
            found.setdefault(step.where, set()).update(step.channels)
    return {where: sorted(channels) for where, channels in found.items()}


def _width(layer: nn.Module | None) -> int:
    bare = _bare(layer)
    width = getattr(bare, "out_channels", getattr(bare, "out_features", None))
    return width if isinstance(width, int) else 0
