"""Arguments that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from partialfc.config import optimizers

if TYPE_CHECKING:
    from partialfc.inference.recognizer import Recognizer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or name of a bundled recipe.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="SECTION.KEY=VALUE", help="Overrides of settings.")
]
RanksOption = Annotated[
    int | None, typer.Option(help="Processes per machine. [default: one per GPU, or 2 on a CPU]")
]
NodesOption = Annotated[int, typer.Option(help="Number of machines, each with its own launcher.")]
EndpointOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Rendezvous endpoint of several machines.")
]
JobNameOption = Annotated[str | None, typer.Option("--id", help="Name of the job at the endpoint.")]
Requeue = Annotated[
    bool, typer.Option("--requeue", help="Requeue the SLURM job when it is stopped; for batch scripts.")
]

Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace existing files, and write into folders of other commands."),
]

PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="Folder with train.rec.")]

ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Run, checkpoint, exported folder, .pth, .pt, .safetensors or .onnx."
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="Network of weights that do not specify it, such as iresnet100."),
]
BackboneTarget = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CLASS",
        help="Class of a user-defined network; a class that MODEL refers to is not imported.",
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import the class that MODEL refers to. Only for trusted files.")
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Device.")]
PrecisionOption = Annotated[
    optimizers.Precision | None,
    typer.Option(help="Compute dtype. [default: as in the run, else float32]"),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Images per forward pass. [default: as in the run, else 64]"),
]


def load_model(
    model: Path,
    backbone: str | None,
    target: str | None,
    trust_code: bool,
    device: str,
    precision: optimizers.Precision | None = None,
    batch_size: int | None = None,
) -> "Recognizer":
    """Load the model of a command's options.

    Raises:
        InputError: If the model is invalid.
        OSError: If it cannot be read.
    """
    from partialfc.inference.recognizer import load

    return load(
        model,
        backbone=backbone,
        backbone_target=target,
        trust_code=trust_code,
        device=device,
        precision=precision,
        batch_size=batch_size,
    )
