"""`partialfc pack_recordio` as a script."""

from partialfc.commands.pack_recordio import main

if __name__ == "__main__":
    main()
