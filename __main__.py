"""The command line: `diptych VERB --help` shows examples.

Exit codes: 0 done; 1 a fault of ours; 2 something you can mend, said in one sentence;
130 stopped by Ctrl-C, with a checkpoint kept.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import __version__
from .cluster import node_verbs, plan_verb, run_verbs
from .cluster.draw_verbs import invert, sample
from .cluster.evaluating import evaluate
from .cluster.finetuning import app as finetune_app
from .cluster.look import caption, retrieve, search
from .cluster.options import RunArg, Runs, WeightsOpt
from .cluster.verbs import data_precompute
from .data.verbs import Json, show
from .data.verbs import app as data_app
from .errors import DiptychError, Stopped
from .finetune.verbs import bring_in, data_answers, data_ngrams, verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
data_app.command("precompute")(data_precompute)
data_app.command("answers")(data_answers)
data_app.command("ngrams")(data_ngrams)
app.command()(verify)
app.command("import")(bring_in)
app.add_typer(data_app, name="data")
app.add_typer(finetune_app, name="finetune")
for verb in (plan_verb.plan, run_verbs.train, run_verbs.submit, run_verbs.resume):
    app.command()(verb)
for verb in (run_verbs.jobs, run_verbs.logs, run_verbs.stop):
    app.command()(verb)
for verb in (node_verbs.up, node_verbs.join, node_verbs.down):
    app.command()(verb)
app.command("evaluate")(evaluate)
app.command("sample")(sample)
app.command("invert")(invert)
console = Console(stderr=False)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"diptych {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Pretrain and fine-tune vision-language models from tars in a bucket."""


@app.command()
def demo(
    home: Annotated[Path, typer.Option(help="Where the demo keeps its bucket.")] = Path(".diptych"),
    serve: Annotated[
        bool, typer.Option(help="Only serve the bucket of an earlier demo, until Ctrl-C.")
    ] = False,
    quick: Annotated[
        bool, typer.Option(help="A tenth of the steps: does everything work?")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of all runs.")] = 0,
) -> None:
    """Everything at once on real data: pack, stream, pretrain, fine-tune, compare, export, prove.

    Examples:

        diptych demo

        diptych demo --quick

        diptych demo --serve        # the bucket again, for the other verbs
    """
    from .cluster import demo as story

    if serve:
        story.serve_again(home, console)
    else:
        story.tell(home, console, quick=quick, seed=seed)


@app.command()
def export(
    run: RunArg,
    to: Annotated[str, typer.Option(help="Target: diptych, transformers, ...; docs/export.md.")],
    out: Annotated[str, typer.Option(help="A new local folder.")],
    runs: Runs = "runs",
    weights: WeightsOpt = None,
    data: Annotated[
        str | None, typer.Option(help="Prove on this data instead of its test data.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a run's model for use elsewhere, and prove in a clean process that it is the same.

    Examples:

        diptych export vqa_easy --to diptych --out exported/vqa_easy

        diptych export my_vilt --to transformers --out exported/my_vilt --data s3://my-bucket/val
    """
    from .cluster.jobs import find
    from .finetune.score import unread
    from .finetune.ship import ship
    from .finetune.target import local_folder

    folder = local_folder(out)
    proof = ship(unread(find(run, runs), data=data, weights=weights), to, folder)
    show({"folder": str(folder), **proof}, json_, title="proof")


@app.command()
def ledger(
    run: RunArg,
    steps: Annotated[str, typer.Option(help="A:B, from step A up to but not including B.")],
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Which samples made which step: step, rank, shard, key.

    Examples:

        diptych ledger vlp_easy --steps 0:50
    """
    from .cluster import ledger as book
    from .cluster.jobs import find
    from .cluster.worker import open_plan
    from .errors import RecipeError, RunError
    from .finetune.parts import KINDS

    first, _, last = steps.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise RecipeError(f"--steps {steps!r} is not A:B with A <= B. Write --steps 0:50.")
    place = find(run, runs)
    recipe = place.recipe(KINDS)
    if int(first) >= recipe.steps:
        raise RunError(f"{place.url} has steps 0 to {recipe.steps - 1}; --steps {steps} has none.")
    chart = open_plan(recipe, place.json("run.json").get("data"))
    lines = list(book.lines(place, chart, int(first), min(int(last), recipe.steps)))
    checked = book.verify(place, lines)
    for line in lines:
        typer.echo(json.dumps(line._asdict()) if json_ else "\t".join(map(str, line[:4])))
    slices = len({(line.step, line.rank) for line in lines})
    print(f"{len(lines)} samples; {checked} of {slices} slices recorded by ranks", file=sys.stderr)


@data_app.command("replay")
def data_replay(
    run: RunArg,
    step: Annotated[int, typer.Option(help="Counts from 0, as in the metrics minus one.")],
    out: Annotated[Path, typer.Option(help="A folder for the batch.")] = Path("replay"),
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Rebuild the exact batch of a step, for a look at a loss spike.

    Examples:

        diptych data replay vlp_easy --step 812 --out spike
    """
    from .cluster.jobs import find
    from .cluster.replay import replay

    show(replay(find(run, runs), step, out), json_, title=f"step {step}")


for _verb in (caption, retrieve, search):
    app.command()(_verb)


def main() -> None:
    """Runs the command line; what a user can mend ends in one sentence and exit code 2."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(args=[arg for arg in sys.argv[1:] if arg != "--debug"], prog_name="diptych")
    except Stopped as stopped:
        print(stopped, file=sys.stderr, end="\n" if str(stopped) else "")
        sys.stdout.flush()
        os._exit(130)  # all is closed; to take torch and Ray apart again would need two seconds
    except DiptychError as err:
        if debug:
            raise
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
