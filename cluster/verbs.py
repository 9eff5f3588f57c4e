"""Verbs that `__main__` puts beside the others: filling caches, drawing images."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..data.cache import Dtype
from ..data.verbs import Json, bar, show
from ..errors import RecipeError

Weights = Annotated[
    Literal["ema", "raw"] | None,
    typer.Option(help="Moving average, or last weights; the average where there is one."),
]
Control = Annotated[
    list[str] | None, typer.Option(help="RUN=PICTURE[@WEIGHT]: what steers; several add up.")
]
AsIs = Annotated[bool, typer.Option("--as-is", help="Pictures of --control are hints already.")]


def data_precompute(
    url: Annotated[str, typer.Argument(help="Folder of indexed tars, or of their index.")],
    encoder: Annotated[str, typer.Option(help="KIND=WEIGHTS: a folder or a .safetensors file.")],
    out: Annotated[str, typer.Option(help="A folder for the cache: a path or s3://...")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of the encoder: tokens=40 and so on.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Of the image in pixels: 64, or 96x64; several do.")
    ] = None,
    exact: Annotated[bool, typer.Option(help="Decode JPEGs in full.")] = False,
    text: Annotated[str, typer.Option(help="`txt`, or a field of the JSON record.")] = "txt",
    dtype: Annotated[Dtype, typer.Option(help="Of the arrays.")] = "float16",
    batch: Annotated[int, typer.Option(min=1, help="Samples encoded together.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Above 1 they are Ray actors.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each Ray actor.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each worker.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
    json_: Json = False,
) -> None:
    """Encode a dataset once: latents, text states or region features, as tars to train from.

    Kinds: `autoencoder` (diffusers), `taef2`, `text` (transformers), `grid` (timm); and hints, which
    need no weights: `canny`, `soft_edges`, `scribble`, `palette`, `layout`. The same command goes on after an interruption, and makes again only what changed.

    Examples:

        diptych data precompute ./photos --encoder text=./clip --set tokens=40 --out ./photos-text

        diptych data precompute ./photos --encoder canny --set low=50 --size 64 --out ./photos-canny

        diptych data precompute s3://b/photos --encoder autoencoder=./sd/vae --size 256 --out s3://b/latents --workers 8 --gpus 1 --ray auto
    """  # noqa: E501
    from ..config import kinds, plain
    from ..data import index
    from ..pretrain import encoders
    from ..pretrain.encoder import find_encoder
    from . import precompute as work
    from .shapes import Shape

    source = index.open_manifest(url)
    record = find_encoder(encoder, settings or [], kinds(encoders))
    sizes = [_size(one) for one in size or ["64"]]
    spec = record.spec(sizes=sizes, exact=exact, text=text, dtype=dtype)
    shape = Shape(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    job = work.job(source, record, spec, out, batch=batch)
    with bar("precompute", source.samples) as told:
        found = work.run(job, shape, address=ray, told=lambda done: told(done.samples))
    facts = {"samples": sum(done.samples for done in found), "shards": len(found)}
    facts |= {"encoded now": sum(done.fresh for done in found)}
    facts |= {"unreadable": sum(done.faults for done in found)}
    show({**facts, **plain(spec)}, json_, title=out)
    for sentence in [f"{done.shard}: {fault}" for done in found for fault in done.first][:20]:
        print(sentence, file=sys.stderr)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    height = height or width
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise RecipeError(f"--size {text!r} is not a size in pixels. Write --size 64 or 96x64.")
    return int(width), int(height)


def sample(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's URL, or its name below --runs.")
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; several are drawn together.")
    ] = None,
    runs: Annotated[str, typer.Option(envvar="DIPTYCH_RUNS", help="Folder of runs.")] = "runs",
    out: Annotated[Path | None, typer.Option(help="A folder; samples/RUN by default.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 50,
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="1 is none; the lecture's w is this minus 1.")
    ] = 5.0,
    negative: Annotated[str, typer.Option(help="What to be led away from.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Image i of a seed is always the same.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="WxH in pixels; by default as it was trained.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, ddpm, euler, heun, or a scheduler of diffusers.")
    ] = None,
    eta: Annotated[float, typer.Option(min=0, help="Of DDIM: 1 draws as DDPM does.")] = 0.0,
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None, typer.Option(help="Of the timesteps.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Dynamic thresholding of pixels: 0.995.")
    ] = None,
    weights: Weights = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the newest.")] = None,
    control: Control = None,
    as_is: AsIs = False,
    latents: Annotated[
        str | None, typer.Option(help="Noise to begin from: a file that `invert` wrote.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="RUN of a noisy_classifier that leads to --class.")
    ] = None,
    classifier_scale: Annotated[float, typer.Option(help="s of the lecture's Algorithm 1.")] = 1.0,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="For each prompt; by default the prompt.")
    ] = None,
    json_: Json = False,
) -> None:
    """Draw images from a diffusion run: PNG files and a grid, a row for each prompt.

    --control names runs of `diptych finetune control`, or the hint's kind where RUN is one itself.
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
    from .draw import Led, draw

    if class_ and not classifier:
        raise RecipeError("--class is what a classifier leads to: name its run with --classifier.")
    led = Led(classifier, classifier_scale, tuple(class_ or ())) if classifier else None
    guidance_scale = guidance_scale if prompt else 1.0  # the empty text, away from itself
    values = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler, "eta": eta}
    values |= {"seed": seed, "negative": negative, "spacing": spacing, "threshold": threshold}
    values |= {"size": _size(size) if size else None}
    how = parse(Sampling, values, source="sample")
    facts, folder = draw(
        run, runs, prompt or [], n, how, out=out, weights=weights, step=step,
        controls=control or [], as_is=as_is, latents=latents, led=led,
    )  # fmt: skip
    show(facts, json_, title=folder)


def invert(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's URL, or its name below --runs.")
    ],
    image: Annotated[list[str], typer.Argument(help="Pictures: paths or s3://...")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="What they show, one each or one for all.")
    ] = None,
    runs: Annotated[str, typer.Option(envvar="DIPTYCH_RUNS", help="Folder of runs.")] = "runs",
    out: Annotated[Path | None, typer.Option(help="A folder; inverted/RUN by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler; more restore better.")] = 50,
    guidance_scale: Annotated[
        float, typer.Option(min=0, help="1 is none, and what inverts well.")
    ] = 1.0,
    negative: Annotated[str, typer.Option(help="What to be led away from.")] = "",
    size: Annotated[
        str | None, typer.Option(help="WxH in pixels; by default as it was trained.")
    ] = None,
    spacing: Annotated[
        Literal["leading", "trailing", "linspace"] | None, typer.Option(help="Of the timesteps.")
    ] = None,
    refine: Annotated[
        int, typer.Option(min=0, help="Ask each step so often again: nearer to the exact inverse.")
    ] = 0,
    weights: Weights = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the newest.")] = None,
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
    values |= {"spacing": spacing, "size": _size(size) if size else None}
    how = parse(Sampling, values, source="invert")
    facts, folder = invert_pictures(
        run, runs, image, prompt or [""], how, refine=refine, out=out, weights=weights, step=step
    )
    show(facts, json_, title=folder)
