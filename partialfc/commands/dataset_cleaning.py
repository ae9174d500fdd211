"""Packs as a trained network sees them: what is wrong in them, and what they share with evaluation sets."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partialfc.commands.options import (
    BackboneOption,
    BackboneTarget,
    DeviceOption,
    ModelArgument,
    Overwrite,
    PackArgument,
    TrustCode,
    load_model,
)
from partialfc.commands.tables import print_scores
from partialfc.runtime.outputs import claimed_folder

if TYPE_CHECKING:
    from partialfc.evaluation.sets import Scores
    from partialfc.inference.overlap import Comparable


def clean(
    run: Annotated[Path, typer.Argument(help="A run that was trained on the pack, or a checkpoint of it.")],
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="The cleaned pack's folder.")],
    degrees: Annotated[
        float, typer.Option(min=0, max=180, help="How far an image may be from its class.")
    ] = 75.0,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a pack without the images that a run finds far from their class: wrong labels, mostly. The same call goes on
    where it was interrupted.

    ```
    partialfc train recipe.yaml data.path=pack head.subcenters=3 output=output/three
    partialfc clean output/three pack/ cleaned/
    ```

    OUT also gets dropped.csv, and dropped.png: images that stay, and beside them some that do not. Best of a run with
    several sub-centres, where wrong labels have centres of their own.
    """
    from partialfc.inference import cleaning

    recognizer = load_model(run, None, backbone_target, trust_code, device)
    with claimed_folder(out, "clean", run, pack, degrees, overwrite=overwrite):
        kept, dropped = cleaning.clean_pack(recognizer, run, pack, out, max_angle=degrees, progress=True)
    if dropped > kept:
        print(
            f"warning: {dropped / (kept + dropped):.0%} of the images are far from their class; expected a run that has learned "
            "this pack",
            file=sys.stderr,
        )
    print(
        f"{out}: {kept} images; {dropped} are farther than {degrees:g} degrees: {out / cleaning.DROPPED_FILE}"
    )


def relabel(
    model: ModelArgument,
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="The folder of the pack with other labels.")],
    merge: Annotated[
        float,
        typer.Option(min=0.1, max=1, help="How alike the means of two identities are that are one person."),
    ] = 0.75,
    split: Annotated[
        float,
        typer.Option(
            min=-1, max=1, help="How alike the parts of an identity are, at most, that are two people."
        ),
    ] = 0.2,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a pack in which identities that a network finds to be one person are one, and such as it finds to be two are two. The
    same call goes on where it was interrupted.

    ```
    partialfc relabel exported/ pack/ relabelled/
    partialfc relabel exported/ pack/ relabelled/ --merge 0.8 --split -1  # merges alone
    ```

    OUT also gets identities.csv; identities.png, the most doubtful first; and map.txt, for `init.centers.map`. Look at the picture
    before training on the pack: what is right depends on the model, best one that was not trained on this pack.
    """
    from partialfc.inference import relabeling

    recognizer = load_model(model, backbone, backbone_target, trust_code, device)
    with claimed_folder(out, "relabel", model, pack, merge, split, overwrite=overwrite):
        done = relabeling.relabel_pack(
            recognizer, model, pack, out, merge_threshold=merge, split_threshold=split, progress=True
        )
    print(
        f"{out}: {done.num_images} images of {done.num_identities} identities; {done.num_merged} are in others now, "
        f"{done.num_split} were split: {out / relabeling.LISTING_FILE}"
    )


def overlap(
    pack: PackArgument,
    sets: Annotated[list[Path], typer.Argument(help=".bin files, and folders of gallery/ and probe/.")],
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Finds people, too: a run, an exported folder, .onnx ..."),
    ] = None,
    cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="How alike an image and its person's class are to the model.")
    ] = 0.6,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Find what of evaluation sets stands in a training pack: images, be they encoded anew, resized or mirrored, and with a
    model people; and what the sets say without them.

    ```
    partialfc overlap pack/ lfw.bin agedb_30.bin overlap/
    partialfc overlap pack/ lfw.bin overlap/ --model exported/
    ```

    OUT gets a listing and a picture of each set: the set's images above the pack's, the most doubtful first; and the pack's
    embeddings, which a later call uses.
    """
    from partialfc.inference.overlap import PersonMatcher, find_overlaps

    compared = _load_comparable_sets(sets)
    judge = (
        PersonMatcher(load_model(model, backbone, backbone_target, trust_code, device), model, cosine)
        if model
        else None
    )
    scores: dict[str, Scores] = {}
    with claimed_folder(out, "overlap", pack, overwrite=overwrite):
        overlaps = find_overlaps(pack, compared, out, judge, progress=True)
    for name, found in overlaps.items():
        total = next(len(it) for it in compared if it.name == name)
        people = f", people of {found.count('person')}" if judge else ""
        print(
            f"{name}: of {total} images {found.count('bytes', 'hash')} are in {pack}, "
            f"{found.count('bytes')} by the same bytes{people}: {out / name}.csv"
        )
        scores |= {which: it for which, it in found.scores.items() if it}
        for which in [which for which, it in found.scores.items() if not it]:
            print(f"{which}: too little is left to be scored")
    if scores:
        print_scores(scores)


def _load_comparable_sets(paths: list[Path]) -> list["Comparable"]:
    """The sets at paths. InputError where one is of a kind that cannot be left without some of its images."""
    from partialfc.errors import InputError
    from partialfc.evaluation.gallery import Gallery
    from partialfc.evaluation.loading import load_sets
    from partialfc.evaluation.pairs import VerificationPairs

    comparable: list[Comparable] = []
    for path, found in zip(paths, load_sets(paths), strict=True):
        if not isinstance(found, VerificationPairs | Gallery):
            raise InputError(f"{path}: wanted a .bin file, or a folder of gallery/ and probe/")
        comparable.append(found)
    return comparable
