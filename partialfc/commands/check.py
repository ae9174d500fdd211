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
    """Check a recipe with its data, or read a whole pack; exit code 1 if records are damaged.

    ```
    partialfc check mine.yaml data.path=pack  # settings, data, weights
    partialfc check pack/                     # reports every damaged record
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


def _check_recipe(recipe: str, overrides: list[str]) -> None:
    from partialfc.backbones import build_backbone, inference_config
    from partialfc.config import load_config
    from partialfc.data import RecordDataset
    from partialfc.data.sampler import valid_world_sizes
    from partialfc.errors import InputError
    from partialfc.evaluation.pairs import load_pairs
    from partialfc.head.losses import build_loss
    from partialfc.inference.weights import check_weights, read_weights

    config = load_config(recipe, overrides)
    world_sizes = valid_world_sizes(config)
    if not world_sizes:
        raise InputError(
            f"{recipe}: train.global_batch_size {config.train.global_batch_size} cannot be split over any number of ranks"
        )
    folder = Path(config.data.path)
    if config.data.synthetic is None or (folder / "property").exists():
        dataset = RecordDataset(folder, reader=config.data.reader)
        present = dataset.classes_with_images() or dataset.num_classes
        empty = dataset.num_classes - present
        print(
            f"{folder}: {len(dataset)} images of {present} identities"
            + (f"; {empty} classes have no images" if empty else "")
        )
        for path in sorted(folder.glob("*.bin")):
            print(f"{path}: {len(load_pairs(path).images) // 2} pairs")
    else:
        print(f"{folder}: {config.data.synthetic.identities} synthetic identities will be generated")
    build_loss(config.loss, steps_per_epoch=1)
    backbone = build_backbone(
        config.backbone if config.init.backbone is None else inference_config(config.backbone)
    )
    if config.init.backbone is not None:
        check_weights(backbone, read_weights(Path(config.init.backbone)), Path(config.init.backbone))
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
    for problem in result.problems:
        print(escape_unprintable(problem))
    print(
        f"{pack}: {result.num_images} readable images, {len(result.problems)} problems; "
        f"{result.dialect or 'cannot be opened without repair'}"
    )
    if repair_to:
        print(f"{repair_to}: {result.num_images} images")
    if against:
        for (first, second), count in sorted(find_shared_identities(pack, against, progress=True).items()):
            print(f"class {first} matches class {second} of {against}: {count} images in common")
    raise typer.Exit(bool(result.problems) and not repair_to)
