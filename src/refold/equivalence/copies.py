"""Copies of a model to prove things on: in another precision, and never touching the original."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.errors import InputError, RefusedError
from refold.graph import (
    INSIDE,
    Attributes,
    StateChangeError,
    copy_module,
    held_tensors,
    storage_key,
    surroundings_kept,
    untouched,
    unwrap,
)
from refold.inputs import Arguments, call, required, unrunnable
from refold.torch_versions import DispatchMode

Result = TypeVar("Result")

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


def copy_model(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return an eval-mode copy whose every tensor went through `convert`.

    Plain tensor attributes are converted too, not only parameters and buffers; a wrapper of
    `torch.compile` or data parallelism is looked through. Tensors never need a gradient.
    """
    inner = unwrap(model)
    memo: dict[int, Any] = {}
    for tensor in _tensors(inner):
        converted = convert(tensor)
        if isinstance(tensor, nn.Parameter):
            converted = nn.Parameter(converted, requires_grad=False)
        memo[id(tensor)] = converted
    memo[INSIDE] = frozenset(id(module) for module in inner.modules())
    copied = copy_module(inner, memo)
    for module in copied.modules():  # not .eval(): modules from torch.export refuse that call
        module.training = False
    return copied


def require_eval(model: nn.Module, name: str) -> None:
    """Refuse a model that is in training mode, at its root or in a norm or dropout layer.

    Raises:
        RefusedError: Then; `name` says in the message which model it was.
    """
    # A GraphModule froze its mode when traced, and a wrapper has none: their flags mean nothing.
    inside = unwrap(model)
    is_training = inside.training and not isinstance(inside, torch.fx.GraphModule)
    path = "the root" if is_training else next(_training_layers(model), None)
    if path is not None:
        raise RefusedError(
            f"{name} is in training mode ({path}), where norms use the batch and dropout is "
            "random: call model.eval() first"
        )


def _training_layers(model: nn.Module) -> Iterator[str]:
    for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        is_random = is_norm(layer) or isinstance(layer, _DROPOUTS)
        # torch.export keeps tensors in bare modules, whose flag means nothing either.
        if layer.training and is_random and type(layer) is not nn.Module:
            yield path


def is_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def widen(tensor: Tensor) -> Tensor:
    """Return a copy in float64 (complex128 for complex numbers); other types are only copied.

    A parameter that is float64 already is shared: a large network in float64 fills the memory.
    """
    if isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float64:
        return tensor.data  # unlike a detached one, it counts changes by itself
    if tensor.is_floating_point():
        return tensor.detach().to(torch.float64, copy=True)
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128, copy=True)
    return tensor.detach().clone()


def share(tensor: Tensor) -> Tensor:
    """Return a parameter as it is, and a copy of anything else; `run` writes to no parameter."""
    return tensor.data if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def prepared(
    model: nn.Module,
    example_inputs: object,
    name: str = "the model",
    device: torch.device | str | None = None,
) -> tuple[nn.Module, Arguments]:
    """Return an eval-mode copy of a model and its arguments, which are known to run together.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: as every verb takes them.
        name: what a message calls the model.
        device: of the copy and the arguments; their own where None.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it cannot run on the example.
    """

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().to(device or tensor.device)

    require_eval(model, name)
    inputs = required(model, example_inputs)
    twin = copy_model(model, copied)
    moved: Arguments = pytree.tree_map_only(Tensor, copied, inputs)
    try:
        run(twin, moved)
    except Exception as error:
        raise unrunnable(model, inputs, error) from error
    return twin, moved


def cast_floats(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating-point tensor in `dtype`, any other as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def cast_inputs(inputs: Arguments, dtype: torch.dtype) -> Arguments:
    """Return a model's arguments with the floating-point tensors among them in `dtype`."""
    return pytree.tree_map_only(Tensor, lambda tensor: cast_floats(tensor, dtype), inputs)


def run(model: nn.Module, inputs: Arguments) -> object:
    """Call a copy of a model on copies of the inputs, which an in-place layer would overwrite.

    Every call finds the model as it was made: what its code counts or stores is put back. Code that
    writes to parameters, which copies share with the model they were made of, gets its own first.
    """
    try:
        with torch.no_grad(), _kept_state(model), untouched(model, _parameters(model)):
            return call(model, pytree.tree_map_only(Tensor, torch.clone, inputs))
    except StateChangeError:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    with torch.no_grad(), _kept_state(model, parameters=True):
        return call(model, pytree.tree_map_only(Tensor, torch.clone, inputs))


def _parameters(model: nn.Module) -> frozenset[int]:
    return frozenset(storage_key(parameter) for parameter in model.parameters())


@contextmanager
def _kept_state(model: nn.Module, *, parameters: bool = False) -> Generator[None]:
    """Put back what a call leaves behind in attributes and stored tensors."""
    attributes = Attributes(model)
    held = {id(t): t for module in model.modules() for _, t in held_tensors(module)}
    keeps = [parameters or not isinstance(tensor, nn.Parameter) for tensor in held.values()]
    tensors = [
        (t, t.clone() if own else t.data) for t, own in zip(held.values(), keeps, strict=True)
    ]
    try:
        with surroundings_kept(model):
            yield
    finally:
        attributes.restore()
        for tensor, before in tensors:
            tensor.data = before


def run_wide(model: nn.Module, inputs: Arguments) -> object:
    """Call a model of float64 tensors in float64 throughout."""
    with _InFloat64():
        return run(model, cast_inputs(inputs, torch.float64))


def in_float64(make: Callable[[], Result]) -> Result:
    """Return what is made of float64 models, whose forward may name a narrower type (`x.float()`).

    Raises:
        InputError: when a part of them takes float32 alone.
    """
    try:
        return make()
    except InputError:  # a mode that reads each type would slow every fold down
        pass
    try:
        with _InFloat64():
            return make()
    except InputError as error:
        raise InputError(f"equality is proved in float64, and {error}") from error


class _InFloat64(DispatchMode):
    """Read every narrower float type that a forward pass names (`x.float()`) as float64."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        named = {key: _widen_dtype(value) for key, value in (kwargs or {}).items()}
        result = func(*map(_widen_dtype, args), **named)
        # What a forward pass creates (`torch.ones(3)`) has the default type, named nowhere.
        is_narrow = isinstance(result, Tensor) and result.dtype in _NARROW
        return result.double() if is_narrow else result


def _widen_dtype(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    seen: set[int] = set()
    pending: list[object] = [vars(module) for module in model.modules()]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            pending.extend(cast(dict[object, object], value).values())
        elif isinstance(value, list | tuple):
            pending.extend(cast(list[object], value))
