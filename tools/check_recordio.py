"""`partialfc check_recordio` as a script."""

from partialfc.commands.check_recordio import main

if __name__ == "__main__":
    main()
