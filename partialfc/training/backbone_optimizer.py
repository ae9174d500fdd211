"""The step of the parameters that every rank has a replica of: loss scale, clipping, and skips decided on the device."""

import inspect
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from partialfc.config import AdamW, AnyOptimizer, Sgd, TorchOptimizer
from partialfc.errors import InputError
from partialfc.runtime import precision
from partialfc.runtime.comm import Ranks
from partialfc.training.replicas import ReplicatedGradients

_CLOSURES = ("Optimizer", "LBFGS", "SparseAdam")  # whose step takes more than gradients, or other ones
_SCALE = "lr_scale"  # of a group's rate
_GROWTH_INTERVAL = 2000  # steps without an overflow after which the loss scale doubles


class LossScale:
    """What a loss is multiplied by before backward so that float16 gradients do not vanish; lives on the device.

    Halved after an overflow, doubled after 2000 steps without one, as torch.amp.GradScaler does, but without
    asking the device. Where not enabled it stays 1.
    """

    def __init__(self, *, enabled: bool, device: torch.device) -> None:
        self._enabled = enabled
        self.value = torch.full((), 2.0**16 if enabled else 1.0, device=device)
        self.streak = torch.zeros((), device=device)  # steps since it last changed

    def update(self, finite: Tensor) -> None:
        """After a step, in place; finite: bool scalar."""
        if not self._enabled:
            return
        self.streak.add_(1).mul_(finite)
        grown = self.streak >= _GROWTH_INTERVAL
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.streak.mul_(~grown)


