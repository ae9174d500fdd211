"""`partialfc merge_recordio` as a script."""

from partialfc.commands.merge_recordio import main

if __name__ == "__main__":
    main()
