"""What is known about calls: one table that every room of `graph` asks.

A call may be a function, a method, an operator or an aten overload. A row of the table has a name
of ours, the arguments in order, every way to spell the call, and what holds for all of these.
"""

from __future__ import annotations

import builtins
import operator
from ast import literal_eval
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.nn import functional as F

_REQUIRED = object()


class Kind(Flag):
    """What a call does besides its arithmetic; NONE where nothing is known."""

    NONE = 0
    VIEW = auto()
    """Its value may share memory with what it reads."""
    RANDOM = auto()
    """It draws numbers, or leaves memory as it finds it."""
    ELEMENTWISE = auto()
    """It maps numbers one by one: its value has the shape of its first argument."""
    BROADCASTS = auto()
    """Its value has the shape that its arguments have together."""
    LIKENS = auto()
    """Of its second argument it reads no more than the size or the type."""


VIEW, RANDOM, ELEMENTWISE, BROADCASTS = Kind.VIEW, Kind.RANDOM, Kind.ELEMENTWISE, Kind.BROADCASTS


@dataclass(frozen=True, eq=False)
class Fact:
    """One row of the table.

    Args:
        name: what we call it.
        signature: its arguments in order, with their defaults; empty where nobody asks for them.
        spellings: its other names. Each stands for the functions of torch, torch.nn.functional and
            operator, the method and the aten overload of that name; `functional.x` for one alone.
        kind: what holds for it.
    """

    name: str
    signature: str = ""
    spellings: str = ""
    kind: Kind = Kind.NONE
    parameters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        pairs = (item.partition("=") for item in self.signature.split())
        known = {name: literal_eval(given) if given else _REQUIRED for name, _, given in pairs}
        object.__setattr__(self, "parameters", known)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Bind arguments to names, None when one is unknown (`out=`) or missing.

        A method that takes its sizes one by one gives them as one tuple.
        """
        names = list(self.parameters)
        if len(args) > len(names) and names[-1] in ("shape", "dims", "operands"):
            args = (*args[: len(names) - 1], tuple(args[len(names) - 1 :]))
        bound = self.parameters | dict(zip(names, args, strict=False))
        for key, value in kwargs.items():
            name = key if key in bound else _ALIASES.get(key, key)
            if name not in names[len(args) :]:
                return None
            bound[name] = value
        missing = any(value is _REQUIRED for value in bound.values())
        return None if missing or len(args) > len(names) else bound


_ALIASES = {
    "running_mean": "mean",
    "running_var": "var",
    "axis": "dim",
    "split_size_or_sections": "split_size",
    "self": "input",
    "sizes": "shape",
    "cudnn_enabled": "cudnn",
    "upscale_factor": "factor",
    "downscale_factor": "factor",
}
_CONV = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_TRANSPOSED = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
_POOL = (
    "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True "
    "divisor_override=None"
)
_ADAPTIVE = "input output_size"
_DIV = "input other rounding_mode=None"
_DROPOUT = "input p=0.5 training=True inplace=False"
_DROPOUTS = "dropout_ dropout1d dropout2d dropout3d"
_ALPHA_DROPOUT = "input p=0.5 training=False inplace=False"
_MAX_POOL = (
    "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False"
)
_ANY_CONV = "input weight bias stride padding dilation transposed output_padding groups"
_NORM = "input mean var weight=None bias=None training=False momentum=0.1 eps=1e-05"
_NATIVE_NORM = "input weight bias mean var momentum eps"
_INSTANCE_NORM = (
    "input mean=None var=None weight=None bias=None use_input_stats=True momentum=0.1 eps=1e-05"
)
_ATTENTION = (
    "query key value attn_mask=None dropout_p=0.0 is_causal=False scale=None enable_gqa=False"
)
_PATCHES = "kernel_size dilation=1 padding=0 stride=1"
_RESIZE = (
    "input size=None scale_factor=None mode='nearest' align_corners=None "
    "recompute_scale_factor=None antialias=False"
)
_ONE_BY_ONE = {  # what they take besides their input: their names
    "": "sigmoid tanh exp logsigmoid erf abs sqrt softsign",
    "inplace=False": "relu relu6 hardsigmoid selu silu hardswish mish",
    "min=None max=None": "clamp clip",
    "min": "clamp_min",
    "max": "clamp_max",
    "min_val=-1.0 max_val=1.0 inplace=False": "hardtanh",
    "negative_slope=0.01 inplace=False": "leaky_relu",
    "weight": "prelu",
    "alpha=1.0 inplace=False": "elu celu",
    "beta=1 threshold=20": "softplus",
    "approximate='none'": "gelu",
    "threshold value inplace=False": "threshold",
    "lambd=0.5": "hardshrink softshrink",
}
_OTHER_VIEWS = (
    "type float half double bfloat16 cpu cuda unbind select diagonal movedim moveaxis swapdims "
    "t T mT H mH real imag data expand unfold as_strided broadcast_to hsplit vsplit "
    "dsplit ravel detach lift_fresh atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid "
    "identity positive resolve_conj resolve_neg conj adjoint requires_grad_ rearrange "
    "_reshape_alias"
)
_OTHER_RANDOM = (
    "rand rand_like randn randn_like randint randint_like randperm bernoulli normal poisson "
    "multinomial native_dropout rrelu empty empty_like new_empty gumbel_softmax"
)
_OTHER_DROPS = "drop_path stochastic_depth feature_dropout"
_TABLE = (
    *(Fact(f"conv{rank}d", _CONV) for rank in (1, 2, 3)),
    *(Fact(f"conv_transpose{rank}d", _TRANSPOSED) for rank in (1, 2, 3)),
    Fact("convolution", _ANY_CONV),
    Fact("linear", "input weight bias=None"),
    Fact("batch_norm", "input weight bias mean var training momentum eps cudnn=True"),
    Fact("functional_batch_norm", _NORM, "functional.batch_norm"),
    Fact("native_norm", _NATIVE_NORM, "_native_batch_norm_legit_no_training"),
    Fact("functional_instance_norm", _INSTANCE_NORM, "functional.instance_norm"),
    Fact("layer_norm", "input normalized_shape weight=None bias=None eps=1e-05 cudnn=True"),
    Fact("rms_norm", "input normalized_shape weight=None eps=None"),
    Fact("group_norm", "input num_groups weight=None bias=None eps=1e-05 cudnn=True"),
    Fact("add", "input other alpha=1", "add_ iadd __add__ __iadd__", BROADCASTS),
    Fact("sub", "input other alpha=1", "sub_ isub subtract", BROADCASTS),
    Fact("rsub", "input other alpha=1", "__rsub__", BROADCASTS),
    Fact("mul", "input other", "mul_ imul multiply", BROADCASTS),
    Fact("div", _DIV, "div_ truediv itruediv divide true_divide", BROADCASTS),
    Fact("neg", "input", "neg_ negative"),
    Fact("lerp", "input end weight", "lerp_", BROADCASTS),
    Fact("addcmul", "input tensor1 tensor2 value=1"),
    Fact("addcdiv", "input tensor1 tensor2 value=1"),
    Fact("sum", "input dim=None keepdim=False dtype=None"),
    Fact("sum_list", "items start=0", "builtins.sum"),
    Fact("mean", "input dim=None keepdim=False dtype=None"),
    Fact("matmul", "input other", "mm"),
    Fact("bmm", "input other"),
    Fact("softmax", "input dim=None dtype=None _stacklevel=3"),
    Fact("attention", _ATTENTION, "scaled_dot_product_attention"),
    Fact("addmm", "bias input other beta=1 alpha=1"),
    Fact("zeros_like", "input"),
    Fact("stack", "tensors dim=0"),
    Fact("cat", "tensors dim=0", "torch.concat concatenate"),
    Fact("hstack", "tensors"),
    Fact("flip", "input dims"),
    Fact("tensor_split", "input split_size dim=0", "", VIEW),
    Fact("chunk", "input chunks dim=0", "", VIEW),
    Fact("split", "input split_size dim=0", "split_with_sizes", VIEW),
    Fact("getitem", "input index", "__getitem__", VIEW),
    Fact("slice", "input dim=0 start=None end=None step=1", "", VIEW),
    Fact("narrow", "input dim start length", "", VIEW),
    Fact("index_select", "input dim index"),
    Fact("channel_shuffle", "input groups"),
    Fact("pad", "input pad mode='constant' value=None"),
    Fact("constant_pad", "input pad value=0", "constant_pad_nd"),
    *(Fact(f"avg_pool{rank}d", _POOL) for rank in (1, 2, 3)),
    *(Fact(f"adaptive_pool{n}d", _ADAPTIVE, f"adaptive_avg_pool{n}d") for n in (1, 2, 3)),
    Fact("interpolate", _RESIZE, "upsample"),
    Fact("flatten", "input start_dim=0 end_dim=-1", "", VIEW),
    Fact("reshape", "input shape", "view _unsafe_view", VIEW),
    Fact("unflatten", "input dim shape", "", VIEW),
    Fact("reshape_as", "input other", "view_as", VIEW | Kind.LIKENS),
    Fact("expand_as", "", "type_as", VIEW | Kind.LIKENS),
    Fact("squeeze", "input dim=None", "", VIEW),
    Fact("unsqueeze", "input dim", "", VIEW),
    Fact("transpose", "input dim0 dim1", "swapaxes", VIEW),
    Fact("permute", "input dims", "", VIEW),
    Fact("same", "input", "contiguous alias", VIEW),
    Fact("to", "input kind", "", VIEW),
    Fact("same", "input", "clone lift_fresh_copy"),
    Fact("dropout", _DROPOUT, _DROPOUTS, VIEW | RANDOM),
    *(
        Fact("dropout", _ALPHA_DROPOUT, f"functional.{name} {name}", VIEW | RANDOM)
        for name in ("alpha_dropout", "feature_alpha_dropout")
    ),
    *(Fact(f"max_pool{rank}d", _MAX_POOL) for rank in (1, 2, 3)),
    Fact("pixel_shuffle", "input factor"),
    Fact("pixel_unshuffle", "input factor"),
    Fact("pow", "input exponent", "pow_ __pow__"),
    Fact("roll", "input shifts dims=None"),
    Fact("repeat", "input dims", "tile"),
    Fact("repeat_interleave", "input repeats dim=None output_size=None"),
    Fact("maximum", "input other", "minimum"),
    Fact("einsum", "equation operands"),
    Fact("tensordot", "input other dims=2 out=None"),
    *(
        Fact(name, f"input {others}", f"{name}_", ELEMENTWISE)
        for others, names in _ONE_BY_ONE.items()
        for name in names.split()
    ),
    *(Fact(name, kind=VIEW) for name in _OTHER_VIEWS.split()),
    *(Fact(name, kind=RANDOM) for name in _OTHER_RANDOM.split()),
    *(Fact(name, kind=VIEW | RANDOM) for name in _OTHER_DROPS.split()),
    Fact("im2col", f"input {_PATCHES}", "functional.unfold"),  # the method of that name is a view
    Fact("col2im", f"input output_size {_PATCHES}", "functional.fold"),
)
_QUESTION_NAMES = (
    "size shape dim ndim ndimension numel nelement stride len __len__ dtype device layout itemsize "
    "nbytes element_size get_device is_floating_point is_complex is_signed is_cuda is_cpu "
    "is_sparse is_quantized is_meta"
)
_QUESTIONS = frozenset(_QUESTION_NAMES.split())
_KIND_NAMES = (
    "dtype device layout itemsize element_size get_device is_floating_point is_complex is_signed "
    "is_cuda is_cpu is_sparse is_quantized is_meta"
)
_KINDS = frozenset(_KIND_NAMES.split())
_NEW = frozenset({"new_full", "new_ones", "new_zeros"})  # of another's type
_LIKE = frozenset({"full_like", "ones_like"})  # of its size, too
_ASKING = (
    len,
    *(torch.numel, torch.get_device, torch.is_floating_point, torch.is_complex, torch.is_signed),
)
_INPLACE_NAMES = (
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift iconcat "
    "setitem delitem"
)
_INPLACE = frozenset(getattr(operator, name) for name in _INPLACE_NAMES.split())
_OF_FIRST = (
    "getitem slice select narrow pad constant_pad constant_pad_nd clone contiguous expand "
    "expand_as broadcast_to repeat view reshape view_as reshape_as unsqueeze squeeze detach to "
    "type type_as float double index_fill masked_fill"
)
_OF_ALL = (
    "add sub subtract rsub neg negative iadd isub cat concat concatenate stack where setitem copy"
)
_PLACED = (
    "add sub subtract rsub neg negative iadd isub view reshape view_as reshape_as unsqueeze "
    "squeeze clone contiguous detach to type type_as float double getitem slice select narrow"
)
_FILLS = (
    "full full_like zeros zeros_like ones ones_like empty empty_like new_full new_zeros new_ones "
    "new_empty fill zero bool logical_not invert"
)
AFFINE_IN_FIRST = frozenset(_OF_FIRST.split())
"""Bare names (`pad` of `pad_`) of calls that only move the numbers of their first argument."""
AFFINE_IN_ALL = frozenset(_OF_ALL.split())
"""Those of calls that add and join what they are given."""
PRODUCTS = frozenset(
    ["mul", "multiply", "imul", "div", "divide", "true_divide", "truediv", "itruediv"]
)
NEVER_GROW = PRODUCTS | frozenset(_PLACED.split())
"""Those of these calls that put no map into a larger one."""
FILLS = frozenset(_FILLS.split())
"""Those of calls that make numbers of none, or answers."""
SPLITS = frozenset({"chunk", "split", "tensor_split"})
"""Names of calls that give a value in parts, as a tuple."""
_SPACES: dict[str, Any] = {
    "torch": torch,
    "functional": F,
    "operator": operator,
    "builtins": builtins,
}
_BY_NAME: dict[str, Fact] = {}
_BY_FUNCTION: dict[Any, Fact] = {}

for _fact in _TABLE:
    for _spelling in (_fact.name, *_fact.spellings.split()):
        _home, _, _name = _spelling.rpartition(".")
        if not _home:
            _BY_NAME[_name] = _fact
        for _space in [_home] if _home else ["torch", "functional", "operator"]:
            if hasattr(_SPACES[_space], _name):
                _BY_FUNCTION[getattr(_SPACES[_space], _name)] = _fact


@dataclass(frozen=True, eq=False)
class Call:
    """A call by its canonical name, its arguments by name."""

    name: str
    arguments: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.arguments[key]


def canonical(node: fx.Node) -> Call | None:
    """Return the canonical form of a call node, None for calls that are not in the table."""
    fact = fact_of(node)
    if fact is None or not fact.signature:
        return None
    arguments = fact.bind(node.args, dict(node.kwargs))
    return None if arguments is None else Call(fact.name, arguments)


def fact_of(node: fx.Node) -> Fact | None:
    """Return what is known about the very function or method of tensors that a node calls."""
    target: Any = node.target
    if node.op == "call_method":
        return _BY_NAME.get(target) if hasattr(torch.Tensor, target) else None
    if node.op != "call_function":
        return None
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _BY_NAME.get(name_of(node)) if str(target).startswith("aten") else None
    try:
        return _BY_FUNCTION.get(target)
    except TypeError:
        return None


def name_of(node: fx.Node) -> str:
    """Return the bare name of the function or method that a node calls, a module's path.

    Examples:
        >>> [name_of(node) for node in fx.symbolic_trace(lambda x: x.exp() + 1).graph.nodes]
        ['x', 'exp', 'add', 'output']
    """
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


def kind_of(node: fx.Node) -> Kind:
    """Return what holds for a call of tensors' own functions and methods.

    Examples:
        >>> [kind_of(node) for node in fx.symbolic_trace(lambda x: x.relu() + 1).graph.nodes][1:3]
        [<Kind.ELEMENTWISE: 4>, <Kind.BROADCASTS: 8>]
    """
    fact = fact_of(node)
    return Kind.NONE if fact is None else fact.kind


def kind_by_name(name: str) -> Kind:
    """Return what should be expected of a function, method or attribute that has a known name."""
    return _BY_NAME[name].kind if name in _BY_NAME else Kind.NONE


def writes_by_name(target: Any) -> bool:
    """Say whether a function, or a method's name, says that it changes its first argument."""
    if target in _INPLACE or target is setattr or target == "__setitem__":
        return True
    name = target if isinstance(target, str) else str(getattr(target, "__name__", ""))
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def is_question(node: fx.Node) -> bool:
    """Say whether a node asks for the size, type or device of a value, and for no number in it."""
    if node.op == "call_method":
        return node.target in _QUESTIONS
    if node.op != "call_function":
        return False
    return node.target in _ASKING or (node.target is getattr and node.args[1] in _QUESTIONS)


