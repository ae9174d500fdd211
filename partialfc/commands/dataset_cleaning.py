"""Cleaning of packs with a trained model, and their overlap with evaluation sets."""

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
    run: Annotated[Path, typer.Argument(help="Run that was trained on the pack, or a checkpoint.")],
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="Folder of the cleaned pack.")],
    max_angle: Annotated[
        float, typer.Option(min=0, max=180, help="Maximum angle to the class center, in degrees.")
    ] = 75.0,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a pack without images far from their class center, mostly label noise.

    Rerun the same command to resume.

    ```
    partialfc train recipe.yaml data.path=pack head.subcenters=3 output=output/three
    partialfc clean output/three pack/ cleaned/
    ```

    OUT also contains dropped.csv, and dropped.png with retained and dropped images side by side. Runs with several
    sub-centers work best: label noise gets its own sub-centers.
    """
    from partialfc.inference import cleaning

    recognizer = load_model(run, None, backbone_target, trust_code, device)
    with claimed_folder(out, "clean", run, pack, max_angle, overwrite=overwrite):
        kept, dropped = cleaning.clean_pack(recognizer, run, pack, out, max_angle=max_angle, progress=True)
    if dropped > kept:
        print(
            f"warning: {dropped / (kept + dropped):.0%} of the images are far from their class; expected a run that was "
            "trained on this pack",
            file=sys.stderr,
        )
    print(
        f"{out}: kept {kept} images; dropped {dropped} beyond {max_angle:g} degrees "
        f"({out / cleaning.DROPPED_FILE})"
    )


def relabel(
    model: ModelArgument,
    pack: PackArgument,
    out: Annotated[Path, typer.Argument(help="Folder of the relabeled pack.")],
    merge_threshold: Annotated[
        float,
        typer.Option(min=0.1, max=1, help="Minimum cosine of the means of duplicate identities."),
    ] = 0.75,
    split_threshold: Annotated[
        float,
        typer.Option(min=-1, max=1, help="Maximum cosine of the two parts of a mixed identity."),
    ] = 0.2,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write a pack with merged duplicate identities and split mixed ones, based on a model's embeddings.

    Rerun the same command to resume.

    ```
    partialfc relabel exported/ pack/ relabeled/
    partialfc relabel exported/ pack/ relabeled/ --merge-threshold 0.8 --split-threshold -1  # no splits
    ```

    OUT also contains identities.csv, identities.png with the most doubtful cases first, and map.txt for
    `init.centers.map`. Inspect the image before training: the result depends on the model. A model that was not trained
    on this pack works best.
    """
    from partialfc.inference import relabeling

    recognizer = load_model(model, backbone, backbone_target, trust_code, device)
    with claimed_folder(out, "relabel", model, pack, merge_threshold, split_threshold, overwrite=overwrite):
        done = relabeling.relabel_pack(
            recognizer,
            model,
            pack,
            out,
            merge_threshold=merge_threshold,
            split_threshold=split_threshold,
            progress=True,
        )
    print(
        f"{out}: {done.num_images} images of {done.num_identities} identities; {done.num_merged} identities merged, "
        f"{done.num_split} split ({out / relabeling.LISTING_FILE})"
    )


def overlap(
    pack: PackArgument,
    sets: Annotated[list[Path], typer.Argument(help=".bin files, and folders with gallery/ and probe/.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Model that also matches people: run, exported folder, .onnx, ..."
        ),
    ] = None,
    min_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="Minimum cosine of an image and the mean of its class.")
    ] = 0.6,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Find images of evaluation sets in a training pack, including re-encoded, resized or mirrored copies.

    With a model also people are matched. The sets are then scored with and without the overlap.

    ```
    partialfc overlap pack/ lfw.bin agedb_30.bin overlap/
    partialfc overlap pack/ lfw.bin overlap/ --model exported/
    ```

    OUT contains a list and a grid per set, with the set's images above the pack's, most doubtful first. It also
    contains the embeddings of the pack for later calls.
    """
    from partialfc.inference.overlap import PersonMatcher, find_overlaps

    compared = _load_comparable_sets(sets)
    matcher = (
        PersonMatcher(load_model(model, backbone, backbone_target, trust_code, device), model, min_cosine)
        if model
        else None
    )
    scores: dict[str, Scores] = {}
    with claimed_folder(out, "overlap", pack, overwrite=overwrite):
        overlaps = find_overlaps(pack, compared, out, matcher, progress=True)
    for name, found in overlaps.items():
        num_images = next(len(eval_set) for eval_set in compared if eval_set.name == name)
        people = f"; {found.count('person')} more show a person of the pack" if matcher else ""
        print(
            f"{name}: {found.count('bytes', 'hash')} of {num_images} images are in {pack} "
            f"({found.count('bytes')} byte-identical{people}): {out / name}.csv"
        )
        for subset, subset_scores in found.scores.items():
            if subset_scores:
                scores[subset] = subset_scores
            else:
                print(f"{subset}: too few pairs left to score")
    if scores:
        print_scores(scores)


def _load_comparable_sets(paths: list[Path]) -> list["Comparable"]:
    """Load the sets at paths.

    Raises:
        InputError: If a set is of a type that cannot exclude images.
    """
    from partialfc.errors import InputError
    from partialfc.evaluation.gallery import Gallery
    from partialfc.evaluation.loading import load_sets
    from partialfc.evaluation.pairs import VerificationPairs

    comparable: list[Comparable] = []
    for path, found in zip(paths, load_sets(paths), strict=True):
        if not isinstance(found, VerificationPairs | Gallery):
            raise InputError(f"{path}: expected a .bin file, or a folder of gallery/ and probe/")
        comparable.append(found)
    return comparable
