"""All commands as one: `partialfc COMMAND ...`."""

import sys
from collections.abc import Sequence

from partialfc.runtime.exit_codes import EXIT_BAD_INPUT, exit_on_input_error

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
_EXIT_SIGINT = 130  # as a shell tells it
# By library: the extra of the package that brings it. All others come with the package, or with [train].
_EXTRA_OF_MODULE = {
    "huggingface_hub": "export",
    "lmdb": "lmdb",
    "msgpack": "lmdb",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Ends the program: with exit code 2 and one line where the input is bad."""
    given = _renamed(list(sys.argv[1:] if arguments is None else arguments))
    with exit_on_input_error():
        try:
            code = _run_command(given or ["--help"])
        except BrokenPipeError:  # whoever reads has read enough; as where the pipe breaks earlier
            sys.stdout = None  # type: ignore[assignment]  # Python would flush it once more
            sys.exit(1)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("partialfc"):
                raise
            extra = _EXTRA_OF_MODULE.get(error.name, "train")
            print(
                f"error: {error.name} is missing; wanted: pip install 'partialfc[{extra}]'", file=sys.stderr
            )
            sys.exit(EXIT_BAD_INPUT)
    sys.exit(code)


def _run_command(arguments: list[str]) -> int:
    """The exit code of a command."""
    import typer

    from partialfc.commands.app import app

    try:
        code: int = typer.main.get_command(app).main(arguments, "partialfc", standalone_mode=False) or 0
        sys.stdout.flush()
    except typer.Abort:
        return _EXIT_SIGINT
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command that was meant
        place = context.command_path if context else "partialfc"
        message = " ".join(error.format_message().split()).rstrip(".")
        print(f"error: {place}: {message}; see {place} --help", file=sys.stderr)
        return EXIT_BAD_INPUT
    return code


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
