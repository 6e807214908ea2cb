"""What the main verb refuses: modes, values and examples that cannot be used."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from helpers.traps import conv, images, live, net, norms
from refold import plan, reparameterize
from refold.errors import InputError, RefusedError


def pair() -> nn.Module:
    return live(nn.Sequential(conv(), nn.BatchNorm2d(4)))


def test_training_mode_says_what_to_do() -> None:
    with pytest.raises(RefusedError, match=r"call model\.eval\(\)"):
        reparameterize(pair().train(), images())


@pytest.mark.parametrize(
    ("dtype", "factor", "value"),
    [(torch.float16, 4e4, "3.6e+05"), (torch.bfloat16, 1e38, "8.972e+38")],
)
def test_overflow_is_refused_with_the_value(dtype, factor: float, value: str) -> None:
    model = pair()
    with torch.no_grad():
        model[0].weight.fill_(9.0)
        model[1].running_var.fill_(1.0)
        model[1].weight.fill_(factor)
    done = plan(model.to(dtype), images().to(dtype))
    wanted = f"reaches {value}, beyond the largest {dtype}"
    assert any(wanted in kept.reason for kept in done.refusals)
    assert norms(done.apply()) == 1
    assert norms(reparameterize(model.double(), images())) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    model = pair()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = bad
    done = plan(model, images())
    assert any("not finite" in kept.reason for kept in done.refusals)
    assert norms(done.apply()) == 1


def test_negative_variance_is_refused() -> None:
    model = pair()
    model[1].running_var[0] = -1
    assert any("not finite" in kept.reason for kept in plan(model, images()).refusals)


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (images(2, 5, 8, 8), "cannot run on example_inputs"),
        ("image", "example_inputs is a str; give a tensor"),
        (3, "example_inputs is a int; give a tensor"),
    ],
)
def test_wrong_example(example, text: str) -> None:
    with pytest.raises(InputError, match=text):
        reparameterize(pair(), example)


def test_wrong_example_is_told_in_one_line_without_a_log(caplog, capfd) -> None:
    def forward(self, x):
        return self.a(x) + self.b(x)

    model = live(net(forward, a=conv(3, 3, stride=2, padding=0), b=conv(3, 3, 1, stride=2)))
    with pytest.raises(InputError) as caught:
        reparameterize(model, images(2, 3, 10, 10))
    assert "\n" not in str(caught.value)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert capfd.readouterr() == ("", "")


def test_what_is_no_module() -> None:
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, got dict"):
        reparameterize({}, images())


def test_lazy_layers_are_refused_before_anything_makes_them_real() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()).eval()
    for example in (None, torch.zeros(1, 3, 8, 8)):
        with pytest.raises(InputError, match=r"0\.weight has no shape yet; run the model once"):
            reparameterize(model, example)
    assert all(is_lazy(parameter) for parameter in model.parameters())
    assert isinstance(model[0], nn.LazyConv2d)
