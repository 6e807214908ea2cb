"""Pruned networks against the original with the same channels masked by hand, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from helpers.pruning_nets import chain, difference, image
from helpers.random_residuals import conv, norm
from refold.errors import InputError, RefusedError
from refold.onnx_files import prune_onnx
from refold.pruning import Layer, channel_mask, drop_dead_channels, pruning, restore_norms

pytestmark = pytest.mark.slow


class Basic(nn.Module):
    """A residual block whose output, and nothing else, goes through `end`."""

    def __init__(self, width: int, out: int, stride: int, rng: Random) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(width, out, 3, rng, stride=stride)
        self.conv2, self.bn2 = conv(out, out, 3, rng)
        self.down = nn.Sequential(*conv(width, out, 1, rng, stride=stride)) if stride > 1 else None
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.end(y + (x if self.down is None else self.down(x))).relu()


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rng = Random(seed)
        self.stem, self.bn = conv(3, 6, 3, rng)
        self.b1, self.b2 = Basic(6, 6, 1, rng), Basic(6, 8, 2, rng)
        self.b3 = Basic(8, 8, 1, rng)
        self.fc = nn.Linear(8, 5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.b3(self.b2(self.b1(self.bn(self.stem(x)).relu())))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@contextmanager
def masked(model: nn.Module, off: dict[str, list[int]]) -> Iterator[None]:
    """Set channels of some layers' outputs to 0 while the block runs."""

    def zero(rows: list[int]) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            keep = torch.ones(output.shape[1], dtype=output.dtype)
            keep[rows] = 0
            return output * keep.reshape(-1, *(1,) * (output.ndim - 2))

        return hook

    handles = [
        model.get_submodule(path).register_forward_hook(zero(rows)) for path, rows in off.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def lowest(scores: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """Return the `count` channels of the smallest scores, by layer."""
    flat = sorted((float(s), path, c) for path, t in scores.items() for c, s in enumerate(t))
    off: dict[str, list[int]] = {}
    for _, path, channel in flat[:count]:
        off.setdefault(path, []).append(channel)
    return off


def own_scores(net: Net) -> dict[str, Tensor]:
    """Return the deviation of every value that a mask can stand on, worked out by hand."""
    g = {name: m.weight.detach().abs() for name, m in net.named_modules() if hasattr(m, "eps")}
    b1 = (g["b1.bn2"] ** 2 + g["bn"] ** 2).sqrt()
    b2 = (g["b2.bn2"] ** 2 + g["b2.down.1"] ** 2).sqrt()
    b3 = (g["b3.bn2"] ** 2 + b2**2).sqrt()
    inner = {f"b{i}.bn1": g[f"b{i}.bn1"] for i in (1, 2, 3)}
    return {"bn": g["bn"], **inner, "b1.end": b1, "b2.end": b2, "b3.end": b3}


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_without_residuals_every_channel_goes_by_its_own_norms(ratio: float) -> None:
    net, x = Net(), image()
    scores = own_scores(net)
    done = pruning(net, x, ratio=ratio, remove_residuals=True, round_to=1)
    count = int(ratio * sum(map(len, scores.values())))
    off = lowest(scores, count)
    assert all(len(rows) < len(scores[path]) for path, rows in off.items()), "floors would bite"
    with masked(net, off):
        assert difference(net, done.model, x * 3) < 1e-9
    assert difference(net, done.model, x * 3) > 1e-3
    assert sum(map(len, done.silenced.values())) == count
    assert not list(filter(None, (item for item in done.kept if "pads" in item.reason)))
    assert done.cost_after.macs < done.cost_plain.macs
    assert done.cost_before.parameters < done.cost_plain.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scales_are_found_in_other_precisions(dtype: torch.dtype) -> None:
    net, x = Net(), image()
    wanted = pruning(net, x, ratio=0.3, remove_residuals=True, round_to=1).silenced
    narrow = Net().to(dtype)
    found = pruning(narrow, x.to(dtype), ratio=0.3, remove_residuals=True, round_to=1)
    assert found.silenced == wanted
    assert next(found.model.parameters()).dtype == dtype


def test_with_residuals_only_what_they_do_not_tie_goes() -> None:
    net, x = Net(1), image()
    inner = {path: s for path, s in own_scores(net).items() if path.endswith("bn1")}
    done = pruning(net, x, ratio=0.5, round_to=1)
    with masked(net, lowest(inner, 11)):
        assert difference(net, done.model, x) < 1e-9
    assert {layer.where for layer in done.steps} == {"b1.conv1", "b2.conv1", "b3.conv1"}
    assert {"stem", "b1.conv2", "fc"} <= {item.where for item in done.kept}
    assert any(s.where == "b1.conv1" and s.detail.startswith("6 -> ") for s in done.steps)


def test_pruned_equals_the_plain_network_silenced() -> None:
    """The same promise for the network after `remove_residuals`, which has no norm left."""
    net, x = Net(2), image()
    plain = refold.remove_residuals(net, x)
    with pytest.raises(InputError, match="before its norms are folded"):
        refold.prune(plain, x, ratio=0.5, round_to=1)
    done = pruning(plain, x, ratio=0.5, importance="l1", round_to=1)
    assert difference(plain, done.model, x) > 1e-3
    for path, rows in done.silenced.items():
        layer: Any = plain.get_submodule(path)
        layer.weight.data[rows] = 0
        layer.bias.data[rows] = 0
    assert difference(plain, done.model, x) < 1e-9
    assert difference(plain, done.masked, x) < 1e-12
    direct = refold.prune(net, x, ratio=0.5, importance="l1", remove_residuals=True, round_to=1)
    assert difference(direct, done.model, x) < 1e-9


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Sigmoid()], ids=repr)
def test_the_smallest_norms_go_through_depthwise_layers_and_pools(act: nn.Module) -> None:
    rng = Random(5)
    torch.manual_seed(5)
    net, x = chain(rng, act, padded=False), image()
    makers = {"1": net[1], "7": net[7], "11": net[11]}  # norm 4 is that of a depthwise layer
    off = lowest({path: m.weight.detach().abs() for path, m in makers.items()}, 8)
    pruned = refold.prune(net, x, threshold=_between(makers, 8), round_to=1)
    with masked(net, off):
        assert difference(net, pruned, x) < 1e-9


