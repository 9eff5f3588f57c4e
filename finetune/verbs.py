"""`diptych data answers`: the answer vocabulary of a dataset, for a recipe."""

import json
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
