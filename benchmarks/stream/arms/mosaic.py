"""mosaicml-streaming from the bucket, in its MDS form, filling an empty cache."""

import importlib
from typing import Any

from torch.utils.data import DataLoader

from ..arm import BATCH, WORKERS, Batches, Job, run
from ..pixels import Same, Shipped
from .forks import unshare
from .loose import collate

streaming = importlib.import_module("streaming")
memory = importlib.import_module("streaming.base.util")


def batches(job: Job) -> Batches:
    """Its dataset, shuffled, under torch's DataLoader as its guide says."""
    decode = None if job.raw else (Shipped if job.pixels == "shipped" else Same)(job.size)

    class Samples(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            row = super().__getitem__(at)
            return row["key"], decode.blob(row["jpg"]) if decode else (row["jpg"], row["txt"])

    data = Samples(remote=job.remote, local=job.cache, shuffle=True, batch_size=BATCH)
    unshare()
    yield from DataLoader(data, BATCH, num_workers=WORKERS, collate_fn=collate)


if __name__ == "__main__":
    memory.clean_stale_shared_memory()
    run(Job.given(), batches)
