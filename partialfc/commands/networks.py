"""A trained network in use."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from partialfc.commands.options import BackboneName, Device, Model, Pack, loaded

if TYPE_CHECKING:
    from rich.table import Table

    from partialfc.evaluation.sets import Scores
    from partialfc.inference.recognizer import Recognizer


_FEW = 10  # scores that stand in one line
_WIDE = 240  # signs of a line in a file, where nothing is wrapped


def evaluate(
    model: Model,
    sets: Annotated[
        list[Path] | None,
        typer.Argument(
            help=".bin files, and folders: of several, of IJB, of gallery/ and probe/, of TinyFace; default: the run's."
        ),
    ] = None,
    ijb: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Of IJB-B or IJB-C: the same as among SETS.")
    ] = None,
    rule: Annotated[
        Literal["insightface"] | None,
        typer.Option(help="Of pairs, the accuracy at the thresholds of insightface's script, too."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the scores there, too.")] = None,
    backbone: BackboneName = None,
    device: Device = "auto",
) -> None:
    """Verify on sets of pairs, as a run does, or by the protocols of IJB-B and IJB-C.

    ```
    partialfc evaluate output/mine
    partialfc evaluate output/mine/checkpoints/step_00001000 lfw.bin
    partialfc evaluate backbone.pth lfw.bin --backbone iresnet100
    partialfc evaluate exported lfw.bin
    partialfc evaluate exported --ijb IJBC
    torchrun --nproc-per-node=8 -m partialfc evaluate exported --ijb IJBC
    ```
    """
    import msgspec
    from rich.console import Console

    from partialfc.runtime.files import atomic_write

    found = _evaluated(model, backbone, device, [*(sets or []), *(ijb or [])], by_grid=rule is not None)
    if not found:  # another rank than the first
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    for table in _tables(found):
        console.print(table)
    if json:
        with atomic_write(json) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def _tables(scores: dict[str, "Scores"]) -> Iterator["Table"]:
    """One of the sets that have few scores, a line each; and one of each other set, with a line for each score."""
    from rich.table import Table

    from partialfc.evaluation.metrics import rounded

    shown = {name: rounded(values) for name, values in scores.items()}
    few = {name: values for name, values in shown.items() if len(values) <= _FEW}
    names = list(dict.fromkeys(it for values in few.values() for it in values))
    if few:
        table = Table("set", box=None)
        for name in names:
            table.add_column(name, justify="right")
        for name, values in few.items():
            table.add_row(name, *(values.get(it, "") for it in names))
        yield table
    for name in [it for it in shown if it not in few]:
        table = Table("score", box=None)
        table.add_column(name, justify="right")
        for score, value in shown[name].items():
            table.add_row(score, value)
        yield table


def _evaluated(
    model: Path, backbone: str | None, device: str, sets: list[Path], *, by_grid: bool
) -> dict[str, "Scores"]:
    """The scores of each set by its name, on the first rank. CollectiveInputError where there is none, or one cannot be read."""
    from partialfc.evaluation.loading import load_sets
    from partialfc.evaluation.pairs import Pairs
    from partialfc.evaluation.verify import embed_sets
    from partialfc.runtime import comm

    with comm.join("cpu" if model.suffix == ".onnx" else device) as ranks:
        with comm.fail_on_all_ranks(ranks):
            recognizer = loaded(model, backbone, device)
            there = load_sets(sets or _sets_of(recognizer))
        embeddings = embed_sets(
            recognizer.network, there, ranks, batch=recognizer.batch, autocast=recognizer.autocast()
        )
        with comm.fail_on_all_ranks(ranks):
            if not ranks.first:
                return {}
            found = {it.name: it.score(embeddings[it.name]) for it in there}
            for one in there if by_grid else []:
                if isinstance(one, Pairs):
                    found[one.name] = {**found[one.name], **one.score_by_grid(embeddings[one.name])}
            return found


def _sets_of(recognizer: "Recognizer") -> list[Path]:
    """Those that its run was verified on. InputError where there are none."""
    from partialfc.errors import InputError
    from partialfc.evaluation.loading import paths_of

    found = paths_of(recognizer.config) if recognizer.config else []
    if not found:
        raise InputError("no evaluation set; wanted .bin files, or folders of sets")
    return found


def embed(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Of aligned faces, or a pack of them.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="The .npz file: names [n], embeddings [n, D] of unit length; of a pack, a folder."
        ),
    ],
    backbone: BackboneName = None,
    device: Device = "auto",
) -> None:
    """Embed all images in a folder and below, or of a pack. The same call goes on where it was interrupted.

    ```
    partialfc embed output/mine faces/ embeddings.npz
    partialfc embed teacher.onnx pack/ teacher/
    ```

    Of a pack the folder holds embeddings.npy, [n, D] in the order of its images, for training with
    `distillation.embeddings`.
    """
    from partialfc.data.dataset import is_pack
    from partialfc.inference.folder import embed_folder
    from partialfc.inference.pack import embed_pack

    write = embed_pack if is_pack(folder) else embed_folder
    count = write(loaded(model, backbone, device), model, folder, out, progress=True)
    print(f"{out}: {count} images")


def clean(
    run: Annotated[Path, typer.Argument(help="A run that was trained on the pack, or a checkpoint of it.")],
    pack: Pack,
    out: Annotated[Path, typer.Argument(help="The cleaned pack's folder.")],
    degrees: Annotated[
        float, typer.Option(min=0, max=180, help="How far an image may be from its class.")
    ] = 75.0,
    device: Device = "auto",
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

    kept, dropped = cleaning.clean(loaded(run, None, device), run, pack, out, degrees=degrees, progress=True)
    print(f"{out}: {kept} images; {dropped} are farther than {degrees:g} degrees: {out / cleaning.LISTING}")


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint of it.")],
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
) -> None:
    """Export a run to a folder: model.onnx (any batch), model.safetensors, config.json, and a model card.

    ```
    partialfc export output/mine exported
    ```
    """
    from partialfc.inference.export import export

    print(f"{out}: ONNX and torch agree to a cosine of {export(run, out):.7f} at least")


def compare(
    model: Model,
    first: Path,
    second: Path,
    backbone: BackboneName = None,
    device: Device = "auto",
) -> None:
    """Say how alike two aligned faces are, the cosine of their embeddings; and whether they show one person.

    ```
    partialfc compare output/mine a.jpg b.jpg
    ```

    The verdict is by the threshold of each set that the run was verified on.
    """
    import numpy as np

    from partialfc.inference.scores import scores_of

    similarity = float(np.dot(*loaded(model, backbone, device).embed([first, second])))
    print(f"{similarity:.4f}")
    for name, values in scores_of(model).items():
        if "threshold" in values:
            verdict = "the same person" if similarity > values["threshold"] else "different people"
            print(
                f"{verdict}, by {name}: its threshold is {values['threshold']:.4f}, "
                f"above which {values['threshold_far']:.2%} of its pairs of different people are"
            )
