"""The recipe of a run: what is learned, from what, how long. It never names a machine."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ..config import Kinds, Part, Record, override, parse, pick
from ..data import storage
from ..data.buckets import Buckets
from ..data.cache import Cache, open_cache, require_same
from ..data.hints import Wanted
from ..data.holes import Budget
from ..data.index import Manifest
from ..data.join import Joined
from ..data.loader import Recipe as Rows
from ..data.plan import Plan
from ..data.tokens import Text
from ..data.transforms import Pixels
from ..errors import RecipeError
from .adapter import Adapter
from .control import Control
from .denoiser import Denoiser
from .diffusion.sheet import Sheet
from .ema import Ema
from .frozen import Frozen
from .hint import Hint
from .mixing import mixing, require_read
from .model import Model, require_in_place
from .objective import Denoised, Objective, Words
from .task import Task

MOST_STEPS = 10**12
Beta = Annotated[float, Field(ge=0, lt=1)]
_OWN = "sample"  # in the place of a cache's URL: samples have their own


class Source(Record):
    """One of several datasets that are mixed."""

    url: str
    """Folder of indexed tars."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the rows, relative to the other sources'."""
    caches: tuple[str, ...] = ()
    """Folders that `data precompute` made of it, to train from instead of images or texts."""
    loss: float | None = Field(default=None, ge=0)
    """What the mean loss of its rows counts in the sum over sources, 1 for those that do not say;
    DreamBooth's prior preservation has lambda here. By default all rows count alike."""

    @field_validator("url", "caches")
    @classmethod
    def _place(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return storage.absolute(url) if isinstance(url, str) else tuple(map(storage.absolute, url))


class Data(Record):
    """What is read."""

    train: str | tuple[Source, ...]
    """Folder of indexed tars: s3://bucket/folder, or a path; or several, each with its weight."""
    caches: tuple[str, ...] = ()
    """Of a single dataset: see `Source.caches`."""
    test: str | None = None
    """Another such folder, for `evaluate`."""
    tokenizer: str
    """A tokenizer.json, or the name of a repository on the hub."""
    text: str = "txt"
    """Where a sample's text stands: `txt`, or a field of its JSON record such as `question`."""
    buckets: Buckets = Buckets()
    """What batches are sorted by: aspect ratio, length of the text; nothing by default."""
    faults: Budget = Budget()
    """How many damaged samples are stepped over."""
    pixels: Pixels = Pixels()
    """How images are resized, cropped and flipped."""
    hints: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Caches of hints by their kind: a folder, or one for each source; `sample` where every sample
    has its own, as `kind.npy`. Others are drawn of the pictures as they come."""

    @field_validator("caches")
    @classmethod
    def _folders(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(storage.absolute, urls))

    @field_validator("train", "test", "tokenizer")
    @classmethod
    def _place(cls, url: Any) -> Any:
        """Whole URLs, since a worker may run in another folder; a hub's name stays a name."""
        return _whole(url) if isinstance(url, str) else url

    @field_validator("hints")
    @classmethod
    def _caches(cls, hints: dict[str, Any]) -> dict[str, Any]:
        many = {name: urls for name, urls in hints.items() if not isinstance(urls, str)}
        one = {name: urls for name, urls in hints.items() if isinstance(urls, str)}
        return {
            **{name: url if url == _OWN else storage.absolute(url) for name, url in one.items()},
            **{name: tuple(storage.absolute(url) for url in urls) for name, urls in many.items()},
        }

    @model_validator(mode="after")
    def _sound(self) -> "Data":
        if not self.train:
            raise ValueError("train names no dataset")
        if self.caches and not isinstance(self.train, str):
            raise ValueError("of several datasets each names its own caches: data.train.0.caches")
        if self.buckets.lengths and self.text != "txt":
            raise ValueError(
                f"buckets.lengths sorts by the length of .txt members; text is {self.text!r}"
            )
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The datasets of `train`."""
        if isinstance(self.train, str):
            return (Source(url=self.train, caches=self.caches),)
        return self.train


class Optim(Record):
    """AdamW (Loshchilov and Hutter 2019) with a schedule that is a pure function of the step."""

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0)
    """Not applied to biases, norms and other vectors."""
    warmup_steps: int = Field(default=100, ge=0)
    decay: Literal["linear", "cosine", "none"] = "linear"
    clip: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradient."""
    skip_limit: int = Field(default=3, ge=1)
    """Steps in a row without a finite loss and gradient that send a run back to its last
    checkpoint, and, the second time, end it. Fewer are skipped and counted."""


def _part(base: type[Part], what: str) -> BeforeValidator:
    def find(value: Any, info: ValidationInfo) -> Any:
        kinds: Kinds = (info.context or {}).get("kinds", {})
        return pick(value, {k: v for k, v in kinds.items() if issubclass(v, base)}, what)

    return BeforeValidator(find)


class Run(Record):
    """Everything that decides the numbers of a run."""

    name: str = Field(pattern=r"^[\w.-]+$")
    model: Annotated[Model, _part(Model, "model")]
    objectives: tuple[Annotated[Objective, _part(Objective, "objective")], ...] = Field(
        min_length=1
    )
    adapters: tuple[Annotated[Adapter, _part(Adapter, "adapter")], ...] = ()
    """What is trained of the weights of `start_from`, which stay as they are; without, all is."""
    mixing: dict[str, float] = Field(default_factory=dict[str, float])
    """Objectives that take turns, one group a batch, by share of the steps: `{mlm: 2, mrm: 1,
    itm+wra: 1}`. All of them share every batch where this is empty."""
    data: Data
    optim: Optim = Optim()
    ema: Ema | None = None
    """Keep a moving average of the weights, for evaluation and export."""
    batch: int = Field(default=128, ge=1)
    """Rows of a global batch, over all workers."""
    steps: int = Field(default=1000, ge=1, le=MOST_STEPS)
    epochs: float | None = Field(default=None, gt=0, le=MOST_STEPS)
    """Passes over the data, instead of `steps`."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    control: Annotated[Control, _part(Control, "control")] | None = None
    """Train this beside the model of `start_from`, and nothing else: ControlNet, T2I-Adapter."""
    start_from: str | None = None
    """A finished run to take the weights of, heads of other objectives aside; or a folder of
    diffusers, open_clip or transformers, or a .safetensors file of Stable Diffusion 1."""
    text_from: str | None = None
    """A folder of a BERT-like model of transformers, whose words and text layers are begun with."""
    log_steps: int = Field(default=10, ge=1)
    checkpoint_steps: int = Field(default=200, ge=1)
    """A multiple of log_steps."""
    sample_steps: int | None = Field(default=None, ge=1)
    """Draw `samples` so often, and at the end: raw weights and moving average, to PNG files in the
    run's folder and to TensorBoard. Never, by default."""
    samples: Sheet = Sheet()
    """Prompts that are drawn while it trains, and how."""

    @field_validator("start_from", "text_from")
    @classmethod
    def _start(cls, url: str | None) -> str | None:
        return _whole(url)

    @model_validator(mode="after")
    def _sound(self) -> "Run":
        names = [objective.kind for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives {names} name one twice")
        for objective in self.objectives:
            if objective.reads is not self.model.gives:
                raise ValueError(
                    f"objective {objective.kind!r} reads {objective.reads.__name__}; model "
                    f"{self.model.kind!r} gives {self.model.gives.__name__}"
                )
            objective.check(self.objectives)
        require_in_place(self.model, self.objectives, self.data.pixels)
        require_read(self.objectives, mixing(self.seed, self.mixing, names))
        if self.model.gives is Denoised and len(self.objectives) > 1:
            raise ValueError(f"objectives {names} would each noise the image; name one")
        if self.data.buckets.sizes and not self.model.any_size:
            raise ValueError(
                f"model {self.model.kind!r} takes square images of {self.model.image_size} pixels; "
                "leave data.buckets.sizes empty"
            )
        if self.adapters and not self.start_from:
            kinds = ", ".join(adapter.kind for adapter in self.adapters)
            raise ValueError(f"adapters ({kinds}) stand on a base; name its run with start_from")
        if len(set(self.new_words)) < len(self.new_words):
            raise ValueError(f"adapters add a word twice: {', '.join(self.new_words)}")
        if odd := [s for s in self.data.buckets.sizes if any(n % self.model.multiple for n in s)]:
            raise ValueError(
                f"data.buckets.sizes {odd[0]} is not a multiple of {self.model.multiple}, as model "
                f"{self.model.kind!r} needs"
            )
        if self.control and self.adapters:
            raise ValueError("control leaves its base as it is; train adapters in a run before it")
        if self.control and not self.start_from:
            raise ValueError("control is trained beside a finished model; name its run: start_from")
        if unread := [name for name in self.data.hints if name not in self._hints]:
            raise ValueError(
                f"data.hints names {unread[0]!r}, which nothing reads; what is read is "
                f"{', '.join(self._hints) or 'none'}"
            )
        if self.sample_steps and any(self._hints.values()):
            raise ValueError(
                "a hint steers by pictures, of which samples.prompts know none; leave "
                "sample_steps unset, and draw with `diptych sample RUN --control`"
            )
        if self.sample_steps and not isinstance(self.model, Denoiser):
            raise ValueError(f"model {self.model.kind!r} draws no images; leave sample_steps unset")
        if self.sample_steps and not self.prompts:
            raise ValueError(
                "sample_steps draws samples.prompts, and there are none: samples.prompts=['a cat']"
            )
        if self.checkpoint_steps % self.log_steps:
            raise ValueError(
                f"checkpoint_steps {self.checkpoint_steps} is not a multiple of log_steps "
                f"{self.log_steps}"
            )
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn of while it trains; nothing by a model that draws no images."""
        if isinstance(self.model, Denoiser):
            return self.samples.wanted(self.model.classes)
        return ()

    @property
    def new_words(self) -> tuple[str, ...]:
        """Words that its adapters add to the base's vocabulary, in the order of their ids."""
        return tuple(word for adapter in self.adapters for word in adapter.new_words)

    def words(self, text: Text) -> Words:
        """The ids that objectives need, of this run's tokenizer without the words it adds."""
        with torch.device("cpu"):  # `plan` asks where no tensor has data
            ids_BL, real_BL = text.encode([""])
        empty = tuple(ids_BL[0, real_BL[0]].tolist())
        return Words(
            size=text.size - len(self.new_words),
            mask=text.mask,
            special=text.special,
            empty=empty,
            joined=text.joined,
            decode=text.decode,
        )

    def task(self, text: Text) -> Task:
        """The model and its objectives as one module, freshly initialised."""
        kinds = [objective.kind for objective in self.objectives]
        turns = mixing(self.seed, self.mixing, kinds)
        return Task(self.model, self.objectives, self.words(text), turns, self.control)

    @property
    def frozen(self) -> dict[str, Frozen]:
        """What it computes with and never trains, by name."""
        asked = {n: part for objective in self.objectives for n, part in objective.frozen.items()}
        return {**self.model.frozen, **asked}

    @property
    def rows(self) -> Rows:
        """How a sample becomes a row."""
        return Rows(
            text=self.data.text,
            image_size=self.model.image_size,
            seed=self.seed,
            needs=self.model.needs,
            pixels=self.data.pixels,
            arrays=self._arrays(),
            hints=self._wanted(),
            placed=isinstance(self.model, Denoiser) and self.model.placed,
        )

    @property
    def _hints(self) -> dict[str, Hint | None]:
        """The hints that are read, by name; a mask of the loss is drawn by nobody."""
        hints = [self.model.beside if isinstance(self.model, Denoiser) else None]
        hints += [self.control.hint] if self.control else []
        found: dict[str, Hint | None] = {hint.kind: hint for hint in hints if hint}
        return {**found, "mask": None} if self.model.gives is Denoised else found

    def _wanted(self) -> dict[str, Wanted]:
        """What the loader brings of them; what it does not is drawn of the pictures."""
        found: dict[str, Wanted] = {}
        for name, urls in self.data.hints.items():
            hint = self._hints[name]
            expect = {"encoder": hint.kind, "encoder_digest": hint.digest()} if hint else {}
            many = () if urls == _OWN else (urls,) if isinstance(urls, str) else urls
            channels = hint.channels if hint else 1
            found[name] = Wanted(channels=channels, urls=many, expect=expect)
        return found

    def _arrays(self) -> dict[str, tuple[int, int]]:
        """Shapes of the .npy members that model and objectives read, by name."""
        asked = {name: width for o in self.objectives for name, width in o.arrays.items()}
        regions = self.model.regions if asked else 0
        return {**self.model.arrays, **{name: (regions, width) for name, width in asked.items()}}

    def joined(self, plan: Plan) -> Joined | None:
        """The caches that stand beside the plan's datasets; None where there are none.

        Raises:
            StaleCacheError: one was made of other data, by another encoder, at another size.
            RecipeError: they cannot be used with this recipe.
        """
        asked = [source.caches for source in self.data.sources]
        if not any(asked):
            return None
        if len({len(urls) for urls in asked}) > 1:
            raise RecipeError("every dataset needs a cache of each kind, or none of them any.")
        found = [
            [self._cache(url, source.manifest) for url in urls]
            for urls, source in zip(asked, plan.sources, strict=True)
        ]
        return Joined(plan, found)

    def _cache(self, url: str, manifest: Manifest) -> Cache:
        """One cache, if it is what this recipe would make of the dataset."""
        cache = open_cache(url, manifest)
        encoder = self.model.encoders.get(cache.spec.encoder)
        if encoder is None:
            made = ", ".join(self.model.encoders) or "none"
            raise RecipeError(
                f"{url} holds outputs of the encoder {cache.spec.encoder!r}; model "
                f"{self.model.kind!r} can train from those of: {made}."
            )
        expect: dict[str, Any] = {"encoder_digest": encoder.digest()}
        if "image" in cache.spec.reads:
            square = (self.model.image_size, self.model.image_size)
            expect["sizes"] = self.data.buckets.sizes or (square,)
            self._require_hints(url)
            if self.data.pixels.model_copy(update={"exact": False}) != Pixels():
                raise RecipeError(
                    "a cache of images has them cropped at the middle and not flipped: leave "
                    "data.pixels as it is by default, or data.caches empty."
                )
        if "text" in cache.spec.reads:
            expect["text"] = self.data.text
        require_same(url, cache.note, expect)
        return cache

    def _require_hints(self, url: str) -> None:
        """Refuses hints that would be drawn of pictures which a cache stands for."""
        for kind in {kind for kind, hint in self._hints.items() if hint} - set(self.data.hints):
            raise RecipeError(
                f"{url} stands for the pictures, of which the hint {kind!r} would be drawn. Make a "
                f"cache of it, too (diptych data precompute DATA --encoder {kind} --size "
                f"{self.model.image_size} --out FOLDER), and say --set data.hints.{kind}=FOLDER."
            )

    @property
    def rows_multiple(self) -> int:
        """What the rows of a micro-batch must be a multiple of."""
        return max(objective.rows_multiple for objective in self.objectives)


def parse_run(values: Mapping[str, Any], kinds: Kinds, *, source: str) -> Run:
    """A run from plain values; `kinds` lists the models, objectives and heads there are.

    Raises:
        RecipeError: whatever is wrong with it, each with the fix.
    """
    return parse(Run, values, source=source, context={"kinds": kinds})


def revise(values: Mapping[str, Any], settings: list[str], kinds: Kinds, *, source: str) -> Run:
    """A run from plain values with `path=value` settings put in."""
    return parse_run(override(dict(values), settings), kinds, source=source)


def _whole(url: str | None) -> str | None:
    if url is None or ("/" not in url and not url.endswith((".json", ".safetensors"))):
        return url
    return storage.absolute(url)
