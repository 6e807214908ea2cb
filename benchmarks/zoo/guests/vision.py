"""torchvision beyond classification, timm's backbones and hybrids, ultralytics' other tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from zoo.guests.guest import Guest, called, made, pictures


def guests() -> Iterator[Guest]:
    """Yield the networks."""
    yield from _torchvision()
    yield from _timm()
    yield from _ultralytics()


_BARE = {"weights": None, "weights_backbone": None}
_SMALL = {
    **_BARE, "min_size": 96, "max_size": 128, "box_score_thresh": 0.0, "box_detections_per_img": 5,
    "rpn_post_nms_top_n_test": 20,
}  # fmt: skip
_DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_fpn": _SMALL,
    "ssdlite320_mobilenet_v3_large": {**_BARE, "score_thresh": 0.0},
}
_PLAIN: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "deeplabv3_mobilenet_v3_large": (_BARE, (2, 3, 65, 65)),
    "mc3_18": ({}, (1, 3, 4, 33, 33)),
    "r2plus1d_18": ({}, (1, 3, 4, 33, 33)),
}


def _torchvision() -> Iterator[Guest]:
    where = "torchvision.models"
    for name, options in _DETECTORS.items():
        build = made(where, "get_model", name, **options)
        yield Guest("torchvision", name, build, _two_images)
    for name, (options, shape) in _PLAIN.items():
        build = made(where, "get_model", name, **options)
        yield Guest("torchvision", name, build, called(*shape))
    sizes = {"stem_channels": 16, "block_channels": [16, 32], "block_layers": [1, 1]}
    maxvit = made(
        where, "MaxVit", input_size=(64, 64), partition_size=2, head_dim=8,
        stochastic_depth_prob=0.0, **sizes,
    )  # fmt: skip
    yield Guest("torchvision", "maxvit", maxvit, called(1, 3, 64, 64))
    yield Guest("torchvision", "feature extractor", _features, called(2, 3, 65, 65))


def _two_images() -> tuple[Any, ...]:
    return ([pictures(3, 96, 100), pictures(3, 80, 96)],)


def _features() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(resnet18(), ["layer2", "layer4"])


_FEATURES = {
    "regnety_004": 65, "mobilenetv3_large_100": 65, "hrnet_w18_small": 64, "mobileone_s0": 65,
    "fastvit_t8": 64, "hgnetv2_b0": 65,
}  # fmt: skip
_HYBRIDS: dict[str, dict[str, Any]] = {
    "coatnet_pico_rw_224": {"img_size": 64}, "maxvit_pico_rw_256": {"img_size": 64},
    "efficientvit_b1": {}, "efficientvit_m1": {"img_size": 64}, "mobilevitv2_050": {},
    "xcit_nano_12_p16_224": {"img_size": 64}, "lambda_resnet26t": {},
}  # fmt: skip


_HYBRIDS: dict[str, dict[str, Any]] = {
    "coatnet_pico_rw_224": {"img_size": 64}, "maxvit_pico_rw_256": {"img_size": 64},
    "efficientvit_b1": {}, "efficientvit_m1": {"img_size": 64}, "mobilevitv2_050": {},
    "xcit_nano_12_p16_224": {"img_size": 64}, "lambda_resnet26t": {},
}  # fmt: skip


def _timm() -> Iterator[Guest]:
    for name, side in _FEATURES.items():
        build = made("timm", "create_model", name, features_only=True)
        yield Guest("timm", f"{name} features", build, called(1, 3, side, side))
    for name, options in _HYBRIDS.items():
        build = made("timm", "create_model", name, **options)
        yield Guest("timm", name, build, called(1, 3, 64, 64))


_TASKS = {
    "yolo12n": "DetectionModel", "yolov8n-ghost": "DetectionModel",
    "yolo11n-seg": "SegmentationModel", "yolo11n-pose": "PoseModel", "yolo11n-obb": "OBBModel",
    "yolo11n-cls": "ClassificationModel", "yolov8n-worldv2": "WorldModel",
}  # fmt: skip


def _ultralytics() -> Iterator[Guest]:
    for name, task in _TASKS.items():
        build = made("ultralytics.nn.tasks", task, f"{name}.yaml", verbose=False)
        yield Guest("ultralytics", name, build, called(1, 3, 96, 96))
