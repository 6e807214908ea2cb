"""Edits of the flat graph land in the right module and leave everything else as it was."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import fx, nn

from refold.errors import InputError, RefusedError
from refold.graph.copies.owned import own_tensors
from refold.graph.copies.skeleton import skeleton
from refold.graph.surgery.editor import Editor
from refold.graph.trace.capture import Capture, capture, capture_all

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


class Rep(nn.Module):
    """A RepVGG-like block; `forward` joins three branches."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.point = nn.Conv2d(channels, channels, 1)
        self.skip = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.tag = "kept"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.wide(x) + self.point(x) + self.skip(x))

    def describe(self) -> str:
        return self.tag


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Rep(), Rep())
        self.head = nn.Linear(4, 3)
        self.num_features = 4

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem_norm(self.stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


class Net(nn.Module):
    """A root whose forward is given."""

    def __init__(self, forward: Any, **children: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def lively(model: nn.Module) -> nn.Module:
    """Give every norm statistics and a gamma of both signs, then switch to eval."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def editor(model: nn.Module) -> tuple[Editor, dict[str, fx.Node], Capture]:
    [found] = capture(model, (X,))
    return Editor(found), {node.name: node for node in found.graph.nodes}, found


def fold_rep(edit: Editor, nodes: dict[str, fx.Node], block: str, source: str) -> nn.Conv2d:
    """Put one (made up) conv in the place of the three branches of a block."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    act = nodes[f"{block}_act"]
    new = edit.insert_module(conv, [nodes[source]], before=act, name="conv")
    edit.replace(act.args[0], new)  # type: ignore[arg-type]
    edit.sweep()
    return conv


def folded() -> tuple[Root, nn.Module, torch.Tensor]:
    model = lively(Root())
    edit, nodes, found = editor(model)
    fold_rep(edit, nodes, "blocks_0", "stem_norm")
    fold_rep(edit, nodes, "blocks_1", "blocks_0_act")
    result = edit.commit(skeleton(model))
    return model, result, found.graph_module()(X)


def test_no_edit_changes_nothing() -> None:
    model = lively(Root())
    edit, _, _ = editor(model)
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), model(X))
    kinds = [type(m) for m in model.modules()]
    assert [type(m) for m in result.modules()] == kinds


def test_a_block_is_rewritten_and_its_parents_are_not() -> None:
    model, result, expected = folded()
    assert torch.equal(result(X), expected)
    assert not torch.allclose(expected, model(X))  # the made-up convs do something
    assert type(result) is Root
    assert (type(result.blocks), len(result.blocks)) == (nn.Sequential, 2)
    block = result.blocks[0]
    assert isinstance(block, Rep)
    assert block.describe() == "kept"
    assert list(block._modules) == ["act", "conv"]
    assert type(block).__name__ == "Rep"
    assert repr(block).startswith("Rep(")
    features = result.forward_features(X).mean((2, 3))
    torch.testing.assert_close(features @ result.head.weight.T + result.head.bias, expected)
    assert type(block) is type(result.blocks[1])  # equal bodies share one class


def test_the_callers_model_keeps_its_content() -> None:
    model = lively(Root())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(X)
    edit, nodes, _ = editor(model)
    fold_rep(edit, nodes, "blocks_0", "stem_norm")
    own_tensors(edit.commit(skeleton(model)), model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(X), expected)


def test_the_result_is_an_ordinary_module() -> None:
    _, result, expected = folded()
    assert torch.equal(copy.deepcopy(result)(X), expected)
    assert torch.equal(copy.deepcopy(copy.deepcopy(result))(X), expected)
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(X), expected)
    assert isinstance(loaded.blocks[0], Rep)
    loaded.load_state_dict(result.state_dict())
    exported = torch.export.export(result, (X,)).module()
    torch.testing.assert_close(exported(X), expected)
    compiled = torch.compile(result, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected)
    result.train()(X).sum().backward()
    assert all(p.grad is not None for p in result.parameters())


def test_the_result_can_be_captured_and_edited_again() -> None:
    _, result, expected = folded()
    edit, nodes, found = editor(result)
    assert torch.equal(found.graph_module()(X), expected)
    edit.bypass(nodes["blocks_0_act"], nodes["blocks_0_conv"])
    again = edit.commit(skeleton(result))
    assert torch.equal(again(X), found.graph_module()(X))
    assert type(again.blocks[0].act) is nn.Identity


def test_a_bypass_leaves_an_identity_and_the_class() -> None:
    model = lively(Root())
    edit, nodes, found = editor(model)
    edit.replace_module(nodes["stem"], conv := nn.Conv2d(4, 4, 1).train())
    edit.bypass(nodes["stem_norm"], nodes["stem"])
    result = edit.commit(skeleton(model))
    assert result.stem is conv
    assert not conv.training  # as the layer that it replaces
    assert type(result.stem_norm) is nn.Identity
    assert type(result) is Root
    assert torch.equal(result(X), found.graph_module()(X))


