"""`verify` accepts what is equal, finds every kind of difference, and says where it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refold.equivalence import Equivalence, verify
from refold.errors import InputError, NotEquivalentError, RefusedError

EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def live_norm(channels: int, generator: torch.Generator) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)  # gammas of both signs
        for tensor in (norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(0.3, 2.0, generator=generator)
    return norm


@pytest.fixture
def reference(generator: torch.Generator) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), live_norm(6, generator), nn.ReLU(inplace=True)
    ).eval()


def fused(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), *model[2:]).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_correct_fold_is_equal_in_every_precision(reference: nn.Module, dtype: Any) -> None:
    model = copy.deepcopy(reference).to(dtype)
    result = verify(model, fused(model), EXAMPLE.to(dtype)).check()
    assert result
    assert not result.vacuous
    assert result.dtype == "float64"
    if dtype == torch.float64:
        assert result.max_rel_error < 1e-14
        assert result.tolerance == 1e-9
    else:
        assert result.native.dtype == str(dtype).removeprefix("torch.")
        assert 0 < result.native.error <= result.native.bound < 1


def test_neither_model_nor_the_input_is_changed(reference: nn.Sequential) -> None:
    candidate, x = fused(reference), EXAMPLE.clone()
    before = [copy.deepcopy(model.state_dict()) for model in (reference, candidate)]
    verify(reference, candidate, x)
    for model, state in zip((reference, candidate), before, strict=True):
        assert all(torch.equal(state[name], now) for name, now in model.state_dict().items())
        assert not model.training
    assert next(reference.parameters()).requires_grad
    assert torch.equal(x, EXAMPLE)


def shift_bias(model: nn.Sequential) -> None:
    model[0].bias.add_(1e-4)


def change_one_tap(model: nn.Sequential) -> None:
    model[0].weight[2, 1, 0, 2].add_(1e-3)


def change_the_border(model: nn.Sequential) -> None:
    model[0].padding_mode = "replicate"


def clamp_what_only_large_inputs_reach(model: nn.Sequential) -> None:
    model.append(nn.Hardtanh(0.0, 40.0))


@pytest.mark.parametrize(
    "spoil", [shift_bias, change_one_tap, change_the_border, clamp_what_only_large_inputs_reach]
)
def test_small_mistakes_are_found_and_located(
    reference: nn.Sequential, spoil: Callable[[nn.Sequential], None]
) -> None:
    candidate = fused(reference)
    assert verify(reference, candidate, EXAMPLE)
    with torch.no_grad():
        spoil(candidate)
    result = verify(reference, candidate, EXAMPLE)
    assert not result
    with pytest.raises(NotEquivalentError, match=r"on input '.*' output differs by .* relative"):
        result.check()


def test_a_wrong_epsilon_hides_in_no_lower_precision(reference: nn.Sequential) -> None:
    wrong = copy.deepcopy(reference)
    wrong[1].eps = 1e-3
    assert not verify(reference, fused(wrong), EXAMPLE)


def test_constants_and_impulses_find_what_one_zero_example_hides(reference: nn.Sequential) -> None:
    candidate = fused(reference)
    with torch.no_grad():
        candidate[0].weight.mul_(1.01)
    result = verify(reference, candidate, torch.zeros(1, 3, 8, 8))
    failed = {trial.name for trial in result.trials if trial.error > result.tolerance}
    unable = {"example", "zeros"}
    assert failed == {trial.name for trial in result.trials} - unable
    assert {"random", "large random", "ones", "impulse at corner", "impulse at centre"} <= failed


@pytest.mark.parametrize(("factor", "is_equal"), [(1.0, True), (1.001, False)])
def test_rounding_is_told_from_a_mistake_where_outputs_cancel(
    factor: float, is_equal: bool
) -> None:
    layer = nn.Linear(2, 1, bias=False).eval()
    layer.weight.data = torch.tensor([[1.0, -1.0 + 1e-5]])  # on ones, five digits cancel
    thrice = nn.Linear(2, 1, bias=False).eval()
    thrice.weight.data = (layer.weight.data.double() * 0.3 * factor).float()
    result = verify(layer, Head(lambda x: thrice(x) / 0.3).eval(), torch.ones(1, 2))
    assert result.max_rel_error > 1e-4
    assert bool(result) is is_equal


class Pair(NamedTuple):
    logits: Tensor
    boxes: list[Tensor]


class Head(nn.Module):
    """Returns whatever `shape_outputs` makes of x."""

    def __init__(self, shape_outputs: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.shape_outputs = shape_outputs

    def forward(self, x: Tensor) -> object:
        return self.shape_outputs(x)


def test_nested_outputs_are_compared_leaf_by_leaf() -> None:
    good = Head(lambda x: {"a": Pair(x, [x + 1, x * 2]), "n": None, "k": 3}).eval()
    bad = Head(lambda x: {"a": Pair(x, [x + 1, x * 3]), "n": None, "k": 3}).eval()
    assert verify(good, good, EXAMPLE)
    with pytest.raises(NotEquivalentError, match=r"output\['a'\]\.boxes\[1\] differs"):
        verify(good, bad, EXAMPLE).check()


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (lambda x: (x, x), r"structure changed: lost \['output'\]"),
        (lambda x: {"a": x}, r"new \[\"output\['a'\]\"\]"),
        (lambda x: x[:1], r"output has shape \(1, 3, 8, 8\), in the reference \(2, 3, 8, 8\)"),
        (lambda x: None, "output is a NoneType, in the reference a Tensor"),
        (lambda x: x / 0, "output of the candidate holds (NaN|infinity)"),
        (lambda x: x.reshape(7), "the candidate raised RuntimeError"),
    ],
)
def test_what_has_no_error_in_numbers_is_a_failure_with_a_reason(
    outputs: Callable[[Tensor], object], reason: str
) -> None:
    result = verify(Head(lambda x: x).eval(), Head(outputs).eval(), EXAMPLE)
    assert result.max_rel_error == float("inf")
    with pytest.raises(NotEquivalentError, match=reason):
        result.check()


def test_a_reference_that_is_not_finite_says_so() -> None:
    model = Head(lambda x: x.log()).eval()
    assert "of the reference holds NaN" in str(verify(model, model, EXAMPLE))


def test_a_random_reference_is_reported() -> None:
    model = Head(lambda x: x + torch.rand_like(x)).eval()
    assert "not deterministic" in str(verify(model, model, EXAMPLE))


def test_zero_outputs_are_measured_by_the_other_inputs() -> None:
    layer = nn.Linear(4, 4, bias=False).eval()
    tiny = Head(lambda x: layer.double()(x.double()) + 1e-15).eval()
    result = verify(Head(lambda x: layer.double()(x.double())).eval(), tiny, torch.ones(1, 4))
    assert result
    nonzero = Head(lambda x: x * 0 + 1e-15).eval()
    assert not verify(Head(lambda x: x * 0).eval(), nonzero, torch.ones(1, 4))


def test_initial_norms_make_the_check_vacuous(reference: nn.Sequential) -> None:
    fresh = nn.Sequential(reference[0], nn.BatchNorm2d(6)).eval()
    result = verify(fresh, fresh, EXAMPLE)
    assert result
    assert result.vacuous
    assert "proves nothing about norms" in str(result)
    nn.init.zeros_(fresh[1].weight)  # a branch that starts switched off is initial, too
    assert verify(fresh, fresh, EXAMPLE).vacuous
    fresh[1].running_mean[3] = 0.5
    assert not verify(fresh, fresh, EXAMPLE).vacuous


def test_training_mode_is_refused_anywhere(reference: nn.Sequential) -> None:
    with pytest.raises(RefusedError, match=r"reference .*\(the root\).* call model.eval\(\)"):
        verify(nn.ReLU(), nn.ReLU().eval(), EXAMPLE)
    hidden = copy.deepcopy(reference)
    hidden[1].train()
    with pytest.raises(RefusedError, match=r"candidate .*\(1\)"):
        verify(reference, hidden, EXAMPLE)


def test_inputs_that_do_not_fit_are_one_sentence(reference: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"Sequential cannot run .*\(1, 4, 8, 8\)") as caught:
        verify(reference, reference, torch.zeros(1, 4, 8, 8))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no argument 'x'"):
        verify(reference, reference, {"x": EXAMPLE})


def test_lists_and_dicts_among_the_arguments(reference: nn.Sequential) -> None:
    class Listed(nn.Module):
        def __init__(self, inner: nn.Module, off: float = 0.0) -> None:
            super().__init__()
            self.inner, self.off = inner, off

        def forward(self, images, extra):
            return {"out": [self.inner(image) + self.off * extra["by"] for image in images]}

    example = ([EXAMPLE, EXAMPLE.flip(0)], {"by": torch.ones(())})
    assert verify(Listed(reference).eval(), Listed(reference).eval(), example)
    assert not verify(Listed(reference).eval(), Listed(reference, 0.1).eval(), example)


def test_integer_inputs_stay_and_several_inputs_work() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 3)

        def forward(self, index: Tensor, scale: Tensor) -> Tensor:
            return self.table(index) * scale

    model = Lookup().eval()
    assert verify(model, copy.deepcopy(model), (torch.tensor([9, 0]), torch.ones(2, 1)))
    alone = nn.Embedding(10, 3).eval()
    assert [t.name for t in verify(alone, alone, torch.tensor([9])).trials] == ["example"]


def test_float64_holds_where_the_model_names_a_narrower_type() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.constant = torch.randn(8)  # neither parameter nor buffer

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x.float()).to(torch.float32) + torch.ones(8) * self.constant
            return self.linear(y)

    model = Narrow().double().eval()
    model.constant = model.constant.double()
    split = copy.deepcopy(model)
    split.forward = lambda x: split.linear(split.linear(x) + split.constant)  # type: ignore
    assert verify(model, split, EXAMPLE).max_rel_error < 1e-14


def test_a_fold_that_overflows_half_precision_fails() -> None:
    layer = nn.Linear(4, 4, bias=False).eval()
    nn.init.constant_(layer.weight, 100.0)
    small = nn.Linear(4, 4, bias=False).eval()
    nn.init.constant_(small.weight, 1e-3)
    reference = nn.Sequential(layer, small).half().eval()
    reordered = nn.Sequential(
        Head(lambda x: x * 3e4), copy.deepcopy(reference), Head(lambda x: x / 3e4)
    ).eval()
    result = verify(reference, reordered, torch.ones(1, 4))
    assert result.max_rel_error < result.tolerance
    assert "the candidate fails in float16: output of the candidate holds" in str(result.failure)


def test_wrappers_and_exported_programs_can_be_compared(reference: nn.Sequential) -> None:
    program = torch.export.export(reference, (EXAMPLE,))
    assert verify(reference, program.module(), EXAMPLE)
    assert verify(torch.compile(reference), nn.DataParallel(fused(reference)).eval(), EXAMPLE)


def test_the_result_prints_and_gives_plain_values(reference: nn.Sequential) -> None:
    good = verify(reference, fused(reference), EXAMPLE)
    assert isinstance(good, Equivalence)
    assert str(good).startswith("equal\nlargest relative error")
    assert "native float32: error" in str(good)
    bad = verify(reference, Head(lambda x: x / 0).eval(), EXAMPLE)
    plain = json.loads(json.dumps([good.to_dict(), bad.to_dict()], allow_nan=False))
    assert [entry["equal"] for entry in plain] == [True, False]
    assert plain[1]["max_rel_error"] is None
    assert plain[0]["trials"][0]["name"] == "example"
