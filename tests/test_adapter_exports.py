"""Exported adapters: a clean process loads each into the target's own tool and computes the same.

{LoRA rank 4 alpha 8, DoRA, LoKr} x {peft, diffusers, kohya} x {U-Net, U-Net and CLIP}; then each is
spoilt in a way that has cost people their work, and `verify` must say so.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.data.tokens import Text
from diptych.errors import ExportError
from diptych.finetune import adapter_proof
from diptych.finetune.adapter_proof import keep_probe, probe_view, write_base
from diptych.finetune.clean_adapter import require_whole
from diptych.finetune.export import diffusers_lora, embedding, kohya, peft_folder
from diptych.finetune.parts import KINDS
from diptych.finetune.sides import sides
from diptych.finetune.start import fresh_task
from diptych.finetune.verify import verify
from diptych.finetune.verify_base import account_of
from diptych.pretrain.adapter import adapt
from diptych.pretrain.objective import Denoised, View
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.rundir import RunDir
from diptych.pretrain.task import Task

ROOT = Path(__file__).parents[1]
TARGETS = {"peft": peft_folder, "diffusers": diffusers_lora, "kohya": kohya}
LOW = {"lora": {"rank": 4, "alpha": 8}, "dora": {"rank": 4, "alpha": 8}, "lokr": {"alpha": 8}}
REFUSED = {
    ("dora", "kohya", 1): "drops its dora_scale",
    ("dora", "kohya", 2): "drops its dora_scale",
    ("lokr", "diffusers", 2): "reads LoKr on its U-Net alone",
}
CASES = [(kind, to, count) for kind in LOW for to in TARGETS for count in (1, 2)]
PROVE = """
import runpy, sys
from pathlib import Path
main = runpy.run_path(sys.argv[1])["main"]
for out, base in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        main(Path(out), Path(base))
        print("proven", flush=True)
    except (SystemExit, Exception) as err:
        print("failed", type(err).__name__, " ".join(str(err).split()), flush=True)
"""


class Context(nn.Module):
    """CLIP's text encoder."""

    def __init__(self, vocabulary: int, width: int) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        config = CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=12, eos_token_id=3,
        )  # fmt: skip
        self.clip = CLIPTextModel(config)


class ClipUnet(nn.Module):
    """A model with diffusers' U-Net and CLIP, as Stable Diffusion has them."""

    def __init__(self, other: Any, vocabulary: int) -> None:
        super().__init__()
        self.unet, self.context = other.unet, Context(vocabulary, 16)
        self.words = self.context.clip.get_input_embeddings()

    def forward(self, view: View) -> Denoised:
        states_BLD = self.context.clip(view.tokens_BL).last_hidden_state
        said = self.unet(view.image_BCHW, view.time_B, encoder_hidden_states=states_BLD)
        return Denoised(view, said.sample)


def recipe(kind: str, count: int, text: Text) -> tuple[Run, Task]:
    """A run with an adapter on one side or on both, and its trained task."""
    parts = ["denoiser", "text"][:count]
    low: dict[str, Any] = LOW.get(kind, {})
    values = {
        "name": f"my-{kind}",
        "model": {
            "kind": "unet", "channels": [16, 32], "groups": 4, "heads": 2, "width": 16,
            "image_size": 16, "tokens": 12,
        },
        "objectives": [{"kind": "ddpm"}],
        "adapters": [{"kind": kind, "on": [part], **low} for part in parts],
        "start_from": "/runs/base",
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }  # fmt: skip
    if kind == "lora":  # a layer with its own rank and alpha
        values["adapters"][0] |= {"ranks": {r".*attn2\.to_k": 2}, "alphas": {r".*attn2\.to_k": 16}}
    run = parse_run(values, KINDS, source="test")
    torch.manual_seed(0)
    task = run.task(text)
    task.model = ClipUnet(task.model, text.size)
    adapt(task, run.adapters, text)
    for param in task.parameters():
        if param.requires_grad:
            param.data += 0.2 * torch.randn(param.shape)
    return run, task.eval()


def loader_of(to: str, found: Any) -> dict[str, Any]:
    """What the target's `prove` would have the clean process do."""
    told: dict[str, Any] = {}
    before = adapter_proof.prove_adapter
    for module in TARGETS.values():
        setattr(module, "prove_adapter", lambda *_, **how: told.update(how) or {})  # noqa: B010
    try:
        TARGETS[to].prove(*found)
    finally:
        for module in TARGETS.values():
            setattr(module, "prove_adapter", before)  # noqa: B010
    return told


