"""experiments/finetuning.py: every case is a recipe, and what has finished is tabulated."""

import json

from helpers.calling import called_module
from helpers.faces import write_pack

from experiments import finetuning
from partialfc.config import load_config


def test_cases_are_recipes_of_one_network_and_are_tabulated(pack, tmp_path):
    write_pack(tmp_path / "first", 5, 2)
    networks = set()
    for case, (recipe, settings) in finetuning.planned_runs(
        tmp_path / "first", pack, tmp_path / "out", 0
    ).items():
        config = load_config(recipe, settings)
        optim = config.optim.weight_decay, config.optim.ema_decay
        networks.add(
            (config.backbone, config.head, config.loss, config.augment, optim, config.train.global_batch_size)
        )
        folder = finetuning.run_folder(tmp_path / "out", case, 0)
        folder.mkdir(parents=True)
        scores = {"unseen": {"accuracy": 0.9 if "fine-tuned" in case else 0.8, "auc": 0.8}}
        (folder / "summary.json").write_text(json.dumps({"verification": scores}))
    assert len(networks) == 1
    command = ["experiments.finetuning", tmp_path / "first", pack, tmp_path / "out"]
    command += ["--seeds", "0", "--json", tmp_path / "rows.json"]
    found = called_module(*command).stdout.splitlines()
    assert found[2] == "| from scratch | 1 | 80.0 |  | 0.800 |  |"
    assert found[5] == "| fine-tuned | 1 | 90.0 | +10.0 | 0.800 | +0.000 |"
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 7