def test_a_bypass_to_another_value_is_no_identity() -> None:
    model = lively(Net(lambda s, x: s.b(s.a(x)), a=nn.Conv2d(4, 4, 1), b=nn.BatchNorm2d(4)))
    edit, nodes, found = editor(model)
    edit.bypass(nodes["b"], nodes["x"])
    result = edit.commit(skeleton(model))
    assert torch.equal(result(X), X)
    assert torch.equal(found.graph_module()(X), X)


def test_aliases_are_replaced_everywhere() -> None:
    block = Rep()
    model = lively(Net(lambda s, x: s.main(x), main=block, listed=nn.ModuleList([block])))
    model.plain = [block.wide]
    edit, nodes, found = editor(model)
    edit.replace_module(nodes["main_wide"], conv := nn.Conv2d(4, 4, 3, padding=1))
    result = edit.commit(skeleton(model))
    assert result.main is result.listed[0]
    assert result.listed[0].wide is conv
    assert result.plain[0] is conv
    assert torch.equal(result(X), found.graph_module()(X))


def test_a_module_called_twice_cannot_be_replaced() -> None:
    model = Net(lambda s, x: s.a(s.a(x)), a=nn.Conv2d(4, 4, 1))
    edit, nodes, _ = editor(model)
    with pytest.raises(RefusedError, match="a is called more than once"):
        edit.replace_module(nodes["a"], nn.Conv2d(4, 4, 1))
    with pytest.raises(InputError, match="calls no module"):
        edit.replace_module(nodes["x"], nn.Conv2d(4, 4, 1))


def test_hooks_of_surviving_modules_fire() -> None:
    model = lively(Root())
    seen: list[str] = []
    model.blocks[0].act.register_forward_hook(lambda *_: seen.append("act"))
    model.register_forward_hook(lambda *_: seen.append("root"))
    edit, nodes, _ = editor(model)
    fold_rep(edit, nodes, "blocks_0", "stem_norm")
    result = edit.commit(skeleton(model))
    seen.clear()
    result(X)
    assert seen == ["act", "root"]


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor, *, mask: Any = None, scale: float = 2.0) -> torch.Tensor:
        y = self.a(x) + self.b(x)
        return y * scale if mask is None else y * mask


def test_arguments_keep_their_names_and_other_values_are_refused() -> None:
    edit, nodes, found = editor(Optional())
    conv = edit.insert_module(nn.Conv2d(4, 4, 1), [nodes["x"]], before=nodes["add"], name="conv")
    edit.replace(nodes["add"], conv)
    result = edit.commit(skeleton(Optional()))
    assert torch.equal(result(x=X, mask=None), found.graph_module()(X))
    with pytest.raises(RefusedError, match=r"made for scale=2\.0, got 3\.0"):
        result(X, scale=3.0)
    with pytest.raises(RefusedError, match="made for mask=None, got Tensor"):
        result(X, mask=X)


class Odd(nn.Module):
    def forward(self, x: torch.Tensor, flag: Any = X) -> torch.Tensor:
        return x.relu() + x.exp()


def test_a_refused_root_says_why() -> None:
    edit, nodes, _ = editor(Odd())
    edit.replace(nodes["add"], nodes["relu"])
    with pytest.raises(RefusedError, match=r"the model cannot get .* default of its argument flag"):
        edit.commit(skeleton(Odd()))


def test_several_captures_commit_into_one_target() -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.two(self.one(x)) if x.sum() < 1e9 else x

    model = lively(Net(forward, one=Rep(), two=Rep()))
    target, graphs = skeleton(model), []
    for found in capture_all(model).captures:
        edit = Editor(found)
        nodes = {node.name: node for node in found.graph.nodes}
        act = nodes["act"]
        new = edit.insert_module(nn.Conv2d(4, 4, 1), [nodes["x"]], before=act, name="conv")
        edit.replace(act.args[0], new)  # type: ignore[arg-type]
        target = edit.commit(target)
        graphs.append(found.graph_module())
    assert torch.equal(target(X), graphs[1](graphs[0](X)))
    assert list(target.one._modules) == ["act", "conv"]


@pytest.mark.parametrize(
    "make", [fx.symbolic_trace, lambda m: torch.export.export(m, (X,)).module()]
)
def test_a_graph_module_stays_one(make: Any) -> None:
    model = make(lively(Rep()))
    edit, nodes, found = editor(model)
    last = next(node for name, node in reversed(nodes.items()) if name.startswith("add"))
    new = edit.insert_module(nn.Conv2d(4, 4, 1), [nodes["x"]], before=last, name="conv")
    edit.replace(last, new)
    result = edit.commit(skeleton(model))
    assert isinstance(result, fx.GraphModule)
    assert torch.equal(result(X), found.graph_module()(X))
    assert len(list(result.parameters())) == 2
