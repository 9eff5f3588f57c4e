"""The demo: the whole of Diptych on real data, a real bucket and a real cluster, on one machine."""

import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ..config import override, plain
from ..data import easyvqa, index, storage, tokens
from ..data.make import words
from ..data.pack import pack, scattered
from ..errors import RunError
from ..finetune.parts import KINDS
from ..finetune.picture import draw
from ..finetune.recipes import vqa_easy
from ..finetune.score import finished, majority, predictions, score
from ..finetune.ship import ship
from ..pretrain.recipes import EASY, vlp_easy
from ..pretrain.run import Run, parse_run
from ..pretrain.rundir import RunDir
from . import ledger
from .bucket import serve
from .launch import cluster
from .shapes import SHAPES
from .train import prepare, run_on
from .worker import open_plan

BUCKET = "diptych-demo"
RUNS = f"s3://{BUCKET}/runs"


class Row(NamedTuple):
    """One row of the demo's table."""

    model: str
    accuracy: float
    steps: int
    train_s: float
    evaluate_s: float


BLIND_STEPS = 300
"""Steps of the blind controls; their accuracy no longer moves after half of that."""


def tell(home: Path, console: Console, *, quick: bool = False, seed: int = 0) -> None:
    """Packs, streams, pretrains, fine-tunes, compares, exports and proves; prints one table.

    Args:
        home: where the bucket's bytes, the export and the picture go; earlier runs there are
            gone on with, not repeated.
        console: where it is told.
        quick: a tenth of the steps.
        seed: of every run.
    """
    began = time.monotonic()
    with serve(home / "bucket", BUCKET):
        _say(console, "1/6", f"a real S3 server holds s3://{BUCKET}; packing easy-VQA into it")
        fill(console)
        runs = recipes(quick=quick, seed=seed)
        with cluster(None, SHAPES["pair"]):
            for number, (name, run) in enumerate(runs.items()):
                _say(console, "2/6", f"run {number + 1} of {len(runs)}: {name}")
                _train(run, console)
        _say(console, "3/6", "evaluating on the official test questions")
        rows = _evaluate(runs, console)
        _say(console, "4/6", "checking the ledger of the first run")
        console.print(_ledger(runs["pretraining"]), highlight=False)
        _say(console, "5/6", "exporting, and proving the export in a clean process")
        proof = _export(runs["this model"], home / "export")
        worst = max(proof["max_difference"].values())
        console.print(f"proven: largest difference {worst:g} in process {proof['process']}")
        _say(console, "6/6", "drawing")
        picture = _draw(runs, home / "demo.png")
    _table(console, rows, seed)
    minutes = (time.monotonic() - began) / 60
    peak = (
        sum(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        / 2**20
    )
    console.print(f"{minutes:.1f} minutes; peak memory of driver and largest child {peak:.1f} GiB")
    console.print(f"export: {home / 'export'}   bucket: diptych demo --serve", soft_wrap=True)
    console.print(str(picture.absolute()), soft_wrap=True, highlight=False)


def serve_again(home: Path, console: Console) -> None:
    """Serves the demo's bucket until Ctrl-C, and says how other verbs reach it.

    Raises:
        RunError: there was no demo here.
    """
    if not (home / "bucket").exists():
        raise RunError(f"{home} holds no demo. Run `diptych demo` first.")
    with serve(home / "bucket", BUCKET) as environment:
        file = home / "env"
        file.touch(mode=0o600)
        file.write_text(
            "".join(f"export {k}={v}\n" for k, v in environment.items())
            + f"export DIPTYCH_RUNS={RUNS}\n"
        )
        console.print(f"serving s3://{BUCKET}; in another shell: [bold]source {file}[/] and then")
        console.print(
            "  diptych jobs\n  diptych ledger vlp_easy --steps 0:50\n"
            "  diptych evaluate vqa_easy\n  diptych logs vqa_easy",
            highlight=False,
        )
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def fill(console: Console) -> None:
    """Puts easy-VQA, its tokenizer and its index into the bucket, unless they are there."""
    for split in ("train", "test"):
        if storage.exists(f"{EASY}/{split}/index/manifest.json"):
            continue
        storage.delete(f"{EASY}/{split}")
        samples = easyvqa.samples(split)
        urls = pack(scattered(samples), f"{EASY}/{split}", per_shard=2000)
        manifest = index.build(urls)
        console.print(
            f"{split}: {manifest.samples} samples, {len(urls)} shards, "
            f"{manifest.bytes / 1e6:.0f} MB, digest {manifest.digest}",
            highlight=False,
        )
        if split == "train":
            texts = [text for _, members in samples for text in words(members)]
            storage.write(f"{EASY}/tokenizer.json", tokens.learn(texts, 500).encode())


def recipes(*, quick: bool, seed: int) -> dict[str, Run]:
    """The demo's runs by the name of their row."""
    slow = 10 if quick else 1

    def tuned(name: str, **changes: Any) -> Run:
        settings = [f"{path.replace('__', '.')}={value}" for path, value in changes.items()]
        values = override(plain(vqa_easy()), [f"name={name}", f"seed={seed}", *settings])
        values["steps"] = max(20, values["steps"] // slow)
        return parse_run(values, KINDS, source=name)

    first = plain(vlp_easy()) | {"seed": seed, "steps": vlp_easy().steps // slow}
    return {
        "pretraining": parse_run(first, KINDS, source="vlp_easy"),
        "this model": tuned("vqa_easy", start_from=f"{RUNS}/vlp_easy"),
        "from scratch": tuned("vqa_scratch"),
        "question only": tuned("vqa_question_only", model__streams="text", steps=BLIND_STEPS),
        "image only": tuned("vqa_image_only", model__streams="image", steps=BLIND_STEPS),
    }


def _say(console: Console, number: str, text: str) -> None:
    console.rule(f"[bold]{number}[/] {text}", align="left")


def _train(run: Run, console: Console) -> None:
    place, data = prepare(run, SHAPES["pair"], f"{RUNS}/{run.name}")
    began = time.monotonic()
    run_on(run, SHAPES["pair"], place, data, console=console)
    if not place.json("time.json"):
        place.put("time.json", {"seconds": time.monotonic() - began})


def _evaluate(runs: dict[str, Run], console: Console) -> list[Row]:
    rows: list[Row] = []
    for name, run in runs.items():
        place, began = RunDir(f"{RUNS}/{run.name}"), time.monotonic()
        found = finished(place)
        scores = score(found)
        trained = place.json("time.json")["seconds"]
        if name == "pretraining":
            right, wrong = scores["mlm.accuracy"], scores["shuffled.mlm.accuracy"]
            console.print(
                f"MLM accuracy on test statements: {right:.1%} with the right image, "
                f"{wrong:.1%} with shuffled images (pretraining took {trained:.0f} s)",
                highlight=False,
            )
            rows.append(Row("majority answer", majority(found), 0, 0.0, 0.0))
        else:
            seconds = time.monotonic() - began
            rows.append(Row(name, scores["vqa.accuracy"], run.steps, trained, seconds))
    return sorted(rows, key=lambda row: -row.accuracy)


def _ledger(run: Run) -> str:
    """Reads the first epoch's ledger back, and says what it holds."""
    place = RunDir(f"{RUNS}/{run.name}")
    plan = open_plan(run)
    steps = min(run.steps, int(plan.steps_per_epoch))
    lines = list(ledger.lines(place, plan, 0, steps))
    distinct = len({(line.shard, line.key) for line in lines})
    checked = ledger.verify(place, lines)
    return (
        f"steps 0:{steps}: {len(lines)} samples, {distinct} distinct of {plan.manifest.samples}; "
        f"{checked} slices as the ranks recorded them"
    )


def _export(run: Run, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)  # an earlier demo's
    return ship(finished(RunDir(f"{RUNS}/{run.name}")), "diptych", out)


def _draw(runs: dict[str, Run], out: Path) -> Path:
    found = finished(RunDir(f"{RUNS}/{runs['this model'].name}"))
    batch = next(found.batches(limit=24, rows=24))
    curves = {
        name: RunDir(f"{RUNS}/{run.name}").rows("metrics.jsonl") for name, run in runs.items()
    }
    shown = ("pretraining", "this model", "from scratch")
    return draw(out, {name: curves[name] for name in shown}, batch, predictions(found, batch))


def _table(console: Console, rows: list[Row], seed: int) -> None:
    table = Table(title=f"easy-VQA, official test questions, seed {seed}")
    for column in ("model", "accuracy", "fine-tune steps", "train s", "evaluate s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        style = "bold" if row.model == "this model" else ""
        cells = (row.model, f"{row.accuracy:.1%}", str(row.steps))
        table.add_row(*cells, f"{row.train_s:.0f}", f"{row.evaluate_s:.0f}", style=style)
    console.print(table)
