"""A visit to an arm: start it, let it train, kill rank 1 a few times, stop it; all of it timed."""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from diptych.cluster.bucket import serve
from diptych.cluster.launch import cluster
from diptych.cluster.ledger import begin as claimed
from diptych.cluster.shapes import Shape
from diptych.cluster.train import prepare
from diptych.config import to_yaml
from diptych.pretrain.run import Run

from .diary import Diary
from .ours import SHAPE

_PATIENCE_S = 180.0
_TICK_S = 0.01


def ask(
    parser: argparse.ArgumentParser, arguments: list[str] | None, arms: Sequence[str], home: Path
) -> tuple[Any, Path]:
    """The arguments, with those that all benchmarks of recovery have; and the file of results."""
    parser.add_argument("--arms", default=",".join(arms))
    parser.add_argument("--home", type=Path, default=home)
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    asked = parser.parse_args(arguments)
    asked.home.mkdir(parents=True, exist_ok=True)
    record = asked.home / "results.jsonl"
    if asked.fresh:
        record.unlink(missing_ok=True)
    return asked, record


@contextlib.contextmanager
def ground(bucket: str, workers: int) -> Iterator[tuple[Path, str]]:
    """A folder, with an S3 server and a Ray cluster up; yields it and the cluster's address."""
    home = Path(tempfile.mkdtemp(prefix=f"diptych-{bucket}-"))
    with serve(home / "weed", bucket), cluster(None, Shape(workers=workers)):
        import ray

        yield home, ray.get_runtime_context().gcs_address
    shutil.rmtree(home, ignore_errors=True)


def visit(arm: str, run: Run, bucket: str, home: Path, address: str) -> "Visit":
    """A job of an arm in a new folder of `ground`."""
    name = f"{arm.replace(' ', '-')}-{len(list(home.iterdir()))}"
    url = f"s3://{bucket}/runs/{name}"
    return Visit(arm.removesuffix(" again"), run, home / name, url, address)


class Visit:
    """One job of an arm in a folder of its own.

    Args:
        arm: `ours`, `torchrun`, `torch.save` (by torchrun, too) or `ray train`.
        run: the recipe.
        folder: on this disk.
        url: the run's folder.
        address: of the Ray cluster that is up.
    """

    def __init__(self, arm: str, run: Run, folder: Path, url: str, address: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.diary = folder, Diary(folder / "diary")
        (folder / "run.yaml").write_text(to_yaml(run))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            (folder / "port").write_text(str(probe.getsockname()[1] % 20_000 + 10_000))
        self.command = self._command(arm, run, url, address)
        self.pids: dict[str, int] = {}
        self.attempt, self.step, self.at = -1, 0, 0.0
        """Of the last step that was seen, and when it was taken."""

    def go(self, kills: int, calm: int, lag_s: float = 0.0) -> dict[str, Any]:
        """Starts, kills after `calm` steps of each attempt, stops; returns seconds.

        Each kill comes between 0 and `lag_s` seconds late, the same for every arm.
        """
        lags = random.Random(0)
        began = time.monotonic()
        with open(self.folder / "output", "wb") as said:
            self.driver = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=False,
            )
        try:
            self._until(-1, 1)
            start_s, waits = self.at - began, list[float]()
            for _ in range(kills):
                self._until(self.attempt - 1, calm)
                time.sleep(lags.uniform(0.0, lag_s))
                killed, victim = time.monotonic(), self.pids["pid 1"]
                os.kill(victim, signal.SIGKILL)
                self._until(self.attempt, 1)
                waits.append(self.at - killed)
            self._until(self.attempt - 1, calm)
            return {"start_s": start_s, "kill_s": waits, "stop_s": self._stop()}
        finally:
            for process in self._living():
                process.kill()

    def _until(self, attempt: int, steps: int) -> None:
        """Waits for so many steps of an attempt after `attempt`."""
        seen, deadline = 0, time.monotonic() + _PATIENCE_S
        while seen < steps:
            for line in self.diary.news():
                if line["what"] == "step" and line["attempt"] > attempt:
                    seen, self.attempt, self.step = seen + 1, line["attempt"], line["value"]
                    if seen <= steps:
                        self.at = line["t"]
                elif line["what"] != "step":
                    self.pids[line["what"]] = line["value"]
            if time.monotonic() > deadline or self.driver.poll() is not None:
                text = (self.folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command[1:3]}: no step came. {text}")
            time.sleep(_TICK_S)

    def _stop(self) -> float:
        """Seconds from SIGTERM to the driver until it and the ranks are gone."""
        began = time.monotonic()
        self.driver.send_signal(signal.SIGTERM)
        while self.driver.poll() is None or self._living():
            if time.monotonic() - began > 60:
                break
            time.sleep(_TICK_S)
        return time.monotonic() - began

    def _living(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for pid in [self.driver.pid, *self.pids.values()]:
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def _command(self, arm: str, run: Run, url: str, address: str) -> list[str]:
        here = Path(__file__).parent
        if arm == "ours":
            return [sys.executable, str(here / "ours.py"), str(self.folder), url, address]
        place, data = prepare(run, SHAPE, url)
        told = [str(self.folder), place.url, data]
        if arm == "ray train":
            return [sys.executable, str(here / "ray_train.py"), *told, address]
        claimed(place, 0, 2)
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2"]
        torchrun += ["--max-restarts=99", "--monitor-interval=0.1", "--rdzv-backend=c10d"]
        torchrun += ["--rdzv-endpoint=127.0.0.1:0"]
        script = "torch_save_rank.py" if arm == "torch.save" else "torchrun_rank.py"
        return [*torchrun, str(here / script), *told]
