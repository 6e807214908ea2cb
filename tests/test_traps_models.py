"""Traps in whole models: what they take and return, how they are wrapped, what cannot be traced."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.naive import naive
from helpers.traps import bits, control, conv, gap, images, live, net, norms, same_bits, sound
from refold import plan, reparameterize
from refold.errors import RefusedError

pytestmark = pytest.mark.slow

Norm = nn.BatchNorm2d
Pair = namedtuple("Pair", "first second")


def pair(inputs: int = 3, outputs: int = 4) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), Norm(outputs))


class Two(nn.Module):
    """Two branches and a method that is no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = pair(), pair()

    def forward(self, x):
        return F.relu(self.a(x) + self.b(x))

    def describe(self) -> str:
        return "two branches"


# -- results


@pytest.mark.parametrize(
    "shaped",
    [
        lambda a, b: {"a": a, "b": [b, a.shape[0]]},
        lambda a, b: (a, b, None),
        lambda a, b: Pair(a, (b,)),
        lambda a, b: [a, {"deep": {"er": b}}],
        lambda a, b: (a + b).sum(),
        lambda a, b: (a, 3, "text", b),
    ],
)
def test_any_structure_of_results(shaped) -> None:
    model = net(lambda self, x: shaped(self.l(x), self.m(x)), l=pair(), m=pair())
    folded = sound(model).apply()
    assert norms(folded) == 0
    one, two = model(images()), folded(images())
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert two["b"][1] == 2


def test_results_keep_the_class_and_its_methods_unlike_a_graph_module() -> None:
    model = live(Two())
    folded = reparameterize(model, images())
    assert isinstance(folded, Two)
    assert folded.describe() == "two branches"
    assert not hasattr(naive(model), "describe")


# -- what cannot be traced


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.m = pair(), pair(4, 4)


class BranchOnData(Parts):
    def forward(self, x):
        y = self.l(x)
        return self.m(y) if y.sum() > 0 else y


class BranchOnSize(Parts):
    def forward(self, x):
        y = self.l(x)
        return self.m(y) if y.shape[-1] > 4 else y


class LoopOverList(Parts):
    def forward(self, xs):
        return [self.m(self.l(x)) for x in xs]


@pytest.mark.parametrize("sign", [1, -1])
def test_control_flow_on_data_folds_below_the_root(sign: int) -> None:
    model = live(BranchOnData())
    assert control(model, images(), folder=naive) == float("inf")
    done = sound(model, sign * images(), reason="asks for numbers")
    assert norms(done.apply()) == 0


def test_list_of_inputs_folds_below_the_root() -> None:
    model = live(LoopOverList())
    given = [images(), images(seed=2)]
    assert control(model, given, folder=naive) == float("inf")
    folded = reparameterize(model)
    assert norms(folded) == 0
    assert gap(model, folded, given) <= 1e-9


def test_size_that_is_asked_for_is_not_baked_in() -> None:
    model = live(BranchOnSize())
    folded = reparameterize(model, images())
    for x in (images(), images(2, 3, 9, 3)):
        try:
            error = gap(model, folded, x)
        except RefusedError:
            continue
        assert error <= 1e-9


# -- arguments


def test_keywords_only() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = pair()

        def forward(self, *, image):
            return self.layers(image) * 2

    model = live(Keywords())
    folded = reparameterize(model)
    assert norms(folded) == 0
    assert (model(image=images()) - folded(image=images())).abs().max() < 1e-12


def test_default_argument_that_was_folded_in_is_not_silently_ignored() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = pair()

        def forward(self, x, scale=2.0):
            return self.layers(x) * scale

    model = live(Scaled())
    folded = sound(model).apply()
    try:
        error = (folded(images(), scale=3.0) - model(images(), scale=3.0)).abs().max()
    except RefusedError as refused:
        assert "scale" in str(refused)  # noqa: PT017
    else:
        assert error < 1e-9


def test_value_that_forward_stores_on_self() -> None:
    class Net(nn.Module):  # with a source: without one, nothing tells how its children are called
        def __init__(self) -> None:
            super().__init__()
            self.l, self.last = pair(), None

        def forward(self, x):
            self.last = self.l(x)
            return self.last.relu()

    model = live(Net())
    folded = sound(model).apply()
    assert norms(folded) == 0
    folded(images())
    assert torch.is_tensor(folded.last)


def test_shape_read_between_convolution_and_norm() -> None:
    class LeViTLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x):
            x = self.linear(x)
            return self.bn(x.flatten(0, 1)).reshape_as(x)

    assert norms(sound(LeViTLinear(), images(2, 5, 4)).apply()) == 0

    def resized(self, x):
        x = self.a(x)
        height, width = x.shape[-2:]
        return F.interpolate(self.b(x), (height, width))

    model = net(resized, a=conv(), b=nn.Sequential(Norm(4), conv(4, 4, padding=0)))
    assert norms(sound(model).apply()) == 0


# -- wrappers


class ModelEma(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args):
        return self.module(*args)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        ModelEma,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_wrappers_are_looked_through(wrap) -> None:
    model = wrap(live(Two())).eval()
    before = bits(model)
    folded = reparameterize(model, images())
    assert type(folded).__name__ == "Two"
    assert norms(folded) == 0
    with torch.no_grad():
        wanted = model.module(images()) if hasattr(model, "module") else model(images())
        assert (folded(images()) - wanted).abs().max() < 1e-12
    assert same_bits(before, bits(model))


def test_distributed_wrapper() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = live(Two())
        folded = reparameterize(nn.parallel.DistributedDataParallel(model).eval(), images())
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(folded, Two)
    assert norms(folded) == 0
    assert gap(model, folded, images()) <= 1e-9


def test_network_that_only_calls_its_module_is_no_wrapper() -> None:
    model = net(lambda self, x: self.module(x) * 2, module=pair())
    assert norms(sound(model).apply()) == 0


# -- graphs


def test_graph_module_of_fx() -> None:
    folded = sound(torch.fx.symbolic_trace(live(Two()))).apply()
    assert norms(folded) == 0


def test_exported_program() -> None:
    model = live(Two())
    exported = torch.export.export(model, (images(),)).module()
    folded = reparameterize(exported, images())
    assert gap(model, folded, images()) <= 1e-9
    names = {str(node.target) for m in folded.modules() if isinstance(m, torch.fx.GraphModule)
             for node in m.graph.nodes}  # fmt: skip
    assert not any("batch_norm" in name for name in names)


def test_script_is_left_alone_with_a_reason() -> None:
    model = torch.jit.trace(live(Two()), images())
    done = plan(model, images())
    assert not done.steps
    assert any("TorchScript" in kept.reason for kept in done.refusals)


def test_lazy_layers_after_their_first_call() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    model(torch.zeros(1, 3, 8, 8))
    assert norms(sound(model).apply()) == 0
