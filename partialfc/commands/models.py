"""Commands on trained models: evaluate, embed, export, compare."""

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
            help=".bin files, or folders: several .bin, IJB, gallery/ and probe/, TinyFace. [default: the run's]"
        ),
    ] = None,
    ijb: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Folder of IJB-B or IJB-C, same as in SETS.")
    ] = None,
    protocol: Annotated[
        Literal["insightface"] | None,
        typer.Option(help="Pairs: also report the accuracy by insightface's script."),
    ] = None,
    skip_unusable: Annotated[
        bool,
        typer.Option("--skip-unusable", help="IJB: leave out unusable images instead of refusing the set."),
    ] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write a report of the scores to a JSON file."),
    ] = None,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a model on verification and identification sets.

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

    if json_path:
        require_parent_folder(json_path)  # before hours of work
        claim_file(json_path, overwrite=overwrite)
    load = partial(load_model, model, backbone, backbone_target, trust_code, device, precision, batch_size)
    run = _run_evaluation(
        model,
        load,
        device,
        [*(sets or []), *(ijb or [])],
        skip_unusable=skip_unusable,
        use_insightface_rule=protocol is not None,
    )
    if run is None:  # not rank 0
        return
    print_scores(run.scores)
    if json_path:
        write_evaluation_report(json_path, model, run.recognizer, run.sets, run.scores)


@dataclass(frozen=True)
class _EvaluationRun:
    """Evaluated model and sets, and their scores."""

    recognizer: "Recognizer"
    sets: "list[tuple[Path, EvaluationSet]]"
    scores: "dict[str, Scores]"  # by set name


def _run_evaluation(
    model: Path,
    load: Callable[[], "Recognizer"],
    device: str,
    sets: list[Path],
    *,
    skip_unusable: bool,
    use_insightface_rule: bool,
) -> _EvaluationRun | None:
    """Evaluate a model on all ranks; return the result on rank 0 and None on the other ranks.

    Raises:
        CollectiveInputError: If there is no set, or one cannot be read.
    """
    from partialfc.evaluation.embed import embed_sets
    from partialfc.evaluation.loading import load_sets
    from partialfc.evaluation.pairs import VerificationPairs
    from partialfc.runtime import comm
    from partialfc.runtime.progress import progress_bar
    from partialfc.runtime.text import escape_unprintable

    with comm.init_distributed("cpu" if model.suffix == ".onnx" else device) as dist_ctx:
        with comm.raise_on_all_ranks(dist_ctx):
            recognizer = load()
            paths = sets or _default_sets(recognizer)
            if not sets and recognizer.config:
                skip_unusable |= recognizer.config.evaluation.skip_unusable
            eval_sets = load_sets(paths, skip_unusable=skip_unusable)
        embeddings = embed_sets(
            recognizer.network,
            eval_sets,
            dist_ctx,
            batch_size=recognizer.batch_size,
            autocast=recognizer.autocast(),
            progress=lambda name, turns: progress_bar(turns, f"evaluating {name}", enabled=dist_ctx.is_main),
        )
        with comm.raise_on_all_ranks(dist_ctx):
            if not dist_ctx.is_main:
                return None
            evaluations = {
                eval_set.name: eval_set.evaluate(embeddings[eval_set.name]) for eval_set in eval_sets
            }
            scores = {name: evaluation.scores for name, evaluation in evaluations.items()}
            for evaluation in evaluations.values():
                if evaluation.warning:
                    print(f"warning: {escape_unprintable(evaluation.warning)}", file=sys.stderr, flush=True)
            for eval_set in eval_sets if use_insightface_rule else []:
                if isinstance(eval_set, VerificationPairs):
                    insightface_scores = eval_set.score_insightface(embeddings[eval_set.name])
                    scores[eval_set.name] = {**scores[eval_set.name], **insightface_scores}
            return _EvaluationRun(recognizer, list(zip(paths, eval_sets, strict=True)), scores)


def _default_sets(recognizer: "Recognizer") -> list[Path]:
    """Return the paths of the sets that the model's run was evaluated on.

    Raises:
        InputError: If nothing is found.
    """
    from partialfc.evaluation.loading import evaluation_set_paths

    paths = evaluation_set_paths(recognizer.config) if recognizer.config else []
    if not paths:
        raise InputError("no evaluation set; expected .bin files, or folders of sets")
    return paths


def embed(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="Folder of aligned faces, or pack.")],
    out: Annotated[
        Path,
        typer.Argument(
            help="Output: .npz with names [n] and L2-normalized embeddings [n, D], or a folder for a pack."
        ),
    ],
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    batch_size: BatchSizeOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed all images in a folder and its subfolders, or in a pack. Rerun the same command to resume.

    ```
    partialfc embed output/mine faces/ embeddings.npz
    partialfc embed teacher.onnx pack/ teacher/
    ```

    For a pack, OUT is a folder with embeddings.npy, [n, D] in the order of the images, which
    `distillation.teacher_embeddings` reads.
    """
    from partialfc.data.dataset import is_pack
    from partialfc.inference.embed_folder import embed_folder
    from partialfc.inference.embed_pack import embed_pack

    load = partial(load_model, model, backbone, backbone_target, trust_code, device, precision, batch_size)
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
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a run to model.onnx (any batch size), model.safetensors, config.json and a model card.

    ```
    partialfc export output/mine exported
    ```
    """
    from partialfc.inference.export import export_run

    with claimed_folder(out, "export", run, overwrite=overwrite):
        cosine = export_run(run, out, backbone_target=backbone_target, trust_code=trust_code)
    print(f"{out}: ONNX matches PyTorch: minimum cosine {cosine:.7f}")


def compare(
    model: ModelArgument,
    first: Path,
    second: Path,
    backbone: BackboneOption = None,
    backbone_target: BackboneTarget = None,
    trust_code: TrustCode = False,
    device: DeviceOption = "auto",
) -> None:
    """Print the cosine similarity of two aligned faces, and whether they show the same person.

    ```
    partialfc compare output/mine a.jpg b.jpg
    ```

    The decision uses the threshold of each set that the run was evaluated on.
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
            decision = "same person" if similarity > values["threshold"] else "different people"
            print(
                f"{decision} (threshold {values['threshold']:.4f} of {name}, "
                f"false accept rate {values['threshold_far']:.2%})"
            )