def _between(norms: dict[str, nn.Module], count: int) -> float:
    scales = torch.cat([norm.weight.detach().abs() for norm in norms.values()]).sort().values
    return float(scales[count - 1 : count + 1].mean())


def test_filters_are_compared_with_their_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
    net.append(nn.Conv2d(6, 2, 1)).double().eval()
    net[2].weight.data *= 100  # a layer of large weights loses channels as well
    scores = {p: net.get_submodule(p).weight.detach().abs().flatten(1).sum(1) for p in ("0", "2")}
    scores = {p: s / s.mean() for p, s in scores.items()}
    done = pruning(net, image(), ratio=0.4, importance="l1", round_to=1)
    assert done.silenced == {p: sorted(c) for p, c in lowest(scores, 4).items()}


def test_an_importance_of_ones_own_and_floors() -> None:
    net, x = Net(3), image()
    seen: list[Layer] = []

    def last(layer: Layer) -> Tensor:
        seen.append(layer)
        return -torch.arange(len(layer.weight), dtype=torch.float64)

    done = pruning(
        net, x, ratio=0.99, importance=last, floor={"b1.conv1": 4, "b2.conv1": 0.5}, round_to=1
    )
    assert {d.where: d.after for d in done.steps} == {"b1.conv1": 4, "b2.conv1": 4, "b3.conv1": 1}
    assert [layer.path for layer in seen] == ["b1.conv1", "b2.conv1", "b3.conv1"]
    assert torch.equal(seen[0].scale, net.b1.bn1.weight.detach().abs())
    assert done.silenced["b1.conv1"] == [4, 5]


def test_a_channel_that_would_leave_a_constant_at_a_border_is_no_candidate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())
    net.append(nn.Conv2d(4, 2, 3, padding=1)).double().eval()
    with pytest.raises(RefusedError, match="0: its channels would leave a constant"):
        refold.prune(net, image(), ratio=0.5, round_to=1)


