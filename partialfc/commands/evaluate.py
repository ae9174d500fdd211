"""Verify on .bin sets, as a run does.

partialfc evaluate output/mine                                 # the newest checkpoint, on the run's own sets
partialfc evaluate output/mine/checkpoints/step_00001000 lfw.bin agedb_30.bin
partialfc evaluate backbone.pth lfw.bin --backbone iresnet100  # weights from elsewhere
partialfc evaluate exported/model.onnx lfw.bin
"""

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from partialfc.commands.options import add_network, network_of
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.evaluation.sets import Scores
from partialfc.evaluation.verify import embed_sets
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime import comm
from partialfc.runtime.errors import exit_on_input_error
from partialfc.runtime.files import atomic_write


def evaluated(recognizer: Recognizer, sets: list[Path]) -> dict[str, Scores]:
    """The scores of each set by its name. InputError where there is none, or one cannot be read."""
    if not sets and recognizer.config:
        sets = sorted(Path(recognizer.config.data.path).glob("*.bin"))
    if not sets:
        raise InputError("no verification set; wanted .bin files")
    loaded = [load_pairs(path) for path in sets]
    with comm.join(recognizer.device.type) as ranks:
        embeddings = embed_sets(
            recognizer.network, loaded, ranks, batch=recognizer.batch, autocast=recognizer.autocast()
        )
    return {it.name: it.score(embeddings[it.name]) for it in loaded}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_network(parser)
    parser.add_argument("sets", type=Path, nargs="*", help=".bin files; default: those of the run's pack")
    parser.add_argument("--json", type=Path, help="write the scores there, too")
    options = parser.parse_args()
    with exit_on_input_error():
        found = evaluated(network_of(options), options.sets)
        names = list(dict.fromkeys(name for values in found.values() for name in values))
        table = Table("set", *names)
        for name, values in found.items():
            table.add_row(name, *(f"{values[it]:.6g}" if it in values else "" for it in names))
        Console().print(table)
        if options.json:
            with atomic_write(options.json) as temporary:
                temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


if __name__ == "__main__":
    main()
