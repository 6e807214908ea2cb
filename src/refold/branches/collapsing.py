"""Undo `expand`: every block becomes the convolution and norm that it replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.operator import Conv
from refold.branches.building import example_for, folded
from refold.branches.fitting import Norm, fit, rebuilt_conv, rebuilt_norm
from refold.branches.norm_statistics import calibrate
from refold.branches.origin import Origin, origin_of, place
from refold.equivalence import verify
from refold.errors import GeometryError, NotAffineError, RefusedError
from refold.graph import (
    conv_axes,
    outside_modes,
    own_tensors,
    skeleton,
    transposed_axes,
    unwrap,
)


@outside_modes()
def collapse(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    calibration: Iterable[Any] | None = None,
) -> nn.Module:
    """Return an expanded network in its original form: same classes, names and state dict keys.

    Each block becomes one convolution, divided by its norm's scale, and that norm again at its own
    name. The norm keeps its running statistics, which are then not those of the new convolution:
    nothing in eval mode, but further training starts from them. `calibration` re-estimates them,
    and adapts the norm's scale and shift so that eval mode computes the same.

    Args:
        model: what `expand` returned, trained or loaded since; it is not changed.
        example_inputs: prove on them that the result equals the model.
        calibration: inputs of the model, each a tensor, a tuple or list of arguments, or a
            mapping of them by name.

    Raises:
        RefusedError: when the model is not an expanded one, or a block cannot be undone.
        NotEquivalentError: when the proof fails.

    Exact when:
        always, in eval mode.

    Examples:
        >>> from refold import blocks
        >>> from refold.branches.expanding import expand
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> plain = collapse(expand(net, "acb"))
        >>> plain[0], plain.state_dict().keys() == net.state_dict().keys()
        (Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), bias=False), True)
    """
    source = unwrap(model)
    target = skeleton(source)
    own_tensors(target, source)
    blocks = [(path, part) for path, part in target.named_modules() if origin_of(part) is not None]
    if not blocks:
        raise RefusedError("the model has no block made by expand: there is nothing to collapse")
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for path, block in blocks:
        try:
            pairs.extend(_undo(target, path, block))
        except (NotAffineError, RefusedError, GeometryError) as error:
            raise RefusedError(f"{path}: {error}") from error
    if calibration is not None:
        calibrate(target, pairs, calibration)
    if example_inputs is not None:
        verify(skeleton(source).eval(), skeleton(target).eval(), example_inputs).check()
    return target


def _undo(target: nn.Module, path: str, block: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Put convolution and norm back; return the two where there are two."""
    origin = cast(Origin, origin_of(block))
    if not path:
        raise RefusedError("the model is one block; collapse a network that holds it")
    like = _like(block, origin)
    with torch.no_grad():
        whole = folded(block, example_for(origin.conv, like))
    _must_match(whole, origin)
    at = origin.norm_path(path)
    if origin.norm is None or at is None:
        conv = _without_norm(target, whole, origin, at, like)
        place(target, path, conv.train(block.training))
        return []
    after, old = _at(target, at), _main(block, origin, 1)
    eps = cast(nn.BatchNorm2d, origin.norm).eps
    numbers = Norm.of(old, eps, cast(nn.Conv2d, origin.conv).out_channels, like)
    fitted = fit(whole, origin, numbers, _own_bias(block, origin))
    conv = rebuilt_conv(origin, fitted, like)
    norm = rebuilt_norm(origin, cast(Norm, fitted.norm), old, like)
    norm._modules.update((name, after.get_submodule(name)) for name in origin.tail)
    norm.training = block.training if old is None else old.training
    place(target, path, conv.train(block.training))
    place(target, at, norm)
    return [(conv, norm)]


def _without_norm(
    target: nn.Module, whole: Conv, origin: Origin, at: str | None, like: Tensor
) -> nn.Module:
    """Return the convolution of a block that took in no norm; one after it takes its new bias."""
    norm = None if at is None else _at(target, at)
    mean = None if norm is None else norm._buffers.get("running_mean")
    if mean is not None and not origin.biased and whole.bias is not None:
        mean.sub_(whole.bias.to(mean.dtype))
        whole = Conv(whole.weight, None, whole.axes, whole.groups, whole.mode,
                      whole.transposed)  # fmt: skip
    return rebuilt_conv(origin, fit(whole, origin, None, None), like)


def _at(target: nn.Module, path: str) -> nn.Module:
    try:
        return target.get_submodule(path)
    except AttributeError:
        raise RefusedError(
            f"its norm belongs at {path}, which is not in the model; collapse the network that "
            "holds both"
        ) from None


def _main(block: nn.Module, origin: Origin, which: int) -> nn.Module | None:
    """Return the convolution (0) or norm (1) of a block's main branch while it has it."""
    if origin.main is None or not origin.main[which]:
        return None
    try:
        return block.get_submodule(origin.main[which])
    except AttributeError:  # it is folded
        return None


def _own_bias(block: nn.Module, origin: Origin) -> Tensor | None:
    conv = _main(block, origin, 0)
    return None if conv is None else cast("Tensor | None", conv._parameters.get("bias"))


def _like(block: nn.Module, origin: Origin) -> Tensor:
    """Return the tensor whose dtype, device and layout the new weights take."""
    conv = _main(block, origin, 0)
    if conv is not None and conv._parameters.get("weight") is not None:
        return cast(Tensor, conv.weight)
    return max(block.parameters(), key=lambda parameter: parameter.ndim)


def _must_match(whole: Conv, origin: Origin) -> None:
    conv = cast(Any, origin.conv)
    kernel = tuple(conv.kernel_size)
    window = (conv.stride, conv.padding, conv.dilation)
    axes = (
        transposed_axes(kernel, *window, conv.output_padding)
        if conv.transposed
        else conv_axes(kernel, *window)
    )
    same = (whole.groups, whole.transposed) == (conv.groups, conv.transposed)
    if whole.axes != axes or not same or whole.mode != conv.padding_mode:
        raise RefusedError(f"it no longer has the shape of {conv}")
