"""RepMLP for small images, faces and pixels: published counts, ablations, losses, exact folds."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import timm.utils
import torch
from torch import Tensor, nn

import refold
from models.nets import alive, build, error
from refold.errors import InputError
from refold.models import AMSoftmax, ArcFace, PSPNet
from refold.models.margin_losses import MarginLoss
from refold.workload import Workload, workload_of
from zoo.live import enliven

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9


def deployed(name: str, num_classes: int, **options: Any) -> Workload:
    with torch.device("meta"):
        model = refold.create_model(name, num_classes=num_classes, deploy=True, **options).eval()
        size: Any = cast(Any, model).default_cfg["input_size"]
        return workload_of(model, torch.empty(1, *size))


def millions(count: int | None) -> float:
    return (count or 0) / 1e6


# -- CIFAR-10 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "macs"), [("repmlp_cifar10", 52.8), ("wide_convnet_cifar10", 65.1)]
)
def test_the_multiply_adds_are_the_papers(name: str, macs: float) -> None:
    assert millions(deployed(name, 10).macs) == pytest.approx(macs, abs=0.05)


def test_the_last_stage_is_one_partition() -> None:
    net: Any = alive("repmlp_cifar10")[0]
    assert [net.get_submodule(f"stage{i}.0.repmlp").is_global for i in (1, 2, 3)] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["repmlp_cifar10", "wide_convnet_cifar10"])
def test_the_fold_is_the_plain_form(name: str) -> None:
    """The last linear layer and the classifier are not one: forward_features lies between them."""
    model, x = alive(name)
    fused = timm.utils.reparameterize_model(model)
    plain = build(name, deploy=True).eval()
    plain.load_state_dict(fused.state_dict())
    with torch.no_grad():
        folded = refold.reparameterize(model, x)
        assert error(model(x), folded(x)) <= TOLERANCE
        assert error(model(x), plain(x)) <= TOLERANCE
    sizes = [sum(p.numel() for p in net.parameters()) for net in (plain, folded)]
    assert sizes[0] == sizes[1]
    with torch.no_grad():
        shown = [cast(Any, net).forward_features(x) for net in (model, folded)]
    assert error(*shown) <= TOLERANCE


@pytest.mark.parametrize("mixer", ["no_local", "no_global", "conv9_fc3", "conv9"])
def test_ablations_fold_into_their_plain_form(mixer: str) -> None:
    model, x = alive("repmlp_cifar10", mixer=mixer)
    with torch.no_grad():
        folded = refold.reparameterize(model, x)
        assert error(model(x), folded(x)) <= TOLERANCE
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    convs = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    assert any(conv.kernel_size == (9, 9) for conv in convs) == mixer.startswith("conv9")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"mixer": "conv7"}, "mixer must be one of repmlp"), ({"img_size": 40}, "32")],
)
def test_a_mistake_is_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        refold.create_model("repmlp_cifar10", **options)


# -- faces ----------------------------------------------------------------------------------------


def test_faces_cost_what_the_paper_says() -> None:
    """2.5 times the 439 million multiply-adds that MobileFaceNet's authors count for theirs."""
    assert millions(deployed("repmlp_faceresnet", 0).macs) / 439 == pytest.approx(2.5, abs=0.05)


def test_the_named_blocks_hold_repmlp() -> None:
    net, _ = alive("repmlp_faceresnet")
    held = [path for path, _ in net.named_modules() if path.endswith("btnk_repmlp")]
    assert held == [f"stage{i}.btnk_repmlp" for i in ("1.1", "1.2", "2.1", "3.1")]
    with pytest.raises(InputError, match="keeps an ordinary one"):
        refold.create_model("faceresnet", num_classes=0, repmlp=(3, 0, 0, 0))


def test_logits_are_of_the_directions() -> None:
    net, x = alive("faceresnet")
    with torch.no_grad():
        hidden = net.forward_head(net.forward_features(x), pre_logits=True)
        classifier = cast(nn.Linear, net.get_classifier())
        unit = hidden / hidden.norm(dim=1, keepdim=True)
        assert error(unit @ classifier.weight.T + classifier.bias, net(x)) <= TOLERANCE


