"""The driver and its hosts where some die as they start. Ray is stood in for; no cluster."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from diptych.cluster import crew, launch
from diptych.cluster.crew import Crew, Member
from diptych.cluster.job import Event, Outcome, Pulse
from diptych.cluster.launch import Drive
from diptych.cluster.shapes import Shape
from diptych.errors import ClusterError
from diptych.pretrain.run import Run

GOOD, DEAD = "good", "dead"
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
        return SimpleNamespace(node=told, warm=told, ask=told, poll=told, clear=told)

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
