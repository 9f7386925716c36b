"""Families that continue text."""

from typing import Final

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from zoo.family import Family, Tensors
from zoo.text import SIZES, VOCABULARY, sentences, tokenizer, tokens


def _text(count: int) -> Tensors:
    return {"text": sentences(count)}


def _tokens(count: int) -> Tensors:
    ids = tokens(count)
    return {"input_ids": ids, "labels": ids}


_INPUTS: Final = ("input_ids", "labels")

FAMILIES: Final = (
    Family(
        "llama",
        "causal-lm",
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=0)),
        _text,
        ("input_ids", "attention_mask", "labels"),
        ("tokenizer", ("text",), tokenizer),
        note="tied weights, tokenizer",
    ),
    Family(
        "gpt2",
        "causal-lm",
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=1,
            )
        ),
        _tokens,
        _INPUTS,
        note="tied weights",
    ),
    Family(
        "mixtral",
        "causal-lm",
        lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4)),
        _tokens,
        _INPUTS,
        note="mixture of experts",
    ),
    Family(
        "mamba",
        "causal-lm",
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0)
        ),
        _tokens,
        _INPUTS,
        note="state space",
    ),
)
