"""First stages that are trained: one backward pass against two optimisers', and what they learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diptych.config import plain
from diptych.data.batch import Batch
from diptych.data.draws import normal
from diptych.data.tokens import Text
from diptych.errors import RecipeError
from diptych.finetune.parts import KINDS
from diptych.pretrain.evaluate import evaluate
from diptych.pretrain.likeness import Looking
from diptych.pretrain.likenesses import Taef2, Timm
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise
from diptych.pretrain.task import Task

Rows = Callable[..., Batch]
SHARED = Path("/work/shared/data")
SIZES = {"channels": [8, 16], "groups": 4, "image_size": 16, "tokens": 12}
MODELS: dict[str, dict[str, Any]] = {
    "kl": {"kind": "kl_autoencoder", "latent_channels": 2, "kl": 0.01, **SIZES},
    "vq": {"kind": "vq_autoencoder", "latent_channels": 2, "codes": 8, **SIZES},
}
JUDGED = {"kind": "reconstruct", "disc_width": 8, "disc_depth": 1}


def made(kind: str, *settings: str) -> Run:
    values = plain(vlp_easy())
    values |= {"model": MODELS[kind], "objectives": [JUDGED]}
    return revise(values, list(settings), KINDS, source="small")


def fresh(run: Run, text: Text) -> Task:
    torch.manual_seed(0)
    return run.task(text)


def reference(task: Task, batch: Batch, run: Run) -> dict[str, Tensor]:
    """Gradients as with two optimisers: of the first stage, then of the critic; all plain autograd.

    The loss of taming-transformers and latent diffusion, divided by the number of pixel values.
    """
    net: Any = task.model.net
    critic: Any = task.heads["reconstruct"].critic
    record: Any = run.objectives[0]
    image = batch.image_BCHW.float() / 127.5 - 1
    if run.model.kind == "kl_autoencoder":
        said = net.encode(image).latent_dist
        noise = normal(batch.draws_B, "posterior", said.mean[0].numel()).float()
        latent = said.mean + said.std * noise.view_as(said.mean)
        again = net.decode(latent).sample
        bound = said.kl().mean() * run.model.kl / image[0].numel()  # pyright: ignore
    else:
        net.quantize.legacy = False
        net.quantize.beta = 0.25
        latent = net.encode(image).latents
        quantised, bound, _ = net.quantize(latent)
        again = net.decode(quantised, force_not_quantize=True).sample
    nll = (image - again).abs().mean()
    fooling = -critic(again).mean()
    last = net.decoder.conv_out.weight
    one, other = (torch.autograd.grad(x, last, retain_graph=True)[0] for x in (nll, fooling))
    weight = torch.clamp(one.norm() / (other.norm() + 1e-4), 0, 1e4).detach()
    total = nll + bound + record.disc_weight * weight * fooling
    ours = dict(task.model.named_parameters())
    grads = torch.autograd.grad(total, list(ours.values()))
    found = {f"model.{name}": grad for name, grad in zip(ours, grads, strict=True)}
    real, fake = critic(image), critic(again.detach())
    cost = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    theirs = dict(critic.named_parameters())
    grads = torch.autograd.grad(cost, list(theirs.values()))
    prefix = "heads.reconstruct.critic."
    return found | {prefix + name: grad for name, grad in zip(theirs, grads, strict=True)}


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_one_backward_pass_gives_both_gradients(kind: str, text: Text, rows: Rows) -> None:
    """Weights whose gradient is zero but for rounding (before a norm) are held within 1e-9."""
    run = made(kind)
    task = fresh(run, text)
    with torch.no_grad():  # a new critic says nearly nothing
        for param in task.heads.parameters():
            param.mul_(5)
    wanted = reference(task, rows(6), run)
    task(rows(6)).total.backward()
    named = dict(task.named_parameters())
    assert named.keys() == wanted.keys()
    for name, param in named.items():
        assert param.grad is not None
        atol = max(1e-9, 2e-5 * float(wanted[name].abs().max()))
        torch.testing.assert_close(param.grad, wanted[name], atol=atol, rtol=1e-4)


def test_the_critic_starts_late(text: Text, rows: Rows) -> None:
    task = fresh(made("kl", "objectives.reconstruct.disc_start=5"), text)
    before = task(replace(rows(4), step=4))
    before.total.backward()
    assert {n.split(".")[0] for n, p in task.named_parameters() if p.grad is not None} == {"model"}
    assert "reconstruct.critic" not in before.sums
    after = task(replace(rows(4), step=5))
    after.total.backward()
    assert all(p.grad is not None for p in task.parameters())
    assert int(after.sums["reconstruct.accuracy"][1]) == 4 * 2 * 36
    none = fresh(made("kl", "objectives.reconstruct.disc_weight=0"), text)
    assert not list(none.heads.parameters())


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_it_learns_to_say_images_again(kind: str, text: Text, rows: Rows) -> None:
    task = fresh(made(kind, "model.kl=1e-6" if kind == "kl" else "model.codes=32"), text)
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3, betas=(0.5, 0.9))
    image = torch.nn.functional.interpolate(torch.rand(8, 3, 2, 2), 16, mode="bilinear") * 255
    batch = replace(rows(8), image_BCHW=image.to(torch.uint8))
    first = evaluate(task, [batch])
    for step in range(100):  # half way, some codes are still unused
        optimiser.zero_grad()
        task(replace(batch, step=step)).total.backward()
        optimiser.step()
    last = evaluate(task, [batch])
    assert last["reconstruct.error"] < 0.4 * first["reconstruct.error"]
    assert last["reconstruct.psnr"] > first["reconstruct.psnr"] + 6


def test_ranks_and_stages_learn_the_same(tmp_path: Path) -> None:
    """The adaptive weight is of all rows, wherever they are; ZeRO-3 has no whole last layer."""
    model = MODELS["vq"] | {"image_size": 8, "tokens": 4}
    recipe = {"model": model, "objectives": [JUDGED | {"disc_start": 1}]}
    recipe |= {"optim": {"lr": 0.001, "clip": 100.0}}
    jobs = [
        {"do": "train", "steps": 4, "recipe": recipe, "out": f"{tmp_path}/{w}-{z}",
         "shape": {"workers": w, "zero_stage": z}}
        for w, z in ((1, 0), (2, 0), (2, 2), (2, 3))
    ]  # fmt: skip
    alone, *others = ranks.run(tmp_path, jobs)
    assert len(alone) == 4
    for other in others:
        assert other == pytest.approx(alone, rel=2e-5)


def test_a_likeness_of_timm_reads_what_is_there(tmp_path: Path) -> None:
    import timm

    name = "test_resnet.r160_in1k"
    torch.manual_seed(3)
    whole: Any = timm.create_model(name, pretrained=False)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    look = Looking(Timm(network=name, weights=str(tmp_path / "model.safetensors"), maps=3))
    one, other = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert torch.equal(look.apart(one, one), torch.zeros(2))
    far_B = look.apart(one, other)
    assert (far_B > 0).all()
    torch.testing.assert_close(look.apart(one[1:], other[1:]), far_B[1:])
    lost = {k: v for k, v in whole.state_dict().items() if not k.startswith("layer1.")}
    save_file(lost, tmp_path / "model.safetensors")
    with pytest.raises(RecipeError, match=r"the weights lack \d+ tensors.*layer1"):
        Looking(look.record).apart(one, other)
    with pytest.raises(RecipeError, match="timm has no network 'nowhere'"):
        Looking(Timm(network="nowhere")).apart(one, other)


def test_the_hub_is_asked_where_no_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nobody answers: one sentence, which names the way out."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"the hub gave no timm/test_resnet.*likeness\.weights="):
        Looking(Timm(network="test_resnet.r160_in1k")).apart(*torch.rand(2, 1, 3, 32, 32))


@pytest.mark.skipif(not (SHARED / "taef2").exists(), reason=f"{SHARED}/taef2 is not here")
def test_taef2_sees_blur_as_further_than_a_shade(text: Text, rows: Rows) -> None:
    record = {"kind": "taef2", "weights": str(SHARED / "taef2" / "taef2_encoder.safetensors")}
    look = Looking(Taef2(weights=record["weights"]))
    torch.manual_seed(4)
    sharp = F.interpolate(torch.rand(1, 3, 16, 16) * 2 - 1, 64)
    blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, 1)
    shade = sharp + (blurred - sharp).abs().mean()
    assert look.apart(sharp, blurred) > 2 * look.apart(sharp, shade)
    task = fresh(made("kl", f"objectives.reconstruct.likeness={record}"), text)
    found = task(rows(2))
    assert float(found.sums["reconstruct.likeness"][0]) > 0
    assert not any("eye" in name for name, _ in task.named_parameters())
