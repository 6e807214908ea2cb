"""Networks that compute numbers of their own from what they see, and put them into the sum."""

from __future__ import annotations

import json
import math
import operator
import random
import statistics
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from helpers.adversaries.base import Table, Two

NUMBERS = Table()

READS: dict[str, Any] = {
    "decided": lambda s, x: 2.0 if x.shape[0] == 1 else 3.0,
    "table": lambda s, x: {5: 1.0, 8: 2.0, 4: 3.0}.get(int(x.shape[-1]), 9.0),
    "table_size": lambda s, x: {5: 1.0, 8: 2.0, 4: 3.0}.get(x.shape[-1], 9.0),
    "float": lambda s, x: float(x.shape[0]),
    "mod": lambda s, x: x.shape[0] % 2 + 1.0,
    "sqrt": lambda s, x: math.sqrt(x.shape[-1]),
    "len": lambda s, x: float(len(x)),
    "numpy": lambda s, x: float(np.prod(x.shape)),
    "numpy_int": lambda s, x: torch.from_numpy(np.ones((1, 1, 1)) * int(x.shape[-1])),
    "tensor_of": lambda s, x: torch.tensor(float(x.shape[-1]), dtype=torch.float64),
    "tensor_of_list": lambda s, x: torch.tensor([[[float(x.shape[0])]]], dtype=torch.float64),
    "arange": lambda s, x: torch.arange(x.shape[-1]).double(),
    "list": lambda s, x: torch.tensor([float(i) for i in range(x.shape[-1])], dtype=torch.float64),
    "ndim": lambda s, x: float(x.ndim),
    "dtype": lambda s, x: 2.0 if x.dtype == torch.float64 else 3.0,
    "grad": lambda s, x: 2.0 if torch.is_grad_enabled() else 3.0,
    "pydice": lambda s, x: torch.tensor(random.random(), dtype=torch.float64),
    "isnan": lambda s, x: 2.0 if torch.isnan(x).any() else 3.0,
    "max": lambda s, x: float(max(x.shape[2], x.shape[3])),
    "min": lambda s, x: min(x.shape[2], 5) * 1.0,
    "round": lambda s, x: round(x.shape[2] / 4) * 1.0 + 1,
    "str": lambda s, x: float(str(x.shape[-1])),
    "text": lambda s, x: float(f"{x.shape[-1]}"),
    "hash": lambda s, x: float(hash(x.shape[-1])),
    "range": lambda s, x: float(sum(range(x.shape[-1]))),
    "tolist": lambda s, x: float(torch.tensor(x.shape).tolist()[-1]),
    "numel": lambda s, x: x.numel() / 100,
    "stride": lambda s, x: float(x.stride(0)),
    "eye": lambda s, x: torch.eye(int(x.shape[-1]), dtype=torch.float64)[0],
    "ones_like": lambda s, x: torch.ones_like(x[:1, :1]) * 3,
    "new": lambda s, x: x.new_tensor([float(x.shape[-1])]),
    "weights": lambda s, x: 1.0 + float(s.b1.weight[0] > 0),
    "norm_w": lambda s, x: float(s.c1.weight.norm()),
    "npfunc": lambda s, x: float(np.log2(x.shape[-1])),
    "ceil": lambda s, x: float(math.ceil(x.shape[-1] / 4)),
    "int_div": lambda s, x: float(int(x.shape[-1] / 4)) + 1,
    "sorted": lambda s, x: float(sorted(x.shape)[-1]),
    "enumerate": lambda s, x: float(next(i for i, n in enumerate(x.shape) if n > 3) + 1),
    "max_default": lambda s, x: max((n for n in x.shape if n < 5), default=1) * 1.0,
    "cmp": lambda s, x: (x.shape[-1] > 6) * 1.0 + 1,
    "bitlen": lambda s, x: float(x.shape[-1].bit_length()),
    "own_dice": lambda s, x: torch.from_numpy(s.dice.rand(4, 1, 1)),
}


def _enter(name: str, read: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        return s.b1(s.c1(x) * read(s, x)) + s.two(x)

    run.__name__ = name
    NUMBERS.forward(lambda s: setattr(s, "dice", np.random.RandomState(3)))(run)


for _name, _read in READS.items():
    _enter(_name, _read)


@NUMBERS.forward()
def times_number_by_batch(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x * (2.0 if x.shape[0] == 1 else 3.0)))


@NUMBERS.forward()
def times_smaller_side(s: Any, x: Any) -> Any:
    return s.b1(s.c1(x * (min(x.shape[2], 5) * 1.0)))


@NUMBERS.forward()
def times_tensor_of_side(s: Any, x: Any) -> Any:
    return s.branches(x) * torch.tensor(float(x.shape[-1]), dtype=x.dtype)


# A height that is special, told by what is no comparison in the forward itself.


class Special:
    """A helper with a height of its own."""

    height = 7

    def asks(self, x: Any) -> bool:
        return int(x.shape[2]) == self.height


def _is_special(x: Any) -> bool:
    return int(x.shape[2]) == 7