def is_kind_question(node: fx.Node) -> bool:
    """Say whether a node asks for the type or device of a value, not for its size.

    Examples:
        >>> graph = fx.symbolic_trace(lambda x: (x.dtype, x.is_cuda, x.shape)).graph
        >>> [is_kind_question(node) for node in graph.nodes][1:4]
        [True, True, False]
    """
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _KINDS
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return name in _NEW or (is_question(node) and name in _KINDS)


def words(size: Any, called: Mapping[fx.Node, object] | None = None) -> object:
    """Return what a size is told from: equal words are one number, whatever the input.

    Args:
        size: a number, a call that gives one, or several of them.
        called: names of values; those of one name have one shape.

    Examples:
        >>> graph = fx.symbolic_trace(lambda x: (x.size(0) * 2, x.size(0) * 2, x.size(1))).graph
        >>> [_, size, twice, _, again, other, _] = list(graph.nodes)
        >>> words(twice) == words(again), words(size) == words(other)
        (True, False)
    """
    if isinstance(size, (tuple, list)):
        return tuple(words(each, called) for each in size)
    if not isinstance(size, fx.Node) or not (is_question(size) or _is_size_arithmetic(size)):
        return size
    if not is_question(size):
        return str(size.target), *(words(each, called) for each in size.args)
    first, *others = cast("tuple[Any, ...]", size.args)
    value = (called or {}).get(first, first)
    if size.target == "size" or others == ["shape"]:
        shape = "shape", value
        of_axis = size.target == "size" and bool(others)
        return (str(operator.getitem), shape, others[0]) if of_axis else shape
    return str(size.target), value, *others


