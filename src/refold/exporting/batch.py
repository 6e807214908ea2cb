"""The batch of example inputs: which tensors carry it, how to resize it, and the check by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from refold.equivalence import (
    IncomparableError,
    compare,
    native_bound,
    relative_errors,
    rounding_bound,
    run,
    tensor_leaves,
)
from refold.errors import ExportError, InputError
from refold.inputs import Arguments, tensors

_CHECKED = (1, 3)  # the size torch.export would freeze, and one that no example has


class Batch:
    """Example inputs whose dimension 0, shared with the first tensor's, is free."""

    def __init__(self, inputs: Arguments) -> None:
        """Keep the inputs; tensors of another first size carry no batch.

        Raises:
            InputError: When there is no tensor among them.
        """
        if not tensors(inputs):
            raise InputError("example_inputs holds no tensor: a file's inputs are tensors")
        first = tensors(inputs)[0]
        self._inputs = inputs
        self._size = first.shape[0] if first.ndim else None

    @property
    def example(self) -> Arguments:
        """The inputs at batch 2 or more: torch.export would freeze a batch of 1."""
        return self._inputs if self._size is None else self.of(max(self._size, 2))

    @property
    def dynamic_shapes(self) -> Any:
        """What torch.export and torch.onnx.export ask for."""
        free = {0: torch.export.Dim("batch", min=1)}

        def shape(leaf: object) -> dict[int, Any] | None:
            return free if isinstance(leaf, Tensor) and self._is_batched(leaf) else None

        return pytree.tree_map(shape, self._inputs)

    @property
    def free_shapes(self) -> list[tuple[int, ...] | None]:
        """Shapes with -1 for the batch; None for an argument that is not a tensor."""
        leaves = pytree.tree_leaves(self._inputs)
        return [self._free(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]

    def of(self, size: int) -> Arguments:
        """Return inputs of another batch size; repeated samples are shifted, so that all differ."""

        def resized(tensor: Tensor) -> Tensor:
            return self._resize(tensor, size) if self._is_batched(tensor) else tensor

        return pytree.tree_map_only(Tensor, resized, self._inputs)

    def check(
        self, model: nn.Module, runtime: str, call: Callable[[Arguments], list[Tensor]]
    ) -> None:
        """Compare a runtime's outputs with the model's at two batch sizes.

        Raises:
            ExportError: When they differ by more than rounding explains.
        """
        floats = [tensor.dtype for tensor in tensors(self._inputs) if tensor.is_floating_point()]
        bound = max([native_bound(model), *(rounding_bound(dtype, depth=1) for dtype in floats)])
        for size in _CHECKED if self._size is not None else (None,):
            inputs = self._inputs if size is None else self.of(size)
            where = f"{runtime} at batch {size}" if size else runtime
            try:
                gaps = compare(tensor_leaves(run(model, inputs)), call(inputs))
            except IncomparableError as problem:
                raise ExportError(f"the exported file differs in {where}: {problem}") from None
            error, output = relative_errors([gaps])[0]
            if error > bound:
                raise ExportError(
                    f"the exported file differs in {where}: {output} is off by {error:.2g} "
                    f"relative to torch, more than rounding explains ({bound:.2g})"
                )

    def _free(self, tensor: Tensor) -> tuple[int, ...]:
        return (-1, *tensor.shape[1:]) if self._is_batched(tensor) else tuple(tensor.shape)

    def _is_batched(self, tensor: Tensor) -> bool:
        return self._size is not None and tensor.ndim > 0 and tensor.shape[0] == self._size

    def _resize(self, tensor: Tensor, size: int) -> Tensor:
        rows = [tensor[index % len(tensor)] for index in range(size)]
        if tensor.ndim > 1:
            rows = [row.roll(index // len(tensor), dims=-1) for index, row in enumerate(rows)]
        return torch.stack(rows)
