"""A run that loses two of four nodes, gets one back and is told that one goes: 4, 2, 3, 2 workers.

A script, as it needs a Ray cluster of its own: `python elastic_story.py RECIPE.yaml RUN-URL`. Each
node is a real raylet with one CPU; they are killed as a machine dies, all processes at once.
"""

import sys
import time
from typing import Any

import psutil
import ray
from rank_faults import spawner
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from rich.console import Console

from diptych.cluster import crew
from diptych.cluster.job import Event
from diptych.cluster.shapes import Shape
from diptych.cluster.track import Tracker
from diptych.cluster.train import prepare, run_on
from diptych.config import from_yaml
from diptych.data import storage
from diptych.errors import Stopped
from diptych.finetune.parts import KINDS
from diptych.pretrain.run import parse_run

MICRO = 4
"""Divides the rows of 4, 3 and 2 workers, so that all sum the same gradients, in another order."""
SHAPE = Shape(
    workers=4, min_workers=2, wait_s=6, max_failures=4, keep_checkpoints=9, micro_batch=MICRO
)


def kill(node: Any) -> None:
    """Ends a raylet and all that runs on it, without a word."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()


def drain(node: Any) -> None:
    """A notice of preemption, as a cloud gives it through Ray."""
    reason: Any = autoscaler_pb2
    reason = reason.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=node.gcs_address)
    accepted, why = client.drain_node(node.node_id, reason, "test", int(time.time() + 60) * 1000)
    assert accepted, why


def main(recipe: str, url: str) -> None:
    """Runs the story."""
    run = parse_run(from_yaml(storage.read(recipe).decode(), source=recipe), KINDS, source=recipe)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(4)]
    ray.init(address=cluster.address, log_to_driver=False)
    hear = Tracker.hear
    told: list[str] = []

    def listen(self: Tracker, event: Event) -> None:
        hear(self, event)
        if event.kind != "metrics":
            return
        world, step = len(self.places), event.body["step"]
        if not told and step >= 7:
            told.append("killed")
            for node in nodes[:2]:
                kill(node)
        if told == ["killed"] and world == 2:
            told.append("added")
            cluster.add_node(num_cpus=1, wait=False)
        if told == ["killed", "added"] and world == 3 and step % run.checkpoint_steps:
            told.append("drained")
            drain(nodes[2])
        self.stop_asked = len(told) == 3 and world == 2 and step % run.checkpoint_steps > 2

    Tracker.hear = listen
    place, data = prepare(run, SHAPE, url)
    crew.spawn = spawner(what="nap", key="", times=0, mark="")
    try:
        run_on(run, SHAPE, place, data, console=Console(quiet=True))
    except Stopped:
        print(place.json("status.json"))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
