"""Families that understand or rewrite text."""

from typing import Any, Final

import torch
from transformers import (
    AlbertConfig,
    AlbertForQuestionAnswering,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForTokenClassification,
    LayoutLMConfig,
    LayoutLMForQuestionAnswering,
    RobertaConfig,
    RobertaForMultipleChoice,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    TapasConfig,
    TapasForQuestionAnswering,
)

from zoo.family import Family, Tensors
from zoo.text import CLASSES, MASK, NO_DROPOUT, SIZES, VOCABULARY, classes, sentences, tokenizer, tokens

_BERT: Final[dict[str, Any]] = {**SIZES, **NO_DROPOUT}
_T5: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


def _masked(count: int) -> Tensors:
    ids = tokens(count)
    hidden = (torch.arange(ids.shape[1]) % 4 == 1).expand_as(ids)
    return {"input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100)}


def _pretraining(count: int) -> Tensors:
    return {**_masked(count), "next_sentence_label": torch.arange(count) % 2}


def _pairs(count: int) -> Tensors:
    return {"input_ids": tokens(count) + torch.arange(count).reshape(-1, 1) % 2, "labels": torch.ones(count).long()}


def _rewritten(count: int) -> Tensors:
    ids = tokens(count)
    return {"input_ids": ids, "labels": ids[:, :6]}


def _classified(count: int) -> Tensors:
    return {"text": sentences(count), "labels": classes(count)}


def _choices(count: int) -> Tensors:
    labels = torch.arange(count) % 3 % 2
    ids = tokens(count * 2).reshape(count, 2, -1)
    ids[torch.arange(count), labels] = 7
    return {"input_ids": ids, "labels": labels}


def _tagged(count: int) -> Tensors:
    ids = tokens(count)
    return {"input_ids": ids, "labels": ids % CLASSES}


def _answered(count: int) -> Tensors:
    starts = torch.arange(count) % 2 + 3
    return {"input_ids": tokens(count), "start_positions": starts, "end_positions": starts + 2}


def _document(count: int) -> Tensors:
    corners = torch.arange(12).reshape(1, 12, 1).expand(count, 12, 4) * 10
    return {**_answered(count), "bbox": corners + torch.tensor([0, 0, 9, 9])}


def _table(count: int) -> Tensors:
    types = torch.zeros(count, 12, 7, dtype=torch.long)
    types[:, 4:, 0] = 1  # the table follows the question
    types[:, 4:, 1] = torch.arange(8) % 2 + 1  # columns
    types[:, 4:, 2] = torch.arange(8) // 2 + 1  # rows
    labels = torch.zeros(count, 12, dtype=torch.long)
    labels[:, 5] = 1
    return {"input_ids": tokens(count), "token_type_ids": types, "labels": labels}


FAMILIES: Final = (
    Family(
        "bert",
        "masked-lm",
        lambda: BertForMaskedLM(BertConfig(**_BERT)),
        _masked,
        ("input_ids", "labels"),
        note="tied weights",
    ),
    Family(
        "bert",
        "pretraining",
        lambda: BertForPreTraining(BertConfig(**_BERT)),
        _pretraining,
        ("input_ids", "labels", "next_sentence_label"),
    ),
    Family(
        "bert",
        "next-sentence-prediction",
        lambda: BertForNextSentencePrediction(BertConfig(**_BERT)),
        _pairs,
        ("input_ids", "labels"),
    ),
    Family(
        "t5",
        "seq2-seq-lm",
        lambda: T5ForConditionalGeneration(T5Config(**_T5)),
        _rewritten,
        ("input_ids", "labels"),
        learning_rate=1e-2,
        note="tied weights",
    ),
    Family(
        "bart",
        "seq2-seq-lm",
        lambda: BartForConditionalGeneration(
            BartConfig(
                vocab_size=VOCABULARY,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=64,
                dropout=0.0,
            )
        ),
        _rewritten,
        ("input_ids", "labels"),
        note="tied weights, a buffer",
    ),
    Family(
        "t5",
        "text-encoding",
        lambda: T5EncoderModel(T5Config(**_T5)),
        _rewritten,
        ("input_ids",),
        refusal="the model computed no loss",
    ),
    Family(
        "distilbert",
        "sequence-classification",
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=16,
                hidden_dim=32,
                n_layers=2,
                n_heads=2,
                dropout=0.0,
                attention_dropout=0.0,
                seq_classif_dropout=0.0,
                num_labels=CLASSES,
            )
        ),
        _classified,
        ("input_ids", "attention_mask", "labels"),
        ("tokenizer", ("text",), tokenizer),
        learning_rate=1e-2,
        note="tokenizer",
    ),
    Family(
        "roberta",
        "multiple-choice",
        lambda: RobertaForMultipleChoice(RobertaConfig(**_BERT, pad_token_id=0)),
        _choices,
        ("input_ids", "labels"),
        learning_rate=1e-2,
    ),
    Family(
        "electra",
        "token-classification",
        lambda: ElectraForTokenClassification(ElectraConfig(**_BERT, embedding_size=8, num_labels=CLASSES)),
        _tagged,
        ("input_ids", "labels"),
    ),
    Family(
        "albert",
        "question-answering",
        lambda: AlbertForQuestionAnswering(AlbertConfig(**_BERT, embedding_size=8)),
        _answered,
        ("input_ids", "start_positions", "end_positions"),
        note="layers share their weights",
    ),
    Family(
        "layoutlm",
        "document-question-answering",
        lambda: LayoutLMForQuestionAnswering(LayoutLMConfig(**_BERT, max_2d_position_embeddings=256)),
        _document,
        ("input_ids", "bbox", "start_positions", "end_positions"),
    ),
    Family(
        "tapas",
        "table-question-answering",
        lambda: TapasForQuestionAnswering(TapasConfig(**_BERT)),
        _table,
        ("input_ids", "token_type_ids", "labels"),
    ),
)
