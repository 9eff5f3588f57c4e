"""A run's folder in a bucket or on a disk: everything that outlives the machines.

recipe.yaml      the resolved recipe
run.json         its digest, the data's digest, versions, when it was made
status.json      what it is doing, on which machine
metrics.jsonl    one row every log_steps steps
events.jsonl     attempts, restarts, skipped steps with their samples
ledger/          what each rank trained on, as digests by step
logs/            the driver's and the workers' last lines
samples/         sheets of images that were drawn while it trained, `step-000100-ema.png`
tensorboard/     the same and all metrics: tensorboard --logdir RUN
checkpoints/     see checkpoint.py
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..config import Kinds, digest, from_yaml, to_yaml
from ..data import storage
from ..errors import RunError

if TYPE_CHECKING:  # torch takes seconds
    from .run import Run


@dataclass(frozen=True)
class RunDir:
    """The folder of one run."""

    url: str

    def at(self, *names: str) -> str:
        """The URL of something in the folder."""
        return storage.join(self.url, *names)

    @property
    def name(self) -> str:
        """Its last part."""
        return storage.name(self.url)

    def create(self, run: "Run", facts: Mapping[str, Any]) -> bool:
        """Writes the recipe, or finds the same one there; returns whether it was new.

        Raises:
            RunError: the folder belongs to another recipe or to other data.
        """
        if self.holds(run, facts):
            return False
        storage.write(self.at("recipe.yaml"), to_yaml(run).encode())
        self.put("run.json", {"recipe": digest(run), **facts})
        return True

    def holds(self, run: "Run", facts: Mapping[str, Any]) -> bool:
        """Whether the folder holds this run already; writes nothing.

        Raises:
            RunError: the folder belongs to another recipe or to other data.
        """
        if not storage.exists(self.at("run.json")):
            return False
        known, facts = self.json("run.json"), {"recipe": digest(run), **facts}
        for name in ("recipe", "data"):
            if known.get(name) != facts.get(name):
                raise RunError(
                    f"{self.url} was made with another {name} ({known.get(name)}, now "
                    f"{facts.get(name)}). Give this run another name with --run, or go on with "
                    f"the one that is there: diptych resume {self.url}"
                )
        return True

    def recipe(self, kinds: Kinds) -> "Run":
        """The recipe that the folder holds.

        Raises:
            RunError: it holds none.
        """
        from .run import parse_run

        if not storage.exists(self.at("recipe.yaml")):
            raise RunError(f"{self.url} is not a run. `diptych jobs` lists the runs there are.")
        text = storage.read(self.at("recipe.yaml"))
        source = self.at("recipe.yaml")
        return parse_run(from_yaml(text, source=source), kinds, source=source)

    def put(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file of the folder."""
        storage.write(self.at(name), json.dumps(value, indent=1).encode())

    def json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the folder; empty where there is none.

        Raises:
            RunError: it is damaged.
        """
        if not storage.exists(self.at(name)):
            return {}
        return self._parsed(name, storage.read(self.at(name)))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Reads a JSON-lines file of the folder; empty where there is none.

        Raises:
            RunError: it is damaged.
        """
        if not storage.exists(self.at(name)):
            return []
        lines = storage.read(self.at(name)).splitlines()
        return [self._parsed(name, line) for line in lines if line.strip()]

    def _parsed(self, name: str, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError as err:
            raise RunError(f"{self.at(name)} is damaged: {err}. Restore or delete it.") from err
        if not isinstance(found, dict):
            raise RunError(f"{self.at(name)} is damaged: no JSON object. Restore or delete it.")
        return cast(dict[str, Any], found)
