"""What to write, and the check that the file computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from refold.equivalence import (
    IncomparableError,
    compare,
    native_bound,
    own_loss,
    relative_errors,
    rounding_bound,
    run,
    tensor_leaves,
)
from refold.errors import ExportError
from refold.exporting.axes import Axes
from refold.inputs import Arguments, tensors


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model and how to write it.

    Args:
        model: in eval mode, on the CPU.
        reference: the same before it was cast to float16; else the model.
        axes: the example inputs, and which of their axes are free.
        inputs: the names of their tensors.
        outputs: the names of the model's.
        opset: of ONNX; None for the exporter's own.
        provenance: what to say of where the file comes from.
        about: what to say of what it is: its classes, say, and how images are prepared.
    """

    model: nn.Module
    reference: nn.Module
    axes: Axes
    inputs: list[str]
    outputs: list[str]
    opset: int | None
    provenance: Mapping[str, str]
    about: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The shape of each input by its name; a size that is free is called by its name."""
        known = [shape for shape in self.axes.shapes if shape is not None]
        return dict(zip(self.inputs, known, strict=True))

    def check(self, runtime: str, call: Callable[[Arguments], list[Tensor]]) -> None:
        """Compare a runtime's outputs with the model's, every free axis at two sizes.

        The bound follows from the precision and the depth. Where that is too small for the model,
        it is 8 times what torch itself loses against float64.

        Raises:
            ExportError: When they differ by more than rounding explains.
        """
        dtypes = [x.dtype for x in tensors(self.axes.inputs) if x.is_floating_point()]
        least = max([native_bound(self.model), *(rounding_bound(d, depth=1) for d in dtypes)])
        for label, inputs in self.axes.trials(self.model):
            where = f"{runtime} at {label}" if label else runtime
            try:
                gaps = compare(tensor_leaves(run(self.model, inputs)), call(inputs))
            except IncomparableError as problem:
                raise ExportError(f"the exported file differs in {where}: {problem}") from None
            error, output = relative_errors([gaps])[0]
            if error <= least:
                continue
            bound = max(least, own_loss(self.model, inputs, self.reference))
            if not error <= bound:
                raise ExportError(
                    f"the exported file differs in {where}: {output} is off by {error:.2g} "
                    f"relative to torch, more than rounding explains ({bound:.2g})"
                )
