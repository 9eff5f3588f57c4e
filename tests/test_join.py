"""Caches beside the stream: the same rows as live encoding, joined by key and hash."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.cluster import costs
from diptych.cluster.shapes import Shape
from diptych.config import plain
from diptych.data import cache, index, precompute, storage
from diptych.data.batch import Batch
from diptych.data.index import Manifest
from diptych.data.join import Joined, stacked
from diptych.data.loader import Loader, Recipe
from diptych.data.pack import Sample, tar
from diptych.data.plan import Plan, Source
from diptych.data.tokens import Text
from diptych.errors import RecipeError, StaleCacheError, StorageError
from diptych.finetune.parts import KINDS
from diptych.pretrain.recipes import vlp_easy
from diptych.pretrain.run import Run, revise

Samples = Callable[..., list[Sample]]
Dataset = Callable[..., Manifest]


class Mean:
    """The mean colour as a 3 x 1 x 1 latent, and the text's letters as states."""

    name, digest = "mean", "0" * 16

    def encode(
        self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
    ) -> Mapping[str, Sequence[np.ndarray]]:
        assert images_BCHW is not None
        return {"latent": images_BCHW.astype(np.float32).mean((2, 3), keepdims=True)}


class Letters:
    name, digest = "letters", "1" * 16

    def encode(
        self, images_BCHW: np.ndarray | None, texts: Sequence[str] | None
    ) -> Mapping[str, Sequence[np.ndarray]]:
        return {"text": [np.array([[ord(c)] for c in t], np.float32) for t in texts or ()]}


def filled(source: Manifest, out: Path, encoder: Mean | Letters) -> str:
    reads = ("image",) if isinstance(encoder, Mean) else ("text",)
    sized: dict[str, Any] = (
        {"sizes": ((8, 8),), "exact": False} if isinstance(encoder, Mean) else {"text": "txt"}
    )
    spec = cache.Spec(
        encoder=encoder.name, encoder_digest=encoder.digest, reads=reads, dtype="float32", **sized
    )
    precompute.precompute(source, encoder, spec, str(out))  # pyright: ignore[reportArgumentType]
    return str(out)


def batches(plan: Plan, text: Text, joined: Joined | None, *, stop: int = 8) -> list[Batch]:
    recipe = Recipe(text="txt", image_size=8, seed=0)
    return [batch for _, batch in Loader(plan, text, recipe, stop=stop, joined=joined)]


