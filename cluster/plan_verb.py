"""`diptych plan`."""

from pathlib import Path
from typing import Annotated

import typer

from ..data.verbs import Json, show
from . import options as opt


def plan(
    recipe: opt.RecipeArg,
    settings: opt.Set = None,
    shape: opt.ShapeOpt = "pair",
    shape_settings: opt.ShapeSet = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(callback=opt.amount, help="Of a worker's GPU (or of a worker): does it fit?"),
    ] = None,
    step_seconds: Annotated[
        float | None,
        typer.Option(callback=opt.amount, help="Of one step, from a trial: gives the time."),
    ] = None,
    upload_mb: Annotated[
        float, typer.Option(callback=opt.amount, help="MB/s to the bucket, of each worker.")
    ] = 100.0,
    price_hour: Annotated[
        float | None, typer.Option(callback=opt.price, help="Money for an hour of one worker.")
    ] = None,
    price_gb: Annotated[
        float | None, typer.Option(callback=opt.price, help="Money for a GB read from the bucket.")
    ] = None,
    price_requests: Annotated[
        float | None,
        typer.Option(callback=opt.price, help="Money for 1000 requests to the bucket."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(callback=opt.drawing, help="Write the learning rate as a picture: lr.png."),
    ] = None,
    json_: Json = False,
) -> None:
    """What a run would be: parameters, memory, steps, shards, requests, time, cost. Starts nothing.

    Ends with code 2 and the reason where the run cannot be.

    Examples:

        diptych plan vlp_easy

        diptych plan my.yaml --set batch=4096 --shape node8 --memory-gb 80

        diptych plan my.yaml --step-seconds 0.6 --price-hour 2.5 --price-gb 0.09 --plot lr.png
    """
    from ..finetune.recipes import find
    from . import curve, preflight
    from .costs import Rates
    from .shapes import find_shape

    run, found = find(recipe, settings or []), find_shape(shape, shape_settings or [])
    rates = Rates(step_seconds, upload_mb, price_hour, price_gb, price_requests)
    facts, wrong = preflight.plan(run, found, rates=rates, memory_gb=memory_gb)
    show(facts, json_, title=f"plan of {recipe}")
    settled = run.model_copy(update={"steps": facts["steps"], "epochs": None})
    if not json_:
        typer.echo(curve.terminal(settled))
    if plot:
        curve.picture(settled, plot)
    if wrong:
        raise wrong
