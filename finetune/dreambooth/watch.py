"""What a run looks like on its way: grids of samples, and how like the subject they are.

Every look draws the same prompts from the same noise, so that only the weights differ. N pictures.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...data import storage
from ...data.index import Manifest
from ...data.loader import Recipe, once
from ...pretrain import checkpoint
from ...pretrain.diffusion.sampling import Sampling
from ...pretrain.encoder import Opened
from ...pretrain.rundir import RunDir
from ..features import features
from ..metrics import subject
from ..sample import Painter, grid, painter, png
from .advice import Look

ROWS = "looks.jsonl"


@dataclass(frozen=True)
class Watch:
    """What is drawn at each look, and what it is held against."""

    place: RunDir
    base: Painter
    encoder: Opened
    how: Sampling
    subject_prompt: str
    class_prompt: str
    photos_NHWC: Tensor
    """The subject's own pictures."""
    count: int = 8
    """Pictures of each prompt."""
    extra: Sequence[str] = ()
    """Prompts that are shown, not measured."""
    _kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def before(self) -> Look:
        """The base's own look, step 0; drawn once."""
        images, look = self._look(self.base, 0)
        self._keep(images, look)
        return look

    def after(self, step: int) -> Look:
        """The look after a step whose checkpoint is there."""
        with torch.random.fork_rng():
            drawn = painter(self.place, step=step)
        images, look = self._look(drawn, step)
        self._keep(images, look)
        return look

    def looks(self) -> list[Look]:
        """All that were kept, in order of their steps."""
        rows = {row["step"]: Look(**row) for row in self.place.rows(ROWS)}
        return [rows[step] for step in sorted(rows)]

    def catch_up(self, told: Callable[[Look], None] = lambda look: None) -> list[Look]:
        """Looks at the base and at every checkpoint that is there and was not looked at."""
        done = {look.step for look in self.looks()}
        if 0 not in done:
            told(self.before())
        for step in checkpoint.steps(self.place.url):
            if step not in done:
                told(self.after(step))
        return self.looks()

    def grid_of(self, step: int) -> bytes:
        """The PNG of a look."""
        return storage.read(self.place.at("samples", f"{step:08d}.png"))

    def _look(self, drawn: Painter, step: int) -> tuple[Tensor, Look]:
        texts = [self.subject_prompt, self.class_prompt]
        mine, others = (drawn.draw([text] * self.count, self.how) for text in texts)
        shown = drawn.draw(list(self.extra), self.how, first=self.count) if self.extra else mine[:0]
        photos_MD = self._features("photos", lambda: self.photos_NHWC)
        before_ND = self._features("before", lambda: self._class_before())
        class_ND = features(self.encoder, others)
        found = subject.fidelity(features(self.encoder, mine), photos_MD)
        told = Look(
            step=step,
            similarity=found.similarity,
            among=found.among,
            drift=subject.drift(class_ND, before_ND, photos_MD),
            diversity=subject.diversity(class_ND) / max(subject.diversity(before_ND), 1e-9),
        )
        return torch.cat([mine, others, shown]), told

    def _class_before(self) -> Tensor:
        return self.base.draw([self.class_prompt] * self.count, self.how)

    def _features(self, name: str, images: Callable[[], Tensor]) -> Tensor:
        if name not in self._kept:
            self._kept[name] = features(self.encoder, images())
        return self._kept[name]

    def _keep(self, images_NHWC: Tensor, look: Look) -> None:
        sheet = png(grid(images_NHWC, self.count))
        storage.write(self.place.at("samples", f"{look.step:08d}.png"), sheet)
        rows = [*self.place.rows(ROWS), look._asdict()]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write(self.place.at(ROWS), text.encode())


def pictures(manifest: Manifest, base: Painter) -> Tensor:
    """(N, H, W, 3) uint8: a subject's pictures, cut at the middle to the model's size."""
    recipe = Recipe(text="txt", image_size=base.run.model.image_size, seed=0)
    parts = [batch.image_BCHW.permute(0, 2, 3, 1) for batch in once(manifest, base.text, recipe)]
    return torch.cat(parts).contiguous()
