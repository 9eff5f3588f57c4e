"""A first stage that was trained here, as diffusers has it, with the scale of its latents measured.

B rows, C channels, H x W pixels, h x w cells of a latent.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import to_yaml
from ..data import storage
from ..pretrain.first_stage import Moments, Stage
from ..pretrain.frozen import STAGE
from ..pretrain.models import KlAutoencoder
from ..pretrain.run import Run
from ..pretrain.rundir import RunDir
from ..pretrain.settle import Scale, first_rows, measure
from ..pretrain.task import Task
from .score import opened


def stage_of(run: Run, task: Task) -> Stage:
    """The trained network as a first stage, unscaled."""
    net: Any = task.model.net
    if isinstance(run.model, KlAutoencoder):

        def moments(image_BCHW: Tensor) -> Moments:
            said = net.encode(image_BCHW).latent_dist
            return Moments(said.mean, said.logvar)

    else:

        def moments(image_BCHW: Tensor) -> Moments:
            return Moments(net.encode(image_BCHW).latents)

    return Stage((net,), moments, lambda latent: net.decode(latent).sample)


def write_stage(out: Path, run: Run, task: Task, facts: Mapping[str, Any]) -> Scale:
    """Writes config.json with the measured scaling_factor, weights and README.md; returns it."""
    task.eval().float()
    scale = measure(stage_of(run, task), first_rows(run))
    net: Any = task.model.net
    net.register_to_config(scaling_factor=scale.scale)
    net.save_pretrained(out, safe_serialization=True)
    (out / "README.md").write_text(_card(run, {**facts, **_told(scale)}, type(net).__name__))
    return scale


def publish(place: RunDir) -> dict[str, float]:
    """Leaves the newest weights, averaged where the run averages them, in the run's `first_stage/`.

    From there `first_stage: {weights: RUN}` of a latent run reads them.
    """
    run, _, checkpoint, task = opened(place)
    with tempfile.TemporaryDirectory(prefix="diptych-stage-") as home:
        scale = write_stage(Path(home), run, task, {"run": place.name, "steps": checkpoint.step})
        for file in sorted(Path(home).iterdir()):
            storage.write(place.at(STAGE, file.name), file.read_bytes())
    found = _told(scale)
    place.put(f"{STAGE}/scale.json", found)
    return found


@torch.no_grad()
def said(run: Run, task: Task, image_BCHW: Tensor) -> dict[str, Tensor]:
    """What the network makes of images in [-1, 1]: moments, and the images again of the means."""
    stage = stage_of(run, task.eval())
    found = stage.moments(image_BCHW)
    outputs = {"mean": found.mean, "image": stage.pixels(found.mean)}
    return outputs | ({"logvar": found.logvar} if found.logvar is not None else {})


def _told(scale: Scale) -> dict[str, float]:
    return {
        "scaling_factor": scale.scale,
        "latent_mean": round(scale.mean, 6),
        "latent_deviation": round(scale.deviation, 6),
        "measured_on": scale.rows,
    }


def _card(run: Run, facts: Mapping[str, Any], kind: str) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    sizes = {"latent_channels": run.model.latent_channels, "downsampling": run.model.factor}  # pyright: ignore
    stage = {"kind": "autoencoder" if kind == "AutoencoderKL" else "vq", "weights": ".", **sizes}
    return f"""---
library_name: diffusers
tags: [image-to-image]
---
# {run.name}

A first stage trained by Diptych for {run.steps} steps of {run.batch}:
`diffusers.{kind}.from_pretrained(".")`; in a recipe `first_stage: {json.dumps(stage)}`.

| | |
|---|---|
{rows}
```yaml
{to_yaml(run)}```
"""
