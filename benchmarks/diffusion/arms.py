"""The arms of `make bench-diffusion`: our rank, and a loop as diffusers' `train_text_to_image.py`.

B rows, C channels, h x w cells of a latent.
"""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.cluster.checkpoint import Writer
from diptych.cluster.engine import DeepSpeedEngine
from diptych.cluster.job import Board, Job
from diptych.cluster.journal import Journal
from diptych.cluster.shapes import Shape
from diptych.cluster.worker import Rank
from diptych.data import tokens
from diptych.data.loader import Loader
from diptych.pretrain.charts import open_plan
from diptych.pretrain.diffusion.schedules import Schedule
from diptych.pretrain.loop import train
from diptych.pretrain.task import Task

from ..engine import Silent
from .material import SIDE, Material


class Ours:
    """Stream, task, loop, ledger and engine as a rank of `diptych train` has them."""

    def __init__(self, material: Material, batch: int, *, cached: bool) -> None:
        self.run = material.recipe(batch, cached=cached)
        self.text = tokens.load(self.run.data.tokenizer, self.run.model.tokens)
        torch.manual_seed(0)
        self.task: Task = self.run.task(self.text)
        self._plan, self._step = open_plan(self.run), 0
        self._joined = self.run.joined(self._plan)
        board, silent = Board(multiprocessing.get_context("spawn")), Silent()
        pipe: Any = silent
        self._told = Rank(0, Job({}, {}, "/nowhere", "", 1, 0), self.run, board, pipe)
        writer = Writer(
            run="/nowhere",
            recipe="bench",
            rank=0,
            world=1,
            attempt=1,
            keep=1,
            journal=Journal(0),
            stream=lambda step: {},
        )
        shape = Shape(workers=1, zero_stage=0)
        self._engine = DeepSpeedEngine(self.task, self.run, shape, writer)

    def loader(self, steps: int) -> Loader:
        """A stream of some steps of its own, lest it reads ahead in another arm's turn."""
        return Loader(
            self._plan,
            self.text,
            self.run.rows,
            start=self._step,
            stop=self._step + steps,
            joined=self._joined,
        )

    def go(self, steps: int) -> None:
        """Some steps."""
        train(self._engine, self.loader(steps), self.run, self._told)
        self._step += steps