def test_masks_anywhere_go_with_their_channels() -> None:
    """Masks behind the addition and on the shortcut, as RMNet trains them; of either sign."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            r = Random(0)
            torch.manual_seed(0)
            self.a, self.bn = conv(3, 6, 3, r)
            self.body = nn.Sequential(*conv(6, 6, 3, r), channel_mask(6), nn.ReLU())
            self.body += nn.Sequential(*conv(6, 6, 3, r))
            self.short, self.out = channel_mask(6), channel_mask(6)
            self.fc = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.a(x)).relu()
            return self.fc(self.out(self.short(x) + self.body(x)).relu())

    net, x = Masked().double().eval(), image()
    for mask in (net.short, net.out, net.body[2]):
        mask.weight.data.normal_()
        mask.weight.data[:3] = 0
    plain = refold.remove_residuals(net, x)
    done = drop_dead_channels(plain, x, round_to=1)
    assert difference(net, done, x) < 1e-9
    widths = [m.out_channels for m in done.modules() if isinstance(m, nn.Conv2d)]
    assert sorted(widths) == [3, 4, 6, 6]  # the body's has 3 of its own and 3 that ride along
    done = pruning(net, x, ratio=0.6, remove_residuals=True, round_to=1)
    assert difference(net, done.model, x) > 1e-3
    total = next(rows for path, rows in done.silenced.items() if path not in ("a", "body.0"))
    assert set(total) >= {0, 1, 2}  # masks count in the scales


def test_norms_that_are_called_as_functions_are_read() -> None:
    class Called(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            rest = (self.running_mean, self.running_var, self.weight, self.bias, False, 0.1)
            return nn.functional.batch_norm(x, *rest, self.eps)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Called(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    net[1].weight.data = torch.tensor([-3.0, 1.0, 2.0, -0.5], dtype=torch.float64)
    assert pruning(net.eval(), image(), threshold=1.5, round_to=1).silenced == {"0": [1, 3]}


def test_norms_come_back_change_nothing_and_are_folded_again() -> None:
    net, x = Net(5), image()
    pruned = refold.prune(net, x, ratio=0.4, remove_residuals=True, round_to=1)
    normed = restore_norms(pruned, [x, 2 * x])
    assert difference(pruned, normed, x) < 1e-9
    assert difference(pruned, refold.reparameterize(normed, x), x) < 1e-9
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len([m for m in pruned.modules() if isinstance(m, nn.Conv2d)])
    means = [float(m.running_mean.abs().max()) for m in norms]
    assert min(means) > 0  # measured, not only there


BAD = [
    ({}, "give one of ratio"),
    ({"ratio": 0.5, "threshold": 0.1}, "give one of ratio"),
    ({"ratio": 1.0}, "below 1"),
    ({"threshold": -1.0}, "at least 0"),
    ({"ratio": 0.5, "importance": "l2"}, '"bn", "l1" or a function'),
    ({"ratio": 0.5, "importance": lambda layer: 1}, "0: the importance must be a tensor of 4"),
    ({"ratio": 0.5, "floor": 0}, "floor must be a number"),
    ({"ratio": 0.5, "floor": {"9": 2}}, "floor names"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_arguments_are_told(given: dict[str, Any], said: str) -> None:
    r = Random(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4, r), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with pytest.raises(InputError, match=said):
        refold.prune(net.eval(), image(), **given)


def test_a_training_network_is_refused_and_the_callers_stays_as_it_is() -> None:
    net, x = Net(4), image()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    done = refold.prune(net, x, ratio=0.5, remove_residuals=True, round_to=1)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    again = refold.prune(
        net, x, ratio=0.5, remove_residuals=True, round_to=1
    )  # masks do not count twice
    assert torch.equal(done(x), again(x))
    with pytest.raises(RefusedError, match="training mode"):
        refold.prune(net.train(), x, ratio=0.5, round_to=1)


def wide(seed: int = 0) -> nn.Module:
    """Return a chain of layers of 32, 20 and 6 channels, one of them behind a depthwise one."""
    rng = Random(seed)
    torch.manual_seed(seed)
    layers = [*conv(3, 32, 3, rng), nn.ReLU(), *conv(32, 32, 3, rng, groups=32), nn.ReLU6()]
    layers += [*conv(32, 20, 1, rng), nn.ReLU(), *conv(20, 6, 3, rng), nn.ReLU()]
    return nn.Sequential(*layers, *conv(6, 5, 1, rng)).double().eval()


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("seed", some(range(3), keep=1))
@pytest.mark.parametrize("step", [4, 8, 16])
def test_layers_keep_multiples_and_their_best_channels(seed: int, step: int) -> None:
    net, x = wide(seed), image()
    exact = pruning(net, x, ratio=0.6, round_to=1)
    done = pruning(net, x, ratio=0.6, round_to=step)
    for width, before, free in zip(
        widths(done.model), widths(net), widths(exact.model), strict=True
    ):
        assert width >= free
        assert width == before or before < step or (width % step == 0 and width - free < step)
    assert widths(done.model) != widths(net)
    assert difference(done.masked, done.model, x) < 1e-9
    for path, rows in done.silenced.items():  # of those that may go, the least important went
        assert set(rows) <= set(exact.silenced[path])
        norm_of = net.get_submodule(str(int(path) + 1)).weight.detach().abs()
        back = set(exact.silenced[path]) - set(rows)
        assert all(norm_of[a] >= norm_of[b] for a in back for b in rows)


def test_eight_is_the_default() -> None:
    net, x = wide(), image()
    assert widths(refold.prune(net, x, ratio=0.6)) == widths(
        refold.prune(net, x, ratio=0.6, round_to=8)
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            off = torch.arange(module.num_features) < module.num_features * 0.6
            module.weight.data[off] = module.bias.data[off] = 0
    dead = drop_dead_channels(net, x)
    assert widths(dead) == [16, 16, 8, 2, 5]
    assert widths(drop_dead_channels(net, x, round_to=1)) == [12, 12, 8, 2, 5]
    assert difference(net, dead, x) < 1e-9


def test_a_wide_layer_keeps_multiples_of_sixteen() -> None:
    """35 of 64 and 31 of 56 channels are left; multiples of 8 would be 40 and 32."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 56, 1), nn.BatchNorm2d(56), nn.ReLU(), nn.Conv2d(56, 4, 1),
    ).double().eval()  # fmt: skip
    for part in (net[1], net[4]):
        part.weight.data = torch.linspace(0.5, 1, len(part.weight)).double()
    x = image()[:1]
    done = pruning(net, x, ratio=0.45)
    assert widths(pruning(net, x, ratio=0.45, round_to=1).model) == [35, 31, 4]
    assert widths(done.model) == [48, 32, 4]
    assert widths(drop_dead_channels(done.masked, x)) == [48, 32, 4]
    assert difference(done.masked, done.model, x) < 1e-9


