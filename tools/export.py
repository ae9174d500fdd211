"""`partialfc export` as a script."""

from partialfc.commands.models.export import main

if __name__ == "__main__":
    main()
