"""The training loop: take a batch, step, tell, now and then keep. It knows no machine."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..data.batch import Batch
from ..data.draws import row_key
from .optim import lr_at
from .run import Run
from .task import Losses


class Engine(Protocol):
    """What runs a task on some machine: one process, or one of many ranks."""

    rank: int

    def step(self, batch: Batch, lr: float) -> Losses:
        """Forward, backward and one optimiser step on this rank's rows."""
        ...

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all ranks."""
        ...

    def save(self, step: int, *, wait: bool) -> None:
        """Keeps the state after `step` steps; returns before it is stored unless `wait`."""
        ...


@dataclass
class Tally:
    """Sums and counts since the last report; kept on the device until then."""

    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict[str, list[torch.Tensor]])

    def add(self, losses: Losses) -> None:
        """Adds one step."""
        for name, (total, count) in losses.sums.items():
            values = torch.stack([total.double(), count.double()])
            self.sums[name] = [*self.sums.get(name, []), values]

    def totals(self) -> list[float]:
        """Every (sum, count), flat, in the order of the names; empties the tally."""
        flat = [torch.stack(values).sum(0) for _, values in sorted(self.sums.items())]
        return torch.cat(flat).tolist()


def train(
    engine: Engine,
    batches: Iterable[tuple[int, Batch]],
    run: Run,
    *,
    report: Callable[[dict[str, float]], None],
    told: Callable[[int, Batch], None] = lambda step, batch: None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Trains on the batches and returns the number of steps done so far in the run.

    Args:
        engine: the task on its machine.
        batches: (step, this rank's rows); steps count from 0.
        run: the recipe.
        report: told of every `log_steps` steps: step, lr, and each loss and accuracy over all
            ranks. Called on every rank with the same numbers.
        told: told of every batch before it is trained on; the ledger listens here.
        stopping: asked at every report; once any rank says yes, all keep a checkpoint and return.
    """
    tally, since, last = Tally(), time.perf_counter(), 0
    for step, batch in batches:
        told(step, batch)
        torch.manual_seed(row_key(run.seed, step, engine.rank))  # dropout; no state to save
        lr = lr_at(run.optim, step, run.steps)
        tally.add(engine.step(batch, lr))
        last = step + 1
        if last % run.log_steps and last < run.steps:
            continue
        names, now = sorted(tally.sums), time.perf_counter()
        *totals, stop = engine.sum([*tally.totals(), float(stopping())])
        tally = Tally()
        report(_row(last, lr, names, totals, (now - since)))
        since = now
        if last == run.steps or stop:
            engine.save(last, wait=True)
            return last
        if last % run.checkpoint_steps == 0:
            engine.save(last, wait=False)
    return last


def _row(
    step: int, lr: float, names: list[str], totals: list[float], seconds: float
) -> dict[str, float]:
    pairs = zip(names, totals[::2], totals[1::2], strict=True)
    means = {name: total / count for name, total, count in pairs if count}
    return {"step": step, "lr": lr, **means, "seconds": round(seconds, 4)}
