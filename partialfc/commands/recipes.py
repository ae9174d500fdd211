"""Commands on bundled recipes."""

import typer

app = typer.Typer(name="recipes", invoke_without_command=True)


@app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the bundled recipes.

    ```
    partialfc recipes
    partialfc recipes show faces_small > mine.yaml
    ```
    """
    from partialfc.bundled_recipes import bundled_recipes, recipe_summary

    if context.invoked_subcommand is None:
        known = bundled_recipes()
        width = max(map(len, known))
        for name, path in known.items():
            print(f"{name:{width}}  {recipe_summary(path)}")


@app.command("show")
def show_recipe(name: str) -> None:
    """Print a bundled recipe.

    ```
    partialfc recipes show faces_small > mine.yaml
    ```
    """
    from partialfc.bundled_recipes import resolve_recipe

    print(resolve_recipe(name).read_text(encoding="utf-8"), end="")
