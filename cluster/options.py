"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import RecipeError

Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override: path=value, such as optim.lr=3e-4")
]
Runs = Annotated[
    str, typer.Option("--runs", envvar="DIPTYCH_RUNS", help="Folder of runs: a path or s3://...")
]
RunArg = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's URL, or its name below --runs.")
]
RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A named recipe or a YAML file.")]
WeightsOpt = Annotated[
    Literal["ema", "raw"] | None,
    typer.Option(help="Moving average, or last weights; the average where there is one."),
]
ShapeOpt = Annotated[
    str, typer.Option(help="A named shape (one, pair, gpu, node8) or a YAML file.")
]
ShapeSet = Annotated[
    list[str] | None, typer.Option("--shape-set", help="Override: workers=4 and so on.")
]
RunName = Annotated[str | None, typer.Option("--run", help="Name or URL of the run.")]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--start-from",
        metavar="RUN",
        help="Begin a new run from another one's weights alone: new optimiser, schedule and data.",
    ),
]
ClusterOpt = Annotated[
    str,
    typer.Option(
        help="`local` (a process of its own here), `auto` (the cluster of `diptych up`), "
        "http(s)://HOST:8265, or HOST:6379."
    ),
]
Priority = Annotated[int, typer.Option(help="In the line for the cluster; higher goes first.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure-cluster", help="Use even a cluster that asks nobody for a token."),
]


def amount(value: float | None) -> float | None:
    """What is divided by, or counted with: no zero, no infinity.

    Raises:
        BadParameter: it is one.
    """
    if value is not None and not 1e-6 <= value <= 1e12:
        raise typer.BadParameter(f"{value:g} is not between 1e-6 and 1e12")
    return value


def price(value: float | None) -> float | None:
    """Money: nothing, too.

    Raises:
        BadParameter: it is less, or endless.
    """
    return amount(value) if value else value


def drawing(path: Path | None) -> Path | None:
    """A file to draw into, by its ending.

    Raises:
        BadParameter: it has another ending.
    """
    if path is not None and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} ends in none of .png, .svg and .pdf")
    return path


def pixels(text: str) -> tuple[int, int]:
    """(width, height) of `64` or `96x64`.

    Raises:
        RecipeError: it is no size.
    """
    width, _, height = text.partition("x")
    height = height or width
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise RecipeError(f"--size {text!r} is not a size in pixels. Write --size 64 or 96x64.")
    return int(width), int(height)
