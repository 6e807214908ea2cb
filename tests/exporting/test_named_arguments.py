"""Arguments by name reach every format, whatever the forward calls them.

The oracle is the model itself: `export` runs each file beside it, at two sizes of each free axis.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from helpers.nightly import some
from refold.exporting import export, onnx_session, openvino_model
from refold.exporting.axes import choose


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)


class KeywordOnly(Two):
    def forward(self, x: Tensor, *, scale: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.one(x) * scale
        return y if mask is None else y * mask


class Anything(Two):
    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.one(x) + self.other(more["extra"])


class Batch(Two):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": self.one(batch["left"]) + self.other(batch["right"])}


class Optional(Two):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, other: Tensor | None = None, tuple: bool = True
    ) -> Any:
        y = self.one(x) if mask is None else self.one(x) * mask
        y = y if other is None else y + self.other(other)
        return (y,) if tuple else y


CASES: list[tuple[nn.Module, Any, list[str]]] = [
    (Anything(), {"extra": image(2, 3, 8, 6), "x": image(2, 3, 8, 6)}, ["x", "extra"]),
    (
        KeywordOnly(),
        {"mask": image(2, 1, 8, 6), "x": image(2, 3, 8, 6), "scale": image(2, 1, 1, 1)},
        ["x", "scale", "mask"],
    ),
    (
        Batch(),
        {"batch": {"left": image(2, 3, 8, 6), "right": image(2, 3, 8, 6)}},
        ["batch_left", "batch_right"],
    ),
    (
        Optional(),
        {"tuple": False, "other": image(2, 3, 8, 6), "x": image(2, 3, 8, 6)},
        ["x", "other"],
    ),
]


EVERY = product(range(len(CASES)), (".onnx", ".xml", ".pt2"))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "suffix"), some(EVERY, keep=((0, ".onnx"), (1, ".pt2"))))
def test_named_arguments(tmp_path: Path, case: int, suffix: str) -> None:
    model, inputs, names = CASES[case]
    path = export(model.eval(), tmp_path / f"net{suffix}", inputs, dynamic="batch,size")
    if suffix == ".onnx":
        assert [x.name for x in onnx_session(path).get_inputs()] == names
        assert free_axes(path)["x" if "x" in names else names[0]] == ["batch", "height", "width"]
    if suffix == ".xml":
        assert [x.get_any_name() for x in openvino_model(path).inputs] == names


def free_axes(path: Path) -> dict[str, list[str]]:
    values = onnx.load(path).graph.input
    return {
        v.name: [d.dim_param for d in v.type.tensor_type.shape.dim if d.dim_param] for v in values
    }


def test_a_size_of_one_that_is_spread_over_the_map_stays() -> None:
    inputs = image(2, 3, 8, 6), image(2, 1, 1, 1), image(2, 1, 8, 6)
    free = choose("batch,size", inputs, ("x", "scale", "mask")).free
    assert [list(row.values()) for row in free] == [
        ["batch", "height", "width"], ["batch"], ["batch", "height", "width"],
    ]  # fmt: skip
    alone = choose("batch,size", (image(2, 3, 1, 1),), ("x",)).free
    assert list(alone[0].values()) == ["batch", "height", "width"]
