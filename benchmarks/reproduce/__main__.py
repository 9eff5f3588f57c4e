"""The ablation of pretraining objectives on easy-VQA: `make reproduce-vlp`.

{MLM}, {+ITM}, {+MRM}, {+WRA} are pretrained on statements; then the questions are learned with 10,
30 and 100 % of the labels, against no pretraining with as many fine-tuning steps and with as many
steps altogether. 3 seeds. A cell that is done is a line of results.jsonl and is never done again;
no cell is begun after `--minutes`, so the same command goes on with it. It ends with the table and
the plot of what there is, in docs/.

    make reproduce-vlp          # 30 minutes on 2 cores; again, until it says done
    make reproduce-vlp ARGS="--seeds 1 --scale 0.1 --home /tmp/quick --docs /tmp/quick"
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

from .cells import Sizes, cells, prepare, run
from .report import report


def main() -> None:
    """Goes on with the ablation for a while."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="begin no cell after so many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps, for a quick look")
    parser.add_argument("--home", type=Path, default=Path(".bench/reproduce-vlp"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    told = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    sizes = Sizes(*(max(2, int(told.scale * full)) for full in (1400, 700, 9673)))
    home: Path = told.home
    home.mkdir(parents=True, exist_ok=True)
    began, record = time.monotonic(), home / f"results-{told.scale:g}.jsonl"
    prepare(home)
    lines = record.read_text().splitlines() if record.exists() else []
    found = [json.loads(line) for line in lines]
    done = {(row["share"], row["seed"], row["row"]) for row in found}
    left = [c for c in cells(told.seeds) if (c.share, c.seed, c.row) not in done]
    for number, cell in enumerate(left):
        if time.monotonic() - began > 60 * told.minutes:
            print(f"{len(left) - number} cells are left; the same command goes on.")
            break
        row = run(cell, home, sizes)
        with open(record, "a") as file:
            file.write(json.dumps(row) + "\n")
        found.append(row)
        hits = {name: round(v, 3) for name, v in row.items() if name.endswith("accuracy")}
        print(f"{cell.name}: {row['seconds']:.0f} s, {hits}", flush=True)
    else:
        print("done: every cell is there.")
    report(found, told.docs, told.seeds)


if __name__ == "__main__":
    main()
