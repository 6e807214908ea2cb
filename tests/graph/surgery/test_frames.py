"""Which frame an edit lands in: layers, helpers, containers, modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from helpers.traps import live
from refold import reparameterize
from refold.errors import RefusedError
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


def put_conv(edit: Editor, place: fx.Node, source: fx.Node, name: str = "conv") -> fx.Node:
    """Let a new conv of `source` take the place of a node."""
    new = edit.insert_module(conv(), [source], before=place, name=name)
    edit.replace(place, new)
    edit.sweep()
    return new


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, as timm has it: an instance of BatchNorm2d."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop, self.act = drop if drop is not None else nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


@pytest.mark.parametrize(
    ("bypassed", "expected"),
    [
        (["bn_drop"], "ReLU()"),
        (["bn_drop", "bn_act"], "Identity()"),
        ([], "Sequential(\n  (drop): Identity()\n  (act): ReLU()\n)"),
    ],
)
def test_a_layer_subclass_is_no_norm_after_its_norm_is_gone(
    bypassed: list[str], expected: str
) -> None:
    norm = NormAct(4, nn.ReLU())
    model = Net(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=norm, alias=nn.ModuleList([norm]))
    edit, nodes, found = editor(model)
    edit.bypass(nodes["batch_norm"], nodes["conv"])
    for name in bypassed:
        edit.bypass(nodes[name], nodes["conv"])
    result = edit.commit(skeleton(model))
    assert repr(result.bn) == expected
    assert result.alias[0] is result.bn
    assert not isinstance(result.bn, nn.BatchNorm2d)
    assert not result.bn.training
    assert torch.equal(result(X), found.graph_module()(X))


def test_a_layer_subclass_with_more_left_becomes_a_plain_module() -> None:
    model = nn.Sequential(conv(), NormAct(4, nn.ReLU()))
    edit, nodes, found = editor(model)
    new = edit.insert_function(torch.neg, (nodes["_0"],), before=nodes["batch_norm"])
    edit.replace(nodes["batch_norm"], new)
    twice = edit.insert_function(torch.add, (new, new), before=nodes["_1_drop"])
    nodes["_1_drop"].args = (twice,)
    edit.sweep()
    result = edit.commit(skeleton(model))
    assert not isinstance(result[1], nn.BatchNorm2d)
    assert dict(result[1].named_parameters()) == {}
    assert torch.equal(result(X), found.graph_module()(X))


class Featured(nn.Module):
    """The residual lives in a helper method of the root, as in many timm models."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = conv(), conv(), nn.Identity(), conv()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.a(x) + self.b(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x)) + 1


def test_a_helper_method_is_regenerated_and_forward_still_calls_it() -> None:
    model = Featured()
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["add"], nodes["x"], "features")
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert "forward" not in vars(type(result))
    assert torch.equal(result.forward_features(X), result.norm(result.features(X)))
    assert set(result._modules) == {"norm", "head", "features"}


def test_a_helper_method_survives_when_forward_is_regenerated() -> None:
    model = Featured()
    edit, nodes, found = editor(model)
    edit.bypass(nodes["norm"], nodes["add"])
    put_conv(edit, nodes["add_1"], nodes["head"])
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert torch.equal(result.forward_features(X), model.forward_features(X))


def two_branches(self: Any, x: Any) -> Any:
    return self.act(self.left(x) + self.right(x))


def test_dead_children_are_removed_and_containers_keep_their_length() -> None:
    left, right = nn.Sequential(conv(), nn.Identity()), nn.Sequential(conv(), nn.Identity())
    model = Net(two_branches, left=left, right=right, act=nn.ReLU())
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["add"], nodes["left_0"], "rest")
    result = edit.commit(skeleton(model))
    assert set(result._modules) == {"left", "act", "rest"}
    assert len(result.left) == 2
    assert torch.equal(result(X), found.graph_module()(X))


def listed_branches(self: Any, x: Any) -> Any:
    return self.act(sum(branch(x) for branch in self.branches))


def test_a_list_of_dead_branches_is_removed() -> None:
    branches = nn.ModuleList([conv(), nn.Sequential(conv(), nn.Identity())])
    model = Net(listed_branches, branches=branches, act=nn.ReLU())
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["act"].args[0], nodes["x"])  # type: ignore[arg-type]
    result = edit.commit(skeleton(model))
    assert set(result._modules) == {"act", "conv"}
    assert torch.equal(result(X), found.graph_module()(X))


def test_a_sequential_keeps_forward_and_indices_when_it_stays_a_chain() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
    edit, nodes, found = editor(model)
    new = put_conv(edit, nodes["_1"], nodes["input_1"], "fused")
    result = edit.commit(skeleton(model))
    assert type(result).forward is nn.Sequential.forward
    assert list(result._modules) == ["0", "1", "2", "3"]
    assert result[0] is found.module.get_submodule(new.target)  # type: ignore[arg-type]
    assert isinstance(result[1], nn.Identity)
    assert torch.equal(result(X), found.graph_module()(X))


