"""Whether a recipe could run, and whether a pack is whole."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import OverridesArgument, Overwrite


def check(
    what: Annotated[
        str,
        typer.Argument(metavar="RECIPE|PACK|BIN", help="A recipe, a folder with train.rec, or a .bin set."),
    ],
    overrides: OverridesArgument = None,
    repair: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Of a pack: write what can be read to this folder.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER",
            help="Of a pack: name identities that another has an image of, too, be it encoded anew, resized or mirrored.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Check a recipe and the data that it names, or read a whole pack; exit code 1 where records of it are damaged.

    ```
    partialfc check mine.yaml data.path=pack  # settings, data, weights; says ok
    partialfc check pack/                     # names every damaged record
    partialfc check pack/ --repair whole/     # a pack of what can be read
    ```
    """
    from partialfc.errors import InputError

    if Path(what).suffix == ".bin":
        _check_pairs(Path(what))
    elif Path(what).is_dir():
        if overrides:
            raise InputError(f"{overrides[0]}: settings are a recipe's, and {what} is a folder")
        _check_pack(Path(what), repair, against, overwrite=overwrite)
    elif repair or against:
        raise InputError(f"{what}: --repair and --against are for packs; wanted a folder with train.rec")
    else:
        _check_recipe(what, overrides or [])


def _check_pairs(path: Path) -> None:
    """Read a verification set and all of its images."""
    from partialfc.evaluation.pairs import load_pairs

    pairs = load_pairs(path)
    for index in range(len(pairs)):
        pairs.pixels(index, 112)
    same = int(pairs.is_same.sum())
    print(f"{path}: {len(pairs.is_same)} pairs, {same} of one person; all images can be read")


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
    fitting = valid_world_sizes(config)
    if not fitting:
        raise InputError(
            f"{recipe}: train.global_batch_size {config.train.global_batch_size} cannot be dealt out to any number of ranks"
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
        print(f"{folder}: {config.data.synthetic.identities} identities will be drawn")
    build_loss(config.loss, steps_per_epoch=1)
    backbone = build_backbone(
        config.backbone if config.init.backbone is None else inference_config(config.backbone)
    )
    if config.init.backbone is not None:
        check_weights(backbone, read_weights(Path(config.init.backbone)), Path(config.init.backbone))
    print(f"{recipe}: ok; runs on {', '.join(map(str, fitting))} ranks")


def _check_pack(pack: Path, target: Path | None, other: Path | None, *, overwrite: bool) -> None:
    from partialfc.data.packs import pack_check
    from partialfc.data.packs.shared_images import find_shared_identities
    from partialfc.runtime.outputs import claimed_folder

    if target:
        with claimed_folder(target, "check --repair", pack, overwrite=overwrite):
            findings = pack_check.repair_pack(pack, target, progress=True)
    else:
        findings = pack_check.check_pack(pack, progress=True)
    print(*findings.problems, sep="\n", end="\n" if findings.problems else "")
    print(
        f"{pack}: {findings.num_images} images that can be read, {len(findings.problems)} problems; "
        f"{findings.dialect or 'cannot be opened as it is'}"
    )
    if target:
        print(f"{target}: {findings.num_images} images")
    if other:
        for (ours, theirs), number in sorted(find_shared_identities(pack, other, progress=True).items()):
            print(f"class {ours} is class {theirs} of {other}: {number} images in common")
    raise typer.Exit(bool(findings.problems) and not target)
