"""Experiment: fine-tuning on new people after training on others, over seeds.

    python -m experiments.finetuning FIRST THEN OUT [--seeds 0 1 2] [--share I/N] [--json FILE]

FIRST and THEN are packs of different people; THEN also contains the verification pairs. The network of
recipes/faces_tiny.yaml is trained from scratch on THEN, for six epochs and for as many images as the others
see in total. It is also trained on FIRST and then on THEN with recipes/finetune.yaml, complete and with parts
left out. Each run uses one core. OUT contains the runs. Runs that are finished or in FILE are not repeated.
--share: every N-th seed from seed I (from 0), so that N processes can share the work.
"""

import argparse
import json
from pathlib import Path

from experiments.comparison import ScoreRow, format_table, run_folder, train_and_score
from partialfc.data import RecordDataset
from partialfc.errors import InputError
from partialfc.sweep.runner import parse_task

_EPOCHS = 6  # of faces_tiny and of finetune
_TINY_OVERRIDES = [  # settings of faces_tiny that finetune would take from faces_small
    "backbone.input_size=48", "backbone.width=12", "backbone.embedding_size=128", "backbone.dropout=0.2", "augment={}",
    "loss={name: elastic_cosface, scale: 32, margin: 0.25, sigma: 0.025, order: paper}", "optim.ema_decay=0", "evaluation.every=0",
]  # fmt: skip
_SCRATCH, _LONG, _BEFORE = "from scratch", "from scratch, as many images as both", "on FIRST alone"
_TUNED = {
    "fine-tuned": [],
    "fine-tuned, random centers": ["init.centers=null"],
    "fine-tuned, never frozen": ["init.freeze_backbone=0"],
    "fine-tuned, at the full rate": ["optim.lr=0.1"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tuned, against from scratch.")
    parser.add_argument("first", type=Path)
    parser.add_argument("then", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[ScoreRow] = (
        json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    )
    try:
        share = parse_task(arguments.share)
        seeds = [it for it in arguments.seeds if it not in {row["seed"] for row in rows}]
        for seed in seeds[share.index :: share.count]:
            rows += run_seed(arguments.first, arguments.then, arguments.out, seed)
    except InputError as error:
        parser.error(str(error))
    print("\n".join(format_table([_SCRATCH, _LONG, _BEFORE, *_TUNED], rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def run_seed(first: Path, then: Path, out: Path, seed: int) -> list[ScoreRow]:
    """Return the rows of a seed."""
    rows: list[ScoreRow] = []
    for case, (recipe, settings) in planned_runs(first, then, out, seed).items():
        rows += train_and_score(run_folder(out, case, seed), case, settings, seed, recipe)
    return rows


def planned_runs(first: Path, then: Path, out: Path, seed: int) -> dict[str, tuple[str, list[str]]]:
    """Return recipe and settings of each case, in an order in which they can be trained."""
    sets = ", ".join(str(path) for path in sorted(then.glob("*.bin")))
    images = [len(RecordDataset(pack)) for pack in (first, then)]
    as_many = round(_EPOCHS * sum(images) / images[1])
    before = run_folder(out, _BEFORE, seed)
    tuned = [*_TINY_OVERRIDES, f"init.backbone={before}", f"data.path={then}"]
    return {
        _SCRATCH: ("faces_tiny", [f"data.path={then}"]),
        _LONG: ("faces_tiny", [f"data.path={then}", f"train.length={as_many} epochs"]),
        _BEFORE: ("faces_tiny", [f"data.path={first}", f"evaluation.sets=[{sets}]"]),
    } | {case: ("finetune", [*tuned, *settings]) for case, settings in _TUNED.items()}


if __name__ == "__main__":
    main()
