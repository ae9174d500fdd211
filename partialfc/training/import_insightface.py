"""Import of runs of insightface's arcface_torch, at any world size.

train_v2.py writes checkpoint_gpu_0.pt, checkpoint_gpu_1.pt, ..., one per GPU. Each contains the backbone, its
optimizer state, and the class centers of its rank; the first C mod W ranks have one more. The loss scale of
float16 is not saved. Nothing in a file is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor

from partialfc.config import SGD, Config
from partialfc.config.types import NonNegativeInt
from partialfc.conversion import short_repr
from partialfc.errors import InputError
from partialfc.inference.weight_files import check_zip, find_unusable_kind
from partialfc.inference.weight_names import strip_prefix
from partialfc.inference.weights import load_weights
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager
from partialfc.runtime.comm import DistContext
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.process.run_lock import lock_output_folder
from partialfc.training.resume import start_or_resume
from partialfc.training.run import BACKBONE_OPTIM_STATE, Run

_STATE_NAMES = {  # optimizer state there: name in the head
    "sgd": {"momentum_buffer": "momentum"},
    "adamw": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"},
}


_MAX_STEP = 1 << 24  # exact in float32, as torch stores it


class _ParamGroup(Struct):
    params: Annotated[list[int], Meta(min_length=1)]


class _OptimizerState(Struct):
    param_groups: Annotated[list[_ParamGroup], Meta(min_length=2)]  # of the backbone and of the centers
    state: dict[int, dict[str, Any]]


class _SoftmaxWeights(Struct):
    weight: Any


class _InsightFaceCheckpoint(Struct):
    """Contents of a file, as loaded by torch."""

    global_step: NonNegativeInt
    state_dict_backbone: dict[str, Any]
    state_dict_softmax_fc: _SoftmaxWeights
    state_optimizer: _OptimizerState


def import_run(folder: Path, config: Config, dist_ctx: DistContext) -> tuple[Path, int]:
    """Write a checkpoint of `config`'s run from the files in `folder`.

    Runs in one process, which holds all class centers and their optimizer state.

    Returns:
        Path of the checkpoint, and its step.

    Raises:
        CollectiveInputError: If files are missing, damaged or inconsistent; if they do not match the
            recipe's network, number of classes or optimizer; or if `output` contains a run.
    """
    output = Path(config.output)
    with comm.raise_on_all_ranks(dist_ctx):
        paths = _rank_files(folder)
        if config.train.micro_batch_size is None:  # BatchNorm's batch: the images of one of their ranks
            train = msgspec.structs.replace(
                config.train, micro_batch_size=config.train.global_batch_size // len(paths)
            )
            config = msgspec.structs.replace(config, train=train)
    with lock_output_folder(output, dist_ctx):
        checkpoints = CheckpointManager(
            output / "checkpoints", keep=config.checkpoint.keep, dist_ctx=dist_ctx
        )
        checkpoints.find_resume_point("never")
        run, provenance = start_or_resume(config, dist_ctx, checkpoints, None)
        with comm.raise_on_all_ranks(dist_ctx):
            run.step = _load_files(run, paths)
        history = [(run.step, [f"imported from {len(paths)} files of {folder}"])]
        about = msgspec.structs.replace(provenance, history=history).to_dict()
        checkpoints.save(run.step, run.state(), about, elapsed_seconds=0.0)
        outcome = checkpoints.wait()
        comm.raise_first_error(outcome.problem if outcome else None, dist_ctx)
    return output / "checkpoints" / "latest", run.step


def _rank_files(folder: Path) -> list[Path]:
    """Return the files in rank order."""
    found = list(folder.glob("checkpoint_gpu_*.pt"))
    paths = [folder / f"checkpoint_gpu_{rank}.pt" for rank in range(len(found))]
    if not found or set(found) != set(paths):
        names = ", ".join(sorted(it.name for it in found)) or "none"
        raise InputError(f"{folder}: {names}; expected checkpoint_gpu_0.pt and so on, for every rank")
    return paths


def _load_files(run: Run, paths: list[Path]) -> int:
    """Load the tensors of the run, one file at a time; return the step."""
    state, names = run.state(), _STATE_NAMES[_optimizer_name(run)]
    # There is one rank, so its rows are those of all classes.
    head = {name: dtensors.local_rows_and_offset(it)[0] for name, it in state["head"].items()}
    classes = run.head.num_classes
    first = step = 0
    for rank, path in enumerate(paths):
        content = _read_checkpoint(path)
        if rank == 0:
            step = content.global_step
            if step > run.total_steps:
                raise InputError(
                    f"{path}: is at step {step}; expected at most {run.total_steps}, the recipe's train.length"
                )
            weights = strip_prefix(run.backbone.state_dict(), content.state_dict_backbone)
            load_weights(run.backbone, weights, path)
            run.reset_ema()
            _load_optimizer_state(state[BACKBONE_OPTIM_STATE], content, list(weights), path)
        elif content.global_step != step:
            raise InputError(f"{path}: is at step {content.global_step}, {paths[0].name} is at step {step}")
        count = classes // len(paths) + (rank < classes % len(paths))
        _load_center_rows(head, slice(first, first + count), content, path, names)
        first += count
    head["seen_classes"].fill_(1)
    head["steps"].fill_(step)
    run.head.load_state_dict(state["head"])
    return step


def _load_center_rows(
    head: dict[str, Tensor],
    rows: slice,
    content: _InsightFaceCheckpoint,
    path: Path,
    names: Mapping[str, str],
) -> None:
    """Load the centers of a rank and their optimizer state, which is its last parameter."""
    weight, expected = content.state_dict_softmax_fc.weight, head["centers"][rows].shape
    if weight.shape != expected:
        raise InputError(
            f"{path}: class centers {list(weight.shape)}; expected {list(expected)}, of the recipe's backbone.embedding_size and the pack's "
            f"{len(head['centers'])} identities"
        )
    steps = {"step": torch.Size()} if "counts" in head else {}
    number = content.state_optimizer.param_groups[-1].params[-1]
    kept = _optimizer_state_of(
        content, number, dict.fromkeys(names, expected) | steps, f"{path}: class centers"
    )
    head["centers"][rows] = weight
    for theirs, ours in names.items():
        if ours in head:  # otherwise the recipe's optimizer has no such state
            head[ours][rows] = kept[theirs]
    if steps:
        head["counts"][rows] = int(kept["step"])


def _optimizer_name(run: Run) -> str:
    config = run.config
    kind = str(msgspec.to_builtins(config.optim)["name"])
    problems = {
        f"optim.name: {kind}; expected sgd or adamw": kind not in _STATE_NAMES,
        "head.optim: expected unset; arcface_torch has one optimizer for both": config.head.optim is not None,
        "head.subcenters: expected 1; arcface_torch has one center per class": config.head.subcenters > 1,
        "loss.name: linear; arcface_torch normalizes centers": msgspec.to_builtins(config.loss)["name"]
        == "linear",
        "optim.momentum: expected 0.9, as in arcface_torch": isinstance(config.optim, SGD)
        and not config.optim.momentum,
    }
    if problem := next((text for text, is_one in problems.items() if is_one), None):
        raise InputError(problem)
    return kind


def _read_checkpoint(path: Path) -> _InsightFaceCheckpoint:
    check_zip(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or malicious file can raise any exception
        raise InputError(f"{path}: not a checkpoint of arcface_torch: {format_error(error)[:100]}") from None
    try:
        found = msgspec.convert(content, _InsightFaceCheckpoint)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: expected a file of save_all_states: {error}") from None
    for name, value in found.state_dict_backbone.items():
        _check_tensor(value, f"{path}: {name}")
    _check_tensor(found.state_dict_softmax_fc.weight, f"{path}: class centers")
    return found


def _check_tensor(value: Any, location: str) -> None:
    """Raise InputError if a value is not a dense tensor of finite numbers."""
    if not isinstance(value, Tensor):
        raise InputError(f"{location}: expected a tensor, got {short_repr(value)}")
    if kind := find_unusable_kind(value):
        raise InputError(f"{location}: expected a dense tensor, got {kind}")
    wrong = int((~value.isfinite()).sum())
    if wrong:
        raise InputError(f"{location}: expected finite numbers, got {wrong} of {value.numel()} that are not")


def _load_optimizer_state(
    ours: Mapping[str, Mapping[str, Tensor]],
    content: _InsightFaceCheckpoint,
    names: list[str],
    path: Path,
) -> None:
    """Load the optimizer state of the backbone. Its parameters are numbered in the order of the network's."""
    numbers = content.state_optimizer.param_groups[0].params
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [it for it in names if not it.endswith(buffers)]
    if len(numbers) != len(parameters):
        raise InputError(
            f"{path}: an optimizer of {len(numbers)} parameters; the backbone has {len(parameters)}"
        )
    for number, name in zip(numbers, parameters, strict=True):
        if name not in ours:  # the parameter is frozen
            continue
        expected = {kind: tensor.shape for kind, tensor in ours[name].items()}
        for kind, value in _optimizer_state_of(content, number, expected, f"{path}: {name}").items():
            ours[name][kind].copy_(value)


def _optimizer_state_of(
    content: _InsightFaceCheckpoint, number: int, expected: Mapping[str, torch.Size], location: str
) -> dict[str, Tensor]:
    """Return the optimizer state of a parameter.

    Raises:
        InputError: If it is not the state of the recipe's optimizer.
    """
    state = content.state_optimizer.state.get(number, {})
    # The step was a plain number in older versions.
    found = {
        name: it if isinstance(it, Tensor) else torch.tensor(float(it))
        for name, it in state.items()
        if isinstance(it, Tensor) or (isinstance(it, int | float) and abs(it) < _MAX_STEP)
    }
    for name, shape in expected.items():
        if name not in found or found[name].shape != shape:
            there = ", ".join(f"{key} {list(it.shape)}" for key, it in found.items()) or "nothing"
            raise InputError(
                f"{location}: the optimizer keeps {there}; the recipe's requires {name} {list(shape)}"
            )
        _check_tensor(found[name], f"{location}: {name} of the optimizer")
        if name == "step" and not 0 <= int(found[name]) <= content.global_step:
            raise InputError(
                f"{location}: step {int(found[name])} of the optimizer; expected 0 to {content.global_step}"
            )
    return {name: found[name] for name in expected}
