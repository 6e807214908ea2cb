"""Facts about calls: one name and one argument order for each, and which ask for a size only.

A call may be a function, a method, an operator or an aten overload.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

_T: Any = torch
_F: Any = F

_CONV = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_TRANSPOSED = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
_NORM = "input weight bias mean var training momentum eps cudnn=True"
_POOL = (
    "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True "
    "divisor_override=None"
)
_BINARY = "input other alpha=1"
_RESIZE = (
    "input size=None scale_factor=None mode='nearest' align_corners=None "
    "recompute_scale_factor=None antialias=False"
)

# canonical name -> (signature, functions, method names, aten names)
_TABLE: dict[str, tuple[str, tuple[Any, ...], str, str]] = {
    "conv1d": (_CONV, (_F.conv1d, _T.conv1d), "", "conv1d"),
    "conv2d": (_CONV, (_F.conv2d, _T.conv2d), "", "conv2d"),
    "conv3d": (_CONV, (_F.conv3d, _T.conv3d), "", "conv3d"),
    "convolution": (
        "input weight bias stride padding dilation transposed output_padding groups",
        (_T.convolution,),
        "",
        "convolution",
    ),
    "conv_transpose1d": (_TRANSPOSED, (_F.conv_transpose1d,), "", "conv_transpose1d"),
    "conv_transpose2d": (_TRANSPOSED, (_F.conv_transpose2d,), "", "conv_transpose2d"),
    "conv_transpose3d": (_TRANSPOSED, (_F.conv_transpose3d,), "", "conv_transpose3d"),
    "linear": ("input weight bias=None", (_F.linear,), "", "linear"),
    "batch_norm": (_NORM, (_T.batch_norm,), "", "batch_norm"),
    "functional_batch_norm": (
        "input mean var weight=None bias=None training=False momentum=0.1 eps=1e-05",
        (_F.batch_norm,),
        "",
        "",
    ),
    "native_norm": (
        "input weight bias mean var momentum eps",
        (),
        "",
        "_native_batch_norm_legit_no_training",
    ),
    "add": (
        _BINARY,
        (operator.add, operator.iadd, _T.add),
        "add add_ __add__ __iadd__",
        "add add_",
    ),
    "sub": (
        _BINARY,
        (operator.sub, operator.isub, _T.sub, _T.subtract),
        "sub sub_ subtract",
        "sub sub_",
    ),
    "rsub": (_BINARY, (_T.rsub,), "__rsub__", "rsub"),
    "mul": (
        "input other",
        (operator.mul, operator.imul, _T.mul, _T.multiply),
        "mul mul_ multiply",
        "mul mul_",
    ),
    "div": (
        "input other rounding_mode=None",
        (operator.truediv, operator.itruediv, _T.div, _T.true_divide, _T.divide),
        "div div_ divide true_divide",
        "div div_",
    ),
    "neg": ("input", (operator.neg, _T.neg, _T.negative), "neg neg_ negative", "neg neg_"),
    "lerp": ("input end weight", (_T.lerp,), "lerp lerp_", "lerp lerp_"),
    "addcmul": ("input tensor1 tensor2 value=1", (_T.addcmul,), "addcmul", "addcmul"),
    "addcdiv": ("input tensor1 tensor2 value=1", (_T.addcdiv,), "addcdiv", "addcdiv"),
    "stack": ("tensors dim=0", (_T.stack,), "", "stack"),
    "sum": ("input dim=None keepdim=False dtype=None", (_T.sum,), "sum", "sum"),
    "matmul": ("input other", (_T.matmul, _T.mm, operator.matmul), "matmul mm", "matmul mm"),
    "addmm": ("bias input other beta=1 alpha=1", (_T.addmm,), "", "addmm"),
    "instance_norm": (
        "input mean=None var=None weight=None bias=None use_input_stats=True momentum=0.1 "
        "eps=1e-05",
        (_F.instance_norm,),
        "",
        "",
    ),
    "hstack": ("tensors", (_T.hstack,), "", ""),
    "flip": ("input dims", (_T.flip,), "flip", "flip"),
    "zeros_like": ("input", (_T.zeros_like,), "", "zeros_like"),
    "sum_list": ("items start=0", (builtins.sum,), "", ""),
    "cat": ("tensors dim=0", (_T.cat, _T.concat, _T.concatenate), "", "cat"),
    "tensor_split": ("input split_size dim=0", (_T.tensor_split,), "tensor_split", ""),
    "chunk": ("input chunks dim=0", (_T.chunk,), "chunk", "chunk"),
    "split": (
        "input split_size dim=0",
        (_T.split, _T.split_with_sizes),
        "split split_with_sizes",
        "split split_with_sizes",
    ),
    "getitem": ("input index", (operator.getitem,), "__getitem__", ""),
    "slice": ("input dim=0 start=None end=None step=1", (), "", "slice"),
    "narrow": ("input dim start length", (_T.narrow,), "narrow", "narrow"),
    "index_select": ("input dim index", (_T.index_select,), "index_select", "index_select"),
    "channel_shuffle": (
        "input groups",
        (_F.channel_shuffle, _T.channel_shuffle),
        "",
        "channel_shuffle",
    ),
    "pad": ("input pad mode='constant' value=None", (_F.pad,), "", "pad"),
    "constant_pad": ("input pad value=0", (_T.constant_pad_nd,), "", "constant_pad_nd"),
    "avg_pool1d": (_POOL, (_F.avg_pool1d, _T.avg_pool1d), "", "avg_pool1d"),
    "avg_pool2d": (_POOL, (_F.avg_pool2d,), "", "avg_pool2d"),
    "avg_pool3d": (_POOL, (_F.avg_pool3d,), "", "avg_pool3d"),
    "adaptive_pool1d": ("input output_size", (_F.adaptive_avg_pool1d,), "", "adaptive_avg_pool1d"),
    "adaptive_pool2d": ("input output_size", (_F.adaptive_avg_pool2d,), "", "adaptive_avg_pool2d"),
    "adaptive_pool3d": ("input output_size", (_F.adaptive_avg_pool3d,), "", "adaptive_avg_pool3d"),
    "mean": ("input dim=None keepdim=False dtype=None", (_T.mean,), "mean", "mean"),
    "interpolate": (_RESIZE, (_F.interpolate, _F.upsample), "", ""),
    "flatten": ("input start_dim=0 end_dim=-1", (_T.flatten,), "flatten", "flatten"),
    "reshape": ("input shape", (_T.reshape,), "reshape view", "reshape view _unsafe_view"),
    "reshape_as": ("input other", (), "reshape_as view_as", "view_as"),
    "squeeze": ("input dim=None", (_T.squeeze,), "squeeze", "squeeze"),
    "unsqueeze": ("input dim", (_T.unsqueeze,), "unsqueeze", "unsqueeze"),
    "transpose": ("input dim0 dim1", (_T.transpose, _T.swapaxes), "transpose", "transpose"),
    "permute": ("input dims", (_T.permute,), "permute", "permute"),
    "dropout": (
        "input p=0.5 training=True inplace=False",
        (_F.dropout, _F.dropout1d, _F.dropout2d, _F.dropout3d, _F.alpha_dropout, _T.dropout),
        "",
        "dropout dropout_",
    ),
    "same": (
        "input",
        (_T.clone,),
        "contiguous clone",
        "clone contiguous alias lift_fresh_copy",
    ),
}


@dataclass(frozen=True, eq=False)
class Call:
    """A call by its canonical name, its arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.arguments[key]


