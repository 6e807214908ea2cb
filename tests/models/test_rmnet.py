"""RMNet's networks: as large as published in both forms, and equal without their residuals.

The oracle of a plain form is the training form in float64, with live statistics and norm weights of
both signs; the counts are the published ones (arXiv:2111.00687 and the authors' repository).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from helpers.random_residuals import Additions, additions
from models.nets import alive, build, error, image, small
from refold.errors import InputError
from refold.models import RMNeXt, RMRep
from refold.models.rmobilenet import Row
from refold.models.rmrep import pair_stages
from refold.residuals import removal
from refold.workload import workload_of
from zoo.live import enliven

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
# Millions of parameters and billions of multiply-adds, in training form and in plain form.
PUBLISHED = {
    "rmnext_41x5_16": ((20.02, 3.17), (23.98, 3.78)),
    "rmnext_50x5_32": ((32.80, 5.67), (39.57, 6.87)),
    "rmnext_50x6_32": ((40.82, 7.04), (47.58, 8.24)),
    "rmnext_101x6_16": ((50.45, 9.37), (59.45, 11.08)),
    "rmnext_152x6_32": ((107.03, 21.24), (126.92, 25.27)),
    "rmrep_21": ((14.49, 2.14), (14.64, 2.16)), "rmrep_37": ((26.69, 3.94), (27.18, 4.01)),
    "rmrep_69": ((44.13, 6.51), (52.25, 7.71)), "rmrep_133": ((72.03, 10.62), (102.40, 15.11)),
    "repvgg_21": ((None, 2.40), (14.64, 2.16)),
    "rmnet18": ((11.69, None), (20.18, None)), "rmnet34": ((21.80, None), (40.38, None)),
    "rmobilenetv2": ((3.50, 0.301), (7.50, 0.848)),
}  # fmt: skip
# One of each family: the deeper and wider ones repeat it, and take seconds each to write.
FEW = {"rmnext_41x5_16", "rmrep_21", "repvgg_21", "rmnet18", "rmobilenetv2"}
REMOVED = ("rmnet20", "rmnext_26x3_32", "rmobilenet_cifar", "rmobilenetv2")


def on_meta(name: str, deploy: bool, **options: Any) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        model: Any = refold.create_model(name, deploy=deploy, **options)
        return model.eval(), torch.empty(1, *model.default_cfg["input_size"])


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.zoo) for n in PUBLISHED]
)
@pytest.mark.parametrize("deploy", [False, True])
def test_sizes_are_the_published_ones(name: str, deploy: bool) -> None:
    parameters, macs = PUBLISHED[name][deploy]
    found = workload_of(*on_meta(name, deploy))
    if parameters is not None:
        assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.0055)
    if macs is not None:
        assert (found.macs or 0) / 1e9 == pytest.approx(macs, abs=0.0055)


@pytest.mark.parametrize("depth", some([21, 37, 69, 133], keep=1))
def test_depths_are_the_names(depth: int) -> None:
    for family in ("rmrep", "repvgg", "resnet"):
        plain, _ = on_meta(f"{family}_{depth}", True)
        convs = [part for part in plain.modules() if isinstance(part, nn.Conv2d)]
        assert [conv.kernel_size for conv in convs] == [(3, 3)] * depth
        assert {conv.out_channels for conv in convs} == {64, 128, 256, 512}


def chain_length(model: nn.Module) -> int:
    """Return the convolutions of a residual network, its projections left out."""
    named = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    return sum("conv11" not in name and "downsample" not in name for name in named)


@pytest.mark.parametrize(
    "name", some(["rmnext_26x3_32", "rmnext_41x5_16", "rmnext_152x6_32"], keep=1)
)
def test_rmnexts_depth_counts_its_convolutions(name: str) -> None:
    """The name counts the classifier and one layer for the stem's two."""
    assert chain_length(on_meta(name, False)[0]) == int(name.split("_")[1].split("x")[0])


