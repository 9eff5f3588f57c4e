"""easy-VQA (github.com/vzhou842/easy-VQA, MIT) as samples: image, caption, question, answer.

The images, questions and answers come from the PyPI package `easy-vqa`; the captions are
statements made from an image's own questions and answers.
"""

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .pack import Sample


class Question(NamedTuple):
    """One row of the package's questions.json."""

    text: str
    answer: str
    image: int


def answers() -> tuple[str, ...]:
    """The 13 answers, sorted."""
    return tuple(sorted((_home() / "answers.txt").read_text().split()))


def samples(split: str) -> list[Sample]:
    """One sample a question of `train` or `test`: png, txt (caption), json (question, answer).

    Raises:
        DataError: another split, or the package is not installed.
    """
    if split not in ("train", "test"):
        raise DataError(f"{split!r} is no split of easy-VQA: train or test.")
    home = _home() / split
    rows = [Question(*row) for row in json.loads((home / "questions.json").read_text())]
    return list(_samples(rows, home / "images"))


def _samples(rows: list[Question], images: Path) -> Iterator[Sample]:
    asked: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        asked[row.image].append(number)
    for number, row in enumerate(rows):
        record = {"question": row.text, "answer": row.answer, "image": row.image}
        yield (
            f"{number:06d}",
            {
                "png": (images / f"{row.image}.png").read_bytes(),
                "txt": caption(rows, number, asked[row.image]).encode(),
                "json": json.dumps(record).encode(),
            },
        )


def caption(rows: list[Question], number: int, siblings: list[int]) -> str:
    """Two statements about the image: from this question, and from the next one of another sort.

    A what-question ("what color is the circle?") names a property; a yes/no question affirms or
    denies one. Together they say something that few other images share.
    """
    place = siblings.index(number)
    others = siblings[place + 1 :] + siblings[:place]
    what = rows[number].text.startswith("what")
    partners = [other for other in others if rows[other].text.startswith("what") != what]
    pair = [number, *partners[:1]]
    pair.sort(key=lambda each: not rows[each].text.startswith("what"))
    return " and ".join(statement(rows[each], style=each + number) for each in pair)


def statement(question: Question, *, style: int = 0) -> str:
    """The question and its answer as a short statement; `style` picks one of two wordings.

    Raises:
        DataError: a question of no known form.
    """
    text, answer, style = question.text.rstrip("?"), question.answer, style % 2
    if found := re.fullmatch(r"what (?:color is|is the color of) the (\w+)", text):
        return ("the {0} is {1}", "a {1} {0}")[style].format(found[1], answer)
    if found := re.fullmatch(r"what is the (\w+) shape", text):
        return ("the {0} shape is a {1}", "a {0} {1}")[style].format(found[1], answer)
    if text.startswith("what shape"):
        return ("the shape is a {}", "a {}")[style].format(answer)
    found = re.search(r"\b(?:a|no) ((?:\w+ )?shape|\w+)", text)
    if not found or answer not in ("yes", "no"):
        raise DataError(f"easy-vqa: no statement can be made of {question.text!r}, {answer!r}.")
    denied = " not " in f" {text} " or " no " in f" {text} "
    return f"a {found[1]}" if (answer == "yes") != denied else f"no {found[1]}"


def _home() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the package easy-vqa is not installed: pip install 'diptych[demo]'.")
    return Path(spec.submodule_search_locations[0]) / "data"
