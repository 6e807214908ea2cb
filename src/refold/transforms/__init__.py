"""The six transforms of the Diverse Branch Block and their friends, on plain tensors.

Each takes weights and biases and returns weights and biases: pure, differentiable, computed in
float64 and given back in the dtype that came in. They are the library's own rules behind plain
arguments, so what a rule refuses, they refuse with its reason.

Source: Ding et al. 2021, Diverse Branch Block, arXiv:2103.13425, section 3.2.
"""

from __future__ import annotations

from refold.transforms.equivalent import equivalent_conv as equivalent_conv
from refold.transforms.equivalent import equivalent_linear as equivalent_linear
from refold.transforms.equivalent import equivalent_operator as equivalent_operator
from refold.transforms.layout import conv_to_dense as conv_to_dense
from refold.transforms.layout import densify_groups as densify_groups
from refold.transforms.parallel import add_branches as add_branches
from refold.transforms.parallel import concat_branches as concat_branches
from refold.transforms.parallel import multi_scale as multi_scale
from refold.transforms.series import avg_pool_to_conv as avg_pool_to_conv
from refold.transforms.series import bn_and_pad as bn_and_pad
from refold.transforms.series import conv_bn as conv_bn
from refold.transforms.series import pointwise_then_kxk as pointwise_then_kxk
