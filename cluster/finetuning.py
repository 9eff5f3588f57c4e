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
console = Console()

Runs = Annotated[str, typer.Option("--runs", envvar="DIPTYCH_RUNS", help="Folder of runs.")]
Base = Annotated[str, typer.Option(help="A finished text-to-image run: its name or URL.")]
Features = Annotated[
    str | None,
    typer.Option(help="KIND=WEIGHTS of an encoder to measure likeness in; the base's own latents."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Of the recipe: optim.lr=1e-4.")]
ShapeOpt = Annotated[str, typer.Option(help="A named shape (one, pair, gpu) or a YAML file.")]
_POLL_S = 2.0


@app.command("dreambooth")
def dreambooth(
    source: Annotated[str, typer.Argument(help="A folder of 3 to 30 pictures, or tars.")],
    class_word: Annotated[str, typer.Option(help="What it is, as the base knows it: dog.")],
    base: Base,
    runs: Runs = "runs",
    run: Annotated[str | None, typer.Option(help="Name or URL of the new run.")] = None,
    identifier: Annotated[str, typer.Option(help="A rare word that will mean it.")] = "sks",
    prompt: Annotated[str, typer.Option(help="As the base's captions speak.")] = (
        "a {identifier} {word}"
    ),
    adapter: Annotated[
        Literal["full", "lora", "dora", "tokens"],
        typer.Option(help="What is trained: all, matrices of low rank, or only a new word."),
    ] = "full",
    rank: Annotated[int, typer.Option(min=1, help="Of lora and dora.")] = 4,
    text_encoder: Annotated[bool, typer.Option(help="Train it too.")] = True,
    prior: Annotated[float, typer.Option(min=0, help="Weight of prior preservation.")] = 1.0,
    class_images: Annotated[int, typer.Option(min=1, help="Drawn by the base, once.")] = 100,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    lr: Annotated[float | None, typer.Option(help="By default the base's / 10.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Half of them of the class.")] = 8,
    masks: Annotated[bool, typer.Option(help="Learn what photo.mask.png shows white.")] = False,
    only: Annotated[str, typer.Option(help="Of tars: the beginning of the keys.")] = "",
    looks: Annotated[int, typer.Option(min=1, help="Grids of samples on the way.")] = 8,
    sampling_steps: Annotated[int, typer.Option(min=1)] = 30,
    guidance_scale: Annotated[float, typer.Option(min=0)] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    features: Features = None,
    settings: Set = None,
    shape: ShapeOpt = "one",
    json_: Json = False,
) -> None:
    """Teach a finished run one subject from a few pictures (DreamBooth), and say when to stop.

    In the run's folder: `samples/` with a grid for each look, `looks.jsonl`, and `result.html`, one
    file with grids before and after, curves, settings and advice. The same command goes on after
    an interruption. Adapters: docs/finetune.md.

    Examples:

        diptych finetune dreambooth ./photos --class-word dog --base t2i_tiny20

        diptych finetune dreambooth ./photos --class-word teapot --base s3://b/runs/t2i --adapter lora --rank 8 --steps 800

        diptych finetune dreambooth ./dreambooth-20.tar --only dog2/ --class-word "golden retriever" --prompt "{identifier} {word}" --base t2i_tiny20
    """  # noqa: E501
    from ..config import parse
    from ..finetune.dreambooth.recipe import Wishes
    from ..finetune.dreambooth.story import ready, tell
    from ..finetune.sample import painter
    from ..pretrain.diffusion.sampling import Sampling
    from .jobs import find

    if adapter == "tokens" and not identifier.startswith("<"):
        identifier = f"<{identifier}>"
    wishes = {"class_word": class_word, "identifier": identifier, "prompt": prompt}
    wishes |= {"prior_loss_weight": prior, "class_images": class_images, "steps": steps, "lr": lr}
    wishes |= {"batch": batch, "masks": masks, "looks": looks, "seed": seed}
    wishes |= {"adapter": _adapter(adapter, rank, identifier, class_word)}
    wishes |= {"text_encoder": text_encoder or adapter == "tokens"}
    wish = parse(Wishes, wishes, source="finetune dreambooth")
    how = parse(
        Sampling,
        {"steps": sampling_steps, "guidance_scale": guidance_scale, "seed": seed},
        source="finetune dreambooth",
    )
    found = painter(find(base, runs))
    place = _place(run or f"dreambooth-{found.place.name}-{identifier.strip('<>')}-{seed}", runs)
    encoder = _encoder(features, found).open()
    made = ready(
        found,
        source,
        place,
        wish,
        encoder,
        how=how,
        only=only,
        settings=settings or [],
        told=lambda text: console.print(text, highlight=False, soft_wrap=True),
    )
    with _watched(made.watch.catch_up):
        _train(made.run, shape, place.url, looks)
    advice, url = tell(made)
    rows = made.watch.looks()
    facts = {"run": place.url, "page": url, "advised step": advice.step}
    facts |= {f"{name}, last": getattr(rows[-1], name) for name in ("similarity", "drift")}
    show({**facts, "advice": advice.text}, json_, title=place.name)


@app.command("control")
def control(
    data: Annotated[str, typer.Argument(help="Folder of indexed tars: pictures with captions.")],
    base: Base,
    hint: Annotated[
        str, typer.Option(help="canny, soft_edges, scribble, palette; settings behind commas.")
    ] = "canny",
    kind: Annotated[
        Literal["controlnet", "t2i_adapter"], typer.Option(help="Which network.")
    ] = "controlnet",
    runs: Runs = "runs",
    run: Annotated[str | None, typer.Option(help="Name or URL of the new run.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    lr: Annotated[float | None, typer.Option(help="By default half of the base's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="By default the base's.")] = None,
    looks: Annotated[int, typer.Option(min=1, help="Grids of samples on the way.")] = 8,
    count: Annotated[int, typer.Option(min=2, help="Pictures of a grid.")] = 16,
    sampling_steps: Annotated[int, typer.Option(min=1)] = 30,
    guidance_scale: Annotated[float, typer.Option(min=0)] = 3.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    from ..config import parse
    from ..data import storage
    from ..finetune import steering
    from ..finetune.sample import painter
    from ..pretrain.diffusion.sampling import Sampling
    from .jobs import find

    found = painter(find(base, runs))
    name, *options = hint.split(",")
    values = {"kind": kind, "hint": {"kind": name, **override({}, options)}}
    place = _place(run or f"{kind}-{found.place.name}-{name}-{seed}", runs)
    recipe = steering.recipe(
        found, place.name, storage.absolute(data), values, steps=steps, batch=batch, lr=lr,
        looks=looks, seed=seed, settings=settings or [],
    )  # fmt: skip
    assert recipe.control is not None
    sampling = {"steps": sampling_steps, "guidance_scale": guidance_scale, "seed": seed}
    how = parse(Sampling, sampling, source="finetune control")
    asked = steering.exam(found, recipe.data.test or data, recipe.control.hint, count)
    watch = steering.ControlWatch(place, found, recipe.control.hint, asked, how)
    with _watched(watch.catch_up):
        _train(recipe, shape, place.url, looks)
    rows = watch.catch_up()
    url = steering.tell(watch, recipe)
    show({"run": place.url, "page": url, **rows[-1]._asdict()}, json_, title=place.name)


def _adapter(kind: str, rank: int, identifier: str, class_word: str) -> dict[str, Any]:
    if kind == "tokens":
        return {"kind": kind, "words": {identifier: class_word}}
    return {"kind": kind, "rank": rank} if kind in ("lora", "dora") else {"kind": kind}


def _place(run: str, runs: str) -> Any:
    from ..data import storage
    from ..pretrain.rundir import RunDir

    return RunDir(storage.absolute(run if "/" in run else f"{runs.rstrip('/')}/{run}"))


def _encoder(features: str | None, base: Any) -> Any:
    """The encoder that is named, or that of the base's first stage."""
    from ..config import kinds
    from ..pretrain import encoders
    from ..pretrain.encoder import find_encoder

    if features:
        kind, *settings = features.split(",")
        return find_encoder(kind, settings, kinds(encoders))
    own = base.run.model.first_stage.encoder
    return own or encoders.Grid()  # of pixels: a network as it is drawn, which tells shapes apart


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
