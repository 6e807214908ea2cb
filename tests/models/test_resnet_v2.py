"""Residual networks in every order and with every shortcut: what they compute, and its gradient.

The oracles are torchvision's ResNet-18, formulas of the article written out with torch's functions,
and the identities that it derives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from models.nets import error
from refold.errors import InputError
from refold.models import ResNetV2
from zoo.live import enliven, is_norm

ORDERS = ("original", "bn_after_add", "relu_before_add", "relu_only", "full")
SHORTCUTS = (
    "identity", "constant", "exclusive_gating", "shortcut_gating", "conv", "dropout"
)  # fmt: skip
SMALL: dict[str, Any] = {"depths": (2, 3, 2), "widths": (4, 8, 16), "num_classes": 10}
TOLERANCE = 1e-9


def alive(name: str = "preact_resnet110", **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = refold.create_model(name, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    enliven(model, (x,))
    return model, x


def units(model: Any, stage: int) -> list[Any]:
    return list(model.get_submodule(f"stage{stage}"))


def norms(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if is_norm(part)]


# -- what a unit computes -------------------------------------------------------------------------


def by_formula(unit: Any, order: str, x: Tensor, follows_stem: bool) -> Tensor:
    """Return what the article's figure 4 says, from the unit's parameters alone."""
    convs = [part for name, part in unit.branch.named_children() if "conv" in name]
    bns = [
        part for place in (unit.before, unit.branch) for part in place.modules() if is_norm(part)
    ]
    projects = not isinstance(unit.join.path, nn.Identity)
    shared = order in ("relu_only", "full") and (projects or follows_stem)
    y = x
    for place, conv in enumerate(convs):
        leads = place == 0 and follows_stem
        if order == "full" and not leads:
            y = bns.pop(0)(y)
        if order in ("relu_only", "full") and not leads:
            y = F.relu(y)
        if place == 0 and shared:
            x = y
        y = F.conv2d(y, conv.weight, None, conv.stride, conv.padding)
        if order in ("original", "relu_before_add", "relu_only") or (
            order == "bn_after_add" and place < len(convs) - 1
        ):
            y = bns.pop(0)(y)
        if order == "relu_before_add" or (
            order in ("original", "bn_after_add") and place < len(convs) - 1
        ):
            y = F.relu(y)
    assert not bns
    y = y + unit.join.path(x)
    if order == "bn_after_add":
        y = next(part for part in unit.after.modules() if is_norm(part))(y)
    return F.relu(y) if order in ("original", "bn_after_add") else y


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_units_are_the_articles_figure(order: str, bottleneck: bool) -> None:
    model, x = alive(order=order, bottleneck=bottleneck, **SMALL)
    with torch.no_grad():
        y = model.stem(x)
        for stage in (1, 2, 3):
            for place, unit in enumerate(units(model, stage)):
                wanted = by_formula(unit, order, y, stage == 1 and place == 0)
                y = unit(y)
                assert error(wanted, y) <= TOLERANCE


def test_the_original_order_is_torchvisions_resnet18() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(theirs, (x,))
    ours = refold.create_model(
        "resnetv2_200", num_classes=10, depths=(2, 2, 2, 2), bottleneck=False, order="original"
    ).double()  # fmt: skip
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    with torch.no_grad():
        assert error(theirs(x), ours.eval()(x)) <= TOLERANCE


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_shortcuts_are_the_articles_formulas(kind: str) -> None:
    model, _ = alive(shortcut=kind, order="original", **SMALL)
    unit = units(model, 1)[1]
    x, f = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        found = unit.join(x, f)
        if kind.endswith("gating"):
            gate = torch.sigmoid(F.conv2d(x, unit.join.gate.weight, unit.join.gate.bias))
            wanted = (1 - gate) * x + (gate * f if kind == "exclusive_gating" else f)
        elif kind == "constant":
            wanted = 0.5 * x + 0.5 * f
        elif kind == "conv":
            path = unit.join.path
            wanted = path.norm(F.conv2d(x, path.conv.weight)) + f
        else:
            wanted = x + f
    assert error(wanted, found) <= TOLERANCE


def test_gates_start_at_their_bias_and_dropout_drops_the_shortcut() -> None:
    torch.manual_seed(0)
    gated = refold.create_model("preact_resnet110", shortcut="shortcut_gating", **SMALL)
    gates = [part.bias for name, part in gated.named_modules() if name.endswith("gate")]
    assert len(gates) == 5  # the units that keep the shape
    assert all(bool((bias == -6).all()) for bias in gates)
    dropped: Any = refold.create_model("preact_resnet110", shortcut="dropout", **SMALL)
    ones = torch.ones(4, 4, 16, 16)
    kept = units(dropped.train(), 1)[1].join(ones, torch.zeros_like(ones))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert kept.mean().item() == pytest.approx(1, abs=0.15)


# -- what the article derives ---------------------------------------------------------------------


def run(model: Any, x: Tensor, stage: int, detach: bool = False) -> tuple[list[Tensor], Any]:
    """Return the outputs of a stage's units, and of the branches of all but the first."""
    outputs: list[Tensor] = []
    branches: list[Tensor] = []

    def branch(module: Any, args: Any, output: Tensor) -> Tensor:
        branches.append(output.detach() if detach else output)
        return branches[-1]

    first, *others = units(model, stage)
    hooks = [unit.branch.register_forward_hook(branch) for unit in others]
    keep: Any = lambda module, args, output: outputs.append(output)  # noqa: E731
    hooks += [unit.register_forward_hook(keep) for unit in (first, *others)]
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs, branches


