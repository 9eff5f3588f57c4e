"""The same samples in each peer's own form, made once: litdata chunks, MDS, Energon's index.

Each part runs as a program in the peer's environment: `python -m ...convert litdata SET`.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

from . import home

PER_CHUNK = 500


def litdata(name: str, out: Path) -> None:
    """Chunks of 500 samples, uncompressed, as `litdata.optimize` makes them."""
    keys = [path.stem for path in sorted(home.loose(name).glob("*.jpg"))]
    importlib.import_module("litdata").optimize(
        fn=_Row(home.loose(name)),
        inputs=keys,
        output_dir=str(out),
        chunk_size=PER_CHUNK,
        num_workers=1,
    )


class _Row:
    """Reads one sample; a class so that litdata's workers can be given it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, key: str) -> dict[str, Any]:
        jpg, txt = (self.folder / f"{key}.{extension}" for extension in ("jpg", "txt"))
        return {"key": key, "jpg": jpg.read_bytes(), "txt": txt.read_bytes()}


def mosaic(name: str, out: Path) -> None:
    """MDS shards of as many bytes as one of the tars."""
    size = next(home.shards(name).glob("*.tar")).stat().st_size
    writer = importlib.import_module("streaming").MDSWriter
    columns = {"key": "str", "jpg": "bytes", "txt": "bytes"}
    row = _Row(home.loose(name))
    with writer(out=str(out), columns=columns, size_limit=size) as file:
        for path in sorted(home.loose(name).glob("*.jpg")):
            file.write(row(path.stem))


def energon(name: str, out: Path) -> None:
    """The index beside the tars; the tars themselves are links to ours."""
    out.mkdir(parents=True)
    for path in home.shards(name).glob("*.tar"):
        (out / path.name).hardlink_to(path)
    flavors = importlib.import_module("megatron.energon.flavors")
    names = sorted(path.name for path in out.glob("*.tar"))
    ratio = [("train", 1.0), ("val", 0.0), ("test", 0.0)]
    flavors.BaseWebdatasetFactory.prepare_dataset(out, names, split_parts_ratio=ratio, workers=2)
    crude = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (out / ".nv-meta" / "dataset.yaml").write_text(crude)
    for path in out.glob("*.tar"):
        path.unlink()  # in the bucket the index lies beside our own tars


FORMS = {"litdata": litdata, "mosaic": mosaic, "energon": energon}

if __name__ == "__main__":
    peer, name, folder = sys.argv[1:]
    shutil.rmtree(folder, ignore_errors=True)
    FORMS[peer](name, Path(folder))