def test_a_value_that_escapes_its_frame_inlines_the_frame() -> None:
    child = Net(lambda s, x: s.b(s.a(x)), a=conv(), b=conv())
    model = Net(lambda s, x: s.child(x) + s.c(x), child=child, c=conv())
    edit, nodes, found = editor(model)
    edit.replace(nodes["c"], nodes["child_a"])  # read outside of the child, no output of it
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert torch.equal(result.child(X), model.child(X))  # its own code is still right


def test_a_frame_that_is_folded_away_refuses_to_run() -> None:
    child = Net(lambda s, x: s.b(s.a(x)) + s.c(x), a=conv(), b=conv(), c=conv())
    model = Net(lambda s, x: s.child(x) + s.d(x), child=child, d=conv())
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["child_c"], nodes["x"])
    edit.replace(nodes["d"], nodes["child_a"])
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    with pytest.raises(RefusedError, match=r"child was folded into .* enclosing module"):
        result.child(X)


def test_a_parameter_that_is_folded_away_is_deleted() -> None:
    model = Net(lambda s, x: s.conv(x) * s.gamma.view(1, -1, 1, 1), conv=conv())
    model.gamma = nn.Parameter(torch.ones(4))
    edit, nodes, found = editor(model)
    edit.replace(nodes["mul"], nodes["conv"])
    result = edit.commit(skeleton(model))
    assert {name for name, _ in result.named_parameters()} == {"conv.weight", "conv.bias"}
    assert torch.equal(result(X), found.graph_module()(X))


def test_constants_of_the_trace_become_buffers_outside_the_state_dict() -> None:
    model = Net(
        lambda s, x: s.a(x) * torch.arange(4.0).view(1, -1, 1, 1) + s.b(x), a=conv(), b=conv()
    )
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["b"], nodes["x"], "b")
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert len(dict(result.named_buffers())) == 1
    assert set(result.state_dict()) == {"a.weight", "a.bias", "b_1.weight", "b_1.bias"}


def test_in_place_operators_are_regenerated_in_place() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.a(x)
        old = y
        y += self.b(x)
        return old * self.c(x)

    model = Net(forward, a=conv(), b=conv(), c=conv())
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["c"], nodes["x"], "c")
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert torch.allclose(result(X), (model.a(X) + model.b(X)) * result.c_1(X))


def test_a_context_manager_is_not_lost_in_a_generated_forward() -> None:
    def forward(self: Any, x: Any) -> Any:
        with torch.no_grad():
            y = self.a(x)
        return self.b(y) + self.c(x)

    model = Net(forward, a=conv(), b=conv(), c=conv())
    edit, nodes, _ = editor(model)
    put_conv(edit, nodes["c"], nodes["x"])
    with pytest.raises(RefusedError, match="under a context manager"):
        edit.commit(skeleton(model))


def test_a_block_that_is_called_under_no_grad_can_change() -> None:
    def forward(self: Any, x: Any) -> Any:
        with torch.no_grad():
            return self.inner(x)

    inner = Net(two_branches, left=conv(), right=conv(), act=nn.ReLU())
    model = Net(forward, inner=inner)
    edit, nodes, found = editor(model)
    put_conv(edit, nodes["add"], nodes["x"])
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), found.graph_module()(X))
    assert not result(X).requires_grad


class Gate(nn.Module):
    """Cannot be traced as a whole; its conv can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net(two_branches, left=conv(), right=conv(), act=nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) if x.sum() < 1e9 else x


def test_an_inner_capture_is_written_before_its_path_moves() -> None:
    model = nn.Sequential(conv(), NormAct(4, Gate())).eval()
    target = skeleton(model)
    inner, root = capture(model)
    assert (inner.path, root.path) == ("1.act.body", "")
    edit = Editor(inner)
    nodes = {node.name: node for node in inner.graph.nodes}
    put_conv(edit, nodes["add"], nodes["x"])
    target = edit.commit(target)
    edit = Editor(root)
    nodes = {node.name: node for node in root.graph.nodes}
    edit.bypass(nodes["batch_norm"], nodes["_0"])
    edit.bypass(nodes["_1_drop"], nodes["_0"])
    result = edit.commit(target)
    assert isinstance(result[1], Gate)
    assert torch.equal(result(X), inner.graph_module()(result[0](X)))


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: torch.cat([m.seq[0](m.seq(x)), m.seq(x)], 1),
        lambda m, x: (y := m.seq(x)) - m.seq[0](y).tanh(),
        lambda m, x: (y := m.seq(x)) + m.other(y).tanh(),
        lambda m, x: (y := m.seq(x)) * m.seq[0].running_mean.view(-1, 1, 1) + y.tanh(),
        lambda m, x: m.seq(x) + m.seq[1](x).tanh(),
    ],
)
@pytest.mark.parametrize("tail", [(), (conv(), nn.Tanh())])
def test_a_part_of_a_sequential_that_runs_alone_keeps_its_place(run: Any, tail: Any) -> None:
    norms = (nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4))
    model = Net(run, seq=nn.Sequential(*norms, *tail), other=norms[0])
    model = live(model.double().eval())
    x = X.double()
    folded = reparameterize(model, x)
    assert (folded(x) - model(x)).abs().max() <= 1e-9 * model(x).abs().max()
