"""A trained network in use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partialfc.commands.options import BackboneName, Device, Model, Pack, loaded

if TYPE_CHECKING:
    from partialfc.evaluation.sets import Scores
    from partialfc.inference.recognizer import Recognizer


def evaluate(
    model: Model,
    sets: Annotated[
        list[Path] | None, typer.Argument(help=".bin files; default: those of the run's pack.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the scores there, too.")] = None,
    backbone: BackboneName = None,
    device: Device = "auto",
) -> None:
    """Verify on .bin sets, as a run does.

    ```
    partialfc evaluate output/mine
    partialfc evaluate output/mine/checkpoints/step_00001000 lfw.bin
    partialfc evaluate backbone.pth lfw.bin --backbone iresnet100
    partialfc evaluate exported lfw.bin
    ```
    """
    import msgspec
    from rich.console import Console
    from rich.table import Table

    from partialfc.evaluation.metrics import rounded
    from partialfc.runtime.files import atomic_write

    found = _evaluated(loaded(model, backbone, device), sets or [])
    table = Table(box=None)
    table.add_column("set", no_wrap=True)
    for name in (names := list(dict.fromkeys(it for values in found.values() for it in rounded(values)))):
        table.add_column(name, justify="right")
    for name, values in found.items():
        table.add_row(name, *(rounded(values).get(it, "") for it in names))
    Console().print(table)
    if json:
        with atomic_write(json) as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def _evaluated(recognizer: "Recognizer", sets: list[Path]) -> dict[str, "Scores"]:
    """The scores of each set by its name. InputError where there is none, or one cannot be read."""
    from partialfc.errors import InputError
    from partialfc.evaluation.pairs import load_pairs
    from partialfc.evaluation.verify import embed_sets
    from partialfc.runtime import comm

    if not sets and recognizer.config:
        sets = sorted(Path(recognizer.config.data.path).glob("*.bin"))
    if not sets:
        raise InputError("no verification set; wanted .bin files")
    pairs = [load_pairs(path) for path in sets]
    with comm.join(recognizer.device.type) as ranks:
        embeddings = embed_sets(
            recognizer.network, pairs, ranks, batch=recognizer.batch, autocast=recognizer.autocast()
        )
    return {it.name: it.score(embeddings[it.name]) for it in pairs}


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
