"""Images from a trained task and texts: guidance, sampler, first stage, all put together.

Image number n of a seed is the same whatever is drawn beside it. B rows, C channels, H x W pixels,
h x w cells of a latent.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.batch import Batch
from ...data.draws import normal, row_key
from ...data.tokens import Text
from ...errors import RecipeError
from ..denoiser import Denoiser
from ..objective import View
from ..task import Task
from .guidance import guide_scale
from .sampling import Ask, Pull, Sampling

Change = Callable[[View], View]
"""What is done to the view of rows before they are drawn: (2B, ...), the guided half first, of
which the other half is what to be led away from; (B, ...) where there is no guidance."""


@dataclass(frozen=True)
class Given:
    """What images have beside their prompts, each its own."""

    start_NChw: Tensor | None = None
    """Scaled latents of noise to begin from, instead of those of the seed."""
    pull: Callable[[int, int], Pull] | None = None
    """(first, last) -> what these images are pulled by: a classifier's gradient."""
    original: tuple[int, int] | None = None
    """(width, height) of the pictures that these are drawn as if cut from, in pixels; for models
    with `placed`, which small ones teach to blur. Their own size by default."""
    crop: tuple[int, int] = (0, 0)
    """(left, top) of the cut."""


NOTHING = Given()
ROWS = 32
"""Images drawn together, half as many where they are guided."""


def generate(
    task: Task,
    text: Text,
    prompts: Sequence[str],
    how: Sampling | None = None,
    *,
    first: int = 0,
    rows: int = ROWS,
    change: Change = lambda view: view,
    given: Given = NOTHING,
    told: Callable[[int], None] = lambda looks: None,
) -> Tensor:
    """Returns uint8 images (B, H, W, 3) on the CPU, one for each prompt.

    Args:
        task: of a denoiser; put into evaluation mode and back.
        text: its tokenizer.
        prompts: one for each image.
        how: steps, guidance, sampler, seed, size.
        first: number of the first image: its noise depends on it and on the seed alone.
        rows: of one pass of the network.
        change: see `Change`.
        given: see `Given`.
        told: told of each look of the network; there will be about `looks`.

    Raises:
        RecipeError: the task draws no images, or not of this size or with this sampler.
    """
    how = how or Sampling()
    height, width = cells(task, how, 1)
    images_BHWC = torch.empty((len(prompts), height, width, 3), dtype=torch.uint8)
    drawn = latents(
        task, text, prompts, how, first=first, rows=rows, change=change, given=given, told=told
    )
    for at, latent_BChw in drawn:
        assert task.stage is not None  # every denoiser has one
        with torch.no_grad():
            image_BCHW = task.stage.on(latent_BChw.device).decode(latent_BChw)
        images_BHWC[at : at + len(latent_BChw)] = to_bytes(image_BCHW)
    return images_BHWC


