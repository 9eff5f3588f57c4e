"""`sample` and `invert`: images of a run's own, and the noise of other pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..config import plain
from ..data.verbs import bar
from ..errors import RecipeError
from ..finetune.classifier import open_classifier
from ..finetune.guided import asked_for
from ..finetune.inversion import invert, read_noise, write_noise
from ..finetune.sample import Painter, grid, painter, write, write_png
from ..finetune.start import Weights
from ..pretrain.diffusion.generate import NOTHING, Given, denoiser, looks
from ..pretrain.diffusion.sampling import Sampling
from .jobs import find


class Led(NamedTuple):
    """A classifier of noised images that leads to classes."""

    run: str
    scale: float
    classes: tuple[str, ...]
    """One for each prompt, or one for all; the prompts where there are none."""


def draw(
    run: str,
    runs: str,
    prompts: list[str],
    n: int,
    how: Sampling,
    *,
    out: Path | None,
    weights: Weights | None,
    step: int | None,
    controls: Sequence[str] = (),
    as_is: bool = False,
    latents: str | None = None,
    led: Led | None = None,
    given: Given = NOTHING,
) -> tuple[dict[str, Any], str]:
    """Draws `n` images of each prompt; returns (what came of it, the folder).

    `controls` steer, each `RUN=PICTURE@WEIGHT`; with `as_is` their pictures are hints already.
    `latents` is a file of noise to begin from; `led` a classifier that leads to classes; `given`
    has the rest.
    """
    found = painter(find(run, runs), weights=weights, step=step)
    prompts, classes = _asked(prompts, led)
    each = [text for text in prompts for _ in range(n)]
    if latents:
        given, how = _begun(found, latents, len(each), how, given)
    if led:
        judge = open_classifier(find(led.run, runs), found, weights=weights)
        given = judge.given([name for name in classes for _ in range(n)], led.scale, given)
    side = found.run.model.image_size
    size = how.size or (side, side)
    change = asked_for(controls, found, lambda name: find(name, runs), size, as_is=as_is)
    with bar("sample", looks(how, len(each))) as told:
        images = found.draw(each, how, told=told, change=change, given=given)
    folder = out or Path("samples") / found.place.name
    paths = write(images, folder)
    write_png(grid(images, columns=n if len(prompts) > 1 else None), paths[-1])
    facts = {"images": len(images), "step": found.step, "weights": found.weights}
    return {**facts, "grid": str(paths[-1])}, str(folder)


def _asked(prompts: list[str], led: Led | None) -> tuple[list[str], list[str]]:
    """(prompts, the class of each); a class alone is drawn of the empty text."""
    if led is None:
        if not prompts:
            raise RecipeError("Say what to draw: --prompt TEXT.")
        return prompts, []
    classes = list(led.classes) or prompts
    if not classes:
        raise RecipeError("Say what to draw: --class NAME of the classifier, or --prompt TEXT.")
    prompts = prompts or [""] * len(classes)
    if len(classes) not in (1, len(prompts)):
        raise RecipeError(
            f"{len(classes)} times --class and {len(prompts)} times --prompt: say one class for "
            "each prompt, or one for all."
        )
    return prompts, classes * (len(prompts) // len(classes))


def _begun(
    found: Painter, url: str, images: int, how: Sampling, given: Given
) -> tuple[Given, Sampling]:
    """What images begin from, and the way of sampling at the size that it has."""
    noise_NChw = read_noise(url)
    if len(noise_NChw) not in (1, images):
        raise RecipeError(
            f"{url} holds latents of {len(noise_NChw)} images, and {images} are drawn. Say as many "
            "prompts times --n; latents of one image serve any number."
        )
    factor = denoiser(found.task).first_stage.factor
    height, width = (side * factor for side in noise_NChw.shape[2:])
    if how.size and how.size != (width, height):
        raise RecipeError(f"{url} is for {width}x{height} pixels; leave --size.")
    how = how.model_copy(update={"size": (width, height)})
    return replace(given, start_NChw=noise_NChw.expand(images, -1, -1, -1)), how


def invert_pictures(
    run: str,
    runs: str,
    pictures: list[str],
    prompts: list[str],
    how: Sampling,
    *,
    refine: int,
    out: Path | None,
    weights: Weights | None,
    step: int | None,
) -> tuple[dict[str, Any], str]:
    """Finds the noise of pictures and draws them again; returns (what came of it, the folder)."""
    found = painter(find(run, runs), weights=weights, step=step)
    if len(prompts) not in (1, len(pictures)):
        raise RecipeError(
            f"{len(prompts)} times --prompt for {len(pictures)} pictures: say one for each, or one "
            "for all."
        )
    prompts = prompts * (len(pictures) // len(prompts))
    with bar("invert", how.steps * (2 + refine)) as told:
        done = invert(found, pictures, prompts, how, refine=refine, told=told)
    folder = out or Path("inverted") / found.place.name
    for number, image_HWC in enumerate(done.again_NHWC):
        write_png(image_HWC, folder / f"{number:05d}.png")
    notes = {"run": found.place.url, "step": found.step, "weights": found.weights}
    notes |= {"pictures": pictures, "prompts": prompts, "how": plain(how)}
    write_noise(done.noise_NChw, folder / "noise.safetensors", **notes)
    facts = {"latents": str(folder / "noise.safetensors"), "latent_error": done.latent_error}
    facts |= {"psnr_db": done.psnr, "noise_std": done.spread}
    facts |= {} if done.ceiling is None else {"first_stage_db": done.ceiling}
    return {"step": found.step, "weights": found.weights, **facts}, str(folder)
