"""Shapes of values, found without computing them, and errors of the example told at once."""

from __future__ import annotations

import queue

import pytest
import torch
from torch import nn

from helpers.traps import conv, images, live, net
from refold.errors import InputError
from refold.graph.trace.capture import capture_all
from refold.graph.trace.examples import as_arguments


def shapes(model: nn.Module, *inputs) -> list[dict[str, tuple[int, ...]]]:
    found = capture_all(model, inputs or None).captures
    return [{node.name: shape for node, shape in each.shapes.items()} for each in found]


def test_every_tensor_has_its_shape() -> None:
    model = live(nn.Sequential(conv(stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()))
    [known] = shapes(model, images())
    assert known["input_1"] == (2, 3, 11, 9)
    assert known["_0"] == known["_1"] == known["_2"] == (2, 4, 6, 5)
    assert known["_3"] == (2, 120)


def test_without_an_example_nothing_is_known() -> None:
    assert shapes(live(nn.Sequential(conv(), nn.ReLU()))) == [{}]


def test_the_model_is_not_run_on_real_numbers() -> None:
    class Watched(nn.Module):
        def forward(self, x):
            seen.put(x.data_ptr())
            return x + 1

    seen: queue.SimpleQueue[int] = queue.SimpleQueue()  # a recording puts lists back
    shapes(live(nn.Sequential(conv(), Watched(), conv(4, 4))), images())
    assert {seen.get() for _ in range(seen.qsize())} == {0}


class ByData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), nn.ReLU())

    def forward(self, x, *, scale=2):
        return self.body(x * scale) if x.sum() > -1e9 else x


def test_parts_of_an_untraceable_model_get_what_they_were_called_with() -> None:
    [known] = shapes(live(ByData()), images())
    assert known["_0"] == (2, 4, 11, 9)


def test_parts_that_the_example_does_not_reach_stay_unknown() -> None:
    model = live(ByData())
    model.spare = net(lambda self, x: self.c(x), c=conv())
    known = shapes(model, images())
    assert {} in known


@pytest.mark.parametrize("shape", [(2, 4, 11, 9), (2, 3), (3,)])
@pytest.mark.parametrize("make", [lambda: nn.Sequential(conv(), nn.ReLU()), ByData])
def test_an_example_that_does_not_fit(make, shape: tuple) -> None:
    with pytest.raises(InputError, match="the model cannot run on example_inputs of shape"):
        shapes(live(make()), images(*shape))


def test_an_example_of_too_many_inputs_or_none() -> None:
    model = live(net(lambda self, x, y: self.c(x) + y, c=conv()))
    with pytest.raises(InputError):
        shapes(model, images())


def test_arguments() -> None:
    x = torch.zeros(1)
    assert as_arguments(None) is None
    assert as_arguments(x) == (x,)
    assert as_arguments([x, 3]) == (x, 3)
    with pytest.raises(InputError, match="got dict"):
        as_arguments({"x": x})
