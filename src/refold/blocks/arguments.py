"""What every block's constructor takes: a convolution's arguments, and where the tensors live.

A block writes `def __init__(self, *conv, own=..., **options: Unpack[ConvOptions])`: type checkers
read the options off the annotation, and `inspect` off the signature that `written_out` makes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict, get_args, get_type_hints

import torch

from refold.algebra.geometry import Size
from refold.blocks.layers import Maker
from refold.blocks.spec import ConvSpec


class BlockOptions(TypedDict, total=False):
    """What every block takes by name; up to `groups` also by position, in this order."""

    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size
    padding: Size | str
    dilation: Size
    groups: int
    ndim: int
    deploy: bool
    device: Any
    dtype: torch.dtype | None


class PaddedOptions(BlockOptions, total=False):
    """Those of a block that can pad with more than zeros."""

    padding_mode: str


class TransposedOptions(BlockOptions, total=False):
    """Those of a block that can be transposed."""

    transposed: bool
    output_padding: Size


class ConvOptions(PaddedOptions, TransposedOptions, total=False):
    """Those of a block that can be any convolution."""


_CONV = dict(inspect.signature(ConvSpec.of).parameters)
_PLACE = {
    name: inspect.signature(Maker).parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for name in ("deploy", "device", "dtype")
}


def parse(
    taken: type[BlockOptions], conv: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[ConvSpec, Maker]:
    """Return the convolution that a block's arguments describe, and what makes its layers.

    Args:
        taken: the options that the block takes.
        conv: the arguments by position.
        options: the arguments by name.

    Raises:
        TypeError: when the block does not take one of them, or lacks one.
        GeometryError: when they do not fit together.

    Examples:
        >>> spec, make = parse(BlockOptions, (4, 8, 3), {"padding": 1, "deploy": True})
        >>> spec.padding, make.deploy
        ((1, 1), True)
    """
    if unknown := options.keys() - taken.__annotations__.keys():
        raise TypeError(f"the block takes no argument {', '.join(sorted(unknown))}")
    place = {name: value for name, value in options.items() if name in _PLACE}
    shape = {name: value for name, value in options.items() if name not in _PLACE}
    return ConvSpec.of(*conv, **shape), Maker(**place)


def written_out(init: Callable[..., None]) -> inspect.Signature:
    """Return a constructor's signature with `*conv` and `**options` written out, if it has them.

    Examples:
        >>> from typing import Unpack
        >>> def init(self, *conv: Size, own: int = 2, **options: Unpack[BlockOptions]) -> None: ...
        >>> list(written_out(init).parameters)[5:]
        ['dilation', 'groups', 'ndim', 'own', 'deploy', 'device', 'dtype']
    """
    signature = inspect.signature(init)
    _, *own = signature.parameters.values()
    if not {"conv", "options"} <= signature.parameters.keys():
        return signature.replace(parameters=own)
    (taken,) = get_args(get_type_hints(init)["options"])

    def shared(known: Mapping[str, inspect.Parameter]) -> Iterator[inspect.Parameter]:
        return (known[name] for name in known if name in taken.__annotations__)

    own = [p for p in own if p.name not in ("conv", "options")]
    return signature.replace(parameters=[*shared(_CONV), *own, *shared(_PLACE)])
