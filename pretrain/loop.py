"""The training loop: take a batch, step, tell, now and then keep. It knows no machine."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal, Protocol

import torch

from ..data.batch import Batch
from ..data.draws import row_key
from ..errors import NonFiniteError
from . import packing
from .diffusion.sheet import due
from .optim import lr_at
from .run import Run
from .task import Losses

_HEAR_S = 0.25
"""A wish to stop is heard within about as long, or within a step: one number is summed for it."""
Doing = Literal["start", "data", "step", "save", "draw"]


class Engine(Protocol):
    """What runs a task on some machine: one process, or one of many ranks."""

    rank: int

    def step(self, batch: Batch, lr: float) -> Losses:
        """Forward, backward and one optimiser step on this rank's rows.

        The step is not taken, on all ranks alike, where the loss of any rank or the norm of the
        gradient is not finite; then `applied` of the losses is False.
        """
        ...

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all ranks."""
        ...

    def save(self, step: int, *, wait: bool) -> None:
        """Keeps the state after `step` steps; returns before it is stored unless `wait`."""
        ...

    def save_s(self) -> float:
        """Seconds that keeping the state takes here, as measured; 0 before the first time."""
        ...

    def join(self) -> None:
        """Waits until the state that is being kept is stored."""
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
        """Every (sum, count), flat, in the order of the names."""
        flat = [torch.stack(values).sum(0) for _, values in sorted(self.sums.items())]
        return torch.cat(flat).tolist() if flat else []


class Listener:
    """What a training loop tells of itself; every method may be left as it is."""

    def told(self, step: int, batch: Batch) -> None:
        """Of every batch before it is trained on; the ledger listens here."""

    def doing(self, what: Doing, step: int) -> None:
        """At every change: waiting for data, taking a step, saving or drawing after it."""

    def skipped(self, step: int, batch: Batch, blame: bool) -> None:
        """A step was not taken. `blame`: this rank's rows may be why."""

    def report(self, row: dict[str, float]) -> None:
        """Every `log_steps` steps: step, lr, each loss and accuracy over all ranks; a step's useful
        tokens (real words and regions) and their share of all places; and the steps skipped and
        seconds gone since the last report. Every rank is told the same."""

    def stopping(self) -> bool:
        """Once any rank says yes, all keep a checkpoint and return."""
        return False

    def left_s(self) -> float:
        """Seconds until this machine is taken away; asked when all are to stop."""
        return inf

    def hurried(self, step: int, needs_s: float, left_s: float, keeps: bool) -> None:
        """A machine is taken away. `keeps`: there is time for a checkpoint of `step`."""


def train(
    engine: Engine,
    batches: Iterable[tuple[int, Batch]],
    run: Run,
    listener: Listener,
    draw: Callable[[int], None] = lambda done: None,
) -> int:
    """Trains on the batches and returns the number of steps done so far in the run.

    Args:
        engine: the task on its machine.
        batches: (step, this rank's rows); steps count from 0.
        run: the recipe.
        listener: told of everything, and asked whether to stop.
        draw: draws the recipe's sheet of samples after so many steps; every rank calls it.

    Raises:
        NonFiniteError: too many steps in a row had no finite loss or gradient.
    """
    meter, last = Meter(engine, run, listener), 0
    for step, rows in batches:
        batch = replace(rows, step=step)
        listener.told(step, batch)
        listener.doing("step", step)
        torch.manual_seed(row_key(run.seed, step, engine.rank))  # dropout; no state to save
        meter.add(step, batch, engine.step(batch, lr_at(run.optim, step, run.steps)))
        last = step + 1
        if due(run.sample_steps, last, run.steps):
            listener.doing("draw", step)
            draw(last)
        tell = last % run.log_steps == 0 or last == run.steps
        stop = not tell and meter.ask(last)
        if tell or stop:
            stop = meter.report(last) or stop
        if stop or last == run.steps:
            listener.doing("save", step)
            if _in_time(engine, listener, last):
                engine.save(last, wait=True)
            else:
                engine.join()  # one may be under way
            return last
        if last % run.checkpoint_steps == 0 and not meter.row:
            listener.doing("save", step)
            engine.save(last, wait=False)
        listener.doing("data", last)
    return last


def _in_time(engine: Engine, listener: Listener, last: int) -> bool:
    """Whether every rank has the time to keep a checkpoint before any machine is taken away."""
    needs_s, left_s = engine.save_s(), listener.left_s()
    short, told = engine.sum([float(needs_s > left_s), float(left_s < inf)])
    if told:
        listener.hurried(last, needs_s, left_s, keeps=not short)
    return not short


class Meter:
    """Between two reports: what steps cost, which were skipped, how long they took."""

    def __init__(self, engine: Engine, run: Run, listener: Listener) -> None:
        self.engine, self.run, self.listener = engine, run, listener
        self.row: list[int] = []
        """Steps that were skipped, one after the other, up to now."""
        self._tally, self._skipped, self._steps = Tally(), 0, 0
        self._useful, self._places = 0, 0
        self._since = time.perf_counter()
        self._every: int | None = None

    def add(self, step: int, batch: Batch, losses: Losses) -> None:
        """Counts a step in, or out."""
        self._steps += 1
        useful, places = packing.useful(self.run.model, batch)
        self._useful, self._places = self._useful + useful, self._places + places
        if losses.applied:
            self._tally.add(losses)
            self.row = []
            return
        mine = not bool(torch.isfinite(losses.total))
        anyone = self.engine.sum([float(mine)])[0] > 0  # if nobody's loss is, gradients overflowed
        self.listener.skipped(step, batch, blame=mine or not anyone)
        self._skipped += 1
        self.row.append(step)
        if len(self.row) >= self.run.optim.skip_limit:
            raise NonFiniteError(
                f"loss or gradient was not finite at {len(self.row)} steps in a row, "
                f"{self.row[0]} to {step}.",
                step,
            )

    def ask(self, last: int) -> bool:
        """Whether any rank wants to stop; asked four times a second, at the same steps everywhere.

        Where reports come as often, they ask.
        """
        if self._every is None:
            [seconds] = self.engine.sum([time.perf_counter() - self._since])
            self._every = max(1, int(_HEAR_S / max(seconds, 1e-9)))
        if self._every >= self.run.log_steps or last % self._every:
            return False
        return self.engine.sum([float(self.listener.stopping())])[0] > 0

    def report(self, last: int) -> bool:
        """Tells of the steps since the last report; returns whether any rank wants to stop."""
        names, now = sorted(self._tally.sums), time.perf_counter()
        wish, seconds = float(self.listener.stopping()), (now - self._since) / self._steps
        mine = [float(self._useful), float(self._places), wish, seconds]
        *totals, useful, places, stop, every = self.engine.sum([*self._tally.totals(), *mine])
        pairs = zip(names, totals[::2], totals[1::2], strict=True)
        row = {"step": last, "lr": lr_at(self.run.optim, last - 1, self.run.steps)}
        row |= {name: total / count for name, total, count in pairs if count}
        row |= {"tokens": useful / self._steps, "fill": useful / max(1, places)}
        row |= {"skipped": self._skipped, "seconds": round(now - self._since, 4)}
        self.listener.report(row)
        self._tally, self._skipped, self._steps, self._since = Tally(), 0, 0, now
        self._useful, self._places = 0, 0
        self._every = max(1, int(_HEAR_S / max(every, 1e-9)))
        return stop > 0
