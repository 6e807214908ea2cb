"""A generated forward returns what the original returned: tuples, dicts, records."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import fx, nn

from refold.graph.copies.skeleton import skeleton
from refold.graph.surgery.editor import Editor
from refold.graph.trace.capture import Capture, capture

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


class Net(nn.Module):
    """A root whose forward is given."""

    def __init__(self, forward: Any, **children: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def editor(model: nn.Module) -> tuple[Editor, dict[str, fx.Node], Capture]:
    [found] = capture(model.eval())
    return Editor(found), {node.name: node for node in found.graph.nodes}, found


class Pair(NamedTuple):
    left: torch.Tensor
    right: Any


@dataclass
class Record:
    value: torch.Tensor
    name: str = "n"


RESULTS: dict[str, Any] = {
    "tuple": lambda y: (y, y + 1),
    "list in dict": lambda y: {"a": [y, {"b": y + 1}], "n": 3, "none": None},
    "ordered": lambda y: OrderedDict(out=y),
    "named tuple": lambda y: Pair(y, (y, "text")),
    "dataclass": lambda y: Record(y * 2),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(map(same, a, b))
    return same(vars(a), vars(b)) if isinstance(a, Record) else a == b


@pytest.mark.parametrize("kind", RESULTS)
@pytest.mark.parametrize("nested", [False, True], ids=["root", "child"])
def test_structured_results_are_kept(kind: str, nested: bool) -> None:
    inner = Net(
        lambda s, x: RESULTS[kind](s.a(x) + s.b(x)), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)
    )
    model = Net(lambda s, x: s.inner(x), inner=inner) if nested else inner
    edit, nodes, _ = editor(model)
    conv = edit.insert_module(nn.Conv2d(4, 4, 1), [nodes["x"]], before=nodes["add"], name="a")
    edit.replace(nodes["add"], conv)
    result = edit.commit(skeleton(model))
    part = result.inner if nested else result
    assert list(part._modules) == ["a_1"]
    assert same(result(X), RESULTS[kind](part.a_1(X)))
    if nested:
        assert type(result) is Net
