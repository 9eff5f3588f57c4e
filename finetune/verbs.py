"""Verbs of this floor: the answers of a dataset, and whether an export is what it says."""

import json
from pathlib import Path
from typing import Annotated

import typer


def data_answers(
    data: Annotated[str, typer.Argument(help="Folder of the training shards, indexed.")],
    least: Annotated[float, typer.Option(help="Leave out answers of less use.")] = 1,
    most: Annotated[int, typer.Option(min=2, help="Answers to keep.")] = 3129,
) -> None:
    """Print the answers of a dataset as a list that a recipe takes, the most useful first.

    They are normalised as in the VQA challenge, as `soft` wants them.

    Examples:

        diptych data answers s3://my-bucket/vqa/train --least 9
    """
    from ..data.index import open_manifest
    from .vocabulary import records, vocabulary

    found = vocabulary(records(open_manifest(data)), least=least, most=most)
    typer.echo(json.dumps(found, ensure_ascii=False))


def verify(
    export: Annotated[Path, typer.Argument(help="A .safetensors file, or a folder.")],
    base: Annotated[
        str | None,
        typer.Option(help="A finished run's URL, or a folder of diffusers, that it stands on."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Is an export what it was proven to be, and why would a file not load: keys, shapes, alpha.

    With --base the modules must be there, the base must be the one that it was trained on, and
    an export of ours computes its probe again in a clean process. Pickles are refused unread.

    Examples:

        diptych verify exported/my_lora --base s3://my-bucket/runs/t2i_tiny20

        diptych verify downloaded.safetensors --base ./stable-diffusion
    """
    from ..data.verbs import show
    from .verify import verify as look
    from .verify_base import open_base, prove_again

    found = open_base(base) if base else None
    verdict = look(export, found.account() if found else None)
    verdict.require()
    again = prove_again(export, found) if found and export.is_dir() else None
    facts = {
        "layout": verdict.layout,
        "tensors": verdict.tensors,
        "stored proof": verdict.proven or "none",
        "proven again": again["max_difference"] if again else "no",
        "notes": "; ".join(verdict.notes) or "none",
    }
    show(facts, json_, title=str(export))
