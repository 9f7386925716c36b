"""Families that find objects in images. Their labels are nested: for each image, classes with boxes or masks."""

from typing import Any, Final

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerDetrConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from zoo.family import Family, Tensors
from zoo.vision import LABELS, VIT, images

_SIZE: Final = 64


def _objects(count: int, size: int = _SIZE) -> Tensors:
    """Return images with one or two objects; where there is no second one, its class is -100."""
    classes = torch.stack([torch.arange(count) % LABELS, torch.arange(count) % 2 * 101 - 100], dim=1)
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.7, 0.7, 0.2, 0.2]]).expand(count, 2, 4)
    return {"pixel_values": images(count, size), "labels.class_labels": classes, "labels.boxes": boxes.contiguous()}


def _outlined(count: int) -> Tensors:
    masks = torch.zeros(count, 2, _SIZE, _SIZE)
    masks[:, 0, : _SIZE // 2], masks[:, 1, _SIZE // 2 :] = 1, 1
    return {**_objects(count), "labels.masks": masks}


def _segments(count: int) -> Tensors:
    outlined = _outlined(count)
    classes = torch.stack([torch.arange(count) % LABELS, torch.ones(count).long()], dim=1)
    return {
        "pixel_values": outlined["pixel_values"],
        "mask_labels": outlined["labels.masks"],
        "class_labels": classes,
    }


_DETR: Final[dict[str, Any]] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 4,
    "dropout": 0.0,
}


def _resnet() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _detr() -> DetrConfig:
    return DetrConfig(backbone_config=_resnet(), num_labels=LABELS, **_DETR)


def _swin() -> SwinConfig:
    return SwinConfig(
        image_size=_SIZE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


_LABELS: Final = ("pixel_values", "labels.class_labels", "labels.boxes")
_MASKS: Final = ("pixel_values", "mask_labels", "class_labels")

FAMILIES: Final = (
    Family(
        "yolos",
        "object-detection",
        lambda: YolosForObjectDetection(
            YolosConfig(**VIT, image_size=[16, 16], num_detection_tokens=4, num_labels=LABELS)
        ),
        lambda count: _objects(count, 16),
        _LABELS,
        learning_rate=1e-2,
        note="nested labels",
    ),
    Family(
        "detr",
        "object-detection",
        lambda: DetrForObjectDetection(_detr()),
        _objects,
        _LABELS,
        learning_rate=1e-2,
        note="nested labels, a backbone",
    ),
    Family(
        "detr",
        "image-segmentation",
        lambda: DetrForSegmentation(_detr()),
        _outlined,
        (*_LABELS, "labels.masks"),
        learning_rate=1e-2,
        note="nested labels, a backbone",
    ),
    Family(
        "maskformer",
        "instance-segmentation",
        lambda: MaskFormerForInstanceSegmentation(
            MaskFormerConfig(
                fpn_feature_size=32,
                mask_feature_size=32,
                backbone_config=_swin(),
                decoder_config=MaskFormerDetrConfig(**_DETR),
                num_labels=LABELS,
            )
        ),
        _segments,
        _MASKS,
    ),
    Family(
        "mask2former",
        "universal-segmentation",
        lambda: Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(
                backbone_config=_swin(),
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                dim_feedforward=32,
                encoder_layers=1,
                decoder_layers=2,
                num_attention_heads=2,
                num_queries=4,
                dropout=0.0,
                train_num_points=64,
                num_labels=LABELS,
            )
        ),
        _segments,
        _MASKS,
    ),
)
