"""The prompts of the DreamBooth data set, as its own file lists them.

`prompts_and_classes.txt` names each subject's class, and 25 prompts for objects and 25 for live
subjects, with {0} for the identifier and {1} for the class.
"""

import re
from typing import NamedTuple

from ...errors import DataError

LIVE = frozenset({"cat", "dog"})
"""Classes of the data set that are alive."""


class Prompts(NamedTuple):
    """What the file says."""

    classes: dict[str, str]
    """Class of each subject."""
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def of(self, class_word: str, identifier: str) -> list[str]:
        """The prompts for a subject of a class."""
        listed = self.live if class_word in LIVE else self.objects
        return [" ".join(line.format(identifier, class_word).split()) for line in listed]


def read_prompts(text: str) -> Prompts:
    """Reads `prompts_and_classes.txt`.

    Raises:
        DataError: it is no such file.
    """
    classes = dict(re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE))
    classes.pop("subject_name", None)
    parts = re.split(r"^(Object|Live Subject) Prompts\s*$", text, flags=re.MULTILINE)
    lists = {
        name: tuple(re.findall(r"^\s*'(.+?)'\.format", body, re.MULTILINE))
        for name, body in zip(parts[1::2], parts[2::2], strict=False)
    }
    if not classes or not lists.get("Object") or not lists.get("Live Subject"):
        raise DataError(
            "no prompts_and_classes.txt: it must have `subject,class` lines, and the lists `Object "
            "Prompts` and `Live Subject Prompts`."
        )
    return Prompts(classes, lists["Object"], lists["Live Subject"])
