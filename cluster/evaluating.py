"""`diptych evaluate`: a published checkpoint against test data, and the images that it draws."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.verbs import Json, bar, show
from ..errors import RecipeError
from .options import RunArg, Runs, WeightsOpt

if TYPE_CHECKING:
    from ..finetune.appraise import Panel
    from ..finetune.exhibit import Hung
    from ..finetune.judge import Network
    from ..finetune.score import Finished
    from .shapes import Shape

Text = str | None
Data = Annotated[Text, typer.Option(help="Other test data than the recipe's.")]
By = Annotated[Text, typer.Option(help="Also apart by this field of the records.")]
Limit = Annotated[int | None, typer.Option(help="Only so many samples of it.")]
Step = Annotated[int | None, typer.Option(help="Of a checkpoint; the newest.")]
Samples = Annotated[int, typer.Option(help="Images to draw and judge, of denoisers.")]
Prompts = Annotated[Text, typer.Option(help="Dataset whose texts are drawn; the test data.")]
Steps = Annotated[int, typer.Option(help="Of the sampler.")]
Scale = Annotated[float, typer.Option(help="s; 1 is none.")]
Sampler = Annotated[Text, typer.Option(help="As of `diptych sample`.")]
Eta = Annotated[float, typer.Option(help="Of DDIM.")]
Seed = Annotated[int, typer.Option(help="Of the images.")]
Features = Annotated[
    list[str] | None, typer.Option(help="KIND=WEIGHTS[,name=value]: distances in its features.")
]
Classifier = Annotated[Text, typer.Option(help="A finished run with a vqa head, which is asked.")]
Ask = Annotated[list[str] | None, typer.Option(help="QUESTION=FIELD: what is asked and right.")]
Reals = Annotated[int | None, typer.Option(help="Real images to compare with.")]
Workers = Annotated[int, typer.Option(min=1, help="Above 1 they are Ray tasks.")]
Cpus = Annotated[int, typer.Option(min=1, help="CPUs of each Ray task.")]
Gpus = Annotated[int, typer.Option(min=0, max=1, help="GPUs of each.")]
Ray = Annotated[Text, typer.Option(help="Address of a Ray cluster to join.")]


def evaluate(
    run: RunArg,
    runs: Runs = "runs",
    data: Data = None,
    limit: Limit = None,
    by: By = None,
    weights: WeightsOpt = None,
    step: Step = None,
    samples: Samples = 0,
    prompts: Prompts = None,
    steps: Steps = 50,
    guidance_scale: Scale = 5.0,
    sampler: Sampler = None,
    eta: Eta = 0.0,
    seed: Seed = 0,
    features: Features = None,
    classifier: Classifier = None,
    ask: Ask = None,
    reals: Reals = None,
    workers: Workers = 1,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    ray: Ray = None,
    json_: Json = False,
) -> None:
    """Score a published checkpoint on test data, with right and with shuffled images.

    With --samples, a denoiser also draws the texts of the test data; the images are kept in the
    run's folder and judged in the features that you name, and by a classifier that you ask. The
    same command goes on after an interruption.

    Examples:

        diptych evaluate s3://my-bucket/runs/vqa_easy --json

        diptych evaluate vqa_rad --by answer_type

        diptych evaluate ldm --samples 500 --classifier vqa --ask "what color is it?=color" --workers 4
    """  # noqa: E501
    from ..finetune.score import finished
    from .jobs import find
    from .shapes import Shape

    found = finished(find(run, runs), data=data, weights=weights, step=step)
    facts: dict[str, Any] = {"step": found.checkpoint.step, "weights": found.weights}
    if not samples:
        facts |= _scored(found, limit, by)
    elif by:
        raise RecipeError("--by sorts scores of test data, not images: leave out --samples.")
    else:
        how = {"steps": steps, "guidance_scale": guidance_scale, "eta": eta, "seed": seed}
        hung = _hung(found, prompts, samples, {**how, "sampler": sampler})
        judge = finished(find(classifier, runs), data=found.test.url) if classifier else None
        panel = _panel(features or [], judge, ask or [], reals, limit, gpus)
        shape = Shape(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        facts |= _judged(found, hung, panel, shape, ray)
    show(facts, json_, title=found.place.name)


def _scored(found: "Finished", limit: int | None, by: str | None) -> dict[str, Any]:
    from ..finetune.score import score

    with bar("evaluate", 2 * min(limit or found.test.samples, found.test.samples)) as told:
        scores = score(found, limit=limit, by=by, told=told)
    if idle := [o.kind for o in found.run.objectives if f"{o.kind}.loss" not in scores]:
        return {**scores, "nothing to judge": f"{', '.join(idle)}: no sample has a target of it"}
    return scores


def _hung(found: "Finished", prompts: str | None, samples: int, how: dict[str, Any]) -> "Hung":
    from ..config import parse
    from ..finetune.exhibit import Hung

    values = {"prompts": prompts or found.test.url, "samples": samples, "how": how}
    return parse(Hung, values, source="evaluate")


def _panel(
    features: list[str],
    classifier: "Finished | None",
    ask: list[str],
    reals: int | None,
    limit: int | None,
    gpus: int,
) -> "Panel":
    from ..finetune.appraise import Panel
    from ..finetune.judge import question

    return Panel(
        networks=[_network(each, gpus) for each in features],
        classifier=classifier,
        questions=[question(each) for each in ask],
        reals=reals,
        losses=limit,
    )


def _judged(
    found: "Finished", hung: "Hung", panel: "Panel", shape: "Shape", ray: str | None
) -> dict[str, Any]:
    from ..finetune.appraise import appraise
    from .drawing import draw

    with bar("draw", hung.samples) as told:
        url = draw(found, hung, shape, address=ray, told=told)
    with bar("judge", None) as said:
        return appraise(found, hung, url, panel, told=lambda what: said(1))


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
