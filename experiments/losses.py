"""Experiment: losses and sampling methods on a pack of faces, over seeds.

    python -m experiments.losses PACK OUT [--seeds 0 1 2 3 4] [--only TEXT] [--share I/N] [--json FILE]

Each run is recipes/faces_tiny.yaml for three epochs on one core, with the settings below. PACK also contains
the verification pairs. OUT contains the runs. Runs that are finished or in FILE are not repeated; FILE then
contains all. --only: cases whose names contain the text. --share: every N-th run from run I (from 0), so that
N processes can share the work.
"""

import argparse
import json
from itertools import product
from pathlib import Path

from experiments.comparison import ScoreRow, format_table, run_folder, train_and_score
from partialfc.errors import InputError
from partialfc.sweep.runner import parse_task

# The scale and half of the margin of the papers: with full margins, a network this small barely separates its
# own images.
_ARC, _COS = "scale: 32, margin: 0.25", "scale: 32, margin: 0.175"
CASES = {
    "cosface": [f"loss={{name: cosface, {_COS}}}"],
    "softmax with bias": ["loss={name: linear}"],
    "cosine softmax": ["loss={name: softmax, scale: 32}"],
    "sphereface": ["loss={name: combined, scale: 32, m1: 1.35}"],
    "arcface": [f"loss={{name: arcface, {_ARC}}}"],
    "elastic-arc": [f"loss={{name: elastic_arcface, {_ARC}, sigma: 0.025}}"],
    "elastic-arc+, paper": [f"loss={{name: elastic_arcface, {_ARC}, sigma: 0.009, order: paper}}"],
    "elastic-arc+, released": [f"loss={{name: elastic_arcface, {_ARC}, sigma: 0.009, order: released}}"],
    "elastic-cos": [f"loss={{name: elastic_cosface, {_COS}, sigma: 0.025}}"],
    "elastic-cos+, paper": [f"loss={{name: elastic_cosface, {_COS}, sigma: 0.0125, order: paper}}"],
    "elastic-cos+, released": [f"loss={{name: elastic_cosface, {_COS}, sigma: 0.0125, order: released}}"],
    "adaface": ["loss={name: adaface, scale: 32, margin: 0.2}"],
    "magface": ["loss={name: magface, scale: 32, margin_range: [0.225, 0.4]}"],
    "curricularface": [f"loss={{name: curricularface, {_ARC}}}"],
    "uniface": ["loss={name: uniface, scale: 32, margin: 0.2}"],
    "sphereface2": ["loss={name: sphereface2, scale: 32, margin: 0.2}"],
    "cosface, three sub-centers": [f"loss={{name: cosface, {_COS}}}", "head.subcenters=3"],
    "cosface, r 0.3": [f"loss={{name: cosface, {_COS}}}", "head.sample_rate=0.3"],
    "cosface, r 0.1": [f"loss={{name: cosface, {_COS}}}", "head.sample_rate=0.1"],
    "cosface, r 0.1, then 1": [f"loss={{name: cosface, {_COS}}}", "head.sample_rate={0: 0.1, 2 epochs: 1.0}"],
    "cosface, r 0.1, decay": [f"loss={{name: cosface, {_COS}}}", "head={sample_rate: 0.1, unsampled: decay}"],
    "cosface, r 0.1, hard": [f"loss={{name: cosface, {_COS}}}", "head={sample_rate: 0.1, sampling: hard}"],
    "cosface, bfloat16 rows": [f"loss={{name: cosface, {_COS}}}", "head={centers_dtype: bfloat16, optim_state_dtype: bfloat16}"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What losses and samplings are worth.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", default="")
    parser.add_argument("--share")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in case]
    rows = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    try:
        share = parse_task(arguments.share)
    except InputError as error:
        parser.error(str(error))
    known = {(row["seed"], row["case"]) for row in rows}
    runs = [it for it in product(arguments.seeds, cases) if it not in known]
    for seed, case in runs[share.index :: share.count]:
        train_and_score(
            run_folder(arguments.out, case, seed), case, case_overrides(arguments.pack, case), seed
        )
    rows += [row for seed, case in runs for row in finished_rows(arguments.out, arguments.pack, case, seed)]
    rows.sort(key=lambda row: (list(CASES).index(row["case"]), row["seed"]))
    print("\n".join(format_table(cases, rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def case_overrides(pack: Path, case: str) -> list[str]:
    return [*CASES[case], "train.length=3 epochs", f"data.path={pack}"]


def finished_rows(out: Path, pack: Path, case: str, seed: int) -> list[ScoreRow]:
    folder = run_folder(out, case, seed)
    return (
        train_and_score(folder, case, case_overrides(pack, case), seed)
        if (folder / "summary.json").exists()
        else []
    )


if __name__ == "__main__":
    main()