@pytest.mark.parametrize(
    "name", some(["rmnet20", "rmnet110", "rmnet18", "rmnet34"], keep=["rmnet20"])
)
def test_rmnets_depth_counts_its_convolutions(name: str) -> None:
    assert chain_length(on_meta(name, False)[0]) + 1 == int(name.removeprefix("rmnet"))


# -- equal without residuals ----------------------------------------------------------------------


@pytest.mark.parametrize("name", REMOVED)
def test_the_plain_form_is_equal_and_adds_nothing(name: str) -> None:
    statistics = name != "rmobilenetv2"
    model, x = alive(name, statistics=statistics)
    plain: Any = model.deployed(x)
    assert additions(model, x) > 0
    assert additions(plain, x) == 0
    assert isinstance(plain, type(model))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    made = build(name, deploy=True, statistics=statistics)
    made.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        for scale in (1.0, 20.0):  # drives values above ReLU6's cap
            wanted = model(x * scale)
            assert error(wanted, plain(x * scale)) < TOLERANCE
            assert error(plain(x * scale), made.eval()(x * scale)) < TOLERANCE


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("deploy", [False, True])
def test_both_forms_train(name: str, deploy: bool) -> None:
    model = build(name, deploy=deploy).train()
    if isinstance(model, RMNeXt) and not deploy:
        for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
            nn.init.ones_(norm.weight)  # a branch that starts at zero has no gradient yet
    logits = model(image(model))
    logits.square().sum().backward()
    assert logits.shape == (2, 10)
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_fresh_rmnext_passes_its_shortcuts_on() -> None:
    model = build("rmnext_26x3_32").eval()
    x = image(model)
    with torch.no_grad():
        first = model.layer0(x)
        assert torch.equal(model.layer1[1](first), first)


@pytest.mark.parametrize("name", some(["rmnet20", "rmnext_26x3_32", "rmobilenet_cifar"], keep=2))
def test_statistics_are_logged_in_training_and_change_nothing(name: str) -> None:
    """`running1` sees what the shortcut carries and `running2` the sum, as running averages."""
    one, two = build(name), build(name, statistics=True)
    logged = [key for key in two.state_dict() if "running1" in key or "running2" in key]
    assert [key for key in two.state_dict() if key not in logged] == list(one.state_dict())
    x = image(one)
    seen: dict[str, Tensor] = {}
    for path, part in two.named_modules():
        if path.endswith(("running1", "running2")):
            part.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0]}))
    torch.manual_seed(0)
    wanted = one.train()(x)
    torch.manual_seed(0)  # for the dropout
    assert torch.equal(wanted, two.train()(x))
    assert len(seen) * 3 == len(logged)
    for path, value in seen.items():
        mean = two.get_submodule(path).running_mean
        assert torch.allclose(mean, 0.1 * value.mean((0, 2, 3)))
    two.eval()(x)
    assert int(two.get_submodule(next(iter(seen))).num_batches_tracked) == 1


def test_groups_have_to_divide_and_reserved_ones_need_not() -> None:
    with pytest.raises(InputError, match="groups of 5 channels do not divide the 16"):
        RMNeXt(10, depths=(1, 1), expand=3, group=5, width=8)
    odd = RMNeXt(10, depths=(2, 1), expand=4, group=12, width=8, large_stem=False)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    enliven(odd.double().eval(), (x,))
    plain: Any = odd.deployed(x)  # 24 + 8 channels are no groups of 12
    assert (plain.layer1[1].conv2.in_channels, plain.layer1[1].conv2.groups) == (36, 3)
    with torch.no_grad():
        assert error(odd(x), plain(x)) < TOLERANCE


# -- RepVGG's blocks that reserve channels --------------------------------------------------------


@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize("ratio", some([0.25, 0.75], keep=1))
def test_reserving_blocks_fold_into_a_plain_chain(ratio: float, se: bool) -> None:
    name = "rmrepse" if se else "rmrep_21"
    model, x = alive(name, ratio=ratio)
    folded = refold.reparameterize(model, x, allow_growth=True)
    plain = build(name, ratio=ratio, deploy=True).eval()
    plain.load_state_dict(folded.state_dict(), strict=True)
    assert additions(folded, x) == 0
    graph = torch.export.export(plain, (x,)).graph
    assert not [node for node in graph.nodes if "cat" in str(node.target)]
    with torch.no_grad():
        assert error(model(x), folded(x)) < TOLERANCE
        assert error(folded(x), plain(x)) < TOLERANCE


