"""Finished controls beside a denoiser that draws: opened, given their pictures, weighted, summed.

A control was trained beside one base and steers any other of the same shapes, such as a DreamBooth
run of that base. H x W pixels, C channels.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import decode, storage
from ..data.transforms import Frame, frame
from ..errors import CheckpointError, RecipeError
from ..pretrain.checkpoint import EMA, WEIGHT, open_checkpoint
from ..pretrain.control import Guide, Port, steered
from ..pretrain.diffusion.generate import Change, denoiser, generate
from ..pretrain.diffusion.sampling import Sampling
from ..pretrain.hint import Hint
from ..pretrain.objective import View
from ..pretrain.rundir import RunDir
from .parts import KINDS
from .sample import Painter
from .start import Weights, kept

_PREFIX = "control.net."


@dataclass(frozen=True)
class Wanted:
    """One control of a command line: `RUN=PICTURE`, `RUN=PICTURE@0.7`."""

    run: str
    """A run of a control; or the kind of a hint that the run which draws sees itself."""
    picture: str
    weight: float = 1.0


def wanted(text: str) -> Wanted:
    """A control as a command line has it.

    Raises:
        RecipeError: no `=`.
    """
    run, sep, rest = text.partition("=")
    picture, at, weight = rest.rpartition("@")
    if at and weight.replace(".", "", 1).replace("-", "", 1).isdigit():
        found = Wanted(run, picture, float(weight))
    else:
        found = Wanted(run, rest)
    if not sep or not run or not found.picture:
        raise RecipeError(
            f"--control {text!r} is not RUN=PICTURE. Write --control canny-run=photo.png, or "
            "photo.png@0.7 for a weight."
        )
    return found


def open_control(
    place: RunDir, base: Painter, *, weights: Weights | None = None, step: int | None = None
) -> Port:
    """A finished control, put beside a base; its newest checkpoint, unless a step is named.

    Raises:
        RecipeError: the run trained no control, or it fits another kind of base.
        CheckpointError: nothing was kept yet, or the base has other shapes.
    """
    run = place.recipe(KINDS)
    if run.control is None:
        raise RecipeError(
            f"{place.url} trained no control. Name a run of `diptych finetune control`."
        )
    port = Port(run.control, base.run.model, base.task.model)
    checkpoint = open_checkpoint(place.url, step)
    kind = WEIGHT if kept(checkpoint, weights) == "raw" else EMA
    shapes = {name: tuple(value.shape) for name, value in port.net.state_dict().items()}
    theirs = {name.removeprefix(_PREFIX): shape for name, shape in checkpoint.shapes.items()}
    odd = [name for name, shape in theirs.items() if shapes.get(name) != shape]
    if odd or set(shapes) - set(theirs):
        name = odd[0] if odd else min(set(shapes) - set(theirs))
        raise CheckpointError(
            f"{place.url} steers another base: {name} is {theirs.get(name, 'not there')}, and "
            f"{shapes.get(name, 'not wanted')} beside {base.place.name}. Draw with a base of the "
            f"sizes of {run.start_from}."
        )
    state = checkpoint.weights(kind)
    port.net.load_state_dict({name.removeprefix(_PREFIX): value for name, value in state.items()})
    return port.to(base.task.anchor.device).eval()


def hint_of(hint: Hint, picture: str | Image.Image | np.ndarray, size: tuple[int, int]) -> Tensor:
    """(1, C, H, W) uint8: the hint of a picture, resized to cover `size` and cut at the middle.

    Raises:
        RecipeError: it is no picture, or the hint is drawn from annotations.
    """
    pixels = pixels_of(picture)
    cut, _ = frame(pixels, Frame(width=size[0], height=size[1]), 0)
    return hint.live(cut[None])


def hint_as_is(hint: Hint, picture: str | np.ndarray, size: tuple[int, int]) -> Tensor:
    """(1, C, H, W) uint8: a picture that is a hint already."""
    cut, _ = frame(pixels_of(picture), Frame(width=size[0], height=size[1]), 0)
    return cut[None, : hint.channels] if hint.channels == 1 else cut[None]


def pixels_of(picture: str | Image.Image | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a picture.

    Raises:
        RecipeError: it is none.
    """
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, Image.Image):
        return np.array(picture.convert("RGB"))
    try:
        return decode.image(io.BytesIO(storage.read(picture)).getvalue())[0]
    except (OSError, ValueError) as err:
        raise RecipeError(f"{picture} is no picture (JPEG, PNG or WebP): {err}") from err


def guiding(guides: Sequence[Guide]) -> Change:
    """What `generate` does to a view so that guides steer it."""
    return lambda view: steered(view, guides)


def asked_for(
    texts: Sequence[str],
    base: Painter,
    find: Callable[[str], RunDir],
    size: tuple[int, int],
    *,
    as_is: bool = False,
) -> Change:
    """What the controls of a command line do to a view.

    Args:
        texts: see `wanted`.
        base: what draws.
        find: a run by its name or URL.
        size: (width, height) of what is drawn.
        as_is: the pictures are hints already.

    Raises:
        RecipeError: no picture, no such run, or a weight for what stands beside the latents.
    """
    guides: list[Guide] = []
    make = hint_as_is if as_is else hint_of
    beside = denoiser(base.task).beside
    stands: Tensor | None = None
    for one in map(wanted, texts):
        if beside and one.run == beside.kind:
            if one.weight != 1:
                raise RecipeError(
                    f"--control {one.run} is seen beside the latents and has no weight; leave "
                    f"@{one.weight:g}."
                )
            stands = make(beside, one.picture, size)
            continue
        own = base.task.control
        if own is not None and one.run == own.record.hint.kind:
            port = own
        else:
            port = open_control(find(one.run), base)
        guides.append(Guide(port, make(port.record.hint, one.picture, size), one.weight))

    def change(view: View) -> View:
        if beside and stands is not None:
            view = seeing(view, beside, stands)
        return steered(view, guides) if guides else view

    return change


def seeing(view: View, hint: Hint, hint_BCHW: Tensor) -> View:
    """The view with a hint (B or 1 rows, uint8) beside the latents of all its rows."""
    rows = view.batch.rows
    many_BCHW = hint_BCHW.to(view.image_BCHW.device)
    many_BCHW = many_BCHW.repeat(rows // len(many_BCHW), 1, 1, 1)
    hints = {**view.batch.hints, hint.kind: many_BCHW}
    return replace(view, batch=replace(view.batch, hints=hints))


def draw(
    base: Painter,
    prompts: Sequence[str],
    how: Sampling,
    hints: Sequence[tuple[Port, Tensor, float]],
    *,
    first: int = 0,
    rows: int = 16,
) -> Tensor:
    """uint8 images (N, H, W, 3), each with hints of its own.

    Args:
        base: what draws.
        prompts: one for each image.
        how: sampler, steps, guidance, seed.
        hints: port, hints (N, C, H, W) uint8, and weight of each control.
        first: number of the first image; its noise depends on it and on the seed alone.
        rows: images in one pass.
    """
    parts: list[Tensor] = []
    for at in range(0, len(prompts), rows):
        mine = [Guide(port, hint[at : at + rows], weight) for port, hint, weight in hints]
        change = guiding(mine)
        part = prompts[at : at + rows]
        many = 2 * len(part)  # all in one pass, both halves of guidance too
        drawn = generate(
            base.task, base.text, part, how, first=first + at, rows=many, change=change
        )
        parts.append(drawn)
    return torch.cat(parts)