@pytest.fixture(scope="module")
def made(text: Text, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Each case's folder, base and what a clean process said; or why it was refused."""
    place, found = tmp_path_factory.mktemp("exports"), dict[Any, Any]()
    command = [sys.executable, "-I", "-c", PROVE, str(ROOT / "finetune" / "clean_adapter.py")]
    for kind in LOW:
        for count in (1, 2):
            run, task = recipe(kind, count, text)
            both, base = sides(run, task), place / f"base-{kind}-{count}"
            write_base(base, run, text, {side.name: side.plain() for side in both}, task)
            for to, target in TARGETS.items():
                case, out = (kind, to, count), place / f"{kind}-{to}-{count}"
                try:
                    target.require(run)
                    target.write(out, run, task, text, {"steps": 3})
                except ExportError as err:
                    found[case] = str(err)
                    continue
                how = loader_of(to, (out, run, task, text, None))
                keep_probe(out, run, task, text, both, how)
                found[case] = (out, base, task)
                command += [str(out), str(base)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("proven", "failed"))]
    said = said or [done.stdout + done.stderr]
    proven = [case for case in CASES if not isinstance(found[case], str)]
    assert len(said) == len(proven), (done.stdout + done.stderr)[-3000:]
    order = [c for k in LOW for n in (1, 2) for c in CASES if c[0] == k and c[2] == n]
    lines = iter(said)
    for case in order:
        if not isinstance(found[case], str):
            found[case] = (*found[case], next(lines))
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_matrix(case: tuple[str, str, int], made: dict[Any, Any]) -> None:
    if case in REFUSED:
        assert isinstance(made[case], str) and re.search(REFUSED[case], made[case])
        return
    out, _, task, said = made[case]
    assert said == "proven", said
    proof = json.loads((out / "proof.json").read_text())
    exact = 1e-5 if case[0] == "lokr" and case[1] == "kohya" else 0.0
    assert len(proof["max_difference"]) == case[2]
    assert max(proof["max_difference"].values()) <= exact
    assert proof["base"] == task.base
    verdict = verify(out)
    assert verdict.wrong == [] and verdict.tensors and verdict.proven
    card = (out / "README.md").read_text()
    assert "base_model: file:///runs/base" in card and task.base in card