def test_reserving_needs_more_multiply_adds_and_is_asked_for() -> None:
    model, x = alive("rmrep_21", ratio=0.75)
    thin = refold.reparameterize(model, x)
    with torch.no_grad():
        assert error(model(x), thin(x)) < TOLERANCE
    macs = [
        workload_of(net, x).macs for net in (thin, model, build("rmrep_21", deploy=True).eval())
    ]
    assert macs == sorted(macs)
    whole = refold.reparameterize(thin, x, allow_growth=True)
    with torch.no_grad():
        assert error(model(x), whole(x)) < TOLERANCE
    assert workload_of(whole, x).macs == macs[-1]


def test_ratios_and_shapes_that_cannot_reserve_are_named() -> None:
    with pytest.raises(InputError, match="ratio must be at least 0 and less than 1, got 1"):
        RMRep(10, stages=pair_stages(1, (8,)), ratio=1.0)
    with pytest.raises(InputError, match="no bottlenecks"):
        refold.create_model("repvgg_18", bottleneck=True)


# -- MobileNetV2 to V1 ----------------------------------------------------------------------------


def test_the_special_mobilenetv2_becomes_mobilenetv1() -> None:
    """4.221 M parameters and 0.569 G multiply-adds, with V1's widths and strides in V1's order."""
    plain, x = on_meta("rmobilenet", True)
    v1, _ = on_meta("mobilenetv1", True)
    found, wanted = (
        [(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.groups) for c in net.modules()
         if isinstance(c, nn.Conv2d)]
        for net in (plain, v1)
    )  # fmt: skip
    assert sorted(found) == sorted(wanted)
    order: list[Any] = []
    for module in (part for part in plain.modules() if isinstance(part, nn.Conv2d)):
        module.register_forward_pre_hook(lambda conv, args: order.append(conv))
    plain(x)
    assert [(c.in_channels, c.out_channels, c.stride) for c in order] == [
        (i, o, s) for i, o, _, s, _ in wanted
    ]
    assert [conv.groups > 1 for conv in order[1:]] == [True, False] * 13
    size = workload_of(plain, x)
    assert size.parameters == 4_221_032
    assert round((size.macs or 0) / 1e9, 3) == 0.569


def test_the_width_between_blocks_is_free() -> None:
    train, _ = on_meta("rmobilenet_cifar", False, num_classes=1000)
    inner = train.get_submodule("features.5.conv.6")
    assert isinstance(inner, nn.Conv2d)
    assert inner.out_channels == 64 * 8
    plain, _ = on_meta("rmobilenet_cifar", True, num_classes=1000)
    assert workload_of(plain).parameters == 4_221_032


def test_the_free_width_rides_along_on_its_first_channels_only() -> None:
    """Before merging, a block holds its input's channels once, not `t_free` times."""
    rows = (Row(3, 8, 2, 1),)
    model, x = alive("rmobilenet_cifar", rows=rows, width=1.0, first=8, t_free=4, num_classes=0)
    done = removal(model, x)
    assert done.kept == ()
    convs = [part for part in done.model.modules() if isinstance(part, nn.Conv2d)]
    depthwise = [conv.in_channels for conv in convs if conv.groups > 1]
    assert depthwise == [32, 8 + 3 * 8, 8 + 3 * 8]
    with torch.no_grad():
        assert error(model(x), done.model(x)) < TOLERANCE


def test_a_plain_form_on_no_values_is_that_on_values() -> None:
    plain = build("rmobilenet_cifar", deploy=True)
    empty, _ = on_meta("rmobilenet_cifar", True, num_classes=10, **small("rmobilenet_cifar"))
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in empty.state_dict().items()} == shapes


def test_additions_can_be_counted() -> None:
    model, x = alive("rmnet20")
    with torch.no_grad(), Additions() as counter:
        model(x)
    assert counter.count == 5
