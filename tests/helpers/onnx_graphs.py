"""Random ONNX files: layers, norms, constants and joins as frameworks write them, in any opset."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

NEWEST = 21
Shape = tuple[int, ...]


@dataclass
class Graph:
    """A file under construction; all sizes are known, though the file may call some free.

    Args:
        random: decides everything.
        opset: of the file.
        rank: spatial axes.
    """

    random: Random
    opset: int
    rank: int
    dtype: Any = np.float32
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.random.randrange(1 << 30))

    # constants, in the forms that exporters give them

    def weight(self, *shape: int, low: float | None = None) -> str:
        draw = self.numbers
        values = draw.standard_normal(shape) * 0.5 if low is None else draw.uniform(low, 2.0, shape)
        return self.constant(np.asarray(values).astype(self.dtype))

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.tensors) + len(self.nodes)}"
        form = self.random.randrange(8)
        if form == 0:
            return self.add("Constant", [], value=numpy_helper.from_array(array, name), name=name)
        if form == 1 and array.ndim == 1 and len(array) > 1:
            self.tensors.append(numpy_helper.from_array(array.reshape(1, -1), f"{name}_row"))
            if self.opset < 13:
                return self.add("Squeeze", [f"{name}_row"], axes=[0], name=name)
            return self.add("Squeeze", [f"{name}_row", self.ints([0])], name=name)
        self.tensors.append(numpy_helper.from_array(array, name))
        self.stored[name] = array
        return self.add("Identity", [name]) if form == 2 else name

    def ints(self, values: list[int]) -> str:
        name = f"i{len(self.tensors) + len(self.nodes)}"
        self.tensors.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, kind: str, inputs: list[str], shape: Shape | None = None, **given: Any) -> str:
        output = given.pop("name", None) or f"v{len(self.nodes)}"
        domain = given.pop("domain", "")
        self.nodes.append(
            helper.make_node(
                kind, inputs, [output], f"{kind}_{len(self.nodes)}", domain=domain, **given
            )
        )
        if shape is not None:
            self.shapes[output] = shape
        return output

    def pick(self) -> str:
        """Return a value, a late one rather than an early one."""
        names = list(self.shapes)
        return self.random.choice(names[-4:] if self.random.random() < 0.8 else names)

    def maps(self) -> list[str]:
        return [name for name, shape in self.shapes.items() if len(shape) == self.rank + 2]


def conv(g: Graph, x: str, out: int | None = None, kernel: int | None = None, **fixed: Any) -> str:
    r, (n, channels, *size) = g.random, g.shapes[x]
    k = kernel or r.choice([1, 1, 2, 3, 3, 5])
    groups = fixed.get("groups") or r.choice([d for d in (1, 1, 2, channels) if channels % d == 0])
    out = out or groups * r.choice([1, 2, 3])
    dilation = r.choice([1, 1, 1, 2]) if "pads" not in fixed else 1
    stride = fixed.get("stride") or r.choice([1, 1, 1, 2])
    pads = fixed.get("pads") or [r.choice([0, k // 2, k // 2, 1]) for _ in range(2)]
    given: dict[str, Any] = {"strides": [stride] * g.rank, "dilations": [dilation] * g.rank}
    span = dilation * (k - 1) + 1
    if "pads" not in fixed and dilation == 1 and r.random() < 0.15:
        mode = r.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
        given["auto_pad"] = mode
        sizes = [-(-s // stride) if mode != "VALID" else (s - span) // stride + 1 for s in size]
    else:
        given["pads"] = [pads[0]] * g.rank + [pads[1]] * g.rank
        sizes = [(s + sum(pads) - span) // stride + 1 for s in size]
    if min(sizes) < 1 or max(size) > 400:
        return x
    if r.random() < 0.8:
        given["kernel_shape"] = [k] * g.rank
    inputs = [x, g.weight(out, channels // groups, *[k] * g.rank)]
    if r.random() < 0.5:
        inputs.append(g.weight(out))
    return g.add("Conv", inputs, (n, out, *sizes), group=groups, **given)


def norm(g: Graph, x: str) -> str:
    c = g.shapes[x][1]
    low = g.random.choice([None, 0.2])  # of the gains: positive ones pass through a max pool
    tensors = [g.weight(c, low=low), g.weight(c), g.weight(c), g.weight(c, low=0.2)]
    given = {"epsilon": g.random.choice([1e-5, 1e-3])} if g.random.random() < 0.7 else {}
    return g.add("BatchNormalization", [x, *tensors], g.shapes[x], **given)


def scale(g: Graph, x: str) -> str:
    r, c = g.random, g.shapes[x][1]
    ones = [1] * (len(g.shapes[x]) - 2)
    shape = r.choice([[c, *ones], [1, c, *ones], [1] * len(ones), [], [c, *ones]])
    kind = r.choice(["Mul", "Add", "Sub", "Div"])
    tensor = g.weight(*shape, low=0.4 if kind == "Div" or r.random() < 0.4 else None)
    swapped = kind != "Div" and r.random() < 0.4
    return g.add(kind, [tensor, x] if swapped else [x, tensor], g.shapes[x])


def bend(g: Graph, x: str) -> str:
    r, shape = g.random, g.shapes[x]
    if g.dtype == np.float32 and r.random() < 0.25:
        return rare_bend(g, x)
    kind = r.choice(
        ["Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "PRelu", "Softmax", "Elu"]
    )
    if kind == "Clip":
        if g.opset < 11:
            return g.add("Clip", [x], shape, min=0.0, max=6.0)
        low, high = (g.constant(np.array(v, g.dtype)) for v in (0.0, 6.0))
        return g.add("Clip", [x, low, high], shape)
    if kind == "PRelu":
        return g.add("PRelu", [x, g.weight(shape[1], *[1] * (len(shape) - 2))], shape)
    given = {"axis": 1} if kind == "Softmax" else {}
    return g.add(kind, [x], shape, **given)


def rare_bend(g: Graph, x: str) -> str:
    """Add a function that fewer files have, or one of several nodes."""
    r, shape = g.random, g.shapes[x]
    kind = r.choice(["HardSigmoid", "Selu", "Softsign", "Abs", "Exp", "SiLU", "Pow", "HardSwish"])
    if kind == "HardSigmoid":
        return g.add(kind, [x], shape, alpha=r.choice([1 / 6, 0.2]), beta=0.5)
    if kind == "Pow":
        return g.add(kind, [x, g.constant(np.array(r.choice([1, 2]), g.dtype))], shape)
    if kind not in ("SiLU", "HardSwish"):
        return g.add(kind, [x], shape)
    gate = g.add("Sigmoid" if kind == "SiLU" else "HardSigmoid", [x], shape)
    return g.add("Mul", r.choice([[x, gate], [gate, x]]), shape)


def pad(g: Graph, x: str) -> str:
    r, (n, c, *size) = g.random, g.shapes[x]
    amounts = [[0, 0] + [r.choice([0, 1, 2]) for _ in size] for _ in range(2)]
    mode = r.choice(["constant", "constant", "edge", "reflect"])
    if mode == "reflect" and min(size) < 4:
        mode = "edge"
    flat = amounts[0] + amounts[1]
    value = r.choice([0.0, 0.0, 0.5]) if mode == "constant" else 0.0
    shape = (n, c, *(s + a + b for s, a, b in zip(size, *(a[2:] for a in amounts), strict=True)))
    if g.opset < 11:
        return g.add("Pad", [x], shape, pads=flat, mode=mode, value=value)
    fill = [g.constant(np.array(value, g.dtype))] if value else []
    return g.add("Pad", [x, g.ints(flat), *fill], shape, mode=mode)


def pool(g: Graph, x: str) -> str:
    r, (n, c, *size) = g.random, g.shapes[x]
    if r.random() < 0.2:
        return g.add("GlobalAveragePool", [x], (n, c, *[1] * g.rank))
    k, stride = r.choice([2, 3]), r.choice([1, 2])
    pads = r.choice([0, 0, 1])
    sizes = [(s + 2 * pads - k) // stride + 1 for s in size]
    if min(sizes) < 1:
        return x
    given = {
        "kernel_shape": [k] * g.rank,
        "strides": [stride] * g.rank,
        "pads": [pads] * 2 * g.rank,
    }
    if r.random() < 0.3:
        return g.add("MaxPool", [x], (n, c, *sizes), **given)
    return g.add("AveragePool", [x], (n, c, *sizes), count_include_pad=r.choice([0, 1]), **given)


def scatter(g: Graph, x: str) -> str:
    r, (n, c, *size) = g.random, g.shapes[x]
    k, stride, groups = r.choice([2, 3]), r.choice([1, 2]), r.choice([1, c])
    per, pads, dilation = r.choice([1, 2]), r.choice([0, 1]), 1
    extra = r.choice([0, stride - 1])
    sizes = [(s - 1) * stride + dilation * (k - 1) + 1 - 2 * pads + extra for s in size]
    if min(sizes) < 1 or max(size) > 24:
        return x
    inputs = [x, g.weight(c, per, *[k] * g.rank)]
    if r.random() < 0.5:
        inputs.append(g.weight(per * groups))
    more = {"output_padding": [extra] * g.rank} if extra else {}
    return g.add(
        "ConvTranspose", inputs, (n, per * groups, *sizes), group=groups,
        kernel_shape=[k] * g.rank, strides=[stride] * g.rank, pads=[pads] * 2 * g.rank, **more,
    )  # fmt: skip


def branches(g: Graph, x: str) -> str:
    """Add parallel layers of one value, each with or without a norm, and their sum."""
    r, c = g.random, g.shapes[x][1]
    out, stride = r.choice([c, c, 2 * c]), r.choice([1, 1, 2])
    groups = r.choice([1, 1, c])
    ends = []
    for k in r.sample([1, 3, 5], r.choice([2, 3])):
        y = conv(g, x, out, k, groups=groups, pads=[k // 2, k // 2], stride=stride)
        ends.append(norm(g, y) if r.random() < 0.7 else y)
    if out == c and stride == 1 and r.random() < 0.6:
        ends.append(norm(g, x) if r.random() < 0.7 else x)
    ends = [y for y in ends if g.shapes[y] == g.shapes[ends[0]]]
    total = ends[0]
    if len(ends) > 2 and r.random() < 0.2:
        return g.add("Sum", ends, g.shapes[total])
    for y in ends[1:]:
        total = g.add("Add", r.sample([total, y], 2), g.shapes[total])
    return total


def join(g: Graph, x: str) -> str:
    r, shape = g.random, g.shapes[x]
    like = [name for name, other in g.shapes.items() if other == shape and name != x]
    if like and r.random() < 0.6:
        return g.add(r.choice(["Add", "Add", "Sub", "Mul"]), [x, r.choice(like)], shape)
    beside = [n for n, s in g.shapes.items() if len(s) == len(shape) and s[2:] == shape[2:]]
    parts = [x, *r.sample(beside, min(len(beside), r.choice([1, 2])))]
    width = sum(g.shapes[part][1] for part in parts)
    axis = r.choice([1, 1, 1 - len(shape)]) if g.opset >= 11 else 1
    return g.add("Concat", parts, (shape[0], width, *shape[2:]), axis=axis)


def part(g: Graph, x: str) -> str:
    r, (n, c, *size) = g.random, g.shapes[x]
    if c < 2:
        return x
    kind, at = r.choice(["Slice", "Split", "Gather"]), r.randrange(1, c)
    if kind == "Gather":
        index = [r.randrange(c) for _ in range(at)]
        return g.add("Gather", [x, g.ints(index)], (n, at, *size), axis=1)
    if kind == "Slice":
        if g.opset < 10:
            return g.add("Slice", [x], (n, c - at, *size), starts=[at], ends=[c], axes=[1])
        return g.add("Slice", [x, g.ints([at]), g.ints([c]), g.ints([1])], (n, c - at, *size))
    names = [f"v{len(g.nodes)}_{i}" for i in (0, 1)]
    given, inputs = {"split": [at, c - at]}, [x]
    if g.opset >= 13:
        given, inputs = {}, [x, g.ints([at, c - at])]
    g.nodes.append(
        helper.make_node("Split", inputs, names, f"Split_{len(g.nodes)}", axis=1, **given)
    )
    for name, width in zip(names, (at, c - at), strict=True):
        g.shapes[name] = (n, width, *size)
    return names[1]


def stranger(g: Graph, x: str) -> str:
    """Add what no algebra knows: another domain's operator, or a branch that captures a value."""
    shape = g.shapes[x]
    if g.random.random() < 0.4:
        return g.add("Gelu", [x], shape, domain="com.microsoft")
    if g.random.random() < 0.5 or g.opset < 11:
        return g.add("Identity" if g.random.random() < 0.5 else "Dropout", [x], shape)
    name = f"v{len(g.nodes)}"
    graphs = [
        helper.make_graph(
            [helper.make_node(kind, [x], [f"{name}_{kind}"])], kind, [],
            [helper.make_tensor_value_info(f"{name}_{kind}", elem(g), [None] * len(shape))],
        ) for kind in ("Relu", "Neg")
    ]  # fmt: skip
    name = g.constant(np.array(True))
    return g.add("If", [name], shape, then_branch=graphs[0], else_branch=graphs[1])


