"""`diptych data ...`: pack, index, check and look at tar shards; and how verbs show things."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from ..errors import RecipeError

app = typer.Typer(no_args_is_help=True, help="Pack, index, check and look at tar shards.")
console = Console()

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


@app.command("pack")
def data_pack(
    source: Annotated[str, typer.Argument(help="Pictures, a table or a dataset; see below.")],
    out: Annotated[str, typer.Argument(help="A folder for the tars: a path or s3://...")],
    per_shard: Annotated[int | None, typer.Option(min=1, help="Samples, or 1000.")] = None,
    shard_mb: Annotated[float | None, typer.Option(min=0.001, help="MB of a shard.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="Pixels, if larger.")] = None,
    shortest: Annotated[int | None, typer.Option(min=1, help="Pixels, if larger.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of shrunk pictures.")] = 92,
    validation: Annotated[float, typer.Option(min=0, max=0.99, help="Share to split off.")] = 0,
    image: Annotated[str | None, typer.Option(help="Column of paths or bytes.")] = None,
    caption: Annotated[str | None, typer.Option(help="Column of texts.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of unique ids.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that a table's paths are in.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hugging Face set or easy-vqa.")] = None,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Unreadable share.")] = 0.05,
    vocabulary: Annotated[int, typer.Option(min=0, help="Ids of the tokenizer; 0: none.")] = 8000,
    threads: Annotated[int, typer.Option(min=1, help="Pictures read at once.")] = 4,
    json_: Json = False,
) -> None:
    """Pack pictures and captions into tars, index them, and learn a tokenizer of their texts.

    SOURCE is a folder of pictures with `photo.txt` or `photo.json` beside `photo.jpg` or a
    `metadata.jsonl` or `.csv` (`file_name`, `text`); a .csv, .tsv, .jsonl or .parquet table; a
    Hugging Face dataset on disk; or `easy-vqa`. What cannot be read is listed in `skipped.jsonl`
    beside the tars. A call that was interrupted goes on when it is repeated.

    Examples:

        diptych data pack ./photos s3://my-bucket/photos --longest 1024

        diptych data pack ./table.csv s3://my-bucket/set --image path --caption alt_text

        diptych data pack ./saved-dataset ./set --split train --validation 0.02 --shard-mb 300
    """
    from .make import Making, make
    from .pack import Shape
    from .pictures import Fit
    from .sources.tables import Columns

    samples = per_shard or (None if shard_mb else 1000)
    how = Making(
        shape=Shape(samples=samples, megabytes=shard_mb, skips=max_skipped),
        fit=Fit(longest, shortest, quality),
        columns=Columns(image, caption, key),
        split=split,
        root=root,
        validation=validation,
        vocabulary=vocabulary,
        threads=threads,
    )
    with bar("pack", None) as told:
        made = make(source, out, how, told=told)
    _show_made(made, json_)


@app.command("index")
def data_index(
    urls: Annotated[list[str], typer.Argument(help="Tars, folders, {00..99} or globs.")],
    out: Annotated[str | None, typer.Option(help="Folder of the index, if not beside.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Shards read at once.")] = 4,
) -> None:
    """Read each tar once and write what lies where; finished shards are not read again.

    Examples:

        diptych data index s3://my-bucket/photos

        diptych data index 's3://my-bucket/photos/{00000..00099}.tar'

        diptych data index 's3://theirs/set/*.tar' --out s3://mine/set-index
    """
    from . import index, storage

    found = storage.shards(urls)
    before = index.known(out or index.beside(found[0]))
    with bar("index", len(found)) as told:
        manifest = index.build(found, out, threads=threads, done=lambda shard: told(1))
    console.print(_summary(manifest), highlight=False, soft_wrap=True)
    if gone := sorted({shard.url for shard in before} - {shard.url for shard in manifest.shards}):
        print(
            f"no longer in this index: {len(gone)} shards, such as {storage.shown(gone[0])}. "
            "An index holds the shards that one call names; name all to have all.",
            file=sys.stderr,
        )


@app.command("check")
def data_check(
    url: Annotated[str, typer.Argument(help="Folder of indexed tars, or of their index.")],
    threads: Annotated[int, typer.Option(min=1, help="Shards read at once.")] = 4,
    most: Annotated[int, typer.Option(min=0, help="Faults shown of each reason.")] = 5,
    json_: Json = False,
) -> None:
    """Read every byte and compare it with the index; exit code 2 if anything is wrong.

    Every sample is counted once, as good or under its reason. A replaced shard (another size or
    etag than was indexed) is counted beside them: its samples may still be the same.

    Examples:

        diptych data check s3://my-bucket/photos

        diptych data check s3://my-bucket/photos --json --most 1000
    """
    from . import index
    from .check import REPLACED, check

    manifest = index.open_manifest(url)
    with bar("check", len(manifest.shards)) as told:
        found = check(manifest, lambda shard: told(1), threads=threads, most=most)
    facts = {"good": found.good, **found.reasons, "of": manifest.samples}
    facts |= {f"{REPLACED}s": found.replaced} if found.replaced else {}
    show({**facts, "faults": found.faults} if json_ else facts, json_, title=url)
    for reason, sentence in sorted(found.faults, key=lambda fault: fault[0]):
        print(f"{reason}: {sentence}", file=sys.stderr)
    if found.reasons or found.replaced:
        raise typer.Exit(2)


@app.command("preview")
def data_preview(
    url: Annotated[str, typer.Argument(help="Folder of indexed tars, or of their index.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("preview.html"),
    count: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 48,
    buckets: Annotated[str | None, typer.Option(help="Sizes, as 256x256,224x288.")] = None,
) -> None:
    """Write one self-contained HTML page: samples, sizes, buckets, and what was skipped and why.

    Examples:

        diptych data preview s3://my-bucket/photos --out photos.html

        diptych data preview s3://my-bucket/photos --buckets 256x256,224x288,288x224
    """
    from . import index, storage
    from .buckets import Buckets
    from .preview import page

    table = Buckets(sizes=_sizes(buckets)) if buckets else None
    storage.write(str(out), page(index.open_manifest(url), count, table).encode())
    console.print(str(out.absolute()), soft_wrap=True, highlight=False)


@app.command("quarantine")
def data_quarantine(
    url: Annotated[str, typer.Argument(help="Folder of indexed tars, or of their index.")],
    sample: Annotated[str, typer.Argument(help="SHARD/KEY, as the ledger prints it.")],
    reason: Annotated[str, typer.Option(help="Kept with it.")],
) -> None:
    """Leave a sample out of all runs from their next start; its place in the batch stays empty.

    Examples:

        diptych data quarantine s3://my-bucket/photos 00007.tar/000123 --reason "loss spike"
    """
    from . import index
    from .holes import quarantine, split

    manifest = index.open_manifest(url)
    hole = quarantine(manifest, *split(manifest, sample), reason)
    console.print(f"in quarantine: {hole.shard}/{hole.key}", highlight=False, soft_wrap=True)


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    found = re.findall(r"([1-9]\d*)x([1-9]\d*)(?:,|$)", text)
    if ",".join(f"{width}x{height}" for width, height in found) != text:
        raise RecipeError(f"--buckets {text!r} is no list of sizes. Write 256x256,224x288.")
    return tuple((int(width), int(height)) for width, height in found)


def _show_made(made: Any, as_json: bool) -> None:
    if as_json:
        parts = {
            part or "all": {
                "url": made.manifests[part].url.removesuffix("/index"),
                "digest": made.manifests[part].digest,
                **{name: getattr(packed, name) for name in ("inputs", "samples", "kept")},
                "shards": len(packed.urls),
                "skipped": dict(packed.skipped),
            }
            for part, packed in made.packed.items()
        }
        typer.echo(json.dumps({"parts": parts, **made.notes}))
        return
    for part, packed in made.packed.items():
        console.print(_summary(made.manifests[part]), highlight=False, soft_wrap=True)
        for reason, count in packed.skipped.most_common():
            console.print(f"  {count} skipped: {reason}", highlight=False, soft_wrap=True)
    for name, left_out in made.notes.items():
        if left_out:
            console.print(f"  {name}: {left_out}", highlight=False, soft_wrap=True, markup=False)


def _summary(manifest: Any) -> str:
    megabytes = f"{manifest.bytes / 1e6:,.1f} MB"
    shards = f"{len(manifest.shards)} shards, {megabytes}"
    return f"{manifest.samples} samples in {shards}, digest {manifest.digest}: {manifest.url}"


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, on a terminal only; yields what advances it."""
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def show(facts: dict[str, Any], as_json: bool, *, title: str) -> None:
    """A table of facts, or one line of JSON."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown)
    console.print(table)