@pytest.mark.parametrize("name", some(["preact_resnet110", "preact_resnet164"], keep=1))
@pytest.mark.parametrize("training", [False, True])
def test_deep_units_add_up(name: str, training: bool) -> None:
    """x_L = x_l + sum of F: the article's equation 4, on the real network."""
    model, x = alive(name)
    with torch.no_grad():
        outputs, branches = run(model.train(training), x, 3)
    assert len(branches) == 17
    for low in (0, 7, 16):
        assert error(outputs[-1], outputs[low] + sum(branches[low:])) <= 1e-12


def test_with_a_relu_after_the_addition_they_do_not() -> None:
    model, x = alive(order="original", **SMALL)
    with torch.no_grad():
        outputs, branches = run(model, x, 2)
    assert error(outputs[-1], outputs[0] + sum(branches)) > 1e-3


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.9])
def test_the_shortcuts_gradient_is_the_product_of_its_factors(factor: float) -> None:
    """With the branches held constant, d x_L / d x_l is the product of lambda: equation 7."""
    options = {"shortcut": "constant", "scales": (factor, 1.0)} if factor < 1 else {}
    model, x = alive("preact_resnet110", **options)
    outputs, branches = run(model, x, 3, detach=True)
    (found,) = torch.autograd.grad(outputs[-1].sum(), outputs[0])
    assert error(torch.full_like(found, factor**17), found) <= 1e-12
    weighted = sum(f * factor ** (len(branches) - at) for at, f in enumerate(branches, 1))
    low, high = outputs[0].detach(), outputs[-1].detach()
    assert error(high, low * factor**17 + weighted) <= 1e-12


def test_the_gradient_is_one_plus_that_of_the_branches() -> None:
    """Equation 5: d loss / d x_l = d loss / d x_L (1 + d sum of F / d x_l)."""
    model, x = alive("preact_resnet110", **SMALL)
    outputs, branches = run(model, x, 2)
    low, high = outputs[0], outputs[-1]
    weights = torch.randn_like(high)
    (whole,) = torch.autograd.grad((high * weights).sum(), low, retain_graph=True)
    (part,) = torch.autograd.grad((sum(branches) * weights).sum(), low)
    assert error(whole, weights + part) <= 1e-12


# -- what folds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_folds_exactly(order: str, bottleneck: bool) -> None:
    """What stays is a norm whose input something else reads too: before a ReLU, after a sum."""
    model, x = alive(order=order, bottleneck=bottleneck, **SMALL)
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        assert error(model(x), folded(x)) <= TOLERANCE
    left = norms(folded)
    if order == "full":
        kept = [name for name in norms(model) if name.endswith(("branch.norm1", "before.norm1"))]
        assert left == [*kept, "final.norm0"]
    elif order == "bn_after_add":
        assert all(name.endswith("after.norm0") for name in left)
        assert left
    else:
        assert left == []


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("padded", [False, True])
def test_every_shortcut_folds_exactly(kind: str, padded: bool) -> None:
    model, x = alive(order="original", shortcut=kind, padded=padded, **SMALL)
    folded = refold.reparameterize(model, x)
    assert norms(folded) == []
    with torch.no_grad():
        assert error(model(x), folded(x)) <= TOLERANCE


@pytest.mark.parametrize("kind", SHORTCUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_network_trains(order: str, kind: str) -> None:
    torch.manual_seed(0)
    model = refold.create_model("preact_resnet110", order=order, shortcut=kind, **SMALL)
    logits = model(torch.randn(2, 3, 16, 16))
    logits.square().sum().backward()
    assert logits.shape == (2, 10)
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param("preact_resnet164", 54, marks=pytest.mark.zoo),
        pytest.param("preact_resnet1001", 333, marks=pytest.mark.zoo),
    ],
)
def test_hundreds_of_layers_fold_and_verify(name: str, left: int) -> None:
    model, x = alive(name, num_classes=10)
    folded = refold.reparameterize(model, x[:1])
    assert len(norms(folded)) == left
    with torch.no_grad():
        assert error(model(x[:1]), folded(x[:1])) <= TOLERANCE
    refold.verify(model, folded, x[:1]).check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": "bn_first"}, "original, bn_after_add"),
        ({"shortcut": "highway"}, "identity, constant"),
    ],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ResNetV2(**options)
