import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from hypha_executor.bridge import Bridge
from hypha_executor.errors import JobError
from hypha_messages.job import ModelType, PreprocessorType
from hypha_trainer.job import parse_train_job
from hypha_trainer.models import auto_class, load_model, load_preprocessor
from hypha_trainer.preprocessing import Preparation, slice_names
from hypha_trainer.slices import fetch_slices
from support.trainer import Hub, job_spec, language_model

from .conftest import OpenBridge

STOCK_SPELLINGS = ["seq-2-seq-lm", "speech-seq-2-seq", "vision-2-seq"]
NOT_IN_TRANSFORMERS_5 = {"next-sentence-prediction", "keypoint-detection", "keypoint-matching"}


@pytest.mark.parametrize("task", [*(kind.value for kind in ModelType), *STOCK_SPELLINGS])
def test_every_model_type_of_the_protocol_has_a_class_or_says_that_transformers_has_none(task: str) -> None:
    if task in NOT_IN_TRANSFORMERS_5 and not hasattr(transformers, "AutoModelForNextSentencePrediction"):
        with pytest.raises(JobError, match=rf"'{task}' needs AutoModel.* does not have"):
            auto_class("model", task)
    else:
        assert auto_class("model", task).__name__.startswith("AutoModel")


@pytest.mark.parametrize("task", list(PreprocessorType))
def test_every_preprocessor_type_of_the_protocol_has_a_class(task: str) -> None:
    assert auto_class("preprocessor", task).__name__.startswith("Auto")


def test_an_unknown_model_type_is_refused(model_folder: Path) -> None:
    with pytest.raises(JobError, match="model type 'telepathy' is unknown"):
        load_model("telepathy", model_folder, trust_remote_code=False, placement={})


def test_a_model_is_loaded_in_float32_and_training_mode(tmp_path: Path) -> None:
    language_model().to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model("causal-lm", tmp_path, trust_remote_code=False, placement={})
    assert model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_a_model_without_weights_starts_alike_in_every_trainer(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    one = load_model("image-classification", tmp_path, trust_remote_code=False, placement={})
    torch.rand(100)
    other = load_model("image-classification", tmp_path, trust_remote_code=False, placement={})
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert "have no weights; every trainer starts from the same random ones" in capsys.readouterr().out


def test_a_slice_beside_a_model_without_weights_is_not_taken_for_its_weights(
    hub: Hub, open_bridge: OpenBridge, model_folder: Path
) -> None:
    bridge = open_bridge(hub)
    job = job_spec()["executor"]["config"]
    fetched = next(fetch_slices(Bridge(bridge.socket, bridge.work_dir), job["data"]))
    (fetched.parent / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    assert load_model("image-classification", fetched.parent, trust_remote_code=False, placement={}).training


def test_a_head_that_the_files_lack_starts_alike_in_every_trainer(model_folder: Path) -> None:
    models = []
    for _ in range(2):
        torch.rand(10)
        models.append(load_model("auto", model_folder, trust_remote_code=False, placement={}))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_files_without_a_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no config\.json; add it to its filenames"):
        load_model("auto", tmp_path, trust_remote_code=False, placement={})


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class TinyConfig(PretrainedConfig):
    model_type = "tiny-of-our-own"

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.line = torch.nn.Linear(4, 2)
        self.post_init()

    def forward(self, inputs, targets):
        return torch.nn.functional.cross_entropy(self.line(inputs), targets)
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "own_code_model"
    folder.mkdir()
    (folder / "tiny.py").write_text(OWN_CODE)
    auto_map = {"AutoConfig": "tiny.TinyConfig", "AutoModel": "tiny.TinyModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny-of-our-own", "auto_map": auto_map}))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_code_of_a_model_is_not_run_unless_the_executor_allows_it(own_code: Path) -> None:
    (own_code / "tiny.py").write_text("raise SystemExit('was run')")
    with pytest.raises(JobError, match="add --trust-remote-code to the executor's arguments"):
        load_model("auto", own_code, trust_remote_code=False, placement={})


