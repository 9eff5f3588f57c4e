"""What the machine can do at most: decoding from memory, reading from the disk and the bucket."""

import http.client
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import simplejpeg

from ..arm import WORKERS, Batches, Job, run, unchecked

_RANGE_BYTES = 8 << 20
_BLOBS = 2000
Ranges = Callable[[memoryview], Iterator[int]]
"""Fills the buffer again and again, and says how far."""


def decode(job: Job) -> Batches:
    """turbojpeg alone, in one process a core, on pictures that are in memory already.

    `full` decodes every pixel, `scaled` only the smallest picture that covers the square.
    """
    with ProcessPoolExecutor(WORKERS, initializer=_load, initargs=(job.local,)) as pool:
        list(pool.map(_wait, range(WORKERS)))
        blank = np.broadcast_to(np.uint8(0), (_BLOBS, 3, job.size, job.size))
        yield [], blank[:0]  # here the clock starts: see `from_first` in parts.py
        for keys in pool.map(_decode, [job] * (WORKERS * 2), range(WORKERS * 2)):
            yield keys, blank[: len(keys)]


_files: list[bytes] = []


def _load(folder: str) -> None:
    paths = sorted(Path(folder, "loose").glob("*.jpg"))[:_BLOBS]
    _files.extend(path.read_bytes() for path in paths)


def _wait(_: int) -> None:
    threading.Event().wait(0.5)  # so that every process of the pool is there and has loaded


def _decode(job: Job, number: int) -> list[str]:
    least = job.resize if job.route == "scaled" else 0
    for blob in _files:
        simplejpeg.decode_jpeg(blob, "RGB", min_height=least, min_width=least)
    return [unchecked(number * _BLOBS + place) for place in range(len(_files))]


def read(job: Job) -> Batches:
    """Every tar into one reused buffer, in ranges of 8 MiB, from this disk or over plain HTTP."""
    buffer = memoryview(bytearray(_RANGE_BYTES))
    ranges = _ranges_of_files(job) if job.route == "file" else _ranges_of_objects(job)
    for number, fill in enumerate(ranges(buffer)):
        yield [unchecked(number)], [(buffer[:fill], b"")]


def _ranges_of_files(job: Job) -> Ranges:
    def ranges(buffer: memoryview) -> Iterator[int]:
        for path in sorted(Path(job.local, "shards").glob("*.tar")):
            with open(path, "rb", buffering=0) as file:
                while fill := file.readinto(buffer):
                    yield fill

    return ranges


def _ranges_of_objects(job: Job) -> Ranges:
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    infos = filesystem.find(job.remote, detail=True)
    tars = [(name, info["size"]) for name, info in infos.items() if name.endswith(".tar")]
    signed = [(urlsplit(filesystem.sign(name, expiration=3600)), size) for name, size in tars]
    netloc = urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc
    connection = http.client.HTTPConnection(netloc)

    def ranges(buffer: memoryview) -> Iterator[int]:
        for url, size in signed:
            for start in range(0, size, _RANGE_BYTES):
                end = min(size, start + _RANGE_BYTES)
                wanted = {"Range": f"bytes={start}-{end - 1}"}
                connection.request("GET", f"{url.path}?{url.query}", headers=wanted)
                answer, fill = connection.getresponse(), 0
                while fill < end - start and (more := answer.readinto(buffer[fill : end - start])):
                    fill += more
                answer.read()
                yield fill

    return ranges


if __name__ == "__main__":
    job = Job.given()
    run(job, read if job.raw else decode)
