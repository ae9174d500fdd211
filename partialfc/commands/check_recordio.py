"""Check a pack: read every record, decode every image, and say what is wrong; exit code 1 where something is.

partialfc check_recordio PACK                    # names its dialect, and every record that cannot be read
partialfc check_recordio PACK --repair OUT       # a pack of what can be read, with a new index; PACK stays as it is
partialfc check_recordio PACK --against OTHER    # also, identities that have an image in common
"""

import argparse
import sys
from pathlib import Path

from partialfc.data.packs.checking import check, repair, shared
from partialfc.runtime.errors import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec")
    parser.add_argument("--repair", type=Path, metavar="OUT", help="folder for what can be read")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="another pack")
    options = parser.parse_args()
    with exit_on_input_error():
        if options.repair:
            findings = repair(options.pack, options.repair, progress=True)
        else:
            findings = check(options.pack, progress=True)
        print(*findings.problems, sep="\n", end="\n" if findings.problems else "")
        print(
            f"{options.pack}: {findings.num_images} images that can be read, {len(findings.problems)} problems; "
            f"{findings.dialect or 'cannot be opened as it is'}"
        )
        if options.repair:
            print(f"{options.repair}: {findings.num_images} images")
        if options.against:
            for (ours, theirs), number in sorted(
                shared(options.pack, options.against, progress=True).items()
            ):
                print(f"class {ours} is class {theirs} of {options.against}: {number} images in common")
    sys.exit(bool(findings.problems) and not options.repair)


if __name__ == "__main__":
    main()
