"""What an export target is, and how it is found by its name."""

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from ..config import unknown
from ..data import storage
from ..data.batch import Batch
from ..data.tokens import Text
from ..errors import ExportError
from ..pretrain.run import Run
from ..pretrain.task import Task


class Target(Protocol):
    """A module of `finetune/export/`."""

    NAME: str
    """What `--to` takes."""
    TAKES: str
    """Which models it can hold, after "takes"."""

    def require(self, run: Run) -> None:
        """Raises ExportError, saying why, where it cannot hold what the run trained."""
        ...

    def write(self, out: Path, run: Run, task: Task, text: Text, facts: dict[str, Any]) -> None:
        """Writes the folder `out`, which is new; `facts` go into its README."""
        ...

    def prove(self, out: Path, run: Run, task: Task, text: Text, batch: Batch) -> dict[str, Any]:
        """Has a clean process compute the same of `batch`; returns what proof.json holds.

        Raises:
            ExportError: it computed something else.
        """
        ...


def find_target(name: str, table: ModuleType, run: Run | None = None) -> Target:
    """The target of that name in a table of contents; of several, the one that takes the run.

    Raises:
        RecipeError: there is none; the near miss is named.
    """
    found = [target for target in targets(table) if name == target.NAME]
    if not found:
        known = sorted({target.NAME for target in targets(table)})
        raise unknown(name, [*known, "merged"], "--to")
    return next((target for target in found if run and _takes(target, run)), found[-1])


def _takes(target: Target, run: Run) -> bool:
    try:
        target.require(run)
    except ExportError:
        return False
    return True


def targets(table: ModuleType) -> list[Target]:
    """All targets of a table of contents."""
    modules = [value for value in vars(table).values() if isinstance(value, ModuleType)]
    return [cast(Target, module) for module in modules if hasattr(module, "NAME")]


def local_folder(out: str) -> Path:
    """The folder that `--out` names.

    Raises:
        ExportError: it is in a bucket, where no library opens what it has to prove.
    """
    if out.startswith("file://"):
        return storage.local_path(out)
    if "://" in out:
        raise ExportError(
            f"--out {out}: exports are written to a local folder, where a clean process opens "
            f"them. Name one, then copy it: aws s3 cp --recursive FOLDER {out}"
        )
    return Path(out)


def new_folder(out: Path) -> None:
    """Makes a folder to export to.

    Raises:
        ExportError: it is there already and not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is not empty. Choose another --out, or delete it.")
    out.mkdir(parents=True, exist_ok=True)