def test_kohya_names_and_metadata(made: dict[Any, Any]) -> None:
    out = made["lora", "kohya", 2][0]
    with safe_open(out / "my-lora.safetensors", framework="pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
        block = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        clip = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
        for head in (block, clip):
            assert {f"{head}.{p}" for p in ("lora_down.weight", "lora_up.weight", "alpha")} <= names
        assert opened.get_tensor(f"{block}.alpha") == 8
        assert opened.get_tensor(block.replace("attn1_to_q", "attn2_to_k") + ".alpha") == 8
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "8"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def rewrite(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata=metadata)


def rename_a_key(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    name = sorted(name for name in tensors if "attn1" in name and "to_q" in name)[0]
    tensors[name.replace("to_q", "to_qq")] = tensors.pop(name)


def wrong_alpha(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    for name in tensors:
        if name.endswith(".alpha"):
            tensors[name] = torch.tensor(4.0)
    if told := metadata.get("lora_adapter_metadata"):
        metadata["lora_adapter_metadata"] = re.sub(r'alpha": 8\.0', 'alpha": 4.0', told)


def lost_alpha(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata.pop("lora_adapter_metadata", None)
    for name in [name for name in tensors if name.endswith(".alpha")]:
        del tensors[name]


SPOILS = {
    "renamed": (rename_a_key, r"to_qq\S* is unexpected .*renamed"),
    "wrong alpha": (wrong_alpha, r"the alpha of \S+ is 4, it was trained with 8"),
    "lost alpha": (lost_alpha, r"alpha .*is lost"),
}


@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("to", TARGETS)
def test_what_is_spoilt_is_said(to: str, how: str, made: dict[Any, Any], tmp_path: Path) -> None:
    out = tmp_path / "spoilt"
    shutil.copytree(made["lora", to, 1][0], out)
    change, complaint = SPOILS[how]
    (file,) = out.glob("*.safetensors")
    rewrite(file, change)
    config = out / "adapter_config.json"
    if to == "peft" and "alpha" in how:
        values = json.loads(config.read_text())
        values["lora_alpha"] = 4 if how == "wrong alpha" else None
        config.write_text(json.dumps(values))
    wrong = " ".join(verify(out).wrong)
    assert re.search(complaint, wrong), wrong
    assert "changed since it was proven" in wrong
    alone = tmp_path / "alone" / file.name  # a file that came without its folder
    alone.parent.mkdir()
    shutil.copy(file, alone)
    if to != "peft":
        assert re.search(complaint, " ".join(verify(alone).wrong))


def shapes_of(task: Task, found: Any) -> dict[str, Any]:
    return {side.name: account_of(side.plain()) for side in found}


@pytest.mark.parametrize("to", TARGETS)
def test_another_base_is_said(to: str, text: Text, made: dict[Any, Any]) -> None:
    run, task = recipe("lora", 1, text)
    base = shapes_of(task, sides(run, task))
    out = made["lora", to, 1][0]
    assert verify(out, base).wrong == []
    task.model.unet.conv_in.bias.data += 1e-6
    other = shapes_of(task, sides(run, task))
    assert "trained on another base: unet" in " ".join(verify(out, other).wrong)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other["unet"]["shapes"][name] = (64, 64)
    del other["unet"]["shapes"][name.replace("to_q", "to_k")]
    wrong = " ".join(verify(out, other).wrong)
    assert "the base's is (64, 64)" in wrong and "is no module of the base" in wrong


def test_foreign_files_are_told_what_is_wrong_with_them(tmp_path: Path) -> None:
    head = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = torch.zeros(4, 8), torch.zeros(8, 4)
    file = tmp_path / "theirs.safetensors"
    save_file({f"{head}.lora_down.weight": down, f"{head}.lora_up.weight": up}, file)
    assert "has no alpha (1 of 1)" in " ".join(verify(file).wrong)
    save_file({f"{head}.lora_down.weight": down, f"{head}.alpha": torch.tensor(4.0)}, file)
    assert "has no lora_up: loaders refuse it" in " ".join(verify(file).wrong)
    both = {f"{head}.lora_down.weight": down, f"{head}.lora_up.weight": torch.zeros(8, 2)}
    save_file({**both, f"{head}.alpha": torch.tensor(4.0)}, file)
    assert "has rank 4 and lora_up rank 2" in " ".join(verify(file).wrong)
    save_file({"unet.a.to_q.lora_A.weight": down, "unet.a.to_q.lora_B.weight": up}, file)
    assert "alpha is lost" in " ".join(verify(file).wrong)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:40])
    assert "no whole safetensors file" in " ".join(verify(tmp_path / "cut.safetensors").wrong)
    (tmp_path / "theirs.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ExportError, match=r"theirs\.bin may be a pickle"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "theirs.bin").write_bytes(b"\x80\x04.")
        verify(tmp_path / "one").require()


UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
TABLE = "text_model.embeddings.token_embedding"
STABLE = {
    "unet": {"shapes": {f"{UNET}.to_q": (8, 8), f"{UNET}.to_out.0": (8, 8)}},
    "text_encoder": {"shapes": {CLIP: (8, 8), TABLE: (99, 8)}},
}
KOHYA = "lora_unet_" + f"{UNET}.to_q".replace(".", "_")
ALPHA = {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4, "text_encoder.lora_alpha": 4})}
BARE = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 4})}
FOREIGN: dict[str, tuple[list[str], dict[str, str], dict[str, Any]]] = {
    "scripts of diffusers": (
        [f"text_encoder.{CLIP}.lora_linear_layer.{p}.weight" for p in ("down", "up")], ALPHA, {},
    ),
    "diffusers before 0.22": (
        [f"unet.{UNET}.processor.to_out_lora.{p}.weight" for p in ("down", "up")], {}, {},
    ),
    "save_lora_adapter": ([f"{UNET}.to_q.lora_{p}.weight" for p in "AB"], BARE, {}),
    "modules_to_save": (
        [f"base_model.model.{CLIP}.lora_{p}.weight" for p in "AB"]
        + ["base_model.model.text_model.final_layer_norm.weight"],
        {}, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["final_layer_norm"]},
    ),
    "embedding of peft": (
        [f"base_model.model.{TABLE}.lora_embedding_{p}" for p in "AB"],
        {}, {"peft_type": "LORA", "r": 4, "lora_alpha": 8},
    ),
    "tucker": (
        [f"{KOHYA}.lora_{p}.weight" for p in ("down", "up", "mid")] + [f"{KOHYA}.alpha"], {}, {},
    ),
    "dynamic alpha": (
        [f"{KOHYA}.{p}" for p in ("lora_down.weight", "lora_up.weight", "alpha")],
        {"ss_network_alpha": "Dynamic"}, {},
    ),
    "alpha of 16 bits": (
        [f"{KOHYA}.{p}" for p in ("lora_down.weight", "lora_up.weight", "alpha")],
        {"ss_network_alpha": "0.1"}, {},
    ),
    "a word": (["<flora>"], {}, {}),
}  # fmt: skip


