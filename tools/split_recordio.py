"""`partialfc split` as a script."""

import sys

from partialfc.__main__ import main

if __name__ == "__main__":
    main(["split", *sys.argv[1:]])
