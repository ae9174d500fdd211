"""Experiment: methods against label noise, on a pack with flipped labels, over seeds.

    python -m experiments.wrong_labels PACK OUT [--share 0.3] [--seeds 0 1 2 3 4] [--json FILE]

The methods are: none; ignoring negatives above a cosine of 0.4; three sub-centers per class; and none, on the
pack that `partialfc clean` makes with the third. Each is recipes/faces_tiny.yaml on one core, with the seed
of the flips. Finished runs are not repeated. OUT contains runs and packs.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from experiments.comparison import ScoreRow, format_table, run_module, train_and_score
from partialfc.data import RecordDataset

RUNS = {  # settings, and the pack for training
    "as it is": ([], "flipped"),
    "threshold 0.4": (["head.interclass_threshold=0.4"], "flipped"),
    "three sub-centers": (["head.subcenters=3"], "flipped"),
    "cleaned": ([], "cleaned"),
}
CLEANS = "three sub-centers"  # the run that cleans the pack


def main() -> None:
    parser = argparse.ArgumentParser(description="What helps against wrong labels.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[ScoreRow] = []
    for seed in arguments.seeds:
        folder = arguments.out / str(seed)
        make_pack(
            folder / "flipped",
            "experiments.flip_labels",
            arguments.pack,
            folder / "flipped",
            "--share",
            arguments.share,
            "--seed",
            seed,
        )
        for name, (settings, pack) in RUNS.items():
            if pack == "cleaned":
                make_cleaned_pack(folder)
            output = folder / "runs" / name.replace(" ", "_")
            rows += train_and_score(output, name, [*settings, f"data.path={folder / pack}"], seed)
    print("\n".join(format_table(list(RUNS), rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    for seed in arguments.seeds:
        print(f"seed {seed}: {count_caught(arguments.pack, arguments.out / str(seed))}")


def count_caught(pack: Path, folder: Path) -> str:
    """Return how many of the dropped images had a wrong label."""
    right, given = (RecordDataset(it) for it in (pack, folder / "flipped"))
    wrong = {given.key(image) for image in range(len(given)) if given.label(image) != right.label(image)}
    with (folder / "cleaned/dropped.csv").open(newline="") as file:
        dropped = {int(row["key"]) for row in csv.DictReader(file)}
    return f"clean drops {len(dropped & wrong)} of {len(wrong)} wrong labels, and {len(dropped - wrong)} right ones"


def make_cleaned_pack(folder: Path) -> None:
    run, flipped, cleaned = folder / "runs" / CLEANS.replace(" ", "_"), folder / "flipped", folder / "cleaned"
    make_pack(cleaned, "partialfc", "clean", run, flipped, cleaned)
    for pairs in flipped.glob("*.bin"):
        shutil.copy(pairs, cleaned)


def make_pack(folder: Path, module: str, *arguments: object) -> None:
    """Create a pack unless it exists."""
    if not (folder / "property").exists():
        run_module(module, *arguments)


if __name__ == "__main__":
    main()
