"""The factors of an adapter beside one module: are all there, do they fit, what weight they make.

Shapes alone are looked at, by the names of the parts as peft, kohya and LyCORIS write them. O rows
of the weight, I columns (a convolution's kernel among them), r rank, k kernel.
"""

import math
from collections.abc import Iterator, Mapping

Shape = tuple[int, ...]
Parts = Mapping[str, Shape]
PAIRS = (
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_down", "lora_up"),
    ("lora.down", "lora.up"),
    ("lora_linear_layer.down", "lora_linear_layer.up"),
    ("processor.down", "processor.up"),
)
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_WHOLE = ("lokr_w1", "lokr_w2")
_LENGTHS = ("lora_magnitude_vector", "dora_scale")


def lacking(parts: Parts) -> str | None:
    """A part that loaders want beside those that are there; None where nothing is missing."""
    for down, up in PAIRS:
        if (down in parts) != (up in parts):
            return up if down in parts else down
    if any(name.startswith("hada_") for name in parts):
        return next((name for name in _HADAMARD if name not in parts), None)
    if any(name.startswith("lokr_") for name in parts):
        for whole in _WHOLE:
            halves = [f"{whole}_a", f"{whole}_b"]
            lost = [name for name in halves if name not in parts]
            if whole not in parts and lost:
                return lost[0] if len(lost) == 1 else whole
    return None


def misfits(parts: Parts) -> Iterator[str]:
    """Sentences of parts, none of them lacking, that cannot be multiplied with one another."""
    for up, down, core in _products(parts):
        first, second = parts[up], parts[down]
        if len(first) < 2 or len(second) < 2:
            yield f"{up} {first} and {down} {second} are no two matrices."
            return
        elif core is not None and len(core) < 2:
            yield f"what stands between {up} and {down} is no matrix: {core}."
            return
        elif _inner(up, first, core) != (second[0] if core is None else core[0]):
            yield f"{down} has rank {second[0]} and {up} rank {_inner(up, first, core)}."
            return
        elif core is not None and core[1] != second[0]:
            yield f"{down} has rank {second[0]}, what stands before it {core[1]}."
            return
    made = {_made(parts, *each) for each in _products(parts)}
    if len(made) > 1 and "hada_w1_a" in parts:
        yield f"its two products have several shapes: {sorted(made)}."


def weight(parts: Parts) -> tuple[int, int] | None:
    """Rows and columns of the weight that whole, fitting parts make; None where they make none."""
    made = [_made(parts, *each) for each in _products(parts)]
    made += [(parts[n][0], math.prod(parts[n][1:])) for n in _WHOLE if n in parts]
    if not made:
        return None
    if any(name.startswith("lokr_") for name in parts):
        return math.prod(rows for rows, _ in made), math.prod(columns for _, columns in made)
    rows, columns = made[0]
    # A table of words is looked up, not multiplied with.
    return (columns, rows) if "lora_embedding_A" in parts else (rows, columns)


def length_of(parts: Parts) -> tuple[str, int] | None:
    """DoRA's part that holds lengths of rows or columns, and how many; None without one."""
    name = next((name for name in _LENGTHS if name in parts), None)
    return (name, math.prod(parts[name])) if name else None


def _products(parts: Parts) -> Iterator[tuple[str, str, Shape | None]]:
    """Names of a left and a right factor, and the shape of a core of Tucker's between them."""
    for down, up in PAIRS:
        if down in parts and up in parts:
            yield up, down, parts.get("lora_mid") if up == "lora_up" else None
    for name, core in (
        ("hada_w1", "hada_t1"),
        ("hada_w2", "hada_t2"),
        ("lokr_w1", ""),
        ("lokr_w2", "lokr_t2"),
    ):
        if f"{name}_a" in parts and f"{name}_b" in parts and name not in parts:
            yield f"{name}_a", f"{name}_b", parts.get(core)


def _turned(up: str, core: Shape | None) -> bool:
    """LyCORIS and peft keep a left factor turned (r, O) where there is a core; kohya does not."""
    return core is not None and up != "lora_up"


def _inner(up: str, shape: Shape, core: Shape | None) -> int:
    return shape[0] if _turned(up, core) else shape[1]


def _made(parts: Parts, up: str, down: str, core: Shape | None) -> tuple[int, int]:
    rows = parts[up][1] if _turned(up, core) else parts[up][0]
    kernel = math.prod(core[2:]) if core else 1
    return rows, math.prod(parts[down][1:]) * kernel