def test_removed_residuals_leave_multiples_too() -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            rng = Random(0)
            self.stem, self.bn = conv(3, 16, 3, rng)
            self.b1, self.b2 = Basic(16, 16, 1, rng), Basic(16, 24, 2, rng)
            self.b3, self.fc = Basic(24, 24, 1, rng), nn.Linear(24, 5)
            self.double().eval()

    net, x = Wide(), image()
    done = pruning(net, x, ratio=0.5, remove_residuals=True)
    assert done.steps
    assert all(step.after % 8 == 0 for step in done.steps)
    assert difference(done.masked, done.model, x) < 1e-9


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"params": 0.4}, {"macs": 250_000}])
@pytest.mark.parametrize("step", some([1, 8], keep=[8]))
def test_a_target_is_met_by_the_least_pruning(target: dict[str, float], step: int) -> None:
    net, x = wide(), image()[:1]
    done = pruning(net, x, **target, round_to=step)
    ((name, value),) = target.items()
    before, after = (
        cost.macs if name == "macs" else cost.parameters
        for cost in (done.cost_before, done.cost_after)
    )
    most = value * before if value < 1 else value
    assert after <= most
    assert after > (0.85 if step == 1 else 0.5) * most
    assert difference(done.masked, done.model, x) < 1e-9


def test_what_one_block_would_leave_unspent_goes_to_other_channels(tmp_path: Path) -> None:
    """By worth alone the halves of the first two layers went, which leaves 3,680 multiply-adds."""
    parts: list[nn.Module] = []
    for before, after in pairwise((3, 64, 64, 64, 8)):
        parts += [nn.Conv2d(before, after, 1, bias=False), nn.ReLU()]
    net, x = nn.Sequential(*parts[:-1]).eval(), torch.randn(1, 3, 1, 1)
    for place, least in enumerate((0.1, 0.2, 0.3)):  # what half of a layer's channels are
        net[2 * place].weight.data.fill_(1)[:32] = least
    done = pruning(net, x, macs=4500, importance="l1", round_to=32)
    assert widths(done.model) == [32, 64, 32, 8]
    assert done.cost_after.macs == 4448
    assert widths(pruning(net, x, macs=4000, importance="l1", round_to=32).model) == [32, 32, 64, 8]
    refold.export(net, tmp_path / "net.onnx", x)
    file = prune_onnx(tmp_path / "net.onnx", params=4500, round_to=32)
    assert file.cost_after.parameters == 4448


@pytest.mark.parametrize("value", [1, 1.5, 0, -3, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_target_is_a_share_or_a_count(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be a share between 0 and 1, or a whole"):
        refold.prune(wide(), image(), **{name: value})


def test_a_target_out_of_reach_says_what_can_be_had() -> None:
    with pytest.raises(RefusedError, match=r"channels alone takes this network to [\d,]+ multiply"):
        refold.prune(wide(), image(), macs=0.01)
