"""The networks of the table: where each comes from, how it is built and on which input it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Net:
    """One network.

    Args:
        source: the library that builds it: timm, torchvision or ultralytics.
        name: its name there.
        size: height and width of the input; odd where the network allows.
        options: keyword arguments of its constructor.
        listed: whether it takes a list of images (torchvision's detectors).
    """

    source: str
    name: str
    size: int = 65
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    listed: bool = False

    @property
    def label(self) -> str:
        """The name with its source, as on the command line: `timm:resnet18`."""
        return f"{self.source}:{self.name}"

    def build(self) -> nn.Module:
        """Return the network with random weights in eval mode."""
        torch.manual_seed(0)
        model = _BUILDERS[self.source](self)
        return (Listed(model) if self.listed else model).eval()

    def example(self) -> tuple[Any, ...]:
        """Return two random images in float64."""
        generator = torch.Generator().manual_seed(1)
        return (torch.randn(2, 3, self.size, self.size, generator=generator).double(),)


class Listed(nn.Module):
    """A detector that takes a batch: it wants a list of images, and answers in dictionaries."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Return boxes, labels and scores of every image."""
        return self.detector([image.sigmoid() for image in images])


def _timm(net: Net) -> nn.Module:
    import timm

    return timm.create_model(net.name, pretrained=False, **net.options)


def _torchvision(net: Net) -> nn.Module:
    from torchvision.models import get_model

    return get_model(net.name, weights=None, **net.options)


def _ultralytics(net: Net) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(f"{net.name}.yaml", verbose=False)


_BUILDERS: dict[str, Callable[[Net], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "ultralytics": _ultralytics,
}

# name -> input size. Odd sizes wherever the network takes them; 64 and more where it halves often.
_TIMM = {
    "repvgg_a0": 65, "repvgg_b0": 65, "repvgg_d2se": 65, "mobileone_s0": 65, "mobileone_s1": 65,
    "mobileone_s4": 65, "fastvit_t8": 65, "fastvit_sa12": 96, "repvit_m0_9": 65,
    "repghostnet_050": 65, "repghostnet_100": 65, "ghostnet_050": 65, "ghostnetv2_100": 65,
    "ghostnetv3_050": 65, "nextvit_small": 97, "resnet18": 65, "resnet50": 65, "resnet26d": 65,
    "seresnet18": 65, "resnext50_32x4d": 65, "resnetv2_50": 65, "regnetx_002": 65,
    "regnety_002": 65, "efficientnet_b0": 65, "efficientnet_lite0": 65, "tf_efficientnet_lite0": 65,
    "mobilenetv2_100": 65, "mobilenetv3_small_100": 65, "mobilenetv4_conv_small": 65,
    "densenet121": 65, "inception_v3": 97, "xception41": 65, "convnext_atto": 65,
    "convnext_atto_ols": 65, "poolformer_s12": 65, "mobilevit_s": 65, "edgenext_xx_small": 65,
    "hrnet_w18_small": 64, "dla34": 64, "vgg11_bn": 65, "cspdarknet53": 65, "res2net50_26w_4s": 65,
    "hardcorenas_a": 65, "mnasnet_100": 65, "efficientvit_b0": 65, "efficientvit_m0": 64,
    "starnet_s1": 65, "rdnet_tiny": 65, "dpn48b": 65, "skresnet18": 65, "resnest14d": 65,
    "ese_vovnet19b_dw": 65, "rexnet_100": 65, "tinynet_e": 65, "lcnet_050": 65, "hgnetv2_b0": 65,
    "mixnet_s": 65, "selecsls42": 65, "gernet_s": 65, "convmixer_768_32": 65,
    "shvit_s1": 65, "swiftformer_xs": 64, "inception_next_atto": 65, "tresnet_m": 64,
}  # fmt: skip

# Networks whose parameters fit one input size: it is an option of theirs, or 224.
_TIMM_SIZED = {
    "levit_128s": 128, "levit_conv_128s": 128, "vit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
}  # fmt: skip

_TIMM_224 = ("efficientformer_l1", "visformer_tiny", "tiny_vit_5m_224")

_TORCHVISION = {
    "resnet18": 65, "densenet121": 65, "shufflenet_v2_x1_0": 65, "mobilenet_v2": 65,
    "mobilenet_v3_small": 65, "mnasnet1_0": 65, "regnet_y_400mf": 65, "efficientnet_b0": 65,
    "squeezenet1_1": 65, "convnext_tiny": 65, "googlenet": 97, "inception_v3": 97,
}  # fmt: skip

_SEGMENTATION = {"deeplabv3_resnet50": 65, "lraspp_mobilenet_v3_large": 65, "fcn_resnet50": 65}
_DETECTION = {  # with random weights no score reaches the usual threshold
    "fasterrcnn_resnet50_fpn": {"box_score_thresh": 0.0},
    "retinanet_resnet50_fpn": {"score_thresh": 0.0},
    "fcos_resnet50_fpn": {"score_thresh": 0.0},
}


def _zoo() -> list[Net]:
    nets = [Net("timm", name, size) for name, size in _TIMM.items()]
    nets += [Net("timm", n, size, {"img_size": size}) for n, size in _TIMM_SIZED.items()]
    nets += [Net("timm", name, 224) for name in _TIMM_224]
    quick = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
    nets += [Net("torchvision", n, size, quick.get(n, {})) for n, size in _TORCHVISION.items()]
    bare = {"weights_backbone": None}
    nets += [Net("torchvision", n, size, bare) for n, size in _SEGMENTATION.items()]
    small = {**bare, "min_size": 96, "max_size": 128}
    nets += [Net("torchvision", n, 96, {**small, **o}, listed=True) for n, o in _DETECTION.items()]
    return nets + [Net("ultralytics", name, 96) for name in ("yolov6n", "yolov9t", "yolov10n")]


NETS = _zoo()


def find(name: str) -> list[Net]:
    """Return the networks of this name: `resnet18` is in two zoos, `timm:resnet18` in one."""
    return [net for net in NETS if name in (net.name, net.label)]
