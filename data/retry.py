"""Faults that pass: tried again with jitter until a deadline, and slow requests raced by a second.

Two layers. `insist` repeats a call while its fault is a `Passing` one. `race` runs one attempt,
and, should it be late for its kind, a second one beside it: the first to finish wins and the
other is cut. What happened is counted in `counters`, one per process.
"""

import os
import random
import socket
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import StorageError

T = TypeVar("T")
_TICK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long to insist, and when a slow request is asked a second time."""

    deadline_s: float = 900.0
    """Seconds one range may take with all its attempts. A quarter of an hour outlasts most
    outages of a bucket; a run that would die is worth the wait."""
    first_s: float = 10.0
    """The same for a host that has not answered this process yet: its name may be wrong."""
    connect_s: float = 5.0
    """Seconds until a connection must stand."""
    silence_s: float = 15.0
    """Seconds without a byte after which an attempt is given up."""
    pause_s: float = 0.1
    """The first pause is drawn from [0, pause_s), and each further one from twice the range."""
    longest_pause_s: float = 10.0
    """Upper end of the last ranges. A Retry-After of the server may be longer."""
    hedge: bool = True
    """Whether a late request is raced by a second one."""
    hedge_after_s: float = 1.0
    """A request is never late before."""
    hedge_times: float = 4.0
    """A request is late after so many times the median of its host and size."""
    hedge_cold_s: float = 3.0
    """When a request is late while there is no median yet."""
    hedge_share: float = 0.05
    """Second requests are at most this share of all requests (and two more)."""


DEFAULT = Policy()


@dataclass
class Counters:
    """What was asked of storage by this process; safe to add to from any thread."""

    requests: int = 0
    """Attempts that were started, second requests included."""
    bytes: int = 0
    """Bytes handed over to callers."""
    retries: int = 0
    """Attempts that followed a fault."""
    hedges: int = 0
    """Second requests beside late ones."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, bytes: int = 0, retries: int = 0, hedges: int = 0) -> None:
        """Adds to the counts."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.retries += retries
            self.hedges += hedges

    def now(self) -> dict[str, int]:
        """A copy of the counts, to compare with a later one."""
        names = ("requests", "bytes", "retries", "hedges")
        with self._lock:
            return {name: getattr(self, name) for name in names}


class Passing(Exception):
    """A fault that may be gone at the next attempt.

    Args:
        said: what happened.
        after_s: seconds that the server asked to wait.
        answered: whether the host is there: it let us connect.
        late: whether the deadline has ended the attempt; the fault before it tells more.
    """

    def __init__(
        self, said: str, *, after_s: float = 0.0, answered: bool = True, late: bool = False
    ) -> None:
        super().__init__(said)
        self.after_s, self.answered, self.late = after_s, answered, late


class Memory:
    """What a process has learned of its hosts: which have answered, and how fast."""

    def __init__(self) -> None:
        self.answered: set[str] = set()
        self._lock = threading.Lock()
        self._took: defaultdict[tuple[str, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=64)
        )

    def took(self, host: str, size: int, seconds: float) -> None:
        """Notes the duration of a good request."""
        with self._lock:
            self._took[host, size.bit_length()].append(seconds)

    def late_s(self, host: str, size: int, policy: Policy) -> float:
        """Seconds after which a request of `size` bytes is late."""
        with self._lock:
            took = tuple(self._took[host, size.bit_length()])
        if len(took) < 5:
            return max(policy.hedge_after_s, policy.hedge_cold_s)
        return max(policy.hedge_after_s, policy.hedge_times * statistics.median(took))

    def may_hedge(self, policy: Policy) -> bool:
        """Whether one more second request stays within the share."""
        return counters.hedges < 2 + policy.hedge_share * counters.requests


class Call:
    """One attempt under way. Another thread may cut it: what it waits for then fails at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cut = False

    def holds(self, connected: socket.socket | None) -> None:
        """Says which socket the attempt waits for; None before the socket may serve another."""
        with self._lock:
            self._socket = connected
            if self._cut and connected:
                raise Passing("cut off")

    def cut(self) -> None:
        """Ends the attempt."""
        with self._lock:
            self._cut = True
            if self._socket:
                with suppress(OSError):  # it is closed already
                    # The plain socket's: that of a TLS socket is not meant for two threads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Race:
    """One question, asked by the caller's thread and, when that is late, by a second one."""

    def __init__(self, ask: Callable[[Call], Any], late: float, end: float, policy: Policy):
        self.ask, self.late, self.end, self.policy = ask, late, end, policy
        self.first, self.second = Call(), Call()
        self.won: Any = None
        self.fault: Exception | None = None
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._over = False

    def run(self) -> Any:
        watch.enter(self)
        try:
            return self.ask(self.first)
        except Passing as err:
            with self._lock:
                thread, self._over = self.thread, True
            if thread:
                thread.join()
            if self.won is not None:
                return self.won
            if time.monotonic() >= self.end:
                raise Passing("no whole answer by the deadline", late=True) from err
            raise
        finally:
            watch.leave(self)
            with self._lock:
                self._over = True
            self.second.cut()

    def look(self, now: float) -> None:
        """The watch's part: starts the second request, and ends both at the deadline."""
        if now >= self.end:
            self.first.cut()
            self.second.cut()
        elif now >= self.late and self.thread is None and memory.may_hedge(self.policy):
            with self._lock:
                if self._over:
                    return
                counters.add(hedges=1)
                self.thread = threading.Thread(target=self._again, name="hedge", daemon=True)
                self.thread.start()

    def _again(self) -> None:
        try:
            self.won = self.ask(self.second)
        except Exception as err:
            self.fault = err  # not told: the first request's own fault is
        else:
            self.first.cut()


