"""`partialfc compare_runs` as a script."""

from partialfc.commands.compare_runs import main

if __name__ == "__main__":
    main()
