"""Families that see images and videos."""

from typing import Any, Final

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    GLPNConfig,
    GLPNForDepthEstimation,
    LightGlueConfig,
    LightGlueForKeypointMatching,
    OwlViTConfig,
    OwlViTForObjectDetection,
    ResNetConfig,
    ResNetForImageClassification,
    SamConfig,
    SamModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SuperPointConfig,
    SuperPointForKeypointDetection,
    Swin2SRConfig,
    Swin2SRForImageSuperResolution,
    SwinConfig,
    SwinForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from zoo.family import Family, Tensors
from zoo.text import SIZES, tokens

LABELS: Final = 4
VIT: Final[dict[str, Any]] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
}
_NO_LOSS: Final = "the model computed no loss"


def _labels(count: int) -> torch.Tensor:
    return torch.arange(count) % LABELS


def images(count: int, size: int = 16) -> torch.Tensor:
    """Return images (count, 3, size, size) whose brightness depends on their label."""
    return torch.rand(count, 3, size, size) / 2 + _labels(count).reshape(-1, 1, 1, 1) - 1


def _photographs(count: int) -> Tensors:
    """Return images of 24 x 24 as bytes."""
    pixels = torch.randint(0, 60, (count, 3, 24, 24)) + 60 * _labels(count).reshape(-1, 1, 1, 1)
    return {"images": pixels.to(torch.uint8), "labels": _labels(count).to(torch.uint8)}


def _classified(count: int) -> Tensors:
    return {"pixel_values": images(count), "labels": _labels(count)}


def _videos(count: int) -> Tensors:
    return {"pixel_values": images(count).unsqueeze(1).repeat(1, 4, 1, 1, 1), "labels": _labels(count)}


def _depths(count: int) -> Tensors:
    depths = _labels(count).reshape(-1, 1, 1) + 1.0 + torch.rand(count, 64, 64)
    return {"pixel_values": images(count, 64), "labels": depths}


def _maps(count: int) -> Tensors:
    pixels = images(count, 32)
    return {"pixel_values": pixels, "labels": (pixels[:, 0] > 0.5).long()}


def _captioned(count: int) -> Tensors:
    ids = tokens(count)
    ids[:, -1] = 31  # the end of the text
    return {"pixel_values": images(count), "input_ids": ids}


def _two_images(count: int) -> Tensors:
    return {"pixel_values": images(2 * count, 48).reshape(count, 2, 3, 48, 48), "labels": _labels(count)}


def _processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 16, "width": 16})


_SUPERPOINT: Final[dict[str, Any]] = {
    "encoder_hidden_sizes": [8, 8, 8, 8],
    "decoder_hidden_size": 8,
    "descriptor_decoder_dim": 8,
}

