"""The answer vocabulary of a dataset: those worth learning, built from its records."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..data import storage
from ..data.holes import samples
from ..data.index import Manifest
from ..errors import DataError
from .heads.vqa import people
from .metrics.answers import targets


def vocabulary(
    records: Iterable[Mapping[str, Any]], *, least: float = 1, most: int = 3129
) -> tuple[str, ...]:
    """The normal answers of records with `answers` or an `answer`, the most useful first.

    An answer's use is the sum over the questions of the accuracy that it would have there: with
    one answer a question, how often it was given. Equals stand in alphabetical order.

    Args:
        records: JSON records of the training samples.
        least: answers of less use are left out (the usual vocabulary of VQA v2 takes 9).
        most: answers to keep (3129 in VQA v2).

    Raises:
        DataError: fewer than two answers are left.
    """
    uses = Counter[str]()
    for record in records:
        uses.update(targets(people(record)))
    ordered = sorted(uses, key=lambda answer: (-round(uses[answer], 6), answer))
    found = [answer for answer in ordered if answer and uses[answer] >= least - 1e-6][:most]
    if len(found) < 2:
        raise DataError(
            f"The records hold {len(uses)} answers, {len(found)} of them of use {least} or more. "
            "Give JSON records with `answers` or `answer`, or a lower least."
        )
    return tuple(found)


def records(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The JSON record of every sample that has one; the shards are read once, from end to end.

    Samples in quarantine are left out.

    Raises:
        DataError: a record that is no JSON object.
    """
    for shard, record, members in samples(manifest):
        if "json" in members:
            yield _parsed(members["json"], f"{storage.shown(shard.url)}/{record.key}.json")


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as err:
        raise DataError(f"{where} is not JSON: {err}. Repack it.") from err
    if not isinstance(found, dict):
        raise DataError(f"{where} is a {type(found).__name__}, not an object. Repack it.")
    return found
