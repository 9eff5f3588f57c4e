"""Encoders of regions against their own libraries: torchvision's detectors, open_clip's towers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from open_clip import constants
from safetensors.torch import save_file
from test_open_clip_text import own as own
from torch import Tensor

from diptych.errors import RecipeError
from diptych.pretrain.encoders import Detector, OpenClipImage

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def pictures(size: int, rows: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 3, size, size), generator=draw, dtype=torch.uint8)


def test_a_detector_finds_what_torchvision_finds(tmp_path: Path) -> None:
    torch.manual_seed(3)
    make: Any = torchvision.models.get_model
    theirs: Any = make(
        SMALL, weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=256,
        box_score_thresh=0.1, box_detections_per_img=7,
    ).eval()  # fmt: skip
    save_file(theirs.state_dict(), tmp_path / "detector.safetensors")
    seen: list[Tensor] = []
    theirs.roi_heads.box_predictor.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = pictures(64)
    with torch.inference_mode():
        told = theirs(list(images.float() / 255))
    settings: dict[str, Any] = {"network": SMALL, "count": 7, "threshold": 0.1, "size": 64}
    ours = Detector(weights=str(tmp_path / "detector.safetensors"), **settings).open()
    found = ours.encode(images.numpy(), None)
    assert {len(rows) for rows in found["boxes"]} == {7}
    for boxes, one in zip(found["boxes"], told, strict=True):
        np.testing.assert_allclose(boxes * 64, one["boxes"].numpy(), atol=1e-3)
    assert found["regions"][0].shape == (7, seen[0].shape[1])
    again = ours.encode(images[1:].numpy(), None)["regions"][0]
    np.testing.assert_allclose(again, found["regions"][1], atol=1e-4)


def test_the_whole_picture_is_a_region_where_nothing_is_found() -> None:
    settings: dict[str, Any] = {"network": SMALL, "threshold": 0.99, "size": 64}
    found = Detector(**settings).open().encode(pictures(64).numpy(), None)
    assert [boxes.tolist() for boxes in found["boxes"]] == [[[0, 0, 1, 1]]] * 2


@pytest.mark.parametrize("network", ["yolo", "retinanet_resnet50_fpn"])
def test_what_is_no_detector_of_regions_is_refused(network: str) -> None:
    with pytest.raises(RecipeError, match=r"has no detector 'yolo'|Use fasterrcnn_"):
        Detector(network=network).open()


def test_patches_of_an_image_tower_are_its_last_normed_states(own: tuple[Path, Any]) -> None:
    place, model = own
    states: list[Tensor] = []
    model.visual.ln_post.register_forward_hook(lambda *given: states.append(given[2]))
    images = pictures(16)
    found = OpenClipImage(weights=str(place)).open().encode(images.numpy(), None)["regions"]
    known = (constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(values)[:, None, None] for values in known)
    with torch.inference_mode():
        model.encode_image((images.float() / 255 - mean) / std)
    assert np.stack(found).shape == (2, 4, 64)
    np.testing.assert_allclose(np.stack(found), states[-1][:, 1:].numpy(), atol=1e-5)