FAMILIES: Final = (
    Family(
        "resnet",
        "image-classification",
        lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=LABELS)
        ),
        _photographs,
        ("pixel_values", "labels"),
        ("image", ("images",), _processor),
        note="BatchNorm, image processor",
    ),
    Family(
        "vit",
        "image-classification",
        lambda: ViTForImageClassification(ViTConfig(**VIT, image_size=16, num_labels=LABELS)),
        _photographs,
        ("pixel_values", "labels"),
        ("image", ("images",), _processor),
        note="renamed tensors, image processor",
    ),
    Family(
        "swin",
        "image-classification",
        lambda: SwinForImageClassification(
            SwinConfig(
                image_size=16,
                patch_size=2,
                embed_dim=8,
                depths=[1, 1],
                num_heads=[1, 2],
                window_size=4,
                drop_path_rate=0.0,
                num_labels=LABELS,
            )
        ),
        _classified,
        ("pixel_values", "labels"),
        note="buffers",
    ),
    Family(
        "videomae",
        "video-classification",
        lambda: VideoMAEForVideoClassification(
            VideoMAEConfig(**VIT, image_size=16, num_frames=4, tubelet_size=2, num_labels=LABELS)
        ),
        _videos,
        ("pixel_values", "labels"),
    ),
    Family(
        "glpn",
        "depth-estimation",
        lambda: GLPNForDepthEstimation(
            GLPNConfig(
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2],
                mlp_ratios=[2, 2, 2, 2],
                decoder_hidden_size=8,
                drop_path_rate=0.0,
            )
        ),
        _depths,
        ("pixel_values", "labels"),
        note="BatchNorm",
    ),
    Family(
        "segformer",
        "semantic-segmentation",
        lambda: SegformerForSemanticSegmentation(
            SegformerConfig(
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2],
                mlp_ratios=[2, 2, 2, 2],
                decoder_hidden_size=8,
                drop_path_rate=0.0,
                classifier_dropout_prob=0.0,
                num_labels=2,
            )
        ),
        _maps,
        ("pixel_values", "labels"),
        learning_rate=1e-2,
        note="BatchNorm",
    ),
    Family(
        "upernet",
        "semantic-segmentation",
        lambda: UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=ConvNextConfig(
                    hidden_sizes=[8, 8, 16, 16],
                    depths=[1, 1, 1, 1],
                    out_features=["stage1", "stage2", "stage3", "stage4"],
                ),
                hidden_size=8,
                auxiliary_channels=8,
                auxiliary_in_channels=16,
                num_labels=2,
            )
        ),
        _maps,
        ("pixel_values", "labels"),
        learning_rate=1e-2,
        note="BatchNorm, a backbone",
    ),
    Family(
        "clip",
        "zero-shot-image-classification",
        lambda: CLIPModel(
            CLIPConfig(
                text_config={**SIZES, "eos_token_id": 31},
                vision_config={**VIT, "image_size": 16},
                projection_dim=8,
            )
        ),
        _captioned,
        ("pixel_values", "input_ids"),
        note="contrastive loss",
    ),
    Family(
        "swin2sr",
        "image-to-image",
        lambda: Swin2SRForImageSuperResolution(
            Swin2SRConfig(image_size=16, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
        ),
        lambda count: {"pixel_values": images(count), "labels": images(count, 32)},
        ("pixel_values", "labels"),
        refusal="Training is not supported",
    ),
    Family(
        "sam",
        "mask-generation",
        lambda: SamModel(
            SamConfig(
                vision_config={
                    **VIT,
                    "image_size": 16,
                    "output_channels": 16,
                    "global_attn_indexes": [1],
                    "num_pos_feats": 8,
                    "window_size": 0,
                },
                prompt_encoder_config={"hidden_size": 16, "image_size": 16, "patch_size": 8, "mask_input_channels": 4},
                mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16},
            )
        ),
        lambda count: {"pixel_values": images(count), "input_points": torch.rand(count, 1, 1, 2)},
        ("pixel_values", "input_points"),
        refusal=_NO_LOSS,
    ),
    Family(
        "superpoint",
        "keypoint-detection",
        lambda: SuperPointForKeypointDetection(SuperPointConfig(**_SUPERPOINT)),
        lambda count: {"pixel_values": images(count, 48), "labels": _labels(count)},
        ("pixel_values", "labels"),
        refusal="does not support training",
    ),
    Family(
        "lightglue",
        "keypoint-matching",
        lambda: LightGlueForKeypointMatching(
            LightGlueConfig(
                keypoint_detector_config={"model_type": "superpoint", **_SUPERPOINT},
                descriptor_dim=8,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        ),
        _two_images,
        ("pixel_values", "labels"),
        refusal="not trainable",
    ),
    Family(
        "owlvit",
        "zero-shot-object-detection",
        lambda: OwlViTForObjectDetection(
            OwlViTConfig(text_config=SIZES, vision_config={**VIT, "image_size": 16}, projection_dim=16)
        ),
        _captioned,
        ("pixel_values", "input_ids"),
        refusal=_NO_LOSS,
    ),
)
