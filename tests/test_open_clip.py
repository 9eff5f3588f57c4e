"""The model `clip` is open_clip's: there and back, and the same loss as its ClipLoss."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.data import storage, tokens
from diptych.data.batch import Batch
from diptych.data.tokens import Text
from diptych.errors import CheckpointError, ExportError, RecipeError, StorageError
from diptych.finetune import clip_folder
from diptych.finetune.clip_folder import CONFIG, WEIGHTS
from diptych.finetune.export import clip
from diptych.finetune.recipes import find
from diptych.finetune.start import fresh_task, require_start
from diptych.pretrain.run import Run
from diptych.pretrain.task import Task

MODEL = "{kind: clip, width: 16, heads: 2, depth: 1, tokens: 12, image_size: 16, patch: 4, "
MODEL += "visual_width: 24, visual_heads: 3, visual_depth: 1}"
OBJECTIVES = "objectives=[{kind: contrastive}]"


@pytest.fixture
def trained(small: Callable[..., Run], text: Text) -> tuple[Run, Task]:
    torch.manual_seed(0)
    run = small(f"model={MODEL}", OBJECTIVES)
    task = run.task(text)
    for parameter in task.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return run, task


def test_open_clip_opens_it_and_it_comes_back(
    trained: tuple[Run, Task], text: Text, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    (run, task), out = trained, tmp_path / "clip"
    clip.require(run)
    clip.write(out, run, task, text, {"steps": 3})
    proof = clip.prove(out, run, task, text, rows(6))
    assert proof["loader"] == "open_clip" and proof["process"] != os.getpid()
    assert set(proof["max_difference"]) == {"image_features", "text_features", "logits", "tokens"}


def test_a_run_starts_from_its_folder(
    trained: tuple[Run, Task], text: Text, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    (run, task), out = trained, tmp_path / "clip"
    clip.write(out, run, task, text, {"steps": 3})
    (tmp_path / "mine.yaml").write_text(f"name: mine\nstart_from: {out}\ndata: {{train: none}}\n")
    again = find(str(tmp_path / "mine.yaml"), [])
    assert again.model == run.model
    assert again.data.tokenizer == storage.absolute(f"{out}/tokenizer.json")
    require_start(again.start_from or "")
    words = tokens.load(again.data.tokenizer, again.model.tokens)
    other, batch = fresh_task(again, words), rows(8)
    assert torch.equal(other(batch).total, task(batch).total)
    clip.write(tmp_path / "again", again, other, words, {"steps": 3})
    first, second = (load_file(each / WEIGHTS) for each in (out, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_open_clips_own_model_with_its_mean_and_deviation(
    text: Text, rows: Callable[..., Batch], tmp_path: Path
) -> None:
    import open_clip

    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "layers": 1, "context_length": 12, "pool_type": "eos"}
    sizes |= {"vocab_size": text.size, "eos_id": text.special[3]}
    vision = {"image_size": 16, "layers": 1, "width": 24, "head_width": 8, "patch_size": 4}
    made: Any = open_clip.CLIP
    theirs = made(16, vision, sizes).eval()
    for name, parameter in theirs.named_parameters():
        if name != "logit_scale":
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    save_file({k: v for k, v in weights.items() if k != "attn_mask"}, tmp_path / WEIGHTS)
    look = {"mean": [0.48, 0.2, 0.7], "std": [0.27, 0.4, 0.1]}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": sizes}
    _settings(tmp_path, {"model_cfg": config, "preprocess_cfg": look})
    (tmp_path / "tokenizer.json").write_text(text.tokenizer.to_str())
    (tmp_path / "mine.yaml").write_text(f"name: m\nstart_from: {tmp_path}\ndata: {{train: none}}\n")
    task, batch = fresh_task(find(str(tmp_path / "mine.yaml"), []), text).eval(), rows(6)
    seen, _ = task.scores(batch)
    mean_C, std_C = (torch.tensor(look[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        pixels_BCHW = (batch.image_BCHW.float() / 255 - mean_C) / std_C
        image_BD = theirs.encode_image(pixels_BCHW, normalize=True)
        padded_BL = torch.nn.functional.pad(batch.tokens_BL, (0, 12 - batch.tokens_BL.shape[1]))
        text_BD = theirs.encode_text(padded_BL, normalize=True)
    torch.testing.assert_close(seen.towers.image_BE, image_BD, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.towers.text_BE, text_BD, atol=1e-5, rtol=1e-4)
    _settings(tmp_path, {"model_cfg": _with(config, sizes, "eos_id", 7), "preprocess_cfg": look})
    with pytest.raises(CheckpointError, match=r"ends with the id 7 .*tokenizer ends it with 3"):
        fresh_task(find(str(tmp_path / "mine.yaml"), []), text)
    for side, name, value in (
        (config, "quick_gelu", True),
        (sizes, "pool_type", "argmax"),
        (vision, "timm_model_name", "resnet18"),
    ):
        _settings(tmp_path, {"model_cfg": _with(config, side, name, value), "preprocess_cfg": look})
        with pytest.raises(CheckpointError, match=rf"{name} is {value!r}; of the towers of the"):
            clip_folder.read(str(tmp_path))
    with pytest.raises(StorageError):
        clip_folder.read(str(tmp_path / "nowhere"))


def _settings(folder: Path, values: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(values))


def _with(config: dict[str, Any], side: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The settings with one more; `side` is they themselves or one of their parts."""
    if side is config:
        return {**config, name: value}
    part = next(part for part, values in config.items() if values is side)
    return {**config, part: {**side, name: value}}


def test_its_loss_is_clip_loss(
    trained: tuple[Run, Task], text: Text, rows: Callable[..., Batch]
) -> None:
    from open_clip.loss import ClipLoss

    _, task = trained
    batch = rows(8)
    losses = task(batch)
    seen, _ = task.scores(batch)
    wanted = ClipLoss()(seen.towers.image_BE, seen.towers.text_BE, task.heads["contrastive"]())
    torch.testing.assert_close(losses.total, wanted, atol=1e-6, rtol=1e-6)
    short = replace(batch, tokens_BL=batch.tokens_BL[:, :9], real_BL=batch.real_BL[:, :9])
    torch.testing.assert_close(task(short).total, losses.total)  # as buckets cut it


def test_other_models_are_refused(small: Callable[..., Run]) -> None:
    with pytest.raises(ExportError, match="no model like 'vlp'"):
        clip.require(small())
    with pytest.raises(ExportError, match="not trained with the objective 'contrastive'"):
        clip.require(small(f"model={MODEL}", "objectives=[{kind: itm}]"))


READERS = ("prefix", "show_tell", "attend_tell", "grounding", "wra")


@pytest.mark.parametrize("kind", READERS)
def test_what_reads_regions_finds_none_in_two_towers(
    kind: str, small: Callable[..., Run], text: Text
) -> None:
    with pytest.raises(RecipeError, match=f"objective '{kind}' .*[uU]se model 'vlp'"):
        small(f"model={MODEL}", f"objectives=[{{kind: {kind}}}]").task(text)
