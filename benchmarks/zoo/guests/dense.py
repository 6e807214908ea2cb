"""Networks that answer with a picture: segmentation, volumes of medicine, restoration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from zoo.guests.guest import Guest, Shape, called, listed, made


def guests() -> Iterator[Guest]:
    """Yield the networks."""
    for name, options in _SEGMENTERS.items():
        build = made("segmentation_models_pytorch", name, **{**_ENCODER, **options})
        yield Guest("segmentation-models-pytorch", name, build, called(1, 3, 64, 64))
    unet = made(
        "segmentation_models_pytorch", "Unet", **_ENCODER | {"encoder_name": "mobileone_s0"}
    )
    yield Guest("segmentation-models-pytorch", "Unet of MobileOne", unet, called(1, 3, 64, 64))
    yield Guest("torchseg", "Unet", made("torchseg", "Unet", **_ENCODER), called(1, 3, 64, 64))
    yield from listed("monai", "monai.networks.nets", _MONAI)
    for name in ("PlainConvUNet", "ResidualEncoderUNet"):
        volume = called(1, 1, 32, 32, 32)
        yield Guest("dynamic-network-architectures", name, _nnunet(name), volume)
    for path, (options, shape) in _RESTORERS.items():
        where, name = path.rsplit(".", 1)
        build = made(f"spandrel.architectures.{where}", name, **options)
        yield Guest("spandrel", name, build, called(*shape))


_ENCODER = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 3}
_SEGMENTERS: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_attention_type": "scse"},
    "UnetPlusPlus": {"encoder_name": "timm-efficientnet-b0"},
    "MAnet": {}, "Linknet": {}, "FPN": {}, "PSPNet": {},
    "DeepLabV3Plus": {"encoder_name": "mobilenet_v2"},
    "Segformer": {"encoder_name": "mit_b0"},
}  # fmt: skip

_PLANE: Shape = (1, 1, 64, 64)
_VOLUME: Shape = (1, 1, 32, 32, 32)
_FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "norm": "batch"}
_SOLID = {**_FLAT, "spatial_dims": 3}
_UNNORMED = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_MONAI: dict[str, tuple[dict[str, Any], Shape]] = {
    "BasicUNet": ({**_SOLID, "features": (8, 8, 16, 16, 24, 8)}, _VOLUME),
    "BasicUNetPlusPlus": ({**_FLAT, "features": (8, 8, 16, 16, 24, 8)}, _PLANE),
    "UNet": ({**_SOLID, "channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 2}, _VOLUME),
    "DynUNet": (
        {**_UNNORMED, "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "filters": [8, 16, 24],
         "upsample_kernel_size": [2, 2], "norm_name": "batch", "res_block": True,
         "deep_supervision": True}, _VOLUME,
    ),
    "SegResNet": ({**_SOLID, "init_filters": 8}, _VOLUME),
    "SegResNetVAE": ({**_SOLID, "init_filters": 8, "input_image_size": (32, 32, 32)}, _VOLUME),
    "SegResNetDS": ({**_SOLID, "init_filters": 8, "dsdepth": 2}, _VOLUME),
    "AttentionUnet": ({**_UNNORMED, "channels": (4, 8, 16), "strides": (2, 2)}, _VOLUME),
    "UNETR": (
        {**_UNNORMED, "img_size": 32, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4,
         "feature_size": 8, "norm_name": "batch"}, _VOLUME,
    ),
    "SwinUNETR": (
        {**_UNNORMED, "feature_size": 12, "norm_name": "batch", "depths": (1, 1, 1, 1)}, _VOLUME,
    ),
    "HighResNet": (_UNNORMED, (1, 1, 16, 16, 16)),
    "FlexibleUNet": (
        {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, (1, 3, 64, 64),
    ),
    "RegUNet": (
        {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2}, _PLANE,
    ),
    "AutoEncoder": ({**_FLAT, "channels": (4, 8), "strides": (2, 2)}, _PLANE),
    "VarAutoEncoder": (
        {"spatial_dims": 2, "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 4,
         "channels": (4, 8), "strides": (2, 2), "norm": "batch"}, _PLANE,
    ),
}  # fmt: skip


def _nnunet(name: str) -> Callable[[], nn.Module]:
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    sizes: dict[str, Any] = {
        "input_channels": 1, "n_stages": 3, "features_per_stage": [8, 16, 24],
        "conv_op": nn.Conv3d, "kernel_sizes": 3, "strides": [1, 2, 2], blocks: [1, 1, 1],
        "num_classes": 2, "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
        "norm_op": nn.BatchNorm3d, "nonlin": nn.LeakyReLU, "deep_supervision": True,
    }  # fmt: skip
    return made("dynamic_network_architectures.architectures.unet", name, **sizes)


_SMALL: Shape = (1, 3, 16, 16)
_RESTORERS: dict[str, tuple[dict[str, Any], Shape]] = {
    "ESRGAN.__arch.RRDB.RRDBNet": ({"num_filters": 8, "num_blocks": 1}, _SMALL),
    "Compact.__arch.SRVGG.SRVGGNetCompact": ({"num_feat": 8, "num_conv": 4}, _SMALL),
    "SPAN.SPAN": ({"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8}, _SMALL),
    "OmniSR.OmniSR": ({"num_feat": 16, "res_num": 1}, _SMALL),
    "DnCNN.DnCNN": ({"nb": 5, "nc": 16, "in_nc": 3, "out_nc": 3, "act_mode": "BR"}, _SMALL),
    "MixDehazeNet.MixDehazeNet": (
        {"embed_dims": [8, 16, 32, 16, 8], "depths": [1, 1, 2, 1, 1]}, (1, 3, 64, 64),
    ),
    "RealCUGAN.UpCunet2x": ({}, (1, 3, 32, 32)),
    "NAFNet.NAFNet": (
        {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}, _SMALL,
    ),
    "SwiftSRGAN.SwiftSRGAN": ({"num_channels": 8, "num_blocks": 2}, _SMALL),
    "MoSR.MoSR": ({"n_block": 2, "dim": 16}, _SMALL),
    "DRUNet.DRUNet": ({"in_nc": 4, "out_nc": 3, "nc": [8, 8, 16, 16], "nb": 1}, (1, 4, 32, 32)),
}  # fmt: skip