def angles(loss: MarginLoss, embeddings: Tensor) -> Tensor:
    """The oracle's own cosines."""
    rows = embeddings / embeddings.norm(dim=1, keepdim=True)
    return rows @ (loss.weight / loss.weight.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("kind", [AMSoftmax, ArcFace])
def test_margins_are_the_papers_formulas(kind: type[AMSoftmax] | type[ArcFace]) -> None:
    torch.manual_seed(0)
    loss = kind(8, 5).double()
    embeddings = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(16) % 5
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(angles(loss, embeddings), labels.tolist(), strict=True):
        right = row[label]
        if kind is AMSoftmax:
            harder = right - 0.35
        else:
            turned = torch.cos(torch.acos(right) + 0.5)
            inside = torch.acos(right).item() < math.pi - 0.5
            harder = turned if inside else right - 0.5 * math.sin(0.5)
        logits = loss.scale * torch.cat([row[:label], harder[None], row[label + 1 :]])
        total = total - torch.log_softmax(logits, 0)[label] / 16
    value = loss(embeddings, labels)
    torch.testing.assert_close(value, total)
    value.backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


def test_the_margin_never_helps() -> None:
    for loss in (AMSoftmax(4, 3), ArcFace(4, 3)):
        cosine = torch.linspace(-1, 1, 101)
        harder = loss.harder(cosine)
        assert (harder <= cosine + 1e-6).all()
        assert (harder.diff() > -1e-6).all()


# -- pixels ---------------------------------------------------------------------------------------


def test_pspnet_has_the_published_counts() -> None:
    found = deployed("pspnet_resnet50", 19)
    assert round(millions(found.parameters), 2) == 46.56
    assert round(millions(found.macs) / 1000) == 350


def test_repmlps_backbone_has_81_partitions_of_10() -> None:
    with torch.device("meta"):
        net = cast(Any, refold.create_model("pspnet_repmlp_resnet50", num_classes=19))
    for stage, reduction in ((2, 4), (3, 8)):
        block = net.backbone.get_submodule(f"stage{stage}.1.btnk_repmlp")
        assert block.grid.partition == (10, 10)
        assert block.grid.parts == (9, 9)
        numbers = block.channels[0] * 81
        assert block.fc1_fc2.fc1.weight.shape == (numbers // reduction, numbers)
    dilations = [net.backbone.get_submodule(f"stage{i}.0.conv2.conv").dilation for i in (3, 4)]
    assert dilations == [(1, 1), (2, 2)]


SMALL: dict[str, Any] = {"num_classes": 5, "img_size": 49, "width": 0.125, "depths": (1, 2, 2, 1)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pspnet_resnet50", {}),
        ("pspnet_repmlp_resnet50", {"partition": (4, 3), "kernels": (1, 3), "groups": 2}),
    ],
)
def test_pixels_fold_exactly(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = refold.create_model(name, **SMALL, **options).double().eval()
    x = torch.randn(1, 3, 49, 49, dtype=torch.float64)
    enliven(model, (x,))
    with torch.no_grad():
        wanted = model(x)
        assert wanted.shape == (1, 5, 49, 49)
        folded = refold.reparameterize(model, x)
        assert error(wanted, folded(x)) <= TOLERANCE
    used = {k: v for k, v in model.named_modules() if not k.startswith("aux")}
    assert any(isinstance(m, nn.BatchNorm2d) for m in used.values())
    left = {k for k, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert not {k for k in left if not k.startswith("aux")}
    plain = refold.create_model(name, deploy=True, **SMALL, **options)
    own = sum(p.numel() for k, p in folded.named_parameters() if not k.startswith("aux"))
    assert sum(p.numel() for p in plain.parameters()) == own


def test_training_gives_a_second_map() -> None:
    net = refold.create_model("pspnet_resnet50", **SMALL)
    assert isinstance(net, PSPNet)
    maps = net(torch.randn(2, 3, 49, 49))
    assert [m.shape for m in maps] == [(2, 5, 49, 49)] * 2
    sum(m.square().mean() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())