def to_bytes(image_BCHW: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) on the CPU of images in [-1, 1]: clamped, and cut as CompVis does."""
    shares = ((image_BCHW.float() + 1) / 2).clamp(0, 1)
    return (shares * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


def latents(
    task: Task,
    text: Text,
    prompts: Sequence[str],
    how: Sampling,
    *,
    first: int = 0,
    rows: int = ROWS,
    change: Change = lambda view: view,
    given: Given = NOTHING,
    told: Callable[[int], None] = lambda looks: None,
) -> Iterator[tuple[int, Tensor]]:
    """As `generate`, but yields (place of the first, the scaled latents (b, C, h, w) to decode)."""
    spec, training = denoiser(task), task.training
    rows = max(1, rows // (1 if how.guidance_scale == 1 else 2))
    shape = (spec.first_stage.channels, *cells(task, how, spec.first_stage.factor))
    _require_start(given.start_NChw, (len(prompts), *shape))
    for at in range(0, len(prompts), rows):
        some = prompts[at : at + rows]
        numbers = range(first + at, first + at + len(some))
        keys_B = torch.tensor([row_key("generate", how.seed, number) for number in numbers])
        task.eval()
        try:
            with torch.no_grad():
                ask = asked(task, text, some, keys_B, how, _placing(task, how, given, change))
                found = _drawn(task, ask, keys_B, shape, how, given, at, told)
        finally:
            task.train(training)
        yield at, found


def denoiser(task: Task) -> Denoiser:
    """The record of a task's denoiser.

    Raises:
        RecipeError: it has another kind of model.
    """
    if not isinstance(task.spec, Denoiser):
        raise RecipeError(f"model {task.spec.kind!r} draws no images; name a run of a denoiser.")
    return task.spec


def looks(how: Sampling, images: int, rows: int = ROWS) -> int:
    """How often the network will be asked, about: for a progress bar."""
    at_once = max(1, rows // (1 if how.guidance_scale == 1 else 2))
    return how.steps * -(-images // at_once) * (2 if how.sampler == "heun" else 1)


def asked(
    task: Task, text: Text, prompts: Sequence[str], keys_B: Tensor, how: Sampling, change: Change
) -> Ask:
    """The network as a function of what is noised, guided towards prompts.

    Args:
        task: of a denoiser.
        text: its tokenizer.
        prompts: one for each row.
        keys_B: random key of each row, int64.
        how: its guidance scale and negative text.
        change: see `Change`.
    """
    guided = how.guidance_scale != 1
    texts = [*prompts, *([how.negative] * len(prompts) if guided else [])]
    keys_B = torch.cat([keys_B, keys_B]) if guided else keys_B
    view = change(task.view(*_told(task, text, texts, keys_B)))

    def ask(x: Tensor, time_B: Tensor) -> Tensor:
        copies = 2 if guided else 1
        shown = replace(
            view,
            image_BCHW=x.repeat(copies, 1, 1, 1).to(task.anchor.dtype),
            time_B=time_B.repeat(copies),
        )
        said = task.model(shown).said_BCHW.float()
        if not guided:
            return said
        with_it, without = said.chunk(2)
        return guide_scale(with_it, without, how.guidance_scale)

    return ask


def _told(task: Task, text: Text, texts: list[str], keys_B: Tensor) -> tuple[Batch, Tensor]:
    """A batch of texts without images, and nothing in the images' place."""
    tokens_BL, real_BL = text.encode(texts)
    batch = Batch(
        keys=tuple(str(place) for place in range(len(texts))),
        draws_B=keys_B,
        image_BCHW=torch.empty((len(texts), 3, 0, 0), dtype=torch.uint8),
        tokens_BL=tokens_BL,
        real_BL=real_BL,
        fields=({},) * len(texts),
        texts=tuple(texts),
    ).to(task.anchor.device)
    return batch, batch.image_BCHW.float()


def _drawn(
    task: Task,
    ask: Ask,
    keys_B: Tensor,
    shape: tuple[int, ...],
    how: Sampling,
    given: Given,
    at: int,
    told: Callable[[int], None],
) -> Tensor:
    device, last = task.anchor.device, at + len(keys_B)

    def normals(name: str) -> Tensor:
        drawn = normal(keys_B, name, math.prod(shape))
        return drawn.float().view(-1, *shape).to(device)

    def heard(x: Tensor, time_B: Tensor) -> Tensor:
        told(1)
        return ask(x, time_B)

    start = given.start_NChw
    x_T = normals("start") if start is None else start[at:last].to(device, torch.float32)
    pull = given.pull(at, last) if given.pull else None
    return task.objectives[0].sample(heard, x_T, how, normals, pull)


def _require_start(start_NChw: Tensor | None, shape: tuple[int, ...]) -> None:
    if start_NChw is not None and tuple(start_NChw.shape) != shape:
        raise RecipeError(
            f"latents of shape {tuple(start_NChw.shape)} to begin from; these images are drawn "
            f"from {shape}. They were made by another model, or for another size or number."
        )


def _placing(task: Task, how: Sampling, given: Given, change: Change) -> Change:
    """The change, and before it the numbers that a model with `placed` is told."""
    if given.original is None and given.crop == (0, 0):
        return change
    if not denoiser(task).placed:
        raise RecipeError(
            "this model is not told sizes and crops; leave original size and crop, or train one "
            "with model.placed=true."
        )
    height, width = cells(task, how, 1)
    whole, (left, top) = given.original or (width, height), given.crop

    def changed(view: View) -> View:
        numbers = torch.tensor([whole[1], whole[0], top, left, height, width], dtype=torch.float32)
        placed_B6 = numbers.to(task.anchor.device).expand(view.batch.rows, -1)
        return change(replace(view, batch=replace(view.batch, placed_B6=placed_B6)))

    return changed


def cells(task: Task, how: Sampling, factor: int) -> tuple[int, int]:
    """(height, width) of what is drawn, in units of `factor` pixels.

    Raises:
        RecipeError: the model does not draw that size, or `how` clips latents.
    """
    spec = denoiser(task)
    width, height = how.size or (spec.image_size, spec.image_size)
    if width % spec.multiple or height % spec.multiple:
        raise RecipeError(
            f"size {width}x{height}: this model draws widths and heights that are multiples of "
            f"{spec.multiple} pixels."
        )
    if (how.threshold or how.clip) and spec.first_stage.factor > 1:
        raise RecipeError("threshold and clip are for pixels; this model draws latents.")
    return height // factor, width // factor
