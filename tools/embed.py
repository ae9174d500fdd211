"""`partialfc embed` as a script."""

from partialfc.commands.models.embed import main

if __name__ == "__main__":
    main()
