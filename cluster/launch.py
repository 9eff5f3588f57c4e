"""The driver of a run: gather hosts, listen to their ranks, and go on with others when some break.

Plain Ray actors rather than Ray Train: see docs/run.md for what was measured.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import ray
from ray.exceptions import RayError

from ..config import plain
from ..errors import ClusterError, NonFiniteError, Stopped
from ..pretrain import checkpoint
from ..pretrain.run import Run
from . import auth, hang
from .crew import Crew, Member, draining
from .job import NEXT, NO, NOW, Event, Job, Outcome, Place, Pulse
from .lean import lean
from .shapes import Shape

_BLAME_S = 5.0
_TICK_S = 0.25
_FORK_S = 60.0
_SHOWN = 12
_BROKEN = "a machine that joined is broken, and this group does not grow; workers die as they start"
_HOW = {"died": "died", "cut": "lost touch with the others"}


class Lost(Exception):
    """A rank, its host or its node is gone or stuck; the group can be formed again."""


@dataclass
class Drive:
    """One driver's work on one run.

    Args:
        run: the recipe.
        shape: the machines.
        url: the run's folder.
        data: digest of the training data.
        hear: told of every event of every worker, and of the driver itself (rank -1).
        begin: told of each attempt, its first step and where its ranks are; gives it a number.
        stopping: asked several times a second; once true, the run keeps a checkpoint and ends.
    """

    run: Run
    shape: Shape
    url: str
    data: str
    hear: Callable[[Event], None]
    begin: Callable[[int, list[Place]], int]
    stopping: Callable[[], bool]
    _blamed: dict[int, list[str]] = field(default_factory=dict[int, list[str]])

    def go(self) -> int:
        """Runs to the end, through the loss of workers, and returns the steps done.

        Raises:
            ClusterError: workers were lost more often than the shape allows.
            NonFiniteError: going back to the last checkpoint did not help.
            DiptychError: a worker met an error that no restart mends.
            Stopped: `stopping` said so.
        """
        failures, reached, back = 0, -1, -1
        crew = Crew(self.shape)
        try:
            while True:
                start = max(checkpoint.steps(self.url), default=0)
                if start == self.run.steps:
                    return start
                failures = 0 if start > reached else failures
                reached = max(start, reached)
                try:
                    self._attempt(crew, start)
                except Lost as err:
                    failures += 1
                    self._say("restart", f"{err}; restart {failures} of {self.shape.max_failures}")
                    if failures > self.shape.max_failures:
                        raise ClusterError(
                            f"workers died {failures} times without a new checkpoint after step "
                            f"{start}: {err}. The logs are in {self.url}/logs. Raise "
                            "max_failures, or mend the cause."
                        ) from err
                except NonFiniteError as err:
                    if err.step <= back:
                        raise NonFiniteError(f"{err} {self._keys()}", err.step) from err
                    back = err.step
                    self._say("rollback", f"{err} Going back to step {start}, once.")
        finally:
            crew.close()

    def _attempt(self, crew: Crew, start: int) -> None:
        """Trains until the end, or until the group is to be formed anew."""
        self._blamed.clear()  # of steps that are taken again
        sizes = self.shape.sizes(self.run)
        members = crew.gather([shape.workers for shape in sizes], self.stopping)
        [shape] = [shape for shape in sizes if shape.workers == len(members)]
        try:
            places = ray.get([m.actor.fork.remote() for m in members], timeout=_FORK_S)
            attempt = self.begin(start, places)
            job = Job(plain(self.run), plain(shape), self.url, self.data, attempt, start)
            results = [m.actor.run.remote(n, job, places[0]) for n, m in enumerate(members)]
            larger = [each.workers for each in sizes if each.workers > len(members)]
            self._watch(crew, members, results, larger)
        except RayError as err:
            raise Lost(f"a worker died ({type(err).__name__})") from err

    def _watch(
        self, crew: Crew, members: list[Member], results: list[Any], larger: list[int]
    ) -> None:
        """Listens until all ranks are done.

        Raises:
            Stopped: as it was asked to.
        """
        running, wish, asked = results, NO, False
        pulses: dict[Member, Pulse] = {}
        while running:
            done, running = ray.wait(running, timeout=_TICK_S)
            for rank, member in enumerate(members):
                if pulse := self._pulse(crew, rank, member):
                    pulses[member] = pulse
            if any(ray.get(result).kind != "done" for result in done):
                self._fail(members, results)
            if running and len(pulses) == len(members):
                self._require_progress(members, [pulses[member] for member in members])
            asked = asked or self.stopping()
            left_s = _left_s(pulses, self.shape.grace_s)
            new = NOW if asked or left_s < inf else NO
            if not new and larger and len(crew.refresh()) >= larger[-1]:
                new = NEXT
            if larger and crew.broken:
                larger = []
                self._say("broken", f"{_BROKEN}: {crew.broken}")
            if new > wish:
                wish = new
                for member in members:
                    member.actor.ask.remote(wish, left_s)
        self._last_words(members)
        outcome: Any = ray.get(results[0])
        steps: int = outcome.steps
        if steps < self.run.steps:
            if asked:
                raise Stopped
            kept = max(checkpoint.steps(self.url), default=0)
            self._say("reform", f"a new group of workers goes on from step {kept}")

    def _pulse(self, crew: Crew, rank: int, member: Member) -> Pulse | None:
        try:
            pulse = member.pulse()
        except RayError as err:
            crew.drop(member)
            raise Lost(f"rank {rank} died with its host ({type(err).__name__})") from err
        self._tell(pulse.events if pulse else [])
        return pulse

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            if event.kind == "event" and event.body["what"] == "skip":
                self._blamed[event.body["step"]] = (
                    self._blamed.get(event.body["step"], []) + event.body["keys"]
                )
            self.hear(event)

    def _last_words(self, members: list[Member]) -> None:
        """What ranks said last, where their hosts still answer."""
        for member in members:
            with contextlib.suppress(RayError):
                asked, member.asked = member.asked, None
                for question in [*([asked] if asked else []), member.actor.poll.remote()]:
                    pulse: Any = ray.get(question, timeout=_BLAME_S)
                    self._tell(pulse.events)

    def _require_progress(self, members: list[Member], pulses: list[Pulse]) -> None:
        if not hang.hung(pulses, self.shape.hang_s):
            return
        text, events = hang.blame([member.actor for member in members], pulses)
        self._tell(events)
        raise Lost(text)

    def _fail(self, members: list[Member], results: list[Any]) -> None:
        """Raises why the group broke: the first cause, not what followed from it."""
        ray.wait(results, num_returns=len(results), timeout=_BLAME_S)
        done, _ = ray.wait(results, num_returns=len(results), timeout=0)
        ended: dict[int, Outcome] = {}
        for rank, result in enumerate(results):
            if result in done:
                try:
                    ended[rank] = ray.get(result)
                except RayError as err:
                    ended[rank] = Outcome("died", text=f"its host is gone ({type(err).__name__})")
        self._last_words([members[rank] for rank in ended])
        for outcome in ended.values():
            if outcome.error:
                raise outcome.error
        for kind in ("died", "failed", "cut"):
            for rank, outcome in ended.items():
                if outcome.kind == kind == "failed":
                    raise ClusterError(f"rank {rank} failed: {outcome.text}")
                if outcome.kind == kind:
                    raise Lost(f"rank {rank} {_HOW[kind]}: {outcome.text}")

    def _say(self, what: str, text: str) -> None:
        self.hear(Event("event", -1, {"what": what, "text": text}))

    def _keys(self) -> str:
        """The samples of the steps that were skipped."""
        keys = [
            key
            for step in sorted(self._blamed)[-self.run.optim.skip_limit :]
            for key in self._blamed[step]
        ]
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        return (
            f"Going back to the last checkpoint did not help. Samples: {', '.join(keys[:_SHOWN])}"
            f"{more}; {self.url}/events.jsonl has them all. Look at them, or lower optim.lr."
        )


def _left_s(pulses: dict[Member, Pulse], grace_s: float) -> float:
    """Seconds until a host or its node is taken away; infinite if none is."""
    nodes = draining()
    told = [nodes[member.node] for member in pulses if member.node in nodes]
    told += [None for pulse in pulses.values() if pulse.leaving]
    return min((grace_s if left is None else left for left in told), default=inf)


@contextlib.contextmanager
def cluster(address: str | None, shape: Shape) -> Iterator[None]:
    """A Ray cluster: a private one on this machine, or the one at an address.

    Raises:
        ClusterError: there is none at the address, or it does not take our token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        cpus = max(os.cpu_count() or 1, shape.workers * shape.cpus_per_worker)
        auth.ensure_token()  # Ray would make one that everybody can read
        with lean():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    else:
        auth.present_token()
        try:
            ray.init(address=address, **options)
        except (RayError, ConnectionError, ValueError, RuntimeError) as err:
            raise ClusterError(
                f"no Ray cluster at {address!r} lets this process in ({err}). Is it up, "
                f"and is the token at {auth.token_path()} its own?"
            ) from err
    try:
        yield
    finally:
        ray.shutdown()
