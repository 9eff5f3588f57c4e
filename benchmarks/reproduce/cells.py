"""The cells of the ablation: what is pretrained, with what it is compared, and how one is run."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from diptych.config import plain
from diptych.data import easyvqa, index, storage, tokens
from diptych.data.draws import row_key
from diptych.data.loader import Loader, once
from diptych.data.make import words
from diptych.data.pack import pack, scattered
from diptych.data.plan import Plan
from diptych.data.tokens import Text
from diptych.finetune.parts import KINDS
from diptych.finetune.recipes import vqa_easy
from diptych.pretrain.evaluate import evaluate, shuffled
from diptych.pretrain.optim import adamw, lr_at
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, parse_run
from diptych.pretrain.task import Task

ROWS = {
    "mlm": ["mlm"],
    "+itm": ["itm", "mlm"],
    "+mrm": ["itm", "mrm", "mlm"],
    "+wra": ["itm", "mrm", "wra", "mlm"],
}
"""Objectives of a pretraining run, by the name of its row."""
SCRATCH, LONGER = "scratch", "scratch, all steps"
"""Without pretraining: as many fine-tuning steps, or as many steps altogether."""
SHARES = (10, 30, 100)
"""Per cent of the labels."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run: pretraining of a row (share 0), or the questions after it."""

    share: int
    seed: int
    row: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.row.replace(' ', '-').replace(',', '')}-{self.share}-{self.seed}"


@dataclass(frozen=True)
class Sizes:
    """Steps of a run; everything else is in the recipes `vlp_easy` and `vqa_easy`."""

    pretrain: int
    tune: int
    test: int
    """Test samples that are scored."""


def cells(seeds: int) -> Iterator[Cell]:
    """All of them; pretraining before what starts from it, one seed after the other."""
    for seed in range(seeds):
        yield from (Cell(0, seed, row) for row in ROWS)
        for share in SHARES:
            yield from (Cell(share, seed, row) for row in (*ROWS, SCRATCH, LONGER))


def prepare(home: Path) -> None:
    """Packs easy-VQA, whole and in parts, unless it is there."""
    for split, share in (("test", 100), *(("train", share) for share in SHARES)):
        folder = home / "data" / f"{split}-{share}"
        if (folder / "index" / "manifest.json").exists():
            continue
        samples = [s for s in easyvqa.samples(split) if row_key("part", s[0]) % 100 < share]
        index.build(pack(scattered(samples), str(folder), per_shard=2000))
        if (split, share) == ("train", 100):
            texts = [text for _, members in samples for text in words(members)]
            storage.write(str(home / "data" / "tokenizer.json"), tokens.learn(texts, 500).encode())


def run(cell: Cell, home: Path, sizes: Sizes) -> dict[str, Any]:
    """Trains and scores a cell; keeps weights of pretraining below `home`."""
    recipe = _recipe(cell, home, sizes)
    text = tokens.load(recipe.data.tokenizer, recipe.model.tokens)
    torch.manual_seed(cell.seed)
    task = recipe.task(text)
    if cell.share and cell.row in ROWS:
        kept = load_file(home / "weights" / f"{Cell(0, cell.seed, cell.row).name}.safetensors")
        body = {name: value for name, value in kept.items() if name.startswith("model.")}
        told = task.load_state_dict(body, strict=False)
        assert not told.unexpected_keys
    began = time.perf_counter()
    train(task, recipe, text)
    found: dict[str, Any] = {**asdict(cell), "steps": recipe.steps, **asdict(sizes)}
    found["seconds"] = round(time.perf_counter() - began, 1)
    test = index.open_manifest(str(home / "data" / "test-100"))
    batches = list(once(test, text, recipe.rows, limit=sizes.test, batch=256))
    found |= evaluate(task, batches)
    wrong = evaluate(task, batches, change=shuffled)
    found |= {f"shuffled.{name}": value for name, value in wrong.items()}
    if not cell.share:
        (home / "weights").mkdir(exist_ok=True)
        state = {name: value.contiguous() for name, value in task.state_dict().items()}
        save_file(state, home / "weights" / f"{cell.name}.safetensors")
    return found


def train(task: Task, recipe: Run, text: Text) -> None:
    """A run on one process, without checkpoints: a cell is the smallest thing that is resumed."""
    plan = Plan(index.open_manifest(recipe.data.sources[0].url), recipe.seed, recipe.batch)
    optimiser = adamw(task.train(), recipe.optim)
    for step, batch in Loader(plan, text, recipe.rows, stop=recipe.steps, threads=1):
        for group in optimiser.param_groups:
            group["lr"] = lr_at(recipe.optim, step, recipe.steps)
        optimiser.zero_grad()
        task(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), recipe.optim.clip)
        optimiser.step()


def _recipe(cell: Cell, home: Path, sizes: Sizes) -> Run:
    values = json.loads(json.dumps(plain(vqa_easy() if cell.share else vlp_easy())))
    places = {"train": str(home / "data" / f"train-{cell.share or 100}")}
    places |= {"tokenizer": str(home / "data" / "tokenizer.json"), "test": None}
    values["data"] |= places
    values["model"] |= {"packed": True}
    steps = sizes.tune if cell.share else sizes.pretrain
    steps += sizes.pretrain if cell.row == LONGER else 0
    values |= {"seed": cell.seed, "steps": steps, "name": cell.name.replace("+", "")}
    if not cell.share:
        known = {part["kind"]: part for part in values["objectives"]} | {"wra": {"kind": "wra"}}
        values["objectives"] = [known[kind] for kind in ROWS[cell.row]]
    return parse_run(values, KINDS, source=cell.name)
