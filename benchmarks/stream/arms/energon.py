"""Megatron-Energon over the same tars in the bucket, with the index that it makes beside them."""

import importlib
from typing import Any

import torch

from ..arm import BATCH, SHUFFLE, WORKERS, Batches, Job, run
from ..pixels import Same, Shipped
from .forks import unshare

energon = importlib.import_module("megatron.energon")


@energon.edataclass
class Found(energon.Sample):
    """A sample with what the arm wants of it."""

    found: Any


def batches(job: Job) -> Batches:
    """Its training dataset without repetition, and its loader."""
    decoder = energon.SampleDecoder(image_decode="pilrgb") if job.pixels == "shipped" else None
    if job.raw:
        read = None
    else:
        read = Shipped(job.size).picture if job.pixels == "shipped" else Same(job.size).blob

    @energon.stateless
    def cook(row: dict[str, Any]) -> Found:
        found = read(row["jpg"]) if read else (row["jpg"], row["txt"])
        return Found(**energon.basic_sample_keys(row), found=found)

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)

        @energon.stateless
        def batch(self, samples: list[Found]) -> tuple[list[str], Any]:
            keys = [str(row.__key__).rpartition("/")[2] for row in samples]
            found = [row.found for row in samples]
            return keys, found if job.raw else torch.stack(found)

    Encoder.decoder = decoder
    data = energon.get_train_dataset(
        job.remote,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
        batch_size=BATCH,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=False,
    )
    loader = energon.get_loader(data)
    unshare()
    yield from loader


if __name__ == "__main__":
    run(Job.given(), batches)
