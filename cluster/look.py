"""Verbs that look at what a finished vision-language run can do: `caption`, `retrieve`, `search`.

`__main__` puts them beside the others.
"""

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..data.verbs import Json, bar, console, show
from ..errors import RecipeError
from .options import RunArg, Runs, WeightsOpt

Data = Annotated[str | None, typer.Option(help="Other data than the recipe's test data.")]
Extra = Annotated[
    list[str] | None, typer.Option(help="meteor or spice, by pycocoevalcap and Java; repeat it.")
]
Penalty = Annotated[
    float, typer.Option(help="Of beam search: above 0 for long texts, below for short ones.")
]
References = Annotated[
    str | None, typer.Option(help="`txt` or a JSON field: a text or a list of them.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")]


def caption(
    run: RunArg,
    image: Annotated[
        list[str] | None, typer.Option(help="A picture to describe, instead of data; repeat it.")
    ] = None,
    data: Data = None,
    how: Annotated[
        Literal["beam", "greedy", "nucleus"], typer.Option(help="How words are chosen.")
    ] = "beam",
    beams: Annotated[int, typer.Option(min=1, help="Of beam search.")] = 5,
    length_penalty: Penalty = 1.0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of nucleus sampling.")] = 0.9,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of nucleus sampling.")] = 0,
    references: References = None,
    extra: Extra = None,
    out: Annotated[str | None, typer.Option(help="A .jsonl file for the captions.")] = None,
    limit: Limit = None,
    weights: WeightsOpt = None,
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Describe pictures: files, or a test set, with BLEU, ROUGE-L and CIDEr-D.

    Samples whose picture is the same are described once and scored against all their texts.

    Examples:

        diptych caption my-captioner --image holiday.jpg --image s3://my-bucket/cat.png

        diptych caption my-captioner --data s3://my-bucket/coco/test --out captions.jsonl --json

        diptych caption my-captioner --how nucleus --share 0.8 --limit 100 --extra meteor
    """
    from ..finetune import gallery
    from ..finetune.metrics.captions import score_captions
    from ..finetune.score import finished
    from .jobs import find

    chance = {"share": share, "temperature": temperature}
    decoder = _decoder(how, beams, length_penalty, seed, chance)
    if image and data:
        raise RecipeError("--image and --data: say one of them.")
    if image:
        _caption_files(find(run, runs), image, decoder, out, weights, json_)
        return
    found = finished(find(run, runs), data=data, weights=weights)
    samples = min(limit or found.test.samples, found.test.samples)
    with bar("caption", samples) as told:
        written = gallery.captioned(found, decoder, field=references, limit=limit, told=told)
    texts, theirs = [w.text for w in written], [w.references for w in written]
    scores = score_captions(texts, theirs, extra or [])
    _keep([{"image": w.key, "text": w.text, "references": w.references} for w in written], out)
    if not json_:
        _say([(w.key, w.text) for w in written[:5]], False)
    facts = {"step": found.checkpoint.step, "weights": found.weights, "pictures": len(written)}
    show({**facts, **scores}, json_, title=found.place.name)


def retrieve(
    run: RunArg,
    data: Data = None,
    rerank: Annotated[
        int, typer.Option(min=0, help="Have the matching head order the best so many.")
    ] = 0,
    every_pair: Annotated[
        bool, typer.Option(help="Have the matching head judge every pair: slow, needs no towers.")
    ] = False,
    references: References = None,
    limit: Limit = None,
    weights: WeightsOpt = None,
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Score image-text retrieval both ways: R@1, R@5, R@10 and the median rank.

    Samples whose picture is the same count as one picture with several right texts;
    --references names a field that holds all of them. Each text's picture is in memory at once:
    0.15 MB at 224 pixels.

    Examples:

        diptych retrieve my-two-stream --data s3://my-bucket/flickr30k/test --rerank 20

        diptych retrieve my-uniter --every-pair --limit 200 --json

        diptych retrieve my-two-stream --data s3://my-bucket/coco/test --references captions
    """
    from ..data.batch import joined
    from ..finetune import gallery
    from ..finetune.retrieve import score_retrieval
    from ..finetune.score import finished
    from .jobs import find

    if rerank and every_pair:
        raise RecipeError("--rerank and --every-pair: say one of them.")
    found = finished(find(run, runs), data=data, weights=weights)
    parts = list[Any]()
    with bar("read", min(limit or found.test.samples, found.test.samples)) as told:
        for batch in found.batches(limit, gallery.ROWS):
            parts.append(batch)
            told(batch.rows)
    test = joined(parts)
    same = gallery.pictures(found.test, limit)
    if references:
        texts = gallery.references(found.test, references, limit)
        test = gallery.with_texts(test, found.text, same, texts)
    group_N = gallery.groups(same, test.keys)
    pictures = int(group_N.max()) + 1
    total = pictures * test.rows if every_pair else test.rows
    with bar("judge" if every_pair else "embed", total) as told:
        scores = score_retrieval(found.task, test, group_N, rerank, pairs=every_pair, told=told)
    facts = {"step": found.checkpoint.step, "weights": found.weights}
    facts |= {"pictures": pictures, "texts": test.rows}
    show({**facts, **scores}, json_, title=found.place.name)


