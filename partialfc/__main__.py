"""All commands as one: `partialfc COMMAND ...`."""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from partialfc.commands import checks, curves, networks, packs, recipes, settings, training
from partialfc.runtime.errors import EXIT_CODE, exit_on_input_error

GROUPS = {
    "Train": (training.train, training.plan, checks.check, settings.settings, curves.plot),
    "Packs of faces": (packs.pack, packs.pairs, packs.inspect, packs.unpack, packs.merge, packs.split),
    "Use what was trained": (networks.evaluate, networks.embed, networks.compare, networks.export),
}
# Names of version 0.1.
OLD_NAMES = {
    "pack_recordio": ("pack",),
    "pack_pairs": ("pairs",),
    "unpack_recordio": ("unpack",),
    "inspect_recordio": ("inspect",),
    "check_recordio": ("check",),
    "merge_recordio": ("merge",),
    "split_recordio": ("split",),
    "plot_run": ("plot",),
    "compare_runs": ("plot", "--differences"),
}
_INTERRUPTED = 130  # as a shell tells it

app = typer.Typer(
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"partialfc {metadata.version('partialfc')}, torch {metadata.version('torch')}")
        raise typer.Exit


@app.callback()
def partialfc(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train face recognisers for very many identities, and use them.

    ```
    partialfc train quickstart
    partialfc evaluate output/quickstart
    ```
    """


for group, functions in GROUPS.items():
    for function in functions:
        app.command(rich_help_panel=group)(function)
app.add_typer(recipes.app, rich_help_panel="Train")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Ends the program: with exit code 2 and one line where the input is bad."""
    given = _renamed(list(sys.argv[1:] if arguments is None else arguments))
    with exit_on_input_error():
        try:
            code = typer.main.get_command(app).main(given or ["--help"], "partialfc", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads has read enough; as where the pipe breaks earlier
            sys.stdout = None  # type: ignore[assignment]  # Python would flush it once more
            sys.exit(1)
        except typer.Abort:
            sys.exit(_INTERRUPTED)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)  # of the command that was meant
            place = context.command_path if context else "partialfc"
            message = " ".join(error.format_message().split()).rstrip(".")
            print(f"error: {place}: {message}; see {place} --help", file=sys.stderr)
            sys.exit(EXIT_CODE)
    sys.exit(code)


def _renamed(arguments: list[str]) -> list[str]:
    """Arguments in the words of today: names of version 0.1, and launch.sh's `--plan`."""
    if arguments and arguments[0] in OLD_NAMES:
        now = OLD_NAMES[arguments[0]]
        print(f"{arguments[0]} is now: partialfc {' '.join(now)}", file=sys.stderr)
        return [*now, *arguments[1:]]
    if arguments[:1] == ["train"] and "--plan" in arguments:
        return ["plan", *(it for it in arguments[1:] if it != "--plan")]
    return arguments


if __name__ == "__main__":
    main()
