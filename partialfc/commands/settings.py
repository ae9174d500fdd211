"""Command that documents the settings of a recipe."""

from typing import Annotated

import typer


def settings(
    section: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION", help="Section, such as head, or key, such as train.global_batch_size."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all settings as Markdown.")] = False,
) -> None:
    """List the settings of a recipe: allowed values, unit, default, description.

    ```
    partialfc settings
    partialfc settings loss
    ```
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from partialfc.config.reference import select_sections, to_markdown

    if markdown:
        print(to_markdown(), end="")
        return
    console = Console()
    for documented in select_sections(section):
        console.print(
            f"\n[bold]{escape(documented.title)}[/bold]  {escape(documented.description)}", highlight=False
        )
        table = Table(box=None, show_header=False, pad_edge=False)
        for key in documented.keys:
            table.add_row(
                f"  [bold]{key.name}[/bold]", *map(escape, (key.default, key.allowed, key.description))
            )
        console.print(table)
