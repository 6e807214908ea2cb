"""The caller's model stays as it is, and what a forward stores is there at the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.workload import workload_of

SIZES = [(2, 3, 9, 9), (1, 3, 12, 7), (3, 3, 6, 6)]
Forward = Callable[[Any, Tensor], Tensor]


class Inner(nn.Module):
    """A submodule whose buffers its parent may change."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("step", torch.ones(()))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.step * self.scale


class Net(nn.Module):
    """Two parallel branches and a forward that stores something."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.run = forward
        self.a, self.na = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.inner = Inner()
        self.g = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("loose", torch.ones(2, 4, 1, 1), persistent=False)
        self.plain = torch.ones(())
        self.calls, self.cache, self.log = 0, None, list[int]()

    def branches(self, x: Tensor) -> Tensor:
        return self.na(self.a(x)) + self.nb(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def counts_in_place(net: Any, x: Tensor) -> Tensor:
    net.n += 1
    return net.branches(x) * net.n


def counts_by_method(net: Any, x: Tensor) -> Tensor:
    net.n.add_(1)
    return net.branches(x) * net.n


def counts_by_item(net: Any, x: Tensor) -> Tensor:
    net.loose[0] = net.loose[0] + 1
    return net.branches(x) * net.loose[0]


def counts_through_a_view(net: Any, x: Tensor) -> Tensor:
    net.loose[1].view(-1).mul_(1.5)
    return net.branches(x) * net.loose[1]


def counts_through_out(net: Any, x: Tensor) -> Tensor:
    torch.add(net.n, 1, out=net.n)
    return net.branches(x) * net.n


def copies_into_a_buffer(net: Any, x: Tensor) -> Tensor:
    net.n.copy_(net.n * 0.5 + 1)
    return net.branches(x) * net.n


def fills_by_init(net: Any, x: Tensor) -> Tensor:
    y = net.branches(x) * net.n
    nn.init.constant_(net.n, 3.0)
    return y


def replaces_a_buffer(net: Any, x: Tensor) -> Tensor:
    net.n = net.n + 1
    return net.branches(x) * net.n


def counts_in_a_plain_tensor(net: Any, x: Tensor) -> Tensor:
    net.plain += 1
    return net.branches(x) * net.plain


def counts_in_an_attribute(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.branches(x) * net.calls


def counts_in_a_list(net: Any, x: Tensor) -> Tensor:
    net.log.append(1)
    return net.branches(x) * len(net.log)


def keeps_a_cache(net: Any, x: Tensor) -> Tensor:
    if net.cache is None:
        net.cache = torch.full((), 2.0, dtype=x.dtype)
        return net.branches(x)
    return net.branches(x) * net.cache


def changes_a_parameter(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.g += 1
    return net.branches(x) * net.g


def changes_data(net: Any, x: Tensor) -> Tensor:
    net.g.data.mul_(1.5)
    return net.branches(x) * net.g


def assigns_data(net: Any, x: Tensor) -> Tensor:
    net.g.data = net.g.data + 1
    return net.branches(x) * net.g


def changes_every_parameter(net: Any, x: Tensor) -> Tensor:
    for parameter in net.a.parameters():
        parameter.data.mul_(1.5)
    return net.branches(x)


def changes_a_weight(net: Any, x: Tensor) -> Tensor:
    y = net.branches(x)
    net.a.weight.data.mul_(0.5)
    return y


def changes_running_statistics(net: Any, x: Tensor) -> Tensor:
    net.na.running_mean.mul_(0.9).add_(0.1)
    return net.branches(x)


def changes_a_buffer_below(net: Any, x: Tensor) -> Tensor:
    net.inner.step.add_(1)
    return net.inner(net.branches(x))


def changes_statistics_below(net: Any, x: Tensor) -> Tensor:
    net.inner.norm.running_var.mul_(1.5)
    return net.inner(net.branches(x))


def sets_an_attribute_below(net: Any, x: Tensor) -> Tensor:
    net.inner.scale += 1.0
    return net.inner(net.branches(x))


def switches_a_mode_below(net: Any, x: Tensor) -> Tensor:
    net.inner.norm.train(not net.inner.norm.training)
    net.inner.norm.momentum = 0.0
    return net.inner(net.branches(x))


def branches_on_what_it_counts(net: Any, x: Tensor) -> Tensor:
    net.n.add_(1)
    y = net.branches(x)
    return y * 2 if net.n.item() > 1 else y


FORWARDS = [
    counts_in_place,
    counts_by_method,
    counts_by_item,
    counts_through_a_view,
    counts_through_out,
    copies_into_a_buffer,
    fills_by_init,
    replaces_a_buffer,
    counts_in_a_plain_tensor,
    counts_in_an_attribute,
    counts_in_a_list,
    keeps_a_cache,
    changes_a_parameter,
    changes_data,
    assigns_data,
    changes_every_parameter,
    changes_a_weight,
    changes_running_statistics,
    changes_a_buffer_below,
    changes_statistics_below,
    sets_an_attribute_below,
    switches_a_mode_below,
    branches_on_what_it_counts,
]
each_forward = pytest.mark.parametrize("forward", FORWARDS, ids=lambda f: f.__name__)


def made(forward: Forward) -> Net:
    net = Net(forward)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    net = net.double().eval()
    net.plain = net.plain.double()
    return net


def memory(net: Net) -> dict[str, Any]:
    """Return all that a call may change: tensors with their versions, plain attributes."""
    tensors = [*net.named_parameters(), *net.named_buffers(), ("plain", net.plain)]
    found: dict[str, Any] = {k: (id(t), t._version, t.tolist()) for k, t in tensors}
    found |= {"calls": net.calls, "cache": net.cache, "log": list(net.log)}
    return found | {"scale": net.inner.scale, "training": [m.training for m in net.modules()]}


@each_forward
@pytest.mark.parametrize("with_example", [True, False])
def test_the_folded_model_stores_what_the_model_stores(
    forward: Forward, with_example: bool
) -> None:
    net = made(forward)
    reference, before = copy.deepcopy(net), memory(net)
    folded = refold.reparameterize(net, torch.randn(SIZES[0]).double() if with_example else None)
    assert memory(net) == before
    for size in SIZES:
        for _ in range(3):
            x = torch.randn(size, dtype=torch.float64)
            with torch.no_grad():
                wanted, got = reference(x), folded(x.clone())
            assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()
    assert memory(net) == before


@each_forward
def test_no_verb_changes_the_model(forward: Forward) -> None:
    net = made(forward)
    x, before = torch.randn(SIZES[0]).double(), memory(net)
    plan = refold.plan(net, x)
    assert plan.cost_before.macs == workload_of(net, x).macs
    assert refold.verify(net, plan.apply(), x)
    assert memory(net) == before
    refold.remove_residuals(net, x, strict=False)
    refold.benchmark({"net": net}, x, ("eager",), rounds=1)
    assert memory(net) == before


def test_what_is_not_touched_still_folds() -> None:
    steps = refold.plan(made(counts_in_place), torch.randn(SIZES[0]).double()).steps
    assert "reparam_conv" in [step.where for step in steps]


def test_the_reason_names_what_is_stored() -> None:
    reasons = [kept.reason for kept in refold.plan(made(counts_in_an_attribute)).refusals]
    assert "its code sets calls, which stays for the next call" in reasons