def _is_size_arithmetic(node: fx.Node) -> bool:
    """Say whether a call computes with sizes alone."""
    known = getattr(node.target, "__module__", None) == "_operator"
    inputs = node.all_input_nodes
    plain = node.op == "call_function" and not node.kwargs and bool(inputs)
    return plain and known and all(is_question(n) or _is_size_arithmetic(n) for n in inputs)


def reads_shape_only(node: fx.Node, value: fx.Node) -> bool:
    """Say whether `node` reads the size, type or device of `value` and none of its numbers."""
    likens = Kind.LIKENS in kind_of(node) and node.args[:1] != (value,)
    return likens or is_question(node) or _is_made_like(node, value)


def _is_made_like(node: fx.Node, value: fx.Node) -> bool:
    """Say whether a node makes a constant of the type, and perhaps the size, of a value."""
    name = name_of(node)
    is_method = node.op == "call_method" and name in _NEW
    if not is_method and not (node.op in ("call_method", "call_function") and name in _LIKE):
        return False
    others: list[fx.Node] = []
    rest = (node.args[1:], {key: x for key, x in node.kwargs.items() if key != "input"})
    map_arg(rest, others.append)
    return value not in others


def readers(value: fx.Node) -> Iterator[fx.Node]:
    """Return what reads a value's numbers; the parts that a split gives, not the split."""
    for user in value.users:
        call = canonical(user)
        if call is not None and call.name in SPLITS:
            yield from user.users
        elif not reads_shape_only(user, value):
            yield user


def shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Return what reads only the size, type or device of a node's value."""
    return (user for user in node.users if reads_shape_only(user, node))


def place_of(node: fx.Node) -> str:
    """Return a node's module path in its capture; a call inside a module reads `block.add`.

    Where a graph comes from a file, its nodes have names of their own, in `meta["place"]`.
    """
    if "place" in node.meta:
        return str(node.meta["place"])
    if node.op == "call_module":
        return str(node.target)
    name = str(node.args[1]) if node.target is getattr else name_of(node) or node.name
    prefix = getattr(node.meta.get("frame"), "path", "")
    return f"{prefix}.{name}" if prefix else name
