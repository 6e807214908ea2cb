"""The rules, in the one order in which the engine tries them.

Each rule is exact under the condition it states; order only decides which of several equal forms
is reached first.
"""

from __future__ import annotations

from refold.rules.channels import (
    concat_branches,
    concat_slices,
    fold_select_ahead_of_conv,
    fold_select_into_conv,
    merge_selects,
)
from refold.rules.commute import (
    pass_affine_backward,
    pass_affine_forward,
    pass_pointwise_backward,
    pass_pointwise_forward,
    pass_select_backward,
    pass_select_forward,
)
from refold.rules.distribute import (
    distribute_into_join,
    distribute_over_concat,
    distribute_over_sum,
    gather_from_concat,
)
from refold.rules.norm import fold_affine_ahead_of_conv, fold_affine_into_conv, merge_affines
from refold.rules.pad import drop_empty_pad, fold_crop_into_window, fold_pad_into_window
from refold.rules.parallel import add_branches, drop_zero_branches
from refold.rules.phases import merge_patches, merge_phases
from refold.rules.row import add_to_matrix
from refold.rules.rule import Rule
from refold.rules.series import merge_convs_in_series, merge_into_conv
from refold.rules.siblings import stack_heads

RULES: tuple[Rule, ...] = (
    drop_empty_pad,
    merge_selects,
    merge_affines,
    fold_affine_into_conv,
    fold_pad_into_window,
    fold_crop_into_window,
    fold_affine_ahead_of_conv,
    fold_select_into_conv,
    merge_convs_in_series,
    merge_patches,
    fold_select_ahead_of_conv,
    drop_zero_branches,
    add_branches,
    add_to_matrix,
    concat_slices,
    concat_branches,
    stack_heads,
    pass_affine_forward,
    pass_affine_backward,
    pass_select_forward,
    pass_select_backward,
    pass_pointwise_forward,
    pass_pointwise_backward,
    merge_phases,
    distribute_over_sum,
    gather_from_concat,
    distribute_over_concat,
    distribute_into_join,
    merge_into_conv,
)

__all__ = ["RULES", "Rule"]