def test_code_of_a_model_is_run_where_the_executor_allows_it(own_code: Path) -> None:
    model = load_model("auto", own_code, trust_remote_code=True, placement={})
    assert model(torch.ones(3, 4), torch.tensor([0, 1, 0])).shape == ()


def preprocessing_job(task: str, names: list[str], model_names: list[str], model_task: str = "auto") -> str:
    artifact = {"type": "huggingface", "repository": "x/y", "filenames": ["config.json"]}
    return json.dumps(
        job_spec(
            model={"task": model_task, "artifact": artifact, "input-names": model_names},
            preprocessor={"task": task, "artifact": artifact, "input-names": names},
        )
    )


def test_an_image_processor_makes_the_models_inputs_and_labels_pass_through(tmp_path: Path) -> None:
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    job = parse_train_job(preprocessing_job("image", ["images"], ["pixel_values", "labels"]))
    assert slice_names(job) == (("images",), ("pixel_values", "labels"))
    prepare = Preparation(job, load_preprocessor("image", tmp_path, trust_remote_code=False))
    rows = {
        "images": torch.randint(0, 255, (5, 3, 16, 16), dtype=torch.uint8),
        "labels": torch.arange(5).to(torch.uint8),
    }
    made = prepare(rows)
    assert made["pixel_values"].shape == (5, 3, 8, 8)
    assert (made["pixel_values"].dtype, made["labels"].dtype) == (torch.float32, torch.int64)


def test_a_tokenizer_reads_text_from_rows_of_bytes_and_padding_is_not_learnt(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    job = parse_train_job(
        preprocessing_job("tokenizer", ["text"], ["input_ids", "attention_mask", "labels"], "causal-lm")
    )
    prepare = Preparation(job, load_preprocessor("tokenizer", tmp_path, trust_remote_code=False))
    rows = [b"one two one".ljust(16, b"\0"), b"two".ljust(16, b"\0")]
    made = prepare({"text": torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(2, 16).copy())})
    assert made["input_ids"].tolist() == [[2, 3, 2], [3, 0, 0]]
    assert made["labels"].tolist() == [[2, 3, 2], [3, -100, -100]]


def test_a_processor_pads_texts_beside_images(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "<image>": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "additional_special_tokens": ["<image>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="full").save_pretrained(tmp_path)
    job = parse_train_job(preprocessing_job("auto", ["images", "text"], ["input_ids", "pixel_values"]))
    prepare = Preparation(job, load_preprocessor("auto", tmp_path, trust_remote_code=False))
    rows = [list(text.ljust(24, b"\0")) for text in (b"<image> one two one", b"<image> two")]
    text = torch.tensor(rows, dtype=torch.uint8)
    made = prepare({"text": text, "images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)})
    assert made["input_ids"].tolist() == [[4, 2, 3, 2], [4, 3, 0, 0]]
    assert made["pixel_values"].shape == (2, 3, 8, 8)


def test_a_feature_extractor_takes_rows_of_sound(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    job = parse_train_job(preprocessing_job("feature", ["raw_speech"], ["input_values"]))
    prepare = Preparation(job, load_preprocessor("feature", tmp_path, trust_remote_code=False))
    assert prepare({"raw_speech": torch.rand(3, 400)})["input_values"].shape == (3, 400)


def test_inputs_that_neither_slice_nor_preprocessor_has_are_named(tmp_path: Path) -> None:
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    job = parse_train_job(preprocessing_job("image", ["images"], ["pixel_values", "labels"]))
    prepare = Preparation(job, load_preprocessor("image", tmp_path, trust_remote_code=False))
    with pytest.raises(JobError, match=r"has \['labels'\], only \['pixel_values'\]"):
        prepare({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)})


def test_a_batch_that_a_preprocessor_refuses_is_described(tmp_path: Path) -> None:
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    job = parse_train_job(preprocessing_job("image", ["images"], ["pixel_values"]))
    prepare = Preparation(job, load_preprocessor("image", tmp_path, trust_remote_code=False))
    with pytest.raises(JobError, match=r"failed on \{'images': 'torch.float32 \[5\]'\}"):
        prepare({"images": torch.zeros(5)})
