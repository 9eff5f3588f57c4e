"""A trained denoiser as a pipeline of diffusers, and what proves that it is the same.

B rows, C channels, h x w cells of a latent.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import digest
from ..data.draws import normal, row_key
from ..data.tokens import Text
from ..errors import ExportError
from ..pretrain import encoders
from ..pretrain.denoiser import Denoiser
from ..pretrain.diffusion.generate import asked
from ..pretrain.diffusion.sampling import Sampling
from ..pretrain.diffusion.schedules import Schedule
from ..pretrain.frozen import require_loaded
from ..pretrain.models import Unet
from ..pretrain.objectives import DenoisingDiffusion, RectifiedFlow
from ..pretrain.run import Run
from ..pretrain.task import Task

TOLERANCE = 1e-5
_PROMPTS = 2
_STEPS = 4
_SCALE = 3.0
_LDM_TOKENS = 77
"""`LDMTextToImagePipeline` pads every prompt to so many."""


def require(run: Run) -> None:
    """Refuses runs whose model no pipeline of diffusers is made of.

    Raises:
        ExportError: saying which setting would make it one.
    """
    model = run.model
    if not isinstance(model, Unet):
        raise ExportError(
            f"{run.name} is of kind {model.kind!r}. A pipeline of diffusers is made of a denoiser "
            "of kind 'unet'."
        )
    if model.texts and _clip(model) is None:
        raise ExportError(
            f"{run.name} reads its texts with frozen encoders (model.texts) that no pipeline has: "
            "only one alone of kind 'text' as wide as model.width, with padded=true and layer=-1, "
            "as Stable Diffusion's CLIP. Draw with `diptych sample`."
        )
    if not model.texts and model.text != "clip":
        raise ExportError(
            f"{run.name} has a text encoder of its own ({model.text!r}), which no pipeline of "
            "diffusers has: it reads texts without their padding. Train with --set model.text=clip."
        )
    if model.classes:
        raise ExportError(
            f"{run.name} is told classes beside its texts; text-to-image pipelines have none. "
            "Train on captions that name them, without model.classes."
        )
    if model.placed:
        raise ExportError(
            f"{run.name} is told sizes and crops (model.placed); of the pipelines for one text "
            "encoder none is. Train without it, or draw with `diptych sample`."
        )
    if model.beside:
        raise ExportError(
            f"{run.name} sees a {model.beside.kind} beside its latents (model.beside), which no "
            "text-to-image pipeline draws. Use `diptych sample RUN --control`."
        )
    stage = model.first_stage.kind
    if stage == "vq" and (model.tokens != _LDM_TOKENS or model.first_stage.factor != 8):
        raise ExportError(
            f"{run.name}: LDMTextToImagePipeline, which takes a vq first stage, pads to "
            f"{_LDM_TOKENS} tokens and draws latents of 1/8; the model has {model.tokens} tokens "
            f"and 1/{model.first_stage.factor}. Train with --set model.tokens={_LDM_TOKENS} and a "
            "first stage of four levels."
        )
    if (
        isinstance(run.objectives[0], DenoisingDiffusion)
        and run.objectives[0].schedule.steps != 1000
    ):
        raise ExportError(
            f"{run.name} counts {run.objectives[0].schedule.steps} timesteps; Stable Diffusion's "
            "pipelines tell the network numbers below 1000. Train with schedule.steps=1000."
        )


def scheduler(objective: Any) -> Any:
    """diffusers' scheduler of an objective: DDIM, or Euler's steps along a flow.

    Raises:
        ExportError: its table of noise is not the one that was trained with.
    """
    import diffusers  # for seconds

    theirs: Any = diffusers
    if isinstance(objective, RectifiedFlow):
        return theirs.DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=objective.shift,
            solver_order=1,
            final_sigmas_type="zero",
            steps_offset=1,
        )
    schedule: Schedule = objective.schedule
    names = {"cosine": "squaredcos_cap_v2"}
    made = theirs.DDIMScheduler(
        num_train_timesteps=schedule.steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=names.get(schedule.shape, schedule.shape),
        prediction_type={"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[
            objective.predict
        ],
        clip_sample=False,
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading",
        set_alpha_to_one=schedule.zero_terminal_snr,
        steps_offset=1,
    )
    apart = float((made.alphas_cumprod.double() - schedule.alphas_bar()).abs().max())
    if apart > 1e-5:
        raise ExportError(
            f"this version of diffusers ({diffusers.__version__}) has another {schedule.shape} "
            f"schedule: alphas_bar differ by {apart:.3g}. Use an older version."
        )
    return made


def unet(task: Task, run: Run) -> Any:
    """diffusers' U-Net with the trained weights in 32 bits."""
    trained: Any = task.model.unet
    side = run.model.image_size // _spec(task).first_stage.factor
    config = dict(trained.config)
    config.pop("_use_default_values", None)  # it would have what is listed there default again
    made = type(trained).from_config({**config, "sample_size": side})
    made.load_state_dict({name: value.float() for name, value in trained.state_dict().items()})
    return made.eval()


def tokenizer(text: Text) -> Any:
    """transformers' tokenizer that pads and cuts as ours does."""
    import transformers  # for seconds

    parts = ("pad", "unk", "cls", "sep", "mask")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=text.tokenizer,
        model_max_length=text.length,
        **{f"{part}_token": f"[{part.upper()}]" for part in parts},
    )


