"""METEOR and SPICE, which exist in Java alone: by pycocoevalcap, where it and Java are installed.

METEOR 1.5 (Denkowski and Lavie 2014); SPICE 1.0 (Anderson et al. 2016). The tokens are ours.
"""

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...config import unknown
from ...errors import DataError

Tokens = Sequence[str]


def meteor(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """METEOR of a whole test, 0 to 1; Java takes up to 2 GB.

    Args:
        captions: tokens of one an image.
        references: tokens of one or more an image.

    Raises:
        DataError: pycocoevalcap or Java is missing, or Java failed.
    """
    return _score("meteor", "Meteor", captions, references)


def spice(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """SPICE of a whole test, 0 to 1; Java takes up to 8 GB. Otherwise as `meteor`.

    Raises:
        DataError: also where Stanford's models are missing, which nothing here downloads.
    """
    home = Path(_module("spice.spice").__file__).parent
    if not (home / "lib/stanford-corenlp-3.6.0-models.jar").exists():
        raise DataError(
            "SPICE reads captions with Stanford's CoreNLP 3.6.0, which is not there. Download it "
            "once (0.4 GB): python -m pycocoevalcap.spice.get_stanford_models"
        )
    return _score("spice", "Spice", captions, references)


Score = Callable[[Sequence[Tokens], Sequence[Sequence[Tokens]]], float]
EXTRAS: dict[str, Score] = {"meteor": meteor, "spice": spice}


def extra(name: str) -> Score:
    """The score of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in EXTRAS:
        raise unknown(name, list(EXTRAS), "score")
    return EXTRAS[name]


def _score(
    name: str, kind: str, captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> float:
    scorer = getattr(_module(f"{name}.{name}"), kind)()
    ours = {number: [" ".join(tokens)] for number, tokens in enumerate(captions)}
    theirs = {n: [" ".join(tokens) for tokens in texts] for n, texts in enumerate(references)}
    try:
        return float(scorer.compute_score(theirs, ours)[0])
    except (OSError, ValueError) as err:  # what is read of a Java that died is no number
        raise DataError(
            f"{kind.upper()} of {len(ours)} captions: Java failed ({type(err).__name__}: {err}). "
            "Try `java -version`, and whether memory is left."
        ) from err
    finally:
        process = getattr(scorer, "meteor_p", None)
        for pipe in (process.stdout, process.stderr) if process else ():
            pipe.close()  # which it leaves open itself


def _module(name: str) -> Any:
    if shutil.which("java") is None:
        raise DataError(f"{name.split('.')[0].upper()} runs in Java, and there is no `java` here.")
    try:
        return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError as err:
        raise DataError(
            f"{name.split('.')[0].upper()} comes with a package that is not installed: "
            "pip install --no-deps pycocoevalcap (104 MB)."
        ) from err
