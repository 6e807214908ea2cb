"""The six transforms of the Diverse Branch Block and their friends, on plain tensors.

Each takes weights and biases and returns weights and biases: pure, differentiable, computed in
float64 and given back in the dtype that came in. They are the library's own rules behind plain
arguments, so what a rule refuses, they refuse with its reason.

Source: Ding et al. 2021, Diverse Branch Block, arXiv:2103.13425, section 3.2.
"""

from __future__ import annotations

from refold.transforms.equivalent import equivalent_conv, equivalent_linear, equivalent_operator
from refold.transforms.kernels_in_parallel import add_branches, concat_branches, multi_scale
from refold.transforms.kernels_in_series import (
    avg_pool_to_conv,
    bn_and_pad,
    conv_bn,
    pointwise_then_kxk,
)
from refold.transforms.layout import conv_to_dense, densify_groups

__all__ = [
    "add_branches",
    "avg_pool_to_conv",
    "bn_and_pad",
    "concat_branches",
    "conv_bn",
    "conv_to_dense",
    "densify_groups",
    "equivalent_conv",
    "equivalent_linear",
    "equivalent_operator",
    "multi_scale",
    "pointwise_then_kxk",
]
