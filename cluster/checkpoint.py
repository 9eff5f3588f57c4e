"""Between DeepSpeed's state and a checkpoint's slices: snapshot, write behind, commit, restore.

Every rank copies its own fp32 slices to host memory and writes them while training goes on. Each
then leaves a list of its slices; rank 0 waits for all lists, writes the manifest, and only then are
older checkpoints deleted. No collective is involved, so a rank that dies here hangs nobody.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import storage
from ..errors import CheckpointError, ClusterError, DiptychError
from ..pretrain import checkpoint as form
from ..pretrain.checkpoint import WEIGHT, Checkpoint, Slice
from . import journal
from .journal import Journal, Page

MOMENTS = ("exp_avg", "exp_avg_sq")
Piece = tuple[str, str, int, Tensor]
"""(parameter, kind, first element, flat fp32 tensor)."""


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a checkpoint, in host memory."""

    step: int
    pieces: list[Piece]
    shapes: dict[str, tuple[int, ...]]
    optimiser_step: float
    page: Page


@dataclass
class Writer:
    """Writes one rank's share of every checkpoint of a run."""

    run: str
    recipe: str
    rank: int
    world: int
    attempt: int
    keep: int
    """Complete checkpoints to keep."""
    journal: Journal
    stream: Callable[[int], dict[str, Any]]
    """Where the stream stands after a step: `Plan.state`."""
    timeout_s: float = 600.0
    fault: DiptychError | OSError | None = None

    def snapshot(self, engine: Any, step: int) -> Snapshot:
        """Copies this rank's slices; training may go on as soon as it returns."""
        pieces = [
            (name, kind, offset, data.detach().to("cpu", copy=True).float())
            for name, kind, offset, data in _pieces(engine, self.rank, self.world)
        ]
        shapes = {name: tuple(p.shape) for name, p in engine.module.named_parameters()}
        return Snapshot(step, pieces, shapes, _optimiser_step(engine), self.journal.turn())

    def write(self, snapshot: Snapshot) -> None:
        """Writes the share; rank 0 commits. Errors are kept for `raise_fault`."""
        try:
            self._write(snapshot)
        except (DiptychError, OSError) as err:
            self.fault = err

    def raise_fault(self) -> None:
        """Raises what went wrong behind the step, in the step."""
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault

    def _write(self, snapshot: Snapshot) -> None:
        place = form.folder(self.run, snapshot.step)
        journal.put(self.run, snapshot.step, self.attempt, self.rank, snapshot.page)
        mine = f"attempt-{self.attempt}/rank-{self.rank}"
        slices = form.put_slices(place, f"{mine}.safetensors", snapshot.pieces)
        storage.write(
            storage.join(place, f"{mine}.json"), json.dumps([astuple(s) for s in slices]).encode()
        )
        if self.rank:
            return
        everyone = [*slices]
        for rank in range(1, self.world):
            everyone += self._listed(
                storage.join(place, f"attempt-{self.attempt}/rank-{rank}.json")
            )
        form.commit(
            self.run,
            snapshot.step,
            recipe=self.recipe,
            shapes=snapshot.shapes,
            slices=everyone,
            extra={
                "world": self.world,
                "attempt": self.attempt,
                "stream": self.stream(snapshot.step),
                "optimiser_step": snapshot.optimiser_step,
            },
        )
        for step in form.steps(self.run)[: -self.keep]:
            storage.delete(form.folder(self.run, step))

    def _listed(self, url: str) -> list[Slice]:
        deadline = time.monotonic() + self.timeout_s
        while not storage.exists(url):
            if time.monotonic() > deadline:
                raise ClusterError(f"{url} did not come within {self.timeout_s:.0f} s.")
            time.sleep(0.1)
        return [Slice(*row) for row in json.loads(storage.read(url))]


def restore(engine: Any, checkpoint: Checkpoint | None) -> None:
    """Puts a checkpoint's weights and optimiser state into an engine; None means step 0.

    Raises:
        CheckpointError: parameters are missing or have other shapes.
    """
    if checkpoint:
        for name, param in engine.module.named_parameters():
            if checkpoint.shapes.get(name) != tuple(param.shape):
                there = checkpoint.shapes.get(name, "missing")
                raise CheckpointError(
                    f"{checkpoint.url}: {name} is {tuple(param.shape)} here and {there} there."
                )
            param.data.copy_(checkpoint.read(name, WEIGHT).view(param.shape))
        for name, kind, offset, data in _pieces(engine, 0, 1):
            data.data.copy_(checkpoint.read(name, kind, offset, data.numel()))
    step = float(checkpoint.extra["optimiser_step"]) if checkpoint else 0.0
    for state in _base(engine).state.values():
        if "step" in state:
            state["step"] = torch.full_like(torch.as_tensor(state["step"]), step)


def _pieces(engine: Any, rank: int, world: int) -> Iterator[Piece]:
    """Views of the fp32 state that this rank is to write.

    Under ZeRO 1 and 2 that is its partition. Without ZeRO every rank holds everything, so the
    parameters are dealt out (all of them go to rank 0 of 1, which is how `restore` asks).
    """
    base = _base(engine)
    if base is engine.optimizer:
        for number, (name, param) in enumerate(engine.module.named_parameters()):
            if number % world == rank and param.requires_grad:
                yield name, WEIGHT, 0, param.data.view(-1)
                for kind in MOMENTS:
                    yield name, kind, 0, _moments(base, param)[kind].view(-1)
        return
    for name, param in engine.module.named_parameters():
        mapping = getattr(param, "_hp_mapping", None)
        if mapping is None:
            continue
        offset, place = mapping.lp_fragment_address.start, mapping.hp_fragment_address
        flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        yield name, WEIGHT, offset, mapping.get_hp_fragment()
        for kind in MOMENTS:
            moment = _moments(base, flat)[kind]
            yield name, kind, offset, moment.narrow(0, place.start, place.numel)


def _moments(base: Any, param: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter; made empty where no step has been taken."""
    state: dict[str, Tensor] = base.state[param]
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state.update({kind: torch.zeros_like(param) for kind in MOMENTS})
    return state


def _base(engine: Any) -> Any:
    """The torch optimiser at the bottom; without ZeRO the engine's own."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _optimiser_step(engine: Any) -> float:
    states = list(_base(engine).state.values())
    return float(states[0]["step"]) if states else 0.0
