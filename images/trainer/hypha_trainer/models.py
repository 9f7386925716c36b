"""Build models and preprocessors: the transformers class of each type, and the files that it loads."""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from hypha_executor.bridge import Reference
from hypha_executor.errors import ExecutorError, JobError
from hypha_trainer.arguments import arrange_arguments
from hypha_trainer.log import log

SEED = 20_77
"""The seed of weights that are not in the files, so that all trainers of a job start with equal weights."""

AUTO_CLASSES: dict[str, tuple[str, ...]] = {
    "auto": ("AutoModel",),
    "pretraining": ("AutoModelForPreTraining",),
    "causal-lm": ("AutoModelForCausalLM",),
    "masked-lm": ("AutoModelForMaskedLM",),
    "mask-generation": ("AutoModelForMaskGeneration",),
    "seq-2-seq-lm": ("AutoModelForSeq2SeqLM",),
    "sequence-classification": ("AutoModelForSequenceClassification",),
    "multiple-choice": ("AutoModelForMultipleChoice",),
    "next-sentence-prediction": ("AutoModelForNextSentencePrediction",),
    "token-classification": ("AutoModelForTokenClassification",),
    "question-answering": ("AutoModelForQuestionAnswering",),
    "text-encoding": ("AutoModelForTextEncoding",),
    "depth-estimation": ("AutoModelForDepthEstimation",),
    "image-classification": ("AutoModelForImageClassification",),
    "video-classification": ("AutoModelForVideoClassification",),
    "keypoint-detection": ("AutoModelForKeypointDetection",),
    "keypoint-matching": ("AutoModelForKeypointMatching",),
    "object-detection": ("AutoModelForObjectDetection",),
    "image-segmentation": ("AutoModelForImageSegmentation",),
    "image-to-image": ("AutoModelForImageToImage",),
    "semantic-segmentation": ("AutoModelForSemanticSegmentation",),
    "instance-segmentation": ("AutoModelForInstanceSegmentation", "AutoModelForUniversalSegmentation"),
    "universal-segmentation": ("AutoModelForUniversalSegmentation",),
    "zero-shot-image-classification": ("AutoModelForZeroShotImageClassification",),
    "zero-shot-object-detection": ("AutoModelForZeroShotObjectDetection",),
    "audio-classification": ("AutoModelForAudioClassification",),
    "audio-frame-classification": ("AutoModelForAudioFrameClassification",),
    "ctc": ("AutoModelForCTC",),
    "speech-seq-2-seq": ("AutoModelForSpeechSeq2Seq",),
    "audio-x-vector": ("AutoModelForAudioXVector",),
    "text-to-spectrogram": ("AutoModelForTextToSpectrogram",),
    "text-to-waveform": ("AutoModelForTextToWaveform",),
    "audio-tokenization": ("AutoModelForAudioTokenization",),
    "table-question-answering": ("AutoModelForTableQuestionAnswering",),
    "document-question-answering": ("AutoModelForDocumentQuestionAnswering",),
    "vision-2-seq": ("AutoModelForVision2Seq", "AutoModelForImageTextToText"),
    "image-text-to-text": ("AutoModelForImageTextToText",),
    "time-series-prediction": ("AutoModelForTimeSeriesPrediction",),
}
"""The auto classes of each model type. The first one that the installed transformers has is used."""

_RUST_NAMES = {  # the names that the Rust nodes write, and the documented ones
    "seq2-seq-lm": "seq-2-seq-lm",
    "speech-seq2-seq": "speech-seq-2-seq",
    "vison2-seq": "vision-2-seq",
    "vision2-seq": "vision-2-seq",
    "audio-xvector": "audio-x-vector",
}

