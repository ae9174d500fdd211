"""Run all commands of docs/tutorial.md on real faces and print their output.

    python -m experiments.run_tutorial FACES [--out FOLDER]

FACES contains train/IDENTITY/IMAGE and val/NAME/NAME_0001.jpg, aligned faces; pairs_val.txt, in LFW's format;
photos/NAME_0001.jpg; and yunet.onnx. FOLDER, a temporary one by default, must not exist. Exits with the code
of the first command that fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/tutorial.md"
NEEDED = {  # files of FACES, and their names in the tutorial
    "train": "faces",
    "val": "validation",
    "pairs_val.txt": "pairs.txt",
    "yunet.onnx": "yunet.onnx",
    "photos": None,  # copied to photographs/, sorted by person
}


def main() -> None:
    parser = argparse.ArgumentParser(description="docs/tutorial.md on real faces.")
    parser.add_argument("faces", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary) / "week"
        if folder.exists():
            parser.error(f"{folder}: is there already; expected a folder to be made")
        if missing := [it for it in NEEDED if not (arguments.faces / it).exists()]:
            parser.error(f"{arguments.faces}: no {', '.join(missing)}; expected {', '.join(NEEDED)}")
        prepare(arguments.faces.resolve(), folder)
        for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
            if failed := run_block(language, code, folder):
                sys.exit(failed)


def prepare(faces: Path, folder: Path) -> None:
    """Create the folder in which the commands run, with the files that the tutorial expects."""
    folder.mkdir(parents=True)
    for source, name in NEEDED.items():
        if name:
            (folder / name).symlink_to(faces / source)
    for photo in sorted((faces / "photos").glob("*.jpg")):
        person = folder / "photographs" / photo.stem.rpartition("_")[0]
        person.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, person)


def run_block(language: str, code: str, folder: Path) -> int:
    """Run a block and return its exit code."""
    print(f"```{language}\n{code}```", flush=True)
    program = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start = time.perf_counter()
    done = subprocess.run([*program, code], cwd=folder, env=os.environ | {"PATH": path}, check=False)
    print(f"({time.perf_counter() - start:.0f} s)\n", flush=True)
    return done.returncode


if __name__ == "__main__":
    main()
