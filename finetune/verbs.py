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

    They are normalised as in the VQA challenge; the `vqa` head compares them so.

    Examples:

        diptych data answers s3://my-bucket/vqa/train --least 9
    """
    from ..data.index import open_manifest
    from .vocabulary import records, vocabulary

    found = vocabulary(records(open_manifest(data)), least=least, most=most)
    typer.echo(json.dumps(found, ensure_ascii=False))


def data_ngrams(
    data: Annotated[str, typer.Argument(help="Folder of the training shards, indexed.")],
    out: Annotated[str, typer.Option(help="File or URL to write, .json.")],
    references: Annotated[
        str | None,
        typer.Option(help="Field of the records with each image's captions; .txt by default."),
    ] = None,
) -> None:
    """Count in how many images' captions each n-gram occurs: the reward of `kind: scst` needs it.

    Images whose bytes are the same are one image with several captions.

    Examples:

        diptych data ngrams s3://my-bucket/coco/train --out s3://my-bucket/coco/ngrams.json
    """
    from ..data import storage
    from ..data.index import open_manifest
    from . import ngram_table

    found = ngram_table.count(ngram_table.captions(open_manifest(data), references))
    storage.write(storage.absolute(out), ngram_table.written(found))
    typer.echo(f"{out}: {len(found.having)} n-grams of the captions of {found.images} images")


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


def bring_in(
    source: Annotated[str, typer.Argument(help="A folder of diffusers, or a .safetensors file.")],
    run: Annotated[str, typer.Option("--run", help="Name or URL of the new run.")],
    runs: Annotated[str, typer.Option(envvar="DIPTYCH_RUNS", help="Folder of runs.")] = "runs",
    data: Annotated[
        str | None, typer.Option(help="Training data that its recipe is to name.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of CLIP's tokenizer, for a file that stands alone.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of its recipe: model.image_size=256.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take in a text-to-image model of others as a run: to sample, fine-tune, evaluate, export.

    A folder of StableDiffusionPipeline or LDMTextToImagePipeline, or one file of Stable Diffusion 1
    (CompVis' layout). Sizes are read there; tensors that are missing or left over are an error.
    Pickles are never opened.

    Examples:

        diptych import ./stable-diffusion-v1-5 --run sd15

        diptych import s3://my-bucket/sd15.safetensors --run sd15 --tokenizer ./clip-tokenizer

        diptych import exported/my_ldm --run again --runs s3://my-bucket/runs
    """
    from ..data import storage
    from ..data.verbs import show
    from ..pretrain.rundir import RunDir
    from .bring import bring

    url = run if "/" in run else f"{runs.rstrip('/')}/{run}"
    place = RunDir(storage.absolute(url))
    facts = bring(source, place, settings or [], data=data, words=tokenizer)
    show(facts, json_, title=place.name)
