"""`partialfc plot_run` as a script."""

from partialfc.commands.plot_run import main

if __name__ == "__main__":
    main()
