"""The text of Python's documentation, a byte-level tokenizer, and a small GPT that learns to continue the text.

`pydoc_data.topics` is a part of Python's standard library and under its licence, so the text is wherever the demo runs.
"""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hypha_devnet.demo.models import LANGUAGE

Tensors = dict[str, torch.Tensor]

_LENGTH: Final = 64
"""Bytes in a passage."""
_PADDING: Final = "<pad>"
_BEGINNING: Final = "The "
_EXAMPLE_BYTES: Final = 300
_TEMPERATURE: Final = 0.7
_SCORED: Final = 256


def samples() -> tuple[Tensors, Tensors]:
    """Return passages of 64 bytes as token ids (n, 64): the shuffled training set, and the held-out one."""
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore").decode()
    passages = [text[start : start + _LENGTH] for start in range(0, len(text) - _LENGTH + 1, _LENGTH)]
    ids = tokenizer()(passages, return_tensors="pt")["input_ids"]
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(LANGUAGE.seed))]
    held_out, train = shuffled.tensor_split([round(len(ids) * LANGUAGE.held_out)])
    return {"input_ids": train, "labels": train}, {"input_ids": held_out, "labels": held_out}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte, and one for padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bytes_, pad_token=_PADDING, model_max_length=_LENGTH
    )


def rows(inputs: Tensors) -> Tensors:
    """Return inputs as slices hold them: rows of UTF-8 bytes, from which the trainers' tokenizer makes the inputs."""
    texts = tokenizer().batch_decode(inputs["input_ids"], clean_up_tokenization_spaces=False)
    return {"text": torch.tensor([list(text.encode()) for text in texts], dtype=torch.uint8)}


def save_untrained(folder: Path) -> None:
    """Write the untrained model and its tokenizer."""
    vocabulary = tokenizer()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=vocabulary.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary.save_pretrained(folder)


def load(folder: Path) -> torch.nn.Module:
    """Load a saved model."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return model


def baseline(train: Tensors, held_out: Tensors) -> float:
    """Return the loss of a guess that knows the frequencies of the bytes and nothing else."""
    counts = torch.bincount(train["input_ids"].flatten(), minlength=len(tokenizer())) + 1.0
    return float(-(counts / counts.sum()).log()[held_out["input_ids"]].mean())


def score(model: torch.nn.Module, held_out: Tensors) -> float:
    """Return the mean loss of the model for each byte of the held-out passages but their first."""
    parts = held_out["input_ids"].split(_SCORED)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return sum(float(model(input_ids=ids, labels=ids).loss) * len(ids) for ids in parts) / sum(map(len, parts))


def example(model: torch.nn.Module) -> str:
    """Return a text that the model writes. It always sees the last 64 bytes."""
    vocabulary = tokenizer()
    ids = vocabulary(_BEGINNING, return_tensors="pt")["input_ids"]
    random = torch.Generator().manual_seed(LANGUAGE.seed)
    with torch.no_grad():
        for _ in range(_EXAMPLE_BYTES):
            logits = model(input_ids=ids[:, -_LENGTH:]).logits[:, -1] / _TEMPERATURE
            ids = torch.cat([ids, torch.multinomial(logits.softmax(dim=1), 1, generator=random)], dim=1)
    return str(vocabulary.decode(ids[0]))
