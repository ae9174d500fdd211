"""`partialfc unpack` as a script."""

import sys

from partialfc.__main__ import main

if __name__ == "__main__":
    main(["unpack", *sys.argv[1:]])
