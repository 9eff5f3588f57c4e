"""Token states of open_clip's text towers: what the tower itself pools, and no padding."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_encoders import minilm as minilm

from diptych.errors import RecipeError
from diptych.pretrain import encoders
from diptych.pretrain.encoder import find_encoder
from diptych.pretrain.reader import FrozenText, Reader

TEXTS = ["a teal triangle!", "a dog"]
VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
WORDS = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}


def folder(place: Path, model: Any, config: dict[str, Any]) -> Path:
    """As open_clip saves one."""
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, place / "open_clip_model.safetensors")
    (place / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 16}})
    )
    return place


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Any]:
    config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": WORDS}
    torch.manual_seed(0)
    model: Any = open_clip.CLIP(**config).eval()
    return folder(tmp_path, model, config), model


def test_the_state_of_a_texts_end_is_what_open_clip_pools(own: tuple[Path, Any]) -> None:
    place, model = own
    rows = encoders.OpenClipText(weights=str(place)).open().encode(None, TEXTS)["text"]
    tokens_BL = open_clip.tokenize(TEXTS)
    assert [len(row) for row in rows] == [6, 4]  # start, words, end
    with torch.inference_mode():
        pooled = model.encode_text(tokens_BL)
        for row, wanted in zip(rows, pooled, strict=True):
            said = torch.from_numpy(row[-1]) @ model.text_projection
            np.testing.assert_allclose(said.numpy(), wanted.numpy(), atol=1e-6)


def test_layers_are_those_of_stable_diffusion_2_and_of_sdxl(own: tuple[Path, Any]) -> None:
    place, model = own
    text: Any = encoders.OpenClipText
    full = text(weights=str(place), padded=True, layer=-2).open().encode(None, TEXTS)["text"]
    bare = text(weights=str(place), layer=-2, normed=False).open().encode(None, TEXTS)["text"]
    assert np.stack(full).shape == (2, 77, 16)
    del model.transformer.resblocks[-1]
    with torch.inference_mode():
        x_BLD = model.token_embedding(open_clip.tokenize(TEXTS)) + model.positional_embedding
        x_BLD = model.transformer(x_BLD, attn_mask=model.attn_mask)
        normed_BLD = model.ln_final(x_BLD)
    np.testing.assert_allclose(np.stack(full), normed_BLD.numpy(), atol=1e-6)
    np.testing.assert_allclose(bare[1], x_BLD[1, :4].numpy(), atol=1e-6)
    with pytest.raises(RecipeError, match=r"layer -4 of 3 blocks\. Use -3 to 2"):
        text(weights=str(place), layer=-4).open()


def test_a_tower_apart_and_one_of_transformers(tmp_path: Path, minilm: Path) -> None:
    """CoCa-like with its own token at the end; and BERT within open_clip."""
    coca = {**WORDS, "embed_cls": True, "context_length": 12}
    bert = {"hf_model_name": str(minilm), "hf_tokenizer_name": str(minilm), "context_length": 12}
    bert |= {"hf_model_pretrained": False, "hf_pooler_type": "cls_pooler"}
    found: dict[str, list[Any]] = {}
    for name, words in (("coca", coca), ("bert", bert)):
        config = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": words}
        torch.manual_seed(0)
        model: Any = open_clip.CustomTextCLIP(**config).eval()
        (tmp_path / name).mkdir()
        if name == "bert":  # whose tokenizer open_clip saves beside the weights
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(minilm / file, tmp_path / name)
        place = folder(tmp_path / name, model, {**config, "custom_text": True})
        rows = encoders.OpenClipText(weights=str(place)).open().encode(None, TEXTS)["text"]
        found[name] = [model, *rows]
    model, *rows = found["coca"]
    assert [len(row) for row in rows] == [6, 4]
    with torch.inference_mode():
        model.text.output_tokens = True
        tokens_BL = open_clip.tokenize(TEXTS, context_length=12)
        normed_BLD = model.text.ln_final(model.text(tokens_BL)[1])
    np.testing.assert_allclose(rows[0], normed_BLD[0, :6].numpy(), atol=1e-6)
    model, *rows = found["bert"]
    assert [row.shape for row in rows] == [(7, 384), (4, 384)]
    with torch.inference_mode():
        alone = model.text.transformer(torch.tensor([[101, 1037, 3899, 102]])).last_hidden_state
    np.testing.assert_allclose(rows[1], alone[0].numpy(), atol=1e-5)


def test_it_steers_a_denoiser(own: tuple[Path, Any]) -> None:
    kinds = {"open_clip_text": encoders.OpenClipText}
    assert find_encoder(f"open_clip_text={own[0]}", [], kinds).kind == "open_clip_text"
    record = {"encoder": {"kind": "open_clip_text", "weights": str(own[0])}, "width": 16}
    states = Reader(FrozenText.model_validate(record)).read(TEXTS, torch.zeros(1))
    assert states.tokens_BLD.shape == (2, 6, 16) and states.empty_LD.shape == (2, 16)
