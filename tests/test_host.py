"""What a host shows to the ranks that it forks."""

import os

import pytest
import ray

from diptych.cluster.host import spawn

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


def test_no_gpu_is_seen_that_ray_has_not_given() -> None:
    host = spawn(1, 0)
    seen = host.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert ray.get(seen, timeout=60) == ""
    ray.kill(host)
