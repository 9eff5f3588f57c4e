"""The seam: a task joins a model and its objectives in one module and maps a batch to losses.

It is the only thing that an engine wraps, and nothing else owns a training step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.batch import Batch
from ..errors import RecipeError
from .control import Control, Port
from .denoiser import Denoiser
from .eye import REGIONS, Eye
from .first_stage import Held, Moments
from .mixing import Mixing
from .model import Model
from .objective import Objective, Score, View, Words
from .reader import Reader, States
from .staged import Staged


class Losses(NamedTuple):
    """What one batch cost. Sums and counts, so that ranks and micro-batches add up exactly.

    A tuple, since what a module returns must be one for ZeRO-3 to find the tensors in it.
    """

    total: Tensor
    """0-d; the mean over rows of the weighted losses. Backward starts here."""
    sums: dict[str, tuple[Tensor, Tensor]]
    """`mlm.loss` -> (sum, count), `mlm.accuracy` -> (hits, tries); detached."""
    applied: bool = True
    """Whether an optimiser step came of it; False where loss or gradient was not finite."""


def merge(parts: Sequence[Losses]) -> Losses:
    """The losses of micro-batches of equal rows as those of one batch."""
    return Losses(
        total=torch.stack([part.total.detach() for part in parts]).mean(),
        sums={name: _total([part.sums[name] for part in parts]) for name in parts[0].sums},
    )


def _total(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([a for a, _ in pairs]).sum(), torch.stack([b for _, b in pairs]).sum()


class Task(nn.Module):
    """Model and heads, joined. B rows, N regions."""

    def __init__(
        self,
        model: Model,
        objectives: Sequence[Objective],
        words: Words,
        mixing: Mixing | None = None,
        control: Control | None = None,
    ) -> None:
        super().__init__()
        self.mixing = mixing
        self.spec, self.objectives, self.words = model, tuple(objectives), words
        self.sizes = model.sizes(words)
        self.model = model.build(words)
        self.frozen = model.frozen
        self.stage = Held(model.stage) if model.stage else None
        """No submodule: no engine and no checkpoint has it."""
        self.readers = tuple(map(Reader, model.texts if isinstance(model, Denoiser) else ()))
        """Frozen text encoders; no submodules either."""
        self.eye = Eye(model.eye) if model.eye else None
        self.heads = nn.ModuleDict({o.kind: o.head(self.sizes) for o in objectives})
        self.base: str | None = None
        """Digest of the weights that adapters stand on; None where there are no adapters."""
        self.kept: tuple[nn.Parameter, ...] = ()
        """Parameters that adapters use outside the module that they belong to."""
        self.control = Port(control, model, self.model) if control else None
        if self.control:  # it alone is trained
            self.model.requires_grad_(False)
            self.heads.requires_grad_(False)

    @property
    def anchor(self) -> Tensor:
        """A parameter of the model: its device and type are the task's."""
        return next(iter(self.model.parameters()))

    @property
    def shared(self) -> tuple[nn.Parameter, ...]:
        """Parameters that others use outside the module that they belong to."""
        words = getattr(self.model, "words", None)
        own: tuple[nn.Parameter, ...] = getattr(self.model, "kept", ())
        used = [*([words.weight] if words is not None else []), *own, *self.kept]
        return tuple({id(p): p for p in used}.values())

    def recompute(self) -> None:
        """Has the model compute activations again in the backward pass rather than keep them.

        Raises:
            RecipeError: the model's module has no attribute `recompute`, which says that it can.
        """
        if not hasattr(self.model, "recompute"):
            raise RecipeError(
                f"{type(self.model).__name__} cannot recompute activations. Set recompute=false "
                "in the shape, or run its blocks under torch.utils.checkpoint."
            )
        self.model.recompute = True

    def look(self, batch: Batch) -> View:
        """The whole batch, nothing hidden; its images as latents where there is a first stage."""
        batch = batch.to(self.anchor.device)
        dtype = self.anchor.dtype
        if self.stage is None:
            return self.view(batch, batch.image_BCHW.to(dtype) / 127.5 - 1.0)
        if batch.image_BCHW.is_meta:  # `plan` asks: a latent's shape is all there is of it
            return self.view(batch, self.stage.like(batch.image_BCHW).to(dtype))
        if "latent" in batch.arrays:
            known = Moments(batch.arrays["latent"], batch.arrays.get("logvar"))
            return self.view(batch, self.stage.here().scaled(known, batch.draws_B).to(dtype))
        with torch.no_grad():
            image_BCHW = batch.image_BCHW.float() / 127.5 - 1.0
            latent_BCHW = self.stage.on(image_BCHW.device).encode(image_BCHW, batch.draws_B)
        return self.view(batch, latent_BCHW.to(dtype))

    def view(self, batch: Batch, image_BCHW: Tensor) -> View:
        """A batch on the task's device with what the model is to see as its images."""
        shape, device = (batch.rows, self.sizes.regions), image_BCHW.device
        features_BNF, boxes_BN4 = self.spec.look(self._arrays(batch)) or (None, None)
        contexts = tuple(self._states(number, batch) for number in range(len(self.readers)))
        return View(
            batch=batch,
            image_BCHW=image_BCHW,
            tokens_BL=batch.tokens_BL,
            real_BL=batch.real_BL,
            contexts=contexts,
            classes_B=self._classes(batch),
            hidden_BN=torch.zeros(shape, dtype=torch.bool, device=device),
            matched_B=batch.present_B,
            features_BNF=features_BNF,
            boxes_BN4=boxes_BN4,
        )

    def _arrays(self, batch: Batch) -> Mapping[str, Tensor]:
        """A batch's arrays, with the regions of its pictures where no cache had them."""
        if self.eye is None or REGIONS in batch.arrays:
            return batch.arrays
        if batch.image_BCHW.is_meta:  # `plan` asks: shapes are all there is
            sizes = (self.sizes.regions, self.sizes.region_values)
            return {**batch.arrays, **self.eye.like(batch.image_BCHW, *sizes)}
        return {**batch.arrays, **self.eye.look(batch.image_BCHW)}

    def _classes(self, batch: Batch) -> Tensor | None:
        """Number of each row's class, where the model is told it."""
        spec = self.spec
        if not isinstance(spec, Staged) or not spec.classes:
            return None
        if batch.draws_B.is_meta:  # `plan` asks: that there are numbers is all there is of them
            return torch.zeros_like(batch.draws_B)
        texts = batch.texts or ("",) * batch.rows
        holes = [False] * batch.rows if batch.hole_B is None else batch.hole_B.tolist()
        rows = zip(batch.fields, batch.keys, texts, holes, strict=True)
        numbers = [
            0 if hole else spec.class_of(fields, key, text) for fields, key, text, hole in rows
        ]
        return torch.tensor(numbers, device=batch.draws_B.device)

    def _states(self, number: int, batch: Batch) -> States:
        """What a frozen encoder says of the texts of a batch."""
        reader = self.readers[number]
        if batch.tokens_BL.is_meta:  # `plan` asks: shapes are all there is
            shape = batch.tokens_BL.shape
            states_BLD = self.anchor.new_empty((*shape, reader.record.width))
            return States(states_BLD, batch.real_BL, states_BLD[0])
        if "text" in batch.arrays:
            return reader.known(batch.arrays["text"], batch.arrays["text.real"], self.anchor)
        return reader.read(batch.texts, self.anchor)

    def scores(
        self, batch: Batch, objectives: Sequence[Objective] | None = None
    ) -> tuple[Any, dict[str, Score]]:
        """What the model gives in one pass, and each objective's verdict on it."""
        chosen = self.objectives if objectives is None else objectives
        view = self.look(batch)
        view = self.control.show(view) if self.control else view
        for objective in chosen:
            view = objective.hide(view, self.words)
        seen = self.model(view)
        return seen, {o.kind: o.score(self.heads[o.kind], seen) for o in chosen}

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch. Equal rows a rank make the mean over ranks the global mean.

        Where objectives take turns, those whose turn it is at the batch's step; of a batch that is
        of no step (in evaluation) all of them, each in a pass with those that it trains with.
        """
        if self.mixing is None:
            return self._losses(batch, self.objectives)
        if batch.step is not None:
            return self._losses(batch, self._named(self.mixing.at(batch.step)))
        parts = [self._losses(batch, self._named(group)) for group in self.mixing.groups]
        weighted = zip(parts, self.mixing.shares, strict=True)
        names = {name for part in parts for name in part.sums}
        return Losses(
            total=torch.stack([part.total * share for part, share in weighted]).sum(),
            sums={n: _total([part.sums[n] for part in parts if n in part.sums]) for n in names},
        )

    def _named(self, kinds: Sequence[str]) -> list[Objective]:
        return [objective for objective in self.objectives if objective.kind in kinds]

    def _losses(self, batch: Batch, objectives: Sequence[Objective]) -> Losses:
        for objective in objectives:
            batch = objective.prepare(self, batch)
        seen, scores = self.scores(batch, objectives)
        holes_B, weight_B = seen.view.batch.hole_B, seen.view.batch.weight_B
        total = torch.zeros((), device=self.anchor.device)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for objective in objectives:
            score = scores[objective.kind]
            valid_B = score.valid_B if holes_B is None else score.valid_B & ~holes_B
            summed = (score.loss_B * valid_B).sum()
            weighted = summed
            if weight_B is not None:
                weighted = (score.loss_B * valid_B * weight_B).sum()
                sums |= _by_source(objective.kind, score.loss_B, valid_B, seen.view.batch)
            total = total + objective.weight * weighted / batch.rows
            sums[f"{objective.kind}.loss"] = (summed.detach(), valid_B.sum())
            sums[f"{objective.kind}.accuracy"] = (score.hits, score.tries)
            for name, (value_B, counts_B) in score.parts.items():
                part_B = counts_B & valid_B
                sums[f"{objective.kind}.{name}"] = ((value_B * part_B).sum(), part_B.sum())
        return Losses(total=total, sums=sums)


def _by_source(
    kind: str, loss_B: Tensor, valid_B: Tensor, batch: Batch
) -> dict[str, tuple[Tensor, Tensor]]:
    """The loss of the first and of all other sources apart, for `Losses.sums`."""
    assert batch.source_B is not None  # it comes with the weights
    first_B = batch.source_B == 0
    return {
        f"{kind}.loss.{name}": ((loss_B.detach() * part_B).sum(), part_B.sum())
        for name, part_B in (("first", valid_B & first_B), ("others", valid_B & ~first_B))
    }
