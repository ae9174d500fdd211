"""Commands on packs: create, inspect, unpack, merge, split."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import Overwrite, PackArgument
from partialfc.errors import InputError
from partialfc.runtime.outputs import claim_file, claimed_folder


def align(
    photos: Annotated[Path, typer.Argument(help="Folder of photos; OUT gets the same subfolders.")],
    out: Annotated[Path, typer.Argument(help="Folder for the faces.")],
    detector: Annotated[Path, typer.Option(help="YuNet face detector, ONNX, for OpenCV's FaceDetectorYN.")],
    size: Annotated[
        int, typer.Option(min=16, max=512, help="Height and width of the faces in pixels.")
    ] = 112,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Minimum score of a face.")] = 0.6,
    overwrite: Overwrite = False,
) -> None:
    """Detect the main face of each photo and align it as in training sets.

    Rerun the same command to resume.

    ```
    partialfc align photos/ faces/ --detector yunet.onnx
    ```
    """
    from partialfc.data import alignment

    with claimed_folder(out, "align", photos, "--detector", detector, size, threshold, overwrite=overwrite):
        result = alignment.align_folder(
            photos, out, alignment.Detector(detector, threshold=threshold), size=size, progress=True
        )
    print(f"{out}: {result.num_faces} faces of {result.num_photos} photos")
    if result.missing:
        print(f"{len(result.missing)} photos unreadable or without a face ({out / alignment.NO_FACE_FILE})")


def pack(
    inputs: Annotated[
        list[Path], typer.Argument(help="Folders of identities, .lst listings, LMDB sets, WebDataset tars.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the pack.")],
    size: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 112,
    quality: Annotated[int, typer.Option(help="JPEG quality of re-encoded images.")] = 95,
    min_images: Annotated[
        int | None, typer.Option(metavar="N", help="Skip identities with fewer images.")
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Pack the images in a random order, with this seed.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Root of the paths in .lst files. [default: the folder of each file]"
        ),
    ] = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Skip unreadable images.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Pack faces into train.rec, train.idx and property. Rerun the same command to resume.

    ```
    partialfc pack faces/ pack/                  # faces/IDENTITY/IMAGE
    partialfc pack faces/ more/ train.lst pack/  # identities stay separate
    partialfc pack --min-images 5 shards/ pack/  # WebDataset tars
    ```
    """
    from partialfc.data.packs import pack_sources

    packing = pack_sources.PackOptions(size, quality, min_images, shuffle, root, skip_damaged)
    call = ("pack", *inputs, size, quality, min_images, shuffle, root)
    with claimed_folder(out, *call, overwrite=overwrite):
        classes, count = pack_sources.pack_images(inputs, out, packing, progress=True)
    print(f"{out}: {count} images of {classes} identities")
    _report_empty(out, classes)
    if (listing := out / pack_sources.DAMAGED).exists():
        print(f"{len(listing.read_bytes().splitlines())} unreadable images skipped: {listing}")


def _report_empty(out: Path, classes: int) -> None:
    """Print how many classes of a pack have no images, if any."""
    from partialfc.data.dataset import read_property

    known = read_property(out / "property")
    if known is not None and (empty := known.num_classes - classes):
        print(f"{empty} of {known.num_classes} classes have no images; --min-images 1 skips them")


def pairs(
    listing: Annotated[Path, typer.Argument(help="List in the format of LFW's pairs.txt.")],
    folder: Annotated[Path, typer.Argument(help="Folder with images NAME/NAME_0001.jpg.")],
    out: Annotated[Path, typer.Argument(help=".bin file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Pack the pairs of a list into a .bin verification set.

    ```
    partialfc pairs pairs.txt validation/ pack/mine.bin
    ```
    """
    from partialfc.data.packs.pairs import pack_pairs

    claim_file(out, overwrite=overwrite)
    print(f"{out}: {pack_pairs(listing, folder, out)} pairs")


def inspect(
    pack: PackArgument,
    grid: Annotated[Path | None, typer.Option(help="Write a grid of 160 images, PNG or JPEG.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print a summary of a pack: format, counts, sizes, images per identity.

    ```
    partialfc inspect pack/ --grid faces.png
    ```
    """
    from partialfc.data.packs.pack_summary import summarize_pack, write_image_grid

    if grid:
        claim_file(grid, overwrite=overwrite)
    print(*summarize_pack(pack, progress=True).format_lines(), sep="\n")
    if grid:
        write_image_grid(pack, grid)


def unpack(
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the images of a pack, byte for byte, to OUT/CLASS/KEY.jpg. Rerun the same command to resume.

    ```
    partialfc unpack pack/ images/
    ```
    """
    from partialfc.data.packs import unpack

    with claimed_folder(out, "unpack", pack, overwrite=overwrite):
        print(f"{out}: {unpack.unpack_pack(pack, out, progress=True)} images")


def merge(
    packs: Annotated[list[Path], typer.Argument(help="Folders with train.rec.")],
    out: Annotated[Path, typer.Argument(help="Folder of the merged pack.")],
    overwrite: Overwrite = False,
) -> None:
    """Merge packs; identities of different packs stay separate. Rerun the same command to resume.

    ```
    partialfc merge ms1m/ glint/ merged/
    ```
    """
    from partialfc.data.packs import merge_split

    if len(packs) < 2:
        raise InputError(
            f"merge: expected at least two packs and a folder for the result, got {packs[0]} and {out}"
        )
    with claimed_folder(out, "merge", *packs, overwrite=overwrite):
        classes, count = merge_split.merge(packs, out, progress=True)
    print(f"{out}: {count} images of {classes} identities")


def split(
    pack: PackArgument,
    train_out: Annotated[Path, typer.Argument(help="Folder for the training identities.")],
    held_out: Annotated[Path, typer.Argument(help="Folder for the held-out identities.")],
    num_identities: Annotated[int, typer.Option("--identities", help="Number of held-out identities.")],
    seed: Annotated[int, typer.Option(help="Seed of the selection.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Split a pack by identity into a training pack and a held-out pack.

    ```
    partialfc split pack/ train/ held/ --identities 1000
    ```
    """
    from partialfc.data.packs import merge_split

    call = ("split", pack, train_out, held_out, num_identities, seed)
    with (
        claimed_folder(train_out, *call, overwrite=overwrite),
        claimed_folder(held_out, *call, overwrite=overwrite),
    ):
        written = merge_split.split(
            pack, train_out, held_out, num_identities=num_identities, seed=seed, progress=True
        )
    for folder, (classes, count) in zip((train_out, held_out), written, strict=True):
        print(f"{folder}: {count} images of {classes} identities")
