"""litdata from the bucket, in its own form, filling an empty cache."""

import importlib
from typing import Any

import torch

from ..arm import BATCH, WORKERS, Batches, Job, run
from ..pixels import Same, Tensors
from .loose import collate

litdata = importlib.import_module("litdata")
downloader = importlib.import_module("litdata.streaming.downloader")


def batches(job: Job) -> Batches:
    """Its streaming loader, shuffled, with its own prefetching."""
    # Its asynchronous path builds the store without this and cannot read from plain http.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    decode = None if job.raw else (Tensors if job.pixels == "shipped" else Same)(job.size)

    def sample(row: dict[str, Any]) -> tuple[str, object]:
        found = decode.blob(row["jpg"]) if decode else (row["jpg"], row["txt"])
        return row["key"], found

    data = litdata.StreamingDataset(
        job.remote, cache_dir=job.cache, shuffle=True, transform=sample, drop_last=False
    )
    yield from litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Job.given(), batches)
