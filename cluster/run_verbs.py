"""Verbs of a run: train, submit, resume, jobs, logs, stop."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..data.verbs import Json
from . import options as opt

if TYPE_CHECKING:  # torch takes seconds
    from ..pretrain.run import Run
    from .shapes import Shape

console = Console(stderr=False)
Ray = Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")]


def train(
    recipe: opt.RecipeArg,
    settings: opt.Set = None,
    shape: opt.ShapeOpt = "pair",
    shape_settings: opt.ShapeSet = None,
    run: opt.RunName = None,
    runs: opt.Runs = "runs",
    start_from: opt.StartFrom = None,
    ray: Ray = None,
) -> None:
    """Train here, in the foreground; the same command goes on after an interruption.

    Examples:

        diptych train vlp_easy --runs s3://my-bucket/runs

        diptych train vqa_easy --start-from s3://my-bucket/runs/vlp_easy --set optim.lr=5e-4

        diptych train my.yaml --shape one --run trial-2
    """
    from .shapes import find_shape

    chosen, url = _chosen(recipe, settings, start_from, run, runs)
    _train(chosen, find_shape(shape, shape_settings or []), url, ray)


def submit(
    recipe: opt.RecipeArg,
    cluster: opt.ClusterOpt,
    settings: opt.Set = None,
    shape: opt.ShapeOpt = "pair",
    shape_settings: opt.ShapeSet = None,
    run: opt.RunName = None,
    runs: opt.Runs = "runs",
    start_from: opt.StartFrom = None,
    priority: opt.Priority = 0,
    insecure: opt.Insecure = False,
) -> None:
    """Train in the background, here or on a Ray cluster; see `jobs`, `logs`, `stop`.

    A cluster takes runs one after the other as there is room, those of higher priority first.
    This code travels to it as a wheel; credentials do not: its nodes need their own.

    Examples:

        diptych submit vlp_easy --cluster local

        diptych submit my.yaml --cluster auto --runs s3://my-bucket/runs

        diptych submit my.yaml --cluster https://ray.example.org --shape node8 --priority 5
    """
    from .shapes import find_shape

    chosen, url = _chosen(recipe, settings, start_from, run, runs)
    found = find_shape(shape, shape_settings or [])
    _submit(chosen, found, url, cluster, priority=priority, insecure=insecure)


def resume(
    run: opt.RunArg,
    runs: opt.Runs = "runs",
    cluster: Annotated[
        str | None, typer.Option(help="In the background, there; as `submit` takes it.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Other machines than it had: a named shape or a YAML file.")
    ] = None,
    shape_settings: opt.ShapeSet = None,
    priority: opt.Priority = 0,
    insecure: opt.Insecure = False,
    ray: Ray = None,
) -> None:
    """Go on with a run that stopped, failed or was lost, from its last checkpoint, to its end.

    Nothing is given but the run: recipe, data and shape are those in its folder. To begin another
    run from its weights, say `train ... --start-from RUN`.

    Examples:

        diptych resume my-run --runs s3://my-bucket/runs

        diptych resume s3://my-bucket/runs/my-run --cluster auto --shape-set workers=4
    """
    from ..finetune.parts import KINDS
    from . import jobs as work
    from .again import shape_again

    place = work.find(run, runs)
    chosen = place.recipe(KINDS)
    found = shape_again(place, chosen, shape, shape_settings or [])
    if cluster is None:
        _train(chosen, found, place.url, ray)
    else:
        _submit(chosen, found, place.url, cluster, priority=priority, insecure=insecure)


def jobs(runs: opt.Runs = "runs", json_: Json = False) -> None:
    """The runs of a folder and what they are doing, or their place in line.

    Examples:

        diptych jobs --runs s3://my-bucket/runs
    """
    from . import jobs as work

    rows = [line._asdict() for line in work.jobs(runs)]
    if json_:
        typer.echo(json.dumps(rows))
        return
    table = Table("run", "state", "step", "host", "pid", "note")
    for row in rows:
        step = f"{row['step']}/{row['steps']}"
        table.add_row(row["name"], row["state"], step, row["host"], str(row["pid"]), row["note"])
    console.print(table)


def logs(
    run: opt.RunArg,
    runs: opt.Runs = "runs",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> None:
    """What a run's driver and workers said; works after the machines are gone.

    Examples:

        diptych logs vlp_easy --follow
    """
    from . import jobs as work

    for line in work.logs(work.find(run, runs), follow=follow):
        typer.echo(line)


def stop(
    run: opt.RunArg,
    runs: opt.Runs = "runs",
    cluster: Annotated[
        str | None,
        typer.Option(help="End its job there by force, if it does not answer: no checkpoint."),
    ] = None,
    insecure: opt.Insecure = False,
) -> None:
    """End a run; it keeps a checkpoint and `resume` goes on from it. Of one that waits: its place.

    Examples:

        diptych stop vlp_easy

        diptych stop s3://my-bucket/runs/my-run --cluster https://ray.example.org
    """
    from . import jobs as work

    place = work.find(run, runs)

    def force() -> None:
        from . import remote

        remote.stop(remote.dashboard(cluster or ""), place, insecure=insecure)

    said = work.stop(place, force=force if cluster else None)
    console.print(said, highlight=False, soft_wrap=True)


def _chosen(
    recipe: str, settings: list[str] | None, start: str | None, run: str | None, runs: str
) -> tuple["Run", str]:
    """The recipe, and the URL of its run; `start`, too, may be the name of a run beside it."""
    from ..data import storage
    from ..finetune.recipes import find
    from .again import require_another, require_name

    if start and "/" not in start and not Path(start).exists():
        start = f"{runs.rstrip('/')}/{start}"
    settings = [*(settings or []), *([f"start_from={start}"] if start else [])]
    chosen = find(recipe, settings)
    url = run if run and "/" in run else f"{runs.rstrip('/')}/{run or chosen.name}"
    require_name(storage.name(url))
    require_another(chosen, storage.absolute(url))
    return chosen, url


def _train(run: "Run", shape: "Shape", url: str, ray: str | None) -> None:
    from . import train as training

    place = training.train(run, shape, url, console=console, address=ray)
    console.print(f"finished: {place.url}", highlight=False, soft_wrap=True)


def _submit(
    run: "Run", shape: "Shape", url: str, cluster: str, *, priority: int, insecure: bool
) -> None:
    if cluster == "local":
        from . import jobs as work

        place, pid = work.submit(run, shape, url)
        console.print(f"{place.url} runs as process {pid}", highlight=False, soft_wrap=True)
        return
    from ..pretrain.settle import settled
    from . import auth, remote
    from .train import prepare

    address = remote.dashboard(cluster)
    remote.client(address, insecure=insecure)  # before anything is written
    if auth.in_clear(address) and auth.headers():
        console.print(
            f"[yellow]the token goes to {address} unencrypted[/]: a tunnel or https hides it",
            highlight=False,
        )
    run = settled(run)
    place, _ = prepare(run, shape, url)
    said = remote.submit(run, place, address, priority=priority, insecure=insecure)
    console.print(f"{place.url} on {address}: {said}", highlight=False, soft_wrap=True)