def test_rows_are_those_of_the_same_samples(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    """In the plan's order, over several epochs, and of several ranks: nothing by position."""
    source = dataset([samples(20), samples(13, first=20)])
    plan = Plan(source, seed=3, batch=8)
    urls = [filled(source, tmp_path / one.name, one) for one in (Mean(), Letters())]
    joined = Joined(plan, [[cache.open_cache(url, source) for url in urls]])
    assert joined.images
    with_it, without = batches(plan, text, joined), batches(plan, text, None)
    for one, other in zip(with_it, without, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.draws_B, other.draws_B)
        assert torch.equal(one.tokens_BL, other.tokens_BL)
        means_BC = other.image_BCHW.float().mean((2, 3))
        torch.testing.assert_close(one.arrays["latent"][:, :, 0, 0], means_BC)
        said = [
            "".join(chr(int(value)) for value in row[real, 0])
            for row, real in zip(one.arrays["text"], one.arrays["text.real"], strict=True)
        ]
        assert said == [f"a picture with number {int(key.rpartition('/')[2])}" for key in one.keys]


def test_several_sources_each_have_their_own(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    sources = [dataset([samples(16)], "a"), dataset([samples(16, first=16)], "b")]
    plan = Plan([Source(each, 1.0, name) for each, name in zip(sources, "ab", strict=True)], 0, 8)
    made = [
        [cache.open_cache(filled(each, tmp_path / f"m{number}", Mean()), each)]
        for number, each in enumerate(sources)
    ]
    for one, other in zip(
        batches(plan, text, Joined(plan, made)), batches(plan, text, None), strict=True
    ):
        torch.testing.assert_close(
            one.arrays["latent"][:, :, 0, 0], other.image_BCHW.float().mean((2, 3))
        )


def test_a_changed_sample_is_refused(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    """Even where the note has been forged: the row itself says what it was made of."""
    source = dataset([samples(16)])
    url = filled(source, tmp_path / "mean", Mean())
    changed = samples(16)
    changed[5] = (changed[5][0], {**changed[5][1], "png": samples(1, first=99)[0][1]["png"]})
    storage.write(str(tmp_path / "set/00000.tar"), tar(changed))
    new = index.build([str(tmp_path / "set/00000.tar")])
    with pytest.raises(StaleCacheError, match="stale"):
        cache.open_cache(url, new)
    opened = cache.open_cache(url, source)
    plan = Plan(new, seed=0, batch=16)
    with pytest.raises(StaleCacheError, match=r"000005' as it is now.*diptych data precompute"):
        batches(plan, text, Joined(plan, [[opened]]), stop=1)


def test_other_shards_are_refused(samples: Samples, dataset: Dataset, tmp_path: Path) -> None:
    source, other = dataset([samples(16)]), dataset([samples(9), samples(7, first=9)], "other")
    opened = cache.open_cache(filled(source, tmp_path / "mean", Mean()), source)
    with pytest.raises(StaleCacheError, match="has other shards"):
        Joined(Plan(other, seed=0, batch=8), [[opened]])


def test_a_sample_that_could_not_be_encoded_is_left_out(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    from diptych.data.holes import Budget, Holes

    bad = samples(32)
    bad[3] = (bad[3][0], {**bad[3][1], "png": b"no picture"})
    source = dataset([bad])
    plan = Plan(source, seed=0, batch=32)
    opened = cache.open_cache(filled(source, tmp_path / "mean", Mean()), source)
    joined, holes = Joined(plan, [[opened]]), Holes(plan, Budget(shard=0.1, source=0.1))
    recipe = Recipe(text="txt", image_size=8, seed=0)
    [(_, batch)] = list(Loader(plan, text, recipe, stop=1, joined=joined, holes=holes))
    assert batch.hole_B is not None
    assert [key for key, hole in zip(batch.keys, batch.hole_B, strict=True) if hole] == [
        "00000.tar/000003"
    ]
    assert batch.arrays["latent"][batch.hole_B].abs().max() == 0


def test_rows_of_other_lengths_are_filled_up() -> None:
    found = stacked([{"text": np.ones((2, 3))}, {}, {"text": np.ones((4, 3))}])
    assert found["text"].shape == (3, 4, 3)
    assert found["text.real"].sum(1).tolist() == [2, 0, 4]
    assert float(found["text"].sum()) == 18
    assert stacked([{}, {}]) == {}


@pytest.fixture
def latent_run(samples: Samples, dataset: Dataset, tmp_path: Path) -> Callable[..., Run]:
    """`latent_run(...)`: a denoiser on latents of a small autoencoder, with a cache of them."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from diptych.pretrain.encoders import Autoencoder

    kind = AutoencoderKL
    torch.manual_seed(0)
    kind(block_out_channels=(8,), latent_channels=4, norm_num_groups=4).save_pretrained(
        str(tmp_path / "vae")
    )
    source = dataset([samples(20)])
    encoder = Autoencoder(weights=str(tmp_path / "vae"))
    spec = encoder.spec(sizes=[(8, 8)], dtype="float32")
    precompute.precompute(source, encoder.open(), spec, str(tmp_path / "latents"))

    def make(*settings: str) -> Run:
        values = plain(vlp_easy())
        stage = {"kind": "autoencoder", "weights": str(tmp_path / "vae"), "downsampling": 1}
        values["model"] = {
            "kind": "dit", "image_size": 8, "tokens": 12, "width": 16, "depth": 1, "heads": 2,
            "first_stage": stage,
        }  # fmt: skip
        values["objectives"] = [{"kind": "ddpm"}]
        values["batch"] = 8
        values["data"] = {
            "train": source.url.removesuffix("/index"), "tokenizer": "tokenizer.json",
            "caches": [str(tmp_path / "latents")],
        }  # fmt: skip
        return revise(values, list(settings), KINDS, source="small")

    return make


def test_losses_from_a_cache_are_those_of_live_encoding(
    latent_run: Callable[..., Run], text: Text, tmp_path: Path
) -> None:
    """Latents are drawn from mean and log-variance by the row's key, cached or not."""
    run = latent_run()
    plan = Plan(index.open_manifest(run.data.sources[0].url), run.seed, run.batch)
    torch.manual_seed(0)
    task, found = run.task(text), list[list[Tensor]]()
    for joined in (run.joined(plan), None):
        loader = Loader(plan, text, run.rows, stop=3, joined=joined)
        found.append([task(batch).total.detach() for _, batch in loader])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    for _, batch in Loader(plan, text, run.rows, stop=1, joined=run.joined(plan)):
        assert batch.arrays["latent"].shape == batch.arrays["logvar"].shape == (8, 4, 8, 8)
        twice = replace(batch, draws_B=batch.draws_B + 1)
        assert not torch.equal(task.look(batch).image_BCHW, task.look(twice).image_BCHW)


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        ("model.image_size=16", StaleCacheError, "sizes"),
        ("model.first_stage={kind: pixels}", RecipeError, "can train from those of: none"),
        ("data.pixels.flip=0.5", RecipeError, "cropped at the middle"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    setting: str, error: type[Exception], said: str, latent_run: Callable[..., Run]
) -> None:
    run = latent_run(setting)
    plan = Plan(index.open_manifest(run.data.sources[0].url), run.seed, run.batch)
    with pytest.raises(error, match=said):
        run.joined(plan)


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        one.keys == other.keys
        and one.texts == other.texts
        and one.fields == other.fields
        and torch.equal(one.arrays["latent"], other.arrays["latent"])
        for one, other in zip(ours, theirs, strict=True)
    )


def test_a_cache_of_images_has_the_texts_too_and_shards_are_not_read(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    source = dataset([samples(20), samples(13, first=20)])
    plan = Plan(source, seed=3, batch=8)
    opened = cache.open_cache(filled(source, tmp_path / "mean", Mean()), source)
    assert opened.note.kept
    bare = cache.Cache(opened.url, replace(opened.note, kept=False), opened.manifest)
    read = batches(plan, text, Joined(plan, [[bare]]))
    assert any(batch.fields[0] for batch in read) and all(batch.texts[0] for batch in read)
    for shard in source.shards:
        Path(storage.local_path(shard.url)).unlink()
    assert same(batches(plan, text, Joined(plan, [[opened]])), read)
    with pytest.raises(StorageError):
        batches(plan, text, Joined(plan, [[bare]]))


def test_new_captions_are_read_though_images_stay_cached(
    samples: Samples, dataset: Dataset, text: Text, tmp_path: Path
) -> None:
    source = dataset([samples(16)])
    url = filled(source, tmp_path / "mean", Mean())
    changed = samples(16)
    changed[5][1]["txt"] = b"a picture that is said to be another"
    storage.write(str(tmp_path / "set/00000.tar"), tar(changed))
    new = index.build([str(tmp_path / "set/00000.tar")])
    assert filled(new, tmp_path / "mean", Mean()) == url
    opened = cache.open_cache(url, new)
    assert not opened.note.kept
    forged = cache.Cache(url, replace(opened.note, kept=True), opened.manifest)
    plan = Plan(new, seed=0, batch=16)
    for each in (opened, forged):
        [batch] = batches(plan, text, Joined(plan, [[each]]), stop=1)
        at = [key.rpartition("/")[2] for key in batch.keys].index("000005")
        assert batch.texts[at] == "a picture that is said to be another"


@pytest.mark.parametrize("odd", [b"caf\xe9", b"a" * 70_000])
def test_what_cannot_be_kept_is_read(
    odd: bytes, samples: Samples, dataset: Dataset, tmp_path: Path
) -> None:
    some = samples(16)
    some[5][1]["txt"] = odd
    source = dataset([some])
    opened = cache.open_cache(filled(source, tmp_path / "mean", Mean()), source)
    assert not opened.note.kept


def test_a_plan_counts_the_bytes_of_caches(
    latent_run: Callable[..., Run],
) -> None:
    """Once over the data: those of the cache alone, or of both where it keeps no texts."""
    run = latent_run("steps=6")
    url = run.data.sources[0].caches[0]
    note = cache.read_note(url)
    assert note is not None and note.kept
    source, kept = (index.open_manifest(one) for one in (run.data.sources[0].url, url))
    plan = Plan(source, run.seed, run.batch)
    epochs = run.steps * run.batch / source.samples
    for keeps, size in ((True, kept.bytes), (False, kept.bytes + source.bytes)):
        cache.write_note(url, replace(note, kept=keeps))
        found = costs.reading(plan, run, Shape(workers=1))
        assert found.bytes == pytest.approx(epochs * size, abs=2)
