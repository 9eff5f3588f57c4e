"""Memory of a worker by part, and the largest micro-batch that fits it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..data import storage
from ..data.batch import Batch
from ..data.cache import read_note
from ..data.loader import Loader
from ..data.plan import Plan
from ..data.tokens import Text
from ..errors import RecipeError
from ..pretrain.adapter import adapt
from ..pretrain.run import Run
from ..pretrain.task import Task
from .activations import pass_bytes
from .shapes import Shape

_BYTES = {"fp32": 4, "bf16": 2}
_FROZEN_BYTES = 4
"""Frozen parts beside a task compute in 32 bits, whatever the shape's precision."""
_BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed gathers gradients, whatever the model's size."""
_SPARE = 0.9
"""Of a worker's memory; the rest is for the allocator's gaps and the libraries."""
_LOOK_STEPS = 50


@dataclass(frozen=True)
class Need:
    """Bytes that a worker needs."""

    parts: dict[str, int]
    """For good, on the GPU; in the host's memory where a worker has no GPU."""
    host: dict[str, int]
    """In the host's memory beside it: what is offloaded."""
    fixed: int
    per_row: int
    """Of activations: `fixed + per_row * rows` of a forward pass."""
    beside: dict[str, int | str]
    """Numbers in the frozen weights beside the task: see `beside`."""

    def total(self, rows: int) -> int:
        """Bytes with a forward pass of so many rows."""
        return sum(self.parts.values()) + self.activations(rows)

    def activations(self, rows: int) -> int:
        """Bytes of a forward and backward pass of so many rows."""
        return self.fixed + self.per_row * rows


def need(run: Run, shape: Shape, chart: Plan, text: Text) -> Need:
    """What a worker needs, with activations counted on real rows of the data, without a number.

    Activations are an upper bound: every maskable place counts as masked, and attention as if it
    kept all of its weights.
    """
    task = bare(run, text)
    parts, host = memory(task, run, shape)
    cached, frozen_beside = _images_cached(run), beside(run)
    for name, count in frozen_beside.items():
        if isinstance(count, str) or (cached and name == "eye"):  # which is never opened then
            continue
        # Of latents in a cache, the first stage is only asked for their scale, where it was loaded.
        aside = cached and name == "first_stage" and shape.gpus_per_worker
        (host if aside else parts)[f"frozen: {name}"] = count * _FROZEN_BYTES
    low, high = (_activations(run, shape, chart, text, rows) for rows in _two_sizes(run))
    few, many = _two_sizes(run)
    per_row = max(0, high - low) // (many - few)
    fixed = max(0, low - few * per_row)
    return Need(parts, host, fixed=fixed, per_row=per_row, beside=frozen_beside)


def bare(run: Run, text: Text) -> Task:
    """The run's task with its adapters, its parameters without data."""
    with torch.device("meta"):
        task = run.task(text)
        adapt(task, run.adapters, text)
    return task