HEIGHTS, SEVEN, ASKS = {7: True}, 7, [lambda n: n is SEVEN]
LENGTHS = [1.0] * 7 + [2.0] + [1.0] * 12
SPECIAL: dict[str, Any] = {
    "helper": _is_special,
    "object": Special().asks,
    "global_table": lambda x: HEIGHTS.get(int(x.shape[2]), False),
    "text_of_height": lambda x: f"{x.shape[2]}rows" == "7rows",
    "rows": lambda x: sum(1 for _ in x[0, 0]) == 7,
    "pieces": lambda x: len(x.split(1, 2)) == 7,
    "binary": lambda x: x.shape[2] & 7 == 7,
    "shifted": lambda x: x.shape[2] >> 2 == 1,
    "divided": lambda x: divmod(x.shape[2], 7)[1] == 0,
    "product": lambda x: np.prod(x.shape[1:]) == 3 * 7 * 8,
    "square": lambda x: np.prod((x.shape[2], x.shape[2])) == 49,
    "equal_to_a_float": lambda x: x.shape[2] == 7.0,
    "signed": lambda x: +x.shape[2] == 7,
    "complement": lambda x: ~x.shape[2] == -8,
    "truncated": lambda x: math.trunc(x.shape[2] / 7) == 1,
    "as_a_float": lambda x: float(x.shape[2]) == 7.0,
    "root": lambda x: math.sqrt(x.shape[2] * x.shape[2]) == 7.0,
    "close": lambda x: math.isclose(x.shape[2], 7),
    "text_by_percent": lambda x: "%d" % x.shape[2] == "7",  # noqa: UP031
    "length_of_range": lambda x: len(range(x.shape[2])) == 7,
    "bytes": lambda x: len(bytes(x.shape[2])) == 7,
    "repeated": lambda x: len([0] * x.shape[2]) == 7,
    "repeated_text": lambda x: len("a" * x.shape[2]) == 7,
    "index": lambda x: operator.index(x.shape[2]) == 7,
    "ones": lambda x: bin(x.shape[2]).count("1") == 3,
    "counted": lambda x: x.shape.count(7) == 1,
    "numbers": lambda x: x.shape[2:3].numel() == 7,
    "whole": lambda x: (x.shape[2] / 7).is_integer(),
    "power": lambda x: pow(x.shape[2], 2, 100) == 49,
    "half_power": lambda x: (x.shape[2] * x.shape[2]) ** 0.5 == 7.0,
    "fraction": lambda x: Fraction(x.shape[2], 7) == 1,
    "decimal": lambda x: Decimal(x.shape[2]) == 7,
    "mean": lambda x: statistics.mean((x.shape[2], x.shape[2])) == 7,
    "json": lambda x: json.dumps([x.shape[2]]) == "[7]",
    "identical": lambda x: x.shape[2] is SEVEN,
    "function_of_a_list": lambda x: ASKS[0](x.shape[2]),
    "sides": lambda x: x.shape[2:] == (7, 8),
    "pairs": lambda x: all(a == b for a, b in zip(x.shape[2:], (7, 8), strict=True)),
    "method_of_a_number": lambda x: any(map(SEVEN.__eq__, x.shape)),
    "bytes_stored": lambda x: x.untyped_storage().nbytes() == x.element_size() * 168,
    "packed": lambda x: struct.pack("i", x.shape[2]) == struct.pack("i", 7),
}


# What has to be read: the source of a lambda in the middle of a table cannot be.


def between_floats(x: Any) -> bool:
    return 6.5 < x.shape[2] < 7.5


def floats_first(x: Any) -> bool:
    height = x.shape[2]
    return int(0.5 * height) == 3 and 7.5 - height > 0


def in_a_list(x: Any) -> bool:
    return LENGTHS[x.shape[2]] == 2.0


def in_a_tuple(x: Any) -> bool:
    return (1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)[x.size(2)] == 2


SPECIAL |= {ask.__name__: ask for ask in (between_floats, floats_first, in_a_list, in_a_tuple)}


def _special(name: str, ask: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        y = s.c1(x)
        return s.b2(y) if ask(x) else s.b1(y)

    run.__name__ = f"special_{name}"
    NUMBERS.forward()(run)


for _name, _ask in SPECIAL.items():
    _special(_name, _ask)


@NUMBERS.forward()
def more_for_tall_images(s: Any, x: Any) -> Any:
    y = s.branches(x) + s.b1(s.c1(x))
    return s.head(y) if x.shape[2] == 7 else y


@NUMBERS.forward()
def scaled_for_wide_images(s: Any, x: Any) -> Any:
    if x.shape[3] == 8:
        x = x * 2
    return s.b1(s.c1(x)) + s.b2(s.c2(x))


class Tables(Two):
    """A network with more layers for one height, found by a name that is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.p7 = nn.ModuleDict({"7": nn.ReLU()}), nn.ReLU()


@NUMBERS.forward(base=Tables)
def layer_in_a_table(s: Any, x: Any) -> Any:
    y, key = s.c1(x), f"{x.shape[2]}"
    return s.b1(s.table[key](y) if key in s.table else y)


@NUMBERS.forward(base=Tables)
def layer_by_its_name(s: Any, x: Any) -> Any:
    return s.b1(getattr(s, f"p{x.shape[2]}", nn.Identity())(s.c1(x)))


@NUMBERS.forward()
def call_that_may_fail(s: Any, x: Any) -> Any:
    y = s.c1(x)
    try:
        x[:, :, :, 0].reshape(-1, 7)
    except RuntimeError:
        return s.b1(y)
    return s.b1(y.abs())
