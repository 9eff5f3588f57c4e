"""A JSON file as the rows of a table: a list of objects, or COCO's images and their annotations."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import DataError

Row = dict[str, Any]


UNUSED = "annotation with neither bbox nor caption"


def rows(path: Path, ignored: Counter[str]) -> Iterator[tuple[str, Row | str]]:
    """Yields (name, row); what is wrong with it stands in place of a bad row.

    Of COCO (`images`, `annotations`, `categories`) a row is an image with its own facts, with
    `captions` where its annotations have a `caption`, and `objects` where they have a `bbox`, each
    with the name of its category. Annotations with neither are counted in `ignored`.

    Raises:
        DataError: no JSON, or neither of the two forms.
    """
    try:
        found: Any = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path} is not JSON: {err}. Correct it.") from err
    if isinstance(found, Mapping) and isinstance(found.get("images"), list):
        found = list(_coco(cast(Mapping[str, Any], found), path, ignored))
    if not isinstance(found, list):
        raise DataError(
            f"{path} is a {type(found).__name__}. It should be a list of objects, one a picture, "
            "or COCO's {images, annotations}."
        )
    for number, row in enumerate(cast(list[Any], found)):
        good = isinstance(row, dict)
        yield f"{path.name}:{number}", row if good else f"a {type(row).__name__}, no object"


def _coco(found: Mapping[str, Any], path: Path, ignored: Counter[str]) -> Iterator[Row]:
    try:
        named = {one["id"]: str(one["name"]) for one in found.get("categories") or []}
        of: dict[Any, list[Row]] = {}
        for one in found.get("annotations") or []:
            of.setdefault(one["image_id"], []).append(one)
        for image in found["images"]:
            mine = of.pop(image["id"], [])
            captions = [one["caption"] for one in mine if "caption" in one]
            objects = [_object(one, named) for one in mine if "bbox" in one]
            if unused := sum("caption" not in one and "bbox" not in one for one in mine):
                ignored[UNUSED] += unused
            more = {"captions": captions, "objects": objects}
            yield {**image, **{name: value for name, value in more.items() if value}}
    except (KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path} is not in the form of COCO: {err!r} is missing or wrong.") from err
    if of:
        raise DataError(
            f"{path}: {len(of)} image_ids of annotations, such as {next(iter(of))!r}, are of none "
            "of its images. Correct the file."
        )


def _object(one: Row, named: Mapping[Any, str]) -> Row:
    kept = {name: value for name, value in one.items() if name not in ("id", "image_id", "caption")}
    known = one.get("category_id") in named
    return {**kept, "category": named[one["category_id"]]} if known else kept