def memory(task: Task, run: Run, shape: Shape) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a worker holds for good: (beside its activations, in the host's memory)."""
    width, stage, workers = _BYTES[shape.precision], shape.zero_stage, shape.workers
    shared = {id(param) for param in task.shared}
    sizes = [(p.numel(), id(p) in shared) for p in task.parameters()]
    whole = sum(n for n, kept in sizes if stage < 3 or kept or n <= shape.whole_below)
    parts = sum(n for n, _ in sizes) - whole
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    share = trained // workers if stage else trained
    # ZeRO 1 and 2 keep a copy of the weights to step on, even where these are fp32 themselves.
    copied = width == 2 or stage in (1, 2) or shape.offload_optimiser != "none"
    weights, state = parts // workers * width, share * (12 if copied else 8)
    held = {
        "weights": whole * width + (0 if shape.offload_weights != "none" else weights),
        "gradients": (share if stage > 1 else trained) * width,
    }
    host = {"weights": weights} if shape.offload_weights == "cpu" else {}
    place = held if shape.offload_optimiser == "none" else host
    place["master weights and moments" if copied else "moments"] = state
    if run.ema:
        place["moving average"] = 4 * trained // workers
    if size := _buffers(task, shape, trained):
        held["buffers"] = size
    return held, host


def _buffers(task: Task, shape: Shape, trained: int) -> int:
    """The modules' own, and DeepSpeed's for gradients under way."""
    own = sum(buffer.numel() * buffer.element_size() for buffer in task.buffers())
    if not shape.zero_stage or not trained:
        return own
    width = 4 if shape.zero_stage == 1 else _BYTES[shape.precision]
    # Without a GPU, pages of the buffer that nothing is written to take no memory.
    return own + width * (_BUCKET if shape.gpus_per_worker else min(_BUCKET, trained))


def frozen(task: Task) -> dict[str, int]:
    """Parameters that are never trained, by module: the largest modules that are frozen whole."""
    found: dict[str, int] = {}
    for name, module in task.named_modules():
        params = list(module.parameters())
        above = any(name.startswith(f"{other}.") for other in found)
        if name and params and not above and not any(p.requires_grad for p in params):
            found[name] = sum(p.numel() for p in params)
    return found


def beside(run: Run) -> dict[str, int | str]:
    """Numbers in the frozen weights beside the task, by part: whole on every worker, whatever the
    ZeRO stage, and in no checkpoint. Only headers are read; a part that is not there yet, which
    `train` would refuse, is said to be uncounted.

    Raises:
        RecipeError: there are no safetensors weights, or damaged ones.
        StorageError: they cannot be read.
    """
    found: dict[str, int | str] = {}
    for name, part in run.frozen.items():
        absent = [url for url in part.places.values() if not _there(url)]
        if absent:
            found[name] = f"not counted: {absent[0]} is not there"
        elif part.places:
            found[name] = part.elements()
    return found


def _there(url: str) -> bool:
    return bool(storage.exists(url) or storage.children(url))


def _images_cached(run: Run) -> bool:
    notes = [read_note(url) for source in run.data.sources for url in source.caches]
    return any("image" in note.spec.reads for note in notes if note)


def rows_that_fit(need_: Need, run: Run, shape: Shape, memory_bytes: float) -> list[int]:
    """Micro-batches that fit a worker's memory, the largest first."""
    rows = run.batch // shape.workers
    room = memory_bytes * _SPARE
    sizes = range(run.rows_multiple, rows + 1, run.rows_multiple)
    return [m for m in reversed(sizes) if not rows % m and need_.total(m) <= room]


def require_fit(need_: Need, run: Run, shape: Shape, memory_bytes: float) -> None:
    """Refuses what cannot be, with the reason and the way out.

    Raises:
        RecipeError: the micro-batch does not fit, or not even the smallest one does.
    """
    micro, found = shape.micro_rows(run), rows_that_fit(need_, run, shape, memory_bytes)
    if micro in found:
        return
    has = f"of {memory_bytes / 1e9:.1f} GB, {1 - _SPARE:.0%} of it kept free"
    if found:
        raise RecipeError(
            f"a forward pass of {micro} rows needs {need_.total(micro) / 1e9:.2f} GB {has}. "
            f"{found[0]} rows fit: --shape-set micro_batch={found[0]}."
        )
    least = run.rows_multiple
    largest = max([*need_.parts.items(), ("activations", need_.activations(least))], key=_size)
    raise RecipeError(
        f"even {least} rows need {need_.total(least) / 1e9:.2f} GB {has}; the most is "
        f"{largest[0]}, {largest[1] / 1e9:.2f} GB. {_way_out(largest[0], shape)}"
    )


def _size(part: tuple[str, int]) -> int:
    return part[1]


def _way_out(part: str, shape: Shape) -> str:
    if part == "activations" and not shape.recompute:
        return "Compute them again: --shape-set recompute=true."
    if part.startswith("frozen"):
        return "It is whole on every worker. Name a smaller one, larger GPUs, or a cache of images."
    if part == "buffers":
        return "DeepSpeed's buffer for gradients has a fixed size: only zero_stage=0 has none."
    if part == "weights" and shape.zero_stage < 3:
        return "Share them out: --shape-set zero_stage=3, or make the model smaller."
    if part in ("master weights and moments", "moments", "moving average"):
        if shape.zero_stage == 0:
            return "Share them out: --shape-set zero_stage=1."
        return "Keep them in the host's memory: --shape-set offload_optimiser=cpu; or more workers."
    if part == "gradients" and shape.zero_stage < 2:
        return "Share them out: --shape-set zero_stage=2."
    return "Use more workers, a smaller model, or larger GPUs."


def _two_sizes(run: Run) -> tuple[int, int]:
    return run.rows_multiple * 2, run.rows_multiple * 4


def _activations(run: Run, shape: Shape, chart: Plan, text: Text, rows: int) -> int:
    task = bare(_padded(run), text)
    if shape.precision == "bf16":
        task = task.to(torch.bfloat16)
    if shape.recompute:
        task.recompute()
    batch = _largest(chart, text, run, rows).to(torch.device("meta"))
    with _all_nonzero():
        return pass_bytes(task, batch)


def _padded(run: Run) -> Run:
    """Rows that are not packed: these take no less, and their lengths ask for no data."""
    if not getattr(run.model, "packed", False):
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"packed": False})})


def _largest(chart: Plan, text: Text, run: Run, rows: int) -> Batch:
    """So many rows of the first steps, with the largest frame that there is among these."""
    steps = range(min(_LOOK_STEPS, run.steps))
    area = {step: _area(chart.buckets.size(chart.bucket(step))) for step in steps}
    step = max(steps, key=lambda step: area[step])
    rows = min(rows, run.batch)
    world = next(n for n in range(run.batch // rows, 0, -1) if not run.batch % n)
    loader = Loader(chart, text, run.rows, rank=0, world=world, start=step, stop=step + 1)
    _, batch = next(iter(loader))
    return batch.pick(torch.arange(rows) % batch.rows)


def _area(size: tuple[int, int] | None) -> int:
    return size[0] * size[1] if size else 0


@contextlib.contextmanager
def _all_nonzero() -> Iterator[None]:
    """Lets `nonzero` on a tensor without data return as many places as there could be."""
    import torch.fx.experimental._config as config  # torch names this switch in its own error

    settings: Any = config
    with settings.patch(meta_nonzero_assume_all_nonzero=True):
        yield
