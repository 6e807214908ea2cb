"""The arithmetic of weights; without storage, only the form of its result.

Rules are tried on `meta` tensors. Torch tells the forms of those in Python, and its first answer
loads a compiler: a second, in a process that needs it for nothing else. Of weights the form is
plain, so it is told here.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def form(like: Tensor, *shape: int) -> Tensor:
    """Return a tensor of this shape, of the type of `like`, without storage."""
    return torch.empty(shape, dtype=like.dtype, device="meta")


def plus(*terms: Tensor) -> Tensor:
    """Return the sum of tensors, each spread over the larger ones.

    Examples:
        >>> one, three = torch.ones(()), torch.ones(3, device="meta")
        >>> plus(one, one).item(), plus(one.to("meta"), three).shape
        (2.0, torch.Size([3]))
    """
    return _form_of(*terms) if _is_form(terms) else reduce(torch.add, terms)


def times(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two tensors, each spread over the other."""
    return _form_of(left, right) if _is_form((left, right)) else left * right


def scale_in_place(weight: Tensor, factors: Tensor) -> Tensor:
    """Multiply a weight by factors that spread over it, and return it."""
    return weight if weight.is_meta else weight.mul_(factors)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """Return tensors one after the other along their first axis.

    Examples:
        >>> side_by_side([torch.ones(2, 3, device="meta")] * 2).shape
        torch.Size([4, 3])
    """
    if not _is_form(tuple(parts)):
        return torch.cat(parts)
    return form(parts[0], sum(len(part) for part in parts), *parts[0].shape[1:])


def scatter_add(size: int, axis: int, index: Tensor, parts: Tensor) -> Tensor:
    """Return zeros, `size` along an axis, with slices added at the places that an index names.

    Examples:
        >>> scatter_add(3, 0, torch.tensor([2, 2]), torch.ones(2)).tolist()
        [0.0, 0.0, 2.0]
    """
    shape = (*parts.shape[:axis], size, *parts.shape[axis + 1 :])
    return (
        form(parts, *shape)
        if parts.is_meta
        else parts.new_zeros(shape).index_add(axis, index, parts)
    )


def spread(*tensors: Tensor) -> tuple[int, ...]:
    """Return the shape of tensors, each spread over the others."""
    return tuple(torch.broadcast_tensors(*tensors)[0].shape)


def _is_form(tensors: tuple[Tensor, ...]) -> bool:
    return any(tensor.is_meta for tensor in tensors)


def _form_of(*tensors: Tensor) -> Tensor:
    return form(max(tensors, key=_precision), *spread(*tensors))


def _precision(tensor: Tensor) -> int:
    return tensor.itemsize