class _Watch:
    """One thread that looks after all races of the process, and ends when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._races: set[_Race] = set()
        self._thread: threading.Thread | None = None

    def enter(self, race: _Race) -> None:
        with self._lock:
            self._races.add(race)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
                self._thread.start()

    def leave(self, race: _Race) -> None:
        with self._lock:
            self._races.discard(race)

    def _work(self) -> None:
        idle = 0
        while True:
            time.sleep(_TICK_S)
            with self._lock:
                races = list(self._races)
                idle = 0 if races else idle + 1
                if idle > 10:
                    self._thread = None
                    return
            now = time.monotonic()
            for race in races:
                race.look(now)


def race(ask: Callable[[Call], T], *, host: str, size: int, end: float, policy: Policy) -> T:
    """What `ask` returns, from whichever of at most two requests is done first.

    Args:
        ask: makes one request; safe to call from two threads at once.
        host: whom it asks.
        size: bytes expected, for what is usual.
        end: time on the monotonic clock when both are cut.
        policy: when a second one starts, and whether.
    """
    began = time.monotonic()
    late = began + memory.late_s(host, size, policy) if policy.hedge else end
    done = _Race(ask, late, end, policy).run()
    memory.took(host, size, time.monotonic() - began)
    return done


def insist(
    call: Callable[[float], T],
    *,
    what: str,
    host: str,
    policy: Policy = DEFAULT,
    stop: threading.Event | None = None,
) -> T:
    """What `call` returns, called again after each `Passing` fault until the deadline.

    Args:
        call: gets the deadline on the monotonic clock.
        what: the URL and range, for the message.
        host: whom it asks; one that never answered is given up sooner.
        policy: deadline and pauses.
        stop: ends the pauses and with them the insisting.

    Raises:
        StorageError: the deadline passed, or `stop` was set; names the attempts and last cause.
    """
    began = time.monotonic()
    attempts = 0
    fault = Passing("nothing")
    while True:
        attempts += 1
        try:
            done = call(began + policy.deadline_s)
        except Passing as err:
            fault = fault if err.late and attempts > 1 else err
        else:
            memory.answered.add(host)
            return done
        if fault.answered:
            memory.answered.add(host)
        known = host in memory.answered
        spent = time.monotonic() - began
        left = (policy.deadline_s if known else min(policy.first_s, policy.deadline_s)) - spent
        reach = min(policy.longest_pause_s, policy.pause_s * 2 ** min(attempts - 1, 30))
        pause = max(fault.after_s, _jitter.uniform(0.0, reach))
        if pause >= left or (stop and stop.is_set()):
            raise StorageError(
                f"{what}: given up after {attempts} attempts in {spent:.1f} s. The last said: "
                f"{fault}. Check the network, the server and, for s3, AWS_ENDPOINT_URL."
            ) from fault
        if stop:
            stop.wait(pause)
        else:
            time.sleep(pause)
        counters.add(retries=1)


# Not the generator that a user seeds: ranks with one seed must not come back all at once.
_jitter = random.SystemRandom()
counters = Counters()
memory = Memory()
watch = _Watch()


def _forget() -> None:
    """In a child after a fork, locks may be held by threads that are not there."""
    counters.__init__()
    memory.__init__()
    watch.__init__()


os.register_at_fork(after_in_child=_forget)
