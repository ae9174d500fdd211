"""Checks of recipes, packs and verification sets."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import OverridesArgument, Overwrite


def check(
    target: Annotated[
        str,
        typer.Argument(metavar="RECIPE|PACK|BIN", help="Recipe, folder with train.rec, or .bin set."),
    ],
    overrides: OverridesArgument = None,
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Packs: write all readable images to this folder.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER",
            help="Packs: report identities with an image in another pack, including re-encoded, resized or mirrored copies.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a recipe with its data, or read a whole pack; exit code 1 if a file of the pack is damaged.

    ```
    partialfc check mine.yaml data.path=pack  # settings, and opens all files of the run
    partialfc check pack/                     # reads records, index and verification sets
    partialfc check pack/ --repair fixed/     # writes all readable images
    ```
    """
    from partialfc.errors import InputError

    if Path(target).suffix == ".bin":
        _check_pairs(Path(target))
    elif Path(target).is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: settings belong to a recipe, but {target} is a folder")
        _check_pack(Path(target), repair, against, overwrite=overwrite)
    elif repair or against:
        raise InputError(f"{target}: --repair and --against are for packs; expected a folder with train.rec")
    else:
        _check_recipe(target, overrides or [])


def _check_pairs(path: Path) -> None:
    """Read a verification set and all of its images."""
    from partialfc.evaluation.pairs import load_pairs

    pairs = load_pairs(path)
    for index in range(len(pairs)):
        pairs.pixels(index, 112)
    same = int(pairs.is_same.sum())
    print(f"{path}: {len(pairs.is_same)} pairs, {same} of one person; all images are readable")


def _check_all_pairs(pack: Path) -> list[str]:
    """Read the verification sets of a pack, which every run on it evaluates, and return their problems."""
    from partialfc.errors import InputError
    from partialfc.runtime.error_messages import format_error

    problems = []
    for path in sorted(pack.glob("*.bin")):
        try:
            _check_pairs(path)
        except (InputError, OSError) as error:
            problems.append(format_error(error))
    return problems


def _check_recipe(recipe: str, overrides: list[str]) -> None:
    from partialfc.config import load_config
    from partialfc.data.sampler import check_world_size, valid_world_sizes
    from partialfc.training.recipe_check import open_run_files

    config = load_config(recipe, overrides)
    world_sizes = valid_world_sizes(config)
    if not world_sizes:
        check_world_size(config, 1)  # says why
    for line in open_run_files(config):
        print(line)
    print(f"{recipe}: OK; valid world sizes: {', '.join(map(str, world_sizes))}")


def _check_pack(pack: Path, repair_to: Path | None, against: Path | None, *, overwrite: bool) -> None:
    from partialfc.data.packs import pack_check
    from partialfc.data.packs.shared_images import find_shared_identities
    from partialfc.runtime.outputs import claimed_folder
    from partialfc.runtime.text import escape_unprintable

    if repair_to:
        with claimed_folder(repair_to, "check --repair", pack, overwrite=overwrite):
            result = pack_check.repair_pack(pack, repair_to, progress=True)
    else:
        result = pack_check.check_pack(pack, progress=True)
    problems = result.problems + ([] if repair_to else _check_all_pairs(pack))
    for problem in problems:
        print(escape_unprintable(problem))
    print(
        f"{pack}: {result.num_images} readable images, {len(problems)} problems; "
        f"{result.dialect or 'cannot be opened without repair'}"
    )
    if repair_to:
        print(f"{repair_to}: {result.num_images} images")
    if against:
        for (first, second), count in sorted(find_shared_identities(pack, against, progress=True).items()):
            print(f"class {first} matches class {second} of {against}: {count} images in common")
    raise typer.Exit(bool(problems) and not repair_to)
