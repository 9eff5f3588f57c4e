"""The machines of a run: how many workers, with what, at which ZeRO stage. It names no method."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ..config import Record, from_yaml, override, parse, unknown
from ..data import storage
from ..errors import RecipeError

if TYPE_CHECKING:  # torch takes seconds
    from ..pretrain.run import Run


class Shape(Record):
    """Where a recipe runs."""

    workers: int = Field(default=2, ge=1)
    """Ranks; each is one process."""
    min_workers: int | None = Field(default=None, ge=1)
    """With how few the run goes on when nodes are lost and none come; by default never fewer."""
    wait_s: float = Field(default=30.0, ge=0)
    """Seconds to wait for lost workers before going on with fewer."""
    hang_s: float = Field(default=120.0, gt=0)
    """Seconds in one step after which a rank counts as stuck; ten times as many for the first step,
    for data and for checkpoints. The group is then restarted."""
    grace_s: float = Field(default=30.0, ge=0)
    """Seconds that a machine lives on after a SIGTERM, or a notice that names no time. A checkpoint
    is begun then only if it ends within them at the rate at which earlier ones were written."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs that Ray sets aside, and torch threads, of each worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What workers share out: nothing, optimiser state, gradients too, weights too."""
    whole_below: int = Field(default=100_000, ge=0)
    """At ZeRO-3, parameters of no more elements than this stay whole on every worker."""
    offload_optimiser: Literal["none", "cpu"] = "none"
    """Where fp32 weights and moments live and are updated: on the GPU, or in the host's memory.

    DeepSpeed could keep them on a disk too, but checkpoints, which copy them, could not."""
    offload_weights: Literal["none", "cpu", "nvme"] = "none"
    """Where a worker's part of the weights waits until a layer needs it; ZeRO-3 only."""
    nvme: str | None = None
    """Folder on a worker's own disk, for `offload_weights: nvme`."""
    recompute: bool = False
    """Compute activations again in the backward pass rather than keep them."""
    compile: bool = False
    """Put the model's repeated blocks through torch.compile; the first step then takes longer."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Rows of a worker's forward pass; gradients accumulate over the rest. All rows by default."""
    precision: Literal["fp32", "bf16"] = "fp32"
    max_failures: int = Field(default=3, ge=0)
    """Restarts in a row without a new checkpoint in between."""
    keep_checkpoints: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> "Shape":
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than workers {self.workers}: it is with "
                "how few the run goes on"
            )
        if self.offload_weights != "none" and self.zero_stage < 3:
            raise ValueError(
                f"offload_weights {self.offload_weights!r} needs zero_stage 3, which shares out "
                f"weights; it is {self.zero_stage}"
            )
        if self.offload_optimiser != "none" and not self.zero_stage:
            raise ValueError("offload_optimiser 'cpu' needs zero_stage 1 or more; it is 0")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile needs zero_stage 0, 1 or 2: at 3 the weights of a block come and go by "
                "hooks that no compiler follows"
            )
        if (self.offload_weights == "nvme") != (self.nvme is not None):
            raise ValueError("nvme names the folder of offload_weights 'nvme': set both or neither")
        return self

    def sizes(self, run: "Run") -> "list[Shape]":
        """This shape with every number of workers that the run may go on with, most first.

        A forward pass never has more rows than with all workers, so that it fits the memory.

        Raises:
            RecipeError: the batch cannot be cut among all workers.
        """
        most = self.micro_rows(run)
        found: list[Shape] = [self]
        for workers in range(self.workers - 1, (self.min_workers or self.workers) - 1, -1):
            rows, rest = divmod(run.batch, workers)
            fit = [m for m in range(run.rows_multiple, most + 1, run.rows_multiple) if not rows % m]
            if not rest and fit:
                found.append(self.model_copy(update={"workers": workers, "micro_batch": fit[-1]}))
        return found

    def micro_rows(self, run: "Run") -> int:
        """Rows of one forward pass on one worker.

        Raises:
            RecipeError: the batch cannot be cut so.
        """
        rows, rest = divmod(run.batch, self.workers)
        if rest:
            raise RecipeError(
                f"batch {run.batch} cannot be cut among {self.workers} workers. "
                f"Use a batch that is a multiple of {self.workers}."
            )
        micro = self.micro_batch or rows
        if rows % micro:
            raise RecipeError(
                f"micro_batch {micro} does not divide the {rows} rows that each of "
                f"{self.workers} workers has of batch {run.batch}."
            )
        if micro % run.rows_multiple:
            raise RecipeError(
                f"{micro} rows a forward pass, but the objectives need a multiple of "
                f"{run.rows_multiple}. Change batch, workers or micro_batch."
            )
        return micro


SHAPES = {
    "one": Shape(workers=1, zero_stage=0),
    "pair": Shape(workers=2),
    "gpu": Shape(workers=1, gpus_per_worker=1, precision="bf16", cpus_per_worker=4),
    "node8": Shape(workers=8, gpus_per_worker=1, precision="bf16", cpus_per_worker=4),
}
"""Named shapes; a YAML file of a Shape's fields does as well."""


def find_shape(text: str, settings: list[str]) -> Shape:
    """A named shape or a YAML file, with `path=value` settings put in."""
    if text in SHAPES:
        values: dict[str, Any] = SHAPES[text].model_dump()
    elif text.endswith((".yaml", ".yml")):
        values = from_yaml(storage.read(text), source=text)
    else:
        raise unknown(text, list(SHAPES), "--shape (or a .yaml file)")
    return parse(Shape, override(values, settings), source=f"shape {text}")


def deepspeed_config(run: "Run", shape: Shape) -> dict[str, Any]:
    """What DeepSpeed is told: a pure function of recipe and shape."""
    micro = shape.micro_rows(run)
    return {
        "train_batch_size": run.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": run.batch // shape.workers // micro,
        "gradient_clipping": run.optim.clip,
        "zero_optimization": _zero(shape),
        "zero_allow_untested_optimizer": True,
        # torch's AdamW is as good on a CPU, and needs no compiler on every machine.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": shape.precision == "bf16"},
        "steps_per_print": 1_000_000_000,
    }


def _zero(shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": shape.zero_stage}
    if shape.zero_stage == 3:
        found["stage3_param_persistence_threshold"] = shape.whole_below
    for name, place in (
        ("offload_optimizer", shape.offload_optimiser),
        ("offload_param", shape.offload_weights),
    ):
        if place != "none":
            found[name] = {"device": place, "pin_memory": shape.gpus_per_worker > 0}
        if place == "nvme":
            found[name]["nvme_path"] = shape.nvme
    return found