def search(
    run: RunArg,
    query: Annotated[str | None, typer.Option(help="A text to find pictures of.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture file to find texts for.")] = None,
    finds: Annotated[
        Literal["image", "text"] | None,
        typer.Option(help="Compare with pictures or texts; by default the other kind."),
    ] = None,
    data: Data = None,
    top: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 12,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("search.html"),
    limit: Limit = None,
    weights: WeightsOpt = None,
    runs: Runs = "runs",
    json_: Json = False,
) -> None:
    """Find the samples nearest to a text or a picture; one self-contained HTML page shows them.

    Examples:

        diptych search my-two-stream --query "a red circle" --data s3://my-bucket/photos

        diptych search my-two-stream --image cat.jpg --finds image --top 30 --out cats.html
    """
    from ..data import storage
    from ..finetune import gallery
    from ..finetune import search as work
    from ..finetune.score import finished
    from .jobs import find

    if (query is None) == (image is None):
        raise RecipeError("Say what to search for: --query TEXT or --image FILE, one of them.")
    found = finished(find(run, runs), data=data, weights=weights)
    if image is not None:
        asked, asks = gallery.files([image], found.run, found.text), "image"
    else:
        asked, asks = gallery.sentence(query or "", found.run, found.text), "text"
    finds = finds or ("text" if asks == "image" else "image")
    total = min(limit or found.test.samples, found.test.samples)
    with bar("search", total) as told:
        hits = work.nearest(found, asked, asks, finds=finds, top=top, limit=limit, told=told)
    rows = work.shown(found.test, hits)
    said = {"what": "pictures" if finds == "image" else "texts", "total": f"{total:,} samples"}
    said |= {"url": found.test.url.removesuffix("/index"), "run": found.place.name}
    storage.write(str(out), work.page(query or image or "", image, rows, **said).encode())
    if json_:
        kept = [{name: row.get(name) for name in ("name", "score", "text")} for row in rows]
        typer.echo(json.dumps({"page": str(out.absolute()), "hits": kept}, ensure_ascii=False))
        return
    _say([(f"{row['score']:.4f}  {row['name']}", row.get("text", "")) for row in rows], False)
    console.print(str(out.absolute()), soft_wrap=True, highlight=False)


def _decoder(
    how: str, beams: int, length_penalty: float, seed: int, chance: dict[str, float]
) -> Any:
    import torch

    from ..finetune import decode

    if how == "greedy":
        return decode.greedy
    if how == "beam":
        return functools.partial(decode.beam, beams=beams, length_penalty=length_penalty)
    draws = torch.Generator().manual_seed(seed)
    return functools.partial(decode.nucleus, **chance, generator=draws)


def _caption_files(
    place: Any, paths: list[str], decoder: Any, out: str | None, weights: Any, json_: bool
) -> None:
    from ..finetune import gallery
    from ..finetune.caption import captions
    from ..finetune.score import opened

    run, text, _, task = opened(place, weights)
    lines = captions(task, text, gallery.files(paths, run, text), decoder)
    written = list(zip(paths, lines, strict=True))
    _keep([{"image": path, "text": line} for path, line in written], out)
    _say(written, json_)


def _say(lines: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"image": a, "text": b} for a, b in lines], ensure_ascii=False))
        return
    for name, line in lines:
        console.print(f"{name}: {line}", soft_wrap=True, highlight=False, markup=False)


def _keep(rows: list[dict[str, Any]], out: str | None) -> None:
    """Writes a JSON line a caption, where a file is asked for."""
    from ..data import storage

    if out:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        storage.write(out, "".join(lines).encode())
