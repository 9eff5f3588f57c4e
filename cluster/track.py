"""What a person sees of a run: a progress line, metrics.jsonl, TensorBoard events, logs, status."""

import io
import json
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from ..data import storage
from ..errors import RunError, StorageError
from ..pretrain import checkpoint
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from . import journal, ledger
from .job import Event, Place
from .status import STOP, here

_KEEP_LINES = 1000
_BEAT_S = 10.0
_LOOK_S = 1.0


class Tracker:
    """Hears everything that happens in a run and keeps it where it can be found."""

    def __init__(self, run: Run, place: RunDir, console: Console) -> None:
        self.run, self.place, self.console = run, place, console
        self.rows, self.events = place.rows("metrics.jsonl"), place.rows("events.jsonl")
        self.logs: dict[int, deque[str]] = {}
        self.stop_asked, self._attempt = False, 0
        self.places: list[Place] = []
        self._began = time.time()
        self._board_home = tempfile.TemporaryDirectory(prefix="diptych-events-")
        self._board: SummaryWriter | None = None
        self._line = Line(run, place.name, console)
        self._state, self._note = "", ""
        self._looked = False
        self._over, self._lock = threading.Event(), threading.Lock()
        self._stored: dict[int, str] = {}
        """Each log as it is in the run's folder."""
        self._pages: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> "Tracker":
        self._line.start()
        self._beating = threading.Thread(target=self._live, name="diptych-beat", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()
        self._line.stop()
        if self._board:
            self._board.close()
        self._board_home.cleanup()

    def begin(self, start: int, places: list[Place]) -> int:
        """A group of workers begins at step `start`; returns the attempt's number.

        Rows of later steps, which an earlier attempt may have reported, are void.

        Raises:
            RunError: another driver has taken the run over.
        """
        if self._given_up():
            raise RunError(
                f"{self.place.url}: another driver has taken this run over; this one ends."
            )
        self.rows = journal.metrics(self.place, start, self._pages)
        self.places = places
        if self._board:
            self._board.close()
        self._board = SummaryWriter(self._board_home.name, purge_step=start + 1 if start else None)
        self._line.at(start)
        self.status("running")
        self._attempt = 0  # while the next is claimed, which is not another driver's
        self._attempt = ledger.begin(self.place, start, len(places))
        told = {"attempt": self._attempt, "start": start, "world": len(places)}
        self._happened({"what": "attempt", **told}, -1)
        return self._attempt

    def hear(self, event: Event) -> None:
        """Takes one event of a worker."""
        if event.kind == "log":
            self.log(event.body["text"], event.rank)
        elif event.kind == "metrics":
            self._metrics(event.body)
        elif event.kind == "picture":
            self._picture(**event.body)
        elif event.kind == "event":
            self._happened(event.body, event.rank)
            self.log(_told(event.body), event.rank)

    def log(self, text: str, rank: int = -1) -> None:
        """Keeps lines in a rank's log; rank -1 is the driver, whose lines are shown too."""
        self.keep(text, rank)
        if rank < 0:
            self.console.print(f"[yellow]{self.place.name}[/]: {text}", highlight=False)

    def keep(self, text: str, rank: int) -> None:
        """Keeps lines in a rank's log."""
        stamp = time.strftime("%H:%M:%S")
        lines = self.logs.setdefault(rank, deque(self._old_log(rank), maxlen=_KEEP_LINES))
        lines += [f"{stamp} {line}" for line in text.splitlines()]

    def flush(self) -> None:
        """Puts everything into the run's folder."""
        if self._given_up():
            return
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        storage.write(self.place.at("metrics.jsonl"), text.encode())
        self._store_logs()
        if self._board:
            self._board.flush()
        for file in Path(self._board_home.name).iterdir():
            storage.write(self.place.at("tensorboard", file.name), file.read_bytes())

    def status(self, state: str, note: str = "") -> None:
        """Says in the run's folder what it is doing, and where."""
        with self._lock:
            self._state, self._note = state, note
            if not self._given_up():
                self._put_status()

    def _given_up(self) -> bool:
        """Whether another driver has begun since: then the run's folder is its, and this one ends.

        A machine that was away may wake up after its run has gone on elsewhere.
        """
        mine = self._attempt
        # Asked again: this driver may have begun another itself, in its other thread.
        if mine and checkpoint.newer(self.place.url, mine) and mine == self._attempt:
            self.stop_asked = True
            return True
        return False

    def _put_status(self) -> None:
        self.place.put(
            "status.json",
            {
                "state": self._state,
                "note": self._note,
                "step": self.rows[-1]["step"] if self.rows else 0,
                "steps": self.run.steps,
                **here(),
                "workers": [place.pid for place in self.places],
                "began": self._began,
                "beat": time.time(),
            },
        )

    def _live(self) -> None:
        """Hears a wish to stop, shows that the driver lives, keeps the logs."""
        beat = time.monotonic()
        while not self._over.wait(_LOOK_S):
            try:
                self.stop_asked = self.stop_asked or storage.exists(self.place.at(STOP))
                if time.monotonic() - beat < _BEAT_S:
                    continue
                beat = time.monotonic()
                if self._given_up():
                    continue
                with self._lock:
                    if self._state == "running":
                        self._put_status()
                self._store_logs()
            except StorageError as err:
                self.keep(f"the run's folder does not answer: {err}", -1)

    def _store_logs(self) -> None:
        """Puts the logs that have grown into the run's folder."""
        with self._lock:
            for rank, lines in list(self.logs.items()):
                text = "\n".join([*list(lines), ""])
                if self._stored.get(rank) != text:
                    storage.write(self.place.at("logs", _log_name(rank)), text.encode())
                    self._stored[rank] = text

    def _happened(self, body: dict[str, Any], rank: int) -> None:
        """Such events are rare, and kept at once."""
        if self._given_up():
            return
        self.events.append({"time": round(time.time(), 3), "rank": rank, **body})
        text = "".join(json.dumps(row) + "\n" for row in self.events)
        storage.write(self.place.at("events.jsonl"), text.encode())

    def _metrics(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        assert self._board is not None  # `begin` came before any event
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name.replace(".", "/"), value, int(row["step"]))
        self._line.show(row)
        self._told_nothing(row)
        if row["step"] % self.run.checkpoint_steps == 0:
            self.flush()

    def _told_nothing(self, row: dict[str, Any]) -> None:
        """Says once, after the first steps, which objectives had no row to learn of."""
        if self._looked or self.run.mixing or row.get("skipped"):
            return
        self._looked = True
        for objective in self.run.objectives:
            if f"{objective.kind}.loss" not in row:
                self.log(
                    f"{objective.kind} had nothing to learn of in any sample up to step "
                    f"{row['step']}: none holds what it reads, or no answer is in its list. Look "
                    "at the records: `diptych data preview`."
                )

    def _picture(self, step: int, name: str, url: str) -> None:
        """A sheet of samples, which lies in the run's folder already."""
        assert self._board is not None  # `begin` came before any event
        with Image.open(io.BytesIO(storage.read(url))) as sheet:
            pixels_HWC = np.asarray(sheet.convert("RGB"))
        self._board.add_image(f"samples/{name}", pixels_HWC, step, dataformats="HWC")
        self.flush()

    def _old_log(self, rank: int) -> list[str]:
        url = self.place.at("logs", _log_name(rank))
        return storage.read(url).decode().splitlines() if storage.exists(url) else []


class Line:
    """A progress bar on a terminal; a plain line now and then elsewhere."""

    def __init__(self, run: Run, name: str, console: Console) -> None:
        self.run, self.name, self.console = run, name, console
        self._bar: Progress | None = None
        self._said = 0.0
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task(name, total=run.steps, text="")

    def start(self) -> None:
        """Shows the bar."""
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        """Leaves the bar as it is."""
        if self._bar:
            self._bar.stop()

    def at(self, step: int) -> None:
        """Moves to a step."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, row: dict[str, Any]) -> None:
        """Shows a row of metrics."""
        text = " ".join(f"{name} {value:.3f}" for name, value in row.items() if "." in name)
        if self._bar:
            self._bar.update(self._task, completed=row["step"], text=text)
        elif time.time() - self._said > _BEAT_S or row["step"] == self.run.steps:
            self._said = time.time()
            self.console.print(
                f"{self.name} step {row['step']}/{self.run.steps} {text}", highlight=False
            )


def _log_name(rank: int) -> str:
    return "driver.log" if rank < 0 else f"rank-{rank}.log"


def _told(body: dict[str, Any]) -> str:
    """An event as a line of a log."""
    if body["what"] == "skip":
        keys = ", ".join(body["keys"])
        return f"step {body['step']} skipped, loss or gradient was not finite: {keys}"
    return body["text"]
