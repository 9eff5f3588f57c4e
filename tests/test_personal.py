"""`make reproduce-dreambooth`: its cells, a small one from its pictures to its row, its tables."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.benchmarks.personal import cells, report
from diptych.benchmarks.personal.running import Means, run
from diptych.data import storage
from diptych.data.pack import tar
from diptych.data.tokens import Text
from diptych.finetune.parts import KINDS
from diptych.finetune.sample import Painter, painter
from diptych.pretrain.encoders import Palette
from diptych.pretrain.run import parse_run
from diptych.pretrain.rundir import RunDir

TAR = Path("/work/shared/data/dreambooth-20.tar")
UNET = {"kind": "unet", "image_size": 16, "channels": [8, 8], "heads": 2, "groups": 4}


@pytest.fixture
def base(text: Text, keep: Callable[..., RunDir]) -> Painter:
    values = {
        "name": "base",
        "model": UNET | {"width": 16, "tokens": 12},
        "objectives": [{"kind": "ddpm"}],
        "data": {"train": "/nowhere", "tokenizer": "/nowhere.json"},
    }
    made = parse_run(values, KINDS, source="test")
    torch.manual_seed(0)
    return painter(keep(made, made.task(text), text))


def subjects(path: Path) -> Path:
    """A tar with three pictures of each of two subjects."""
    samples: list[Any] = []
    for number, name in enumerate(("dog7", "dog5")):
        for shot in range(3):
            place = path / "one.png"
            shade = np.full((20, 20, 3), 60 + 80 * number + 10 * shot, np.uint8)
            Image.fromarray(shade).save(place)
            samples.append((f"{name}/{shot:02d}", {"png": place.read_bytes()}))
    storage.write(str(path / "subjects.tar"), tar(samples))
    return path / "subjects.tar"


def test_cells_differ_and_their_subjects_are_there() -> None:
    listed = [*cells.dreambooth(), *cells.controls()]
    assert len({cell.name for cell in listed}) == len(listed) == 3 * (8 * 3 + 5)
    first = [cell.method for cell in listed[:5]]
    assert first == ["full, prior", "full, no prior", "full, real prior", "lora 4", "tokens"]
    if not TAR.exists():
        pytest.skip(f"{TAR} is not here")
    with tarfile.open(TAR) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if name.count("/") > 1}
    strangers = {other for _, other, _ in cells.SUBJECTS.values() if other}
    assert {*cells.SUBJECTS, *strangers} <= folders


def test_a_cell_from_pictures_to_its_row(base: Painter, tmp_path: Path) -> None:
    means = Means(
        base, Palette(cells=2).open(), tmp_path / "home", str(subjects(tmp_path)), "",
        steps=2, looks=1, batch=4, count=2,
    )  # fmt: skip
    asked = {"adapter": {"kind": "lora", "rank": 2}, "lr": 1e-2, "class_images": 2}
    cell = cells.Cell("lora 2", "dog7", 0, asked)
    row = run(cell, means)
    assert [look["step"] for look in row["looks"]] == [0, 2] and row["stranger"] > 0
    made = painter(RunDir(storage.absolute(str(means.home / cell.name))))
    assert made.step == 2 and made.run.adapters[0].kind == "lora"
    assert row["bytes"] > 4 * row["numbers"] > 0
    assert (means.home / cell.name / "result.html").exists()
    again = run(cell, means)
    assert again["looks"] == row["looks"], "an interrupted cell begins anew, and ends alike"


def rows(method: str, *looks: tuple[float, float]) -> dict[str, Any]:
    told = [
        {"step": n, "similarity": s, "among": 0.9, "drift": d, "diversity": 1.0}
        for n, (s, d) in enumerate(looks)
    ]
    facts = {"name": method, "method": method, "subject": "cat", "seed": 0, "looks": told}
    facts |= {"first": told[0], "last": told[-1], "numbers": 3, "bytes": 12, "seconds": 1.0}
    return facts | {"stranger": None}


def test_drift_is_compared_at_the_similarity_that_both_reach() -> None:
    looks = rows("x", (0.2, 0.0), (0.6, 0.4), (0.5, 0.9))["looks"]
    assert report.drift_at(looks, 0.4) == pytest.approx(0.2)
    assert report.drift_at(looks, 0.6) == pytest.approx(0.4), "when it was reached first"
    with pytest.raises(ValueError, match="no look reaches"):
        report.drift_at(looks, 0.7)


def test_tables_keep_what_was_written_above_them(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "docs"
    found = [rows("full, prior", (0.2, 0.0), (0.6, 0.1))]
    found.append(rows("full, no prior", (0.2, 0.0), (0.8, 0.6)))
    for row in found:
        for look in row["looks"]:
            place = home / row["name"] / "samples" / f"{look['step']:08d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 * 66 + 2, 134)).save(place)
    path = report.write("dreambooth", found, home, out)
    assert "| full, prior; full, no prior | cat, 0 | 0.600 | 0.100 | 0.400 |" in path.read_text()
    path.write_text("# Said by hand\n\n" + path.read_text().partition("\n\n")[2])
    report.write("dreambooth", found, home, out)
    assert path.read_text().startswith("# Said by hand") and path.read_text().count("| runs |") == 1
    assert json.dumps(sorted(p.name for p in out.iterdir())) == (
        '["dreambooth-cat.png", "dreambooth-curves.png", "dreambooth-results.md"]'
    )
