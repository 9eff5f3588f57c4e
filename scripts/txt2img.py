"""The lecture's command, on a model that Diptych trained:

    python scripts/txt2img.py --prompt "a sunset behind a mountain range, vector image" \
        --ddim_eta 1.0 --n_samples 1 --n_iter 1 --H 384 --W 1024 --scale 5.0

Flags, defaults and output files are those of scripts/txt2img.py in CompVis/latent-diffusion; of
Stable Diffusion's there are also --skip_grid, --skip_save, --fixed_code, --n_rows, --from-file,
--seed and --ckpt: sizes and precision are those of the run. The model is that of `--ckpt RUN`, of
the run that the environment's DIPTYCH_T2I names, or the newest of a denoiser below DIPTYCH_RUNS
(`runs`).
Run it with the environment where Diptych is installed, or from a checkout after `make install`.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def count(word: str) -> int:
    """A number of images, 1 or more."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number from 1 on")
    return int(word)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The original's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--prompt", default="a painting of a virus monster playing guitar", help="what to draw")
    add("--outdir", default="outputs/txt2img-samples", help="dir to write results to")
    add("--skip_grid", action="store_true", help="do not save a grid, only individual samples")
    add("--skip_save", action="store_true", help="do not save individual samples")
    add("--ddim_steps", type=int, default=200, help="number of ddim sampling steps")
    add("--plms", action="store_true", help="use plms sampling")
    add("--fixed_code", action="store_true", help="the same starting code in every iteration")
    add("--ddim_eta", type=float, default=0.0, help="eta 0.0 is deterministic sampling")
    add("--n_iter", type=count, default=1, help="sample this often")
    add("--H", type=int, default=256, help="image height, in pixel space")
    add("--W", type=int, default=256, help="image width, in pixel space")
    add("--n_samples", type=count, default=4, help="how many samples for the given prompt")
    add("--n_rows", type=int, default=0, help="images in a row of the grid (n_samples)")
    add("--scale", type=float, default=5.0, help="unconditional guidance scale; 1 is none")
    add("--from-file", help="read prompts from this file, one a line")
    add("--seed", type=int, default=42, help="image number i of a seed is always the same")
    add("--ckpt", "--run", help="a run's URL or folder")
    add("--weights", choices=["ema", "raw"], help="moving average where there is one, or last")
    return parser.parse_args(words)


def chosen(ckpt: str | None) -> str:
    """The run to draw from.

    Raises:
        RunError: none is named, and there is none.
    """
    from diptych.data import storage
    from diptych.errors import RunError
    from diptych.finetune.sample import newest

    if named := ckpt or os.environ.get("DIPTYCH_T2I"):
        return storage.absolute(named)
    runs = os.environ.get("DIPTYCH_RUNS", "runs")
    found = newest(storage.absolute(runs))
    if found is None:
        raise RunError(
            f"no trained text-to-image model: {runs} holds no run of a denoiser with a checkpoint. "
            "Name one with --ckpt RUN (or DIPTYCH_T2I), or train one: diptych train t2i_tiny20."
        )
    return found


def sheet_name(prompt: str) -> str:
    """The original's name of a grid, cut to what a file system takes: 255 bytes, not characters."""
    name = prompt.replace(" ", "-").replace("/", "-").encode()[:200].decode(errors="ignore")
    return f"{name}.png"


def main(words: list[str] | None = None) -> None:
    """Draws and writes the files of the original."""
    given = parsed(words)
    from diptych.config import parse
    from diptych.data.verbs import bar
    from diptych.errors import RecipeError
    from diptych.finetune.sample import grid, painter, write_png
    from diptych.pretrain.diffusion.generate import looks
    from diptych.pretrain.diffusion.sampling import Sampling
    from diptych.pretrain.rundir import RunDir

    if given.plms and given.ddim_eta:
        raise RecipeError("--plms draws nothing between its steps: leave --ddim_eta at 0.")
    values = {"steps": given.ddim_steps, "guidance_scale": given.scale, "seed": given.seed}
    values |= {"eta": given.ddim_eta, "size": (given.W, given.H)}
    values |= {"sampler": "PNDMScheduler"} if given.plms else {}
    how = parse(Sampling, values, source="txt2img")
    prompts = [given.prompt]
    if given.from_file:
        try:
            prompts = Path(given.from_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise RecipeError(f"--from-file {given.from_file}: {err}") from err
    found = painter(RunDir(chosen(given.ckpt)), weights=given.weights)
    print(f"model: {found.place.url}, step {found.step}, {found.weights} weights", flush=True)
    samples = Path(given.outdir) / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    count = len(list(samples.iterdir()))
    import torch

    with bar("txt2img", looks(how, given.n_samples) * given.n_iter * len(prompts)) as told:
        for prompt in prompts:
            drawn = []
            for number in range(given.n_iter):
                first = 0 if given.fixed_code else number * given.n_samples
                wanted = [prompt] * given.n_samples
                images = found.draw(wanted, how, first=first, told=told)
                drawn.append(images)
                for image in images if not given.skip_save else ():
                    write_png(image, samples / f"{count:04}.png")
                    count += 1
            if not given.skip_grid:
                sheet = grid(torch.cat(drawn), columns=given.n_rows or given.n_samples)
                write_png(sheet, Path(given.outdir) / sheet_name(prompt))
    print(f"Your samples are ready and waiting four you here: \n{given.outdir} \nEnjoy.")


if __name__ == "__main__":
    if importlib.util.find_spec("diptych") is None:
        python = HOME / ".venv/bin/python"
        if not python.exists() or Path(sys.prefix) == HOME / ".venv":
            sys.exit("error: Diptych is not installed here. Run `make install`, or pip install .")
        os.execv(python, [str(python), *sys.argv])
    from diptych.errors import DiptychError

    try:
        main()
    except DiptychError as err:
        sys.exit(f"error: {err}")
