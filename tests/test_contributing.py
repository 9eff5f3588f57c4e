"""The worked additions in CONTRIBUTING.md, applied to a copy of the tree and used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TRAIN = """
import torch
from diptych.data import tokens
from diptych.data.batch import Batch
from diptych.finetune.parts import KINDS
from diptych.pretrain.run import parse_run

recipe = {
    "name": "try", "objectives": [{"kind": "bow"}], "batch": 4,
    "model": {"kind": "vlp", "width": 16, "depth": 1, "heads": 2, "stem": 4, "image_size": 16},
    "data": {"train": "nowhere", "tokenizer": "nowhere"},
}
run = parse_run(recipe, KINDS, source="try")
captions = ["a red circle", "a blue circle", "no square", "a red square"]
text = tokens.from_text(tokens.learn(captions, 100), run.model.tokens)
ids, real = text.encode(captions)
images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
batch = Batch(
    keys=tuple("abcd"), draws_B=torch.arange(4), image_BCHW=images, tokens_BL=ids, real_BL=real,
    fields=({},) * 4,
)
task = run.task(text)
optimiser = torch.optim.AdamW(task.parameters(), 1e-2)
losses = []
for _ in range(30):
    found = task(batch)
    optimiser.zero_grad()
    found.total.backward()
    optimiser.step()
    losses.append(float(found.total))
assert losses[-1] < 0.5 * losses[0], losses
"""


ADAPT = """
import torch
from diptych.data import tokens
from diptych.finetune.parts import KINDS
from diptych.pretrain.adapter import adapt
from diptych.pretrain.run import parse_run

recipe = {
    "name": "try", "objectives": [{"kind": "ddpm"}], "start_from": "/runs/base",
    "adapters": [{"kind": "norms", "on": ["denoiser"]}],
    "model": {"kind": "unet", "channels": [8, 16], "groups": 4, "heads": 2, "width": 16},
    "data": {"train": "nowhere", "tokenizer": "nowhere"},
}
run = parse_run(recipe, KINDS, source="try")
text = tokens.from_text(tokens.learn(["a red circle"], 100), run.model.tokens)
task = run.task(text)
adapt(task, run.adapters, text)
trained = [name for name, param in task.named_parameters() if param.requires_grad]
assert trained and all("norm" in name and ".unet." in name for name in trained), trained
assert task.base
"""


@pytest.mark.parametrize(("file", "use"), [("bow", TRAIN), ("norms", ADAPT)])
def test_an_addition_is_one_file_and_one_line(file: str, use: str, tmp_path: Path) -> None:
    tree = tmp_path / "diptych"
    subprocess.run(["git", "checkout-index", "-a", f"--prefix={tree}/"], cwd=ROOT, check=True)
    blocks = [b.split("```")[0] for b in (ROOT / "CONTRIBUTING.md").read_text().split("```diff\n")]
    (diff,) = [block for block in blocks[1:] if f"/{file}.py\n" in block]
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, text=True, check=True)
    added = [line for line in diff.splitlines() if line.startswith("+") and "+++" not in line]
    listed = [line for line in added if line.startswith(f"+from .{file}")]
    assert len(listed) == 1
    done = subprocess.run(
        [sys.executable, "-c", use],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
