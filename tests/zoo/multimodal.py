"""Families that write about images."""

from typing import Final

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from zoo.family import Family, Tensors
from zoo.text import SIZES, VOCABULARY, sentences, tokenizer, tokens
from zoo.vision import VIT, images


def _captions(count: int) -> Tensors:
    return {"pixel_values": images(count), "labels": tokens(count, 6)}


def _conversations(count: int) -> Tensors:
    pixels = (images(count, 16) / 4 + 0.25).clamp(0, 1) * 255
    return {"images": pixels.to(torch.uint8), "text": sentences(count, "<image> ")}


def _llava() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(**VIT, image_size=16, projection_dim=16)
    text = LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=0)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, image_seq_length=4)
    )


def _llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def _captioner() -> VisionEncoderDecoderModel:
    decoder = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=32,
        add_cross_attention=True,
        is_decoder=True,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = VisionEncoderDecoderConfig(encoder=ViTConfig(**VIT, image_size=16), decoder=decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return VisionEncoderDecoderModel(config=config)


FAMILIES: Final = (
    Family(
        "vision-encoder-decoder",
        "vison2-seq",
        _captioner,
        _captions,
        ("pixel_values", "labels"),
        note="renamed and tied tensors",
    ),
    Family(
        "llava",
        "image-text-to-text",
        _llava,
        _conversations,
        ("input_ids", "attention_mask", "pixel_values", "labels"),
        ("auto", ("images", "text"), _llava_processor),
        note="processor of images and text",
    ),
)
