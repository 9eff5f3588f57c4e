"""Verbs of this machine: `up`, `join` and `down`."""

from typing import Annotated

import typer
from rich.console import Console

console = Console(stderr=False)
Cpus = Annotated[int | None, typer.Option(min=0, help="CPUs to offer; by default all.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs to offer; by default all.")]


def up(
    ip: Annotated[
        str | None, typer.Option(help="Of this machine, as other nodes reach it; Ray finds one.")
    ] = None,
    port: Annotated[int, typer.Option(help="That other nodes join.")] = 6379,
    dashboard_host: Annotated[
        str, typer.Option(help="Where the dashboard listens, and with it the job API.")
    ] = "127.0.0.1",
    dashboard_port: Annotated[int, typer.Option(help="Of the dashboard.")] = 8265,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Start a Ray cluster here that only who has its token can use.

    The token is in ~/.ray/auth_token (or where RAY_AUTH_TOKEN_PATH says), readable by you alone.
    Its workers get this shell's environment, so export the bucket's credentials first.

    Examples:

        diptych up

        diptych up --ip 10.0.0.1
    """
    from . import node

    found = node.up(
        ip=ip,
        port=port,
        dashboard_host=dashboard_host,
        dashboard_port=dashboard_port,
        cpus=cpus,
        gpus=gpus,
    )
    say = [
        f"a cluster at {found.dashboard}, log {found.log}",
        f"more nodes:  diptych join {found.gcs}    (with the same token file)",
        "a run:       diptych submit RECIPE --cluster auto",
        "the end:     diptych down",
    ]
    for line in say:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def join(
    head: Annotated[str, typer.Argument(metavar="HOST:PORT", help="What `up` printed.")],
    ip: Annotated[str | None, typer.Option(help="Of this machine, as the others reach it.")] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """Make this machine a node of a cluster. Copy the token file from its head first.

    Examples:

        diptych join 10.0.0.1:6379
    """
    from . import node

    found = node.join(head, ip=ip, cpus=cpus, gpus=gpus)
    console.print(f"a node of {found.gcs}, log {found.log}", highlight=False, soft_wrap=True)


def down() -> None:
    """End the node that `up` or `join` started here, and all that runs on it.

    Examples:

        diptych down
    """
    from . import node

    console.print(node.down(), highlight=False)
