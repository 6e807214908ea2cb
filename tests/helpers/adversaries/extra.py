from __future__ import annotations
from typing import Any
import math, numpy as np, random, time
import torch
from torch import nn, Tensor
from torch.nn import functional as F
from helpers.adversaries.base import Block, Norm, Table, Two, conv
EXTRA = Table()
each = EXTRA.forward
NUM = {
 "decided": lambda s,x: 2.0 if x.shape[0]==1 else 3.0,
 "table": lambda s,x: {5:1.0,8:2.0,4:3.0}.get(int(x.shape[-1]), 9.0),
 "table_size": lambda s,x: {5:1.0,8:2.0,4:3.0}.get(x.shape[-1], 9.0),
 "float": lambda s,x: float(x.shape[0]),
 "mod": lambda s,x: x.shape[0] % 2 + 1.0,
 "sqrt": lambda s,x: math.sqrt(x.shape[-1]),
 "len": lambda s,x: float(len(x)),
 "numpy": lambda s,x: float(np.prod(x.shape)),
 "numpy_tensor": lambda s,x: torch.from_numpy(np.full((4,1,1), float(x.shape[-1]))) ,
 "numpy_int": lambda s,x: torch.from_numpy(np.ones((1,1,1))*int(x.shape[-1])),
 "tensor_of": lambda s,x: torch.tensor(float(x.shape[-1]), dtype=torch.float64),
 "tensor_of_list": lambda s,x: torch.tensor([[[float(x.shape[0])]]], dtype=torch.float64),
 "as_tensor": lambda s,x: torch.as_tensor(x.shape[-1]).double(),
 "linspace": lambda s,x: torch.linspace(0,1,int(x.shape[-1]),dtype=torch.float64),
 "arange": lambda s,x: torch.arange(x.shape[-1]).double(),
 "list": lambda s,x: torch.tensor([float(i) for i in range(x.shape[-1])], dtype=torch.float64),
 "ndim": lambda s,x: float(x.ndim),
 "dtype": lambda s,x: 2.0 if x.dtype==torch.float64 else 3.0,
 "train": lambda s,x: 2.0 if s.training else 3.0,
 "grad": lambda s,x: 2.0 if torch.is_grad_enabled() else 3.0,
 "dice": lambda s,x: torch.from_numpy(np.random.rand(4,1,1)),
 "pydice": lambda s,x: torch.tensor(random.random(), dtype=torch.float64),
 "isnan": lambda s,x: 2.0 if torch.isnan(x).any() else 3.0,
 "max": lambda s,x: float(max(x.shape[2], x.shape[3])),
 "min": lambda s,x: min(x.shape[2], 5) * 1.0,
 "round": lambda s,x: round(x.shape[2] / 4) * 1.0 + 1,
 "str": lambda s,x: float(str(x.shape[-1])),
 "text": lambda s,x: float(f"{x.shape[-1]}"),
 "hash": lambda s,x: float(hash(x.shape[-1])),
 "bits": lambda s,x: float(x.shape[-1] | 1),
 "range": lambda s,x: float(sum(range(x.shape[-1]))),
 "tolist": lambda s,x: float(torch.tensor(x.shape).tolist()[-1]),
 "shape_prod": lambda s,x: torch.tensor(x.shape).prod().double(),
 "numel": lambda s,x: x.numel() / 100,
 "stride": lambda s,x: float(x.stride(0)),
 "nelement": lambda s,x: float(x.nelement()),
 "size_method": lambda s,x: float(x.size()[-1]),
 "eye": lambda s,x: torch.eye(int(x.shape[-1]), dtype=torch.float64)[0],
 "zeros": lambda s,x: torch.zeros(int(x.shape[-1]), dtype=torch.float64)+1.5,
 "ones_like": lambda s,x: torch.ones_like(x[:1,:1])*3,
 "new": lambda s,x: x.new_tensor([float(x.shape[-1])]),
 "closure": lambda s,x: (lambda n: n*1.0)(x.shape[0]),
 "weights": lambda s,x: 1.0 + float(s.b1.weight[0] > 0),
 "norm_w": lambda s,x: float(s.c1.weight.norm()),
 "sizes": lambda s,x: float(np.array(x.shape)[-1]),
 "npfunc": lambda s,x: float(np.log2(x.shape[-1])),
 "ceil": lambda s,x: float(math.ceil(x.shape[-1]/4)),
 "int_div": lambda s,x: float(int(x.shape[-1]/4)) + 1,
 "sorted": lambda s,x: float(sorted(x.shape)[-1]),
 "sumshape": lambda s,x: float(sum(x.shape)),
 "enumerate": lambda s,x: float([i for i,n in enumerate(x.shape) if n>4][0]+1),
 "dims": lambda s,x: float(x.dim()),
 "max_default": lambda s,x: max((n for n in x.shape if n < 5), default=1)*1.0,
 "divmod": lambda s,x: divmod(x.shape[-1],3)[0]*1.0,
 "cmp": lambda s,x: (x.shape[-1] > 6) * 1.0 + 1,
 "cmp_and": lambda s,x: 2.0 if x.shape[-1] > 4 and x.shape[0] > 1 else 1.0,
 "isinst": lambda s,x: 2.0 if isinstance(x.shape[-1], int) else 1.0,
 "type": lambda s,x: 2.0 if type(x.shape[-1]) is int else 1.0,
 "json": lambda s,x: float(__import__("json").loads(__import__("json").dumps(x.shape[-1]))),
 "pickle": lambda s,x: float(__import__("pickle").loads(__import__("pickle").dumps(x.shape[-1]))),
 "fmt": lambda s,x: float("%d" % x.shape[-1]),
 "bytes": lambda s,x: float(len(bytes(x.shape[-1]))),
 "mul_list": lambda s,x: float(len([0]*x.shape[-1])),
 "struct": lambda s,x: float(__import__("struct").unpack("i", __import__("struct").pack("i", x.shape[-1]))[0]),
 "fraction": lambda s,x: float(__import__("fractions").Fraction(x.shape[-1], 3)),
 "decimal": lambda s,x: float(__import__("decimal").Decimal(x.shape[-1])),
 "comb": lambda s,x: float(math.comb(x.shape[-1], 2)),
 "gcd": lambda s,x: float(math.gcd(x.shape[-1], 4)),
 "bitlen": lambda s,x: float(x.shape[-1].bit_length()),
 "asint": lambda s,x: float(__import__("operator").index(x.shape[-1])),
 "complex": lambda s,x: abs(complex(x.shape[-1])),
}
def _mk(name, f, where):
    def before(s, x): return s.b1(s.c1(x * f(s, x)))
    def mid(s, x): return s.b1(s.c1(x) * f(s, x)) + s.two(x)
    def after(s, x): return s.branches(x) * f(s, x)
    def plus(s, x): return s.b1(s.c1(x) + f(s, x)) + s.two(x)
    run = dict(before=before, mid=mid, after=after, plus=plus)[where]
    run.__name__ = f"num_{name}_{where}"
    each()(run)
for n, f in NUM.items():
    for w in ("before","mid","after","plus"): _mk(n, f, w)
