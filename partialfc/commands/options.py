"""Arguments that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from partialfc.config import optimizers

if TYPE_CHECKING:
    from partialfc.inference.recognizer import Recognizer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings in its place.")
]
RanksOption = Annotated[
    int | None, typer.Option(help="Processes on each machine; default: one per GPU, or 2 on the CPU.")
]
NodesOption = Annotated[int, typer.Option(help="Machines that take part, each with its own launcher.")]
EndpointOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="Where several machines meet.")]
JobNameOption = Annotated[str | None, typer.Option("--id", help="Names the job at the endpoint.")]
Requeue = Annotated[
    bool, typer.Option("--requeue", help="Requeue the SLURM job when it is stopped; for its batch script.")
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what exists, and write into folders of other calls.")
]

PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="A folder with train.rec.")]

ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A run, a checkpoint, an exported folder, .pth, .pt, .safetensors or .onnx."
    ),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Of weights that do not say, such as iresnet100.")
]
BackboneTarget = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CLASS", help="Class of a Python network; a class that MODEL names is not imported."
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import the class that MODEL names. Only for files of your own.")
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What computes.")]
PrecisionOption = Annotated[
    optimizers.Precision | None,
    typer.Option(help="In which it computes; default: as the run did, else float32."),
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Images that go through at once; default: as in the run, else 64.")
]


def load_model(
    model: Path,
    backbone: str | None,
    target: str | None,
    trust_code: bool,
    device: str,
    precision: optimizers.Precision | None = None,
    batch: int | None = None,
) -> "Recognizer":
    """Load the network of a command's options. InputError or OSError if that fails."""
    from partialfc.inference.recognizer import load

    return load(
        model,
        backbone=backbone,
        backbone_target=target,
        trust_code=trust_code,
        device=device,
        precision=precision,
        batch_size=batch,
    )
