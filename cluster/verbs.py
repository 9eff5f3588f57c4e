"""A verb that `__main__` puts beside the others: filling caches."""

import sys
from typing import Annotated

import typer

from ..data.cache import Dtype
from ..data.verbs import Json, bar, show
from .options import pixels


def data_precompute(
    url: Annotated[str, typer.Argument(help="Folder of indexed tars, or of their index.")],
    encoder: Annotated[str, typer.Option(help="KIND=WEIGHTS: a folder or a .safetensors file.")],
    out: Annotated[str, typer.Option(help="A folder for the cache: a path or s3://...")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Of the encoder: tokens=40 and so on.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Of the image in pixels: 64, or 96x64; several do.")
    ] = None,
    exact: Annotated[bool, typer.Option(help="Decode JPEGs in full.")] = False,
    text: Annotated[str, typer.Option(help="`txt`, or a field of the JSON record.")] = "txt",
    dtype: Annotated[Dtype, typer.Option(help="Of the arrays.")] = "float16",
    batch: Annotated[int, typer.Option(min=1, help="Samples encoded together.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Above 1 they are Ray actors.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of each Ray actor.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each worker.")] = 0,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to join.")] = None,
    json_: Json = False,
) -> None:
    """Encode a dataset once: latents, text states or region features, as tars to train from.

    Kinds: `autoencoder` (diffusers), `taef2`, `text` (transformers), `grid` (timm), `detector` (torchvision), `open_clip_image`; and hints, which
    need no weights: `canny`, `soft_edges`, `scribble`, `palette`, `layout`. The same command goes on after an interruption, and makes again only what changed.

    Examples:

        diptych data precompute ./photos --encoder text=./clip --set tokens=40 --out ./photos-text

        diptych data precompute ./photos --encoder canny --set low=50 --size 64 --out ./photos-canny

        diptych data precompute s3://b/photos --encoder autoencoder=./sd/vae --size 256 --out s3://b/latents --workers 8 --gpus 1 --ray auto
    """  # noqa: E501
    from ..config import kinds, plain
    from ..data import index
    from ..pretrain import encoders
    from ..pretrain.encoder import find_encoder
    from . import precompute as work
    from .shapes import Shape

    source = index.open_manifest(url)
    record = find_encoder(encoder, settings or [], kinds(encoders))
    sizes = [pixels(one) for one in size or ["64"]]
    spec = record.spec(sizes=sizes, exact=exact, text=text, dtype=dtype)
    shape = Shape(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    job = work.job(source, record, spec, out, batch=batch)
    with bar("precompute", source.samples) as told:
        found = work.run(job, shape, address=ray, told=lambda done: told(done.samples))
    facts = {"samples": sum(done.samples for done in found), "shards": len(found)}
    facts |= {"encoded now": sum(done.fresh for done in found)}
    facts |= {"unreadable": sum(done.faults for done in found)}
    show({**facts, **plain(spec)}, json_, title=out)
    for sentence in [f"{done.shard}: {fault}" for done in found for fault in done.first][:20]:
        print(sentence, file=sys.stderr)
