"""Each transform against torch's own layers, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from refold import transforms as T
from refold.errors import GeometryError, InputError, RefusedError

CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
KERNELS = [(1,), (3,), (4,), (3, 3), (2, 3), (1, 3), (3, 1), (5, 2), (3, 1, 2)]
WIDE = {"dtype": torch.float64}


@pytest.fixture
def draw(generator: torch.Generator) -> Any:
    return lambda *shape: torch.randn(*shape, generator=generator, **WIDE)


@pytest.fixture
def statistics(draw: Any) -> Any:
    def make(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gamma = draw(channels)
        gamma[0], gamma[-1] = -0.7, 0.9
        return draw(channels), draw(channels).abs() + 0.3, gamma, draw(channels)

    return make


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def map_of(draw: Any, channels: int, kernel: tuple[int, ...]) -> Tensor:
    return draw(2, channels, *(size + 4 + axis for axis, size in enumerate(kernel)))


# -- I --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_conv_bn(
    kernel: tuple[int, ...], groups: int, biased: bool, draw: Any, statistics: Any
) -> None:
    weight, bias = draw(6, 4 // groups, *kernel), draw(6) if biased else None
    mean, var, gamma, beta = statistics(6)
    x = map_of(draw, 4, kernel)
    options = {"stride": 2, "padding": 1, "groups": groups}
    y = CONVS[len(kernel)](x, weight, bias, **options)
    expected = F.batch_norm(y, mean, var, gamma, beta, eps=1e-3)
    folded = T.conv_bn(weight, bias, mean, var, gamma, beta, eps=1e-3, groups=groups)
    close(CONVS[len(kernel)](x, *folded, **options), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_bn_transposed_linear_and_without_affine(
    groups: int, draw: Any, statistics: Any
) -> None:
    mean, var, gamma, beta = statistics(6)
    weight, x = draw(4, 6 // groups, 3, 2), draw(2, 4, 5, 6)
    options = {"stride": 2, "padding": 1, "groups": groups}
    expected = F.batch_norm(F.conv_transpose2d(x, weight, None, **options), mean, var, gamma, beta)
    folded = T.conv_bn(weight, None, mean, var, gamma, beta, groups=groups, transposed=True)
    close(F.conv_transpose2d(x, *folded, **options), expected)
    matrix, rows = draw(6, 4), draw(3, 4)
    expected = F.batch_norm(F.linear(rows, matrix), mean, var)
    close(F.linear(rows, *T.conv_bn(matrix, None, mean, var)), expected)


def test_conv_bn_refuses_what_does_not_fit(draw: Any, statistics: Any) -> None:
    none: Any = None
    with pytest.raises(RefusedError, match="no running statistics"):
        T.conv_bn(draw(6, 4, 3), None, none, none)
    with pytest.raises(GeometryError, match="do not fit 6 channels"):
        T.conv_bn(draw(6, 4, 3), None, *statistics(4))
    with pytest.raises(GeometryError, match=r"bias \(5,\) does not fit 6"):
        T.conv_bn(draw(6, 4, 3), draw(5), *statistics(6))


# -- II, IV, VI -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_add_branches(kernel: tuple[int, ...], draw: Any) -> None:
    branches = [
        (draw(8, 4, *kernel), draw(8)),
        (draw(8, 2, *kernel), None),
        (draw(8, 1, *kernel), draw(8)),
    ]
    groups, conv, x = (1, 2, 4), CONVS[len(kernel)], map_of(draw, 4, kernel)
    expected = sum(
        conv(x, w, b, 2, 1, groups=g) for (w, b), g in zip(branches, groups, strict=True)
    )
    close(conv(x, *T.add_branches(branches, groups=groups), 2, 1), expected)
    weight, bias = T.add_branches([branches[1], branches[1]], groups=2)
    assert weight.shape == (8, 2, *kernel)
    assert bias is None
    close(weight, 2 * branches[1][0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("groups", [1, 2])
def test_concat_branches(kernel: tuple[int, ...], groups: int, draw: Any) -> None:
    branches = [(draw(6, 4 // groups, *kernel), draw(6)), (draw(2, 4 // groups, *kernel), None)]
    conv, x = CONVS[len(kernel)], map_of(draw, 4, kernel)
    expected = torch.cat([conv(x, w, b, 2, 1, groups=groups) for w, b in branches], 1)
    close(conv(x, *T.concat_branches(branches, groups=groups), 2, 1), expected)
    assert T.concat_branches(branches[1:], groups=groups)[0].shape == (2, 4, *kernel)


def test_branches_that_do_not_fit(draw: Any) -> None:
    first, wider, larger = (draw(4, 4, 3), None), (draw(4, 6, 3), None), (draw(4, 4, 5), None)
    for join in (T.add_branches, T.concat_branches):
        with pytest.raises(GeometryError, match="multi_scale"):
            join([first, larger])
        with pytest.raises(RefusedError, match="channels"):
            join([first, wider])
        with pytest.raises(InputError, match="at least one branch"):
            join([])
        with pytest.raises(GeometryError, match="3 groups do not fit 2 branches"):
            join([first, first], groups=(1, 1, 1))


SCALES: list[tuple[Any, Any, Any]] = [
    ((1, 3), (3, 3), 1), ((3, 1), (3, 5), 1), ((1,), (7,), 1), ((2, 2), (4, 6), 1),
    ((3, 3), (7, 7), 3), ((3, 2), (9, 5), (4, 2)), ((3, 1, 3), (5, 3, 5), 2),
]  # fmt: skip


@pytest.mark.parametrize(("small", "large", "dilation"), SCALES)
def test_multi_scale(small: Any, large: Any, dilation: Any, draw: Any) -> None:
    ndim = len(small)
    gaps = (dilation,) * ndim if isinstance(dilation, int) else dilation
    weight, x = draw(6, 2, *small), map_of(draw, 4, large)
    margins = [k - (d * (s - 1) + 1) for k, s, d in zip(large, small, gaps, strict=True)]
    grown = T.multi_scale(weight, large, dilation=dilation)
    assert grown.shape == (6, 2, *large)
    padding = [3 + margin // 2 for margin in margins]
    expected = CONVS[ndim](x, weight, None, 2, 3, gaps, 2)
    close(CONVS[ndim](x, grown, None, 2, padding, 1, 2), expected)


def test_multi_scale_refuses_what_has_no_centre(draw: Any) -> None:
    for kernel, gap in ((4, 1), (1, 1), (5, 3)):
        with pytest.raises(GeometryError, match="no centred place"):
            T.multi_scale(draw(2, 2, 3), kernel, dilation=gap)
    with pytest.raises(GeometryError, match="kernel_size must be an int, got"):
        T.multi_scale(draw(2, 2, 3), (5, 5))


# -- III, V, the padded norm ----------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_then_kxk(kernel: tuple[int, ...], groups: int, stride: int, draw: Any) -> None:
    conv, point = CONVS[len(kernel)], (1,) * len(kernel)
    first, second = (
        (draw(6, 4 // groups, *point), draw(6)),
        (draw(8, 6 // groups, *kernel), draw(8)),
    )
    x = map_of(draw, 4, kernel)
    ahead = conv(conv(x, *first, padding=1, groups=groups), *second, stride, groups=groups)
    merged = T.pointwise_then_kxk(*first, *second, groups=groups)
    close(conv(x, *merged, stride, padding=1, groups=groups), ahead)  # the 1x1 pads, not the KxK
    between = conv(conv(x, first[0], groups=groups), *second, stride, 1, groups=groups)
    merged = T.pointwise_then_kxk(first[0], None, *second, groups=groups, padding=1)
    close(conv(x, *merged, stride, 1, groups=groups), between)


def test_the_border_of_a_bias_is_refused_and_the_padded_norm_cures_it(
    draw: Any, statistics: Any
) -> None:
    first, second = draw(6, 4, 1, 1), (draw(8, 6, 3, 5), draw(8))
    with pytest.raises(RefusedError, match="bias meets the second convolution's zero padding"):
        T.pointwise_then_kxk(first, draw(6), *second, padding=(1, 2))
    norm, x = statistics(6), draw(2, 4, 6, 7)
    ringed = T.bn_and_pad(F.conv2d(x, first), *norm, padding=(1, 2))
    weight1, bias1 = T.conv_bn(first, None, *norm)
    naive = F.conv2d(F.conv2d(x, weight1, bias1), *second, padding=(1, 2))
    merged = F.conv2d(x, *T.pointwise_then_kxk(weight1, bias1, *second), padding=(1, 2))
    close(merged, F.conv2d(ringed, *second))
    assert not torch.allclose(merged, naive)
    close(merged[:, :, 1:-1, 2:-2], naive[:, :, 1:-1, 2:-2])


def test_pointwise_then_kxk_refuses_what_does_not_fit(draw: Any) -> None:
    with pytest.raises(GeometryError, match="first kernel must be 1"):
        T.pointwise_then_kxk(draw(6, 4, 3), None, draw(8, 6, 3), None)
    with pytest.raises(RefusedError, match="channels of the two do not fit"):
        T.pointwise_then_kxk(draw(6, 4, 1), None, draw(8, 5, 3), None)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_avg_pool_to_conv(kernel: tuple[int, ...], groups: int, draw: Any) -> None:
    ndim, x = len(kernel), map_of(draw, 4, kernel)
    pools: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    weight = T.avg_pool_to_conv(4, kernel, groups=groups, ndim=ndim, **WIDE)
    assert weight.shape == (4, 4 // groups, *kernel)
    padding = [size // 2 for size in kernel]
    expected = pools[ndim](x, kernel, 2, padding)
    close(CONVS[ndim](x, weight, None, 2, padding, groups=groups), expected)


def test_bn_and_pad_is_the_norm_of_the_padded_map(draw: Any, statistics: Any) -> None:
    x, norm = draw(2, 4, 5, 6), statistics(4)
    expected = F.batch_norm(F.pad(x, (2, 2, 1, 1)), *norm)
    close(T.bn_and_pad(x, *norm, padding=(1, 2)), expected)
    with pytest.raises(GeometryError, match="at least 0"):
        T.bn_and_pad(x, *norm, padding=-1)


# -- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1, 2, 4])
def test_densify_groups(target: int, draw: Any) -> None:
    weight, x = draw(8, 3, 3, 2), draw(2, 12, 5, 6)
    dense = T.densify_groups(weight, 4, target)
    assert dense.shape == (8, 12 // target, 3, 2)
    close(F.conv2d(x, dense, groups=target), F.conv2d(x, weight, groups=4))
    scattering = draw(12, 2, 3, 2)
    dense = T.densify_groups(scattering, 4, target)
    close(F.conv_transpose2d(x, dense, groups=target), F.conv_transpose2d(x, scattering, groups=4))


def test_densify_groups_refuses_what_does_not_divide(draw: Any) -> None:
    with pytest.raises(GeometryError, match="4 groups do not join into 3"):
        T.densify_groups(draw(8, 3), 4, 3)
    with pytest.raises(GeometryError, match="groups 3 does not divide"):
        T.densify_groups(draw(8, 3), 3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "size", "options"),
    [
        ((3,), (6,), {"padding": 1}),
        ((3, 2), (4, 5), {"stride": (1, 2), "padding": (1, 0)}),
        ((1, 3), (3, 5), {"dilation": (1, 2), "padding": (0, 2)}),
        ((2, 1, 2), (3, 2, 3), {}),
    ],
)
def test_conv_to_dense(kernel: Any, size: Any, options: Any, groups: int, draw: Any) -> None:
    weight, bias, x = draw(6, 4 // groups, *kernel), draw(6), draw(2, 4, *size)
    expected = CONVS[len(kernel)](x, weight, bias, groups=groups, **options).flatten(1)
    matrix, offset = T.conv_to_dense(weight, bias, size, groups=groups, **options)
    close(F.linear(x.flatten(1), matrix, offset), expected)
    blocks, offset = T.conv_to_dense(weight, bias, size, groups=groups, grouped=True, **options)
    assert blocks.shape == (expected.shape[1], x[0].numel() // groups)
    rows = x.flatten(1)[:, :, None]
    close(F.conv1d(rows, blocks[:, :, None], offset, groups=groups)[:, :, 0], expected)


def test_conv_to_dense_refuses_a_kernel_that_does_not_fit(draw: Any) -> None:
    with pytest.raises(GeometryError, match="does not fit maps"):
        T.conv_to_dense(draw(2, 2, 5, 5), None, 3)


# -- all ------------------------------------------------------------------------------------------


def test_every_transform_is_differentiable(draw: Any, statistics: Any) -> None:
    weight, bias, point, start = draw(4, 2, 3), draw(4), draw(4, 2, 1), draw(4)
    norm = statistics(4)
    calls: list[tuple[Any, tuple[Tensor, ...]]] = [
        (lambda *a: T.conv_bn(*a), (weight, bias, *norm)),
        (lambda w, b: T.add_branches([(w, b), (2 * w, b)]), (weight, bias)),
        (lambda w, b: T.concat_branches([(w, b), (w, None)]), (weight, bias)),
        (lambda w: T.multi_scale(w, 7, dilation=2), (weight,)),
        (
            lambda a, b, c, d: T.pointwise_then_kxk(a, b, c, d, groups=2),
            (point, start, weight, bias),
        ),
        (lambda x, *n: T.bn_and_pad(x, *n, padding=1), (draw(1, 4, 3), *norm)),
        (lambda w: T.densify_groups(w, 2), (weight,)),
        (lambda w, b: T.conv_to_dense(w, b, 4, padding=1, groups=2), (weight, bias)),
    ]
    for function, inputs in calls:
        assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in inputs])


def test_inputs_stay_and_dtypes_are_kept(draw: Any, statistics: Any) -> None:
    weight, bias = draw(4, 4, 3).float(), draw(4).float()
    norm = [tensor.float() for tensor in statistics(4)]
    before = [tensor.clone() for tensor in (weight, bias, *norm)]
    for got in (T.conv_bn(weight, bias, *norm), T.add_branches([(weight, bias)] * 2)):
        assert {tensor.dtype for tensor in got if tensor is not None} == {torch.float32}
    T.pointwise_then_kxk(weight[:, :, :1], bias, weight, bias)
    assert T.multi_scale(weight.half(), 5).dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, bias, *norm), strict=True))
