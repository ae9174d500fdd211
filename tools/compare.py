"""`partialfc compare` as a script."""

from partialfc.commands.models.compare import main

if __name__ == "__main__":
    main()
