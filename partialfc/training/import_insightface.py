"""A run of insightface's arcface_torch as one that goes on here, at any number of ranks.

Its train_v2.py leaves checkpoint_gpu_0.pt, checkpoint_gpu_1.pt, ... of as many GPUs: the backbone and what its optimizer keeps
in each, of the class centres what each rank has, the first C mod W ranks one more. The loss scale of float16 is not among it.
Nothing in a file is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor

from partialfc.config import SGD, Config
from partialfc.errors import InputError
from partialfc.inference.weights import check_zip, load_weights
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager
from partialfc.runtime.comm import DistContext
from partialfc.runtime.exit_codes import format_error
from partialfc.runtime.process.run_lock import lock_output_folder
from partialfc.training.resume import start_or_resume
from partialfc.training.run import BACKBONE_OPTIM_STATE, Run

_STATE_NAMES = {  # what their optimizers keep of a parameter, and what the head calls it
    "sgd": {"momentum_buffer": "momentum"},
    "adamw": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"},
}


class _ParamGroup(Struct):
    params: Annotated[list[int], Meta(min_length=1)]


class _OptimizerState(Struct):
    param_groups: Annotated[list[_ParamGroup], Meta(min_length=2)]  # the backbone's, and the centres
    state: dict[int, dict[str, Any]]


class _SoftmaxWeights(Struct):
    weight: Any


class _InsightFaceCheckpoint(Struct):
    """Of a file, as torch loads it."""

    global_step: int
    state_dict_backbone: dict[str, Any]
    state_dict_softmax_fc: _SoftmaxWeights
    state_optimizer: _OptimizerState


def import_run(folder: Path, config: Config, dist_ctx: DistContext) -> tuple[Path, int]:
    """Write a checkpoint of the run that `config` is of, from the files in `folder`; returns where, and the step. One process:
    it holds all class centres, and what is kept of them, at once.

    CollectiveInputError where files are missing or damaged, do not fit each other, or are of another network, another number
    of classes or another optimizer than the recipe; and where `output` holds a run.
    """
    output = Path(config.output)
    with comm.raise_on_all_ranks(dist_ctx):
        paths = _rank_files(folder)
        if config.train.micro_batch_size is None:  # what BatchNorm saw: the images of one of their ranks
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
    """In the order of their ranks."""
    found = list(folder.glob("checkpoint_gpu_*.pt"))
    paths = [folder / f"checkpoint_gpu_{rank}.pt" for rank in range(len(found))]
    if not found or set(found) != set(paths):
        names = ", ".join(sorted(it.name for it in found)) or "none"
        raise InputError(f"{folder}: {names}; wanted checkpoint_gpu_0.pt and so on, of every rank")
    return paths


def _load_files(run: Run, paths: list[Path]) -> int:
    """The run's tensors from the files, one of which is in memory at a time; returns the step."""
    state, names = run.state(), _STATE_NAMES[_optimizer_name(run)]
    head = {
        name: dtensors.local_rows_and_offset(it)[0] for name, it in state["head"].items()
    }  # of all classes: one rank
    classes = run.head.num_classes
    first = step = 0
    for rank, path in enumerate(paths):
        content = _read_checkpoint(path)
        if rank == 0:
            step = content.global_step
            load_weights(run.backbone, content.state_dict_backbone, path)
            run.reset_ema()
            _load_optimizer_state(state[BACKBONE_OPTIM_STATE], content, path)
        elif content.global_step != step:
            raise InputError(f"{path}: of step {content.global_step}; {paths[0].name} is of {step}")
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
    """The centres of a rank, and what its optimizer keeps of them, which are its last parameter."""
    weight, wanted = content.state_dict_softmax_fc.weight, head["centers"][rows].shape
    if not isinstance(weight, Tensor) or weight.shape != wanted:
        found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise InputError(
            f"{path}: class centres {found}; wanted {list(wanted)}, of the recipe's backbone.embedding_size and the pack's "
            f"{len(head['centers'])} identities"
        )
    steps = {"step": torch.Size()} if "counts" in head else {}
    number = content.state_optimizer.param_groups[-1].params[-1]
    kept = _optimizer_state_of(
        content, number, dict.fromkeys(names, wanted) | steps, f"{path}: class centres"
    )
    head["centers"][rows] = weight
    for theirs, ours in names.items():
        if ours in head:  # else the recipe keeps none
            head[ours][rows] = kept[theirs]
    if steps:
        head["counts"][rows] = int(kept["step"])


def _optimizer_name(run: Run) -> str:
    config = run.config
    kind = str(msgspec.to_builtins(config.optim)["name"])
    problems = {
        f"optim.name: {kind}; wanted sgd or adamw": kind not in _STATE_NAMES,
        "head.optim: of its own; there both have one optimizer": config.head.optim is not None,
        "head.subcenters: there a class has one centre": config.head.subcenters > 1,
        "loss.name: linear; there rows are normalised": msgspec.to_builtins(config.loss)["name"] == "linear",
        "optim.momentum: wanted 0.9, as their code has it": isinstance(config.optim, SGD)
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
    except Exception as error:  # a damaged or hostile file raises whatever its bytes lead to
        raise InputError(f"{path}: not a checkpoint of arcface_torch: {format_error(error)[:100]}") from None
    try:
        return msgspec.convert(content, _InsightFaceCheckpoint)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: not what save_all_states writes: {error}") from None


def _load_optimizer_state(
    ours: Mapping[str, Mapping[str, Tensor]], content: _InsightFaceCheckpoint, path: Path
) -> None:
    """What the optimizer keeps of the backbone. Its parameters are numbered in the order in which their network has them."""
    numbers = content.state_optimizer.param_groups[0].params
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [it for it in content.state_dict_backbone if not it.endswith(buffers)]
    if len(numbers) != len(parameters):
        raise InputError(
            f"{path}: an optimizer of {len(numbers)} parameters; the backbone has {len(parameters)}"
        )
    for number, name in zip(numbers, parameters, strict=True):
        if name not in ours:  # it stands still
            continue
        wanted = {kind: tensor.shape for kind, tensor in ours[name].items()}
        for kind, value in _optimizer_state_of(content, number, wanted, f"{path}: {name}").items():
            ours[name][kind].copy_(value)


def _optimizer_state_of(
    content: _InsightFaceCheckpoint, number: int, expected: Mapping[str, torch.Size], location: str
) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter. InputError where it is not what the recipe's would."""
    state = content.state_optimizer.state.get(number, {})
    # The step was a plain number once.
    found = {name: torch.as_tensor(it) for name, it in state.items() if isinstance(it, Tensor | int | float)}
    for name, shape in expected.items():
        if name not in found or found[name].shape != shape:
            there = ", ".join(f"{key} {list(it.shape)}" for key, it in found.items()) or "nothing"
            raise InputError(
                f"{location}: the optimizer keeps {there}; the recipe's wants {name} {list(shape)}"
            )
    return {name: found[name] for name in expected}
