"""Bare `transformers` models from small configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from zoo.guests.guest import Guest, called

_PACKAGE = "transformers"


def _made(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        backbone = options.get("backbone_config")
        made = dict(options)
        if isinstance(backbone, tuple):
            kind, sizes = backbone
            made["backbone_config"] = getattr(transformers, kind)(**sizes)
        return getattr(transformers, model)(getattr(transformers, config)(**made))

    return build


_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [2, 2, 2, 2]}
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_BACKBONE = ("ResNetConfig", {**_RESNET, "layer_type": "basic", **_STAGES})
_TRANSFORMER = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 10,
}  # fmt: skip
_RT_RESNET = (
    "RTDetrResNetConfig",
    {**_RESNET, "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]},
)
_RT = {
    "backbone_config": _RT_RESNET, "encoder_in_channels": [24, 32, 48],
    "feat_strides": [8, 16, 32], "encoder_hidden_dim": 32, "encoder_ffn_dim": 48, "d_model": 32,
    "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 48, "num_queries": 12,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2,
    "num_denoising": 0, "num_labels": 7,
}  # fmt: skip
_HG = {
    "stem_channels": [3, 8, 12], "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 8, 12, 16], "stage_out_channels": [16, 24, 32, 48],
    "stage_num_blocks": [1, 1, 2, 1], "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 24, 32, 48],
}  # fmt: skip
_HG_BACKBONE = ("HGNetV2Config", {**_HG, "out_features": ["stage2", "stage3", "stage4"]})

# name -> (class, configuration, options, height and width)
_NETS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "resnet": ("ResNetForImageClassification", "ResNetConfig", _RESNET, 65),
    "mobilenet_v1": (
        "MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25}, 65,
    ),
    "mobilenet_v2": (
        "MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}, 65,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
         "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 24}, 64,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation", "UperNetConfig",
        {"backbone_config": _BACKBONE, "hidden_size": 24, "auxiliary_channels": 16,
         "auxiliary_in_channels": 32}, 65,
    ),
    "dpt": (
        "DPTForDepthEstimation", "DPTConfig",
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64,
         "intermediate_size": 48, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16,
         "neck_hidden_sizes": [8, 16, 24, 32], "use_batch_norm_in_fusion_residual": True}, 64,
    ),
    "rt_detr": ("RTDetrForObjectDetection", "RTDetrConfig", _RT, 96),
    "d_fine": (
        "DFineForObjectDetection", "DFineConfig", {**_RT, "backbone_config": _HG_BACKBONE}, 96,
    ),
    "detr": (
        "DetrForObjectDetection", "DetrConfig",
        {**_TRANSFORMER, "backbone_config": _BACKBONE, "use_timm_backbone": False}, 65,
    ),
    "deformable_detr": (
        "DeformableDetrForObjectDetection", "DeformableDetrConfig",
        {**_TRANSFORMER, "backbone_config": _BACKBONE, "use_timm_backbone": False,
         "num_feature_levels": 4}, 96,
    ),
    "hgnet_v2": ("HGNetV2ForImageClassification", "HGNetV2Config", _HG, 65),
    "mobilevit": (
        "MobileViTForImageClassification", "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [16, 20, 24],
         "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 32]}, 64,
    ),
    "mobilevitv2": (
        "MobileViTV2ForImageClassification", "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]}, 64,
    ),
    "efficientnet": (
        "EfficientNetForImageClassification", "EfficientNetConfig",
        {"width_coefficient": 0.3, "depth_coefficient": 0.6, "hidden_dim": 384, "image_size": 65},
        65,
    ),
    "levit": (
        "LevitForImageClassificationWithTeacher", "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
         "depths": [2, 2, 2], "key_dim": [8, 8, 8]}, 64,
    ),
    "regnet": (
        "RegNetForImageClassification", "RegNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "groups_width": 8,
         "depths": [1, 2, 2, 1]}, 65,
    ),
    "cvt": (
        "CvtForImageClassification", "CvtConfig",
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3],
         "drop_path_rate": [0.0, 0.0, 0.1]}, 64,
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification", "SwiftFormerConfig",
        {"image_size": 64, "embed_dims": [16, 24, 32, 48], "depths": [2, 1, 2, 1]}, 64,
    ),
    "textnet": (
        "TextNetForImageClassification", "TextNetConfig",
        {"stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 32]}, 65,
    ),
    "vitmatte": (
        "VitMatteForImageMatting", "VitMatteConfig",
        {"backbone_config": ("VitDetConfig", {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "num_channels": 4, "out_features": ["stage2"]}),
         "hidden_size": 32, "fusion_hidden_sizes": [32, 16, 8, 8]}, 64,
    ),
    "zoedepth": (
        "ZoeDepthForDepthEstimation", "ZoeDepthConfig",
        {"use_batch_norm_in_fusion_residual": True, "fusion_hidden_size": 16,
         "neck_hidden_sizes": [8, 16, 24, 32], "bottleneck_features": 16,
         "backbone_config": ("BeitConfig", {
             "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64,
             "intermediate_size": 48, "reshape_hidden_states": False,
             "out_features": ["stage1", "stage2", "stage3", "stage4"]})}, 64,
    ),
    "pp_lcnet": ("PPLCNetForImageClassification", "PPLCNetConfig", {"scale": 0.25}, 65),
    "beit_upernet": (
        "BeitForSemanticSegmentation", "BeitConfig",
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64,
         "intermediate_size": 48, "out_indices": [0, 1, 2, 3], "pool_scales": [1, 2]}, 64,
    ),
    "glpn": (
        "GLPNForDepthEstimation", "GLPNConfig",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
         "num_attention_heads": [1, 2, 3, 4]}, 64,
    ),
}  # fmt: skip

_SERIES: dict[str, tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "dac": (
        "DacModel", "DacConfig",
        {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 32,
         "n_codebooks": 2, "codebook_size": 16, "upsampling_ratios": [4, 2]},
        {"input_values": (1, 1, 512)},
    ),
    "wav2vec2": (
        "Wav2Vec2Model", "Wav2Vec2Config",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48, "conv_dim": [16, 16], "conv_stride": [5, 2],
         "conv_kernel": [10, 3], "num_conv_pos_embeddings": 16,
         "num_conv_pos_embedding_groups": 4}, {"input_values": (2, 800)},
    ),
    "hifi_gan": (
        "SpeechT5HifiGan", "SpeechT5HifiGanConfig",
        {"model_in_dim": 16, "upsample_initial_channel": 32}, {"spectrogram": (2, 20, 16)},
    ),
    "patchtst": (
        "PatchTSTForPrediction", "PatchTSTConfig",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8,
         "d_model": 16, "num_hidden_layers": 2, "prediction_length": 8, "ffn_dim": 24,
         "num_attention_heads": 4},
        {"past_values": (2, 32, 3)},
    ),
    "patchtsmixer": (
        "PatchTSMixerForPrediction", "PatchTSMixerConfig",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8,
         "d_model": 16, "num_layers": 2, "prediction_length": 8, "norm_mlp": "BatchNorm"},
        {"past_values": (2, 32, 3)},
    ),
}  # fmt: skip


def guests() -> Iterator[Guest]:
    """Yield the networks."""
    for name, (model, config, options, side) in _NETS.items():
        shape = (2, 4 if name == "vitmatte" else 3, side, side)
        yield Guest(_PACKAGE, name, _made(model, config, **options), called(pixel_values=shape))
    for name, (model, config, options, inputs) in _SERIES.items():
        yield Guest(_PACKAGE, name, _made(model, config, **options), called(**inputs))
