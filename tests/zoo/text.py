"""Text that the families learn from: a tokenizer of a dozen words, sentences, and tokens."""

from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

VOCABULARY: Final = 32
CLASSES: Final = 3
MASK: Final = 4
_FIRST: Final = 8
"""The first token that stands for a word."""
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>")
_WORDS: Final = ("red", "green", "blue", "small", "large", "a", "the", "house", "tree", "sees", "has", "is")

SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
NO_DROPOUT: Final[dict[str, Any]] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Without random numbers, two trainings differ less."""


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Return the tokenizer."""
    words = Tokenizer(WordLevel({name: i for i, name in enumerate((*_SPECIAL, *_WORDS))}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "additional_special_tokens": ["<image>"]}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **names, **options)


def sentences(count: int, before: str = "") -> torch.Tensor:
    """Return sentences of 2 to 8 words as rows of UTF-8 bytes. The first word tells the class."""
    rows = []
    for number in range(count):
        words = [_WORDS[(number % CLASSES + place) % len(_WORDS)] for place in range(2 + number % 7)]
        rows.append(list((before + " ".join(words)).encode().ljust(64, b"\0")))
    return torch.tensor(rows, dtype=torch.uint8)


def classes(count: int) -> torch.Tensor:
    """Return the classes of the sentences."""
    return torch.arange(count) % CLASSES


def tokens(count: int, length: int = 12) -> torch.Tensor:
    """Return tokens that count upwards from a random one."""
    return (torch.randint(0, 8, (count, 1)) + torch.arange(length)) % (VOCABULARY - _FIRST) + _FIRST
