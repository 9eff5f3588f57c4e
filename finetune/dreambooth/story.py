"""A DreamBooth run in order, training left to whoever calls: made ready, then told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...config import plain, to_yaml
from ...data import storage
from ...data.index import Manifest
from ...data.tokens import Text
from ...errors import RecipeError
from ...pretrain.diffusion.sampling import Sampling
from ...pretrain.encoder import Opened
from ...pretrain.run import Run
from ...pretrain.rundir import RunDir
from ..grown import words_of
from ..page import Page, render
from ..sample import Painter
from . import photos, prior
from .advice import LIMIT, VARIED, Advice, Look, advise
from .recipe import Wishes, recipe
from .watch import Watch, pictures

PAGE = "result.html"
_LEGEND = (
    "similarity: mean cosine of pictures of the subject's prompt to the subject's own pictures; "
    "among: of these among themselves, as good as it gets.",
    "drift: how far pictures of the class prompt have moved towards the subject, 0 not at all, 1 "
    "all the way, below 0 away from it. diversity: how much they differ from one another, as a "
    f"share of the base's. The advice wants drift within {LIMIT:.0%} either way and diversity of "
    f"at least {VARIED:.0%}.",
)


@dataclass(frozen=True)
class Ready:
    """All that is needed to train and to watch."""

    run: Run
    watch: Watch
    wishes: Wishes
    photos: Manifest
    prior: Manifest | None
    how: Sampling


def ready(
    base: Painter,
    source: str,
    place: RunDir,
    wishes: Wishes,
    encoder: Opened,
    *,
    how: Sampling,
    only: str = "",
    count: int = 8,
    cache: str | None = None,
    settings: Sequence[str] = (),
    told: Callable[[str], None] = lambda text: None,
) -> Ready:
    """Packs the pictures, has the base draw their class, and writes the recipe.

    Args:
        base: the run to start from.
        source: the subject's pictures: a folder, or tars.
        place: of the new run.
        wishes: what was chosen.
        encoder: in whose features likeness is measured.
        how: how samples and class pictures are drawn.
        only: of tars, the beginning of the keys to take.
        count: pictures of each prompt at each look.
        cache: a folder for class pictures, which runs of one base share; beside the run by default.
        settings: of the recipe, `path=value`.
        told: told what is being done.

    Raises:
        RecipeError: a new word is asked of a base whose text encoders are frozen.
    """
    _require_learner(base, wishes)
    told(f"packing {source}")
    mine = photos.packed(
        source, place.at("photos"), wishes.subject_prompt, only=only, masks=wishes.masks
    )
    if strange := unknown_words(base.text, wishes.class_prompt):
        told(
            f"the base's vocabulary lacks {', '.join(strange)}: its {wishes.class_prompt!r} may be "
            "anything. Use --class-word and --prompt as its captions speak."
        )
    home = cache or storage.join(place.url.rpartition("/")[0], "class-pictures")
    theirs = _of_class(base, wishes, home, how, told) if wishes.prior_loss_weight else None
    folders = _folder(mine), _folder(theirs) if theirs else None
    run = recipe(base, wishes, place.name, *folders, settings)
    watch = Watch(
        place,
        base,
        encoder,
        how,
        wishes.subject_prompt,
        wishes.class_prompt,
        pictures(mine, base),
        count,
    )
    return Ready(run, watch, wishes, mine, theirs, how)


def _require_learner(base: Painter, wishes: Wishes) -> None:
    if wishes.adapter.get("kind") == "tokens" and words_of(base.task.model) is None:
        raise RecipeError(
            f"{base.place.name} reads its texts with frozen encoders (model.texts), which learn no "
            "words. Use --adapter lora."
        )


def _of_class(
    base: Painter, wishes: Wishes, home: str, how: Sampling, told: Callable[[str], None]
) -> Manifest:
    """Pictures that the subject's are not to drag along: those that are named, or drawn."""
    text, masks = wishes.class_prompt, wishes.masks
    if wishes.class_from:
        told(f"packing {wishes.class_from} as {text!r}")
        return photos.packed(
            wishes.class_from, home, text, subject=False, only=wishes.class_only, masks=masks
        )
    told(f"{wishes.class_images} pictures of {text!r} by {base.place.name}")
    plainly = how.model_copy(update={"guidance_scale": wishes.class_guidance})
    return prior.drawn(base, text, wishes.class_images, home, plainly, masks=masks)


def unknown_words(text: Text, prompt: str) -> list[str]:
    """Words of a prompt that a tokenizer has only in pieces, or not at all."""
    found: list[str] = []
    for word in prompt.split():
        encoded = text.tokenizer.encode(word, add_special_tokens=False)
        pieces = [
            token
            for token, real in zip(encoded.tokens, encoded.attention_mask, strict=True)
            if real
        ]
        if len(pieces) != 1 or pieces == ["[UNK]"]:
            found.append(word)
    return found


def tell(made: Ready, limit: float = LIMIT) -> tuple[Advice, str]:
    """Looks at what was not looked at yet, and writes the page; returns advice and its URL."""
    looks = made.watch.catch_up()
    advice = advise(looks, limit)
    url = made.watch.place.at(PAGE)
    storage.write(url, render(_page(made, looks, advice)).encode())
    made.watch.place.put("advice.json", {"step": advice.step, "advice": advice.text})
    return advice, url


def _page(made: Ready, looks: list[Look], advice: Advice) -> Page:
    watch, wishes = made.watch, made.wishes
    shown = sorted({0, advice.step, looks[-1].step})
    names = {0: "before", looks[-1].step: "after the last step", advice.step: "advised"}
    return Page(
        title=f"{watch.place.name}: {wishes.subject_prompt}",
        intro=[
            f"{made.photos.samples} pictures of the subject; base {watch.base.place.name} after "
            f"{watch.base.step} steps. Each grid: {watch.count} of {wishes.subject_prompt!r}, then "
            f"as many of {wishes.class_prompt!r}, from the same noise in all grids."
        ],
        advice=advice.text,
        pictures=[(f"step {step}, {names[step]}", watch.grid_of(step)) for step in shown],
        losses=watch.place.rows("metrics.jsonl"),
        measures=[look._asdict() for look in looks],
        best=advice.step,
        legend=(*_LEGEND, f"Measured in {watch.encoder.name}, digest {watch.encoder.digest}."),
        settings={**plain(wishes), "sampling": plain(made.how)},
        recipe=to_yaml(made.run),
    )


def _folder(manifest: Manifest) -> str:
    return manifest.url.removesuffix("/index")
