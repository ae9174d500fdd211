"""Packs of faces: made, looked at, taken apart and put together."""

from pathlib import Path
from typing import Annotated

import typer

from partialfc.commands.options import Overwrite, PackArgument
from partialfc.errors import InputError
from partialfc.runtime.outputs import claim_file, claimed_folder


def align(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs, in folders as the faces will be.")],
    out: Annotated[Path, typer.Argument(help="The folder for the faces.")],
    detector: Annotated[
        Path, typer.Option(help="A YuNet face detector, ONNX, as OpenCV's FaceDetectorYN takes it.")
    ],
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels of the faces, height and width.")] = 112,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="The least score of a face.")] = 0.6,
    overwrite: Overwrite = False,
) -> None:
    """Find the face of each photograph, and bring its eyes, nose and mouth to where training sets have them. The same call
    goes on where it was interrupted.

    ```
    partialfc align photographs/ faces/ --detector yunet.onnx
    ```
    """
    from partialfc.data import alignment

    with claimed_folder(out, "align", photos, "--detector", detector, size, threshold, overwrite=overwrite):
        found = alignment.align_folder(
            photos, out, alignment.Detector(detector, threshold=threshold), size=size, progress=True
        )
    print(f"{out}: {found.num_faces} faces of {found.num_photos} photographs")
    if found.missing:
        print(f"{len(found.missing)} without a face, or that cannot be read: {out / alignment.NO_FACE_FILE}")


def pack(
    inputs: Annotated[
        list[Path], typer.Argument(help="Folders of identities, .lst listings, LMDB sets, WebDataset tars.")
    ],
    out: Annotated[Path, typer.Argument(help="The pack's folder.")],
    size: Annotated[int, typer.Option(help="Pixels of the packed images, height and width.")] = 112,
    quality: Annotated[
        int, typer.Option(help="Of the JPEGs made of images that are no JPEG of that size.")
    ] = 95,
    min_images: Annotated[
        int | None, typer.Option(metavar="N", help="Leave out identities with fewer.")
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="PackArgument the images in a random order.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of the paths in .lst listings; default: that of each listing."),
    ] = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Leave out images that cannot be read.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Pack faces into train.rec, train.idx and property. The same call goes on where it was interrupted.

    ```
    partialfc pack faces/ pack/                  # faces/IDENTITY/IMAGE
    partialfc pack faces/ more/ train.lst pack/  # identities kept apart
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
        print(f"{len(listing.read_bytes().splitlines())} images cannot be read, and are left out: {listing}")


def _report_empty(out: Path, classes: int) -> None:
    """Print how many classes of a pack have no images, if any."""
    from partialfc.data.dataset import read_property

    known = read_property(out / "property")
    if known is not None and (empty := known.num_classes - classes):
        print(f"{empty} of {known.num_classes} classes have no images; --min-images 1 leaves them out")


def pairs(
    listing: Annotated[Path, typer.Argument(help="As LFW's pairs.txt.")],
    folder: Annotated[Path, typer.Argument(help="Of images FOLDER/NAME/NAME_0001.jpg.")],
    out: Annotated[Path, typer.Argument(help="The .bin file.")],
    overwrite: Overwrite = False,
) -> None:
    """Pack the pairs of a listing into a .bin verification set.

    ```
    partialfc pairs pairs.txt validation/ pack/mine.bin
    ```
    """
    from partialfc.data.packs.pairs import pack_pairs

    claim_file(out, overwrite=overwrite)
    print(f"{out}: {pack_pairs(listing, folder, out)} pairs")


def inspect(
    pack: PackArgument,
    sheet: Annotated[Path | None, typer.Option(help="Draw 160 images there, as PNG or JPEG.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Say what is in a pack: dialect, counts, sizes, images per identity; and draw some of its images.

    ```
    partialfc inspect pack/ --sheet faces.png
    ```
    """
    from partialfc.data.packs.pack_summary import summarize_pack, write_image_grid

    if sheet:
        claim_file(sheet, overwrite=overwrite)
    print(*summarize_pack(pack, progress=True).format_lines(), sep="\n")
    if sheet:
        write_image_grid(pack, sheet)


def unpack(
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the images of a pack, byte for byte, to OUT/CLASS/KEY.jpg. The same call goes on where it was interrupted.

    ```
    partialfc unpack pack/ images/
    ```
    """
    from partialfc.data.packs import unpack

    with claimed_folder(out, "unpack", pack, overwrite=overwrite):
        print(f"{out}: {unpack.unpack_pack(pack, out, progress=True)} images")


def merge(
    packs: Annotated[list[Path], typer.Argument(help="Folders with train.rec.")],
    out: Annotated[Path, typer.Argument(help="The merged pack's folder.")],
    overwrite: Overwrite = False,
) -> None:
    """Merge packs into one, the identities of each kept apart. The same call goes on where it was interrupted.

    ```
    partialfc merge ms1m/ glint/ merged/
    ```
    """
    from partialfc.data.packs import merge_split

    if len(packs) < 2:
        raise InputError(
            f"merge: expected two packs at least and a folder for both, got {packs[0]} and {out}"
        )
    with claimed_folder(out, "merge", *packs, overwrite=overwrite):
        classes, count = merge_split.merge(packs, out, progress=True)
    print(f"{out}: {count} images of {classes} identities")


def split(
    pack: PackArgument,
    rest: Annotated[Path, typer.Argument(help="The folder for those that stay.")],
    held: Annotated[Path, typer.Argument(help="The folder for those that are held out.")],
    identities: Annotated[int, typer.Option(help="How many are held out.")],
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Split a pack in two of different identities: one to train on, one held out.

    ```
    partialfc split pack/ train/ held/ --identities 1000
    ```
    """
    from partialfc.data.packs import merge_split

    call = ("split", pack, rest, held, identities, seed)
    with claimed_folder(rest, *call, overwrite=overwrite), claimed_folder(held, *call, overwrite=overwrite):
        written = merge_split.split(pack, rest, held, num_identities=identities, seed=seed, progress=True)
    for folder, (classes, count) in zip((rest, held), written, strict=True):
        print(f"{folder}: {count} images of {classes} identities")
