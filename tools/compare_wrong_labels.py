"""What helps against wrong labels: a pack with a share of them flipped, trained on four ways, over seeds.

    tools/compare_wrong_labels.py PACK OUT [--share 0.3] [--seeds 0 1 2 3 4] [--json FILE]

As it is; with negatives above a cosine of 0.4 left out; with three sub-centres a class; and as it is, on the pack that
`partialfc clean` makes by the third. Each is recipes/faces_tiny.yaml on one core, by the seed that drew the flips, too. What
has finished is not run again. OUT holds runs and packs. Differences are those of runs of one seed, their 95 % intervals a
bootstrap over the seeds.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from partialfc.data import RecordDataset

FOLDER = Path(__file__).resolve().parent
_DRAWS = 10_000  # of the bootstrap
RUNS = {  # settings, and the pack that is trained on
    "as it is": ([], "flipped"),
    "threshold 0.4": (["head.interclass_threshold=0.4"], "flipped"),
    "three sub-centres": (["head.subcenters=3"], "flipped"),
    "cleaned": ([], "cleaned"),
}
CLEANS = "three sub-centres"  # the run by which the cleaned pack is made


def main() -> None:
    parser = argparse.ArgumentParser(description="What helps against wrong labels.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        folder = arguments.out / str(seed)
        make(
            folder / "flipped",
            "tools/flip_labels.py",
            arguments.pack,
            folder / "flipped",
            "--share",
            arguments.share,
            "--seed",
            seed,
        )
        for name, (settings, pack) in RUNS.items():
            if pack == "cleaned":
                clean(folder)
            rows += trained(folder, name, [*settings, f"data.path={folder / pack}", f"seed={seed}"], seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for name in RUNS:
        print(line(name, rows))
    for seed in arguments.seeds:
        print(f"seed {seed}: {caught(arguments.pack, arguments.out / str(seed))}")


def line(name: str, rows: list[dict[str, Any]]) -> str:
    scores, first = (
        np.array([[row["accuracy"], row["auc"]] for row in rows if row["case"] == it])
        for it in (name, next(iter(RUNS)))
    )
    differences = scores - first
    chosen = np.random.default_rng(0).integers(0, len(scores), (_DRAWS, len(scores)))
    low, high = np.percentile(differences[chosen].mean(axis=1), (2.5, 97.5), axis=0)
    accuracy, auc = scores.mean(axis=0)
    spread = 100 * scores[:, 0].std(ddof=1) if len(scores) > 1 else np.nan
    apart, of_auc = differences.mean(axis=0)
    return (
        f"{name:18} {100 * accuracy:.1f} +- {spread:.1f} % ({100 * apart:+.1f}, {100 * low[0]:.1f} to {100 * high[0]:.1f})  "
        f"AUC {auc:.3f} ({of_auc:+.3f}, {low[1]:.3f} to {high[1]:.3f})"
    )


def caught(pack: Path, folder: Path) -> str:
    """How many of the dropped images had a wrong label."""
    right, given = (RecordDataset(it) for it in (pack, folder / "flipped"))
    wrong = {given.key(image) for image in range(len(given)) if given.label(image) != right.label(image)}
    with (folder / "cleaned/dropped.csv").open(newline="") as file:
        dropped = {int(row["key"]) for row in csv.DictReader(file)}
    return f"clean drops {len(dropped & wrong)} of {len(wrong)} wrong labels, and {len(dropped - wrong)} right ones"


def trained(folder: Path, name: str, settings: list[str], seed: int) -> list[dict[str, Any]]:
    """A row for each verification set of a run, which is trained unless it has finished."""
    output = folder / "runs" / name.replace(" ", "_")
    if not (output / "summary.json").exists():
        call("-m", "partialfc", "train", "faces_tiny", *settings, f"output={output}", "--ranks", 1)
    summary = json.loads((output / "summary.json").read_text())
    return [
        {"case": name, "seed": seed, "set": kind, "accuracy": scores["accuracy"], "auc": scores["auc"]}
        for kind, scores in summary["verification"].items()
    ]


def clean(folder: Path) -> None:
    run, flipped, cleaned = folder / "runs" / CLEANS.replace(" ", "_"), folder / "flipped", folder / "cleaned"
    make(cleaned, "-m", "partialfc", "clean", run, flipped, cleaned)
    for pairs in flipped.glob("*.bin"):
        shutil.copy(pairs, cleaned)


def make(folder: Path, *arguments: object) -> None:
    """A pack, where it is not there."""
    if not (folder / "property").exists():
        call(*arguments)


def call(*arguments: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, cwd=FOLDER.parent, env=environment
    ).returncode
    if code:  # it has said why
        sys.exit(code)


if __name__ == "__main__":
    main()
