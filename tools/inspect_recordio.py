"""`partialfc inspect_recordio` as a script."""

from partialfc.commands.inspect_recordio import main

if __name__ == "__main__":
    main()
