"""webdataset from the bucket: through s3fs, or through a pipe to curl, its usual route."""

import importlib
from functools import cache
from typing import Any

import fsspec
import torch

from ..arm import BATCH, SHUFFLE, WORKERS, Batches, Job, run
from ..pixels import Same, Shipped

wds: Any = importlib.import_module("webdataset")  # its names are not where type checkers look


@cache
def _s3() -> Any:
    return fsspec.filesystem("s3", skip_instance_cache=True)  # first called inside each worker


def _open(url: str, *_: Any, **__: Any) -> Any:
    return _s3().open(url.removeprefix("s3fs:"), "rb")


def urls(job: Job) -> list[str]:
    """The shards, as webdataset is told of them."""
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    names = sorted(filesystem.glob(f"{job.remote}/*.tar"))
    if job.route == "s3fs":
        return [f"s3fs:{name}" for name in names]
    # A signed URL keeps the key pair out of curl's arguments.
    return [f"pipe:curl -s -L '{filesystem.sign(name, expiration=3600)}'" for name in names]


def batches(job: Job) -> Batches:
    """Shards dealt to two workers, a buffer of 1,000 samples, batches made in the worker."""
    wds.gopen_schemes["s3fs"] = _open
    data = wds.WebDataset(urls(job), shardshuffle=100, workersplitter=wds.split_by_worker)
    data = data.shuffle(SHUFFLE)
    if job.raw:
        data = data.to_tuple("__key__", "jpg", "txt").map(lambda s: (s[0], (s[1], s[2])))
    elif job.pixels == "shipped":
        picture = Shipped(job.size).picture
        data = data.decode("pilrgb").to_tuple("__key__", "jpg").map_tuple(str, picture)
    else:
        data = data.to_tuple("__key__", "jpg").map_tuple(str, Same(job.size).blob)
    data = data.batched(BATCH, collation_fn=None if job.raw else _stack, partial=True)
    for found in wds.WebLoader(data, batch_size=None, num_workers=WORKERS):
        yield (([key for key, _ in found], [members for _, members in found]) if job.raw else found)


def _stack(samples: list[tuple[str, torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    return [key for key, _ in samples], torch.stack([pixels for _, pixels in samples])


if __name__ == "__main__":
    run(Job.given(), batches)