def pipeline(run: Run, task: Task, text: Text) -> Any:
    """The whole of it: U-Net, scheduler, text encoder, tokenizer and, where it is one of theirs,
    the autoencoder. Without one, `output_type="latent"` gives what our first stage decodes."""
    import diffusers  # for seconds

    theirs: Any = diffusers
    parts: dict[str, Any] = {
        "unet": unet(task, run),
        "scheduler": scheduler(run.objectives[0]),
    }
    if record := _clip(_spec(task)):
        encoder, parts["tokenizer"] = _frozen(record)
    else:
        encoder, parts["tokenizer"] = task.model.context.clip, tokenizer(text)
    stage = _spec(task).first_stage.kind
    if stage == "vq":
        return theirs.LDMTextToImagePipeline(vqvae=first_stage(task), bert=encoder.float(), **parts)
    return theirs.StableDiffusionPipeline(
        vae=first_stage(task) if stage == "autoencoder" else None,
        text_encoder=encoder.float(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )


def first_stage(task: Task) -> Any:
    """diffusers' autoencoder, with the scale that the run used in its settings.

    Raises:
        ExportError: its latents are shifted, which these pipelines do not undo.
    """
    assert task.stage is not None  # every denoiser has one
    stage = task.stage.on(torch.device("cpu"))
    if stage.shift:
        raise ExportError(
            f"the first stage shifts its latents by {stage.shift:g} (shift_factor), which "
            "Stable Diffusion's pipelines do not undo: they would decode other images. Draw with "
            "`diptych sample`."
        )
    (model,) = stage.modules
    found: Any = model
    found.register_to_config(scaling_factor=stage.scale)
    return found


def keep_probe(
    out: Path, run: Run, task: Task, text: Text, facts: Mapping[str, Any] | None = None
) -> None:
    """Leaves noise, prompts and the latents that our own code draws from them with their scheduler.

    Ours are drawn by the task, as it was trained; theirs by their pipeline's code.
    """
    spec = _spec(task)
    cells = run.model.image_size // spec.first_stage.factor
    shape = (spec.first_stage.channels, cells, cells)
    keys_B = torch.tensor([row_key("proof", number) for number in range(_PROMPTS)])
    count = shape[0] * cells * cells
    noise = normal(keys_B, "proof", count).float().view(-1, *shape)
    prompts = [_prompt(text, number) for number in range(_PROMPTS)]
    latents = drawn(run, task, text, prompts, noise, keys_B)
    (out / "proof").mkdir(exist_ok=True)
    save_file({"noise": noise, "latents": latents}, out / "proof" / "probe.safetensors")
    # Without an autoencoder their pipeline takes 8 pixels for a cell.
    whole = spec.first_stage.kind in ("autoencoder", "vq")
    factor = spec.first_stage.factor if whole else 8
    probe = {
        "pipeline": "LDMTextToImagePipeline"
        if spec.first_stage.kind == "vq"
        else "StableDiffusionPipeline",
        "prompts": prompts,
        "steps": _STEPS,
        "guidance_scale": _SCALE,
        "eta": 0.0,
        "seed": 0,
        "height": cells * factor,
        "width": cells * factor,
        "tolerance": TOLERANCE,
        "without": [] if whole else ["vae"],
        **(facts or {}),
    }
    (out / "proof" / "probe.json").write_text(json.dumps(probe, indent=1))


@torch.no_grad()
def drawn(
    run: Run, task: Task, text: Text, prompts: list[str], noise: Tensor, keys_B: Tensor
) -> Tensor:
    """Latents after the steps of the probe, guided, by our own pass and their scheduler."""
    how = Sampling(guidance_scale=_SCALE)
    ask = asked(task.eval(), text, prompts, keys_B, how, lambda view: view)
    steps = scheduler(run.objectives[0])
    steps.set_timesteps(_STEPS)
    x = noise * steps.init_noise_sigma
    for t in steps.timesteps:
        said = ask(steps.scale_model_input(x, t), t.expand(len(x)).float())
        x = steps.step(said, t, x).prev_sample
    return x


def card(run: Run, pipe: str, call: str, facts: Mapping[str, Any]) -> str:
    """The README of an export."""
    rows = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items())
    return f"""---
library_name: diffusers
tags: [text-to-image]
---
# {run.name}

A {pipe} trained by Diptych (recipe {digest(run)}), for {run.steps} steps of {run.batch}.

| | |
|---|---|
{rows}
{call}
`proof.json` says how a process without Diptych drew the same latents in {_STEPS} steps of
{type(scheduler(run.objectives[0])).__name__}, guidance {_SCALE:g}, from `proof/`.
"""


def _prompt(text: Text, number: int) -> str:
    """Words of the vocabulary, so that both know them."""
    words = [word for word in sorted(text.tokenizer.get_vocab()) if word.isalpha()]
    return " ".join(words[(7 * number + 3 * place) % len(words)] for place in range(3))


def _clip(model: Denoiser) -> encoders.Text | None:
    """The frozen encoder of a model that reads texts as Stable Diffusion does."""
    if len(model.texts) != 1 or model.first_stage.kind == "vq":
        return None
    (text,) = model.texts
    found = text.encoder
    if not isinstance(found, encoders.Text) or not found.padded or found.layer != -1:
        return None
    return found if (text.width, text.weight) == (model.width, 1.0) else None


def _frozen(record: encoders.Text) -> tuple[Any, Any]:
    """A frozen CLIP and its tokenizer, from their folders."""
    import transformers  # for seconds

    with record.folders() as folders, record.explained():
        words = transformers.CLIPTokenizer.from_pretrained(
            str(folders.get("tokenizer", folders["weights"])),
            local_files_only=True,
            model_max_length=record.tokens,
        )
        loaded: Any = transformers.CLIPTextModel.from_pretrained(
            str(folders["weights"]),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        made, told = loaded
        require_loaded(told["missing_keys"])
        return made.float().eval(), words


def _spec(task: Task) -> Denoiser:
    assert isinstance(task.spec, Denoiser)  # `require` refuses others
    return task.spec
