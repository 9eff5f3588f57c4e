"""The recipe of a DreamBooth run: the base's own, with a subject's pictures and few settings."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from ...config import Record, plain
from ...pretrain.run import Run, revise
from ..parts import KINDS
from ..sample import Painter

RATES = {"full": 0.1, "tokens": 10.0}
"""Learning rates as shares of the base's own: whole weights move little, a word's vector far, and
matrices of low rank as the base's weights did."""


class Wishes(Record):
    """What a person may choose; the defaults suit a handful of pictures."""

    class_word: str = Field(min_length=1)
    """What the subject is, in a word or two that the base knows: dog, teapot."""
    identifier: str = "sks"
    """A rare word that will mean the subject."""
    prompt: str = "a {identifier} {word}"
    """What the subject's pictures are called; without the identifier, what others of the class
    are. Speak as the base's captions do."""
    prior_loss_weight: float = Field(default=1.0, ge=0)
    """lambda: what the class pictures count beside the subject's; 0 leaves them out."""
    class_images: int = Field(default=100, ge=1)
    """Pictures of the class that the base draws."""
    class_from: str | None = None
    """Pictures of the class that are there already, of which none is the subject: a folder or tars,
    all of which are taken. By default the base draws its own."""
    class_only: str = ""
    """Of tars of the class: the beginning of the keys to take."""
    class_guidance: float = Field(default=1.0, ge=0)
    """Guidance of the class pictures. They are learned as what the class is, and whoever samples
    then guides: drawn with guidance themselves they end guided twice, flat and alike."""
    steps: int = Field(default=400, ge=1)
    lr: float | None = Field(default=None, gt=0)
    """By default the base's own times what suits the adapter: see `RATES`."""
    batch: int = Field(default=8, ge=1)
    """Rows of a step; half of them are of the class, where there is a prior."""
    adapter: dict[str, Any] = Field(default_factory=lambda: {"kind": "full"})
    """What is trained of the base: `full`, `lora` with its settings, `tokens` for textual
    inversion, as `adapters` of a recipe has them."""
    text_encoder: bool = True
    """Whether the adapter is put on the text encoder too."""
    masks: bool = False
    """Whether the loss looks only where the pictures' masks are white."""
    looks: int = Field(default=8, ge=1)
    """How often samples are drawn and measured on the way."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring a picture, anew in each epoch."""
    zoom: float = Field(default=1.0, ge=1)
    """Pictures are resized to so much of the model's size, then cropped at random. Above 1 those
    that the base drew are enlarged, and so blurred."""
    seed: int = Field(default=0, ge=0, lt=2**64)

    @property
    def subject_prompt(self) -> str:
        """What the subject's pictures are called."""
        return self._said(self.identifier)

    @property
    def class_prompt(self) -> str:
        """What any other of the class is called."""
        return self._said("")

    @property
    def trained(self) -> dict[str, Any]:
        """The adapter, on the parts that are wanted."""
        if self.text_encoder or "on" in self.adapter:
            return self.adapter
        return {**self.adapter, "on": ["denoiser"]}

    def _said(self, identifier: str) -> str:
        said = self.prompt.replace("{identifier}", identifier).replace("{word}", self.class_word)
        return " ".join(said.split())

    @model_validator(mode="after")
    def _sound(self) -> "Wishes":
        if "{identifier}" not in self.prompt or "{word}" not in self.prompt:
            raise ValueError(
                f"prompt {self.prompt!r} must hold {{identifier}} and {{word}}, as "
                "'a {identifier} {word}' does"
            )
        if self.class_only and not self.class_from:
            raise ValueError("class_only is of class_from: name the tars of the class there")
        if self.class_from and not self.prior_loss_weight:
            raise ValueError("class_from is for a prior, and prior_loss_weight is 0")
        return self


def recipe(
    base: Painter,
    wishes: Wishes,
    name: str,
    photos: str,
    prior: str | None,
    settings: Sequence[str] = (),
) -> Run:
    """L = E|x - x^|^2 + lambda E|x_pr - x^_pr|^2, each mean over its own rows of every batch.

    Args:
        base: the run to start from.
        wishes: what was chosen.
        name: of the new run.
        photos: URL of the subject's dataset.
        prior: URL of the class's; None without a prior.
        settings: of the recipe, `path=value`.

    Raises:
        RecipeError: the settings do not go together.
    """
    values = plain(base.run)
    sources = [{"url": photos, "weight": 1, "loss": 1}]
    if prior and wishes.prior_loss_weight:
        sources.append({"url": prior, "weight": 1, "loss": wishes.prior_loss_weight})
    batch = wishes.batch + (wishes.batch % 2 if len(sources) > 1 else 0)  # halves, to the row
    size = base.run.model.image_size
    data = values["data"] | {
        "train": sources,
        "test": None,
        "caches": [],
        "tokenizer": base.place.at("tokenizer.json"),
        "text": "txt",
        "buckets": {},
        "pixels": {"resize": round(size * wishes.zoom), "crop": "random", "flip": wishes.flip},
        "hints": {"mask": "sample"} if wishes.masks else {},
    }
    every = max(1, wishes.steps // wishes.looks)
    steps = every * max(1, round(wishes.steps / every))
    lr = wishes.lr or base.run.optim.lr * RATES.get(wishes.adapter.get("kind", "full"), 1.0)
    chosen = {
        "name": name,
        "objectives": [{**one, "drop": 0.0} for one in values["objectives"]],
        "data": data,
        "optim": values["optim"] | {"lr": lr, "warmup_steps": min(10, steps), "decay": "none"},
        "ema": None,
        "batch": batch,
        "steps": steps,
        "epochs": None,
        "seed": wishes.seed,
        "start_from": base.place.url,
        "adapters": [wishes.trained],
        "control": None,
        "text_from": None,
        "log_steps": logged(every),
        "checkpoint_steps": every,
    }
    return revise(values | chosen, list(settings), KINDS, source=f"DreamBooth of {base.place.name}")


def logged(every: int) -> int:
    """Steps between rows of metrics: about ten rows for each checkpoint, and a divisor of its."""
    return next(n for n in range(max(1, every // 10), every + 1) if every % n == 0)
