"""Textual inversion embeddings that `pipe.load_textual_inversion` reads: one file a word.

diptych export my_words --to embedding --out folder
pipe.load_textual_inversion("folder/toy.safetensors", token="<toy>")
"""

import re
from pathlib import Path
from typing import Any

from ...data.batch import Batch
from ...data.tokens import Text
from ...errors import ExportError
from ...pretrain.run import Run
from ...pretrain.task import Task
from .. import adapter_file as form
from ..clean_process import repeat
from ..grown import GrownWords, words_of
from ..target import new_folder

NAME = "embedding"
TAKES = "tokens alone"
ADAPTERS = True
READS = False


def require(run: Run) -> None:
    """Raises ExportError where something else than words was learned, or nothing."""
    kinds = [adapter.kind for adapter in run.adapters]
    if kinds != ["tokens"]:
        raise ExportError(
            f"{run.name} has the adapters {kinds}; an embedding holds new words ('tokens') alone. "
            "Export --to merged."
        )


def write(out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
    """Writes a file for each word and a README with `facts`.

    Raises:
        ExportError: the folder is in use.
    """
    new_folder(out)
    words: Any = words_of(task.model)
    assert isinstance(words, GrownWords)  # `require` refuses others
    told = {**form.account(NAME, run, task, []), "loader": "diffusers.load_textual_inversion"}
    calls: list[str] = []
    for word, row_D in zip(run.new_words, words.rows.detach().float(), strict=True):
        file = f"{re.sub(r'[^A-Za-z0-9-]+', '', word) or 'word'}.safetensors"
        if (out / file).exists():
            file = f"word-{run.new_words.index(word)}.safetensors"
        form.put(out / file, {word: row_D}, told)
        calls.append(f'pipe.load_textual_inversion("{file}", token="{word}")')
    call = "\n".join(["```python", *calls, "```"])
    (out / "README.md").write_text(form.card(run, NAME, call, facts, told))


def prove(out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
    """Has diffusers load each file into a tokenizer and a text encoder, and find the same vector.

    Raises:
        ExportError: it found another.
    """
    (out / "proof").mkdir(exist_ok=True)
    (out / "proof" / "tokenizer.json").write_text(text.tokenizer.to_str())
    return repeat(out, "clean_embedding.py")