def foreign(name: str) -> Tensor:
    """A tensor of rank 4 in a layer of 8; of a table of 99 words where it is one of them."""
    if name.endswith("alpha"):
        return torch.tensor(0.1).half()
    if name.endswith(("_A", "_A.weight", "down.weight")):
        return torch.zeros(4, 99 if "embedding_A" in name else 8)
    if name.endswith(("_B", "_B.weight", "up.weight")):
        return torch.zeros(8, 4)
    return torch.zeros(4, 4, 1, 1) if "mid" in name else torch.zeros(8)


@pytest.mark.parametrize("case", FOREIGN)
def test_what_others_write_and_load_is_not_refused(case: str, tmp_path: Path) -> None:
    names, metadata, config = FOREIGN[case]
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: foreign(name) for name in names}, file, metadata=metadata)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert verify(file).wrong == []
    assert verify(file, STABLE).wrong == []
    if case == "a word":
        assert verify(file).layout == "embedding"
        return
    lost = [name for name in names if name != names[1]]
    save_file({name: foreign(name) for name in lost}, file, metadata=metadata)
    assert "loaders refuse it" in " ".join(verify(file).wrong)
    other = {side: {"shapes": {"conv_in": (8, 8)}} for side in STABLE}
    assert "is no module of the base" in " ".join(verify(file, other).wrong)


@pytest.mark.parametrize("blob", ["{", "[]"])
def test_damaged_settings_are_not_blamed_on_the_weights(blob: str, tmp_path: Path) -> None:
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 4)}, tmp_path / "a.safetensors")
    (tmp_path / "adapter_config.json").write_text(blob)
    (wrong,) = verify(tmp_path).wrong
    assert wrong.startswith("adapter_config.json is damaged")


def test_linked_files_are_proven_too(tmp_path: Path) -> None:
    """A cache of the hub holds links to files elsewhere."""
    out, blob = tmp_path / "out", tmp_path / "blob"
    out.mkdir()
    save_file({"weight": torch.zeros(2)}, blob)
    (out / "model.safetensors").symlink_to(blob)
    sums = {"model.safetensors": hashlib.sha256(blob.read_bytes()).hexdigest()}
    proof = {"loader": "x", "max_difference": {"model": 0.0}}
    (out / "proof.json").write_text(json.dumps({**proof, "sha256": sums}))
    assert verify(out).wrong == []
    save_file({"weight": torch.ones(2)}, blob)
    assert verify(out).wrong == ["model.safetensors changed since it was proven (SHA-256)."]
    for name in ("../blob", str(blob)):
        (out / "proof.json").write_text(json.dumps({**proof, "sha256": {name: "0"}}))
        assert verify(out).wrong == [
            f"proof.json names {name}, which is outside the folder; not read."
        ]


