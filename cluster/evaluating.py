"""`diptych evaluate`: a published checkpoint against test data, and the images that it draws."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..data.verbs import Json, bar, show
from ..errors import RecipeError

if TYPE_CHECKING:
    from ..finetune.judge import Network


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's URL, or its name.")],
    runs: Annotated[
        str, typer.Option("--runs", envvar="DIPTYCH_RUNS", help="Folder of runs.")
    ] = "runs",
    data: Annotated[str | None, typer.Option(help="Other test data than the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many samples of it.")] = None,
    weights: Annotated[
        Literal["ema", "raw"] | None,
        typer.Option(help="Moving average, or last weights; the average where there is one."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Of a checkpoint; the newest.")] = None,
    samples: Annotated[int, typer.Option(help="Images to draw and judge, of denoisers.")] = 0,
    prompts: Annotated[
        str | None, typer.Option(help="Dataset whose texts are drawn; the test data.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="s; 1 is none.")] = 5.0,
    sampler: Annotated[str | None, typer.Option(help="As of `diptych sample`.")] = None,
    eta: Annotated[float, typer.Option(help="Of DDIM.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    features: Annotated[
        list[str] | None, typer.Option(help="KIND=WEIGHTS[,name=value]: distances in its features.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="A finished run with a vqa head, which is asked.")
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(help="QUESTION=FIELD: what it is asked, what is right.")
    ] = None,
    reals: Annotated[int | None, typer.Option(help="Real images to compare with.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Above 1 they are Ray tasks.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each Ray task.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
    json_: Json = False,
) -> None:
    """Score a published checkpoint on test data, with right and with shuffled images.

    With --samples, a denoiser also draws images from the texts of the test data, which are kept
    in the run's folder and judged: distances to real images in the features that you name
    (`taef2`, `grid`, `clip`, `inception`), copies of training images, and a classifier's answers.
    The same command goes on after an interruption.

    Examples:

        diptych evaluate s3://my-bucket/runs/vqa_easy --json

        diptych evaluate my-ldm --samples 1000 --guidance-scale 3 --features taef2=taef2_encoder.safetensors

        diptych evaluate my-ldm --samples 500 --classifier my-vqa --ask "what color is it?=color" --workers 4
    """  # noqa: E501
    from ..finetune.appraise import Panel, appraise
    from ..finetune.exhibit import Hung
    from ..finetune.judge import question
    from ..finetune.score import finished, score
    from ..pretrain.diffusion.sampling import Sampling
    from .drawing import draw
    from .jobs import find
    from .shapes import Shape

    found = finished(find(run, runs), data=data, weights=weights, step=step)
    facts = {"step": found.checkpoint.step, "weights": found.weights}
    if not samples:
        with bar("evaluate", 2 * min(limit or found.test.samples, found.test.samples)) as told:
            facts |= score(found, limit=limit, told=told)
        show(facts, json_, title=found.place.name)
        return
    panel = Panel(
        networks=[_network(each, gpus) for each in features or []],
        classifier=finished(find(classifier, runs), data=found.test.url) if classifier else None,
        questions=[question(each) for each in ask or []],
        reals=reals,
        losses=limit,
    )
    how = Sampling(steps=steps, guidance_scale=guidance_scale, sampler=sampler, eta=eta, seed=seed)
    hung = Hung(prompts=prompts or found.test.url, samples=samples, how=how)
    shape = Shape(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    with bar("draw", samples) as told:
        url = draw(found, hung, shape, address=ray, told=told)
    with bar("judge", None) as said:
        facts |= appraise(found, hung, url, panel, told=lambda what: said(1))
    show(facts, json_, title=found.place.name)


def _network(text: str, gpus: int) -> "Network":
    from ..config import kinds
    from ..finetune.judge import network
    from ..pretrain import encoders
    from ..pretrain.encoder import find_encoder

    first, *settings = text.split(",")
    if "=" not in first and first not in kinds(encoders):
        raise RecipeError(f"--features {text!r} is not KIND=WEIGHTS, as taef2=enc.safetensors.")
    record = find_encoder(first, settings, kinds(encoders))
    return network(record, "cuda" if gpus else "cpu")
