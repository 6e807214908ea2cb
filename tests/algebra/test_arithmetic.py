"""The page of arithmetic says what `algebra.cost` counts, and the articles' closed forms agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from refold.algebra.cost import parameters, work
from refold.algebra.geometry import Axis
from refold.algebra.operator import Concat, Conv, Operator, Sum, sequence

PAGE = Path(__file__).parents[2] / "docs" / "arithmetic.md"
ROW = re.compile(r"^\| `(.+)` \| ([\d,]+) \| ([\d.]*) ?\|$", re.MULTILINE)
LAYER = re.compile(r"(\d)×(\d) (\d+)→(\d+)(?: g(\d+))?")


def layer(text: str) -> Conv:
    found = LAYER.fullmatch(text)
    assert found, text
    height, width, inputs, outputs = map(int, found.groups()[:4])
    groups = int(found[5] or 1)
    weight = torch.empty(outputs, inputs // groups, height, width, device="meta")
    axes = tuple(Axis(k, 1, 1, k // 2, k // 2) for k in (height, width))
    return Conv(weight, None, axes, groups)


def expression(text: str) -> Operator:
    """Return the operators that a row of the page writes down."""
    paths = re.fullmatch(r"(\d+) × \((.+)\)", text)
    if paths:
        return Sum(tuple(expression(paths[2]) for _ in range(int(paths[1]))))
    return sequence(*(layer(part) for part in text.split(", ")))


def rows() -> list[tuple[str, int, float | None]]:
    found = ROW.findall(PAGE.read_text())
    return [(text, int(n.replace(",", "")), float(r) if r else None) for text, n, r in found]


def test_the_page_has_all_its_rows() -> None:
    assert len(rows()) == 17


@pytest.mark.parametrize(("text", "count", "share"), rows())
def test_a_row_is_what_the_layers_cost(text: str, count: int, share: float | None) -> None:
    op = expression(text)
    assert parameters(op) == count
    additions = 31 * 256 if isinstance(op, Sum) else 0  # of the paths' values
    assert work(op) == pytest.approx(count + additions, rel=1e-6)


def test_shares_are_of_the_first_row_of_their_block() -> None:
    first = 0
    for _, count, share in rows():
        if share is None:
            first = count
        else:
            assert share == round(count / first, 4)


@pytest.mark.parametrize("inputs", [32, 128])
@pytest.mark.parametrize("outputs", [64, 256])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_separable_convolutions_share_is_the_articles(
    inputs: int, outputs: int, kernel: int
) -> None:
    whole = expression(f"{kernel}×{kernel} {inputs}→{outputs}")
    depthwise = f"{kernel}×{kernel} {inputs}→{inputs} g{inputs}"
    apart = expression(f"{depthwise}, 1×1 {inputs}→{outputs}")
    assert parameters(apart) / parameters(whole) == pytest.approx(1 / outputs + 1 / kernel**2)


def test_the_slip_is_the_second_term() -> None:
    assert parameters(layer("5×5 32→256")) == 204_800
    assert parameters(layer("1×1 128→32")) == 208_896 - 204_800
    merged = work(layer("5×5 128→256")) / work(expression("1×1 128→32, 5×5 32→256"))
    assert round(merged, 1) == 3.9


def test_paths_hold_what_the_grouped_form_holds_layer_by_layer() -> None:
    """Form (a)'s layers side by side: 32 of 4 channels, and the grouped form's own."""
    for path, grouped in (
        ("1×1 256→4", "1×1 256→128"), ("3×3 4→4", "3×3 128→128 g32"), ("1×1 4→256", "1×1 128→256")
    ):  # fmt: skip
        assert parameters(Concat((layer(path),) * 32)) == parameters(layer(grouped))