def canonical(node: fx.Node) -> Call | None:
    """Return the canonical form of a call node, None for calls that are not in the table."""
    name = _name(node)
    if name is None:
        return None
    arguments = _bind(_TABLE[name][0], node.args, dict(node.kwargs))
    return None if arguments is None else Call(name, arguments)


def _name(node: fx.Node) -> str | None:
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return (
            _OVERLOADS.get(target.overloadpacket.__name__) if target.namespace == "aten" else None
        )
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _OVERLOADS.get(target.__name__)
    if getattr(target, "__name__", "") == "stochastic_depth":
        return None
    try:
        return _FUNCTIONS.get(target)
    except TypeError:
        return None


def _bind(signature: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Bind arguments to names, None when one is unknown (`out=`).

    A method that takes its sizes one by one gives them as one tuple.
    """
    names = signature.split()
    if len(args) > len(names):
        args = (*args[: len(names) - 1], tuple(args[len(names) - 1 :]))
    bound: dict[str, Any] = {}
    left = dict(kwargs)
    for position, item in enumerate(names):
        name, _, default = item.partition("=")
        given = name if name in left else _ALIASES.get(name, name)
        if position < len(args):
            bound[name] = args[position]
        elif given in left:
            bound[name] = left.pop(given)
        elif default:
            bound[name] = _DEFAULTS[default]
        else:
            return None
    return None if left else bound


_ALIASES = {
    "mean": "running_mean",
    "var": "running_var",
    "dim": "axis",
    "split_size": "split_size_or_sections",
    "input": "self",
    "cudnn": "cudnn_enabled",
}
_DEFAULTS: dict[str, Any] = {
    "None": None,
    "0": 0,
    "1": 1,
    "-1": -1,
    "True": True,
    "False": False,
    "0.1": 0.1,
    "0.5": 0.5,
    "1e-05": 1e-5,
    "'nearest'": "nearest",
    "'constant'": "constant",
}
_FUNCTIONS: dict[Any, str] = {f: name for name, row in _TABLE.items() for f in row[1]}
_METHODS: dict[str, str] = {m: name for name, row in _TABLE.items() for m in row[2].split()}
_OVERLOADS: dict[str, str] = {a: name for name, row in _TABLE.items() for a in row[3].split()}


_SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "get_device", "is_floating_point", "stride"}
_SHAPE_READERS = {"reshape_as", "view_as", "expand_as", "type_as"}
_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "layout"}


def reads_shape_only(node: fx.Node, value: fx.Node) -> bool:
    """Return whether `node` reads the size, type or device of `value` and none of its numbers."""
    if node.op == "call_method":
        if node.target in _SHAPE_METHODS:
            return True
        return node.target in _SHAPE_READERS and node.args[:1] != (value,)
    if node.op == "call_function" and node.target is getattr:
        return len(node.args) > 1 and node.args[1] in _SHAPE_ATTRIBUTES
    return False


def shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Return what reads only the size, type or device of a node's value."""
    return (user for user in node.users if reads_shape_only(user, node))
