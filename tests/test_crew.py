"""The driver and its hosts where some die as they start. Ray is stood in for; no cluster."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from diptych.cluster import crew, launch
from diptych.cluster.crew import Crew, Member
from diptych.cluster.job import Event, Outcome, Pulse
from diptych.cluster.launch import Drive
from diptych.cluster.shapes import Shape
from diptych.errors import ClusterError, NonFiniteError
from diptych.pretrain.run import Run

GOOD, DEAD = "good", "dead"
_ASKED = ("node", "warm", "ask", "poll", "clear", "fork", "run")
LAST = Pulse([], "step", 5, 0.0, 0.0, False)


class Hosts:
    """Stands in for Ray: what becomes of each host that is asked for, the last for all others."""

    def __init__(self, *fates: str) -> None:
        self.fates, self.asked = list(fates), 0
        self.busy = 0
        """How often ranks are asked until they are done."""

    def spawn(self, cpus: int, gpus: int) -> Any:
        self.asked += 1
        fate = self.fates.pop(0) if len(self.fates) > 1 else self.fates[0]
        told = SimpleNamespace(remote=lambda *_: fate)
        return SimpleNamespace(**dict.fromkeys(_ASKED, told))

    def wait(self, refs: list[Any], timeout: float = 0) -> tuple[list[Any], list[Any]]:
        if isinstance(refs[0], Outcome) and self.busy:
            self.busy -= 1
            return [], refs
        return refs, []

    def get(self, refs: Any, timeout: float = 0) -> Any:
        if DEAD in refs:
            raise RayActorError
        if isinstance(refs, Outcome):
            return refs
        return [f"node of {ref}" for ref in refs] if isinstance(refs, list) else LAST

    def kill(self, actor: Any) -> None:
        pass


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    made = Hosts(GOOD)
    for module in (crew, launch):
        monkeypatch.setattr(module, "ray", made)
        monkeypatch.setattr(module, "draining", dict[str, float])
    monkeypatch.setattr(crew, "spawn", made.spawn)
    yield made


def test_a_few_that_die_as_they_start_are_asked_for_again(hosts: Hosts) -> None:
    hosts.fates = [DEAD, DEAD, GOOD]
    assert len(Crew(Shape(workers=1)).gather([1], lambda: False)) == 1
    assert hosts.asked == 3


def test_many_that_die_as_they_start_end_the_run(hosts: Hosts) -> None:
    hosts.fates = [GOOD, DEAD]
    with pytest.raises(ClusterError, match="workers die as they start"):
        Crew(Shape(workers=2)).gather([2], lambda: False)
    assert hosts.asked == 7


def test_with_fewer_a_run_goes_on_beside_a_broken_machine(hosts: Hosts) -> None:
    hosts.fates = [GOOD, GOOD, DEAD]
    assert len(Crew(Shape(workers=4, min_workers=2)).gather([4, 2], lambda: False)) == 2


def test_deaths_count_until_a_host_is_warm(hosts: Hosts) -> None:
    """Those of a long life do not add up."""
    found = Crew(Shape(workers=1))
    for _ in range(4):
        hosts.fates = [DEAD, DEAD, GOOD]
        for _ in range(3):
            found.refresh()
        [ready] = found.refresh()
        found.drop(ready)
    assert not found.broken


def test_a_broken_machine_that_joins_leaves_a_group_alone(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, small: Callable[..., Run]
) -> None:
    run, said = small(), list[Event]()
    found = Crew(Shape(workers=4, min_workers=2))
    hosts.fates = [GOOD, GOOD, DEAD]
    group = found.gather([4, 2], lambda: False)
    found.broken = ""  # as long as that machine was not there
    monkeypatch.setattr(Member, "pulse", lambda _: LAST)
    drive = Drive(run, found.shape, "u", "d", said.append, lambda *_: 1, lambda: False)
    hosts.busy = 40
    drive._watch(found, group, [Outcome("done", steps=run.steps)] * 2, [4, 3])
    assert hosts.busy == 0
    assert [event.body["what"] for event in said] == ["broken"], "said once"
    assert "workers die as they start" in said[0].body["text"]


def test_samples_of_a_lasting_fault_are_named_once(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, small: Callable[..., Run], tmp_path: Path
) -> None:
    """Not those of other steps that were skipped before going back, and none twice."""
    attempts = iter([(5, 6, 9), (5, 6, 7)])
    run, url = small(), f"file://{tmp_path}/run"
    drive = Drive(run, Shape(workers=1), url, "d", lambda _: None, lambda *_: 1, lambda: False)

    def watch(*_: Any) -> None:
        for step in next(attempts):
            drive._tell([Event("event", 0, {"what": "skip", "step": step, "keys": [f"at {step}"]})])
        raise NonFiniteError("no number.", 7)

    monkeypatch.setattr(drive, "_watch", watch)
    with pytest.raises(NonFiniteError, match=r"Samples: at 5, at 6, at 7; "):
        drive.go()