def elem(g: Graph) -> int:
    return TensorProto.FLOAT16 if g.dtype == np.float16 else TensorProto.FLOAT


def head(g: Graph, x: str) -> str:
    r, (n, c, *_) = g.random, g.shapes[x]
    pooled = g.add("GlobalAveragePool", [x], (n, c, *[1] * g.rank))
    flat = g.add("Flatten", [pooled], (n, c))
    out = r.choice([2, 5])
    if r.random() < 0.5:
        given = {"transB": 1} if r.random() < 0.7 else {}
        weight = g.weight(*((out, c) if given else (c, out)))
        y = g.add("Gemm", [flat, weight, g.weight(out)], (n, out), **given)
    else:
        y = g.add("MatMul", [flat, g.weight(c, out)], (n, out))
        y = g.add("Add", [y, g.weight(out)], (n, out))
    return norm(g, y) if r.random() < 0.5 else scale(g, y)


STEPS = {
    conv: 6, norm: 6, scale: 6, bend: 3, pad: 2, pool: 2, scatter: 1, branches: 4, join: 3, part: 1,
    stranger: 1,
}  # fmt: skip


def random_model(seed: int) -> Any:
    """Return a random ModelProto that ONNX Runtime can run."""
    r = Random(seed)
    half = r.random() < 0.1
    g = Graph(r, r.choice([7, 9, 11, 12, 13, 15, 17, 18, NEWEST]), r.choice([1, 2, 2, 2, 3]))
    if half:
        g.dtype = np.float16
    side = r.choice([9, 12]) if g.rank < 3 else 7
    g.shapes["x"] = (2, r.choice([2, 3, 4]), *[side] * g.rank)
    for _ in range(r.randrange(3, 11)):
        step = r.choices(list(STEPS), list(STEPS.values()))[0]
        values = g.maps()
        x = g.pick()
        step(g, x if x in values else r.choice(values))
    if r.random() < 0.4:
        head(g, r.choice(g.maps()[-3:]))
    made = [name for name in g.shapes if name != "x"]
    if not made:
        conv(g, "x", 2, 1, pads=[0, 0], stride=1)
        made = [name for name in g.shapes if name != "x"]
    ends = [made[-1], *r.sample(made, min(len(made), r.choice([0, 0, 1])))]
    return finished(g, list(dict.fromkeys(ends)))


def finished(g: Graph, ends: list[str]) -> Any:
    """Return the model with these outputs; the batch, and sometimes sizes, are free."""
    free: list[Any] = list(g.shapes["x"])
    if g.random.random() < 0.7:
        free[0] = "n"
    if g.random.random() < 0.3:
        free[2:] = [f"s{axis}" for axis in range(g.rank)]
    code = elem(g)
    graph = helper.make_graph(
        g.nodes, "random", [helper.make_tensor_value_info("x", code, free)],
        [helper.make_tensor_value_info(e, code, [None] * len(g.shapes[e])) for e in ends],
        g.tensors,
    )  # fmt: skip
    imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
