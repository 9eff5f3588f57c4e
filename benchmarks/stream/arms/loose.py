"""torch's DataLoader over single files on this disk: no bucket, no tars."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ..arm import BATCH, WORKERS, Batches, Job, run
from ..pixels import Same, Shipped


class Files(Dataset):
    """A picture and its caption by number."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.files = sorted(Path(job.local, "loose").glob("*.jpg"))
        self.decode = None if job.raw else (Shipped if job.pixels == "shipped" else Same)(job.size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[str, object]:
        file = self.files[place]
        jpg, txt = file.read_bytes(), file.with_suffix(".txt").read_bytes()
        return file.stem, self.decode.blob(jpg) if self.decode else (jpg, txt)


def collate(samples: list[tuple[str, object]]) -> tuple[list[str], object]:
    """Keys, and what was read of each: stacked where it is pixels."""
    keys, found = [key for key, _ in samples], [each for _, each in samples]
    if isinstance(found[0], torch.Tensor):
        return keys, torch.stack([each for each in found if isinstance(each, torch.Tensor)])
    return keys, found


def batches(job: Job) -> Batches:
    """All files in a random order."""
    yield from DataLoader(Files(job), BATCH, shuffle=True, num_workers=WORKERS, collate_fn=collate)


if __name__ == "__main__":
    run(Job.given(), batches)
