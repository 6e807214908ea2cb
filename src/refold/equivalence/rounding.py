"""What floating-point rounding may cost in a given precision, and what it does cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import torch
from torch import Tensor, nn

from refold.equivalence.comparing import compare, relative_errors, tensor_leaves
from refold.equivalence.copies import cast_inputs, copy_model, run, run_wide, share, widen
from refold.equivalence.trials import trial_inputs
from refold.errors import one_line
from refold.inputs import Arguments

_SAFETY = 8.0
_OWN_LOSS = 8.0


@dataclass(frozen=True, slots=True)
class Rounding:
    """Error of the candidate in its own precision against the float64 reference.

    `error` is None when nothing could be run; `note` then says why. `reference_error` is what
    the reference itself loses. `bound` is the larger of `rounding_bound` and 8 times that loss,
    for a model that is ill-conditioned to begin with, plus what rounded weights may cost.
    """

    dtype: str
    error: float | None
    reference_error: float | None
    bound: float
    note: str = ""

    @property
    def is_within(self) -> bool:
        """Whether the error keeps the bound; also True when nothing could be run."""
        return self.error is None or self.error <= self.bound


def rounding_bound(dtype: torch.dtype, depth: int, reduction: int = 0) -> float:
    """Return the relative error that `depth` layers may show in `dtype`.

        bound = 8 * sqrt(depth) * (2 u + v * sqrt(reduction))

    u is the unit roundoff of `dtype` (eps / 2): each layer rounds its weights and its result
    once. v is that of the sums inside a layer, which run in float32 for half types: a sum of n
    products of random sign errs by v * sqrt(n), not v * n (Higham and Mary 2019,
    doi:10.1137/18M1226312). Errors of different layers are independent and add as a random
    walk, hence sqrt(depth). The factor 8 covers the largest of many outputs, cancellation and
    activations that amplify. A bound near 1 (deep networks in bfloat16) proves nothing.

    Args:
        dtype: Floating-point type of the weights.
        depth: Number of layers with a weight matrix or kernel.
        reduction: Longest sum of products, 0 when sums are exact in comparison.

    Examples:
        >>> f"{rounding_bound(torch.float32, depth=49):.1e}"
        '6.7e-06'
    """
    unit = torch.finfo(dtype).eps / 2
    inner = min(unit, torch.finfo(torch.float32).eps / 2)
    return _SAFETY * math.sqrt(max(depth, 1)) * (2 * unit + inner * math.sqrt(reduction))


class Conditioning:
    """What a float64 model loses when each weight moves by one rounding.

    Args:
        wide: the model.
        dtype: the precision of the rounding.
    """

    def __init__(self, wide: nn.Module, dtype: torch.dtype) -> None:
        self.wide = wide
        self.dtype = dtype

    @cached_property
    def moved(self) -> nn.Module:
        """The model with moved weights, made once and only when somebody asks."""
        signs = torch.Generator().manual_seed(0)

        def move(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return share(tensor)
            up = torch.randint(2, tensor.shape, generator=signs).to(tensor)
            return tensor.detach() * (1 + (up - 0.5) * torch.finfo(self.dtype).eps)

        return copy_model(self.wide, move)

    def bound(self, inputs: Arguments) -> float:
        """Return 8 times what the model loses on an input; 0 when it cannot be measured.

        For an ill-conditioned model, where `rounding_bound` is too small.
        """
        try:
            gaps = compare(run_wide(self.wide, inputs), run_wide(self.moved, inputs))
        except Exception:  # the trial itself reports a model that cannot run
            return 0.0
        return _OWN_LOSS * relative_errors([gaps])[0][0]


def native_bound(*models: nn.Module) -> float:
    """Return the rounding bound of running these models in their own precision."""
    dtype = native_dtype(*models)
    return 0.0 if dtype is None else rounding_bound(dtype, depth(*models), _reduction(*models))


def native_dtype(*models: nn.Module) -> torch.dtype | None:
    """Return the least precise of the models' main types (most numbers); None without floats."""
    mains: list[torch.dtype] = []
    for model in models:
        numbers = Counter[torch.dtype]()
        for tensor in _numbers(model):
            numbers[tensor.dtype] += tensor.numel()
        if numbers:
            mains.append(numbers.most_common(1)[0][0])
    return max(mains, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def native_rounding(
    reference: nn.Module,
    candidate: nn.Module,
    wide_reference: nn.Module,
    trials: list[Arguments],
    weight_error: float,
) -> Rounding:
    """Run both models in their own precision and compare with the float64 reference.

    `weight_error` is what the candidate's rounded weights may already cost in float64.
    """
    dtype = native_dtype(reference, candidate)
    bound = native_bound(reference, candidate) + weight_error
    if dtype is None or dtype == torch.float64:
        name = "none" if dtype is None else "float64"
        return Rounding(name, None, None, bound, "there is no lower precision to check")
    name = str(dtype).removeprefix("torch.")
    rounded = [cast_inputs(inputs, dtype) for inputs in trials]
    try:
        wanted = [run_wide(wide_reference, inputs) for inputs in rounded]
        own = _worst_error(wanted, reference, rounded)
    except Exception as problem:  # overflow, or a kernel that this device lacks for this type
        note = f"not checked, since the reference fails in {name}: {one_line(problem)}"
        return Rounding(name, None, None, bound, note)
    bound = max(bound, _OWN_LOSS * own + weight_error)
    try:
        return Rounding(name, _worst_error(wanted, candidate, rounded), own, bound)
    except Exception as problem:
        note = f"the candidate fails in {name}: {one_line(problem)}"
        return Rounding(name, math.inf, own, bound, note)


def runtime_rounding(
    model: nn.Module,
    call: Callable[[Arguments], list[Tensor]],
    example: Arguments,
    written: nn.Module | None = None,
) -> Rounding:
    """Compare what a runtime makes of a model's file with the model in float64.

    Args:
        model: what the file was made of.
        call: runs the file and returns its output tensors in order.
        example: arguments of both.
        written: the model in the precision of the file, where that is another one.
    """
    dtype = native_dtype(model) or torch.float32
    written = written or model
    name = str(dtype).removeprefix("torch.")
    wide = copy_model(model, widen)
    trials = [cast_inputs(inputs, dtype) for _, inputs in islice(trial_inputs(example), 2)]
    wanted: list[object] = [tensor_leaves(run_wide(wide, inputs)) for inputs in trials]
    own = _worst(wanted, [tensor_leaves(run(written, inputs)) for inputs in trials])
    bound = max(native_bound(written), _OWN_LOSS * own)
    try:
        return Rounding(name, _worst(wanted, [call(inputs) for inputs in trials]), own, bound)
    except Exception as problem:  # a file of another network refuses these inputs, or answers oddly
        return Rounding(name, math.inf, own, bound, one_line(problem))


def own_loss(model: nn.Module, inputs: Arguments, reference: nn.Module | None = None) -> float:
    """Return 8 times what a model loses in its own precision against float64; 0 if neither runs.

    Args:
        model: in its own precision.
        inputs: arguments of both.
        reference: the model before it was cast to that precision, where it was.
    """
    try:
        wanted = tensor_leaves(run_wide(copy_model(reference or model, widen), inputs))
        gaps = compare(wanted, tensor_leaves(run(model, inputs)))
    except Exception:  # a kernel that this device lacks in float64, or an overflow
        return 0.0
    return _OWN_LOSS * relative_errors([gaps])[0][0]


def _worst_error(wanted: list[object], model: nn.Module, trials: list[Arguments]) -> float:
    dtype = native_dtype(model)
    native = copy_model(model, share)
    own = [cast_inputs(inputs, dtype) if dtype else inputs for inputs in trials]
    return _worst(wanted, [run(native, inputs) for inputs in own])


def _worst(wanted: Sequence[object], got: Sequence[object]) -> float:
    gaps = [compare(one, other) for one, other in zip(wanted, got, strict=True)]
    return max(error for error, _ in relative_errors(gaps))


def _numbers(model: nn.Module) -> Iterator[Tensor]:
    tensors = chain(model.parameters(), model.buffers())
    return (tensor for tensor in tensors if tensor.is_floating_point())


def depth(*models: nn.Module) -> int:
    """Return the number of weight matrices and kernels in the deepest of the models."""
    return max(sum(w.ndim > 1 for w in _numbers(model)) for model in models)


def _reduction(*models: nn.Module) -> int:
    # A kernel is (O, I/g, *taps): what is not an output is summed over.
    lengths = [
        weight.numel() // weight.shape[0]
        for model in models
        for weight in _numbers(model)
        if weight.ndim > 1 and weight.numel()
    ]
    return max(lengths, default=0)
