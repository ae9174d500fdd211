"""Command-line application."""

from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from partialfc import __version__
from partialfc.commands import check, dataset_cleaning, models, packs, recipes, runs, settings, training

COMMAND_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (
        training.train,
        training.import_,
        training.sweep,
        training.plan,
        training.doctor,
        check.check,
        settings.settings,
        runs.plot,
        runs.report,
    ),
    "Packs": (
        packs.align,
        packs.pack,
        packs.pairs,
        packs.inspect,
        packs.unpack,
        packs.merge,
        packs.split,
        dataset_cleaning.clean,
        dataset_cleaning.relabel,
        dataset_cleaning.overlap,
    ),
    "Trained models": (models.evaluate, models.embed, models.compare, models.export),
}
app = typer.Typer(
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"partialfc {__version__}, torch {metadata.version('torch')}")
        raise typer.Exit


@app.callback()
def partialfc(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train face recognition models for very large numbers of identities, and use them.

    ```
    partialfc train quickstart
    partialfc evaluate output/quickstart
    ```
    """


for group, functions in COMMAND_GROUPS.items():
    for function in functions:
        app.command(function.__name__.rstrip("_"), rich_help_panel=group)(function)
app.add_typer(recipes.app, rich_help_panel="Train")
