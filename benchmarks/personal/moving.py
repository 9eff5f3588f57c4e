"""Controls after their training: two at once, and unchanged beside a base that was tuned since.

python -m diptych.benchmarks.personal.moving --base RUN --tuned RUN --controls RUN RUN --data val
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from diptych.data import storage
from diptych.finetune.guided import draw, open_control
from diptych.finetune.parts import KINDS
from diptych.finetune.sample import Painter, painter
from diptych.finetune.steering import Exam, exam, keeps
from diptych.pretrain.diffusion.sampling import Sampling
from diptych.pretrain.hint import Hint
from diptych.pretrain.rundir import RunDir

_HOW = Sampling(steps=15, guidance_scale=3.0, seed=0)


def table(
    bases: Sequence[Painter], controls: Sequence[RunDir], hint: Hint, asked: Exam
) -> list[str]:
    """Lines of a table: each control alone, all at once at equal shares and at full weight."""
    lines = ["| drawn by | steered by | hint | shuffled |", "|---" * 4 + "|"]
    share = 1 / len(controls)
    weighted = [("nothing", [0.0] * len(controls))]
    for number, place in enumerate(controls):
        alone = [float(number == n) for n in range(len(controls))]
        weighted.append((place.name, alone))
    weighted += [
        (f"all at {share:g}", [share] * len(controls)),
        ("all at 1", [1.0] * len(controls)),
    ]
    for base in bases:
        ports = [open_control(place, base) for place in controls]
        for name, weights in weighted:
            guides = [
                (port, asked.hints_NCHW, w) for port, w in zip(ports, weights, strict=True) if w
            ]
            images = draw(base, asked.texts, _HOW, guides)
            own = keeps(hint, images, asked.hints_NCHW)
            others = keeps(hint, images, asked.hints_NCHW.roll(1, 0))
            lines.append(f"| {base.place.name} | {name} | {own:.3f} | {others:.3f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--tuned", required=True, help="a run that started from the base")
    parser.add_argument("--controls", nargs="+", required=True, help="of one hint")
    parser.add_argument("--data", required=True, help="pictures that were not trained on")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("docs/control-moved.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    places = [RunDir(storage.absolute(url)) for url in given.controls]
    bases = [painter(RunDir(storage.absolute(url))) for url in (given.base, given.tuned)]
    control = places[0].recipe(KINDS).control
    assert control is not None
    asked = exam(bases[0], storage.absolute(given.data), control.hint, given.count)
    lines = table(bases, places, control.hint, asked)
    given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
