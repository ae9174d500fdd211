"""`partialfc unpack_recordio` as a script."""

from partialfc.commands.unpack_recordio import main

if __name__ == "__main__":
    main()
