"""A trained network in use."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from partialfc.commands.options import (
    BackboneOption,
    BackboneTarget,
    BatchSizeOption,
    DeviceOption,
    ModelArgument,
    Overwrite,
    PrecisionOption,
    TrustCode,
    load_model,
)
from partialfc.commands.tables import print_scores
from partialfc.errors import InputError
from partialfc.runtime.outputs import claim_file, claimed_folder

if TYPE_CHECKING:
    from partialfc.evaluation.sets import EvaluationSet, Scores
    from partialfc.inference.recognizer import Recognizer


def evaluate(
    model: ModelArgument,
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
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the scores there, and what they are of.")
    ] = None,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    batch: BatchSizeOption = None,
    overwrite: Overwrite = False,
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
    from partialfc.inference.evaluation_report import require_parent_folder, write_evaluation_report

    if json:
        require_parent_folder(json)  # before hours of work
        claim_file(json, overwrite=overwrite)
    load = partial(load_model, model, backbone, backbone_target, trust_code, device, precision, batch)
    found = _run_evaluation(model, load, device, [*(sets or []), *(ijb or [])], by_grid=rule is not None)
    if found is None:  # another rank than the first
        return
    print_scores(found.scores)
    if json:
        write_evaluation_report(json, model, found.recognizer, found.sets, found.scores)


@dataclass(frozen=True)
class _EvaluationRun:
    """What was evaluated, and what came of it."""

    recognizer: "Recognizer"
    sets: "list[tuple[Path, EvaluationSet]]"
    scores: "dict[str, Scores]"  # by the name of the set


def _run_evaluation(
    model: Path,
    load: Callable[[], "Recognizer"],
    device: str,
    sets: list[Path],
    *,
    by_grid: bool,
) -> _EvaluationRun | None:
    """On the first rank; on others None. CollectiveInputError where there is no set, or one cannot be read."""
    from partialfc.evaluation.embed import embed_sets
    from partialfc.evaluation.loading import load_sets
    from partialfc.evaluation.pairs import VerificationPairs
    from partialfc.runtime import comm
    from partialfc.runtime.progress import progress_bar

    with comm.init_distributed("cpu" if model.suffix == ".onnx" else device) as dist_ctx:
        with comm.raise_on_all_ranks(dist_ctx):
            recognizer = load()
            paths = sets or _default_sets(recognizer)
            there = load_sets(paths)
        embeddings = embed_sets(
            recognizer.network,
            there,
            dist_ctx,
            batch_size=recognizer.batch_size,
            autocast=recognizer.autocast(),
            progress=lambda name, turns: progress_bar(turns, f"evaluating {name}", enabled=dist_ctx.is_main),
        )
        with comm.raise_on_all_ranks(dist_ctx):
            if not dist_ctx.is_main:
                return None
            evaluated = {it.name: it.evaluate(embeddings[it.name]) for it in there}
            for warning in filter(None, (it.warning for it in evaluated.values())):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
            found = {name: it.scores for name, it in evaluated.items()}
            for one in there if by_grid else []:
                if isinstance(one, VerificationPairs):
                    found[one.name] = {**found[one.name], **one.score_insightface(embeddings[one.name])}
            return _EvaluationRun(recognizer, list(zip(paths, there, strict=True)), found)


def _default_sets(recognizer: "Recognizer") -> list[Path]:
    """Those that its run was verified on. InputError where there are none."""
    from partialfc.evaluation.loading import evaluation_set_paths

    found = evaluation_set_paths(recognizer.config) if recognizer.config else []
    if not found:
        raise InputError("no evaluation set; wanted .bin files, or folders of sets")
    return found


def embed(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Of aligned faces, or a pack of them.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="The .npz file: names [n], embeddings [n, D] of unit length; of a pack, a folder."
        ),
    ],
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    batch: BatchSizeOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed all images in a folder and below, or of a pack. The same call goes on where it was interrupted.

    ```
    partialfc embed output/mine faces/ embeddings.npz
    partialfc embed teacher.onnx pack/ teacher/
    ```

    Of a pack the folder holds embeddings.npy, [n, D] in the order of its images, for training with
    `distillation.teacher_embeddings`.
    """
    from partialfc.data.dataset import is_pack
    from partialfc.inference.embed_folder import embed_folder
    from partialfc.inference.embed_pack import embed_pack

    load = partial(load_model, model, backbone, backbone_target, trust_code, device, precision, batch)
    if is_pack(folder):
        with claimed_folder(out, "embed", model, folder, precision, overwrite=overwrite):
            count = embed_pack(load(), model, folder, out, progress=True)
    else:
        if out.suffix != ".npz":
            raise InputError(f"{out}: expected the name of an .npz file")
        claim_file(out, overwrite=overwrite)
        count = embed_folder(load(), model, folder, out, progress=True)
    print(f"{out}: {count} images")


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint of it.")],
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a run to a folder: model.onnx (any batch), model.safetensors, config.json, and a model card.

    ```
    partialfc export output/mine exported
    ```
    """
    from partialfc.inference.export import export_run

    with claimed_folder(out, "export", run, overwrite=overwrite):
        cosine = export_run(run, out, backbone_target=backbone_target, trust_code=trust_code)
    print(f"{out}: ONNX and torch agree to a cosine of {cosine:.7f} at least")


def compare(
    model: ModelArgument,
    first: Path,
    second: Path,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
) -> None:
    """Say how alike two aligned faces are, the cosine of their embeddings; and whether they show one person.

    ```
    partialfc compare output/mine a.jpg b.jpg
    ```

    The verdict is by the threshold of each set that the run was verified on.
    """
    import math

    import numpy as np

    from partialfc.inference.stored_scores import load_scores

    similarity = float(
        np.dot(*load_model(model, backbone, backbone_target, trust_code, device).embed([first, second]))
    )
    print(f"{similarity:.4f}")
    for name, values in load_scores(model).items():
        if not math.isnan(values.get("threshold", math.nan)):
            verdict = "the same person" if similarity > values["threshold"] else "different people"
            print(
                f"{verdict}, by {name}: its threshold is {values['threshold']:.4f}, "
                f"above which {values['threshold_far']:.2%} of its pairs of different people are"
            )
