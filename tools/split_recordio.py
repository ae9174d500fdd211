"""`partialfc split_recordio` as a script."""

from partialfc.commands.split_recordio import main

if __name__ == "__main__":
    main()
