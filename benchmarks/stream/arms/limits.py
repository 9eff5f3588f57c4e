"""What the machine can do at most: decoding from memory, reading from the disk and the bucket."""

import functools
import http.client
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import simplejpeg

from ..arm import WORKERS, Batches, Job, run, unchecked

_RANGE_BYTES = 8 << 20
_BLOBS = 2000
Ranges = Iterator[Callable[[memoryview], int]]
"""For each range, what fills a buffer with it and says how far."""


def decode(job: Job) -> Batches:
    """turbojpeg alone, in one process a core, on pictures that are in memory already.

    `full` decodes every pixel, `scaled` only the smallest picture that covers the square.
    """
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        list(pool.map(_wait, range(WORKERS)))
        blank = np.broadcast_to(np.uint8(0), (_BLOBS, 3, job.size, job.size))
        yield [], blank[:0]  # here the clock starts: see `Arm.limit`
        for keys in pool.map(_decode, [job] * (WORKERS * 2), range(WORKERS * 2)):
            yield keys, blank[: len(keys)]


_files: list[bytes] = []


def _load(folder: str) -> None:
    paths = sorted(Path(folder, "loose").glob("*.jpg"))[:_BLOBS]
    _files.extend(path.read_bytes() for path in paths)


def _wait(_: int) -> None:
    threading.Event().wait(0.5)  # so that every process of the pool is there


def _decode(job: Job, number: int) -> list[str]:
    least = job.resize if job.route == "scaled" else 0
    for blob in _files:
        simplejpeg.decode_jpeg(blob, "RGB", min_height=least, min_width=least)
    return [unchecked(number * _BLOBS + place) for place in range(len(_files))]


def read(job: Job) -> Batches:
    """Every tar in ranges of 8 MiB, from this disk or over plain HTTP.

    `file` and `s3` fill one buffer over and over; `file new` and `s3 new` leave each range in
    memory of its own, as whoever keeps the bytes must.
    """
    where, _, new = job.route.partition(" ")
    ranges = _ranges_of_files(job) if where == "file" else _ranges_of_objects(job)
    buffer = bytearray(_RANGE_BYTES)
    next(ranges)(memoryview(buffer))
    yield [], []  # here the clock starts, with everything imported
    for number, fill in enumerate(ranges):
        into = memoryview(bytearray(_RANGE_BYTES) if new else buffer)
        yield [unchecked(number)], [(into[: fill(into)], b"")]


def _ranges_of_files(job: Job) -> Ranges:
    yield len  # nothing to read yet, but all is set up
    for path in sorted(Path(job.local, "shards").glob("*.tar")):
        with open(path, "rb", buffering=0) as file:
            for _ in range(0, path.stat().st_size, _RANGE_BYTES):
                yield file.readinto


def _ranges_of_objects(job: Job) -> Ranges:
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    infos = filesystem.find(job.remote, detail=True)
    tars = [(name, info["size"]) for name, info in infos.items() if name.endswith(".tar")]
    connection = http.client.HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc)
    yield len  # nothing to read yet, but all is set up
    for name, size in tars:
        url = urlsplit(filesystem.sign(name, expiration=3600))
        for start in range(0, size, _RANGE_BYTES):
            end = min(size, start + _RANGE_BYTES)
            wanted = {"Range": f"bytes={start}-{end - 1}"}
            connection.request("GET", f"{url.path}?{url.query}", headers=wanted)
            yield functools.partial(_fill, connection.getresponse(), end - start)


def _fill(answer: http.client.HTTPResponse, size: int, into: memoryview) -> int:
    filled = 0
    while filled < size and (more := answer.readinto(into[filled:size])):
        filled += more
    answer.read()
    return filled


if __name__ == "__main__":
    job = Job.given()
    if not job.raw:
        _load(job.local)  # before the clock starts; forked processes have it too
    run(job, read if job.raw else decode)
