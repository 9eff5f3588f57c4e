"""Named recipes: listed, described, and each a run that can be planned."""

import inspect
import json
import math
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import torch
from typer.testing import CliRunner

from diptych.__main__ import app
from diptych.config import from_yaml, to_yaml
from diptych.data import easyvqa, storage, tokens
from diptych.data.index import Manifest
from diptych.data.pack import Sample
from diptych.errors import RecipeError, StorageError
from diptych.finetune import presets
from diptych.finetune import recipes as finetuning
from diptych.finetune.parts import KINDS
from diptych.finetune.recipes import RECIPES, find
from diptych.pretrain import presets as published
from diptych.pretrain import recipes as pretraining
from diptych.pretrain import stage_recipes as stages
from diptych.pretrain.adapter import adapt
from diptych.pretrain.run import Run, parse_run

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


def named(module: ModuleType) -> dict[str, Callable[[], Run]]:
    """The functions of a module that take nothing and return a run."""
    functions = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    return {
        name: value
        for name, value in functions.items()
        if not inspect.signature(value).parameters and get_type_hints(value)["return"] is Run
    }


LARGE = {*named(published), *named(presets), *named(stages)} - {"vlp_tiny", "autoencoder_tiny"}
PLANNED = [name for name in RECIPES if name not in LARGE]


def test_the_table_is_complete_and_sorted() -> None:
    modules = (pretraining, published, finetuning, presets, stages)
    assert {k: v for module in modules for k, v in named(module).items()} == RECIPES
    assert list(RECIPES) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_called_what_its_run_is_called(name: str) -> None:
    assert RECIPES[name].__name__ == RECIPES[name]().name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_command_machine_time_and_number(name: str) -> None:
    said = inspect.getdoc(RECIPES[name]) or ""
    assert re.search(rf"diptych train (?:\S+/)?{name}\b", said)  # a script may write its file
    assert re.search(r"\d+ (?:CPU cores?|GPUs?|nodes?)\b", said)
    assert re.search(r"\d+ (?:minutes|hours|days)\b|time: not measured", said)
    assert re.search(r"[Ee]xpected.*(?:\d+(?:\.\d+)? %|not measured)", said)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_written_to_yaml_is_the_same_recipe(name: str, tmp_path: Any) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(RECIPES[name]()), encoding="utf-8")
    assert find(str(file), []) == find(name, []) == RECIPES[name]()
    values = from_yaml(file.read_bytes(), source=name)
    assert parse_run(values, KINDS, source=name) == RECIPES[name]()
    assert find(str(file), ["steps=7"]).steps == 7


def test_an_unknown_recipe_names_the_near_one() -> None:
    with pytest.raises(RecipeError, match=r"unknown 'vqa_easi'\. Did you mean 'vqa_easy'\?"):
        find("vqa_easi", [])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_built(name: str) -> None:
    """On no device: the large ones have more parameters than a test should hold."""
    run = RECIPES[name]()
    text = tokens.from_text(tokens.learn(["a red circle"], 100), run.model.tokens)
    with torch.device("meta"):
        task = run.task(text)
    assert set(task.heads) == {objective.kind for objective in run.objectives}


@pytest.mark.parametrize("name", PLANNED)
def test_a_recipe_can_be_planned(
    name: str, samples: Samples, dataset: Dataset, tmp_path: Any
) -> None:
    manifest = dataset([samples(50), samples(30, first=50)])
    storage.write(str(tmp_path / "tokenizer.json"), tokens.learn(["a red circle"], 100).encode())
    here = [f"--set=data.train={tmp_path}/set", f"--set=data.tokenizer={tmp_path}/tokenizer.json"]
    batch = min(80, RECIPES[name]().batch)
    here += [f"--set=batch={batch}"]
    done = CliRunner().invoke(app, ["plan", name, *here, "--json"])
    if RECIPES[name]().start_from:  # what it starts from is not there: told after the facts
        assert isinstance(done.exception, StorageError), done.output
    else:
        assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    run = RECIPES[name]().model_copy(update={"batch": batch})
    with torch.device("meta"):
        task = run.task(tokens.load(f"{tmp_path}/tokenizer.json", run.model.tokens))
        adapt(task, run.adapters)
    assert facts["parameters"] == sum(p.numel() for p in task.parameters())
    assert facts["samples"] == 80
    assert facts["data digest"] == manifest.digest
    assert facts["epochs"] == pytest.approx(run.steps * run.batch / 80, rel=0.01)
    assert facts["micro-batch"] * facts["workers"] * facts["accumulation"] == run.batch
    assert facts["checkpoints"] == math.ceil(run.steps / run.checkpoint_steps)


def test_the_answers_are_those_of_the_data() -> None:
    assert easyvqa.answers() == finetuning.ANSWERS
