"""Families that hear, and one that reads a time series."""

from typing import Any, Final

import torch
from transformers import (
    DacConfig,
    DacModel,
    HubertConfig,
    HubertForCTC,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    TimesFmConfig,
    TimesFmModelForPrediction,
    VitsConfig,
    VitsModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2ForXVector,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from zoo.family import Family, Tensors
from zoo.text import tokens

_SAMPLES: Final = 800
_LABELS: Final = 3

_WAV2VEC2: Final[dict[str, Any]] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "ctc_loss_reduction": "mean",
}
_HEADS: Final[dict[str, Any]] = {"classifier_proj_size": 16, "num_labels": _LABELS}


def _sounds(count: int, samples: int = _SAMPLES) -> torch.Tensor:
    """Return tones, whose pitch depends on their label."""
    times = torch.arange(samples) / 16_000
    pitches = 200.0 * (torch.arange(count) % _LABELS + 1).reshape(-1, 1)
    return torch.sin(2 * torch.pi * pitches * times) + 0.1 * torch.randn(count, samples)


def _classified(count: int) -> Tensors:
    return {"raw_speech": _sounds(count), "labels": torch.arange(count) % _LABELS}


def _transcribed(count: int) -> Tensors:
    labels = tokens(count, 4)
    labels[::2, 3] = -100
    return {"raw_speech": _sounds(count), "labels": labels}


def _framed(count: int) -> Tensors:
    frames = torch.nn.functional.one_hot(torch.arange(count) % _LABELS, _LABELS).unsqueeze(1).repeat(1, 39, 1)
    return {"input_values": _sounds(count), "labels": frames}


def _spoken(count: int) -> Tensors:
    return {"input_ids": tokens(count), "labels": torch.rand(count, 8, 8) + 1}


def _read_aloud(count: int) -> Tensors:
    spoken = _spoken(count)
    return {
        **spoken,
        "attention_mask": torch.ones_like(spoken["input_ids"]),
        "speaker_embeddings": torch.ones(count, 8),
    }


def _series(count: int) -> Tensors:
    line = torch.arange(24) / 8 + torch.arange(count).reshape(-1, 1) % 4
    return {"past_values": line[:, :16], "future_values": line[:, 16:], "freq": torch.zeros(count, 1).long()}


_SPEECH: Final = ("input_values", "labels")
_EXTRACTOR: Final = ("feature", ("raw_speech",), Wav2Vec2FeatureExtractor)

FAMILIES: Final = (
    Family(
        "wav2vec2",
        "audio-classification",
        lambda: Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**_WAV2VEC2, **_HEADS)),
        _classified,
        _SPEECH,
        _EXTRACTOR,
        learning_rate=1e-2,
        note="feature extractor",
    ),
    Family(
        "wav2vec2",
        "ctc",
        lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**_WAV2VEC2)),
        _transcribed,
        _SPEECH,
        _EXTRACTOR,
        note="feature extractor, weight norm",
    ),
    Family(
        "hubert",
        "ctc",
        lambda: HubertForCTC(HubertConfig(**_WAV2VEC2)),
        _transcribed,
        _SPEECH,
        _EXTRACTOR,
        note="feature extractor, weight norm",
    ),
    Family(
        "wav2vec2",
        "audio-frame-classification",
        lambda: Wav2Vec2ForAudioFrameClassification(Wav2Vec2Config(**_WAV2VEC2, **_HEADS)),
        _framed,
        _SPEECH,
    ),
    Family(
        "wav2vec2",
        "audio-x-vector",
        lambda: Wav2Vec2ForXVector(
            Wav2Vec2Config(
                **_WAV2VEC2,
                **_HEADS,
                tdnn_dim=(16, 16),
                tdnn_kernel=(3, 1),
                tdnn_dilation=(1, 1),
                xvector_output_dim=8,
                initializer_range=0.3,
            )
        ),
        _classified,
        _SPEECH,
        _EXTRACTOR,
        note="feature extractor",
    ),
    Family(
        "whisper",
        "speech-seq2-seq",
        lambda: WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=32,
                num_mel_bins=8,
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_source_positions=50,
                max_target_positions=16,
                decoder_start_token_id=1,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        ),
        _transcribed,
        ("input_features", "labels"),
        ("feature", ("raw_speech",), lambda: WhisperFeatureExtractor(feature_size=8, chunk_length=1)),
        note="feature extractor, tied weights",
    ),
    Family(
        "speecht5",
        "text-to-spectrogram",
        lambda: SpeechT5ForTextToSpeech(
            SpeechT5Config(
                vocab_size=32,
                hidden_size=16,
                encoder_layers=1,
                encoder_attention_heads=2,
                encoder_ffn_dim=32,
                encoder_layerdrop=0.0,
                decoder_layers=1,
                decoder_attention_heads=2,
                decoder_ffn_dim=32,
                decoder_layerdrop=0.0,
                positional_dropout=0.0,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                speech_decoder_prenet_units=16,
                speech_decoder_prenet_dropout=0.0,
                speech_decoder_postnet_units=16,
                speech_decoder_postnet_layers=2,
                speech_decoder_postnet_dropout=0.0,
                num_mel_bins=8,
                speaker_embedding_dim=8,
                max_speech_positions=32,
                max_text_positions=32,
            )
        ),
        _read_aloud,
        ("input_ids", "attention_mask", "labels", "speaker_embeddings"),
        note="BatchNorm",
    ),
    Family(
        "vits",
        "text-to-waveform",
        lambda: VitsModel(
            VitsConfig(
                vocab_size=32,
                hidden_size=16,
                num_hidden_layers=1,
                ffn_dim=16,
                flow_size=16,
                spectrogram_bins=9,
                duration_predictor_filter_channels=16,
                upsample_initial_channel=16,
                upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4],
                posterior_encoder_num_wavenet_layers=1,
                prior_encoder_num_flows=1,
            )
        ),
        _spoken,
        ("input_ids", "labels"),
        refusal="Training of VITS is not supported",
    ),
    Family(
        "dac",
        "audio-tokenization",
        lambda: DacModel(
            DacConfig(
                encoder_hidden_size=8,
                decoder_hidden_size=16,
                downsampling_ratios=[2, 2],
                n_codebooks=2,
                codebook_size=16,
                codebook_dim=4,
            )
        ),
        lambda count: {"input_values": _sounds(count, 64).unsqueeze(1)},
        ("input_values",),
        note="its own loss",
    ),
    Family(
        "timesfm",
        "time-series-prediction",
        lambda: TimesFmModelForPrediction(
            TimesFmConfig(
                patch_length=4,
                context_length=16,
                horizon_length=8,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                head_dim=8,
            )
        ),
        _series,
        ("past_values", "future_values", "freq"),
    ),
)