_PREPROCESSOR_CLASSES = {
    "tokenizer": ("AutoTokenizer",),
    "feature": ("AutoFeatureExtractor",),
    "image": ("AutoImageProcessor",),
    "video": ("AutoVideoProcessor",),
    "auto": ("AutoProcessor",),
}

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def load_model(
    task: str,
    folder: Path,
    *,
    trust_remote_code: bool,
    placement: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    complete: bool = False,
) -> torch.nn.Module:
    """Build the model from the files in `folder`, in training mode.

    Args:
        task: The job's model type, by its documented name or that of the Rust nodes.
        folder: The folder with config.json.
        trust_remote_code: Whether to run code that is among the files.
        placement: More arguments of `from_pretrained`, which place the model on devices.
        dtype: The dtype of its floating-point weights.
        complete: Whether the files must hold all weights. Otherwise the missing ones are random.

    Raises:
        JobError: The type is unknown or the files cannot be used.
    """
    builder = auto_class("model", task)
    config = _read_config(folder, "config.json")
    _check_code(config, trust_remote_code, "model")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(SEED)
    options = {"trust_remote_code": trust_remote_code}
    try:
        if any(match for pattern in _WEIGHTS for match in folder.glob(pattern)):
            model, loaded = builder.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **options, **placement
            )
            if complete and loaded["missing_keys"]:
                raise JobError(
                    f"the model's files lack the weights {sorted(loaded['missing_keys'])[:3]}; is it trained?"
                )
        elif complete:
            raise JobError("the model's files have no weights; add model.safetensors to its filenames")
        else:
            log("the model's files have no weights; every trainer starts from the same random ones")
            model = builder.from_config(AutoConfig.from_pretrained(folder, **options), **options).float()
    except (ValueError, OSError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        raise JobError(f"the model cannot be built as {task!r}: {_one_line(error)}") from error
    arrange_arguments(model)
    return model.train()  # type: ignore[no-any-return]


def free_storage(folder: Path, reference: Reference) -> None:
    """Delete the weights of a loaded model, because the trainer keeps the global weights in their place.

    A restarted trainer fetches them again.
    """
    for name in reference.get("filenames", ()):
        if any(fnmatch(name, pattern) for pattern in _WEIGHTS):
            (folder / name).unlink(missing_ok=True)


def set_pad_token(model: torch.nn.Module, pad_token_id: int | None) -> None:
    """Name the padding's token to a model that has none: classifiers of texts look for the last token before it."""
    config: Any = model.config
    if pad_token_id is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id


def disable_cache(model: torch.nn.Module) -> None:
    """Turn off the cache of keys and values. Layers that run again in the backward pass would extend it twice."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]


def run_model(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Return the model's outputs for a batch.

    Raises:
        ExecutorError: The model refused the batch, or the GPU's memory is too small.
    """
    try:
        return model(**inputs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise ExecutorError("out of GPU memory; use a smaller batch_size or a larger worker") from error
        shapes = ", ".join(f"{k} {v.dtype} {list(v.shape)}".replace("torch.", "") for k, v in inputs.items())
        raise ExecutorError(f"the model refused a batch ({shapes}): {' '.join(str(error).split())[:400]}") from error


def load_preprocessor(task: str, folder: Path, *, trust_remote_code: bool) -> Any:
    """Build the preprocessor from the files in `folder`.

    Raises:
        JobError: The type is unknown or the files cannot be used.
    """
    builder = auto_class("preprocessor", task)
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _check_code(_read_config(folder, name), trust_remote_code, "preprocessor")
    try:
        return builder.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        raise JobError(f"the preprocessor cannot be built as {task!r}: {_one_line(error)}") from error


def auto_class(what: str, task: str) -> Any:
    """Return the transformers class for a type of `what`, which is "model" or "preprocessor".

    Raises:
        JobError: The type is unknown, or the installed transformers lacks the class.
    """
    task_classes = AUTO_CLASSES.get(_RUST_NAMES.get(task, task)) if what == "model" else _PREPROCESSOR_CLASSES.get(task)
    if not task_classes:
        raise JobError(f"{what} type {task!r} is unknown")
    for name in task_classes:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    raise JobError(
        f"{what} type {task!r} needs {task_classes[0]}, which transformers {transformers.__version__} does not have"
    )


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise JobError(f"the artifact has no {name}; add it to its filenames") from None
    except ValueError as error:
        raise JobError(f"the artifact's {name} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise JobError(f"the artifact's {name} is not a JSON object")
    return config


def _check_code(config: dict[str, Any], trusted: bool, what: str) -> None:
    native = config.get("model_type") in CONFIG_MAPPING
    if "auto_map" in config and not native and not trusted:
        raise JobError(
            f"the {what} brings code, which this executor does not run; "
            "to allow it, add --trust-remote-code to the executor's arguments in the worker's configuration"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]
