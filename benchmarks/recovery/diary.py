"""What happens in a visit, one JSON line each, with the machine's monotonic clock."""

import json
import time
from pathlib import Path
from typing import Any


class Diary:
    """A file that several processes add lines to and one reads."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def write(self, what: str, attempt: int, value: int) -> None:
        """Adds a line; a short one is written whole."""
        line = json.dumps({"what": what, "attempt": attempt, "value": value, "t": time.monotonic()})
        with open(self.path, "a") as file:
            file.write(line + "\n")

    def news(self) -> list[dict[str, Any]]:
        """The lines that came since the last time."""
        if not self.path.exists():
            return []
        text = self.path.read_text()[self._read :]
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Pipe:
    """Stands in for a rank's pipe to a host: writes down each step."""

    def __init__(self, diary: Diary, attempt: int) -> None:
        self.diary, self.attempt = diary, attempt

    def send(self, said: Any) -> None:
        """Takes what a rank tells."""
        if said.kind == "metrics":
            self.diary.write("step", self.attempt, int(said.body["step"]))
