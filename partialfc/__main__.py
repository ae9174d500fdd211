"""Command line: `partialfc COMMAND ...`."""

import sys
from collections.abc import Sequence

from partialfc.runtime.exit_codes import EXIT_BAD_INPUT, exit_on_input_error
from partialfc.runtime.process.limits import check_thread_count
from partialfc.runtime.process.signals import exit_on_stop_signals

_EXIT_SIGINT = 130  # shell convention
_LAUNCHING_COMMANDS = ("train", "sweep", "doctor")  # import for seconds before they handle signals
# Extra of the package for each library; all others are in the package or in [train].
_EXTRA_OF_MODULE = {
    "huggingface_hub": "export",
    "lmdb": "lmdb",
    "msgpack": "lmdb",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; bad input gives exit code 2 and one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _LAUNCHING_COMMANDS:
        exit_on_stop_signals()
    with exit_on_input_error():
        check_thread_count()
        try:
            code = _run_command(given or ["--help"])
        except BrokenPipeError:  # the reader has closed the pipe
            sys.stdout = None  # Python would flush it once more
            sys.exit(1)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("partialfc"):
                raise
            extra = _EXTRA_OF_MODULE.get(error.name, "train")
            print(
                f"error: missing package {error.name}; install it with: pip install 'partialfc[{extra}]'",
                file=sys.stderr,
            )
            sys.exit(EXIT_BAD_INPUT)
    sys.exit(code)


def _run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    import typer

    from partialfc.commands.app import app

    try:
        code: int = typer.main.get_command(app).main(arguments, "partialfc", standalone_mode=False) or 0
        sys.stdout.flush()
    except typer.Abort:
        return _EXIT_SIGINT
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command
        place = context.command_path if context else "partialfc"
        message = " ".join(error.format_message().split()).rstrip(".")
        print(f"error: {place}: {message}; see {place} --help", file=sys.stderr)
        return EXIT_BAD_INPUT
    return code


if __name__ == "__main__":
    main()
