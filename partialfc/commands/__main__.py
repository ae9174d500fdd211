"""All commands as one: `partialfc COMMAND ...`; `partialfc COMMAND --help` says more of each."""

import importlib
import sys

from partialfc.runtime.errors import EXIT_CODE

COMMANDS = {
    "train": ("partialfc.launch", "train from a recipe on this machine"),
    "pack_recordio": ("partialfc.commands.pack_recordio", "pack faces"),
    "pack_pairs": ("partialfc.commands.pack_pairs", "pack a verification set"),
    "unpack_recordio": ("partialfc.commands.unpack_recordio", "write a pack's images to a folder"),
    "inspect_recordio": ("partialfc.commands.inspect_recordio", "say and draw what is in a pack"),
    "check_recordio": ("partialfc.commands.check_recordio", "find and repair damage in a pack"),
    "merge_recordio": ("partialfc.commands.merge_recordio", "make one pack of several"),
    "split_recordio": ("partialfc.commands.split_recordio", "hold identities out of a pack"),
    "evaluate": ("partialfc.commands.evaluate", "verify on .bin sets"),
    "embed": ("partialfc.commands.embed", "embed a folder of faces"),
    "export": ("partialfc.commands.export", "ONNX, safetensors and a model card of a run"),
    "compare": ("partialfc.commands.compare", "the similarity of two faces"),
    "plot_run": ("partialfc.commands.plot_run", "draw runs above each other"),
    "compare_runs": ("partialfc.commands.compare_runs", "draw how far equal runs differ"),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: partialfc COMMAND ...\n")
        print(*(f"  {known:18}{says}" for known, (_, says) in COMMANDS.items()), sep="\n")
        return
    if name not in COMMANDS:
        print(f"error: partialfc {name}: wanted one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(EXIT_CODE)
    sys.argv = [f"partialfc {name}", *sys.argv[2:]]
    importlib.import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    main()
