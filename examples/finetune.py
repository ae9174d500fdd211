"""python examples/finetune.py WEIGHTS BACKBONE PACK OUTPUT [section.key=value ...]

Fine-tune a published network on your own identities.

WEIGHTS is a .pth of insightface or ElasticFace, and BACKBONE its name, such as iresnet100. PACK is a pack of
`partialfc pack` with a .bin set for evaluation.
"""

import argparse
import json
from pathlib import Path

from partialfc.config import load_config
from partialfc.runtime import comm
from partialfc.training.loop import train

# A tenth of the learning rate of training from scratch, and a short warm-up, since centers start random.
GENTLE = ["optim.lr=0.01", "schedule.warmup=100", "train.length=5 epochs", "loss.name=elastic_arcface"]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("weights", "backbone", "pack", "output"):
        parser.add_argument(name)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    own = [
        f"init.backbone={options.weights}",
        f"backbone.name={options.backbone}",
        f"data.path={options.pack}",
        f"output={options.output}",
    ]
    config = load_config("faces_small", [*GENTLE, *own, *options.overrides])
    with comm.init_distributed(config.device) as dist_ctx:  # one process, or those that torchrun has started
        train(config, dist_ctx)
        if dist_ctx.is_main:
            summary = json.loads(Path(config.output, "summary.json").read_text())
            for name, scores in summary["verification"].items():
                before = summary["verification_before"][name]["accuracy"]
                print(f"{name}: {before:.1%} right before, {scores['accuracy']:.1%} after")


if __name__ == "__main__":
    main()
