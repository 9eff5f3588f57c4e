"""`diptych finetune ...`: a base made one's own, from pictures in a folder to a page of results."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..config import override
from ..data.verbs import Json, show

app = typer.Typer(no_args_is_help=True, help="Make a finished run your own: a subject, a control.")
console = Console(stderr=True)

Runs = Annotated[str, typer.Option("--runs", envvar="DIPTYCH_RUNS", help="Folder of runs.")]
Base = Annotated[str, typer.Option(help="A finished text-to-image run: its name or URL.")]
Features = Annotated[
    str | None,
    typer.Option(help="KIND=WEIGHTS of an encoder of likeness, or run=CLASSIFIER; else latents."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Of the recipe: optim.lr=1e-4.")]
ShapeOpt = Annotated[str, typer.Option(help="A named shape (one, pair, gpu) or a YAML file.")]
Adapter = Annotated[
    Literal["full", "lora", "dora", "tokens"],
    typer.Option(help="What is trained: all, matrices of low rank, or only a new word."),
]
Rank = Annotated[int, typer.Option(min=1, help="Of lora and dora.")]
Identifier = Annotated[str, typer.Option(help="A rare word that will mean it.")]
Prompt = Annotated[str, typer.Option(help="As the base's captions speak.")]
Run = Annotated[str | None, typer.Option(help="Name or URL of the new run.")]
Steps = Annotated[int, typer.Option(min=1, help="Of training.")]
Rate = Annotated[
    float | None, typer.Option(help="By default as it suits the base and what is trained.")
]
Rows = Annotated[int | None, typer.Option(min=1, help="By default 8; a control's as the base's.")]
Looks = Annotated[int, typer.Option(min=1, help="Grids of samples on the way.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Sampler = Annotated[str, typer.Option(help="STEPS,GUIDANCE of all samples.")]
ClassWord = Annotated[str, typer.Option(help="What it is, as the base knows it: dog.")]
Prior = Annotated[float, typer.Option(min=0, help="Weight of prior preservation; 0: none.")]
ClassImages = Annotated[int, typer.Option(min=1, help="Of the class, drawn by the base, once.")]
ClassGuidance = Annotated[float, typer.Option(min=0, help="Guidance of what it draws.")]
ClassFrom = Annotated[
    str | None, typer.Option(help="Folder or tars of others of the class, instead of drawn ones.")
]
ClassOnly = Annotated[str, typer.Option(help="Of tars of the class: the beginning of the keys.")]
Masks = Annotated[bool, typer.Option(help="Learn what photo.mask.png shows white.")]
Only = Annotated[str, typer.Option(help="Of tars: the beginning of the keys.")]
Hint = Annotated[str, typer.Option(help="canny, soft_edges, scribble, palette; settings follow.")]
Kind = Annotated[Literal["controlnet", "t2i_adapter"], typer.Option(help="Which network.")]
Count = Annotated[int, typer.Option(min=2, help="Pictures of a grid.")]
_POLL_S = 2.0


@app.command("dreambooth")
def dreambooth(
    source: Annotated[str, typer.Argument(help="A folder of 3 to 30 pictures, or tars.")],
    class_word: ClassWord,
    base: Base,
    runs: Runs = "runs",
    run: Run = None,
    identifier: Identifier = "sks",
    prompt: Prompt = "a {identifier} {word}",
    adapter: Adapter = "full",
    rank: Rank = 4,
    text_encoder: Annotated[bool, typer.Option(help="Train it too.")] = True,
    prior: Prior = 1.0,
    class_images: ClassImages = 100,
    class_guidance: ClassGuidance = 1.0,
    class_from: ClassFrom = None,
    class_only: ClassOnly = "",
    steps: Steps = 400,
    lr: Rate = None,
    batch: Rows = None,
    masks: Masks = False,
    only: Only = "",
    looks: Looks = 8,
    sampling: Sampler = "30,3",
    seed: Seed = 0,
    features: Features = None,
    settings: Set = None,
    shape: ShapeOpt = "one",
    json_: Json = False,
) -> None:
    """Teach a finished run one subject from a few pictures (DreamBooth), and say when to stop.

    In the run's folder: `samples/` with a grid for each look, `looks.jsonl`, and `result.html`, one
    file with grids before and after, curves, settings and advice. The same command goes on after
    an interruption.

    Examples:

        diptych finetune dreambooth ./photos --class-word dog --base t2i_tiny20

        diptych finetune dreambooth ./photos --class-word teapot --base s3://b/runs/t2i --adapter lora --rank 8 --steps 800

        diptych finetune dreambooth ./photos --class-word dog --class-from ./other-dogs --base t2i_tiny20

        diptych finetune dreambooth ./dreambooth-20.tar --only dog2/ --class-word "golden retriever" --prompt "{identifier} {word}" --base t2i_tiny20
    """  # noqa: E501
    if adapter == "tokens" and not identifier.startswith("<"):
        identifier = f"<{identifier}>"
    wish = _wish(
        adapter, rank, class_word=class_word, identifier=identifier, prompt=prompt,
        prior_loss_weight=prior, class_images=class_images, class_guidance=class_guidance,
        class_from=class_from, class_only=class_only, steps=steps, lr=lr, batch=batch or 8,
        masks=masks, looks=looks, seed=seed, text_encoder=text_encoder or adapter == "tokens",
    )  # fmt: skip
    name = run or f"dreambooth-{identifier.strip('<>')}-{class_word.replace(' ', '-')}-{seed}"
    place = _place(name, runs)
    how = _sampling(sampling, seed)
    facts = _dreambooth(base, runs, source, place, wish, how, only, features, settings, shape)
    show(facts, json_, title=place.name)


def _dreambooth(
    base: str,
    runs: str,
    source: str,
    place: Any,
    wish: Any,
    how: Any,
    only: str,
    features: str | None,
    settings: list[str] | None,
    shape: str,
) -> dict[str, Any]:
    """Makes ready, trains under watch, tells; returns facts to show."""
    from ..finetune.dreambooth.story import ready, tell
    from ..finetune.features import open_features
    from ..finetune.sample import painter
    from .jobs import find

    found = painter(find(base, runs))
    made = ready(
        found,
        source,
        place,
        wish,
        open_features(features, found),
        how=how,
        only=only,
        settings=settings or [],
        told=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    with _watched(made.watch.catch_up):
        _train(made.run, shape, place.url, wish.looks)
    advice, url = tell(made)
    last = made.watch.looks()[-1]
    facts = {"run": place.url, "page": url, "advised step": advice.step}
    facts |= {"similarity, last": last.similarity, "drift, last": last.drift}
    return {**facts, "advice": advice.text}


@app.command("control")
def control(
    data: Annotated[str, typer.Argument(help="Folder of indexed tars: pictures with captions.")],
    base: Base,
    hint: Hint = "canny",
    kind: Kind = "controlnet",
    runs: Runs = "runs",
    run: Run = None,
    steps: Steps = 1000,
    lr: Rate = None,
    batch: Rows = None,
    looks: Looks = 8,
    count: Count = 16,
    sampling: Sampler = "30,3",
    seed: Seed = 0,
    settings: Set = None,
    shape: ShapeOpt = "one",
    json_: Json = False,
) -> None:
    """Train a ControlNet or a T2I-Adapter beside a finished run, which stays as it is.

    Hints are drawn of the pictures as they come; caches of `diptych data precompute` are named by
    --set data.hints.canny=URL. In the run's folder: `samples/`, `looks.jsonl`, `result.html`.

    Examples:

        diptych finetune control s3://b/photos --base t2i_tiny20

        diptych finetune control ./photos --hint canny,low=50,high=120 --kind t2i_adapter --base t2i_tiny20 --steps 2000
    """  # noqa: E501
    from ..data import storage
    from ..finetune import steering
    from ..finetune.sample import painter
    from .jobs import find

    found = painter(find(base, runs))
    name, *options = hint.split(",")
    values = {"kind": kind, "hint": {"kind": name, **override({}, options)}}
    place = _place(run or f"{kind}-{name}-{seed}", runs)
    recipe = steering.recipe(
        found, place.name, storage.absolute(data), values, steps=steps, batch=batch, lr=lr,
        looks=looks, seed=seed, settings=settings or [],
    )  # fmt: skip
    assert recipe.control is not None
    told = recipe.data
    asked = steering.exam(found, told.test or data, recipe.control.hint, count, told.text)
    how = _sampling(sampling, seed)
    watch = steering.ControlWatch(place, found, recipe.control.hint, asked, how)
    with _watched(watch.catch_up):
        _train(recipe, shape, place.url, looks)
    rows = watch.catch_up()
    url = steering.tell(watch, recipe)
    show({"run": place.url, "page": url, **rows[-1]._asdict()}, json_, title=place.name)


def _sampling(text: str, seed: int) -> Any:
    from ..config import parse
    from ..errors import RecipeError
    from ..pretrain.diffusion.sampling import Sampling

    steps, _, guidance = text.partition(",")
    if not steps.isdecimal() or not guidance.replace(".", "", 1).isdecimal():
        raise RecipeError(f"--sampling {text!r} is not STEPS,GUIDANCE. Write --sampling 30,3.")
    values = {"steps": int(steps), "guidance_scale": float(guidance), "seed": seed}
    return parse(Sampling, values, source="--sampling")


def _wish(kind: str, rank: int, **wishes: Any) -> Any:
    from ..config import parse
    from ..finetune.dreambooth.recipe import Wishes

    adapter: dict[str, Any] = {"kind": kind}
    if kind == "tokens":
        adapter["words"] = {wishes["identifier"]: wishes["class_word"]}
    elif kind in ("lora", "dora"):
        adapter["rank"] = rank
    return parse(Wishes, {**wishes, "adapter": adapter}, source="finetune dreambooth")


def _place(run: str, runs: str) -> Any:
    from ..data import storage
    from ..pretrain.rundir import RunDir

    return RunDir(storage.absolute(run if "/" in run else f"{runs.rstrip('/')}/{run}"))


def _train(run: Any, shape: str, url: str, looks: int) -> None:
    from . import train as training
    from .shapes import find_shape

    kept = find_shape(shape, [f"keep_checkpoints={looks + 2}"])  # until they were looked at
    training.train(run, kept, url, console=console)


@contextlib.contextmanager
def _watched(look: Callable[[], Any]) -> Iterator[None]:
    """Looks at checkpoints as they come, in a thread; what goes wrong there is raised."""
    over, faults = threading.Event(), list[BaseException]()

    def work() -> None:
        while not over.wait(_POLL_S):
            try:
                look()
            except Exception as err:  # handed over to the caller's thread
                faults.append(err)
                return

    thread = threading.Thread(target=work, name="diptych-looks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if faults:
        raise faults[0]
