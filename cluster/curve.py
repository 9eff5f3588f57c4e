"""The learning rate of a run by step: on a terminal, or as a picture."""

from pathlib import Path

from ..data import storage
from ..pretrain.optim import lr_at
from ..pretrain.run import Run

_BARS = " ▁▂▃▄▅▆▇█"


def points(run: Run, most: int) -> list[tuple[int, float]]:
    """(step, learning rate) of at most so many steps, evenly spread, the first and last in them."""
    count = min(most, run.steps)
    steps = [round(n * (run.steps - 1) / max(1, count - 1)) for n in range(count)]
    return [(step, lr_at(run.optim, step, run.steps)) for step in steps]


def terminal(run: Run, width: int = 60, height: int = 6) -> str:
    """A plot in block characters."""
    rates = [rate for _, rate in points(run, width)]
    top = max(rates)
    rows: list[str] = []
    for row in reversed(range(height)):
        cells = [min(8, max(0, round((rate / top * height - row) * 8))) for rate in rates]
        label = f"{top:.1e}" if row == height - 1 else ""
        rows.append(f"{label:>8} {''.join(_BARS[cell] for cell in cells)}")
    ends = f"{0:<{len(rates) - 1}}{run.steps - 1}" if len(rates) > 1 else "0"
    return "\n".join([f"learning rate, by step ({run.optim.decay})", *rows, f"{'':>8} {ends}"])


def picture(run: Run, path: Path) -> None:
    """A PNG, SVG or PDF, by the name's ending.

    Raises:
        StorageError: it cannot be written there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    steps, rates = zip(*points(run, 2000), strict=True)
    axes.plot(steps, rates)
    axes.set(xlabel="step", ylabel="learning rate", title=run.name, ylim=(0, None))
    with storage.explained(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
