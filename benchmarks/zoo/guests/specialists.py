"""Packages of one subject: matching of images, speech, documents, faces, older zoos."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torch import nn

from zoo.guests.guest import Guest, Shape, called, listed, made, pictures, values


def guests() -> Iterator[Guest]:
    """Yield the networks."""
    for family in (_kornia, _speechbrain, _documents, _pytorchcv, _others):
        yield from family()


_PATCH: Shape = (4, 1, 32, 32)
_IMAGE: Shape = (1, 3, 64, 64)
_FRESH = {"pretrained": False}


def _kornia() -> Iterator[Guest]:
    names = ("HardNet", "HardNet8", "HyNet", "SOSNet", "TFeat")
    yield from listed("kornia", "kornia.feature", dict.fromkeys(names, (_FRESH, _PATCH)))
    xfeat = made("kornia.feature.xfeat", "XFeatModel")
    yield Guest("kornia", "XFeatModel", xfeat, called(*_IMAGE))
    loftr = made("kornia.feature", "LoFTR", pretrained=None)
    yield Guest("kornia", "LoFTR", loftr, _two_views)
    sizes: dict[str, Any] = {
        "img_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 32, 32, 32],
        "num_heads": [1, 1, 1, 1], "window_sizes": [4, 4, 4, 2],
    }  # fmt: skip
    tiny = made("kornia.models.tiny_vit", "TinyViT", **sizes)
    yield Guest("kornia", "TinyViT", tiny, called(*_IMAGE))
    efficient = made("kornia.models.efficient_vit.backbone", "efficientvit_backbone_b0")
    yield Guest("kornia", "EfficientViT-B0", efficient, called(*_IMAGE))
    yunet = made("kornia.models.yunet.model", "YuNet", "test", False)
    yield Guest("kornia", "YuNet", yunet, called(*_IMAGE))
    mobile = made("kornia.models.vit_mobile", "MobileViT", "xxs")
    yield Guest("kornia", "MobileViT", mobile, called(1, 3, 256, 256))
    yield Guest("kornia", "RTDETR", _rtdetr, called(1, 3, 96, 96))


def _two_views() -> tuple[Any, ...]:
    view = pictures(1, 1, 64, 64)
    return ({"image0": view, "image1": view.flip(3)},)


def _rtdetr() -> nn.Module:
    where: Any = import_module("kornia.models.rt_detr.model")
    return where.RTDETR.from_config(where.RTDETRConfig("resnet18d", 7, head_num_queries=12))


def _speechbrain() -> Iterator[Guest]:
    where = "speechbrain.lobes.models"
    rows: dict[str, tuple[tuple[Any, ...], dict[str, Any], Shape]] = {
        "ECAPA_TDNN": (
            (20,), {"channels": [16] * 4 + [48], "attention_channels": 8, "lin_neurons": 12,
                    "se_channels": 8, "res2net_scale": 4}, (2, 30, 20),
        ),
        "Xvector": (
            (), {"in_channels": 20, "tdnn_channels": [16, 16, 16, 16, 32], "lin_neurons": 12},
            (2, 30, 20),
        ),
        "ResNet": (
            (20,), {"channels": [8, 8, 16, 16], "block_sizes": [1, 1, 1, 1], "lin_neurons": 12},
            (2, 30, 20),
        ),
        "CRDNN": (
            (), {"input_shape": (2, 30, 20), "cnn_channels": [8, 8], "rnn_neurons": 12,
                 "dnn_neurons": 12}, (2, 30, 20),
        ),
    }  # fmt: skip
    for name, (args, options, shape) in rows.items():
        build = made(f"{where}.{name}", name, *args, **options)
        yield Guest("speechbrain", name, build, called(*shape))
    dilations, kernels = [[1, 3, 5], [1, 3, 5]], [3, 5]
    generator = made(
        f"{where}.HifiGAN", "HifiganGenerator", 20, 1, "1", dilations, kernels, [8, 8], 32, [4, 4]
    )
    yield Guest("speechbrain", "HifiganGenerator", generator, called(1, 20, 30))


def _documents() -> Iterator[Guest]:
    bare = {"pretrained": False, "pretrained_backbone": False, "exportable": True}
    rows: dict[str, tuple[dict[str, Any], Shape]] = {
        "fast_tiny": (bare, (1, 3, 128, 128)),
        "db_mobilenet_v3_large": (bare, (1, 3, 128, 128)),
        "linknet_resnet18": (bare, (1, 3, 128, 128)),
        "crnn_mobilenet_v3_small": (bare, (1, 3, 32, 128)),
        "viptr_tiny": (bare, (1, 3, 32, 128)),
        "textnet_tiny": (_FRESH, (1, 3, 32, 32)),
    }
    yield from listed("python-doctr", "doctr.models", rows)
    yield Guest("easyocr", "CRAFT", made("easyocr.craft", "CRAFT"), called(1, 3, 64, 64))
    reader = made("easyocr.model.model", "Model", 1, 32, 16, 9)
    yield Guest("easyocr", "CRNN", reader, lambda: (values(1, 1, 64, 96), ""))


_CV = ("cgnet_cityscapes", "enet_cityscapes", "lednet_cityscapes", "resneta10")


def _pytorchcv() -> Iterator[Guest]:
    for name in _CV:
        shape = (1, 3, 128, 128) if "cityscapes" in name else _IMAGE
        build = made("pytorchcv.model_provider", "get_model", name, pretrained=False)
        yield Guest("pytorchcv", name, build, called(*shape))


def _others() -> Iterator[Guest]:
    yield Guest("effdet", "tf_efficientdet_lite0", _effdet, called(1, 3, 128, 128))
    face = made("facenet_pytorch", "InceptionResnetV1")
    yield Guest("facenet-pytorch", "InceptionResnetV1", face, called(1, 3, 96, 96))
    small = {"resnet18": (_FRESH, _IMAGE), "mobilenet_v2": (_FRESH, _IMAGE)}
    yield from listed("antialiased-cnns", "antialiased_cnns", small)
    chest = made("torchxrayvision.models", "DenseNet", weights=None)
    yield Guest("torchxrayvision", "DenseNet", chest, called(1, 1, 65, 65))
    bare = {"pretrained": None}
    names = ("nasnetamobile", "bninception")
    old = dict.fromkeys(names, (bare, (1, 3, 224, 224)))
    yield from listed("pretrainedmodels", "pretrainedmodels", old)
    for name in ("SimCLRProjectionHead", "BYOLPredictionHead", "SwaVProjectionHead"):
        head = made("lightly.models.modules", name, 16, 24, 12)
        yield Guest("lightly", name, head, called(3, 16))
    thin = made("lightly.models", "ResNetGenerator", "resnet-9", num_splits=0)
    yield Guest("lightly", "resnet-9", thin, called(2, 3, 32, 32))


def _effdet() -> nn.Module:
    effdet: Any = import_module("effdet")
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    config.image_size = (128, 128)
    return effdet.EfficientDet(config, pretrained_backbone=False)