class Photos(torch.utils.data.Dataset[dict[str, Any]]):
    """Files and captions, as an image folder of `datasets` with the script's transforms."""

    def __init__(self, home: Path, words: Any) -> None:
        from torchvision import transforms

        self.home, self.words = home, words
        self.captions = sorted(json.loads((home / "captions.json").read_text()).items())
        self.change = transforms.Compose(
            [
                transforms.Resize(SIDE, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(SIDE),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name, caption = self.captions[number]
        found = self.words(
            caption,
            max_length=self.words.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        pixels = self.change(Image.open(self.home / name).convert("RGB"))
        return {"pixel_values": pixels, "input_ids": found.input_ids[0]}


class Stock:
    """The loop of the script, with its defaults (no workers of the data loader), in fp32."""

    def __init__(self, material: Material, batch: int, unet: Any) -> None:
        """`unet` has the weights to begin with; they are copied."""
        from accelerate import Accelerator
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
        from diffusers.training_utils import EMAModel
        from transformers import AutoTokenizer, CLIPTextModel

        schedule, shape = Schedule(), cast(Any, Schedule().shape)
        self.vae: Any = AutoencoderKL.from_pretrained(str(material.vae))
        self.vae.requires_grad_(False)
        self.clip: Any = CLIPTextModel.from_pretrained(str(material.clip)).eval()
        self.clip.requires_grad_(False)
        made: Any = UNet2DConditionModel.from_config(unet.config)
        made.load_state_dict(unet.state_dict())
        self.scheduler: Any = DDPMScheduler(
            beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=shape
        )
        run = material.recipe(batch, cached=False)
        self.accelerator = Accelerator(cpu=True)
        optimiser = torch.optim.AdamW(made.parameters(), lr=run.optim.lr)
        data = torch.utils.data.DataLoader(
            Photos(material.files, AutoTokenizer.from_pretrained(str(material.clip))),
            shuffle=True,
            batch_size=batch,
        )
        rate = get_scheduler("constant", optimizer=optimiser, num_warmup_steps=0)
        prepared = self.accelerator.prepare(made, optimiser, data, rate)
        self.unet, self.optimiser, self.data, self.rate = prepared
        self.unet.train()
        self.average = EMAModel(made.parameters(), decay=0.999)
        self._batches = self._forever()

    def _forever(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self.data

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(scaled latents, text states)."""
        latent_BChw = self.vae.encode(pixels_BCHW).latent_dist.sample()
        states_BLD = self.clip(ids_BL, return_dict=False)[0]
        return latent_BChw * self.vae.config.scaling_factor, states_BLD

    def loss(self, latent: Tensor, states: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
        """Of the noise that the U-Net finds."""
        noised = self.scheduler.add_noise(latent, noise, times_B)
        said = self.unet(noised, times_B, states, return_dict=False)[0]
        return F.mse_loss(said.float(), noise.float(), reduction="mean")

    def go(self, steps: int) -> None:
        """Some steps."""
        for _ in range(steps):
            batch = next(self._batches)
            with self.accelerator.accumulate(self.unet):
                latent, states = self.encode(batch["pixel_values"], batch["input_ids"])
                noise = torch.randn_like(latent)
                times_B = torch.randint(0, 1000, (len(latent),))
                loss = self.loss(latent, states, noise, times_B)
                self.accelerator.gather(loss.repeat(len(latent)))
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
                self.optimiser.step()
                self.rate.step()
                self.optimiser.zero_grad()
            self.average.step(self.unet.parameters())


def apart(ours: Ours, stock: Stock) -> tuple[float, float, float]:
    """How far both are from each other on one of our batches, before either has trained.

    Returns (largest difference of the latents' means, by their spread; of the text states; of the
    loss of the same latents, noise and times, relative).
    """
    task = ours.task
    _, batch = next(iter(ours.loader(1)))
    view = task.look(batch)
    hidden = task.objectives[0].hide(view, task.words)
    assert hidden.time_B is not None and task.stage is not None
    pixels_BCHW = batch.image_BCHW.float() / 127.5 - 1
    with torch.no_grad():
        theirs = stock.vae.encode(pixels_BCHW).latent_dist
        means = task.stage.on(pixels_BCHW.device).moments(pixels_BCHW).mean
        words = stock.data.dataset.words(
            list(batch.texts), padding="max_length", return_tensors="pt"
        )
        states = stock.clip(words.input_ids, return_dict=False)[0]
    noise = hidden.targets["ddpm"]
    with torch.no_grad():
        wanted = float(stock.loss(view.image_BCHW, states, noise, hidden.time_B.long()))
        found = float(task(batch).total)
    return (
        float((means - theirs.mean).abs().max() / theirs.mean.std()),
        float((view.contexts[0].tokens_BLD - states).abs().max()),
        abs(found - wanted) / wanted,
    )


def operations(stock: Stock, batch: int) -> dict[str, int]:
    """Floating-point operations of one step of the model: first stage, text, U-Net both ways."""
    from torch.utils.flop_counter import FlopCounterMode

    row = next(stock._forever())
    counts: dict[str, int] = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        latent = stock.vae.encode(row["pixel_values"]).latent_dist.mean
    counts["first stage"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = stock.clip(row["input_ids"], return_dict=False)[0]
    counts["text"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        times_B = torch.full((len(latent),), 500)
        stock.loss(latent, states, torch.randn_like(latent), times_B).backward()
    counts["U-Net"] = counter.get_total_flops()
    stock.optimiser.zero_grad()
    return counts
