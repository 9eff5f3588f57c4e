"""Memory of this process and all its children, as a person would count it: the peak of the sum."""

import threading

import psutil


class Meter:
    """Samples the proportional set size (shared pages counted once) while it is open."""

    def __init__(self, every_s: float = 2.0) -> None:
        self.every_s = every_s
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="diptych-meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.every_s):
            self.peak_bytes = max(self.peak_bytes, _family_bytes())


def _family_bytes() -> int:
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            found = process.memory_full_info()
            total += getattr(found, "pss", found.uss)  # only Linux shares out shared pages
        except psutil.Error:
            continue  # it ended between the list and the question
    return total
