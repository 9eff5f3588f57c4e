"""The table and the plot of an ablation, of as many cells as are there."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from .cells import LONGER, ROWS, SCRATCH, SHARES

Found = Sequence[dict[str, Any]]


def report(found: Found, docs: Path, seeds: int) -> None:
    """Writes reproduce-vlp.md and reproduce-vlp.png."""
    docs.mkdir(parents=True, exist_ok=True)
    steps = found[0] if found else {"pretrain": 0, "tune": 0, "test": 0}
    lines = [
        "# What each pretraining objective is good for",
        "",
        f"easy-VQA, {steps['pretrain']} steps of pretraining on statements, {steps['tune']} steps",
        f"on questions; `{SCRATCH}` has those alone, `{LONGER}` both. {steps['test']} test rows.",
        f"Mean ± half the range over seeds (of {seeds} planned; n where fewer are done).",
        "Made by `make reproduce-vlp`.",
        "",
        "| pretraining | MLM right image | MLM shuffled image | seconds |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        right, wrong, spent = (
            _values(found, row, 0, name)
            for name in ("mlm.accuracy", "shuffled.mlm.accuracy", "seconds")
        )
        mean = f"{statistics.mean(spent):.0f}" if spent else "-"
        lines.append(f"| {row} | {_say(right, seeds)} | {_say(wrong, seeds)} | {mean} |")
    labels = "".join(f" {share} % of labels | {share} %, shuffled images |" for share in SHARES)
    lines += ["", f"| VQA after |{labels}", "|---" * (1 + 2 * len(SHARES)) + "|"]
    for row in (*ROWS, SCRATCH, LONGER):
        said = [
            _say(_values(found, row, share, name), seeds)
            for share in SHARES
            for name in ("vqa.accuracy", "shuffled.vqa.accuracy")
        ]
        lines.append(f"| {row} | {' | '.join(said)} |")
    _plot(found, docs / "reproduce-vlp.png")
    lines += ["", "![accuracy by share of the labels](reproduce-vlp.png)", ""]
    (docs / "reproduce-vlp.md").write_text("\n".join(lines))
    print(docs / "reproduce-vlp.md")


def _values(found: Found, row: str, share: int, name: str) -> list[float]:
    return [f[name] for f in found if (f["row"], f["share"]) == (row, share) and name in f]


def _say(values: list[float], seeds: int) -> str:
    if not values:
        return "-"
    mean, half = statistics.mean(values), (max(values) - min(values)) / 2
    few = "" if len(values) >= seeds else f" (n={len(values)})"
    return f"{mean:.1%} ± {100 * half:.1f}{few}"


def _plot(found: Found, file: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for row in (*ROWS, SCRATCH, LONGER):
        there = {share: _values(found, row, share, "vqa.accuracy") for share in SHARES}
        shares = [share for share in SHARES if there[share]]
        means = [statistics.mean(there[share]) for share in shares]
        axes.plot(shares, means, "--" if row in (SCRATCH, LONGER) else "-", marker="o", label=row)
    axes.set(xscale="log", xlabel="% of the labels", ylabel="VQA accuracy on test questions")
    axes.set_xticks(SHARES, [str(share) for share in SHARES])
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