class BackboneOptimizer:
    """The step of the parameters of `backbone`, clipped by the norm of all gradients together.

    A step that is not finite changes nothing, which the device decides: the fused optimizers see to it themselves; of
    any other, what the step has changed is taken back, for which parameters and moments are copied before.
    """

    def __init__(self, backbone: nn.Module, config: AnyOptimizer, ranks: Ranks) -> None:
        self._config, self._device = config, ranks.device
        self._named = {name: it for name, it in backbone.named_parameters() if it.requires_grad}
        sent_as = torch.bfloat16 if config.reduce_dtype == "bfloat16" else None
        self.gradients = ReplicatedGradients(self._named.values(), ranks.group, sent_as=sent_as)
        self.loss_scale = LossScale(enabled=config.precision == "float16", device=ranks.device)
        self._fused = not isinstance(config, TorchOptimizer)
        # Any: torch does not declare found_inf, which its fused optimizers read.
        self._scales = _scales(backbone, list(self._named.values()), config.layer_decay)
        self._torchs: Any = _optimizer(config, list(self._named.values()), self._scales)
        # Made here and not at the first step, which may be one that is skipped.
        for parameter in self._named.values():
            self._torchs.state[parameter].update(_moments(config, parameter))

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What the optimizer keeps of each parameter; empty before the first step, but for the fused ones."""
        return {name: self._torchs.state[it] for name, it in self._named.items() if it in self._torchs.state}

    def forget(self, names: Collection[str]) -> None:
        """What is kept of the parameters of these names is as before the first step."""
        for name in names:
            parameter = self._named[name]
            self._torchs.state[parameter] = _moments(self._config, parameter)

    def make_moments(self) -> None:
        """Make the tensors of `moments`, with any content, for a checkpoint to be read into."""
        if self._fused or any(self._torchs.state.values()):
            return
        copies = {name: nn.Parameter(it.detach().clone()) for name, it in self._named.items()}
        for copy in copies.values():
            copy.grad = torch.zeros_like(copy)
        dry = _optimizer(self._config, list(copies.values()), self._scales)
        dry.step()
        for name, copy in copies.items():
            self._torchs.state[self._named[name]] = dry.state[copy]

    def autocast(self) -> AbstractContextManager[object]:
        """Around the backbone: it computes in the recipe's precision."""
        return precision.autocast(self._config.precision, self._device)

    def step(self, lr: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step at learning rate `lr`, from the gradients of loss scale x loss, summed over the ranks.

        Returns scalars on the device: the gradient's norm before clipping, and whether it and the loss are
        finite. Where not, nothing changes. Both are the same on every rank, as the summed gradients and the
        loss are.
        """
        norm = self.gradients.norm() / self.loss_scale.value
        finite = norm.isfinite() & loss.isfinite()
        clip = self._config.max_grad_norm
        excess = (norm / clip).clamp_min(1.0) if clip else torch.ones_like(norm)
        self.gradients.divide(self.loss_scale.value * excess)
        for group in self._torchs.param_groups:
            group["lr"] = lr * group[_SCALE]
        if self._fused:
            self._torchs.found_inf = (~finite).float()  # where it is 1, nothing changes
            self._torchs.step()
        else:
            self._step_or_take_back(finite)
        self.loss_scale.update(finite)
        return norm, finite

    def _step_or_take_back(self, finite: Tensor) -> None:
        # What such an optimizer keeps is made in its first step: only before that one is there nothing to go back to.
        if not any(self._torchs.state.values()) and not bool(finite):
            return
        tensors = self._tensors()
        before = [it.clone() for it in tensors]
        self._torchs.step()
        for now, then in zip(tensors, before, strict=True):
            # What is kept on the host, as steps are where `capturable` is unknown, waits for the device.
            now.copy_(torch.where(finite.to(now.device), now, then))

    def _tensors(self) -> list[Tensor]:
        """All that a step changes."""
        kept = [it for moments in self.moments.values() for it in moments.values() if isinstance(it, Tensor)]
        return [*(it.detach() for it in self._named.values()), *kept]


def _optimizer(
    config: AnyOptimizer, parameters: list[nn.Parameter], scales: list[float]
) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    groups = _groups(config, parameters, scales)
    match config:
        case Sgd():
            return torch.optim.SGD(
                groups, momentum=config.momentum, nesterov=config.nesterov, fused=True, **shared
            )
        case AdamW():
            return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True, **shared)
        case TorchOptimizer():
            return _of_torch(config, groups, shared)


def _of_torch(
    config: TorchOptimizer, groups: list[dict[str, Any]], shared: dict[str, Any]
) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, config.optimizer_class, None)
    if (
        not isinstance(kind, type)
        or not issubclass(kind, torch.optim.Optimizer)
        or config.optimizer_class in _CLOSURES
    ):
        raise InputError(
            f"optim.optimizer_class: {config.optimizer_class!r}, wanted a class of torch.optim, such as NAdam"
        )
    try:
        arguments: dict[str, Any] = shared | config.kwargs
        if groups[0]["params"][0].is_cuda and "capturable" in inspect.signature(kind).parameters:
            arguments.setdefault("capturable", True)  # what it keeps lies on the device, too
        optimizer: torch.optim.Optimizer = kind(groups, **arguments)
    except (TypeError, ValueError) as error:  # of its arguments, which are the recipe's
        raise InputError(f"optim: torch.optim.{config.optimizer_class}: {error}") from None
    return optimizer


def copies_of(config: AnyOptimizer) -> int:
    """How many tensors of the size of the parameters an optimizer keeps beside them, for a plan.

    Two moments are assumed of a class of torch.optim, and three copies with which a step may be taken back.
    """
    match config:
        case Sgd():
            return 1
        case AdamW():
            return 2
        case TorchOptimizer():
            return 5


def _scales(backbone: nn.Module, parameters: list[nn.Parameter], decay: float) -> list[float]:
    """By what each parameter's rate is multiplied: 1 after the last block, `decay` in it, and so on to the first layers."""
    if decay == 1:
        return [1.0] * len(parameters)
    blocks = getattr(backbone, "blocks", None)
    if blocks is None:
        raise InputError("optim.layer_decay: not for networks of others, which have no blocks that are known")
    refresh_block_size = {id(it): place for place, block in enumerate(blocks) for it in block.parameters()}
    depths, last = [], -1  # -1: before the first block
    for parameter in parameters:
        known = refresh_block_size.get(id(parameter))
        last = known if known is not None else len(blocks) if last >= 0 else -1
        depths.append(last)
    return [decay ** (len(blocks) - depth) for depth in depths]


def _groups(
    config: AnyOptimizer, parameters: list[nn.Parameter], scales: list[float]
) -> list[dict[str, Any]]:
    """Those that decay, and those that do not, of each scale of the rate."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter, scale in zip(parameters, scales, strict=True):
        # not a ViT's positions, which are [1, N, width]
        decayed = config.weight_decay_on == "all" or (parameter.ndim > 1 and len(parameter) > 1)
        new: dict[str, Any] = {"params": [], _SCALE: scale} | ({} if decayed else {"weight_decay": 0.0})
        groups.setdefault((scale, decayed), new)["params"].append(parameter)
    return list(groups.values())


def _moments(config: AnyOptimizer, parameter: Tensor) -> dict[str, Tensor]:
    match config:
        case Sgd():
            return {"momentum_buffer": torch.zeros_like(parameter)}
        case AdamW():
            return {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
                "step": torch.zeros((), device=parameter.device),
            }
        case TorchOptimizer():
            return {}
