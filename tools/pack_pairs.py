"""`partialfc pack_pairs` as a script."""

from partialfc.commands.pack_pairs import main

if __name__ == "__main__":
    main()