def test_what_loaders_drop_in_silence_is_said(tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    head = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    hadamard = {f"{head}.hada_w{n}_{side}": torch.ones(4, 4) for n in "12" for side in "ab"}
    save_file({**hadamard, f"{head}.alpha": torch.tensor(4.0)}, file)
    assert "which diffusers refuses" in " ".join(verify(file).notes) and not verify(file).wrong
    hadamard[f"{head}.hada_w1_a"][0, 0] = torch.nan
    save_file({**hadamard, f"{head}.alpha": torch.tensor(4.0)}, file)
    assert f"{head}.hada_w1_a holds numbers that are not finite" in " ".join(verify(file).wrong)
    old = "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    save_file({f"{old}.down.weight": torch.ones(4, 8), f"{old}.up.weight": torch.ones(8, 4)}, file)
    assert "belongs to no adapter (2 such)" in " ".join(verify(file).wrong)
    save_file({"emb_params": torch.ones(2, 768)}, file)
    words = {"text_encoder": {"shapes": {"text_model.embeddings.token_embedding": (99, 32)}}}
    assert verify(file).layout == "embedding" and not verify(file).wrong
    assert "is 768 wide, the base's words are 32" in " ".join(verify(file, words).wrong)
    save_file({"emb_params": torch.ones(2, 32), "step": torch.tensor(3)}, file)
    assert verify(file, words).wrong == []


def test_new_words_load_into_diffusers(text: Text, tmp_path: Path) -> None:
    values = {
        "name": "my-words",
        "model": {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "tokens": 12},
        "objectives": [{"kind": "ddpm"}],
        "adapters": [{"kind": "tokens", "words": {"<toy>": "picture", "<it>": "number"}}],
        "start_from": "/runs/base",
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    run = parse_run(values, KINDS, source="test")
    larger = text.grown(run.new_words)
    task = run.task(larger)
    adapt(task, run.adapters, larger)
    embedding.require(run)
    embedding.write(tmp_path / "out", run, task, larger, {})
    proof = embedding.prove(tmp_path / "out", run, task, larger, None)  # type: ignore[arg-type]
    assert proof["max_difference"] == {"<it>": 0.0, "<toy>": 0.0}
    assert verify(tmp_path / "out").wrong == []


def test_a_module_of_our_own_is_proven_in_peft(text: Text, tmp_path: Path) -> None:
    values = {
        "name": "my-vlp",
        "model": {"kind": "vlp", "width": 16, "depth": 1, "heads": 2, "stem": 4, "image_size": 16},
        "objectives": [{"kind": "mlm"}],
        "adapters": [{"kind": "lora", "rank": 2, "alpha": 8}],
        "start_from": "/runs/base",
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    values["model"] |= {"tokens": 12}
    run = parse_run(values, KINDS, source="test")
    torch.manual_seed(0)
    task = run.task(text)
    adapt(task, run.adapters, text)
    for param in task.model.parameters():
        param.data += 0.1 * torch.randn(param.shape)
    out = tmp_path / "out"
    peft_folder.write(out, run, task, text, {})
    proof = peft_folder.prove(out, run, task, text, None)  # type: ignore[arg-type]
    assert proof["loader"] == "peft" and proof["max_difference"] == {"model": 0.0}
    with pytest.raises(ExportError, match="a module of our own that no pipeline"):
        kohya.write(tmp_path / "no", run, task, text, {})
    assert replace(probe_view(run, task, text)).time_B is not None


def test_every_tensor_that_peft_keeps_of_words_is_counted(text: Text, tmp_path: Path) -> None:
    from peft import PeftModel

    values = {
        "name": "my-vlp",
        "model": {"kind": "vlp", "width": 16, "depth": 1, "heads": 2, "image_size": 16},
        "objectives": [{"kind": "mlm"}],
        "adapters": [{"kind": "lora", "rank": 2, "alpha": 8, "targets": ["words"]}],
        "start_from": "/runs/base",
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    run = parse_run(values, KINDS, source="test")
    task, bare = run.task(text), run.task(text)
    adapt(task, run.adapters, text)
    peft_folder.write(tmp_path / "out", run, task, text, {})
    assert verify(tmp_path / "out").wrong == []
    stored = load_file(tmp_path / "out" / peft_folder.FILE)
    assert any("lora_embedding_A" in name for name in stored)
    made = PeftModel.from_pretrained(bare.model, str(tmp_path / "out"))
    require_whole(len(stored), made)
    with pytest.raises(SystemExit, match="keys were lost"):
        require_whole(len(stored) + 1, made)


def test_the_verb_proves_an_export_again_on_the_run_it_stands_on(
    text: Text, keep: Callable[..., RunDir], tmp_path: Path
) -> None:
    model = {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 16}
    values: dict[str, Any] = {
        "name": "base",
        "model": {**model, "image_size": 16, "tokens": 12},
        "objectives": [{"kind": "ddpm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    plain = parse_run(values, KINDS, source="test")
    torch.manual_seed(0)
    base, other = (keep(plain, plain.task(text), text) for _ in range(2))
    low = {"kind": "lora", "on": ["denoiser"], "rank": 2, "alpha": 4}
    values |= {"name": "my-lora", "start_from": base.url, "adapters": [low]}
    run = parse_run(values, KINDS, source="test")
    task = fresh_task(run, text).eval()
    for param in task.model.unet.parameters():
        param.data += 0.1 * param.requires_grad
    out = tmp_path / "out"
    peft_folder.write(out, run, task, text, {})
    peft_folder.prove(out, run, task, text, None)  # type: ignore[arg-type]
    done = CliRunner().invoke(app, ["verify", str(out), "--base", base.url, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["proven again"] == {"unet": 0.0} and said["layout"] == "peft"
    done = CliRunner().invoke(app, ["verify", str(out), "--base", other.url])
    assert done.exit_code and "trained on another base: unet" in str(done.exception)
    done = CliRunner().invoke(app, ["verify", str(out), "--base", str(tmp_path)])
    assert done.exit_code and "neither a run nor a folder of diffusers" in str(done.exception)
