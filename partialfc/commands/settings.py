"""What a recipe may say."""

from typing import Annotated

import typer


def settings(
    section: Annotated[
        str | None,
        typer.Argument(metavar="SECTION", help="Such as head, or a key, such as train.global_batch_size."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print them all as a document.")] = False,
) -> None:
    """List the settings of a recipe: values, unit, default, and what each is for.

    ```
    partialfc settings
    partialfc settings margin
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
    for it in select_sections(section):
        console.print(f"\n[bold]{escape(it.title)}[/bold]  {escape(it.description)}", highlight=False)
        table = Table(box=None, show_header=False, pad_edge=False)
        for key in it.keys:
            table.add_row(
                f"  [bold]{key.name}[/bold]", *map(escape, (key.default, key.allowed, key.description))
            )
        console.print(table)
