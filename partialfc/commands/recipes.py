"""The recipes that ship."""

import typer

app = typer.Typer(name="recipes", invoke_without_command=True)


@app.callback()
def names(context: typer.Context) -> None:
    """List the recipes that ship, with a line each.

    ```
    partialfc recipes
    partialfc recipes show faces_small > mine.yaml
    ```
    """
    from partialfc.bundled_recipes import shipped, summary

    if context.invoked_subcommand is None:
        known = shipped()
        width = max(map(len, known))
        for name, path in known.items():
            print(f"{name:{width}}  {summary(path)}")


@app.command("show")
def show(name: str) -> None:
    """Print a recipe, to be copied and changed.

    ```
    partialfc recipes show faces_small > mine.yaml
    ```
    """
    from partialfc.bundled_recipes import recipe_path

    print(recipe_path(name).read_text(encoding="utf-8"), end="")
