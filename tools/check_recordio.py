"""`partialfc check` as a script."""

import sys

from partialfc.__main__ import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
