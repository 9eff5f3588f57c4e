"""One rank as it is usually written for torchrun: DDP, AdamW, `torch.save` to this disk.

Model, batches and rate are those of our run; the samples that a restart goes on with are too.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from diptych.benchmarks.recovery.diary import Diary
from diptych.config import from_yaml
from diptych.data import tokens
from diptych.data.loader import Loader
from diptych.finetune.parts import KINDS
from diptych.finetune.start import fresh_task
from diptych.pretrain.charts import open_plan
from diptych.pretrain.optim import adamw, lr_at
from diptych.pretrain.run import parse_run


def main(folder: Path, data: str) -> None:
    """Trains until it is told to stop."""
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    diary = Diary(folder / "diary")
    diary.write(f"pid {rank}", attempt, os.getpid())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run = parse_run(from_yaml((folder / "run.yaml").read_text(), source="run"), KINDS, source="run")
    text = tokens.load(run.data.tokenizer, run.model.tokens)
    task = fresh_task(run, text)
    optimiser = adamw(task, run.optim)
    file, start = folder / "checkpoint.pt", 0
    if file.exists():
        kept = torch.load(file, weights_only=True)
        task.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        start = kept["step"]
    model = DistributedDataParallel(task)
    plan, world = open_plan(run, data), dist.get_world_size()
    loader = Loader(plan, text, run.rows, rank=rank, world=world, start=start, stop=run.steps)
    for step, batch in loader:
        for group in optimiser.param_groups:
            group["lr"] = lr_at(run.optim, step, run.steps)
        model(batch).total.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), run.optim.clip)
        optimiser.step()
        optimiser.zero_grad()
        if rank == 0 and (step + 1) % run.checkpoint_steps == 0:
            state = {"model": task.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({**state, "step": step + 1}, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)
        if rank == 0:
            diary.write("step", attempt, step + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3])
