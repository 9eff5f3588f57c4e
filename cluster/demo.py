"""The demo: the whole of Diptych on real data, a real bucket and a real cluster, on one machine."""

import shutil
import signal
import time
from functools import partial
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
from .meter import Meter
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


PRETRAINING, OURS = "pretraining", "this model"
BLIND = "steps=300"
"""The blind controls' accuracy no longer moves after half of these steps (docs/LOG.md)."""


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
    with serve(home / "bucket", BUCKET), Meter() as meter:
        _say(console, "1/6", f"a real S3 server holds s3://{BUCKET}; packing easy-VQA into it")
        fill(console)
        story = Story(f"{RUNS}-quick" if quick else RUNS, quick=quick, seed=seed)
        with cluster(None, SHAPES["pair"]):
            for number, (name, run) in enumerate(story.runs.items()):
                _say(console, "2/6", f"run {number + 1} of {len(story.runs)}: {name}")
                place, data = prepare(run, SHAPES["pair"], story.place(name).url)
                run_on(run, SHAPES["pair"], place, data, console=console)
        _say(console, "3/6", "evaluating on the official test questions")
        rows = _evaluate(story, console)
        _say(console, "4/6", "checking the ledger of the first run")
        console.print(_ledger(story), highlight=False)
        _say(console, "5/6", "exporting, and proving the export in a clean process")
        proof = _export(story, home / "export")
        worst = max(proof["max_difference"].values())
        console.print(f"proven: largest difference {worst:g} in process {proof['process']}")
        _say(console, "6/6", "drawing")
        picture = _draw(story, home / "demo.png")
    _table(console, rows, seed)
    minutes = (time.monotonic() - began) / 60
    gigabytes = meter.peak_bytes / 2**30
    console.print(f"{minutes:.1f} minutes; peak memory of all processes {gigabytes:.1f} GiB")
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
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)


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


class Story:
    """The demo's runs, by the name of their row in the table."""

    def __init__(self, root: str, *, quick: bool, seed: int) -> None:
        self.root = f"{root}-seed{seed}" if seed else root
        slow = 10 if quick else 1
        first = plain(vlp_easy()) | {"seed": seed, "steps": vlp_easy().steps // slow}
        tuned = partial(_tuned, seed=seed, slow=slow)
        self.runs: dict[str, Run] = {
            PRETRAINING: parse_run(first, KINDS, source="vlp_easy"),
            OURS: tuned("vqa_easy", [f"start_from={self.root}/vlp_easy"]),
            "from scratch": tuned("vqa_scratch", []),
            "question only": tuned("vqa_question_only", ["model.streams=text", BLIND]),
            "image only": tuned("vqa_image_only", ["model.streams=image", BLIND]),
        }

    def place(self, name: str) -> RunDir:
        """The folder of a run."""
        return RunDir(f"{self.root}/{self.runs[name].name}")


def _tuned(name: str, settings: list[str], *, seed: int, slow: int) -> Run:
    values = override(plain(vqa_easy()), [f"name={name}", f"seed={seed}", *settings])
    values["steps"] = max(20, values["steps"] // slow)
    return parse_run(values, KINDS, source=name)


def _say(console: Console, number: str, text: str) -> None:
    console.rule(f"[bold]{number}[/] {text}", align="left")


def _evaluate(story: Story, console: Console) -> list[Row]:
    rows: list[Row] = []
    for name, run in story.runs.items():
        began, found = time.monotonic(), finished(story.place(name))
        scores = score(found, control=name == PRETRAINING)
        trained = sum(row["seconds"] for row in story.place(name).rows("metrics.jsonl"))
        if name == PRETRAINING:
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


def _ledger(story: Story) -> str:
    """Reads the first epoch's ledger back, and says what it holds."""
    place, run = story.place(PRETRAINING), story.runs[PRETRAINING]
    plan = open_plan(run)
    steps = min(run.steps, int(plan.steps_per_epoch))
    lines = list(ledger.lines(place, plan, 0, steps))
    distinct = len({(line.shard, line.key) for line in lines})
    checked = ledger.verify(place, lines)
    return (
        f"steps 0:{steps}: {len(lines)} samples, {distinct} distinct of {plan.samples}; "
        f"{checked} slices as the ranks recorded them"
    )


def _export(story: Story, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)  # an earlier demo's
    return ship(finished(story.place(OURS)), "diptych", out)


def _draw(story: Story, out: Path) -> Path:
    found = finished(story.place(OURS))
    batch = next(found.batches(limit=24, rows=24))
    shown = (PRETRAINING, OURS, "from scratch")
    curves = {name: story.place(name).rows("metrics.jsonl") for name in shown}
    return draw(out, curves, batch, predictions(found, batch))


def _table(console: Console, rows: list[Row], seed: int) -> None:
    table = Table(title=f"easy-VQA, official test questions, seed {seed}")
    for column in ("model", "accuracy", "fine-tune steps", "train s", "evaluate s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        style = "bold" if row.model == "this model" else ""
        cells = (row.model, f"{row.accuracy:.1%}", str(row.steps))
        table.add_row(*cells, f"{row.train_s:.0f}", f"{row.evaluate_s:.0f}", style=style)
    console.print(table)
