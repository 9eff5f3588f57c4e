"""Verbs of denoisers that `__main__` puts beside the others: `sample` and `invert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..data.verbs import Json, show
from ..errors import RecipeError
from .options import RunArg, Runs, WeightsOpt, pixels

if TYPE_CHECKING:
    from ..pretrain.diffusion.generate import Given
    from .draw import Led

Prompts = Annotated[
    list[str] | None, typer.Option(help="What to draw; several are drawn together.")
]
Shown = Annotated[list[str] | None, typer.Option(help="What they show, one each or one for all.")]
Out = Annotated[Path | None, typer.Option(help="A folder; samples/RUN by default.")]
Inverted = Annotated[Path | None, typer.Option(help="A folder; inverted/RUN by default.")]
Count = Annotated[int, typer.Option(min=1, help="Images of each prompt.")]
Steps = Annotated[int, typer.Option(min=1, help="Of the sampler; inversion restores with more.")]
Scale = Annotated[float, typer.Option(min=0, help="1 is none; the lecture's w is this minus 1.")]
Negative = Annotated[str, typer.Option(help="What to be led away from.")]
Seed = Annotated[int, typer.Option(min=0, help="Image i of a seed is always the same.")]
Size = Annotated[str | None, typer.Option(help="WxH in pixels; by default as it was trained.")]
Sampler = Annotated[
    str | None, typer.Option(help="ddim, ddpm, euler, heun, or a scheduler of diffusers.")
]
Eta = Annotated[float, typer.Option(min=0, help="Of DDIM: 1 draws as DDPM does.")]
Spacing = Annotated[
    Literal["leading", "trailing", "linspace"] | None, typer.Option(help="Of the timesteps.")
]
Threshold = Annotated[float | None, typer.Option(help="Dynamic thresholding of pixels: 0.995.")]
Step = Annotated[int | None, typer.Option(help="Which checkpoint; the newest.")]
Control = Annotated[
    list[str] | None, typer.Option(help="RUN=PICTURE[@WEIGHT]: what steers; several add up.")
]
AsIs = Annotated[bool, typer.Option("--as-is", help="Pictures of --control are hints already.")]
Latents = Annotated[
    str | None, typer.Option(help="Noise to begin from: a file that `invert` wrote.")
]
Judge = Annotated[str | None, typer.Option(help="RUN of a noisy_classifier that leads to --class.")]
JudgeScale = Annotated[float, typer.Option(help="s of the lecture's Algorithm 1.")]
Class = Annotated[
    list[str] | None, typer.Option("--class", help="For each prompt; by default the prompt.")
]
Original = Annotated[
    str | None, typer.Option(help="WxH that it is drawn as cut from, of models with `placed`.")
]
Crop = Annotated[str, typer.Option(help="LEFT,TOP pixels cut off, of such models.")]
Refine = Annotated[
    int, typer.Option(min=0, help="Ask each step so often again: nearer to the exact inverse.")
]


def sample(
    run: RunArg,
    prompt: Prompts = None,
    runs: Runs = "runs",
    out: Out = None,
    n: Count = 1,
    steps: Steps = 50,
    guidance_scale: Scale = 5.0,
    negative: Negative = "",
    seed: Seed = 0,
    size: Size = None,
    sampler: Sampler = None,
    eta: Eta = 0.0,
    spacing: Spacing = None,
    threshold: Threshold = None,
    weights: WeightsOpt = None,
    step: Step = None,
    control: Control = None,
    as_is: AsIs = False,
    latents: Latents = None,
    classifier: Judge = None,
    classifier_scale: JudgeScale = 1.0,
    class_: Class = None,
    original_size: Original = None,
    crop: Crop = "0,0",
    json_: Json = False,
) -> None:
    """Draw images from a diffusion run: PNG files and a grid, a row for each prompt.

    --control names runs of `diptych finetune control`, or a hint by its kind where RUN sees one.
    The size may be another than in training: such networks are convolutional. A class that a
    classifier leads to needs no prompt, and then no --guidance-scale: the empty text is drawn.

    Examples:

        diptych sample t2i_tiny20 --prompt "a school bus" --prompt "a goldfish" --n 8

        diptych sample t2i_tiny20 --prompt "teapot" --control canny-run=photo.png --control palette-run=photo.png@0.5

        diptych sample t2i_tiny20 --classifier classifier_tiny --class goldfish --classifier-scale 2 --sampler ddpm

        diptych sample t2i_tiny20 --latents inverted/t2i_tiny20/noise.safetensors --prompt "a goldfish" --guidance-scale 1

        diptych sample s3://b/runs/ldm --prompt "a mountain" --size 512x256 --steps 20 --sampler DPMSolverMultistepScheduler
    """  # noqa: E501
    from ..config import parse
    from ..pretrain.diffusion.sampling import Sampling
    from .draw import draw

    guidance_scale = guidance_scale if prompt else 1.0  # the empty text, away from itself
    values = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler, "eta": eta}
    values |= {"seed": seed, "negative": negative, "spacing": spacing, "threshold": threshold}
    values |= {"size": pixels(size) if size else None}
    how = parse(Sampling, values, source="sample")
    led, given = _led(classifier, classifier_scale, class_ or []), _given(original_size, crop)
    facts, folder = draw(
        run, runs, prompt or [], n, how, out=out, weights=weights, step=step,
        controls=control or [], as_is=as_is, latents=latents, led=led, given=given,
    )  # fmt: skip
    show(facts, json_, title=folder)


def invert(
    run: RunArg,
    image: Annotated[list[str], typer.Argument(help="Pictures: paths or s3://...")],
    prompt: Shown = None,
    runs: Runs = "runs",
    out: Inverted = None,
    steps: Steps = 50,
    guidance_scale: Scale = 1.0,
    negative: Negative = "",
    size: Size = None,
    spacing: Spacing = None,
    refine: Refine = 0,
    weights: WeightsOpt = None,
    step: Step = None,
    json_: Json = False,
) -> None:
    """Find the noise that pictures would have been drawn from, by DDIM backwards, and try it.

    Writes `noise.safetensors`, from which `diptych sample --latents` draws, and what is drawn from
    it with the same steps: `00000.png`, ... The errors are of the latents, over their spread, and
    of the pictures in dB, beside what the first stage alone gives back.

    Examples:

        diptych invert t2i_tiny20 goldfish.jpg --prompt goldfish --steps 100

        diptych invert t2i_tiny20 a.png b.png --prompt "tabby cat" --refine 2 --out inverted/cats
    """
    from ..config import parse
    from ..pretrain.diffusion.sampling import Sampling
    from .draw import invert_pictures

    values = {"steps": steps, "guidance_scale": guidance_scale, "negative": negative}
    values |= {"spacing": spacing, "size": pixels(size) if size else None}
    how = parse(Sampling, values, source="invert")
    facts, folder = invert_pictures(
        run, runs, image, prompt or [""], how, refine=refine, out=out, weights=weights, step=step
    )
    show(facts, json_, title=folder)


def _led(classifier: str | None, scale: float, classes: list[str]) -> "Led | None":
    from .draw import Led

    if classes and not classifier:
        raise RecipeError("--class is what a classifier leads to: name its run with --classifier.")
    return Led(classifier, scale, tuple(classes)) if classifier else None


def _given(original: str | None, crop: str) -> "Given":
    from ..pretrain.diffusion.generate import Given

    left, _, top = crop.partition(",")
    if not (left.isdigit() and top.isdigit()):
        raise RecipeError(f"--crop {crop!r} is not LEFT,TOP in pixels. Write --crop 0,128.")
    return Given(original=pixels(original) if original else None, crop=(int(left), int(top)))
