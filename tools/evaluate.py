"""`partialfc evaluate` as a script."""

from partialfc.commands.models.evaluate import main

if __name__ == "__main__":
    main()
