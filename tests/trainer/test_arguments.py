import torch
from transformers import CLIPConfig, CLIPModel, YolosConfig, YolosForObjectDetection

from hypha_trainer.arguments import arrange_arguments, nest

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def test_inputs_with_a_dot_become_a_list_with_a_dict_for_each_sample() -> None:
    pixels = torch.zeros(2, 3)
    nested = nest({"pixels": pixels, "labels.sizes": torch.tensor([1, 2]), "labels.boxes": torch.ones(2, 3, 4)})
    assert nested["pixels"] is pixels
    assert [sorted(sample) for sample in nested["labels"]] == [["boxes", "sizes"]] * 2
    assert [int(sample["sizes"]) for sample in nested["labels"]] == [1, 2]
    assert nested["labels"][0]["boxes"].shape == (3, 4)


def test_entries_without_a_class_are_padding() -> None:
    boxes = torch.arange(16).reshape(2, 2, 4)
    classes = torch.tensor([[3, -100], [-100, -100]])
    labels = nest({"labels.class_labels": classes, "labels.boxes": boxes})["labels"]
    assert labels[0]["class_labels"].tolist() == [3]
    assert labels[0]["boxes"].tolist() == [[0, 1, 2, 3]]
    assert labels[1]["boxes"].shape == (0, 4)


def test_a_detector_computes_its_loss_from_tensors() -> None:
    model = YolosForObjectDetection(
        YolosConfig(**SMALL, image_size=[16, 16], patch_size=8, num_detection_tokens=3, num_labels=4)
    )
    arrange_arguments(model)
    boxes = torch.full((2, 2, 4), 0.5)
    labels = {"labels.class_labels": torch.tensor([[1, 2], [3, -100]]), "labels.boxes": boxes}
    assert model(pixel_values=torch.rand(2, 3, 16, 16), **labels).loss.isfinite()


def test_a_contrastive_model_is_requested_to_compute_its_loss() -> None:
    model = CLIPModel(
        CLIPConfig(
            text_config={**SMALL, "vocab_size": 9, "eos_token_id": 8},
            vision_config={**SMALL, "image_size": 8, "patch_size": 4},
            projection_dim=4,
        )
    )
    batch = {"pixel_values": torch.rand(2, 3, 8, 8), "input_ids": torch.tensor([[1, 8], [2, 8]])}
    assert model(**batch).loss is None
    arrange_arguments(model)
    assert model(**batch).loss.isfinite()
